"""peers/sizes.py against the public code's outputs, transformers' own processors, and real pixels.

Live oracles are transformers' `image_processing_pil_*` files: the ones without "pil" need torchvision.
"""

import math
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

import minicpmv_ref.peers
from minicpmv_ref.config import SliceConfig
from minicpmv_ref.peers import SYSTEMS, plan
from minicpmv_ref.peers.sizes import (
    INTERLEAVE_CANVASES,
    NEXT_CANVASES,
    ONEVISION_CANVASES,
    best_resolution,
    cap_grid,
    clip_frames,
    fit_inside,
    frame_groups,
    tile_grid,
    unpad,
)
from minicpmv_ref.slicing import slice_image

GOLDEN = ROOT / "tests/peers/golden"
PEER_NEXT = LlavaNextImageProcessorPil()
PEER_ONEVISION = LlavaOnevisionImageProcessorPil()
PEER_46 = MiniCPMV4_6ImageProcessorPil()


def random_sizes(count, seed, most=4000):
    """Half of them uniform, half log-uniform, so thin and small ones are frequent."""
    draw = random.Random(seed)

    def side(number):
        return draw.randint(1, most) if number % 2 else round(math.exp(draw.uniform(0, math.log(most))))

    return [(side(number), side(number)) for number in range(count)]


SIZES = random_sizes(20_000, seed=0)

# ---- the table: views and tokens of 20 sizes, from the public code (LLaVA-NeXT, InternVL, Cambrian, MiniCPM-V) and
# transformers (OneVision, MiniCPM-V 4.6)

TABLE = {
    # size: NeXT, OneVision, InternVL-1.5 (12), InternVL-1.5 (40), Cambrian-1 tokens, 2.6, 4.6 tokens
    (224, 224): ((3, 1176), (2, 1485), (1, 256), (1, 256), 600, (1, 64), 64),
    (336, 336): ((3, 1176), (2, 1485), (1, 256), (1, 256), 600, (1, 64), 64),
    (448, 448): ((5, 2928), (5, 3699), (1, 256), (1, 256), 600, (1, 64), 64),
    (640, 480): ((5, 2340), (5, 2929), (13, 3328), (13, 3328), 450, (3, 192), 203),
    (480, 640): ((5, 2352), (5, 2943), (13, 3328), (13, 3328), 456, (3, 192), 203),
    (512, 512): ((5, 2928), (5, 3699), (1, 256), (1, 256), 600, (3, 192), 196),
    (672, 672): ((5, 2928), (5, 3699), (5, 1280), (5, 1280), 600, (5, 320), 320),
    (800, 1300): ((5, 2064), (13, 8073), (7, 1792), (41, 10496), 360, (7, 448), 444),
    (800, 600): ((5, 2340), (7, 4725), (13, 3328), (13, 3328), 450, (5, 320), 315),
    (1024, 768): ((5, 2340), (7, 4725), (13, 3328), (13, 3328), 450, (5, 320), 315),
    (1280, 720): ((5, 1948), (9, 5967), (9, 2304), (29, 7424), 350, (7, 448), 444),
    (1344, 1344): ((5, 2928), (17, 7371), (10, 2560), (17, 4352), 600, (10, 640), 640),
    (1920, 1080): ((5, 1948), (16, 7269), (9, 2304), (29, 7424), 350, (9, 576), 578),
    (1080, 1920): ((5, 1968), (16, 7317), (9, 2304), (29, 7424), 360, (9, 576), 578),
    (1000, 200): ((4, 1598), (4, 2123), (6, 1536), (6, 1536), 100, (1, 64), 72),
    (200, 1000): ((4, 1656), (4, 2187), (6, 1536), (6, 1536), 120, (1, 64), 72),
    (2048, 1536): ((5, 2340), (25, 7309), (13, 3328), (13, 3328), 450, (10, 640), 630),
    (3000, 4000): ((5, 2352), (31, 7332), (13, 3328), (13, 3328), 456, (10, 640), 630),
    (3840, 2160): ((5, 1948), (25, 7317), (9, 2304), (29, 7424), 350, (9, 576), 578),
    (5000, 500): ((4, 1160), (7, 3500), (11, 2816), (11, 2816), 50, (10, 640), 651),
}


