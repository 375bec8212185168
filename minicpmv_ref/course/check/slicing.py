"""Lesson 01: slicing."""

import math

from minicpmv_ref.slicing import best_grid, candidate_grids, partition_score, plan_slices

from .cases import Case, exercise


@exercise
def visual_tokens():
    """no grid and 2 x 1 with 64 queries, 3 x 3 with 96; the int must be equal."""
    yield Case((None, 64), 64)
    yield Case(((2, 1), 64), 192)
    yield Case(((3, 3), 96), 960)


@exercise
def boxes():
    """grids 2 x 1, 3 x 2, 2 x 4 and 5 x 1; a list (or tuple) of boxes of four ints, in order."""
    for size in [(896, 448), (640, 480), (1280, 720), (1240, 1754), (2400, 300)]:
        plan = plan_slices(size)
        yield Case((plan.refined_size, plan.grid), plan.boxes)


@exercise
def shrink():
    """five pictures and budgets, with and without something to shrink; two ints, equal."""
    cases = (448, 448, 64), (449, 448, 64), (1920, 1080, 640), (1920, 1080, 320), (820, 580, 256)
    for width, height, budget in cases:
        sizes = ((width * percent // 100, height * percent // 100) for percent in range(100, 0, -1))
        yield Case((width, height, budget), next(s for s in sizes if plan_slices(s).visual_tokens(64) <= budget))


@exercise
def is_right():
    """a right port and four with a bug; True or False."""
    for port in (right_port, swapped_port, rounding_port, unlimited_port, last_bit_port):
        yield Case((port,), port is right_port)


def right_port(shape):
    return best_grid((shape[1], shape[0]))


def swapped_port(shape):
    return best_grid((shape[0], shape[1]))


def rounding_port(shape):
    """Rounds the ideal number of slices to the nearest, not up."""
    return _best(shape, round(shape[0] * shape[1] / 448**2), 9)


def unlimited_port(shape):
    """Tries 10 slices where the ideal number is 9."""
    return _best(shape, math.ceil(shape[0] * shape[1] / 448**2), 10)


def last_bit_port(shape):
    """Divides before it takes the logarithm, as the paper writes it."""
    height, width = shape[:2]
    score = lambda grid: -abs(math.log((width / grid[0]) / (height / grid[1])))  # noqa: E731
    return max(candidate_grids((width, height)), key=score, default=None)


def _best(shape, ideal, most):
    ideal = min(ideal, 9)
    counts = [k for k in (ideal - 1, ideal, ideal + 1) if 1 < k <= most] if ideal > 1 else []
    grids = [(cols, k // cols) for k in counts for cols in range(1, k + 1) if k % cols == 0]
    return max(grids, key=lambda grid: partition_score((shape[1], shape[0]), grid), default=None)
