"""Lesson 04: a prompt token by token, and where the language model looks when it answers."""

from functools import cache, lru_cache

import numpy as np
from PIL import Image

from minicpmv_ref.inputs.published import find_folder
from minicpmv_ref.slicing import plan_slices

from .canvas import WIDTH, Canvas, cell_box, load_preview, load_sample, text_width
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, PURPLE, RED, YELLOW

COVER = (128, 128, 128)  # gray, which the processor turns into zeros
STRIP_SLOTS = 4  # per view in the token strip, where 64 or 96 would not fit
QUERIES = {"2.0": 64, "2.5": 96, "2.6": 64}  # the real ones
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
    from minicpmv_ref.processor import read_tokenizer

    return read_tokenizer(find_folder("nano"))


@lru_cache(maxsize=64)
def strip_tokens(pictures: tuple, version: str):
    """The user's part of a prompt with nano's tokenizer, STRIP_SLOTS slots for each view: (cells, views).

    cells [(kind, text), ...], one for each token; views [(picture, number of the image, number of the view, start,
    end), ...], the slots of every view as positions in cells.
    """
    from minicpmv_ref.prompt import image_bounds, image_layout

    plans = [plan_slices(load_sample(name).size) for name in pictures]
    layouts = [image_layout(plan, STRIP_SLOTS, version, number) for number, plan in enumerate(plans)]
    text = "".join(layout.removesuffix("\n") + "\n" for layout in layouts)
    tokenizer = nano_tokenizer()
    ids = tokenizer(text + "What is this?", add_special_tokens=False)["input_ids"]
    words = [tokenizer.decode([i]) for i in ids]
    kinds = {"\n": "newline", "<unk>": "slot"}
    cells = [(kinds.get(word, word.strip("</>") if word[0] == "<" else "text"), word) for word in words]
    names = [(name, i, v) for i, name in enumerate(pictures) for v in range(1 + plans[i].num_slices)]
    bounds = image_bounds(ids, tokenizer, version).tolist()
    return cells, [(*name, *bound) for name, bound in zip(names, bounds, strict=True)]


def token_strip(pictures: tuple, version: str, view: int, slot: int | None = None) -> Canvas:
    """A prompt token by token; below it view number `view` (from 1) and all slots that it has in the real prompt.

    `slot` of the view, from 0, is marked. Facts: "slots", their positions in the real prompt, and "tokens", how many
    there are. Its spots: "view" of each view, and "slots", whose item is a grid.
    """
    canvas, (cells, views), queries = Canvas(), strip_tokens(pictures, version), QUERIES[version]
    name, image, number, start, end = views[view - 1]
    more = queries - STRIP_SLOTS  # of each view that are not drawn in the strip
    slots = range(start + more * (view - 1), end + more * view)
    canvas.facts = {"slots": slots, "tokens": len(cells) + more * len(views)}
    places = _draw_cells(canvas, cells, start, end)
    for each, (_, its_image, its_number, first, last) in enumerate(views, 1):
        row = [place for place in places[first:last] if place[1] == places[first][1]]
        box = (*row[0][:2], row[-1][0] + row[-1][2] - row[0][0], row[0][3])
        canvas.spot("view", each, box, f"show {view_words(its_image, its_number)}", chosen=each == view)

    top = 268
    canvas.text(8, top - 10, view_words(image, number), 14, bold=True)
    seen = _crop_view(load_preview(name, 400), plan_slices(load_sample(name).size), number)
    w = canvas.picture(seen, (8, top, 116, 104))[2]
    canvas.arrow((14 + w, top + 42), (204, top + 42), INK)
    canvas.lines(max(132, (w + 216) / 2), top + 18, ("ViT", "resampler"), 16, 14, align="middle")
    _draw_slots(canvas, (212, top, 152, 84), queries, slot, [places[start], places[end - 1]])
    shown = f"{queries} slots, {slots[0]} to {slots[-1]}" if slot is None else f"slot {slot}: position {slots[slot]}"
    canvas.text(212, top + 102, shown, 14)

    counts = {kind: sum(cell[0] == kind for cell in cells) for kind in STRIP_KINDS}
    counts["slot"] = queries * len(views)
    canvas.text(384, top - 10, f"{canvas.facts['tokens']:,} tokens", 14, bold=True)
    for line, (kind, count) in enumerate((kind, count) for kind, count in counts.items() if count):
        color, words = STRIP_KINDS[kind]
        canvas.rect(384, top + 18 * line, 13, 13, color)
        canvas.text(440, top + 12 + 18 * line, f"{count:,}", 14, align="right")
        canvas.text(448, top + 12 + 18 * line, words, 14)
    return canvas


