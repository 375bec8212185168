"""Lesson 01: slicing."""

import io
import math
import warnings

import ipywidgets as widgets

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.inputs.pictures import load_image
from minicpmv_ref.slicing import partition_score, plan_slices

from .. import draw
from ..panel import Panel, button, choice, player, slider


def _open_sample(name):
    return draw.load_sample(name).size, draw.load_preview(name)


class _AnyPicture(Panel):
    """Controls for a sample or a picture of one's own, at any size; None is the size that it has."""

    def __init__(self, picture, width, height, **controls):
        self._pictures = {picture: _open_sample(picture)}  # {name: (size, preview)}
        self._warned = {}  # {name: what `load_image` warns of}
        self._upload = widgets.FileUpload(accept="image/*", description="own picture")
        own_size = self._pictures[picture][0]
        super().__init__(
            picture=choice("picture", draw.sample_names(), picture),
            width=slider("width", width or own_size[0], 1, 4096),
            height=slider("height", height or own_size[1], 1, 4096),
            **controls,
            extras=[self._upload],
        )
        self.on(self._upload, self._take_upload)

    def changed(self, name):
        if name != "picture":
            return super().changed(name)
        self.picked = None
        chosen = self.controls["picture"].value
        if chosen not in self._pictures:
            self._pictures[chosen] = _open_sample(chosen)
        with self.hold():  # a new picture brings its own size; the sliders can then stretch it
            for side, pixels in zip(("width", "height"), self._pictures[chosen][0]):
                self.controls[side].max = max(self.controls[side].max, pixels)
                self.controls[side].value = pixels

    def _take_upload(self):
        for file in self._upload.value:
            data = io.BytesIO(file["content"])
            data.name = file["name"]
            try:
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always", UserWarning)
                    image = load_image(data)
            except (OSError, ValueError) as error:
                reason = str(error).partition(": ")[2] or error  # without "the file is not a picture ..."
                raise ValueError(f"{file['name']} is not a picture that can be read: {reason}") from None
            self._pictures[file["name"]] = image.size, draw.preview(image)
            self._warned[file["name"]] = "".join(f" {each.message}." for each in warned)
            menu = self.controls["picture"]
            with self.hold():
                menu.options = [*dict.fromkeys([*menu.options, file["name"]])]
                menu.value = file["name"]
                self.changed("picture")


class SlicingPlayground(_AnyPicture):
    """How a picture of any size is cut: views, scores of all grids, the formula, tokens.

    Its corner can be dragged, and a click on a grid shows that cut.

    Args:
        picture: a file name of data_samples/images.
        width, height: the size to cut; None takes the picture's own.
        max_slice_nums, scale_resolution: see `SliceConfig`.
    """

    def __init__(self, picture="temple.jpg", width=None, height=None, max_slice_nums=9, scale_resolution=448):
        most = slider("max_slice_nums", max_slice_nums, 1, 16)
        scale = slider("scale_resolution", scale_resolution, 112, 980, 14)
        super().__init__(picture, width, height, max_slice_nums=most, scale_resolution=scale)

    def touch(self, spot, at, start, before):
        if spot.name == "grid":
            return self.pick(spot.item)
        with self.hold():  # the size grows by the same part as the picture would that the mouse took hold of
            for side, drawn, end, begin in zip(("width", "height"), spot.item, at, start):
                self.controls[side].value = round(before[side] * max(0.02, (drawn + end - begin) / drawn))

    def draw(self, picture, width, height, **slicing):
        return draw.playground((width, height), SliceConfig(**slicing), self._pictures[picture][1], self.picked)

    def describe(self, picture, width, height, **slicing):
        plan, best = self.facts["plan"], self.facts["grid"]
        tokens = f"{plan.visual_tokens(64)} tokens at 64 queries, {plan.visual_tokens(96)} at 96"
        overview, warned = "{} x {}".format(*plan.overview_size), self._warned.get(picture, "")
        if not plan.grid:
            return f"{picture}, {width} x {height}: not cut. One view of {overview} pixels: {tokens}.{warned}"
        other = "" if plan.grid == best else " The code takes {} x {}.".format(*best)
        return (
            f"{picture}, {width} x {height}: {plan.grid[0]} x {plan.grid[1]} slices of "
            f"{plan.slice_size[0]} x {plan.slice_size[1]} pixels and an overview of {overview}. "
            f"{1 + plan.num_slices} views: {tokens}.{other}{warned}"
        )


class OnePixelCliff(Panel):
    """Tokens against width: where one more column of pixels costs, or saves, whole views."""

    def __init__(self, width=448, height=448, num_queries=64, max_slice_nums=9):
        across = slider("width", width, 1, draw.WIDEST)
        super().__init__(
            width=across,
            height=slider("height", height, 1, draw.WIDEST),
            num_queries=choice("queries per view", [64, 96], num_queries),
            max_slice_nums=slider("max_slice_nums", max_slice_nums, 1, 16),
            extras=[player(across, interval=60), button("to the next jump", self.walk)],
        )

    def walk(self):
        now = self.values()
        cfg = SliceConfig(max_slice_nums=now["max_slice_nums"])
        self.controls["width"].value = draw.next_jump(now["width"], now["height"], cfg)

    def touch(self, spot, at, start, before):
        self.controls["width"].value = max(1, round(self.facts["axes"].value(*at)[0]))

    def draw(self, width, height, num_queries, max_slice_nums):
        return draw.cliff(width, height, SliceConfig(max_slice_nums=max_slice_nums), num_queries)

    def describe(self, width, height, num_queries, max_slice_nums):
        cfg, here = SliceConfig(max_slice_nums=max_slice_nums), self.facts["tokens"]
        wider = plan_slices((width + 1, height), cfg).visual_tokens(num_queries)
        change = "the same" if here == wider else f"{abs(wider - here)} {'more' if wider > here else 'fewer'}: {wider}"
        return f"{width} x {height} costs {here} tokens. One pixel wider costs {change}."


class PaperAgainstCode(Panel):
    """Where the paper's equations and the released code choose different grids."""

    def __init__(self, width=640, height=480):
        sides = {"width": width, "height": height}
        controls = {name: slider(name, side, draw.SMALLEST, draw.LARGEST) for name, side in sides.items()}
        super().__init__(**controls, extras=[button("to the next border", self.walk)])

    def walk(self):
        self.controls["width"].value = draw.next_border(**self.values())

    def touch(self, spot, at, start, before):
        with self.hold():
            for side, logarithm in zip(("width", "height"), self.facts["axes"].value(*at)):
                self.controls[side].value = round(math.exp(logarithm))

    def draw(self, width, height):
        return draw.paper_map(width, height)

    def describe(self, width, height):
        case, paper, code = (self.facts[name] for name in ("case", "paper", "code"))
        scores = [partition_score((width, height), grid) for grid in (paper, code)]
        tie = math.isclose(*scores, abs_tol=1e-9)
        ideal = math.ceil(width * height / SliceConfig().scale_resolution ** 2)
        why = {
            "same": "They agree.",
            "paper": "The code never cuts a picture with N = 1.",
            "code": "The code leaves out the grid 1 x 1.",
            "other": "A tie: the last bit of a logarithm decides."
            if tie
            else "The code never tries more than 9 slices.",
        }[case]
        return f"{width} x {height}, N = {ideal}: paper {paper[0]} x {paper[1]}, code {code[0]} x {code[1]}. {why}"
