"""What the experiments that train have in common: a short training, grades for every held-out item, and a verdict.

One arm is one way to train. Each arm runs once for each seed, and all are graded on the same held-out items, so arms
are compared item by item: what the items differ in does not count. A grade is a list with one number for each item,
    "read, nats"   the loss on its answer, mean over tokens: less is better. It moves long before answers do.
    "read, right"  the share of its words that are right
for documents, and so on for the other kinds of the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from minicpmv_ref import Processor
from minicpmv_ref.config import nano
from minicpmv_ref.learn.evaluate import answers, share_of_words
from minicpmv_ref.learn.objectives import objective_for
from minicpmv_ref.learn.stages import stage_named, start
from minicpmv_ref.learn.statistics import bootstrap_mean
from minicpmv_ref.learn.train import Step
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.scale.steps import train_steps
from minicpmv_ref.toy.data import Sample, blind, draw, numbered

from ._frame import CONFIRMED, NOT_CONFIRMED, REFUTED

Arms = dict[str, list[dict]]  # arm -> what each seed gave: its grades and its cost


def checkpoint(name: str, device: str = "cpu") -> MiniCPMV:
    """One of the course's checkpoints, say "nano-stage-2"; "random" is for the fast profile, which proves nothing."""
    return (start(nano) if name == "random" else MiniCPMV.from_pretrained(name).float()).to(device)


def with_new_resampler(name: str, seed: int, device: str = "cpu", num_queries: int = 16) -> MiniCPMV:
    """A checkpoint whose resampler is random again, and has as many queries as you like."""
    trained = checkpoint(name)
    model = start(replace(nano, resampler=replace(nano.resampler, num_queries=num_queries)), seed)
    model.vpm.load_state_dict(trained.vpm.state_dict())
    model.llm.load_state_dict(trained.llm.state_dict())
    return model.to(device)


def processor_of(model: MiniCPMV, max_slice_nums: int = 9) -> Processor:
    """The nano tokenizer and a model's own numbers; 1 shows every picture in one view, in training, too."""
    slicing = replace(model.config.slicing, max_slice_nums=max_slice_nums)
    return Processor(Processor.from_pretrained("nano").tokenizer, replace(model.config, slicing=slicing))


def learn(
    model: MiniCPMV, processor: Processor, stage: str, seed: int, languages: dict | None = None, **changes
) -> dict:
    """Train for one stage of the schedule, with changes; returns its cost and the loss of every step.

    `languages` are the weights of the languages that the samples are in; None is English.
    """
    changed = replace(stage_named(stage), **changes)
    samples = None
    if languages:
        samples = numbered(f"{stage}/{seed}", changed.data_mix, languages=languages, turns=changed.turns)
    steps = list(train_steps(model, processor, changed, seed, samples=samples))
    return {**cost_of(steps), "losses": [s.loss for s in steps]}


def cost_of(steps: Sequence[Step]) -> dict:
    """What a training took."""
    return {"steps": len(steps), "views": sum(s.views for s in steps), "tokens": sum(s.tokens for s in steps)}


# ---- grades


def held_out(kind: str, n: int, seed: int | str = "claims", **options) -> list[Sample]:
    """n samples that no training can draw: the same ones for every arm."""
    return [draw(f"{seed}/{i}", kind, "test", **options) for i in range(n)]


@torch.no_grad()
def nats(model: MiniCPMV, processor: Processor, samples: list[Sample], objective: str = "answer") -> list[float]:
    """The loss on each sample's answer. "spelled": its picture is spelled in words, so the LLM alone is graded."""
    loss = objective_for(model, processor, replace(stage_named("sft-2"), objective=objective))
    return [loss([sample], 0)[0].item() for sample in samples]


def right(model: MiniCPMV, processor: Processor, samples: list[Sample], **options) -> list[float]:
    """The share of each answer's words that stand in their right place."""
    said = answers(model, processor, [sample.prompt for sample in samples], **options)
    # Chinese puts no spaces between its words, so that there a whole answer is right or wrong.
    return [share_of_words([text], [sample.answer]) for text, sample in zip(said, samples)]


