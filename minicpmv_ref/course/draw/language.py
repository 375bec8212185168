"""Lesson 04: a prompt token by token, and where the language model looks when it answers."""

import math
from functools import cache, lru_cache

from PIL import Image

from minicpmv_ref.slicing import plan_slices

from .canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    TEXT,
    WIDTH,
    YELLOW,
    Canvas,
    load_sample,
    preview,
    text_width,
)

STRIP_SLOTS = 4  # per view in the token strip, where 64 or 96 would not fit
STRIP_KINDS = {  # kind of token: (color of its cell, words)
    "text": (PALE, "text"),
    "slot": (ORANGE, "slots"),
    "image": (BLUE, "<image> </image>"),
    "slice": (GREEN, "<slice> </slice>"),
    "image_id": (PURPLE, "<image_id> </image_id>"),
    "newline": (INK, "newline"),
}
STRIP_COMPANY = ("street_sign.png", "cat.jpg")  # second and third image of a prompt


@cache
def nano_tokenizer():
    from minicpmv_ref.inputs.published import find_folder
    from minicpmv_ref.processor import read_tokenizer

    return read_tokenizer(find_folder("nano"))


@lru_cache(maxsize=64)
def strip_tokens(pictures: tuple, version: str, question: str = "What is this?"):
    """The user's part of a prompt, tokenized with nano's tokenizer, STRIP_SLOTS slots for each view.

    Args:
        pictures: file names of data_samples/images.
        version: "2.0", "2.5" or "2.6".

    Returns:
        (cells, views): cells [(kind, text), ...], one for each token; views [(picture, number of the image, number of
        the view, start, end), ...], the slots of every view as positions in cells.
    """
    from minicpmv_ref.prompt import image_bounds, image_layout

    plans = [plan_slices(load_sample(name).size) for name in pictures]
    text = ""
    for number, plan in enumerate(plans):
        layout = image_layout(plan, STRIP_SLOTS, version, number)
        text += layout if layout.endswith("\n") else layout + "\n"
    tokenizer = nano_tokenizer()
    ids = tokenizer(text + question, add_special_tokens=False)["input_ids"]
    words = [tokenizer.decode([i]) for i in ids]
    kinds = {"\n": "newline", "<unk>": "slot"}
    cells = [(kinds.get(word, word.strip("</>") if word[0] == "<" else "text"), word) for word in words]
    names = [(name, i, v) for i, name in enumerate(pictures) for v in range(1 + plans[i].num_slices)]
    bounds = image_bounds(ids, tokenizer, version).tolist()
    return cells, [(*name, *bound) for name, bound in zip(names, bounds, strict=True)]


def token_strip(pictures: tuple, version: str, view: int) -> Canvas:
    """A prompt token by token; the visual tokens of view number `view` (from 1) on their way into their slots."""
    canvas, (cells, views) = Canvas(), strip_tokens(pictures, version)
    name, image, number, start, end = views[view - 1]
    places = _draw_cells(canvas, cells, start, end)
    plan = plan_slices(load_sample(name).size)

    top = 268
    canvas.text(8, top - 10, f"image {image}, " + (f"slice {number}" if number else "overview"), 14, bold=True)
    seen = _crop_view(preview(load_sample(name), 400), plan, number)
    w = canvas.picture(seen, (8, top, 116, 104))[2]
    middle = top + 52
    canvas.arrow((14 + w, middle), (206, middle), INK)
    canvas.text(max(134, (w + 220) / 2), middle - 24, "ViT", 14, align="middle")
    canvas.text(max(134, (w + 220) / 2), middle - 8, "resampler", 14, align="middle")
    for token in range(end - start):
        column = 214 + 24 * token
        left, upper, width, height = places[start + token]
        canvas.arrow((column + 9, top + 8), (left + width / 2, upper + height + 1), RED)
        canvas.rect(column, top + 10, 18, 82, ORANGE, RED, 2)
    canvas.text(214, top + 110, "visual tokens", 14)

    counts = {kind: sum(cell[0] == kind for cell in cells) for kind in STRIP_KINDS}
    lines = [(kind, count) for kind, count in counts.items() if count]
    canvas.text(376, top - 10, f"{len(cells)} tokens", 14, bold=True)
    for line, (kind, count) in enumerate(lines):
        color, words = STRIP_KINDS[kind]
        canvas.rect(376, top + 18 * line, 13, 13, color)
        canvas.text(424, top + 12 + 18 * line, count, 14, align="right")
        canvas.text(432, top + 12 + 18 * line, words, 14)
    return canvas


