"""slicing.py against the released code's outputs, against transformers' own processor, and against its own promises."""

import hashlib
import io
import json
import math
import os
import random
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.inputs.checks import LIMITS
from minicpmv_ref.slicing import (
    best_grid,
    candidate_grids,
    check_plan,
    paper_grid,
    partition_score,
    plan_slices,
    resize_views,
    slice_image,
    to_rgb,
)

GOLDEN = json.loads((ROOT / "tests/golden/slicing.json").read_text())["vectors"]
PIXELS = json.loads((ROOT / "tests/golden/preprocess.json").read_text())["items"]
PEER = MiniCPMV4_6ImageProcessorPil()


def noise(width, height, seed=0):
    """A picture in which no two places look alike, so a view from the wrong place cannot pass."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def random_sizes(count, seed, most=4000):
    """Sizes of all shapes: log-uniform sides, so thin and small ones are as frequent as large ones."""
    draw = random.Random(seed)

    def side():
        return round(math.exp(draw.uniform(0, math.log(most))))

    return [(side(), side()) for _ in range(count)]


# --- the released code's outputs ---


def test_golden_file_is_complete():
    assert len(GOLDEN) == 187
    assert {v["patch_size"] for v in GOLDEN} == {14}
    assert len({(v["max_slice_nums"], v["scale_resolution"]) for v in GOLDEN}) == 15


@pytest.mark.parametrize(
    "v", GOLDEN, ids=lambda v: f"{v['width']}x{v['height']}-{v['scale_resolution']}-max{v['max_slice_nums']}"
)
def test_golden_plans(v):
    size = (v["width"], v["height"])
    cfg = SliceConfig(v["scale_resolution"], v["patch_size"], v["max_slice_nums"])
    plan = plan_slices(size, cfg)
    as_list = {
        "grid": plan.grid and list(plan.grid),
        "overview_size": list(plan.overview_size),
        "overview_patches": list(plan.patch_grids[0]),
        "refine_size": plan.refined_size and list(plan.refined_size),
        "slice_size": plan.slice_size and list(plan.slice_size),
        "slice_patches": list(plan.patch_grids[1]) if plan.grid else None,
        "num_slices": plan.num_slices,
        "num_visual_blocks": len(plan.patch_grids),
        "tokens_q64": plan.visual_tokens(64),
        "tokens_q96": plan.visual_tokens(96),
    }
    assert as_list == {name: v[name] for name in as_list}
    inputs = {"width", "height", "max_slice_nums", "scale_resolution", "patch_size", "ratio", "multiple"}
    assert set(v) == inputs | set(as_list)
    assert plan.image_size == size and plan.patch_size == v["patch_size"]
    assert best_grid(size, cfg) == plan.grid
    # `multiple` is N: the candidates lie around it.
    counts = {cols * rows for cols, rows in candidate_grids(size, cfg)}
    around = {v["multiple"] - 1, v["multiple"], v["multiple"] + 1}
    most = v["max_slice_nums"]
    assert counts == ({n for n in around if 1 < n <= most} if v["multiple"] > 1 else set())


@pytest.mark.parametrize("item", PIXELS, ids=lambda item: f"{item['width']}x{item['height']}")
def test_golden_pixels(item):
    """To the last bit. Pillow 13.0.0 chooses the order of its two resize passes itself; older ones always began
    with the rows, and round differently. requirements.txt pins Pillow for this reason."""
    y, x = np.mgrid[: item["height"], : item["width"]]
    channels = [(7 * x + 3 * y) % 256, (11 * (x // 5) + 13 * (y // 7)) % 256, ((x * y) // 50) % 256]
    views = slice_image(Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)))
    assert len(views) == len(item["blocks"]) == item["n"]
    for view, block in zip(views, item["blocks"]):
        pixels = np.asarray(view)
        rows, cols = view.height // 14, view.width // 14
        assert list(view.size) == block["size"]
        assert [rows, cols] == block["tgt_size"]
        assert int(pixels.sum()) == block["uint8_sum"]
        assert hashlib.sha1(pixels.tobytes()).hexdigest() == block["uint8_sha1"]
        # The official code lays the patches side by side in one strip 14 pixels high.
        normalized = ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)
        assert [3, 14, 14 * rows * cols] == block["reshaped_shape"]
        np.testing.assert_allclose(normalized[0, 0, :14], block["first_patch_row0"], atol=1e-6)
        np.testing.assert_allclose(normalized[0, 0, 14:28], block["second_patch_row0"], atol=1e-6)
        assert normalized.mean() == pytest.approx(block["mean"], abs=1e-6)


# Width, height, grid, overview, refined, slice, tokens with 64 queries; worked with the official functions.
WORKED = """
    1 1           -   448x448 -         -       64
    100 100       -   448x448 -         -       64
    224 224       -   448x448 -         -       64
    300 200       -   546x364 -         -       64
    448 448       -   448x448 -         -       64
    449 448       2x1 448x448 644x630   322x630 192
    448 449       1x2 448x448 630x644   630x322 192
    640 480       2x1 518x392 728x546   364x546 192
    480 640       1x2 392x518 546x728   546x364 192
    633 634       1x2 448x448 630x644   630x322 192
    800 600       2x2 518x392 1036x784  518x392 320
    800 1300      2x3 350x574 868x1386  434x462 448
    896 448       2x1 630x322 896x448   448x448 192
    1024 768      2x2 518x392 1036x784  518x392 320
    896 896       2x2 448x448 896x896   448x448 320
    1000 1000     2x2 448x448 896x896   448x448 320
    672 1008      2x2 364x546 728x1092  364x546 320
    672 1088      2x2 350x574 700x1148  350x574 320
    1280 720      3x2 602x336 1470x812  490x406 448
    1344 448      3x1 770x252 1344x448  448x448 256
    1344 896      3x2 546x364 1344x896  448x448 448
    1344 1344     3x3 448x448 1344x1344 448x448 640
    1345 1345     3x3 448x448 1344x1344 448x448 640
    1600 200      3x1 1260x154 2184x280 728x280 256
    1792 448      4x1 896x224 1792x448  448x448 320
    1920 1080     4x2 602x336 1680x952  420x476 576
    1080 1920     2x4 336x602 952x1680  476x420 576
    1170 2532     2x4 308x658 868x1848  434x462 576
    2000 1000     4x2 630x322 1792x896  448x448 576
    2480 3508     2x4 378x532 1064x1512 532x378 576
    3000 200      4x1 1722x112 3472x224 868x224 320
    4032 3024     3x3 518x392 1554x1176 518x392 640
    4000 400      9x1 1414x140 4284x420 476x420 640
    6000 300      9x1 2002x98 6048x294  672x294 640
    500 1         -   9996x14 -         -       64
