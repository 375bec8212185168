"""Lesson 11's panels and pictures: what they show are the package's numbers and places."""

import io
import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from svg import inside_the_canvas, shapes, texts

from minicpmv_ref import nano, slice_image
from minicpmv_ref.counts import Workload, flops
from minicpmv_ref.course import draw, panels
from minicpmv_ref.peers import SYSTEMS, cambrian, internvl, llava, plan
from minicpmv_ref.peers.qllama import stage2_mask

pytestmark = pytest.mark.usefixtures("strict_panels")

GRAY = Image.new("RGB", (60, 40), "gray")
SIZES = [(640, 480), (480, 640), (2400, 800), (1000, 200), (1344, 1344), (224, 224), (37, 900), (4000, 3000)]


# ---- one picture, all systems


@pytest.mark.parametrize("asked", draw.ASKED)
@pytest.mark.parametrize("size", SIZES)
def test_facts_are_those_of_plan(size, asked):
    canvas = draw.all_systems(size, GRAY, asked)
    inside_the_canvas(canvas)
    assert tuple(canvas.facts) == SYSTEMS
    shown = [shape[2] for kind, shape, _ in canvas.shapes if kind == "text"]
    pictures, frames = draw.ASKED[asked]
    for system, facts in canvas.facts.items():
        assert draw.NAMES[system] in shown
        if facts is None:
            with pytest.raises(ValueError, match="is published"):
                plan(system, size, pictures, frames)
            continue
        made = plan(system, size, pictures, frames)
        assert facts.plan == made
        assert f"{made.visual_tokens:,}" in shown
        assert 0 < facts.kept <= 1
        one = draw.one_system(system, size, GRAY, asked)
        inside_the_canvas(one)
        assert one.facts[system] == facts
        said = " ".join(shape[2] for kind, shape, _ in one.shapes if kind == "text")
        assert f"tokens: {made.visual_tokens:,}, {made.newlines:,} of them newlines" in said
        assert f"pixels of all views: {made.pixels_seen:,}" in said
        assert f"{made.padding:.0%} of the views is padding" in said


