"""Does the vision encoder learn in fine-tuning, or stay as pre-training left it?"""

from __future__ import annotations

from minicpmv_ref.learn.stages import stage_named

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict, weakest
from ._cv_bench import FLAT, TASKS, cv_bench
from ._frame import Claim, Finding
from .connectors import operations

CLAIM = Claim(
    title="The vision encoder learns in fine-tuning, too",
    place="Cambrian-1, arXiv 2406.16860, finding 4: to unfreeze the vision encoder is widely beneficial; encoders that "
    "learned from language always gain. The released models keep their encoders frozen.",
    says="A model whose ViT learns in fine-tuning answers better than one whose ViT stays as it was.",
    done="From the checkpoint after stage 3, a short fine-tuning on questions, lines of text, and what is in front or "
    "nearer: resampler and LLM learn, and the ViT learns with them at the stage's rate (half the LLM's) or stays "
    "frozen. A third arm is frozen, too, and gets the steps for which it computes as much as the first. Confirmed "
    "means: with a ViT that learns, the loss is lower on held-out questions and lower on held-out lines of text, after "
    "equal steps. The small CV-Bench (relation, counting, depth order, relative distance) stands beside, with the "
    "score of a model that sees no picture. Predicted before the run: confirmed, with more than 0.1 nats on text; at "
    "equal operations a little less.",
    limits="The toy's ViT is young and its world small; a ViT that has seen billions of pictures can also lose. One "
    "short fine-tuning. Encoders that learned without language, which Cambrian-1 has too, are not in it. The rate is "
    "that of a stage of 2,500 steps, and the claim before says that 60 steps want a lower one: so the verdict is as "
    "much about the rate as about freezing. Depth order and relative distance are learned by no arm in so few steps: "
    "their loss is above that of a guess between the two names of the question.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 1, "batch": 1, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-3", "steps": 60, "batch": 10, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-3", "steps": 2500, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
MIX = {"question": 2, "crop": 2, "depth": 1, "distance": 1}
GRADED = ("question", "crop")
LEARNS, FROZEN, EQUAL = "ViT learns", "ViT frozen", "ViT frozen, equal operations"


def steps_at_equal_operations(steps: int) -> int:
    """How many steps with a frozen ViT cost what `steps` of all parts do: a backward pass costs two forward ones."""
    vit, llm = operations()
    return round(steps * 3 * (vit + llm) / (vit + 3 * llm))


def run(setting: dict, each) -> Finding:
    n = setting["n"]

    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor = processor_of(model, max_slice_nums=1)
        rates = dict(stage_named("sft-1").learning_rates)
        if name != LEARNS:
            del rates["vpm"]
        steps = steps_at_equal_operations(setting["steps"]) if name == EQUAL else setting["steps"]
        changes = {"steps": steps, "batch": setting["batch"], "data_mix": MIX, "turns": 1}
        cost = learn(model, processor, "sft-1", seed, learning_rates=rates, **changes)
        return cost | grades(model, processor, list(GRADED), n) | cv_bench(model, processor, n)

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (LEARNS, FROZEN, EQUAL)}
    gained = {kind: gains(arms, LEARNS, FROZEN, f"{kind}, nats") for kind in GRADED}
    equal = {kind: gains(arms, LEARNS, EQUAL, f"{kind}, nats") for kind in GRADED}
    where = gains(arms, LEARNS, FROZEN, *(f"{kind}, nats" for kind in TASKS))
    return Finding(
        weakest(*map(verdict, gained.values())),
        f"With a ViT that learns the loss is lower by {in_words(gained['question'])} nats a token on questions and by "
        f"{in_words(gained['crop'])} on lines of text; at equal operations by {in_words(equal['question'])} and "
        f"{in_words(equal['crop'])}. On the small CV-Bench it is lower by {in_words(where)} after equal steps. "
        "Minus means that the frozen ViT is better.",
        *figures(
            {
                "nats less on questions": gained["question"],
                "nats less on lines of text": gained["crop"],
                "nats less on the small CV-Bench": where,
                "nats less on lines of text, equal operations": equal["crop"],
            }
        ),
        table(
            arms,
            [
                *(f"{kind}, {grade}" for kind in GRADED for grade in ("nats", "right")),
                *(f"{kind}, {grade}" for kind in FLAT for grade in ("nats", "right", "blind")),
                *(f"{kind}, nats" for kind in TASKS if kind not in FLAT),
            ],
        ),
        seeds,
    )
