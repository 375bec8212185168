"""A canvas, its fonts and two ways to save.

Coordinates are `(x, y)` in pixels of the final picture. Drawing happens at twice that size and is
then halved, which spaces letters better than drawing small text directly.
"""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont

ZOOM = 2

# Okabe-Ito colors and the inks that most pictures share.
BLUE, GREEN, ORANGE, RED, SKY = "#0072b2", "#009e73", "#e69f00", "#d55e00", "#56b4e9"
INK, GRAY, PALE = "#1a1a1a", "#6b6b6b", "#d9d9d9"

# DejaVu and STIX come with matplotlib. Noto CJK is Debian's fonts-noto-cjk.
FONTS = {
    "sans": "DejaVuSans.ttf",
    "sans-bold": "DejaVuSans-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono-bold": "DejaVuSansMono-Bold.ttf",
    "serif": "STIXGeneral.ttf",
    "serif-bold": "STIXGeneralBol.ttf",
    "serif-italic": "STIXGeneralItalic.ttf",
    "cjk": "NotoSansCJK-Regular.ttc",
    "cjk-bold": "NotoSansCJK-Bold.ttc",
    "song": "NotoSerifCJK-Regular.ttc",
    "song-bold": "NotoSerifCJK-Bold.ttc",
}
SIMPLIFIED_CHINESE = 2  # the face inside a Noto CJK collection; face 0 draws the Japanese forms


class Missing(Exception):
    """A font or a program that a picture needs is not installed."""


@cache
def system_fonts():
    return {Path(path).name: Path(path) for path in sorted(findSystemFonts(), reverse=True)}


@cache
def load_font(name, size):
    file = FONTS[name]
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file
    if not path.exists():
        path = system_fonts().get(file)
    if path is None:
        raise Missing(f"font {file}")
    face = SIMPLIFIED_CHINESE if file.endswith(".ttc") else 0
    # subtle: Raqm would place glyphs differently where it is installed; the basic engine is always there
    return ImageFont.truetype(path, round(size * ZOOM), face, layout_engine=ImageFont.Layout.BASIC)


def text_width(text, font, size):
    return load_font(font, size).getlength(text) / ZOOM


class Sheet:
    """A canvas whose coordinates are final pixels."""

    def __init__(self, width, height, color="white"):
        self.size = (width, height)
        self.image = Image.new("RGB", (width * ZOOM, height * ZOOM), color)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x, y, text, font, size, fill=INK, anchor="ls"):
        self.draw.text((x * ZOOM, y * ZOOM), text, fill, load_font(font, size), anchor)

    def box(self, x0, y0, x1, y1, fill=None, outline=None, width=1, radius=0):
        corners = [x0 * ZOOM, y0 * ZOOM, x1 * ZOOM - 1, y1 * ZOOM - 1]  # Pillow counts the last pixel in
        self.draw.rounded_rectangle(corners, radius * ZOOM, fill, outline, round(width * ZOOM))

    def line(self, points, fill=INK, width=1):
        self.draw.line([(x * ZOOM, y * ZOOM) for x, y in points], fill, round(width * ZOOM), joint="curve")

    def polygon(self, points, fill):
        self.draw.polygon([(x * ZOOM, y * ZOOM) for x, y in points], fill)

    def disc(self, x, y, radius, fill=None, outline=None, width=1):
        self.draw.circle((x * ZOOM, y * ZOOM), radius * ZOOM, fill, outline, round(width * ZOOM))

    def finish(self):
        return self.image.reduce(ZOOM)


def save_png(image, path, colors=64):
    """A palette keeps rendered text small; 0 colors keeps every one."""
    if colors:
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        image = image.convert("RGB").quantize(colors, method, kmeans=8, dither=dither)
    image.save(path, optimize=True)


def save_jpeg(image, path):
    image.save(path, quality=85, optimize=True)
