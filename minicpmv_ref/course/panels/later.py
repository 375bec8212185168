"""Lesson 13: all versions side by side, and the canvas of 4.7."""

from .. import draw
from ..panel import Panel, choice, slider, toggle


class Versions(Panel):
    """One picture or one clip in all versions: tokens for the LLM, and operations of the vision side.

    Args:
        width, height: of the picture or frame, in pixels.
        seconds: of the clip; 0 is one picture.
    """

    def __init__(self, width=1920, height=1080, seconds=0):
        super().__init__(
            width=slider("width", width, 100, 4000, 20),
            height=slider("height", height, 100, 4000, 20),
            seconds=slider("seconds (0: picture)", seconds, 0, 600),
        )

    def draw(self, **state):
        return draw.versions(**state)

    def describe(self, width, height, seconds):
        costs = {name: self.facts["costs"][name] for name in ("2.6", "4.5", "4.6")}
        what = f"A clip of {seconds} s, {width} x {height}" if seconds else f"A picture of {width} x {height}"
        frames = (lambda cost: f" of {cost.frames} frames") if seconds else lambda cost: ""
        said = (
            f"{cost.tokens:,} tokens{frames(cost)} and {draw.in_flops(cost.flops)} operations in {name}"
            for name, cost in costs.items()
        )
        return f"{what}: {', '.join(said)}."


class CanvasPositions(Panel):
    """Where 4.7 puts the tokens and markers of a picture.

    Args:
        picture: a sample.
        most: slices at most.
        view: 0 is the overview, then the slices; the last one where there are fewer.
        overview: draw the overview's tokens, too.
    """

    def __init__(self, picture="document.png", most=9, view=2, overview=True):
        super().__init__(
            picture=choice("picture", draw.PICTURES, picture),
            most=slider("max_slice_nums", most, 1, 9),
            view=slider("view (0: overview)", view, 0, 9),
            overview=toggle("with the overview", overview),
        )

    def draw(self, **state):
        return draw.canvas_positions(**state)

    def redraw(self):
        super().redraw()
        self.controls["view"].max = len(self.facts["places"]["<slice>"])

    def describe(self, picture, most, view, overview):
        facts = self.facts
        h, w = zip(*facts["places"]["view"])
        cut = "{} x {} slices".format(*facts["grid"]) if facts["grid"] else "no slices"
        return (
            f"{picture}, {cut}. {f'Slice {view}' if view else 'The overview'} has {len(h)} tokens, h from {min(h)} to "
            f"{max(h)} and w from {min(w)} to {max(w)}. The text after the picture is {facts['next']} steps on; in 4.6 "
            f"it was {facts['tokens']}."
        )
