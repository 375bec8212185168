"""Exercise checkers: `check.name(your_function)` prints one line about your function.

    not attempted yet
    correct
    fit_side(35) gave 42, expected 28.

A checker is a function that lists cases; `@exercise` makes the rest. Its docstring says what is tested, and is shown
until the first try. The expected values come from the package, so a checker cannot disagree with what the lesson
teaches. Besides the value it looks at the type: a list is no tensor, float16 no float32, 64.0 no count.
After `check.learner("Ada")` a second line has the completion code of a solved exercise (course/progress.py).
"""

import copy
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import numpy as np

from ...config import PRESETS
from .. import progress

EXERCISES = {}  # {name: checker}; the tests go through it
SMALL = 6  # numbers of an array that is shown in full: few enough to try it by hand


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
        said = verdict(answer, cases())
        if said == "not attempted yet" and cases.__doc__:
            said += f"\ntested: {cases.__doc__}"
        if said == "correct":
            said += progress.solved(cases.__name__)
        print(said)  # noqa: T201 (to print is all that a checker does)

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
    if _is_array(got) and isinstance(case.want, numbers.Number) and not isinstance(got, numbers.Number):
        return f"gave {show(got)}, expected {show(case.want)} as a plain value; `.item()` makes one."
    if _is_array(got) and isinstance(case.want, (list, tuple)):
        return f"gave {_kind(got)}, expected a {type(case.want).__name__}; `.tolist()` makes a list."
    if same(got, case.want, case.tolerance):
        return None
    return _long_list_problem(got, case) or f"gave {show(got)}, expected {show(case.want)}."


def _long_list_problem(got, case: Case) -> str | None:
    """Where two lists differ that are too long to be shown."""
    want = case.want
    if not isinstance(got, (list, tuple)) or not show(want).endswith("...") or len(got) != len(want):
        return None
    wrong = [place for place, (a, b) in enumerate(zip(got, want)) if not same(a, b, case.tolerance)]
    first = f"the first at [{wrong[0]}]: {show(got[wrong[0]])}, expected {show(want[wrong[0]])}"
    return f"has {len(wrong)} of {len(want)} entries wrong, {first}."


def _array_problem(got, case: Case) -> str | None:
    if isinstance(got, (list, tuple)):
        return f"gave a {type(got).__name__}, expected {_kind(case.want)}."
    if not _is_array(got):
        return f"gave {show(got)}, expected {show(case.want)}."
    if hasattr(case.want, "detach"):
        if not hasattr(got, "detach"):
            return f"gave {_kind(got)}, expected {_kind(case.want)}."
        if got.device != case.want.device:
            return f"gave a tensor on {got.device}, expected one on {case.want.device}."
    if _numbers(_dtype(got)) != _numbers(_dtype(case.want)):
        return f"gave numbers of dtype {_dtype(got)}, expected {_dtype(case.want)}."
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


def _kind(array) -> str:
    return f"a {'torch tensor' if hasattr(array, 'detach') else 'numpy array'} of shape {tuple(array.shape)}"


def _dtype(array) -> str:
    return str(array.dtype).removeprefix("torch.")


def _numbers(dtype: str) -> str:
    """One name for the dtypes that may stand for each other: all integers, and float32 and float64."""
    return "integer" if "int" in dtype else "float" if dtype in ("float32", "float64") else dtype


def same(got, want, tolerance=None) -> bool:
    """Equal, where lists equal tuples and floats may differ in the last digits. A float is no integer."""
    if isinstance(want, (list, tuple)):
        alike = isinstance(got, (list, tuple)) and len(got) == len(want)
        return alike and all(same(a, b, tolerance) for a, b in zip(got, want))
    if isinstance(want, dict):
        alike = isinstance(got, dict) and got.keys() == want.keys()
        return alike and all(same(got[k], want[k], tolerance) for k in want)
    if isinstance(want, bool) or isinstance(got, bool):
        return isinstance(got, bool) and isinstance(want, bool) and got == want
    if isinstance(want, numbers.Number) and isinstance(got, numbers.Number):
        if isinstance(want, numbers.Integral) and not isinstance(got, numbers.Integral):
            return False
        if tolerance is None:
            return bool(got == want or math.isclose(got, want, rel_tol=1e-9))
        return bool(abs(got - want) <= tolerance)
    return type(got) is type(want) and got == want


def show(value) -> str:
    """A value in one short piece of text."""
    if _is_array(value) and value.shape:
        small = 0 < math.prod(value.shape) <= SMALL and str(getattr(value, "device", "")) != "meta"
        return _listed(value.tolist()) if small else f"an array of shape {tuple(value.shape)}"
    if hasattr(value, "size") and hasattr(value, "mode") and not _is_array(value):  # a PIL image
        return f"a {value.size[0]}x{value.size[1]} image"
    for name, preset in PRESETS.items():
        if value is preset:
            return name
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if type(value) is tuple:
        text = ", ".join(map(show, value)).join("()") if len(value) > 1 else repr(value)
    else:
        text = f"{value:.8g}" if isinstance(value, np.floating) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _listed(values) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_listed, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else repr(values)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "reshape")


def _to_numpy(array):
    return array.detach().cpu().float().numpy() if hasattr(array, "detach") else np.asarray(array)