@pytest.mark.parametrize("size", TABLE, ids=lambda size: "{}x{}".format(*size))
def test_the_table_of_twenty_sizes(size):
    def counts(system, **more):
        made = plan(system, size, **more)
        return made.views, made.visual_tokens

    next_, onevision, twelve, forty, cambrian, (views, tokens), merged = TABLE[size]
    assert counts("llava-next") == counts("llava-next", ties="transformers") == counts("llava-next-video") == next_
    assert counts("llava-onevision") == onevision
    assert counts("internvl-1.5") == twelve and counts("internvl-1.5", max_tiles=40) == forty
    assert counts("cambrian-1") == (1, cambrian)
    assert counts("minicpm-v-2.0") == counts("minicpm-v-2.6") == counts("minicpm-v-4.5") == (views, tokens)
    assert counts("minicpm-v-2.5") == (views, 96 * views)
    assert counts("minicpm-v-4.6") == (views, merged)
    fixed = {"llava-1.5": 576, "internvl-1.0": 96, "vila-1.5": 196, "cogvlm2": 2304, "glm-4v": 1600}
    assert {system: counts(system) for system in fixed} == {system: (1, tokens) for system, tokens in fixed.items()}


# ---- LLaVA


def test_both_orders_of_equal_canvases():
    """In the public repository a pair is (width, height), in transformers (height, width): the numbers are the same."""
    pairs = [list(canvas) for canvas in NEXT_CANVASES]
    assert PEER_NEXT.image_grid_pinpoints == pairs
    for size in SIZES:
        assert best_resolution(size) == select_best_resolution(size, pairs)
        assert best_resolution(size, "transformers") == select_best_resolution(size[::-1], pairs)[::-1]


def test_where_the_orders_differ():
    differ = [size for size in SIZES if best_resolution(size) != best_resolution(size, "transformers")]
    # Small pictures fit into both as they are. Of very thin ones no pixel is kept, so all canvases keep equally much.
    assert differ == [size for size in SIZES if max(size) <= 336 or max(size) > 1008 * min(size)]
    assert sum(max(size) <= 336 for size in differ) > 1000 and len(differ) > 5000
    corner = [(336, 336), (337, 336), (336, 337), (1, 336), (337, 1), (315, 81)]
    assert [best_resolution(size) != best_resolution(size, "transformers") for size in corner] == [1, 0, 0, 1, 0, 1]
    counts = [plan("llava-next", (315, 81), ties=ties).visual_tokens for ties in ("public", "transformers")]
    assert counts == [726, 1164]


@pytest.mark.parametrize("canvases", [ONEVISION_CANVASES, INTERLEAVE_CANVASES], ids=["onevision", "interleave"])
def test_other_canvases(canvases):
    for size in SIZES[:3000]:
        ours = best_resolution(size, "transformers", canvases)
        assert ours == select_best_resolution(size[::-1], canvases)[::-1]
    if canvases is ONEVISION_CANVASES:
        assert [list(canvas) for canvas in canvases] == PEER_ONEVISION.image_grid_pinpoints
        assert all(best_resolution(size, canvases=canvases) == best_resolution(size, "transformers", canvases)
                   for size in SIZES[:3000])  # fmt: skip


def test_of_equal_canvases_the_smallest_wins_wherever_it_stands():
    backward = ONEVISION_CANVASES[::-1]
    for size in SIZES[:3000]:
        assert best_resolution(size, canvases=backward) == select_best_resolution(size, backward)


def test_tokens_of_llava_next():
    peer = SimpleNamespace(image_processor=PEER_NEXT, patch_size=14, num_additional_image_tokens=0)
    peer._get_unpadded_features = lambda *given: LlavaNextProcessor._get_unpadded_features(peer, *given)
    for width, height in SIZES:
        expected = LlavaNextProcessor._get_number_of_features(peer, height, width, 336, 336)
        assert plan("llava-next", (width, height), ties="transformers").visual_tokens == expected, (width, height)


