"""Lesson 00: one picture, end to end."""

from .. import draw
from ..panel import Panel, choice, player, slider


class WholeModel(Panel):
    """One picture on its way through the six stages of nano, with the real tensors; a click opens a stage.

    Args:
        picture: a file name of data_samples/images.
        question: one of draw.QUESTIONS.
        stage: its number, from 1.
    """

    def __init__(self, picture="shapes.png", question="Describe the picture.", stage=1):
        step = slider("stage", stage, 1, len(draw.STAGES))
        super().__init__(
            stage=step,
            picture=choice("picture", draw.sample_names(), picture),
            question=choice("question", draw.QUESTIONS.items(), question),
            extras=[player(step, interval=2500)],
        )

    def draw(self, stage, picture, question):
        return draw.course_map(stage, picture, question)

    def describe(self, stage, picture, question):
        seen, name = draw.follow(picture, question), draw.STAGES[stage - 1].name
        came, left, _ = draw.stage_words(stage, seen)
        return (
            f"Stage {stage} of {len(draw.STAGES)}, {name}: from {came} to {left}. To “{question}” about {picture}, "
            f"nano answers “{seen['answer']}”"
        )
