"""Write the figures of benchmarks/results into benchmarks/README.md and README.md, between their markers.

    python tools/figures.py

`<!-- vision -->` to `<!-- /vision -->` holds a table; `<!-- speed -->` the paragraph of README.md. Nothing is measured.
docs/scaling.md has a command of its own, scaling.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from _report import measured, published, table  # noqa: E402

from experiments._frame import write  # noqa: E402

PAGE, README = ROOT / "benchmarks/README.md", ROOT / "README.md"


def between_markers(text: str, name: str, content: str) -> str:
    """A page whose part between the two markers of a name is replaced. Both markers must be there once."""
    before, rest = text.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}"


def page(text: str) -> str:
    """benchmarks/README.md with the tables of the JSON files."""
    for name in measured():
        text = between_markers(text, name, table(name, published(name)["rows"]))
    return text


def readme(text: str) -> str:
    """README.md with the ratios of the JSON files."""
    return between_markers(text, "speed", fill(speed(), 120))


def ratios(name: str, *keys: str, **wanted: str) -> str:
    """'1.5 to 1.7': the lowest and the highest value of these columns, in rows that hold what is wanted."""
    rows = [row for row in published(name)["rows"] if wanted.items() <= row.items()]
    values = [row[key] for row in rows for key in keys]
    values = [number for value in values for number in (value if isinstance(value, list) else [value])]
    return " to ".join(f"{end + 1e-9:.1f}" for end in (min(values), max(values)))  # 1.15 is shown as 1.2


def speed() -> str:
    vision = {dtype: ratios("vision", "best peer / ours", dtype=dtype) for dtype in ("float32", "bfloat16")}
    decoding = {size: ratios("decode", "64", "128", "512", LLM=size) for size in ("nano", "768 x 12")}
    q4_k = ratios("kquant", "ours / C", "ours / C, importance", kind="Q4_K")
    others = [row["wall"] for row in published("train")["rows"] if not row["training"].startswith("ours")]
    return (
        f"In short, on one CPU: slicing and normalizing {ratios('preprocess', 'ours / transformers')} times as fast as "
        f"transformers ({ratios('preprocess', 'ours / torchvision')} with torchvision), the ViT {vision['float32']} in "
        f"float32 and {vision['bfloat16']} in bfloat16, the resampler {ratios('resampler', 'official / fold')} (the "
        f"official one), packing {ratios('packing', 'ours / best peer')}, a whole training {min(others):.2f} (the best "
        f"loop around transformers), DPO {ratios('dpo', 'wall')} (TRL), decoding {decoding['nano']} at nano size and "
        f"{decoding['768 x 12']} at 0.1 billion parameters, Q4_K {q4_k} (ggml's C, one thread)."
    )


def main() -> None:
    for path, filled in ((PAGE, page), (README, readme)):
        write(path, filled(path.read_text(encoding="utf-8")))
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
