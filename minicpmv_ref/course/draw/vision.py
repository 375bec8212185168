"""Lesson 02: how the patches of a slice find their positions in a square table."""

import math
from functools import lru_cache

import numpy as np

from .canvas import WIDTH, Canvas, cell_box, text_width
from .colors import BLACK, BLUE, INK, ORANGE, PALE, RED, SKY, YELLOW, cividis, colored

LOOK_UPS = {"buckets (2.6)": "bucket", "buckets, exact": "exact", "interpolation (2.0)": "interpolate"}  # menu: key
WORST = 0.25  # where the colors of the error map end


def surface(down, right):
    """A smooth hill and a smooth valley: stands for one channel of a learned table. Fractions of the picture in."""
    return np.cos(2 * np.pi * down) * np.sin(2 * np.pi * right)


@lru_cache(maxsize=64)
def look_up(rows: int, cols: int, method: str, side: int = 70):
    """How a grid of patches reads a table (side, side) that holds `surface`, by a method of LOOK_UPS: (reads, errors).

    reads: numpy (side, side), how many patches look a cell up; None where patches mix cells. errors: numpy (rows,
    cols), the distance of what a patch gets from the surface at the patch's center.
    """
    import torch

    from minicpmv_ref.positions import bucket_position_ids, interpolate_position_table

    centers = lambda n: (np.arange(n) + 0.5) / n  # noqa: E731
    table = surface(centers(side)[:, None], centers(side)[None, :])
    if method == "interpolate":
        reads = None
        got = interpolate_position_table(torch.from_numpy(table.reshape(-1, 1)), rows, cols).numpy()
    else:
        ids = bucket_position_ids(rows, cols, side, exact=method == "exact").numpy()
        reads = np.bincount(ids, minlength=side * side).reshape(side, side)
        got = table.reshape(-1)[ids]
    truth = surface(centers(rows)[:, None], centers(cols)[None, :])
    return reads, np.abs(got.reshape(rows, cols) - truth)


def lines_read(n: int, method: str, side: int = 70) -> list:
    """Which line (row or column) of the table each of n patches reads; with a fraction where patches mix cells."""
    from minicpmv_ref.positions import bucket_position_ids

    if method == "interpolate":
        return [(i + 0.5) * side / n - 0.5 for i in range(n)]
    return bucket_position_ids(1, n, side, exact=method == "exact").tolist()


def linked(pointed, rows: int, cols: int, method: str, side: int = 70) -> tuple:
    """A cell of the table and the patches that read it (or that mix it most).

    `pointed` is ("patches", row, column) of a patch or ("table", row, column) of a cell. Returns (row, column) of the
    cell, and the rows and the columns of its patches: two lists, empty if nobody reads it.
    """
    kind, *place = pointed
    lines = [[round(line) for line in lines_read(n, method, side)] for n in (rows, cols)]
    cell = [line[i] for line, i in zip(lines, place)] if kind == "patches" else place
    readers = [[i for i, line in enumerate(each) if line == at] for each, at in zip(lines, cell)]
    return tuple(cell), *(readers if all(readers) else ([], []))


def linked_words(pointed, rows: int, cols: int, method: str, side: int = 70) -> str:
    """What `linked` finds, as a sentence."""
    cell, down, across = linked(pointed, rows, cols, method, side)
    many, place = len(down) * len(across), "row {}, column {}".format(*cell)
    nearest = method == "interpolate"
    if pointed[0] == "table":
        who = f"{many} patch{'es' * (many > 1)}" if many else "no patch"
        return f"Table, {place}: " + (f"the nearest cell of {who}." if nearest else f"read by {who}.")
    company = f" So do {many - 1} more patches." if many > 2 else " So does another patch." if many > 1 else ""
    verb = "mixes the cells around" if nearest else "reads the cell in"
    return f"The patch in row {pointed[1]}, column {pointed[2]} {verb} {place} of the table.{company}"


