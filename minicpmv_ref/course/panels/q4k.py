"""Lesson 09: Q4_K, bit by bit."""

from .. import draw
from ..panel import Panel, choice, slider, toggle


class Q4KMicroscope(Panel):
    """32 weights on their 16 levels, the error around the found scale and low, and where the bits are.

    Args:
        scale, low: percent of the scale and low that the block holds, 50 to 150.
        group: the sub-block, 0 to 7.
        kind: "bell", "heavy", "below" or "above": what the weights are.
        outlier: True makes weight 100, in sub-block 3, 0.5.
    """

    def __init__(self, scale=100, low=100, group=3, kind="bell", outlier=False):
        super().__init__(
            {
                "scale": slider("scale, %", scale, draw.FACTORS[0], draw.FACTORS[-1]),
                "low": slider("low, %", low, draw.FACTORS[0], draw.FACTORS[-1]),
                "group": slider("sub-block", group, 0, 7),
                "kind": choice("weights", draw.WEIGHT_KINDS.items(), kind),
                "outlier": toggle(f"weight {draw.OUTLIER[0]} is {draw.OUTLIER[1]}", outlier),
            }
        )

    def draw(self, **state):
        return draw.q4k_microscope(**state)

    def describe(self, scale, low, group, kind, outlier):
        seen = draw.sight(kind, outlier, group)
        ratio = draw.error_ratio(seen, scale, low)
        levels = draw.levels_on(seen.weights, seen.scale * scale / 100, seen.low * low / 100)
        used = len(set(levels.tolist()))
        return (
            f"Sub-block {group}: sc is {seen.sc} ({seen.sc:06b}), m is {seen.m} ({seen.m:06b}). With {scale} % of its "
            f"scale and {low} % of its low the weighted error is {ratio:.2f} times that of the file, and "
            f"{used} of 16 levels are in use."
        )
