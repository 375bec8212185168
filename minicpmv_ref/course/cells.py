"""What a cell says when it is stopped, and when a name is missing because a cell above was not run.

Both are usual in a lesson, and Python's own answers do not help a learner: a traceback through every file that a
training went through, and `NameError` without the cell that would make the name.
"""

import ast
import os
import sys
from pathlib import Path

from ..inputs.files import read_json

LESSONS = Path(__file__).resolve().parents[2] / "notebooks"
STOPPED = (
    "Stopped before the end of this cell. What it has changed so far stays changed. Run it again; if it trains or "
    "changes something that a cell above made (a model, for example), run that cell before."
)


def makes(source: str) -> set[str]:
    """The names that a cell of code makes."""
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:  # a magic command of IPython
        return set()
    made = set()
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
    return made


def missing_cell(name: str, lesson: Path) -> str:
    """Which cell of a lesson makes a name, in words; "" if none does."""
    if not lesson.is_file() or lesson.suffix != ".ipynb":
        return ""
    for cell in read_json(lesson)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and name in makes(source):
            first = next(line for line in source.splitlines() if line.strip())
            return (
                f"`{name}` comes from a cell above that was not run since the kernel started. It begins with\n\n"
                f"    {first}\n\nRun > Run All Above Selected Cell runs it and what it needs."
            )
    return ""


def _say(shell, kind, error, traceback, tb_offset=None):
    """In place of what IPython shows of these errors."""
    if issubclass(kind, KeyboardInterrupt):
        print(STOPPED, file=sys.stderr)  # noqa: T201 (this is what the cell shows)
        return
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
    lesson = LESSONS / Path(os.environ.get("JPY_SESSION_NAME", "")).name  # Jupyter's server sets it
    if words := missing_cell(error.name or "", lesson):
        print(words)  # noqa: T201


def _watch_errors():
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        shell.set_custom_exc((KeyboardInterrupt, NameError), _say)


_watch_errors()
