"""Estimates with 95 % confidence intervals, for lessons and experiments: of shares, ratios and means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..inputs.checks import LIMITS, check_int, check_list, check_number


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval; all None where there was nothing to count."""

    value: float | None
    low: float | None
    high: float | None


def wilson(hits: int, n: int) -> Interval:
    """Estimate a share from n independent trials. Honest where few or none hit, unlike the usual plus-minus.

    Raises:
        TypeError, ValueError: no integers; hits that are not between 0 and n.

    Example:
        >>> [round(x, 3) for x in wilson(0, 10)]
        [0.0, 0.0, 0.278]

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    n = check_int("n", n, least=0)
    hits = check_int("hits (of n)", hits, 0, n)
    if n == 0:
        return Interval(None, None, None)
    z, share = 1.959964, hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Interval(share, 0.0 if hits == 0 else center - half, 1.0 if hits == n else center + half)


def bootstrap_ratio(tops: Sequence[float], bottoms: Sequence[float], seed: int = 0, rounds: int = 1000) -> Interval:
    """Estimate sum(tops) / sum(bottoms) by resampling whole answers: claims of one answer are not independent.

    Tops and bottoms are one number for each answer, for example false and all mentions.

    Raises:
        TypeError, ValueError: no lists of finite numbers of at least 0 and of equal length; rounds below 1, or more
            numbers to sample than memory should hold.

    Example:
        >>> estimate = bootstrap_ratio([1, 0, 0, 1], [2, 2, 2, 2])
        >>> estimate.value, estimate.low < 0.25 < estimate.high
        (0.25, True)

    Source: Efron, Bootstrap methods (1979), percentile interval.
    """
    for name, values in (("tops", tops), ("bottoms", bottoms)):
        for number, value in enumerate(check_list(name, values)):
            check_number(f"{name}[{number}]", value, least=0)
    if len(tops) != len(bottoms):
        raise ValueError(f"tops and bottoms must be equally long, got {len(tops)} and {len(bottoms)}")
    seed = check_int("seed", seed, -(2**63), 2**64 - 1)
    rounds = check_int("rounds", rounds, most=max(1, LIMITS["bootstrap_numbers"] // max(1, len(tops))))
    tops, bottoms = (torch.tensor(x, dtype=torch.float64) for x in (tops, bottoms))
    if not bottoms.sum():
        return Interval(None, None, None)
    sampled = torch.randint(len(tops), (rounds, len(tops)), generator=torch.Generator().manual_seed(seed))
    tops_sampled, bottoms_sampled = tops[sampled].sum(dim=1), bottoms[sampled].sum(dim=1)
    ratios = (tops_sampled / bottoms_sampled)[bottoms_sampled > 0]
    if not len(ratios):
        raise ValueError(f"rounds must be more than {rounds}: none of them has sampled an answer that counts")
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval((tops.sum() / bottoms.sum()).item(), low, high)


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Estimate the mean over all items of which these are a sample."""
    if not len(values):
        return Interval(None, None, None)
    sampled = np.random.default_rng(0).choice(values, (4000, len(values))).mean(axis=1)
    return Interval(float(np.mean(values)), *(float(end) for end in np.quantile(sampled, (0.025, 0.975))))
