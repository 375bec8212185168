"""Several pictures in one prompt: learned after single pictures, or at once?"""

from __future__ import annotations

from dataclasses import replace

from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.scale.steps import train_steps
from minicpmv_ref.toy.data import Sample, draw, draw_more

from ._arms import (
    checkpoint,
    cost_of,
    exact,
    figures,
    gains,
    grades_of,
    held_out,
    in_words,
    processor_of,
    table,
    verdict,
    weakest,
)
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Begin with the model of single pictures",
    place="LLaVA-NeXT-Interleave, arXiv 2407.07895, ablation: trained on several pictures after stage 2, which is "
    "fine-tuning on single ones, instead of stage 1: Mantis 45.6 instead of 41.0, NLVR2 67.8 instead of 54.0.",
    says="A model that answers about one picture learns to answer about several better than one that has only been "
    "pre-trained.",
    done="From the checkpoint after stage 3, which has learned captions and lines, no answers, resampler and LLM "
    "learn: questions about one picture and after that about two; or about two, as many steps; or about two, as many "
    "steps as both together. Asked is the color of a shape that one of two pictures shows, how many there are in both, "
    "and whether both show a shape. Confirmed means: on held-out questions about two pictures the loss after single "
    "pictures is lower than in each of the other arms. Predicted before the run: lower after as many steps on two "
    "pictures; where the steps are equal in all, no difference or a loss, so not confirmed or refuted.",
    limits="The source compares after unequal training only, the second arm here; the third is the fair one. Two "
    "pictures of one or two shapes. No question names a picture by its number: nano learns that much later.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [1, 1], "batch": 1, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-3", "steps": [50, 40], "batch": 10, "n": 60, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-3", "steps": [2000, 1500], "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
FIRST, SHORT, EQUAL = ARMS = ("one picture, then two", "two pictures", "two pictures, steps of both")
RATES = {part: stage_named("sft-1").learning_rates[part] for part in ("resampler", "llm")}
TOPICS = ("unnamed", "all", "both")


def two_pictures(seed: str, number: int, split: str = "train") -> Sample:
    return draw_more(f"{seed}/{number}", "many", split, count=2, topic=TOPICS[number % 3])


def run(setting: dict, each) -> Finding:
    n, (single, several) = setting["n"], setting["steps"]

    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor = processor_of(model, max_slice_nums=1)
        parts = {FIRST: [(1, single), (2, several)], SHORT: [(2, several)], EQUAL: [(2, single + several)]}
        done = []
        for pictures, steps in parts[name]:
            stage = replace(stage_named("sft-1"), steps=steps, batch=setting["batch"], turns=1, learning_rates=RATES)

            def sample(number: int, pictures: int = pictures) -> Sample:
                if pictures == 1:
                    return draw(f"single first/{seed}/{number}", "question")
                return two_pictures(f"single first/{seed}", number)

            done += train_steps(model, processor, stage, seed, samples=sample)
        graded = {"two pictures": [two_pictures("claims", i, "test") for i in range(n)], "one": held_out("question", n)}
        guessed = exact(model, processor, graded["two pictures"], pictures=False, max_new_tokens=8)
        found = grades_of(model, processor, graded, max_new_tokens=8)
        return cost_of(done) | found | {"two pictures, blind": guessed}

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    short, equal = (gains(arms, FIRST, other, "two pictures, nats") for other in (SHORT, EQUAL))
    one = gains(arms, FIRST, EQUAL, "one, nats")
    return Finding(
        weakest(verdict(short), verdict(equal)),
        f"On two pictures, single ones before save {in_words(short)} nats a token after as many steps on two, and "
        f"{in_words(equal)} where all steps together are equal; there they save {in_words(one)} on one picture.",
        *figures(
            {
                "nats on two pictures that single ones save, equal steps in all": equal,
                "the same after as many steps on two": short,
                "nats on one picture, at equal steps in all": one,
            }
        ),
        table(arms, [*(f"two pictures, {grade}" for grade in ("nats", "right", "blind")), "one, nats", "one, right"]),
        seeds,
    )
