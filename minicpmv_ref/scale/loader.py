"""The next steps' samples, drawn, sliced and packed while this step computes.

A GPU takes a step of the larger model in less time than one CPU core needs to draw and slice its pictures. So worker
processes do that ahead of time, through torch's DataLoader. What comes out is the same to the last bit, whatever their
number: sample number i is sample number i, whoever draws it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from ..inputs.checks import check_int, check_type
from ..toy.data import Sample
from .parallel import Processes


@dataclass(frozen=True)
class StepInputs:
    """The inputs of all steps as a sequence: inputs[step], from 1, is what this process computes in that step.

    Args:
        objective: from `objective_for`; its `prepare` makes tensors of samples.
        samples: from a number to the sample that is shown there.
        batch: samples of a step, of all processes.
        processes: from `join_processes`.
        micro_batches: number of parts, which are computed one after the other.

    Raises:
        ValueError: fewer samples than micro-batches or processes.
        TypeError: a number that is none.
    """

    objective: Callable
    samples: Callable[[int], Sample]
    batch: int
    processes: Processes
    micro_batches: int = 1

    def __post_init__(self):
        check_type("processes", self.processes, Processes)
        mine = len(self.processes.share(range(check_int("batch", self.batch))))
        if not 1 <= check_int("micro_batches", self.micro_batches, least=0) <= mine:
            raise ValueError(
                f"micro_batches must be from 1 to the {mine} samples of a process, got {self.micro_batches}"
            )

    def __getitem__(self, step: int) -> tuple[int, str, list | Exception]:
        """(step, names of the samples, what `prepare` made of each micro-batch; or the error that it raised)."""
        numbers = self.processes.share(range((step - 1) * self.batch, step * self.batch))
        names = list(map(str, numbers))
        try:
            batch = [self.samples(number) for number in numbers]
            names = [str(getattr(sample, "id", number)) for sample, number in zip(batch, numbers)]
            parts = [batch[first :: self.micro_batches] for first in range(self.micro_batches)]
            found = [self.objective.prepare(part, step) for part in parts]
        except (ValueError, OSError) as error:
            found = error  # returned, not raised: a worker would turn it into a long text
        return step, ", ".join(names), found


def prefetch(inputs: StepInputs, steps: range, workers: int = 0) -> Iterator[tuple[int, str, list | Exception]]:
    """Go through the inputs of steps, and let worker processes prepare the next ones.

    Args:
        inputs: of all steps.
        steps: which of them.
        workers: processes, each of which is two steps ahead, and no more than CPU cores (two are always allowed); 0
            prepares each step when it is asked for.

    Returns:
        An iterator over inputs[step].

    Raises:
        ValueError: as `check_workers`.
        OSError: in the iterator, between two steps: a worker was killed.
    """
    check_workers(workers)
    return _from_workers(inputs, steps, workers) if workers else map(inputs.__getitem__, steps)


def check_workers(workers: int) -> None:
    """Raise a ValueError for more workers than CPU cores (two are always allowed), or where processes cannot fork."""
    most = max(2, cores())
    if not 0 <= check_type("workers", workers, int) <= most:
        raise ValueError(f"workers must be from 0 to {most}, the cores of this machine, got {workers}")
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError("workers need a system that can fork processes; without them (0) everything works, too")


def usual_workers(device: str, processes: int = 1) -> int:
    """Workers of one of several processes: up to 8 for a GPU, which would wait for one core; none beside a busy CPU."""
    return min(8, max(1, cores() // processes - 1)) if device == "cuda" else 0


def cores() -> int:
    """CPU cores that this process may use; a container may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _from_workers(inputs: StepInputs, steps: range, workers: int) -> Iterator[tuple[int, str, list | Exception]]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    torch.multiprocessing.set_sharing_strategy("file_system")  # the other one keeps a file open for each picture
    options = dict(batch_size=None, sampler=steps, num_workers=workers, collate_fn=lambda inputs: inputs)
    options |= dict(worker_init_fn=_ignore_interrupt, multiprocessing_context="fork")
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    # A generator of its own: it would draw from the one whose state is saved.
    loader = iter(DataLoader(inputs, generator=torch.Generator(), **options))
    # torch's handler raises as soon as a worker dies. In the middle of a step that would lose the step, so ours does it
    # while we wait: after a worker that died while it wrote, torch would wait for the rest of its inputs forever.
    torchs = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    meanwhile = signal.SIG_DFL if before == torchs else before

    def raise_if_one_died(*signal_and_frame) -> None:
        for worker in loader._workers:
            if worker.exitcode:  # None: it works; 0: it has ended as it should
                raise RuntimeError(f"process {worker.pid} ended with {worker.exitcode}")

    try:
        while True:
            if main:
                signal.signal(signal.SIGCHLD, raise_if_one_died)
            raise_if_one_died()  # in the step before
            prepared = next(loader, None)
            if main:
                signal.signal(signal.SIGCHLD, meanwhile)
            if prepared is None:
                return
            yield prepared
    except RuntimeError as error:
        raise OSError(f"a worker process died, perhaps for lack of memory: {error}") from error
    finally:
        if main:
            signal.signal(signal.SIGCHLD, torchs)  # other loaders of this process need it, and torch sets it only once


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C and the end of a terminal go to all its processes. The main one saves and then stops its workers."""
    for number in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
        signal.signal(number, signal.SIG_IGN)
