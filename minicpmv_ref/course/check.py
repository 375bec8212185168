"""Exercise checkers: `check.name(your_function)` prints one line about your function.

    not attempted yet
    correct
    fit_side(35) gave 42, expected 28.

A checker is a function that lists cases; `@exercise` makes the rest. The expected values come from the package,
so a checker cannot disagree with what the lesson teaches.
"""

import copy
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import numpy as np

from minicpmv_ref.config import v2_0, v2_5, v2_6
from minicpmv_ref.slicing import best_grid, plan_slices

EXERCISES = {}  # {name: checker}; the tests go through it


@dataclass(frozen=True)
class Case:
    """One call of the learner's function.

    want: the expected value; with `accept`, words that say what is accepted.
    tolerance: largest absolute difference; None: 1e-6 in arrays and tensors, about nine digits elsewhere.
    """

    args: tuple
    want: object
    accept: Callable[[object], bool] | None = None
    tolerance: float | None = None


def exercise(cases: Callable):
    """Make a checker of a function that returns or yields `Case`s, easy ones first."""

    @wraps(cases)
    def checker(answer) -> None:
        print(verdict(answer, cases()))  # noqa: T201 (to print is all that a checker does)

    EXERCISES[cases.__name__] = checker
    return checker


def verdict(answer, cases) -> str:
    """The one line that a checker prints."""
    if not callable(answer):
        return f"Give the checker your function itself, without calling it; it got {show(answer)}."
    name = getattr(answer, "__name__", "your function")
    for case in cases:
        call = f"{name}({', '.join(map(show, case.args))})"
        wanted = case.want if case.accept else show(case.want)
        try:
            got = answer(*copy.deepcopy(case.args))
            problem = _problem(got, case)
        except NotImplementedError:
            return "not attempted yet"
        except Exception as error:
            return f"{call} raised {type(error).__name__}: {error}; expected {wanted}."
        if problem:
            return f"{call} {problem}"
    return "correct"


def _problem(got, case: Case) -> str | None:
    """The rest of the sentence that begins with the call, or None when the answer is right."""
    if case.accept:
        return None if case.accept(got) else f"gave {show(got)}, expected {case.want}."
    if got is None and case.want is not None:
        return f"gave None, expected {show(case.want)}. Is there a return?"
    if _is_array(case.want):
        return _array_problem(got, case)
    return None if same(got, case.want, case.tolerance) else f"gave {show(got)}, expected {show(case.want)}."


def _array_problem(got, case: Case) -> str | None:
    if not _is_array(got):
        return f"gave {show(got)}, expected {show(case.want)}."
    got, want = _to_numpy(got), _to_numpy(case.want)
    if got.shape != want.shape:
        return f"gave shape {got.shape}, expected shape {want.shape}."
    tolerance = 1e-6 if case.tolerance is None else case.tolerance
    wrong = np.argwhere(~np.isclose(got, want, rtol=0, atol=tolerance, equal_nan=True))
    if not len(wrong):
        return None
    place = tuple(map(int, wrong[0]))
    first = f"the first at {list(place)}: {show(got[place].item())}, expected {show(want[place].item())}"
    return f"has {len(wrong)} of {want.size} numbers wrong, {first}."


def same(got, want, tolerance=None) -> bool:
    """Equal, where lists equal tuples and floats may differ in the last digits."""
    if isinstance(want, (list, tuple)):
        return (
            isinstance(got, (list, tuple))
            and len(got) == len(want)
            and all(same(a, b, tolerance) for a, b in zip(got, want))
        )
    if isinstance(want, dict):
        return (
            isinstance(got, dict) and got.keys() == want.keys() and all(same(got[k], want[k], tolerance) for k in want)
        )
    if isinstance(want, bool) or isinstance(got, bool):
        return isinstance(got, bool) and isinstance(want, bool) and got == want
    if isinstance(want, numbers.Number) and isinstance(got, numbers.Number):
        if tolerance is None:
            return got == want or math.isclose(got, want, rel_tol=1e-9)
        return abs(got - want) <= tolerance
    return type(got) is type(want) and got == want


def show(value) -> str:
    """A value in one short piece of text."""
    if _is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    if hasattr(value, "size") and hasattr(value, "mode"):  # a PIL image
        return f"a {value.size[0]}x{value.size[1]} image"
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "reshape")


def _to_numpy(array):
    return array.detach().cpu().float().numpy() if hasattr(array, "detach") else np.asarray(array)


# ---- lesson 00


@exercise
def picture_bytes():
    for config, size in [(v2_6, (448, 448)), (v2_6, (640, 480)), (v2_5, (640, 480)), (v2_0, (1344, 1344))]:
        llm = config.llm
        per_token = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_width * 2
        tokens = plan_slices(size, config.slicing).visual_tokens(config.resampler.num_queries)
        yield Case((size, config), per_token * tokens)


# ---- lesson 01


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


# ---- lesson 02


@exercise
def readers():
    for n, bucket in [(5, 0), (5, 56), (32, 1), (32, 67), (90, 0), (90, 69), (70, 69), (69, 69)]:
        yield Case((n, bucket), [i for i in range(n) if 70 * i // n == bucket])


@exercise
def view_mask():
    for lengths in ([1], [2, 3], [4, 1, 2], [2, 2]):
        owner = np.repeat(np.arange(len(lengths)), lengths)
        yield Case((lengths,), owner[:, None] == owner[None, :])


@exercise
def padding():
    for lengths, batch in [([7], 16), ([10, 10], 16), ([5, 10], 16), ([5, 10], 1), ([10, 5, 5, 5], 2), ([3, 4, 8], 2)]:
        groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
        yield Case((lengths, batch), 1 - sum(lengths) / sum(len(group) * max(group) for group in groups))


@exercise
def fixed_ids():
    for rows, cols in [(1, 1), (70, 70), (2, 3), (28, 37), (4, 227), (227, 4)]:
        yield Case((rows, cols), [70 * (70 * r // rows) + 70 * c // cols for r in range(rows) for c in range(cols)])


# ---- lesson 03


@exercise
def spread():
    cases = [[1.0], [0.5, 0.5], [0.25] * 4, [0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.7, 0.1, 0.1, 0.1]]
    for weights in cases:
        entropy = -sum(w * math.log(w) for w in weights if w > 0)
        yield Case((weights,), math.exp(entropy), tolerance=1e-4)


@exercise
def masked_weights():
    import torch

    for lengths in ([3], [4, 2], [1, 5, 3]):
        scores = torch.linspace(-2, 3, len(lengths) * max(lengths)).reshape(len(lengths), -1).sin() * 3
        weights = torch.zeros_like(scores)
        for row, length in enumerate(lengths):
            weights[row, :length] = scores[row, :length].softmax(dim=-1)
        yield Case((scores, lengths), weights)


@exercise
def resampler_parameters():
    for cfg in (v2_6.resampler, v2_5.resampler, v2_0.resampler):
        e, c, q = cfg.width, cfg.kv_width, cfg.num_queries
        parts = [q * e, e * c, 3 * (e * e + e), e * e + e, 3 * 2 * e, e * e]
        yield Case((q, e, c, cfg.version), sum(parts) + (q * e if cfg.version == "2.0" else 0))


@exercise
def fixed_positions():
    from minicpmv_ref.positions import sincos_2d

    for dim, rows, cols in [(4, 1, 1), (8, 3, 3), (8, 2, 3), (64, 28, 37), (32, 4, 227)]:
        yield Case((dim, rows, cols), sincos_2d(dim, rows, cols), tolerance=1e-4)


# ---- lesson 04


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
