"""The microscope of lesson 09: levels, errors and bits are those of the package's block."""

import html
from itertools import product

import gguf
import nbformat
import numpy as np
import pytest
from places import ROOT
from svg import SVG, svg_of, touch
from svg import canvas_shapes as shapes
from svg import canvas_texts as texts

from minicpmv_ref.course import draw, panels
from minicpmv_ref.deploy.kquant import dequantize, quantize

pytestmark = pytest.mark.usefixtures("strict_panels")

KINDS = list(draw.WEIGHT_KINDS.values())
STATES = list(product(KINDS, (False, True)))
LADDER, ERRORS = (36, 398, 32, 168), (440, 628, 32, 168)  # left, right, top, bottom


# ---- the weights and their block


@pytest.mark.parametrize(("kind", "outlier"), STATES)
def test_weights(kind, outlier):
    x = draw.some_weights(kind, outlier)
    place, value = draw.OUTLIER
    assert (x.shape, x.dtype) == ((1, 256), np.float32)
    assert (x[0, place] == np.float32(value)) == outlier
    others = np.delete(x, place)
    assert (others == np.delete(draw.some_weights(kind, not outlier), place)).all()
    assert np.mean(others) == pytest.approx({"below": -0.06, "above": 0.06}.get(kind, 0), abs=0.004)
    assert np.std(others) == pytest.approx(0.02, abs=0.004)
    if kind == "heavy":
        assert np.abs(others).max() > 4 * np.std(others)


@pytest.mark.parametrize(("kind", "outlier"), STATES)
def test_what_is_read_from_the_bytes_gives_the_weights_back(kind, outlier):
    x = draw.some_weights(kind, outlier)
    packed = quantize(x, "Q4_K")
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_K)[0]
    for group in range(8):
        seen, part = draw.sight(kind, outlier, group), slice(32 * group, 32 * group + 32)
        assert seen.block == packed.tobytes()
        assert (seen.weights == x[0, part]).all()
        assert (seen.scale * seen.levels + seen.low == theirs[part]).all()
        assert (seen.d * seen.sc, seen.dmin * seen.m) == (seen.scale, -seen.low)
        assert 0 <= min(seen.sc, seen.m) <= max(seen.sc, seen.m) <= 63
        assert (draw.read_back(seen, 100, 100)[0] == seen.levels).all(), "100 % is what the file holds"


def test_the_error_is_the_one_that_the_search_makes_small():
    seen = draw.sight("heavy", False, 7)
    x, w = seen.weights, np.sqrt(np.square(seen.weights).mean()) + np.abs(seen.weights)
    back = dequantize(np.frombuffer(seen.block, np.uint8)[None], "Q4_K", 256)[0, 224:]
    expected = np.sqrt(np.average(np.square(back - x), weights=w))
    assert draw.weighted_error(x, draw.read_back(seen, 100, 100)[1]) == pytest.approx(expected, rel=1e-5)
    assert draw.error_ratio(seen, 100, 100) == 1
    scale, low = seen.scale * np.float32(1.2), seen.low * np.float32(0.7)
    levels = np.clip(np.round((x - low) / scale), 0, 15)
    moved = np.sqrt(np.average(np.square(scale * levels + low - x), weights=w))
    assert draw.error_ratio(seen, 120, 70) == pytest.approx(moved / expected, rel=1e-5)


# ---- the picture


