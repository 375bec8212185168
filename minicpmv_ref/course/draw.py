"""The pictures of the course as pure functions: values in, a `Canvas` out. Nothing here needs Jupyter.

A `Canvas` is a list of shapes that can be written in two ways: as SVG for the live panel (sharp on every
projector, built in a millisecond) and as PNG or JPEG by Pillow for readers without a kernel.
Colors are Okabe-Ito's, which color-blind people can tell apart.
"""

import io
import math
from base64 import b64encode
from functools import cache, lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import best_grid, candidate_grids, paper_grid, partition_score, plan_slices, to_rgb

SAMPLES = Path(__file__).resolve().parents[2] / "data_samples" / "images"

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
    return upright(Image.open(path))


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as the camera was held: phones store that as a remark (EXIF), not in the pixels."""
    return to_rgb(ImageOps.exif_transpose(image))


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
                canvas.text(left, base + 17, "none yet: write one above, then run this cell again", color=GRAY)
            else:
                length = (WIDTH - 90 - left) * max(number, 0) / largest
                canvas.rect(left, base, max(length, 2), 22, color)
                canvas.text(left + length + 8, base + 17, f"{number:g}")
        mine = f"your guess {known[label]:g}" if label in known else "no guess yet"
        words.append(f"{label + ': ' if label else ''}truth {value:g}, {mine}")
    canvas.words = "; ".join(words)
    return canvas


# ---- lesson 01: slicing


def playground(size, cfg: SliceConfig, image: Image.Image) -> Canvas:
    """A picture cut into slices, the score of every candidate grid, and the formula with this size's numbers."""
    plan, canvas = plan_slices(size, cfg), Canvas()
    _draw_views(canvas, plan, image)
    _draw_scores(canvas, size, cfg)
    for line, text in enumerate(_formula_lines(size, cfg)):
        canvas.text(8, 308 + 29 * line, text)
    return canvas


