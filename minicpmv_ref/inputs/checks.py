"""What a public function checks at its door, and the most that a file or a caller may claim.

A wrong type is a TypeError, a wrong value a ValueError. Both name the argument, say what is allowed and show what came:
`name` is that of the argument, for the message, and `value` what came. Needs no more than the standard library.
"""

from __future__ import annotations

import math
import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from numbers import Real
from operator import index

# The most that a file or a caller may claim, and why. Compared before any memory is taken or work is done.
LIMITS = {
    "json_bytes": 64 * 2**20,  # the largest published one, a tokenizer.json, has 11 MB
    "records": 100_000_000,  # an epoch's order is a list of them: 4 GB
    "records_bytes": 2 * 2**30,  # LLaVA's 665,000 records have 1 GB; in memory they take some five times as much
    "picture_bytes": 2**30,  # a picture file; 100 megapixels without any compression have 0.3 GB
    "frames": 64,  # of one clip that a model is shown: as many as released for 2.6
    "clip_bytes": 2**36,  # a video file, read from the disk in parts; an hour in full HD has 3 GB
    "clip_pixels": 2**29,  # of the frames of a clip that are kept: 64 of 3840 x 2160, 1.6 GB
    "decoded_pixels": 2**40,  # of all its frames, which are decoded one after the other: 4 hours in full HD
    "shard_bytes": 4 * 2**30,  # a tar of records, held in memory while it is read; usual ones have 1 GB
    "lost_records": 10_000,  # that an index of shards may name beyond what their bytes can hold: shards are cut off
    "template_bytes": 2**20,  # a chat template in a file of its own; the released ones have less than 1 kB
    "token_characters": 512,  # characters of one token: the longest of the published tokenizers is 128 spaces
    "temperature": 1e-4,  # the least above 0: it already takes the likeliest token; far smaller ones divide by zero
    "repetition_penalty": 1000,  # or its inverse; released: 1.05 and 1.2
    "answers": 1000,  # to one picture, of which all pairs are compared; the paper asks for 10
    "bootstrap_numbers": 2**26,  # that a bootstrap draws: 24 bytes each; a thousand rounds over 67,000 answers
    "turns": 1000,  # questions of one drawn conversation; the stages of training have up to 8
    "drawn_side": 8192,  # pixels of a drawn scene; nano's have 112 or 224
    # fields of a config; a billion layers would keep us busy long before a tensor is compared
    "layers": 1000,  # the released ones have 26 or 27
    "num_hidden_layers": 1000,  # 28 to 40
    "num_queries": 1024,  # 64 or 96
    "table_side": 1024,  # 27 or 70
    "patch_size": 1024,  # 14
    "view_side": 128,  # patches: 32 as released; attention compares every patch with every other
    "max_slice_nums": 1000,  # 9; a grid of every number of slices up to it may be tried
    "width": 2**16,  # 1152 to 4096, as the next two
    "kv_width": 2**16,
    "hidden_size": 2**16,
    "initializer_range": 1,  # 0.02 or 0.1
    "config_integer": 2**20,  # any other one; the largest released, the vocabulary, is 151,666
    "config_fraction": 1e12,  # any other one; the largest released, rope_theta, is 1,000,000
    "aspect": 2**16,  # longer side of a picture by its shorter; at 448 the overview then has 8,192 patches, not 1,024
    "picture_patches": 2**18,  # of all views together; 10,240 as released, 37,888 with 36 slices
    "padded_side": 2**14,  # of a picture that is padded to a square: 0.8 GB; a strip of 65,536 x 1 would take 13 GB
    "picture_pixels": 2**26,  # the same; 2 million as released; 12 bytes each
    "grid_patches": 2**19,  # positions of one grid; from 950,177 in a row on, the released float32 steps miss some
    "grid_numbers": 2**28,  # the same with channels: 1 GB; 1,024 patches of 4,096 channels are 2**22
    "lora_rank": 4096,  # the official script has 64; the layers of the released models are 1152 to 4096 wide
    "lora_alpha": 65504,  # the largest number of float16; usual are 1 to 2 times the rank
    "lora_targets": 1000,  # names of layers in an adapter; 2.6 has 361 linear layers
}


class WrongType(TypeError, ValueError):
    """A wrong type is a TypeError. It is a ValueError, too, so code that catches only that keeps working."""


def check_type(name: str, value, *kinds: type, what: str | None = None):
    """Return `value` if it is one of these types; `what` is how the message calls them, None joins their names.

    Raises:
        TypeError: another type.

    Example:
        >>> check_type("folder", 3, str)
        Traceback (most recent call last):
        minicpmv_ref.inputs.checks.WrongType: folder must be str, got int: 3
    """
    if not isinstance(value, kinds):
        what = what or " or ".join(kind.__name__ for kind in kinds)
        raise WrongType(f"{name} must be {what}, got {type(value).__name__}: {shown(value)}")
    return value


