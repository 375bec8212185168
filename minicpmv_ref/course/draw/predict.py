"""A question that a reader answers before running the cell: the guess beside the truth.

Without a guess the truth is folded away, and with it what the cell prints, for it often says the same:
`<details>` of HTML needs no kernel, no script and no style, so the fold works in a saved page and on GitHub.
With a guess, the prints stand above the picture as in any other cell.
"""

import io
import sys
from collections import Counter
from html import escape

from ..progress import guessed
from .canvas import WIDTH, Canvas, text_width
from .colors import BLUE, GRAY, ORANGE

CALL = "draw.guess("  # a cell with this text holds its prints back
BAR = 40  # characters of the longest bar in text
MOST_GUESSES = 10  # bars of different numbers that a class guessed


def guess(yours, truth, title: str = ""):
    """Ask for a number and show it beside the truth.

    Args:
        yours: None (no guess yet), a number, or {label: number} with some of the truth's labels; where the truth is
            one number, a list of numbers: what a whole class guessed.
        truth: a number, or {label: number}.
        title: the question.

    Returns:
        A Canvas with bars of your guess and of the truth; without any guess an `Unanswered`, which folds the truth.
    """
    if isinstance(yours, (list, tuple)):
        return _class_guess(yours, truth, title)
    truth = truth if isinstance(truth, dict) else {"": truth}
    yours = yours if isinstance(yours, dict) else dict.fromkeys(truth, yours)
    for value in yours.values():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"a guess must be a number, got {value!r}")
    if unknown := [label for label in yours if label not in truth]:
        raise ValueError(f"a guess has no label {unknown[0]!r}; the labels are {', '.join(map(repr, truth))}")
    known = {label: value for label, value in yours.items() if value is not None}
    if not known:
        return Unanswered(truth, title)
    if isinstance(sys.stdout, _Held):
        sys.stdout.let_go()
    for label, value in known.items():
        guessed(f"{title}: {label}" if label else title, value, truth[label])
    return _draw_guess(known, truth, title)


def _class_guess(yours, truth, title):
    """A bar for each number that somebody guessed, and for the truth."""
    if isinstance(truth, dict):
        raise ValueError("a list of guesses needs a truth that is one number")
    if not yours or not all(isinstance(value, (int, float)) for value in yours):
        raise ValueError(f"the guesses of a class must be numbers, got {yours!r:.100}")
    if isinstance(sys.stdout, _Held):
        sys.stdout.let_go()
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
    """A question without a guess: empty bars, and a fold that holds what the cell printed and the truth."""

    def __init__(self, truth: dict, title: str):
        self.truth, self.title = truth, title

    def __repr__(self):
        return f"{self.title or 'your guess'}: no guess yet"

    def _repr_mimebundle_(self, include=None, exclude=None):
        printed = sys.stdout.take() if isinstance(sys.stdout, _Held) else ""
        printed += "\n" * bool(printed)
        asked = text_bars({label or "your guess": None for label in self.truth})
        truth = text_bars({label or "the truth": value for label, value in self.truth.items()})
        html = (
            f"<div><b>{escape(self.title)}</b>\n<pre>{escape(asked)}</pre>\n"
            "<details><summary>Show the answer, or write your guess above and run this cell again</summary>\n"
            f"<pre>{escape(printed + truth)}</pre></details></div>"
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

    def let_go(self):
        """Print what was held back, and hold back no more."""
        sys.stdout = self.real
        self.real.write(self.take())


def _before_cell(info):
    if CALL in (info.raw_cell or ""):
        sys.stdout = _Held(sys.stdout)


def _after_cell(result):
    if isinstance(sys.stdout, _Held):  # nothing was folded: the cell failed, or `guess` is not its last line
        sys.stdout.let_go()


def _watch_cells():
    """In a notebook, call the two functions above around every cell. A terminal could not show the fold."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        shell.events.register("pre_run_cell", _before_cell)
        shell.events.register("post_run_cell", _after_cell)


_watch_cells()
