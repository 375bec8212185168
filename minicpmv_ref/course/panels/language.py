"""Lesson 04: into the language model."""

from minicpmv_ref.slicing import plan_slices

from .. import draw
from ..panel import Panel, choice, player, slider, toggle


class TokenStrip(Panel):
    """A prompt token by token: text, markers, slots, and the visual tokens that are written into the slots.

    Args:
        picture: a file name of data_samples/images; the first image of the prompt.
        images: how many images the prompt has.
        version: "2.0", "2.5" or "2.6".
        view: which view's visual tokens are on their way.
    """

    pictures = ("cat.jpg", "coffee.jpg", "galaxies.jpg", "chart.png", "chinese_page.png", "receipt.png", "retina.jpg")

    def __init__(self, picture="coffee.jpg", images=1, version="2.6", view=2):
        named = []
        for name in dict.fromkeys([*self.pictures, picture]):
            grid = plan_slices(draw.load_sample(name).size).grid
            named.append((f"{name}, " + ("{} x {}".format(*grid) if grid else "not cut"), name))
        _, views = draw.strip_tokens((picture, *draw.STRIP_COMPANY[: images - 1]), version)
        step = slider("view", view, 1, len(views))
        controls = {
            "view": step,
            "images": slider("images", images, 1, 1 + len(draw.STRIP_COMPANY)),
            "picture": choice("picture", named, picture),
            "version": choice("version", ["2.0", "2.5", "2.6"], version),
        }
        self._play = player(step, interval=600)
        super().__init__(controls, extras=[self._play])

    def changed(self, name):
        with self.hold():
            views = len(self._tokens(**self.values())[1])
            self.controls["view"].max = self._play.max = views

    def _pictures(self, picture, images):
        return (picture, *draw.STRIP_COMPANY[: images - 1])

    def _tokens(self, picture, images, version, view):
        return draw.strip_tokens(self._pictures(picture, images), version)

    def draw(self, picture, images, version, view):
        return draw.token_strip(self._pictures(picture, images), version, view)

    def describe(self, picture, images, version, view):
        cells, views = self._tokens(picture, images, version, view)
        _, image, number, start, end = views[view - 1]
        queries = 96 if version == "2.5" else 64
        real = len(cells) + len(views) * (queries - draw.STRIP_SLOTS)
        what = f"slice {number}" if number else "the overview"
        return (
            f"View {view} of {len(views)}, {what} of image {image}: its visual tokens go to positions {start} to "
            f"{end - 1}. Drawn are {draw.STRIP_SLOTS} slots a view; with the {queries} of version {version} the "
            f"message has {real:,} tokens, {queries * len(views):,} of them visual."
        )


class AnswerAttention(Panel):
    """Where a model looks when it chooses a token of its answer: which visual tokens, and through them which patches.

    Args:
        picture: a file name of data_samples/images.
        token: number of the generated token.
        layer: number of a layer of the LLM; 0: mean over all.
        stretch: colors from the least to the most of this state.
        model: "nano" or the folder of a checkpoint.
    """

    pictures = ("shapes.png", "numbers.png", "chart.png", "cat.jpg", "station_sign.png", "screenshot.png")

    def __init__(self, picture="shapes.png", token=1, layer=0, stretch=True, model="nano"):
        self._model = model
        watched = draw.watch_answer(picture, name=model)
        layers = [("mean of all", 0), *((f"layer {n}", n) for n in range(1, 1 + len(watched["slots"])))]
        super().__init__(
            {
                "token": slider("token of the answer", token, 1, len(watched["words"])),
                "picture": choice("picture", dict.fromkeys([*self.pictures, picture]), picture),
                "layer": choice("layer", layers, layer),
                "stretch": toggle("stretch the colors", stretch),
            }
        )

    def changed(self, name):
        with self.hold():
            self.controls["token"].max = len(self._watch(self.controls["picture"].value)["words"])

    def _watch(self, picture):
        return draw.watch_answer(picture, name=self._model)

    def draw(self, picture, token, layer, stretch):
        return draw.answer_attention(picture, token, layer or None, stretch, self._model)

    def describe(self, picture, token, layer, stretch):
        watched, seen = self._watch(picture), draw.look(picture, token, layer or None, self._model)
        view, query = divmod(int(seen["slots"].argmax()), seen["slots"].shape[1])
        where = f"slice {view}" if view else "the overview"
        patch = max(float(patches.max()) for patches in seen["patches"])
        return (
            f"Token {token} of {len(watched['words'])}, “{watched['words'][token - 1]}”: {seen['share']:.0%} of the "
            f"attention is on slots. Most is on visual token {query} of {where}, {seen['slots'].max():.2f} times an "
            f"even look; the brightest patch gets {patch:.2f} times."
        )
