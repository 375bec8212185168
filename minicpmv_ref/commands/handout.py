"""`handout`: all lessons once more, for learners without solutions, or for the teacher with every fold open."""

import re

from .common import ROOT, CommandError, add_language, notebooks_folder, say
from .course import copy_of, lessons, translated, without_outputs, write_copy

EDITIONS = ("student", "instructor")
SOLUTION = re.compile(r"<details>\s*<summary>(?:Solution|参考答案)</summary>.*?</details>\s*", re.DOTALL)


def options(parser):
    parser.add_argument(
        "edition",
        choices=EDITIONS,
        help="student: no solutions, no outputs; instructor: solutions, answers and guesses open, outputs as saved",
    )
    add_language(parser)


def run(args):
    folder = ROOT / f"{args.edition}_notebooks"  # beside notebooks/, so that every link and path stays true
    if folder.exists():
        raise CommandError(f"{folder} exists: move it or remove it, and it is made anew")
    originals = lessons(notebooks_folder())
    editions = {  # all of them first: a lesson that cannot be read must not leave half a folder
        copy_of(original, args.language).name: edition(original, args.edition, args.language)
        for original in originals.values()
    }
    for name, notebook in editions.items():
        write_copy(folder / name, notebook)
    say(f"{folder.name}/ holds {len(originals)} lessons.")


def edition(original, name, language):
    """One lesson as a dict: "student" or "instructor"."""
    student = name == "student"
    notebook = without_outputs(original, language) if student else translated(original, language)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = changed(cell["source"], student)
        for output in cell.get("outputs", []):  # a guess shows its answer
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = changed(output["data"]["text/html"], student)
    return notebook


def changed(lines, student):
    """The lines of a text without solutions, or with every fold open."""
    text = "".join(lines)
    text = SOLUTION.sub("", text) if student else text.replace("<details>", "<details open>")
    return text.splitlines(keepends=True)
