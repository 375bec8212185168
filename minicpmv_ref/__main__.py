"""The commands: `python -m minicpmv_ref COMMAND ...`, or `python3 lab.py COMMAND ...` from a fresh clone.

A command NAME is one line of COMMANDS and the file commands/NAME.py with two functions: `options(parser)` adds what the
command takes, `run(args)` returns an exit code (None is 0). The file is imported when the command is used; at its top
it imports only the standard library and common.py, so that `--help` answers before anything is installed.
"""

import argparse
import os
import re
import signal
import sys
from contextlib import suppress
from importlib import import_module

from .commands.common import CommandError, check_ranges
from .inputs.checks import printable

COMMANDS = [  # (name, one line of help); the first is the default
    (
        "course",
        "Open your copy of the notebooks in JupyterLab (the default). "
        "--no-browser only prints the address, --port N chooses the port.",
    ),
    ("reset", "Take one lesson as new, such as `reset 03`; the file that you worked in is kept beside it."),
    ("check", "Check this machine in half a minute, and say what to do: for the day before a course."),
    ("bundle", "Write a folder with the course and all packages, for a room without internet."),
    ("progress", "Show which exercises you solved; with --collect FILE, those of a class from the codes that it sent."),
    ("handout", "Write all lessons without solutions for learners, or with them open for teachers."),
    ("slides", "Show a lesson as a deck for the projector."),
    ("site", "Write the whole course as web pages, which need no network."),
    ("ask", "Ask a question about pictures and clips: prints the plan, the answer and the timings; draws boxes."),
    (
        "train",
        "Train the nano model from random weights, stage by stage; or, with --data, any model on your own data. "
        "After a stop, the same command goes on.",
    ),
    ("records", "Check your own training data: prints what is wrong with each record, and how to fix it."),
    ("shards", "Write your own training data as tar shards; bad records are reported and left out."),
    ("dpo", "Make a model careless, then align it: sample answers, check claims, train on pairs; with controls."),
    ("experiment", "Test a claim of the paper, or all of them; cpu and gpu write docs/claims.md."),
    ("export", "Write a checkpoint as the two GGUF files that llama.cpp runs."),
    ("phone", "Ask a question as a phone would: the model becomes GGUF files, and llama.cpp answers."),
    (
        "compare",
        "Find where a port to another language differs: write a kit of right answers, or check a port's against it.",
    ),
    ("test", "Run every check: lint, tests, coverage, notebooks. What follows -- goes to pytest."),
]


def build_parser(command=None):
    """The parser of all commands, with the options of this one, or of every one."""
    program = "lab.py" if os.environ.get("MINICPMV_REF_LAB") else "python -m minicpmv_ref"
    parser = argparse.ArgumentParser(
        prog=program, description="MiniCPM-V as a readable reference, taught in Jupyter notebooks."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in COMMANDS:
        added = commands.add_parser(name, help=text, description=text)
        if command in (None, name):
            module = import_module(f".commands.{name}", __package__)
            added.set_defaults(function=module.run, ranges={})
            module.options(added)
    return parser


def main(argv=None):
    for stream in (sys.stdout, sys.stderr):  # not every terminal knows every character
        with suppress(AttributeError):  # what stands in for one may not
            stream.reconfigure(errors="replace")
    # Threads that wait must sleep: spinning ones make small models a hundred times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = [COMMANDS[0][0], *argv]
    # Only `test` hands words on. Elsewhere `--` keeps its usual meaning: no options from here on.
    cut = argv.index("--") if argv[0] == "test" and "--" in argv else len(argv)
    parser = build_parser(argv[0])
    args, rest = parser.parse_known_args(argv[:cut])
    if rest:
        hint = " (files and question stand together, options before or after them)" if hasattr(args, "question") else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    args.pytest_args = argv[cut + 1 :]
    try:
        check_ranges(args)
        return args.function(args) or 0
    except (CommandError, BrokenPipeError) as error:
        if BrokenPipeError in (type(error), type(error.__cause__)):  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written goes nowhere
            return 141
        text = re.sub(r"\[(Errno|WinError) \d+\] ", "", str(error))  # numbers help nobody
        print(f"error: {printable(text)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    # An exception, so that the programs that a command started are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
