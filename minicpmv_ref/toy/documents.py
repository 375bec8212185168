"""Documents: lines of words and numbers on a receipt, a banner or a page, their pictures, and what they say."""

from __future__ import annotations

import importlib.util
import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .words import WORDS

# (cols, rows) of documents in cells. A document is made of whole cells, so the slicer cuts it exactly at their borders.
# Six cells at least: then a line that is 10 pixels tall in a slice is 4 pixels tall in the overview.
LAYOUTS = {
    "banner": ((6, 1), (7, 1), (8, 1)),
    "receipt": ((1, 6), (1, 7), (1, 8)),
    "page": ((2, 3), (3, 2), (2, 4), (4, 2), (3, 3)),
}
CAP_HEIGHT = 0.729  # of DejaVu Sans Bold: height of a capital or a digit, in font sizes
MOST_IN_OVERVIEW = 5.0  # pixels: no digit is taller in the overview of a document
RULE = 28  # pixels from one ruled line of the paper to the next: two patches
MARGIN = 7  # pixels to the left of an aligned line
FONT_SIZES = (15, 18)  # pixels in a slice, so digits are 11 to 13 pixels tall


@dataclass(frozen=True)
class Line:
    word: str | None
    number: int | None
    x: float = 0  # left, pixels
    y: float = 0  # top of the font's box, pixels

    @property
    def text(self) -> str:
        return " ".join(str(part) for part in (self.word, self.number) if part is not None)


@dataclass(frozen=True)
class Document:
    layout: str  # "banner", "receipt", "page" or "crop"
    grid: tuple[int, int]  # (cols, rows) in cells
    size: tuple[int, int]  # (width, height) in pixels
    font_size: int
    lines: tuple[Line, ...]  # in reading order

    @property
    def content(self) -> str:  # where the lines stand does not count: the same words elsewhere are held out too
        return "text " + ", ".join(line.text for line in self.lines)


# ---- what the lines say, and where they stand


def _line(rng: random.Random, words: list[str], form: str, font_size: int, view: int) -> Line:
    """`form`: "word", "number" or "both". No word comes twice in a document, so each can be asked for."""
    word, number = words.pop(), rng.randint(10, 99)
    line = Line(word if form != "number" else None, number if form != "word" else None)
    # Where a view is small, a long line gives up its word.
    return line if measure(line.text, font_size)[0] <= view - 4 else Line(None, number)


