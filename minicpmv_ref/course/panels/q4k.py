"""Lesson 09: Q4_K, bit by bit."""

import numpy as np

from .. import draw
from ..panel import Panel, button, choice, slider, toggle


class Q4KMicroscope(Panel):
    """32 weights on their 16 levels, the error around the found scale and low, and the bits; a click flips one.

    Args:
        scale, low: percent of the scale and low that the block holds, 50 to 150.
        group: the sub-block, 0 to 7.
        kind: "bell", "heavy", "below" or "above": what the weights are.
        outlier: True makes weight 100, in sub-block 3, 0.5.
    """

    def __init__(self, scale=100, low=100, group=3, kind="bell", outlier=False):
        self._flipped = {}  # {bit: None}, the last one last
        super().__init__(
            scale=slider("scale, %", scale, draw.FACTORS[0], draw.FACTORS[-1]),
            low=slider("low, %", low, draw.FACTORS[0], draw.FACTORS[-1]),
            group=slider("sub-block", group, 0, 7),
            kind=choice("weights", draw.WEIGHT_KINDS.items(), kind),
            outlier=toggle(f"weight {draw.OUTLIER[0]} is {draw.OUTLIER[1]}", outlier),
            extras=[button("flip all bits back", self.flip_back)],
        )

    def changed(self, name):
        if name in ("kind", "outlier"):  # another block
            self._flipped = {}
        self.redraw()

    def flip_back(self):
        self._flipped = {}
        self.redraw()

    def touch(self, spot, at, start, before):
        if spot.name == "group":
            self.controls["group"].value = spot.item
        else:
            if self._flipped.pop(spot.item, True):
                self._flipped[spot.item] = False
            self.redraw()

    def draw(self, **state):
        return draw.q4k_microscope(**state, flipped=frozenset(self._flipped))

    def describe(self, scale, low, group, kind, outlier):
        if self._flipped:
            return self._describe_flips(kind, outlier)
        seen = draw.sight(kind, outlier, group)
        used = len(set(draw.read_back(seen, scale, low)[0].tolist()))
        return (
            f"Sub-block {group}: sc is {seen.sc} ({seen.sc:06b}), m is {seen.m} ({seen.m:06b}). With {scale} % of its "
            f"scale and {low} % of its low the weighted error is {draw.error_ratio(seen, scale, low):.2f} times that "
            f"of the file, and {used} of 16 levels are in use."
        )

    def _describe_flips(self, kind, outlier):
        bit, flipped = list(self._flipped)[-1], frozenset(self._flipped)
        with np.errstate(all="ignore"):
            moved = np.abs(draw.moves(kind, outlier, flipped))
        count, most = np.count_nonzero(moved), np.nan_to_num(moved, nan=np.inf).max()
        rest = " Weights on level 0 stay: they are the low alone." if draw.bit_owner(bit)[0] in ("d", "sc") else ""
        return (
            f"Bit {bit % 8} of byte {bit // 8} is flipped: it belongs to {draw.bit_name(bit)}. With {len(flipped)} "
            f"flipped, {count} of 256 weights move, by up to {most:.3g}.{rest}"
        )
