"""Lesson 03: the resampler."""

import ipywidgets as widgets

from .. import draw
from ..panel import Panel, choice


class AttentionByHover(Panel):
    """Where each query of a resampler looks in the views of a picture. Pointing at a query needs no kernel.

    Args:
        picture: a file name of data_samples/images.
        reader: "places" or "stripes" (built by hand, fed blank patches) or "nano" (the course's own model).
        head: 0, 1 or "mean".
        query: the one that is chosen at first.
    """

    def __init__(self, picture="screenshot.png", reader="places", head="mean", query=5):
        self._query, self._patch, self._marks = query, None, widgets.HTML()
        self._marks.layout.display = "none"
        labels = [("places (by hand)", "places"), ("stripes (by hand)", "stripes"), ("nano model", "nano")]
        super().__init__(
            picture=choice("picture", draw.sample_names(), picture),
            reader=choice("resampler", labels, reader),
            head=choice("head", ["mean", 0, 1], head),
            extras=[self._marks],
        )
        self.add_class(f"mcv-{id(self)}")

    def changed(self, name):
        self.point(None, None)
        self.redraw()

    def point(self, spot, at):
        """The queries that read the patch under the mouse are marked by style rules: the picture stays as it is."""
        self._patch, self._marks.value = None, ""
        if spot:
            row, col = spot.cell(at)
            weights, ceiling = self.facts["maps"][spot.name][:, row, col], self.facts["ceiling"]
            self._marks.value = draw.mark_readers(f"mcv-{id(self)}", weights, spot, (row, col))
            where = "view" if spot.name == "one" else spot.name
            self._patch = f"Patch in row {row}, column {col} of the {where}: {draw.readers_of(weights, ceiling)}."
        self.say(self.status)

    def draw(self, picture, reader, head):
        return draw.attention_hover(draw.load_preview(picture), *draw.attention_of(picture, reader), head, self._query)

    def snapshot(self, picture, reader, head):
        return draw.attention(draw.load_preview(picture), *draw.attention_of(picture, reader), head, self._query)

    def describe(self, picture, reader, head):
        if self._patch:
            return self._patch
        plan, weights = draw.attention_of(picture, reader)
        whose = draw.READERS[reader]
        cut = f" and {plan.num_slices} slices of {{}} x {{}}".format(*plan.patch_grids[-1]) if plan.grid else ""
        seen = [draw.patches_seen(query) for query in draw.one_head(weights[0], head)]
        heads = "the mean of 2 heads" if head == "mean" else f"head {head}"
        return (
            "{}: {} x {} patches{}. ".format("Overview" if cut else "One view", *plan.patch_grids[0], cut)
            + f"Resampler {whose}; {heads}. Its queries spread over {min(seen):.0f} to {max(seen):.0f} patches"
            + (" of the overview." if cut else ".")
        )