def _draw_cells(canvas, cells, start, end):
    """One cell per token; a line ends after a newline. Returns where the cells are: (x, y, w, h)."""
    lines = "".join("n" if kind == "newline" else "." for kind, _ in cells).split("n")
    unit = max(20, min(32, (WIDTH - 13) / (1 + max(map(len, lines)))))
    step = min(unit + 6, 232 / len(lines))
    x, y, places = 8, 6, []
    for position, (kind, word) in enumerate(cells):
        label = word.strip() if kind == "text" else {"newline": "↵", "slot": ""}.get(kind, "")
        if kind in ("image", "slice", "image_id"):
            label = "<>"[word[1] == "/"]
        wide = max(unit, text_width(label, 14) + 8)
        if x + wide > WIDTH - 4:
            x, y = 8, y + step
        high = step - 4
        if kind == "slot":
            here, done = start <= position < end, position < end
            canvas.rect(x + 1, y + 1, wide - 3, high - 2, ORANGE if done else "white", RED if here else ORANGE, 2)
        else:
            canvas.rect(x, y, wide - 1, high, STRIP_KINDS[kind][0])
            ink = INK if kind == "text" else "white"
            canvas.text(x + (wide - 1) / 2, y + high / 2 + 5, label, 14, ink, "middle", kind != "text")
        places.append((x, y, wide - 1, high))
        x += wide
        if kind == "newline":
            x, y = 8, y + step
    return places


def _crop_view(image, plan, number):
    """What view `number` of a plan shows: 0 the whole image, then the slices row by row."""
    if number == 0:
        return image
    cols, rows = plan.grid
    col, row = (number - 1) % cols, (number - 1) // cols
    w, h = image.width / cols, image.height / rows
    return image.crop((round(col * w), round(row * h), round((col + 1) * w), round((row + 1) * h)))


@cache
def watched_model(name: str = "nano"):
    """(model, processor) from "nano" or a folder; its LLM can show attention."""
    from minicpmv_ref import MiniCPMV, Processor

    model = MiniCPMV.from_pretrained(name)
    model.llm.set_attn_implementation("eager")  # the quicker ones never hold the weights
    return model, Processor.from_pretrained(name)


@lru_cache(maxsize=8)
def watch_answer(picture: str, question: str = "Describe the picture.", most: int = 12, name: str = "nano") -> dict:
    """Let a model answer greedily and record where it looks.

    Args:
        picture: a file name of data_samples/images.
        question: about it.
        most: tokens of the answer.
        name: "nano" or the folder of a checkpoint.

    Returns:
        words: the generated tokens as text.
        slots: numpy (layers, tokens, views, Q), attention on every slot, mean over heads. Row k belongs to the position
            whose output is token k: the last one of the prompt for the first token.
        resampler: [numpy (Q, L_i), ...], each visual token's weights over the patches of its view, mean over heads.
        plan, patch_grids: of the picture.
    """
    import torch

    model, processor = watched_model(name)
    batch = processor([{"role": "user", "content": [load_sample(picture), question]}])
    grids = batch.patch_grids[0]
    with torch.inference_mode():
        visual, weights = model.resampler.attend(model.vpm(batch.images[0]), grids)
        answer = model.generate(batch, most, visual=visual)
        row = torch.cat([model.embed(batch, visual), model.llm.get_input_embeddings()(answer)], dim=1)
        attentions = model.llm(inputs_embeds=row, output_attentions=True, use_cache=False).attentions
    first = batch.input_ids.shape[1] - 1
    looks = torch.stack([layer[0].mean(dim=0) for layer in attentions])[:, first : first + answer.shape[1]]
    spots = torch.stack([torch.arange(start, end) for start, end in batch.image_bounds[0].tolist()])
    return dict(
        words=[_as_word(processor.tokenizer, token, batch.stop_ids) for token in answer[0].tolist()],
        slots=looks[:, :, spots].float().numpy(),
        resampler=[weight.mean(dim=0).float().numpy() for weight in weights],
        plan=batch.plans[0][0],
        patch_grids=grids,
    )


def _as_word(tokenizer, token, stop_ids):
    text = "<end>" if token in stop_ids else tokenizer.decode([token])
    return text.replace("\ufffd", "·").replace("\n", "↵").strip() or "·"


def look(picture: str, token: int, layer: int | None = None, name: str = "nano") -> dict:
    """Where a model looks when it chooses a token of its answer.

    Args:
        token: number of the token, from 1.
        layer: number of the LLM's layer, from 1; None: mean over layers.
        name: see `watch_answer`.

    Returns:
        share: part of the attention that is on slots.
        slots: numpy (views, Q), and patches: [numpy (rows, cols), ...]: how many times as much as an even look.
    """
    watched = watch_answer(picture, name=name)
    per_layer = watched["slots"][:, token - 1]
    slots = per_layer.mean(axis=0) if layer is None else per_layer[layer - 1]
    share = float(slots.sum())
    patches = [row @ weights / share for row, weights in zip(slots, watched["resampler"])]
    even = sum(len(weights) for weights in patches)  # one patch of so many
    maps = [(weights * even).reshape(grid) for weights, grid in zip(patches, watched["patch_grids"])]
    return dict(share=share, slots=slots / share * slots.size, patches=maps)


