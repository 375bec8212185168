"""K-quants: 256 weights go in, 144 bytes come out (Q4_K), byte for byte what llama.cpp writes on x86-64.

Implements Q4_K, Q5_K, Q6_K, Q8_0 and Q5_0, with and without an importance per column, and their way back.
Left out: the other formats of ggml. ARM builds of ggml fuse multiply and add, and differ in a few bytes.
All arithmetic is float32, every operation rounded by itself, every sum taken in index order; both matter to the byte.
G groups of 32 (or 16) weights, laid out as columns: x (32, G). N blocks: 8 (or 16) groups of a K-quant. R rows.

The idea of Q4_K. A group of 32 weights becomes 32 levels of 4 bits and two numbers: w = scale * level + low.
    1. search   try 22 rulers (how many levels per unit of weight), round the weights to levels with each, solve
                weighted least squares for scale and low, keep the best                         `_fit_scale_and_low`
    2. squeeze  the 8 scales and 8 lows of a block become 6-bit integers times two float16 numbers  `_six_bits`
    3. settle   choose the levels again, now that the scales are rounded                        `_settle`
    4. pack     2 + 2 bytes of float16, 12 of scales, 128 of levels: 4.5 bits per weight        `_pack_q4_k`
Q5_K has 32 levels instead of 16. Q6_K has no low, groups of 16, and 8-bit scales. Q8_0 and Q5_0 do not search.

The search is four fifths of the work. The same lines run it in numpy or, on a GPU, in torch: see `_search`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange

from ..inputs.checks import WrongType, check_choice, shown

F32 = np.float32
MOST_VALUES = 1 << 17  # worked on at a time: five arrays of 512 kB, which is about what a core's cache holds
MOST_ON_A_GPU = 1 << 24  # which wants more: some thousand short steps on arrays of 64 MB
TOO_LARGE = 2.0**29  # no kind reaches it: the farthest, Q6_K, ends at 32 x 128 x 65504, a little below 2^28


def quantize(array: np.ndarray, kind: str, importance: np.ndarray | None = None, device=None) -> np.ndarray:
    """Quantize each row of a matrix, block by block.

    Args:
        array: (rows, cols) float32, or float16 (widened exactly). Any memory layout.
        kind: "Q4_K", "Q5_K", "Q6_K" (blocks of 256 weights), "Q8_0" or "Q5_0" (blocks of 32).
        importance: (cols,) weights >= 0 of the squared errors, usually the mean squared input of each column.
            None: a weight counts by its own size. Q8_0 ignores it, as ggml does.
        device: where torch runs the search, such as "cuda". None: in numpy, without torch. The bytes are the same.

    Returns:
        uint8 (rows, bytes_per_row): 144, 176 or 210 bytes a block of 256, 34 or 22 a block of 32. Weights that are too
        small for float16 scales become zeros, as in ggml.

    Raises:
        TypeError: no numpy arrays.
        ValueError: an unknown kind; an array that is not a 2-D float32 or float16 array, has a NaN or an infinity,
            or whose columns are no multiple of the block; weights so large that their scale exceeds float16's 65504
            (ggml would store an infinity); an importance of wrong length, negative or not finite; a device that is
            neither a CPU nor a CUDA device, or is not there.

    Example:
        >>> x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
        >>> quantize(x, "Q4_K").shape, quantize(x, "Q8_0").shape
        ((2, 144), (2, 272))

    Source: ggml, ggml-quants.c, quantize_row_q4_K_ref and quantize_row_q4_K_impl, and the same of the other kinds.
    """
    form = _form(kind)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype not in (F32, np.float16):
        raise _wrong(array, f"array must be a 2-D numpy array of float32 or float16, got {_describe(array)}")
    rows, cols = array.shape
    _check_cols("array", cols, kind)
    if importance is not None:
        importance = _check_importance(importance, cols)
    if device is not None:
        device = _check_device(device)
    out = np.empty((rows, cols // form.weights * form.bytes), np.uint8)
    if array.size == 0:
        return out
    # Without importance a block does not care in which row it stands.
    lines = array if importance is not None else array.reshape(-1, form.weights)
    packed = out.reshape(len(lines), -1)
    most = MOST_ON_A_GPU if device is not None and device.type == "cuda" else MOST_VALUES
    step = max(1, most // lines.shape[1])
    with np.errstate(all="ignore"):  # extreme weights overflow on the way; ggml lets them, and so do we
        for start in range(0, len(lines), step):
            x = np.ascontiguousarray(lines[start : start + step], F32)
            blocks = form.encode(_finite(x), importance, device)
            _check_stored(blocks, x, kind)
            packed[start : start + step] = blocks.reshape(len(x), -1)
    return out


def _finite(x: np.ndarray) -> np.ndarray:
    if not np.isfinite(x).all():
        raise ValueError(f"weights must be finite, got {x[~np.isfinite(x)][0]}")
    return x


def _check_stored(blocks: np.ndarray, x: np.ndarray, kind: str) -> None:
    """Refuse what would be read back as infinity: in float16 these, and not-a-number, have all bits of the exponent."""
    scales = np.ascontiguousarray(blocks[:, FORMATS[kind].scales]).view("<u2")
    largest = x.flat[np.abs(x).argmax()]
    # Subtle: where even the squares of weights overflow, the search finds nothing and stores a scale of 0.
    if abs(largest) >= TOO_LARGE or (scales & 0x7C00 == 0x7C00).any():
        raise ValueError(
            f"weights as large as {largest:g} do not fit {kind}: its scales are float16, which ends at 65504"
        )


def dequantize(blocks: np.ndarray, kind: str, cols: int) -> np.ndarray:
    """Turn packed blocks back into weights.

    Args:
        blocks: uint8 (rows, bytes_per_row), as `quantize` returns them.
        kind: as in `quantize`.
        cols: weights in a row.

    Returns:
        float32 (rows, cols).

    Raises:
        TypeError: blocks that are no numpy array, cols that are no integer.
        ValueError: an unknown kind; blocks that are not 2-D uint8; cols that are no multiple of the block, or do not
            fit the bytes of a row.

    Example:
        >>> x = np.linspace(-1, 1, 256, dtype=np.float32)[None]
        >>> y = dequantize(quantize(x, "Q4_K"), "Q4_K", 256)
        >>> y.shape, round(float(abs(y - x).max()), 3)
        ((1, 256), 0.032)

    Source: ggml, ggml-quants.c, dequantize_row_q4_K and the same of the other kinds.
    """
    form = _form(kind)
    if not isinstance(blocks, np.ndarray) or blocks.ndim != 2 or blocks.dtype != np.uint8:
        raise _wrong(blocks, f"blocks must be a 2-D numpy array of uint8, got {_describe(blocks)}")
    _check_cols("cols", cols, kind)
    if blocks.shape[1] != cols // form.weights * form.bytes:
        need = shown(cols // form.weights * form.bytes)
        raise ValueError(f"blocks: {shown(cols)} columns of {kind} take {need} bytes a row, got {blocks.shape[1]}")
    out = np.empty((len(blocks), cols), F32)
    flat, packed = out.reshape(-1, form.weights), np.ascontiguousarray(blocks).reshape(-1, form.bytes)
    step = MOST_VALUES // form.weights
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), step):
            flat[start : start + step] = form.decode(packed[start : start + step])
    return out


# The search for scale and low (Q4_K, Q5_K) ---------------------------------------------------------------------------


class _Ladder(NamedTuple):
    """The rulers to try: a weight range is spread over `top + first + i * step` levels, i = 0 .. `last`."""

    first: float
    step: float
    last: int

    def spreads(self, top: int) -> list[np.float32]:
        return [F32(self.step) * F32(i) + F32(self.first) + F32(top) for i in range(self.last + 1)]


class _Fit(NamedTuple):
    """A group's scale and low (G,), and the ruler (inverse, start) that chose its levels: round((x - start) * inverse).

    Levels are not kept: two numbers bring them back.
    """

    scale: np.ndarray
    low: np.ndarray
    inverse: np.ndarray
    start: np.ndarray


def _fit_scale_and_low(x: np.ndarray, w: np.ndarray, top: int, ladder: _Ladder) -> _Fit:
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
    levels = _levels(x, start, inverse, top, ends)
    best = [_squared_error(levels, x, w, scale, low), scale, low, inverse, start]

    sum_w, sum_wx = _column_sum(w), _column_sum(w * x)
    for spread in ladder.spreads(top):
        # Subtle: a better fit moves the start of all rulers that follow. Without this 93 % of the blocks differ.
        start = best[2]
        inverse = _over(spread, high - start)
        levels = _levels(x, start, inverse, top, ends)
        wl = w * levels
        sum_wl, sum_wll, sum_wlx = _column_sum(wl), _column_sum(wl * levels), _column_sum(xp.multiply(wl, x, out=wl))
        det = sum_w * sum_wll - sum_wl * sum_wl
        scale = (sum_w * sum_wlx - sum_wx * sum_wl) / det
        low = (sum_wll * sum_wx - sum_wl * sum_wlx) / det
        above = low > 0
        scale, low = xp.where(above, sum_wlx / sum_wll, scale), xp.minimum(low, zero)
        error = _squared_error(levels, x, w, scale, low)
        better = (det > 0) & (error < best[0])
        best = [xp.where(better, new, old) for new, old in zip((error, scale, low, inverse, start), best)]
    _, scale, low, inverse, start = best
    return _Fit(xp.where(flat, 0, scale), low, inverse, start)


def _levels(x: np.ndarray, start: np.ndarray, inverse: np.ndarray, top: int, ends: np.ndarray) -> np.ndarray:
    """round((x - start) * inverse), clipped to 0..top, as float32. `ends`: the least and greatest of each column."""
    xp = _library(x)
    levels = x - start
    levels *= inverse
    # Subtle: where a fit has moved `start` close to `high`, a value may leave the range in which ggml rounds well.
    # Rounding keeps order, so it is enough to look at the ends.
    if xp.abs((ends - start) * inverse).max() < 2**22:
        xp.round(levels, out=levels)
        return xp.clip(levels, 0, top, out=levels)
    # Subtle: a NaN counts as 0. Its bits, and with them `_nearest`, differ between CPUs and GPUs.
    levels[:] = xp.clip(xp.where(xp.isnan(levels), 0, _nearest(levels)), 0, top)
    return levels


def _squared_error(levels, x, w, scale, low) -> np.ndarray:
    """sum(w * (scale * level + low - x)^2) of each column. Overwrites `levels`: fresh memory is slow."""
    diff = levels
    diff *= scale
    diff += low
    diff -= x
    diff *= diff
    diff *= w
    return _column_sum(diff)


# The search for a scale alone (Q6_K, Q5_0 with importance) -----------------------------------------------------------


def _fit_scale(x: np.ndarray, w: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Find scale with small sum(w * (scale * level - x)^2), levels -half..half-1, for each column of x.

    For given levels l, scale = S(wxl) / S(wll), and the error is S(wxx) - S(wxl)^2 / S(wll): so the largest
    S(wxl)^2 / S(wll) wins, and no error needs to be summed. The comparison is multiplied out to avoid a division.

    Returns (scale, inverse), both (G,): the levels are round(x * inverse). Both are 0 where all weights are tiny.
    """
    # The weight of largest size gets the level -half: the negative side has one level more.
    xp = _library(x)
    most = _first_largest(x)
    empty = xp.abs(most) < F32(1e-15)
    most = xp.where(empty, 1, most)
    wx = w * x
    levels, product = xp.empty_like(x), xp.empty_like(x)  # used again and again: fresh memory is slow

    def sums(inverse):
        xp.multiply(x, inverse, out=levels)
        xp.round(levels, out=levels)
        xp.clip(levels, -half, half - 1, out=levels)
        sum_wxl = _column_sum(xp.multiply(wx, levels, out=product))
        xp.multiply(w, levels, out=product)
        return sum_wxl, _column_sum(xp.multiply(product, levels, out=product))

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


