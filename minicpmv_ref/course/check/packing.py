"""Lesson 06: packing."""

import random

from .cases import Case, exercise


@exercise
def in_order():
    from minicpmv_ref.learn.packing import pack_truncate

    rng = random.Random(0)
    yield Case(([3, 4], 10, [1, 1]), [[(0, 3), (1, 4)]])
    yield Case(([3, 9, 2, 6, 4, 6], 10, [1] * 6), pack_truncate([3, 9, 2, 6, 4, 6], 10).rows)
    yield Case(([6, 8, 5], 10, [1, 5, 4]), pack_truncate([6, 8, 5], 10, [1, 5, 4]).rows)
    yield Case(([5, 5, 5], 10, [5, 5, 5]), pack_truncate([5, 5, 5], 10, [5, 5, 5]).rows)
    for _ in range(5):
        lengths = [rng.randint(1, 12) for _ in range(12)]
        shortest = [rng.randint(1, length) for length in lengths]
        yield Case((lengths, 12, shortest), pack_truncate(lengths, 12, shortest).rows)


@exercise
def packed_labels():
    for samples in ([[5, 6, 7]], [[-100, 6, 7], [8, 9]], [[5, 6], [7], [-100, -100, 9]], [[1], [2], [3]]):
        yield Case((samples,), [label for labels in samples for label in [-100, *labels[1:]]])


@exercise
def samples_of():
    for lengths in ([4], [3, 2], [1, 5, 3], [2, 1, 1, 1], [1, 1], [7, 1, 2]):
        yield Case(([position for length in lengths for position in range(length)],), lengths)