"""


@pytest.mark.parametrize("row", [line.split() for line in WORKED.strip().splitlines()], ids=lambda r: f"{r[0]}x{r[1]}")
def test_worked_examples(row):
    def pair(text):
        return None if text == "-" else tuple(int(n) for n in text.split("x"))

    plan = plan_slices((int(row[0]), int(row[1])))
    assert (plan.grid, plan.overview_size, plan.refined_size, plan.slice_size) == tuple(map(pair, row[2:6]))
    assert plan.visual_tokens(64) == int(row[6])
    assert plan.visual_tokens(96) == int(row[6]) * 96 // 64


@pytest.mark.parametrize(
    "size, most, grid, tokens",
    [
        ((1344, 1344), 1, None, 64),
        ((1344, 1344), 2, (1, 2), 192),
        ((1344, 1344), 4, (2, 2), 320),
        ((1920, 1080), 2, (2, 1), 192),
        ((4032, 3024), 36, (7, 5), 2304),
        ((256, 256), 1, None, 64),
        ((256, 256), 36, None, 64),  # a small image costs the same whatever the limit is
    ],
)
def test_other_limits(size, most, grid, tokens):
    plan = plan_slices(size, SliceConfig(max_slice_nums=most))
    assert (plan.grid, plan.visual_tokens(64)) == (grid, tokens)


def test_area_decides_not_the_longer_side():
    for size in ((1000, 200), (200, 1000), (1000, 100), (448, 448)):
        assert plan_slices(size).grid is None
    assert 1000 * 200 < 448**2
    assert plan_slices((1000, 201)).grid == (3, 1)


def test_extreme_shapes():
    assert plan_slices((500, 1)).patch_grids == [(1, 714)]
    assert plan_slices((1, 10000)).patch_grids == [(3200, 1)]  # the width truncates to 4 and is raised to one patch
    assert plan_slices((10000, 1)).patch_grids == [(1, 2857)]  # not the mirror image: the height truncates first
    assert plan_slices((4000, 400)).patch_grids[0] == (10, 101)


def test_token_density():
    """Pixels of the largest picture per visual token, as the model cards print it: 2822 for 2.6, 1882 for 2.5."""
    plan = plan_slices((1344, 1344))
    assert round(1344**2 / plan.visual_tokens(64)) == 2822
    assert round(1344**2 / plan.visual_tokens(96)) == 1882
    assert (plan_slices((448, 448)).visual_tokens(64), plan_slices((449, 448)).visual_tokens(64)) == (64, 192)


# --- transformers' MiniCPM-V 4.6 as a live oracle: the same search, written with rows first ---


def peer_grid(size, most, resolution):
    found = PEER.get_sliced_grid((size[1], size[0]), most, resolution)  # takes (height, width), gives [rows, cols]
    return None if found is None else (found[1], found[0])


def sizes_for_the_peer():
    sizes = random_sizes(16_000, seed=1)
    sizes += [(side, side) for side in range(1, 1500)]  # squares: every grid ties with its mirror image
    draw = random.Random(2)
    primes = [n for n in range(400, 4000) if all(n % d for d in range(2, math.isqrt(n) + 1))]
    sizes += [(draw.choice(primes), draw.choice(primes)) for _ in range(1500)]
    sizes += [(draw.randint(1, 60_000), draw.randint(1, 9)) for _ in range(1000)]  # up to 60,000 : 1
    sizes += [(height, width) for width, height in sizes[-1000:]]
    # The image's shape lies exactly between two grids' shapes, or on one of them.
    sizes += [(k * a, k * b) for k in range(100, 1000, 50) for a in range(1, 7) for b in range(1, 7)]
    return sizes


def test_grid_equals_the_peer():
    sizes = sizes_for_the_peer()
    assert len(sizes) >= 20_000
    wrong = [size for size in sizes if best_grid(size) != peer_grid(size, 9, 448)]
    assert not wrong, f"{len(wrong)} of {len(sizes)} differ, first {wrong[:5]}"
    assert {best_grid(size) for size in sizes} >= {
        None,
        (1, 9),
        (9, 1),
        (3, 3),
        (2, 3),
        (3, 2),
        (1, 2),
        (7, 1),
    }


@pytest.mark.parametrize("most, resolution", [(1, 448), (2, 448), (4, 448), (6, 336), (16, 448), (36, 448), (9, 112)])
def test_grid_equals_the_peer_with_other_parameters(most, resolution):
    cfg = SliceConfig(scale_resolution=resolution, max_slice_nums=most)
    sizes = random_sizes(1200, seed=most) + [(side, side) for side in range(100, 3000, 17)]
    wrong = [size for size in sizes if best_grid(size, cfg) != peer_grid(size, most, resolution)]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("most, resolution", [(9, 448), (6, 336), (36, 448), (9, 112)])
def test_pixel_sizes_equal_the_peer(most, resolution):
    """4.6 rounds to two patches in its "4x" mode, so with patches of 7 pixels it rounds to 14 as we do."""
    cfg = SliceConfig(scale_resolution=resolution, max_slice_nums=most)
    for width, height in random_sizes(2500, seed=most + resolution):
        plan = plan_slices((width, height), cfg)
        overview = PEER.find_best_resize((height, width), resolution, 7, "4x", allow_upscale=plan.grid is None)
        assert plan.overview_size == overview[::-1], (width, height)
        if plan.grid:
            refined = PEER.get_refine_size((height, width), plan.grid[::-1], resolution, 7, "4x", allow_upscale=True)
            assert plan.refined_size == refined[::-1], (width, height)


# --- the rule's own promises ---


def test_the_best_shape_wins_in_exact_arithmetic():
    """log is monotone, so the nearest shape in logs has the smallest max(r, 1/r): fractions, no rounding."""
    for size in random_sizes(1500, seed=3):
        for grids, chosen in (
            (candidate_grids(size), best_grid(size)),
            (paper_candidates(size), paper_grid(size)),
        ):
            if grids:
                assert chosen in grids
                assert stretch(size, chosen) == min(stretch(size, grid) for grid in grids), size


def stretch(size, grid):
    """How far one slice is from a square: its longer side over its shorter one, exactly."""
    ratio = Fraction(size[0] * grid[1], size[1] * grid[0])
    return max(ratio, 1 / ratio)


def paper_candidates(size, most=9):
    n = min(-(-size[0] * size[1] // 448**2), most)
    return [(c, r) for c in range(1, n + 2) for r in range(1, n + 2) if n - 1 <= c * r <= n + 1]


def test_ties_take_the_first_candidate():
    # 5 < ratio <= 7: (2, 3) and (3, 2) tie on paper. In float64 log(3/2) is one unit nearer to 0 than log(2/3).
    assert stretch((1080, 1080), (2, 3)) == stretch((1080, 1080), (3, 2))
    assert partition_score((1080, 1080), (3, 2)) > partition_score((1080, 1080), (2, 3))
    assert {best_grid((side, side)) for side in range(1002, 1186)} == {(3, 2)}
    # 1 < ratio <= 2: log(2) and log(1/2) are exact opposites, so the first candidate wins.
    assert partition_score((500, 500), (1, 2)) == partition_score((500, 500), (2, 1))
    assert {best_grid((side, side)) for side in range(449, 634)} == {(1, 2)}


def test_partition_score():
    assert partition_score((800, 400), (2, 1)) == 0
    assert partition_score((800, 400), (1, 2)) == pytest.approx(-math.log(4))
    assert partition_score((300, 100), (1, 1)) == pytest.approx(-math.log(3))
    assert partition_score((100, 300), (1, 1)) == pytest.approx(-math.log(3))
    for size in random_sizes(200, seed=4):
        for grid in ((1, 1), (2, 3), (9, 1)):
            assert partition_score(size, grid) <= 0
            assert partition_score(size, grid) == pytest.approx(-math.log(stretch(size, grid)), abs=1e-12)


def test_candidates_come_in_the_official_order():
    assert candidate_grids((1000, 700)) == [(1, 3), (3, 1), (1, 4), (2, 2), (4, 1), (1, 5), (5, 1)]
    assert candidate_grids((640, 480)) == [(1, 2), (2, 1), (1, 3), (3, 1)]  # N = 2: no (1, 1)
    assert candidate_grids((1344, 1344)) == [(1, 8), (2, 4), (4, 2), (8, 1), (1, 9), (3, 3), (9, 1)]  # no 10
    assert candidate_grids((1344, 1344), SliceConfig(max_slice_nums=2)) == [(1, 2), (2, 1)]
    assert candidate_grids((448, 448)) == candidate_grids((4000, 4000), SliceConfig(max_slice_nums=1)) == []


@pytest.mark.parametrize("cfg", [SliceConfig(), SliceConfig(448, 14, 36), SliceConfig(112), SliceConfig(300, 16, 5)])
def test_slices_tile_the_refined_image(cfg):
    for size in random_sizes(400, seed=cfg.scale_resolution):
        plan = plan_slices(size, cfg)
        views = [plan.overview_size] + [plan.slice_size] * plan.num_slices
        assert all(side > 0 and side % cfg.patch_size == 0 for view in views for side in view)
        assert plan.patch_grids == [(h // cfg.patch_size, w // cfg.patch_size) for w, h in views]
        assert plan.num_slices != 1 and plan.num_slices <= cfg.max_slice_nums
        assert len(plan.boxes) == plan.num_slices
        if plan.grid:
            cols, rows = plan.grid
            assert plan.refined_size == (cols * plan.slice_size[0], rows * plan.slice_size[1])
            # Each box starts where its left neighbor ends, or at the left border one row further down.
            corners = [(i % cols, i // cols) for i in range(plan.num_slices)]
            assert [(left, top) for left, top, _, _ in plan.boxes] == [
                (c * plan.slice_size[0], r * plan.slice_size[1]) for c, r in corners
            ]
            assert {(right - left, bottom - top) for left, top, right, bottom in plan.boxes} == {plan.slice_size}
            assert plan.boxes[-1][2:] == plan.refined_size
        else:
            assert plan.boxes == [] and plan.refined_size is None and plan.slice_size is None


def test_tokens_never_fall_when_more_slices_are_allowed():
    """True for every size: a higher limit adds candidates at the end, or moves all of them up by one."""
    for size in random_sizes(500, seed=5):
        tokens = [plan_slices(size, SliceConfig(max_slice_nums=most)).visual_tokens(64) for most in range(1, 25)]
        assert tokens == sorted(tokens), size


def test_llava_uhd_guarantee():
    """For images up to 6:1 that need at most 9 slices, LLaVA-UHD promises: slices no longer than 2:1, and of 0.33 to
    1.5 times the area that the ViT expects. The released rule keeps it, to the border: 2, 1/3 and 3/2 are met."""
    shapes, areas = [], []
    draw = random.Random(6)
    sizes = [(draw.randint(80, 3300), draw.randint(80, 3300)) for _ in range(20_000)]
    sizes += [(6 * n, n) for n in range(183, 548)] + [(448 * 448 + 1, 1), (658, 2632)]
    for width, height in sizes:
        area = Fraction(width * height, 448**2)
        if 1 < area <= 9 and width <= 6 * height and height <= 6 * width:
            cols, rows = best_grid((width, height))
            shapes.append(stretch((width, height), (cols, rows)))
            areas.append(area / (cols * rows))
    assert len(shapes) > 5000
    assert max(shapes) == 2
    assert Fraction(1, 3) < min(areas) < Fraction(336, 1000)
    assert Fraction(149, 100) < max(areas) <= Fraction(3, 2)


def test_every_view_has_about_1024_patches():
    """Of pictures up to 6:1: the sides are rounded to patches, so 32 x 32 = 1024 is only the rule of thumb."""
    sizes = [(w, h) for w, h in random_sizes(9000, seed=7, most=8000) if w <= 6 * h and h <= 6 * w]
    counts = [rows * cols for size in sizes for rows, cols in plan_slices(size).patch_grids]
    assert len(sizes) > 2000
    assert min(counts) >= 975 and max(counts) <= 1064
    assert {1024, 1036} < set(counts)  # not one number


def test_sides_round_half_to_even():
    # 35 is 2.5 patches and becomes 2; 49 is 3.5 and becomes 4. Rounding halves up would make 3 and 4.
    assert plan_slices((35, 35), SliceConfig(scale_resolution=35)).overview_size == (28, 28)
    assert plan_slices((49, 49), SliceConfig(scale_resolution=49)).overview_size == (56, 56)
    assert plan_slices((63, 63), SliceConfig(scale_resolution=63)).overview_size == (56, 56)


# --- the paper's literal equations ---


def test_the_paper_does_not_print_three_rules():
    # 1. N = 1 is not cut. By the equations a tall image is, because C_2 belongs to the candidates.
    assert (paper_grid((100, 400)), best_grid((100, 400))) == ((1, 2), None)
    # 2. N = 2 is always cut. By the equations (1, 1) from C_1 may win.
    assert (paper_grid((640, 480)), best_grid((640, 480))) == ((1, 1), (2, 1))
    # 3. No grid has more than max_slice_nums slices. By the equations N = 9 looks at C_10.
    assert (paper_grid((2100, 840)), best_grid((2100, 840))) == ((5, 2), (4, 2))


def test_how_often_paper_and_code_disagree():
    draw = random.Random(0)
    sizes = [(draw.randint(1, 2000), draw.randint(1, 2000)) for _ in range(4000)]
    total, differ = {}, {}
    for size in sizes:
        n = min(-(-size[0] * size[1] // 448**2), 9)
        group = "N = 1" if n == 1 else "N = 2" if n == 2 else "N = 9" if n == 9 else "N = 3..8"
        total[group] = total.get(group, 0) + 1
        differ[group] = differ.get(group, 0) + (paper_grid(size) != (best_grid(size) or (1, 1)))
    assert total == {"N = 1": 779, "N = 2": 552, "N = 3..8": 1721, "N = 9": 948}
    assert differ == {"N = 1": 715, "N = 2": 71, "N = 3..8": 0, "N = 9": 16}


def test_paper_grid_follows_its_config():
    assert paper_grid((1344, 1344)) == (3, 3)
    assert paper_grid((1344, 1344), SliceConfig(max_slice_nums=3)) == (2, 2)  # N = 3 looks at 2, 3 and 4
    assert paper_grid((896, 448), SliceConfig(scale_resolution=896)) == (2, 1)  # N = 1 looks at 1 and 2
    assert paper_grid((224, 224), SliceConfig(scale_resolution=112)) == (2, 2)


# --- pixels ---


@pytest.mark.parametrize("size", [(300, 200), (449, 448), (640, 480), (480, 640), (800, 1300), (1600, 200), (20, 3000)])
@pytest.mark.parametrize("cfg", [SliceConfig(), SliceConfig(112)], ids=["448", "112"])
def test_views_equal_resize_and_crop(size, cfg):
    """The plain way, with numpy instead of Pillow's crop."""
    image = noise(*size)
    plan = plan_slices(size, cfg)
    views = [np.asarray(view) for view in slice_image(image, cfg)]
    assert len(views) == 1 + plan.num_slices
    np.testing.assert_array_equal(views[0], np.asarray(image.resize(plan.overview_size, Image.BICUBIC)))
    if plan.grid:
        refined = np.asarray(image.resize(plan.refined_size, Image.BICUBIC))
        cols, rows = plan.grid
        mesh = [part for band in np.split(refined, rows, axis=0) for part in np.split(band, cols, axis=1)]
        for view, part in zip(views[1:], mesh, strict=True):
            np.testing.assert_array_equal(view, part)


