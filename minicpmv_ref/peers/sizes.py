"""How sixteen systems cut a picture: its size goes in, tiles, tokens and pixels come out. No torch.

Implements the published preprocessing of each system, to the last bit where sizes are rounded. Left out: the pixels
themselves, and the tokens around the visual ones (begin and end of an image, markers, line breaks).
Sizes are (width, height) in pixels, patch grids (rows, cols), tile grids (cols, rows), as in slicing.py.

Five ways to bring a picture of any shape into an encoder that wants squares, and who uses them:
    squeeze       resize to the square, bend the content                     InternVL-1.0, VILA-1.5, CogVLM2, GLM-4V
    pad           add two bars, then resize                                  LLaVA-1.5, Cambrian-1
                                                                             several pictures in OneVision, Interleave
    crop          resize the shorter side, throw away the ends               frames of LLaVA-NeXT-Video
    pad and tile  fit into the best of some canvases, cut that into squares  LLaVA-NeXT, OneVision, Interleave
    bend and tile squeeze into the grid of the nearest shape, cut that       InternVL-1.5
MiniCPM-V needs none of the five: its encoder takes slices of any shape, so it only rounds sides to whole patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from ..config import SliceConfig
from ..inputs.checks import LIMITS, check_choice, check_int, check_list, check_size, shown
from ..slicing import Grid, Size, plan_slices

Box = tuple[float, float, float, float]  # (left, top, right, bottom) in pixels of the original picture

TIES = ("public", "transformers")
# Canvases that a picture may be fitted into, (width, height), in the order of the public repository.
NEXT_CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# Interleave: its config says "anyres"; the canvases are those of LLaVA-NeXT's scripts with SigLIP at 384 pixels.
INTERLEAVE_CANVASES = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
ONEVISION_CANVASES = tuple((384 * cols, 384 * rows) for cols in range(1, 7) for rows in range(1, 7))
CAMBRIAN_SIDES = (384, 336, 378, 1024)  # SigLIP, CLIP, DINOv2, ConvNeXt: four encoders see the same square


@dataclass(frozen=True)
class Plan:
    """What a system makes of a picture, of several equal ones, or of a clip. Counts are over all of them."""

    tiles: tuple[Box, ...]  # of one picture or frame, row by row, without the overview
    views: int  # tiles and overviews
    visual_tokens: int  # what the language model reads, newlines included
    newlines: int  # learned tokens that end a row of patches, a picture or a clip
    pixels_seen: int  # of all views, as large as the encoders get them; without padding
    padding: float  # padded / all pixels of the views
    bend: float  # the most that a view is stretched in one direction; 1: not at all


# ---- LLaVA: pad and tile


def best_resolution(size: Size, ties: str = "public", canvases: tuple[Size, ...] = NEXT_CANVASES) -> Size:
    """Choose the canvas that a picture is fitted into: the one that keeps most pixels, of equals the smallest.

    Args:
        size: (width, height) of the picture in pixels.
        ties: which of equals wins: "public", the first in the list of the public repository, or "transformers", whose
            list has the same numbers as (height, width). So the former makes a small picture portrait, the latter
            landscape. They differ where no side is above 336, and where one is more than 1,008 times the other.
        canvases: (width, height) of each, in the order of the public repository.

    Returns:
        (width, height) of the canvas.

    Raises:
        TypeError: `size` or a canvas is not two integers.
        ValueError: a side below 1 or above 2^31, no canvases, or a wrong `ties`.

    Example:
        >>> best_resolution((640, 480)), best_resolution((300, 200)), best_resolution((300, 200), "transformers")
        ((672, 672), (336, 672), (672, 336))

    Source: LLaVA-NeXT, llava/mm_utils.py, select_best_resolution; transformers, image_processing_utils.py, the same.
    """
    width, height = check_size(size)
    canvases = [check_size(canvas, "canvases") for canvas in check_list("canvases", canvases, empty=False)]
    if check_choice("ties", ties, TIES) == "transformers":
        canvases = [(rows, cols) for cols, rows in canvases]

    def kept_and_free(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)  # enlarging adds no pixels
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=kept_and_free)  # subtle: the first of equals, as the official strict `<` does


def fit_inside(size: Size, canvas: Size) -> Size:
    """Resize a picture so that it just fits into a canvas; the rest of the canvas is padding, half on each side.

    Args:
        size: (width, height) of the picture in pixels.
        canvas: (width, height) of the canvas in pixels.

    Returns:
        (width, height) of the picture inside the canvas.

    Raises:
        TypeError: `size` or `canvas` is not two integers.
        ValueError: a side below 1 or above 2^31.

    Example:
        >>> fit_inside((640, 480), (672, 672)), fit_inside((1000, 200), (1008, 336))
        ((672, 504), (1008, 202))

    Source: LLaVA-NeXT, llava/mm_utils.py, resize_and_pad_image.
    """
    (width, height), (across, down) = check_size(size), check_size(canvas, "canvas")
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def unpad(grid: tuple[int, int], size: Size) -> tuple[int, int]:
    """Take the rows or columns of padding off a grid of patches.

    Args:
        grid: (rows, cols) of patches of the padded canvas.
        size: (width, height) of the picture inside it, before it was resized.

    Returns:
        (rows, cols) that are left. As many go on one side as on the other, so one row more than needed may stay.

    Raises:
        TypeError: `grid` or `size` is not two integers.
        ValueError: an entry below 1 or above 2^31.

    Example:
        >>> unpad((48, 48), (640, 480)), unpad((24, 24), (200, 1000))
        ((36, 48), (24, 4))

    Source: LLaVA-NeXT, llava/model/llava_arch.py, unpad_image. The rounding to 7 digits is transformers'
        (modeling_llava_next.py); no size is known where it matters.
    """
    (rows, cols), (width, height) = check_size(grid, "grid", "(rows, cols)"), check_size(size)
    if width / height > cols / rows:
        return rows - 2 * ((rows - int(round(height * (cols / width), 7))) // 2), cols
    return rows, cols - 2 * ((cols - int(round(width * (rows / height), 7))) // 2)


def cap_grid(grid: tuple[int, int], most: int, side: int = 27) -> tuple[int, int]:
    """Say to which grid the features of many tiles are interpolated, so that about `most` tiles' tokens are left.

    Args:
        grid: (rows, cols) of patches, without padding.
        most: N of anyres_max_N: a grid of up to 1.21 * N * side^2 patches stays as it is.
        side: patches along one side of a tile.

    Returns:
        (rows, cols), of at most N * side^2 patches where they changed.

    Raises:
        TypeError: `grid` is not two integers, `most` or `side` none.
        ValueError: one of them below 1.

    Example:
        >>> cap_grid((81, 81), 9), cap_grid((108, 108), 9)
        ((81, 81), (81, 81))

    Source: LLaVA-NeXT, llava/model/llava_arch.py, "anyres_max"; transformers, LlavaOnevisionModel.pack_image_features.
    """
    rows, cols = check_size(grid, "grid", "(rows, cols)")
    ratio = math.sqrt(rows * cols / (check_int("most", most) * check_int("side", side) ** 2))
    return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)


def _pad_and_tile(size: Size, canvases: tuple[Size, ...], tile: int, most: int | None, ties: str) -> Plan:
    """AnyRes: tiles of the padded canvas, and an overview that is squeezed. Each row of patches ends with a newline."""
    (width, height), canvas = size, best_resolution(size, ties, canvases)
    inside = fit_inside(size, canvas)
    left, top = ((outer - inner) // 2 for outer, inner in zip(canvas, inside))
    sx, sy = inside[0] / width, inside[1] / height
    cols, rows = canvas[0] // tile, canvas[1] // tile
    edges_x = [(col * tile - left) / sx for col in range(cols + 1)]
    edges_y = [(row * tile - top) / sy for row in range(rows + 1)]
    side = tile // 14
    grid = unpad((rows * side, cols * side), size)
    if most:
        grid = cap_grid(grid, most, side)
    views = 1 + cols * rows
    seen = tile * tile + inside[0] * inside[1]
    return Plan(
        tiles=_boxes(edges_x, edges_y),
        views=views,
        visual_tokens=side * side + grid[0] * (grid[1] + 1),
        newlines=grid[0],
        pixels_seen=seen,
        padding=1 - seen / (views * tile * tile),
        bend=max(_bend(tile / width, tile / height), _bend(sx, sy)),
    )


# ---- InternVL-1.5: bend and tile


def tile_grid(size: Size, max_num: int = 12, side: int = 448) -> Grid:
    """Choose the grid whose shape is nearest the picture's. Its number of tiles does not matter, but for equal shapes.

    Args:
        size: (width, height) of the picture in pixels.
        max_num: the most tiles; 12 in training, up to 40 in tests.
        side: of a tile in pixels; between grids of equal shape it decides.

    Returns:
        (cols, rows). Each tile has side x side pixels; with more than one, a thumbnail of the whole picture follows.

    Raises:
        TypeError: `size` is not two integers, `max_num` or `side` none.
        ValueError: a side below 1 or above 2^31, a number of tiles below 1 or above 1,000.

    Example:
        >>> tile_grid((640, 480)), tile_grid((800, 1300)), tile_grid((800, 1300), 40)
        ((4, 3), (2, 3), (5, 8))

    Source: InternVL, internvl_chat/internvl/train/dataset.py, dynamic_preprocess and find_closest_aspect_ratio.
        Of equal shapes (1 x 1, 2 x 2, ...) the largest wins that the picture fills by more than half. 640 x 480 has 12
        tiles because 4 x 3 is the only grid of exactly its shape.
    """
    (width, height), area = check_size(size), check_int("side", side) ** 2
    best, nearest = (1, 1), math.inf
    for cols, rows in _grids(check_int("max_num", max_num, most=LIMITS["max_slice_nums"])):
        distance = abs(width / height - cols / rows)
        fills = 2 * width * height > area * cols * rows  # the picture has more than half of the grid's pixels
        if distance < nearest or (distance == nearest and fills):
            best, nearest = (cols, rows), distance
    return best


@lru_cache(maxsize=64)
def _grids(most: int) -> list[Grid]:
    """All (cols, rows) of at most `most` tiles, by their number."""
    grids = [(cols, rows) for cols in range(1, most + 1) for rows in range(1, most // cols + 1)]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def _bend_and_tile(size: Size, most: int) -> Plan:
    (width, height), (cols, rows) = size, tile_grid(size, most)
    views = cols * rows + (cols * rows > 1)
    bends = [_bend(448 * cols / width, 448 * rows / height), _bend(448 / width, 448 / height) if views > 1 else 1.0]
    edges_x, edges_y = ([side * i / n for i in range(n + 1)] for side, n in zip(size, (cols, rows)))
    return Plan(_boxes(edges_x, edges_y), views, 256 * views, 0, 448 * 448 * views, 0.0, max(bends))


# ---- one view


def _squeeze(size: Size, side: int, tokens: int) -> Plan:
    width, height = size
    return Plan(_boxes((0.0, width), (0.0, height)), 1, tokens, 0, side * side, 0.0, _bend(1 / width, 1 / height))


def _pad(size: Size, sides: tuple[int, ...], tokens: int, newlines: int = 0) -> Plan:
    """The picture in the middle of a square; several encoders see it at several sizes."""
    width, height = size
    long = max(size)
    left, top = (long - width) // 2, (long - height) // 2
    pixels, filled = sum(side * side for side in sides), width * height / long**2
    tiles = _boxes((-left, long - left), (-top, long - top))
    return Plan(tiles, 1, tokens, newlines, round(pixels * filled), 1 - filled, 1.0)


def _crop(size: Size, side: int, tokens: int) -> Plan:
    """The square in the middle of the picture; what is left and right, or above and below, is thrown away."""
    width, height = size
    short = min(size)
    left, top = (width - short) / 2, (height - short) / 2
    return Plan(_boxes((left, left + short), (top, top + short)), 1, tokens, 0, side * side, 0.0, 1.0)


def _unpadded_square(size: Size) -> Plan:
    """Cambrian-1: 24 x 24 queries over four encoders, without those over padding, each row with a newline.

    Of a picture more than 24 times as long as wide none is left.
    """
    rows, cols = unpad((24, 24), size)
    return _pad(size, CAMBRIAN_SIDES, rows * (cols + 1), rows)


# ---- MiniCPM-V


def _slice(size: Size, most: int, queries: int | None) -> Plan:
    """The rule of slicing.py. 4.6 has no queries: it merges 4 x 4 patches into one token, so it rounds to 56."""
    made = plan_slices(size, SliceConfig(patch_size=14 if queries else 56, max_slice_nums=most))
    whole = [made.overview_size] + [made.refined_size] * (made.grid is not None)
    scales = [(width / size[0], height / size[1]) for width, height in whole]
    sx, sy = scales[-1]
    grids = made.patch_grids
    return Plan(
        tiles=tuple((left / sx, top / sy, right / sx, bottom / sy) for left, top, right, bottom in made.boxes),
        views=len(grids),
        visual_tokens=queries * len(grids) if queries else sum(rows * cols for rows, cols in grids),
        newlines=0,
        pixels_seen=sum(width * height for width, height in whole),
        padding=0.0,
        bend=max(_bend(*scale) for scale in scales),
    )


_SAMPLED = {  # system: (frames a second, frames at most)
    **{"minicpm-v-2.6": (1, 64), "minicpm-v-4.5": (3, 540), "minicpm-v-4.6": (1, 128), "llava-next-video": (None, 32)},
}


def clip_frames(system: str, seconds: int, rate: int | None = None, most: int | None = None) -> int:
    """Say how many frames of a clip a system looks at.

    Args:
        system: "minicpm-v-2.6", "minicpm-v-4.5", "minicpm-v-4.6", or "llava-next-video", which takes as many frames of
            any clip and leaves more or less time between them.
        seconds: how long the clip is.
        rate: frames a second, at most; None takes that of the demo: 1, and 3 in 4.5. LLaVA-NeXT-Video has none.
        most: frames at most; None takes the demo's: 64, 540, 128 and 32.

    Returns:
        Frames; if there would be more than `most`, so many are taken evenly over the whole clip.

    Raises:
        TypeError: a number that is none.
        ValueError: another system, a number below 1, a rate for LLaVA-NeXT-Video.

    Example:
        >>> [clip_frames(system, 61) for system in ("minicpm-v-2.6", "minicpm-v-4.5", "llava-next-video")]
        [61, 183, 32]

    Source: docs/minicpm_v2dot6_en.md of OpenBMB/MiniCPM-V (encode_video); the model cards of 4.5 and 4.6; docs/
        LLaVA-NeXT-Video.md of LLaVA-NeXT ("Sampled frames: 32").
    """
    own_rate, own_most = _SAMPLED[check_choice("system", system, _SAMPLED)]
    seconds, most = check_int("seconds", seconds), check_int("most", own_most if most is None else most)
    if own_rate is None:
        if rate is not None:
            raise ValueError(f"{system} takes equally many frames of any clip: rate must be None, got {shown(rate)}")
        return most
    return min(most, seconds * check_int("rate", own_rate if rate is None else rate))


def frame_groups(frames: int) -> tuple[int, int]:
    """Say how many frames MiniCPM-V 4.5 reads as one: its 3-D resampler gives 64 tokens for a group of frames.

    Args:
        frames: of the clip, after sampling; the released demo takes 3 a second, and at most 540.

    Returns:
        (frames of a group, groups). Up to 180 frames stay alone; more are packed by two or by three.

    Raises:
        TypeError: `frames` is no integer.
        ValueError: it is below 1.

    Example:
        >>> frame_groups(180), frame_groups(183), frame_groups(540)
        ((1, 180), (2, 92), (3, 180))

    Source: the demo of MiniCPM-V 4.5 in its model card, encode_video: MAX_NUM_FRAMES = 180, MAX_NUM_PACKING = 3.
    """
    packing = min(3, -(-check_int("frames", frames) // 180))
    return packing, -(-frames // packing)


# ---- all of them


def _bend(sx: float, sy: float) -> float:
    return max(sx / sy, sy / sx)


def _boxes(edges_x, edges_y) -> tuple[Box, ...]:
    """The boxes between these edges, row by row."""
    return tuple(
        (float(left), float(top), float(right), float(bottom))
        for top, bottom in pairwise(edges_y)
        for left, right in pairwise(edges_x)
    )


@dataclass(frozen=True)
class _Rule:
    """How one picture, or one frame of a clip, is cut."""

    cut: Callable[[Size, int | None, str], Plan]  # (size, max_tiles, ties)
    max_tiles: int | None = None  # the released number; None: there is no such number
    newlines: int = 0  # after a whole clip
    groups: Callable[[int], int] = lambda frames: frames  # how often a clip costs the tokens of one frame


@dataclass(frozen=True)
class _System:
    one: _Rule
    several: _Rule | None = None  # each of several pictures; None: it is published for one
    frames: _Rule | None = None  # None: it is published without video


def _next(canvases, tile: int, most: int | None = None) -> _Rule:
    return _Rule(lambda size, most, ties: _pad_and_tile(size, canvases, tile, most, ties), most)


def _internvl(most: int) -> _Rule:
    return _Rule(lambda size, most, _: _bend_and_tile(size, most), most)


def _minicpm(queries: int | None, most: int, groups=lambda frames: frames) -> _Rule:
    return _Rule(lambda size, most, _: _slice(size, most, queries), most, groups=groups)


_ANYRES = _next(NEXT_CANVASES, 336)
_LLAVA = _Rule(lambda size, *_: _pad(size, (336,), 576))
# A SigLIP view alone: 27 x 27 tokens and a newline. A frame is pooled to 14 x 14, and one newline ends the clip.
_SIGLIP_VIEW = _Rule(lambda size, *_: _pad(size, (384,), 730, 1))
_SIGLIP_FRAME = _Rule(lambda size, *_: _squeeze(size, 384, 196), newlines=1)
_VILA = _Rule(lambda size, *_: _squeeze(size, 384, 196))
_CLIP_FRAME = _Rule(lambda size, *_: _crop(size, 336, 144))


_SYSTEMS = {
    "llava-1.5": _System(_LLAVA, _LLAVA),
    "llava-next": _System(_ANYRES, _ANYRES),
    "llava-next-video": _System(_ANYRES, _ANYRES, _CLIP_FRAME),
    "llava-next-interleave": _System(_next(INTERLEAVE_CANVASES, 384), _SIGLIP_VIEW, _SIGLIP_FRAME),
    "llava-onevision": _System(_next(ONEVISION_CANVASES, 384, 9), _SIGLIP_VIEW, _SIGLIP_FRAME),
    "internvl-1.0": _System(_Rule(lambda size, *_: _squeeze(size, 224, 96))),
    "internvl-1.5": _System(_internvl(12), _internvl(12), _internvl(1)),
    "vila-1.5": _System(_VILA, _VILA, _VILA),
    "cogvlm2": _System(_Rule(lambda size, *_: _squeeze(size, 1344, 48 * 48))),
    "glm-4v": _System(_Rule(lambda size, *_: _squeeze(size, 1120, 40 * 40))),
    "cambrian-1": _System(_Rule(lambda size, *_: _unpadded_square(size))),
    "minicpm-v-2.0": _System(_minicpm(64, 9), _minicpm(64, 9)),
    "minicpm-v-2.5": _System(_minicpm(96, 9), _minicpm(96, 9)),
    "minicpm-v-2.6": _System(_minicpm(64, 9), _minicpm(64, 9), _minicpm(64, 2)),
    "minicpm-v-4.5": _System(_minicpm(64, 9), _minicpm(64, 9), _minicpm(64, 1, lambda frames: frame_groups(frames)[1])),
    "minicpm-v-4.6": _System(_minicpm(None, 9), _minicpm(None, 9), _minicpm(None, 1)),
}
SYSTEMS = tuple(_SYSTEMS)


def plan(
    system: str, size: Size, pictures: int = 1, frames: int = 0, max_tiles: int | None = None, ties: str = "public"
) -> Plan:
    """Work out what a system makes of a picture, of several equal ones, or of a clip.

    Args:
        system: one of SYSTEMS.
        size: (width, height) in pixels of each picture or frame.
        pictures: how many stand in one prompt. Interleave and OneVision tile a picture only when it is alone.
        frames: of a clip, after sampling; 0 means that there is none.
        max_tiles: in place of the released number: the tiles of InternVL-1.5 (12; 1 for a frame), the slices of
            MiniCPM-V (9; for a frame 2 in 2.6, 1 later), and N of OneVision's anyres_max_N (9), which limits not the
            tiles but the tokens that are left of them. The other systems have no such number.
        ties: which of two equal canvases LLaVA-NeXT takes, "public" or "transformers"; see `best_resolution`.

    Returns:
        A Plan with .tiles .views .visual_tokens .newlines .pixels_seen .padding .bend. All numbers count everything in
        the prompt; the tiles are those of one picture or frame, as boxes (left, top, right, bottom) in its pixels.
        They reach beyond it where the system pads. A system with one view has one tile and no overview; a picture
        that MiniCPM-V does not slice has an overview and no tiles.

    Raises:
        TypeError: `size` is not two integers, or a number is none.
        ValueError: an unknown system, a side below 1 or above 2^31, or what the system cannot do.

    Example:
        >>> [plan(system, (640, 480)).visual_tokens for system in ("llava-next", "internvl-1.5", "minicpm-v-2.6")]
        [2340, 3328, 192]
        >>> plan("llava-1.5", (640, 480)).tiles, plan("llava-next-video", (640, 480), frames=16).visual_tokens
        (((0.0, -80.0, 640.0, 560.0),), 2304)

    Source: the functions above name theirs. VILA, branch vila1.5 ("resize", mlp_downsample); CogVLM2 and GLM-4V,
        config.json (1344 and 1120 pixels, patch 14, convolution 2 x 2); Cambrian-1, cambrian/mm_utils.py
        (process_images); InternVL-1.0, internvl_g (96 queries, 224 pixels; that it squeezes is our assumption);
        clips of InternVL-1.5, MiniCPM-V 2.6, 4.5 and 4.6: their model cards.
    """
    rules = _SYSTEMS[check_choice("system", system, SYSTEMS)]
    size, pictures, frames = check_size(size), check_int("pictures", pictures), check_int("frames", frames, least=0)
    check_choice("ties", ties, TIES)
    if frames and pictures > 1:
        raise ValueError(f"a clip stands alone: pictures must be 1 where frames is not 0, got {pictures} and {frames}")
    rule = rules.frames if frames else rules.several if pictures > 1 else rules.one
    if rule is None and frames:
        raise ValueError(f"{system} is published without video: frames must be 0, got {frames}")
    if rule is None:
        raise ValueError(f"{system} is published for one picture: pictures must be 1, got {pictures}")
    if max_tiles is None:
        max_tiles = rule.max_tiles
    elif rule.max_tiles is None:
        raise ValueError(f"{system} has no such limit here: max_tiles must be None, got {shown(max_tiles)}")
    else:
        check_int("max_tiles", max_tiles, most=LIMITS["max_slice_nums"])
    one = rule.cut(size, max_tiles, ties)
    times, ends = frames or pictures, rule.newlines if frames else 0
    return replace(
        one,
        views=one.views * times,
        visual_tokens=one.visual_tokens * (rule.groups(frames) if frames else pictures) + ends,
        newlines=one.newlines * times + ends,
        pixels_seen=one.pixels_seen * times,
    )
