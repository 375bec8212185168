"""Lesson 07c: how small text may be."""

import math
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import plan_slices

from .canvas import Canvas, _font, fit
from .colors import BLUE, GRAY, PALE, RED

PAPERS = {  # words in a menu: (width, height) in pixels
    **{"page, 300 dpi": (2480, 3508), "page, 150 dpi": (1240, 1754), "screen": (1920, 1080), "receipt": (640, 2560)}
}
PAPER_DATA = {  # millions of samples, None where the paper gives no number; its section 4, tables 1 and 2
    "start-text": {},
    "start-chat": {},
    "start-vit": {},
    "stage-1": {"captions": 200},
    "stage-2": {"captions": 200},
    "stage-3": {"captions": None, "OCR": None},
    "sft-1": {
        **{"captions": 0.56, "VQA": 1.4, "knowledge": 0.06, "grounding": 0.57},
        **{"reasoning": 0.135, "math": 0.125, "OCR": 1.7, "chat": 0.78},
    },
    "sft-2": {"part 1 again": 0.4, "OCR": 0.69, "instructions": 1.9, "text only": None},
}
LINE = "38 boxes at 6.90, due 5 March"
DIGIT = 0.729  # height of a digit of DejaVu Sans, in font sizes


# ---- small text


@lru_cache(maxsize=64)
def text_in_view(text: str, digits: int, scale: tuple) -> Image.Image:
    """A line of text whose digits are so many pixels high in the picture, as a view of this scale shows it."""
    font, margin = _font(round(digits / DIGIT)), digits // 2
    wide = math.ceil(font.getlength(text))
    sheet = Image.new("L", (wide + 2 * margin, 2 * digits + margin), 255)
    ImageDraw.Draw(sheet).text((margin, digits + margin), text, 0, font, "ls")
    size = tuple(max(1, round(side * factor)) for side, factor in zip(sheet.size, scale))
    return sheet.resize(size, Image.Resampling.BICUBIC)


def contrast(digits: int, scale: tuple, pair: str = "38") -> float:
    """The largest difference between two characters in a view, as a share of that between black and white."""
    one, other = (text_in_view(character, digits, scale) for character in pair)
    return ImageChops.difference(one, other).getextrema()[1] / 255


def small_text(paper: str = "page, 300 dpi", digits: int = 21, max_slice_nums: int = 9) -> Canvas:
    """A line of small text, as the overview shows it and as a slice does, both enlarged."""
    canvas, size = Canvas(height=300), PAPERS[paper]
    canvas.facts = {"heights": {}, "contrast": {}}  # of a digit in each of both; of a 3 and an 8
    canvas.text(8, 22, f"{paper}: {size[0]} x {size[1]}, digits {digits} pixels high", bold=True)
    plan = plan_slices(size, SliceConfig(max_slice_nums=max_slice_nums))
    for y, name, color, view in ((66, "overview", RED, plan.overview_size), (192, "slice", BLUE, plan.refined_size)):
        scale = view and (view[0] / size[0], view[1] / size[1])  # across and down
        canvas.facts["heights"][name] = scale and digits * scale[1]
        canvas.facts["contrast"][name] = scale and contrast(digits, scale)
        if not scale:
            canvas.text(8, y, "no slices: the overview is the only view", color=GRAY)
            continue
        canvas.text(8, y, f"in the {name}: {digits * scale[1]:.1f} pixels", color=color)
        seen = text_in_view(LINE, digits, scale).convert("RGB")
        canvas.image(*fit(seen.size, (8, y + 8, 624, 88)), seen, smooth=False, frame=PALE)
    return canvas
