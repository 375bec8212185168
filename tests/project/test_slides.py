"""Slides: what is shown of a lesson, and that every page fits a screen, in a real browser without a network."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell
from places import ROOT

from minicpmv_ref.__main__ import main
from minicpmv_ref.commands import common, slides

TAGGED = ("01_slicing", "04_language_model")
STAND_INS = {  # for the two libraries: they start at once, typeset nothing and show all pages
    "dist/reveal.js": "window.Reveal = { initialize: async () => {} }; window.RevealNotes = {};",
    "tex-svg.js": "MathJax.startup.defaultPageReady = async () => {}; onload = () => MathJax.startup.pageReady();",
}
PAGES = """() => [...document.querySelectorAll('.page')].map(page => {
    const frame = page.getBoundingClientRect(), blocks = [...page.children].map(each => each.getBoundingClientRect());
    return {
        text: page.innerText, pictures: page.querySelectorAll('img').length,
        bottom: Math.max(...blocks.map(each => each.bottom)) - frame.top,
        right: Math.max(...blocks.map(each => each.right)) - frame.left,
        zoom: Math.min(1, ...[...page.children].map(each => +each.style.zoom || 1)),
    };
})"""


@pytest.fixture(scope="module")
def real():
    """Whether the extra `site` is installed."""
    try:
        slides.libraries()
    except common.CommandError:
        return False
    return True


@pytest.fixture
def libraries(real, tmp_path, monkeypatch):
    if real:
        return
    monkeypatch.setattr(slides, "libraries", lambda: (tmp_path / "reveal", tmp_path / "tex-svg.js"))
    names = ["dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js", "dist/theme/fonts/source-sans-pro/x"]
    for name in names + list(STAND_INS):
        file = tmp_path / ("reveal" if "/" in name else "") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(STAND_INS.get(name, ""))


@pytest.mark.browser
def test_every_page_fits_the_screen(real, libraries, tmp_path):
    from playwright.sync_api import sync_playwright

    from browser import FLAGS, chromium_path

    if chromium_path() is None:
        pytest.skip("no chromium: run .ci/setup, or `playwright install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        view, outside, errors = browser.new_page(viewport={"width": 1280, "height": 720}), [], []
        view.on("request", lambda request: outside.append(request.url) if urlsplit(request.url).hostname else None)
        view.on("pageerror", lambda error: errors.append(str(error)))
        for name in TAGGED:
            assert main(["slides", name[:2], "--out", str(tmp_path / "out"), "--no-browser"]) == 0
            view.goto((tmp_path / "out" / name / "index.html").as_uri())
            view.wait_for_function("document.body.dataset.deck === 'ready'", timeout=60_000)
            pages = view.evaluate(PAGES)
            assert 25 < len(pages) < 70 and not outside and not errors
            assert all(page["bottom"] <= 720 and page["right"] <= 1280 for page in pages), name
            assert min(page["zoom"] for page in pages) > 0.5
            assert sum(page["pictures"] for page in pages) >= 3
            # The answer of a question stands after it, on a page of its own.
            asked = next(place for place, page in enumerate(pages) if "none yet" in page["text"])
            assert "Answer" not in pages[asked]["text"] and pages[asked + 1]["text"].startswith("Answer")
        if real:
            whole_screen(view)
        browser.close()


def whole_screen(view):
    """With the real libraries: formulas are rendered, and every slide fits two sizes of screen."""
    assert view.evaluate("document.querySelectorAll('[data-mjx-error]').length") == 0
    for width, height in ((1280, 720), (1920, 1080)):
        view.set_viewport_size({"width": width, "height": height})
        found = view.evaluate("""() => Reveal.getSlides().map(slide => {
            const { h, v } = Reveal.getIndices(slide);
            Reveal.slide(h, v);
            const blocks = [...slide.querySelectorAll('.page > *')].map(each => each.getBoundingClientRect());
            return [Math.max(...blocks.map(b => b.right)), Math.max(...blocks.map(b => b.bottom))];
        })""")
        assert all(right <= width and bottom <= height for right, bottom in found)


def test_what_the_audience_sees():
    stub = "def f():\n    raise NotImplementedError\n\n\ncheck.f(f)"
    cells = [
        new_markdown_cell(
            "Task <details><summary>Hint</summary>h</details><details><summary>Solution</summary>s</details>"
        ),
        new_code_cell(stub),
        new_code_cell("my_tokens = None  # your guess"),
        new_code_cell('my_share = {"a": None, "b": None}  # percent'),
        new_markdown_cell("Panel. <details><summary>Answer</summary>42</details>"),
        new_code_cell("panels.Playground()"),
        new_code_cell("my_sum = None\n\nprint(1)"),
    ]
    shown = slides.for_slides(cells)
    assert [cell.source.strip() for cell in shown] == [
        "Task",
        "Panel.",
        "",
        "<details><summary>Answer</summary>42</details>",
        "print(1)",
    ]


def test_no_answer_of_an_exercise_is_on_a_slide():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shown = slides.for_slides(nbformat.read(path, 4).cells)
        text = "\n".join(cell.source for cell in shown)
        assert "<summary>Solution" not in text and "NotImplementedError" not in text
        assert not re.search(r"^my_\w+ = .*None", text, re.MULTILINE), path.name
        assert sum("slideshow" in cell.metadata for cell in shown) >= 9


def test_an_unknown_lesson_and_a_missing_extra(tmp_path, capsys, monkeypatch):
    assert main(["slides", "77"]) == 1
    assert "there is no lesson '77'" in capsys.readouterr().err
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    assert main(["slides", "01", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "Install the extra `site` once" in said and said.endswith(f" -m pip install '{ROOT}[site]'\n")


def test_another_version_of_a_library_is_refused(tmp_path, monkeypatch):
    class File:
        def __init__(self, name):
            self.name = name

        def as_posix(self):
            return self.name

        def locate(self):
            path = tmp_path / Path(self.name).name
            path.write_text("// something else")
            return path

    monkeypatch.setattr("importlib.metadata.files", lambda name: [File("revealjs/dist/reveal.js"), File("tex-svg.js")])
    with pytest.raises(common.CommandError, match=r"reveal\.js is another version"):
        slides.libraries()
