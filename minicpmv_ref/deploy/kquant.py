"""K-quants: 256 weights go in, 144 bytes come out (Q4_K), byte for byte what llama.cpp writes on x86-64.

Implements Q4_K, Q5_K, Q6_K, Q8_0 and Q5_0, with and without an importance per column, and the decoding of each.
Left out: the other formats of ggml. ARM builds of ggml fuse multiply and add, and differ in a few bytes.
N blocks: 8 (or 16) groups of a K-quant. G groups of 32 (or 16) weights, laid out as columns: x (32, G). R rows.

The idea of Q4_K. A group of 32 weights becomes 32 levels of 4 bits and two numbers: w = scale * level + low.
    1. search   try 22 rulers (how many levels per unit of weight), round the weights to levels with each, solve
                weighted least squares for scale and low, keep the best       `kquant_search.fit_scale_and_low`
    2. squeeze  the 8 scales and 8 lows of a block become 6-bit integers times two float16 numbers  `_six_bits`
    3. settle   choose the levels again, now that the scales are rounded                        `_settle`
    4. pack     2 + 2 bytes of float16, 12 of scales, 128 of levels: 4.5 bits per weight        `_pack_six_bits`
Q5_K has 32 levels instead of 16. Q6_K has no low, groups of 16, and 8-bit scales. Q8_0 does not search, and Q5_0 only
with an importance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange

from ..inputs.checks import check_choice, check_int, check_type, shown
from .kquant_search import (
    F32,
    PLAIN,
    WEIGHTED,
    Fit,
    column_sum,
    first_largest,
    fit_scale,
    fit_scale_and_low,
    nearest,
    round_to_levels,
    search,
)

MOST_VALUES = 1 << 16  # worked on at a time: arrays of 256 kB, of which a core's cache holds what one step needs
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
    what = "a 2-D numpy array of float32 or float16"
    if check_type("array", array, np.ndarray, what=what).ndim != 2 or array.dtype not in (F32, np.float16):
        raise ValueError(f"array must be {what}, got {array.dtype} {array.shape}")
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
            largest = _largest(x)
            blocks = form.encode(x, importance, device)
            _check_stored(blocks, largest, kind)
            packed[start : start + step] = blocks.reshape(len(x), -1)
    return out


def _largest(x: np.ndarray) -> np.float32:
    """The weight of largest size, with its sign. Both ends are NaN if one weight is."""
    most, least = x.max(), x.min()
    if not (np.isfinite(most) and np.isfinite(least)):
        raise ValueError(f"weights must be finite, got {x[~np.isfinite(x)][0]}")
    return most if most >= -least else least


def _check_stored(blocks: np.ndarray, largest: np.float32, kind: str) -> None:
    """Refuse what would be read back as infinity: in float16 these, and not-a-number, have all bits of the exponent."""
    scales = np.ascontiguousarray(blocks[:, FORMATS[kind].scales]).view("<u2")
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
    what = "a 2-D numpy array of uint8"
    if check_type("blocks", blocks, np.ndarray, what=what).ndim != 2 or blocks.dtype != np.uint8:
        raise ValueError(f"blocks must be {what}, got {blocks.dtype} {blocks.shape}")
    _check_cols("cols", cols, kind)
    if blocks.shape[1] != cols // form.weights * form.bytes:
        need = cols // form.weights * form.bytes
        raise ValueError(f"blocks: {cols} columns of {kind} take {need} bytes a row, got {blocks.shape[1]}")
    out = np.empty((len(blocks), cols), F32)
    flat, packed = out.reshape(-1, form.weights), np.ascontiguousarray(blocks).reshape(-1, form.bytes)
    step = MOST_VALUES // form.weights
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), step):
            flat[start : start + step] = form.decode(packed[start : start + step])
    return out


# Q4_K and Q5_K -------------------------------------------------------------------------------------------------------


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
        w = np.abs(x) + np.sqrt(column_sum(x * x) / F32(32))  # a large weight counts more
        fit = Fit(*search(device, fit_scale_and_low, x, w, top, PLAIN[top]))
        scales, lows = (_six_bits(v.reshape(-1, 8)) for v in (fit.scale, -fit.low))
    else:
        w = _columns(_weights(rows, importance, 256, F32(2)), 32)
        fit = Fit(*search(device, fit_scale_and_low, x, w, top, WEIGHTED))
        group_weight = column_sum(w).reshape(-1, 8)
        scales, lows = (_six_bits_weighted(v.reshape(-1, 8), group_weight) for v in (fit.scale, -fit.low))
    (scale_levels, d), (low_levels, dmin) = scales, lows
    return fit, _float16_bytes(d), _float16_bytes(dmin), scale_levels, low_levels


def _six_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 8) numbers -> levels uint8 (N, 8) in 0..63 and a float32 unit (N,): values are about unit * level."""
    most = np.fmax.reduce(values, axis=1, initial=F32(0))
    inverse = np.where(most > 0, F32(63) / most, F32(0))
    levels = nearest(values * inverse[:, None]).astype(np.uint8)  # wraps, as C does
    return np.minimum(levels, 63), most / F32(63)


