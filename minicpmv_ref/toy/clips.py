"""Short clips: a shape moves, shapes come one after another, a color changes, or a shape comes and goes.

A question can be answered from the order of the frames only. English only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from .boxes import Placed, draw_placed
from .questions import QA
from .samples import Drawn, Wanted, is_held_out
from .words import ENGLISH, PAINT, SHAPES

FRAMES = (3, 4, 4, 5, 6, 8)  # how many there are, each equally likely
LEAST_FRAMES, MOST_FRAMES = 3, 64
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
EVENTS = ("move", "move", "come", "come", "change", "blink")
CLIP_TOPICS = {  # topic -> in which events it is asked
    "direction": ("move",),
    "first": ("come", "change"),
    "last": ("come", "change"),
    "order": ("come",),
    "often": ("change", "blink"),
}


@dataclass(frozen=True)
class Clip:
    """What happens, and what each frame shows."""

    event: str  # "move", "come", "change" or "blink"
    story: str  # what happens, in words
    frames: tuple[tuple[Placed, ...], ...]
    questions: tuple[tuple[str, QA], ...]  # all that can be asked: (topic, (question, answer))

    @property
    def content(self) -> str:  # where and when it happens does not count: the same story elsewhere is held out too
        return f"clip {self.event} {self.story}"


def draw_clip(rng: random.Random, wanted: Wanted, events: tuple[str, ...] = EVENTS) -> Drawn:
    """The kind "clip": a list of frames, and different questions about them, as many as there are."""
    count = wanted.count or rng.choice(FRAMES)
    events = [event for event in events if wanted.topic is None or event in CLIP_TOPICS[wanted.topic]]
    while True:
        clip = sample_clip(rng, rng.choice(events), count)
        asked = [pair for pair in clip.questions if wanted.topic in (None, pair[0])]
        if asked and is_held_out(clip.content) == wanted.held_out:
            break
    asked = rng.sample(asked, min(len(asked), wanted.turns))
    seed = rng.random()  # the same paint and paper in all frames
    frames = [draw_placed(things, random.Random(seed), wanted.view) for things in clip.frames]
    return Drawn(clip, [frames], [qa for _, qa in asked], tuple(topic for topic, _ in asked))


def draw_motion(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "motion": a clip in which something moves, and which way it goes."""
    return draw_clip(rng, wanted._replace(topic=wanted.topic or "direction"))


def draw_coming(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "coming": a clip in which shapes come one after another, and in which order."""
    return draw_clip(rng, wanted, ("come",))


def sample_clip(rng: random.Random, event: str, count: int) -> Clip:
    """Choose what happens in so many frames."""
    story, frames, questions = _EVENT[event](rng, count)
    return Clip(event, story, tuple(map(tuple, frames)), tuple(questions))


# ---- the events: each gives (story, frames, questions)


def _move(rng: random.Random, count: int) -> tuple:
    """One shape crosses the picture; sometimes another one stands still beside its way."""
    moving, still = _two_shapes(rng)
    way, (dx, dy) = rng.choice(list(WAYS.items()))
    reach, across = rng.randint(220, 300), rng.choice((250, 750)) + rng.randint(-50, 50)
    beside, accompanied = rng.randint(200, 800), rng.random() < 0.5
    other = Placed(*still, *((beside, 1000 - across) if dx else (1000 - across, beside)), 120)
    frames = []
    for frame in range(count):
        along = round(reach * (2 * frame / (count - 1) - 1))
        x, y = (500 + dx * along, across) if dx else (across, 500 + dy * along)
        frames.append([Placed(*moving, x, y, 140), *[other] * accompanied])
    story = f"{' '.join(moving)} {way}" + f", {' '.join(still)} stays" * accompanied
    return story, frames, [("direction", (f"Which way does the {moving[1]} move?", way))]


def _come(rng: random.Random, count: int) -> tuple:
    """Two or three shapes come one after another, and stay."""
    number = rng.randint(2, 3)
    looks = _looks(rng, number)
    begins = [0, *sorted(rng.sample(range(1, count), number - 1))]
    spots = [_spot(place, rng) for place in rng.sample(range(4), number)]
    things = [Placed(*look, *spot, 140) for look, spot in zip(looks, spots)]
    frames = [[thing for thing, begin in zip(things, begins) if begin <= frame] for frame in range(count)]
    names = [thing.name for thing in things]
    questions = [("first", ("What comes first?", names[0])), ("last", ("What comes last?", names[-1]))]
    for one, other in rng.sample([(a, b) for a in range(number) for b in range(number) if a != b], 2):
        question = f"Does the {names[one]} come before the {names[other]}?"
        questions.append(("order", (question, ENGLISH.answer(one < other))))
    return ", then ".join(names), frames, questions


def _change(rng: random.Random, count: int) -> tuple:
    """One shape changes its color, up to three times."""
    shape, times = rng.choice(SHAPES), rng.randint(0, min(3, count - 1))
    colors = [rng.choice(list(PAINT))]
    while len(colors) <= times:
        colors += [color for color in [rng.choice(list(PAINT))] if color != colors[-1]]
    begins = [0, *sorted(rng.sample(range(1, count), times)), count]
    spot = _spot(rng.randrange(4), rng)
    frames = [
        [Placed(color, shape, *spot, 140)]
        for color, (begin, end) in zip(colors, pairwise(begins))
        for _ in range(begin, end)
    ]
    questions = [("often", (f"How often does the {shape} change its color?", str(times)))]
    if times:
        questions += [
            ("first", (f"What color is the {shape} first?", colors[0])),
            ("last", (f"What color is the {shape} last?", colors[-1])),
        ]
    return f"{shape} {' '.join(colors)}", frames, questions


def _blink(rng: random.Random, count: int) -> tuple:
    """One shape comes up to three times and goes again; another one is always there."""
    coming, still = _two_shapes(rng)
    times = rng.randint(1, min(3, count // 2))
    # `times` stretches with it, each after a stretch without it; a last stretch without it may be empty.
    while True:
        cuts = sorted(rng.sample(range(1, count + 1), 2 * times))
        if cuts[-1] == count or rng.random() < 0.5:
            break
    here, there = (_spot(place, rng) for place in rng.sample(range(4), 2))
    frames = []
    for frame in range(count):
        shown = sum(cut <= frame for cut in cuts) % 2 == 1
        frames.append([Placed(*still, *there, 140), *[Placed(*coming, *here, 140)] * shown])
    story = f"{' '.join(coming)} {times} times, {' '.join(still)} stays"
    return story, frames, [("often", (f"How often does the {coming[1]} come?", str(times)))]


_EVENT = {"move": _move, "come": _come, "change": _change, "blink": _blink}


def _spot(place: int, rng: random.Random) -> tuple[int, int]:
    """A point near the middle of a quarter of the picture."""
    return 250 + 500 * (place % 2) + rng.randint(-50, 50), 250 + 500 * (place // 2) + rng.randint(-50, 50)


def _looks(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """So many different pairs of color and shape."""
    return rng.sample([(color, shape) for color in PAINT for shape in SHAPES], count)


def _two_shapes(rng: random.Random) -> list[tuple[str, str]]:
    """Two things of different shapes, so that the shape alone names each."""
    return [(rng.choice(list(PAINT)), shape) for shape in rng.sample(SHAPES, 2)]