def onevision(most):
    peer = SimpleNamespace(image_processor=PEER_ONEVISION, num_image_tokens=729, image_token="x", video_token="x")
    peer.vision_aspect_ratio, peer.vision_feature_select_strategy = f"anyres_max_{most}", "full"
    peer._get_unpadded_features = lambda *given: LlavaOnevisionProcessor._get_unpadded_features(peer, *given)
    return peer


@pytest.mark.parametrize(("most", "count"), [(9, 5000), (4, 1000), (1, 1000), (36, 1000)])
def test_tokens_of_onevision(most, count):
    peer = onevision(most)
    for width, height in SIZES[:count]:
        expected = LlavaOnevisionProcessor._get_number_of_features(peer, height, width, 384, 384)
        made = plan("llava-onevision", (width, height), max_tiles=most, ties="transformers")
        assert made.visual_tokens == expected, (width, height)


def test_several_pictures_and_clips_of_onevision():
    inputs = {"batch_num_images": [3]}
    one = len(LlavaOnevisionProcessor.replace_image_token(onevision(9), inputs, 1))
    clip = LlavaOnevisionProcessor.replace_video_token(onevision(9), {"pixel_values_videos": [list(range(8))]}, 0)
    for system in ("llava-onevision", "llava-next-interleave"):
        made = plan(system, (640, 480), pictures=3)
        assert (made.views, made.visual_tokens, made.newlines) == (3, 3 * one, 3)
        made = plan(system, (640, 480), frames=8)
        assert (made.views, made.visual_tokens, made.newlines) == (8, len(clip), 1)


@pytest.mark.parametrize(("frames", "tokens"), [(16, 2304), (32, 4608), (56, 8064)])
def test_frames_of_llava_next_video(frames, tokens):
    peer = SimpleNamespace(patch_size=14, video_token="x")
    clip = {"pixel_values_videos": [np.zeros((frames, 3, 336, 336), np.uint8)]}
    made = plan("llava-next-video", (1920, 1080), frames=frames)
    assert made.visual_tokens == tokens == len(LlavaNextVideoProcessor.replace_video_token(peer, clip, 0))
    assert (made.views, made.newlines, made.tiles) == (frames, 0, ((420.0, 0.0, 1500.0, 1080.0),))


def test_interleave_tiles_only_a_picture_that_is_alone():
    alone, twice = (plan("llava-next-interleave", (1344, 1344), pictures=n) for n in (1, 2))
    assert (alone.views, len(alone.tiles), alone.visual_tokens) == (5, 4, 729 + 54 * 55)
    assert (twice.views, len(twice.tiles), twice.visual_tokens) == (2, 1, 2 * 730)


def test_fit_inside_equals_transformers():
    for (width, height), canvas in zip(SIZES[:5000], NEXT_CANVASES * 1000):
        picture = np.broadcast_to(np.uint8(0), (3, height, width))
        expected = get_patch_output_size(picture, canvas[::-1], input_data_format=ChannelDimension.FIRST)[::-1]
        assert fit_inside((width, height), canvas) == expected


@pytest.mark.parametrize("name", ["1x3", "2x2", "3x1"])  # columns, rows
def test_unpad_equals_the_public_merge(name):
    file = np.load(GOLDEN / f"llava_next_merge_{name}.npz")
    across, down = map(int, name.split("x"))
    rows, cols = unpad((6 * down, 6 * across), tuple(map(int, file["image_size_wh"])))
    assert len(file["out"]) == len(file["base"]) + rows * (cols + 1)
    assert (rows, cols) != (6 * down, 6 * across)


def test_an_odd_row_of_padding_stays():
    assert unpad((48, 48), (672, 490)) == (36, 48)  # 35 rows have content, 13 are padding: 6 go on each side
    assert unpad((24, 24), (4000, 1)) == (0, 24)


