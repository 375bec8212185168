"""ViT and LLM in memory at once, or one after the other? The most memory that an answer takes, each in a process."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from PIL import Image

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.deploy.sequence import measure, missing
from minicpmv_ref.scale.profiles import larger

from ._frame import CONFIRMED, NOT_CONFIRMED, Claim, Finding

CLAIM = Claim(
    title="ViT first, then the LLM: less memory",
    place="Section 5, memory usage optimization.",
    says="Both parts at once do not fit into a phone, which then swaps. Loaded one after the other they need less "
    "memory, and an image takes 31.5 instead of 45.2 seconds.",
    done="Rise of the peak resident memory while one question is answered, float32, one thread, a fresh process for "
    "each run: both parts loaded, or ViT and resampler loaded, used and freed before the LLM comes. The answers are "
    "equal. Theory: the sum of the weights' bytes against the larger part. MB are 10^6 bytes.",
    limits="The seconds: they need a device that runs out of memory. Where both parts fit, in turns costs the reading. "
    "One small picture, so what the layers keep hardly counts. Only nano is trained.",
)
DEEP = replace(larger.llm, num_hidden_layers=20)
CONFIGS = {"nano": nano, "larger": larger, "deep": replace(larger, llm=DEEP)}
SETTINGS = {
    "fast": {"models": ["nano"], "runs": 1},
    "cpu": {"models": ["nano", "larger", "deep"], "runs": 3},
    "gpu": {"models": ["nano", "larger", "deep"], "runs": 3},
}


def run(setting: dict, each) -> Finding:
    if missing():
        raise OSError(missing())

    def peaks(job: list) -> list[int]:
        name, _ = job
        processor = Processor(Processor.from_pretrained("nano").tokenizer, CONFIGS[name])
        model = MiniCPMV.from_pretrained("nano").float() if name == "nano" else MiniCPMV.seeded(CONFIGS[name])
        found = measure(model, processor, Image.new("RGB", (112, 112), "gray"), "What is this?")
        if found.together.tokens != found.in_turns.tokens:
            raise ValueError(f"{name}: the answers differ")
        return [found.vision, found.language, found.together.rise, found.in_turns.rise]

    jobs = [[name, number] for name in setting["models"] for number in range(setting["runs"])]
    found, table, saved = each(jobs, peaks), [], {}
    for name in setting["models"]:
        rows = [row for (job, _), row in zip(jobs, found) if job == name]
        vision, language, together, in_turns = (median(column) / 1e6 for column in zip(*rows))
        saved[name] = (together - in_turns) / min(vision, language)
        numbers = [vision, language, together, vision + language, in_turns, max(vision, language)]
        table.append([name, *(f"{number:.1f}" for number in numbers), f"{1 - in_turns / together:.0%}"])
    name, *_, together, _, in_turns, _, share = table[-1]
    head = ["model", "ViT and resampler, MB", "LLM, MB", "together", "in theory", "in turns", "in theory", "less"]
    return Finding(
        CONFIRMED if all(0.8 <= share <= 1.2 for share in saved.values()) else NOT_CONFIRMED,
        f"An answer of {name} takes {together} MB with both parts and {in_turns} MB in turns, {share} less. What is "
        f"saved is the smaller part: {min(saved.values()):.2f} to {max(saved.values()):.2f} times its bytes.",
        {
            f"peak memory of {name} in turns": f"{in_turns} instead of {together} MB",
            "saved, as times of the smaller part": f"{min(saved.values()):.2f} to {max(saved.values()):.2f}",
        },
        table=[head, *table],
    )