@pytest.mark.parametrize(("scale", "low"), [(100, 100), (70, 100), (100, 140), (130, 60)])
@pytest.mark.parametrize("state", [("bell", False), ("heavy", True), ("above", False), ("below", True)])
def test_dots_rungs_and_stems(state, scale, low):
    seen = draw.sight(*state, 3)
    canvas = draw.q4k_microscope(scale, low, 3, *state)
    dots = [(x, y) for x, y, _, fill, _ in shapes(canvas, "dot") if fill == draw.GREEN]
    assert len(dots) == 32
    assert np.ptp(np.diff([x for x, _ in dots])) < 1e-6
    slope, zero = np.polyfit(seen.weights.astype(float), [y for _, y in dots], 1)
    height = lambda weight: zero + slope * weight  # noqa: E731
    assert np.allclose([height(float(w)) for w in seen.weights], [y for _, y in dots], atol=0.01)
    paths = {
        color: [points for points, c, _ in shapes(canvas, "path") if c == color]
        for color in (draw.RED, draw.GRAY, draw.BLACK)
    }
    (((_, y0), (_, y1)),) = paths[draw.BLACK]
    assert y0 == y1 == pytest.approx(height(0), abs=0.01)
    a, b = seen.scale * np.float32(scale / 100), seen.low * np.float32(low / 100)
    for (x, y), ((x0, from_), (x1, to)), weight in zip(dots, paths[draw.RED], seen.weights, strict=True):
        rung = height(float(a * np.clip(np.round((weight - b) / a), 0, 15) + b))
        assert (x0, x1, from_) == (x, x, y)
        assert to == pytest.approx(min(max(rung, LADDER[2] - 4), LADDER[3] + 4), abs=0.05)
    rungs = [height(float(a * level + b)) for level in range(16)]
    inside = [y for y in rungs if LADDER[2] - 4 <= y <= LADDER[3] + 4]
    assert [points[0][1] for points in paths[draw.GRAY]] == pytest.approx(inside, abs=0.05)


@pytest.mark.parametrize(("scale", "low"), [(100, 100), (113, 92), (50, 150)])
def test_error_curves(scale, low):
    seen = draw.sight("bell", False, 7)
    canvas = draw.q4k_microscope(scale, low, 7, "bell", False)
    assert canvas.facts["errors"] == {
        "scale": [(p, draw.error_ratio(seen, p, low)) for p in draw.FACTORS],
        "low": [(p, draw.error_ratio(seen, scale, p)) for p in draw.FACTORS],
    }
    assert canvas.facts["error"] == draw.error_ratio(seen, scale, low)
    left, right, top, bottom = ERRORS
    for color, errors in zip((draw.BLUE, draw.ORANGE), canvas.facts["errors"].values()):
        points = [point for line, c, _ in shapes(canvas, "path") if c == color for point in line]
        assert len(points) == sum(error <= 5 for _, error in errors), "the curve ends where the plot does"
        assert min([y for _, y in points], default=top) >= top
    here = min(draw.error_ratio(seen, scale, low), 5)
    dots = {
        fill: (x, y) for x, y, _, fill, _ in shapes(canvas, "dot") if y < bottom and fill in (draw.BLUE, draw.ORANGE)
    }
    for color, percent in ((draw.BLUE, scale), (draw.ORANGE, low)):
        x, y = dots[color]
        assert 50 + 100 * (x - left) / (right - left) == pytest.approx(percent)
        assert 5 * (bottom - y) / (bottom - top) == pytest.approx(here)


