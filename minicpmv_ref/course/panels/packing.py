"""Lesson 06: packing."""

from .. import draw
from ..panel import Panel, choice, slider


class PackingPlan(Panel):
    """Samples in rows: what each strategy wastes, and the positions and the mask of one row.

    A sample can be dragged into another row that has room; the mask says who may look at whom where the mouse is.

    Args:
        strategy: "padded" (no packing), "first_fit", "pack" (best fit) or "truncate" (the paper's rule).
        kind: "captions", "pictures", "text" or "equal": what the samples are.
        row: number of the row that is shown in full.
        capacity: tokens of a row; without packing it does nothing.
        seed: draws other samples.
    """

    def __init__(self, strategy="pack", kind="captions", row=1, capacity=1024, seed=1):
        self._plan = draw.place_samples(kind, strategy, capacity, seed)
        self._start = 0, self._plan  # (turn, plan) of the drag
        self._at, self._note = None, ""
        super().__init__(
            strategy=choice("strategy", draw.STRATEGIES.items(), strategy),
            kind=choice("samples", draw.SAMPLE_KINDS.items(), kind),
            row=slider("row", row, 1, len(self._plan.rows)),
            capacity=slider("capacity", capacity, draw.LONGEST, 2048, 64),
            seed=slider("seed", seed, 0, 50),
        )

    def changed(self, name):
        self._note = ""
        with self.hold():
            if name != "row":
                state = self.values()
                del state["row"]
                self._plan = draw.place_samples(**state)
                self.controls["row"].max = len(self._plan.rows)

    def touch(self, spot, at, start, before):
        if spot.name == "row":
            self._note = ""
            with self.hold():
                self.controls["row"].value = spot.item
        if spot.name != "sample":
            return
        if self._start[0] != self._began[0]:
            self._start = self._began[0], self._plan
        plan, row = self._start[1], self.facts["row_at"](at[1])
        if tuple(start) == spot.at:  # an arrow key: to the next row that has room
            further = range(row, len(plan.rows)) if at[1] > start[1] else range(row, -1, -1)
            row = next((each for each in further if plan.moved(spot.item, each)), row)
        moved = plan.moved(spot.item, row)
        self._plan, self._note = moved or plan, ""
        with self.hold():
            if moved:
                self.controls["row"].value = row + 1
            else:
                size, room = sum(plan.samples[spot.item]), plan.width - sum(map(sum, plan.rows[row]))
                self._note = f"No room: {size} tokens do not fit into row {row + 1}, which has {room} left. "

    def point(self, spot, at):
        self._at = at if spot else None
        self.redraw()

    def draw(self, row, **state):
        return draw.packed_rows(self._plan, row, self._at)

    def describe(self, strategy, kind, capacity, seed, row):
        placed, here = self._plan, self._plan.rows[row - 1]
        if self._at:
            return draw.who_sees_whom(here, *draw.cell_at(draw.MASK, (placed.width, placed.width), self._at))
        tokens = sum(map(sum, placed.samples))
        least = -(-(tokens - placed.lost) // placed.width)
        rows, held = draw.counted(placed.used, "row"), draw.counted(len(here), "sample")
        lost = f", {placed.lost:,} tokens cut off" if placed.lost else ""
        return (
            f"{self._note}{len(placed.samples)} samples, {tokens:,} tokens, in {rows} of {placed.width:,} "
            f"({least} at the least): {placed.fill:.1%} full{lost}. Row {row} holds {held}; "
            f"{draw.pairs_used(here):.1%} of its causal pairs are inside a sample."
        )
