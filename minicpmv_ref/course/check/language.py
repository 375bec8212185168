"""Lesson 04: into the language model."""

from minicpmv_ref.slicing import plan_slices

from .cases import Case, exercise


@exercise
def image_tokens():
    for grid, queries in [(None, 64), ((2, 1), 64), ((1, 2), 64), ((3, 3), 64), ((9, 1), 64), ((4, 2), 16)]:
        cols, rows = grid or (0, 0)
        ends_and_number = 3 + 2 * (1 + cols * rows)
        yield Case((grid, queries), ends_and_number + (1 + cols * rows) * queries + max(rows - 1, 0))


@exercise
def fixed_layout():
    from minicpmv_ref.prompt import image_layout  # imports torch, which lesson 01 does without

    for size in [(900, 448), (448, 900), (1000, 1000), (1344, 1344), (2400, 300)]:
        plan = plan_slices(size)
        yield Case((*plan.grid, 2), image_layout(plan, 2, "2.6", image_id=None))


@exercise
def safe_length():
    bounds = [[18, 20], [22, 24], [26, 28]]  # as in the conversation of lesson 04
    for most in (40, 23, 24, 25, 26, 28, 29, 21, 17, 18, 5):
        split = next((start - 1 for start, end in bounds if start - 1 < most <= end), most)
        yield Case((bounds, most), split)
