"""Timing on a device that works on while the CPU goes ahead, in a limited time; and the rows that come of it."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from _timing import paired, speedup

from minicpmv_ref.scale.budget import device_memory


@dataclass(frozen=True)
class Card:
    """The device, and the time that is left."""

    device: torch.device
    ends: float
    rounds: int
    tiny: bool

    @property
    def left(self) -> float:
        return self.ends - time.perf_counter()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def free(self) -> int:
        """Bytes."""
        return device_memory(self.device if self.cuda else "cpu")[0]

    def finish(self) -> None:
        """Wait until the device has done everything: a GPU is told in advance."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def fit(self, seconds: float, most: int) -> int:
        """How often something may be done that takes so long: in a sixth of what is left, at least once."""
        return max(1, min(most, int(self.left / 6 / seconds)))

    def turns(self, calls: dict) -> dict[str, list[float]]:
        """`paired` with the device's work inside, in as many rounds as fit."""

        def whole(call):
            call()
            self.finish()

        calls = {name: partial(whole, call) for name, call in calls.items()}
        tried = paired(calls, 1)
        rounds = self.fit(sum(times[0] for times in tried.values()) / 1000, self.rounds)
        return paired(calls, rounds) if rounds > 1 else tried

    def peak(self, call):
        """What `call` returns, and the most bytes that tensors took meanwhile; None where nobody counts them."""
        self.finish()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        return call(), torch.cuda.max_memory_allocated(self.device) if self.cuda else None

    def waits(self, call) -> dict[str, int]:
        """Where `call` made the CPU wait for the GPU, and how often."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return Counter(f"{Path(w.filename).name} {w.lineno}" for w in found if "synchronizing" in str(w.message))


def row(what: str, unit: str, measured: float, peer: str | None = None, theirs: float = 0, ratio=None) -> dict:
    found = {"what": what, "unit": unit, "measured": figure(measured)}
    return found | ({"peer": peer, "peer's": figure(theirs), "ratio": ratio or measured / theirs} if peer else {})


def figure(x: float) -> float:
    """Three digits, and all of them before the point."""
    return round(x) if x >= 100 else float(f"{x:.3g}")


def rates(what: str, unit: str, amount: float, times: dict, peer: str) -> dict:
    """A row: so much in the time of "ours", beside the same in that of a peer."""
    ours, theirs = (1000 * amount / median(times[name]) for name in ("ours", peer))
    return row(what, unit, ours, peer, theirs, speedup(times[peer], times["ours"]))
