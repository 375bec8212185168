"""Lesson 02: positions."""

from .. import draw
from ..panel import Panel, choice, slider


class PositionExplorer(Panel):
    """How the patches of a slice of any shape find their places in a square table, and how far off they are.

    Args:
        rows, cols: the grid in patches.
        method: "bucket" (as released in 2.6), "exact" (the same in integers) or "interpolate" (2.0).
        side: cells on one side of the table.
    """

    most = 240  # patches on one side

    def __init__(self, rows=24, cols=43, method="bucket", side=70):
        super().__init__(
            rows=slider("rows of patches", rows, 1, self.most),
            cols=slider("columns of patches", cols, 1, self.most),
            method=choice("method", draw.LOOK_UPS.items(), method),
            side=choice("side of the table", [70, 27], side),
        )

    def point(self, spot, at):
        kind = spot and ("patches" if spot.name == "patches" else "table")
        self.pick(spot and (kind, *spot.cell(at)))

    def draw(self, **state):
        return draw.position_explorer(**state, pointed=self.picked)

    def describe(self, rows, cols, method, side):
        if self.picked:
            return draw.linked_words(self.picked, rows, cols, method, side)
        reads, errors = draw.look_up(rows, cols, method, side)
        patches, cells = f"{rows} x {cols} patches", f"{side * side:,} cells"
        if reads is None:
            what = f"{patches}: each mixes the cells around its center."
        else:
            used, most = int((reads > 0).sum()), int(reads.max())
            shared = f", and up to {most} patches share one" if most > 1 else ""
            what = f"{patches} read {used:,} of {cells}{shared}; {side * side - used:,} are never read."
        return f"{what} Error: {errors.mean():.3f} on average, {errors.max():.3f} at worst, in values from -1 to 1."
