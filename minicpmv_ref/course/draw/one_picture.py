"""Lesson 00: one picture on its way through the model, stage by stage, with nano's own tensors."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from minicpmv_ref.config import nano
from minicpmv_ref.slicing import slice_image

from .canvas import WIDTH, Canvas, load_sample, preview, text_width, wrap
from .colors import BLUE, GRAY, ORANGE, rgb
from .language import watched_model
from .model import whole_model


class Stage(NamedTuple):
    """A stage on the way: its parts in the drawing and where they are (x, y, w, h); what it does; its lesson."""

    name: str
    parts: tuple
    box: tuple
    does: str
    lesson: str


_TEXT = "04_language_model"
STAGES = (
    Stage("slices", ("slicing",), (101, 3, 184, 106), "the picture is cut into views", "01_slicing"),
    Stage("patches", ("patches",), (289, 3, 72, 106), "views are cut into squares of 14 x 14", "02_vit"),
    Stage("ViT", ("vit",), (365, 3, 82, 106), "each patch looks at the others of its view", "02_vit"),
    Stage("resampler", ("resampler",), (451, 3, 185, 106), "a few queries read all patches of a view", "03_resampler"),
    Stage("slots", ("prompt", "scatter", "row"), (101, 113, 313, 160), "tokens take places in the text", _TEXT),
    Stage("answer", ("llm", "cache", "answer"), (418, 152, 218, 143), "words, one token at a time", _TEXT),
)
QUESTIONS = {  # words on a button: the question
    "describe it": "Describe the picture.",
    "color of the triangle": "What color is the triangle?",
    "number of shapes": "How many shapes are there?",
}
LIMITS = {"patches": 1, "features": 2.5, "tokens": 8, "row": 8}  # where the colors of numbers end


@lru_cache(maxsize=16)
def follow(picture: str, question: str) -> dict:
    """What nano computes between a picture and its answer.

    Args:
        picture: a file name of data_samples/images.

    Returns:
        picture, plan, views: the PIL image, its SlicePlan and the views. Numpy arrays: pixels (3, H, W), patches
        (L, 588), features (L, D) and weights (Q, L), the mean of the heads, of the overview; tokens (views, Q, width)
        of all views; row (T, width); slots (T,), which of the row are slots; scores (V,), the probabilities of the
        first token. best: the four most probable [(word, probability), ...]; answer: the text.
    """
    import torch

    model, processor = watched_model()
    image, size = load_sample(picture), model.config.vision.patch_size
    batch = processor([{"role": "user", "content": [image, question]}])
    with torch.inference_mode():
        features = model.vpm(batch.images[0])
        tokens, weights = model.resampler.attend(features, batch.patch_grids[0])
        row = model.embed(batch, tokens)
        scores = model.llm(inputs_embeds=row).logits[0, -1].float().softmax(dim=-1)
        answer = model.generate(batch, 32, visual=tokens)[0].tolist()
    slots = torch.zeros(row.shape[1], dtype=torch.bool)
    for start, end in batch.image_bounds[0].tolist():
        slots[start:end] = True
    pixels = batch.images[0][0]
    tensors = dict(pixels=pixels, features=features[0], weights=weights[0].mean(dim=0), tokens=tokens, row=row[0])
    tensors |= dict(patches=rearrange(pixels, "c (r p) (w q) -> (r w) (c p q)", p=size, q=size))
    tensors |= dict(slots=slots, scores=scores)
    decode = processor.tokenizer.decode
    return dict(
        picture=preview(image, 300),
        plan=batch.plans[0][0],
        views=slice_image(image, model.config.slicing),
        best=[(decode([i]).strip(), float(scores[i])) for i in scores.topk(4).indices.tolist()],
        answer=decode([i for i in answer if i not in batch.stop_ids]).strip(),
        **{name: tensor.float().numpy() for name, tensor in tensors.items()},
    )


def stage_words(stage: int, seen: dict) -> tuple[str, str, str]:
    """(what comes in, what goes out, a sentence with numbers) of a stage, from 1. `seen` is of `follow`."""
    plan, weights, slots, best = seen["plan"], seen["weights"], int(seen["slots"].sum()), seen["best"][0]
    (width, height), (many, length) = seen["views"][0].size, seen["patches"].shape
    words = (
        "An overview, view 0, and {} x {} slices. ".format(*plan.grid)
        + f"View 0 has {width} x {height} pixels. Its first pixel as numbers from −1 to 1: "
        f"{_some(seen['pixels'][:, 0, 0])}.",
        f"View 0 has {many} patches, each of 3 x 14 x 14 = {length} numbers. The first one begins "
        f"{_some(seen['patches'][0])} …",
        f"{seen['features'].shape[1]} numbers for each patch. The first one's begin {_some(seen['features'][0])} …",
        f"Query 0 takes {weights[0].max():.0%} of its token from patch {weights[0].argmax()} of view 0. The token "
        f"begins {_some(seen['tokens'][0, 0])} …",
        f"A row of {len(seen['slots'])} tokens. The {slots} slots hold the visual tokens (orange at the left), "
        f"{len(seen['slots']) - slots} are markers and words.",
        f"Of {len(seen['scores']):,} tokens, “{best[0]}” is the most probable. The whole answer: “{seen['answer']}”",
    )
    shapes = [f"{name} {seen[name].shape}" for name in ("patches", "features", "tokens", "row", "scores")]
    flow = "{} x {} pixels".format(*plan.image_size), f"{len(seen['views'])} views", *shapes
    colors = " Blue: −{0:g}, orange: {0:g}.".format([*LIMITS.values()][stage - 2]) if 1 < stage < 6 else ""
    return flow[stage - 1], flow[stage], words[stage - 1] + colors


def _some(numbers):
    return ", ".join(f"{number:.2f}".replace("-", "−") for number in numbers[:3])


def course_map(stage: int, picture: str, question: str) -> Canvas:
    """The drawing of the whole model with one stage lit, and below it what comes into this stage and what goes out.

    Its facts: "in", "out" and "numbers", the words of `stage_words`; "lesson", the file that the link opens. Its spots:
    "stage" of each stage, from 1.
    """
    seen, (name, parts, _, does, lesson) = follow(picture, question), STAGES[stage - 1]
    canvas = Canvas(WIDTH, 430)
    canvas.shapes += _lit_model(parts, picture, question)
    for number, other in enumerate(STAGES, 1):
        canvas.spot("stage", number, other.box, f"stage {number}: {other.name}", chosen=number == stage)

    canvas.rect(0, 297, WIDTH, 133, _GROUND)
    canvas.text(8, 316, f"{stage} {name}: {does}", bold=True)
    _draw_link(canvas, lesson)
    came, left, numbers = stage_words(stage, seen)
    canvas.facts = {"in": came, "out": left, "numbers": numbers, "lesson": lesson}
    for x, thing, words in ((8, _THINGS[stage - 1], came), (190, _THINGS[stage], left)):
        thing(canvas, (x, 327, 150, 78), seen)
        canvas.text(x, 423, words, 14)
    canvas.arrow((162, 366), (184, 366))
    lines = wrap(numbers, WIDTH - 368, 14)
    canvas.lines(360, 340, lines[:5] + ["…"] * (len(lines) > 5), 17, 14)
    return canvas


@lru_cache(maxsize=32)
def _lit_model(parts, picture, question):
    return whole_model(parts, nano, load_sample(picture), question).shapes


def _draw_link(canvas, lesson):
    """The link to a lesson; in a saved picture only its words."""
    words = f"lesson {lesson[:2]} →"
    left = WIDTH - 8 - text_width(words)
    canvas.text(WIDTH - 8, 316, words, color=BLUE, align="right")
    canvas.svg_only(
        f'<a href="{lesson}.ipynb" target="_blank" aria-label="open lesson {lesson}"><rect x="{left:g}" y="300" '
        f'width="{WIDTH - 8 - left:g}" height="22" fill="transparent"/></a>'
    )


# ---- what flows: (canvas, box, seen) -> a picture in the box


def _draw_picture(canvas, box, seen):
    canvas.picture(seen["picture"], box, smooth=False, frame=GRAY)


def _draw_views(canvas, box, seen):
    x, y, w, h = box
    canvas.picture(seen["views"][0], (x, y, 0.3 * w, h), smooth=False, frame=GRAY)
    cut = canvas.picture(seen["picture"], (x + 0.36 * w, y, 0.64 * w, h), smooth=False)
    canvas.mesh(cut, *seen["plan"].grid, "white", 5)
    canvas.mesh(cut, *seen["plan"].grid, GRAY, 1, border=True)


def _matrix(name):
    """The numbers of a tensor, one row for each patch or token: blue below 0, orange above."""

    def draw(canvas, box, seen):
        numbers = seen[name][0] if name == "tokens" else seen[name]
        x, y, w, h = box
        if name == "row":
            kinds = Image.new("RGB", (1, len(numbers)), GRAY)
            kinds.putdata([rgb(ORANGE if slot else GRAY) for slot in seen["slots"]])
            canvas.image(x, y, 10, h, kinds, smooth=False)
            x, w = x + 14, w - 14
        canvas.image(x, y, w, h, _in_colors(numbers, LIMITS[name]), smooth=False, frame=GRAY)

    return draw


def _draw_scores(canvas, box, seen):
    x, y, w, h = box
    for line, (word, part) in enumerate(seen["best"]):
        top = y + h / 4 * line
        canvas.text(x + 62, top + 14, word or "·", 14, align="right")
        canvas.rect(x + 70, top + 2, max(1, (w - 112) * part), h / 4 - 5, ORANGE)
        canvas.text(x + w, top + 14, f"{part:.0%}", 14, align="right")


_GROUND = "#F8F8F8"
_THINGS = (_draw_picture, _draw_views, *map(_matrix, LIMITS), _draw_scores)


def _in_colors(numbers, most):
    """(rows, cols) as one pixel each: BLUE at -most and below, white at 0, ORANGE at most and above."""
    part = np.linspace(-1, 1, 255)[:, None]
    palette = 255 + (np.where(part < 0, rgb(BLUE), rgb(ORANGE)) - 255) * abs(part)
    image = Image.fromarray(np.rint(127 + 127 * np.clip(numbers / most, -1, 1)).astype(np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image
