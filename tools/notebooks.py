"""Keep the notebooks executed and normal, so that what changes in a file is what changed in the lesson.

    python tools/notebooks.py run [FILES]        execute from top to bottom, then normalize
    python tools/notebooks.py normalize [FILES]  normalize only (after editing in JupyterLab)
    python tools/notebooks.py check [FILES]      name the files that are not normal; exit code 1 if any

Without files: every notebook in notebooks/. Normal means: cell ids by position, tags, slide types and alt as the
only cell metadata, no timings, no widget state, one output per run of prints. A cell's `alt` (in its metadata)
describes pictures that come without a description. What is in a lesson tests/course/test_notebooks.py judges.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 120  # seconds
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def normalize(notebook: dict) -> dict:
    """Return the normal form of a notebook (nbformat 4) as plain dicts and lists."""
    return {
        "cells": [_normal_cell(cell, number) for number, cell in enumerate(notebook["cells"], start=1)],
        "metadata": NOTEBOOK_METADATA,
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _normal_cell(cell: dict, number: int) -> dict:
    metadata = {}
    if cell["metadata"].get("tags"):
        metadata["tags"] = sorted(set(cell["metadata"]["tags"]))
    slide_type = cell["metadata"].get("slideshow", {}).get("slide_type", "")
    if slide_type not in ("", "-"):
        metadata["slideshow"] = {"slide_type": slide_type}
    if cell["metadata"].get("alt"):
        metadata["alt"] = cell["metadata"]["alt"]
    normal = {
        "cell_type": cell["cell_type"],
        "id": f"cell-{number:02d}",
        "metadata": metadata,
        "source": "\n".join(line.rstrip() for line in cell["source"].split("\n")).strip("\n"),
    }
    if cell["cell_type"] == "code":
        normal["execution_count"] = cell.get("execution_count")
        normal["outputs"] = _normal_outputs(cell.get("outputs", []), metadata.get("alt", ""))
    if cell.get("attachments"):
        normal["attachments"] = cell["attachments"]
    return normal


def _normal_outputs(outputs: list[dict], alt: str = "") -> list[dict]:
    normal = []
    for output in outputs:
        output = dict(output)
        if "data" in output:
            # The id of a widget is random, and nothing can be drawn from it without its kernel.
            output["data"] = {kind: data for kind, data in output["data"].items() if kind != WIDGET_VIEW}
            output["metadata"] = {kind: meta for kind, meta in output["metadata"].items() if kind in output["data"]}
            for kind in output["data"] if alt else ():
                if kind.startswith("image/"):
                    output["metadata"][kind] = {"alt": alt, **output["metadata"].get(kind, {})}
            if not output["data"]:
                continue
        # The kernel splits prints by time, so the same cell may give one piece or five.
        same = normal and output["output_type"] == "stream" and normal[-1].get("name") == output["name"]
        if same:
            normal[-1]["text"] += output["text"]
        else:
            normal.append(output)
    return normal


def dumps(notebook: dict) -> str:
    """The text of the normal form, as nbformat writes it: sorted keys, one list entry per line of text."""
    import nbformat

    return nbformat.writes(nbformat.from_dict(normalize(notebook))) + "\n"


def load(path: Path) -> dict:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise SystemExit(f"{path}: not a readable notebook ({str(error).splitlines()[0]})") from None


def execute(path: Path) -> dict:
    """Run every cell with kernel python3 in the notebook's folder. Raises CellExecutionError."""
    from nbclient import NotebookClient

    notebook = load(path)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.resolve().parent)}},
        store_widget_state=False,
        record_timing=False,
    )
    return client.execute()


def write(path: Path, text: str) -> None:
    """Write all or nothing: a killed run leaves the old file."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Execute and normalize notebooks.")
    parser.add_argument("action", choices=["run", "normalize", "check"])
    parser.add_argument("files", nargs="*", type=Path, help="default: every notebook in notebooks/")
    args = parser.parse_args(argv)
    failed = False
    for path in args.files or sorted((ROOT / "notebooks").glob("*.ipynb")):
        if args.action == "run":
            from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

            print(f"{path} ...", flush=True)
            try:
                notebook = execute(path)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                print(f"{path}: left as it was, because a cell failed:\n{error}", file=sys.stderr)
                failed = True
                continue
        else:
            notebook = load(path)
        text = dumps(notebook)
        if text == path.read_text(encoding="utf-8"):
            continue
        if args.action == "check":
            print(f"{path}: not normal. Run: python tools/notebooks.py normalize {path}", file=sys.stderr)
            failed = True
        else:
            write(path, text)
            print(f"{path}: written", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
