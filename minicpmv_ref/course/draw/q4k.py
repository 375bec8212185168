"""Lesson 09: one block of Q4_K under a microscope."""

from functools import cache, lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from minicpmv_ref.deploy.kquant import _unpack_nibbles, _unpack_six_bits, dequantize, quantize

from .canvas import Axes, Canvas
from .colors import BLACK, BLUE, GRAY, GREEN, ORANGE, PALE, RED, SKY, YELLOW

WEIGHT_KINDS = {"bell": "bell", "heavy tails": "heavy", "below zero": "below", "above zero": "above"}  # menu: key
OUTLIER = 100, 0.5  # which of the 256 weights, and its value: 25 times the usual size
FACTORS = range(50, 151)  # percent
NONE = frozenset()


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
def sight(kind: str, outlier: bool, group: int, flipped: frozenset = NONE) -> Sighted:
    """Quantize `some_weights`, flip bits of the block, and read sub-block `group` (0 to 7) back.

    Bits are counted from 0, the lowest of byte 0, to 1151, the highest of byte 143.
    """
    x = some_weights(kind, outlier)
    block = quantize(x, "Q4_K")
    for bit in flipped:
        block[0, bit // 8] ^= 1 << bit % 8
    d, dmin = block[0, :4].view("<f2").astype(np.float32)
    sc, m = (int(numbers[0, group]) for numbers in _unpack_six_bits(block[:, 4:16]))
    levels = _unpack_nibbles(block[:, 16:])[0, group]
    return Sighted(x[0, 32 * group : 32 * group + 32], block.tobytes(), levels, d, dmin, sc, m)


@cache
def bit_owner(bit: int) -> tuple[str, int | None]:
    """What a bit belongs to, and its sub-block: ("d", None), ("dmin", None), ("sc", 3), ("m", 3), ("weight 100", 3)."""
    byte, place = divmod(bit, 8)
    if byte < 4:
        return ("d", "dmin")[byte // 2], None
    if byte >= 16:
        group = 2 * ((byte - 16) // 32) + place // 4
        return f"weight {32 * group + (byte - 16) % 32}", group
    if byte >= 12:  # four bits of each
        return ("sc" if place < 4 else "m"), byte - 8
    name, group = ("sc", byte - 4) if byte < 8 else ("m", byte - 8)
    return name, group if place < 6 else group + 4  # the two highest bits are those that a later one lacks


def bit_name(bit: int) -> str:
    """`bit_owner` in words."""
    owner, group = bit_owner(bit)
    return owner if group is None or owner.startswith("weight") else f"{owner} of sub-block {group}"


@lru_cache(maxsize=64)
def moves(kind: str, outlier: bool, flipped: frozenset) -> np.ndarray:
    """(256,) by how much each weight that is read from the block changes if these bits are flipped."""
    blocks = [sight(kind, outlier, 0, bits).block for bits in (NONE, flipped)]
    before, after = (dequantize(np.frombuffer(block, np.uint8)[None], "Q4_K", 256)[0] for block in blocks)
    return after - before


def weighted_error(x, back) -> float:
    """Root of the mean squared error, in which a weight counts by rms + |x| as in the search for scale and low."""
    w = np.sqrt(np.square(x).mean()) + np.abs(x)
    return float(np.sqrt((w * np.square(back - x)).sum() / w.sum()))


def read_back(seen: Sighted, scale: int, low: int, stored: bool = False):
    """(levels, values) of the 32 weights with so many percent of scale and low: the nearest levels or those stored."""
    a, b = seen.scale * np.float32(scale / 100), seen.low * np.float32(low / 100)
    levels = seen.levels if stored else np.clip(np.rint((seen.weights - b) / a), 0, 15)
    return levels, a * levels + b


def error_ratio(seen: Sighted, scale: int, low: int) -> float:
    """Weighted error with `scale` and `low` percent of the file's, as a multiple of the file's own."""
    moved, own = (weighted_error(seen.weights, read_back(seen, *percent)[1]) for percent in ((scale, low), (100, 100)))
    return moved / own


@lru_cache(maxsize=256)
def error_curve(kind: str, outlier: bool, group: int, scale: int | None = None, low: int | None = None) -> list:
    """[(percent, `error_ratio`), ...] over FACTORS, of the one of scale and low that is not given."""
    seen = sight(kind, outlier, group)
    return [(percent, error_ratio(seen, scale or percent, low or percent)) for percent in FACTORS]


def q4k_microscope(scale: int, low: int, group: int, kind: str, outlier: bool, flipped: frozenset = NONE) -> Canvas:
    """The weights of sub-block `group` on their ladder, above the bits of their levels; the error around the found
    pair; and the 16 bytes that several weights share.

    `scale` and `low` are percent of what the block holds; with `flipped` bits the levels are those that are stored.
    Its facts: "levels" of the 32 weights, "errors" {"scale" or "low": [(percent, error), ...]} and "error", as
    multiples of the file's own error, "bits" {number: 0 or 1} as drawn, "moved", the weights that flipped bits change.
    Its spots: "bit" and "group".
    """
    canvas, file, seen = Canvas(), sight(kind, outlier, group), sight(kind, outlier, group, flipped)
    with np.errstate(all="ignore"):  # a flipped bit of d may make it infinite
        levels, values = read_back(seen, scale, low, stored=bool(flipped))
        moved = np.flatnonzero(moves(kind, outlier, flipped))
        here = weighted_error(seen.weights, values) / weighted_error(seen.weights, read_back(file, 100, 100)[1])
        rungs = seen.scale * np.float32(scale / 100) * np.arange(16) + seen.low * np.float32(low / 100)
    canvas.facts = {"levels": levels.astype(int).tolist(), "error": here, "bits": {}, "moved": moved.tolist()}
    _draw_ladder(canvas, file, rungs, values, group)
    _draw_errors(canvas, (kind, outlier, group), scale, low)
    canvas.text(8, 269, "all 256 weights; bits that they share", bold=True)
    canvas.legend(368, 256, ((SKY, "d"), (YELLOW, "dmin"), (BLUE, "its sc"), (ORANGE, "its m")))
    for number in range(8):
        box, chosen = (8 + 78 * number, 277, 74, 14), number == group
        canvas.rect(*box, GREEN if chosen else PALE)
        canvas.spot("group", number, box, f"show sub-block {number}", chosen=chosen)
    for weight in moved:
        canvas.rect(8 + 78 * (weight // 32) + 2.3125 * (weight % 32), 277, 2.3125, 14, RED)
    _draw_bits(canvas, seen, group, flipped)
    canvas.text(8, 356, f"scale = d · sc = {_short(seen.d, 6)} · {seen.sc} = {_short(seen.scale)}", 14)
    canvas.text(304, 356, f"low = −dmin · m = −{_short(seen.dmin, 6)} · {seen.m} = {_short(seen.low)}", 14)
    place = int(np.abs(seen.weights).argmax())
    back = f"{_short(rungs[1] - rungs[0])} · {int(levels[place])} − {_short(-rungs[0])} = {_short(values[place])}"
    canvas.text(8, 375, f"the largest, weight {32 * group + place}: {_short(seen.weights[place])} becomes {back}", 14)
    return canvas


def _short(number, digits=4) -> str:
    number = f"{number + 0.0:.{digits}f}" if abs(number) < 100 else f"{number:.3g}"  # + 0.0: no minus before zero
    return number.replace("-", "−")


def _draw_ladder(canvas, seen, rungs, values, group):
    """16 rungs, a dot per weight, and a red stem from each dot to what is read back."""
    x, own = seen.weights, seen.scale * np.arange(16) + seen.low
    axes = Axes(canvas, (36, 32, 362, 136), (0, 362), (min(x.min(), own[0]), max(x.max(), own[-1], 0)))
    far = axes.ys[1] - axes.ys[0]
    inside = lambda y: float(np.clip(np.nan_to_num(y, nan=1e9), axes.ys[0] - far / 34, axes.ys[1] + far / 34))  # noqa: E731
    canvas.text(8, 20, f"weights {32 * group} to {32 * group + 31} on 16 levels", bold=True)
    axes.level(0, color=BLACK, line=3)
    for level, rung in enumerate(rungs):
        if rung == inside(rung):
            axes.level(rung, level if level % 5 == 0 else "", GRAY)
    for place, (weight, value) in enumerate(zip(x, values)):
        across = 8 + 11.1 * place
        axes.line([(across, weight), (across, inside(value))], RED, 3)
        axes.dot(across, weight, 3.5, GREEN)


def _draw_errors(canvas, which, scale, low):
    """Error against the factor of the scale and against that of the low, the other one standing still."""
    most = 5
    axes = Axes(canvas, (440, 32, 188, 136), (FACTORS[0], FACTORS[-1]), (0, most))
    canvas.text(416, 20, "error (the file's: 1)", bold=True)
    for ratio in range(most + 1):
        axes.level(ratio, ratio)
    for percent, align in ((50, "middle"), (100, "middle"), (150, "right")):
        axes.moment(percent)
        axes.under(percent, f"{percent} %", align)
    errors = canvas.facts["errors"] = {"scale": error_curve(*which, low=low), "low": error_curve(*which, scale=scale)}
    for color, curve in zip((BLUE, ORANGE), errors.values()):
        for shown, points in groupby(curve, key=lambda point: point[1] <= most):
            if shown:
                axes.line(list(points), color, 3)
    here = min(np.nan_to_num(canvas.facts["error"], nan=most), most)
    axes.dot(scale, here, 8, BLUE)
    axes.dot(low, here, 6, ORANGE)
    for x, color, word in ((424, BLUE, "scale moves"), (540, ORANGE, "low moves")):
        canvas.dot(x, 205, 6, color)
        canvas.text(x + 10, 210, word, 14)
    canvas.text(416, 228, "red: what is read back instead", 14)


def _draw_bits(canvas, seen, group, flipped):
    """The bits of 32 levels under their weights; the 16 bytes that all share, eight in a row. Dark bits are 1."""

    def cell(bit, box, color):
        on = seen.block[bit // 8] >> bit % 8 & 1
        canvas.facts["bits"][bit] = on
        edge, line = (RED, 3) if bit in flipped else (color, 1)
        canvas.rect(*box, color if on else "white", edge, line)
        canvas.spot("bit", bit, box, f"flip bit {bit % 8} of byte {bit // 8}: {bit_name(bit)}")

    for place in range(4):  # the highest bit stands at the top
        canvas.text(28, 191 + 14 * (3 - place), 1 << place, 14, GRAY, "right")
        for weight in range(32):
            bit = 8 * (16 + 32 * (group // 2) + weight) + 4 * (group % 2) + place
            cell(bit, (39.5 + 11.1 * weight, 180 + 14 * (3 - place), 9, 12), GREEN)
    colors = {("d", None): SKY, ("dmin", None): YELLOW, ("sc", group): BLUE, ("m", group): ORANGE}
    for byte in range(16):
        for place in range(8):  # the highest bit stands at the left
            x, y = 8 + 78 * (byte % 8) + 9.25 * (7 - place), 299 + 21 * (byte // 8)
            cell(8 * byte + place, (x, y, 8, 17), colors.get(bit_owner(8 * byte + place), "#BBBBBB"))
