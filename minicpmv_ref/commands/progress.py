"""`progress`: which exercises are solved, yours or those of a class."""

import json
import re
from collections import Counter
from pathlib import Path

from .common import CommandError, need, notebooks_folder, say

LARGEST = 10**7  # bytes of a file of codes: a class sends a few thousand


def options(parser):
    parser.add_argument("--name", help="your name, for the codes that you send to your teacher")
    parser.add_argument("--collect", metavar="FILE", help="a text file with the lines that a class sent")


def run(args):
    need("ipywidgets", "the course")
    from ..course import progress

    lessons = exercises(notebooks_folder())
    try:
        if args.name is not None:
            progress.write({**progress.read(), "name": progress.clean(args.name)})
        if args.collect is None:
            return own(lessons, progress.read(), progress.lines)
        path = Path(args.collect)
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise CommandError(f"{args.collect!r:.200} is no text file of codes of at most {LARGEST:,} bytes")
        whole_class(lessons, *progress.collect(path.read_text(encoding="utf-8-sig")))
    except (ValueError, OSError) as error:
        raise CommandError(error) from error


def exercises(folder):
    """{"01 Slicing": ["visual_tokens", ...]} in the order of the lessons."""
    found = {}
    for path in sorted(folder.glob("*_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        number, _, title = path.stem.partition("_")
        found[f"{number} {title.replace('_', ' ')}"] = re.findall(r"^check\.(\w+)\(", code, re.MULTILINE)
    return found


def own(lessons, kept, lines):
    done, total = set(kept.get("solved", [])), sum(map(len, lessons.values()))
    known = done & {name for names in lessons.values() for name in names}
    say(f"{kept.get('name', 'You')}: {len(known)} of {total} exercises\n")
    for lesson, names in lessons.items():
        boxes = "".join("■" if name in done else "□" for name in names)
        left = [name for name in names if name not in done]
        say(f"{lesson:<28} {boxes:<6} {'' if len(left) in (0, len(names)) else 'open: ' + ' '.join(left)}".rstrip())
    if lines(kept):
        say("\nFor your teacher:\n" + "\n".join(lines(kept)))
    elif done:
        say('\nFor codes that you can send to your teacher: python3 lab.py progress --name "Your name"')


def whole_class(lessons, solved, guesses, wrong):
    for sentence in wrong:
        say(f"does not fit: {sentence}")
    if not solved and not guesses:
        raise CommandError("this file has no codes: they are lines such as `Ada: boxes-7QK2`")
    if solved:
        numbers = [lesson.split()[0] for lesson in lessons]
        wide = max(map(len, solved))
        say(f"{'':<{wide}} " + " ".join(f"{number:>4}" for number in numbers) + "   all")
        for name, done in sorted(solved.items()):
            cells = [
                f"{len(done & set(names))}/{len(names)}" if done & set(names) else "." for names in lessons.values()
            ]
            say(f"{name:<{wide}} " + " ".join(f"{cell:>4}" for cell in cells) + f"  {len(done):>4}")
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
            say(f"{value:>12}  {'█' * counts[value]} {counts[value]}{'  <- the truth' if value == truth else ''}")


def as_number(text):
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
