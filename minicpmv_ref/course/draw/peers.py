"""Lesson 11: one picture in sixteen systems, which token is where, experts, masks, a query's region, the bake-off."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from minicpmv_ref.config import SliceConfig, nano
from minicpmv_ref.inputs.files import read_json
from minicpmv_ref.peers.sizes import SYSTEMS, Plan, plan
from minicpmv_ref.slicing import plan_slices

from .canvas import RESULTS, WIDTH, Canvas, cell_box, counted, load_sample, preview, wrap
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, PURPLE, RED, SKY, YELLOW
from .later import arm_means

ASKED = {"1 picture": (1, 0), "2 pictures": (2, 0), "16 frames": (1, 16)}  # words in a menu: (pictures, frames)
SIDES = {  # of the square that the encoder gets, in pixels; MiniCPM-V has none. Cambrian-1: of the largest of four
    **{"llava-1.5": 336, "llava-next": 336, "llava-next-video": 336, "llava-next-interleave": 384},
    **{"llava-onevision": 384, "internvl-1.0": 224, "internvl-1.5": 448, "vila-1.5": 384, "cogvlm2": 1344},
    **{"glm-4v": 1120, "cambrian-1": 1024},
}
NAMES = {
    **{"llava-1.5": "LLaVA-1.5", "llava-next": "LLaVA-NeXT", "llava-next-video": "NeXT-Video"},
    **{"llava-next-interleave": "NeXT-Interleave", "llava-onevision": "OneVision"},
    **{"internvl-1.0": "InternVL-1.0", "internvl-1.5": "InternVL-1.5", "vila-1.5": "VILA-1.5", "cogvlm2": "CogVLM2"},
    **{"glm-4v": "GLM-4V", "cambrian-1": "Cambrian-1"},
    **{system: system.replace("minicpm-v-", "MiniCPM-V ") for system in SYSTEMS if system.startswith("minicpm")},
}
SENTENCES = {
    "llava-1.5": "Pads the picture to a square of 336 x 336. Always 576 tokens; padding costs tokens, too.",
    "llava-next": "Fits the picture into the best of five canvases and cuts that into tiles of 336. Tokens of padding "
    "are removed, and each row ends with a newline token.",
    "llava-next-video": "A picture as in LLaVA-NeXT. Of a frame only the middle square is kept, in 144 tokens.",
    "llava-next-interleave": "A picture that is alone gets tiles of 384; one of several gets a single padded view.",
    "llava-onevision": "Up to 36 tiles of 384. Far more tokens than those of nine tiles are shrunk to that many.",
    "internvl-1.0": "One view of 224 x 224, read by 96 queries. (That it is stretched, not padded, is our assumption.)",
    "internvl-1.5": "Stretches the picture into the grid of the nearest shape: up to 12 tiles of 448, and a thumbnail. "
    "256 tokens each.",
    "vila-1.5": "One view, stretched to 384 x 384. Four patches share a token: 196 tokens.",
    "cogvlm2": "One view, stretched to 1344 x 1344: 2,304 tokens, with weights of their own in the language model.",
    "glm-4v": "As CogVLM2, with 1120 x 1120 pixels and 1,600 tokens, without the second set of weights.",
    "cambrian-1": "Four encoders see one padded square. 24 x 24 queries read it, each its own region; rows and columns "
    "of padding are removed.",
    "minicpm-v-2.0": "An overview and up to nine slices, all near the shape of the picture: 64 tokens each.",
    "minicpm-v-2.5": "An overview and up to nine slices, all near the shape of the picture: 96 tokens each.",
    "minicpm-v-2.6": "An overview and up to nine slices (of a frame two): 64 tokens each.",
    "minicpm-v-4.5": "A picture as in 2.6. In a clip, a group of one to three frames shares 64 tokens.",
    "minicpm-v-4.6": "Slices as in 2.6, sides rounded to 56 pixels. One token for each 4 x 4 patches, so views differ.",
}
PADDING = "#B9B9B9"
LOST = (PADDING, "padding"), (RED, "cut off")


# ---- one picture, all systems


class Seen(NamedTuple):
    """What a system makes of a picture, and where it lies.

    canvas: (width, height) in pixels of all tiles together, or of the only view, as the encoder gets them.
    grid: (cols, rows) of the tiles. inside: (x, y, w, h) of the picture on the canvas; it can reach beyond it.
    covered: the canvas (left, top, right, bottom) in pixels of the picture.
    kept: share of the picture's pixels that are left in the canvas: 1 unless it is cut off or shrunk.
    """

    plan: Plan
    canvas: tuple
    grid: tuple
    inside: tuple
    covered: tuple
    kept: float


def seen_by(system: str, size, asked: str = "1 picture") -> Seen | None:
    """Where a system puts a picture; None if it is not published for what is asked."""
    pictures, frames = ASKED[asked]
    try:
        made = plan(system, size, pictures, frames)
    except ValueError:  # without video, or for one picture only
        return None
    left, top, right, bottom = (list(edge) for edge in zip(*(made.tiles or [(0.0, 0.0, *map(float, size))])))
    grid = len({*left}), len({*top})
    x0, y0, x1, y1 = covered = min(left), min(top), max(right), max(bottom)
    canvas = _canvas_size(system, size, grid, frames)
    sx, sy = canvas[0] / (x1 - x0), canvas[1] / (y1 - y0)
    inside = -x0 * sx, -y0 * sy, size[0] * sx, size[1] * sy
    across, down = ((min(high, side) - max(low, 0)) / side for low, high, side in zip((x0, y0), (x1, y1), size))
    return Seen(made, canvas, grid, inside, covered, across * down * min(sx, 1) * min(sy, 1))


def _canvas_size(system, size, grid, frames):
    if system in SIDES:
        return grid[0] * SIDES[system], grid[1] * SIDES[system]
    most = 9 if not frames else 2 if system == "minicpm-v-2.6" else 1
    cut = plan_slices(size, SliceConfig(patch_size=56 if system == "minicpm-v-4.6" else 14, max_slice_nums=most))
    return cut.refined_size if cut.grid else cut.overview_size


def all_systems(size, image: Image.Image, asked: str = "1 picture") -> Canvas:
    """One picture as sixteen systems get it, with tokens, pixels and the share of its own pixels as bars."""
    canvas = Canvas()
    canvas.scale = 1  # many small photos: larger, it would fill half of the notebook's file
    canvas.facts = {system: seen_by(system, size, asked) for system in SYSTEMS}
    image = preview(image, 200)  # each is drawn smaller than that
    there = [seen.plan for seen in canvas.facts.values() if seen]
    most = max(made.visual_tokens for made in there), max(made.pixels_seen for made in there)
    for number, (system, seen) in enumerate(canvas.facts.items()):
        x, y = 4 + 160 * (number % 4), 88 * (number // 4)
        canvas.text(x, y + 15, NAMES[system], 14, bold=True)
        if seen is None:
            canvas.text(x, y + 48, "not published", 14, GRAY)
            continue
        _draw_seen(canvas, image, size, seen, (x, y + 21, 76, 60), stretched=True)
        tokens, pixels = seen.plan.visual_tokens, seen.plan.pixels_seen
        values = (tokens, f"{tokens:,}"), (pixels, f"{pixels / 1e6:.{2 if pixels < 1e7 else 1}f} M")
        for row, ((value, words), color) in enumerate(zip(values, (BLUE, ORANGE))):
            canvas.text(x + 84, y + 33 + 26 * row, words, 14)
            canvas.rect(x + 84, y + 37 + 26 * row, max(1, 68 * value / most[row]), 6, color)
        canvas.rect(x + 84, y + 74, 68, 6, PALE)
        canvas.rect(x + 84, y + 74, max(1, 68 * seen.kept), 6, GREEN, title=f"{seen.kept:.1%} of its own pixels")
    canvas.legend(4, 360, [(BLUE, "visual tokens"), (ORANGE, "pixels of all views"), (GREEN, "own pixels left"), *LOST])
    return canvas


def one_system(system: str, size, image: Image.Image, asked: str = "1 picture") -> Canvas:
    """One picture in one system: cut in its own shape, and as the encoder gets it."""
    canvas, seen = Canvas(), seen_by(system, size, asked)
    canvas.facts[system] = seen
    canvas.text(8, 20, f"{NAMES[system]}: where it cuts" if seen else NAMES[system], bold=True)
    if seen is None:
        canvas.text(8, 60, f"not published for {asked}", color=GRAY)
        return canvas
    _draw_seen(canvas, image, size, seen, (8, 30, 296, 190), stretched=False)
    width, height = seen.canvas
    canvas.text(322, 20, f"the encoder gets {width:g} x {height:g}", bold=True)
    _draw_seen(canvas, image, size, seen, (322, 30, 310, 190), stretched=True)
    times = max(ASKED[asked])
    views = seen.plan.views // times
    parts = f"{views} views: {len(seen.plan.tiles)} tiles and an overview" if views > 1 else "1 view"
    parts = f"{asked}, each {parts}" if times > 1 else parts
    lines = [
        f"{parts}; {seen.plan.padding:.0%} of the views is padding",
        f"tokens: {seen.plan.visual_tokens:,}, {seen.plan.newlines:,} of them newlines",
        f"pixels of all views: {seen.plan.pixels_seen:,}; a side stretched by up to {seen.plan.bend:.2f}",
        f"{seen.kept:.1%} of the picture's own pixels are left",
    ]
    canvas.lines(8, 244, lines, 20, 14)
    canvas.lines(8, 330, wrap(SENTENCES[system], WIDTH - 16, 14), 18, 14, color=BLUE)
    canvas.legend(4, 360, LOST)
    return canvas


def _draw_seen(canvas, image, size, seen, box, stretched):
    """The picture with padding around it and lines between tiles: as the encoder gets it, or in its own shape."""
    left, top, right, bottom = seen.covered
    ground, inside = (left, top, right - left, bottom - top), (0, 0, *size)
    if stretched:
        ground, inside = (0, 0, *seen.canvas), seen.inside
    x = min(ground[0], inside[0]), max(ground[0] + ground[2], inside[0] + inside[2])
    y = min(ground[1], inside[1]), max(ground[1] + ground[3], inside[1] + inside[3])
    k = min(box[2] / (x[1] - x[0]), box[3] / (y[1] - y[0]))

    def on_canvas(part):
        return box[0] + k * (part[0] - x[0]), box[1] + k * (part[1] - y[0]), k * part[2], k * part[3]

    ground, inside = on_canvas(ground), on_canvas(inside)
    canvas.rect(*ground, PADDING)
    pixels = tuple(max(1, round(2 * side)) for side in inside[2:])
    shown = image.resize(pixels, Image.Resampling.BICUBIC)
    if inside[0] < ground[0] - 0.01 or inside[1] < ground[1] - 0.01:  # cut off at both ends
        red = Image.blend(shown, Image.new("RGB", pixels, RED), 0.7)
        kept = [round(2 * (g - i)) for g, i in zip(ground, inside)][:2]
        kept += [min(kept[axis] + round(2 * ground[2 + axis]), pixels[axis]) for axis in (0, 1)]
        red.paste(shown.crop(kept), kept[:2])
        shown = red
    canvas.image(*inside, shown)
    thin = min(ground[2] / seen.grid[0], ground[3] / seen.grid[1]) < 24
    for color, line in ((INK, 1.5 if thin else 4), (YELLOW, 0.7 if thin else 2)):
        canvas.mesh(ground, *seen.grid, color, line, border=len(seen.plan.tiles) > 1)


# ---- which token is where

ORDERS = {  # system: (patches a side of a view, (order, its words), ...)
    "internvl-1.5": (32, ("v2", "v2 (1.5)"), ("v1", "v1 (1.2)")),
    "vila-1.5": (27, ("rows", "main branch"), ("columns", "released 1.5")),
}


@lru_cache(maxsize=4)
def token_patches(system: str, order: str) -> tuple:
    """For each token, in the order of the language model, its patches ((row, col), ...); None is a patch of zeros."""
    import torch

    from minicpmv_ref.peers import internvl, vila

    side = ORDERS[system][0]
    numbers = torch.arange(1.0, side * side + 1)  # 0 is what VILA pads with
    if system == "vila-1.5":
        tokens = vila.downsample(numbers.reshape(1, -1, 1), order)[0]
    else:
        tokens = internvl.pixel_shuffle(numbers.reshape(1, side, side, 1), order)
        tokens = rearrange(tokens, "1 r c d -> (r c) d")
    places = (tokens.long() - 1).tolist()
    return tuple(tuple(divmod(number, side) if number >= 0 else None for number in token) for token in places)


def token_places(system: str, token: int, image: Image.Image) -> Canvas:
    """The patches of one token in both published orders, and the picture as the tokens follow each other."""
    side, *orders = ORDERS[system]
    canvas, across = Canvas(), -(-side // 2)
    canvas.scale = 1
    row, col = divmod(token, across)
    view = image.resize((side * 14, side * 14), Image.Resampling.BICUBIC)
    box = canvas.picture(view, (8, 30, 296, 296), f"{side} x {side} patches")
    canvas.mesh(box, side, side, "#D0D0D0", 0.5, border=True)
    for number, ((order, words), color) in enumerate(zip(orders, (ORANGE, BLUE))):
        canvas.facts[order] = token_patches(system, order)[token]
        there = [place for place in canvas.facts[order] if place]
        for place in there:
            canvas.rect(*cell_box(box, (side, side), *place), color, INK)
        small = (322 + 160 * number, 30, 150, 150)
        canvas.text(small[0], 20, words, bold=True, color=color)
        canvas.image(*small, _as_tokens(view, system, order), smooth=False)
        canvas.rect(*cell_box(small, (across, across), row, col), "none", RED, 2)
        rows, cols = (_span(sorted({*numbers})) for numbers in zip(*there))
        zeros = len(canvas.facts[order]) - len(there)
        spans = f"rows {rows}", f"columns {cols}", f"{zeros} of zeros" if zeros else ""
        canvas.lines(small[0], 212, ("its patches:", *spans), 20, 14, color=color)
    canvas.lines(322, 306, wrap("Above: all tokens in the order in which the language model gets them.", 300), 18, 14)
    canvas.text(8, 352, f"token {token} of {across**2}: row {row}, column {col} of the tokens", 14)
    canvas.words = f"{system}, token {token}: " + "; ".join(f"{order}: {p}" for order, p in canvas.facts.items())
    return canvas


def _span(numbers):
    return f"{numbers[0]} and {numbers[-1]}" if numbers[0] < numbers[-1] else f"{numbers[0]}"


def _as_tokens(view, system, order):
    """The picture put together from its tokens, one after the other: right only if they come row by row."""
    side, small = ORDERS[system][0], 6  # pixels of a patch
    pixels = np.asarray(view.resize((side * small,) * 2, Image.Resampling.BICUBIC))
    patches = rearrange(pixels, "(r y) (c x) rgb -> (r c) y x rgb", y=small, x=small)
    patches = np.concatenate([patches, np.zeros_like(patches[:1])])  # the last one is VILA's patch of zeros
    numbers = [[-1 if at is None else at[0] * side + at[1] for at in token] for token in token_patches(system, order)]
    across = -(-side // 2)
    tokens = rearrange(patches[numbers], "(r c) (p q) y x rgb -> (r p y) (c q x) rgb", c=across, p=2)
    return Image.fromarray(tokens)


# ---- two experts


def expert_strip(pictures: int, patches: int, words: int) -> Canvas:
    """Type, expert and position of each token in CogVLM2: pictures with `words` tokens between them, and two more."""
    import torch

    from minicpmv_ref.peers.cogvlm import expert_mask, expert_position_ids

    picture = ["boi", *["img"] * patches, "eoi"]
    names = ["BOS", *(picture + ["txt"] * words) * (pictures - 1), *picture, "txt", "txt"]
    types = torch.tensor([[int(name in picture) for name in names]])
    facts = {"types": types, "vision": expert_mask(types), "positions": expert_position_ids(types)}
    canvas = Canvas(height=300)
    canvas.facts = {name: value[0].tolist() for name, value in facts.items()}
    wide = min(44, (WIDTH - 90) / len(names))
    for y, label in zip((58, 106, 154, 202, 248), ("token", "type", "expert", "position", "number")):
        canvas.text(4, y, label, 14, bold=True)
    for number, name in enumerate(names):
        x = 84 + wide * number
        kind, vision, position = (canvas.facts[key][number] for key in ("types", "vision", "positions"))
        for y, color in ((84, SKY if kind else PALE), (132, ORANGE if vision else GREEN)):
            canvas.rect(x + 1, y, wide - 2, 32, color)
        same = number and canvas.facts["positions"][number - 1] == position
        canvas.rect(x + 1, 180, wide - 2, 32, PURPLE if same else "white", GRAY)
        cells = (58, name), (106, kind), (154, "V" if vision else "L"), (202, position), (248, number)
        for y, text in cells:
            canvas.text(x + wide / 2, y, text, 14, GRAY if y == 248 else INK, "middle")
    canvas.legend(4, 274, [(ORANGE, "vision expert"), (GREEN, "language expert"), (PURPLE, "same position as before")])
    canvas.text(4, 22, f"CogVLM2: {counted(pictures, 'picture')} of {counted(patches, 'image token')}", bold=True)
    return canvas


# ---- InternVL-1.0's masks, Cambrian-1's regions


def stage2_masks(queries: int = 4, text: int = 5) -> Canvas:
    """Who may look where in the three tasks of InternVL-1.0's second stage; one text token's row is outlined."""
    import torch

    from minicpmv_ref.peers.qllama import TASKS, stage2_mask

    canvas, titles = Canvas(height=290), {"itm": "match", "itc": "contrast", "itg": "caption"}
    chosen, cell = queries + text // 2, 180 / (queries + text)
    for number, task in enumerate(TASKS):
        mask = stage2_mask(task, queries, torch.ones(1, text, dtype=torch.long))[0]
        canvas.facts[task] = mask.tolist()
        x = 26 + 212 * number
        canvas.text(x, 20, f"{task}: {titles[task]}", bold=True)
        for row, line in enumerate(canvas.facts[task]):
            canvas.text(x - 5, 56 + cell * row, f"{row}", 13, GRAY, "right")
            canvas.text(x + cell * (row + 0.5), 38, f"{row}", 13, GRAY, "middle")
            for col, allowed in enumerate(line):
                color = "white" if not allowed else SKY if col < queries else GREEN
                canvas.rect(*cell_box((x, 42, 180, 180), mask.shape, row, col), color, "#C8C8C8")
        canvas.path([(x + cell * queries, 42), (x + cell * queries, 222)], INK, 2)
        canvas.path([(x, 42 + cell * queries), (x + 180, 42 + cell * queries)], INK, 2)
        canvas.rect(x, 42 + cell * chosen, 180, cell, "none", RED, 3)
    caption = f"down: who looks ({queries} queries, {text} text tokens); across: at whom; outlined: token {chosen}"
    canvas.text(8, 246, caption, 14)
    canvas.legend(8, 262, ((SKY, "looks at a query"), (GREEN, "looks at a text token"), ("white", "may not look")))
    pairs = ((task, sum(map(sum, mask)), len(mask) ** 2) for task, mask in canvas.facts.items())
    canvas.words = "; ".join("{}: {} of {} pairs".format(*each) for each in pairs)
    return canvas


def query_region(query=(1, 2), queries: int = 4, blocks=(1, 2)) -> Canvas:
    """What one of queries x queries may read in each encoder: in SVA its region, in a plain resampler everything."""
    canvas, image = Canvas(height=270), load_sample("coffee.jpg")
    canvas.scale = 1
    side = min(image.size)
    square = image.crop((0, 0, side, side)).resize((360, 360), Image.Resampling.BICUBIC)
    x, y, wide, high = cell_box((0, 0, 360, 360), (queries, queries), *query)
    region, pale = (x, y, x + wide, y + high), Image.blend(square, Image.new("RGB", square.size, "white"), 0.6)
    pale.paste(square.crop(region), (round(x), round(y)))
    canvas.facts = {"sva": [], "resampler": []}
    canvas.text(8, 22, "queries", bold=True)
    for cell in range(queries**2):
        row, col = divmod(cell, queries)
        canvas.rect(8 + 30 * col, 32 + 30 * row, 28, 28, ORANGE if (row, col) == tuple(query) else PALE)
    for number, block in enumerate(blocks):
        across, box = queries * block, (150 + 250 * number, 32, 180, 180)
        canvas.picture(pale, box, f"encoder {number}: {across} x {across} patches")
        canvas.mesh(box, across, across, "white", 1)
        every = [(row, col) for row in range(across) for col in range(across)]
        canvas.facts["resampler"].append(every)
        canvas.facts["sva"].append([(row, col) for row, col in every if (row // block, col // block) == tuple(query)])
        canvas.rect(*cell_box(box, (queries, queries), *query), "none", ORANGE, 4)
        canvas.text(box[0], 230, f"{block**2} of {across**2} patches", 14)
    counts = {name: sum(map(len, found)) for name, found in canvas.facts.items()}
    canvas.words = f"query {tuple(query)}: {counts['sva']} keys in SVA, {counts['resampler']} in a plain resampler"
    canvas.text(8, 258, canvas.words)
    return canvas


# ---- the bake-off

CONNECTOR_NAMES = {  # arm of experiments/connectors.py: (its words, whose connector it is)
    "resampler": ("resampler", "MiniCPM-V"),
    "mlp": ("MLP on each patch", "LLaVA-1.5"),
    "shuffle": ("pixel shuffle, MLP", "InternVL-1.5, VILA-1.5"),
    "mean": ("mean of 2 x 2, MLP", "for comparison"),
    "sva": ("SVA", "Cambrian-1"),
    "qllama": ("queries in a transformer", "InternVL-1.0"),
    "mlp, equal operations": ("MLP, fewer steps", "as much work as 16 tokens"),
}


class Baked(NamedTuple):
    """One connector after its short training: losses on lines of text in nats a token, and what one picture costs."""

    loss: float
    seeds: tuple
    steps: int
    tokens: int
    operations: int  # of ViT, connector and LLM for one view and 24 tokens of text, forward


@lru_cache
def picture_cost(connector: str) -> tuple[int, int]:
    """(visual tokens, operations) of one view in nano with this connector."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from minicpmv_ref.model import MiniCPMV
    from minicpmv_ref.peers.connectors import CONNECTORS

    model = MiniCPMV(nano, None if connector == "resampler" else CONNECTORS[connector](nano)).requires_grad_(False)
    # The counter does not know the fused attention of CPUs, so attention is computed step by step here.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        visual = model.encode_images([torch.zeros(3, 112, 112)], [(8, 8)])
        row = torch.cat([visual, torch.zeros(1, 24, visual.shape[2])], dim=1)
        model.llm(inputs_embeds=row, use_cache=False)
    return visual.shape[1], counter.get_total_flops()