def _stored_levels(x: np.ndarray, inverse: np.ndarray, half: int) -> np.ndarray:
    """The levels of `_fit_scale` as stored, in 0..2 * half - 1. NOTE ggml leaves 0, not `half`, in a tiny group."""
    return np.where(inverse == 0, 0, np.clip(_nearest(x * inverse), -half, half - 1) + half)


def _first_largest(x: np.ndarray) -> np.ndarray:
    """The signed weight of largest size in each column; of equals the first."""
    xp = _library(x)
    least, most = xp.amin(x, axis=0), xp.amax(x, axis=0)
    largest = xp.where(most > -least, most, least)
    tied = xp.argwhere((most == -least) & (most > 0))[:, 0]
    first = xp.argmax(xp.abs(x[:, tied]), axis=0)
    largest[tied] = x[first, tied]
    return largest


# Q4_K and Q5_K -------------------------------------------------------------------------------------------------------

PLAIN = {15: _Ladder(-1.0, 0.1, 20), 31: _Ladder(-0.5, 0.1, 15)}  # by the top level
WEIGHTED = _Ladder(-0.9, 0.05, 36)


def _encode_q4_k(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 144)."""
    x = _columns(rows, 32)
    fit, d, dmin, scales, lows = _scales_and_lows(rows, x, importance, device, top=15)
    packed = _pack_six_bits(scales, lows)
    levels = _settle(x, fit, d, dmin, packed, top=15)
    return np.concatenate([d, dmin, packed, _pack_nibbles(levels)], axis=1)


def _encode_q5_k(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 176). The fifth bits of the levels stand apart: bit j of byte l belongs to weight 32 j + l."""
    x = _columns(rows, 32)
    fit, d, dmin, scales, lows = _scales_and_lows(rows, x, importance, device, top=31)
    packed = _pack_six_bits(np.minimum(scales, 63), np.minimum(lows, 63))
    levels = _settle(x, fit, d, dmin, packed, top=31)
    fifth = np.packbits(levels >> 4, axis=1, bitorder="little")[:, 0]
    return np.concatenate([d, dmin, packed, fifth, _pack_nibbles(levels & 15)], axis=1)