def test_slices_pasted_back_are_the_refined_image():
    for seed, size in enumerate(random_sizes(12, seed=8, most=900)):
        image = noise(*size, seed=seed)
        cfg = SliceConfig(scale_resolution=84)
        plan = plan_slices(size, cfg)
        if plan.grid:
            canvas = Image.new("RGB", plan.refined_size)
            for box, view in zip(plan.boxes, slice_image(image, cfg)[1:], strict=True):
                canvas.paste(view, box)
            refined = image.resize(plan.refined_size, Image.Resampling.BICUBIC)
            assert canvas.tobytes() == refined.tobytes(), size


MODES = "1 L LA P PA RGB RGBA RGBX CMYK YCbCr LAB HSV I F I;16 I;16B I;16L".split()


@pytest.mark.filterwarnings("ignore:the picture is transparent:UserWarning")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_rgb_views(mode):
    views = slice_image(Image.new(mode, (640, 480)))
    assert [(view.mode, view.size) for view in views] == [("RGB", (518, 392)), *[("RGB", (364, 546))] * 2]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_palette_with_transparency(transparency):
    """Alpha is dropped: a transparent pixel shows the color stored under it."""
    image = Image.new("P", (64, 64), 1)
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 255])
    image.info["transparency"] = transparency
    with warnings.catch_warnings():
        warnings.simplefilter("error" if transparency == 0 else "ignore")  # color 0 is nowhere
        assert {view.getpixel((5, 5)) for view in slice_image(image)} == {(0, 200, 0)}
    clear = Image.new("RGBA", (64, 64), (10, 20, 30, 0))
    with pytest.warns(UserWarning, match="Alpha is dropped"):
        assert slice_image(clear)[0].getpixel((5, 5)) == (10, 20, 30)


