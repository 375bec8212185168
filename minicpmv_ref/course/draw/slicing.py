"""Lesson 01: a picture cut into slices, tokens against width, the paper's grids against the code's."""

import math
from dataclasses import replace
from functools import cache, lru_cache
from itertools import pairwise

from PIL import Image

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import best_grid, candidate_grids, paper_grid, partition_score, plan_slices

from .canvas import TEXT, Axes, Canvas, cell_box, fit
from .colors import BLACK, BLUE, GRAY, INK, ORANGE, PALE, PURPLE, RED, SKY, YELLOW, colored


def plan_with(size, cfg: SliceConfig, grid=None):
    """As `plan_slices`; but `grid`, if given, stands in for the best one."""
    plan = plan_slices(size, cfg)
    if not grid or grid == plan.grid:
        return plan
    tile = tuple(max(1, round(side / n)) for side, n in zip(size, grid))
    return replace(plan, grid=grid, slice_size=plan_slices(tile, cfg).overview_size)


def playground(size, cfg: SliceConfig, image: Image.Image, grid=None) -> Canvas:
    """A picture cut into slices, the score of every candidate grid, and the formula with this size's numbers.

    `grid` is the candidate to show; None: the winner. Its facts: "scores" {grid: score} of the candidates, "grid", the
    winner or None, and "plan", what is shown. Its spots: "corner", to drag, whose item is the size of the picture as
    drawn; and "grid" of each grid.
    """
    plan, canvas = plan_with(size, cfg, grid), Canvas()
    canvas.facts["plan"] = plan
    _draw_views(canvas, plan, image)
    _draw_scores(canvas, size, cfg, plan)
    canvas.lines(8, 308, _formula_lines(size, cfg, plan), 29)
    return canvas


def _draw_views(canvas, plan, image):
    """The overview, and the slices as a mesh: side by side for tall pictures, one above the other for wide ones."""
    if not plan.grid:
        box = _draw_view(canvas, "one view, not cut", plan.overview_size, (8, 30, 362, 234), image)
        _draw_corner_handle(canvas, box)
        return
    beside = (8, 30, 96, 234), (120, 30, 250, 234)
    stacked = (8, 30, 362, 84), (8, 146, 362, 118)
    small, large = max(beside, stacked, key=lambda boxes: fit(plan.refined_size, boxes[1])[2])
    _draw_view(canvas, "overview", plan.overview_size, small, image)
    cols, rows = plan.grid
    box = _draw_view(canvas, f"slices {cols} x {rows}", plan.refined_size, large, image)
    thin = min(box[2] / cols, box[3] / rows) < 30
    for color, line in ((BLACK, 2 if thin else 5), (YELLOW, 1 if thin else 2)):  # seen on every part of a picture
        canvas.mesh(box, cols, rows, color, line, border=True)
    for number in range(0 if thin else cols * rows):
        left, top, *_ = cell_box(box, (rows, cols), *divmod(number, cols))
        wide = 24 if number > 8 else 16
        canvas.rect(left + 2, top + 2, wide, 18, YELLOW)
        canvas.text(left + 2 + wide / 2, top + 17, number + 1, align="middle")
    _draw_corner_handle(canvas, box)


def _draw_corner_handle(canvas, box):
    """The lower right corner of the picture, which the mouse can take hold of."""
    x, y, w, h = box
    right, bottom = x + w, y + h
    canvas.rect(right - 7, bottom - 7, 14, 14, "white", RED, 3)
    place, words = (right - 12, bottom - 12, 24, 24), "drag the corner: another size"
    canvas.spot("corner", (round(w), round(h)), place, words, "drag", step=(max(1, w / 100), max(1, h / 100)))


def _draw_view(canvas, title, size, box, image):
    """A picture with no more detail than a view of this size has and a screen shows. Returns where it is."""
    scale = min(1, 2 * max(fit(size, box)[2:]) / max(size))
    pixels = [max(1, round(side * scale)) for side in size]
    seen = image.resize(pixels, Image.Resampling.BILINEAR)  # twice as quick as bicubic: the corner is dragged
    return canvas.picture(seen, box, title, size)


