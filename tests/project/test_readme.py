"""What the README says is true: its numbers, its code, its commands, its links."""

import re

import nbformat
import pytest
import torch
from places import ROOT

from minicpmv_ref import MiniCPMV, nano, plan_slices, v2_0, v2_5, v2_6
from minicpmv_ref.__main__ import COMMANDS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_memory_table():
    rows = {}
    for name, config in (
        ("MiniCPM-V 2.0", v2_0),
        ("MiniCPM-Llama3-V 2.5", v2_5),
        ("MiniCPM-V 2.6", v2_6),
        ("nano, of the course", nano),
    ):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in MiniCPMV(config).parameters())
        llm = config.llm
        tokens = plan_slices((1344, 1344), config.slicing).visual_tokens(config.resampler.num_queries)
        cache = tokens * 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_width * 2
        rows[name] = [f"{parameters:,}", f"{2 * parameters / 1e9:.2f} GB", str(tokens), f"{cache / 1e6:.1f} MB"]
    table = README.split("<!-- memory -->")[1].split("<!-- /memory -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert {name: numbers for name, *numbers in cells} == rows


def test_python_blocks_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_commands_exist():
    named = set(re.findall(r"python3 lab\.py ([a-z]+)", README))
    assert named and named <= {name for name, *_ in COMMANDS}


def test_every_lesson_is_listed():
    lessons = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert set(re.findall(r"\]\(notebooks/([\w.]+\.ipynb)\)", README)) == set(lessons)
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \w+ \[.*\]\(notebooks/([\w.]+\.ipynb)\)", chinese, re.MULTILINE) == lessons
    online = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    assert re.findall(r"colab\.research\.google\.com/\S+/notebooks/([\w.]+\.ipynb)\)", online) == lessons
    assert re.findall(r"mybinder\.org/\S+/notebooks/([\w.]+\.ipynb)\)", online) == lessons


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "README.zh.md",
        "CONTRIBUTING.md",
        "docs/glossary.md",
        "docs/server.md",
        "notebooks/INSTRUCTOR.md",
        "benchmarks/README.md",
        "tools/README.md",
        "data_samples/README.md",
    ],
)
def test_links_resolve(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_slicing_rule_is_found_at_once():
    """A visitor looks for "slicing" in the README and in the folder of the package."""
    assert "[`slicing.py`](minicpmv_ref/slicing.py) | **the slicing rule**" in README
    head = (ROOT / "minicpmv_ref" / "slicing.py").read_text(encoding="utf-8").split('"""')[1]
    assert "The rule in short" in head


def test_the_page_for_teachers_names_every_exercise_and_the_minutes():
    page = (ROOT / "notebooks" / "INSTRUCTOR.md").read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        row = next(line for line in page.splitlines() if f"]({path.name})" in line)
        minutes = re.search(r"\*\*Time:\*\* (\d+)", cells[0].source)[1]
        assert f"| {minutes} |" in row, path.name
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        assert re.findall(r"`(\w+)`", row) == re.findall(r"^check\.(\w+)\(", code, re.MULTILINE), path.name
        # What the page calls the truth of a prediction is what the lesson computes and folds away.
        folded = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
        truths = {float(number) for html in folded for number in re.findall(r"█[█░]*  ([\d.]+)$", html, re.MULTILINE)}
        told = re.findall(rf"^\| {path.name.partition('_')[0]} \| [^|]* \| ([\d., ]+) \|", page, re.MULTILINE)
        assert {float(number) for cell in told for number in cell.split(", ")} <= truths, path.name
