"""What all lessons draw with: the `Canvas` and sample pictures.

A `Canvas` is a list of shapes that can be written in two ways: as SVG for the live panel (sharp on every
projector, built in a millisecond) and as PNG or JPEG by Pillow for readers without a kernel.
"""

import io
import math
from base64 import b64encode
from functools import cache, lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from minicpmv_ref.inputs.pictures import load_image

from .colors import GRAY, INK, PALE

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = ROOT / "data_samples" / "images"
RESULTS = ROOT / "experiments" / "results"  # of the claims that were tested, as JSON

WIDTH, HEIGHT = 640, 380  # of a panel's picture; shown one to one at 1280 x 720, larger on larger screens
TEXT = 16


# ---- the canvas


class Spot(NamedTuple):
    """A part of a picture that can be touched. What each field means: `Canvas.spot`."""

    name: str
    item: object
    box: tuple
    words: str
    how: str
    at: tuple
    step: tuple | None
    chosen: bool

    @property
    def key(self) -> str:
        return self.name if self.item is None else f"{self.name} {self.item}"

    def cell(self, at) -> tuple[int, int]:
        """(row, column) at a place in a spot whose item is a grid (rows, columns)."""
        return cell_at(self.box, self.item, at)

    def svg(self, stop: bool) -> str:
        """A transparent shape on top of the picture; `stop`: the Tab key stops here."""
        x, y, w, h = self.box
        return (
            f'<rect class="mcv-spot" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="transparent" '
            f'role="button" tabindex="{0 if stop else -1}" aria-label="{escape(self.words)}" '
            f'data-spot="{escape(self.key)}" data-name="{escape(self.name)}" data-how="{self.how}" '
            f'data-at="{[*self.at]}" data-step="{[*self.step] if self.step else "null"}">'
            f"<title>{escape(self.words)}</title></rect>"
        )


