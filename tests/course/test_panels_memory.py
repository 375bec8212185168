"""The memory panel of lesson 05: its bars, lines and formulas are the package's numbers."""

import re
from itertools import pairwise, product

import pytest
from svg import shapes, touch

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
    lines = [
        float(line.attrib["points"].split(",")[0])
        for line in shapes(panel, "polyline")
        if line.attrib["stroke"] != draw.RED
    ]
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


def test_a_click_on_a_part_shows_its_formula():
    """The numbers of the formula, multiplied, are the bytes of the part, in every moment of both."""
    seen = set()
    for training, recompute in ((False, False), (True, False), (True, True)):
        panel = panels.MemoryPanel("v2_5", "bfloat16", training, recompute, batch=2, slices=3)
        plain = panel.status
        for (moment, part), spot in [(s.item, s) for s in panel.spots.values() if s.name == "part"]:
            touch(panel, spot.key)
            count = panel.facts["moments"][moment][part]
            lines = [t.text for t in shapes(panel, "text") if t.attrib["x"] == "8"][1:-1]
            name = "KV cache" if part == "kv_cache" else part
            assert lines[0] == f"“{moment}”, {name}: {draw.in_bytes(count)}"
            numbers = [
                int(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d[\d,]*(?![\d.]| bits)", " ".join(lines[1:]))
            ]
            product_of_all = 1
            for number in numbers[: 4 if part == "kv_cache" else 3]:
                product_of_all *= number
            if part == "kv_cache":
                assert product_of_all == numbers[4] and product_of_all * numbers[5] * numbers[6] * numbers[7] == count
            elif part in ("weights", "optimizer", "gradients"):
                assert numbers[0] * numbers[1] == count
            else:
                assert product_of_all == count
            share = count / sum(panel.facts["moments"][moment].values())
            assert panel.status == f"{plain} The chosen part is {share:.0%} of “{moment}”."
            seen.add((moment, part))
            touch(panel, spot.key)
            assert panel.status == plain, "a second click leaves it"
    assert len(seen) == 7 + 13
    touch(panel, "part ('update', 'weights')")
    panel.controls["training"].value = False
    assert "chosen part" not in panel.status, "an answer has no update"


def test_the_own_gpu():
    panel = panels.MemoryPanel(own=60)
    total = panel.facts["total"]
    assert not panel.facts["fits"]["own"] and "Your 60 GB: too little." in panel.status
    x, y = panel.spots["own"].at
    assert panel.facts["gigabytes"](x) == pytest.approx(60, rel=1e-5)
    while not panel.facts["fits"]["own"]:
        x, y = panel.spots["own"].at
        touch(panel, "own", (x + panel.spots["own"].step[0], y), (x, y))  # an arrow key
    least = panel.values()["own"]
    assert 0.9 * (least - 1) * 2**30 < total <= 0.9 * least * 2**30 and f"Your {least} GB: enough." in panel.status
    touch(panel, "own", (-50, 0))
    assert panel.values()["own"] == 1
    panel.controls["own"].value = 320
    assert "own" not in panel.spots, "beyond the right border"


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
    canvas = draw.memory_bars(own=80, **state)
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
