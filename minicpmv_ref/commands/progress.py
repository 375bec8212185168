"""`progress`: which exercises are solved, yours or those of a class.

A class sends lines such as `Ada: boxes-7QK2 shrink-M3LA` and `Ada? tokens of 449 x 448 | 128 | 192`, through mail and
chats that break and decorate them. What cannot be read or does not fit is said, line by line, and costs nobody else.
"""

import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from .common import CommandError, need, notebooks_folder, say
from .course import lessons, translated

LARGEST = 10**7  # bytes of a file of codes: a class sends a few thousand
GUESSED = re.compile(r"(?:[^?]*:)?([^:?]+)\?\s(.+) \| (\S+) \| (\S+)")


def options(parser):
    parser.add_argument("--name", help="your name, for the codes that you send to your teacher")
    parser.add_argument(
        "--collect", metavar="FILE", nargs="+", help="text files with the lines that a class sent, or its progress.json"
    )


def run(args):
    need("ipywidgets", "the course")
    from ..course import progress

    found = exercises(notebooks_folder())
    try:
        if args.name is not None and (said := progress.rename(progress.clean(args.name))):
            say(said.strip())
        if args.collect is None:
            return own(found, progress.read(), progress.lines)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    texts, wrong = [], []
    for name in args.collect:
        try:
            texts.append(sent(Path(name)))
        except (ValueError, OSError) as error:
            wrong.append(f"not read: {name}: {error}")
    solved, guesses, more = collect("\n".join(texts), {each for names in found.values() for each in names})
    whole_class(found, solved, guesses, wrong + more)


def exercises(folder):
    """{"01 Slicing": ["visual_tokens", ...]} in the order of the lessons."""
    found = {}
    for number, path in lessons(folder).items():
        cells = translated(path, "en")["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        title = path.stem.partition("_")[2].replace("_", " ")
        found[f"{number} {title}"] = re.findall(r"^check\.(\w+)\(", code, re.MULTILINE)
    return found


# ---- one's own


def own(lessons, kept, lines):
    done, total = set(kept.get("solved", [])), sum(map(len, lessons.values()))
    known = done & {name for names in lessons.values() for name in names}
    say(f"{kept.get('name', 'You')}: {len(known)} of {total} exercises\n")
    for lesson, names in lessons.items():
        boxes = drawn("".join("■" if name in done else "□" for name in names))
        left = [name for name in names if name not in done]
        say(f"{lesson:<28} {boxes:<6} {'' if len(left) in (0, len(names)) else 'open: ' + ' '.join(left)}".rstrip())
    if lines(kept):
        say("\nFor your teacher:\n" + "\n".join(lines(kept)))
    elif done:
        say('\nFor codes that you can send to your teacher: python3 lab.py progress --name "Your name"')


def drawn(text):
    """The text, in signs that every terminal and file can hold where this one lacks the boxes."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(str.maketrans("■□█", "x.#"))
    return text


# ---- what a class sent


def sent(path):
    """The lines of a file: of text as editors of all systems save it, or of what a learner's own machine noted."""
    from ..course import progress

    if not path.is_file() or path.stat().st_size > LARGEST:
        raise ValueError(f"this is no text file of codes of at most {LARGEST:,} bytes")
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            lines = progress.lines(progress.read(path))
        except ValueError:
            raise ValueError("it is damaged") from None
        if not lines:
            raise ValueError("it has no name, or nothing was solved")
        return "\n".join(lines)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("its letters cannot be read: save it as plain text in UTF-8")
    return text


def collect(text, known):
    """Read what many learners sent.

    Args:
        text: their lines, in any order, with whatever stands between them.
        known: the names of all exercises.

    Returns:
        ({name: {exercises}}, {question: (truth, {name: guess})}, sentences about what was not read or does not fit).
    """
    from ..course import progress

    is_code = re.compile(r"\w+-[A-Z2-7]{4}").fullmatch
    looks_like_one = re.compile(rf"\b(?:{'|'.join(known)})\s?[-‐‑–—]|\?\s[^?]*\|", re.IGNORECASE).search
    solved, guesses, wrong, spelled, name = {}, {}, [], {}, None
    for line in text.splitlines():
        line = "".join(c for c in line if unicodedata.category(c) != "Cf").strip("> \t")  # marks of chats; quoted mail
        *before, last = re.split("[:：]", line)
        codes, guess = re.findall(r"[^\s,;.]+", last), GUESSED.fullmatch(line)
        try:
            if guess:
                name = progress.clean(guess[1])
                name = spelled.setdefault(name.casefold(), name)
                guesses.setdefault(guess[2], {})[name] = guess[3], guess[4]
            elif codes and all(map(is_code, codes)):
                name = progress.clean(before[-1]) if before else name  # a long line may be broken
                if name is None:
                    raise ValueError("no name stands before it")
                name = spelled.setdefault(name.casefold(), name)
                for code in codes:
                    exercise = code.rpartition("-")[0]
                    if exercise not in known:
                        wrong.append(f"does not fit: {code}, sent by {name}, is of no exercise of this course")
                    elif code == progress.code(exercise, name):
                        solved.setdefault(name, set()).add(exercise)
                    else:
                        wrong.append(f"does not fit: {code} is not the code of {name}")
            elif looks_like_one(line):
                raise ValueError("a line is like `Ada: boxes-7QK2`")
            elif line:
                name = None
        except ValueError as error:
            wrong.append(f"not read: {line[:100]} ({error})")
            name = None
    return solved, {question: agreed(question, answers, wrong) for question, answers in guesses.items()}, wrong


def agreed(question, answers, wrong):
    """(the truth that most sent, {name: guess} of them)."""
    truth = Counter(truth for _, truth in answers.values()).most_common(1)[0][0]
    for name, (_, other) in answers.items():
        if other != truth:
            wrong.append(f"does not fit: {name} has {other} for the truth of {question!r}, and most have {truth}")
    return truth, {name: guess for name, (guess, other) in answers.items() if other == truth}


def whole_class(lessons, solved, guesses, wrong):
    for sentence in wrong:
        say(sentence)
    if not solved and not guesses:
        raise CommandError("no codes were found: they are lines such as `Ada: boxes-7QK2`")
    if solved:
        numbers = [lesson.split()[0] for lesson in lessons]
        wide = max(map(columns, solved))
        say(f"{'':<{wide}} " + " ".join(f"{number:>4}" for number in numbers) + "   all")
        for name, done in sorted(solved.items()):
            cells = [
                f"{len(done & set(names))}/{len(names)}" if done & set(names) else "." for names in lessons.values()
            ]
            padding = " " * (wide - columns(name))
            say(f"{name}{padding} " + " ".join(f"{cell:>4}" for cell in cells) + f"  {len(done):>4}")
        say("\nsolved by how many")
        for lesson, names in lessons.items():
            counts = [f"{name} {sum(name in done for done in solved.values())}" for name in names]
            if any(not count.endswith(" 0") for count in counts):
                say(f"{lesson:<28} {', '.join(counts)}")
    for question, (truth, answers) in guesses.items():
        say(f"\n{question}: {len(answers)} guesses")
        counts = Counter(answers.values())
        counts.setdefault(truth, 0)
        for value in sorted(counts, key=as_number):
            bar = drawn("█" * counts[value])
            say(f"{value:>12}  {bar} {counts[value]}{'  <- the truth' if value == truth else ''}")


def columns(text):
    """How many columns of a terminal a text takes: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def as_number(text):
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
