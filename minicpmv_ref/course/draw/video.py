"""Lesson 12: what clips cost, which frame an answer looks at, and boxes."""

import math
import random
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from minicpmv_ref.config import v2_6
from minicpmv_ref.counts import kv_cache_numbers
from minicpmv_ref.inputs.boxes import parse_boxes
from minicpmv_ref.inputs.files import read_json
from minicpmv_ref.peers.sizes import clip_frames, frame_groups, plan
from minicpmv_ref.toy import boxes
from minicpmv_ref.toy.scenes import VIEW, Scene, Thing, draw_scene

from .canvas import RESULTS, Axes, Canvas, text_width, wrap
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, PURPLE, RED, YELLOW, cividis
from .language import _as_word, quick_model, watched_model
from .memory import in_bytes

FRAME_SIZES = {"1080p": (1920, 1080), "720p": (1280, 720), "640 x 480": (640, 480), "448 x 448": (448, 448)}
SECONDS = 600  # of the longest clip
CLIP_SYSTEMS = {  # system: (its name, its color, numbers that its KV cache holds for one token)
    "minicpm-v-2.6": ("2.6", BLUE, kv_cache_numbers(v2_6.llm)),
    "minicpm-v-4.5": ("4.5", ORANGE, 2 * 36 * 8 * 128),  # Qwen3-8B
    # Qwen3.5-0.8B: every fourth of 24 layers. The others keep a state of fixed size, which is not counted here.
    "minicpm-v-4.6": ("4.6", GREEN, 2 * 6 * 2 * 256),
    "llava-next-video": ("NeXT-Video", PURPLE, 2 * 32 * 32 * 128),  # Vicuna-7B, without shared heads
}


# ---- what a clip costs


class ClipCost(NamedTuple):
    """frames: sampled. together: frames that share their tokens. tokens: visual ones. cache: bytes, two a number."""

    frames: int
    together: int
    tokens: int
    cache: int


@lru_cache(maxsize=8192)
def clip_cost(system: str, size, seconds: int, slices: int = 2, rate: int = 3) -> ClipCost:
    """What a clip costs. `slices` of a frame are those of 2.6, `rate` is that of 4.5, in frames a second."""
    frames = clip_frames(system, seconds, rate if system == "minicpm-v-4.5" else None)
    together = frame_groups(frames)[0] if system == "minicpm-v-4.5" else 1
    tokens = plan(system, size, frames=frames, max_tiles=slices if system == "minicpm-v-2.6" else None).visual_tokens
    return ClipCost(frames, together, tokens, 2 * tokens * CLIP_SYSTEMS[system][2])


