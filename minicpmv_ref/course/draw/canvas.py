"""What all lessons draw with: colors, the `Canvas`, sample pictures, and a guess beside the truth.

A `Canvas` is a list of shapes that can be written in two ways: as SVG for the live panel (sharp on every
projector, built in a millisecond) and as PNG or JPEG by Pillow for readers without a kernel.
Colors are Okabe-Ito's, which color-blind people can tell apart.
"""

import io
from base64 import b64encode
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from minicpmv_ref.inputs.pictures import load_image

SAMPLES = Path(__file__).resolve().parents[3] / "data_samples" / "images"

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
INK, GRAY, PALE = "#222222", "#767676", "#E6E6E6"
WIDTH, HEIGHT = 640, 380  # of a panel's picture; shown one to one at 1280 x 720, larger on larger screens
TEXT = 16


# ---- the canvas


class Canvas:
    """Shapes on a white ground. Positions and sizes are pixels from the top left; later shapes cover earlier ones.

    The text of `words` is what a Canvas says where only text can be shown.
    """

    def __init__(self, width: int = WIDTH, height: int = HEIGHT, words: str = ""):
        self.width, self.height, self.words = width, height, words
        self.shapes = []  # (method of the painter, its arguments, its SVG)

    def rect(self, x, y, w, h, fill="none", stroke="none", line=1, title=None):
        """A rectangle; `title` appears when the mouse rests on it."""
        hint = f"<title>{escape(title)}</title>" if title else ""
        self._add(
            ("rect", (x, y, w, h, fill, stroke, line)),
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{line:g}">{hint}</rect>',
        )

    def path(self, points, color=INK, line=2):
        """A line through points [(x, y), ...]."""
        listed = " ".join(f"{x:.6g},{y:.6g}" for x, y in points)
        self._add(
            ("path", (points, color, line)),
            f'<polyline points="{listed}" fill="none" stroke="{color}" stroke-width="{line:g}" '
            'stroke-linejoin="round"/>',
        )

    def dot(self, x, y, r=6, fill=INK, stroke="white"):
        self._add(
            ("dot", (x, y, r, fill, stroke)),
            f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{fill}" stroke="{stroke}" stroke-width="2"/>',
        )

    def text(self, x, y, text, size=TEXT, color=INK, align="left", bold=False):
        """One line of text; y is its base line; align is left, middle or right of x."""
        anchor = {"left": "start", "middle": "middle", "right": "end"}[align]
        weight = ' font-weight="bold"' if bold else ""
        self._add(
            ("text", (x, y, str(text), size, color, align, bold)),
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}"{weight}>'
            f"{escape(str(text), quote=False)}</text>",
        )

    def image(self, x, y, w, h, image: Image.Image, smooth=True):
        """A PIL image stretched into a rectangle; smooth=False keeps its pixels square."""
        style = "" if smooth else ' style="image-rendering:pixelated"'
        self._add(
            ("image", (x, y, w, h, image, smooth)),
            f'<image x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" preserveAspectRatio="none"{style} '
            f'href="{data_address(image, photo=smooth)}"/>',
        )

    def _add(self, shape, svg):
        self.shapes.append((*shape, svg))

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'preserveAspectRatio="xMinYMin meet" font-family="DejaVu Sans,Verdana,sans-serif">'
            f'<rect width="{self.width}" height="{self.height}" fill="white"/>'
            + "".join(svg for _, _, svg in self.shapes)
            + "</svg>"
        )

    def to_pil(self, scale: float = 1.5) -> Image.Image:
        """The same picture as a PIL image. Drawn twice as large and reduced, which smooths the edges."""
        painter = _Painter(self.width, self.height, 2 * scale)
        for kind, arguments, _ in self.shapes:
            getattr(painter, kind)(*arguments)
        return painter.sheet.resize((round(self.width * scale), round(self.height * scale)), Image.Resampling.BOX)

    def encode_image(self) -> bytes:
        """JPEG if there is a photo in it, else PNG with few colors: small in a notebook's file."""
        image, file = self.to_pil(), io.BytesIO()
        if any(kind == "image" and arguments[-1] for kind, arguments, _ in self.shapes):
            image.save(file, format="JPEG", quality=88)
        else:
            image.quantize(64).save(file, format="PNG", optimize=True)
        return file.getvalue()

    def __repr__(self):
        return self.words or f"Canvas({self.width}, {self.height})"

    def _repr_mimebundle_(self, include=None, exclude=None):
        image = self.encode_image()
        kind = "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"
        shown = {"width": self.width, "height": self.height}
        return {"text/plain": repr(self), kind: b64encode(image).decode()}, {kind: shown}


