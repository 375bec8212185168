"""What can be touched in a picture, without a browser: spots, events, and what each panel makes of them."""

import math
import xml.etree.ElementTree as ET

import pytest
from svg import SVG, svg_of, touch

from minicpmv_ref import SliceConfig, best_grid, candidate_grids, partition_score, plan_slices
from minicpmv_ref.course import draw, panels
from minicpmv_ref.course.panel import Panel, as_html, slider

pytestmark = pytest.mark.usefixtures("strict_panels")


class Boxes(Panel):
    """Two boxes to click and a bar to drag, as many pixels as the number says."""

    def __init__(self):
        self.heard = []
        super().__init__(number=slider("number", 40, 0, 90))

    def touch(self, spot, at, start, before):
        self.heard.append((spot.name, spot.item, at, start, before["number"]))
        if spot.name == "bar":
            self.controls["number"].value = round(before["number"] + at[0] - start[0])

    def point(self, spot, at):
        self.heard.append(spot and spot.name)

    def draw(self, number):
        canvas = draw.Canvas()
        for box in range(2):
            canvas.spot("box", box, (20 * box, 0, 10, 10), f"box <{box}>", chosen=box == 1)
        canvas.spot("bar", None, (0, 20, max(number, 1), 10), "drag", "drag", at=(number, 25), step=(1, 0))
        return canvas

    def describe(self, number):
        return f"{number} pixels"


def test_spots_lie_on_top_and_say_what_they_are():
    panel = Boxes()
    assert 'role="group"' in panel.picture_box.value, "an img would hide its parts from screen readers"
    found = [element.attrib for element in svg_of(panel) if element.attrib.get("class") == "mcv-spot"]
    assert [spot["data-spot"] for spot in found] == ["box 0", "box 1", "bar"] == [*panel.spots]
    assert [spot["tabindex"] for spot in found] == ["-1", "0", "0"], "one stop of the Tab key for each kind"
    assert [spot["aria-label"] for spot in found] == ["box <0>", "box <1>", "drag"]
    assert [(spot["data-at"], spot["data-step"]) for spot in found[1:]] == [
        ("[25.0, 5.0]", "null"),
        ("[40.0, 25.0]", "[1, 0]"),
    ]
    assert 'role="img"' in as_html(draw.Canvas(), "words"), "nothing to touch"


def test_a_spot_leaves_the_saved_picture_as_it_is():
    canvas = draw.Canvas(20, 20)
    before = canvas.encode_image()
    canvas.spot("box", None, (0, 0, 10, 10), "a box")
    assert canvas.encode_image() == before
    assert len(list(ET.fromstring(canvas.svg()).iter(SVG + "title"))) == 1


def test_a_drag_is_told_with_the_values_at_its_start():
    panel = Boxes()
    for x in (41, 60, 200, 50):  # one drag: the browser sends where it is now, the same turn each time
        panel.picture_box.touched = {"spot": "bar", "start": [40, 25], "at": [x, 25], "turn": 7}
    assert [heard[-1] for heard in panel.heard] == [40, 40, 40, 40]
    assert panel.values() == {"number": 50}
    touch(panel, "bar", (51, 25), (50, 25))
    assert panel.heard[-1][-1] == 50
    assert panel.values() == {"number": 51}


def test_a_click_on_what_is_gone_is_not_an_error():
    panel = Boxes()
    touch(panel, "box 1")
    touch(panel, "box 2", (1, 1))
    touch(panel, "box 0", trait="pointed")
    touch(panel, "", (0, 0), trait="pointed")
    assert [heard[1] if isinstance(heard, tuple) else heard for heard in panel.heard] == [1, "box", None]


def test_axes_know_what_stands_where():
    axes = draw.Axes(draw.Canvas(), (50, 10, 100, 60), (-1, 3), (0, 6))
    assert axes.value(*axes.at(1.5, 4)) == pytest.approx((1.5, 4))
    assert axes.value(0, 1000) == (-1, 0)


# ---- lesson 01


