"""Attention by hover in a real JupyterLab: the map follows the mouse and the keyboard, and the kernel hears nothing."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "03_resampler.ipynb"
COUNT_MESSAGES = """() => {
    window.messages = 0;
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (...data) { window.messages++; return send.apply(this, data); };
}"""
SHOWN = """form => [...form.querySelectorAll('image.m')].filter(map => getComputedStyle(map).visibility === 'visible')
    .map(map => map.className.baseVal)"""
WORDS = """form => [...form.querySelectorAll('p.m')].filter(words => getComputedStyle(words).visibility === 'visible')
    .map(words => words.textContent)"""


def panel_cell():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return next(number for number, cell in enumerate(cells) if "panels.AttentionByHover" in cell.source)


@pytest.mark.browser
def test_hover_and_arrow_keys_need_no_kernel(lab_server):
    cell = panel_cell()
    with lab_server.open(NOTEBOOK.name) as lab:
        lab.run_all()
        form = lab.cell(cell).locator(".mcv-look")
        form.locator(".q0").scroll_into_view_if_needed()
        lab.page.mouse.move(5, 5)

        def sees(query):
            assert form.evaluate(SHOWN) == [f"m m{query}"] * 2, "the overview and the slices, and nothing else"
            (words,) = form.evaluate(WORDS)
            assert words.startswith(f"Query {query}. Overview: spread over ")

        sees(5)
        lab.page.evaluate(COUNT_MESSAGES)
        for query in (0, 10, 15):
            form.locator(f".q{query}").hover()
            sees(query)
        lab.page.mouse.move(5, 5)
        sees(5)  # the chosen one again
        form.locator(".q6").click()
        lab.page.mouse.move(5, 5)
        sees(6)
        lab.cell(cell).locator(".widget-toggle-button").last.focus()
        lab.page.keyboard.press("Tab")  # from the last control to the chosen query
        for key, query in (("ArrowRight", 7), ("ArrowDown", 8), ("ArrowLeft", 7), ("ArrowUp", 6)):
            lab.page.keyboard.press(key)
            sees(query)
        lab.page.keyboard.press("Enter")  # sends no form, leaves no page
        radio = form.get_by_role("radio", name="Query 6. Overview: spread over")
        assert radio.is_checked(), "screen readers hear the numbers"
        assert lab.page.evaluate("() => messages") == 0
        lab.cell(cell).get_by_role("button", name="nano model").click()
        lab.wait_for_text(cell, "Resampler of the nano model")
        assert lab.page.evaluate("() => messages") > 0, "the counter works"
        assert lab.errors() == []
        assert lab.outside == []
