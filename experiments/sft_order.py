"""Fine-tuning in two parts, short answers before long ones, against the same samples shuffled."""

from __future__ import annotations

from minicpmv_ref.learn.stages import stage_named

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Fine-tuning part 1, then part 2",
    place="Section 4.2: part 1 (short answers) and part 2 (long answers, readings) are fed one after the other.",
    says="Basic abilities first, then detailed answers.",
    done="From the checkpoint after stage 3, a short fine-tuning of two parts, against one in which both parts draw "
    "from the shuffled mixture of the two. Samples of each kind, steps, learning rates and schedules are the same; "
    "only the order differs. Confirmed means: in order, the loss over all kinds of held-out items together is lower.",
    limits="One seed. Toy answers are never long: 30 tokens at most. The paper does not say how large the gain is.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [2, 2], "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-3", "steps": [110, 60], "batch": 16, "n": 80, "seeds": 1, "device": "cpu"},
    "gpu": {"begin": "nano-stage-3", "steps": [1500, 800], "batch": 64, "n": 400, "seeds": 1, "device": "cuda"},
}
ORDER, SHUFFLED = "part 1, then part 2", "shuffled"
PARTS = ("sft-1", "sft-2")
KINDS = ["question", "long", "read", "lookup"]


def shuffled(steps: list[int]) -> dict[str, float]:
    """The mixture of both parts together, each kind as often as in the two of them."""
    mixtures = [stage_named(part).data_mix for part in PARTS]
    return {
        kind: sum(n * mixture.get(kind, 0) / sum(mixture.values()) for n, mixture in zip(steps, mixtures))
        for kind in dict.fromkeys([*mixtures[0], *mixtures[1]])
    }


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor, cost = processor_of(model), {"steps": 0, "views": 0, "tokens": 0}
        for part, steps in zip(PARTS, setting["steps"]):
            mixture = shuffled(setting["steps"]) if name == SHUFFLED else stage_named(part).data_mix
            spent = learn(model, processor, part, seed, steps=steps, batch=setting["batch"], data_mix=mixture)
            cost = {key: cost[key] + spent[key] for key in cost}
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (ORDER, SHUFFLED)}
    names = [f"{kind}, nats" for kind in KINDS]
    gained = gains(arms, ORDER, SHUFFLED, *names)
    kinds = ", ".join(f"{kind} {in_words(gains(arms, ORDER, SHUFFLED, name))}" for kind, name in zip(KINDS, names))
    return Finding(
        verdict(gained),
        f"In order, fine-tuning saves {in_words(gained)} nats a token against shuffled samples: {kinds}.",
        *figures({"nats less in order than shuffled": gained}),
        table(arms, [*names, *(f"{kind}, right" for kind in KINDS)]),
        seeds,
    )
