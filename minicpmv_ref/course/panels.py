"""The panels of the lessons, in the order of the lessons. How a panel works: panel.py. How it looks: draw.py.

A panel that needs torch imports it inside its methods, so that the first lessons start in a second.
"""

import io
import math

import ipywidgets as widgets
from PIL import Image, UnidentifiedImageError

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import best_grid, paper_grid, partition_score, plan_slices

from . import draw
from .panel import Panel, choice, player, slider, toggle

SIZES = dict(low=1, high=4096)


# ---- lesson 01: slicing


def _open_sample(name):
    image = draw.load_sample(name)
    return image.size, draw.preview(image)


class SlicingPlayground(Panel):
    """How a picture of any size is cut: views, scores of all grids, the formula, tokens.

    Args:
        picture: a file name of data_samples/images.
        width, height: the size to cut; None takes the picture's own.
        max_slice_nums, scale_resolution: see `SliceConfig`.
    """

    def __init__(self, picture="temple.jpg", width=None, height=None, max_slice_nums=9, scale_resolution=448):
        self._pictures = {picture: _open_sample(picture)}  # {name: (size, preview)}
        own_size = self._pictures[picture][0]
        names = sorted(path.name for path in draw.SAMPLES.iterdir() if path.suffix in (".jpg", ".png"))
        self._upload = widgets.FileUpload(accept="image/*", description="own picture")
        super().__init__(
            {
                "picture": choice("picture", names, picture),
                "width": slider("width", width or own_size[0], **SIZES),
                "height": slider("height", height or own_size[1], **SIZES),
                "max_slice_nums": slider("max_slice_nums", max_slice_nums, 1, 16),
                "scale_resolution": slider("scale_resolution", scale_resolution, 112, 980, 14),
            },
            extras=[self._upload],
        )
        self.on(self._upload, self._take_upload)

    def changed(self, name):
        if name != "picture":
            return super().changed(name)
        chosen = self.controls["picture"].value
        if chosen not in self._pictures:
            self._pictures[chosen] = _open_sample(chosen)
        with self.hold():  # a new picture brings its own size; the sliders can then stretch it
            for side, pixels in zip(("width", "height"), self._pictures[chosen][0]):
                self.controls[side].max = max(self.controls[side].max, pixels)
                self.controls[side].value = pixels

    def _take_upload(self):
        for file in self._upload.value:
            try:
                image = draw.upright(Image.open(io.BytesIO(file["content"])))
            except (OSError, ValueError) as error:
                reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
                raise ValueError(f"{file['name']} is not a picture that can be read: {reason}") from None
            self._pictures[file["name"]] = image.size, draw.preview(image)
            menu = self.controls["picture"]
            with self.hold():
                menu.options = [*dict.fromkeys([*menu.options, file["name"]])]
                menu.value = file["name"]
                self.changed("picture")

    def draw(self, picture, width, height, **slicing):
        return draw.playground((width, height), SliceConfig(**slicing), self._pictures[picture][1])

    def describe(self, picture, width, height, **slicing):
        plan = plan_slices((width, height), SliceConfig(**slicing))
        tokens = f"{plan.visual_tokens(64)} tokens at 64 queries, {plan.visual_tokens(96)} at 96"
        overview = "{} x {}".format(*plan.overview_size)
        if not plan.grid:
            return f"{picture}, {width} x {height}: not cut. One view of {overview} pixels: {tokens}."
        return (
            f"{picture}, {width} x {height}: {plan.grid[0]} x {plan.grid[1]} slices of "
            f"{plan.slice_size[0]} x {plan.slice_size[1]} pixels and an overview of {overview}. "
            f"{1 + plan.num_slices} views: {tokens}."
        )


class OnePixelCliff(Panel):
    """Tokens against width: where one more column of pixels costs, or saves, whole views."""

    widest = 1800

    def __init__(self, width=448, height=448, num_queries=64, max_slice_nums=9):
        across = slider("width", width, 1, self.widest)
        controls = {
            "width": across,
            "height": slider("height", height, 1, self.widest),
            "num_queries": choice("queries per view", [64, 96], num_queries),
            "max_slice_nums": slider("max_slice_nums", max_slice_nums, 1, 16),
        }
        super().__init__(controls, extras=[player(across, interval=60)])

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
        super().__init__({name: slider(name, side, draw.SMALLEST, draw.LARGEST) for name, side in sides.items()})

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


# ---- lesson 02: positions


