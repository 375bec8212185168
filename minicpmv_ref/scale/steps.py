"""The loop of `learn/train.py` for real machines: it starts at any step, in several processes, in micro-batches.

`train_steps` is that loop alone; `stage_run.py` adds checkpoints and a log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..counts import flops
from ..inputs.checks import check_int, check_type
from ..learn.packing import PackedBatch
from ..learn.stages import Stage
from ..learn.train import Step, loop_parts, update
from ..model import MiniCPMV
from ..processor import Processor
from ..toy.data import Sample
from .budget import workload_of
from .loader import prefetch
from .machine import DEFAULT, Machine
from .parallel import LossModule, backward, wrap_distributed


def train_steps(
    model: MiniCPMV,
    processor: Processor,
    stage: Stage,
    seed: int = 0,
    *,
    objective=None,
    samples: Callable[[int], Sample] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    done: int = 0,
    machine: Machine = DEFAULT,
) -> Iterator[Step]:
    """As `learn.train.train`, and it goes on after any step, in one of several processes, in micro-batches.

    Args:
        model, processor, stage, seed, objective, samples, optimizer: as for `learn.train.train`.
        done: steps that this model and this optimizer have taken. Samples and learning rate go on from there, so a
            resumed training ends with the same weights as one that was never interrupted.
        machine: how to use the machine. The model stays on its device, and is never sharded here.

    Yields:
        A Step after each step, numbered from done + 1. You may stop at any time.

    Raises:
        ValueError: a `done` that is not from 0 to the stage's steps; fewer samples than micro-batches or processes; a
            sample that is too long for the model; a number that is none or cannot be; sharding.
        FloatingPointError: the loss or its gradient is not finite. The weights are still those before that step.
    """
    check_type("stage", stage, Stage)
    seed = check_int("seed", seed, least=0)
    if not 0 <= check_type("done", done, int) <= stage.steps:
        raise ValueError(f"done must be from 0 to {stage.steps}, got {done}")
    machine = check_type("machine", machine, Machine).for_stage(stage)
    if machine.shard:
        raise ValueError("train_steps cannot shard: sharding replaces the parameters, so a StageRun does it")
    if done == 0:
        torch.manual_seed(seed)
    objective, samples, optimizer = loop_parts(model, processor, stage, seed, objective, samples, optimizer)
    module = wrap_distributed(LossModule(model, objective), machine.processes)
    # A generator would raise only at its first step, so the checks stand outside of it.
    inputs = machine.inputs(objective, samples, stage)
    steps = prefetch(inputs, range(done + 1, stage.steps + 1), machine.workers)
    return run_steps(model, module, stage, optimizer, machine, steps)


def run_steps(
    model: MiniCPMV,
    module: nn.Module,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    machine: Machine,
    steps: Iterator,
) -> Iterator[Step]:
    """Take steps, whose inputs come from `prefetch`; `module` is from `wrap_distributed`, on this model."""
    half_precision = machine.in_bfloat16(model.device)
    model.train()
    began = time.perf_counter()
    for step, names, micro_batches in steps:
        optimizer.zero_grad(set_to_none=True)
        try:
            if isinstance(micro_batches, Exception):
                raise micro_batches
            loss, tokens, views = backward(module, micro_batches, machine.processes, half_precision)
        except (ValueError, OSError) as error:
            kind = ValueError if isinstance(error, ValueError) else OSError
            raise kind(f"{stage.name}, step {step}, one of the samples {names}: {error}") from error
        try:
            lr_scale = update(optimizer, stage, step, loss)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; its samples: {names}") from None
        work = sum(flops_of(model, stage, prepared) for prepared in micro_batches)
        yield Step(step, loss, lr_scale, tokens, views, time.perf_counter() - began, work)
    model.eval()


def flops_of(model: MiniCPMV, stage: Stage, prepared) -> int:
    """FLOPs of a prepared micro-batch; 0 where they are not counted: with adapters, of peers, and in "contrast"."""
    packed = prepared[0]
    if not isinstance(packed, PackedBatch) or model.has_adapters or hasattr(model.config, "peer"):
        return 0
    return flops(model.config, workload_of(packed, model.config.slicing.patch_size), stage.learning_rates)