def check_int(name: str, value, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return `value` as an int if it is a whole number from `least` to `most`, numpy's too; True and False are none.

    Raises:
        TypeError: not a whole number.
        ValueError: outside the range.

    Example:
        >>> check_int("steps", 3), check_int("steps", 0, least=0)
        (3, 0)
    """
    try:
        number = index(value) if not isinstance(value, bool) else None
    except TypeError:
        number = None
    if number is None:
        raise WrongType(f"{name} must be an integer{_range(least, most)}, got {type(value).__name__}: {shown(value)}")
    if not least <= number <= most:
        raise ValueError(f"{name} must be an integer{_range(least, most)}, got {shown(number)}")
    return number


def check_number(name: str, value, least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> float:
    """Return `value` as a finite float if it is a number from `least` to `most` that is larger than `above`.

    Raises:
        TypeError: not a number.
        ValueError: outside the range, infinite, or not a number in the sense of floating point.

    Example:
        >>> check_number("beta", 1, above=0)
        1.0
    """
    allowed = _range(least, most, above)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise WrongType(f"{name} must be a number{allowed}, got {type(value).__name__}: {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and least <= number <= most and number > above):
        raise ValueError(f"{name} must be a finite number{allowed}, got {shown(value)}")
    return number


def check_choice(name: str, value, allowed: Iterable):
    """Return `value` if it is one of the allowed ones.

    Raises:
        ValueError: it is not; the message lists them.

    Example:
        >>> check_choice("version", "2.6", ("2.0", "2.5", "2.6"))
        '2.6'
    """
    allowed = list(allowed)
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {shown(value)}")
    return value


def check_list(name: str, value, *kinds: type, what: str | None = None, empty: bool = True) -> list:
    """Return `value` as a new list if it is a list or a tuple whose items are of these types; without any, all may be.

    `what` is how the message calls an item; None joins the names. `empty`: whether there may be no items.

    Raises:
        TypeError: no list, or an item of another type; the message gives its number.
        ValueError: no items.

    Example:
        >>> check_list("lengths", (3, 4), int)
        [3, 4]
    """
    check_type(name, value, list, tuple, what="a list")
    if not value and not empty:
        raise ValueError(f"{name} must hold at least one item, got an empty list")
    for number, item in enumerate(value if kinds else ()):
        check_type(f"{name}[{number}]", item, *kinds, what=what)
    return list(value)


def check_size(size, what: str = "size", order: str = "(width, height)") -> tuple[int, int]:
    """Two integers of at least 1 as ints; `what` and `order` name them in the message."""
    try:
        sides = size if isinstance(size, list | tuple) or hasattr(size, "__array__") else ()
        first, second = (check_int(what, side, -math.inf, math.inf) for side in sides)
    except (TypeError, ValueError):  # a single numpy number has __array__, too, and cannot be unpacked
        raise WrongType(f"{what} must be two integers {order}, got {shown(size)}") from None
    if first < 1 or second < 1:
        raise ValueError(f"{what} {order} must be at least 1 on both sides, got {shown(size)}")
    if max(first, second) > 2**31:
        raise ValueError(f"{what} {order} must be at most 2^31 on both sides, got {shown(size)}")
    return first, second


def check_precision(learning: Iterable) -> list:
    """Return the parameters of torch that will learn as a list; those of 16 bits get a warning.

    Next to a weight, bfloat16 has no number nearer than 1/256 of it, and the steps of most learning rates are smaller.

    Example:
        >>> check_precision(iter([]))
        []
    """
    learning = list(learning)
    if coarse := next((p.dtype for p in learning if p.dtype.itemsize < 4), None):
        warnings.warn(
            f"weights that learn are {coarse}, in which most of their small steps are rounded away: the model would "
            "learn little. Train model.float()",
            stacklevel=2,
        )
    return learning


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Put `where` before the message of a TypeError, ValueError or OSError that is raised inside.

    Example:
        >>> with placed("pair 3: "):
        ...     check_int("size", 0)
        Traceback (most recent call last):
        ValueError: pair 3: size must be an integer of at least 1, got 0
    """
    try:
        yield
    except (ValueError, OSError) as error:
        kind = next(kind for kind in (WrongType, ValueError, OSError) if isinstance(error, kind))
        raise kind(f"{where}{error}") from error


def located(many: bool, work: Callable, items: Iterable) -> list:
    """What `work` returns for each conversation; an error says which of them it is about, if there may be `many`.

    Raises:
        TypeError, ValueError, OSError: as `work`.

    Example:
        >>> located(True, lambda size: check_int("size", size), [3, 0])
        Traceback (most recent call last):
        ValueError: conversation 1: size must be an integer of at least 1, got 0
    """
    made = []
    for number, item in enumerate(items):
        with placed(f"conversation {number}: ") if many else nullcontext():
            made.append(work(item))
    return made


def shown(value, most: int = 80) -> str:
    """Write a value for a message: at most `most` characters, and none that a terminal would obey.

    Example:
        >>> shown("a\\x1b[2J"), shown("x" * 200, 20)
        ("'a\\\\x1b[2J'", "'xxxxxxxxxxxxxxx ...")
    """
    if isinstance(value, str | bytes) and len(value) > 2 * most:
        value = value[: 2 * most]
    try:
        text = repr(value)
    except Exception:  # a number of more digits than Python prints, a list inside itself too deep
        text = f"a {type(value).__name__} that cannot be printed"
    text = printable(text)
    return text if len(text) <= most else text[: most - 4] + " ..."


def printable(text: str) -> str:
    """Replace what a terminal would obey, or what changes the order of characters; newlines stay.

    Example:
        >>> printable("red\\x1b[2J")
        'red\\ufffd[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def quoted(word: str) -> str:
    """A path as it can be typed in a terminal: in quotes where a shell would cut or expand it.

    Example:
        >>> quoted("/course/.venv/bin/python"), quoted("$HOME")
        ('/course/.venv/bin/python', "'$HOME'")
    """
    if os.name != "nt":
        return shlex.quote(word)
    return f'"{word}"' if set(word) & set(" [](){}&;'*?") else word  # cmd has no other quotes


def _range(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> str:
    """' of at least 1 and at most 9', for example; '' where everything is allowed."""
    limits = [f"above {above:g}"] if above > -math.inf else []
    if least > -math.inf:
        limits.append(f"of at least {least}")
    if most not in (math.inf, 2**63 - 1):
        limits.append(f"at most {most:,}" if isinstance(most, int) else f"at most {most:g}")
    return f" {' and '.join(limits)}" if limits else ""