def _scales_and_lows(rows, x, importance, device, top):
    """Search, then squeeze: the fit, d and dmin as float16 bytes (N, 2), 6-bit scales and lows (N, 8)."""
    if importance is None:
        w = np.abs(x) + np.sqrt(_column_sum(x * x) / F32(32))  # a large weight counts more
        fit = _Fit(*_search(device, _fit_scale_and_low, x, w, top, PLAIN[top]))
        scales, lows = (_six_bits(v.reshape(-1, 8)) for v in (fit.scale, -fit.low))
    else:
        w = _columns(_weights(rows, importance, 256, F32(2)), 32)
        fit = _Fit(*_search(device, _fit_scale_and_low, x, w, top, WEIGHTED))
        group_weight = _column_sum(w).reshape(-1, 8)
        scales, lows = (_six_bits_weighted(v.reshape(-1, 8), group_weight) for v in (fit.scale, -fit.low))
    (scale_levels, d), (low_levels, dmin) = scales, lows
    return fit, _float16_bytes(d), _float16_bytes(dmin), scale_levels, low_levels


def _six_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 8) numbers -> levels uint8 (N, 8) in 0..63 and a float32 unit (N,): values are about unit * level."""
    most = np.fmax.reduce(values, axis=1, initial=F32(0))
    inverse = np.where(most > 0, F32(63) / most, F32(0))
    levels = _nearest(values * inverse[:, None]).astype(np.uint8)  # wraps, as C does
    return np.minimum(levels, 63), most / F32(63)


def _six_bits_weighted(values: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_six_bits`, but with small sum(w * (unit * level - value)^2), as an importance deserves.

    First nine rulers are tried. Then one level at a time moves to where the others' unit wants it, if that raises
    S(wvl)^2 / S(wll), the measure of `_fit_scale`; five rounds of this are enough.
    """
    v, w = np.ascontiguousarray(values.T), np.ascontiguousarray(w.T)  # (8, N)
    most = v.max(axis=0)
    empty = ~(most >= F32(1e-15))
    most = np.where(empty, F32(1), most)

    def error(inverse, levels):
        diff = v - (1 / inverse) * levels.astype(F32)
        return _column_sum((w * diff) * diff)

    best_inverse = F32(63) / most
    best = error(best_inverse, _nearest(v * best_inverse).astype(np.uint8))
    for i in (-4, -3, -2, -1, 1, 2, 3, 4):
        inverse = (F32(0.1) * F32(i) + F32(63)) / most
        trial = error(inverse, np.minimum(_nearest(v * inverse), 63))
        better = trial < best
        best, best_inverse = np.where(better, trial, best), np.where(better, inverse, best_inverse)

    levels = np.minimum(_nearest(v * best_inverse), 63)
    sum_wvl, sum_wll = _column_sum(w * v * levels.astype(F32)), _column_sum(w * levels.astype(F32) * levels.astype(F32))
    levels = levels.astype(np.uint8)  # subtle: a negative level wraps here, after the sums
    for _ in range(5):
        changed = False
        for vi, wi, level in zip(v, w, levels):  # `level` is a view: what we write into it stays
            old = level.astype(F32)
            wvl, wll = sum_wvl - wi * vi * old, sum_wll - wi * old * old
            moved = np.minimum(_nearest(vi * wll / wvl), 63)
            new = moved.astype(F32)
            take = (wvl > 0) & (wll > 0) & (moved != level)
            wvl, wll = wvl + wi * vi * new, wll + wi * new * new
            take &= wvl * wvl * sum_wll > sum_wvl * sum_wvl * wll
            np.copyto(level, moved.astype(np.uint8), where=take)
            sum_wvl, sum_wll = np.where(take, wvl, sum_wvl), np.where(take, wll, sum_wll)
            changed |= take.any()
        if not changed:
            break
    unit = np.where(sum_wll > 0, sum_wvl / sum_wll, F32(0))
    return np.where(empty, np.uint8(0), levels).T, np.where(empty, F32(0), unit)


