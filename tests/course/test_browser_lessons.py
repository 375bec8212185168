"""Every lesson in a real JupyterLab: it runs without an error and without leaving this machine, and its panels work.

Each lesson is opened once: the saved file first, then all cells, what is special in this lesson, and every control of
every panel, moved by keyboard. The time from key press to picture is measured and printed, not judged: test machines
are busy.
"""

import json
import re
import statistics

import nbformat
import pytest
from places import ROOT

from minicpmv_ref.course import draw

NOTEBOOKS = ROOT / "notebooks"

# Resolves with the milliseconds between the next key (or press of the mouse) and the frame with another picture.
WATCH = """([cell, event]) => {
    const panel = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell].querySelector('.mcv-panel');
    window.latency = new Promise(done => {
        let start = 0;
        document.addEventListener(event, () => { start = performance.now(); }, {capture: true, once: true});
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
COUNT_MESSAGES = """() => {
    window.messages = 0;
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (...data) { window.messages++; return send.apply(this, data); };
}"""
SHOWN = """form => [...form.querySelectorAll('image.m')].filter(map => getComputedStyle(map).visibility === 'visible')
    .map(map => map.className.baseVal)"""
WORDS = """form => [...form.querySelectorAll('p.m')].filter(words => getComputedStyle(words).visibility === 'visible')
    .map(words => words.textContent)"""


def find(name, words):
    """The numbers of the cells of code with these words."""
    cells = nbformat.read(NOTEBOOKS / name, as_version=4).cells
    return [number for number, cell in enumerate(cells) if cell.cell_type == "code" and words in cell.source]


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
@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_lesson(lab_tab, tmp_path, record_property, name):
    cells = find(name, "panels.")
    lab = lab_tab(name)
    for cell in cells:
        a_reader_without_a_kernel_sees_the_panel(lab, cell)
    pictures_stand_in_folds(lab)
    lab.run_all()
    assert lab.errors() == []
    assert any(lab.outputs())
    if name == "01_slicing.ipynb":
        play_steps_the_slider(lab)
        a_typed_number_out_of_range_is_explained(lab)
    if name == "03_resampler.ipynb":
        hover_and_arrow_keys_need_no_kernel(lab)
    if name in TOUCHED:
        pictures_can_be_touched(lab, name, record_property)
    for cell in cells:
        panel_follows_the_keyboard(lab, cell, record_property)
    if name == "01_slicing.ipynb":
        own_picture_and_a_broken_one(lab, tmp_path)
    assert lab.errors() == []
    assert lab.outside == []
    if name == "01_slicing.ipynb":
        a_restarted_kernel_leaves_dead_panels(lab, cells[0])


def a_reader_without_a_kernel_sees_the_panel(lab, cell):
    """The saved file shows each panel as a picture: JupyterLab draws it when it does not find a widget."""
    assert lab.cell(cell).locator("img").first.evaluate("image => image.naturalWidth") >= 600
    assert json.dumps(lab.outputs()[cell]).count("widget-view") == 0


def pictures_stand_in_folds(lab):
    """JupyterLab cleans the HTML of a file that it does not trust; the pictures of guesses must be left."""
    kept = [output.get("data", {}).get("text/html", "") for outputs in lab.outputs() for output in outputs]
    images = lab.page.locator(".jp-OutputArea details img")
    folded = "all => Promise.all(all.map(image => image.decode().then(() => !image.checkVisibility())))"
    assert images.evaluate_all(folded) == [True] * "".join("".join(html) for html in kept).count("<img ")


def panel_follows_the_keyboard(lab, cell, record_property):
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
        record_property(*latency(lab, cell, sliders.first))


def latency(lab, cell, slider, presses=3):
    def press():  # one that changes nothing would wait in vain
        at_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
        lab.press(slider, "ArrowLeft" if at_end else "ArrowRight")

    return measure(lab, cell, "keydown", "key to picture", [press] * presses)


def measure(lab, cell, event, words, acts):
    times = []
    for act in acts:
        lab.page.evaluate(WATCH, [cell, event])
        act()
        times.append(lab.page.evaluate("() => Promise.race([latency, new Promise(r => setTimeout(r, 5000, NaN))])"))
        lab.wait_idle()
    kind = lab.outputs()[cell][-1]["data"]["text/plain"].split("(")[0]
    return kind, f"{words} {statistics.median(times):.0f} ms (largest {max(times):.0f})"


# ---- what can be touched: a click, a drag and a key in each panel

TOUCHED = {  # lesson: [(panel, what: click, hover, drag (and how far) or keys, kind of spot, words in the status line)]
    "00_one_picture.ipynb": [
        ("WholeModel", "click", "stage 4", "Stage 4 of 6, resampler"),
        ("WholeModel", "ArrowLeft Enter", "stage", "Stage 3 of 6, ViT"),
    ],
    "02_vit.ipynb": [
        ("PositionExplorer", "hover", "patches", r"The patch in row 1[12], column 21 reads"),
        ("PositionExplorer", "click", "table", r"Table, row 3[45], column 3[45]: "),
        ("PositionExplorer", "ArrowRight", "table", r"Table, row 3[45], column 3[56]: "),
    ],
    "03_resampler.ipynb": [("AttentionByHover", "hover", "overview", r"Patch in row [23], column 5 of the overview: ")],
    "01_slicing.ipynb": [
        ("SlicingPlayground", "click", "grid", "document.png, 1240 x 1754: 1 x 8 slices"),
        ("SlicingPlayground", "ArrowDown Enter", "grid", "2 x 4 slices"),
        ("SlicingPlayground", "drag", "corner", r"document.png, 1[34]\d\d x 1[89]\d\d"),
        ("OnePixelCliff", "drag", "plot", r"9\d\d x 448 costs 192 tokens"),
        ("OnePixelCliff", "ArrowLeft", "plot", r"9\d\d x 448 costs 192 tokens"),
        ("PaperAgainstCode", "drag", "map", r"7\d\d x 5\d\d, N = 3"),
        ("PaperAgainstCode", "ArrowUp", "map", r"7\d\d x 5\d\d, N = 3"),
    ],
    "04_language_model.ipynb": [
        ("TokenStrip", "click", "view 2", "View 2 of 8, image 0, slice 1: its visual tokens go to positions"),
        ("TokenStrip", "ArrowRight Enter", "view", "View 3 of 8, image 0, slice 2"),
        ("TokenStrip", "hover", "slots", r"its visual token 40 goes to position \d+ of the message"),
        ("AnswerAttention", "click", "cell", "With 1 of 64 cells covered: "),
        ("AnswerAttention", "ArrowRight Enter", "cell", "With 2 of 64 cells covered: "),
        ("AnswerAttention", "drag", "cell", "Token 1 of 21"),
        ("AnswerAttention", "Shift+Tab ArrowRight Enter", "token", "Token 2 of 21, “circle”"),
    ],
    "05_memory.ipynb": [
        ("MemoryPanel", "click", "part", "The chosen part is 98% of “see”"),
        ("MemoryPanel", "ArrowDown Enter", "part", "of “read”"),
        ("MemoryPanel", "drag 60", "own", "Your 1[12] GB: too little"),
    ],
    "06_packing.ipynb": [
        ("PackingPlan", "drag 30", "sample", "No room: 224 tokens do not fit into row 2"),
        ("PackingPlan", "ArrowDown", "sample", r"Row 5 holds \d+ samples"),
        ("PackingPlan", "hover", "mask", r"Token \d+, position \d+ of sample \d+; token \d+"),
    ],
    "07_learning_in_stages.ipynb": [
        ("World", "click", "place", "The answer: red star top left"),
        ("World", "ArrowRight Enter", "place", "red star top left, red star top right"),
        ("Stages()", "drag", "moment", "start-text, step 1,800"),
        ("Stages()", "ArrowRight Enter", "moment", "start-chat, step 700"),
    ],
    "07b_your_data.ipynb": [
        ("YourRecords", "click", "token", "at position 0: it is given, not learned"),
        ("YourRecords", "ArrowRight Enter", "token", "“system” at position 1: it is given"),
    ],
    "08_rlaif_dpo.ipynb": [
        ("PreferenceLoss", "drag 40", "surface", "Margin "),
        ("PreferenceLoss", "ArrowUp", "surface", "Margin "),
        ("AlignmentRuns", "click", "moment", "Run main, step 40"),
        ("AlignmentRuns", "ArrowLeft", "moment", "Run main, step 30"),
    ],
    "09_q4k.ipynb": [
        ("Q4KMicroscope", "click", "bit", "Bit 4 of byte 48 is flipped: it belongs to weight 96"),
        ("Q4KMicroscope", "ArrowRight Enter", "bit", "belongs to weight 97. With 2 flipped, 2 of 256 weights move"),
    ],
    "10_on_the_phone.ipynb": [
        ("Deployment", "click", "file", r"Files of 17\.1 GB"),
        ("Deployment", "ArrowDown Enter", "file", r"Files of 9\.55 GB"),
        ("Deployment", "drag 40", "own", r"With \d+ GB/s"),
    ],
}


def pictures_can_be_touched(lab, name, record_property):
    for panel, what, kind, words in TOUCHED[name]:
        (cell,) = find(name, f"panels.{panel}")
        before = contents(lab, cell, ".mcv-status")
        which = f'[data-spot="{kind}"]' if " " in kind else f"[data-name={kind}]"
        spot = lab.cell(cell).locator(f".mcv-spot{which}").first
        spot.scroll_into_view_if_needed()
        box = spot.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        if what == "click":
            lab.page.mouse.click(x, y)
        elif what == "hover":
            lab.page.mouse.move(x, y)
        elif what.startswith("drag"):
            far = int(what.removeprefix("drag") or 14)
            lab.page.mouse.move(x, y)
            lab.page.mouse.down()
            lab.page.mouse.move(x + 4, y + 4)
            lab.page.mouse.move(x + far, y + far)
            lab.page.mouse.up()
        else:  # where the focus is
            for key in what.split():
                lab.page.keyboard.press(key)
        lab.page.wait_for_function(CHANGED, arg=[cell, ".mcv-status", before])
        lab.cell(cell).locator(".mcv-status").get_by_text(re.compile(words)).first.wait_for(timeout=20_000)
        lab.wait_idle()
    if name == "01_slicing.ipynb":
        (cell,) = find(name, "panels.OnePixelCliff")
        box = lab.cell(cell).locator(".mcv-spot").first.bounding_box()
        acts = [lambda x=x: lab.page.mouse.click(box["x"] + x, box["y"] + 50) for x in range(20, 160, 20)]
        record_property(*measure(lab, cell, "pointerdown", "pointer to picture", acts))


def a_restarted_kernel_leaves_dead_panels(lab, cell):
    """Nothing of it works any more, so it says so."""
    says = "element => getComputedStyle(element, '::before').content"
    panel = lab.cell(cell).locator(".mcv-panel")
    assert panel.evaluate(says) == "none"
    lab.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    lab.page.wait_for_selector(".mcv-panel.jupyter-widgets-disconnected")
    assert "its kernel has stopped. Run its cell again." in panel.evaluate(says)
    lab.wait_idle()


# ---- what is special in a lesson


def play_steps_the_slider(lab):
    """The link lives in the browser; the kernel only hears of the slider."""
    (cell,) = find("01_slicing.ipynb", "panels.OnePixelCliff")
    button = lab.cell(cell).locator(".widget-play button").first
    lab.press(button, "Enter")
    lab.page.wait_for_function(
        "cell => +document.querySelectorAll('.jp-Notebook .jp-Cell')[cell]"
        ".querySelector('[role=slider]').getAttribute('aria-valuenow') > 452",
        arg=cell,
    )
    lab.cell(cell).get_by_text(re.compile(r"4[5-9]\d x 448 costs 192 tokens")).first.wait_for()
    lab.press(button, "Enter")  # and stop
    lab.wait_idle()


def a_typed_number_out_of_range_is_explained(lab):
    """The browser takes the nearest number, and the kernel would not hear of the other."""
    (cell,) = find("01_slicing.ipynb", "panels.OnePixelCliff")
    lab.cell(cell).locator(".widget-readout").first.click()
    for key in ("Control+A", "0", "Enter"):
        lab.page.keyboard.press(key)
    lab.wait_for_text(cell, "width: 0 is below 1, the least value; 1 is taken. 1 x 448 costs 64 tokens")


def own_picture_and_a_broken_one(lab, tmp_path):
    (cell,) = find("01_slicing.ipynb", "panels.SlicingPlayground")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    draw.load_sample("banner.png").save(tmp_path / "mine.png")
    for file, words in (("mine.png", "mine.png, 2400 x 300: 5 x 1 slices"), ("broken.jpg", "broken.jpg is not a")):
        with lab.page.expect_file_chooser() as chooser:
            lab.cell(cell).get_by_role("button", name="own picture").click()
        chooser.value.set_files(str(tmp_path / file))
        lab.wait_for_text(cell, words)
    assert [error.split(":")[0] for error in lab.errors()] == ["alert"]
    lab.press(lab.sliders(cell).first, "ArrowRight")  # the panel works on
    lab.wait_for_text(cell, "mine.png, 2401 x 300")
    assert lab.errors() == []


def hover_and_arrow_keys_need_no_kernel(lab):
    """The map follows the mouse and the keyboard, and the kernel hears nothing."""
    (cell,) = find("03_resampler.ipynb", "panels.AttentionByHover")
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
