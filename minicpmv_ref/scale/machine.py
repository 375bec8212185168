"""What a training is told about the machine: one `Machine`, made once. None of it changes what is learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from ..inputs.checks import check_int, check_type, shown
from ..learn.stages import Stage
from ..linear import is_quicker
from .loader import StepInputs, check_workers
from .parallel import ONE_PROCESS, Processes


@dataclass(frozen=True)
class Machine:
    """How a training uses the machine.

    Args:
        device: "cpu" or "cuda": where `run` and `train_on` put the model.
        processes: from `join_processes`, if several train together: each takes its share of every step's samples. The
            first one alone writes; it needs the folder, the others read it.
        shard: True lets each process hold a part of each tensor, see `parallel.wrap_distributed`.
        micro_batches: compute the samples of a step in so many parts, one after the other, to save memory.
        workers: processes that draw and slice the next steps' samples while this step computes; 0 does it in between.
        checkpointing: compute each layer twice to save memory, see `budget.checkpointed`.
        compile: let torch.compile fuse what it can, see `budget.compile_layers`; the first steps take long.
        half_precision: True computes in bfloat16 where that is safe; the weights stay float32. None does so where the
            machine multiplies bfloat16 faster.

    Raises:
        TypeError: a field of another type.
        ValueError: a device that this torch cannot use; more workers than CPU cores, or a system that cannot fork.

    Example:
        >>> Machine(micro_batches=2).micro_batches
        2
    """

    device: str | torch.device = "cpu"
    processes: Processes = ONE_PROCESS
    shard: bool = False
    micro_batches: int = 1
    workers: int = 0
    checkpointing: bool = False
    compile: bool = False
    half_precision: bool | None = None

    def __post_init__(self):
        check_type("processes", self.processes, Processes)
        check_int("micro_batches", self.micro_batches, least=0)
        check_workers(self.workers)
        try:
            torch.empty(0, device=self.device)
        except (AssertionError, RuntimeError, TypeError) as error:
            what = f"device must be one that this torch can use, got {shown(self.device)}"
            raise ValueError(f"{what}: {error}") from error

    def for_stage(self, stage: Stage) -> Machine:
        """The same, or what "contrast" can use of it: it compares all samples of a step and trains the ViT alone."""
        return replace(self, shard=False, micro_batches=1) if stage.objective == "contrast" else self

    def inputs(self, objective, samples, stage: Stage) -> StepInputs:
        """The inputs of a stage's steps in this process; ValueError if it has fewer samples than micro-batches."""
        return StepInputs(objective, samples, stage.batch, self.processes, self.micro_batches)

    def in_bfloat16(self, device: torch.device) -> bool:
        """Whether a model on this device computes in bfloat16. All processes must ask, and all get the same answer."""
        if self.half_precision is not None:
            return self.half_precision
        return self.processes.all_reduce_sum(fast_bfloat16(device)) == [self.processes.size]


DEFAULT = Machine()


@cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether this machine multiplies bfloat16 faster than float32; a CPU that can is tried once."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # private; without it: float32
    if not supported():
        return False
    one = torch.ones(512, 512, dtype=torch.float32, device="cpu")  # six times faster with AMX, slower on others
    half = one.bfloat16()
    return is_quicker(lambda: half @ half, lambda: one @ one)
