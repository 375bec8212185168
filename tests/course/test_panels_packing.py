"""The packing panel of lesson 06: bars, saw-tooth and mask are the plans of the package."""

import json

import nbformat
import numpy as np
import pytest
from places import ROOT
from svg import SVG, svg_of, touch
from svg import canvas_shapes as shapes

from minicpmv_ref.course import draw, panels
from minicpmv_ref.learn.packing import first_fit, pack, pack_truncate

pytestmark = pytest.mark.usefixtures("strict_panels")

KINDS, STRATEGIES = list(draw.SAMPLE_KINDS.values()), list(draw.STRATEGIES.values())
LEFT, WIDE = 8, 392  # of the bars
MASK = (424, 30, 208)  # left, top, side


def bars(canvas, color):
    """(x, width) of the bars of one color, by their y."""
    rows = {}
    for x, y, w, _, fill, *_ in shapes(canvas, "rect"):
        if fill == color and y < 240 and x < MASK[0]:
            rows.setdefault(round(y, 3), []).append((x, w))
    return rows


# ---- the samples


def test_a_picture_costs_what_the_released_code_makes_it_cost():
    golden = json.loads((ROOT / "tests/golden/sft_labels.json").read_text(encoding="utf-8"))
    for size, count in golden["token_counts_2_6"].items():
        assert draw.picture_tokens(tuple(map(int, size.split("x")))) == count["total"]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_seeded_and_fit_into_every_row(kind):
    seen = set()
    for seed in range(51):
        samples = draw.some_samples(kind, seed)
        assert samples == draw.some_samples(kind, seed)
        assert len(samples) == draw.MANY
        assert all(picture >= 0 and words >= 8 and picture + words <= draw.LONGEST for picture, words in samples)
        seen.add(tuple(samples))
    assert len(seen) == (1 if kind == "equal" else 51)
    pictures = {picture for sample in seen for picture, _ in sample}
    assert (
        pictures
        == {
            "captions": {69},
            "equal": {69},
            "text": {0},
            "pictures": {0, *map(draw.picture_tokens, draw.EVERYDAY)},
        }[kind]
    )


# ---- the plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_the_packages(kind, strategy):
    for seed, capacity in ((0, draw.LONGEST), (3, 1024), (50, 2048)):
        placed = draw.place_samples(kind, strategy, capacity, seed)
        samples = draw.some_samples(kind, seed)
        lengths = [sum(sample) for sample in samples]
        assert placed.samples == samples
        if strategy == "padded":
            assert placed.rows == [[sample] for sample in samples]
            assert (placed.width, placed.lost) == (max(lengths), 0)
        elif strategy == "truncate":
            plan = pack_truncate(lengths, capacity, [max(1, picture) for picture, _ in samples])
            assert [[sum(sample) for sample in row] for row in placed.rows] == [
                [n for _, n in row] for row in plan.rows
            ]
            assert [p for row in placed.rows for p, _ in row] == [p for p, _ in samples], "no picture is cut"
            assert (placed.width, placed.lost, plan.dropped) == (capacity, plan.lost, [])
        else:
            rows = {"pack": pack, "first_fit": first_fit}[strategy](lengths, capacity)
            assert placed.rows == [[samples[i] for i in row] for row in rows]
            assert (placed.width, placed.lost) == (capacity, 0)
        tokens = sum(sum(sample) for row in placed.rows for sample in row)
        assert tokens == sum(lengths) - placed.lost
        assert placed.fill == pytest.approx(tokens / (placed.width * len(placed.rows)))


def test_pairs_used_by_counting():
    for row in ([(3, 2)], [(0, 1), (2, 3), (0, 4)], [(0, 1)] * 5):
        owner = np.repeat(np.arange(len(row)), [sum(sample) for sample in row])
        past = np.tri(len(owner), dtype=bool)
        assert draw.pairs_used(row) == pytest.approx((past & (owner[:, None] == owner)).sum() / past.sum())


# ---- the picture


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bars_are_the_samples(kind, strategy):
    placed = draw.place_samples(kind, strategy, 1024, 2)
    canvas = draw.packed_rows(placed, 1)
    unit = placed.width / WIDE
    pictures, words = bars(canvas, draw.BLUE), bars(canvas, draw.SKY)
    assert len(words) == len(bars(canvas, draw.PALE)) == len(placed.rows)
    for row, y in zip(placed.rows, sorted(words)):
        assert [w * unit for _, w in pictures[y]] == pytest.approx([picture for picture, _ in row])
        assert [w * unit for _, w in words[y]] == pytest.approx([other for _, other in row])
        ends = np.cumsum([sum(sample) for sample in row])
        assert [(x - LEFT + w) * unit for x, w in words[y]] == pytest.approx(ends)


