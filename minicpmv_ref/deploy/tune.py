"""Faster on a given machine: find the best settings by timing them, and know how fast it can become at most.

`halving` searches, with a clock: many settings get few runs, the few that survive get many.
`roofline` computes, without one: no chip multiplies faster than its peak, none reads faster than its memory.
It is a bound. Real programs stay below it, often far below; the distance says how much there is to gain.
Left out: settings that depend on each other in known ways, heat and throttling, caches.
T tokens of the prompt, Q queries, P patches of a view, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np

from ..config import MiniCPMVConfig
from ..counts import Workload, flops, kv_cache_numbers, square_patches
from ..inputs.checks import WrongType, check_int, check_number, check_type, shown
from .gguf_plan import plan_mixture, plan_vision


class Search(NamedTuple):
    """What `halving` found."""

    best: Hashable
    rounds: list[dict[Hashable, float]]  # least seconds of each setting so far, the fastest first
    runs: int  # in all


def halving(settings: Iterable[Hashable], measure: Callable[[Hashable], float], runs: int = 1) -> Search:
    """Search for the fastest setting: time all of them, keep the faster half, time those twice as often, and so on.

    Other programs can only make a run slower, so the least of several times is the most trustworthy. Survivors take
    turns, so that a slow minute of the machine hurts all alike.

    Args:
        settings: what to try, all different, for example (threads, batch) pairs.
        measure: runs one setting once and returns its seconds; `math.inf` if it cannot run at all.
        runs: of each setting in the first round; every further round doubles them.

    Returns:
        A Search: `.best`, the rounds, and how many runs it took.

    Raises:
        TypeError: settings that cannot be told apart (not hashable), a measure that is no function or gives no number.
        ValueError: no settings, one that comes twice, runs below 1, a time that is no positive number, or no setting
            that can run.

    Example:
        >>> found = halving([1, 2, 3, 4, 8], lambda threads: 1 / threads + 0.1 * threads)
        >>> found.best, [list(times) for times in found.rounds]
        (3, [[3, 4, 2, 8, 1], [3, 4, 2], [3, 4]])

    Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", arXiv 1502.07943, as an idea; the paper,
        section 5, searches its settings automatically and does not say how.
    """
    alive = list(check_type("settings", settings, Iterable))
    for setting in alive:
        check_type("settings: each of them", setting, Hashable, what="hashable")
    if not alive or len(set(alive)) < len(alive):
        raise ValueError(f"settings must be different and at least one, got {shown(alive)}")
    if not callable(measure):
        raise WrongType(f"measure must be a function of a setting, got {type(measure).__name__}: {shown(measure)}")
    check_int("runs", runs)
    least, rounds, spent = dict.fromkeys(alive, math.inf), [], 0
    while True:
        for _ in range(runs):
            for setting in alive:
                seconds = check_type("a time", measure(setting), int, float, np.number, what="seconds")
                if not seconds > 0:  # also what is not a number
                    raise ValueError(f"a time must be above 0 seconds, got {seconds} for {setting!r}")
                least[setting] = min(least[setting], seconds)
        spent += runs * len(alive)
        alive.sort(key=least.__getitem__)  # stable: of equal ones the earlier wins
        rounds.append({setting: least[setting] for setting in alive})
        if least[alive[0]] == math.inf:
            raise ValueError("no setting can run: each took infinitely long")
        if len(alive) <= 2:
            return Search(alive[0], rounds, spent)
        alive, runs = alive[: math.ceil(len(alive) / 2)], 2 * runs


# The roofline --------------------------------------------------------------------------------------------------------


class Chip(NamedTuple):
    flops: float  # additions and multiplications a second, at best
    bandwidth: float  # bytes a second between memory and chip, at best


# Peaks from data sheets; none of them was measured here.
CHIPS = {
    # Snapdragon 8 Gen 3: 6 TFLOPS of its Adreno 750 (paper, section 5), LPDDR5X at 4.8 GHz: 2 x 4.8e9 x 8 bytes.
    "phone": Chip(6e12, 76.8e9),
    # Four cores of 3 GHz with AVX2 (32 operations a cycle), two channels of DDR4-3200.
    "laptop CPU": Chip(4 * 3e9 * 32, 51.2e9),
    # Apple's M1, GPU.
    "MacBook M1": Chip(2.6e12, 68e9),
    # 83 TFLOPS (paper, section 5), GDDR6X: 384 wires x 21 Gbit/s.
    "RTX 4090": Chip(83e12, 1008e9),
}


class Work(NamedTuple):
    """What a stage has to do at least."""

    flops: int
    bytes: int  # weights and KV cache, each read or written once

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


class Bound(NamedTuple):
    seconds: float  # no less than that
    limit: str  # "compute" or "memory": what takes so long


def roofline(work: Work, chip: Chip) -> Bound:
    """Bound the time of some work from below: it must be computed, and its bytes must come, at the same time at best.

    Args:
        work: operations and bytes, as `answer_work` counts them.
        chip: its peaks, for example of CHIPS.

    Returns:
        A Bound: seconds, and whether "compute" or "memory" sets them. A bound, not a measurement.

    Raises:
        TypeError: no Work, no Chip, or other than numbers in them.
        ValueError: a chip without speed, negative work.

    Example:
        >>> roofline(Work(flops=12, bytes=100), Chip(flops=6, bandwidth=25))
        Bound(seconds=4.0, limit='memory')

    Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52 (2009).
    """
    for name, number in check_type("work", work, Work)._asdict().items():
        check_number(f"work.{name}", number, least=0)
    for name, number in check_type("chip", chip, Chip)._asdict().items():
        check_number(f"chip.{name}", number, above=0)
    compute, memory = work.flops / chip.flops, work.bytes / chip.bandwidth
    return Bound(compute, "compute") if compute >= memory else Bound(memory, "memory")


def answer_work(config: MiniCPMVConfig, slices: int = 9, text: int = 256, mixture: str = "Q4_K_M") -> dict[str, Work]:
    """Count what an answer about one picture has to do.

    Every product counts, with 2 operations for a multiplication and an addition; attention as a full square. Bytes are
    the weights as stored and the KV cache in 16 bits. Norms, softmax and activations do not count.

    Args:
        config: a MiniCPMVConfig, for example a preset.
        slices: of the picture, without the overview; every view is a square of full size.
        text: tokens of the prompt besides the visual ones.
        mixture: the quantization mixture of the language model, as in `plan_mixture`; ViT and resampler are in 16 bits.

    Returns:
        {"see": ViT and resampler for all views, "read": the whole prompt, "write": one more token after it}.

    Raises:
        TypeError: no MiniCPMVConfig, a count that is no integer.
        ValueError: an unknown mixture, slices below 0, or text below 1.

    Example:
        >>> from minicpmv_ref import v2_5
        >>> work = answer_work(v2_5)
        >>> for stage in work:
        ...     print(stage, f"{work[stage].intensity:,.1f} operations per byte")
        see 10,444.5 operations per byte
        read 3,715.9 operations per byte
        write 3.3 operations per byte

    Source: this project; the formulas stand in counts.py.
    """
    slices, text = check_int("slices", slices, 0), check_int("text", text)
    plan, views = plan_mixture(config, mixture), 1 + slices
    # The rows of an embedding table are looked up; one that is also the output matrix is read as a whole.
    words = plan.total_bytes - (0 if config.llm.tie_word_embeddings else plan.bytes_of("token_embd.weight"))
    tokens = views * config.resampler.num_queries + text
    a_token = 2 * kv_cache_numbers(config.llm)
    patches = square_patches(config)
    loads = (  # the output matrix meets the last token only
        Workload(0, 0, 0, views, views * patches, views * patches**2),
        Workload(tokens, 1, tokens * tokens),
        Workload(1, 1, tokens + 1),
    )
    see, read, write = (flops(config, load, learning=()) for load in loads)
    return {
        "see": Work(see, plan_vision(config).total_bytes),
        "read": Work(read, words + tokens * a_token),
        "write": Work(write, words + (tokens + 1) * a_token),
    }