def exact(
    model: MiniCPMV, processor: Processor, samples: list[Sample], pictures: bool = True, **options
) -> list[float]:
    """1 for each answer that is right to the letter, with the pictures or without, else 0."""
    prompts = [sample.prompt if pictures else blind(sample.prompt) for sample in samples]
    said = answers(model, processor, prompts, **options)
    return [float(text == sample.answer) for text, sample in zip(said, samples)]


def grades_of(
    model: MiniCPMV, processor: Processor, samples_of: dict[str, list[Sample]], **options
) -> dict[str, list[float]]:
    """Both grades for samples, by the names of their kinds."""
    found = {}
    for kind, samples in samples_of.items():
        found[f"{kind}, nats"] = nats(model, processor, samples)
        found[f"{kind}, right"] = right(model, processor, samples, **options)
    return found


def grades(model: MiniCPMV, processor: Processor, kinds: list[str], n: int, **options) -> dict[str, list[float]]:
    """Both grades for n held-out samples of each kind."""
    return grades_of(model, processor, {kind: held_out(kind, n, **options) for kind in kinds})


# ---- arms against each other


def gains(arms: Arms, better: str, worse: str, *names: str) -> list[list[float]]:
    """What one arm gains over another: for each seed, for each item of the grades with these names."""
    return [
        [b - a if name.endswith("nats") else a - b for name in names for a, b in zip(one[name], other[name])]
        for one, other in zip(arms[better], arms[worse], strict=True)
    ]


def mean_over_items(gained: list[list[float]]) -> tuple[float, list[float]]:
    """The mean gain, and an interval of 95 % for it: the bootstrap over items, each with its mean over the seeds."""
    mean, *ends = bootstrap_mean(np.mean(gained, axis=0))
    return mean, ends


def verdict(gained: list[list[float]], least: float = 0.0) -> str:
    """Confirmed if the interval is above `least` and so is the mean of every seed; refuted if both are below."""
    return decided(mean_over_items(gained)[1], [fmean(items) for items in gained], least)


def decided(ends: Sequence[float], seeds: Sequence[float], least: float = 0.0) -> str:
    """The verdict from an interval and the means of the seeds: are they above or below `least`, all of them?"""
    if ends[0] > least and min(seeds) > least:
        return CONFIRMED
    return REFUTED if ends[1] < least and max(seeds) < least else NOT_CONFIRMED


def weakest(*verdicts: str) -> str:
    """The verdict on a claim that says several things at once: it holds if all of them do."""
    return next(one for one in (REFUTED, NOT_CONFIRMED, CONFIRMED) if one in verdicts)


def in_words(gained: list[list[float]]) -> str:
    """'+0.123 (+0.101 to +0.145; seeds +0.120, +0.126)'"""
    mean, (low, high) = mean_over_items(gained)
    seeds = ", ".join(f"{fmean(items):+.3f}" for items in gained)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}; " + (f"seeds {seeds})" if len(gained) > 1 else "one seed)")


def figures(named: dict[str, list[list[float]]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures and intervals of a Finding, from gains by their names."""
    found = {name: mean_over_items(gained) for name, gained in named.items()}
    return (
        {name: round(mean, 3) for name, (mean, _) in found.items()},
        {name: [round(end, 3) for end in ends] for name, (_, ends) in found.items()},
    )


def table(arms: Arms, names: list[str]) -> list[list[str]]:
    """One row for each arm: its cost, then the mean of each grade and, in brackets, that of each seed."""
    rows = [["arm", "steps", "views", "tokens", *names]]
    for arm, seeds in arms.items():
        row = [arm, *(f"{fmean(seed[name] for seed in seeds):,.0f}" for name in ("steps", "views", "tokens"))]
        for name in names:
            means = [fmean(seed[name]) for seed in seeds]
            each = " (" + ", ".join(f"{mean:.2f}" for mean in means) + ")" if len(means) > 1 else ""
            row.append(f"{fmean(means):.3f}{each}")
        rows.append(row)
    return rows