def clip_costs(width: int, height: int, seconds: int, slices: int, rate: int) -> Canvas:
    """Tokens over the duration of a clip, and what one clip costs. Facts: "costs" {system: ClipCost}."""
    canvas, size = Canvas(), (width, height)
    costs = {system: clip_cost(system, size, seconds, slices, rate) for system in CLIP_SYSTEMS}
    canvas.facts["costs"] = costs
    lasts = range(1, SECONDS + 1)
    every = {each: [clip_cost(each, size, last, slices, rate).tokens for last in lasts] for each in CLIP_SYSTEMS}
    most = 1.05 * max(map(max, every.values()))
    axes = Axes(canvas, (64, 30, 560, 176), (0, SECONDS), (0, most))
    canvas.text(8, 18, "visual tokens over minutes", 14, bold=True)
    step = 4000 if most > 9000 else 2000
    for level in range(0, int(most) + 1, step):
        axes.level(level, f"{level:,}")
    for minute in range(0, SECONDS // 60 + 1, 2):
        axes.under(60 * minute, minute, tick=4)
    axes.moment(seconds, GRAY, 2)
    for system, tokens in every.items():
        axes.line(list(enumerate(tokens, 1)), CLIP_SYSTEMS[system][1], 3)
    for system, cost in costs.items():
        axes.dot(seconds, cost.tokens, 7, CLIP_SYSTEMS[system][1])

    columns = (112, 196, 316, 412, 522, 632)
    for x, words in zip(columns, ("", "frames", "one every", "share", "tokens", "KV cache")):
        canvas.text(x, 252, words, 14, GRAY, "right")
    for row, (system, cost) in enumerate(costs.items()):
        y, (name, color, _) = 276 + 26 * row, CLIP_SYSTEMS[system]
        canvas.rect(8, y - 12, 14, 14, color)
        canvas.text(28, y, name, 14, bold=True)
        apart = seconds / cost.frames
        shared = f"{cost.together} together" if cost.together > 1 else "alone"
        words = (f"{cost.frames}", f"{apart:.2g} s" if apart < 10 else f"{apart:.0f} s", shared)
        for x, word in zip(columns[1:], (*words, f"{cost.tokens:,}", in_bytes(cost.cache))):
            canvas.text(x, y, word, 14, align="right")
    canvas.text(8, 376, "cache: two bytes a number; the weights come on top", 14, GRAY)
    return canvas


# ---- measured curves


def measured_clips() -> list[list[str]]:
    """The table of experiments/results/zero_shot_clips.json: its head, then a row for each number of frames."""
    return read_json(RESULTS / "zero_shot_clips.json")["table"]


def shares(xs, lines: dict, title: str = "", label: str = "") -> Canvas:
    """Shares from 0 to 1 over numbers, as lines {name: (color, values)}. Facts: the lines, as given."""
    canvas = Canvas(
        640, 260, "; ".join(f"{name}: {', '.join(f'{y:.2f}' for y in ys)}" for name, (_, ys) in lines.items())
    )
    canvas.facts = {name: list(values) for name, (_, values) in lines.items()}
    canvas.text(8, 20, title, bold=True)
    axes = Axes(canvas, (52, 36, 400, 176), (0, len(xs) - 1), (0, 1))
    for level in (0, 0.25, 0.5, 0.75, 1):
        axes.level(level, f"{level:.0%}")
    for place, x in enumerate(xs):
        axes.under(place, x)
    canvas.text(252, 254, label, 14, GRAY, "middle")
    for color, values in lines.values():
        axes.line(list(enumerate(values)), color, 3)
        for place, value in enumerate(values):
            axes.dot(place, value, 5, color)
    canvas.legend(474, 44, [(color, name) for name, (color, _) in lines.items()], step=24)
    return canvas


# ---- which frame an answer looks at


CLIP_COLORS = ("purple", "red", "green", "blue", "yellow", "black", "red", "green")  # of the frames' shapes
CLIP_SHAPES = ("circle", "square", "triangle", "circle", "square", "triangle", "circle", "square")


@lru_cache(maxsize=256)
def star_clip(frames: int, star: int) -> tuple:
    """Frames of one shape each, a star in frame number `star` (from 1). Returns (pictures, the star's color)."""
    shapes = [("star" if k + 1 == star else CLIP_SHAPES[k]) for k in range(frames)]
    pictures = tuple(
        draw_scene(Scene((Thing(CLIP_COLORS[k], shape, (3 * k) % 4),)), random.Random(k))
        for k, shape in enumerate(shapes)
    )
    return pictures, CLIP_COLORS[star - 1]


STAR_QUESTION = "What color is the star?"


@lru_cache(maxsize=256)
def watch_clip(frames: int, star: int, ids: bool = False, name: str = "nano", most: int = 6) -> dict:
    """Let a model answer about a clip and record where it looks.

    Returns:
        words: the tokens of the question, then those of the answer, as text. asked: how many are the question's.
        said: the answer. right: whether it is the star's color.
        slots: numpy (layers, words, frames, Q), attention on each slot, mean over heads: of a word of the question when
            the model reads it, of one of the answer when the model chooses it.
        patches: numpy (frames, Q, rows, cols), each visual token's weights over the patches of its frame.
    """
    import torch

    model, processor = watched_model(name)
    pictures, color = star_clip(frames, star)
    content = [*pictures] if ids else [list(pictures)]  # a list in the content is a video: no ids
    batch = processor([{"role": "user", "content": [*content, STAR_QUESTION]}])
    with torch.inference_mode():
        visual, weights = model.resampler.attend(model.vpm(batch.images[0]), batch.patch_grids[0])
        answer = model.generate(batch, most, visual=visual)
        row = torch.cat([model.embed(batch, visual), model.llm.get_input_embeddings()(answer)], dim=1)
        attentions = model.llm(inputs_embeds=row, output_attentions=True, use_cache=False).attentions
    spots = torch.stack([torch.arange(start, end) for start, end in batch.image_bounds[0].tolist()])
    ids_ = batch.input_ids[0].tolist()
    start = int(spots.max()) + 3  # behind </image> and a newline
    end = ids_.index(processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), start)
    said = answer[0].tolist()
    rows = [*range(start, end), *range(len(ids_) - 1, len(ids_) - 1 + len(said))]
    looks = torch.stack([layer[0].mean(dim=0) for layer in attentions])[:, rows]
    text = processor.tokenizer.decode([token for token in said if token not in batch.stop_ids]).strip()
    return {
        "words": [_as_word(processor.tokenizer, token, batch.stop_ids) for token in (*ids_[start:end], *said)],
        **{"asked": end - start, "said": text, "right": text == color, "slots": looks[:, :, spots].numpy()},
        "patches": torch.stack(
            [each.mean(dim=0).unflatten(-1, grid) for each, grid in zip(weights, batch.patch_grids[0])]
        ).numpy(),
    }