def test_a_thin_picture_vanishes_in_cambrian():
    """Its unpad_image, too, leaves no row of 24 where the picture is thinner than one."""
    assert [plan("cambrian-1", size).visual_tokens for size in ((2400, 100), (2401, 100), (100, 2401))] == [50, 0, 24]


def test_the_cap_begins_at_ten_percent_a_side():
    assert cap_grid((81, 98), 9) == (81, 98)  # ratio 1.09994
    assert cap_grid((81, 99), 9) == (73, 89)


# ---- InternVL


def test_tile_grid_equals_the_public_code():
    file = np.load(GOLDEN / "internvl15_tiling.npz")
    for most in (6, 12, 24, 40):
        for size, grid, views in zip(
            file["sizes_wh"].tolist(),
            file[f"grid_cols_rows_max{most}"].tolist(),
            file[f"tiles_with_thumbnail_max{most}"].tolist(),
        ):
            assert list(tile_grid(size, most)) == grid
            made = plan("internvl-1.5", size, max_tiles=most)
            assert (made.views, made.visual_tokens, len(made.tiles)) == (views, 256 * views, math.prod(grid))
    boxes = file["boxes_800x1300_max12"] * np.array([800 / 896, 1300 / 1344] * 2)
    np.testing.assert_allclose(plan("internvl-1.5", (800, 1300)).tiles, boxes)


@pytest.mark.parametrize(
    ("most", "count", "side"), [(12, 16_000, 448), (40, 5000, 448), (1, 100, 448), (12, 4000, 224)]
)
def test_tile_grid_equals_transformers(most, count, side):
    for width, height in [*SIZES[:count], (400, 400), (800, 400)]:
        found = tile_grid((width, height), most, side)
        assert found == get_optimal_tiled_canvas((height, width), (side, side), 1, most)


# ---- MiniCPM-V


