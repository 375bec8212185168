"""A small harness: call a public function with odd arguments; allow a right answer or one clear error, nothing else.

A clear error is a TypeError, ValueError or OSError that a `raise` of this package made (or the system's own OSError),
of readable length, that names an argument. What Python, torch or another library raises by itself is a failure, and so
are a hang, changed arguments and an answer that is not right.
"""

import ast
import copy
import math
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from places import ROOT

if sys.platform != "win32":
    import resource

GIGABYTES = 4  # that one call may take
SECONDS = 20  # for one call, each of which takes milliseconds: a hang, not a slow machine

ODD = [  # made anew for each call
    *(lambda value=value: value for value in (None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**400, -(10**30))),
    *(lambda value=value: value for value in (0.5, -0.0, 1e-320, 1e300, math.nan, math.inf, -math.inf, 1j)),
    *(
        lambda value=value: value
        for value in ("", "x", "0", "\0\x1b[2J", "\ud800", "x" * 5000, "<image>", "<|im_end|>")
    ),
    *(lambda value=value: value for value in (b"", b"x" * 9, (1, 2, 3), (0.5, 2), range(3), frozenset({1}), ...)),
    *(list, dict, set, object, lambda: [None], lambda: [[]], lambda: [-1], lambda: [10**30], lambda: {"a": 1}),
    *(lambda: iter([1]), lambda: print, lambda: nested(2000), lambda: {None: nested(50)}),
    *(lambda: np.float32(math.nan), lambda: np.zeros(0), lambda: np.full((2, 2), math.nan), lambda: np.int64(7)),
    *(
        lambda: torch.tensor(math.nan),
        lambda: torch.zeros(2, 0),
        lambda: torch.tensor([1, 2]),
        lambda: torch.ones(2, 3),
    ),
    *(lambda: Image.new("RGB", (1, 1)), lambda: Image.new("F", (2, 1)), lambda: Path("no/such/file"), lambda: int),
]


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@dataclass
class Door:
    """A public function, sound arguments made anew for each call, and what is true of every right answer."""

    call: Callable
    sound: Callable[[], dict]
    right: Callable[..., bool] = lambda answer, **arguments: True
    words: str = ""  # that a message may name instead of an argument
    share: float = 1  # of the usual number of calls, for functions that take a second


def odd(rng: random.Random):
    return rng.choice(ODD)()


def disturb(value, rng: random.Random):
    """An odd value in place of this one, or of something inside it."""
    if isinstance(value, list | tuple | dict) and len(value) and rng.random() < 0.7:
        items = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(items)) if isinstance(items, dict) else rng.randrange(len(items))
        action = rng.randrange(6)
        if action == 0:
            del items[key]
        elif action == 1 and isinstance(items, list):
            items.append(items[key])
        else:
            items[key] = disturb(items[key], rng)
        return tuple(items) if isinstance(value, tuple) else items
    return odd(rng)


def knock(door: Door, rng: random.Random) -> str:
    """Call a door with one or two odd arguments: "answered" or "refused"; anything else is an AssertionError."""
    arguments = door.sound()
    names = rng.sample(sorted(arguments), min(len(arguments), rng.choice([1, 1, 1, 2])))
    arguments |= {name: disturb(arguments[name], rng) for name in names}
    before = copied(arguments)
    what = ", ".join(f"{name}={str(type(arguments[name]))[7:-1]} {describe(arguments[name])}" for name in names)
    try:
        with warnings.catch_warnings(), time_limit(what):
            warnings.simplefilter("ignore")
            answer = door.call(**arguments)
    except (TypeError, ValueError, OSError) as error:
        assert is_clear(error, [*arguments, *door.words.split()]), f"{what}: {type(error).__name__}: {error}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert same(before, arguments), f"{what}: the arguments were changed"
    assert door.right(answer, **arguments), f"{what}: answered {describe(answer)}"
    return "answered"


def is_clear(error: Exception, words: list[str]) -> bool:
    """Made on purpose, readable, and about something that the caller knows."""
    at = error.__traceback__
    while at.tb_next:
        at = at.tb_next
    file = Path(at.tb_frame.f_code.co_filename)
    ours = file.is_relative_to(ROOT / "minicpmv_ref") and at.tb_lineno in raising_lines(file)
    text = str(error)
    named = any(word.replace("_", " ") in text.replace("_", " ") for word in words)
    return (ours or isinstance(error, OSError)) and 0 < len(text) < 1500 and named and "\x1b" not in text


@lru_cache(maxsize=100)
def raising_lines(file: Path) -> set[int]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {line for node in nodes if isinstance(node, ast.Raise) for line in range(node.lineno, node.end_lineno + 1)}


@contextmanager
def time_limit(what: str):
    """Raise if the block takes too long; let it fail if it takes too much memory. Only where Linux can do that."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_):
        raise AssertionError(f"{what}: no answer after {SECONDS} s")

    before, limit = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def copied(value):
    """A deep copy of what can be changed in place; anything else is taken as it is."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple) and len(value):
        return type(value)(map(copied, value)) if describe(value) != DEEP else value
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value) if isinstance(value, set) else value


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if type(a) in (list, tuple) and a is not b:
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b or isinstance(a, np.ndarray) or a == b or a != a


DEEP = "a deep list"


def describe(value) -> str:
    try:
        return repr(value)[:200]
    except (RecursionError, ValueError):
        return DEEP