def look_at_clip(frames: int, star: int, token: int, layer: int, ids: bool = False, name: str = "nano"):
    """Where a model looks with one token of the question or the answer.

    Returns:
        (share of the attention that is on frames, numpy of each frame's part of it, numpy (frames, rows, cols): how
        many times an even look each patch gets).
    """
    watched = watch_clip(frames, star, ids, name)
    per_layer = watched["slots"][:, min(token, len(watched["words"])) - 1]
    slots = per_layer.mean(axis=0) if layer == 0 else per_layer[layer - 1]
    share = float(slots.sum())
    patches = (slots[:, :, None, None] * watched["patches"]).sum(axis=1) / share
    return share, slots.sum(axis=1) / share, patches * patches.size


def clip_look(
    frames: int, star: int, shown: int, token: int, layer: int, ids: bool = False, name: str = "nano"
) -> Canvas:
    """A clip, a frame of it, and how much of the attention of one token goes to each frame. Arguments: `ClipLook`.

    Facts: "word", "said", "right", "share", "frames" (parts that add to 1).
    """
    canvas, watched = Canvas(), watch_clip(frames, star, ids, name)
    pictures, _ = star_clip(frames, star)
    share, each, patches = look_at_clip(frames, star, token, layer, ids, name)
    shown, token = min(shown, frames), min(token, len(watched["words"]))
    canvas.facts = {"word": watched["words"][token - 1], "said": watched["said"], "right": watched["right"]}
    canvas.facts |= {"share": share, "frames": each}
    most = float(patches.max())

    canvas.text(8, 20, f"frame {shown}", bold=True)
    canvas.image(8, 30, 160, 160, pictures[shown - 1])
    canvas.text(184, 20, "looked at", bold=True)
    canvas.image(184, 30, 160, 160, _heat(pictures[shown - 1], patches[shown - 1], most))
    canvas.text(360, 20, "question, then answer", bold=True)
    x, y = 360, 30
    for number, word in enumerate(watched["words"], 1):
        wide = text_width(word, 14) + 10
        if x + wide > 636 or number == watched["asked"] + 1:
            x, y = 360, y + 30
        canvas.rect(x, y, wide, 25, YELLOW if number == token else PALE, INK if number == token else "none", 2)
        canvas.text(x + wide / 2, y + 18, word, 14, align="middle")
        x += wide + 5
    best = int(each.argmax()) + 1
    where = f"in layer {layer}" if layer else "mean over the layers"
    canvas.text(360, 142, f"“{canvas.facts['word']}”, {where}:", 14, bold=True)
    canvas.text(360, 162, f"{share:.0%} of its attention is on frames", 14)
    canvas.text(360, 182, f"most on frame {best}; even: {1 / frames:.0%} each", 14)

    wide = min(78, 624 / frames)
    for k, picture in enumerate(pictures):
        left, side = 8 + wide * k, wide - 6
        high = 68 * float(each[k])
        color = RED if k + 1 == star else BLUE
        canvas.rect(left, 300 - high, side, max(high, 1), color, title=f"frame {k + 1}: {each[k]:.1%}")
        canvas.text(left + side / 2, 294 - high, f"{each[k]:.0%}", 14, align="middle")
        canvas.image(left, 304, side, side, picture)
        if k + 1 == shown:
            canvas.rect(left, 304, side, side, stroke=INK, line=3)
    return canvas


