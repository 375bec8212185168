"""Lesson 11: the other systems."""

from minicpmv_ref.peers.sizes import SYSTEMS

from .. import draw
from ..panel import Panel, choice, slider
from .slicing import _AnyPicture


class AllSystems(_AnyPicture):
    """One picture in sixteen systems.

    Args:
        picture: a file name of data_samples/images.
        width, height: the size; None takes the picture's own.
        show: "all", or one of the systems in detail.
        asked: "1 picture", "2 pictures" of this size, or a clip of "16 frames".
    """

    def __init__(self, picture="coffee.jpg", width=640, height=480, show="all", asked="1 picture"):
        systems = [("all systems", "all"), *((draw.NAMES[system], system) for system in SYSTEMS)]
        which, many = choice("show", systems, show), choice("how many", draw.ASKED, asked)
        super().__init__(picture, width, height, show=which, asked=many)

    def draw(self, picture, width, height, show, asked):
        image = self._pictures[picture][1]
        if show == "all":
            return draw.all_systems((width, height), image, asked)
        return draw.one_system(show, (width, height), image, asked)

    def describe(self, picture, width, height, show, asked):
        warned = self._warned.get(picture, "").strip(" .")
        start = f"{picture}, {width} x {height}, {asked}" + f" ({warned})" * bool(warned)
        there = {system: seen for system, seen in self.facts.items() if seen}
        if show == "all":
            fewest, *_, most = sorted((seen.plan.visual_tokens, draw.NAMES[system]) for system, seen in there.items())
            share, least = min((seen.kept, draw.NAMES[system]) for system, seen in there.items())
            kept = f"{least} keeps the fewest of its own pixels: {share:.1%}." if share < 1 else "All keep all pixels."
            return "{}: from {:,} tokens ({}) to {:,} ({}). {}".format(start, *fewest, *most, kept)
        if not there:
            return f"{start}: {draw.NAMES[show]} is not published for that."
        tokens = there[show].plan.visual_tokens
        return f"{start}: {draw.NAMES[show]} makes {tokens:,} tokens. {draw.SENTENCES[show]}"


class TokenPlaces(Panel):
    """Which patches a token holds, in both published orders.

    Args:
        system: "internvl-1.5" or "vila-1.5".
        token: its place in the row that the language model gets.
        picture: a file name of data_samples/images.
    """

    def __init__(self, system="internvl-1.5", token=19, picture="astronaut.jpg"):
        super().__init__(
            system=choice("system", [(draw.NAMES[name], name) for name in draw.ORDERS], system),
            token=slider("token", token, 0, _tokens(system) - 1),
            picture=choice("picture", draw.sample_names(), picture),
        )

    def changed(self, name):
        with self.hold():
            self.controls["token"].max = _tokens(self.controls["system"].value) - 1

    def draw(self, system, token, picture):
        return draw.token_places(system, token, draw.load_preview(picture))

    def describe(self, system, token, picture):
        orders = draw.ORDERS[system][1:]
        first = ("{}: row {}, column {}".format(words, *self.facts[order][0]) for order, words in orders)
        same = " This token is the same in both." if len({*self.facts.values()}) == 1 else ""
        return f"{draw.NAMES[system]}, token {token}. Its first patch in {'; in '.join(first)}.{same}"


def _tokens(system):
    return len(draw.token_patches(system, draw.ORDERS[system][1][0]))


class ExpertStrip(Panel):
    """Types, experts and positions of a row of tokens in CogVLM2.

    Args:
        pictures: 1 or 2.
        patches: image tokens of each, without boi and eoi.
        words: text tokens between two pictures.
    """

    def __init__(self, pictures=2, patches=3, words=2):
        super().__init__(
            pictures=choice("pictures", [1, 2], pictures),
            patches=slider("image tokens", patches, 0, 4),
            words=slider("text between", words, 0, 3),
        )

    def draw(self, pictures, patches, words):
        return draw.expert_strip(pictures, patches, words)

    def describe(self, pictures, patches, words):
        vision, last = self.facts["vision"], self.facts["positions"][-1]
        experts = f"vision expert for {sum(vision)} tokens, language expert for {len(vision) - sum(vision)}"
        return f"{len(vision)} tokens: {experts}. The last position is {last}."