def answer_attention(
    picture: str, token: int, layer: int | None = None, stretch: bool = False, name: str = "nano"
) -> Canvas:
    """Attention of one generated token on the visual tokens, and through the resampler on the patches.

    Args:
        picture, token, layer, name: see `look`.
        stretch: colors from the least to the most of this state, instead of from 1/4 to 4 times an even look.

    Returns:
        A Canvas. Its facts: "share", "slots" and "patches" as of `look`, and "colors" {"slots" or "patches":
        (least, most)}, the values at the ends of the colors.
    """
    import numpy as np

    canvas, watched, seen = Canvas(), watch_answer(picture, name=name), look(picture, token, layer, name)
    image, plan = preview(load_sample(picture), 500), watched["plan"]
    spans = {"slots": [seen["slots"]], "patches": seen["patches"]}
    low_high = dict.fromkeys(spans, (0.25, 4))
    if stretch:
        most = {name: float(max(map(np.max, arrays))) for name, arrays in spans.items()}
        least = {name: float(min(map(np.min, arrays))) for name, arrays in spans.items()}
        low_high = {name: (max(least[name], most[name] / 1000), most[name]) for name in spans}  # a weight may be zero
    _draw_answer(canvas, watched["words"], token)

    heat = lambda array, name: _heat(array, *low_high[name])  # noqa: E731
    canvas.facts = {"share": seen["share"], "slots": seen["slots"], "patches": seen["patches"], "colors": low_high}
    canvas.picture(_blend(image, heat(seen["patches"][0], "patches")), (8, 92, 190, 186), "overview")
    if plan.grid:
        cols, rows = plan.grid
        joined = np.concatenate(
            [np.concatenate(seen["patches"][1 + cols * row : 1 + cols * (row + 1)], axis=1) for row in range(rows)]
        )
        blended = _blend(image, heat(joined, "patches"))
        box = canvas.picture(blended, (212, 92, 280, 186), f"slices {cols} x {rows}")
        canvas.mesh(box, cols, rows, "white")

    canvas.text(8, 306, f"attention on the {seen['slots'].size} visual tokens, view by view", bold=True)
    wide = min(124, 624 / len(seen["slots"]))
    for view, slots in enumerate(seen["slots"]):
        cells = heat(slots.reshape(2, -1), "slots")
        canvas.image(8 + wide * view, 316, wide - 6, 36, cells, smooth=False)
        center = 8 + wide * view + (wide - 6) / 2
        canvas.text(center if view else 8, 370, view or "overview", 14, align="middle" if view else "left")

    canvas.text(632, 82, "against an even look", 14, align="right")
    bar = lambda low, high: [[low * (high / low) ** (step / 79) for step in range(80)]]  # noqa: E731
    for row, name in enumerate(("patches", "slots")):
        low, high = low_high[name]
        y = 100 + 62 * row
        canvas.text(632, y + 10, "on patches" if row == 0 else "on visual tokens", 14, align="right")
        canvas.image(512, y + 16, 120, 14, heat(bar(low, high), name), smooth=False)
        canvas.text(512, y + 45, _times(low), 14)
        canvas.text(632, y + 45, _times(high), 14, align="right")
    return canvas


def _draw_answer(canvas, words, token):
    """The answer's tokens in up to two lines, the chosen one framed."""
    canvas.text(8, 22, "answer", bold=True)
    x, y = 78, 4
    for number, word in enumerate(words, 1):
        if text_width(word) > 74:
            word = next(word[:n] + "…" for n in range(len(word), 0, -1) if text_width(word[:n] + "…") <= 74)
        wide = text_width(word, TEXT) + 12
        if x + wide > WIDTH - 8:
            x, y = 78, y + 29
        canvas.rect(x, y, wide, 24, YELLOW if number == token else PALE, INK if number == token else "none", 2)
        canvas.text(x + 6, y + 18, word)
        x += wide + 5


def _times(number):
    return f"{number:.2f} x" if number < 10 else f"{number:.0f} x"


def _heat(array, low, high):
    """Cividis on a logarithmic scale: twice as much is as far from even as half as much."""
    import numpy as np
    from matplotlib import colormaps

    span = math.log(high / low) if high > low else 1.0
    part = np.log(np.clip(np.asarray(array, dtype=float), low, high) / low) / span
    return Image.fromarray(colormaps["cividis"](part, bytes=True)[..., :3])


def _blend(image, heat):
    """A map of patches over the gray picture."""
    gray = image.convert("L").convert("RGB")
    return Image.blend(gray, heat.resize(gray.size, Image.Resampling.NEAREST), 0.6)
