"""The course room: interactive panels, the pictures they show, and checkers for the exercises.

    panel.py   the one widget base: controls, one picture, one status line
    touch.py   the picture: what is clicked, dragged or pointed at in it
    draw/      pure drawing functions; they need no Jupyter
    panels/    the panels of the lessons
    check/     one checker per exercise
    progress.py   completion codes of solved exercises
    cells.py   what a cell says when it is stopped, or misses a name

draw, panels and check have one file for each lesson. Only notebooks and tests import this package.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait must not keep a core busy

try:
    import ipywidgets  # noqa: F401
except ImportError:
    raise ImportError(
        "the course needs ipywidgets, and this Python has none. Start the course with `python3 lab.py`, "
        "or choose the Python of the folder .venv as this notebook's kernel."
    ) from None

from . import cells  # noqa: F401
