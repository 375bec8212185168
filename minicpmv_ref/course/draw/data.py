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


def view_scales(size, max_slice_nums: int = 9) -> tuple:
    """By how much a picture shrinks or grows: (its overview, its slices), each (across, down); None without slices."""
    plan = plan_slices(size, SliceConfig(max_slice_nums=max_slice_nums))
    shown = (plan.overview_size, plan.refined_size)
    return tuple(each and (each[0] / size[0], each[1] / size[1]) for each in shown)


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
    """A line of small text, as the overview shows it and as a slice does, both enlarged.

    Its facts: "heights" {"overview": pixels, "slice": pixels or None}, "contrast" of a 3 and an 8 there.
    """
    canvas, size = Canvas(height=300), PAPERS[paper]
    canvas.facts = {"heights": {}, "contrast": {}}
    canvas.text(8, 22, f"{paper}: {size[0]} x {size[1]}, digits {digits} pixels high", bold=True)
    for y, name, scale in zip((52, 178), ("overview", "slice"), view_scales(size, max_slice_nums)):
        canvas.facts["heights"][name] = scale and digits * scale[1]
        canvas.facts["contrast"][name] = scale and contrast(digits, scale)
        if scale is None:
            canvas.text(8, y + 14, "no slices: the overview is the only view", color=GRAY)
            continue
        words = f"in the {name}: {digits * scale[1]:.1f} pixels"
        canvas.text(8, y + 14, words, color=BLUE if name == "slice" else RED)
        box = fit(text_in_view(LINE, digits, scale).size, (8, y + 22, 624, 88))
        canvas.image(*box, text_in_view(LINE, digits, scale).convert("RGB"), smooth=False, frame=PALE)
    return canvas