class _Painter:
    """Draws the shapes of a Canvas with Pillow."""

    def __init__(self, width, height, scale):
        self.k = scale
        self.sheet = Image.new("RGB", (round(width * scale), round(height * scale)), "white")
        self.pen = ImageDraw.Draw(self.sheet)

    def rect(self, x, y, w, h, fill, stroke, line):
        k, half = self.k, line / 2 if stroke != "none" else 0
        box = [k * (x - half), k * (y - half), k * (x + w + half) - 1, k * (y + h + half) - 1]
        if box[2] >= box[0] and box[3] >= box[1]:
            colors = {key: value for key, value in (("fill", fill), ("outline", stroke)) if value != "none"}
            self.pen.rectangle(box, width=max(1, round(k * line)), **colors)

    def path(self, points, color, line):
        self.pen.line([(self.k * x, self.k * y) for x, y in points], color, max(1, round(self.k * line)), "curve")

    def dot(self, x, y, r, fill, stroke):
        center = (self.k * x, self.k * y)
        self.pen.circle(center, self.k * (r + 1), fill=stroke)
        self.pen.circle(center, self.k * (r - 1), fill=fill)

    def text(self, x, y, text, size, color, align, bold):
        anchor = {"left": "ls", "middle": "ms", "right": "rs"}[align]
        self.pen.text((self.k * x, self.k * y), text, color, _font(round(self.k * size), bold), anchor)

    def image(self, x, y, w, h, image, smooth):
        size = max(1, round(self.k * w)), max(1, round(self.k * h))
        method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.sheet.paste(image.resize(size, method), (round(self.k * x), round(self.k * y)))


@cache
def _font(size, bold=False):
    # matplotlib brings the font, so it is there on every system. Importing matplotlib is not needed.
    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size)


def text_width(text: str, size: float = TEXT, bold: bool = False) -> float:
    """Width of a line of text in pixels."""
    return _font(round(size), bold).getlength(text) * size / round(size)


# ---- pictures inside pictures


@cache
def load_sample(name: str) -> Image.Image:
    """A picture of data_samples/images as RGB, decoded once."""
    path = SAMPLES / name
    if not path.is_file():
        raise ValueError(f"there is no sample {name!r} in {SAMPLES}")
    return load_image(path)


def preview(image: Image.Image, most: int = 800) -> Image.Image:
    """A copy with at most `most` pixels on its longer side: all that a panel can show, and quick to redraw."""
    scale = min(1, most / max(image.size))
    return image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BICUBIC)


def data_address(image: Image.Image, photo: bool = True) -> str:
    """A picture as an address that needs no server."""
    file = io.BytesIO()
    if photo:
        image.save(file, format="JPEG", quality=85)  # 4 ms where PNG takes 54
    else:
        image.save(file, format="PNG")
    return f"data:image/{'jpeg' if photo else 'png'};base64,{b64encode(file.getvalue()).decode()}"


def fit(size, box):
    """The largest (w, h) of the same shape inside a box (x, y, w, h), centered: (x, y, w, h)."""
    x, y, w, h = box
    scale = min(w / size[0], h / size[1])
    return x + (w - size[0] * scale) / 2, y + (h - size[1] * scale) / 2, size[0] * scale, size[1] * scale


# ---- a guess beside the truth


def guess(yours, truth, title: str = "") -> Canvas:
    """Bars of the truth, and of your guess beside it.

    Args:
        yours: None (no guess yet), a number, or {label: number} with some of the truth's labels.
        truth: a number, or {label: number}.
    """
    truth = truth if isinstance(truth, dict) else {"": truth}
    yours = yours if isinstance(yours, dict) else dict.fromkeys(truth, yours)
    for value in yours.values():
        if not isinstance(value, (int, float, type(None))):
            raise ValueError(f"a guess must be a number, got {value!r}")
    known = {label: value for label, value in yours.items() if value is not None and label in truth}
    largest = max([*truth.values(), *known.values(), 1e-9])
    left = 110 + max([0, *(text_width(label) + 14 for label in truth if label)])
    none = "none yet: write one above, then run this cell again"
    if left + text_width(none) > WIDTH:  # long labels leave less room
        none = "none yet: write one above"
    canvas = Canvas(WIDTH, 34 + 62 * len(truth))
    canvas.text(8, 22, title, bold=True)
    words = []
    for place, (label, value) in enumerate(truth.items()):
        y = 38 + 62 * place
        canvas.text(8, y + 32, label)
        rows = (("your guess", known.get(label), ORANGE), ("truth", value, BLUE))
        for row, (who, number, color) in enumerate(rows):
            base = y + 26 * row
            canvas.text(left - 10, base + 17, who, align="right")
            if number is None:
                canvas.text(left, base + 17, none, color=GRAY)
            else:
                length = (WIDTH - 90 - left) * max(number, 0) / largest
                canvas.rect(left, base, max(length, 2), 22, color)
                canvas.text(left + length + 8, base + 17, f"{number:g}")
        mine = f"your guess {known[label]:g}" if label in known else "no guess yet"
        words.append(f"{label + ': ' if label else ''}truth {value:g}, {mine}")
    canvas.words = "; ".join(words)
    return canvas
