"""The mistakes of public ports, each as a way to compute another answer: what a port that made it would dump.

Nothing here looks at what a port has dumped, except for mean and standard deviation, which are solved for.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from ..config import SliceConfig
from ..inputs.pictures import load_image
from ..positions import bucket_position_ids, interpolate_position_table
from ..processor import normalize_views
from ..prompt import image_bounds, image_layout
from ..slicing import SlicePlan, candidate_grids, paper_grid, plan_slices
from .kit import PER_VIEW, Kit, padded

Answer = list[np.ndarray]

SCORES = {  # of (width, height, cols, rows); the released one is abs(log(W / H) - log(cols / rows)) in float64
    "logarithms in another order: log((W / cols) / (H / rows))": lambda w, h, c, r: math.log((w / c) / (h / r)),
    "logarithms in another order: log(W / H) - (log(cols) - log(rows)), or in float32": (
        lambda w, h, c, r: math.log(w / h) - (math.log(c) - math.log(r))
    ),
}


def guesses(kit: Kit, stage: str, item: str, right: Answer, theirs: Answer) -> Iterator[tuple[str, Answer]]:
    """(a mistake in words, the answer that it leads to) for one item; some leave it as it is."""
    yield from _STAGES.get(stage, lambda *_: ())(kit, stage, item, right, theirs)
    if stage == "sizes" or (stage in PER_VIEW and item in kit.about["pictures"]):
        views, (cols, rows) = list(right[0]) if stage == "sizes" else right, kit.plan(item)[0].grid or (0, 0)
        by_column = [0, *(1 + r * cols + c for c in range(cols) for r in range(rows))]
        last = [*range(1, len(views)), 0]
        for name, order in (
            ("slices go column by column, not row by row", by_column),
            ("the overview comes last", last),
        ):
            moved = [views[number] for number in order]
            yield name, [np.stack(moved)] if stage == "sizes" else moved


def plan_mistakes(size: tuple[int, int], cfg: SliceConfig) -> Iterator[tuple[str, SlicePlan]]:
    (width, height), side, grids = size, cfg.scale_resolution, candidate_grids(size, cfg)
    right = plan_slices(size, cfg)

    def best(grids, score=lambda w, h, c, r: math.log(w / h) - math.log(c / r)):
        return planned(size, cfg, min(grids, key=lambda grid: abs(score(width, height, *grid)), default=None))

    yield "columns and rows are swapped in the grid", planned(size, cfg, right.grid and right.grid[::-1])
    yield "width and height are swapped in the picture's size", plan_slices((height, width), cfg)
    yield from ((name, best(grids, score)) for name, score in SCORES.items())
    yield "of equal grids the last one wins, not the first", best(grids[::-1])
    literal = paper_grid(size, cfg)
    yield "the paper's equations are taken literally", planned(size, cfg, None if literal == (1, 1) else literal)
    count = min(width * height // side**2, cfg.max_slice_nums)
    yield "the number of slices is rounded down, not up", best(candidate_grids((side * max(1, count), side), cfg))
    half_up = planned(size, cfg, right.grid, rounding=lambda x: math.floor(x + 0.5))
    yield "C's round is used, which rounds halves up; the released code rounds halves to even", half_up
    yield "sides are rounded down to the patch, not to the nearest", planned(size, cfg, right.grid, rounding=math.floor)
    yield "sides are not cut to whole pixels before they are rounded", planned(size, cfg, right.grid, whole=float)
    yield "the overview is squeezed into a square", replace(right, overview_size=(side, side))


def planned(size, cfg: SliceConfig, grid, rounding: Callable = round, whole: Callable = int) -> SlicePlan:
    """`plan_slices` with a given grid and its roundings as arguments."""

    def multiple(length, step):
        return max(int(rounding(length / step)) * step, step)

    def fit(width, height):
        ratio = width / height
        height = whole(cfg.scale_resolution / math.sqrt(ratio))
        return multiple(whole(height * ratio), cfg.patch_size), multiple(height, cfg.patch_size)

    part = fit(*(multiple(side, n) / n for side, n in zip(size, grid))) if grid else None
    return SlicePlan(size, cfg.patch_size, fit(*size), grid, part)


def _rule(kit, stage, item, right, theirs) -> Iterator[tuple[str, Answer]]:
    plan, cfg = kit.plan(item)
    for name, other in plan_mistakes(plan.image_size, cfg):
        sizes = [other.overview_size] + [other.slice_size] * other.num_slices
        yield name, [np.array(other.grid or (0, 0)) if stage == "grid" else np.array(sizes)]
    if stage == "grid":
        yield "1, 1 stands for a picture that is not sliced; the kit writes 0, 0", [np.maximum(right[0], 1)]
        return
    yield "each size is (height, width)", [right[0][:, ::-1]]
    yield "small pictures are not enlarged", [np.where(plan.grid, right[0], np.minimum(right[0], plan.image_size))]
    yield "the overview is missing", [right[0][1:]]


def _positions(kit, stage, item, right, theirs) -> Iterator[tuple[str, Answer]]:
    picture, side = item in kit.about["pictures"], kit.config.vision.table_side
    grids = kit.plan(item)[0].patch_grids if picture else [tuple(kit.about["grids"][item])]
    longest = max(rows * cols for rows, cols in grids)

    def rounded(rows: int, cols: int, whole: Callable) -> np.ndarray:
        row, col = (whole(side * np.arange(n) / n).clip(0, side - 1).astype(int) for n in (rows, cols))
        return np.add.outer(side * row, col).reshape(-1)

    def swapped(rows: int, cols: int, exact: bool = False) -> torch.Tensor:
        ids = bucket_position_ids(rows, cols, side, exact)
        return ids % side * side + ids // side

    ways: dict[str, Callable] = {
        "positions use exact buckets, not float32's": lambda r, c: bucket_position_ids(r, c, side, True),
        "positions use round instead of floor": lambda r, c: rounded(r, c, np.rint),
        "positions use C's round, halves up, instead of floor": lambda r, c: rounded(r, c, lambda x: np.floor(x + 0.5)),
        "rows and columns are swapped in the position ids": swapped,
        "rows and columns are swapped in the position ids, which are exact": lambda r, c: swapped(r, c, True),
        "rows and columns are swapped in the patch grid": lambda r, c: bucket_position_ids(c, r, side),
        f"a fixed {side} x {side} table: id = {side} row + column": lambda r, c: (
            np.add.outer(side * np.arange(r), np.arange(c)).clip(0, side**2 - 1).reshape(-1)
        ),
        "patches are numbered 0, 1, 2, ...": lambda r, c: np.arange(r * c),
        "positions are 2.5's: one-dimensional": lambda r, c: bucket_position_ids(1, r * c, side),
        "positions are 2.5's, over the longest view": lambda r, c: bucket_position_ids(1, longest, side)[: r * c],
        "positions are 2.6's: buckets in two dimensions": lambda r, c: bucket_position_ids(r, c, side),
    }
    ids = {name: [np.asarray(way(*grid)) for grid in grids] for name, way in ways.items()}
    if kit.table is None:
        yield from ids.items()
        return
    table = rearrange(kit.table, "(r c) d -> 1 d r c", r=side)
    for name, views in ids.items():  # 2.0 resizes the table; a port that looks cells up takes rows of it
        if max(each.max() for each in views) < side**2 and "exact" not in name:
            yield f"the table is looked up, not resized: {name}", [kit.table[each].numpy() for each in views]
    sharp = [rearrange(F.interpolate(table, grid, mode="bicubic"), "1 d r c -> (r c) d") for grid in grids]
    yield "the table is resized without antialiasing", [view.numpy() for view in sharp]
    flipped = rearrange(kit.table, "(r c) d -> (c r) d", r=side)
    views = [interpolate_position_table(flipped, *grid).numpy() for grid in grids]
    yield "rows and columns are swapped in the position table", views


def _pixels(kit, stage, item, right, theirs) -> Iterator[tuple[str, Answer]]:
    if [view.shape for view in right] == [view.shape for view in theirs]:
        yield from _mean_and_std(right, theirs)
    yield "channels are blue, green, red", [view[::-1] for view in right]
    yield "axes are (height, width, 3)", [view.transpose(1, 2, 0) for view in right]
    yield "width and height are swapped in the views", [view.transpose(0, 2, 1) for view in right]
    (plan, cfg), file = kit.plan(item), kit.folder / kit.about["pictures"][item]["file"]
    with warnings.catch_warnings(action="ignore"):  # that alpha is dropped: a picture of the kit tests it
        image = load_image(file)
    for name in ("nearest", "bilinear", "lanczos", "box"):
        method = Image.Resampling[name.upper()]
        yield f"another resize: {name}, not bicubic", _resized(plan, lambda size, m=method: image.resize(size, m))
    yield "another resize: bicubic without antialiasing", _resized(plan, lambda size: _sharp(image, size))
    for name, other in _readings(file):
        yield name, [view.numpy() for view in normalize_views(other, plan_slices(other.size, cfg))]
    for name, other in plan_mistakes(image.size, cfg):
        if other != plan:
            yield name, [view.numpy() for view in normalize_views(image, replace(other, image_size=image.size))]


def _readings(file) -> Iterator[tuple[str, Image.Image]]:
    """Other ways to open a picture."""
    with Image.open(file) as stored:
        if stored.mode.startswith("I"):
            clipped = Image.fromarray(np.minimum(np.asarray(stored), 255).astype(np.uint8))
            yield "16-bit values are clipped to 255, not scaled", clipped.convert("RGB")
            return
        if stored.mode == "RGBA":
            for color in ("white", "black"):
                ground = Image.alpha_composite(Image.new("RGBA", stored.size, color), stored)
                yield f"transparent pixels are laid on {color}; only alpha must be dropped", ground.convert("RGB")
        yield "the EXIF orientation is not applied", stored.convert("RGB")


def _resized(plan: SlicePlan, resize: Callable) -> Answer:
    refined = resize(plan.refined_size) if plan.grid else None
    views = [resize(plan.overview_size), *(refined.crop(box) for box in plan.boxes)]
    return [rearrange(np.asarray(view, np.float32), "h w c -> c h w") / np.float32(127.5) - 1 for view in views]


def _sharp(image, size) -> Image.Image:
    pixels = rearrange(torch.from_numpy(np.array(image)).float(), "h w c -> 1 c h w")
    pixels = F.interpolate(pixels, size=size[::-1], mode="bicubic").round().clamp(0, 255)
    return Image.fromarray(rearrange(pixels, "1 c h w -> h w c").to(torch.uint8).numpy())


def _mean_and_std(right: Answer, theirs: Answer) -> Iterator[tuple[str, Answer]]:
    """Solve theirs = (x - mean) / std for each channel, where x is from 0 to 1."""
    x, y = (np.concatenate([view.reshape(3, -1) for view in v], 1).astype(np.float64) for v in (right, theirs))
    if min(np.ptp(x, 1).min(), np.ptp(y, 1).min()) < 1e-6:
        return
    slope, start = np.transpose([np.polyfit(a / 2 + 0.5, b, 1) for a, b in zip(x, y)])[:, :, None, None]
    mean, std = -start / slope, 1 / slope
    if np.abs(np.stack([mean, std]) - 0.5).max() > 1e-3:
        mean, std = (", ".join(f"{abs(value):.3f}" for value in values.flat) for values in (mean, std))
        name = f"pixels are normalized with mean {mean} and standard deviation {std}, not 0.5 and 0.5"
        yield name, [slope * (view / 2 + 0.5) + start for view in right]


def text_mistakes(kit: Kit, item: str) -> Iterator[tuple[str, str]]:
    """The text of a prompt with each mistake."""
    about, version, queries = kit.about["prompts"][item], kit.config.version, kit.config.resampler.num_queries
    text, plans = about["text"], [kit.plan(name)[0] for name in about["pictures"]]

    def laid_out(change: Callable = lambda plan: plan, number_of=lambda n: n, queries=queries, version=version) -> str:
        """The text with other layouts of its pictures."""
        end, out = 0, ""
        for number, plan in enumerate(plans):
            layout = image_layout(plan, kit.config.resampler.num_queries, kit.config.version, number)
            start = text.index(layout, end)
            out += text[end:start] + image_layout(change(plan), queries, version, number_of(number))
            end = start + len(layout)
        return out + text[end:]

    end, mesh = "</slice>" * (version != "2.6"), "(<slice>.*</slice>)"  # in 2.0 and 2.5 one <slice> holds all rows
    longer = re.sub(mesh, lambda found: found[0][: len(found[0]) - len(end)] + "\n" + end, text, flags=re.S)
    yield "the newline after the last row of slices is extra", longer
    flat = re.sub(mesh, lambda found: found[0].replace("\n", ""), text, flags=re.S)
    yield "no newline stands between the rows of slices", flat
    for other in sorted({"2.0", "2.5", "2.6"} - {version}):
        yield f"the layout is that of {other}, not of {version}", laid_out(version=other)
    for count in (queries + 1, queries - 1):
        yield f"markers count {count} slots of {queries}", laid_out(queries=count)
    turned = laid_out(lambda plan: replace(plan, grid=plan.grid and plan.grid[::-1]))
    yield "columns and rows are swapped in the layout", turned
    overview = "(<image>(?:<unk>)*</image>)"
    yield "the overview comes last in the prompt", re.sub(overview + mesh, r"\2\1", text, flags=re.S)
    yield "no newline stands between picture and question", re.sub(r"((?:</image>|</slice>)+)\n(?=\w)", r"\1", text)
    header = r"(<\|im_start\|>assistant\n|<AI>|<\|start_header_id\|>assistant.*)\Z"
    yield "the header of the answer is missing", re.sub(header, "", text, flags=re.S)
    if end:
        yield "the first token (bos) is missing", text.removeprefix(kit.processor.tokenizer.bos_token or "")
        return
    for name, number_of in {
        "<image_id> counts all views, not pictures": lambda n: sum(1 + plan.num_slices for plan in plans[:n]),
        "<image_id> counts from 1": lambda n: n + 1,
        "every <image_id> is 0": lambda n: 0,
        "<image_id> counts backward": lambda n: len(plans) - 1 - n,
        "<image_id> is missing": lambda n: None,
    }.items():
        yield name, laid_out(number_of=number_of)
    ids = "".join(f"<image_id>{number}</image_id>" for number in range(len(plans)))
    first = laid_out(number_of=lambda n: None).replace("<image>", ids + "<image>", 1)
    yield "all <image_id> stand before the first picture", first
    system = r"\A<\|im_start\|>system.*?<\|im_end\|>\n"
    yield "the default system message is missing", re.sub(system, "", text, flags=re.S)


def _prompts(kit, stage, item, right, theirs) -> Iterator[tuple[str, Answer]]:
    tokenizer, ids = kit.processor.tokenizer, kit.about["ids"]
    if stage == "prompt":
        yield "the slots hold the pad id, not <unk>'s", [np.where(right[0] == ids["slot"], ids["pad"], right[0])]
    else:
        start, end = right[0].T
        yield "bounds include the markers", [np.stack([start - 1, end + 1], 1)]
        yield "the end of a bound is its last slot, not the one after", [np.stack([start, end - 1], 1)]
        yield "bounds are (start, count)", [np.stack([start, end - start], 1)]
    for name, text in text_mistakes(kit, item):
        row = tokenizer(text, add_special_tokens=False)["input_ids"]
        if stage == "prompt":
            yield name, [np.array(row)]
            continue
        with suppress(ValueError):  # markers of another version
            yield name, [image_bounds(row, tokenizer, kit.config.version).numpy()]


def _batch(kit, stage, item, right, theirs) -> Iterator[tuple[str, Answer]]:
    ids = kit.about["ids"]
    rows = [kit.right["prompt"][name][0].tolist() for name in kit.about["batch"]]
    yield "prompts are padded on the right", [np.array(padded(rows, ids["pad"], left=False))]
    yield "<unk>'s id stands in place of the pad id", [np.array(padded(rows, ids["slot"]))]


_STAGES = {"grid": _rule, "sizes": _rule, "positions": _positions, "pixels": _pixels}
_STAGES |= {"prompt": _prompts, "bounds": _prompts, "batch": _batch}
