"""Lesson 06: packing."""

import itertools
import random

from .cases import Case, exercise


@exercise
def in_order():
    """nine lists of 2 to 12 samples: pairs that fit, cuts, samples that may not be cut, and random ones."""
    from minicpmv_ref.learn.packing import pack_truncate

    rng, rows = random.Random(0), [([3, 4], 10, [1, 1]), ([3, 9, 2, 6, 4, 6], 10, [1] * 6)]
    rows += [([6, 8, 5], 10, [1, 5, 4]), ([5, 5, 5], 10, [5, 5, 5])]
    for _ in range(5):
        lengths = [rng.randint(1, 12) for _ in range(12)]
        rows.append((lengths, 12, [rng.randint(1, length) for length in lengths]))
    for lengths, capacity, shortest in rows:
        yield Case((lengths, capacity, shortest), pack_truncate(lengths, capacity, shortest).rows)


@exercise
def packed_labels():
    """four rows of one to three samples, among them samples of one token."""
    for samples in ([[5, 6, 7]], [[-100, 6, 7], [8, 9]], [[5, 6], [7], [-100, -100, 9]], [[1], [2], [3]]):
        yield Case((samples,), [label for labels in samples for label in [-100, *labels[1:]]])


@exercise
def token_weights():
    """seven rows: one sample, samples without a loss, a supervised first token, random ones; to 1e-4."""
    rows = [([-100, 5, 6], [0, 3]), ([-100, 5, -100, 7, 8, 9], [0, 2, 6]), ([3, 4, 5, 6, 7], [0, 2, 5])]
    rows += [([-100, 1, 2, 3, -100, -100, -100, 4], [0, 1, 4, 6, 8]), ([1, -100, 2], [0, 2, 3])]
    rng = random.Random(3)
    for _ in range(2):
        borders = [0, *sorted(rng.sample(range(1, 16), 4)), 16]
        rows.append(([rng.choice((-100, 7)) for _ in range(16)], borders))
    for labels, borders in rows:
        counts = [sum(label != -100 for label in labels[a + 1 : b]) for a, b in itertools.pairwise(borders)]
        lengths, own = [b - a for a, b in itertools.pairwise(borders)], []
        for length, count in zip(lengths, counts):
            own += [0.0] + [1 / max(count, 1) / max(1, sum(c > 0 for c in counts))] * (length - 1)
        yield Case((labels, borders), [w if label != -100 else 0.0 for w, label in zip(own, labels)], tolerance=1e-4)


@exercise
def samples_of():
    """six rows, among them rows with padding and with several samples of one token."""
    for lengths in ([4], [3, 2], [1, 5, 3], [2, 1, 1, 1], [1, 1], [7, 1, 2]):
        yield Case(([position for length in lengths for position in range(length)],), lengths)