def _settle(x: np.ndarray, fit: _Fit, d, dmin, packed, top: int) -> np.ndarray:
    """Choose the levels again for the scales that the file will hold. Returns uint8 (N, 8, 32).

    Subtle: the 6-bit numbers are read back from their bytes. With a wild importance one may exceed 63 and spill over
    into its neighbors' bits; the reader of the file will see the spilled ones.
    """
    scales, lows = _unpack_six_bits(packed)
    scale = (_read_float16(d) * scales).reshape(-1)
    low = (_read_float16(dmin) * lows).reshape(-1)
    v = (x + low) / scale
    if np.abs(v).max() < 2**22:  # NaN compares false
        levels = np.clip(np.rint(v, out=v), F32(0), F32(top), out=v)
    else:
        levels = np.clip(_nearest(v), 0, top)
    # Subtle: where the scale was rounded to zero the levels mean nothing, yet ggml writes those of the search.
    lost = np.flatnonzero(scale == 0)
    if len(lost):
        searched, ends = x[:, lost], np.stack([x.min(axis=0), x.max(axis=0)])[:, lost]
        levels[:, lost] = _levels(searched, fit.start[lost], fit.inverse[lost], top, ends)
    return rearrange(levels.astype(np.uint8), "l (n j) -> n j l", j=8)