def test_the_chosen_row_is_framed_and_its_positions_restart():
    placed = draw.place_samples("captions", "pack", 1024, 1)
    for number, row in enumerate(placed.rows, 1):
        canvas = draw.packed_rows(placed, number)
        (frame,) = [r for r in shapes(canvas, "rect") if r[4] == "none" and r[0] < MASK[0]]
        ys = sorted(bars(canvas, draw.PALE))
        assert frame[1] == pytest.approx(ys[number - 1] - 1, abs=0.01)
        saw = max((points for points, *_ in shapes(canvas, "path")), key=len)
        lengths = [sum(sample) for sample in row]
        ends = np.cumsum([0, *lengths])
        assert [(x - LEFT) * 1024 / WIDE for x, _ in saw[::3]] == pytest.approx(ends[:-1])
        assert [(x - LEFT) * 1024 / WIDE for x, _ in saw[1::3]] == pytest.approx(ends[1:])
        heights = [saw[0][1] - y for _, y in saw[1::3]]
        assert [height / heights[0] * lengths[0] for height in heights] == pytest.approx(lengths)
        assert {y for _, y in saw[::3]} == {y for _, y in saw[2::3]} == {saw[0][1]}, "every tooth begins and ends at 0"


@pytest.mark.parametrize("state", [("captions", "pack", 1024, 1, 1), ("pictures", "truncate", 768, 4, 1)])
def test_the_mask_is_one_triangle_for_each_sample(state):
    placed = draw.place_samples(*state[:4])
    canvas = draw.packed_rows(placed, state[4])
    ((x, y, w, h, image, smooth),) = shapes(canvas, "image")
    assert (x, y, w, h, smooth) == (*MASK, MASK[2], False)
    row = placed.rows[state[4] - 1]
    kinds = [(s, part) for s, sample in enumerate(row) for part in (0, 1) for _ in range(sample[part])]
    for query in range(3, 208, 7):
        for key in range(1, 208, 5):
            a, b = (int((cell + 0.5) * placed.width / 208) for cell in (query, key))
            if max(a, b) >= len(kinds):
                color = draw.PALE
            elif b > a:
                color = "#FFFFFF"
            elif kinds[a][0] != kinds[b][0]:
                color = draw.FORBIDDEN
            else:
                color = (draw.BLUE, draw.SKY)[kinds[b][1]]
            assert "#{:02X}{:02X}{:02X}".format(*image.getpixel((key, query))) == color


def test_nothing_leaves_the_picture():
    for kind in KINDS:
        for strategy in STRATEGIES:
            for capacity in (draw.LONGEST, 2048):
                for seed in (0, 7):
                    placed = draw.place_samples(kind, strategy, capacity, seed)
                    for row in {1, len(placed.rows)}:
                        canvas = draw.packed_rows(placed, row)
                        assert (canvas.width, canvas.height) == (640, 380)
                        for x, y, text, points, _, align, bold in shapes(canvas, "text"):
                            assert align == "left" and points >= 14
                            edge = 632 if x >= MASK[0] else MASK[0]
                            assert x + draw.text_width(text, points, bold) <= edge, text
                            assert 14 <= y <= 374
                        for x, y, w, h, *_ in shapes(canvas, "rect"):
                            assert x >= 0 and x + w <= 640 and y >= 0 and y + h <= 380
                        for points, *_ in shapes(canvas, "path"):
                            assert all(0 <= x <= LEFT + WIDE + 0.01 and 20 <= y <= 345 for x, y in points)


# ---- the panel


def test_the_row_slider_follows_the_plan():
    panel = panels.PackingPlan("padded", row=draw.MANY)
    assert panel.values()["row"] == panel.controls["row"].max == draw.MANY
    panel.controls["strategy"].value = "pack"
    rows = len(draw.place_samples("captions", "pack", 1024, 1).rows)
    assert panel.values()["row"] == panel.controls["row"].max == rows
    panel.controls["strategy"].value = "padded"
    assert (panel.values()["row"], panel.controls["row"].max) == (rows, draw.MANY)


def test_words_and_numbers():
    panel = panels.PackingPlan("truncate", "captions", capacity=1024)
    placed = draw.place_samples("captions", "truncate", 1024, 1)
    tokens = sum(map(sum, placed.samples))
    svg = svg_of(panel)
    texts = [element.text for element in svg.iter(SVG + "text")]
    assert texts[0] == f"{len(placed.rows)} rows of 1,024: {placed.fill:.1%} full, {placed.lost:,} cut off"
    assert panel.status == (
        f"40 samples, {tokens:,} tokens, in {len(placed.rows)} rows of 1,024 "
        f"({-(-(tokens - placed.lost) // 1024)} at the least): "
        f"{placed.fill:.1%} full, {placed.lost:,} tokens cut off. Row 1 holds {len(placed.rows[0])} samples; "
        f"{draw.pairs_used(placed.rows[0]):.1%} of its causal pairs are inside a sample."
    )
    assert "in 6 rows of 768 (6 at the least)" in panels.PackingPlan("truncate", capacity=768, seed=0).status
    panel = panels.PackingPlan("first_fit", "text", capacity=2048)
    assert "in 1 row of 2,048 (1 at the least)" in panel.status
    assert "cut off" not in panel.status
    assert "holds 1 sample;" in panels.PackingPlan("padded").status
    last = draw.place_samples("captions", "pack", 1024, 1).rows[-1]
    words = f"holds {len(last)} samples; {draw.pairs_used(last):.1%} of"
    assert words in panels.PackingPlan(row=5).status
    assert words not in panels.PackingPlan(row=1).status