def test_every_bit_is_drawn_and_says_whose_it_is():
    """Flip a bit: what moves is what its owner is, by the package's own reader."""
    for group in (3, 6):
        seen, canvas = draw.sight("bell", False, group), draw.q4k_microscope(100, 100, group, "bell", False)
        assert canvas.facts["bits"] == {
            bit: seen.block[bit // 8] >> bit % 8 & 1
            for bit in (*range(128), *(8 * byte + bit for byte in range(16, 144) for bit in range(8)))
            if bit < 128 or draw.bit_owner(bit)[1] == group
        }
        assert [spot.item for spot in canvas.spots.values() if spot.name == "bit"] == list(canvas.facts["bits"])
        file = dequantize(np.frombuffer(seen.block, np.uint8)[None], "Q4_K", 256)[0]
        for bit in canvas.facts["bits"]:
            block = np.frombuffer(seen.block, np.uint8).copy()
            block[bit // 8] ^= 1 << bit % 8
            difference = dequantize(block[None], "Q4_K", 256)[0] - file
            assert np.array_equal(draw.moves("bell", False, frozenset({bit})), difference, equal_nan=True)
            moved, (owner, of) = np.flatnonzero(difference), draw.bit_owner(bit)
            if owner.startswith("weight"):
                assert moved.tolist() == [int(owner.split()[1])]
            elif of is not None:
                assert {*(moved // 32)} == {of}
                assert (len(moved) == 32) == (owner == "m" or draw.sight("bell", False, of).levels.min() > 0)
            else:
                assert len(moved) == 256 - (owner == "d") * sum(
                    (draw.sight("bell", False, g).levels == 0).sum() for g in range(8)
                )


def test_colors_are_those_of_the_owner():
    canvas = draw.q4k_microscope(100, 100, 5, "bell", False)
    wanted = {("d", None): draw.SKY, ("dmin", None): draw.YELLOW, ("sc", 5): draw.BLUE, ("m", 5): draw.ORANGE}
    cells = {(r[0], r[1]): r for r in shapes(canvas, "rect")}
    for spot in canvas.spots.values():
        if spot.name == "bit":
            color = draw.GREEN if spot.item >= 128 else wanted.get(draw.bit_owner(spot.item), "#BBBBBB")
            *_, fill, stroke, _ = cells[spot.box[:2]]
            assert (fill, stroke) == (color if canvas.facts["bits"][spot.item] else "white", color)
            if spot.item >= 128:  # under its weight
                weight = int(draw.bit_owner(spot.item)[0].split()[1]) % 32
                assert spot.at[0] == pytest.approx(44 + 11.1 * weight, abs=0.1)


def test_a_click_flips_a_bit_and_back():
    panel = panels.Q4KMicroscope()
    file, words = draw.sight("bell", False, 3), panel.status
    bit = next(bit for bit, on in panel.facts["bits"].items() if bit >= 128 and not on)
    touch(panel, f"bit {bit}")
    owner, byte = draw.bit_owner(bit)[0], bit // 8
    assert panel.status.startswith(
        f"Bit {bit % 8} of byte {byte} is flipped: it belongs to {owner}. With 1 flipped, 1 of"
    )
    assert f"by up to {float(file.scale) * (1 << bit % 4):.3g}." in panel.status
    number = int(owner.split()[1])
    assert panel.facts["moved"] == [number]
    assert panel.facts["levels"][number - 96] == file.levels[number - 96] + (1 << bit % 4)
    touch(panel, f"bit {8 * 1 + 6}")  # an exponent bit of d: everything explodes, and nothing breaks
    assert "of 256 weights move, by up to" in panel.status and "Weights on level 0 stay" in panel.status
    assert panel.error is None
    panel.controls["scale"].value = 120
    touch(panel, f"bit {8 * 1 + 6}")
    touch(panel, f"bit {bit}")
    panel.controls["scale"].value = 100
    assert (panel.status, panel.facts["moved"]) == (words, [])
    touch(panel, "group 6")
    assert panel.values()["group"] == 6
    touch(panel, "bit 0")
    panel.controls["kind"].value = "heavy"
    assert panel.facts["moved"] == [], "another block"


def test_nothing_leaves_the_picture():
    for kind, outlier in STATES:
        for scale, low, group in ((50, 50, 0), (150, 150, 7), (100, 100, 3), (50, 150, 4), (150, 50, 5)):
            canvas = draw.q4k_microscope(scale, low, group, kind, outlier)
            for x, y, text, points, _, align, bold in shapes(canvas, "text"):
                start = x - draw.text_width(text, points, bold) * {"left": 0, "middle": 0.5, "right": 1}[align]
                assert 0 <= start <= start + draw.text_width(text, points, bold) <= 640, text
                assert points >= 14 and 14 <= y <= 376
            for x, y, w, h, *_ in shapes(canvas, "rect"):
                assert x >= 0 and x + w <= 640 and y >= 0 and y + h <= 380
            for points, *_ in shapes(canvas, "path"):
                assert all(0 <= x <= 640 and 24 <= y <= 228 for x, y in points)
    for bit in (14, 8 * 3 + 6, 8 * 20):  # exponents of d and dmin: infinite weights stay in the picture, too
        for points, *_ in shapes(draw.q4k_microscope(100, 100, 3, "bell", False, frozenset({bit})), "path"):
            assert all(0 <= x <= 640 and 24 <= y <= 228 for x, y in points)


# ---- words


def test_words_and_numbers():
    panel = panels.Q4KMicroscope(110, 90, 6, "heavy", True)
    seen = draw.sight("heavy", True, 6)
    svg = svg_of(panel)
    lines = [element.text for element in svg.iter(SVG + "text")]
    assert lines[0] == "weights 192 to 223 on 16 levels"
    assert f"scale = d · sc = {seen.d:.6f} · {seen.sc} = {seen.d * seen.sc:.4f}" in lines
    assert f"low = −dmin · m = −{seen.dmin:.6f} · {seen.m} = −{seen.dmin * seen.m:.4f}" in lines
    place = int(np.abs(seen.weights).argmax())
    weight, scale, low = float(seen.weights[place]), 1.1 * float(seen.scale), 0.9 * float(seen.low)
    level = min(max(round((weight - low) / scale), 0), 15)
    words = f"weight {192 + place}: {weight:.4f} becomes {scale:.4f} · {level} − {-low:.4f} = {scale * level + low:.4f}"
    assert lines[-1] == f"the largest, {words}".replace(": -", ": −").replace("= -", "= −")
    largest = texts(draw.q4k_microscope(100, 100, 3, "bell", False))[-1]
    assert largest.startswith("the largest, weight 115: −0.0475 becomes"), "largest in size"
    used = len({min(max(round((float(x) - low) / scale), 0), 15) for x in seen.weights})
    assert panel.status == (
        f"Sub-block 6: sc is {seen.sc} ({seen.sc:06b}), m is {seen.m} ({seen.m:06b}). With 110 % of its scale and 90 % "
        f"of its low the weighted error is {draw.error_ratio(seen, 110, 90):.2f} times that of the file, and {used} of "
        "16 levels are in use."
    )
    assert "= 0.0000" in "".join(texts(draw.q4k_microscope(100, 100, 3, "above", False))), "no minus before zero"


def test_the_answers_of_the_lesson_are_true():
    quiet, loud = ([draw.sight("bell", outlier, group) for group in range(8)] for outlier in (False, True))
    assert draw.error_ratio(quiet[3], 90, 100) > draw.error_ratio(quiet[3], 110, 100)
    assert loud[0].d > 4 * quiet[0].d
    assert all(b.sc < a.sc / 3 for a, b in zip(quiet, loud) if a is not quiet[3])
    assert draw.sight("above", False, 3).levels.min() > 0 == draw.sight("above", False, 3).m
    tail = draw.sight("heavy", False, 7)
    assert min(draw.FACTORS, key=lambda low: draw.error_ratio(tail, 100, low)) == 92
    assert tail.m == 8


def test_the_lesson_quotes_its_own_output():
    cells = nbformat.read(ROOT / "notebooks/09_q4k.ipynb", as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    printed = html.unescape("".join(out.get("text", "") + out.get("data", {}).get("text/html", "") for out in outputs))
    sizes = "16.06 -> 4.913 GB, vision 1.015; together 17.08 -> 5.928 GB"
    reach = "100 standard deviations: neighbors 14.02"
    for quoted in (sizes, reach, "Q4_K 0.00142,   9.1 % saved", "-13.5 % saved", "equal: True"):
        assert quoted in printed
    for name in ("def quantize", "def dequantize"):
        assert all(name not in cell.source for cell in cells)