def _draw_views(canvas, plan, image):
    """The overview, and the slices as a mesh: side by side for tall pictures, one above the other for wide ones."""
    if not plan.grid:
        _draw_view(canvas, "one view, not cut", plan.overview_size, (8, 30, 362, 234), image)
        return
    beside = (8, 30, 96, 234), (120, 30, 250, 234)
    stacked = (8, 30, 362, 84), (8, 146, 362, 118)
    width_in = lambda boxes: fit(plan.refined_size, boxes[1])[2]  # noqa: E731
    small, large = max(beside, stacked, key=width_in)
    _draw_view(canvas, "overview", plan.overview_size, small, image)
    cols, rows = plan.grid
    x, y, w, h = _draw_view(canvas, f"slices {cols} x {rows}", plan.refined_size, large, image)
    thin = min(w / cols, h / rows) < 30
    for color, line in ((BLACK, 2 if thin else 5), (YELLOW, 1 if thin else 2)):  # seen on every part of a picture
        for col in range(cols + 1):
            canvas.path([(x + w * col / cols, y), (x + w * col / cols, y + h)], color, line)
        for row in range(rows + 1):
            canvas.path([(x, y + h * row / rows), (x + w, y + h * row / rows)], color, line)
    for number in range(0 if thin else cols * rows):
        left, top = x + w / cols * (number % cols), y + h / rows * (number // cols)
        canvas.rect(left + 2, top + 2, 24 if number > 8 else 16, 18, YELLOW)
        canvas.text(left + (14 if number > 8 else 10), top + 17, number + 1, align="middle")


def _draw_view(canvas, title, size, box, image):
    """A picture of this size with its title above it. Returns where it is."""
    x, y = box[:2]
    _, _, w, h = fit(size, box)
    canvas.text(x, y - 10, title, bold=True)
    canvas.image(x, y, w, h, _as_seen(image, size, 2 * max(w, h)))
    return x, y, w, h


def _as_seen(image, size, most):
    """The picture with no more detail than a view of this size has, and no more than the screen shows."""
    scale = min(1, most / max(size))
    return image.resize((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), Image.Resampling.BICUBIC)


def _draw_scores(canvas, size, cfg):
    """One bar per candidate: the longer, the further its shape is from the image's. The shortest wins."""
    candidates, winner = candidate_grids(size, cfg), best_grid(size, cfg)
    canvas.text(384, 20, "score S(cols, rows)", bold=True)
    if not candidates:
        canvas.text(384, 60, "no candidates: N = 1", color=GRAY)
        return
    scores = {grid: partition_score(size, grid) for grid in candidates}
    zero, longest, step = 556, 104, min(28, 234 / len(scores))
    worst = max(1e-9, *(-score for score in scores.values()))
    size_of_text = min(TEXT, step - 2)
    for place, (grid, score) in enumerate(scores.items()):
        y, won = 32 + step * place, grid == winner
        canvas.text(436, y + step * 0.72, f"{grid[0]} x {grid[1]}", size_of_text, align="right", bold=won)
        length = longest * -score / worst
        canvas.rect(zero - length, y + 2, max(length, 2), step - 4, ORANGE if won else SKY)
        canvas.text(632, y + step * 0.72, signed(score), size_of_text, align="right", bold=won)
    canvas.path([(zero + 1, 30), (zero + 1, 34 + step * len(scores))], INK, 2)


def _formula_lines(size, cfg):
    width, height = size
    ratio, plan = width * height / cfg.scale_resolution**2, plan_slices(size, cfg)
    tried = sorted({cols * rows for cols, rows in candidate_grids(size, cfg)})
    limit = f", at most {cfg.max_slice_nums}" if math.ceil(ratio) > cfg.max_slice_nums else ""
    end = f"try {', '.join(map(str, tried))} slices" if tried else "not cut"
    yield f"N = ⌈{width} · {height} / {cfg.scale_resolution}²⌉ = ⌈{ratio:.3f}⌉ = {math.ceil(ratio)}{limit}: {end}"
    if plan.grid:
        cols, rows = plan.grid
        logs = signed(math.log(width / height)), signed(math.log(cols / rows))
        second = f"({logs[1]})" if logs[1].startswith("−") else logs[1]
        score = signed(partition_score(size, plan.grid))
        yield f"S({cols}, {rows}) = −|ln {width}/{height} − ln {cols}/{rows}| = −|{logs[0]} − {second}| = {score}"
    else:
        yield "no grid, so no score: the whole picture is the only view"
    for_64, for_96 = plan.visual_tokens(64), plan.visual_tokens(96)
    yield f"tokens = (1 + {plan.num_slices}) · 64 = {for_64}, and with 96 queries {for_96}"


def signed(number: float) -> str:
    """Three decimals and a true minus sign; no minus before zero."""
    text = f"{number:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def cliff(width: int, height: int, cfg: SliceConfig, num_queries: int, widest: int = 1800) -> Canvas:
    """Visual tokens against the image's width at one height, with a moving point."""
    canvas, tokens = Canvas(), _tokens_by_width(height, cfg, widest)
    left, right, top, bottom = 62, 610, 44, 316
    most = 1 + cfg.max_slice_nums
    across = lambda pixels: left + (right - left) * pixels / widest  # noqa: E731
    up = lambda views: bottom - (bottom - top) * views / most  # noqa: E731
    canvas.text(8, 22, f"visual tokens of width x {height}", bold=True)
    for views in range(0, most + 1, max(1, math.ceil(most / 5))):
        canvas.path([(left, up(views)), (right, up(views))], PALE, 1)
        canvas.text(left - 8, up(views) + 6, views * num_queries, align="right")
    for pixels in range(0, widest + 1, 300):
        canvas.path([(across(pixels), bottom), (across(pixels), bottom + 6)], INK, 1)
        canvas.text(across(pixels), bottom + 24, pixels, align="middle")
    canvas.text(right, bottom + 52, "width in pixels", align="right")
    steps = [(left, up(tokens[0]))]
    for pixels in range(2, widest + 1):
        if tokens[pixels - 1] != tokens[pixels - 2]:
            steps += [(across(pixels), up(tokens[pixels - 2])), (across(pixels), up(tokens[pixels - 1]))]
    canvas.path([*steps, (right, up(tokens[-1]))], BLUE, 3)
    x, y = across(width), up(tokens[width - 1])
    canvas.path([(x, bottom), (x, y)], RED, 2)
    canvas.dot(x, y, 8, RED)
    where = "left" if x < 420 else "right"
    label = f"{width} x {height}: {tokens[width - 1] * num_queries}"
    canvas.text(x + (14 if where == "left" else -14), max(y - 14, 40), label, 18, RED, where, bold=True)
    return canvas


@lru_cache(maxsize=64)
def _tokens_by_width(height, cfg, widest):
    """Views of width x height for width = 1, 2, ..., widest."""
    return [1 + plan_slices((width, height), cfg).num_slices for width in range(1, widest + 1)]


CASES = {  # (meaning, color) of the four regions of the map
    "same": ("the same grid", PALE),
    "paper": ("only the paper cuts", SKY),
    "code": ("only the code cuts", ORANGE),
    "other": ("two different grids", PURPLE),
}
SMALLEST, LARGEST = 100, 4100  # sides of the map, in pixels


def compare_grids(size, cfg: SliceConfig = SliceConfig()) -> str:
    """Which of the four CASES this size is."""
    code, paper = best_grid(size, cfg) or (1, 1), paper_grid(size, cfg)
    if code == paper:
        return "same"
    return "paper" if code == (1, 1) else "code" if paper == (1, 1) else "other"


def paper_map(width: int, height: int, cfg: SliceConfig = SliceConfig()) -> Canvas:
    """A map of all sizes, colored by how the paper's equations and the code differ; one size's two grids beside it.

    Both axes are logarithmic, as the score is: equal shapes lie on lines that rise, equal areas on lines that fall.
    """
    canvas, (left, top, side) = Canvas(), (62, 12, 300)
    case = compare_grids((width, height), cfg)
    canvas.image(left, top, side, side, _map_image(cfg), smooth=False)
    canvas.rect(left, top, side, side, stroke=INK)
    for pixels in (100, 448, 1000, 4000):
        at = side * _on_map(pixels)
        canvas.path([(left + at, top + side), (left + at, top + side + 6)], INK, 1)
        canvas.path([(left - 6, top + side - at), (left, top + side - at)], INK, 1)
        canvas.text(left + at, top + side + 22, pixels, align="middle")
        canvas.text(left - 9, top + side - at + 6, pixels, align="right")
    canvas.text(left + side / 2, top + side + 46, "width", align="middle")
    canvas.text(4, top + 80, "height")
    canvas.dot(left + side * _on_map(width), top + side * (1 - _on_map(height)), 7, RED)

    grids = (("paper", paper_grid((width, height), cfg)), ("code", best_grid((width, height), cfg)))
    for place, (name, grid) in enumerate(grids):
        _draw_mesh(canvas, 388 + 130 * place, name, (width, height), grid or (1, 1))
    for line, (key, (meaning, color)) in enumerate(CASES.items()):
        y = 214 + 32 * line
        canvas.rect(388, y, 20, 20, color, INK if key == case else "none", 2)
        canvas.text(416, y + 16, meaning, bold=key == case)
    return canvas


def _draw_mesh(canvas, x, name, size, grid):
    canvas.text(x, 28, f"{name} {grid[0]} x {grid[1]}", bold=True)
    y, (_, _, w, h) = 40, fit(size, (0, 0, 112, 150))
    canvas.rect(x, y, w, h, "#F5F5F5", INK, 2)
    for col in range(1, grid[0]):
        canvas.path([(x + w * col / grid[0], y), (x + w * col / grid[0], y + h)], INK, 2)
    for row in range(1, grid[1]):
        canvas.path([(x, y + h * row / grid[1]), (x + w, y + h * row / grid[1])], INK, 2)


def _on_map(pixels):
    """0 at SMALLEST, 1 at LARGEST, logarithmic between."""
    return math.log(min(max(pixels, SMALLEST), LARGEST) / SMALLEST) / math.log(LARGEST / SMALLEST)


@lru_cache(maxsize=4)
def _map_image(cfg, cells=120):
    """One pixel per size; height grows upwards."""
    sides = [round(SMALLEST * (LARGEST / SMALLEST) ** ((cell + 0.5) / cells)) for cell in range(cells)]
    image = Image.new("RGB", (cells, cells))
    for col, width in enumerate(sides):
        for row, height in enumerate(sides):
            color = CASES[compare_grids((width, height), cfg)][1]
            image.putpixel((col, cells - 1 - row), tuple(bytes.fromhex(color[1:])))
    return image


# ---- lesson 02: positions

LOOK_UPS = {  # how a patch finds its position: (words in a menu, key)
    "buckets (2.6)": "bucket",
    "buckets, exact": "exact",
    "interpolation (2.0)": "interpolate",
}
WORST = 0.25  # where the colors of the error map end


def surface(down, right):
    """A smooth hill and a smooth valley: stands for one channel of a learned table. Fractions of the picture in."""
    import numpy as np

    return np.cos(2 * np.pi * down) * np.sin(2 * np.pi * right)


@lru_cache(maxsize=64)
def look_up(rows: int, cols: int, method: str, side: int = 70):
    """How a patch grid reads a side x side table that holds `surface`.

    Args:
        rows, cols: the grid in patches.
        method: "bucket", "exact" or "interpolate".

    Returns:
        (reads, errors): numpy arrays. reads (side, side): how many patches look a cell up; None where patches mix
        cells. errors (rows, cols): distance of what a patch gets from the surface at the patch's center.
    """
    import numpy as np
    import torch

    from minicpmv_ref.positions import bucket_position_ids, interpolate_position_table

    centers = lambda n: (np.arange(n) + 0.5) / n  # noqa: E731
    table = surface(centers(side)[:, None], centers(side)[None, :])
    if method == "interpolate":
        reads = None
        got = interpolate_position_table(torch.from_numpy(table.reshape(-1, 1)), rows, cols).numpy()
    else:
        ids = bucket_position_ids(rows, cols, side, exact=method == "exact").numpy()
        reads = np.bincount(ids, minlength=side * side).reshape(side, side)
        got = table.reshape(-1)[ids]
    truth = surface(centers(rows)[:, None], centers(cols)[None, :])
    return reads, np.abs(got.reshape(rows, cols) - truth)


def lines_read(n: int, method: str, side: int = 70) -> list:
    """Which line (row or column) of the table each of n patches reads; with a fraction where patches mix cells."""
    from minicpmv_ref.positions import bucket_position_ids

    if method == "interpolate":
        return [(i + 0.5) * side / n - 0.5 for i in range(n)]
    return bucket_position_ids(1, n, side, exact=method == "exact").tolist()


def position_explorer(rows: int, cols: int, method: str, side: int = 70) -> Canvas:
    """The table's cells that a patch grid reads, a corner with the patches laid over it, and each patch's error."""
    canvas, size, top, near = Canvas(WIDTH, 330), 198, 30, side // 5
    reads, errors = look_up(rows, cols, method, side)
    cells = _cells_image(reads, side)
    for x, title in ((8, f"table, {side} x {side} cells"), (221, "its corner, enlarged"), (434, "error of each patch")):
        canvas.text(x, 20, title, bold=True)
    canvas.image(8, top, size, size, cells, smooth=False)
    canvas.rect(8, top, size, size, stroke=INK)
    canvas.rect(8, top, size * near / side, size * near / side, stroke=RED, line=2)
    _draw_corner(canvas, (221, top, size), cells.crop((0, 0, near, near)), rows * near / side, cols * near / side)
    _, _, w, h = fit((cols, rows), (0, 0, size, size))
    canvas.image(434, top, w, h, _error_image(errors), smooth=False)
    canvas.rect(434, top, w, h, stroke=INK)

    legend = [(SKY, "mixed into several patches")]
    if reads is not None:
        legend = [(BLUE, "read by one patch"), (PALE, "by none")] + [(ORANGE, "by several")] * bool(reads.max() > 1)
    x = 8
    for color, meaning in legend:
        canvas.rect(x, 242, 14, 14, color, GRAY)
        canvas.text(x + 19, 255, meaning, 14)
        x += 34 + text_width(meaning, 14)
    canvas.text(445, 255, "0", 14, align="right")
    canvas.image(450, 242, 80, 14, _error_image([[WORST * step / 79 for step in range(80)]]), smooth=False)
    canvas.text(535, 255, f"{WORST} or more", 14)
    for line, (name, n) in enumerate((("rows", rows), ("columns", cols))):
        canvas.text(8, 290 + 28 * line, f"{name} read:  {_shortened(lines_read(n, method, side))}")
    return canvas


def _draw_corner(canvas, place, cells, rows, cols):
    """Cells with the patches over them: outlines and centers. `rows` and `cols` count the patches in the corner."""
    x, y, size = place
    canvas.image(x, y, size, size, cells, smooth=False)
    for cell in range(1, cells.width):
        at = size * cell / cells.width
        canvas.path([(x + at, y), (x + at, y + size)], "white", 1)
        canvas.path([(x, y + at), (x + size, y + at)], "white", 1)
    for row in range(1, math.ceil(rows) if rows < 30 else 1):  # more would only be a gray surface
        canvas.path([(x, y + size * row / rows), (x + size, y + size * row / rows)], INK, 1.5)
    for col in range(1, math.ceil(cols) if cols < 30 else 1):
        canvas.path([(x + size * col / cols, y), (x + size * col / cols, y + size)], INK, 1.5)
    if max(rows, cols) < 20:
        for row in range(math.ceil(rows - 0.6)):
            for col in range(math.ceil(cols - 0.6)):
                canvas.dot(x + size * (col + 0.5) / cols, y + size * (row + 0.5) / rows, 1.5, RED, RED)
    canvas.rect(x, y, size, size, stroke=RED, line=2)


def _cells_image(reads, side):
    """One pixel per cell of the table."""
    image = Image.new("RGB", (side, side), SKY)
    if reads is not None:
        colors = [tuple(bytes.fromhex(color[1:])) for color in (PALE, BLUE, ORANGE)]
        image.putdata([colors[min(count, 2)] for count in reads.ravel().tolist()])
    return image


def _error_image(errors):
    """One pixel per patch, cividis: dark is right, yellow is wrong."""
    import numpy as np
    from matplotlib import colormaps

    return Image.fromarray(colormaps["cividis"](np.clip(np.asarray(errors) / WORST, 0, 1), bytes=True)[..., :3])


def _shortened(numbers, most=624 - 130):
    """As many numbers as fit, then dots and the last one."""
    words = [f"{n:z.1f}".replace("-", "−") if isinstance(n, float) else str(n) for n in numbers]
    shown = len(words)
    text = ", ".join(words)
    while text_width(text) > most:
        shown -= 1
        text = ", ".join(words[:shown]) + ", …, " + words[-1]
    return text


def tables(counts: dict, side: int = 70) -> Canvas:
    """Position tables side by side, with the cells that are read in color.

    Args:
        counts: {title: ids}; ids are the table rows read, in any order, as a list or a tensor.
        side: cells on one side of a table.
    """
    import numpy as np

    wide = min(200, (WIDTH - 16) // len(counts) - 12)
    canvas, words = Canvas(WIDTH, wide + 66), []
    for place, (title, ids) in enumerate(counts.items()):
        reads = np.bincount(np.asarray(ids), minlength=side * side).reshape(side, side)
        x, used = 8 + (wide + 12) * place, int((reads > 0).sum())
        canvas.text(x, 22, title, bold=True)
        canvas.image(x, 34, wide, wide, _cells_image(np.minimum(reads, 1), side), smooth=False)
        canvas.rect(x, 34, wide, wide, stroke=INK)
        canvas.text(x, wide + 56, f"{used:,} of {side * side:,} cells")
        words.append(f"{title}: {used} of {side * side} cells are read")
    canvas.words = "; ".join(words)
    return canvas


# ---- lesson 03: the resampler

READERS = {  # whose attention a picture shows
    "places": "built by hand to look at places",
    "stripes": "built by hand, with heads that cut the channels as they come",
    "nano": "of the nano model",
}
LEVELS = 64  # steps of color in an attention map
CELLS = 4  # the queries stand in a square of 4 x 4
LOOK_WIDTH = 440  # of the views in `attention_hover`; the queries stand to the left of them


@cache
def place_reader(kind: str = "places"):
    """A resampler built by hand: query i looks at cell i of a 4 x 4 grid laid over 32 x 32 patches.

    Args:
        kind: "places": each head gets every second frequency of column and row, so it sees both.
            "stripes": the heads cut the channels as they come: head 0 sees columns only, head 1 rows only.
    """
    import torch
    from einops import rearrange

    from minicpmv_ref.config import ResamplerConfig
    from minicpmv_ref.positions import sincos_2d
    from minicpmv_ref.resampler import Resampler

    reader = Resampler(ResamplerConfig(CELLS**2, 256, 128)).requires_grad_(False)
    reader.query.copy_(rearrange(sincos_2d(256, 32, 32)[4::8, 4::8], "r c e -> (r c) e"))
    same = torch.eye(256)
    if kind == "places":  # a: sine or cosine of column or row
        same = rearrange(same, "(a frequency head) e -> (head a frequency) e", a=4, head=2)
    reader.attn.in_proj_weight.copy_(torch.cat([2 * same, same, same]))
    return reader


@cache
def nano_reader():
    """(vision transformer, resampler, trained?) of the nano model; seeded random weights until it is trained.

    The LLM is left out: that saves the seconds that it takes to import transformers.
    """
    import torch

    from minicpmv_ref.checkpoint import WEIGHTS
    from minicpmv_ref.config import find_folder, read_config
    from minicpmv_ref.resampler import Resampler
    from minicpmv_ref.vision import VisionTransformer

    folder = find_folder("nano")
    config = read_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)  # as MiniCPMV.seeded
        parts = {"vpm": VisionTransformer(config.vision), "resampler": Resampler(config.resampler)}
    trained = (folder / WEIGHTS).exists()
    if trained:
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS)
        for name, part in parts.items():
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            part.load_state_dict(own, strict=True)
    return *(part.eval().requires_grad_(False) for part in parts.values()), trained


