"""What a learner waits for: an import, --help, the first word of an answer, a lesson, a panel after a key.

    python benchmarks/course.py --rounds 5 --json benchmarks/results/course.json     on a quiet machine
    python benchmarks/course.py --rounds 1 --lessons 01_slicing.ipynb                 one lesson
    python benchmarks/course.py --lessons                                             no lesson, so no browser

Each command is a process of its own; the middle of all rounds counts. A lesson is opened in a real JupyterLab as in the
tests of the course: from its address to the picture of its first panel, then Run All, then nine keys on the first
slider of every panel, from the key to the frame with another picture: the median of the keys, of the slowest panel.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report

ROOT = Path(__file__).resolve().parent.parent
PLAN = [sys.executable, "-c", "from minicpmv_ref import plan_slices"]
LAB = [sys.executable, str(ROOT / "lab.py")]
ASK = [*LAB, "ask", str(ROOT / "data_samples/images/shapes.png"), "What color is the triangle?"]


def seconds(command: list[str], until: bytes | None = None) -> float:
    """From the start of a process to its end, or until it has printed these bytes and one more."""
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        seen, end = b"", None
        while part := os.read(process.stdout.fileno(), 4096):
            seen += part
            if until and end is None and until in seen[:-1]:
                end = time.perf_counter() - start
    assert process.returncode == 0 and (until is None or end), f"{command} ended with {process.returncode}: {seen}"
    return end or time.perf_counter() - start


def command_rows(rounds: int) -> list[dict]:
    ways = {
        "from minicpmv_ref import plan_slices (goal 0.1)": (PLAN, None),
        "lab.py --help (goal 0.3)": ([*LAB, "--help"], None),
        "lab.py ask, to the first word (goal 3)": (ASK, b"answer: "),
    }
    return [{"what": what, "seconds": median(seconds(*way) for _ in range(rounds))} for what, way in ways.items()]


def lesson_row(server, name: str) -> dict:
    """One lesson; `find` and `latency` are those of the tests."""
    from test_browser_lessons import find, latency

    cells = find(name, "panels.")
    row, start = {"what": name.removesuffix(".ipynb")}, time.perf_counter()
    with server.open(name) as lab:
        if cells:
            lab.cell(cells[0]).locator("img").first.wait_for()
            row["first panel"] = time.perf_counter() - start
        start = time.perf_counter()
        lab.run_all()
        row["Run All"] = time.perf_counter() - start
        assert lab.errors() == []
        panels = {}
        for cell in cells:
            slider = lab.sliders(cell)
            if slider.count():
                kind, words = latency(lab, cell, slider.first)
                panels[kind] = int(re.search(r"(\d+) ms", words)[1])
    if panels:
        row |= {"key": max(panels.values()), "panels": panels}
    return row


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    lessons = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    parser.add_argument("--lessons", nargs="*", default=lessons, help="default: all")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows = command_rows(args.rounds)
    if args.lessons:
        sys.path[:0] = [str(ROOT / "tests/lib"), str(ROOT / "tests/course")]
        from browser import LabServer

        with tempfile.TemporaryDirectory() as folder, LabServer(Path(folder)) as server:
            for name in args.lessons:
                rows.append(lesson_row(server, name))
                print(rows[-1], file=sys.stderr, flush=True)
    load = round(os.getloadavg()[0], 1)
    report("course", args, rows, dtype="float32", load=load, unit="seconds; milliseconds from key to picture")


if __name__ == "__main__":
    main()
