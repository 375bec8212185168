"""Several processes, one training: each takes its share of every batch, and the step is the one that a single process
would take.

    torchrun --standalone --nproc-per-node 2 -m minicpmv_ref train --profile gpu
    accelerate launch --multi_gpu --num_processes 2 --module minicpmv_ref train --profile gpu

Both start the same command twice and tell each process its number. The second one works without a GPU, too, whatever
the option is called. `accelerate launch --cpu --num_processes 2` does not: it
starts one process unless an MPI is installed, and says nothing. `--cpu --use_fsdp` is refused. So the command prints
how many processes there are: look at it.

    replicate   every process holds the full model; gradients are averaged (torch's DistributedDataParallel)
    shard       every process holds a part of each tensor and gathers the rest layer by layer (torch's fully_shard)

Processes on one machine talk over the loopback device only. But in the commands above, the store at which they meet
belongs to torchrun, which opens its port on all addresses and has no option against it. Where others reach your
machine and no firewall is between, let the processes meet at a file; then all ports are on the loopback device:

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --rdzv-backend c10d --rdzv-conf store_type=file \\
        --nproc-per-node 2 -m minicpmv_ref train --profile gpu

Left out: several machines (the same commands, untried), pipelines, tensor parallelism. Tested with gloo on CPUs; NCCL
and GPUs are untested.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..inputs.checks import check_int

if TYPE_CHECKING:
    from ..model import MiniCPMV


@dataclass(frozen=True)
class Processes:
    """Which process of a training this is, and how many there are. The first one, of rank 0, writes and prints."""

    rank: int = 0
    size: int = 1

    def __post_init__(self):
        check_int("rank", self.rank, least=0), check_int("size", self.size, least=0)
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be from 0 to size - 1, got rank {self.rank} of {self.size}")

    def share(self, batch: Sequence) -> Sequence:
        """Take this process's part of a global batch.

        Which samples a step has does not depend on the number of processes. So a training that two processes began can
        be finished by one, or by three.

        Args:
            batch: the same in every process, for example the numbers of a step's samples.

        Returns:
            Every `size`-th entry; all processes together have each entry once.

        Raises:
            ValueError: fewer entries than processes. A process without a sample would have no gradient to give.

        Example:
            >>> Processes(0, 2).share(range(10, 15)), Processes(1, 2).share(range(10, 15))
            (range(10, 15, 2), range(11, 15, 2))
        """
        if len(batch) < self.size:
            raise ValueError(f"a batch of {len(batch)} is too small for {self.size} processes")
        return batch[self.rank :: self.size]

    def all_reduce_sum(self, *numbers: float) -> list[float]:
        """Add up numbers over all processes, in float64.

        Args:
            numbers: of this process; the same count in all of them, which must all call this.

        Returns:
            The sums, the same in every process.

        Example:
            >>> Processes().all_reduce_sum(3, 0.5)
            [3.0, 0.5]
        """
        sums = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            sums = sums.to(_device_of(dist.get_backend()))
            dist.all_reduce(sums)
        return sums.tolist()


ONE_PROCESS = Processes()


@contextmanager
def join_processes(device: str = "cpu") -> Iterator[Processes]:
    """Join the processes that torchrun or accelerate launch has started, for as long as the `with` lasts.

    Args:
        device: "cpu" (they talk through gloo) or "cuda" (through NCCL; each takes the GPU of its local rank).

    Yields:
        A Processes; Processes(0, 1) if nobody started several.

    Raises:
        ValueError: WORLD_SIZE is in the environment, but RANK is not, or they are no numbers that fit.
        OSError: the port that MASTER_PORT names is taken.

    Example:
        >>> with join_processes() as processes:  # in an ordinary process
        ...     processes
        Processes(rank=0, size=1)

    Source: PyTorch, "torchrun": the environment variables that it sets.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        size = int(os.environ.get("WORLD_SIZE", 1))
        rank, size, local, here = (int(os.environ[name]) for name in names) if size != 1 else (0, 1, 0, 1)
    except (KeyError, ValueError) as error:
        said = {name: os.environ.get(name) for name in names}
        raise ValueError(f"the environment of a process of several needs four numbers: {said}") from error
    processes = Processes(rank, size)
    if size == 1:
        yield processes
        return
    if here == size:  # all on this machine: nobody else needs to reach them
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if device == "cuda":
        torch.cuda.set_device(local)
    own_store = here == size and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = {"store": _store(processes), "rank": rank, "world_size": size} if own_store else {}
    dist.init_process_group("nccl" if device == "cuda" else "gloo", **store)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def _store(processes: Processes) -> dist.Store:
    """The key-value store of all processes, on the loopback device: torch's own opens its port on all addresses."""
    try:
        port = int(os.environ["MASTER_PORT"])
        if not 0 < port < 2**16:
            raise ValueError(f"{port} is no port")
    except (KeyError, ValueError) as error:
        raise ValueError(f"MASTER_PORT must be in the environment of a process of several, a port: {error}") from error
    options = {"timeout": timedelta(minutes=5), "wait_for_workers": False}
    if processes.rank == 0:
        listener = socket.create_server(("127.0.0.1", port))
        options["master_listen_fd"] = listener.detach()
    return dist.TCPStore("127.0.0.1", port, processes.size, is_master=processes.rank == 0, **options)


