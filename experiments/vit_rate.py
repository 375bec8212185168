"""How much more slowly than the LLM should the ViT learn in fine-tuning? A curve over the ratio of the two rates."""

from __future__ import annotations

from minicpmv_ref.learn.stages import stage_named

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict, weakest
from ._frame import Claim, Finding
from .rewriting import jumps

CLAIM = Claim(
    title="The ViT learns 5 to 10 times more slowly than the LLM",
    place="LLaVA-NeXT, blog of 25 May 2024, what else influences visual instruction tuning: rates go in pairs, from "
    "2e-5 for the LLM and 2e-6 for the ViT to 5e-6 and 5e-7.",
    says="In fine-tuning a rate of the ViT that is 5 to 10 times below the LLM's trains steadily and best.",
    done="From the checkpoint after stage 3, a short fine-tuning of all parts on questions and lines of text. LLM and "
    "resampler learn at 6e-4, the ViT at the same rate or at a 5th, a 10th or a 50th of it. Confirmed means: the loss "
    "on held-out questions and lines of text, as a mean of the ratios 5 and 10, is lower than with equal rates, and "
    "lower than at ratio 50. 'Jump' is how much the loss changes from step to step, as a share of its level. Predicted "
    "before the run: equal rates are the best here, since the toy's ViT is young, so the claim is refuted.",
    limits="The toy's ViT has learned from a million small pictures, theirs from billions; a young ViT has much to "
    "learn and little to lose. A short fine-tuning, in which a lower rate is also simply slower. One rate of the LLM.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 1, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-3", "steps": 60, "batch": 10, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-3", "steps": 2500, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
RATIOS = (1, 5, 10, 50)
MIX = {"question": 2, "crop": 1}


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        ratio, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor = processor_of(model, max_slice_nums=1)
        rates = dict(stage_named("sft-1").learning_rates)
        rates["vpm"] = rates["llm"] / ratio
        changes = {"steps": setting["steps"], "batch": setting["batch"], "data_mix": MIX, "turns": 1}
        cost = learn(model, processor, "sft-1", seed, learning_rates=rates, **changes)
        return cost | {"jump": [jumps(cost["losses"])]} | grades(model, processor, list(MIX), setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {f"a part in {ratio}": each([[ratio, seed] for seed in seeds], arm) for ratio in RATIOS}
    equal, *middle, least = arms
    names = [f"{kind}, nats" for kind in MIX]

    def ahead(other: str) -> list[list[float]]:
        """What the two in the middle gain over another, as a mean of both."""
        pairs = zip(*(gains(arms, name, other, *names) for name in middle))
        return [[(a + b) / 2 for a, b in zip(one, two)] for one, two in pairs]

    over_equal, over_least = ahead(equal), ahead(least)
    each_over_equal = {name: gains(arms, name, equal, *names) for name in (*middle, least)}
    return Finding(
        weakest(verdict(over_equal), verdict(over_least)),
        f"The ratios 5 and 10 together save {in_words(over_equal)} nats a token against equal rates and "
        f"{in_words(over_least)} against ratio 50. Against equal rates, one by one: "
        + ", ".join(f"{name} {in_words(gained)}" for name, gained in each_over_equal.items())
        + ".",
        *figures({"nats that 5 and 10 save against ratio 50": over_least, "against equal rates": over_equal}),
        table(arms, [*(f"{kind}, {grade}" for kind in MIX for grade in ("nats", "right")), "jump"]),
        seeds,
    )
