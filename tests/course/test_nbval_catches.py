"""Proof that the run of the notebooks can fail: width and height swapped in the library, it must fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from places import ROOT

import notebooks  # tools/notebooks.py
from minicpmv_ref import best_grid

FIRST = min((ROOT / "notebooks").glob("00_*.ipynb"), default=None)


def copy_repository(target: Path):
    """What a notebook needs: the package, its samples, and the first notebook (or a tiny one in its place)."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minicpmv_ref", target / "minicpmv_ref", ignore=ignore)
    if (ROOT / "data_samples").is_dir():
        shutil.copytree(ROOT / "data_samples", target / "data_samples", ignore=ignore)
    (target / "notebooks").mkdir()
    if FIRST:
        shutil.copy(FIRST, target / "notebooks")
        return
    cell = nbformat.v4.new_code_cell(
        "from minicpmv_ref import SliceConfig, best_grid\nprint(best_grid((1920, 1080), SliceConfig()))",
        execution_count=1,
        outputs=[nbformat.v4.new_output("stream", name="stdout", text=f"{best_grid((1920, 1080))}\n")],
    )
    text = notebooks.dumps(nbformat.v4.new_notebook(cells=[cell]))
    (target / "notebooks" / "planted.ipynb").write_text(text, encoding="utf-8")


def swap_width_and_height(root: Path):
    path = root / "minicpmv_ref" / "slicing.py"
    source = path.read_text(encoding="utf-8")
    assert source.count("def best_grid(") == 1
    source = source.replace("def best_grid(", "def _right_best_grid(")
    source += "\n\ndef best_grid(size, cfg=SliceConfig()):\n    return _right_best_grid((size[1], size[0]), cfg)\n"
    path.write_text(source, encoding="utf-8")


def run_nbval(root: Path):
    """As `lab.py test` does, but to the first failure, and without the plugins that it needs not."""
    flags = "-x -p nbval.plugin --nbval --nbval-current-env --nbval-cell-timeout=120 -p no:cacheprovider".split()
    return subprocess.run(
        [sys.executable, "-m", "pytest", *flags, "notebooks"],
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        cwd=root,
        capture_output=True,
        text=True,
    )


def test_nbval_fails_where_a_result_differs(tmp_path):
    """That the lesson passes as it is, `lab.py test` shows with the same command."""
    copy_repository(tmp_path)
    swap_width_and_height(tmp_path)
    run = run_nbval(tmp_path)
    assert run.returncode == 1, run.stdout
    assert "mismatch" in run.stdout, "a comparison must fail, not the set-up"
    assert "ModuleNotFoundError" not in run.stdout
    assert " passed" in run.stdout, "cells that do not ask for a grid pass"
