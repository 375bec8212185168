"""Who may import whom. The rule is read from the source of every file, and planted violations prove that it bites.

A file directly in minicpmv_ref imports only files before it in CORE, and inputs, which reads what comes from outside.
The rooms import the core, themselves and what ROOMS says: learn may use the toy world; scale, the engine, uses both and
is used by neither. course may import all; only notebooks and tests import it. ipywidgets lives in course.
commands may import all; only __main__ and tests import it.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = "minicpmv_ref"
CORE = "config counts slicing positions linear vision resampler prompt processor decoding llm model __main__".split()
# room -> other rooms that it may import; and course, which may import all. inputs is what the core itself stands on.
INPUTS = {"config"}  # all that inputs may import
ROOMS = {"inputs": set(), "toy": set(), "learn": {"toy"}, "scale": {"toy", "learn"}, "deploy": set(), "peers": set()}
ROOMS["ports"] = {"toy"}
EVERYTHING = {*CORE, *ROOMS, "course", "commands"}


def violations(root: Path) -> list[str]:
    """Every import that breaks the rule, one sentence each. `root` holds the package and, maybe, other folders."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        where = path.relative_to(root).as_posix()
        imports = imported(path.read_text(encoding="utf-8"), package_of(parts))
        if len(parts) == 1 and parts[0] == "__init__":
            # Lazy: nothing but the standard library may load with the package itself.
            foreign = [name for name in imports if name.split(".")[0] not in sys.stdlib_module_names]
            found += [f"{where} imports {name}" for name in foreign]
            continue
        if parts[0] not in EVERYTHING:
            found.append(f"{where} is in no room: add it to CORE or ROOMS here, and to the design")
            continue
        allowed = allowed_for(parts[0])
        for name in imports:
            if name == PACKAGE and parts[0] != "course":
                found.append(f"{where} imports a name from the package itself: name the file instead")
            elif name.startswith(PACKAGE + ".") and name.split(".")[1] not in allowed:
                found.append(f"{where} imports {name}")
            elif name.split(".")[0] == "ipywidgets" and parts[0] != "course":
                found.append(f"{where} imports ipywidgets")

    others = [path for folder in ("tools", "benchmarks", "experiments") for path in (root / folder).rglob("*.py")]
    for path in [*others, *root.glob("*.py"), *(root / "notebooks").glob("*.ipynb")]:
        lesson = path.suffix == ".ipynb"
        source = notebook_code(path) if lesson else path.read_text(encoding="utf-8")
        for name in imported(source, ""):
            elsewhere = f"{PACKAGE}.commands" if lesson else (f"{PACKAGE}.commands", f"{PACKAGE}.course")
            if name.split(".")[0] == "ipywidgets" or name.startswith(elsewhere):
                found.append(f"{path.relative_to(root).as_posix()} imports {name}")
    return found


def allowed_for(room: str) -> set[str]:
    if room in ("commands", "__main__"):
        return EVERYTHING
    if room == "course":
        return EVERYTHING - {"commands"}
    if room == "inputs":
        return {"inputs", *INPUTS}
    if room in ROOMS:
        return {*CORE, "inputs", room, *ROOMS[room]} - {"__main__"}
    return {"inputs", *CORE[: CORE.index(room)]}


def package_of(parts) -> str:
    """The package that a file's relative imports start from: ("learn", "train") -> minicpmv_ref.learn"""
    return ".".join([PACKAGE, *parts[:-1]])


