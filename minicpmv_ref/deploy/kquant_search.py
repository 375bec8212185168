"""The search of the K-quants: which scale, and which lowest weight, lose least when a group is rounded to few levels.

All arithmetic is float32, every operation rounded by itself, every sum taken in index order; both matter to the byte.
G groups of 32 (or 16) weights, laid out as columns: x (32, G). Weights of the squared errors: w, of the same shape.
The search is four fifths of the work. The same lines run it in numpy or, on a GPU, in torch: see `search`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

F32 = np.float32

# The search for scale and low (Q4_K, Q5_K) ---------------------------------------------------------------------------


class Ladder(NamedTuple):
    """The rulers to try: a weight range is spread over `top + first + i * step` levels, i = 0 .. `last`."""

    first: float
    step: float
    last: int

    def spreads(self, top: int) -> list[np.float32]:
        return [F32(self.step) * F32(i) + F32(self.first) + F32(top) for i in range(self.last + 1)]


class Fit(NamedTuple):
    """A group's scale and low (G,), and the ruler (inverse, start) that chose its levels: round((x - start) * inverse).

    Levels are not kept: two numbers bring them back.
    """

    scale: np.ndarray
    low: np.ndarray
    inverse: np.ndarray
    start: np.ndarray


PLAIN = {15: Ladder(-1.0, 0.1, 20), 31: Ladder(-0.5, 0.1, 15)}  # by the top level
WEIGHTED = Ladder(-0.9, 0.05, 36)


def fit_scale_and_low(x: np.ndarray, w: np.ndarray, top: int, ladder: Ladder) -> Fit:
    """Find scale and low <= 0 with small sum(w * (scale * level + low - x)^2), levels 0..top, for each column of x.

    For given levels l this is a line fit. Setting both derivatives to zero gives two equations,

        scale * S(wll) + low * S(wl) = S(wlx)
        scale * S(wl)  + low * S(w)  = S(wx)

    solved by Cramer's rule. A low above 0 is not allowed (the format stores -low without a sign); then low = 0 and
    the first equation alone gives the scale. Which levels are best is the hard part: each ruler proposes some.
    """
    xp = _library(x)
    ends = xp.stack([xp.amin(x, axis=0), xp.amax(x, axis=0)])
    zero = xp.zeros_like(ends[0])
    start = xp.minimum(ends[0], zero)
    flat = ends[1] == start  # all weights equal and not above 0: level 0, scale 0
    high = xp.where(flat, np.inf, ends[1])  # an endless ruler: every level is 0, every error NaN, nothing wins
    inverse = _over(F32(top), high - start)
    scale, low = 1 / inverse, start
    levels, product, spare = (_reused(x) for _ in range(3))
    round_to_levels(x, start, inverse, top, ends, out=levels)
    best = [_squared_error(levels, x, w, scale, low), scale, low, inverse, start]

    sum_w, sum_wx = column_sum(w), column_sum(w * x)
    for spread in ladder.spreads(top):
        # Subtle: a better fit moves the start of all rulers that follow. Without this 93 % of the blocks differ.
        start = best[2]
        inverse = _over(spread, high - start)
        round_to_levels(x, start, inverse, top, ends, out=levels)
        sum_wl = column_sum(xp.multiply(w, levels, out=product))
        sum_wlx = column_sum(xp.multiply(product, x, out=spare))
        sum_wll = column_sum(xp.multiply(product, levels, out=product))
        det = sum_w * sum_wll - sum_wl * sum_wl
        scale = (sum_w * sum_wlx - sum_wx * sum_wl) / det
        low = (sum_wll * sum_wx - sum_wl * sum_wlx) / det
        above = low > 0
        scale, low = xp.where(above, sum_wlx / sum_wll, scale), xp.minimum(low, zero)
        error = _squared_error(levels, x, w, scale, low)
        better = (det > 0) & (error < best[0])
        best = [xp.where(better, new, old) for new, old in zip((error, scale, low, inverse, start), best)]
    _, scale, low, inverse, start = best
    return Fit(xp.where(flat, 0, scale), low, inverse, start)


def round_to_levels(x, start: np.ndarray, inverse: np.ndarray, top: int, ends: np.ndarray, out=None) -> np.ndarray:
    """round((x - start) * inverse), clipped to 0..top, as float32. `ends`: the least and greatest of each column."""
    xp = _library(x)
    levels = xp.subtract(x, start, out=out)
    levels *= inverse
    # Subtle: where a fit has moved `start` close to `high`, a value may leave the range in which ggml rounds well.
    # Rounding keeps order, so it is enough to look at the ends.
    if xp.abs((ends - start) * inverse).max() < 2**22:
        xp.round(levels, out=levels)
        return xp.clip(levels, 0, top, out=levels)
    # Subtle: a NaN counts as 0. Its bits, and with them `nearest`, differ between CPUs and GPUs.
    levels[:] = xp.clip(xp.where(xp.isnan(levels), 0, nearest(levels)), 0, top)
    return levels


def _squared_error(levels, x, w, scale, low) -> np.ndarray:
    """sum(w * (scale * level + low - x)^2) of each column. Overwrites `levels`."""
    diff = levels
    diff *= scale
    diff += low
    diff -= x
    diff *= diff
    diff *= w
    return column_sum(diff)


# The search for a scale alone (Q6_K, Q5_0 with importance) -----------------------------------------------------------


def fit_scale(x: np.ndarray, w: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Find scale with small sum(w * (scale * level - x)^2), levels -half..half-1, for each column of x.

    For given levels l, scale = S(wxl) / S(wll), and the error is S(wxx) - S(wxl)^2 / S(wll): so the largest
    S(wxl)^2 / S(wll) wins, and no error needs to be summed. The comparison is multiplied out to avoid a division.

    Returns (scale, inverse), both (G,): the levels are round(x * inverse). Both are 0 where all weights are tiny.
    """
    # The weight of largest size gets the level -half: the negative side has one level more.
    xp = _library(x)
    most = first_largest(x)
    empty = xp.abs(most) < F32(1e-15)
    most = xp.where(empty, 1, most)
    wx = w * x
    levels, product = _reused(x), _reused(x)

    def sums(inverse):
        xp.multiply(x, inverse, out=levels)
        xp.round(levels, out=levels)
        xp.clip(levels, -half, half - 1, out=levels)
        sum_wxl = column_sum(xp.multiply(wx, levels, out=product))
        xp.multiply(w, levels, out=product)
        return sum_wxl, column_sum(xp.multiply(product, levels, out=product))

    best_inverse = _over(F32(-half), most)
    sum_wxl, sum_wll = sums(best_inverse)
    scale = xp.where(sum_wll != 0, sum_wxl / sum_wll, 0)
    best = scale * sum_wxl
    for i in [*range(-9, 0), *range(1, 10)]:
        inverse = _over(-(F32(half) + F32(0.1) * F32(i)), most)
        sum_wxl, sum_wll = sums(inverse)
        better = (sum_wll > 0) & (sum_wxl * sum_wxl > best * sum_wll)
        scale = xp.where(better, sum_wxl / sum_wll, scale)
        best = xp.where(better, scale * sum_wxl, best)
        best_inverse = xp.where(better, inverse, best_inverse)
    return xp.where(empty, 0, scale), xp.where(empty, 0, best_inverse)