class Canvas:
    """Shapes on a white ground. Positions and sizes are pixels from the top left; later shapes cover earlier ones.

    The text of `words` is what a Canvas says where only text can be shown; `alt` describes a saved picture, if `words`
    are not enough; `facts` are the values that it shows, for whoever wants to check them without reading a picture.
    """

    def __init__(self, width: int = WIDTH, height: int = HEIGHT, words: str = ""):
        self.width, self.height, self.words, self.facts = width, height, words, {}
        self.alt, self.scale = "", 1.5  # of the saved picture: its description, its pixels for each one here
        self.shapes = []  # (method of the painter, its arguments, its SVG)
        self.spots = {}  # {key: Spot}, what can be touched

    def rect(self, x, y, w, h, fill="none", stroke="none", line=1, title=None):
        """A rectangle; `title` appears when the mouse rests on it."""
        hint = f"<title>{escape(title)}</title>" if title else ""
        svg = f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}" '
        self._add("rect", (x, y, w, h, fill, stroke, line), svg + f'stroke-width="{line:g}">{hint}</rect>')

    def path(self, points, color=INK, line=2):
        """A line through points [(x, y), ...]."""
        listed = " ".join(f"{x:.6g},{y:.6g}" for x, y in points)
        svg = f'<polyline points="{listed}" fill="none" stroke="{color}" stroke-width="{line:g}" '
        self._add("path", (points, color, line), svg + 'stroke-linejoin="round"/>')

    def dot(self, x, y, r=6, fill=INK, stroke="white"):
        svg = f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{fill}" stroke="{stroke}" stroke-width="2"/>'
        self._add("dot", (x, y, r, fill, stroke), svg)

    def text(self, x, y, text, size=TEXT, color=INK, align="left", bold=False):
        """One line of text; y is its base line; align is left, middle or right of x."""
        anchor = {"left": "start", "middle": "middle", "right": "end"}[align]
        weight = ' font-weight="bold"' if bold else ""
        svg = f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}"{weight}>'
        svg += f"{escape(str(text), quote=False)}</text>"
        self._add("text", (x, y, str(text), size, color, align, bold), svg)

    def image(self, x, y, w, h, image: Image.Image, smooth=True, frame=None):
        """A PIL image stretched into a rectangle; smooth=False keeps its pixels square; `frame` is a color."""
        style = "" if smooth else ' style="image-rendering:pixelated"'
        svg = f'<image x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" preserveAspectRatio="none"{style} '
        self._add("image", (x, y, w, h, image, smooth), svg + f'href="{data_address(image, photo=smooth)}"/>')
        if frame:
            self.rect(x, y, w, h, stroke=frame)

    def svg_only(self, svg: str):
        """A piece of SVG that pixels leave out."""
        self._add("nothing", (), svg)

    def spot(self, name, item, box, words, how="click", at=None, step=None, chosen=False):
        """A part that can be touched; it is drawn on top of all shapes, and nothing of it is seen at rest.

        Args:
            name: of its kind; spots of one kind are one stop of the Tab key.
            item: which one of its kind, None if there is only one.
            box: (x, y, w, h).
            words: what a click does, for the mouse at rest and for screen readers.
            how: "click"; "drag" from where the mouse goes down; "hover", which already follows the mouse.
            at: (x, y), where it stands for the arrow keys; None is its center.
            step: (x, y), how far an arrow key moves in it; 0 or None: it goes to the next spot of its kind.
            chosen: the Tab key goes to this one of its kind; else to the first.
        """
        at = at or (box[0] + box[2] / 2, box[1] + box[3] / 2)
        rounded = tuple(round(float(side), 2) for side in at)
        new = Spot(name, item, tuple(map(float, box)), words, how, rounded, step, chosen)
        self.spots[new.key] = new

    def _add(self, *shape):
        self.shapes.append(shape)

    # -- what many pictures have

    def lines(self, x, y, texts, step, size=TEXT, **style):
        """Lines of text under each other; y is the base line of the first."""
        for number, text in enumerate(texts):
            self.text(x, y + step * number, text, size, **style)

    def legend(self, x, y, meanings, step=0, border=GRAY):
        """Colored squares with their meanings [(color, words), ...]: in a row, or `step` pixels under each other."""
        for color, words in meanings:
            self.rect(x, y, 14, 14, color, border)
            self.text(x + 19, y + 13, words, 14)
            if step:
                y += step
            else:
                x += 34 + text_width(words, 14)

    def arrow(self, start, end, color=INK):
        self.path([start, end], color, 2)
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        wings = [(end[0] - 8 * math.cos(angle + turn), end[1] - 8 * math.sin(angle + turn)) for turn in (0.45, -0.45)]
        self.path([wings[0], end, wings[1]], color, 2)

    def stack(self, x, y, h, parts) -> float:
        """A bar of parts [(length, color, title), ...], one after the other. Returns where it ends."""
        for length, color, title in parts:
            self.rect(x, y, length, h, color, title=title)
            x += length
        return x

    def mesh(self, box, cols, rows, color, line=2, border=False):
        """The lines between the cells of a grid, and around them with `border`."""
        x, y, w, h = box
        more = 1 if border else 0
        for col in range(1 - more, cols + more):
            self.path([(x + w * col / cols, y), (x + w * col / cols, y + h)], color, line)
        for row in range(1 - more, rows + more):
            self.path([(x, y + h * row / rows), (x + w, y + h * row / rows)], color, line)

    def picture(self, image, box, title="", size=None, smooth=True, frame=None):
        """An image in the upper left of a box, undistorted or in the shape of `size`. Returns where: (x, y, w, h)."""
        box = (*box[:2], *fit(size or image.size, box)[2:])
        if title:
            self.text(box[0], box[1] - 10, title, bold=True)
        self.image(*box, image, smooth, frame)
        return box

    def svg(self) -> str:
        stops = {}  # {name of a kind of spots: where the Tab key stops}
        for spot in self.spots.values():
            if spot.chosen or spot.name not in stops:
                stops[spot.name] = spot.key
        parts = [svg for *_, svg in self.shapes]
        parts += [spot.svg(stops[spot.name] == spot.key) for spot in self.spots.values()]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'preserveAspectRatio="xMinYMin meet" font-family="DejaVu Sans,Verdana,sans-serif">'
            f'<rect width="{self.width}" height="{self.height}" fill="white"/>{"".join(parts)}</svg>'
        )

    def with_words(self, words: str, note: str) -> "Canvas":
        """A copy with its words below it, and a note in gray."""
        lines = wrap(words, self.width - 16, TEXT)
        new = Canvas(self.width, self.height + 20 * len(lines) + 32)
        new.shapes, new.scale = list(self.shapes), self.scale
        new.lines(8, self.height + 18, lines, 20)
        new.text(8, new.height - 9, note, 14, GRAY)
        return new

    def to_pil(self, scale: float | None = None) -> Image.Image:
        """The same picture as a PIL image. Drawn twice as large and reduced, which smooths the edges."""
        scale = scale or self.scale
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
        shown = {"width": self.width, "height": self.height, "alt": self.alt or repr(self)}
        return {"text/plain": repr(self), kind: b64encode(image).decode()}, {kind: shown}


