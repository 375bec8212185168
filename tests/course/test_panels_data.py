"""Lesson 07c: the height of small text in a view is that of the slicing rule, and the picture is what is left of it."""

import numpy as np
import pytest
from svg import canvas_shapes as shapes
from svg import canvas_texts as texts

from minicpmv_ref import SliceConfig, plan_slices
from minicpmv_ref.course import draw, panels
from minicpmv_ref.course.panel import Panel


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setattr(Panel, "strict", True)


@pytest.mark.parametrize("paper", draw.PAPERS)
@pytest.mark.parametrize("most", [1, 9, 36])
def test_heights_are_those_of_the_plan(paper, most):
    size = draw.PAPERS[paper]
    plan = plan_slices(size, SliceConfig(max_slice_nums=most))
    canvas = draw.small_text(paper, 21, most)
    wanted = {"overview": 21 * plan.overview_size[1] / size[1], "slice": None}
    if plan.grid:
        wanted["slice"] = 21 * plan.refined_size[1] / size[1]
    assert canvas.facts["heights"] == pytest.approx(wanted)
    shown = [image for *_, image, _ in shapes(canvas, "image")]
    assert len(shown) == (2 if plan.grid else 1)
    sheet = draw.text_in_view(draw.LINE, 21, (1, 1))
    ratios = [image.height / sheet.height for image in shown]
    assert ratios == pytest.approx([height / 21 for height in wanted.values() if height], abs=1 / sheet.height)
    assert ("no slices: the overview is the only view" in texts(canvas)) == (not plan.grid)


def test_a_digit_is_as_high_as_it_says():
    for digits in (9, 21, 60):
        inked = np.flatnonzero((np.asarray(draw.text_in_view("1", digits, (1, 1))) < 128).any(axis=1))
        assert inked[-1] - inked[0] + 1 == pytest.approx(digits, abs=1.5)


def test_smaller_text_keeps_less_of_the_difference_between_two_digits():
    left = [draw.contrast(21, (scale, scale)) for scale in (1, 0.5, 0.25, 0.15, 0.08)]
    assert left == sorted(left, reverse=True) and left[0] > 0.9 > 0.4 > left[-1]
    assert draw.contrast(21, (0.5, 0.5), "33") == 0


def test_the_panel_says_both_heights():
    panel = panels.SmallText()
    assert repr(panel) == "SmallText(paper='page, 300 dpi', digits=21, max_slice_nums=9)"
    assert panel.status == (
        "Digits of 21 pixels are 3.2 pixels high in the overview, where a 3 and an 8 differ by at most 31% of black; "
        "and 9.1 pixels high in the slice, where a 3 and an 8 differ by at most 85% of black."
    )
    panel.controls["max_slice_nums"].value = 1
    assert "in the overview" in panel.status and "in the slice" not in panel.status
