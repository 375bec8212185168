"""Hygiene of every notebook in notebooks/. Strict nbval compares what cells print; this test closes its holes
(a cell that never ran passes nbval) and keeps lessons short. The planted notebooks prove that each rule can fail.
"""

import copy
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from places import ROOT

import notebooks as tool  # tools/notebooks.py
from minicpmv_ref.course.cells import STOPPED, missing_cell

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

MAX_BYTES = 500_000
MAX_CELLS = 48
MAX_CODE_LINES = 20  # in one cell; the setup cell is exempt
MAX_WORDS = 2_000  # of markdown; about 1,500 is the aim
MAX_IGNORED = 4  # cells whose output nbval does not compare
MAX_SLIDES = 12


def problems(path: Path) -> list[str]:
    """Everything that is wrong with one notebook, one sentence each."""
    text = path.read_text(encoding="utf-8")
    notebook = tool.load(path)
    found = []
    if text != tool.dumps(notebook):
        found.append("not normal: run `python tools/notebooks.py normalize`")
    if len(text.encode()) > MAX_BYTES:
        found.append(f"larger than {MAX_BYTES} bytes")
    if len(notebook.cells) > MAX_CELLS:
        found.append(f"more than {MAX_CELLS} cells")
    if "widgets" in notebook.metadata:
        found.append("metadata.widgets holds widget state")

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1, 2, 3, ...")
    if sum("nbval-ignore-output" in tags(cell) for cell in code) > MAX_IGNORED:
        found.append(f"more than {MAX_IGNORED} cells with nbval-ignore-output")
    if sum("slideshow" in cell.metadata for cell in notebook.cells) > MAX_SLIDES:
        found.append(f"slideshow tags on more than {MAX_SLIDES} cells")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            found += [f"cell {number}: {problem}" for problem in code_problems(cell, is_setup=cell is code[0])]

    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    if (words := sum(map(count_words, markdown))) > MAX_WORDS:
        found.append(f"{words} words of markdown, more than {MAX_WORDS}")
    found += [
        f"the link {target!r} leads nowhere"
        for source in markdown
        for target in local_links(source)
        if not (path.parent / target).exists()
    ]
    return found


def tags(cell) -> set[str]:
    """Tags of a cell, also those that nbval reads from comments."""
    comments = re.findall(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)", cell.source, re.MULTILINE)
    named = {comment.lower().replace("_", "-") for comment in comments}
    return {*cell.metadata.get("tags", []), *named}


def code_problems(cell, is_setup: bool):
    if len(cell.source.splitlines()) > MAX_CODE_LINES and not is_setup:
        yield f"more than {MAX_CODE_LINES} lines of code"
    if "nbval-skip" in tags(cell):
        yield "nbval-skip: nobody would notice when it breaks"
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            yield "writes to stderr"
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"ends in {output.ename}"
        if tool.WIDGET_VIEW in output.get("data", {}):
            yield "stores a widget view, which shows as an error without its kernel"
        for kind in output.get("data", {}):
            alt = output["metadata"].get(kind, {}).get("alt", "")
            if kind.startswith("image/") and len(alt.split()) < 6:
                yield f"shows a picture that {alt!r} does not describe: its alt text, or `alt` in the cell's metadata"
    if "draw.guess(" in cell.source:
        kinds = [sorted(output.get("data", {"a print": ""})) for output in cell.outputs]
        if kinds != [["text/html", "text/plain"]]:
            yield "shows the answer before the click: its guess must be None when the notebook is saved"


def count_words(source: str) -> int:
    prose = re.sub(r"```.*?```|<[^>]+>|\]\([^)]*\)", " ", source, flags=re.DOTALL)
    return len(re.findall(r"\w[\w'.,-]*", prose))


def local_links(source: str) -> list[str]:
    """Targets of links and pictures that are files here, without #anchor and ?query."""
    source = re.sub(r"```.*?```|`[^`]*`", " ", source, flags=re.DOTALL)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", source)
    targets += re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)["']""", source)
    targets += re.findall(r"^\[[^\]]+\]:\s*(\S+)", source, re.MULTILINE)
    files = [
        unquote(re.split(r"[#?]", target)[0]) for target in targets if not re.match(r"\w+://|mailto:|data:", target)
    ]
    return [file for file in files if file]


