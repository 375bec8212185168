"""README's table of systems says what the package computes, and names every system and every file of the room."""

import re
from pathlib import Path

from minicpmv_ref.peers import SYSTEMS, plan

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_systems():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## The systems it is compared with")[1].split("\n## ")[0]
    named = []
    for row in re.findall(r"^\| `.*", section, re.M):
        systems, files, _, tokens = (cell.strip() for cell in row.strip("|").split("|"))
        for system in re.findall(r"`([^`]+)`", systems):
            named.append(system)
            assert plan(system, (1344, 1344)).visual_tokens == int(tokens.replace(",", "")), system
        for file in re.findall(r"\(([^)]+\.py)\)", files):
            assert (ROOT / file).is_file(), file
    assert sorted(named) == sorted(SYSTEMS)
    helpers = {"__init__.py", "sizes.py", "shapes.py"}
    for file in (ROOT / "minicpmv_ref" / "peers").glob("*.py"):
        assert file.name in helpers or f"peers/{file.name})" in section, file.name