def sample_document(rng: random.Random, view: int, aligned: bool) -> Document:
    """Choose a layout, and what stands in some of its cells."""
    layout = rng.choice(list(LAYOUTS))
    cols, rows = grid = rng.choice(LAYOUTS[layout])
    size = (cols * view, rows * view)
    largest = MOST_IN_OVERVIEW * math.sqrt(cols * rows) / CAP_HEIGHT  # the overview is sqrt(cells) times smaller
    font_size = rng.randint(FONT_SIZES[0], min(FONT_SIZES[1], int(largest)))
    cells = [(c, r) for r in range(rows) for c in range(cols)]
    cells = sorted(rng.sample(cells, rng.randint(2, min(5, len(cells)))), key=lambda cell: (cell[1], cell[0]))
    words = rng.sample(WORDS, len(WORDS))
    form = "both" if layout == "receipt" else rng.choice(["word", "number", "both"])
    spot = random.Random(rng.random())  # its own, so that the words do not depend on where they stand
    lines = []
    for number, (col, row) in enumerate(cells):
        line = _line(rng, words, form, font_size, view)
        width, height = measure(line.text, font_size)
        if aligned:
            x, y = _on_rule(spot, width, height, spot.randrange(view // RULE), view)
            x, y = x + col * view, y + row * view
        else:
            x, y = _anywhere(spot, (width, height), size, number, len(cells), banner=rows == 1)
        lines.append(Line(line.word, line.number, round(x), round(y)))
    return Document(layout, grid, size, font_size, tuple(lines))


def _anywhere(
    rng: random.Random, text: tuple[int, int], size: tuple[int, int], number: int, count: int, banner: bool
) -> tuple[float, float]:
    """Where line `number` of `count` stands on a document, whatever its cells are; sizes are (width, height)."""
    width, height = text
    if banner:  # it is read from left to right: each line has its own part of the width
        part = size[0] / count
        return part * number + rng.uniform(0, max(0, part - width)), rng.uniform(0, size[1] - height)
    part = size[1] / count  # the others from top to bottom: each line has its own part of the height
    return rng.uniform(0, size[0] - width), part * number + rng.uniform(0, max(0, part - height))


def sample_crop(rng: random.Random, view: int) -> Document:
    """Choose one to three lines for one view: what a slice of a document looks like."""
    font_size = rng.randint(*FONT_SIZES)
    words = rng.sample(WORDS, len(WORDS))
    rules = view // RULE
    count = rng.choice([n for n in (1, 1, 1, 2, 2, 3) if n <= rules])  # a slice has one, mostly
    form = rng.choice(["word", "number", "both"])
    lines = []
    for rule in sorted(rng.sample(range(rules), count)):
        line = _line(rng, words, form, font_size, view)
        x, y = _on_rule(rng, *measure(line.text, font_size), rule, view)
        lines.append(Line(line.word, line.number, round(x), round(y)))
    return Document("crop", (1, 1), (view, view), font_size, tuple(lines))


def _on_rule(rng: random.Random, width: int, height: int, rule: int, view: int) -> tuple[float, float]:
    """Where a line of text stands in its cell: after the margin, on a ruled line, a pixel off at most."""
    x = min(MARGIN, (view - width) / 2) + rng.uniform(-1, 1)
    y = (rule + 0.5) * RULE - height / 2 + rng.uniform(-1, 1)
    return max(0, x), min(max(0, y), view - height)


def lookups(document: Document) -> list[Line]:
    """The lines whose number can be asked for by their word."""
    return [line for line in document.lines if line.word is not None and line.number is not None]


def reading(document: Document) -> str:
    """'north 24, star 81': the lines in reading order."""
    return ", ".join(line.text for line in document.lines)


# ---- the picture


def draw_document(document: Document) -> Image.Image:
    """Draw a document: dark text on light paper."""
    rng = random.Random(document.content)
    paper = rng.randint(238, 255)
    ink = rng.randint(0, 60)
    image = Image.new("L", document.size, paper)
    pen = ImageDraw.Draw(image)
    for line in document.lines:
        pen.text((line.x, line.y), line.text, fill=ink, font=font(document.font_size))
    return image.convert("RGB")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold from matplotlib's files. matplotlib is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.origin:
        raise FileNotFoundError("documents are drawn with the font DejaVu of matplotlib: pip install matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def measure(text: str, size: int) -> tuple[int, int]:
    """(width, height) of a line of text in pixels, the room below the letters included."""
    _, _, right, bottom = font(size).getbbox(text)
    return math.ceil(right), math.ceil(bottom)


# ---- the picture in words


def spell_document(document: Document, view: int) -> list[list[tuple[str, ...]]]:
    """`data.spell` of a document: each line is written into the 4 x 4 slots of the cell that holds it."""
    empty = (".",)
    cols, rows = document.grid
    if document.size != (cols * view, rows * view):
        raise ValueError(f"view: to be spelled, a document must be {cols} x {rows} views, got {document.size} pixels")
    cells = [[[empty] * 4 for _ in range(4)] for _ in range(cols * rows)]
    for line in document.lines:
        width, height = measure(line.text, document.font_size)
        middle = line.y + height / 2
        col, row = int(line.x // view), int(middle // view)
        if line.x < col * view or line.x + width > (col + 1) * view:
            raise ValueError("only a document whose lines are aligned to its cells can be spelled")
        cell = cells[row * cols + col]
        slot_row = min(3, int((middle - row * view) / view * 4))
        while cell[slot_row] != [empty] * 4:  # two lines in one row of slots: the later one moves down
            slot_row += 1
        words = [(f" {line.word}",)] if line.word else []
        words += [(digit,) for digit in str(line.number)] if line.number is not None else []
        before = (4 - len(words)) // 2
        cell[slot_row][before : before + len(words)] = words
    views = [[slot for slots in cell for slot in slots] for cell in cells]
    return views if document.layout == "crop" else [[empty] * 16, *views]