def setup_cell(path: Path) -> str:
    return next(cell.source for cell in tool.load(path).cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_hygiene(path):
    assert problems(path) == []


def test_one_setup_cell_for_all():
    assert len({setup_cell(path) for path in NOTEBOOKS}) <= 1, "the first code cell must be the same everywhere"


# ---- the rules can fail


def cell(kind, source, **fields):
    """A normal cell as a plain dict; its id comes with `plant`."""
    new = {"cell_type": kind, "metadata": {}, "source": source, **fields}
    return {"execution_count": None, "outputs": [], **new} if kind == "code" else new


def code(source, *outputs, tags=()):
    return cell("code", source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def display(alt="a bar of 2 beside a bar of 3", **data):
    metadata = {kind: {"alt": alt} for kind in data}
    return {"output_type": "display_data", "metadata": metadata, "data": {"text/plain": "x", **data}}


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["no"]}
GOOD = [cell("markdown", "# A lesson"), code("import math"), code("print(math.pi)", stream("3.14\n"))]


def plant(folder: Path, cells, change=None, normal=True) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[])
    notebook = {**notebook, "cells": [copy.deepcopy(each) for each in cells]}
    for count, each in enumerate((each for each in notebook["cells"] if each["cell_type"] == "code"), start=1):
        each["execution_count"] = count
    notebook = tool.normalize(notebook) if normal else notebook
    if change:
        change(notebook)
    path = folder / "planted.ipynb"
    path.write_text(nbformat.writes(nbformat.from_dict(notebook)) + "\n", encoding="utf-8")
    return path


def test_a_good_notebook_passes(tmp_path):
    (tmp_path / "a picture.png").touch()
    links = cell("markdown", "[a](planted.ipynb#x) ![b](a%20picture.png) [c](https://example.org/x) `[d](no)` [e](#x)")
    wanted = code("raise ValueError('no')", ERROR, tags=["raises-exception"])
    assert problems(plant(tmp_path, [*GOOD, links, wanted])) == []


@pytest.mark.parametrize(
    ("complaint", "added"),
    [
        ("larger than", [code("p", display(**{"image/png": "A" * 500_000}))]),
        ("more than 48 cells", [cell("markdown", "x")] * 46),
        ("nbval-ignore-output", [code("x", tags=["nbval-ignore-output"])] * 5),
        ("nbval-ignore-output", [code("# NBVAL_IGNORE_OUTPUT\nx")] * 5),
        ("slideshow", [cell("markdown", "x", metadata={"slideshow": {"slide_type": "slide"}})] * 13),
        ("lines of code", [code("x = 1\n" * 21)]),
        ("nbval-skip", [code("x", tags=["nbval-skip"])]),
        ("nbval-skip", [code("# NBVAL_SKIP\nx")]),
        ("writes to stderr", [code("x", stream("warning\n", "stderr"))]),
        ("ends in ValueError", [code("x", ERROR)]),
        ("does not describe", [code("x", display("Panel(side=3)", **{"image/png": "A"}))]),
        ("before the click", [code("draw.guess(1, 2)", display(**{"image/png": "A"}))]),
        ("before the click", [code("draw.guess(my, 2)", stream("2\n"), display(**{"text/html": "x"}))]),
        ("words of markdown", [cell("markdown", "word " * 2_001)]),
        ("the link 'no.png'", [cell("markdown", "![picture](no.png)")]),
        ("the link '../no.md'", [cell("markdown", "[text](../no.md#part)")]),
        ("the link 'no.svg'", [cell("markdown", '<img alt="x" src="no.svg">')]),
        ("the link 'no.txt'", [cell("markdown", "[text][1]\n\n[1]: no.txt")]),
    ],
)
def test_a_bad_notebook_fails(tmp_path, complaint, added):
    found = problems(plant(tmp_path, [*GOOD, *added]))
    assert len(found) == 1, found
    assert complaint in found[0]


def never_run(notebook):
    notebook["cells"][2].update(execution_count=None, outputs=[])


def run_twice(notebook):
    notebook["cells"][2]["execution_count"] = 7


def add_widget_state(notebook):
    notebook["metadata"] = {**notebook["metadata"], "widgets": {}}


def add_widget_view(notebook):
    notebook["cells"][2]["outputs"] = [display(**{tool.WIDGET_VIEW: {"model_id": "1"}})]


def rename_cell(notebook):
    notebook["cells"][2]["id"] = "a1b2c3"


@pytest.mark.parametrize(
    ("complaint", "change"),
    [
        ("execution counts", never_run),
        ("execution counts", run_twice),
        ("metadata.widgets", add_widget_state),
        ("widget view", add_widget_view),
        ("not normal", rename_cell),
    ],
)
def test_a_bad_file_fails(tmp_path, complaint, change):
    assert complaint in " ".join(problems(plant(tmp_path, GOOD, change)))


# ---- the normalizer