def _pack_six_bits(scales: np.ndarray, lows: np.ndarray) -> np.ndarray:
    """Two times eight 6-bit numbers -> 12 bytes (N, 12).

    The first four of each lie in the low 6 bits of bytes 0-3 (scales) and 4-7 (lows). The last four are cut: their
    low nibbles share bytes 8-11, their upper 2 bits fill the free corners of bytes 0-7.
    """
    first = np.concatenate([scales[:, :4], lows[:, :4]], axis=1)
    last = np.concatenate([scales[:, 4:], lows[:, 4:]], axis=1)
    return np.concatenate([first | last >> 4 << 6, last[:, :4] & 15 | last[:, 4:] << 4], axis=1)


def _unpack_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 12) -> scales and lows, uint8 (N, 8) each."""
    corners, nibbles = packed[:, :8], packed[:, 8:]
    last = np.concatenate([nibbles & 15, nibbles >> 4], axis=1) | corners >> 6 << 4
    first = corners & 63
    return np.concatenate([first[:, :4], last[:, :4]], axis=1), np.concatenate([first[:, 4:], last[:, 4:]], axis=1)


def _pack_nibbles(levels: np.ndarray) -> np.ndarray:
    """(N, 8, 32) levels of 4 bits -> (N, 128): groups 2p and 2p + 1 share 32 bytes, the even one in the low half."""
    return (levels[:, ::2] | levels[:, 1::2] << 4).reshape(-1, 128)


def _unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """(N, 128) -> (N, 8, 32)."""
    pairs = packed.reshape(-1, 4, 32)
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _decode_q4_k(packed: np.ndarray) -> np.ndarray:
    return _scale_and_shift(packed, _unpack_nibbles(packed[:, 16:]))


def _decode_q5_k(packed: np.ndarray) -> np.ndarray:
    fifth = np.unpackbits(packed[:, None, 16:48], axis=1, bitorder="little")  # (N, 8, 32)
    return _scale_and_shift(packed, _unpack_nibbles(packed[:, 48:]) | fifth << 4)


def _scale_and_shift(packed: np.ndarray, levels: np.ndarray) -> np.ndarray:
    scales, lows = _unpack_six_bits(packed[:, 4:16])
    scale, low = _read_float16(packed[:, :2]) * scales, _read_float16(packed[:, 2:4]) * lows
    return (scale[:, :, None] * levels - low[:, :, None]).reshape(-1, 256)


# Q6_K ----------------------------------------------------------------------------------------------------------------


def _encode_q6_k(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 210): 128 bytes of low nibbles, 64 of upper bits, 16 signed scales, d at the end."""
    x = _columns(rows, 16)
    w = x * x if importance is None else _columns(np.broadcast_to(importance, rows.shape), 16)
    scale, inverse = _search(device, _fit_scale, x, w, 32)

    # The scales of a block: signed 8 bits, the largest in size at -128.
    scale = np.where(np.isnan(scale), F32(0), scale).reshape(-1, 16)  # NaN: x * x overflowed
    most = _first_largest(np.ascontiguousarray(scale.T))
    unit = F32(-128) / most
    scales = np.minimum(_nearest(scale * unit[:, None]), 127).astype(np.int8)
    d = _float16_bytes(1 / unit)

    # Settle, as in Q4_K.
    settled = (_read_float16(d) * scales).reshape(-1)
    levels = np.clip(_nearest(x / settled), -32, 31) + 32
    lost = np.flatnonzero(settled == 0)
    levels[:, lost] = _stored_levels(x[:, lost], inverse[lost], half=32)
    levels = rearrange(levels.astype(np.uint8), "l (n j) -> n (j l)", j=16)
    packed = np.concatenate([_pack_q6_levels(levels), scales.view(np.uint8), d], axis=1)
    packed[np.abs(most) < F32(1e-15)] = 0
    return packed