def _heat(image, patches, most):
    """A map of patches over the gray picture, on a logarithmic scale: twice as much is as far from even as half."""
    part = 1 + np.log(np.clip(patches.astype(float) / most, 1e-3, 1)) / math.log(1e3)
    gray = image.convert("L").convert("RGB")
    return Image.blend(gray, cividis(part).resize(gray.size, Image.Resampling.NEAREST), 0.6)


# ---- boxes


BOX_QUESTION = "Give the box of the green triangle."
TAUGHT = "<ref>green triangle</ref><box>220 260 620 640</box>"  # an example: nano was not taught boxes


@lru_cache(maxsize=256)
def box_scene(x: int, y: int, size: str) -> tuple:
    """A green triangle with its middle at (x, y), in thousandths of the side: (picture, its box in thousandths)."""
    thing = boxes.Placed("green", "triangle", x, y, boxes.SIZES[size])
    return boxes.draw_placed((thing,), random.Random(0), VIEW), thing.box


@lru_cache(maxsize=256)
def asked_box(x: int, y: int, size: str, name: str = "nano") -> str:
    """What a model answers to BOX_QUESTION; for nano, which was taught no boxes, an example of such an answer."""
    if name == "nano":
        return TAUGHT
    model, processor = quick_model(name)
    return model.chat([{"role": "user", "content": [box_scene(x, y, size)[0], BOX_QUESTION]}], processor)


def box_look(x: int, y: int, size: str, name: str = "nano") -> Canvas:
    """The true box of a triangle, the box of an answer, and how well they agree.

    Facts: "answer", "said" (its box in thousandths; None: it holds none that can be read), "true", "iou".
    """
    canvas, (image, true) = Canvas(), box_scene(x, y, size)
    answer = asked_box(x, y, size, name)
    try:
        found = parse_boxes(answer, (1000, 1000))
    except ValueError:  # three numbers, or a left side right of the right one: models write that, too
        found = []
    said = found[0][1] if found else None
    agree = boxes.iou(true, said) if said else 0.0
    canvas.facts = {"answer": answer, "said": said, "true": true, "iou": agree}

    def at(box):
        left, top, right, bottom = (0.364 * edge for edge in box)
        return 8 + left, 8 + top, right - left, bottom - top

    canvas.image(8, 8, 364, 364, image, frame=GRAY)
    for box, color in ((true, BLUE), (said, RED)):
        if box:
            canvas.rect(*at(box), stroke="white", line=6)
            canvas.rect(*at(box), stroke=color, line=3)
    canvas.lines(392, 24, wrap(BOX_QUESTION, 240, 14, True), 19, 14, bold=True)
    canvas.lines(392, 70, wrap(answer.replace("<box>", " <box>"), 240, 14)[:3], 19, 14)
    y = 138
    for name, box, color in (("true box", true, BLUE), ("box of the answer", said, RED)):
        canvas.rect(392, y - 12, 14, 14, color)
        canvas.text(412, y, name, 14, bold=True)
        canvas.text(412, y + 20, "  ".join(f"{side:.0f}" for side in box) if box else "there is none", 14)
        y += 50
    canvas.text(392, 252, "IoU", bold=True)
    if said:
        both, either = boxes.overlap(true, said)
        canvas.text(392, 276, f"both cover {both:,.0f}", 14)
        canvas.text(392, 298, f"one or both {either:,.0f}", 14)
    canvas.text(392, 330, f"{agree:.2f}", 26, bold=True)
    canvas.text(392, 362, "0..1000 is the whole side", 14, GRAY)
    return canvas