@pytest.mark.parametrize(("most", "count"), [(9, 20_000), (36, 3000), (1, 1000)])
def test_slices_of_4_6(most, count):
    for width, height in SIZES[:count]:
        grid = PEER_46.get_sliced_grid((height, width), most, 448)
        rounding = dict(scale_resolution=448, patch_size=14, downsample_mode="16x", allow_upscale=True)
        rows, cols = PEER_46.find_best_resize((height, width), **rounding)
        pixels = rows * cols
        if grid:
            rows, cols = PEER_46.get_refine_size((height, width), grid, **rounding)
            pixels += rows * cols
        made = plan("minicpm-v-4.6", (width, height), max_tiles=most)
        views = 1 + math.prod(grid or [0])
        assert (made.views, made.visual_tokens, made.pixels_seen) == (views, pixels // 56**2, pixels), (width, height)


LATER = {  # tokens: a picture of 4.6 with up to 36 slices; a frame of 2.6 with 1 and 2, of 4.6 with 1
    (224, 224): (64, 64, 64, 64),
    (448, 448): (64, 64, 64, 64),
    (449, 448): (196, 64, 192, 64),
    (640, 480): (203, 64, 192, 63),
    (800, 1300): (444, 64, 192, 60),
    (1280, 720): (444, 64, 192, 66),
    (1344, 1344): (640, 64, 192, 64),
    (1920, 1080): (822, 64, 192, 66),
    (1000, 200): (72, 64, 64, 72),
    (3840, 2160): (2334, 64, 192, 66),
}


@pytest.mark.parametrize("size", LATER, ids=lambda size: "{}x{}".format(*size))
def test_later_versions_and_their_frames(size):
    found = (
        plan("minicpm-v-4.6", size, max_tiles=36),
        plan("minicpm-v-2.6", size, frames=1, max_tiles=1),
        plan("minicpm-v-2.6", size, frames=1),
        plan("minicpm-v-4.6", size, frames=1),
    )
    assert tuple(made.visual_tokens for made in found) == LATER[size]
    assert plan("minicpm-v-2.6", size, frames=64).visual_tokens == 64 * found[2].visual_tokens


@pytest.mark.parametrize(
    ("frames", "packing", "groups", "tokens"),
    [(30, 1, 30, 1920), (180, 1, 180, 11520), (183, 2, 92, 5888), (360, 2, 180, 11520), (540, 3, 180, 11520)],
)
def test_groups_of_4_5(frames, packing, groups, tokens):
    """By the published demo: 10, 60, 61, 120 and 180 seconds at three frames a second."""
    assert frame_groups(frames) == (packing, groups)
    assert (frame_groups(181), frame_groups(361)) == ((2, 91), (3, 121))  # one more than fits
    made = plan("minicpm-v-4.5", (1280, 720), frames=frames)
    assert (made.views, made.visual_tokens) == (frames, tokens)
    assert plan("minicpm-v-4.5", (1280, 720), frames=frames, max_tiles=2).visual_tokens == 3 * tokens


@pytest.mark.parametrize(
    ("seconds", "rate", "packing", "frames", "tokens"),
    [
        *((10, 3, 1, 30, 1920), (60, 3, 1, 180, 11520), (61, 3, 2, 183, 5888), (120, 3, 2, 360, 11520)),
        *((180, 3, 3, 540, 11520), (999, 3, 3, 540, 11520), (10, 10, 1, 100, 6400), (60, 10, 3, 540, 11520)),
    ],
)
def test_frames_of_a_clip_in_4_5(seconds, rate, packing, frames, tokens):
    """What the published demo gives for clips of 30 frames a second."""
    assert clip_frames("minicpm-v-4.5", seconds, rate) == frames
    assert frame_groups(frames)[0] == packing
    assert plan("minicpm-v-4.5", (640, 480), frames=frames).visual_tokens == tokens


@pytest.mark.parametrize("seconds", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("rate", [10, 25, 29.97, 60])
def test_frames_of_a_clip_in_2_6(seconds, rate):
    """encode_video of the published document, on the numbers of frames of a file."""
    every = list(range(0, int(seconds * round(rate)), round(rate)))
    if len(every) > 64:
        gap = len(every) / 64
        every = [every[int(i * gap + gap / 2)] for i in range(64)]
    assert clip_frames("minicpm-v-2.6", seconds) == len(every)


def test_frames_of_a_clip_elsewhere():
    assert [clip_frames("minicpm-v-4.6", seconds) for seconds in (1, 128, 129)] == [1, 128, 128]
    assert [clip_frames("llava-next-video", seconds) for seconds in (1, 3600)] == [32, 32]
    assert clip_frames("llava-next-video", 5, most=56) == 56
    for system, rate, words in (
        ("llava-next-video", 2, "rate must be None"),
        ("llava-1.5", None, "system must be one"),
    ):
        with pytest.raises(ValueError, match=words):
            clip_frames(system, 5, rate)


# ---- real pixels: what stands in a view is what the boxes say


def ramp(width, height):
    """Red grows with x, green with y, blue is 255; so padding, which is black, has no blue."""
    x, y = np.meshgrid((np.arange(width) + 0.5) * 255 / width, (np.arange(height) + 0.5) * 255 / height)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], axis=-1).round().astype(np.uint8))


def compare(made, views, size):
    """`views`, the tiles in order, (3, rows, cols): each shows what stands in its box, and black beyond the picture."""
    for (left, top, right, bottom), view in zip(made.tiles, views, strict=True):
        red, green, blue = np.asarray(view, np.float64)
        steps = (
            (right - left) / blue.shape[1],
            (bottom - top) / blue.shape[0],
        )  # pixels of the picture for one of the view
        x = left + (np.arange(blue.shape[1]) + 0.5) * steps[0]
        y = top + (np.arange(blue.shape[0]) + 0.5) * steps[1]
        margin = [3 * max(1, step) for step in steps]  # resizing blurs an edge
        inside_x, inside_y = (
            (at > edge) & (at < side - edge) for at, edge, side in zip((x, y), margin, size, strict=True)
        )
        outside_x, outside_y = (
            (at < -edge) | (at > side + edge) for at, edge, side in zip((x, y), margin, size, strict=True)
        )
        inside = inside_y[:, None] & inside_x
        assert np.abs(red - x * 255 / size[0])[inside].max(initial=0) < 3
        assert np.abs(green - y[:, None] * 255 / size[1])[inside].max(initial=0) < 3
        assert blue[inside].min(initial=255) > 250
        assert blue[outside_y[:, None] | outside_x].max(initial=0) < 5