class Axes:
    """A plot inside a box (x, y, w, h) of a canvas. `xs` and `ys` are (least, most), the values at its borders."""

    def __init__(self, canvas: Canvas, box, xs, ys, size=14, ink=GRAY):
        self.canvas, self.box, self.xs, self.ys = canvas, box, xs, ys
        self.size, self.ink = size, ink  # of its labels

    def at(self, x, y):
        """Where a value stands: (x, y) in pixels."""
        left, top, wide, high = self.box
        part = (x - self.xs[0]) / (self.xs[1] - self.xs[0]), (y - self.ys[0]) / (self.ys[1] - self.ys[0])
        return float(left + wide * part[0]), float(top + high * (1 - part[1]))

    def value(self, x, y):
        """What stands at a place in pixels: (x, y) as values, at most those of the borders."""
        left, top, wide, high = self.box
        part = min(max((x - left) / wide, 0), 1), min(max(1 - (y - top) / high, 0), 1)
        return self.xs[0] + part[0] * (self.xs[1] - self.xs[0]), self.ys[0] + part[1] * (self.ys[1] - self.ys[0])

    def line(self, points, color=INK, line=2):
        self.canvas.path([self.at(*point) for point in points], color, line)

    def dot(self, x, y, r=8, color=INK):
        self.canvas.dot(*self.at(x, y), r, color)

    def level(self, y, label="", color=PALE, line=1):
        """A line across the plot, with its label to the left."""
        self.line([(self.xs[0], y), (self.xs[1], y)], color, line)
        if label != "":
            self.beside(y, label)

    def beside(self, y, label):
        """A label to the left of the plot."""
        self.canvas.text(self.box[0] - 8, self.at(0, y)[1] + 5, label, self.size, self.ink, "right")

    def moment(self, x, color=PALE, line=1):
        """A line from the bottom of the plot to its top."""
        self.line([(x, self.ys[0]), (x, self.ys[1])], color, line)

    def under(self, x, label, align="middle", row=0, tick=0):
        """A label below the plot, in a row of labels; `tick` is the length of the mark above it."""
        across, bottom = self.at(x, self.ys[0])
        if tick:
            self.canvas.path([(across, bottom), (across, bottom + tick)], INK, 1)
        base = bottom + self.size + 4 + tick * 2 / 3 + (self.size + 2) * row
        self.canvas.text(across, base, label, self.size, self.ink, align)


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

    def nothing(self):
        pass

    def image(self, x, y, w, h, image, smooth):
        size = max(1, round(self.k * w)), max(1, round(self.k * h))
        method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.sheet.paste(image.resize(size, method), (round(self.k * x), round(self.k * y)))


@cache
def _font(size, bold=False):
    # matplotlib brings the font, so it is there on every system. Importing matplotlib is not needed.
    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = TEXT, bold: bool = False) -> float:
    """Width of a line of text in pixels."""
    return _font(round(size), bold).getlength(text) * size / round(size)


def wrap(text: str, width: float, size: float = TEXT, bold: bool = False) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word that is longer is cut."""
    lines = [""]
    for word in text.split():
        while text_width(word, size, bold) > width:
            word = word[:-1]
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- boxes (x, y, w, h)


def fit(size, box):
    """The largest (w, h) of the same shape inside a box (x, y, w, h), centered: (x, y, w, h)."""
    x, y, w, h = box
    scale = min(w / size[0], h / size[1])
    return x + (w - size[0] * scale) / 2, y + (h - size[1] * scale) / 2, size[0] * scale, size[1] * scale


def cell_box(box, grid, row: int, col: int, tall: int = 1, wide: int = 1):
    """The box of a cell of a grid (rows, columns) in a box; or of `tall` x `wide` cells, of which this is the first."""
    x, y, w, h = box[0], box[1], box[2] / grid[1], box[3] / grid[0]
    return x + w * col, y + h * row, w * wide, h * tall


def cell_at(box, grid, at) -> tuple[int, int]:
    """(row, column) of the cell of a grid (rows, columns) that lies at (x, y), or nearest to it."""
    x, y, w, h = box
    row, col = int((at[1] - y) / h * grid[0]), int((at[0] - x) / w * grid[1])
    return min(max(row, 0), grid[0] - 1), min(max(col, 0), grid[1] - 1)


# ---- pictures inside pictures


def sample_names() -> list[str]:
    """The file names of all sample pictures."""
    return sorted(path.name for path in SAMPLES.iterdir() if path.suffix in (".jpg", ".png"))


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


@lru_cache(maxsize=32)
def load_preview(name: str, most: int = 800) -> Image.Image:
    """As `preview` of a sample."""
    return preview(load_sample(name), most)


def data_address(image: Image.Image, photo: bool = True) -> str:
    """A picture as an address that needs no server: as JPEG, which takes 4 ms where PNG takes 54, or as PNG."""
    palette = bytes(image.getpalette()) if image.mode == "P" else None
    return _address(image.mode, image.size, image.tobytes(), palette, photo)


@lru_cache(maxsize=64)  # most pictures inside of a picture stay as they are when it is drawn again
def _address(mode, size, pixels, palette, photo):
    image, file = Image.frombytes(mode, size, pixels), io.BytesIO()
    if palette:
        image.putpalette(palette)
    image.save(file, **(dict(format="JPEG", quality=85) if photo else dict(format="PNG")))
    return f"data:image/{'jpeg' if photo else 'png'};base64,{b64encode(file.getvalue()).decode()}"
