"""Lesson 04: into the language model."""

from minicpmv_ref.slicing import plan_slices

from .. import draw
from ..panel import Panel, button, choice, player, slider


class TokenStrip(Panel):
    """A prompt token by token: text, markers, slots, and the visual tokens that are written into the slots.

    A click on a view in the strip shows it with all its slots; pointing at one of these tells its position.

    Args:
        picture: a file name of data_samples/images; the first image of the prompt.
        images: how many images the prompt has.
        version: "2.0", "2.5" or "2.6".
        view: which view's visual tokens are on their way, from 1.
    """

    pictures = ("cat.jpg", "coffee.jpg", "galaxies.jpg", "chart.png", "chinese_page.png", "receipt.png", "retina.jpg")

    def __init__(self, picture="coffee.jpg", images=1, version="2.6", view=2):
        named = []
        for name in dict.fromkeys([*self.pictures, picture]):
            grid = plan_slices(draw.load_sample(name).size).grid
            named.append((f"{name}, " + ("{} x {}".format(*grid) if grid else "not cut"), name))
        _, views = draw.strip_tokens((picture, *draw.STRIP_COMPANY[: images - 1]), version)
        step = slider("view", view, 1, len(views))
        super().__init__(
            view=step,
            images=slider("images", images, 1, 1 + len(draw.STRIP_COMPANY)),
            picture=choice("picture", named, picture),
            version=choice("version", ["2.0", "2.5", "2.6"], version),
            extras=[player(step, interval=600)],
        )

    def changed(self, name):
        self.picked = None  # the slot that was pointed at
        with self.hold():
            self.controls["view"].max = len(self._tokens(**self.values())[1])

    def point(self, spot, at):
        row, col = spot.cell(at) if spot else (0, 0)
        self.pick(16 * row + col if spot else None)

    def _pictures(self, picture, images):
        return (picture, *draw.STRIP_COMPANY[: images - 1])

    def _tokens(self, picture, images, version, view):
        return draw.strip_tokens(self._pictures(picture, images), version)

    def draw(self, picture, images, version, view):
        return draw.token_strip(self._pictures(picture, images), version, view, self.picked)

    def describe(self, picture, images, version, view):
        views, slots = self._tokens(picture, images, version, view)[1], self.facts["slots"]
        what = f"View {view} of {len(views)}, {draw.view_words(*views[view - 1][1:3])}"
        if self.picked is not None:
            return f"{what}: its visual token {self.picked} goes to position {slots[self.picked]} of the message."
        return (
            f"{what}: its visual tokens go to positions {slots[0]} to {slots[-1]}. With the {len(slots)} queries of "
            f"version {version} the message has {self.facts['tokens']:,} tokens, {len(slots) * len(views):,} of them "
            f"visual. The strip shows {draw.STRIP_SLOTS} slots a view."
        )


class AnswerAttention(Panel):
    """Where a model looks when it chooses a token of its answer, and what it answers when parts are covered.

    A click on a word or on a layer chooses it. A click or a drag on the picture covers it, the same again uncovers it.

    Args:
        picture: a file name of data_samples/images.
        token: number of the generated token.
        layer: number of a layer of the LLM; 0: mean over all.
        covered: cells (row, col) under gray.
        model: "nano" or the folder of a checkpoint.
    """

    pictures = ("shapes.png", "numbers.png", "chart.png", "cat.jpg", "station_sign.png", "screenshot.png")

    def __init__(self, picture="shapes.png", token=1, layer=0, covered=(), model="nano"):
        self._model, self._covered = model, tuple(covered)
        watched = draw.watch_answer(picture, name=model)
        layers = [("mean of all", 0), *((f"layer {n}", n) for n in range(1, 1 + len(watched["slots"])))]
        super().__init__(
            token=slider("token of the answer", token, 1, len(watched["chances"])),
            picture=choice("picture", dict.fromkeys([*self.pictures, picture]), picture),
            layer=choice("layer", layers, layer),
            extras=[button("uncover all", self.cover)],
        )

    def values(self):
        return {**super().values(), "covered": self._covered}

    def changed(self, name):
        with self.hold():
            if name == "picture":
                self._covered = ()
            watched = draw.watch_answer(self.controls["picture"].value, name=self._model)
            self.controls["token"].max = len(watched["chances"])

    def cover(self, cells=()):
        self._covered = tuple(sorted(cells))
        self.redraw()

    def touch(self, spot, at, start, before):
        if spot.name != "cell":
            return super().touch(spot, at, start, before)
        ends = [draw.cell_at(self.facts["box"], self.facts["grid"], end) for end in (start, at)]
        (top, bottom), (left, right) = map(sorted, zip(*ends))
        cells = {(row, col) for row in range(top, bottom + 1) for col in range(left, right + 1)}
        old = set(before["covered"])
        self.cover(old - cells if spot.item in old else old | cells)

    def draw(self, picture, token, layer, covered):
        return draw.answer_attention(picture, token, layer, covered, self._model)

    def describe(self, picture, token, layer, covered):
        watched, cells = draw.watch_answer(picture, name=self._model), self.facts["cells"]
        word, (row, col) = watched["words"][token - 1], divmod(int(cells.argmax()), cells.shape[1])
        where = f"layer {layer}" if layer else "the mean of all layers"
        text = (
            f"Token {token} of {len(watched['chances'])}, “{word}”: in {where}, {cells.sum():.0%} of its attention is "
            f"on the picture, most on row {row + 1}, column {col + 1} ({cells.max():.1%})."
        )
        if not covered:
            return text
        was, chance = watched["chances"][token - 1], self.facts["chances"][token - 1]
        said = "the same answer" if self.facts["words"] == watched["words"] else "another answer"
        part = f"{len(covered)} of {cells.size} cells covered"
        return f"{text} With {part}: {said}; the chance of “{word}” goes from {was:.0%} to {chance:.0%}."
