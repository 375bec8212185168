"""Questions about scenes. Every topic lists its answers; each is equally likely, whatever the question's words are.

A new topic is one function here, its answers in TOPICS, its function in _ASK, and its words in `words.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .scenes import Scene, Thing
from .words import PAINT, SHAPES, Language

TOPICS: dict[str, tuple] = {
    "color": tuple(PAINT),
    "shape": SHAPES,
    "total": (1, 2, 3, 4),
    "count": (0, 1, 2, 3),
    "exist": (True, False),
    "place": (0, 1, 2, 3),
    "side": (True, False),
}

QA = tuple[str, str]  # a question and its answer


def ask(topic: str, answer, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    """Find a question of this topic that has this answer in this scene; (question, answer) or None."""
    return _ASK[topic](answer, scene, rng, say)


def _color(answer: str, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    shapes = [t.shape for t in scene.things]
    fits = [t for t in scene.things if t.color == answer and shapes.count(t.shape) == 1]
    return say.ask_color(rng.choice(fits).shape, answer) if fits else None


def _shape(answer: str, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    fits = [t for t in scene.things if t.shape == answer]
    return say.ask_shape(rng.choice(fits).place, answer) if fits else None


def _total(answer: int, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    return say.ask_total(answer) if len(scene.things) == answer else None


def _count(answer: int, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    shapes = [t.shape for t in scene.things]
    fits = [shape for shape in SHAPES if shapes.count(shape) == answer]
    return say.ask_count(rng.choice(fits), answer) if fits else None


def _exist(answer: bool, scene: Scene, rng: random.Random, say: Language) -> QA:
    pairs = [(t.color, t.shape) for t in scene.things]
    if answer:
        return say.ask_exist(*rng.choice(pairs), True)
    # Near misses: the color or the shape is there, but not both together.
    colors, shapes = zip(*pairs)
    near = [(c, s) for c in PAINT for s in SHAPES if (c, s) not in pairs and (c in colors or s in shapes)]
    return say.ask_exist(*rng.choice(near), False)


def _place(answer: int, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    fits = [t for t in _alone(scene) if t.place == answer]
    return say.ask_place(fits[0].color, fits[0].shape, answer) if fits else None


def _side(answer: bool, scene: Scene, rng: random.Random, say: Language) -> QA | None:
    alone = _alone(scene)
    options = [(a, b, side) for a in alone for b in alone for side in _sides(a, b)]
    if not options:
        return None
    first, second, side = rng.choice(options)
    side = side if answer else {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
    return say.ask_side((first.color, first.shape), side, (second.color, second.shape), answer)


_ASK: dict[str, Callable] = {
    "color": _color,
    "shape": _shape,
    "total": _total,
    "count": _count,
    "exist": _exist,
    "place": _place,
    "side": _side,
}


def _alone(scene: Scene) -> list[Thing]:
    """The things that have no double, so that color and shape name them."""
    pairs = [(t.color, t.shape) for t in scene.things]
    return [t for t in scene.things if pairs.count((t.color, t.shape)) == 1]


def _sides(a: Thing, b: Thing) -> list[str]:
    """Where `a` is, seen from `b`."""
    dx, dy = a.place % 2 - b.place % 2, a.place // 2 - b.place // 2
    return [name for name, yes in dict(left=dx < 0, right=dx > 0, above=dy < 0, below=dy > 0).items() if yes]


def more_questions(scene: Scene, rng: random.Random, say: Language, count: int) -> list[tuple[str, QA]]:
    """So many questions about one scene, of any topics: (topic, (question, answer))."""
    asked: list[tuple[str, QA]] = []
    while len(asked) < count:
        topic = rng.choice(list(TOPICS))
        if found := ask(topic, rng.choice(TOPICS[topic]), scene, rng, say):
            asked.append((topic, found))
    return asked


def ask_claim(yes: bool, scene: Scene, rng: random.Random, say: Language) -> QA:
    """Ask whether an object is at a place; one question in four leaves the place out.

    What is not there comes in four kinds: the color, the shape or the place of an object is wrong, or anything is.
    """
    placed = rng.random() < 0.75
    there = sorted({(t.color, t.shape, t.place if placed else None) for t in scene.things})
    color, shape, place = rng.choice(there)
    if not yes:
        places = range(4) if placed else (None,)
        kinds = (
            [(c, shape, place) for c in PAINT],
            [(color, s, place) for s in SHAPES],
            [(color, shape, p) for p in places],
            [(c, s, p) for c in PAINT for s in SHAPES for p in places],
        )
        false = [[claim for claim in claims if claim not in there] for claims in kinds]
        color, shape, place = rng.choice(rng.choice([claims for claims in false if claims]))
    return say.ask_exist(color, shape, yes, place)