def test_normalize_drops_what_changes_by_itself():
    raw = nbformat.v4.new_notebook(metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.11.7"}})
    view = {tool.WIDGET_VIEW: {"model_id": "random"}}
    outputs = [stream("a\n"), stream("b\n"), stream("c\n", "stderr"), stream("d\n"), display(**view)]
    outputs.append({"output_type": "display_data", "metadata": {}, "data": view})
    metadata = {"execution": {"iopub.status.busy": "now"}, "tags": ["b", "a"], "collapsed": False}
    raw = {**raw, "cells": [cell("code", "print()  \n\n", outputs=outputs, metadata=metadata, id="random")]}
    normal = tool.normalize(raw)
    assert normal["metadata"] == tool.NOTEBOOK_METADATA
    assert normal["cells"] == [
        {
            "cell_type": "code",
            "id": "cell-01",
            "metadata": {"tags": ["a", "b"]},
            "source": "print()",
            "execution_count": None,
            "outputs": [stream("a\nb\n"), stream("c\n", "stderr"), stream("d\n"), display()],
        }
    ]
    assert tool.dumps(normal) == tool.dumps(raw)


def test_a_cell_describes_its_pictures(tmp_path):
    """One that comes with a description keeps it."""
    metadata = {"alt": "one patch has nearly all the weight"}
    outputs = [display("", **{"image/png": "A"}), display("two bars", **{"image/png": "A"})]
    del outputs[0]["metadata"]["image/png"]
    normal = tool.normalize({"cells": [cell("code", "x", outputs=outputs, metadata=metadata)]})["cells"][0]
    assert [each["metadata"]["image/png"]["alt"] for each in normal["outputs"]] == [metadata["alt"], "two bars"]
    assert normal["metadata"] == metadata


def test_run_executes_and_check_finds_nothing_more(tmp_path, capsys):
    path = tmp_path / "lesson.ipynb"
    source = (
        "import os\nfrom minicpmv_ref import best_grid\nprint(best_grid((1920, 1080)), os.path.basename(os.getcwd()))"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    assert tool.main(["check", str(path)]) == 1
    assert "not normal" in capsys.readouterr().err
    assert tool.main(["run", str(path)]) == 0
    assert tool.main(["check", str(path)]) == 0
    (only,) = tool.load(path).cells
    assert only.execution_count == 1
    assert only.outputs[0].text == f"(4, 2) {tmp_path.name}\n"
    before = path.stat().st_mtime_ns
    assert tool.main(["run", str(path)]) == 0
    assert path.stat().st_mtime_ns == before, "an unchanged notebook is not written again"


GUESS = "from minicpmv_ref.course import draw"


def test_what_a_cell_with_a_guess_prints_is_folded_with_the_truth(tmp_path):
    path = tmp_path / "lesson.ipynb"
    sources = (
        *(GUESS, "print('is <7>')\ndraw.guess(None, 7, 'how many?')", "print('is 7')\ndraw.guess(3, 7)"),
        *("print('is 7')\ndraw.guess(None, 7)\n1 / 0", "print('is 7')\nit = draw.guess(None, 7)", "print('end')"),
    )
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[3].metadata["tags"] = ["raises-exception"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    _, unanswered, answered, failed, unseen, after = (cell.outputs for cell in tool.execute(path)["cells"])
    assert [sorted(output.data) for output in unanswered] == [["text/html", "text/plain"]]
    shown, fold = unanswered[0].data["text/html"].split("<details>")
    assert "7" not in shown
    assert "is &lt;7&gt;\n" in fold
    assert [output.get("text", "") for output in answered] == ["is 7\n", ""]
    assert answered[1].data["text/plain"] == "truth 7, your guess 3"
    assert [output.output_type for output in failed] == ["error", "stream"], "nothing that was printed is lost"
    assert [output.text for output in unseen] == ["is 7\n"]
    assert [output.text for output in after] == ["end\n"]


def test_a_cell_that_is_stopped_says_what_to_do(tmp_path):
    path = tmp_path / "lesson.ipynb"
    sources = (GUESS, "def train():\n    raise KeyboardInterrupt\n\n\ntrain()", "print(size)", "print('goes on')")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for failing in cells[1:3]:
        failing.metadata["tags"] = ["raises-exception"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    _, stopped, missing, after = (cell.outputs for cell in tool.execute(path)["cells"])
    assert [output.text for output in stopped] == [STOPPED + "\n"], "one sentence, no traceback"
    assert [(output.output_type, output.get("ename")) for output in missing] == [("error", "NameError")]
    assert [output.text for output in after] == ["goes on\n"]


def test_a_missing_name_is_found_in_its_cell(tmp_path):
    path = tmp_path / "lesson.ipynb"
    sources = ("%matplotlib inline", "import math as m\nfrom a.b import c", "sizes, top = [], 3", "def cut(x): pass")
    nbformat.write(nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)]), path)
    for name, source in {
        "m": sources[1],
        "c": sources[1],
        "sizes": sources[2],
        "top": sources[2],
        "cut": sources[3],
    }.items():
        assert f"`{name}` comes from a cell above" in missing_cell(name, path)
        assert f"    {source.splitlines()[0]}\n" in missing_cell(name, path)
    for name, lesson in (("x", path), ("math", path), ("sizes", tmp_path), ("sizes", tmp_path / "no.ipynb")):
        assert missing_cell(name, lesson) == ""


def test_run_leaves_a_failing_notebook_alone(tmp_path, capsys):
    path = tmp_path / "lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    assert tool.main(["run", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["no JSON", "{}", '{"nbformat": 4, "nbformat_minor": 5}'])
def test_an_unreadable_notebook_is_one_clear_error(tmp_path, text):
    path = tmp_path / "lesson.ipynb"
    path.write_text(text)
    with pytest.raises(SystemExit, match="not a readable notebook"):
        tool.main(["check", str(path)])
