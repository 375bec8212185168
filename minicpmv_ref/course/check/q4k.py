"""Lesson 09: Q4_K, bit by bit."""

import numpy as np

from minicpmv_ref.deploy.kquant import _pack_nibbles, _pack_six_bits, dequantize

from .cases import Case, exercise


@exercise
def bits_per_weight():
    """Q2_K, Q3_K, Q4_K, Q5_K and Q6_K, with the sizes of the gguf package; to nine digits."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    # weights, group, bits of a level, bits of a scale, is there a low?
    shapes = {"Q6_K": (256, 16, 6, 8, False), "Q4_K": (256, 32, 4, 6, True), "Q5_K": (256, 32, 5, 6, True)}
    shapes |= {"Q3_K": (256, 16, 3, 6, False), "Q2_K": (256, 16, 2, 4, True)}
    for kind, shape in shapes.items():
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        yield Case(shape, 8 * size / weights)


@exercise
def best_line():
    """six lists of 2 to 5 weights, some with a low that would be above 0; to 1e-4."""
    lists = [([-1.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0, 1, 2]), ([-1.0, 1.0, 2.0], [3.0, 1.0, 1.0], [0, 1, 1])]
    lists.append(([3.0, 5.0], [1.0, 1.0], [1, 2]))
    rng = np.random.default_rng(0)
    for shift in (0.0, -4.0, 4.0):
        x, w = rng.standard_normal(5).round(1) + shift, rng.uniform(0.5, 2, 5).round(1)
        levels = np.rint(15 * (x - x.min()) / np.ptp(x)).astype(int)
        lists.append((x.round(1).tolist(), w.tolist(), levels.tolist()))
    yield from (Case(each, _line(*each), tolerance=1e-4) for each in lists)


def _line(x, w, levels):
    """(scale, low) by numpy's own least squares; where low would be above 0 it is 0, and the scale is fitted alone."""
    root = np.sqrt(w)
    columns = np.stack([root * levels, root], axis=1)
    scale, low = np.linalg.lstsq(columns, root * x, rcond=None)[0]
    if low > 0:
        (scale,), low = np.linalg.lstsq(columns[:, :1], root * x, rcond=None)[0], 0
    return round(float(scale), 9), round(float(low), 9)


@exercise
def six_bits():
    """six sets of twelve bytes, four of them random."""
    rng = np.random.default_rng(1)
    ramp = [1, 2, 3, 4, 5, 6, 7, 8, 0x21, 0x43, 0x65, 0x87]
    for packed in ([*range(1, 9), 0, 0, 0, 0], ramp, *(rng.integers(0, 256, 12).tolist() for _ in range(4))):
        # With d = dmin = 1 and all levels 0, weights are -m; with all levels 1 they are sc - m.
        start = np.ones(2, "<f2").tobytes() + bytes(packed)
        blocks = np.stack([np.frombuffer(start + bytes([nibbles] * 128), np.uint8) for nibbles in (0x00, 0x11)])
        zero, one = dequantize(blocks, "Q4_K", 256)[:, ::32]
        yield Case((packed,), ((one - zero).astype(int).tolist(), (-zero).astype(int).tolist()))


@exercise
def two_sums():
    """six blocks: one sub-block alone, then random levels, scales, lows and inputs of -127 to 127; whole numbers."""
    rng = np.random.default_rng(4)
    ones, nothing, ramp = np.ones(256, int), np.zeros(256, int), np.arange(-128, 128)
    yield Case(([2] + [0] * 7, [0] * 7 + [3], 15 * ones, ones), (2 * 15 * 32, 3 * 32))
    down = int(ramp.reshape(8, 32).sum(axis=1) @ np.arange(8, 0, -1))
    yield Case(([1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1], nothing, ramp), (0, down))
    for _ in range(4):
        sc, m = rng.integers(0, 64, (2, 8)).tolist()
        levels, x = rng.integers(0, 16, 256), rng.integers(-127, 128, 256)
        # With d = 1 and dmin = 0 the package's weights are sc q, with d = 0 and dmin = 1 they are -m.
        scaled, lows = (_unpacked(units, sc, m, levels).astype(int) for units in ((1, 0), (0, 1)))
        yield Case((sc, m, levels, x), (int(scaled @ x), int(-lows @ x)))


def _unpacked(units, sc, m, levels):
    """The 256 weights of a block by the package, from its two units, scales, lows and levels."""
    numbers, nibbles = _pack_six_bits(*np.array([[sc], [m]], np.uint8)), levels.astype(np.uint8).reshape(1, 8, 32)
    block = np.array(units, "<f2").tobytes() + numbers.tobytes() + _pack_nibbles(nibbles).tobytes()
    return dequantize(np.frombuffer(block, np.uint8)[None], "Q4_K", 256)[0]
