"""Scenes: up to four colored shapes on a 2 x 2 board, their pictures, and captions of several kinds."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from ..config import nano
from .words import PAINT, SHAPES, Language

VIEW = nano.slicing.scale_resolution  # side in pixels of a scene and of one cell of a document
PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str
    place: int  # index into PLACES


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]  # in reading order

    @property
    def content(self) -> str:
        return "scene " + ", ".join(f"{t.color} {t.shape} {t.place}" for t in self.things)


def sample_scene(rng: random.Random) -> Scene:
    """Choose places, colors and shapes."""
    places = sorted(rng.sample(range(4), rng.randint(1, 4)))
    return Scene(tuple(Thing(rng.choice(list(PAINT)), rng.choice(SHAPES), place) for place in places))


# ---- the picture


def draw_scene(scene: Scene, rng: random.Random, side: int = VIEW) -> Image.Image:
    """Draw a scene as a square picture. Size, place and paint vary a little, and the text does not tell how."""
    shade = rng.randint(225, 255)
    image = Image.new("RGB", (side, side), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        radius = side * rng.uniform(0.11, 0.18)
        x = side * (0.25 + 0.5 * (thing.place % 2) + rng.uniform(-0.05, 0.05))
        y = side * (0.25 + 0.5 * (thing.place // 2) + rng.uniform(-0.05, 0.05))
        draw_shape(pen, thing.shape, x, y, radius, paint_near(thing.color, rng))
    return image


def paint_near(color: str, rng: random.Random) -> tuple[int, ...]:
    """RGB of a paint near that color."""
    return tuple(min(255, max(0, channel + rng.randint(-20, 20))) for channel in PAINT[color])


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, paint: tuple[int, ...]) -> None:
    """Draw one shape around the point (x, y), as large as a circle of radius r; all in pixels."""
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=paint)
    elif shape == "square":
        pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=paint)
    else:
        pen.polygon([(x + r * px, y + r * py) for px, py in OUTLINES[shape]], fill=paint)


_STAR = [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate((1, 0.42) * 5)]
OUTLINES = {"triangle": [(0, -1), (1, 0.9), (-1, 0.9)], "star": _STAR}


# ---- captions


def caption(scene: Scene, say: Language) -> str:
    """'red circle top left, blue square bottom right.'"""
    return say.comma.join(say.thing_at(t.color, t.shape, t.place) for t in scene.things) + say.period


def long_caption(scene: Scene, say: Language) -> str:
    """'There are two shapes: a red circle at the top left and a blue square at the bottom right.'"""
    parts = [say.a_thing_at(t.color, t.shape, t.place) for t in scene.things]
    listed = say.long_and.join(filter(None, [say.comma.join(parts[:-1]), parts[-1]]))
    return say.there_are[len(parts) - 1] + listed + say.period


def noisy_caption(scene: Scene, say: Language, rng: random.Random) -> str:
    """A caption as the web has them: shuffled, sometimes incomplete, with advertising around it.

    What it says about the picture is true; `caption(scene, say)` is what a good rewriter would make of it.
    """
    things = list(scene.things)
    rng.shuffle(things)
    if len(things) > 1 and rng.random() < 0.25:
        things.pop()
    body = rng.choice([" and ", " / ", ", "]).join(say.thing_at(t.color, t.shape, t.place) for t in things)
    before = rng.choice(["IMG_{n}.jpg ", "best of 20{n}: ", "the {n} best pictures - ", "{n} x ", ""])
    after = rng.choice([" !!!", " - only ${n}", ", click here", " | price ${n}.{n}", ""])
    return (before + body + after).replace("{n}", str(rng.randint(10, 99)))


def careless_caption(scene: Scene, say: Language, rng: random.Random) -> str:
    """A caption as a weak annotator writes it: mistakes of habit and mistakes of chance.

    Habit: by the end of a longer list the writer is tired, and the last of three or four things mostly gets the color
    of the one before it. A model learns such a habit so well that even its likeliest answer shows it. Chance: one thing
    in eight gets another color, shape or place. Nothing is left out: a model that has learned to leave things out is
    soon taught to leave out more, for what is not said is never false.
    """
    things = list(scene.things)
    if len(things) > 2 and rng.random() < 0.8:
        things[-1] = replace(things[-1], color=things[-2].color)
    for number, thing in enumerate(things):
        if rng.random() < 0.125:
            trait, values = rng.choice([("color", list(PAINT)), ("shape", list(SHAPES)), ("place", range(4))])
            things[number] = replace(thing, **{trait: rng.choice(values)})
    return caption(Scene(tuple(things)), say)


# ---- the picture in words


def spell_scene(scene: Scene, width: int, view: int) -> list[list[tuple[str, ...]]]:
    """`data.spell` of a scene drawn `width` pixels wide. Each place of the 2 x 2 board is 2 x 2 of the 16 slots."""
    if width not in (view, 2 * view):
        raise ValueError(f"view: to be spelled, a scene must be {view} or {2 * view} pixels wide, got {width}")
    empty = (".",)
    at = {
        t.place: (f" {t.color}", f" {t.shape}", *(f" {word}" for word in PLACES[t.place].split())) for t in scene.things
    }
    board = [at.get(row // 2 * 2 + col // 2, empty) for row in range(4) for col in range(4)]
    slices = [[at.get(place, empty)] * 16 for place in range(4)] if width == 2 * view else []
    return [board, *slices]