def _device_of(backend: str) -> str:
    return "cuda" if backend == "nccl" else "cpu"


# ---- one module for all processes


class LossModule(nn.Module):
    """Model and objective as one module, whose forward is the loss.

    DDP and FSDP hook a module's forward(). Objectives call submodules directly and would bypass the hooks, so this
    forward() calls the objective.

    Args:
        model: a MiniCPMV.
        objective: from `objective_for`. Its `prepare(samples, step)` makes tensors, its `loss` makes of them (loss,
            tokens, views, supervised), where the loss is the mean over `supervised` tokens.
    """

    def __init__(self, model: MiniCPMV, objective):
        super().__init__()
        self.model, self.objective = model, objective
        if hasattr(objective, "gather"):  # it compares samples with each other: with those of all processes
            objective.gather = all_gather_rows

    def forward(self, prepared) -> tuple[torch.Tensor, int, int, int]:
        return self.objective.loss(prepared)


def wrap_distributed(module: LossModule, processes: Processes, shard: bool = False, sparse: bool = False) -> nn.Module:
    """Wrap a module so that its backward pass computes the gradient of all processes.

    Freeze what does not learn before, and make the optimizer after: sharding replaces the parameters. A sharded model
    computes only inside its LossModule; `unshard` makes an ordinary model of it.

    Args:
        module: the same in every process; sharding changes its model in place.
        processes: from `join_processes`.
        shard: False replicates (DDP), True shards (FSDP2). Sharded processes gather weights from each other together,
            so in each step all must have pictures, or none.
        sparse: True where a process may get a step without pictures, as from data of your own. Its ViT has no gradient
            then, and DDP must look for such gaps instead of waiting for ever. That costs a little in every step.

    Returns:
        A module that is called as the given one is; for one process, unsharded, the given one itself.

    Raises:
        ValueError: sharding, but nobody started several processes, or pictures may be missing.

    Source: Li et al., PyTorch Distributed (2020), section 3; PyTorch, torch.distributed.fsdp.fully_shard.
    """
    if shard:
        check_sharding(sparse)
        from torch.distributed.device_mesh import init_device_mesh  # takes a second, and few shard
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(_device_of(dist.get_backend()), (processes.size,))
        for layer in (*module.model.vpm.encoder["layers"], *module.model.llm.model.layers):
            fully_shard(layer, mesh=mesh)
        # The rest, embeddings and resampler among it, is gathered for the whole forward. That is why an objective may
        # read the table of words directly.
        return fully_shard(module, mesh=mesh)
    if processes.size == 1:
        return module
    return DistributedDataParallel(module, find_unused_parameters=sparse, gradient_as_bucket_view=True)


def check_sharding(sparse: bool = False) -> None:
    """Raise a ValueError where `wrap_distributed` could not shard."""
    if sparse or not dist.is_initialized():
        raise ValueError("sharding needs processes that torchrun started, and pictures in every process and step")