def baked(result: dict) -> dict[str, Baked]:
    """The arms of the experiment on connectors, from its result file."""
    head, *rows = result["table"]
    steps = [int(row[head.index("steps")].replace(",", "")) for row in rows]
    arms = zip(arm_means(result, "crop, nats").items(), steps)
    return {arm: Baked(*losses, count, *picture_cost(arm.split(",")[0])) for (arm, losses), count in arms}


def bake_off(result: dict | None = None) -> Canvas:
    """What each connector has learned after the same short training (None: the recorded one), and what it costs."""
    result, canvas = result or read_json(RESULTS / "connectors.json"), Canvas()
    arms = canvas.facts = dict(sorted(baked(result).items(), key=lambda pair: pair[1].loss))
    worst = max(max(one.seeds) for one in arms.values())
    most = max(one.operations for one in arms.values())
    for x, words in ((8, "connector"), (214, "loss on lines of text"), (420, "tokens"), (500, "operations")):
        canvas.text(x, 20, words, 14, bold=True)
    for number, (arm, one) in enumerate(arms.items()):
        y = 34 + 46 * number
        name, whose = CONNECTOR_NAMES[arm]
        canvas.text(8, y + 16, name, 14)
        canvas.text(8, y + 33, whose, 14, GRAY)
        canvas.rect(214, y + 6, 130 * one.loss / worst, 14, BLUE)
        for seed in one.seeds:
            canvas.dot(214 + 130 * seed / worst, y + 13, 4, ORANGE)
        canvas.text(362, y + 18, f"{one.loss:.2f}", 14)
        canvas.text(420, y + 18, f"{one.tokens}", 14)
        canvas.text(420, y + 35, f"{one.steps} steps", 14, GRAY)
        canvas.rect(500, y + 6, 76 * one.operations / most, 14, GREEN)
        canvas.text(582, y + 18, f"{one.operations / 1e6:.0f} M", 14)
    canvas.legend(8, 364, [(BLUE, "nats a token, less is better"), (ORANGE, "each seed"), (GREEN, "for one picture")])
    canvas.words = f"bake-off, best first: {'; '.join(arms)}"
    return canvas
