"""CV-Bench in small: where things are and how many there are, with the score of a model that is shown no picture.

Cambrian-1's benchmark asks for spatial relation and counting in 2-D, depth order and relative distance in 3-D. The
world here is flat, so the second half is left out.
"""

from __future__ import annotations

from minicpmv_ref import Processor
from minicpmv_ref.learn.evaluate import answers
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.toy.data import blind

from ._arms import held_out, nats, right

TOPICS = {"relation": "side", "counting": "count"}
SHORT = {"max_new_tokens": 8}  # an answer is one word


def cv_bench(model: MiniCPMV, processor: Processor, n: int) -> dict[str, list[float]]:
    """For n held-out questions of each kind: the loss on the answer, whether it is right, and so without the picture.

    The answers of a kind are equally likely: 2 of a relation, 4 of a count.
    """
    found = {}
    for kind, topic in TOPICS.items():
        samples = held_out("question", n, topic=topic)
        found[f"{kind}, nats"] = nats(model, processor, samples)
        found[f"{kind}, right"] = right(model, processor, samples, **SHORT)
        said = answers(model, processor, [blind(sample.prompt) for sample in samples], **SHORT)
        found[f"{kind}, blind"] = [float(text == sample.answer) for text, sample in zip(said, samples)]
    return found
