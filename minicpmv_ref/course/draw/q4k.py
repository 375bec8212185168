"""Lesson 09: one block of Q4_K under a microscope."""

from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from .canvas import BLACK, BLUE, GRAY, GREEN, ORANGE, PALE, RED, SKY, YELLOW, Axes, Canvas

WEIGHT_KINDS = {  # (words in a menu, key)
    "bell": "bell",
    "heavy tails": "heavy",
    "below zero": "below",
    "above zero": "above",
}
OUTLIER = 100, 0.5  # which of the 256 weights, and its value: 25 times the usual size
FACTORS = range(50, 151)  # percent


class Sighted(NamedTuple):
    """One sub-block of 32 weights, and what the block that holds it says about it.

    weights: (32,) float32. block: the 144 bytes. levels: (32,), 0..15, read from the bytes.
    d, dmin: the block's two float16 numbers. sc, m: the sub-block's 6-bit numbers.
    """

    weights: np.ndarray
    block: bytes
    levels: np.ndarray
    d: np.float32
    dmin: np.float32
    sc: int
    m: int

    @property
    def scale(self) -> np.float32:
        return self.d * np.float32(self.sc)

    @property
    def low(self) -> np.float32:
        return -self.dmin * np.float32(self.m)


@lru_cache(maxsize=16)
def some_weights(kind: str, outlier: bool) -> np.ndarray:
    """256 seeded weights of standard deviation 0.02, float32 (1, 256); `kind` is a value of WEIGHT_KINDS."""
    rng = np.random.default_rng(9)
    x = rng.standard_t(3, 256) / 3**0.5 if kind == "heavy" else rng.standard_normal(256)
    x = 0.02 * x + {"below": -0.06, "above": 0.06}.get(kind, 0)
    if outlier:
        x[OUTLIER[0]] = OUTLIER[1]
    return x.astype(np.float32)[None]


