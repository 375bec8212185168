"""Lesson 14: the smallest so far, equal cost, how many samples, a verdict, and a review."""

import math

from .cases import Case, exercise


@exercise
def smallest_so_far():
    """the published list at six scores, one out of reach, and a list where a size comes twice; a list, equal."""
    from minicpmv_ref.course import draw

    models = [(model.billions, model.score) for model in draw.PUBLISHED if model.score is not None]
    for level in (60, 55, 66, 68.1, 75, 90):
        yield Case((models, level), [model.billions for model in draw.smallest(level)])
    yield Case(([(8.0, 60.0), (3.0, 40.0), (9.0, 70.0), (8.0, 65.0), (8.5, 61.0), (2.0, 50.0)], 50), [8.0, 2.0])


@exercise
def steps_for():
    """seven pairs of costs, cheaper and dearer, also a training of one step; an int, equal."""
    from experiments.capstone import equal_steps

    for steps, cost, other in (
        *((100, 2.0, 1.0), (100, 1.0, 2.0), (120, 12.7e9, 10.5e9), (60, 5.0, 5.0)),
        *((100, 5.0, 3.0), (1, 1.0, 9.0), (30, 52.4e9, 50.7e9)),
    ):
        yield Case((steps, cost, other), equal_steps(steps, cost, other))


@exercise
def samples_needed():
    """six pairs; an int, equal."""
    for spread, half in ((0.5, 0.1), (1.0, 0.1), (0.3, 0.05), (1.0, 0.5), (0.2, 0.02), (2.0, 0.06)):
        yield Case((spread, half), math.ceil((1.96 * spread / half) ** 2))


@exercise
def decide():
    """nine results, with predictions above, at and below 0, and one seed that stands alone; a str, equal."""
    from experiments._arms import decided

    for seeds, ends, number in (
        *(([0.3, 0.2, 0.25], (0.15, 0.35), 0.0), ([-0.3, -0.2, -0.25], (-0.35, -0.15), 0.0)),
        *(([0.3, 0.2, 0.25], (-0.05, 0.55), 0.0), ([0.6, 0.5, -0.05], (0.25, 0.45), 0.0)),
        *(([0.1, 0.12, 0.11], (0.05, 0.17), 0.2), ([0.1, 0.12, 0.11], (0.05, 0.25), 0.2)),
        *(([-0.04, -0.06, -0.05], (-0.08, -0.02), -0.1), ([-0.3, -0.2, -0.4], (-0.5, -0.15), -0.1)),
        ([-0.3, -0.2, 0.05], (-0.25, -0.02), 0.0),
    ):
        yield Case((seeds, ends, number), decided(ends, seeds, number).removesuffix(" here"))


@exercise
def faults():
    """nine pairs of arms: fair, one fault, four faults, and differences that are no fault; a list, in order."""
    fair = {"settings": {"queries": 16, "rate": 3e-3}, "steps": 100, "step_cost": 12.0, "trained": [1, 2, 3, 4]}
    fair |= {"graded": [7, 8]}
    four = fair | {"settings": {"queries": 4, "rate": 3e-3}, "steps": 120, "step_cost": 10.0}
    both = four | {"settings": {"queries": 4, "rate": 1e-3}}
    for old, new, found in (
        *((fair, four, []), (fair, both, ["changes"]), (fair, four | {"steps": 130, "step_cost": 9.7}, ["cost"])),
        *((fair, four | {"trained": [1, 2, 8]}, ["leak"]), (fair | {"trained": [7, 1]}, four, ["leak"])),
        (fair, four | {"graded": [8, 9]}, ["items"]),
        # The new arm learns from what only the old one is graded on.
        (fair, both | {"steps": 110, "trained": [1, 8], "graded": [5, 9]}, ["changes", "cost", "leak", "items"]),
        (fair, fair | {"steps": 99, "trained": [4, 3, 2, 1]}, ["changes"]),
        (fair, four | {"steps": 124, "graded": [8, 7]}, []),
    ):
        yield Case((old, new), found)