def _draw_scores(canvas, size, cfg, plan):
    """One bar per candidate: the longer, the further its shape is from the image's. The shortest wins."""
    candidates, winner = candidate_grids(size, cfg), best_grid(size, cfg)
    scores = {grid: partition_score(size, grid) for grid in candidates}
    canvas.facts |= {"scores": scores, "grid": winner}
    canvas.text(384, 20, "score S(cols, rows)", bold=True)
    if not candidates:
        canvas.text(384, 60, "no candidates: N = 1", color=GRAY)
        return
    zero, longest, step = 556, 104, min(28, 234 / len(scores))
    worst = max(1e-9, *(-score for score in scores.values()))
    size_of_text = min(TEXT, step - 2)
    for place, (grid, score) in enumerate(scores.items()):
        y, won = 32 + step * place, grid == winner
        if grid == plan.grid:
            canvas.rect(380, y - 1, 256, step, YELLOW)
        canvas.text(436, y + step * 0.72, f"{grid[0]} x {grid[1]}", size_of_text, align="right", bold=won)
        length = longest * -score / worst
        canvas.rect(zero - length, y + 2, max(length, 2), step - 4, ORANGE if won else SKY)
        canvas.text(632, y + step * 0.72, signed(score), size_of_text, align="right", bold=won)
        words = f"show {grid[0]} x {grid[1]}: {64 * (1 + grid[0] * grid[1])} tokens"
        canvas.spot("grid", grid, (380, y - 1, 256, step), words, chosen=grid == plan.grid)
    canvas.path([(zero + 1, 30), (zero + 1, 34 + step * len(scores))], INK, 2)


def _formula_lines(size, cfg, plan):
    width, height = size
    ratio = width * height / cfg.scale_resolution**2
    tried = sorted({cols * rows for cols, rows in candidate_grids(size, cfg)})
    limit = f", at most {cfg.max_slice_nums}" if math.ceil(ratio) > cfg.max_slice_nums else ""
    end = f"try {', '.join(map(str, tried))} slices" if tried else "not cut"
    yield f"N = ⌈{width} · {height} / {cfg.scale_resolution}²⌉ = ⌈{ratio:.3f}⌉ = {math.ceil(ratio)}{limit}: {end}"
    if plan.grid:
        cols, rows = plan.grid
        logs = signed(math.log(width / height)), signed(math.log(cols / rows))
        second = f"({logs[1]})" if logs[1].startswith("−") else logs[1]
        score = signed(partition_score(size, plan.grid))
        yield f"S({cols}, {rows}) = −|ln {width}/{height} − ln {cols}/{rows}| = −|{logs[0]} − {second}| = {score}"
    else:
        yield "no grid, so no score: the whole picture is the only view"
    for_64, for_96 = plan.visual_tokens(64), plan.visual_tokens(96)
    yield f"tokens = (1 + {plan.num_slices}) · 64 = {for_64}, and with 96 queries {for_96}"


def signed(number: float) -> str:
    """Three decimals and a true minus sign; no minus before zero."""
    return f"{number:z.3f}".replace("-", "−")


WIDEST = 1800  # picture in `cliff`, in pixels


def cliff(width: int, height: int, cfg: SliceConfig, num_queries: int) -> Canvas:
    """Visual tokens against the image's width at one height, with a moving point.

    Its facts: "tokens" of this size, "curve" [(width, tokens), ...], the corners of the steps, and "axes". Its spot:
    "plot".
    """
    canvas, counts = Canvas(), [num_queries * views for views in _views_by_width(height, cfg)]
    most = (1 + cfg.max_slice_nums) * num_queries
    axes = Axes(canvas, (62, 44, 548, 272), (0, WIDEST), (0, most), TEXT, INK)
    canvas.text(8, 22, f"visual tokens of width x {height}", bold=True)
    for tokens in range(0, most + 1, num_queries * max(1, math.ceil((1 + cfg.max_slice_nums) / 5))):
        axes.level(tokens, tokens)
    for pixels in range(0, WIDEST + 1, 300):
        axes.under(pixels, pixels, tick=6)
    axes.under(WIDEST, "width in pixels", "right", row=2)
    curve = [(0, counts[0])]
    for pixels, (before, after) in enumerate(pairwise(counts), 2):
        if before != after:
            curve += [(pixels, before), (pixels, after)]
    curve.append((WIDEST, counts[-1]))
    tokens = counts[width - 1]
    canvas.facts = {"tokens": tokens, "curve": curve, "axes": axes}
    axes.line(curve, BLUE, 3)
    axes.line([(width, 0), (width, tokens)], RED)
    axes.dot(width, tokens, color=RED)
    x, y = axes.at(width, tokens)
    shift, align = (14, "left") if x < 420 else (-14, "right")
    canvas.text(x + shift, max(y - 14, 40), f"{width} x {height}: {tokens}", 18, RED, align, bold=True)
    left, top, wide, high = axes.box
    words, step = "click or drag: another width", (wide / WIDEST, 0)
    canvas.spot("plot", None, (left - 6, top, wide + 12, high), words, "drag", (x, y), step)
    return canvas


