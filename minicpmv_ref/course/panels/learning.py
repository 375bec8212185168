"""Lesson 07: the world, and learning in stages."""

from minicpmv_ref.toy.scenes import Thing

from .. import draw
from ..panel import Panel, button, choice, player, slider, toggle


class World(Panel):
    """A sample of the world, one of its views in pixels or in words, and the conversation.

    A scene can be changed: a click on a shape, then clicks on places of the board. nano is asked about it.

    Args:
        kind: "caption", "question", "crop" or "read" (a document).
        seed: draws other samples; of an own scene other sizes and another question.
        view: number of the view that is shown, from 1 (the overview).
        words: show the view as the LLM practices on it: spelled in words.
        things: of an own scene; None is the seed's.
        brush: (color, shape) to draw with.
    """

    slow = True

    def __init__(self, kind="caption", seed=17, view=1, words=False, things=None, brush=("red", "star")):
        self._things, self._brush = things, brush
        super().__init__(
            kind=choice("sample", draw.WORLD_KINDS.items(), kind),
            seed=slider("seed", seed, 0, 99),
            view=slider("view", view, 1, len(draw.world_item(kind, seed, things)[1])),
            words=toggle("in words", words),
            extras=[button("the seed's own scene", self.undo)],
        )
        self.changed("kind")

    def values(self):
        return {**super().values(), "things": self._things, "brush": self._brush}

    def changed(self, name):
        with self.hold():
            _, views = draw.world_item(self.controls["kind"].value, self.controls["seed"].value, self._things)
            self.controls["view"].max = len(views)
            self.controls["view"].layout.display = "none" if len(views) == 1 else None

    def undo(self):
        self._things = None
        self.redraw()

    def touch(self, spot, at, start, before):
        if spot.name == "brush":
            self._brush = spot.item
        else:
            things = draw.world_item(before["kind"], before["seed"], self._things)[0].facts.things
            board, new = {thing.place: thing for thing in things}, Thing(*self._brush, spot.item)
            if board.get(spot.item) != new:
                board[spot.item] = new
            elif len(board) > 1:  # the world has no empty scene
                del board[spot.item]
            self._things = tuple(board[place] for place in sorted(board))
        self.redraw()

    def draw(self, **state):
        return draw.world_sample(**state)

    def describe(self, kind, seed, view, words, things, brush):
        sample, views = draw.world_item(kind, seed, things)
        many = "one view" if len(views) == 1 else f"{len(views)} views, of which number {view} is shown"
        how = " in words" if words else ""
        held = " Its content is held out." if things and sample.held_out else ""
        size = f"A {sample.image.width} x {sample.image.height} picture"
        return f"{size}, {many}{how}. The answer: {sample.answer}{held}"


class Stages(Panel):
    """A training moment by moment: the loss, what learns, and what the model says to three pictures.

    Args:
        moment: number of the moment, from 1.
        own: {stage: steps} of a training of your own, told with `follow`; None is the training of nano.
    """

    def __init__(self, moment=4, own=None):
        self.story = draw.own_story(own) if own else draw.shipped_story()
        last = len(self.story.moments)
        moments = slider("moment", min(moment, last), 1, last)
        super().__init__(moment=moments, extras=[player(moments, interval=1500)])

    def follow(self, stage: str, step: int, loss: float, model, processor):
        """The curve grows by a step; in the middle and at the end of a stage the model is shown the pictures."""
        self.story.curves[stage].append((step, loss))
        if step % (self.story.steps[stage] // 2):
            return self.redraw()
        self.story.moments.append(draw.Moment(stage, step, draw.show_pictures(model, processor)))
        with self.hold():
            self.controls["moment"].max = len(self.story.moments)
            self.controls["moment"].value = len(self.story.moments)

    def touch(self, spot, at, start, before):
        places = self.facts["places"]  # the first moment at or right of it
        self.controls["moment"].value = 1 + sum(place < at[0] for place in places[:-1])

    def draw(self, moment):
        return draw.stage_story(self.story, moment)

    def describe(self, moment):
        here, right = self.story.moments[moment - 1], draw.words_right(self.story, moment)
        sizes = draw.part_sizes()
        learns = [part for part, role in draw.stage_roles(here.stage).items() if role == "learns"]
        names = " and ".join(draw.PART_NAMES[part] for part in learns) if len(learns) < 3 else "everything"
        share = sum(sizes[part] for part in learns) / sum(sizes.values())
        words = f"{here.stage}, step {here.step:,}. What learns: {names}, {share:.1%} of all parameters."
        if not right:
            return words
        said = (f"{good} of {all_} in the {name}" for (good, all_), (name, _, _) in zip(right, draw.SHOWN))
        return f"{words} Words in their right place: {', '.join(said)}."
