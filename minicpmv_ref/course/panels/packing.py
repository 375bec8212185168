"""Lesson 06: packing."""

from .. import draw
from ..panel import Panel, choice, slider


class PackingPlan(Panel):
    """Samples in rows: what each strategy wastes, and the positions and the mask of one row.

    Args:
        strategy: "padded" (no packing), "first_fit", "pack" (best fit) or "truncate" (the paper's rule).
        kind: "captions", "pictures", "text" or "equal": what the samples are.
        row: number of the row that is shown in full.
        capacity: tokens of a row; without packing it does nothing.
        seed: draws other samples.
    """

    def __init__(self, strategy="pack", kind="captions", row=1, capacity=1024, seed=1):
        rows = len(draw.place_samples(kind, strategy, capacity, seed).rows)
        strategies = choice("strategy", draw.STRATEGIES.items(), strategy)
        kinds = choice("samples", draw.SAMPLE_KINDS.items(), kind)
        strategies.style.button_width, kinds.style.button_width = "192px", "92px"
        super().__init__(
            {
                "strategy": strategies,
                "kind": kinds,
                "row": slider("row", row, 1, rows),
                "capacity": slider("capacity", capacity, draw.LONGEST, 2048, 64),
                "seed": slider("seed", seed, 0, 50),
            }
        )

    def changed(self, name):
        with self.hold():
            state = self.values()
            del state["row"]
            self.controls["row"].max = len(draw.place_samples(**state).rows)

    def draw(self, **state):
        return draw.packed_rows(**state)

    def describe(self, strategy, kind, capacity, seed, row):
        placed = draw.place_samples(kind, strategy, capacity, seed)
        tokens = sum(map(sum, placed.samples))
        fewest = -(-tokens // placed.width)
        rows = "1 row" if len(placed.rows) == 1 else f"{len(placed.rows)} rows"
        words = f"{len(placed.samples)} samples, {tokens:,} tokens, in {rows} of {placed.width:,}"
        words += f" ({fewest} at the least): {placed.fill:.1%} full"
        if placed.lost:
            words += f", {placed.lost:,} tokens cut off"
        here = placed.rows[row - 1]
        held = "1 sample" if len(here) == 1 else f"{len(here)} samples"
        return f"{words}. Row {row} holds {held}; {draw.pairs_used(here):.1%} of its causal pairs are inside a sample."
