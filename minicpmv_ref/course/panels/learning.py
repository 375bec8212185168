"""Lesson 07: the world, and learning in stages."""

from .. import draw
from ..panel import Panel, choice, slider, toggle


class World(Panel):
    """A sample of the world: the picture, one of its views in pixels or in words, and the conversation.

    Args:
        kind: "caption", "question", "crop" or "read" (a document).
        seed: draws other samples.
        view: number of the view that is shown, from 1 (the overview).
        words: show the view as the LLM practices on it: spelled in words.
    """

    def __init__(self, kind="read", seed=17, view=1, words=False):
        super().__init__(
            {
                "kind": choice("sample", draw.WORLD_KINDS.items(), kind),
                "seed": slider("seed", seed, 0, 99),
                "view": slider("view", view, 1, len(draw.world_item(kind, seed)[1])),
                "words": toggle("in words", words),
            }
        )

    def changed(self, name):
        with self.hold():
            _, views = draw.world_item(self.controls["kind"].value, self.controls["seed"].value)
            self.controls["view"].max = len(views)

    def draw(self, **state):
        return draw.world_sample(**state)

    def describe(self, kind, seed, view, words):
        sample, views = draw.world_item(kind, seed)
        many = "one view" if len(views) == 1 else f"{len(views)} views, of which number {view} is shown"
        how = " in words" if words else ""
        return f"A {sample.image.width} x {sample.image.height} picture, {many}{how}. The answer: {sample.answer}"


class Stages(Panel):
    """A stage of training: which parts learn and how fast, from what, and at which resolution.

    Args:
        stage: name of the stage.
        whose: "ours" (this course) or "paper".
        percent: of the samples that are done.
        metrics: learning curves, as for `draw.stage_losses`.
    """

    def __init__(self, stage="stage-1", whose="ours", percent=20, metrics=None):
        from minicpmv_ref.learn.stages import STAGES

        self.losses = draw.stage_losses(metrics)
        super().__init__(
            {
                "stage": choice("stage", [each.name for each in STAGES], stage),
                "whose": choice("whose", draw.OWNERS.items(), whose),
                "percent": slider("percent done", percent, 0, 100),
            }
        )

    def draw(self, stage, whose, percent):
        return draw.stage_picture(stage, whose, percent, self.losses.get(stage, ()))

    def describe(self, stage, whose, percent):
        from minicpmv_ref.learn.stages import stage_named
        from minicpmv_ref.learn.train import lr_scale_at

        ours = stage_named(stage)
        learns = ours.learning_rates if whose == "ours" else draw.PAPER_STAGES[stage].learns
        names = [f"the {draw.PART_NAMES[part]}" for part in draw.PART_NAMES if part in learns]
        names = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
        sizes = draw.part_sizes(whose)
        share = sum(sizes[part] for part in learns) / sum(sizes.values())
        who = "Here" if whose == "ours" else "In the paper"
        if not learns:
            return f"{stage}: in the paper nothing learns here, for it starts from {draw.PAPER_STAGES[stage].views}."
        verb = "learn" if len(learns) > 1 else "learns"
        meaning = f"{draw.MEANINGS[stage]}.".replace("?.", "?")
        words = f"{stage}: {meaning} {who} {names} {verb}, {share:.1%} of all parameters"
        if whose == "ours":
            now = lr_scale_at(round(percent / 100 * ours.steps), ours.steps)
            words += f"; after {percent} percent of the steps at {now:.2f} times the highest rate"
        return words + "."