@lru_cache(maxsize=8)
def attention_of(name: str, kind: str):
    """How the queries of one reader look at the views of a sample.

    Args:
        name: a file name of data_samples/images.
        kind: one of READERS. Readers built by hand are fed blank patches, so that only places count.

    Returns:
        (plan, weights): a SlicePlan, and for each view, overview first, a numpy array (heads, queries, rows, cols).
    """
    import torch

    from minicpmv_ref.config import nano
    from minicpmv_ref.processor import normalize_views

    image = load_sample(name)
    plan = plan_slices(image.size, nano.slicing if kind == "nano" else SliceConfig())
    if kind == "nano":
        eye, reader, _ = nano_reader()
        features = eye(normalize_views(image, plan))
    else:
        reader = place_reader(kind)
        features = [torch.zeros(rows * cols, reader.cfg.kv_width) for rows, cols in plan.patch_grids]
    _, weights = reader.attend(features, list(plan.patch_grids))
    return plan, [w.float().numpy().reshape(*w.shape[:2], *grid) for w, grid in zip(weights, plan.patch_grids)]


def one_head(weights, head):
    """(heads, queries, rows, cols) -> (queries, rows, cols): one head, or the mean of all."""
    return weights.mean(axis=0) if head == "mean" else weights[head]


def patches_seen(weights) -> float:
    """The spread, exp(entropy), of weights that sum to 1: as many patches, read evenly, have the same entropy."""
    import numpy as np

    known = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(known * np.log(known)).sum()))


