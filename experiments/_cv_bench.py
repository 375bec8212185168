"""The small CV-Bench of `toy.cv_bench` item by item: with the loss on each answer, as arms are compared."""

from __future__ import annotations

from collections.abc import Iterable

from minicpmv_ref import Processor
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.toy.cv_bench import TASKS, cv_samples

from ._arms import exact, nats

FLAT = ("relation", "counting")  # what captions and questions teach; the other two tasks need samples of their own
SHORT = {"max_new_tokens": 8}  # an answer is a word or two


def cv_bench(
    model: MiniCPMV, processor: Processor, n: int, tasks: Iterable[str] = tuple(TASKS)
) -> dict[str, list[float]]:
    """For n held-out questions of each task: the loss on the answer, whether it is right, and so without the picture.

    The answers of a task are equally likely: 2 of a relation, 4 of a count, 2 of depth and of distance.
    """
    found = {}
    for task in tasks:
        samples = cv_samples(task, n, "claims")
        found[f"{task}, nats"] = nats(model, processor, samples)
        found[f"{task}, right"] = exact(model, processor, samples, **SHORT)
        found[f"{task}, blind"] = exact(model, processor, samples, pictures=False, **SHORT)
    return found
