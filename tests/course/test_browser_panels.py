"""Every panel of every lesson in a real JupyterLab: each control is moved by keyboard, and the picture follows.

The time from key press to picture is measured and printed, not judged: test machines are busy.
"""

import json
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from minicpmv_ref.course import draw

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

# Resolves with the milliseconds between the next key press and the frame that shows another picture.
WATCH = """cell => {
    const panel = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell].querySelector('.mcv-panel');
    window.latency = new Promise(done => {
        let start = 0;
        document.addEventListener('keydown', () => { start = performance.now(); }, {capture: true, once: true});
        const watcher = new MutationObserver(() => {
            watcher.disconnect();
            requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
        });
        watcher.observe(panel.querySelector('.mcv-picture'), {childList: true, subtree: true, attributes: true});
    });
}"""
CHANGED = "([cell, part, old]) => document.querySelectorAll('.jp-Notebook .jp-Cell')[cell]" + (
    ".querySelector(part).innerHTML !== old"
)


def lessons():
    """(notebook, the cells that show a panel)."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        shown = [n for n, cell in enumerate(cells) if cell.cell_type == "code" and "panels." in cell.source]
        if shown:
            yield pytest.param(path.name, shown, id=path.stem)


def contents(lab, cell, part):
    return lab.cell(cell).locator(part).first.evaluate("element => element.innerHTML")


def move(lab, cell, control, *keys):
    """Press keys; returns whether the picture and whether the status line changed."""
    before = contents(lab, cell, ".mcv-picture"), contents(lab, cell, ".mcv-status")
    control.focus()
    for key in keys:
        lab.page.keyboard.press(key)
    try:
        lab.page.wait_for_function(CHANGED, arg=[cell, ".mcv-picture", before[0]], timeout=10_000)
    except Exception as error:
        if type(error).__name__ != "TimeoutError":
            raise
    lab.wait_idle()
    return contents(lab, cell, ".mcv-picture") != before[0], contents(lab, cell, ".mcv-status") != before[1]


@pytest.mark.browser
@pytest.mark.parametrize(("name", "cells"), list(lessons()))
def test_panels_follow_the_keyboard(lab_server, capsys, name, cells):
    with lab_server.open(name) as lab:
        lab.run_all()
        for cell in cells:
            assert lab.cell(cell).locator(".mcv-panel").count() == 1, f"no panel in cell {cell}"
            words = set()
            sliders = lab.sliders(cell)
            for number in range(sliders.count()):
                handle = sliders.nth(number)
                at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
                picture, status = move(lab, cell, handle, "ArrowLeft" if at_end else "ArrowRight")
                assert picture, f"cell {cell}: slider {number} leaves the picture as it is"
                words.add(status)
            menus = lab.cell(cell).locator("select")
            for number in range(menus.count()):
                last = menus.nth(number).evaluate("menu => menu.selectedIndex === menu.options.length - 1")
                keys = "Alt+ArrowDown", "ArrowUp" if last else "ArrowDown", "Enter"
                picture, status = move(lab, cell, menus.nth(number), *keys)
                assert picture, f"cell {cell}: menu {number} leaves the picture as it is"
                words.add(status)
            groups = lab.cell(cell).locator(".widget-toggle-buttons")
            for number in range(groups.count()):
                other = groups.nth(number).locator("button:not(.mod-active)").first
                picture, status = move(lab, cell, other, "Space")
                assert picture, f"cell {cell}: group of buttons {number} leaves the picture as it is"
                words.add(status)
            boxes = lab.cell(cell).locator(".mcv-controls input[type=checkbox]")
            for number in range(boxes.count()):
                picture, status = move(lab, cell, boxes.nth(number), "Space")
                assert picture, f"cell {cell}: checkbox {number} leaves the picture as it is"
                words.add(status)
            assert True in words, f"cell {cell}: no control changes the status line"
            if sliders.count():
                report(lab, cell, sliders.first, capsys, name)
        assert lab.errors() == []
        assert lab.outside == []


def report(lab, cell, slider, capsys, name, presses=9):
    times = []
    for _ in range(presses):
        lab.page.evaluate(WATCH, cell)
        lab.press(slider, "ArrowRight")
        times.append(lab.page.evaluate("() => Promise.race([latency, new Promise(r => setTimeout(r, 5000, NaN))])"))
        lab.wait_idle()
    kind = lab.outputs()[cell][-1]["data"]["text/plain"].split("(")[0]
    with capsys.disabled():
        print(f"\n{name}, {kind}: key to picture {statistics.median(times):.0f} ms (largest {max(times):.0f})", end=" ")


@pytest.mark.browser
def test_play_steps_the_slider(lab_server):
    """The link lives in the browser; the kernel only hears of the slider."""
    name, cell = "01_slicing.ipynb", find("01_slicing.ipynb", "panels.OnePixelCliff")
    with lab_server.open(name) as lab:
        lab.run_all()
        lab.cell(cell)
        lab.press(lab.cell(cell).locator(".widget-play button").first, "Enter")
        lab.page.wait_for_function(
            "cell => +document.querySelectorAll('.jp-Notebook .jp-Cell')[cell]"
            ".querySelector('[role=slider]').getAttribute('aria-valuenow') > 452",
            arg=cell,
        )
        lab.cell(cell).get_by_text(re.compile(r"4[5-9]\d x 448 costs 192 tokens")).first.wait_for()
        assert lab.errors() == []


@pytest.mark.browser
def test_an_own_picture_and_a_broken_one(lab_server, tmp_path):
    name, cell = "01_slicing.ipynb", find("01_slicing.ipynb", "panels.SlicingPlayground")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    draw.load_sample("banner.png").save(tmp_path / "mine.png")
    with lab_server.open(name) as lab:
        lab.run_all()
        for file, words in (("mine.png", "mine.png, 2400 x 300: 5 x 1 slices"), ("broken.jpg", "broken.jpg is not a")):
            with lab.page.expect_file_chooser() as chooser:
                lab.cell(cell).get_by_role("button", name="own picture").click()
            chooser.value.set_files(str(tmp_path / file))
            lab.wait_for_text(cell, words)
        assert [error.split(":")[0] for error in lab.errors()] == ["alert"]
        lab.press(lab.sliders(cell).first, "ArrowRight")  # the panel works on
        lab.wait_for_text(cell, "mine.png, 2401 x 300")
        assert lab.errors() == []


@pytest.mark.browser
def test_a_reader_without_a_kernel_sees_the_panels(lab_server):
    """The saved file shows each panel as a picture: JupyterLab draws it when it does not find a widget."""
    name = "01_slicing.ipynb"
    cell = find(name, "panels.PaperAgainstCode")
    with lab_server.open(name) as lab:
        assert lab.cell(cell).locator("img").first.evaluate("image => image.naturalWidth") >= 600
        assert json.dumps(lab.outputs()[cell]).count("widget-view") == 0


def find(name, words):
    cells = nbformat.read(NOTEBOOKS / name, as_version=4).cells
    return next(number for number, cell in enumerate(cells) if words in cell.source)
