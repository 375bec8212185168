"""What does each of the three pre-training stages contribute? Leave one out, and give its steps to the other two."""

from __future__ import annotations

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Each of the three pre-training stages contributes",
    place="Section 4.1: stage 1 warms up the resampler, stage 2 raises the ViT's resolution, stage 3 brings slices and "
    "text.",
    says="Pre-training goes in three stages, each with a purpose of its own.",
    done="From a model whose LLM and ViT are pre-trained and whose resampler is random: short stages 1, 2 and 3, then "
    "a short fine-tuning. In three other arms one stage is left out, and its steps go to the other two, so all arms "
    "take equally many. The parts that learn in each stage stay the paper's. All arms are graded after fine-tuning. "
    "Confirmed means: all three arms that miss a stage have a higher loss, over all kinds of held-out items together, "
    "in every seed.",
    limits="Stages of 20 to 60 steps instead of hundreds of millions of pictures: no arm learns to read in them, so "
    "that on text the loss says how well a model guesses. Learning rates are those of this project. Fine-tuning trains "
    "everything here as well and repairs a part of what was left out.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [2, 2, 2, 2], "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-start", "steps": [40, 60, 20, 20], "batch": 16, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {
        "begin": "nano-start",
        "steps": [600, 2000, 1000, 600],
        "batch": 64,
        "n": 400,
        "seeds": 3,
        "device": "cuda",
    },
}
ALL, STAGES = "all three", ("stage-1", "stage-2", "stage-3")
ARMS = {ALL: None, **{f"without {stage}": stage for stage in STAGES}}
KINDS = ["caption", "question", "crop", "read"]


def schedule(steps: list[int], left_out: str | None) -> dict[str, int]:
    """Steps of each stage; those of the one that is left out go to the others, in proportion."""
    kept = {stage: n for stage, n in zip(STAGES, steps) if stage != left_out}
    return {stage: round(n * sum(steps) / sum(kept.values())) for stage, n in kept.items()}


def run(setting: dict, each) -> Finding:
    *pretraining, tuning = setting["steps"]

    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor, cost = processor_of(model), {"steps": 0, "views": 0, "tokens": 0}
        for stage, steps in {**schedule(pretraining, ARMS[name]), "sft-1": tuning}.items():
            spent = learn(model, processor, stage, seed, steps=steps, batch=setting["batch"])
            cost = {key: cost[key] + spent[key] for key in cost}
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    every_kind = [f"{kind}, nats" for kind in KINDS]
    gained = {stage: gains(arms, ALL, f"without {stage}", *every_kind) for stage in STAGES}
    kinds = {
        stage: max(KINDS, key=lambda kind: sum(map(sum, gains(arms, ALL, f"without {stage}", f"{kind}, nats"))))
        for stage in STAGES
    }
    words = "; ".join(f"{stage} saves {in_words(gained[stage])}, most on {kinds[stage]}" for stage in STAGES)
    return Finding(
        weakest(*map(verdict, gained.values())),
        f"Nats a token, over all kinds, against the arm without it: {words}.",
        *figures({f"nats that {stage} saves": gained[stage] for stage in STAGES}),
        table(arms, [*every_kind, *(f"{kind}, right" for kind in KINDS)]),
        seeds,
    )
