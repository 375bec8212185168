"""The memory panel of lesson 05: its bars, lines and formulas are the package's numbers."""

import re
from itertools import pairwise, product

import pytest
from svg import shapes

from minicpmv_ref.config import PRESETS, v2_5
from minicpmv_ref.course import draw, panels
from minicpmv_ref.deploy.memory import DEVICES, estimate, fits

pytestmark = pytest.mark.usefixtures("strict_panels")

STATES = [
    dict(preset=preset, weights=weights, training=training, recompute=True, batch=batch, slices=slices, text=text)
    for preset, (weights, training), (batch, slices, text) in product(
        PRESETS,
        [("bfloat16", False), ("Q4_K_M", False), ("float32", True), ("Q8_0", True)],
        [(1, 0, 64), (3, 9, 3072)],
    )
]


@pytest.mark.parametrize("state", STATES, ids=lambda s: " ".join(map(str, s.values())))
def test_bars_are_the_estimate(state):
    need, _ = draw.plan_memory(**state)
    panel = panels.MemoryPanel(**state)
    bars = [
        r
        for r in shapes(panel, "rect")
        if r.attrib["fill"] in draw.MEMORY_COLORS.values() and r.attrib["height"] == "30"
    ]
    widths, colors = [float(r.attrib["width"]) for r in bars], {c: p for p, c in draw.MEMORY_COLORS.items()}
    shown = [(colors[r.attrib["fill"]], width) for r, width in zip(bars, widths)]
    wanted = [(part, parts[part]) for parts in need.moments.values() for part in draw.MEMORY_COLORS if part in parts]
    assert [part for part, _ in shown] == [part for part, _ in wanted]
    for one, following in pairwise(r.attrib for r in bars):
        if one["y"] == following["y"]:  # stacked without a gap
            assert float(following["x"]) == pytest.approx(float(one["x"]) + float(one["width"]), abs=0.01)
    scale = sum(widths) / sum(count for _, count in wanted)
    assert widths == pytest.approx([count * scale for _, count in wanted], rel=1e-3, abs=0.01)
    assert f"takes {draw.in_bytes(need.total)}, most in “{need.fullest}”" in panel.status

    # lines stand where a device's share ends; a bar crosses a line exactly if the device is too small
    lines = [float(line.attrib["points"].split(",")[0]) for line in shapes(panel, "polyline")]
    left = float(bars[0].attrib["x"])
    ends = {name: left + size * share * scale for name, (size, share) in DEVICES.items()}
    assert lines == pytest.approx(sorted(x for x in ends.values() if x <= draw.BAR_RIGHT), abs=0.5)
    texts = [(t.text, float(t.attrib["x"]), t.attrib["y"]) for t in shapes(panel, "text")]
    for kind, title in (("phone", "phones, GB"), ("GPU", "GPUs, GB")):  # "8\N{EN DASH}16" is the label of three lines
        crossed = [name.split()[0] for name, x in ends.items() if name.endswith(kind) and x <= draw.BAR_RIGHT]
        rows = {y for text, _, y in texts if text == title}
        assert len(rows) == bool(crossed)
        for text, x, _ in [each for each in texts if each[2] in rows and each[0] != title]:
            first, last = (text.split("\N{EN DASH}") * 2)[:2]
            assert first == crossed[0], "in order, and none is left out"
            crossed = crossed[crossed.index(last) + 1 :]
            middle = (ends[f"{first} GB {kind}"] + ends[f"{last} GB {kind}"]) / 2
            assert x == pytest.approx(max(middle, draw.BAR_LEFT + draw.text_width(text, 14) / 2), abs=0.5)
        assert crossed == []
    labels = [t for t in shapes(panel, "text") if re.fullmatch(r"\d+ GB", t.text)]
    assert [t.attrib["fill"] == "white" for t in labels] == [fits(need, name) for name in DEVICES]
    if need.total > 2e9:
        right = left + need.total * scale
        assert all(fits(need, name) == (x >= right - 0.01) for name, x in ends.items())


def test_the_formulas_give_the_estimate():
    need = estimate(v2_5, tokens=960 + 256)
    panel = panels.MemoryPanel("v2_5", "bfloat16", training=False)
    words = [t.text for t in shapes(panel, "text")]
    assert "weights: 8,537,092,336 parameters x 2 B = 17.1 GB" in words
    (cache,) = [text for text in words if text.startswith("KV cache: ")]
    factors = [int(n.replace(",", "")) for n in re.findall(r"[\d,]+(?= |$)", cache.split("=")[0])]
    assert factors == [2, 32, 8, 128, 1, 1216, 2]
    product_of_all = 1
    for factor in factors:
        product_of_all *= factor
    assert product_of_all == need.kv_cache
    assert cache.endswith(f"= {draw.in_bytes(need.kv_cache)}")


def test_what_cannot_be_is_said():
    panel = panels.MemoryPanel("v2_6", "Q4_K_M", training=True)
    assert "in bfloat16" in panel.status and "cannot be trained" in panel.status
    panel.controls["training"].value = False
    assert "in Q4_K_M" in panel.status and "cannot" not in panel.status
    nano = panels.MemoryPanel("nano", training=False, text=3072)
    assert "no more positions" in nano.status
    nano.controls["text"].value = 256
    assert "positions" not in nano.status
    assert "phones from 8 GB and GPUs from 8 GB" in nano.status
    assert "none of these" in panels.MemoryPanel("v2_5", "float32", batch=16).status


def test_bytes_in_words():
    numbers = {5: "5 B", 1_500: "1.5 kB", 36_700_160: "36.7 MB", 999_400_000: "999 MB", 16_198_350_304: "16.2 GB"}
    assert {n: draw.in_bytes(n) for n in numbers} == numbers
    assert draw.in_bytes(1_234e9) == "1,234 GB"


@pytest.mark.parametrize("state", STATES, ids=lambda s: " ".join(map(str, s.values())))
def test_nothing_leaves_the_picture(state):
    canvas = draw.memory_bars(**state)
    spans = []
    for kind, shape, _ in canvas.shapes:
        if kind == "text":
            x, y, text, points, _, align, bold = shape
            width = draw.text_width(text, points, bold)
            left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
            assert left >= -1 and left + width <= canvas.width + 1 and 10 < y < canvas.height, text
            spans.append((y, left, left + width, text))
        elif kind == "rect":
            assert shape[0] + shape[2] <= canvas.width and shape[1] + shape[3] <= canvas.height
    for i, (y, left, right, text) in enumerate(spans):
        for other_y, other_left, other_right, other in spans[i + 1 :]:
            assert abs(y - other_y) > 12 or right <= other_left or other_right <= left, (text, other)
