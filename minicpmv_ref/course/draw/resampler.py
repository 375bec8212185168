"""Lesson 03: where the queries of a resampler look."""

from functools import cache, lru_cache
from html import escape

import numpy as np
from einops import rearrange
from PIL import Image, ImageChops

from minicpmv_ref.config import ResamplerConfig, nano
from minicpmv_ref.inputs.published import find_folder, read_config
from minicpmv_ref.slicing import plan_slices

from .canvas import HEIGHT, WIDTH, Canvas, cell_box, data_address, fit, load_sample, text_width, wrap
from .colors import BLUE, ORANGE, PALE

READERS = {  # whose attention a picture shows
    "places": "built by hand to look at places",
    "stripes": "built by hand, with heads that cut the channels as they come",
    "nano": "of the nano model",
}
LEVELS = 64  # steps of color in an attention map
CELLS = 4  # the queries stand in a square of 4 x 4
LOOK_WIDTH = 440  # of the views in `attention_hover`; the queries stand to the left of them


@cache
def place_reader(kind: str = "places"):
    """A resampler built by hand: query i looks at cell i of a 4 x 4 grid laid over 32 x 32 patches.

    Args:
        kind: "places": each head gets every second frequency of column and row, so it sees both.
            "stripes": the heads cut the channels as they come: head 0 sees columns only, head 1 rows only.
    """
    import torch

    from minicpmv_ref.positions import sincos_2d
    from minicpmv_ref.resampler import Resampler

    reader = Resampler(ResamplerConfig(CELLS**2, 256, 128)).requires_grad_(False)
    reader.query.copy_(rearrange(sincos_2d(256, 32, 32)[4::8, 4::8], "r c e -> (r c) e"))
    same = torch.eye(256)
    if kind == "places":  # a: sine or cosine of column or row
        same = rearrange(same, "(a frequency head) e -> (head a frequency) e", a=4, head=2)
    reader.attn.in_proj_weight.copy_(torch.cat([2 * same, same, same]))
    return reader


@cache
def nano_reader():
    """(vision transformer, resampler) of the nano model.

    The LLM is left out: that saves the seconds that it takes to import transformers.
    """
    from safetensors.torch import load_file

    from minicpmv_ref.inputs.checkpoint import WEIGHTS
    from minicpmv_ref.resampler import Resampler
    from minicpmv_ref.vision import VisionTransformer

    folder = find_folder("nano")
    config, tensors = read_config(folder), load_file(folder / WEIGHTS)
    parts = {"vpm": VisionTransformer(config.vision), "resampler": Resampler(config.resampler)}
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        part.load_state_dict(own, strict=True)
    return tuple(part.eval().requires_grad_(False) for part in parts.values())


@lru_cache(maxsize=8)
def attention_of(name: str, kind: str):
    """How the queries of one of READERS look at the views of a sample: its SlicePlan, and for each view, overview
    first, numpy (heads, queries, rows, cols). Readers built by hand are fed blank patches, so that only places count.
    """
    import torch

    from minicpmv_ref.processor import normalize_views

    image = load_sample(name)
    if kind == "nano":
        plan, (eye, reader) = plan_slices(image.size, nano.slicing), nano_reader()
        features = eye(normalize_views(image, plan))
    else:
        plan, reader = plan_slices(image.size), place_reader(kind)
        features = [torch.zeros(rows * cols, reader.cfg.kv_width) for rows, cols in plan.patch_grids]
    _, weights = reader.attend(features, list(plan.patch_grids))
    return plan, [w.float().numpy().reshape(*w.shape[:2], *grid) for w, grid in zip(weights, plan.patch_grids)]


def one_head(weights, head):
    """(heads, queries, rows, cols) -> (queries, rows, cols): one head, or the mean of all."""
    return weights.mean(axis=0) if head == "mean" else weights[head]


def patches_seen(weights) -> float:
    """The spread, exp(entropy), of weights that sum to 1: as many patches, read evenly, have the same entropy."""
    known = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(known * np.log(known)).sum()))


def query_words(weights, head, query: int) -> str:
    """What one query does. `weights` as in `attention_of`."""
    maps = [one_head(view, head)[query] for view in weights]
    row, col = divmod(int(maps[0].argmax()), maps[0].shape[1])
    view, most = "Overview" if len(maps) > 1 else "View", maps[0].max()
    words = f"Query {query}. {view}: spread over {patches_seen(maps[0]):.0f} of {maps[0].size:,} patches; "
    words += f"most, {most:.1%}, on row {row}, column {col}."
    if len(maps) > 1:
        wide = sorted(round(patches_seen(view)) for view in maps[1:])
        span = f"{wide[0]} to {wide[-1]}" if wide[0] < wide[-1] else f"{wide[0]}"
        words += f" Slices: over {span} of {maps[1].size:,}."
    return words


