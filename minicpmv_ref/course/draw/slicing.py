"""Lesson 01: a picture cut into slices, tokens against width, the paper's grids against the code's."""

import math
from functools import lru_cache

from PIL import Image

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import best_grid, candidate_grids, paper_grid, partition_score, plan_slices

from .canvas import BLACK, BLUE, GRAY, INK, ORANGE, PALE, PURPLE, RED, SKY, TEXT, YELLOW, Canvas, fit


def playground(size, cfg: SliceConfig, image: Image.Image) -> Canvas:
    """A picture cut into slices, the score of every candidate grid, and the formula with this size's numbers."""
    plan, canvas = plan_slices(size, cfg), Canvas()
    _draw_views(canvas, plan, image)
    _draw_scores(canvas, size, cfg)
    for line, text in enumerate(_formula_lines(size, cfg)):
        canvas.text(8, 308 + 29 * line, text)
    return canvas


def _draw_views(canvas, plan, image):
    """The overview, and the slices as a mesh: side by side for tall pictures, one above the other for wide ones."""
    if not plan.grid:
        _draw_view(canvas, "one view, not cut", plan.overview_size, (8, 30, 362, 234), image)
        return
    beside = (8, 30, 96, 234), (120, 30, 250, 234)
    stacked = (8, 30, 362, 84), (8, 146, 362, 118)
    width_in = lambda boxes: fit(plan.refined_size, boxes[1])[2]  # noqa: E731
    small, large = max(beside, stacked, key=width_in)
    _draw_view(canvas, "overview", plan.overview_size, small, image)
    cols, rows = plan.grid
    x, y, w, h = _draw_view(canvas, f"slices {cols} x {rows}", plan.refined_size, large, image)
    thin = min(w / cols, h / rows) < 30
    for color, line in ((BLACK, 2 if thin else 5), (YELLOW, 1 if thin else 2)):  # seen on every part of a picture
        for col in range(cols + 1):
            canvas.path([(x + w * col / cols, y), (x + w * col / cols, y + h)], color, line)
        for row in range(rows + 1):
            canvas.path([(x, y + h * row / rows), (x + w, y + h * row / rows)], color, line)
    for number in range(0 if thin else cols * rows):
        left, top = x + w / cols * (number % cols), y + h / rows * (number // cols)
        canvas.rect(left + 2, top + 2, 24 if number > 8 else 16, 18, YELLOW)
        canvas.text(left + (14 if number > 8 else 10), top + 17, number + 1, align="middle")


def _draw_view(canvas, title, size, box, image):
    """A picture of this size with its title above it. Returns where it is."""
    x, y = box[:2]
    _, _, w, h = fit(size, box)
    canvas.text(x, y - 10, title, bold=True)
    canvas.image(x, y, w, h, _as_seen(image, size, 2 * max(w, h)))
    return x, y, w, h


def _as_seen(image, size, most):
    """The picture with no more detail than a view of this size has, and no more than the screen shows."""
    scale = min(1, most / max(size))
    return image.resize((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), Image.Resampling.BICUBIC)


def _draw_scores(canvas, size, cfg):
    """One bar per candidate: the longer, the further its shape is from the image's. The shortest wins."""
    candidates, winner = candidate_grids(size, cfg), best_grid(size, cfg)
    canvas.text(384, 20, "score S(cols, rows)", bold=True)
    if not candidates:
        canvas.text(384, 60, "no candidates: N = 1", color=GRAY)
        return
    scores = {grid: partition_score(size, grid) for grid in candidates}
    zero, longest, step = 556, 104, min(28, 234 / len(scores))
    worst = max(1e-9, *(-score for score in scores.values()))
    size_of_text = min(TEXT, step - 2)
    for place, (grid, score) in enumerate(scores.items()):
        y, won = 32 + step * place, grid == winner
        canvas.text(436, y + step * 0.72, f"{grid[0]} x {grid[1]}", size_of_text, align="right", bold=won)
        length = longest * -score / worst
        canvas.rect(zero - length, y + 2, max(length, 2), step - 4, ORANGE if won else SKY)
        canvas.text(632, y + step * 0.72, signed(score), size_of_text, align="right", bold=won)
    canvas.path([(zero + 1, 30), (zero + 1, 34 + step * len(scores))], INK, 2)


def _formula_lines(size, cfg):
    width, height = size
    ratio, plan = width * height / cfg.scale_resolution**2, plan_slices(size, cfg)
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
    text = f"{number:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def cliff(width: int, height: int, cfg: SliceConfig, num_queries: int, widest: int = 1800) -> Canvas:
    """Visual tokens against the image's width at one height, with a moving point."""
    canvas, tokens = Canvas(), _tokens_by_width(height, cfg, widest)
    left, right, top, bottom = 62, 610, 44, 316
    most = 1 + cfg.max_slice_nums
    across = lambda pixels: left + (right - left) * pixels / widest  # noqa: E731
    up = lambda views: bottom - (bottom - top) * views / most  # noqa: E731
    canvas.text(8, 22, f"visual tokens of width x {height}", bold=True)
    for views in range(0, most + 1, max(1, math.ceil(most / 5))):
        canvas.path([(left, up(views)), (right, up(views))], PALE, 1)
        canvas.text(left - 8, up(views) + 6, views * num_queries, align="right")
    for pixels in range(0, widest + 1, 300):
        canvas.path([(across(pixels), bottom), (across(pixels), bottom + 6)], INK, 1)
        canvas.text(across(pixels), bottom + 24, pixels, align="middle")
    canvas.text(right, bottom + 52, "width in pixels", align="right")
    steps = [(left, up(tokens[0]))]
    for pixels in range(2, widest + 1):
        if tokens[pixels - 1] != tokens[pixels - 2]:
            steps += [(across(pixels), up(tokens[pixels - 2])), (across(pixels), up(tokens[pixels - 1]))]
    canvas.path([*steps, (right, up(tokens[-1]))], BLUE, 3)
    x, y = across(width), up(tokens[width - 1])
    canvas.path([(x, bottom), (x, y)], RED, 2)
    canvas.dot(x, y, 8, RED)
    where = "left" if x < 420 else "right"
    label = f"{width} x {height}: {tokens[width - 1] * num_queries}"
    canvas.text(x + (14 if where == "left" else -14), max(y - 14, 40), label, 18, RED, where, bold=True)
    return canvas


@lru_cache(maxsize=64)
def _tokens_by_width(height, cfg, widest):
    """Views of width x height for width = 1, 2, ..., widest."""
    return [1 + plan_slices((width, height), cfg).num_slices for width in range(1, widest + 1)]


CASES = {  # (meaning, color) of the four regions of the map
    "same": ("the same grid", PALE),
    "paper": ("only the paper cuts", SKY),
    "code": ("only the code cuts", ORANGE),
    "other": ("two different grids", PURPLE),
}
SMALLEST, LARGEST = 100, 4100  # sides of the map, in pixels


def compare_grids(size, cfg: SliceConfig = SliceConfig()) -> str:
    """Which of the four CASES this size is."""
    code, paper = best_grid(size, cfg) or (1, 1), paper_grid(size, cfg)
    if code == paper:
        return "same"
    return "paper" if code == (1, 1) else "code" if paper == (1, 1) else "other"


def paper_map(width: int, height: int, cfg: SliceConfig = SliceConfig()) -> Canvas:
    """A map of all sizes, colored by how the paper's equations and the code differ; one size's two grids beside it.

    Both axes are logarithmic, as the score is: equal shapes lie on lines that rise, equal areas on lines that fall.
    """
    canvas, (left, top, side) = Canvas(), (62, 12, 300)
    case = compare_grids((width, height), cfg)
    canvas.image(left, top, side, side, _map_image(cfg), smooth=False)
    canvas.rect(left, top, side, side, stroke=INK)
    for pixels in (100, 448, 1000, 4000):
        at = side * _on_map(pixels)
        canvas.path([(left + at, top + side), (left + at, top + side + 6)], INK, 1)
        canvas.path([(left - 6, top + side - at), (left, top + side - at)], INK, 1)
        canvas.text(left + at, top + side + 22, pixels, align="middle")
        canvas.text(left - 9, top + side - at + 6, pixels, align="right")
    canvas.text(left + side / 2, top + side + 46, "width", align="middle")
    canvas.text(4, top + 80, "height")
    canvas.dot(left + side * _on_map(width), top + side * (1 - _on_map(height)), 7, RED)

    grids = (("paper", paper_grid((width, height), cfg)), ("code", best_grid((width, height), cfg)))
    for place, (name, grid) in enumerate(grids):
        _draw_mesh(canvas, 388 + 130 * place, name, (width, height), grid or (1, 1))
    for line, (key, (meaning, color)) in enumerate(CASES.items()):
        y = 214 + 32 * line
        canvas.rect(388, y, 20, 20, color, INK if key == case else "none", 2)
        canvas.text(416, y + 16, meaning, bold=key == case)
    return canvas


def _draw_mesh(canvas, x, name, size, grid):
    canvas.text(x, 28, f"{name} {grid[0]} x {grid[1]}", bold=True)
    y, (_, _, w, h) = 40, fit(size, (0, 0, 112, 150))
    canvas.rect(x, y, w, h, "#F5F5F5", INK, 2)
    for col in range(1, grid[0]):
        canvas.path([(x + w * col / grid[0], y), (x + w * col / grid[0], y + h)], INK, 2)
    for row in range(1, grid[1]):
        canvas.path([(x, y + h * row / grid[1]), (x + w, y + h * row / grid[1])], INK, 2)


def _on_map(pixels):
    """0 at SMALLEST, 1 at LARGEST, logarithmic between."""
    return math.log(min(max(pixels, SMALLEST), LARGEST) / SMALLEST) / math.log(LARGEST / SMALLEST)


@lru_cache(maxsize=4)
def _map_image(cfg, cells=120):
    """One pixel per size; height grows upwards."""
    sides = [round(SMALLEST * (LARGEST / SMALLEST) ** ((cell + 0.5) / cells)) for cell in range(cells)]
    image = Image.new("RGB", (cells, cells))
    for col, width in enumerate(sides):
        for row, height in enumerate(sides):
            color = CASES[compare_grids((width, height), cfg)][1]
            image.putpixel((col, cells - 1 - row), tuple(bytes.fromhex(color[1:])))
    return image
