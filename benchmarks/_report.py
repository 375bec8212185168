"""What a benchmark leaves: a table on the screen and, with --json FILE, what was measured and where.

    python benchmarks/vision.py --json benchmarks/results/vision.json    to publish; then python tools/figures.py

TABLES has the columns of each benchmark: (heading, key of a row, format). Where there are two keys, the second value
stands in parentheses. A row may hold more than its table shows. A pair of numbers is the lowest and the highest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from experiments._frame import machine, write_json
from minicpmv_ref.inputs.files import read_json

RESULTS = Path(__file__).resolve().parent / "results"
NOT_YET = ("gpu",)  # may lack a result: nobody has had the machine

TABLES = {
    "preprocess": [
        ("size", "size", ""),
        ("transformers' MiniCPM-V 4.6 (PIL)", "transformers", ".1f"),
        ("with torchvision", "torchvision", ".1f"),
        ("official 2.6, written plainly", "official", ".1f"),
        ("ours", "ours", ".1f"),
        ("ours / transformers", "ours / transformers", ".2f"),
        ("ours / torchvision", "ours / torchvision", ".2f"),
        ("ours / official", "ours / official", ".2f"),
    ],
    "vision": [
        ("dtype", "dtype", ""),
        ("views", "views", ""),
        ("transformers' MiniCPM-V 4.6, packed", "packed", ".0f"),
        ("Idefics2, padded", "padded", ".0f"),
        ("ours", "ours", ".0f"),
        ("packed / ours", "packed / ours", ".2f"),
        ("best peer / ours", "best peer / ours", ".2f"),
        ("ours of GEMM rate", "roofline", ".0%"),
    ],
    "resampler": [
        ("dtype", "dtype", ""),
        ("width, queries", "width, queries", ""),
        ("views", "views", ""),
        *((name, name, ".0f") for name in ("official", "sdpa", "ours", "fold")),
        ("official / fold", "official / fold", ".2f"),
        ("ours of GEMM rate", "roofline", ".0%"),
    ],
    "packing": [
        ("lengths", "lengths", ""),
        ("padded, sorted", "sorted", ".2f"),
        ("transformers flattening", "flattening", ".2f"),
        ("TRL best-fit rows", "trl", ".2f"),
        ("ours, full head", "ours, full head", ".2f"),
        ("ours", "ours", ".2f"),
        ("ours / best peer (CPU time)", ("ours / best peer", "ours / best peer, CPU"), ".2f"),
    ],
    "train": [
        ("training", "training", ""),
        ("useful tokens/s", "tokens/s", ".0f"),
        ("pictures/s", "pictures/s", ".1f"),
        ("time of ours, wall (CPU)", ("wall", "CPU"), ".2f"),
        ("CPU time on one thread", "CPU, one thread", ".2f"),
        ("peak MB", "MB", ".0f"),
        ("of GEMM rate", "roofline", ".0%"),
    ],
    "course": [
        ("what", "what", ""),
        ("seconds", "seconds", ".2f"),
        ("first panel, s", "first panel", ".1f"),
        ("Run All, s", "Run All", ".1f"),
        ("key to picture, ms", "key", ".0f"),
    ],
    "curves": [
        ("what grows", "what", ""),
        ("from, to", "range", ""),
        ("predicted slope", "predicted", ".2f"),
        ("measured slope", "measured", ".2f"),
        ("milliseconds, first", "first", ".1f"),
        ("last", "last", ".1f"),
    ],
    "dpo": [
        ("prompt", "prompt", ""),
        ("reference", "reference", ""),
        ("TRL", "TRL", ".0f"),
        ("ours", "ours", ".0f"),
        ("TRL / ours, wall (CPU)", ("wall", "CPU"), ".2f"),
        ("on one thread", ("wall, one thread", "CPU, one thread"), ".2f"),
        ("ours of GEMM rate", "roofline", ".0%"),
    ],
    "lora": [
        ("way", "way", ""),
        ("parameters that learn", "parameters", ",d"),
        ("MB weights", "weights", ".2f"),
        ("MB gradients", "gradients", ".2f"),
        ("MB of AdamW", "AdamW", ".2f"),
        ("CPU ms a step", "step", ".0f"),
        ("held-out loss", "loss", ".3f"),
        ("words right", "words", ".3f"),
        ("MB on disk", "disk", ".2f"),
    ],
    "decode": [
        ("LLM", "LLM", ""),
        ("dtype", "dtype", ""),
        *((f"prompt of {length}", str(length), ".2f") for length in (64, 128, 512)),
        ("of memory rate", "of memory rate", ".0%"),
    ],
    "kquant": [
        ("kind", "kind", ""),
        ("ours", "ours", ".0f"),
        ("ggml C", "C", ".0f"),
        ("ours / C", "ours / C", ".2f"),
        ("with importance, ours / C", "ours / C, importance", ".2f"),
    ],
    "gpu": [
        ("part", "part", ""),
        ("what", "what", ""),
        ("unit", "unit", ""),
        ("measured", "measured", ","),
        ("beside it", ("peer", "peer's"), ","),
        ("ratio", "ratio", ".2f"),
        ("not measured", "error", ""),
    ],
    "native": [
        ("LLM", "LLM", ""),
        ("reading, portable", "reading, portable", ".0f"),
        ("native", "reading, native", ".0f"),
        ("times", "reading, times", ".2f"),
        ("writing, portable", "writing, portable", ".0f"),
        ("native", "writing, native", ".0f"),
        ("times", "writing, times", ".2f"),
    ],
}


def arguments(doc: str, threads: int = 2, rounds: int | None = 7) -> argparse.ArgumentParser:
    """The options that every benchmark has; without rounds, one that trains once."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads)
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", metavar="FILE", help="write what was measured there")
    return parser


def report(name: str, args: argparse.Namespace, rows: list[dict], **facts) -> None:
    """Print a benchmark's table, and write rows, numbers among the options, and facts where --json says."""
    options = {key: value for key, value in vars(args).items() if isinstance(value, int | float)}
    facts = {"options": options, "torch": torch.__version__, **facts}
    print("\n" + "; ".join(f"{key}: {value}" for key, value in facts.items()) + "\n\n" + table(name, rows))
    if args.json:
        write_json(args.json, {"benchmark": name, "machine": machine("cpu"), **facts, "rows": rows})


def measured() -> list[str]:
    """The benchmarks whose results are published: all but those of NOT_YET that were never run."""
    return [name for name in TABLES if name not in NOT_YET or (RESULTS / f"{name}.json").exists()]


def published(name: str) -> dict:
    """What stands in the results folder."""
    return read_json(RESULTS / f"{name}.json")


def table(name: str, rows: list[dict]) -> str:
    """A benchmark's table in Markdown, without columns that were not measured at all."""
    columns = [column for column in TABLES[name] if any(cell(row, *column[1:]) for row in rows)]
    lines = [[heading for heading, *_ in columns], ["---"] * len(columns)]
    lines += [[cell(row, key, form) for _, key, form in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(row: dict, keys: str | tuple, form: str) -> str:
    """One value, or the second one in parentheses; a pair is a range; text stays as it is; nothing if not measured."""
    first, *second = [keys] if isinstance(keys, str) else keys
    value, more = row.get(first), [row[key] for key in second if key in row]
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(format(each, form) for each in value)
    text = value if isinstance(value, str) else format(value, form)
    return text + "".join(f" ({format(each, form)})" for each in more)