@lru_cache(maxsize=64)
def sight(kind: str, outlier: bool, group: int) -> Sighted:
    """Quantize `some_weights` and read sub-block `group` (0 to 7) back, bit by bit."""
    from minicpmv_ref.deploy.kquant import quantize

    x = some_weights(kind, outlier)
    block = quantize(x, "Q4_K")[0].tobytes()
    d, dmin = np.frombuffer(block[:4], "<f2").astype(np.float32)
    packed = block[4:16]
    if group < 4:
        sc, m = packed[group] & 63, packed[group + 4] & 63
    else:
        shared = packed[group + 4]
        sc, m = shared & 15 | packed[group - 4] >> 6 << 4, shared >> 4 | packed[group] >> 6 << 4
    pair = np.frombuffer(block[16:], np.uint8).reshape(4, 32)[group // 2]
    levels = pair >> 4 if group % 2 else pair & 15
    return Sighted(x[0, 32 * group : 32 * group + 32], block, levels, d, dmin, sc, m)


def levels_on(x, scale, low):
    """The nearest of the 16 levels for each weight."""
    return np.clip(np.rint((x - low) / scale), 0, 15)


def weighted_error(x, scale, low) -> float:
    """Root of the mean squared error, in which a weight counts by rms + |x| as in the search for scale and low."""
    w = np.sqrt(np.square(x).mean()) + np.abs(x)
    return float(np.sqrt((w * np.square(scale * levels_on(x, scale, low) + low - x)).sum() / w.sum()))


def error_ratio(seen: Sighted, scale: int, low: int) -> float:
    """Weighted error with `scale` and `low` percent of the file's, as a multiple of the file's own."""
    factors = np.float32(scale / 100), np.float32(low / 100)
    moved = weighted_error(seen.weights, seen.scale * factors[0], seen.low * factors[1])
    return moved / weighted_error(seen.weights, seen.scale, seen.low)


def q4k_microscope(scale: int, low: int, group: int, kind: str, outlier: bool) -> Canvas:
    """The weights of sub-block `group` on their ladder, the error around the found pair, and the 144 bytes.

    `scale` and `low` are percent of what the file holds. Its facts: "levels" of the 32 weights, "errors"
    {"scale" or "low": [(percent, error), ...]} and "error", as multiples of the file's own error.
    """
    canvas, seen = Canvas(), sight(kind, outlier, group)
    moved = seen.scale * np.float32(scale / 100), seen.low * np.float32(low / 100)
    _draw_ladder(canvas, seen, *moved, group)
    _draw_errors(canvas, seen, scale, low)
    _draw_block(canvas, seen, group)
    canvas.text(8, 352, f"scale = d · sc = {seen.d:.6f} · {seen.sc} = {seen.scale:.4f}", 14)
    canvas.text(304, 352, f"low = −dmin · m = −{seen.dmin:.6f} · {seen.m} = {_signed(seen.low)}", 14)
    place = int(np.abs(seen.weights).argmax())
    level = int(levels_on(seen.weights[place], *moved))
    back = f"{moved[0]:.4f} · {level} − {-moved[1]:.4f} = {_signed(moved[0] * level + moved[1])}"
    canvas.text(8, 373, f"the largest, weight {32 * group + place}: {_signed(seen.weights[place])} becomes {back}", 14)
    return canvas


def _signed(number) -> str:
    return f"{number + 0.0:.4f}".replace("-", "−")  # + 0.0: no minus before zero


def _draw_ladder(canvas, seen, scale, low, group):
    """16 rungs, a dot per weight, and a red stem from each dot to its rung."""
    x, rungs = seen.weights, seen.scale * np.arange(16) + seen.low
    box = left, top, wide, high = 36, 32, 362, 190
    axes = Axes(canvas, box, (0, wide), (min(x.min(), rungs[0]), max(x.max(), rungs[-1], 0)))
    up = lambda value: axes.at(0, value)[1]  # noqa: E731
    canvas.text(8, 20, f"weights {32 * group} to {32 * group + 31} on 16 levels", bold=True)
    axes.level(0, color=BLACK, line=3)
    for level in range(16):
        rung = scale * level + low
        if top - 4 <= up(rung) <= top + high + 4:
            axes.level(rung, level if level % 5 == 0 else "", GRAY)
    levels = levels_on(x, scale, low)
    canvas.facts["levels"] = levels.astype(int).tolist()
    for place, (weight, level) in enumerate(zip(x, levels)):
        across, rung = left + 8 + 11.1 * place, min(max(up(scale * level + low), top - 4), top + high + 4)
        canvas.path([(across, up(weight)), (across, rung)], RED, 3)
        canvas.dot(across, up(weight), 3.5, GREEN)
    canvas.text(8, 246, "thick: weight 0; red: what rounding changes", 14)


def _draw_errors(canvas, seen, scale, low):
    """Error against the factor of the scale and against that of the low, the other one standing still."""
    most = 5
    axes = Axes(canvas, (440, 32, 188, 172), (FACTORS[0], FACTORS[-1]), (0, most))
    canvas.text(416, 20, "error (the file's: 1)", bold=True)
    for ratio in range(most + 1):
        axes.level(ratio, ratio)
    for percent, align in ((50, "middle"), (100, "middle"), (150, "right")):
        axes.moment(percent)
        axes.under(percent, f"{percent} %", align)
    errors = {
        "scale": [(percent, error_ratio(seen, percent, low)) for percent in FACTORS],
        "low": [(percent, error_ratio(seen, scale, percent)) for percent in FACTORS],
    }
    here = error_ratio(seen, scale, low)
    canvas.facts |= {"errors": errors, "error": here}
    for color, curve in zip((BLUE, ORANGE), errors.values()):
        for shown, points in groupby(curve, key=lambda point: point[1] <= most):
            if shown:
                axes.line(list(points), color, 3)
    axes.dot(scale, min(here, most), 8, BLUE)
    axes.dot(low, min(here, most), 6, ORANGE)
    for x, color, word in ((424, BLUE, "scale moves"), (540, ORANGE, "low moves")):
        canvas.dot(x, 241, 6, color)
        canvas.text(x + 10, 246, word, 14)


def _draw_block(canvas, seen, group):
    """144 bytes: 16 with their bits side by side, then 128 with the high nibble above the low one."""
    canvas.text(8, 270, "the block: 144 bytes", bold=True)
    canvas.legend(226, 257, ((BLUE, "its sc"), (ORANGE, "its m"), (GREEN, "its 32 levels")))
    left, wide, bit = 8, 39, 4.5
    fields = [("d", SKY)] * 2 + [("dmin", YELLOW)] * 2 + [("scales and lows", PALE)] * 12
    for number, (field, color) in enumerate(fields):
        title = f"byte {number}, {field}: {seen.block[number]:08b}"
        canvas.rect(left + wide * number, 278, 8 * bit, 18, color, title=title)
    for number, first, count, color in _bits_of(group):  # the highest bit stands at the left
        canvas.rect(left + wide * (4 + number) + bit * (8 - first - count), 278, bit * count, 18, color)
    canvas.text(left + wide - 2, 292, "d", 14, align="middle")
    canvas.text(left + 3 * wide - 2, 292, "dmin", 14, align="middle")
    for number in range(128):
        x, y = left + 9.75 * (number % 64), 302 + 18 * (number // 64)
        byte = seen.block[16 + number]
        canvas.rect(x, y, 8.5, 15, PALE, title=f"byte {16 + number}, levels {byte & 15} and {byte >> 4}")
        if number // 32 == group // 2:
            canvas.rect(x, y + (0 if group % 2 else 7.5), 8.5, 7.5, GREEN)


def _bits_of(group):
    """Where sc and m of a sub-block lie in the 12 bytes: (byte, its lowest bit, how many bits, color)."""
    if group < 4:
        return [(group, 0, 6, BLUE), (group + 4, 0, 6, ORANGE)]
    shared = group + 4
    return [(group - 4, 6, 2, BLUE), (group, 6, 2, ORANGE), (shared, 0, 4, BLUE), (shared, 4, 4, ORANGE)]