def first_largest(x: np.ndarray) -> np.ndarray:
    """The signed weight of largest size in each column; of equals the first."""
    xp = _library(x)
    least, most = xp.amin(x, axis=0), xp.amax(x, axis=0)
    largest = xp.where(most > -least, most, least)
    tied = (most == -least) & (most > 0)
    if tied.any():
        tied = xp.argwhere(tied)[:, 0]
        first = xp.argmax(xp.abs(x[:, tied]), axis=0)
        largest[tied] = x[first, tied]
    return largest


# Arithmetic to the last bit ------------------------------------------------------------------------------------------


def column_sum(t: np.ndarray) -> np.ndarray:
    """Sum the rows of (rows, G) one after the other, each sum rounded to float32.

    NOTE `t.sum(axis=-1)` would add in pairs, and so does numpy's reduction below when there is one column only.
    """
    if isinstance(t, np.ndarray):
        return np.add.reduce(t, axis=0) if t.shape[1] > 1 else np.add.accumulate(t, axis=0)[-1]
    total = t[0].clone()
    for row in t[1:]:
        total += row
    return total


def _reused(x: np.ndarray) -> np.ndarray:
    """Memory for float32 of the shape of `x`, to write results into again and again: fresh memory is slow.

    It begins at a multiple of 64 bytes, as torch's does and numpy's need not. A CPU may write 64 bytes at once; where
    these lie in two lines of its cache, a product takes twice as long.
    """
    if not isinstance(x, np.ndarray):
        return _library(x).empty_like(x)
    memory = np.empty(x.nbytes + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][: x.nbytes].view(F32).reshape(x.shape)


def nearest(v: np.ndarray) -> np.ndarray:
    """Round half to even as ggml does, int32: 1.5 * 2^23 pushes the fraction out of a float32, and the integer stays.

    Subtle: beyond 2^22 this wraps; infinity gives -2^22 and NaN gives 0. Extreme weights do get there.
    """
    return ((v + 12582912).view(_library(v).int32) & 0x7FFFFF) - 0x400000


# On a GPU ------------------------------------------------------------------------------------------------------------
#
# What the search calls is spelled alike in numpy and torch, and rounds alike: `round` goes half to even in both,
# no multiply is fused with an add, divisions of arrays by arrays are exact. Divisions by or of a number are not:
# see `_over`. Sums of torch add in no order one may rely on: see `column_sum`. And NaN differ: see X86_NAN.

X86_NAN = np.uint32(0xFFC00000).view(F32)  # what 0 / 0 gives there. Its sign reaches the file, in Q5_0.


def search(device, fit: Callable, x: np.ndarray, w: np.ndarray, *args):
    """fit(x, w, *args): in numpy, or by torch on a device if there is one. Returns numpy arrays."""
    if device is None:
        with np.errstate():  # its end undoes the next line, too
            np.setbufsize(1024)  # where two rows fit, numpy copies what it broadcasts, and takes twice as long
            return fit(x, w, *args)
    import torch

    found = fit(torch.tensor(x, device=device), torch.tensor(w, device=device), *args)
    found = [t.cpu().numpy() for t in found]
    return [np.where(np.isnan(t), X86_NAN, t) for t in found]


def _library(x):
    """numpy or torch, whichever `x` is of."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def _over(number: np.float32, x):
    """number / x, rounded once. Subtle: torch's `/` gives number * (1 / x), which differs for a third of the x."""
    return _library(x).asarray(number) / x
