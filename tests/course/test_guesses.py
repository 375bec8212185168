"""A question that a lesson asks is not answered before: the number of the answer stands nowhere above the click.

Looked at are all cells up to the one with the guess: texts, sources and saved outputs, without what is folded in
<details>. A number of one digit is on every page, so there only the cells from the question on count. Nor may what
stands open right below the fold give the answer: the output of the next cell, if there is no text between.
"""

import ast
import html
import re
from base64 import b64decode
from itertools import pairwise

import nbformat
import numpy as np
import pytest
from places import ROOT

import notebooks as tool  # tools/notebooks.py
from minicpmv_ref.course import draw

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.,])[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)")
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
TRUTH = re.compile(r"[█░]+  (\S+)$", re.MULTILINE)

ALLOWED = {  # (lesson, answer): why it may stand above
    ("01", 6): "one of the three numbers that the question offers",
    ("01", 3): "one of the two numbers that the question offers",
    ("02", 13): "a count of grids, and the place of a border in a list",
    ("02", 6): "the end of the range that the question offers",
    ("02", 2): "an exponent",
    ("03", 1): "the end of the range that the question offers",
    ("03", 23): "the end of the range that the question offers",
    ("04", 38): "a position in another prompt",
    ("07c", 0): "an index",
    ("11", 1): "an index",
    ("11", 16): "the end of the range that the question offers",
    ("12", 40): "the end of the range that the question offers",
    ("12", 12): "the number of the lesson",
    ("12", 16): "what is right before anything is hidden; the question says it",
    ("13", 0): "an index",
}


def numbers(text: str) -> set[float]:
    return {abs(float(number.replace("−", "-").replace(",", ""))) for number in NUMBER.findall(text)}


def computed(source: str) -> set[float]:
    """Values of the arithmetic in a source that has no names in it: `70 * 4 // 5` says 56."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        parts = list(ast.walk(node))
        constants = all(isinstance(part.value, (int, float)) for part in parts if isinstance(part, ast.Constant))
        arithmetic = all(isinstance(part, ARITHMETIC) for part in parts)
        if isinstance(node, ast.BinOp) and arithmetic and constants:
            found.add(abs(float(eval(ast.unparse(node)))))
    return found


BELOW = {  # lesson: why a picture may stand right below a fold
    "07b": "words of answers; the question is about losses",
    "13": "errors of other runs; the question is about operations",
}


def visible(cell, source=True) -> str:
    """What a reader of the saved page sees of a cell before any click."""
    texts = [cell.source] if source else []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts += [
            output.get("text", ""),
            html.unescape(FOLD.sub(" ", data.get("text/html", ""))),
            data.get("text/plain", ""),
        ]
    return FOLD.sub(" ", "\n".join(texts))


def answers(cell) -> list[float]:
    folds = [fold for output in cell.outputs for fold in FOLD.findall(output.get("data", {}).get("text/html", ""))]
    return [float(value) for fold in folds for value in TRUTH.findall(fold)]


def spoiled(cells) -> list[tuple[int, float, list[int]]]:
    """(cell with the guess, answer, cells that show it) of each answer that stands above its click."""
    found, asked = [], 0
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and "**Predict" in cell.source:
            asked = place
        if cell.cell_type != "code" or "draw.guess(" not in cell.source:
            continue
        for answer in answers(cell):
            short = answer == int(answer) and abs(answer) < 10
            where = [
                number
                for number in range(asked if short else 0, place + 1)
                if abs(answer) in numbers(visible(cells[number]))
                or (cells[number].cell_type == "code" and abs(answer) in computed(cells[number].source))
            ]
            if where:
                found.append((place, answer, where))
    return found


def given_below(cells) -> list[tuple[int, str]]:
    """(cell with a guess, why) where the next cell's output, right below, shows a picture or the number itself."""
    found = []
    for place, (cell, after) in enumerate(pairwise(cells)):
        if cell.cell_type == after.cell_type == "code" and "draw.guess(" in cell.source:
            if any(kind.startswith("image/") for output in after.outputs for kind in output.get("data", {})):
                found.append((place, "a picture"))
            elif same := {*map(abs, answers(cell))} & numbers(visible(after, source=False)):
                found.append((place, f"{min(same):g}"))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_answer_stands_right_below_its_fold(path):
    found = given_below(tool.load(path).cells)
    assert [why for _, why in found] == ["a picture"] * (path.stem.split("_")[0] in BELOW), found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_answer_stands_above_its_question(path):
    lesson = path.stem.split("_")[0]
    found = spoiled(tool.load(path).cells)
    new = [(place, answer, where) for place, answer, where in found if (lesson, answer) not in ALLOWED]
    assert not new, "; ".join(
        f"cell {place}: the answer {answer:g} stands in cells {where}" for place, answer, where in new
    )
    stale = {key for key in ALLOWED if key[0] == lesson} - {(lesson, answer) for _, answer, _ in found}
    assert not stale, f"no longer needed in ALLOWED: {stale}"