def next_jump(width: int, height: int, cfg: SliceConfig) -> int:
    """The next width with another number of views than its left neighbor; from the last one, the first."""
    views = _views_by_width(height, cfg)
    return _next_change(lambda pixels: views[pixels - 1], width, 1, WIDEST)


def next_border(width: int, height: int) -> int:
    """As `next_jump`, but in `paper_map`: the next width that is another of the four CASES."""
    return _next_change(lambda pixels: compare_grids((pixels, height)), width, SMALLEST, LARGEST)


def _next_change(value, start, low, high):
    changes = (pixels for pixels in [*range(start + 1, high + 1), *range(low + 1, start + 1)])
    return next((pixels for pixels in changes if value(pixels) != value(pixels - 1)), start)


@lru_cache(maxsize=64)
def _views_by_width(height, cfg):
    """Views of width x height for width = 1, 2, ..., WIDEST."""
    return [1 + plan_slices((width, height), cfg).num_slices for width in range(1, WIDEST + 1)]


CASES = {  # (meaning, color) of the four regions of the map
    "same": ("the same grid", PALE),
    "paper": ("only the paper cuts", SKY),
    "code": ("only the code cuts", ORANGE),
    "other": ("two different grids", PURPLE),
}
SMALLEST, LARGEST = 100, 4100  # sides of the map, in pixels


def compare_grids(size) -> str:
    """Which of the four CASES this size is."""
    code, paper = best_grid(size) or (1, 1), paper_grid(size)
    if code == paper:
        return "same"
    return "paper" if code == (1, 1) else "code" if paper == (1, 1) else "other"


def paper_map(width: int, height: int) -> Canvas:
    """A map of all sizes, colored by how the paper's equations and the code differ; one size's two grids beside it.

    Both axes are logarithmic, as the score is: equal shapes lie on lines that rise, equal areas on lines that fall.
    Its facts: "case", a key of CASES, the grids "paper" and "code", and "axes". Its spot: "map".
    """
    canvas, box, ends = Canvas(), (62, 12, 300, 300), (math.log(SMALLEST), math.log(LARGEST))
    axes, case = Axes(canvas, box, ends, ends, TEXT, INK), compare_grids((width, height))
    grids = {"paper": paper_grid((width, height)), "code": best_grid((width, height)) or (1, 1)}
    canvas.facts = {"case": case, **grids, "axes": axes}
    canvas.image(*box, _map_image(), smooth=False, frame=INK)
    for pixels in (100, 448, 1000, 4000):
        axes.under(math.log(pixels), pixels, tick=6)
        axes.beside(math.log(pixels), pixels)
    axes.under(sum(ends) / 2, "width", row=2)
    canvas.text(4, 92, "height")
    here = [math.log(min(max(side, SMALLEST), LARGEST)) for side in (width, height)]
    axes.dot(*here, 7, RED)
    canvas.spot("map", None, box, "click or drag: another size", "drag", axes.at(*here), (2, 2))
    for place, (name, grid) in enumerate(grids.items()):
        x, size = 388 + 130 * place, fit((width, height), (0, 0, 112, 150))[2:]
        canvas.text(x, 28, f"{name} {grid[0]} x {grid[1]}", bold=True)
        canvas.rect(x, 40, *size, "#F5F5F5", INK, 2)
        canvas.mesh((x, 40, *size), *grid, INK)
    for line, (key, (meaning, color)) in enumerate(CASES.items()):
        y = 214 + 32 * line
        canvas.rect(388, y, 20, 20, color, INK if key == case else "none", 2)
        canvas.text(416, y + 16, meaning, bold=key == case)
    return canvas


@cache
def _map_image(cells=120):
    """One pixel per size; height grows upwards."""
    sides = [round(SMALLEST * (LARGEST / SMALLEST) ** ((cell + 0.5) / cells)) for cell in range(cells)]
    cases = [[[*CASES].index(compare_grids((width, height))) for width in sides] for height in sides[::-1]]
    return colored(cases, [color for _, color in CASES.values()])
