"""Who solved what: completion codes, kept in a file beside your copies of the lessons. No server, no secret.

A code is four characters of a checksum of the exercise and your name. It says that the checker said "correct" on some
machine to somebody of this name; whoever reads this file can make one up. Kernels note what they see only when they run
in the folder of the copies, so tests and other projects leave the file alone.
"""

import base64
import hashlib
import json
import re
import unicodedata
from pathlib import Path

from minicpmv_ref.inputs.files import replacing

FILE = Path(__file__).resolve().parents[2] / "my_notebooks" / "progress.json"
LONGEST_NAME = 40
SOLVED = re.compile(r"\s*([^:?]+):((?:[\s,]+\w+-[A-Z2-7]{4})+)\s*")  # Ada: boxes-7QK2 shrink-M3LA
GUESSED = re.compile(r"\s*([^:?]+)\?\s(.+) \| (\S+) \| (\S+)\s*")  # Ada? tokens of 449 x 448 | 128 | 192

_here = {}  # the name of a kernel that runs elsewhere: told, but not kept


def learner(name: str) -> None:
    """Say once who you are. From then on every solved exercise prints its completion code.

    Args:
        name: your name or a nickname, at most 40 characters.

    Raises:
        ValueError: the name is empty, too long, or has a sign that codes need themselves.
    """
    name = clean(name)
    _here["name"] = name
    if _kept_here():
        write({**read(), "name": name})
    print(f"Hello, {name}. Solved exercises print your code from now on.")  # noqa: T201 (as checkers do)


def clean(name) -> str:
    """A name in one spelling, or ValueError."""
    plain = unicodedata.normalize("NFC", " ".join(name.split())) if isinstance(name, str) else ""
    if not plain or len(plain) > LONGEST_NAME or not plain.isprintable() or set(":?|") & set(plain):
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters without : ? and |, got {name!r:.80}")
    return plain


def code(exercise: str, name: str) -> str:
    """The completion code of an exercise for this name, in whatever case it is written: "boxes-7QK2"."""
    digest = hashlib.sha256(f"{exercise}\n{clean(name).casefold()}".encode()).digest()
    return f"{exercise}-{base64.b32encode(digest).decode()[:4]}"


def solved(exercise: str) -> str:
    """Note a solved exercise. Returns the line with its code, or nothing as long as nobody said a name."""
    name = _here.get("name")
    if _kept_here():
        try:
            kept = read()
            write({**kept, "solved": sorted({*kept.get("solved", []), exercise})})
        except (OSError, ValueError) as error:
            return f"\n(not noted: {error})"
        name = name or kept.get("name")
    return f"\n{name}: {code(exercise, name)}" if name else ""


def guessed(question: str, guess: float, truth: float) -> None:
    """Note a guess beside the truth."""
    try:
        if _kept_here() and question:
            kept = read()
            write({**kept, "guesses": {**kept.get("guesses", {}), question: [f"{guess:g}", f"{truth:g}"]}})
    except (OSError, ValueError):
        pass  # `python3 lab.py progress` says what is wrong with the file


def _kept_here() -> bool:
    return Path.cwd() == FILE.parent


# ---- the file


def read() -> dict:
    """What was noted, each part optional: {"name": str, "solved": [str], "guesses": {question: [guess, truth]}}."""
    if not FILE.exists():
        return {}
    try:
        kept = json.loads(FILE.read_text(encoding="utf-8"))
        lines(kept), kept.get("solved", []) + [], {**kept.get("guesses", {})}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{FILE} is damaged ({error}); delete it, and run the cells of your answers again") from error
    return kept


def write(kept: dict) -> None:
    """Write all or nothing."""
    FILE.parent.mkdir(exist_ok=True)
    with replacing(FILE) as (draft,):
        draft.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- the lines that a learner sends


def lines(kept: dict) -> list[str]:
    """One line with all codes, and one for each guess; empty without a name."""
    name = kept.get("name")
    if not name:
        return []
    codes = [code(exercise, name) for exercise in kept.get("solved", [])]
    kept_guesses = kept.get("guesses", {}).items()
    guesses = [f"{name}? {question} | {yours} | {truth}" for question, (yours, truth) in kept_guesses]
    return [f"{name}: {' '.join(codes)}", *guesses] if codes else guesses


def collect(text: str) -> tuple[dict, dict, list[str]]:
    """Read what many learners sent.

    Args:
        text: their lines, in any order, with whatever stands between them.

    Returns:
        ({name: {exercises}}, {question: (truth, {name: guess})}, sentences about codes that do not fit).
    """
    solved, guesses, wrong, spelled = {}, {}, [], {}
    for line in text.splitlines():
        if match := SOLVED.fullmatch(line):
            name = clean(match[1])
            name = spelled.setdefault(name.casefold(), name)
            for given in re.split(r"[\s,]+", match[2].strip()):
                exercise = given.rpartition("-")[0]
                if given == code(exercise, name):
                    solved.setdefault(name, set()).add(exercise)
                else:
                    wrong.append(f"{given} is not the code of {name}")
        elif match := GUESSED.fullmatch(line):
            name = clean(match[1])
            name = spelled.setdefault(name.casefold(), name)
            guesses.setdefault(match[2], (match[4], {}))[1][name] = match[3]
    return solved, guesses, wrong
