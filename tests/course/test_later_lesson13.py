"""Lesson 13: its panels show the package's numbers, and its bug hunt is the bug that was released."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from svg import texts

from minicpmv_ref import ResamplerConfig, SliceConfig, plan_slices
from minicpmv_ref.config import v2_6
from minicpmv_ref.course import draw, panels
from minicpmv_ref.peers import plan
from minicpmv_ref.peers.later import Merger, Resampler3D, WindowMerger
from minicpmv_ref.resampler import Resampler
from minicpmv_ref.vision import VisionTransformer

pytestmark = pytest.mark.usefixtures("strict_panels")

ROOT = Path(__file__).resolve().parents[2]
CELLS = nbformat.read(ROOT / "notebooks/13_where_the_design_went.ipynb", as_version=4).cells
SIZES = [(448, 448), (449, 448), (640, 480), (1920, 1080), (1000, 200), (300, 2500), (4000, 4000)]


# ---- versions


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", ["2.0", "2.5", "2.6", "4.5", "4.6"])
def test_tokens_are_those_of_the_peers(version, size):
    cost, ours = draw.version_cost(version, size), plan(f"minicpm-v-{version}", size)
    assert (cost.views, cost.tokens) == (ours.views, ours.visual_tokens)


@pytest.mark.parametrize("seconds", [1, 60, 61, 180, 181, 600])
@pytest.mark.parametrize("version", ["2.6", "4.5", "4.6"])
def test_tokens_of_clips_are_those_of_the_peers(version, seconds):
    cost = draw.version_cost(version, (1280, 720), seconds)
    assert cost.frames == min(
        {"2.6": 1, "4.5": 3, "4.6": 1}[version] * seconds, {"2.6": 64, "4.5": 540, "4.6": 128}[version]
    )
    assert cost.tokens == plan(f"minicpm-v-{version}", (1280, 720), frames=cost.frames).visual_tokens
    assert cost.views == cost.frames * (3 if version == "2.6" else 1)
    assert draw.version_cost("2.0", (1280, 720), seconds) is draw.version_cost("2.5", (1280, 720), seconds) is None


def counted(run) -> int:
    """The FLOPs that PyTorch's own counter finds; on the meta device nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def blocks(features, width, mlp, layers):
    """Layers of a ViT as plain matrix products."""
    for _ in range(layers):
        for x in features:
            for _ in range(4):
                x @ x.new_empty(width, width)
            x @ x.T @ x
            x @ x.new_empty(width, mlp) @ x.new_empty(mlp, width)


