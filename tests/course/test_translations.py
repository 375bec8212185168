"""Translated lessons fit the English ones of today, and the planted mistakes prove that each rule can fail."""

import re

import nbformat
import pytest
import translations as tool  # tools/translations.py
from places import ROOT

MOST_WAITING = 3  # cells of a lesson that may stay English for a while


@pytest.mark.parametrize(("lesson", "path"), tool.translated(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_translations_fit(lesson, path):
    found = tool.problems(lesson, path)
    waiting = [each for each in found if each.endswith(tool.WAITS)]
    advice = "Run `python tools/translations.py renew`; its first lines say what to do then."
    assert found == waiting, advice
    assert len(waiting) <= MOST_WAITING, advice


ENGLISH = """## 2. A title

It has 8.1 billion of them, see [there](../x.md) and `fold`, **boldly**: $a \\text{ of } b$.

<details><summary>Hint</summary>

- 448 x 448

</details>"""
CHINESE = """## 2. 标题

它有 81 亿个，见[那里](../x.md)和 `fold`，**粗体**：$a \\text{ 的 } b$。

<details><summary>提示</summary>

- 448 x 448

</details>"""


@pytest.fixture
def planted(tmp_path):
    """A lesson of two cells, and a good file of its texts."""
    lesson = tmp_path / "01_lesson.ipynb"
    cells = [nbformat.v4.new_markdown_cell(source) for source in (ENGLISH, "The end.")]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1")]), lesson)
    path = tool.texts(lesson, "zh")
    tool.renew(lesson, path)
    path.write_text(path.read_text().replace(ENGLISH, CHINESE).replace("The end.", "完。"))
    assert tool.problems(lesson, path) == []
    return lesson, path


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("81 亿", "80 亿", "lacks the number '8.1e+09'"),
        ("448 x 448", "448 x 449", "adds the number '449'"),
        ("../x.md", "../y.md", "lacks the link '../x.md'"),
        ("`fold`", "`unfold`", "lacks the code '`fold`'"),
        ("$a", "$c", "lacks the formula"),
        ("## 2", "### 2", "lacks the layout '##'"),
        ("- 448", "448", "lacks the layout '-'"),
        ("</details>", "", "lacks the layout '</details>'"),
        ("，**粗体**：", "**，粗体。**它", "shows stars"),
        ("完。", "The end.", tool.WAITS),
    ],
)
def test_what_differs_is_found(planted, old, new, complaint):
    lesson, path = planted
    path.write_text(path.read_text().replace(old, new))
    assert complaint in " ".join(tool.problems(lesson, path))


def test_a_cell_that_changes_is_found_and_renewed(planted):
    lesson, path = planted
    notebook = nbformat.read(lesson, 4)
    notebook.cells[0].source = ENGLISH.replace("448 x", "560 x")
    nbformat.write(notebook, lesson)
    missing, gone = tool.problems(lesson, path)
    assert "has no text" in missing and "(## 2. A title) " in missing
    assert "belongs to no cell" in gone and "(## 2. 标题" in gone
    tool.renew(lesson, path)
    texts = list(tool.read_texts(path).values())
    assert texts == [notebook.cells[0].source, CHINESE, "完。"], "the old text stands below the new English one"
    before = path.read_text()
    tool.renew(lesson, path)
    assert path.read_text() == before
    path.write_text(before.replace(texts[0], CHINESE.replace("448 x", "560 x"), 1))
    (gone,) = tool.problems(lesson, path)
    assert "belongs to no cell" in gone


def test_the_chinese_first_page_says_what_the_english_one_says():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    theirs, ours = tool.contents(english), tool.contents(chinese)
    assert set(ours["number"]) <= set(theirs["number"])
    assert set(ours["link"]) <= {*theirs["link"], "README.md"}
    assert {each for each in ours["code"] if each.startswith("```python")} <= set(theirs["code"])
    assert tool.stars(chinese) == []
    rows = dict(re.findall(r"^\| (\d\d\w?) \[.* (中文|英文) \|$", chinese, re.MULTILINE))
    assert rows.keys() == tool.LESSONS.keys()
    marked = {number for number, language in rows.items() if language == "中文"}
    assert marked == {path.stem for path in (ROOT / "notebooks" / "zh").iterdir()}
