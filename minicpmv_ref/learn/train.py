"""Training, as plain as it gets: draw samples, compute the loss, take one AdamW step, report it.

A stage (`stages.py`) says which part learns, from what and for how long; an objective (`objectives.py`) makes a loss of
samples. Samples are drawn afresh, so there is no data set and there are no epochs. A long training needs more: to go on
after an interruption, several processes, less memory. `scale/steps.py` builds that from the same parts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ..inputs.checks import check_int, check_precision, check_type
from ..model import MiniCPMV
from ..processor import Processor
from ..toy.data import Sample
from .contrast import Contrast
from .objectives import draw_samples, objective_for
from .stages import Stage, freeze

WARM_UP = 0.03  # share of the steps during which the learning rate rises


class Step(NamedTuple):
    """What one step of training reports."""

    step: int  # from 1
    loss: float  # mean over the supervised tokens of this step
    lr_scale: float  # factor on all learning rates, 1 at their highest
    tokens: int  # of all samples, visual ones included
    views: int  # pictures and slices that were encoded
    seconds: float  # since the stage began
    flops: int = 0  # of this process; 0 where they are not counted


def train(
    model: MiniCPMV,
    processor: Processor,
    stage: Stage,
    seed: int = 0,
    *,
    objective=None,
    samples: Callable[[int], Sample] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[Step]:
    """Train a model for one stage, in place.

    Args:
        model, processor: they belong together. The parts that the stage does not name are frozen, and stay so.
        stage: what learns, from what, for how many steps.
        seed: of the samples and of everything else that is random.
        objective: from `objective_for`, if you want to ask it for its held-out loss; None makes one.
        samples: from a number, counted from 0 over the whole stage, to the sample that is shown there. None draws them
            from the world.
        optimizer: from `optimizer_for`, if you want to keep its state; None makes one. What it holds learns.

    Yields:
        A Step after each step. You may stop at any time.

    Raises:
        TypeError: no Stage, a seed that is no integer.
        ValueError: a negative seed; a sample that is too long for the model; nothing is supervised.
        FloatingPointError: the loss or its gradient is not finite. The weights are still those before that step.

    Example:
        >>> from dataclasses import replace
        >>> from minicpmv_ref.learn.stages import stage_named, start
        >>> model, processor = start(), Processor.from_pretrained("nano")
        >>> [step.views for step in train(model, processor, replace(stage_named("stage-1"), steps=2, batch=3))]
        [3, 3]

    Source: paper section 4: what each stage trains; learning rates and schedule are this project's.
    """
    check_type("stage", stage, Stage)
    torch.manual_seed(check_int("seed", seed, least=0))
    # A generator would raise only at its first step, so the checks stand outside of it.
    return _steps(model, stage, *loop_parts(model, processor, stage, seed, objective, samples, optimizer))


def loop_parts(
    model: MiniCPMV, processor: Processor, stage: Stage, seed: int, objective=None, samples=None, optimizer=None
) -> tuple:
    """(objective, samples, optimizer) of a training loop: those that are given, and the stage's own for each None."""
    objective = objective or objective_for(model, processor, stage)
    samples = samples or draw_samples(stage, seed, "train", objective.view)
    return objective, samples, optimizer or optimizer_for(model, stage, objective)


def _steps(model, stage, objective, samples, optimizer) -> Iterator[Step]:
    model.train()
    began = time.perf_counter()
    for step in range(1, stage.steps + 1):
        batch = [samples(number) for number in range((step - 1) * stage.batch, step * stage.batch)]
        loss, tokens, views, supervised = objective(batch, step)
        if not supervised:
            raise ValueError(f"{stage.name}, step {step}: there are no supervised tokens")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        lr_scale = update(optimizer, stage, step, loss.item())
        yield Step(step, loss.item(), lr_scale, tokens, views, time.perf_counter() - began)
    model.eval()


def update(optimizer: torch.optim.Optimizer, stage: Stage, step: int, loss: float) -> float:
    """Clip the gradient to norm 1, set the learning rate of this step and take it.

    Args:
        optimizer: its parameters have their gradients.
        stage: its name is for messages.
        step: from 1.
        loss: of this step.

    Returns:
        The factor on the learning rates, from `lr_scale_at`.

    Raises:
        FloatingPointError: the loss or the gradient's norm is not finite; the weights are as before.
    """
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(learning, 1.0)
    for name, value in (("loss", loss), ("gradient's norm", norm.item())):
        if not math.isfinite(value):
            raise FloatingPointError(f"{stage.name}, step {step}: the {name} is {value}")
    lr_scale = lr_scale_at(step - 1, stage.steps)
    for group in optimizer.param_groups:
        group["lr"] = lr_scale * group.setdefault("initial_lr", group["lr"])
    optimizer.step()
    return lr_scale


def optimizer_for(model: MiniCPMV, stage: Stage, objective=None) -> torch.optim.AdamW:
    """Freeze what a stage does not train, and make the optimizer of the rest: AdamW, a learning rate for each part.

    Args:
        model: changed in place.
        stage: its rates say which parts learn.
        objective: that of a "contrast" stage, whose scaffolding learns with the ViT and is thrown away.

    Returns:
        An AdamW.
    """
    check_precision(freeze(model, stage))
    groups = []
    for part, learning_rate in stage.learning_rates.items():
        module = objective if isinstance(objective, Contrast) else getattr(model, part)
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups.append({"params": parameters, "lr": learning_rate, "initial_lr": learning_rate})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01, foreach=True)


def lr_scale_at(step: int, steps: int) -> float:
    """The factor on the learning rates at a step, from 0: a short rise, then half a cosine down to 2 percent."""
    check_int("step", step, least=0), check_int("steps", steps)
    warm = min(1.0, (step + 1) / max(1, WARM_UP * steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
