"""Clips alone, or clips and pictures mixed in each batch: what does a model know afterwards?"""

from __future__ import annotations

from minicpmv_ref.toy.data import draw_more

from ._arms import (
    checkpoint,
    figures,
    gains,
    grades_of,
    held_out,
    in_words,
    learn,
    processor_of,
    table,
    verdict,
    weakest,
)
from ._frame import Claim, Finding

CLAIM = Claim(
    title="To learn video, mix pictures and clips in each batch",
    place="LLaVA-NeXT, a strong zero-shot video understanding model (blog, April 2024), on how to train; "
    "LLaVA-NeXT-Interleave, arXiv 2407.07895: NExT-QA 42.6 with video data only, 78.2 with pictures, too.",
    says="A model that learns clips together with pictures knows more about pictures and about clips.",
    done="Nano, which knows pictures, learns for equally many steps from clips only, or from batches that are half "
    "clips, half captions and questions. Confirmed means: after that the mixed one has the lower loss on held-out "
    "captions and questions, and the lower loss on held-out clips, though it has seen half as many. Expected: the "
    "first surely, the second rather not, so that the verdict is not confirmed or refuted.",
    limits="Few steps from a model that knows its pictures well. A clip of this world has three to eight frames of one "
    "or two shapes. The third way of the blog, pictures first and clips after that, is what both arms are here.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano", "steps": 60, "batch": 16, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano", "steps": 2000, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
ARMS = {"clips only": {"clip": 1}, "mixed": {"clip": 2, "caption": 1, "question": 1}}
PICTURES = ["caption", "question"]


def run(setting: dict, each) -> Finding:
    samples = {kind: held_out(kind, setting["n"]) for kind in PICTURES}
    samples["clip"] = [draw_more(f"claims/{i}", "clip", "test") for i in range(setting["n"])]

    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor = processor_of(model)
        changes = {"steps": setting["steps"], "batch": setting["batch"], "data_mix": ARMS[name], "half": False}
        cost = learn(model, processor, "sft-2", seed, **changes)
        return cost | grades_of(model, processor, samples)

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    kept = gains(arms, "mixed", "clips only", *(f"{kind}, nats" for kind in PICTURES))
    learned = gains(arms, "mixed", "clips only", "clip, nats")
    return Finding(
        weakest(verdict(kept), verdict(learned)),
        f"With pictures in each batch the loss is lower by {in_words(kept)} nats a token on pictures, and by "
        f"{in_words(learned)} on clips, where minus means that clips alone teach more.",
        *figures({"nats that mixing saves on pictures": kept, "nats that mixing saves on clips": learned}),
        table(arms, [f"{kind}, {grade}" for kind in samples for grade in ("nats", "right")]),
        seeds,
    )