def test_colors_survive_the_conversion():
    photo = noise(40, 30)
    assert to_rgb(photo) is photo  # nothing to convert, nothing copied
    np.testing.assert_array_equal(np.asarray(to_rgb(photo.convert("RGBA"))), np.asarray(photo))
    gray = np.asarray(to_rgb(photo.convert("L")))
    np.testing.assert_array_equal(gray, np.repeat(np.asarray(photo.convert("L"))[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "kind, top",
    [
        (np.uint16, 65535),
        (">u2", 65535),
        (np.int32, 65535),
        (np.int32, 255),
        (np.float32, 255.0),
        (np.float32, 1.0),
    ],
)
def test_deep_gray_pictures_are_scaled_not_clipped(kind, top):
    """Pillow's own convert("RGB") turns all but the darkest 1/256 of a 16-bit picture white."""
    ramp = np.linspace(0, top, 256).round(6).astype(kind)
    seen = np.asarray(to_rgb(Image.fromarray(np.tile(ramp, (4, 1)))))
    np.testing.assert_array_equal(seen, np.broadcast_to(np.arange(256)[None, :, None], (4, 256, 3)))


@pytest.mark.parametrize("kind, value", [(np.int32, -1), (np.int32, 65536), (np.float32, 255.5), (np.float32, np.nan)])
def test_gray_values_of_unknown_scale_are_refused(kind, value):
    with pytest.raises(ValueError, match="must hold values in 0"):
        slice_image(Image.fromarray(np.full((8, 8), value, dtype=kind)))


def test_exif_orientation_is_left_alone():
    image, exif = noise(640, 480), Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    opened = Image.open(file)
    assert opened.getexif()[0x0112] == 6
    views = slice_image(opened)
    assert [view.size for view in views] == [(518, 392), (364, 546), (364, 546)]
    upright = Image.open(file)
    upright.getexif().clear()
    assert views[0].tobytes() == upright.resize((518, 392), Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize(
    "kind, rest",
    [(kind, b"") for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM")] + [("PNG", b"\x00"), ("WEBP", b"\xff")],
)
def test_damaged_files_raise_value_error(kind, rest):
    """The second half is missing or overwritten. Pillow opens lazily, so it shows only when pixels are wanted."""
    file = io.BytesIO()
    noise(200, 160).save(file, kind)
    data = file.getvalue()
    assert len(slice_image(Image.open(io.BytesIO(data)))) == 1
    half = len(data) // 2
    image = Image.open(io.BytesIO(data[:half] + rest * (len(data) - half)))
    with pytest.raises(ValueError, match="cannot be decoded"):
        slice_image(image)


@pytest.mark.parametrize("kind", [OSError, SyntaxError, RuntimeError])
def test_all_errors_of_pillows_decoders_become_value_error(kind, monkeypatch):
    """SyntaxError comes from the PNG reader, RuntimeError from the AVIF one."""
    image = noise(20, 10)

    def load():
        raise kind("bad bytes")

    monkeypatch.setattr(image, "load", load)
    with pytest.raises(ValueError, match="bad bytes") as error:
        slice_image(image)
    assert isinstance(error.value.__cause__, kind)


def test_slicing_leaves_its_image_alone():
    image = Image.new("P", (640, 480), 3)
    before = image.copy()
    slice_image(image)
    assert image.mode == "P" and image.size == (640, 480) and image.tobytes() == before.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_process_can_slice():
    """A DataLoader worker inherits the thread pool but not its thread; waiting for it would hang forever."""
    code = """
import os, signal
from PIL import Image
from minicpmv_ref.slicing import slice_image
image = Image.new("RGB", (640, 480))
slice_image(image)
child = os.fork()
if child == 0:
    signal.alarm(20)
    slice_image(image)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child hung"
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- errors ---

BAD_SIZES = [(0, 5), (5, 0), (-1, 3), (1.5, 2), ("a", 1), None, (1, 2, 3), (7,), (), 5, "ab", (None, 1)]


@pytest.mark.parametrize("bad", BAD_SIZES, ids=repr)
@pytest.mark.parametrize("function", [candidate_grids, best_grid, paper_grid, plan_slices])
def test_bad_sizes_are_named(function, bad):
    with pytest.raises(ValueError, match=r"size.*width, height") as error:
        function(bad)
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize("bad", BAD_SIZES, ids=repr)
def test_partition_score_checks_both_arguments(bad):
    for arguments in ((bad, (1, 1)), ((5, 5), bad)):
        with pytest.raises(ValueError) as error:
            partition_score(*arguments)
        assert repr(bad) in str(error.value)
    with pytest.raises(ValueError, match=r"grid.*cols, rows"):
        partition_score((5, 5), bad)


def test_sizes_may_come_from_numpy():
    height, width = np.zeros((480, 640)).shape
    plan = plan_slices(np.array([width, height]))
    assert plan == plan_slices((640, 480))
    json.dumps([plan.image_size, plan.patch_grids])  # plain integers


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        slice_image(Image.new("RGB", (0, 5)))


# --- what is refused before any work ---


@pytest.mark.parametrize(
    "bad",
    [
        (640.0, 480),
        "64",
        b"ab",
        {640, 480},
        {640: 1, 480: 2},
        (True, 5),
        np.array([640.5, 480]),
        np.int64(7),
        np.zeros((2, 2)),
    ],
)
def test_what_is_no_size_is_a_type_error(bad):
    for function in (candidate_grids, best_grid, paper_grid, plan_slices):
        with pytest.raises(TypeError, match=r"size must be two integers \(width, height\)"):
            function(bad)
    with pytest.raises(TypeError, match=r"grid must be two integers \(cols, rows\)"):
        partition_score((5, 5), bad)


@pytest.mark.parametrize("huge", [2**31 + 1, 10**30, 10**5000], ids=["2^31", "10^30", "10^5000"])
def test_huge_sizes_are_refused_in_a_short_message(huge):
    for bad in ((huge, 1), (1, huge)):
        for function in (candidate_grids, best_grid, paper_grid, plan_slices):
            with pytest.raises(ValueError, match=r"size \(width, height\) must be at most 2\^31") as error:
                function(bad)
            assert len(str(error.value)) < 200
    assert plan_slices((2**31, 2**31)).grid == (3, 3)


@pytest.mark.parametrize("bad", [None, {"max_slice_nums": 9}, 448, "nano"], ids=repr)
def test_a_config_of_another_type_is_named(bad):
    for function in (candidate_grids, best_grid, paper_grid, plan_slices):
        with pytest.raises(TypeError, match="cfg must be SliceConfig, got"):
            function((640, 480), bad)
    with pytest.raises(TypeError, match="cfg must be SliceConfig, got"):
        slice_image(Image.new("RGB", (64, 48)), bad)


@pytest.mark.parametrize("bad", ["x", "64", None, 1.5, True, [64]], ids=repr)
def test_a_number_of_queries_of_another_type_is_named(bad):
    with pytest.raises(TypeError, match="num_queries must be an integer of at least 1, got"):
        plan_slices((640, 480)).visual_tokens(bad)
    with pytest.raises(ValueError, match="num_queries must be an integer of at least 1, got 0"):
        plan_slices((640, 480)).visual_tokens(0)


@pytest.mark.parametrize("bad", [None, "cat.jpg", np.zeros((4, 4, 3), np.uint8)], ids=["None", "text", "array"])
def test_what_is_no_image_is_named(bad):
    for function in (slice_image, to_rgb, lambda image: resize_views(image, plan_slices((4, 4)))):
        with pytest.raises(TypeError, match="image must be a PIL image, got"):
            function(bad)


def test_a_plan_belongs_to_its_size():
    image = Image.new("RGB", (640, 480))
    with pytest.raises(ValueError, match=r"plan is for an image of size \(480, 640\), got one of \(640, 480\)"):
        resize_views(image, plan_slices((480, 640)))
    with pytest.raises(TypeError, match="plan must be SlicePlan"):
        resize_views(image, (640, 480))


@pytest.mark.parametrize("size", [(1, 20_000_000), (1, 65_537), (200_000, 3), (3, 200_000), (2**31, 1)])
def test_pictures_that_would_compute_for_minutes_are_refused_before_work(size):
    plan = plan_slices(size)  # the arithmetic itself is exact for every size

    class Untouched(Image.Image):
        size = plan.image_size
        load = convert = resize = None

    with pytest.raises(ValueError, match="too long for its width: one side may have at most 65,536 times the other"):
        resize_views(Untouched(), plan)
    with pytest.raises(ValueError, match="Cut it into parts"):
        check_plan(plan)


# a panorama of 100:1, a receipt, a screenshot of a long page, lines of one pixel, the largest photograph of a phone
SENSIBLE = [(30_000, 300), (1000, 30_000), (1080, 60_000), (1, 10_000), (10_000, 1), (1, 65_536), (16_320, 12_240)]


@pytest.mark.parametrize("size", SENSIBLE)
@pytest.mark.parametrize("cfg", [SliceConfig(), SliceConfig(112), SliceConfig(max_slice_nums=36), SliceConfig(980, 14)])
def test_sensible_pictures_are_never_refused(size, cfg):
    check_plan(plan_slices(size, cfg))


@pytest.mark.parametrize("cfg", [SliceConfig(128, 1, 1000), SliceConfig(448, 14, 1000), SliceConfig(2**15, 2**10)])
def test_configs_whose_views_are_too_many_or_too_large_are_refused(cfg):
    plan = plan_slices((16_000, 16_000), cfg)
    with pytest.raises(ValueError, match="a smaller max_slice_nums or scale_resolution makes them fewer"):
        check_plan(plan)


def test_the_largest_views_that_are_computed(monkeypatch):
    plan = plan_slices((1000, 700))
    views = [plan.overview_size, plan.refined_size]
    pixels = sum(width * height for width, height in views)
    for name, most in (("picture_pixels", pixels), ("picture_patches", pixels // 14**2)):
        with monkeypatch.context() as context:
            context.setitem(LIMITS, name, most)
            check_plan(plan)
            context.setitem(LIMITS, name, most - 1)
            with pytest.raises(ValueError, match=f"would have {pixels:,} pixels and {pixels // 14**2:,} patches"):
                check_plan(plan)