class PositionExplorer(Panel):
    """How the patches of a slice of any shape find their places in a square table, and how far off they are.

    Args:
        rows, cols: the grid in patches.
        method: "bucket" (as released in 2.6), "exact" (the same in integers) or "interpolate" (2.0).
        side: cells on one side of the table.
    """

    most = 240  # patches on one side

    def __init__(self, rows=24, cols=43, method="bucket", side=70):
        look_up = choice("method", draw.LOOK_UPS.items(), method)
        look_up.style.button_width = "192px"  # one below the other: their words are long
        super().__init__(
            {
                "rows": slider("rows of patches", rows, 1, self.most),
                "cols": slider("columns of patches", cols, 1, self.most),
                "method": look_up,
                "side": choice("side of the table", [70, 27], side),
            }
        )

    def draw(self, **state):
        return draw.position_explorer(**state)

    def describe(self, rows, cols, method, side):
        reads, errors = draw.look_up(rows, cols, method, side)
        patches, cells = f"{rows} x {cols} patches", f"{side * side:,} cells"
        if reads is None:
            what = f"{patches}: each mixes the cells around its center."
        else:
            used, most = int((reads > 0).sum()), int(reads.max())
            shared = f", and up to {most} patches share one" if most > 1 else ""
            what = f"{patches} read {used:,} of {cells}{shared}; {side * side - used:,} are never read."
        return f"{what} Error: {errors.mean():.3f} on average, {errors.max():.3f} at worst, in values from -1 to 1."


# ---- lesson 03: the resampler


class AttentionByHover(Panel):
    """Where each query of a resampler looks in the views of a picture. Pointing at a query needs no kernel.

    Args:
        picture: a file name of data_samples/images.
        reader: "places" or "stripes" (built by hand, fed blank patches) or "nano" (the course's own model).
        head: 0, 1 or "mean".
        query: the one that is chosen at first.
    """

    def __init__(self, picture="screenshot.png", reader="places", head="mean", query=5):
        self._query = query
        names = sorted(path.name for path in draw.SAMPLES.iterdir() if path.suffix in (".jpg", ".png"))
        labels = [("places (by hand)", "places"), ("stripes (by hand)", "stripes"), ("nano model", "nano")]
        readers = choice("resampler", labels, reader)
        readers.style.button_width = "192px"  # one below the other
        super().__init__(
            {
                "picture": choice("picture", names, picture),
                "reader": readers,
                "head": choice("head", ["mean", 0, 1], head),
            }
        )

    def redraw(self):
        with self._picture.hold_sync():
            super().redraw()
            # "img" would hide the radio buttons from screen readers
            self._picture.value = self._picture.value.replace('role="img"', 'role="group"', 1)

    def draw(self, picture, reader, head):
        return draw.attention_hover(self._preview(picture), *draw.attention_of(picture, reader), head, self._query)

    def snapshot(self, picture, reader, head):
        return draw.attention(self._preview(picture), *draw.attention_of(picture, reader), head, self._query)

    def describe(self, picture, reader, head):
        plan, weights = draw.attention_of(picture, reader)
        whose = draw.READERS[reader]
        if reader == "nano":
            whose += ", trained" if draw.nano_reader()[2] else ", not trained yet: random weights"
        cut = f" and {plan.num_slices} slices of {{}} x {{}}".format(*plan.patch_grids[-1]) if plan.grid else ""
        seen = [draw.patches_seen(query) for query in draw.one_head(weights[0], head)]
        heads = "the mean of 2 heads" if head == "mean" else f"head {head}"
        return (
            "{}: {} x {} patches{}. ".format("Overview" if cut else "One view", *plan.patch_grids[0], cut)
            + f"Resampler {whose}; {heads}. Its queries spread over {min(seen):.0f} to {max(seen):.0f} patches"
            + (" of the overview." if cut else ".")
        )

    def _preview(self, picture):
        return draw.preview(draw.load_sample(picture))


# ---- lesson 04: into the language model


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
    """Where nano looks when it chooses a token of its answer: which visual tokens, and through them which patches.

    Args:
        picture: a file name of data_samples/images.
        token: number of the generated token.
        layer: number of a layer of the LLM; 0: mean over all.
        stretch: colors from the least to the most of this state.
    """

    pictures = ("chart.png", "cat.jpg", "shapes.png", "numbers.png", "station_sign.png", "screenshot.png")

    def __init__(self, picture="chart.png", token=1, layer=0, stretch=True):
        watched = draw.watch_answer(picture)
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
            self.controls["token"].max = len(draw.watch_answer(self.controls["picture"].value)["words"])

    def draw(self, picture, token, layer, stretch):
        return draw.answer_attention(picture, token, layer or None, stretch)

    def describe(self, picture, token, layer, stretch):
        watched, seen = draw.watch_answer(picture), draw.look(picture, token, layer or None)
        view, query = divmod(int(seen["slots"].argmax()), seen["slots"].shape[1])
        where = f"slice {view}" if view else "the overview"
        patch = max(float(patches.max()) for patches in seen["patches"])
        return (
            f"Token {token} of {len(watched['words'])}, “{watched['words'][token - 1]}”: {seen['share']:.0%} of the "
            f"attention is on slots. Most is on visual token {query} of {where}, {seen['slots'].max():.2f} times an "
            f"even look; the brightest patch gets {patch:.2f} times."
        )