def query_words(weights, head, query: int) -> str:
    """What one query does. `weights` as in `attention_of`."""
    maps = [one_head(view, head)[query] for view in weights]
    row, col = divmod(int(maps[0].argmax()), maps[0].shape[1])
    view, most = "Overview" if len(maps) > 1 else "View", maps[0].max()
    words = f"Query {query}. {view}: spread over {patches_seen(maps[0]):.0f} of {maps[0].size:,} patches; "
    words += f"most, {most:.1%}, on row {row}, column {col}."
    if len(maps) > 1:
        wide = sorted(round(patches_seen(view)) for view in maps[1:])
        span = f"{wide[0]} to {wide[-1]}" if wide[0] < wide[-1] else f"{wide[0]}"
        words += f" Slices: over {span} of {maps[1].size:,}."
    return words


def attention(image: Image.Image, plan, weights, head="mean", query: int = 5) -> Canvas:
    """One query's attention over the views of a picture, as `attention_hover` shows it when the mouse rests on it."""
    canvas, ceiling = Canvas(), _ceiling(weights, head)
    canvas.text(8, 22, "queries", bold=True)
    for cell in range(CELLS**2):
        x, y = 8 + 44 * (cell % CELLS), 34 + 36 * (cell // CELLS)
        canvas.rect(x, y, 40, 32, ORANGE if cell == query else PALE)
        canvas.text(x + 20, y + 22, cell, align="middle", bold=cell == query)
    for line, words in enumerate(_wrapped(query_words(weights, head, query), 184)):
        canvas.text(8, 206 + 23 * line, words)
    left = WIDTH - LOOK_WIDTH
    for title, (x, y, w, h), ground, maps in _looked_at(image, plan, weights, head):
        light = _glow(maps[query], ceiling).convert("RGB").resize(ground.size, Image.Resampling.NEAREST)
        canvas.text(left + x, y - 10, title, bold=True)
        canvas.image(left + x, y, w, h, ImageChops.multiply(ground, light))
        _draw_cuts(canvas, plan, title, (left + x, y, w, h))
    _draw_scale(canvas, left, ceiling)
    return canvas


def attention_hover(image: Image.Image, plan, weights, head="mean", query: int = 5) -> str:
    """HTML in which pointing at a query shows its attention over the views of a picture. No script, no kernel.

    All maps are in the page, one pixel per patch; style rules show those of the query under the mouse, or else of the
    chosen one. The queries are radio buttons: a click or the arrow keys choose. A map multiplies the gray picture, so
    what is looked at is bright and yellow. One color scale holds for all queries; it follows the root of the weight,
    because a linear one would show little but the peaks.
    """
    number, ceiling = CELLS**2, _ceiling(weights, head)
    buttons, words = [], []
    for i in range(number):
        said = escape(query_words(weights, head, i))
        checked = " checked" if i == query else ""
        buttons.append(  # the long name keeps JupyterLab from taking the arrow keys for itself
            f'<label class="q q{i}"><input type="radio" name="query" data-lm-suppress-shortcuts{checked} '
            f'aria-label="{said}"><span>{i}</span></label>'
        )
        words.append(f'<p class="m m{i}" aria-hidden="true">{said}</p>')
    canvas = Canvas(LOOK_WIDTH, HEIGHT)
    for title, (x, y, w, h), ground, maps in _looked_at(image, plan, weights, head):
        canvas.text(x, y - 10, title, bold=True)
        canvas.image(x, y, w, h, ground)
        for i in range(number):
            canvas._add(
                ("only in SVG", ()),
                f'<image class="m m{i}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
                f'preserveAspectRatio="none" href="{_glow_address(maps[i], ceiling)}"/>',
            )
        _draw_cuts(canvas, plan, title, (x, y, w, h))
    _draw_scale(canvas, 0, ceiling)
    return (
        f"<style>{_hover_rules(number)}</style>"
        '<form class="mcv-look"><button disabled hidden></button>'
        f'<div><b>queries</b><div class="qs">{"".join(buttons)}</div><div class="ws">{"".join(words)}</div></div>'
        f"{canvas.svg()}</form>"
    )


def _hover_rules(number):
    """Style rules of `attention_hover`. Each form is a panel of its own, so several can stand in one notebook."""
    yours = ",".join(f".mcv-look:has(.q{i}:hover) .m{i}" for i in range(number))
    chosen = ",".join(f".mcv-look:not(:has(.q:hover)):has(.q{i}>:checked) .m{i}" for i in range(number))
    return (
        ".mcv-look{display:flex;margin:0;background:white;color:#222;font:16px/1.35 'DejaVu Sans',Verdana,sans-serif;"
        "container-type:inline-size}.mcv-look>div{font-size:clamp(15px,2.5cqw,24px)}"  # as large as the text in the SVG
        ".mcv-look>div{flex:0 0 31%;padding:4px 0 0 6px;box-sizing:border-box}.mcv-look>svg{flex:1 1 0;min-width:0}"
        f".mcv-look .qs{{display:grid;grid-template-columns:repeat({CELLS},1fr);gap:4px;margin:6px 14px 8px 0}}"
        ".mcv-look .q{position:relative;display:block;cursor:pointer;text-align:center}"
        ".mcv-look input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:pointer}"
        f".mcv-look .q span{{display:block;line-height:2;background:{PALE}}}"
        f".mcv-look :checked+span{{background:{ORANGE};font-weight:bold}}"
        f".mcv-look .q:hover span,.mcv-look :focus-visible+span{{outline:3px solid {BLUE};outline-offset:-1px}}"
        ".mcv-look .ws{display:grid;margin-right:8px}.mcv-look .ws p{grid-area:1/1;margin:0}"
        ".mcv-look .m{visibility:hidden}.mcv-look image.m{image-rendering:pixelated;mix-blend-mode:multiply}"
        f"{yours},{chosen}{{visibility:visible}}"
        ".mcv-panel:has(.mcv-look) .widget-toggle-button{padding:0 4px}"
    )


def _looked_at(image, plan, weights, head):
    """(title, box, gray picture, maps (queries, rows, cols)) of the overview, and of all slices as one picture."""
    import numpy as np

    maps = [one_head(view, head) for view in weights]
    top, low, right = 30, 324, LOOK_WIDTH - 8
    if not plan.grid:
        box = fit(plan.overview_size, (0, top, right, low - top))
        yield "one view", (0, top, *box[2:]), _ground(image, box), maps[0]
        return
    beside = (0, top, 120, low - top), (136, top, right - 136, low - top)
    stacked = (0, top, right, 78), (0, 138, right, low - 138)
    width_in = lambda boxes: fit(plan.refined_size, boxes[1])[2]  # noqa: E731
    small, large = max(beside, stacked, key=width_in)
    cols, rows = plan.grid
    mosaic = np.concatenate(
        [np.concatenate(maps[1 + cols * row : 1 + cols * (row + 1)], axis=-1) for row in range(rows)], axis=-2
    )
    named = ("overview", small, plan.overview_size, maps[0]), (f"slices {cols} x {rows}", large, None, mosaic)
    for title, place, size, shown in named:
        box = fit(size or plan.refined_size, place)
        yield title, (*place[:2], *box[2:]), _ground(image, box), shown


def _ground(image, box):
    """The picture in light gray: a map multiplied with it keeps its colors."""
    size = max(1, round(2 * box[2])), max(1, round(2 * box[3]))
    gray = image.convert("L").resize(size, Image.Resampling.BICUBIC)
    return gray.point(lambda level: 90 + level * 165 // 255).convert("RGB")


def _draw_cuts(canvas, plan, title, box):
    if not title.startswith("slices"):
        return
    (x, y, w, h), (cols, rows) = box, plan.grid
    for col in range(1, cols):
        canvas.path([(x + w * col / cols, y), (x + w * col / cols, y + h)], "white", 3)
    for row in range(1, rows):
        canvas.path([(x, y + h * row / rows), (x + w, y + h * row / rows)], "white", 3)


def _draw_scale(canvas, left, ceiling):
    import numpy as np

    ramp = _glow(np.linspace(0, 1, LEVELS)[None] ** 2, 1).convert("RGB")
    canvas.text(left, 353, "weight of a patch")
    at, wide = left + text_width("weight of a patch") + 14, 220
    canvas.image(at, 341, wide, 14, ramp, smooth=False)
    for part in (0, 0.5, 1):
        label = f"{ceiling * part**2:.1%}" if part else "0"
        canvas.text(at + wide * part, 375, label, align="middle" if part else "left")


def _ceiling(weights, head) -> float:
    """The largest weight of all queries in all views: where the colors end."""
    return max(float(one_head(view, head).max()) for view in weights)


@cache
def _cividis():
    """LEVELS colors. A little white is mixed in, or nothing could be seen of the picture where the weight is 0."""
    import numpy as np
    from matplotlib import colormaps

    return (255 * (0.72 * colormaps["cividis"](np.linspace(0, 1, LEVELS))[:, :3] + 0.28)).astype(np.uint8).tobytes()


def _glow(weights, ceiling):
    """(rows, cols) as one pixel per patch, with a palette: small enough to send all maps at once."""
    import numpy as np

    levels = np.rint((LEVELS - 1) * np.sqrt(np.clip(weights / ceiling, 0, 1))).astype(np.uint8)
    image = Image.fromarray(levels)
    image.putpalette(_cividis())
    return image


def _glow_address(weights, ceiling):
    file = io.BytesIO()
    _glow(weights, ceiling).save(file, format="PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _wrapped(text, most):
    """Lines of at most `most` pixels."""
    line = ""
    for word in text.split():
        if line and text_width(f"{line} {word}") > most:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


# ---- lesson 04: into the language model

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
    from minicpmv_ref.config import find_folder
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
    _, _, w, h = fit(seen.size, (8, top, 116, 104))
    canvas.image(8, top, w, h, seen)
    middle = top + 52
    _draw_arrow(canvas, (14 + w, middle), (206, middle), INK)
    canvas.text(max(134, (w + 220) / 2), middle - 24, "ViT", 14, align="middle")
    canvas.text(max(134, (w + 220) / 2), middle - 8, "resampler", 14, align="middle")
    for token in range(end - start):
        column = 214 + 24 * token
        left, upper, width, height = places[start + token]
        _draw_arrow(canvas, (column + 9, top + 8), (left + width / 2, upper + height + 1), RED)
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


def _draw_arrow(canvas, start, end, color):
    canvas.path([start, end], color, 2)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [(end[0] - 8 * math.cos(angle + turn), end[1] - 8 * math.sin(angle + turn)) for turn in (0.45, -0.45)]
    canvas.path([wings[0], end, wings[1]], color, 2)


@cache
def _nano_that_shows_attention():
    from minicpmv_ref import MiniCPMV, Processor

    model = MiniCPMV.from_pretrained("nano")
    model.llm.set_attn_implementation("eager")  # the quicker ones never hold the weights
    return model, Processor.from_pretrained("nano")


@lru_cache(maxsize=8)
def watch_answer(picture: str, question: str = "What is this?", most: int = 12) -> dict:
    """Let nano answer greedily and record where it looks.

    Returns:
        words: the generated tokens as text.
        slots: numpy (layers, tokens, views, Q), attention on every slot, mean over heads. Row k belongs to the position
            whose output is token k: the last one of the prompt for the first token.
        resampler: [numpy (Q, L_i), ...], each visual token's weights over the patches of its view, mean over heads.
        plan, patch_grids: of the picture.
    """
    import torch

    model, processor = _nano_that_shows_attention()
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
        slots=looks[:, :, spots].numpy(),
        resampler=[weight.mean(dim=0).numpy() for weight in weights],
        plan=batch.plans[0][0],
        patch_grids=grids,
    )


def _as_word(tokenizer, token, stop_ids):
    text = "<end>" if token in stop_ids else tokenizer.decode([token])
    return text.replace("\ufffd", "·").replace("\n", "↵").strip() or "·"


def look(picture: str, token: int, layer: int | None = None) -> dict:
    """Where nano looks when it chooses a token of its answer.

    Args:
        token: number of the token, from 1.
        layer: number of the LLM's layer, from 1; None: mean over layers.

    Returns:
        share: part of the attention that is on slots.
        slots: numpy (views, Q), and patches: [numpy (rows, cols), ...]: how many times as much as an even look.
    """
    watched = watch_answer(picture)
    per_layer = watched["slots"][:, token - 1]
    slots = per_layer.mean(axis=0) if layer is None else per_layer[layer - 1]
    share = float(slots.sum())
    patches = [row @ weights / share for row, weights in zip(slots, watched["resampler"])]
    even = sum(len(weights) for weights in patches)  # one patch of so many
    maps = [(weights * even).reshape(grid) for weights, grid in zip(patches, watched["patch_grids"])]
    return dict(share=share, slots=slots / share * slots.size, patches=maps)


def answer_attention(picture: str, token: int, layer: int | None = None, stretch: bool = False) -> Canvas:
    """Attention of one generated token on the visual tokens, and through the resampler on the patches.

    Args:
        picture, token, layer: see `look`.
        stretch: colors from the least to the most of this state, instead of from 1/4 to 4 times an even look.
    """
    import numpy as np

    canvas, watched, seen = Canvas(), watch_answer(picture), look(picture, token, layer)
    image, plan = preview(load_sample(picture), 500), watched["plan"]
    spans = {"slots": [seen["slots"]], "patches": seen["patches"]}
    low_high = dict.fromkeys(spans, (0.25, 4))
    if stretch:
        most = {name: float(max(map(np.max, arrays))) for name, arrays in spans.items()}
        least = {name: float(min(map(np.min, arrays))) for name, arrays in spans.items()}
        low_high = {name: (max(least[name], most[name] / 1000), most[name]) for name in spans}  # a weight may be zero
    _draw_answer(canvas, watched["words"], token)

    heat = lambda array, name: _heat(array, *low_high[name])  # noqa: E731
    canvas.text(8, 82, "overview", bold=True)
    _, _, w, h = fit(image.size, (8, 92, 190, 186))
    canvas.image(8, 92, w, h, _blend(image, heat(seen["patches"][0], "patches")))
    if plan.grid:
        cols, rows = plan.grid
        joined = np.concatenate(
            [np.concatenate(seen["patches"][1 + cols * row : 1 + cols * (row + 1)], axis=1) for row in range(rows)]
        )
        canvas.text(212, 82, f"slices {cols} x {rows}", bold=True)
        _, _, w, h = fit(image.size, (212, 92, 280, 186))
        canvas.image(212, 92, w, h, _blend(image, heat(joined, "patches")))
        for col in range(1, cols):
            canvas.path([(212 + w * col / cols, 92), (212 + w * col / cols, 92 + h)], "white", 2)
        for row in range(1, rows):
            canvas.path([(212, 92 + h * row / rows), (212 + w, 92 + h * row / rows)], "white", 2)

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