def attention(image: Image.Image, plan, weights, head="mean", query: int = 5) -> Canvas:
    """One query's attention over the views of a picture, as `attention_hover` shows it when the mouse rests on it."""
    canvas, ceiling, left = Canvas(), _ceiling(weights, head), WIDTH - LOOK_WIDTH
    canvas.text(8, 22, "queries", bold=True)
    for cell in range(CELLS**2):
        x, y = 8 + 44 * (cell % CELLS), 34 + 36 * (cell // CELLS)
        canvas.rect(x, y, 40, 32, ORANGE if cell == query else PALE)
        canvas.text(x + 20, y + 22, cell, align="middle", bold=cell == query)
    canvas.lines(8, 206, wrap(query_words(weights, head, query), 184), 23)
    for title, box, ground, maps, cuts in _looked_at(image, plan, weights, head, left):
        light = _glow(maps[query], ceiling).convert("RGB").resize(ground.size, Image.Resampling.NEAREST)
        canvas.picture(ImageChops.multiply(ground, light), box, title, box[2:])
        canvas.mesh(box, *cuts, "white", 3)
    _draw_scale(canvas, left, ceiling)
    return canvas


class _BesideQueries(Canvas):
    """Its SVG stands to the right of the queries."""

    queries = ""

    def svg(self):
        return f"{self.queries}{super().svg()}</form>"


def attention_hover(image: Image.Image, plan, weights, head="mean", query: int = 5) -> Canvas:
    """Pointing at a query shows its attention over the views of a picture. That needs no script and no kernel.

    All maps are in the page, one pixel per patch; style rules show those of the query under the mouse, or else of the
    chosen one. The queries are radio buttons: a click or the arrow keys choose. A map multiplies the gray picture, so
    what is looked at is bright and yellow. The colors follow the root of the weight: a linear scale would show little
    but the peaks.

    The way back, from a patch to the queries that read it, asks the kernel: every view is a spot whose item is its
    patch grid. Facts: "maps" {name of the spot: numpy (queries, rows, cols)} and "ceiling", where the colors end.
    """
    number, ceiling = CELLS**2, _ceiling(weights, head)
    buttons, words = [], []
    for i in range(number):
        said = escape(query_words(weights, head, i))
        checked = " checked" if i == query else ""
        buttons.append(  # the long name keeps JupyterLab from taking the arrow keys for itself
            f'<label class="q q{i}"><input type="radio" name="query" data-lm-suppress-shortcuts{checked} '
            f'aria-label="{said}"><span>{i}</span></label>'
        )
        words.append(f'<p class="m m{i}" aria-hidden="true">{said}</p>')
    canvas = _BesideQueries(LOOK_WIDTH, HEIGHT)
    canvas.facts = {"maps": {}, "ceiling": ceiling}
    for title, box, ground, maps, cuts in _looked_at(image, plan, weights, head):
        x, y, w, h = canvas.picture(ground, box, title, box[2:])
        for i in range(number):
            canvas.svg_only(
                f'<image class="m m{i}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
                f'preserveAspectRatio="none" href="{data_address(_glow(maps[i], ceiling), photo=False)}"/>',
            )
        canvas.mesh(box, *cuts, "white", 3)
        name, (rows, cols) = title.split(" ")[0], maps.shape[1:]
        canvas.facts["maps"][name] = maps
        canvas.spot(name, (rows, cols), box, "which queries read a patch", "hover", step=(w / cols, h / rows))
    canvas.svg_only(f'<rect class="here" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    _draw_scale(canvas, 0, ceiling)
    canvas.queries = (
        f"<style>{_hover_rules(number)}</style>"
        '<form class="mcv-look"><button disabled hidden></button>'
        f'<div><b>queries</b><div class="qs">{"".join(buttons)}</div><div class="ws">{"".join(words)}</div></div>'
    )
    return canvas


def readers_of(patch, ceiling) -> str:
    """Which queries read a patch most. `patch` are its weights, one for each query."""
    first, *others = [i for i in patch.argsort()[::-1] if patch[i] > ceiling / 1000][:4] or [None]
    if first is None:
        return "no query reads it"
    then = f"; then {', '.join(f'{i} ({patch[i]:.2%})' for i in others)}" if others else ""
    return f"query {first} reads it most, with {patch[first]:.2%} of its weight{then}"


def mark_readers(scope: str, patch, spot, place) -> str:
    """Style rules that color the queries by their weight on one patch, the largest brightest, and frame the patch.

    `scope` is the class of the panel, `place` (row, column) of the patch in its view's spot.
    """
    look = f".{scope} .mcv-look"
    colors = _glow(patch[None], float(patch.max()) or 1).convert("RGB")
    rules = []
    for i in range(len(patch)):
        shade = colors.getpixel((i, 0))
        rules.append(f"{look} .q{i} span{{background:rgb{shade};color:{'black' if sum(shade) > 380 else 'white'}}}")
    frame = zip(("x", "y", "width", "height"), cell_box(spot.box, spot.item, *place))
    sides = "".join(f"{side}:{pixels:.2f}px;" for side, pixels in frame)
    return f"<style>{''.join(rules)}{look} .here{{{sides}}}</style>"


def _hover_rules(number):
    """Style rules of `attention_hover`. Each form is a panel of its own, so several can stand in one notebook."""
    yours = ",".join(f".mcv-look:has(.q{i}:hover) .m{i}" for i in range(number))
    chosen = ",".join(f".mcv-look:not(:has(.q:hover)):has(.q{i}>:checked) .m{i}" for i in range(number))
    return (
        ".mcv-look{display:flex;margin:0;background:white;color:#222;font:16px/1.35 'DejaVu Sans',Verdana,sans-serif;"
        "container-type:inline-size}.mcv-look>div{font-size:clamp(15px,2.5cqw,24px)}"  # as large as the text in the SVG
        ".mcv-look>div{flex:0 0 31%;padding:4px 0 0 6px;box-sizing:border-box}.mcv-look>svg{flex:1 1 0;min-width:0}"
        f".mcv-look .qs{{display:grid;grid-template-columns:repeat({CELLS},1fr);gap:4px;margin:6px 14px 8px 0}}"
        ".mcv-look .q{position:relative;display:block;cursor:pointer;text-align:center}"
        ".mcv-look input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:pointer}"
        f".mcv-look .q span{{display:block;line-height:2;background:{PALE}}}"
        f".mcv-look :checked+span{{background:{ORANGE};font-weight:bold}}"
        f".mcv-look .q:hover span,.mcv-look :focus-visible+span{{outline:3px solid {BLUE};outline-offset:-1px}}"
        ".mcv-look .ws{display:grid;margin-right:8px}.mcv-look .ws p{grid-area:1/1;margin:0}"
        ".mcv-look .m{visibility:hidden}.mcv-look image.m{image-rendering:pixelated;mix-blend-mode:multiply}"
        f"{yours},{chosen}{{visibility:visible}}"
        ".mcv-panel:has(.mcv-look) .widget-toggle-button{padding:0 4px}"
    )


def _looked_at(image, plan, weights, head, left=0):
    """(title, box, gray picture, maps (queries, rows, cols), cuts (cols, rows)) of the overview, and of all slices as
    one picture.
    """
    overview, *slices = (one_head(view, head) for view in weights)
    if not plan.grid:
        yield _view("one view", (left, 30, 432, 294), image, plan.overview_size, overview)
        return
    beside = (left, 30, 120, 294), (left + 136, 30, 296, 294)
    stacked = (left, 30, 432, 78), (left, 138, 432, 186)
    small, large = max(beside, stacked, key=lambda boxes: fit(plan.refined_size, boxes[1])[2])
    yield _view("overview", small, image, plan.overview_size, overview)
    cols, rows = plan.grid
    mosaic = np.block([slices[at : at + cols] for at in range(0, len(slices), cols)])
    yield _view(f"slices {cols} x {rows}", large, image, plan.refined_size, mosaic, plan.grid)


def _view(title, box, image, size, maps, cuts=(1, 1)):
    """One view of `_looked_at`. The picture is in light gray: a map multiplied with it keeps its colors."""
    w, h = fit(size, box)[2:]
    gray = image.convert("L").resize((max(1, round(2 * w)), max(1, round(2 * h))), Image.Resampling.BICUBIC)
    ground = gray.point(lambda level: 90 + level * 165 // 255).convert("RGB")
    return title, (*box[:2], w, h), ground, maps, cuts


def _draw_scale(canvas, left, ceiling):
    ramp = _glow(np.linspace(0, 1, LEVELS)[None] ** 2, 1).convert("RGB")
    canvas.text(left, 353, "weight of a patch")
    at, wide = left + text_width("weight of a patch") + 14, 220
    canvas.image(at, 341, wide, 14, ramp, smooth=False)
    for part in (0, 0.5, 1):
        label = f"{ceiling * part**2:.1%}" if part else "0"
        canvas.text(at + wide * part, 375, label, align="middle" if part else "left")


def _ceiling(weights, head) -> float:
    """The largest weight of all queries in all views: where the colors end."""
    return max(float(one_head(view, head).max()) for view in weights)


@cache
def _cividis():
    """LEVELS colors. A little white is mixed in, or nothing could be seen of the picture where the weight is 0."""
    from matplotlib import colormaps

    return (255 * (0.72 * colormaps["cividis"](np.linspace(0, 1, LEVELS))[:, :3] + 0.28)).astype(np.uint8).tobytes()


def _glow(weights, ceiling):
    """(rows, cols) as one pixel per patch, with a palette: small enough to send all maps at once."""
    levels = np.rint((LEVELS - 1) * np.sqrt(np.clip(weights / ceiling, 0, 1))).astype(np.uint8)
    image = Image.fromarray(levels)
    image.putpalette(_cividis())
    return image
