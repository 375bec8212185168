"""Pages whose text has the same size in every slice, however many slices there are: so in one view it gets small."""

from __future__ import annotations

import math
import random
from itertools import count

from minicpmv_ref.toy.data import CAP_HEIGHT, VIEW, Document, Line, draw, draw_document, is_held_out, reading

FONT_SIZE = 16


def page(seed: int | str, grid: tuple[int, int], lines: int = 3):
    """A held-out page of cols x rows cells, and what stands on it. A cell is one view and holds one line at most."""
    cols, rows = grid
    for number in count():
        rng = random.Random(f"page {seed}/{number}")
        cells = sorted(rng.sample(range(cols * rows), min(lines, cols * rows)))
        written = []
        for cell in cells:
            line = draw(rng.random(), "crop", "test").facts.lines[0]
            written.append(Line(line.word, line.number, line.x + cell % cols * VIEW, line.y + cell // cols * VIEW))
        document = Document("page", grid, (cols * VIEW, rows * VIEW), FONT_SIZE, tuple(written))
        if is_held_out(document.content):
            return draw_document(document), reading(document)


def letters(grid: tuple[int, int], slices: int) -> float:
    """Height of a capital in pixels where a page is shown in so many slices; 1: in one view."""
    shrunk = math.sqrt(min(1, slices / (grid[0] * grid[1])))
    return CAP_HEIGHT * FONT_SIZE * shrunk