@pytest.mark.parametrize("version", ["4.6", "4.6, 4x"])
def test_operations_of_the_mergers_are_counted_by_torch(version):
    d, mlp = v2_6.vision.width, v2_6.vision.mlp_width
    merge = 4 if version == "4.6" else 2
    grids = [(merge * r, merge * c) for r, c in plan_slices((640, 480), SliceConfig(patch_size=14 * merge)).patch_grids]
    with torch.device("meta"):
        window, last = WindowMerger(d, 16, mlp), Merger(d, 1024)
        features = [torch.empty(rows * cols, d) for rows, cols in grids]

    def run():
        for x in features:
            x.new_empty(len(x), 588) @ x.new_empty(588, d)
        halves, seen = grids, features
        blocks(seen, d, mlp, 7)
        if merge == 4:
            seen, halves = window(seen, grids), [(rows // 2, cols // 2) for rows, cols in grids]
        blocks(seen, d, mlp, 20)
        return last(seen, halves)

    assert draw.version_cost(version, (640, 480)).flops == pytest.approx(counted(run), rel=1e-9)


def test_operations_of_2_6_and_of_a_group_of_4_5():
    """2.6's by its own modules; a group of 4.5 has the keys of all frames and one set of queries."""
    with torch.device("meta"):
        vit, resampler = VisionTransformer(v2_6.vision), Resampler(v2_6.resampler)
        images = [torch.empty(3, 448, 448)]
    measured = counted(lambda: resampler(vit(images), [(32, 32)]))
    assert draw.version_cost("2.6", (448, 448)).flops == pytest.approx(measured, rel=0.01)
    alone, pair = (draw.version_cost("4.5", (448, 448), seconds) for seconds in (60, 120))
    assert (pair.frames, pair.groups, alone.groups) == (360, 180, 180)
    saved = 2 * alone.flops - pair.flops  # out_proj and proj of 64 tokens in each group; the queries, once
    assert saved == 180 * 2 * 64 * 2 * 4096**2 + 2 * 64 * 4096**2


@pytest.mark.parametrize("state", [(1920, 1080, 0), (448, 448, 0), (1280, 720, 61), (400, 3000, 600)])
def test_what_the_versions_panel_says(state):
    panel = panels.Versions(*state)
    shown = texts(panel)
    costs = draw.versions(*state).facts["costs"]
    for name in draw.VERSIONS:
        cost = draw.version_cost(name, state[:2], state[2])
        assert costs[name] == cost
        if cost is None:
            assert shown.count("released without video") == 2
        else:
            assert f"{cost.tokens:,}" in shown
            assert draw.in_flops(cost.flops) in shown
    for name in ("2.6", "4.5", "4.6"):
        assert f"{costs[name].tokens:,} tokens" in panel.status
        assert f"{draw.in_flops(costs[name].flops)} operations in {name}" in panel.status
    bars = {fill: [w for k, (_, _, w, _, fill2, *_), _ in draw.versions(*state).shapes if k == "rect" and fill2 == fill]
            for fill in (draw.BLUE, draw.ORANGE)}  # fmt: skip
    there = [cost for cost in costs.values() if cost]
    for color, values in ((draw.BLUE, [c.tokens for c in there]), (draw.ORANGE, [c.flops for c in there])):
        lengths = np.array(bars[color])
        assert np.allclose(lengths / lengths.max(), np.array(values) / max(values), atol=0.01)


def test_units():
    assert [draw.in_flops(n) for n in (9.324e12, 4.8e11, 1.04e15)] == ["9.32 T", "480 G", "1.04 P"]


# ---- the canvas


@pytest.mark.parametrize("picture", draw.PICTURES)
@pytest.mark.parametrize("most", [1, 4, 9])
def test_the_canvas(picture, most):
    size = draw.load_sample(picture).size
    made = plan("minicpm-v-4.6", size, max_tiles=most)
    prompt, positions, (rows, cols) = draw.canvas_places(size, most)
    assert sum(prompt.visual) == made.visual_tokens
    for view in range(made.views):
        facts = draw.canvas_positions(picture, most, view).facts
        places = facts["places"]
        start, end = prompt.views[view]
        assert places["view"] == [tuple(at) for at in (positions[1:, start:end].T - 3).tolist()]
        h, w = zip(*places["view"])
        tall, wide = (side // 4 for side in prompt.grids[view])
        assert len(places["view"]) == tall * wide
        if view:
            down, right = divmod(view - 1, prompt.slices[0])
            assert (min(h), min(w)) == (down * tall, right * wide) == places["<slice>"][view - 1]
            assert (max(h), max(w)) == places["</slice>"][view - 1]
            assert (max(h) - min(h), max(w) - min(w)) == (tall - 1, wide - 1)
        else:
            assert (min(h), min(w), max(h), max(w)) == (0, 0, rows - 1, cols - 1), "stretched over all"
    assert places["<image>"] == [(-1, -1)]
    assert places["</image>"] == [(rows, cols)]
    assert [w for _, w in places["\n"]] == [cols] * (prompt.slices[1] - 1 if prompt.slices else 0)
    assert facts["next"] == max(rows, cols) + 1
    assert facts["tokens"] == made.visual_tokens + 2 * made.views + len(places["\n"])


def test_dots_lie_where_the_tokens_are():
    canvas = draw.canvas_positions("document.png", 9, 4)
    (x, y, w, h, *_), = (shape for kind, shape, _ in canvas.shapes if kind == "image")  # fmt: skip
    _, _, (rows, cols) = draw.canvas_places((1240, 1754))
    for color, name in ((draw.SKY, "overview"), (draw.GREEN, "view")):
        dots = [shape[:2] for kind, shape, _ in canvas.shapes if kind == "dot" and shape[3] == color]
        places = [((dy - y) / h * rows - 0.5, (dx - x) / w * cols - 0.5) for dx, dy in dots]
        assert np.allclose(places, canvas.facts["places"][name], atol=1e-6)


@pytest.mark.parametrize("picture", draw.PICTURES)
def test_the_canvas_stays_inside_the_picture(picture):
    for most in range(1, 10):
        canvas = draw.canvas_positions(picture, most, 9)
        for kind, shape, _ in canvas.shapes:
            if kind == "rect":
                assert shape[0] >= 0
                assert shape[1] >= 0
                assert shape[0] + shape[2] <= 640
                assert shape[1] + shape[3] <= 380
            if kind == "text":
                assert shape[0] + draw.text_width(shape[2], shape[3], shape[6]) <= 640, shape[2]
    for state in ((4000, 4000, 0), (4000, 100, 600), (100, 4000, 61), (3840, 2160, 600)):
        for kind, shape, _ in draw.versions(*state).shapes:
            if kind == "text":
                assert shape[0] + draw.text_width(shape[2], shape[3], shape[6]) <= 640, shape[2]


def test_words_of_the_canvas_panel():
    assert panels.CanvasPositions("banner.png", 9, 0).status == (
        "banner.png, 5 x 1 slices. The overview has 69 tokens, h from 0 to 5 and w from 0 to 49. The text after the "
        "picture is 51 steps on; in 4.6 it was 381."
    )
    last = panels.CanvasPositions("coffee.jpg", 9, 9).status
    assert "Slice 2 has" in last, "the last one where there are fewer"
    assert "no slices. The overview" in panels.CanvasPositions("coffee.jpg", 1, 9).status


def test_the_view_of_the_canvas_panel_ends_at_the_last_slice():
    panel = panels.CanvasPositions("retina.jpg", 9, 9)
    view, shown = panel.controls["view"], panel.picture_box
    assert (view.value, view.max) == (9, 9) and "Slice 9 has" in panel.status
    panel.controls["picture"].value = "coffee.jpg"
    slices = draw.canvas_places(draw.load_sample("coffee.jpg").size)[0].slices
    assert view.value == view.max == math.prod(slices) == 2
    assert "Slice 2 has" in panel.status and "Slice 2 has" in shown.value
    panel.controls["most"].value = 1
    assert (view.value, view.max) == (0, 0) and "The overview has" in panel.status
    panel.controls["picture"].value, panel.controls["most"].value = "retina.jpg", 9
    assert (view.value, view.max) == (0, 9)
    assert panels.CanvasPositions("coffee.jpg", 9, 9).controls["view"].value == 2


# ---- the bug hunt


def lesson_code(*names):
    """The cells that define these names, run together; the weights are the golden file's."""
    golden = np.load(ROOT / "tests/peers/golden/minicpmv45_resampler3d.npz")
    space = {}
    exec("import torch", space)
    for name in names:
        (source,) = (c.source for c in CELLS if c.cell_type == "code" and re.search(rf"^def {name}\(", c.source, re.M))
        exec(source, space)
    weights = {key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in golden if key[:8] == "weights/"}
    resampler = Resampler3D(ResamplerConfig(num_queries=4, width=16, kv_width=12, heads=2))
    resampler.load_state_dict(weights, strict=True)
    space["resampler"].load_state_dict(weights, strict=True)
    space["attention"].load_state_dict(resampler.attn.state_dict())
    return SimpleNamespace(**{name: space[name] for name in names}), golden


@torch.no_grad()
def test_the_form_that_saves_memory_is_the_released_one():
    lesson, golden = lesson_code("keys_values", "save_memory")
    cases = [key.split("/")[0] for key in golden if key.endswith("/out_foreach")]
    different = set()
    for name in cases:
        grids = [tuple(grid) for grid in golden[f"{name}/sizes"].tolist()]
        features = torch.from_numpy(golden[f"{name}/patches"]).split([rows * cols for rows, cols in grids])
        lengths = golden[f"{name}/group_lengths"].tolist()
        if not lengths:
            continue  # pictures without ids take neither form
        groups = [part.tolist() for part in torch.from_numpy(golden[f"{name}/temporal_flat"]).split(lengths)]
        out = lesson.save_memory(features, grids, groups)
        torch.testing.assert_close(out, torch.from_numpy(golden[f"{name}/out_foreach"]), atol=2e-5, rtol=1e-5)
        if (out - torch.from_numpy(golden[f"{name}/out_batch"])).abs().max() > 0.1:
            different.add(name)
    assert different == {"larger_image_beside_video"}


def test_the_chart_of_what_was_tried_shows_the_result_files():
    canvas = draw.tried_here()
    shown = {text for kind, (_, _, text, *_), _ in canvas.shapes if kind == "text"}
    for name, grades in (("group_frames", ["time, nats"]), ("early_merge", ["caption, nats", "crop, nats"])):
        result = json.loads((ROOT / f"experiments/results/{name}.json").read_text(encoding="utf-8"))
        head, *rows = result["table"]
        for row in rows:
            means = [float(row[head.index(grade)].split()[0]) for grade in grades]
            assert row[0] in shown and f"{np.mean(means):.2f}" in shown
            mean, seeds = canvas.facts["time" if len(means) == 1 else "merger"][row[0]]
            assert np.mean(seeds) == pytest.approx(mean, abs=0.01)
    time = {arm: mean for arm, (mean, _) in canvas.facts["time"].items()}
    assert time["one group"] < math.log(2) / 2 < min(time["one group, no times"], time["one frame"])
    late, early, equal = (canvas.facts["merger"][arm][0] for arm in
                          ("after layer 4", "after layer 1", "after layer 1, equal operations"))  # fmt: skip
    assert late < equal < early and equal - late < (early - late) / 2


def test_the_lesson_quotes_its_own_output():
    printed = "".join(
        out.get("text", "") + out.get("data", {}).get("text/html", "")
        for cell in CELLS
        if cell.cell_type == "code"
        for out in cell.outputs
    )
    for quoted in (
        *("121 s: 363 frames by 3 = 121 groups =  7,744 tokens, 48x", "64 tokens = 96x", "3270 of"),
        *("104.5 M parameters", "27 layers 972 G; with the merger 476 G", "51", "2334", "32 in 4.7, 654 in 4.6"),
    ):
        assert quoted in printed, quoted
    prose = "".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    retina = draw.canvas_positions("retina.jpg", 9, 0).facts
    assert f"`retina.jpg`: {retina['next']} steps in place of {retina['tokens']}" in prose
    saved = {name: facts["tokens"] - facts["next"] for name in draw.PICTURES
             for facts in [draw.canvas_positions(name, 9, 0).facts]}  # fmt: skip
    assert max(saved, key=saved.get) == "retina.jpg"
    for name in ("class Resampler3D", "class WindowMerger", "def canvas_position_ids"):
        assert all(name not in cell.source for cell in CELLS)
