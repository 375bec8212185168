"""Lesson 14: how small a model of a given score can be, year by year."""

from .. import draw
from ..panel import Panel, slider


class SizesOverYears(Panel):
    """Published models by date and size; a line joins the smallest so far among those that reach a score.

    Args:
        score: on OpenCompass, the mean of 8 benchmarks.
    """

    def __init__(self, score=64):
        super().__init__(score=slider("score, at least", score, 50, 80))

    def draw(self, score):
        return draw.sizes_over_years(score)

    def describe(self, score):
        steps = draw.smallest(score)
        said = ", ".join(f"{model.name} with {model.billions:g} billion ({model.day:%B %Y})" for model in steps)
        months = draw.halving_months(steps)
        pace = f"The size halved every {months:.1f} months." if months else "That gives no pace."
        return f"A score of at least {score}, the smallest so far: {said or 'none'}. {pace}"