@pytest.mark.parametrize("system", draw.SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_the_sides_give_the_pixels(system, size):
    made, side = plan(system, size), draw.SIDES[system]
    pixels = made.views * side**2 * (1 - made.padding)
    if system == "cambrian-1":
        pixels *= (384**2 + 336**2 + 378**2 + 1024**2) / 1024**2
    assert pixels == pytest.approx(made.pixels_seen, abs=1)


def white(size):
    return Image.new("RGB", size, "white")


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_lies_where_the_code_puts_it(size):
    """White pictures are really padded and cut; the rest of the canvas is darker."""
    seen, side = draw.seen_by("llava-next", size), 336
    tiles = llava.anyres_views(white(size))[1:]
    cols, rows = seen.grid
    assert (cols * side, rows * side) == seen.canvas
    whole = np.concatenate(
        [np.concatenate([np.asarray(tiles[cols * r + c])[..., 0] for c in range(cols)], axis=1) for r in range(rows)]
    )
    down, across = np.nonzero(whole > 128)
    x, y, w, h = seen.inside
    assert (across.min(), down.min()) == pytest.approx((x, y), abs=1)
    assert (across.max() + 1 - across.min(), down.max() + 1 - down.min()) == pytest.approx((w, h), abs=1)

    square = np.asarray(llava.pad_to_square(white(size)))[..., 0]
    down, across = np.nonzero(square == 255)
    seen = draw.seen_by("llava-1.5", size)
    k = max(size) / 336
    assert (across.min(), down.min()) == pytest.approx((seen.inside[0] * k, seen.inside[1] * k), abs=0.5)

    seen = draw.seen_by("internvl-1.5", size)
    views = internvl.tile(white(size))
    assert math.prod(seen.grid) == max(1, len(views) - 1)
    assert seen.inside == pytest.approx((0, 0, *seen.canvas))

    seen, views = draw.seen_by("minicpm-v-2.6", size), slice_image(white(size))
    width, height = views[-1].size
    assert seen.canvas == (width * seen.grid[0], height * seen.grid[1])


def test_what_is_left_of_a_banner():
    """The questions of the lesson: LLaVA-1.5 keeps least; a frame of NeXT-Video is cut off at both ends."""
    kept = {system: draw.seen_by(system, (2400, 800)).kept for system in SYSTEMS}
    assert min(kept, key=kept.get) == "llava-1.5"
    assert kept["llava-1.5"] == pytest.approx(336 * 112 / (2400 * 800))
    assert kept["internvl-1.0"] == pytest.approx(224**2 / (2400 * 800))
    assert kept["llava-next"] == pytest.approx(1008 * 336 / (2400 * 800))
    assert kept["internvl-1.5"] == 1  # 6 x 2 tiles, 2688 x 896: enlarged
    seen = draw.seen_by("llava-next-video", (2400, 800), "16 frames")
    assert seen.covered == (800, 0, 1600, 800)
    assert seen.kept == pytest.approx(336**2 / (2400 * 800))
    canvas = draw.one_system("llava-next-video", (2400, 800), white((60, 20)), "16 frames")
    image = next(shape[4] for kind, shape, _ in canvas.shapes if kind == "image")
    row = np.asarray(image)[image.height // 2]
    colored = (row != 255).any(axis=1)  # red over white
    assert colored.mean() == pytest.approx(2 / 3, abs=0.02)
    middle = colored[len(row) // 3 + 2 : 2 * len(row) // 3 - 2]
    assert not middle.any()


def test_enlarging_one_side_does_not_make_up_for_the_other():
    assert draw.seen_by("internvl-1.0", (37, 900)).kept == pytest.approx(224 / 900)


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system not in draw.SIDES])
@pytest.mark.parametrize("size", [(1920, 1080), (1000, 200), (37, 900)])
def test_slices_cover_the_canvas(system, size):
    """The overview has about 448 x 448 pixels; what is left of the pixels is the canvas."""
    for asked in draw.ASKED:
        seen = draw.seen_by(system, size, asked)
        if seen and seen.plan.tiles:
            one = seen.plan.pixels_seen / max(draw.ASKED[asked])
            assert one - math.prod(seen.canvas) == pytest.approx(448**2, rel=0.15)


def test_the_panel_says_what_it_shows():
    panel = panels.AllSystems("banner.png", 2400, 800)
    assert "from 96 tokens (InternVL-1.0) to 7,215 (OneVision)" in panel.status
    assert "LLaVA-1.5 keeps the fewest of its own pixels: 2.0%" in panel.status
    assert panels.AllSystems("shapes.png", 200, 100).status.endswith("All keep all pixels.")  # enlarged by all
    panel.controls["show"].value = "cogvlm2"
    assert "CogVLM2 makes 2,304 tokens" in panel.status
    panel.controls["asked"].value = "2 pictures"
    assert panel.status.endswith("CogVLM2 is not published for that.")
    assert "not published for 2 pictures" in texts(panel)
    panel.controls["picture"].value = "cat.jpg"
    assert (panel.controls["width"].value, panel.controls["height"].value) == (451, 300)


def own(name, content):
    return {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime(2024, 8, 3, tzinfo=UTC),
    }


def test_an_own_picture():
    panel, file = panels.AllSystems(), io.BytesIO()
    Image.new("RGB", (300, 100), "red").save(file, "PNG")
    panel._upload.value = [own("mine.png", file.getvalue())]
    assert panel.status.startswith("mine.png, 300 x 100, 1 picture")
    with pytest.raises(ValueError, match=r"bad\.png is not a picture"):
        panel._upload.value = [own("bad.png", b"no")]


# ---- which token is where


@pytest.mark.parametrize(("system", "side"), [("internvl-1.5", 32), ("vila-1.5", 27)])
def test_patches_of_every_token(system, side):
    (right, _), (transposed, _) = draw.ORDERS[system][1:]
    n = -(-side // 2)
    for token in range(n * n):
        row, col = divmod(token, n)
        for order, (r, c) in ((right, (row, col)), (transposed, (col, row))):
            every = [(2 * r + p, 2 * c + q) for p in (0, 1) for q in (0, 1)]
            wanted = [place if max(place) < side else None for place in every]
            assert list(draw.token_patches(system, order)[token]) == wanted


@pytest.mark.parametrize("system", draw.ORDERS)
def test_the_token_picture(system):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for token in (0, 1, 13, 195):
        canvas = draw.token_places(system, token, image)
        inside_the_canvas(canvas)
        for order in canvas.facts:
            assert canvas.facts[order] == draw.token_patches(system, order)[token]
        orange, blue = (
            [shape[:2] for kind, shape, _ in canvas.shapes if kind == "rect" and shape[4] == color]
            for color in (draw.ORANGE, draw.BLUE)
        )
        for places, patches in zip((orange, blue), canvas.facts.values()):
            cell = 296 / draw.ORDERS[system][0]
            drawn = [(round((y - 30) / cell), round((x - 8) / cell)) for x, y in places]
            assert drawn == [place for place in patches if place]
    whole, right, wrong = (shape[4] for kind, shape, _ in canvas.shapes if kind == "image")
    assert np.array_equal(
        np.asarray(right)[: 6 * draw.ORDERS[system][0], : 6 * draw.ORDERS[system][0]],
        np.asarray(whole.resize((6 * draw.ORDERS[system][0],) * 2, Image.Resampling.BICUBIC)),
    ), "in the right order the tokens are the picture"
    assert not np.array_equal(np.asarray(right), np.asarray(wrong))
    blocks = [np.asarray(each).reshape(right.height // 12, 12, right.width // 12, 12, 3) for each in (right, wrong)]
    assert np.array_equal(blocks[0].transpose(2, 1, 0, 3, 4), blocks[1]), "squares change places, not their insides"


def test_the_panel_finds_the_transposed_order():
    panel = panels.TokenPlaces("vila-1.5", 1)
    assert panel.status == (
        "VILA-1.5, token 1. Its first patch in main branch: row 0, column 2; in released 1.5: row 2, column 0."
    )
    panel.controls["token"].value = 15
    assert panel.status.endswith("This token is the same in both.")
    panel.controls["system"].value = "internvl-1.5"
    assert panel.controls["token"].max == 255
    panel.controls["token"].value = 255
    panel.controls["system"].value = "vila-1.5"
    assert panel.controls["token"].value == 195
    assert "3 of zeros" in texts(panel)


# ---- two experts, masks, regions


def test_the_expert_strip():
    facts = draw.expert_strip(1, 4, 0).facts
    assert facts["types"] == [0, 1, 1, 1, 1, 1, 1, 0, 0]
    assert facts["vision"] == [False, True, True, True, True, True, False, False, False]
    assert facts["positions"] == [0, 1, 2, 2, 2, 2, 3, 4, 5]
    apart, touching = draw.expert_strip(2, 2, 1).facts, draw.expert_strip(2, 2, 0).facts
    assert apart["positions"] == [0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    assert touching["positions"] == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5]
    assert touching["vision"].count(False) == 4


@pytest.mark.parametrize("state", [(1, 0, 0), (2, 0, 0), (2, 4, 3), (1, 4, 3), (2, 1, 0)])
def test_the_strip_shows_its_facts(state):
    canvas, panel = draw.expert_strip(*state), panels.ExpertStrip(*state)
    inside_the_canvas(canvas)
    facts = canvas.facts
    drawn = [shape for kind, shape, _ in canvas.shapes if kind == "rect"]
    experts = [shape[4] == draw.ORANGE for shape in drawn if shape[1] == 132]
    assert experts == facts["vision"]
    numbers = [shape[2] for kind, shape, _ in canvas.shapes if kind == "text" and shape[1] == 202]
    assert numbers[1:] == [str(position) for position in facts["positions"]]
    vision = sum(facts["vision"])
    assert f"vision expert for {vision} tokens, language expert for {len(experts) - vision}." in panel.status
    assert panel.status.endswith(f"The last position is {facts['positions'][-1]}.")
    assert len(shapes(panel, "rect")) == len(drawn) + 1


def test_masks():
    canvas = draw.stage2_masks(3, 4)
    inside_the_canvas(canvas)
    cells = [shape[4] != "white" for kind, shape, _ in canvas.shapes if kind == "rect" and shape[2] == 180 / 7]
    wanted = []
    for task, mask in canvas.facts.items():
        package = stage2_mask(task, 3, torch.ones(1, 4, dtype=torch.long))[0].tolist()
        assert mask == package
        wanted += [allowed for row in package for allowed in row]
    assert cells == wanted
    assert canvas.words == "itm: 49 of 49 pairs; itc: 19 of 49 pairs; itg: 31 of 49 pairs"


@pytest.mark.parametrize("query", [(0, 0), (1, 2), (3, 3)])
def test_regions(query):
    canvas = draw.query_region(query, 4, (1, 2))
    inside_the_canvas(canvas)
    for number, side in enumerate((4, 8)):
        cut = cambrian.regions(torch.arange(float(side * side)).reshape(1, -1, 1), 4)[4 * query[0] + query[1]]
        assert canvas.facts["sva"][number] == [divmod(int(patch), side) for patch in cut.flatten()]
        assert len(canvas.facts["resampler"][number]) == side * side
    assert canvas.words == f"query {query}: 5 keys in SVA, 80 in a plain resampler"


# ---- the bake-off


def test_the_bake_off_shows_the_results_file():
    result = json.loads((ROOT / "experiments/results/connectors.json").read_text(encoding="utf-8"))
    canvas = draw.bake_off()
    inside_the_canvas(canvas)
    assert set(canvas.facts) == {row[0] for row in result["table"][1:]} == set(draw.CONNECTOR_NAMES)
    shown = [shape[2] for kind, shape, _ in canvas.shapes if kind == "text"]
    assert all(f"{one.loss:.2f}" in shown and len(one.seeds) == 3 for one in canvas.facts.values())
    assert {arm: one.tokens for arm, one in canvas.facts.items() if one.tokens != 16} == {
        "mlp": 64,
        "mlp, equal operations": 64,
    }
    workload = Workload(tokens=40, supervised=40, token_pairs=1600, views=1, patches=64, patch_pairs=4096)
    assert canvas.facts["resampler"].operations == pytest.approx(flops(nano, workload, ()), rel=0.001)
    order = str(canvas).removeprefix("bake-off, best first: ").split("; ")
    assert order == sorted(canvas.facts, key=lambda arm: canvas.facts[arm].loss)
    column = result["table"][0].index("crop, nats")
    result["table"][1][column] = "0.100 (0.09, 0.11)"  # the resampler, were it better
    assert str(draw.bake_off(result)).startswith("bake-off, best first: resampler;")
