"""Fair timing for all benchmarks: candidates take turns (A B, A B, ...), and ratios are formed inside a round.

A busy machine slows whole rounds, so the ratio inside a round is steady where milliseconds are not. Quote the ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F


def paired(candidates: dict[str, Callable], rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Time functions in turns, after one untimed call each. Returns the milliseconds of every round by name.

    On a crowded machine give `time.process_time` and use one thread: work done, without the waiting for a turn.
    """
    times = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            start = clock()
            run()
            times[name].append(1000 * (clock() - start))
    return times


def measure(calls: dict, rounds: int) -> tuple[dict, dict]:
    """Milliseconds of every round, wall and CPU. Turns as in `paired`, with two clocks."""
    wall, cpu = ({name: [] for name in calls} for _ in range(2))
    for _ in range(rounds):
        for name, run in calls.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(1000 * (time.perf_counter() - start))
            cpu[name].append(1000 * (time.process_time() - start_cpu))
    return wall, cpu


def speedup(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of slow / fast: how many times faster `fast` is."""
    return median(a / b for a, b in zip(slow, fast))


def gemm_rate(dtype: torch.dtype, clock=time.perf_counter) -> float:
    """FLOPs a millisecond of a large matrix product, the best of 9: more than any model reaches on these threads."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    times = paired({"product": lambda: a @ b.T}, 9, clock)["product"]
    return 2 * 2048**3 / min(times)


def read_rate(dtype: torch.dtype) -> float:
    """Bytes of weights a millisecond when one token meets a matrix of 256 MB, best of 9: decoding waits for them."""
    matrix = torch.randn(2**28 // dtype.itemsize // 4096, 4096).to(dtype)
    token = torch.randn(1, 4096).to(dtype)
    times = paired({"product": lambda: F.linear(token, matrix)}, 9)["product"]
    return matrix.nbytes / min(times)