PLAIN = dict(do_rescale=False, do_normalize=False, return_tensors="np")
SHAPES = [(640, 480), (300, 900), (500, 120), (60, 50), (700, 700), (1333, 401)]


@pytest.mark.parametrize("size", SHAPES)
def test_boxes_of_llava_next(size):
    square = {"height": 336, "width": 336}
    views = PEER_NEXT.preprocess(ramp(*size), size=square, crop_size=square, **PLAIN)["pixel_values"][0]
    made = plan("llava-next", size, ties="transformers")
    compare(made, views[1:], size)
    assert made.views == len(views)
    seen = sum((view[2] > 127).sum() for view in views)
    assert seen == pytest.approx(made.pixels_seen, rel=0.01)
    assert made.padding == pytest.approx(1 - seen / (len(views) * 336**2), abs=0.01)


@pytest.mark.parametrize("size", SHAPES)
def test_boxes_of_onevision(size):
    for pictures in (1, 2):
        peer = LlavaOnevisionImageProcessorPil(image_mean=[0, 0, 0])  # pads with black, not gray
        views = peer.preprocess([[ramp(*size)] * pictures], **PLAIN)["pixel_values"]
        made = plan("llava-onevision", size, pictures, ties="transformers")
        assert made.views == sum(len(each) for each in views)
        compare(made, views[0][1 if pictures == 1 else 0 :], size)
        seen = (views[:, :, 2] > 127).sum()
        assert seen == pytest.approx(made.pixels_seen, rel=0.02)
        assert made.padding == pytest.approx(1 - seen / (made.views * 384**2), abs=0.01)


@pytest.mark.parametrize("size", SHAPES)
def test_box_of_llava_1_5(size):
    peer = LlavaImageProcessorPil(do_pad=True, image_mean=[0, 0, 0], size={"height": 336, "width": 336})
    (view,) = peer.preprocess(ramp(*size), do_center_crop=False, **PLAIN)["pixel_values"]
    made = plan("llava-1.5", size)
    compare(made, [view], size)
    assert (view[2] > 127).sum() == pytest.approx(made.pixels_seen, rel=0.02)


@pytest.mark.parametrize("size", SHAPES)
def test_boxes_of_internvl(size):
    views = GotOcr2ImageProcessorPil().preprocess(
        ramp(*size), crop_to_patches=True, min_patches=1, max_patches=12, size={"height": 448, "width": 448}, **PLAIN
    )["pixel_values"]
    made = plan("internvl-1.5", size)
    assert len(views) == made.views
    compare(made, views[: len(made.tiles)], size)


@pytest.mark.parametrize("size", [*SHAPES, (1920, 1080), (300, 200)])
def test_boxes_of_minicpm_v(size):
    views = [np.asarray(view).transpose(2, 0, 1) for view in slice_image(ramp(*size), SliceConfig())]
    made = plan("minicpm-v-2.6", size)
    compare(made, views[1:], size)
    assert made.pixels_seen == sum(view[0].size for view in views)


# ---- what holds for every system


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_plan_is_sound(system):
    sizes = [*random_sizes(150, seed=1), (2**31, 1), (1, 2**31), (1, 1)]
    cropped = system == "llava-next-video"
    for size in sizes:
        for more in ({}, {"pictures": 3}, {"frames": 5}):
            try:
                made = plan(system, size, **more)
            except ValueError as error:
                assert more and system in str(error)
                continue
            times = max(more.values(), default=1)
            each = made.views // times
            assert made.views == each * times and each - len(made.tiles) in (0, 1)
            vanished = system == "cambrian-1" and size[0] > 24 * size[1]
            assert 0 <= made.newlines <= made.visual_tokens and (made.visual_tokens > 0) != vanished
            assert 0 <= made.padding < 1 and made.bend >= 1 and made.pixels_seen >= 0
            lefts, tops, rights, bottoms = zip(*made.tiles) if made.tiles else [(0,), (0,), (size[0],), (size[1],)]
            area = sum((r - le) * (b - t) for le, t, r, b in made.tiles)
            if made.tiles and not (cropped and "frames" in more):  # side by side, and over the whole picture
                assert area == pytest.approx((max(rights) - min(lefts)) * (max(bottoms) - min(tops)), rel=1e-6)
                slack = 1e-6 * max(size)
                assert min(lefts) <= slack and min(tops) <= slack
                assert max(rights) >= size[0] - slack and max(bottoms) >= size[1] - slack


