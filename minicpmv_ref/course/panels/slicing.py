"""Lesson 01: slicing."""

import io
import math
import warnings

import ipywidgets as widgets

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.inputs.pictures import load_image
from minicpmv_ref.slicing import best_grid, paper_grid, partition_score, plan_slices

from .. import draw
from ..panel import Panel, button, choice, player, slider

SIZES = dict(low=1, high=4096)


def _open_sample(name):
    return draw.load_sample(name).size, draw.load_preview(name)


class SlicingPlayground(Panel):
    """How a picture of any size is cut: views, scores of all grids, the formula, tokens.

    Its corner can be dragged, and a click on a grid shows that cut.

    Args:
        picture: a file name of data_samples/images.
        width, height: the size to cut; None takes the picture's own.
        max_slice_nums, scale_resolution: see `SliceConfig`.
    """

    def __init__(self, picture="temple.jpg", width=None, height=None, max_slice_nums=9, scale_resolution=448):
        own_size = self._begin_with(picture)
        self._grid = None  # the clicked one; None: the winner
        super().__init__(
            picture=choice("picture", draw.sample_names(), picture),
            width=slider("width", width or own_size[0], **SIZES),
            height=slider("height", height or own_size[1], **SIZES),
            max_slice_nums=slider("max_slice_nums", max_slice_nums, 1, 16),
            scale_resolution=slider("scale_resolution", scale_resolution, 112, 980, 14),
            extras=[self._upload],
        )
        self.on(self._upload, self._take_upload)

    def changed(self, name):
        self._grid = None
        if name != "picture":
            return super().changed(name)
        chosen = self.controls["picture"].value
        if chosen not in self._pictures:
            self._pictures[chosen] = _open_sample(chosen)
        with self.hold():  # a new picture brings its own size; the sliders can then stretch it
            for side, pixels in zip(("width", "height"), self._pictures[chosen][0]):
                self.controls[side].max = max(self.controls[side].max, pixels)
                self.controls[side].value = pixels

    def _begin_with(self, picture):
        """Make room for own pictures beside this one; its size."""
        self._pictures = {picture: _open_sample(picture)}  # {name: (size, preview)}
        self._warned = {}  # {name: what `load_image` warns of}
        self._upload = widgets.FileUpload(accept="image/*", description="own picture")
        return self._pictures[picture][0]

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

    def touch(self, spot, at, start, before):
        if spot.name == "grid":
            self._grid = spot.item
            return self.redraw()
        with self.hold():  # the size grows by the same part as the picture would that the mouse took hold of
            for side, drawn, end, begin in zip(("width", "height"), spot.item, at, start):
                self.controls[side].value = round(before[side] * max(0.02, (drawn + end - begin) / drawn))

    def draw(self, picture, width, height, **slicing):
        return draw.playground((width, height), SliceConfig(**slicing), self._pictures[picture][1], self._grid)

    def describe(self, picture, width, height, **slicing):
        cfg = SliceConfig(**slicing)
        plan, best = draw.plan_with((width, height), cfg, self._grid), plan_slices((width, height), cfg)
        tokens = f"{plan.visual_tokens(64)} tokens at 64 queries, {plan.visual_tokens(96)} at 96"
        overview, warned = "{} x {}".format(*plan.overview_size), self._warned.get(picture, "")
        if not plan.grid:
            return f"{picture}, {width} x {height}: not cut. One view of {overview} pixels: {tokens}.{warned}"
        return (
            f"{picture}, {width} x {height}: {plan.grid[0]} x {plan.grid[1]} slices of "
            f"{plan.slice_size[0]} x {plan.slice_size[1]} pixels and an overview of {overview}. "
            f"{1 + plan.num_slices} views: {tokens}."
            + ("" if plan == best else " The code takes {} x {}.".format(*best.grid))
            + warned
        )


class OnePixelCliff(Panel):
    """Tokens against width: where one more column of pixels costs, or saves, whole views."""

    widest = 1800

    def __init__(self, width=448, height=448, num_queries=64, max_slice_nums=9):
        across = slider("width", width, 1, self.widest)
        super().__init__(
            width=across,
            height=slider("height", height, 1, self.widest),
            num_queries=choice("queries per view", [64, 96], num_queries),
            max_slice_nums=slider("max_slice_nums", max_slice_nums, 1, 16),
            extras=[player(across, interval=60), button("to the next jump", self.walk)],
        )

    def walk(self):
        now = self.values()
        cfg = SliceConfig(max_slice_nums=now["max_slice_nums"])
        self.controls["width"].value = draw.next_jump(now["width"], now["height"], cfg, self.widest)

    def touch(self, spot, at, start, before):
        self.controls["width"].value = max(1, round(self.facts["axes"].value(*at)[0]))

    def draw(self, width, height, num_queries, max_slice_nums):
        return draw.cliff(width, height, SliceConfig(max_slice_nums=max_slice_nums), num_queries, self.widest)

    def describe(self, width, height, num_queries, max_slice_nums):
        cfg = SliceConfig(max_slice_nums=max_slice_nums)
        here, wider = (plan_slices((w, height), cfg).visual_tokens(num_queries) for w in (width, width + 1))
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
        size, cfg = (width, height), SliceConfig()
        paper, code, case = paper_grid(size, cfg), best_grid(size, cfg) or (1, 1), draw.compare_grids(size, cfg)
        ideal = math.ceil(width * height / cfg.scale_resolution**2)
        if case == "same":
            why = "They agree."
        elif case == "paper":
            why = "The code never cuts a picture with N = 1."
        elif case == "code":
            why = "The code leaves out the grid 1 x 1."
        elif math.isclose(partition_score(size, paper), partition_score(size, code), abs_tol=1e-9):
            why = "A tie: the last bit of a logarithm decides."
        else:
            why = "The code never tries more than 9 slices."
        return f"{width} x {height}, N = {ideal}: paper {paper[0]} x {paper[1]}, code {code[0]} x {code[1]}. {why}"
