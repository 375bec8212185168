"""Lesson 12: whose picture a slot is, frames and their times, and boxes."""

import re
from fractions import Fraction

from minicpmv_ref.inputs.messages import sample_frames

from .cases import Case, exercise


@exercise
def picture_of():
    """one to four pictures, cut and not, with and without ids, with text between; a list of ints."""
    from minicpmv_ref import plan_slices
    from minicpmv_ref.prompt import image_layout

    small, wide, large = (64, 64), (640, 480), (900, 900)
    for ids, sizes in (
        *((True, [small]), (True, [small, small]), (False, [small, small]), (False, [wide]), (True, [wide, small])),
        *((False, [small, wide, small]), (False, [large, wide]), (True, [small, large, small, wide])),
    ):
        tokens, want = [], []
        for number, size in enumerate(sizes):
            layout = image_layout(plan_slices(size), 1, "2.6", number if ids else None)
            here = re.findall(r"<[^>]*>|\d+|\n", layout)
            tokens += [*(["then", "\n"] if number == 2 else ["\n"] if number else []), *here]
            want += [number] * here.count("<unk>")
        yield Case(([*tokens, "\n", "Why", "?"],), want)


@exercise
def sampled():
    """six clips, at 10 to 59.94 frames a second, shorter and longer than a minute; a list of ints."""
    for count, rate in ((50, 10), (95, 29.97), (640, 10), (1500, 10), (5400, 29.97), (9000, 59.94)):
        yield Case((count, rate), sample_frames(list(range(0, count, round(rate)))))


@exercise
def time_id():
    """times on and between the tenths, up to two hours; an int."""
    for seconds in (0.0, 1.0, 0.3, 1 / 3, 2 / 3, 4.3, 0.07, 0.9999, 35.1, 4194.4, 7199.9):
        yield Case((seconds,), round(Fraction(seconds) * 10))


@exercise
def iou():
    """equal boxes, one inside the other, apart in one and in both directions, touching, fractions; a float."""
    from minicpmv_ref.toy.boxes import iou as expected

    for a, b in (
        *(((0, 0, 2, 2), (0, 0, 2, 2)), ((0, 0, 4, 4), (1, 1, 2, 3)), ((0, 0, 2, 2), (1, 1, 3, 3))),
        *(((0, 0, 1, 1), (2, 0, 3, 1)), ((0, 0, 1, 1), (0, 2, 1, 3)), ((0, 0, 1, 1), (2, 2, 3, 3))),
        *(((0, 0, 1, 1), (1, 0, 2, 1)), ((12, 34, 48, 70), (10, 30, 50, 64)), ((0.5, 0.25, 1.5, 0.75), (0, 0, 1, 1))),
    ):
        yield Case((a, b), float(expected(a, b)), tolerance=1e-4)
