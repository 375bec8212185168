"""Lesson 01: slicing."""

from minicpmv_ref.slicing import best_grid, plan_slices

from .cases import Case, exercise


@exercise
def visual_tokens():
    yield Case((None, 64), 64)
    yield Case(((2, 1), 64), 192)
    yield Case(((3, 3), 96), 960)


@exercise
def boxes():
    for size in [(896, 448), (640, 480), (1280, 720), (1240, 1754), (2400, 300)]:
        plan = plan_slices(size)
        yield Case((plan.refined_size, plan.grid), plan.boxes)


@exercise
def shrink():
    for width, height, budget in [
        (448, 448, 64),
        (449, 448, 64),
        (1920, 1080, 640),
        (1920, 1080, 320),
        (848, 600, 256),
    ]:
        sizes = ((width * percent // 100, height * percent // 100) for percent in range(100, 0, -1))
        yield Case((width, height, budget), next(s for s in sizes if plan_slices(s).visual_tokens(64) <= budget))


@exercise
def fixed_port():
    for size in [(1000, 1000), (1920, 1080), (1080, 1920), (640, 480), (300, 200), (3000, 200)]:
        yield Case(((size[1], size[0], 3),), best_grid(size))
