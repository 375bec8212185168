"""Lesson 07c: data."""

import math

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import plan_slices
from minicpmv_ref.toy.scenes import Scene, caption
from minicpmv_ref.toy.words import LANGUAGES

from .cases import Case, exercise


@exercise
def rewritten():
    """twelve raw captions, with one to four things in any order, with "and", "/" or commas, and advertising."""
    from minicpmv_ref.toy import data

    say = LANGUAGES["en"]
    drawn = [data.draw(f"lesson 07c/{seed}", "noisy") for seed in range(12)]
    for raw in sorted(drawn, key=lambda sample: len(sample.answer)):
        told = [t for t in raw.facts.things if say.thing_at(t.color, t.shape, t.place) in raw.answer]
        yield Case((raw.answer,), caption(Scene(tuple(told)), say))


@exercise
def smallest_text():
    """seven sizes and 1 to 36 slices, two without slices, one that is enlarged; whole pixels."""
    page = (2480, 3508)
    cases = (page, 9, 8), (page, 1, 8), (page, 36, 8), ((1920, 1080), 9, 10)
    for size, most, least in (*cases, ((640, 2560), 9, 12), ((300, 200), 9, 7), ((640, 2560), 4, 21)):
        plan = plan_slices(size, SliceConfig(max_slice_nums=most))
        high = (plan.refined_size or plan.overview_size)[1]
        yield Case((size, most, least), next(h for h in range(1, size[1]) if h * high >= least * size[1]))


@exercise
def outside():
    """six runs of 19 to 40 steps: inside, too high, too low, cut off, one with a loss that is no number."""
    from minicpmv_ref.scale.expected import first_outside

    limits = [(4.0, 5.0), (2.0, 3.5), (1.0, 2.5)]
    for losses in (
        [5.0] * 10 + [2.0] * 10 + [2.5] * 10,  # at the limits, which is inside
        [4.5] * 10 + [3.0] * 9 + [13.0] + [2.0] * 10,  # the mean counts, not the median
        [4.5] * 9 + [9.0] + [3.0] * 10,  # one step is high, its mean of ten is not
        [4.5] * 10 + [1.0] * 9,  # the second ten are not complete
        [4.5] * 10 + [0.5] * 10,
        [4.5] * 10 + [3.0] * 10 + [2.0] * 4 + [math.nan] + [2.0] * 15,
    ):
        yield Case((losses, limits), first_outside(losses, limits))
