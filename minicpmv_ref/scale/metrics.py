"""The log of a training, metrics.jsonl: one JSON object a line, and the curves that are drawn from it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from ..inputs.checks import check_number, check_type
from ..inputs.files import parse_json, plain_file, replacing

METRICS = "metrics.jsonl"


def append_row(log: Path, row: dict) -> None:
    """Write one row at the end of the log."""
    try:
        with open(log, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
    except OSError as error:  # a full disk has no name
        raise OSError(f"could not write {log}: {error}") from error


def read_rows(log: Path) -> tuple[list[dict], int]:
    """The rows of a log, and how many lines are damaged: a full disk or a process that died may have cut one."""
    rows = []
    lines = plain_file(log).read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    for line in lines:
        try:
            row = check_type("a row", parse_json(line), dict)
            check_type("stage", row.get("stage"), str)
            for name in ("step", "loss", "held_out"):
                if row.get(name) is not None:
                    check_number(name, row[name])
        except ValueError:
            continue
        rows.append(row)
    return rows, len(lines) - len(rows)


def drop_rows_after(log: Path, stage: str, step: int) -> int:
    """Remove the rows of a stage after a step, since it takes these steps again; how many lines were damaged."""
    found, damaged = read_rows(log)
    rows = [row for row in found if row["stage"] != stage or row.get("step", math.inf) <= step]
    try:
        with replacing(log) as (draft,):
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise OSError(f"could not write {log}: {error}") from error
    return damaged


def plot(folder: str | os.PathLike) -> Path:
    """Draw the losses of all stages of a run, in training and held out.

    Args:
        folder: of `run`.

    Returns:
        The path of the picture, folder/curves.png.

    Raises:
        OSError: there are no metrics in the folder.
    """
    from matplotlib.figure import Figure

    log = Path(folder) / METRICS
    rows = [row for row in read_rows(log)[0] if row.get("loss") is not None and row.get("step") is not None]
    if not rows:
        raise FileNotFoundError(f"there are no metrics in {log}")
    curves = {row["stage"]: ([], []) for row in rows}
    for row in rows:
        curves[row["stage"]][0].append((row["step"], row["loss"]))
        if row.get("held_out") is not None:
            curves[row["stage"]][1].append((row["step"], row["held_out"]))
    figure = Figure(figsize=(3 * len(curves), 3), layout="constrained")
    for axis, (name, (curve, held_out)) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        axis.plot(*zip(*curve), label="training")
        if held_out:
            axis.plot(*zip(*held_out), "o", label="held out")
            axis.legend()
        axis.set(title=name, xlabel="step", yscale="log")
    figure.axes[0].set_ylabel("loss")
    path = Path(folder) / "curves.png"
    with replacing(path) as (draft,):
        figure.savefig(draft, format="png")
    return path