def _pack_q6_levels(levels: np.ndarray) -> np.ndarray:
    """(N, 256) levels of 6 bits -> (N, 192). In each half, weights l, l + 32, l + 64, l + 96 share what they can."""
    q = levels.reshape(-1, 2, 4, 32)  # half, quarter, place
    low = q[:, :, :2] & 15 | q[:, :, 2:] << 4
    upper = q >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = upper[:, :, 0] | upper[:, :, 1] | upper[:, :, 2] | upper[:, :, 3]
    return np.concatenate([low.reshape(-1, 128), upper.reshape(-1, 64)], axis=1)


def _decode_q6_k(packed: np.ndarray) -> np.ndarray:
    low, upper = packed[:, :128].reshape(-1, 2, 2, 32), packed[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2)  # (N, half, quarter, place)
    upper = upper >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    levels = (low | upper << 4).reshape(-1, 16, 16).astype(np.int8) - np.int8(32)
    scale = _read_float16(packed[:, 208:]) * packed[:, 192:208].view(np.int8)
    return (scale[:, :, None] * levels).reshape(-1, 256)


# Q8_0 and Q5_0 -------------------------------------------------------------------------------------------------------


def _encode_q8_0(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 34): d, then 32 signed bytes. Subtle: levels come from the float32 d, not the stored one."""
    x = rows.reshape(-1, 32)
    d = np.abs(x).max(axis=1) / F32(127)
    v = x * _inverse(d)[:, None]
    # Round half away from zero. Adding 0.5 itself would lift 0.49999997 to 1.
    v += np.copysign(np.nextafter(F32(0.5), F32(0)), v)
    return np.concatenate([_float16_bytes(d), _truncate(v).astype(np.int8).view(np.uint8)], axis=1)


def _decode_q8_0(packed: np.ndarray) -> np.ndarray:
    return packed[:, 2:].view(np.int8) * _read_float16(packed[:, :2])


def _encode_q5_0(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 22): d, 32 fifth bits, 32 nibbles."""
    x = _columns(rows, 32)
    if importance is None:
        # Subtle: + 0.0 turns -0.0 into 0.0, so that a block of zeros has d = -0.0, bytes 00 80.
        d = (_first_largest(x) + F32(0)) / F32(-16)
        levels = np.minimum(_truncate(x * _inverse(d) + F32(16.5)), 31)
    else:
        w = _columns(_weights(rows, importance, rows.shape[1], F32(1)), 32)
        d, inverse = _search(device, _fit_scale, x, w, 16)
        levels = _stored_levels(x, inverse, half=16)
    levels = levels.T.astype(np.uint8)
    fifth = np.packbits(levels >> 4, axis=1, bitorder="little")
    return np.concatenate([_float16_bytes(d), fifth, levels[:, :16] & 15 | levels[:, 16:] << 4], axis=1)


