"""What has each pre-training stage brought, at full length? Its checkpoint and the one before, fine-tuned alike."""

from __future__ import annotations

from itertools import pairwise

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Every stage of pre-training is a step up",
    place="Section 4.1: the resampler's warm-up, the ViT's resolution, then slices and text.",
    says="Each stage prepares the next, and all of them the fine-tuning.",
    done="The checkpoints of the shipped model before pre-training and after its stages 1, 2 and 3 get the same short "
    "fine-tuning, once for each of three seeds. Confirmed means: after each stage, the loss over all kinds of held-out "
    "items together is lower than before it, in every seed.",
    limits="The stages themselves were trained once, with one seed; seeds are those of the fine-tuning. A later "
    "checkpoint has taken more steps: that the steps were well spent in this order is what the next claim tests, "
    "in short.",
)
CHECKPOINTS = ["nano-start", "nano-stage-1", "nano-stage-2", "nano-stage-3"]
SETTINGS = {
    "fast": {"begin": ["random"] * 4, "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": CHECKPOINTS, "steps": 20, "batch": 16, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": CHECKPOINTS, "steps": 600, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
ARMS = ("no stage", "stage 1", "stages 1 and 2", "all three")
KINDS = ["caption", "question", "crop", "read"]


def run(setting: dict, each) -> Finding:
    begins = dict(zip(ARMS, setting["begin"]))

    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(begins[name], setting["device"])
        processor = processor_of(model)
        cost = learn(model, processor, "sft-1", seed, steps=setting["steps"], batch=setting["batch"])
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    names = [f"{kind}, nats" for kind in KINDS]
    gained = {f"stage {n}": gains(arms, after, before, *names) for n, (before, after) in enumerate(pairwise(ARMS), 1)}
    words = "; ".join(f"{stage} {in_words(gain)}" for stage, gain in gained.items())
    return Finding(
        weakest(*map(verdict, gained.values())),
        f"Nats a token that each stage saves after the same fine-tuning, over all kinds: {words}.",
        *figures({f"nats that {stage} saves": gain for stage, gain in gained.items()}),
        table(arms, [*names, *(f"{kind}, right" for kind in KINDS)]),
        seeds,
    )