def test_several_equal_pictures_cost_as_many_times():
    for system in ("llava-1.5", "llava-next", "internvl-1.5", "vila-1.5", "minicpm-v-2.6", "minicpm-v-4.6"):
        one, four = plan(system, (900, 500)), plan(system, (900, 500), pictures=4)
        assert [four.views, four.visual_tokens, four.newlines, four.pixels_seen] == [
            4 * each for each in (one.views, one.visual_tokens, one.newlines, one.pixels_seen)
        ]
        assert (four.tiles, four.padding, four.bend) == (one.tiles, one.padding, one.bend)


def test_bend_by_hand():
    assert plan("vila-1.5", (900, 300)).bend == plan("cogvlm2", (300, 900)).bend == 3
    assert plan("llava-1.5", (900, 300)).bend == plan("cambrian-1", (900, 300)).bend == 1
    assert plan("internvl-1.5", (640, 480)).bend == pytest.approx(4 / 3)  # the tiles are not bent, the thumbnail is
    assert plan("internvl-1.5", (450, 448)).bend == pytest.approx(450 / 448)
    assert plan("minicpm-v-2.6", (640, 480)).bend < 1.01 * (640 / 480) / (728 / 546)


def test_padding_by_hand():
    assert plan("llava-1.5", (640, 480)).padding == 0.25
    assert plan("llava-1.5", (640, 480)).pixels_seen == 336 * 252
    made = plan("llava-next", (640, 480))  # 672 x 504 in 672 x 672, and the overview
    assert (made.pixels_seen, made.padding) == (672 * 504 + 336**2, pytest.approx(168 * 672 / (5 * 336**2)))
    assert plan("cambrian-1", (100, 100)).pixels_seen == 384**2 + 336**2 + 378**2 + 1024**2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("llava-2", (640, 480)), "system must be one of llava-1.5"),
        (("llava-next", (0, 480)), "at least 1 on both sides"),
        (("llava-next", (640.5, 480)), "two integers"),
        (("llava-next", (640, 480), 0), "pictures must be an integer of at least 1"),
        (("llava-next", (640, 480), 1, -1), "frames must be an integer of at least 0"),
        (("llava-next", (640, 480), 1, 8), "llava-next is published without video"),
        (("cogvlm2", (640, 480), 2), "cogvlm2 is published for one picture"),
        (("vila-1.5", (640, 480), 2, 8), "a clip stands alone"),
        (("internvl-1.5", (640, 480), 1, 0, 0), "max_tiles must be an integer of at least 1"),
        (("llava-1.5", (640, 480), 1, 0, 4), "llava-1.5 has no such limit"),
        (("llava-onevision", (640, 480), 2, 0, 4), "llava-onevision has no such limit"),
        (("llava-next", (640, 480), 1, 0, None, "ours"), "ties must be one of public, transformers"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        plan(*arguments)


def test_no_torch():
    code = (
        "import sys\nsys.modules.update(torch=None, transformers=None)\n"
        "from minicpmv_ref.peers import SYSTEMS, plan\n"
        "print(sum(plan(system, (1344, 1344)).visual_tokens for system in SYSTEMS))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) == sum(plan(system, (1344, 1344)).visual_tokens for system in SYSTEMS)


def test_names_load_lazily():
    assert set(minicpmv_ref.peers.__all__) <= set(dir(minicpmv_ref.peers))
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        minicpmv_ref.peers.plans  # noqa: B018
