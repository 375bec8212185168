"""Where things are, in numbers: shapes that stand anywhere, and the words of a crop, each with its box.

A box is written as the released models do, `<box>x1 y1 x2 y2</box>`, in thousandths of the picture's width and height.
What is said is rounded to steps of 20, for a nano model sees no finer. English only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .documents import Document, Line, draw_document, font, sample_crop
from .questions import QA
from .samples import Drawn, Wanted, is_held_out
from .scenes import OUTLINES, draw_shape, paint_near
from .words import PAINT, SHAPES

SIZES = {"small": 90, "middle": 140, "large": 200}  # radius of a shape, in thousandths of the picture's side
STEP = 20  # what is said is rounded to it
COUNTS = (1, 1, 1, 2, 3)  # how many shapes there are, each equally likely
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in thousandths


@dataclass(frozen=True)
class Placed:
    """A shape that stands anywhere; its middle and its radius are in thousandths of the picture's side."""

    color: str
    shape: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> Box:
        """What the shape covers, to the thousandth."""
        left, top, right, bottom = _EXTENT[self.shape]
        return tuple(
            round(middle + self.radius * edge) for middle, edge in zip((self.x, self.y) * 2, (left, top, right, bottom))
        )


@dataclass(frozen=True)
class Layout:
    """Shapes that stand anywhere, no two of them alike."""

    things: tuple[Placed, ...]

    @property
    def content(self) -> str:
        return "layout " + ", ".join(f"{thing.name} {thing.x} {thing.y} {thing.radius}" for thing in self.things)


def _extent(outline: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*outline)
    return min(xs), min(ys), max(xs), max(ys)


_EXTENT = {"circle": (-1, -1, 1, 1), "square": (-0.9, -0.9, 0.9, 0.9)}
_EXTENT |= {shape: _extent(outline) for shape, outline in OUTLINES.items()}


# ---- shapes


def draw_layout(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "box": where each shape of a picture is, or what is in a box."""
    count = wanted.count or rng.choice(COUNTS if wanted.topic != "inside" else (2, 3))
    while True:
        layout = sample_layout(rng, count)
        if is_held_out(layout.content) == wanted.held_out:
            break
    topics, turns = [], []
    for thing in rng.sample(layout.things, min(count, wanted.turns)):  # each once: its box must not be known before
        topic = wanted.topic or ("inside" if count > 1 and rng.random() < 0.25 else "box")
        topics.append(topic)
        turns.append(ask_box(f"the {thing.name}", thing.box) if topic == "box" else ask_inside(thing.name, thing.box))
    return Drawn(layout, draw_placed(layout.things, rng, wanted.view), turns, tuple(topics))


def draw_one(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "one box": a picture of one shape, and where it is."""
    return draw_layout(rng, wanted._replace(count=1))


def sample_layout(rng: random.Random, count: int) -> Layout:
    """Choose so many shapes that differ and do not touch."""
    things: list[Placed] = []
    while len(things) < count:
        radius = rng.choice(list(SIZES.values()))
        x, y = (rng.randint(radius, 1000 - radius) for _ in "xy")
        thing = Placed(rng.choice(list(PAINT)), rng.choice(SHAPES), x, y, radius)
        apart = all(max(abs(thing.x - o.x), abs(thing.y - o.y)) > thing.radius + o.radius for o in things)
        if apart and thing.name not in [o.name for o in things]:
            things.append(thing)
        elif rng.random() < 0.02:  # three large ones may leave no room
            things = []
    return Layout(tuple(things))


def draw_placed(things: tuple[Placed, ...], rng: random.Random, side: int) -> Image.Image:
    """Draw shapes as a square picture; its paint varies a little."""
    shade = rng.randint(225, 255)
    image = Image.new("RGB", (side, side), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for thing in things:
        x, y, radius = (value / 1000 * side for value in (thing.x, thing.y, thing.radius))
        draw_shape(pen, thing.shape, x, y, radius, paint_near(thing.color, rng))
    return image


def spell_placed(things: tuple[Placed, ...]) -> list[tuple[str, ...]]:
    """The words of 4 x 4 slots: each shape stands in the slot of its middle."""
    board = [(".",)] * 16
    for thing in things:
        board[thing.y * 4 // 1001 * 4 + thing.x * 4 // 1001] = (f" {thing.color}", f" {thing.shape}")
    return board


# ---- words


def draw_word(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "word box": where words and numbers of a crop are."""
    while True:
        crop = sample_crop(rng, wanted.view)
        found = word_boxes(crop)
        if found and is_held_out(crop.content) == wanted.held_out:
            break
    names = rng.sample(sorted(found), min(len(found), wanted.turns))
    return Drawn(crop, draw_document(crop), [ask_box(name, found[name]) for name in names], ("word",) * len(names))


def word_boxes(document: Document) -> dict[str, Box]:
    """The box of each word and number that stands only once in a document; what the ink covers."""
    found = [pair for line in document.lines for pair in _line_boxes(line, document)]
    names = [name for name, _ in found]
    return {name: box for name, box in found if names.count(name) == 1}


def _line_boxes(line: Line, document: Document) -> list[tuple[str, Box]]:
    pen, boxes = font(document.font_size), []
    words = line.text.split()
    for number, word in enumerate(words):
        before = pen.getlength(" ".join([*words[:number], ""])) if number else 0
        ink = pen.getbbox(word)
        edges = (line.x + before + ink[0], line.y + ink[1], line.x + before + ink[2], line.y + ink[3])
        boxes.append((word, tuple(round(1000 * edge / side) for edge, side in zip(edges, document.size * 2))))
    return boxes


# ---- what is said


def say_box(box: Box) -> str:
    """'<box>120 340 480 700</box>': each edge rounded to a step of 20."""
    edges = (round(edge / STEP) * STEP for edge in box)
    return f"<box>{' '.join(map(str, edges))}</box>"


def ask_box(name: str, box: Box) -> QA:
    return f"Give the box of {name}.", f"<ref>{name.removeprefix('the ')}</ref>{say_box(box)}"


def ask_inside(name: str, box: Box) -> QA:
    return f"What is in {say_box(box)}?", name


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes; 0 for one that is empty."""
    both, either = overlap(first, second)
    return both / either if both else 0.0


def overlap(first: Box, second: Box) -> tuple[float, float]:
    """(the area that both boxes cover, the area that one or both cover)"""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0, width) * max(0, height)
    return both, sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - both
