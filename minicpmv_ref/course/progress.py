"""Who solved what: completion codes, kept in a file beside your copies of the lessons. No server, no secret.

A code is four characters of a checksum of the exercise and your name. It says that the checker said "correct" on some
machine to somebody of this name; whoever reads this file can make one up. Kernels note what they see only when they run
in the folder of the copies or of the handout for learners, so tests and other projects leave the file alone.
"""

import base64
import hashlib
import json
import time
import unicodedata
from contextlib import suppress
from pathlib import Path

from minicpmv_ref.inputs.files import only_one, replacing

FILE = Path(__file__).resolve().parents[2] / "my_notebooks" / "progress.json"
LONGEST_NAME = 40

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
    said = rename(name) if _kept_here() else ""
    print(f"Hello, {name}. Solved exercises print your code from now on.{said}")  # noqa: T201 (as checkers do)


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
            kept = note(lambda kept: {**kept, "solved": sorted({*kept.get("solved", []), exercise})})
        except (OSError, ValueError) as error:
            return f"\n(not noted: {error})"
        name = name or kept.get("name")
    return f"\n{name}: {code(exercise, name)}" if name else ""


def guessed(question: str, guess: float, truth: float) -> None:
    """Note a guess beside the truth."""
    try:
        if _kept_here() and question:
            pair = {question: [f"{guess:g}", f"{truth:g}"]}
            note(lambda kept: {**kept, "guesses": {**kept.get("guesses", {}), **pair}})
    except (OSError, ValueError):
        pass  # `python3 lab.py progress` says what is wrong with the file


def _kept_here() -> bool:
    return Path.cwd() in (FILE.parent, FILE.parent.with_name("student_notebooks"))


# ---- the file


def read(file: Path | None = None) -> dict:
    """What was noted, each part optional: {"name": str, "solved": [str], "guesses": {question: [guess, truth]}}."""
    file = file or FILE
    if not file.exists():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        lines(kept), kept.get("solved", []) + [], {**kept.get("guesses", {})}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it, and run the cells of your answers again") from error
    return kept


def note(change) -> dict:
    """Change what was noted, and return it: kernels of two lessons may do so at the same moment."""
    FILE.parent.mkdir(exist_ok=True)
    for _ in range(100):
        with suppress(BlockingIOError), only_one(FILE.with_name(".progress.lock"), "another kernel writes"):
            kept = change(read())
            write(kept)
            return kept
        time.sleep(0.02)
    raise OSError(f"other kernels keep {FILE} busy")


def rename(name: str) -> str:
    """Note who works here. Returns a sentence if somebody else has solved exercises here, or nothing."""
    kept = read()
    note(lambda kept: {**kept, "name": name})
    old, count = kept.get("name", name), len(kept.get("solved", []))
    if not count or old.casefold() == name.casefold():
        return ""
    return (
        f"\n{old} solved {count} exercises here. They count as yours now; if you are new, move {FILE.parent.name} away."
    )


def write(kept: dict) -> None:
    """Write all or nothing."""
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