def _six_bits_weighted(values: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_six_bits`, but with small sum(w * (unit * level - value)^2), as an importance deserves.

    First nine rulers are tried. Then one level at a time moves to where the others' unit wants it, if that raises
    S(wvl)^2 / S(wll), the measure of `fit_scale`; five rounds of this are enough.
    """
    v, w = np.ascontiguousarray(values.T), np.ascontiguousarray(w.T)  # (8, N)
    most = v.max(axis=0)
    empty = ~(most >= F32(1e-15))
    most = np.where(empty, F32(1), most)

    def error(inverse, levels):
        diff = v - (1 / inverse) * levels.astype(F32)
        return column_sum((w * diff) * diff)

    best_inverse = F32(63) / most
    best = error(best_inverse, nearest(v * best_inverse).astype(np.uint8))
    for i in (-4, -3, -2, -1, 1, 2, 3, 4):
        inverse = (F32(0.1) * F32(i) + F32(63)) / most
        trial = error(inverse, np.minimum(nearest(v * inverse), 63))
        better = trial < best
        best, best_inverse = np.where(better, trial, best), np.where(better, inverse, best_inverse)

    levels = np.minimum(nearest(v * best_inverse), 63)
    sum_wvl, sum_wll = column_sum(w * v * levels.astype(F32)), column_sum(w * levels.astype(F32) * levels.astype(F32))
    levels = levels.astype(np.uint8)  # subtle: a negative level wraps here, after the sums
    for _ in range(5):
        changed = False
        for vi, wi, level in zip(v, w, levels):  # `level` is a view: what we write into it stays
            old = level.astype(F32)
            wvl, wll = sum_wvl - wi * vi * old, sum_wll - wi * old * old
            moved = np.minimum(nearest(vi * wll / wvl), 63)
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


def _settle(x: np.ndarray, fit: Fit, d, dmin, packed, top: int) -> np.ndarray:
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
        levels = np.clip(nearest(v), 0, top)
    # Subtle: where the scale was rounded to zero the levels mean nothing, yet ggml writes those of the search.
    lost = np.flatnonzero(scale == 0)
    if len(lost):
        searched, ends = x[:, lost], np.stack([x.min(axis=0), x.max(axis=0)])[:, lost]
        levels[:, lost] = round_to_levels(searched, fit.start[lost], fit.inverse[lost], top, ends)
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
    scale, inverse = search(device, fit_scale, x, w, 32)

    # The scales of a block: signed 8 bits, the largest in size at -128.
    scale = np.where(np.isnan(scale), F32(0), scale).reshape(-1, 16)  # NaN: x * x overflowed
    most = first_largest(np.ascontiguousarray(scale.T))
    unit = F32(-128) / most
    scales = np.minimum(nearest(scale * unit[:, None]), 127).astype(np.int8)
    d = _float16_bytes(1 / unit)

    # Settle, as in Q4_K.
    settled = (_read_float16(d) * scales).reshape(-1)
    levels = np.clip(nearest(x / settled), -32, 31) + 32
    lost = np.flatnonzero(settled == 0)
    if len(lost):
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


def _stored_levels(x: np.ndarray, inverse: np.ndarray, half: int) -> np.ndarray:
    """The levels of `fit_scale` as stored, in 0..2 * half - 1. NOTE ggml leaves 0, not `half`, in a tiny group."""
    return np.where(inverse == 0, 0, np.clip(nearest(x * inverse), -half, half - 1) + half)


# Q8_0 and Q5_0 -------------------------------------------------------------------------------------------------------


def _encode_q8_0(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 34): d, then 32 signed bytes. Subtle: levels come from the float32 d, not the stored one."""
    x = rows.reshape(-1, 32)
    d = _columns(np.abs(rows), 32).max(axis=0) / F32(127)
    # Round half away from zero: cut twice the number, then halve. Adding 0.5 would lift 0.49999997 to 1.
    v = _scaled(x, _inverse(d)[:, None])
    twice = np.add(v, v, out=v).astype(np.int16)
    packed = np.empty((len(x), 34), np.uint8)
    packed[:, :2], packed[:, 2:] = _float16_bytes(d), (twice + (twice >= 0)) >> 1
    return packed


def _decode_q8_0(packed: np.ndarray) -> np.ndarray:
    return packed[:, 2:].view(np.int8) * _read_float16(packed[:, :2])


def _encode_q5_0(rows: np.ndarray, importance, device) -> np.ndarray:
    """(R, cols) -> (N, 22): d, 32 fifth bits (bit j of byte b belongs to weight 8 b + j), 32 nibbles."""
    x = _columns(rows, 32)
    if importance is None:
        # Subtle: + 0.0 turns -0.0 into 0.0, so that a block of zeros has d = -0.0, bytes 00 80.
        d = (first_largest(x) + F32(0)) / F32(-16)
        levels = _scaled(x, _inverse(d), shift=16.5, out=x)
        np.minimum(levels, 31, out=levels)
    else:
        w = _columns(_weights(rows, importance, rows.shape[1], F32(1)), 32)
        d, inverse = search(device, fit_scale, x, w, 16)
        levels = _stored_levels(x, inverse, half=16)
    levels = levels.astype(np.uint8)
    fifth = (levels >> 4).reshape(4, 8, -1) * (1 << np.arange(8, dtype=np.uint8)[:, None])
    nibbles = levels[:16] & 15 | levels[16:] << 4
    return np.concatenate([_float16_bytes(d).T, np.bitwise_or.reduce(fifth, axis=1), nibbles]).T


def _decode_q5_0(packed: np.ndarray) -> np.ndarray:
    fifth = np.unpackbits(packed[:, 2:6], axis=1, bitorder="little")
    levels = np.concatenate([packed[:, 6:] & 15, packed[:, 6:] >> 4], axis=1) | fifth << 4
    return _read_float16(packed[:, :2]) * (levels.astype(np.int8) - np.int8(16))


# Arithmetic to the last bit ------------------------------------------------------------------------------------------


def _columns(rows: np.ndarray, size: int) -> np.ndarray:
    """Lay groups of weights out as columns: (R, cols) -> (size, G). Sums then run in order, for all groups at once."""
    return np.ascontiguousarray(rows.reshape(-1, size).T)


def _scaled(x: np.ndarray, inverse: np.ndarray, shift: float = 0.0, out: np.ndarray | None = None) -> np.ndarray:
    """x * inverse + shift. Weights too small for an inverse give infinities and NaN, and here 0."""
    v = np.multiply(x, inverse, out=out)
    if shift:
        v += F32(shift)
    return v if np.isfinite(inverse).all() else np.where(np.isfinite(v), v, F32(0))


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.where(d != 0, 1 / d, F32(0))


def _weights(rows: np.ndarray, importance: np.ndarray, span: int, factor: np.float32) -> np.ndarray:
    """importance * sqrt(factor * mean(x^2) + x^2), with the mean over each `span` weights. (R, cols)"""
    squares = (rows * rows).reshape(-1, span)
    mean = factor * column_sum(np.ascontiguousarray(squares.T)) / F32(span)
    return importance * np.sqrt(mean[:, None] + squares).reshape(rows.shape)


def _float16_bytes(d: np.ndarray) -> np.ndarray:
    """float32 (N,) -> little-endian float16 as uint8 (N, 2)."""
    return d.astype("<f2").view(np.uint8).reshape(-1, 2)


def _read_float16(packed: np.ndarray) -> np.ndarray:
    """uint8 (N, 2) -> float32 (N, 1)."""
    return np.ascontiguousarray(packed).view("<f2").astype(F32)


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
    if check_int(name, cols, least=0) % FORMATS[kind].weights:
        raise ValueError(f"{name}: columns of {kind} must be a multiple of {FORMATS[kind].weights}, got {cols}")


def _check_importance(importance, cols: int) -> np.ndarray:
    what = f"a float array of shape ({cols},)"
    if check_type("importance", importance, np.ndarray, what=what).dtype.kind != "f" or importance.shape != (cols,):
        raise ValueError(f"importance must be {what}, got {importance.dtype} {importance.shape}")
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