def imported(source: str, package: str) -> list[str]:
    """Full names of all modules that a source imports, inside functions too, but not under TYPE_CHECKING."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*stem, *filter(None, [base])])
            # `from minicpmv_ref import slicing` imports a file; `from minicpmv_ref import best_grid` does not.
            if base == PACKAGE:
                names += [f"{base}.{each.name}" if each.name in EVERYTHING else base for each in node.names]
            else:
                names.append(base)
    return names


def notebook_code(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_the_rooms_are_kept():
    assert violations(ROOT) == []


def write(root: Path, files: dict[str, str]):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


NOTEBOOK = '{"cells": [{"cell_type": "code", "source": ["%matplotlib inline\\n", "SOURCE"]}]}'
GOOD = {
    "minicpmv_ref/__init__.py": "from importlib import import_module\ndef f():\n    import math\n",
    "minicpmv_ref/config.py": "import math\n",
    "minicpmv_ref/slicing.py": "from PIL import Image\nfrom .config import SliceConfig\n",
    "minicpmv_ref/vision.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .model import MiniCPMV\n",
    "minicpmv_ref/model.py": "from minicpmv_ref import slicing\nfrom minicpmv_ref.vision import X\n",
    "minicpmv_ref/__main__.py": "from .commands.common import need\n",
    "minicpmv_ref/commands/ask.py": "def run():\n    from ..course import check\n    from ..learn.train import main\n",
    "minicpmv_ref/learn/train.py": "from ..model import MiniCPMV\nfrom ..toy.data import draw\nfrom . import stages\n",
    "minicpmv_ref/scale/run.py": "from ..learn.train import train\nfrom ..toy import data\n",
    "minicpmv_ref/course/panel.py": "import ipywidgets\nfrom ..learn import train\nfrom .. import best_grid\n",
    "notebooks/00.ipynb": NOTEBOOK.replace("SOURCE", "from minicpmv_ref.course import panels"),
    "tools/tool.py": "from minicpmv_ref import model\n",
}


def test_a_good_tree_passes(tmp_path):
    write(tmp_path, GOOD)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("minicpmv_ref/__init__.py", "import torch"),
        ("minicpmv_ref/__init__.py", "from .slicing import best_grid"),
        ("minicpmv_ref/slicing.py", "from .positions import sincos_2d"),
        ("minicpmv_ref/slicing.py", "from . import model"),
        ("minicpmv_ref/slicing.py", "def late():\n    import minicpmv_ref.model"),
        ("minicpmv_ref/vision.py", "from minicpmv_ref import plan_slices"),
        ("minicpmv_ref/vision.py", "from .learn import packing"),
        ("minicpmv_ref/model.py", "from .course.draw import draw"),
        ("minicpmv_ref/model.py", "import ipywidgets as widgets"),
        ("minicpmv_ref/inputs/pictures.py", "from ..slicing import slice_image"),
        ("minicpmv_ref/learn/train.py", "from ..deploy.memory import estimate"),
        ("minicpmv_ref/learn/train.py", "from ..course import draw"),
        ("minicpmv_ref/learn/train.py", "def late():\n    from ..scale.run import run"),
        ("minicpmv_ref/toy/data.py", "from ..learn import train"),
        ("minicpmv_ref/deploy/gguf.py", "from ..scale.lora import merge_lora"),
        ("minicpmv_ref/learn/train.py", "from ..__main__ import main"),
        ("minicpmv_ref/scale/run.py", "from ..commands.common import say"),
        ("minicpmv_ref/course/panel.py", "from ..commands import ask"),
        ("minicpmv_ref/model.py", "from .commands.ask import run"),
        ("minicpmv_ref/deploy/memory.py", "from minicpmv_ref.learn import train"),
        ("minicpmv_ref/peers/vila.py", "from ipywidgets import HTML"),
        ("minicpmv_ref/surprise.py", ""),
        ("minicpmv_ref/attic/old.py", ""),
        ("tools/tool.py", "from minicpmv_ref.course import draw"),
        ("experiments/claim.py", "from minicpmv_ref.commands.dpo import run"),
        ("benchmarks/speed.py", "import ipywidgets"),
        ("notebooks/01.ipynb", NOTEBOOK.replace("SOURCE", "import ipywidgets")),
        ("notebooks/01.ipynb", NOTEBOOK.replace("SOURCE", "from minicpmv_ref.commands import ask")),
    ],
)
def test_a_violation_is_found(tmp_path, file, source):
    write(tmp_path, {**GOOD, file: source})
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(file)


# Words of the engine, which a reader of the paper's algorithms need not meet.
ENGINE = re.compile(r"(?i)\b(torchrun|distributed|world_size|resum\w+|workers?|\w*_saves?|peft\w*|webdataset|tqdm)\b")


@pytest.mark.parametrize("path", sorted((ROOT / PACKAGE / "learn").glob("*.py")), ids=lambda path: path.stem)
def test_the_algorithms_do_not_know_the_engine(path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    assert [f"{path.name}:{number}: {line.strip()}" for number, line in lines if ENGINE.search(line)] == []


@pytest.mark.parametrize("name", ["plan_slices", "best_grid", "slice_image", "SliceConfig", "peers.plan"])
def test_slicing_needs_no_torch(name):
    home, _, name = f"{PACKAGE}.{name}".rpartition(".")
    code = f"from {home} import {name}\nimport sys\nprint({{'torch', 'transformers'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
