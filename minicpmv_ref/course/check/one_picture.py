"""Lesson 00: one picture, end to end."""

from minicpmv_ref.config import v2_0, v2_5, v2_6
from minicpmv_ref.slicing import plan_slices

from .cases import Case, exercise


@exercise
def times_the_work():
    """five sizes from 448 x 448 to 4032 x 3024 in versions 2.0, 2.5 and 2.6; six digits must agree."""
    pictures = [((448, 448), v2_6), ((640, 427), v2_6), ((1344, 1344), v2_5), ((4032, 3024), v2_6), ((2400, 300), v2_0)]
    for size, config in pictures:
        v = config.vision
        per_patch = 2 * v.layers * (4 * v.width**2 + 2 * v.width * v.mlp_width)
        views = [rows * cols for rows, cols in plan_slices(size, config.slicing).patch_grids]
        whole = round(size[0] / 14) * round(size[1] / 14)
        work = [sum(per_patch * n + 4 * v.layers * v.width * n * n for n in lengths) for lengths in ([whole], views)]
        yield Case((size, config), work[0] / work[1], tolerance=1e-6 * work[0] / work[1])
