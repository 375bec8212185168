"""Does a resampler need longer than an MLP? Both at several lengths of training, with as many tokens."""

from __future__ import annotations

from ._arms import figures, gains, grades, in_words, table, verdict, weakest
from ._frame import Claim, Finding
from .connectors import KINDS, learn_connector, with_connector

CLAIM = Claim(
    title="A resampler learns more slowly than an MLP and does not overtake it",
    place="LLaVA-1.5, arXiv 2310.03744, section 3.4, and LLaVA-NeXT's ablations: a Q-Former or resampler needs more "
    "training data than an MLP and brings nothing for it.",
    says="At little data the MLP is ahead; with more data the resampler does not pass it.",
    done="A new connector learns alone for a number of steps, as in the claim before: the resampler, or the MLP on "
    "shuffled patches, both with 16 tokens. Confirmed means: at each length the MLP has the lower loss on held-out "
    "captions and lines of text together.",
    limits="The longest training here is short beside those of the papers, and 16 tokens for 64 patches are easy for "
    "the shuffle. The learning rate is the same for both. The resampler has about twice as many weights. The "
    "time beside it is that of a busy machine.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [2, 3], "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": [60, 120, 400], "batch": 16, "n": 60, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": [60, 400, 3000], "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
MLP, RESAMPLER = "shuffle", "resampler"


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        connector, steps, seed = item
        model, processor = with_connector(setting["begin"], connector, seed, setting["device"])
        cost = learn_connector(model, processor, seed, steps, setting["batch"])
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds, lengths = list(range(setting["seeds"])), setting["steps"]
    arms = {
        f"{connector}, {steps} steps": each([[connector, steps, seed] for seed in seeds], arm)
        for steps in lengths
        for connector in (MLP, RESAMPLER)
    }
    names = [f"{kind}, nats" for kind in KINDS]
    ahead = {steps: gains(arms, f"{MLP}, {steps} steps", f"{RESAMPLER}, {steps} steps", *names) for steps in lengths}
    return Finding(
        weakest(*map(verdict, ahead.values())),
        "The MLP is ahead by "
        + "; ".join(f"{in_words(gained)} nats a token after {steps} steps" for steps, gained in ahead.items())
        + ".",
        *figures({f"nats that the MLP is ahead after {steps} steps": gained for steps, gained in ahead.items()}),
        table(arms, [f"{kind}, {grade}" for kind in KINDS for grade in ("nats", "right")]),
        seeds,
    )
