"""A question that a reader answers before running the cell: the guess beside the truth.

Without a guess the truth is folded away, and with it what the cell prints and a picture, for they often say the same:
`<details>` of HTML needs no kernel, no script and no style, so the fold works in a saved page and on GitHub.
With a guess, the prints stand above the bars as in any other cell, and the picture below them.
"""

import io
import sys
from base64 import b64encode
from collections import Counter
from html import escape

from ..progress import guessed
from .canvas import WIDTH, Canvas, text_width
from .colors import BLUE, GRAY, ORANGE

CALL = "draw.guess("  # a cell with this text holds its prints back
BAR = 40  # characters of the longest bar in text
MOST_GUESSES = 10  # bars of different numbers that a class guessed


def guess(yours, truth, title: str = "", picture: Canvas | None = None):
    """Ask for a number and show it beside the truth.

    Args:
        yours: None (no guess yet), a number, or {label: number} with some of the truth's labels; where the truth is
            one number, a list of numbers: what a whole class guessed.
        truth: a number, or {label: number}.
        title: the question.
        picture: one from which the truth can be read.

    Returns:
        A Canvas: bars of your guess and of the truth, and the picture. Without any guess an `Unanswered`, which folds
        the truth and the picture.
    """
    if isinstance(yours, (list, tuple)):
        return _with_picture(_class_guess(yours, truth, title), picture)
    truth = truth if isinstance(truth, dict) else {"": truth}
    yours = yours if isinstance(yours, dict) else dict.fromkeys(truth, yours)
    for value in yours.values():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"a guess must be a number, got {value!r}")
    if unknown := [label for label in yours if label not in truth]:
        raise ValueError(f"a guess has no label {unknown[0]!r}; the labels are {', '.join(map(repr, truth))}")
    known = {label: value for label, value in yours.items() if value is not None}
    if not known:
        return Unanswered(truth, title, picture)
    _let_go()
    for label, value in known.items():
        guessed(f"{title}: {label}" if label else title, value, truth[label])
    return _with_picture(_draw_guess(known, truth, title), picture)


def _with_picture(canvas, picture):
    """The bars, and the picture below them."""
    if picture:
        top, canvas.words = canvas.height, f"{canvas.words}; {picture!r}"
        canvas.height += picture.height
        canvas.image(0, top, picture.width, picture.height, picture.to_pil(canvas.scale), smooth=False)
    return canvas


def _class_guess(yours, truth, title):
    """A bar for each number that somebody guessed, and for the truth."""
    if isinstance(truth, dict):
        raise ValueError("a list of guesses needs a truth that is one number")
    if not yours or not all(isinstance(value, (int, float)) for value in yours):
        raise ValueError(f"the guesses of a class must be numbers, got {yours!r:.100}")
    _let_go()
    counts = Counter(f"{value:g}" for value in yours)
    shown = {value for value, _ in counts.most_common(MOST_GUESSES)} | {f"{truth:g}"}
    left = 40 + max(text_width(value, bold=True) for value in shown)
    canvas = Canvas(WIDTH, 40 + 30 * len(shown))
    canvas.text(8, 22, title, bold=True)
    for place, value in enumerate(sorted(shown, key=float)):
        right, y = value == f"{truth:g}", 38 + 30 * place
        canvas.text(left - 10, y + 17, value, align="right", bold=right)
        length = (WIDTH - 160 - left) * counts[value] / max(counts.values())
        canvas.rect(left, y, max(length, 2), 22, BLUE if right else ORANGE)
        canvas.text(left + length + 8, y + 17, f"{counts[value]}{' · the truth' if right else ''}", bold=right)
    told = ", ".join(f"{value} by {counts[value]}" for value in sorted(counts, key=float))
    canvas.words = f"truth {truth:g}, guessed by {counts[f'{truth:g}']} of {len(yours)}; guesses: {told}"
    return canvas


