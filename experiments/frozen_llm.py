"""Should the LLM learn in stage 3, too, when the captions are those of the web? Frozen against unfrozen."""

from __future__ import annotations

from minicpmv_ref.learn.stages import stage_named

from ._arms import checkpoint, figures, gains, grades, held_out, in_words, learn, nats, processor_of, table, verdict
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Noisy captions: keep the LLM frozen",
    place="Section 4.1: in pre-training the LLM stays as it is, because captions of low quality would harm it.",
    says="A language model that learns from the captions of the web gets worse; the ViT and the resampler do not need "
    "it.",
    done="From the checkpoint after stage 2, a short stage 3 on noisy captions (shuffled, incomplete, with "
    "advertising), with the LLM frozen or learning at the rate of fine-tuning; then the same short fine-tuning. "
    "Between the two the LLM is graded alone, on questions about pictures that are spelled in words. Confirmed means: "
    "after fine-tuning, the loss on held-out questions is lower where the LLM was frozen, in every seed.",
    limits="The noise is made by a program and always true; the web's is not. The LLM is small, so it forgets quickly "
    "and learns anew as quickly. Only noisy captions are in this stage 3, no text.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [2, 2], "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": [60, 40], "batch": 16, "n": 80, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": [1000, 600], "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
FROZEN, UNFROZEN = "frozen", "unfrozen"
LLM_RATE = stage_named("sft-1").learning_rates["llm"]
MAIN, ALONE = "question, nats", "the LLM alone, nats"


def run(setting: dict, each) -> Finding:
    steps, tuning = setting["steps"]

    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor, batch = processor_of(model), setting["batch"]
        rates = stage_named("stage-3").learning_rates | ({"llm": LLM_RATE} if name == UNFROZEN else {})
        changes = dict(steps=steps, batch=batch, learning_rates=rates, data_mix={"noisy": 1})
        cost = learn(model, processor, "stage-3", seed, **changes)
        alone = {ALONE: nats(model, processor, held_out("question", setting["n"]), "spelled")}
        learn(model, processor, "sft-1", seed, steps=tuning, batch=batch, data_mix={"question": 2, "talk": 1})
        return cost | alone | grades(model, processor, ["question", "caption"], setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (FROZEN, UNFROZEN)}
    gained = {name: gains(arms, FROZEN, UNFROZEN, name) for name in (MAIN, ALONE, "caption, nats")}
    return Finding(
        verdict(gained[MAIN]),
        f"Freezing saves {in_words(gained[ALONE])} nats a token on questions to the LLM alone, right after the noisy "
        f"captions, and {in_words(gained[MAIN])} on questions about pictures after fine-tuning "
        f"({in_words(gained['caption, nats'])} on captions).",
        *figures(
            {"nats less on questions, after fine-tuning": gained[MAIN], "on the LLM alone, before": gained[ALONE]}
        ),
        table(arms, [ALONE, MAIN, "caption, nats", "question, right", "caption, right"]),
        seeds,
    )