@pytest.mark.parametrize("size", [(1240, 1754), (1170, 1170), (2400, 300)])
def test_a_click_on_a_grid_shows_that_cut(size):
    panel = panels.SlicingPlayground("cat.jpg", *size)
    for grid in candidate_grids(size):
        touch(panel, f"grid {grid}")
        assert panel.facts["plan"].grid == grid
        assert panel.facts["grid"] == best_grid(size), "the winner stays the winner"
        tokens = 64 * (1 + grid[0] * grid[1])
        assert f"{grid[0]} x {grid[1]} slices of" in panel.status and f"{tokens} tokens" in panel.status
        assert ("The code takes {} x {}.".format(*best_grid(size)) in panel.status) == (grid != best_grid(size))
        assert f"= {draw.signed(partition_score(size, grid))}" in panel.picture_box.value
    panel.controls["width"].value += 1
    assert panel.facts["plan"] == plan_slices((size[0] + 1, size[1])), "another size shows its own best grid"


@pytest.mark.parametrize("size", [(449, 448), (1240, 1754), (4096, 7), (1080, 1080)])
def test_the_plan_of_the_best_grid_is_the_packages(size):
    assert (
        draw.plan_with(size, SliceConfig(), best_grid(size)) == plan_slices(size) == draw.plan_with(size, SliceConfig())
    )


def test_the_corner_changes_the_size_by_the_part_that_it_is_dragged():
    panel = panels.SlicingPlayground("cat.jpg", 800, 600)
    (spot,) = (spot for spot in panel.spots.values() if spot.name == "corner")
    wide, high = spot.item
    for turn, move in ((1, 10), (1, wide / 2), (2, 0)):
        key = next(key for key in panel.spots if key.startswith("corner")) if turn == 2 else spot.key
        panel.picture_box.touched = {"spot": key, "start": [5, 5], "at": [5 + move, 5 - move / 2], "turn": turn}
    assert panel.values()["width"] == 1200
    assert panel.values()["height"] == pytest.approx(600 * (1 - wide / 4 / high), abs=1)
    touch(panel, key, (-9999, -9999), (0, 0))
    assert (panel.values()["width"], panel.values()["height"]) == (
        24,
        pytest.approx(0.02 * 600 * (1 - wide / 4 / high), abs=1),
    )


def test_a_click_in_the_cliff_and_the_next_jump():
    panel = panels.OnePixelCliff(448, 448)
    touch(panel, "plot", panel.facts["axes"].at(900, 100))
    assert panel.values()["width"] == 900
    touch(panel, "plot", (-50, 0))
    assert panel.values()["width"] == 1
    jumps = []
    for _ in range(4):
        panel.walk()
        jumps.append(panel.values()["width"])
    tokens = [plan_slices((width, 448)).num_slices for width in range(1, 1801)]
    right = [width for width in range(2, 1801) if tokens[width - 1] != tokens[width - 2]]
    assert jumps == (right * 4)[:4], "the one after the last is the first"
    flat = panels.OnePixelCliff(5, 448, max_slice_nums=1)
    flat.walk()
    assert flat.values()["width"] == 5


def test_a_walk_in_the_map():
    panel, seen = panels.PaperAgainstCode(300, 480), []
    for _ in range(3):
        panel.walk()
        seen.append(panel.values()["width"])
    cases = [draw.compare_grids((width, 480)) for width in range(300, 680)]
    assert seen == [300 + i for i in range(1, 380) if cases[i] != cases[i - 1]]
    labels = [each.description for each in panel.children[1].children[0].children if hasattr(each, "on_click")]
    assert len(labels) == 1 and draw.text_width(labels[0], 16) <= 176, "the label is not cut"


def test_a_click_in_the_map():
    panel = panels.PaperAgainstCode()
    touch(panel, "map", panel.facts["axes"].at(math.log(1500), math.log(300)))
    assert (panel.values()["width"], panel.values()["height"]) == (1500, 300)
    touch(panel, "map", (9999, -9999))
    assert (panel.values()["width"], panel.values()["height"]) == (draw.LARGEST, draw.LARGEST)