def view_words(image: int, number: int) -> str:
    """What view `number` of an image is."""
    return f"image {image}, " + (f"slice {number}" if number else "overview")


def _draw_slots(canvas, box, queries, slot, ends):
    """All slots of a view, 16 in a row, as if the cells between `ends` in the strip were under a lens."""
    (x, y, w, _), grid = box, (queries // 16, 16)
    for (left, upper, width, height), corner, side in zip(ends, (x, x + w), (0, 1)):
        canvas.path([(left + side * width, upper + height), (corner, y)], RED, 1)
    for each in range(queries):
        left, top, wide, high = cell_box(box, grid, *divmod(each, 16))
        canvas.rect(left + 1, top + 1, wide - 2, high - 2, RED if each == slot else ORANGE)
    canvas.rect(*box, stroke=RED, line=2)
    left, top, wide, high = cell_box(box, grid, *divmod(slot or 0, 16))
    canvas.spot("slots", grid, box, "the position of a slot", "hover", (left + wide / 2, top + high / 2), (wide, high))


def _draw_cells(canvas, cells, start, end):
    """One cell per token; a line ends after a newline. Returns where the cells are: (x, y, w, h)."""
    lines = "".join("n" if kind == "newline" else "." for kind, _ in cells).split("n")
    unit = max(20, min(32, (WIDTH - 13) / (1 + max(map(len, lines)))))
    step = min(unit + 6, 232 / len(lines))
    x, y, places = 8, 6, []
    for position, (kind, word) in enumerate(cells):
        marker = ">" if word.startswith("</") else "<"
        label = {"text": word.strip(), "newline": "↵", "slot": ""}.get(kind, marker)
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
    x, y, w, h = cell_box((0, 0, *image.size), (rows, cols), *divmod(number - 1, cols))
    return image.crop((round(x), round(y), round(x + w), round(y + h)))


@cache
def watched_model(name: str = "nano"):
    """(model, processor) from "nano" or a folder; its LLM can show attention."""
    from minicpmv_ref import MiniCPMV, Processor

    model = MiniCPMV.from_pretrained(name)
    model.llm.set_attn_implementation("eager")  # the quicker ones never hold the weights
    return model, Processor.from_pretrained(name)


@cache
def quick_model(name: str = "nano"):
    """The same for answers only, in half the time."""
    from minicpmv_ref import Processor
    from minicpmv_ref.deploy.runtime import Runtime

    return Runtime(name), Processor.from_pretrained(name)


_ASKED, _LONGEST = "Describe the picture.", 24  # the question; tokens of an answer


def cell_grid(picture: str, name: str = "nano") -> tuple:
    """(rows, cols): the patches of a picture's overview. Its cells are what can be covered."""
    return plan_slices(load_sample(picture).size, watched_model(name)[1].config.slicing).patch_grids[0]


def cover_cells(image: Image.Image, grid: tuple, covered) -> Image.Image:
    """A copy of a picture with gray over the cells [(row, col), ...] of a grid (rows, cols)."""
    image = image.copy()
    for row, col in covered:
        x, y, w, h = cell_box((0, 0, *image.size), grid, row, col)
        image.paste(COVER, (round(x), round(y), round(x + w), round(y + h)))
    return image


@lru_cache(maxsize=64)
def watch_answer(picture: str, covered: tuple = (), name: str = "nano") -> dict:
    """Let a model describe a picture, greedily, with some of it covered, and record where it looks.

    Args:
        picture: a file name of data_samples/images.
        covered: cells (row, col) of `cell_grid` under gray.
        name: "nano" or the folder of a checkpoint.

    Returns:
        words, ids: the generated tokens as text and as numbers; the last word is "…" if the answer goes on.
        chances: of each token of the answer to the *whole* picture, when the tokens before it are given.
        slots: numpy (layers, tokens, views, Q), attention on every slot, mean over heads. Row k belongs to the position
            whose output is token k: the last one of the prompt for the first token.
        resampler: [numpy (Q, L_i), ...], each visual token's weights over the patches of its view, mean over heads.
        plan, patch_grids: of the picture.
    """
    import torch

    model, processor = watched_model(name)
    image = cover_cells(load_sample(picture), cell_grid(picture, name), covered)
    batch = processor([{"role": "user", "content": [image, _ASKED]}])
    first = batch.input_ids.shape[1] - 1
    with torch.inference_mode():
        visual, weights = model.resampler.attend(model.vpm(batch.images[0]), batch.patch_grids[0])
        whole = watch_answer(picture, (), name)["ids"] if covered else model.generate(batch, _LONGEST, visual=visual)
        row = torch.cat([model.embed(batch, visual), model.llm.get_input_embeddings()(whole)], dim=1)
        out = model.llm(inputs_embeds=row, output_attentions=True, use_cache=False)
        same = torch.equal(out.logits[0, first:-1].argmax(dim=-1), whole[0])  # then there is nothing to generate
        answer = whole if same else model.generate(batch, _LONGEST, visual=visual)
    chances = out.logits[0, first:-1].softmax(dim=-1).gather(1, whole[0, :, None])[:, 0]
    looks = torch.stack([layer[0].mean(dim=0) for layer in out.attentions])[:, first:-1]
    slots = torch.stack([torch.arange(start, end) for start, end in batch.image_bounds[0].tolist()])
    words = [_as_word(processor.tokenizer, token, batch.stop_ids) for token in answer[0].tolist()]
    return dict(
        words=words if words[-1] == "<end>" else [*words, "…"],
        chances=chances.tolist(),
        slots=looks[:, :, slots].float().numpy(),
        resampler=[weight.mean(dim=0).float().numpy() for weight in weights],
        plan=batch.plans[0][0],
        patch_grids=batch.patch_grids[0],
        ids=answer,
    )


def _as_word(tokenizer, token, stop_ids):
    text = "<end>" if token in stop_ids else tokenizer.decode([token])
    return text.replace("\ufffd", "·").replace("\n", "↵").strip() or "·"


def look(picture: str, token: int, layer: int = 0, name: str = "nano"):
    """Where a model looks in the whole picture when it chooses a token of its answer, from 1, in a layer, from 1.

    Layer 0 is the mean of all. Returns numpy (rows, cols): the part of all its attention that goes to each cell of
    `cell_grid`, through the visual tokens of the overview and of the slices. The rest is on words.
    """
    watched, (rows, cols) = watch_answer(picture, name=name), cell_grid(picture, name)
    per_layer = watched["slots"][:, token - 1]
    slots = per_layer[layer - 1] if layer else per_layer.mean(axis=0)
    views = [(row @ w).reshape(grid) for row, w, grid in zip(slots, watched["resampler"], watched["patch_grids"])]
    cells = views[0].astype(float)
    if watched["plan"].grid:
        wide = watched["plan"].grid[0]
        joined = np.block([views[at : at + wide] for at in range(1, len(views), wide)])
        cells = cells + _overlap(rows, joined.shape[0]) @ joined @ _overlap(cols, joined.shape[1]).T
    return cells


def _overlap(coarse, fine):
    """numpy (coarse, fine): which part of each of `fine` equal pieces of a line lies in each of `coarse` ones."""
    edges = np.arange(coarse + 1)[:, None] * fine / coarse
    return np.diff(np.clip(edges - np.arange(fine), 0, 1), axis=0)


def answer_attention(picture: str, token: int, layer: int = 0, covered: tuple = (), name: str = "nano") -> Canvas:
    """An answer, where one of its tokens looks in each layer, and the answer when parts of the picture are covered.

    Its facts: "cells" as of `look`, "chances" of the whole picture's tokens now, "words" now, "box" of the picture and
    its "grid". Its spots: "token", "layer", and "cell", to click or to drag over.
    """
    canvas, whole = Canvas(), watch_answer(picture, name=name)
    now, grid = watch_answer(picture, tuple(covered), name), cell_grid(picture, name)
    image = load_preview(picture, 400)
    _draw_answer(canvas, 6, "answer", whole["words"], now["chances"], token)
    if covered:
        _draw_answer(canvas, 74, "now", now["words"], [], 0, whole["words"])
    else:
        canvas.text(76, 92, "blue: the chance of each token", color=BLUE)
        canvas.text(76, 118, "click or drag on the picture: cover it, and the answer may change", color=GRAY)
    cells = look(picture, token, layer, name)
    box = canvas.picture(cover_cells(_light(image, cells, 0.5), grid, covered), (8, 140, 250, 232))
    canvas.facts = {"cells": cells, "chances": now["chances"], "words": now["words"], "box": box, "grid": grid}
    canvas.rect(*box, stroke=PALE)
    for row, col in np.ndindex(*grid):
        words = f"row {row + 1}, column {col + 1}: {cells[row, col]:.1%} of the attention"
        canvas.spot("cell", (row, col), cell_box(box, grid, row, col), words, "drag")
    for number in range(1 + len(whole["slots"])):
        left, top = 274 + 124 * (number % 3), 140 + 120 * (number // 3)
        each = look(picture, token, number, name)
        title, chosen = f"layer {number}" if number else "mean", number == layer
        canvas.text(left, top + 12, f"{title}: {each.sum():.0%}", 14, bold=chosen)
        small = canvas.picture(_light(image, each), (left, top + 18, 116, 94))
        canvas.rect(*small, stroke=INK if chosen else PALE, line=3 if chosen else 1)
        canvas.spot("layer", number, (left, top, 116, 112), f"look at the {title}", chosen=chosen)
    lines = "full color:", f"{_FULL:.0%} or more", "of its attention", "on one cell"
    canvas.lines(522, 288, lines, 19, 14, color=GRAY)
    return canvas


_FULL = 0.05  # of all attention on one cell: it stands in full color


def _light(image, cells, least=0.12):
    """A picture whose cells are the paler the less attention they get."""
    part = least + (1 - least) * np.clip(cells / _FULL, 0, 1)
    mask = Image.fromarray((255 * part).astype("uint8")).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(image, Image.new("RGB", image.size, "white"), mask)


def _draw_answer(canvas, y, title, words, chances, token, before=None):
    """An answer's tokens in two lines, as many as fit, the chosen one framed; those that are not `before`'s in red.

    Below each token a bar as long as its chance.
    """
    canvas.text(8, y + 18, title, bold=True)
    x, second = 76, False
    for number, word in enumerate(words):
        wide = text_width(word) + 10
        if x + wide > WIDTH - 4 - 18 * (second and number + 1 < len(words)):
            if second:
                return canvas.text(x, y + 18, "…", color=GRAY)
            x, y, second = 76, y + 33, True
        here, changed = number + 1 == token, before is not None and [word] != before[number : number + 1]
        canvas.rect(x, y, wide, 24, YELLOW if here else PALE, INK if here else "none", 2)
        canvas.text(x + 5, y + 18, word, color=RED if changed else INK)
        if number < len(chances):
            canvas.rect(x, y + 26, wide * chances[number], 4, BLUE)
            canvas.spot("token", number + 1, (x, y, wide, 31), f"look at “{word}”", chosen=here)
        x += wide + 4
