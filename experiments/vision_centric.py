"""Three connectors on relation and counting, as Cambrian-1's CV-Bench asks for them."""

from __future__ import annotations

from ._arms import figures, gains, in_words, table, verdict, weakest
from ._cv_bench import FLAT, cv_bench
from ._frame import Claim, Finding
from .connectors import learn_connector, with_connector

CLAIM = Claim(
    title="Where and how many: SVA is at least as good as an MLP, and an MLP better than a resampler",
    place="Cambrian-1, arXiv 2406.16860, table of connectors, vision-centric: SVA 53.2, concatenation and its MLP "
    "52.6, plain resampler 42.6.",
    says="Queries that are tied to a region keep where things are.",
    done="From the checkpoint after stage 2, a new connector of 16 tokens learns alone on captions and questions, as "
    "in the claims before, and is graded on held-out questions of relation (left of, above) and counting. The score "
    "without the picture stands beside. Confirmed means: the loss with SVA is lower than with the MLP on 2 x 2 "
    "shuffled patches, and that lower than with the resampler.",
    limits="CV-Bench without its 3-D half, which these questions do not teach. Four places, four counts. SVA reads one "
    "encoder and its means. Its deeper network needs more steps than an MLP, so a short training is not its best. No "
    "arm answers much better than without the picture yet: the loss says who is nearer, not who can do it.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": 120, "batch": 16, "n": 60, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": 3000, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
# Expected: the MLP ahead of both, SVA not ahead of the MLP, as on lines of text; so refuted or not confirmed.
ARMS = ("resampler", "shuffle", "sva")
MIX = {"caption": 1, "question": 2}


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        connector, seed = item
        model, processor = with_connector(setting["begin"], connector, seed, setting["device"])
        cost = learn_connector(model, processor, seed, setting["steps"], setting["batch"], data_mix=MIX)
        return cost | cv_bench(model, processor, setting["n"], FLAT)

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    names = [f"{kind}, nats" for kind in FLAT]
    over_mlp, over_resampler = gains(arms, "sva", "shuffle", *names), gains(arms, "shuffle", "resampler", *names)
    return Finding(
        weakest(verdict(over_mlp), verdict(over_resampler)),
        f"On relation and counting SVA saves {in_words(over_mlp)} nats a token against the MLP on shuffled patches, "
        f"and that {in_words(over_resampler)} against the resampler.",
        *figures(
            {
                "nats that SVA saves against the shuffled MLP": over_mlp,
                "nats that the shuffled MLP saves against the resampler": over_resampler,
            }
        ),
        table(arms, [f"{kind}, {grade}" for kind in FLAT for grade in ("nats", "right", "blind")]),
        seeds,
    )