class Unanswered:
    """A question without a guess: empty bars, and a fold that holds what the cell printed, the truth and a picture."""

    def __init__(self, truth: dict, title: str, picture: Canvas | None = None):
        self.truth, self.title, self.picture = truth, title, picture

    def __repr__(self):
        return f"{self.title or 'your guess'}: no guess yet"

    def _repr_mimebundle_(self, include=None, exclude=None):
        printed = sys.stdout.take() if isinstance(sys.stdout, _Held) else ""
        printed += "\n" * bool(printed)
        asked = text_bars({label or "your guess": None for label in self.truth})
        truth = text_bars({label or "the truth": value for label, value in self.truth.items()})
        image = ""
        if self.picture:
            svg = b64encode(self.picture.svg().encode()).decode()
            image = f'<img width="{WIDTH}" alt="{escape(repr(self.picture))}" src="data:image/svg+xml;base64,{svg}">'
        html = (
            f"<div><b>{escape(self.title)}</b>\n<pre>{escape(asked)}</pre>\n"
            "<details><summary>Show the answer, or write your guess above and run this cell again</summary>\n"
            f"<pre>{escape(printed + truth)}</pre>{image}</details></div>"
        )
        return {"text/plain": repr(self), "text/html": html}


def text_bars(values: dict) -> str:
    """One line for each label, with a bar of characters and the value; None is an empty bar."""
    wide, largest = max(map(len, values)), max([1e-9, *(value for value in values.values() if value is not None)])
    lines = []
    for label, value in values.items():
        full = 0 if value is None else min(BAR, max(1, round(BAR * max(value, 0) / largest)))
        bar = "█" * full + "░" * (BAR - full)
        lines.append(f"{label:{wide}}  {bar}  {'none yet' if value is None else f'{value:g}'}\n")
    return "".join(lines)


def _draw_guess(known, truth, title):
    largest = max([*truth.values(), *known.values(), 1e-9])
    left = 110 + max([0, *(text_width(label) + 14 for label in truth if label)])
    canvas, words = Canvas(WIDTH, 34 + 62 * len(truth)), []
    canvas.text(8, 22, title, bold=True)
    for place, (label, value) in enumerate(truth.items()):
        y = 38 + 62 * place
        canvas.text(8, y + 32, label)
        for row, (who, number, color) in enumerate((("your guess", known.get(label), ORANGE), ("truth", value, BLUE))):
            base = y + 26 * row
            canvas.text(left - 10, base + 17, who, align="right")
            if number is None:
                canvas.text(left, base + 17, "none yet: write one above", color=GRAY)
            else:
                length = (WIDTH - 90 - left) * max(number, 0) / largest
                canvas.rect(left, base, max(length, 2), 22, color)
                canvas.text(left + length + 8, base + 17, f"{number:g}")
        mine = f"your guess {known[label]:g}" if label in known else "no guess yet"
        words.append(f"{label + ': ' if label else ''}truth {value:g}, {mine}")
    canvas.words = "; ".join(words)
    return canvas


# ---- holding prints back


class _Held(io.StringIO):
    """Stands in for `sys.stdout` while a cell with a guess runs."""

    def __init__(self, real):
        super().__init__()
        self.real = real

    def take(self) -> str:
        """What was printed so far. It is not printed again."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def _before_cell(info):
    if CALL in (info.raw_cell or ""):
        sys.stdout = _Held(sys.stdout)


def _let_go(result=None):
    """Print what was held back, and hold back no more: of a guess; and after a cell that failed, for example."""
    if isinstance(sys.stdout, _Held):
        held, sys.stdout = sys.stdout, sys.stdout.real
        held.real.write(held.take())


def _watch_cells():
    """In a notebook, call the two functions above around every cell. A terminal could not show the fold."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        shell.events.register("pre_run_cell", _before_cell)
        shell.events.register("post_run_cell", _let_go)


_watch_cells()