def _decode_q5_0(packed: np.ndarray) -> np.ndarray:
    fifth = np.unpackbits(packed[:, 2:6], axis=1, bitorder="little")
    levels = np.concatenate([packed[:, 6:] & 15, packed[:, 6:] >> 4], axis=1) | fifth << 4
    return _read_float16(packed[:, :2]) * (levels.astype(np.int8) - np.int8(16))


# Arithmetic to the last bit ------------------------------------------------------------------------------------------


def _columns(rows: np.ndarray, size: int) -> np.ndarray:
    """Lay groups of weights out as columns: (R, cols) -> (size, G). Sums then run in order, for all groups at once."""
    return np.ascontiguousarray(rows.reshape(-1, size).T)


def _column_sum(t: np.ndarray) -> np.ndarray:
    """Sum the rows of (rows, G) one after the other, each sum rounded to float32.

    NOTE `t.sum(axis=-1)` would add in pairs, and so does numpy's reduction below when there is one column only.
    """
    if isinstance(t, np.ndarray):
        return np.add.reduce(t, axis=0) if t.shape[1] > 1 else np.add.accumulate(t, axis=0)[-1]
    total = t[0].clone()
    for row in t[1:]:
        total += row
    return total


def _nearest(v: np.ndarray) -> np.ndarray:
    """Round half to even as ggml does, int32: 1.5 * 2^23 pushes the fraction out of a float32, and the integer stays.

    Subtle: beyond 2^22 this wraps; infinity gives -2^22 and NaN gives 0. Extreme weights do get there.
    """
    return ((v + 12582912).view(_library(v).int32) & 0x7FFFFF) - 0x400000


def _truncate(v: np.ndarray) -> np.ndarray:
    """Cut the fraction off, int32. Infinities and NaN (from weights too small for an inverse) give 0."""
    return np.where(np.isfinite(v), v, F32(0)).astype(np.int32)


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.where(d != 0, 1 / d, F32(0))


