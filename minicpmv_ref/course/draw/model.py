"""One drawing of the whole model, from the picture to the answer. Each lesson shows it with its own part lit.

Lesson 00's panel is the same drawing (one_picture.py).
"""

from minicpmv_ref.config import MiniCPMVConfig, v2_6
from minicpmv_ref.slicing import plan_slices

from .canvas import WIDTH, Canvas, load_sample, preview, wrap
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, YELLOW

MODEL_PARTS = {  # part: (words on it, where it is explained, its place: x, y, w, h)
    "slicing": ("slicing", "01", (104, 36, 74, 48)),
    "patches": ("patches", "02", (293, 31, 64, 58)),
    "vit": ("ViT", "02", (369, 36, 72, 48)),
    "resampler": ("resampler", "03", (454, 36, 88, 48)),
    "prompt": ("prompt", "04", (104, 178, 74, 48)),
    "scatter": ("scatter", "04", (228, 116, 74, 40)),
    "row": ("row of embeddings", "04", (194, 172, 214, 60)),
    "llm": ("language model", "04", (426, 172, 132, 60)),
    "cache": ("KV cache", "05", (426, 246, 132, 40)),
    "answer": ("answer", "04", (576, 178, 58, 48)),
}
_DATA = ("patches", "row", "answer")  # these parts are not computations: what they hold is drawn, not a box
_DIM = "#F3F3F3"  # of a part that another one outshines


def whole_model(lit: str | tuple = (), config: MiniCPMVConfig = v2_6, image=None, question: str = "") -> Canvas:
    """The whole model in one drawing, with the parts that a lesson is about lit up.

    Args:
        lit: one key of MODEL_PARTS, or several; () lights none.
        config: of the model whose sizes are shown.
        image: the PIL image on its way; None: the sample coffee.jpg.
        question: about it; "": lines stand for its words.

    Returns:
        A Canvas. Its facts: "lit", the keys; "boxes" {part: (x, y, w, h)}; "lessons" {part: number of its lesson};
        "sizes" {"view", "features", "queries", "embeddings"}, the numbers in the drawing.
    """
    lit = (lit,) if isinstance(lit, str) else tuple(lit)
    if unknown := [part for part in lit if part not in MODEL_PARTS]:
        raise ValueError(f"a part of the model is one of {', '.join(MODEL_PARTS)}; got {unknown[0]!r}")
    canvas = Canvas(WIDTH, 296, "The whole model" + (f", lit: {', '.join(lit)}" if lit else ""))
    sizes = {"view": config.slicing.scale_resolution, "features": config.vision.width}
    sizes |= {"queries": config.resampler.num_queries, "embeddings": config.resampler.width}
    canvas.alt = (
        f"The whole model: a picture becomes views of about {sizes['view']}² pixels, and these become patches; the ViT "
        f"makes features of them, {sizes['features']} wide, and the resampler {sizes['queries']} visual tokens of each "
        f"view. With the question they make a row of embeddings, {sizes['embeddings']} wide; the language model reads "
        f"it and writes the answer, with a KV cache. Lit: {', '.join(lit) or 'nothing'}."
    )
    canvas.facts = {"lit": lit, "sizes": sizes, "boxes": {part: box for part, (_, _, box) in MODEL_PARTS.items()}}
    canvas.facts["lessons"] = {part: lesson for part, (_, lesson, _) in MODEL_PARTS.items()}

    for part, (words, lesson, box) in MODEL_PARTS.items():
        _draw_part(canvas, "" if part in _DATA else words, lesson, box, part in lit, bool(lit))
    _draw_picture_side(canvas, sizes, config, image or load_sample("coffee.jpg"))
    _draw_text_side(canvas, sizes, question)
    return canvas


def _draw_part(canvas, words, lesson, box, lit, dim):
    x, y, w, h = box
    color = YELLOW if lit else _DIM if dim or not words else "white"
    if words or lit:
        canvas.rect(*box, color, INK if lit or not dim else GRAY, 3 if lit else 1)
    ink = INK if lit or not dim else GRAY
    if words:
        canvas.text(x + w / 2, y + h / 2 - 2, words, 15, ink, "middle")
        canvas.text(x + w / 2, y + h / 2 + 15, f"lesson {lesson}", 14, ink, "middle")


def _draw_picture_side(canvas, sizes, config, image):
    """From the picture to the visual tokens: the upper row."""
    plan, small = plan_slices(image.size, config.slicing), preview(image, 160)
    for x, words in ((8, "picture"), (194, "views"), (298, "patches")):
        canvas.text(x, 20, words, 14)
    canvas.text(632, 20, "visual tokens", 14, align="right")
    below = f"about {sizes['view']}²", "14² pixels", f"{sizes['features']:,} wide", f"{sizes['queries']} a view"
    for x, words in zip((194, 292, 372, 560), below):
        canvas.text(x, 102, words, 14, GRAY)
    for start, end in ((92, 102), (180, 191), (282, 292), (357, 367), (443, 452), (544, 556)):
        canvas.arrow((start, 60), (end, 60))
    canvas.picture(small, (8, 32, 82, 56), smooth=False, frame=PALE)  # not smooth: saved as PNG, with sharp words
    canvas.picture(small, (194, 48, 32, 28), smooth=False, frame=PALE)
    if plan.grid:
        cut = canvas.picture(small, (230, 42, 50, 48), smooth=False)
        canvas.mesh(cut, *plan.grid, "white", 4)
        canvas.mesh(cut, *plan.grid, GRAY, 1, border=True)
    canvas.rect(298, 36, 54, 48, "#CFE6F5")
    canvas.mesh((298, 36, 54, 48), 9, 8, "white", 1)
    for token in range(8):
        canvas.rect(560 + 9 * token, 36, 6, 48, ORANGE)
    canvas.path([(596, 108), (596, 136), (306, 136)], INK)
    canvas.arrow((320, 136), (304, 136))


def _draw_text_side(canvas, sizes, question):
    """From the question to the answer: the lower row."""
    canvas.text(8, 168, "question", 14)
    canvas.lines(5, 190, wrap(question, 78, 14), 17, 14)
    for line, length in enumerate(() if question else (70, 44)):
        canvas.rect(8, 188 + 16 * line, length, 8, GRAY)
    for start, end in ((86, 102), (180, 192), (410, 424), (560, 574)):
        canvas.arrow((start, 202), (end, 202))

    x, y = MODEL_PARTS["row"][2][0] + 5, 184
    for place, kind in enumerate("t<ooo>(ooo)(ooo)tttt"):  # words, an overview, two slices, words
        color = {"t": PALE, "o": ORANGE, "<": BLUE, ">": BLUE}.get(kind, GREEN)
        canvas.rect(x + 10.3 * place, y, 7, 36, color, GRAY if kind == "t" else "none")
    canvas.arrow((265, 158), (265, 182))
    canvas.text(186, 254, f"row of embeddings, {sizes['embeddings']:,} wide", 14, GRAY)
    canvas.text(186, 270, "orange: the visual tokens", 14, GRAY)
    canvas.path([(492, 234), (492, 244)], INK)

    canvas.text(576, 168, "answer", 14)
    for token in range(4):
        canvas.rect(583 + 12 * token, 184, 8, 36, PALE, GRAY)
    canvas.path([(605, 228), (605, 291), (416, 291), (416, 237), (396, 237)], GRAY)
    canvas.arrow((396, 237), (396, 222), GRAY)