def backward(
    module: nn.Module,
    micro_batches: Sequence,
    processes: Processes,
    half_precision: bool = False,
) -> tuple[float, int, int]:
    """Compute the loss of a global batch and leave its gradient in the parameters.

    The loss is the mean over the supervised tokens of all samples of all processes. Processes and micro-batches do not
    have equally many of them, so their means must not be averaged. Each adds up its losses instead, and the sum over
    all is divided once, at the end, by the number of all supervised tokens.

    Args:
        module: from `wrap_distributed`; its gradients are None.
        micro_batches: this process's share of the batch, prepared by the objective, in one part or in several, which go
            forward and backward one after the other: less memory, the same gradient. A loss that compares all samples
            with each other, as "contrast" does, takes one.
        processes: from `join_processes`.
        half_precision: True computes in bfloat16 where that is safe.

    Returns:
        (loss, tokens, views) of the global batch, the same in every process.

    Raises:
        ValueError: nothing is supervised.

    Source: this project. Averaging means instead is the gradient accumulation bug that transformers had until 2024.
    """
    device = next(module.parameters()).device.type
    sums = [0.0, 0, 0, 0]
    for number, prepared in enumerate(micro_batches, start=1):
        # DDP communicates once a step, after the last micro-batch.
        silent = isinstance(module, DistributedDataParallel) and number < len(micro_batches)
        with module.no_sync() if silent else nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=half_precision):
                loss, tokens, views, supervised = module(prepared)
            if supervised:
                (loss * supervised).backward()
            elif processes.size > 1:  # the others wait for its gradient
                raise ValueError("there are no supervised tokens in the samples of one process")
        sums = [a + b for a, b in zip(sums, (supervised and loss.item() * supervised, tokens, views, supervised))]
    loss_sum, tokens, views, supervised = processes.all_reduce_sum(*sums)
    if not supervised:
        raise ValueError("there are no supervised tokens")
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    # DDP and FSDP take the mean over processes; what we need is the sum.
    torch._foreach_mul_(gradients, processes.size / supervised)
    return loss_sum / supervised, int(tokens), int(views)


def all_gather_rows(*rows: torch.Tensor, keys: Sequence) -> tuple:
    """Put the rows of all processes together, for a loss that compares all samples with each other.

    Args:
        rows: Tensors (B, D) of this process. Gradients flow back to the process that a row came from.
        keys: anything that goes with the rows, one for each.

    Returns:
        The tensors (B of all processes, D) and the list of all keys. In one process, or without gradients, what was
        given: each process computes a held-out loss on its own.

    Raises:
        ValueError: processes with unequal shares.
    """
    keys = list(keys)
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return *rows, keys
    shares = [None] * dist.get_world_size()
    dist.all_gather_object(shares, keys)
    if len({len(share) for share in shares}) > 1:
        count = sum(map(len, shares))
        raise ValueError(f"this loss needs equal shares, but {count} samples went to {len(shares)} processes")
    return *(_AllGather.apply(x) for x in rows), [key for share in shares for key in share]


class _AllGather(torch.autograd.Function):
    """Forward: the rows of all processes. Backward: the sum of all processes' gradients of our own rows."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


# ---- sharded tensors in and out


def unshard(model: MiniCPMV) -> MiniCPMV:
    """Build an ordinary model from a sharded one, complete in every process. All processes must call this together.

    Args:
        model: from inside a sharded LossModule; or any other.

    Returns:
        A new MiniCPMV; the given model itself, if it is not sharded.
    """
    if not any(hasattr(p, "full_tensor") for p in model.parameters()):  # of a DTensor, whose import takes a second
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    plain = type(model).seeded(model.config).to(next(model.parameters()).device)
    plain.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    return plain


def full_optimizer_state(model: MiniCPMV, optimizer: torch.optim.Optimizer) -> dict:
    """Gather the state of an optimizer. All processes must call this together.

    Args:
        model: whose parameters the optimizer has, sharded or not.
        optimizer: left as it is.

    Returns:
        {"state": {parameter's name: {kind: Tensor}}, "param_groups": [...]}, the same for any number of processes; {}
        before the first step.
    """
    if not optimizer.state:  # torch would take a step with gradients of zero, and count it
        return {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))


def load_optimizer_state(model: MiniCPMV, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load what `full_optimizer_state` gave, in any number of processes, sharded or not."""
    if state:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