def _weights(rows: np.ndarray, importance: np.ndarray, span: int, factor: np.float32) -> np.ndarray:
    """importance * sqrt(factor * mean(x^2) + x^2), with the mean over each `span` weights. (R, cols)"""
    squares = (rows * rows).reshape(-1, span)
    mean = factor * _column_sum(np.ascontiguousarray(squares.T)) / F32(span)
    return importance * np.sqrt(mean[:, None] + squares).reshape(rows.shape)


def _float16_bytes(d: np.ndarray) -> np.ndarray:
    """float32 (N,) -> little-endian float16 as uint8 (N, 2)."""
    return d.astype("<f2").view(np.uint8).reshape(-1, 2)


def _read_float16(packed: np.ndarray) -> np.ndarray:
    """uint8 (N, 2) -> float32 (N, 1)."""
    return np.ascontiguousarray(packed).view("<f2").astype(F32)


# On a GPU ------------------------------------------------------------------------------------------------------------
#
# What the search calls is spelled alike in numpy and torch, and rounds alike: `round` goes half to even in both,
# no multiply is fused with an add, divisions of arrays by arrays are exact. Divisions by or of a number are not:
# see `_over`. Sums of torch add in no order one may rely on: see `_column_sum`. And NaN differ: see X86_NAN.

X86_NAN = np.uint32(0xFFC00000).view(F32)  # what 0 / 0 gives there. Its sign reaches the file, in Q5_0.


def _search(device, fit: Callable, x: np.ndarray, w: np.ndarray, *args):
    """fit(x, w, *args): in numpy, or by torch on a device if there is one. Returns numpy arrays."""
    if device is None:
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


# The formats, and the checks -----------------------------------------------------------------------------------------


class _Format(NamedTuple):
    weights: int  # in a block
    bytes: int
    encode: Callable  # (R, cols), importance, device -> (N, bytes)
    decode: Callable  # (N, bytes) -> (N, weights)
    scales: slice  # bytes of a block that are float16


FORMATS = {
    "Q4_K": _Format(256, 144, _encode_q4_k, _decode_q4_k, slice(0, 4)),
    "Q5_K": _Format(256, 176, _encode_q5_k, _decode_q5_k, slice(0, 4)),
    "Q6_K": _Format(256, 210, _encode_q6_k, _decode_q6_k, slice(208, 210)),
    "Q8_0": _Format(32, 34, _encode_q8_0, _decode_q8_0, slice(0, 2)),
    "Q5_0": _Format(32, 22, _encode_q5_0, _decode_q5_0, slice(0, 2)),
}


def _form(kind: str) -> _Format:
    return FORMATS[check_choice("kind", kind, FORMATS)]


def _check_cols(name: str, cols: int, kind: str) -> None:
    whole = isinstance(cols, (int, np.integer)) and not isinstance(cols, bool)
    if not whole or cols < 0 or cols % FORMATS[kind].weights:
        error = ValueError if whole else WrongType
        raise error(f"{name}: columns of {kind} must be a multiple of {FORMATS[kind].weights}, got {shown(cols)}")


def _wrong(value, message: str) -> ValueError:
    return (ValueError if isinstance(value, np.ndarray) else WrongType)(message)


def _check_importance(importance, cols: int) -> np.ndarray:
    if not isinstance(importance, np.ndarray) or importance.dtype.kind != "f" or importance.shape != (cols,):
        raise _wrong(importance, f"importance must be a float array of shape ({cols},), got {_describe(importance)}")
    with np.errstate(over="ignore"):
        importance = np.ascontiguousarray(importance, F32)
    if not (importance >= 0).all() or not np.isfinite(importance).all():
        worst = importance[~((importance >= 0) & np.isfinite(importance))][0]
        raise ValueError(f"importance must be finite and not negative, got {worst}")
    return importance


def _check_device(device):
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be a CPU or a CUDA device that is there, got {shown(device)}: {reason}"
        ) from None
    if found.type not in ("cpu", "cuda"):  # others may round otherwise
        raise ValueError(f"device must be a CPU or a CUDA device, got {shown(device)}")
    return found


def _describe(value) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    return type(value).__name__
