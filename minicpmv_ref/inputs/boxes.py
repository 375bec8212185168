"""Places in an answer: what a model wrote between `<box>` and `</box>`, in pixels.

A model of this family counts in thousandths of the picture's sides, as whole numbers, and writes

    <ref>green triangle</ref><box>left top right bottom</box>     a rectangle
    <quad>x1 y1 x2 y2 x3 y3 x4 y4</quad>                          four corners, of slanted text for example
    <point>x y</point>

Nothing here needs torch.
"""

from __future__ import annotations

import re

from .checks import check_size, check_type, shown

Box = tuple[float, float, float, float]  # left, top, right, bottom

SCALE = 1000  # of a side
NUMBERS = {"box": 4, "quad": 8, "point": 2}  # that each mark holds
_MARK = re.compile(r"<(/?)(ref|box|quad|point)>")


def parse_boxes(answer: str, size: tuple[int, int]) -> list[tuple[str, Box]]:
    """Read the places that an answer names.

    Text around them is skipped. A place belongs to the last `<ref>` before it, so several may share one.

    A model may write anything, and a wrong place would be worse than none. So what cannot be read as released is an
    error: other than four numbers in a box, numbers that are not whole or not from 0 to 1000, a right side left of the
    left one (perhaps a width and a height were meant), a mark without its other half (perhaps the answer was cut off).

    Args:
        answer: text of a model, as `chat` returns it.
        size: (width, height) of the picture in pixels.

    Returns:
        [(label, (left, top, right, bottom)), ...] in the order of the text: what stands in `<ref>`, "" where there is
        none, and the box in pixels, as floats. Of a `<quad>` it is the smallest box around its four corners, of a
        `<point>` a box without area. [] if the answer names no place.

    Raises:
        TypeError: an answer that is no text, a size that is no pair of integers.
        ValueError: a size below 1; in the answer, marks that do not pair or what they hold, as said above.

    Example:
        >>> parse_boxes("It is here: <ref>cup</ref><box>250 500 750 1000</box>.", (640, 480))
        [('cup', (160.0, 240.0, 480.0, 480.0))]

    Source: the maintainers' words in issues 185 and 772 of OpenBMB/MiniCPM-V.
    """
    check_type("answer", answer, str)
    width, height = check_size(size)
    found, label, opened = [], "", None
    for mark in _MARK.finditer(answer):
        end, kind = mark.groups()
        if not end and opened is None:
            opened = mark
        elif end and opened is not None and opened[2] == kind:
            inside, opened = answer[opened.end() : mark.start()], None
            if kind == "ref":
                label = inside.strip()
            else:
                found.append((label, _place(kind, inside, width, height)))
        else:
            _unpaired(mark if opened is None else opened)
    if opened is not None:
        _unpaired(opened)
    return found


def _unpaired(mark: re.Match) -> None:
    end, kind = mark.groups()
    if end:
        raise ValueError(f"answer: {mark[0]} at character {mark.start()} has no <{kind}> before it")
    why = "if the answer was cut off, a larger max_new_tokens gives the rest"
    raise ValueError(f"answer: {mark[0]} at character {mark.start()} is not followed by </{kind}>; {why}")


def _place(kind: str, inside: str, width: int, height: int) -> Box:
    """The box of one mark, in pixels."""
    words = re.split(r"[\s,]+", inside.strip())
    wanted = NUMBERS[kind]
    if len(words) != wanted or not all(re.fullmatch("[0-9]{1,4}", word) and int(word) <= SCALE for word in words):
        raise ValueError(
            f"answer: <{kind}>{shown(inside, 60)[1:-1]}</{kind}> must hold {wanted} whole numbers from 0 to {SCALE}, "
            "thousandths of the picture's sides"
        )
    xs, ys = ([int(word) for word in words[start::2]] for start in (0, 1))
    if kind == "box" and (xs[0] > xs[1] or ys[0] > ys[1]):
        raise ValueError(
            f"answer: <box>{' '.join(words)}</box> must be left, top, right, bottom: its right or lower side comes "
            "before its left or upper one"
        )
    left, right = (x * width / SCALE for x in (min(xs), max(xs)))
    top, bottom = (y * height / SCALE for y in (min(ys), max(ys)))
    return left, top, right, bottom