def position_explorer(rows: int, cols: int, method: str, side: int = 70, pointed=None) -> Canvas:
    """The table's cells that a patch grid reads, a corner with the patches laid over it, and each patch's error.

    The cell and the patches that are `linked` to `pointed` are framed. Its spots: "table", "corner" and "patches", with
    grids as items; facts: "frames", the framed boxes.
    """
    canvas, near = Canvas(WIDTH, 330), side // 5
    table, corner, right = ((x, 30, 198, 198) for x in (8, 221, 434))
    reads, errors = look_up(rows, cols, method, side)
    cells = _cells_image(reads, side)
    canvas.picture(cells, table, f"table, {side} x {side} cells", smooth=False, frame=INK)
    canvas.rect(*cell_box(table, (side, side), 0, 0, near, near), stroke=RED, line=2)
    _draw_corner(canvas, corner, cells.crop((0, 0, near, near)), rows * near / side, cols * near / side)
    patches = canvas.picture(_error_image(errors), right, "error of each patch", smooth=False, frame=INK)
    grids = {"table": (table, (side, side)), "corner": (corner, (near, near)), "patches": (patches, (rows, cols))}
    _draw_links(canvas, grids, pointed and linked(pointed, rows, cols, method, side))

    legend = [(SKY, "mixed into several patches")]
    if reads is not None:
        legend = [(BLUE, "read by one patch"), (PALE, "by none")] + [(ORANGE, "by several")] * bool(reads.max() > 1)
    canvas.legend(8, 242, legend)
    canvas.text(445, 255, "0", 14, align="right")
    canvas.image(450, 242, 80, 14, _error_image([[WORST * step / 79 for step in range(80)]]), smooth=False)
    canvas.text(535, 255, f"{WORST} or more", 14)
    said = {name: _shortened(lines_read(n, method, side)) for name, n in (("rows", rows), ("columns", cols))}
    canvas.lines(8, 290, [f"{name} read:  {lines}" for name, lines in said.items()], 28)
    return canvas


def _draw_corner(canvas, box, cells, rows, cols):
    """Cells with the patches over them: outlines and centers. `rows` and `cols` count the patches in the corner."""
    x, y, w, h = canvas.picture(cells, box, "its corner, enlarged", smooth=False)
    canvas.mesh(box, cells.width, cells.height, "white", 1)
    for row in range(1, math.ceil(rows) if rows < 30 else 1):  # more would only be a gray surface
        canvas.path([(x, y + h * row / rows), (x + w, y + h * row / rows)], INK, 1.5)
    for col in range(1, math.ceil(cols) if cols < 30 else 1):
        canvas.path([(x + w * col / cols, y), (x + w * col / cols, y + h)], INK, 1.5)
    if max(rows, cols) < 20:
        for row in range(math.ceil(rows - 0.6)):
            for col in range(math.ceil(cols - 0.6)):
                canvas.dot(x + w * (col + 0.5) / cols, y + h * (row + 0.5) / rows, 1.5, RED, RED)
    canvas.rect(*box, stroke=RED, line=2)


def _draw_links(canvas, grids, link):
    """What can be pointed at, and frames around a cell and the patches that read it."""
    canvas.facts["frames"] = {}
    for name, (box, (rows, cols)) in grids.items():
        *_, wide, high = cell_box(box, (rows, cols), 0, 0)
        at = None
        if link:
            (row, col), down, across = link
            if name != "patches":
                down, across = [row], [col]
            if down and down[-1] < rows and across[-1] < cols:
                x, y, w, h = cell_box(box, (rows, cols), down[0], across[0], len(down), len(across))
                at = x + wide / 2, y + high / 2
                canvas.facts["frames"][name] = x, y, w, h
                dx, dy = (max(0, 7 - side) / 2 for side in (w, h))  # a cell may be smaller than a line
                for color, line in ((BLACK, 5), (YELLOW, 2)):
                    canvas.rect(x - dx, y - dy, w + 2 * dx, h + 2 * dy, stroke=color, line=line)
        words = "which cell a patch reads" if name == "patches" else "which patches read a cell"
        canvas.spot(name, (rows, cols), box, words, "hover", at, step=(wide, high))


def _cells_image(reads, side):
    """One pixel per cell of the table."""
    kinds = np.full((side, side), 3) if reads is None else np.minimum(reads, 2)
    return colored(kinds, (PALE, BLUE, ORANGE, SKY))


def _error_image(errors):
    """One pixel per patch: dark is right, yellow is wrong."""
    return cividis(np.asarray(errors) / WORST)


def _shortened(numbers, most=624 - 130):
    """As many numbers as fit, then dots and the last one."""
    words = [f"{n:z.1f}".replace("-", "−") if isinstance(n, float) else str(n) for n in numbers]
    shown = len(words)
    text = ", ".join(words)
    while text_width(text) > most:
        shown -= 1
        text = ", ".join(words[:shown]) + ", …, " + words[-1]
    return text


def tables(counts: dict, side: int = 70) -> Canvas:
    """Position tables of side x side cells side by side, with those in color that are read: {title: their ids}."""
    wide = min(200, (WIDTH - 16) // len(counts) - 12)
    canvas, words = Canvas(WIDTH, wide + 66), []
    for place, (title, ids) in enumerate(counts.items()):
        reads = np.bincount(np.asarray(ids), minlength=side * side).reshape(side, side)
        x, used = 8 + (wide + 12) * place, int((reads > 0).sum())
        canvas.text(x, 22, title, bold=True)
        canvas.image(x, 34, wide, wide, _cells_image(np.minimum(reads, 1), side), smooth=False, frame=INK)
        canvas.text(x, wide + 56, f"{used:,} of {side * side:,} cells")
        words.append(f"{title}: {used} of {side * side} cells are read")
    canvas.words = "; ".join(words)
    return canvas
