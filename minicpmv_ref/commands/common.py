"""What several commands need: numbers in a range, one clear error, output that a terminal does not obey."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ..inputs.checks import printable
from ..inputs.translated import LANGUAGES

ROOT = Path(__file__).resolve().parents[2]


class CommandError(Exception):
    """A command cannot run; the message is all that the user needs to see."""


# ---- options

SEEDS, THREADS, ANSWER = (0, 2**63 - 1), (1, 4096), (1, 2**20)  # no model has more positions
FACTORS = (0, 10**6)  # far beyond all that makes sense
COUNTS = (0, 2**31)  # where the work itself says what is too few, and why


def add_number(parser, name, *, within, **settings):
    """An option that takes a number; `within` is the least and the most that it may be."""
    added = parser.add_argument(name, **settings)
    parser.get_default("ranges").setdefault(added.dest, (name, *within))


def add_language(parser):
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        default=LANGUAGES[0],
        help="of the lessons: en (the default), or zh for those that are translated to Chinese",
    )


def add_question(parser):
    """What a command needs that asks a model, after the pictures."""
    parser.add_argument("question", metavar="QUESTION", help="your question, in quotes")
    parser.add_argument("--model", help='a checkpoint folder (default: "nano", the model of the course)')


def add_answer_length(parser):
    add_number(
        parser,
        "--max-new-tokens",
        within=ANSWER,
        type=int,
        default=128,
        metavar="N",
        help="at most so many tokens of answer",
    )


def check_ranges(args):
    """Refuse numbers that no command can work with, before a file is read or a model is loaded."""
    for name, (flag, least, most) in args.ranges.items():
        value = getattr(args, name)
        if value is None or least <= value <= most:
            continue
        known = flag if flag == f"--{name}" else f"{flag} ({name})"
        # Not-a-number is not at least anything.
        end = "2^63 - 1" if most == SEEDS[1] else f"{most:,}"
        allowed = f"from {least} to {end}" if value >= least else f"{least} or more"
        raise CommandError(f"{known} must be {allowed}, got {printable(str(value))}")


def refuse(args, *names, why):
    """Options that do not fit the others are an error, not ignored."""
    flags = {"checkpoint": "--from"}
    given = [
        flags.get(name, "--" + name.replace("_", "-")) for name in names if getattr(args, name) not in (None, False)
    ]
    if given:
        raise CommandError(f"{', '.join(given)}: these options {why}")


# ---- what must be there


def need(module, purpose):
    if importlib.util.find_spec(module) is None:
        raise CommandError(f"{purpose} needs the package {module!r}. Run `python3 lab.py`: it installs everything.")


def notebooks_folder():
    folder = ROOT / "notebooks"
    if not folder.is_dir():
        raise CommandError(
            f"there is no notebooks folder beside the package in {ROOT}. "
            "The course and its tests need the whole repository, not the installed package alone."
        )
    return folder


def changed_files():
    """{name: whether it is still there} of the files that are not as they came; None if nobody knows how they came."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        # A stick may have changed who may run which file: that is no change.
        words = "-c core.fileMode=false diff --name-only -z --relative --no-renames HEAD".split()
        listed = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
        names = listed.stdout.decode(errors="replace").split("\0")
        return None if listed.returncode else {name: (ROOT / name).is_file() for name in names if name}
    if not (ROOT / "SHA256SUMS").is_file():  # of a bundle
        return None
    lines = (ROOT / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ", 1) for line in lines if "  wheels/" not in line]
    there = {name: (ROOT / name).is_file() for _, name in pairs}
    return {name: there[name] for wanted, name in pairs if not (there[name] and digest(ROOT / name) == wanted)}


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_experiments():
    if not (ROOT / "experiments").is_dir():
        raise CommandError(f"there is no experiments folder in {ROOT}: they need the whole repository")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def kernel_environment():
    """What a notebook's kernel must inherit to import this package, with this environment's kernel."""
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, search)), "JUPYTER_PREFER_ENV_PATH": "1"}


# ---- output


def say(text):
    """Print what holds the names of files, or words of a model or a file: a terminal must not obey them."""
    print(printable(str(text)), flush=True)


def report_line(text):
    from tqdm import tqdm

    tqdm.write(printable(text))  # print would tear the progress bar


class Stopwatch:
    """Seconds between laps, each under a name."""

    def __init__(self):
        self.laps, self.last = {}, time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def __str__(self):
        width = max(map(len, self.laps))
        return "\n".join(f"{name:<{width}}  {seconds * 1000:8.1f} ms" for name, seconds in self.laps.items())
