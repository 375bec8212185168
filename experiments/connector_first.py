"""A stage for the connector alone before fine-tuning: what does it bring, and what would its operations bring there?"""

from __future__ import annotations

from minicpmv_ref.learn.stages import stage_named

from ._arms import figures, gains, grades, in_words, learn, table, verdict, weakest
from ._frame import Claim, Finding
from .connectors import DATA_MIX, learn_connector, operations, with_connector

CLAIM = Claim(
    title="The connector learns first",
    place="Cambrian-1, arXiv 2406.16860, finding 3: two-stage training is beneficial, and more data for the adapter "
    "help further.",
    says="Where a new connector first learns alone, fine-tuning ends better.",
    done="From the checkpoint after stage 2, with a new MLP on 2 x 2 shuffled patches: the connector learns alone on "
    "captions and lines of text, then connector and LLM are fine-tuned on questions and lines; or they are fine-tuned "
    "at once, for as many steps; or at once, for as many more steps as the operations of the first stage pay for. The "
    "ViT stays as it is. Confirmed means: with the stage the loss on held-out questions and lines of text together is "
    "lower than in each of the two other arms. Predicted before the run: lower after as many steps of fine-tuning, by "
    "more than 0.1 nats; at equal operations no difference or a loss, so not confirmed or refuted.",
    limits="The first stage is short, and so is the second, in which the new connector is still learning. Cambrian-1 "
    "compares at equal fine-tuning, where the stage is extra work; the third arm is the stricter question. One kind of "
    "connector, one learning rate of each stage.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [1, 1], "batch": 1, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": [60, 60], "batch": 12, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": [1500, 1500], "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
FIRST, AT_ONCE, EQUAL = ARMS = ("connector first", "at once", "at once, equal operations")
RATES = {part: stage_named("sft-1").learning_rates[part] for part in ("resampler", "llm")}
KINDS, MIX = ["question", "crop"], {"question": 2, "crop": 1}


def steps_for(steps: int) -> int:
    """Steps of fine-tuning that cost what `steps` of the connector alone do: the LLM gets no gradients there."""
    vit, llm = operations()
    return round(steps * (vit + 2 * llm) / (vit + 3 * llm))


def run(setting: dict, each) -> Finding:
    first, tuning = setting["steps"]

    def arm(item: list) -> dict:
        name, seed = item
        model, processor = with_connector(setting["begin"], "shuffle", seed, setting["device"])
        if name == FIRST:
            learn_connector(model, processor, seed, first, setting["batch"], data_mix=DATA_MIX)
        steps = tuning + (steps_for(first) if name == EQUAL else 0)
        changes = {"steps": steps, "batch": setting["batch"], "data_mix": MIX, "turns": 1}
        cost = learn(model, processor, "sft-1", seed, learning_rates=RATES, **changes)
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    names = [f"{kind}, nats" for kind in KINDS]
    at_once, equal = (gains(arms, FIRST, other, *names) for other in (AT_ONCE, EQUAL))
    return Finding(
        weakest(verdict(at_once), verdict(equal)),
        f"The stage for the connector saves {in_words(at_once)} nats a token after as many steps of fine-tuning, and "
        f"{in_words(equal)} at equal operations. The table counts the steps of fine-tuning.",
        *figures(
            {"nats that the stage saves at equal operations": equal, "after as many steps of fine-tuning": at_once}
        ),
        table(arms, [f"{kind}, {grade}" for kind in KINDS for grade in ("nats", "right")]),
        seeds,
    )
