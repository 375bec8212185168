"""Lesson 07c: how small text may be."""

from .. import draw
from ..panel import Panel, choice, slider


class SmallText(Panel):
    """A line of small text in a large picture: what the overview leaves of it, and what a slice does.

    Args:
        paper: a key of `draw.PAPERS`.
        digits: height of a digit in the picture, in pixels.
        max_slice_nums: see `SliceConfig`.
    """

    def __init__(self, paper="page, 300 dpi", digits=21, max_slice_nums=9):
        super().__init__(
            paper=choice("picture", draw.PAPERS, paper),
            digits=slider("height of a digit", digits, 6, 60),
            max_slice_nums=slider("max_slice_nums", max_slice_nums, 1, 36),
        )

    def draw(self, **state):
        return draw.small_text(**state)

    def describe(self, paper, digits, max_slice_nums):
        said = [
            f"{height:.1f} pixels high in the {name}, where a 3 and an 8 differ by at most "
            f"{self.facts['contrast'][name]:.0%} of black"
            for name, height in self.facts["heights"].items()
            if height
        ]
        return f"Digits of {digits} pixels are {'; and '.join(said)}."
