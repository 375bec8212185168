"""What is in front of what, and what is nearer to what: two kinds for the 3-D half of a small CV-Bench.

The world is flat. So depth is what covers what, and distance is measured in the picture. English only.
"""

from __future__ import annotations

import math
import random

from .boxes import Layout, Placed, draw_placed, sample_layout
from .samples import Drawn, Wanted, is_held_out
from .words import PAINT, SHAPES

RADII = (150, 175, 200)  # of shapes that overlap, in thousandths of the picture's side
APART = (0.75, 0.95)  # their middles, in parts of the larger radius: both are seen, and one covers the other
LEAST_RATIO = 1.5  # of two distances that are compared


def draw_depth(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "depth": one of two shapes covers a part of the other. Sizes say nothing about it."""
    return _drawn(rng, wanted, sample_overlap, "depth", _in_front)


def draw_distance(rng: random.Random, wanted: Wanted) -> Drawn:
    """The kind "distance": which of two shapes is nearer to a third."""
    return _drawn(rng, wanted, sample_distances, "distance", _nearer)


def sample_overlap(rng: random.Random) -> Layout:
    """Two shapes of different color and shape; the later one covers a part of the earlier one."""
    radii = rng.choice(RADII), rng.choice(RADII)
    apart, angle = max(radii) * rng.uniform(*APART), rng.uniform(0, 2 * math.pi)
    dx, dy = round(apart * math.cos(angle)), round(apart * math.sin(angle))
    x, y = (rng.randint(max(RADII) + max(0, -d), 1000 - max(RADII) - max(0, d)) for d in (dx, dy))
    looks = zip(rng.sample(list(PAINT), 2), rng.sample(SHAPES, 2))
    spots = (x, y), (x + dx, y + dy)
    return Layout(tuple(Placed(*look, *spot, radius) for look, spot, radius in zip(looks, spots, radii)))


def sample_distances(rng: random.Random) -> Layout:
    """Three shapes; the second is nearer to the first than the third is."""
    while True:
        first, *others = sample_layout(rng, 3).things
        near, far = sorted(others, key=lambda other: distance(first, other))
        if distance(first, far) >= LEAST_RATIO * distance(first, near):
            return Layout((first, near, far))


def distance(one: Placed, other: Placed) -> float:
    """Between the middles of two shapes, in thousandths of the picture's side."""
    return math.hypot(one.x - other.x, one.y - other.y)


def _in_front(layout: Layout, rng: random.Random) -> tuple[str, str]:
    one, other = rng.sample([thing.name for thing in layout.things], 2)
    return f"Which is in front, the {one} or the {other}?", layout.things[-1].name


def _nearer(layout: Layout, rng: random.Random) -> tuple[str, str]:
    to, near, _ = (thing.name for thing in layout.things)
    one, other = rng.sample([thing.name for thing in layout.things[1:]], 2)
    return f"Which is closer to the {to}, the {one} or the {other}?", near


def _drawn(rng: random.Random, wanted: Wanted, make, topic: str, ask) -> Drawn:
    while True:
        layout = make(rng)
        if is_held_out(layout.content) == wanted.held_out:
            break
    return Drawn(layout, draw_placed(layout.things, rng, wanted.view), [ask(layout, rng)], (topic,))