def test_a_sample_can_be_dragged_where_there_is_room():
    panel = panels.PackingPlan("first_fit", "text", capacity=768)
    plan = panel._plan
    rooms = [plan.width - sum(map(sum, row)) for row in plan.rows]
    number = min(plan.numbers[-1], key=lambda n: sum(plan.samples[n]))
    full = next(row for row, room in enumerate(rooms) if room < sum(plan.samples[number]))
    y = {row: panel.spots[f"row {row + 1}"].at[1] for row in range(len(rooms))}
    last, words = len(rooms) - 1, panel.status
    touch(panel, f"sample {number}", (200, y[full]), (200, y[last]))
    assert panel.status.startswith(
        f"No room: {sum(plan.samples[number])} tokens do not fit into row {full + 1}, which has"
    )
    assert panel._plan == plan
    touch(panel, "row 1")
    assert panel.status == words, "the note is gone"
    one = panels.PackingPlan("padded", "captions")
    before, a, b = one._plan, *sorted(range(draw.MANY), key=lambda n: sum(one._plan.samples[n]))[:2]
    key = f"sample {a}"
    for row in (a, b, a, b):  # one drag there, back and there again
        at = [200, one.spots[f"row {row + 1}"].at[1]]
        one.picture_box.touched = {"spot": key, "start": [200, 0], "at": at, "turn": 3}
    assert one._plan.rows[b] == [before.samples[b], before.samples[a]] and one._plan.rows[a] == []
    assert (one._plan.used, one.values()["row"]) == (draw.MANY - 1, b + 1)
    assert one.status.startswith("40 samples") and "in 39 rows" in one.status and "holds 2 samples" in one.status
    one.controls["row"].value = a + 1
    assert "holds 0 samples" in one.status, "an empty row is no error"
    one.controls["seed"].value += 1
    assert one._plan == draw.place_samples("captions", "padded", 1024, 2)
    keys = panels.PackingPlan()
    number = keys._plan.numbers[0][0]
    x, y = keys.spots[f"sample {number}"].at
    touch(keys, f"sample {number}", (x, y + 26), (x, y))
    assert keys._plan.numbers[4][-1] == number and keys.values()["row"] == 5, "rows without room are left out"
    cut = panels.PackingPlan("truncate").spots
    assert {spot.name for spot in cut.values()} == {"row", "mask"}, "what was cut stays"


def test_the_mask_says_who_may_look_at_whom():
    row = [(2, 3), (0, 4)]
    says = [draw.who_sees_whom(row, query, key) for query, key in ((3, 1), (3, 4), (6, 3), (8, 8), (8, 9), (6, 1))]
    assert says == [
        "Token 3, position 3 of sample 1; token 1: it may look at it: a picture's token of the same sample.",
        "Token 3, position 3 of sample 1; token 4: it may not look at it: it comes later.",
        "Token 6, position 1 of sample 2; token 3: it may not look at it: a token of sample 1, masked.",
        "Token 8, position 3 of sample 2; token 8: it may look at it: a token of the same sample.",
        "Padding looks at nothing that counts, and nothing looks at it.",
        "Token 6, position 1 of sample 2; token 1: it may not look at it: a picture's token of sample 1, masked.",
    ]
    panel = panels.PackingPlan()
    words, (left, top, side) = panel.status, MASK
    for x, y in ((left + 20, top + 100), (left + side, top + side), (left - 5, top)):
        touch(panel, "mask", (x, y), trait="pointed")
        query, key = (int(min(max(p, 0), 207.9) * 1024 / 208) for p in (y - top, x - left))
        assert panel.status == draw.who_sees_whom(panel._plan.rows[0], query, key)
    touch(panel, "", (0, 0), trait="pointed")
    assert panel.status == words


# ---- the lesson


def test_the_figures_quoted_in_the_lesson_are_the_benchmarks():
    cells = nbformat.read(ROOT / "notebooks/06_packing.ipynb", as_version=4).cells
    quoted = next(cell.source for cell in cells if "| lengths |" in cell.source)
    found = json.loads((ROOT / "benchmarks/results/packing.json").read_text(encoding="utf-8"))["rows"]
    rows = {row["lengths"]: row for row in found}
    for name, here in (("caption-like",) * 2, ("uniform 16..512",) * 2, ("constant 128", "all 128")):
        figures = " | ".join(f"{rows[name][way]:.2f}" for way in ("sorted", "ours, full head", "ours"))
        assert f"| {here} | {figures} |" in quoted
