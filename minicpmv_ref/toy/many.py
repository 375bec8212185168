"""Several pictures in one conversation: questions that name one of them, compare two, or count over all.

Pictures are counted from 1 in what is said ("in picture 3"), and from 0 between the marks `<image_id>` that the
Processor writes. Every picture is a scene of one or two shapes. English only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .questions import QA
from .samples import Drawn, Wanted, is_held_out
from .scenes import Scene, Thing, caption, draw_scene
from .words import ENGLISH, PAINT, SHAPES

MOST_PICTURES = 8
PICTURES = (1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8)  # how many there are, each equally likely: mostly few


@dataclass(frozen=True)
class Album:
    """Several scenes, in order."""

    scenes: tuple[Scene, ...]

    @property
    def content(self) -> str:
        return "album of " + "; ".join(scene.content for scene in self.scenes)


def draw_album(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "many": pictures, and turns of any topics about them."""
    least = 2 if wanted.topic == "both" else 1
    count = wanted.count or rng.choice([number for number in PICTURES if number >= least])
    if count < least:
        raise ValueError(f'"both" compares two pictures, got {count}')
    first = wanted.topic or rng.choice([topic for topic in _OFTEN if count > 1 or topic != "both"])
    found: list[tuple[str, QA]] = []
    yes = rng.random() < 0.5
    while not found:
        album = sample_album(rng, wanted.held_out, count, alone=first == "unnamed")
        found = [(first, asked) for asked in [ask_album(first, album, rng, yes)] if asked]
    while len(found) < wanted.turns:
        topic = wanted.topic or rng.choice(_OFTEN)
        found += [(topic, asked) for asked in [ask_album(topic, album, rng, rng.random() < 0.5)] if asked]
    pictures = [draw_scene(scene, rng, wanted.view) for scene in album.scenes]
    return Drawn(album, pictures, [asked for _, asked in found], tuple(topic for topic, _ in found))


def draw_pair(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "pair": two pictures, and questions that name one of them: the least that teaches what a name is."""
    return draw_album(rng, wanted._replace(count=2, topic=wanted.topic or "named"))


def sample_album(rng: random.Random, held_out: bool, count: int, alone: bool) -> Album:
    """Choose the scenes of an album. Every one of them belongs to the split, so no picture is in both.

    Args:
        rng: random numbers.
        held_out: whether it belongs to the test split.
        count: of scenes.
        alone: True gives one scene a shape that no other scene has.
    """
    shape, here = rng.choice(SHAPES), rng.randrange(count)
    scenes = []
    while len(scenes) < count:
        scene = Scene(tuple(_things(rng)))
        shapes = [thing.shape for thing in scene.things]
        fits = not alone or shapes.count(shape) == (len(scenes) == here)
        if fits and is_held_out(scene.content) == held_out:
            scenes.append(scene)
    return Album(tuple(scenes))


def _things(rng: random.Random) -> list[Thing]:
    places = sorted(rng.sample(range(4), rng.choice((1, 1, 2))))
    return [Thing(rng.choice(list(PAINT)), rng.choice(SHAPES), place) for place in places]


# ---- questions


def ask_album(topic: str, album: Album, rng: random.Random, yes: bool) -> QA | None:
    """A question of this topic with its answer, that of "both" being `yes`; None if there is none."""
    return _both(album, rng, yes) if topic == "both" else _ASK[topic](album, rng)


def _named(album: Album, rng: random.Random) -> QA | None:
    """A question about one picture; if possible one that another picture answers otherwise."""
    number, topic = rng.randrange(len(album.scenes)), rng.choice(("color", "color", "shape", "shape", "total", "exist"))
    pairs = sorted({(thing.color, thing.shape) for thing in _all_things(album)})
    known = [answers_about(topic, scene, pairs) for scene in album.scenes]
    here, others = known[number], known[:number] + known[number + 1 :]
    hard = {question: reply for question, reply in here.items() if any(reply != o.get(question, reply) for o in others)}
    here = hard or here
    if not here:
        return None
    reply = rng.choice(sorted(set(here.values())))
    question = rng.choice([question for question in here if here[question] == reply])
    return f"{question[:-1]} in picture {number + 1}?", reply


def answers_about(topic: str, scene: Scene, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """All questions of a topic that a scene answers, with the answers; it is asked whether it shows one of `pairs`."""
    shapes = [thing.shape for thing in scene.things]
    if topic == "color":
        return dict(ENGLISH.ask_color(t.shape, t.color) for t in scene.things if shapes.count(t.shape) == 1)
    if topic == "shape":
        return dict(ENGLISH.ask_shape(thing.place, thing.shape) for thing in scene.things)
    if topic == "total":
        return dict([ENGLISH.ask_total(len(shapes))])
    seen = {(thing.color, thing.shape) for thing in scene.things}
    return dict(ENGLISH.ask_exist(*pair, pair in seen) for pair in pairs)


def _describe(album: Album, rng: random.Random) -> QA:
    number = rng.randrange(len(album.scenes))
    return f"Describe picture {number + 1}.", caption(album.scenes[number], ENGLISH)


def _unnamed(album: Album, rng: random.Random) -> QA | None:
    """What one picture alone can answer: the color of a shape that is nowhere else."""
    things = _all_things(album)
    shapes = [thing.shape for thing in things]
    alone = [thing for thing in things if shapes.count(thing.shape) == 1]
    if not alone:
        return None
    thing = rng.choice(alone)
    return ENGLISH.ask_color(thing.shape, thing.color)


def _which(album: Album, rng: random.Random) -> QA | None:
    """The number of the picture that shows an object."""
    seen = [{(thing.color, thing.shape) for thing in scene.things} for scene in album.scenes]
    number = rng.randrange(len(seen))
    others = set().union(*(pairs for other, pairs in enumerate(seen) if other != number))
    alone = sorted(seen[number] - others)
    if not alone:
        return None
    color, shape = rng.choice(alone)
    return f"Which picture shows a {color} {shape}?", str(number + 1)


def _both(album: Album, rng: random.Random, yes: bool) -> QA | None:
    """Whether two pictures both show a shape; a "no" has it in one of them."""
    if len(album.scenes) < 2:
        return None
    first, second = sorted(rng.sample(range(len(album.scenes)), 2))
    one, other = ({thing.shape for thing in album.scenes[number].things} for number in (first, second))
    shapes = sorted(one & other if yes else one ^ other)
    if not shapes:
        return None
    question = f"Do picture {first + 1} and picture {second + 1} both show a {rng.choice(shapes)}?"
    return question, ENGLISH.answer(yes)


def _all(album: Album, rng: random.Random) -> QA | None:
    """How many shapes of a kind all pictures show together, up to nine."""
    shapes = [thing.shape for thing in _all_things(album)]
    shape = rng.choice(SHAPES)
    count = shapes.count(shape)
    return (f"How many {shape}s are there in all pictures?", str(count)) if count < 10 else None


def _all_things(album: Album) -> list[Thing]:
    return [thing for scene in album.scenes for thing in scene.things]


_ASK = {"named": _named, "describe": _describe, "unnamed": _unnamed, "which": _which, "all": _all}
ALBUM_TOPICS = (*_ASK, "both")
_OFTEN = ("named", "unnamed") * 3 + ("describe",) * 2 + ("which", "both", "all")