# ---- the rule can fail


def lesson(question="**Predict.** How many?", before="print()", printed="", source="draw.guess(my, n)"):
    fold = "<details><summary>Show</summary><pre>all 56\n\nthe truth  ██░  56\n</pre></details>"
    shown = nbformat.v4.new_output("execute_result", {"text/plain": "no guess yet", "text/html": f"<b>x</b>{fold}"})
    first = nbformat.v4.new_code_cell(before, outputs=[nbformat.v4.new_output("stream", text=printed)])
    guess = nbformat.v4.new_code_cell(source, outputs=[shown])
    return [first, nbformat.v4.new_markdown_cell(question), guess]


@pytest.mark.parametrize(
    ("spoiler", "where"),
    [
        ({}, None),
        ({"printed": "56 tokens"}, 0),
        ({"printed": "(56.0,"}, 0),
        ({"printed": "156, 5.6, x56, 560, 0.56"}, None),
        ({"question": "**Predict.** Not 56?"}, 1),
        ({"question": "<details>it is 56</details>"}, None),
        ({"before": "n = 56"}, 0),
        ({"before": "n = 70 * 4 // 5"}, 0),
        ({"before": "n = 70 * i // 5"}, None),
        ({"source": "draw.guess(my, 56)"}, 2),
    ],
)
def test_a_spoiler_is_found(spoiler, where):
    assert spoiled(lesson(**spoiler)) == ([(2, 56.0, [where])] if where is not None else [])


PICTURE = nbformat.v4.new_output("display_data", {"image/png": "A"})
PRINT = nbformat.v4.new_output("stream", text="all 56")


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ([nbformat.v4.new_code_cell("x", outputs=[PICTURE])], "a picture"),
        ([nbformat.v4.new_code_cell("x", outputs=[PRINT])], "56"),
        ([nbformat.v4.new_code_cell("56", outputs=[nbformat.v4.new_output("stream", text="560")])], None),
        ([nbformat.v4.new_markdown_cell("Why?"), nbformat.v4.new_code_cell("x", outputs=[PICTURE])], None),
    ],
)
def test_what_gives_the_answer_below_is_found(after, why):
    assert given_below([*lesson(), *after]) == ([(2, why)] if why else [])


# ---- a fold with a picture


def test_a_picture_is_folded_with_the_answer():
    picture = draw.shares([1, 2], {"<a>": ("#0072B2", [1, 0.5])})
    bundle = draw.guess(None, 50, "how many?", picture)._repr_mimebundle_()
    assert bundle["text/plain"] == "how many?: no guess yet"
    (fold,) = FOLD.findall(bundle["text/html"])
    assert "img" not in FOLD.sub("", bundle["text/html"])
    alt, kind, data = re.search(r'<img width="640" alt="(.*?)" src="data:(.*?);base64,(.*?)"></details>', fold).groups()
    assert (html.unescape(alt), kind) == ("<a>: 1.00, 0.50", "image/svg+xml")
    assert b64decode(data).decode() == picture.svg()


@pytest.mark.parametrize("yours", [30, [30, 40]])
def test_with_a_guess_the_picture_stands_below_the_bars(yours):
    picture = draw.shares([1, 2], {"a": ("#0072B2", [1, 0.5])})
    bars, both = draw.guess(yours, 50), draw.guess(yours, 50, picture=picture)
    assert repr(both) == f"{bars!r}; a: 1.00, 0.50"
    pixels = np.vstack([np.asarray(bars.to_pil()), np.asarray(picture.to_pil())])
    assert np.array_equal(np.asarray(both.to_pil()), pixels)
