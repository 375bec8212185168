"""CogVLM gives all tokens of an image one rotary position. Does a model lose the places of things by that?"""

from __future__ import annotations

from ._arms import figures, gains, grades, in_words, table, verdict
from ._frame import Claim, Finding
from .connectors import learn_connector, with_connector
from .visual_expert import RATES

CLAIM = Claim(
    title="All tokens of an image can share one position",
    place="CogVLM, arXiv 2311.03079, section 2: position embedding. No ablation is given.",
    says="The features already carry the place of each patch, so one position for all of them is enough, and text is "
    "not far from the picture even where the picture has thousands of tokens.",
    done="From the checkpoint after stage 2, with a new MLP on 2 x 2 shuffled patches, connector and LLM learn on "
    "captions and questions: with one position for the 16 tokens of a picture, or with running ones as the LLM is used "
    "to. Graded are held-out captions and the questions about places (where is it, is it left of). Confirmed means: "
    f"the loss is higher by less than {(MARGIN := 0.1)} nats a token, and so is the end of its interval and every "
    "seed; refuted: higher by more than that in the same sense.",
    limits="16 tokens are few: the gain for long contexts cannot show here. The LLM learned with running positions, so "
    "one position is new to it. The ViT adds positions to its patches; without them the answer would be another. "
    "Both arms still guess at left or right, so only captions and places say something.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": 120, "batch": 16, "n": 60, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": 3000, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
# Expected: no difference that 60 items can show, so confirmed within the margin.
ONE, RUNNING = "one position", "running positions"
TOPICS = ("place", "side")
MIX = {"caption": 1, "question": 2}


def run(setting: dict, each) -> Finding:
    n = setting["n"]

    def arm(item: list) -> dict:
        name, seed = item
        extras = {"one_position": name == ONE}
        model, processor = with_connector(setting["begin"], "shuffle", seed, setting["device"], **extras)
        changes = {"learning_rates": RATES, "data_mix": MIX}
        cost = learn_connector(model, processor, seed, setting["steps"], setting["batch"], **changes)
        found = grades(model, processor, ["caption"], n)
        for topic in TOPICS:
            for name, values in grades(model, processor, ["question"], n, topic=topic).items():
                found[name.replace("question", topic)] = values
        return cost | found

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (ONE, RUNNING)}
    kinds = ("caption", *TOPICS)
    names = [f"{kind}, nats" for kind in kinds]
    lost = gains(arms, RUNNING, ONE, *names)
    by_kind = {kind: gains(arms, RUNNING, ONE, f"{kind}, nats") for kind in kinds}
    return Finding(
        verdict(gains(arms, ONE, RUNNING, *names), -MARGIN),
        f"One position costs {in_words(lost)} nats a token: "
        + ", ".join(f"{kind} {in_words(gained)}" for kind, gained in by_kind.items())
        + ".",
        *figures({"nats that one position costs": lost} | {f"on {kind}": by_kind[kind] for kind in kinds}),
        table(arms, [f"{kind}, {grade}" for kind in kinds for grade in ("nats", "right")]),
        seeds,
    )
