"""A banner, a chart, a screenshot, two signs, and the small model's world.

Each function returns (picture, palette size); 0 means no palette.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from .sheet import BLUE, GRAY, GREEN, PALE, RED, SKY, ZOOM, Missing, Sheet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).parent / "page.html"


def ball(radius, color):
    """A lit sphere as an RGBA picture, `radius` in final pixels."""
    r = radius * ZOOM
    y, x = np.mgrid[-r:r, -r:r] + 0.5
    inside = np.clip(r - np.hypot(x, y), 0, 1)
    depth = np.sqrt(np.clip(1 - (x**2 + y**2) / r**2, 0, 1))
    light = np.clip((-0.6 * x / r - 0.45 * y / r + 0.66 * depth), 0, 1) * 0.95 + 0.12
    rgb = np.array(color)[None, None] * light[..., None]
    return Image.fromarray(np.dstack([rgb.clip(0, 255), inside * 255]).astype(np.uint8), "RGBA")


def banner():
    """The eight planets in order. Diameters are not to scale, and the banner says so."""
    planets = [
        ("Mercury", "0.4 AU", 24, (172, 160, 150)), ("Venus", "0.7 AU", 40, (232, 200, 140)),
        ("Earth", "1.0 AU", 42, (80, 140, 225)), ("Mars", "1.5 AU", 32, (214, 104, 66)),
        ("Jupiter", "5.2 AU", 84, (222, 178, 138)), ("Saturn", "9.6 AU", 62, (228, 204, 150)),
        ("Uranus", "19.2 AU", 56, (150, 220, 226)), ("Neptune", "30.1 AU", 54, (78, 112, 226)),
    ]  # fmt: skip
    sheet = Sheet(2400, 300, "#0b1020")
    rng = np.random.default_rng(8)
    for x, y, bright in zip(rng.uniform(500, 2400, 200), rng.uniform(0, 212, 200), rng.uniform(60, 190, 200)):
        sheet.disc(x, y, 0.4 + bright / 190, (int(bright),) * 3)
    for step in range(60):  # the Sun: a glow, then the disc
        glow = (step / 60) ** 2
        color = [round(dark + glow * (light - dark)) for dark, light in zip((11, 16, 32), (255, 190, 80))]
        sheet.disc(-160, 150, 330 - 0.75 * step, tuple(color))
    sheet.disc(-160, 150, 285, "#ffd873")
    sheet.text(205, 76, "The planets", "sans-bold", 34, "white")
    sheet.text(205, 112, "in order from the Sun", "sans", 19, "#b9c4dc")
    sheet.text(205, 250, "Sizes and gaps are not to scale.", "sans", 15, "#b9c4dc")
    for i, (name, distance, radius, color) in enumerate(planets):
        x, y = 600 + 235 * i, 122
        planet = ball(radius, color)
        if name == "Saturn":  # the ring: behind the planet first, then its front half again
            ring = Image.new("RGBA", (264 * ZOOM, 72 * ZOOM))
            ImageDraw.Draw(ring).ellipse((4, 4, 523, 139), outline=(206, 186, 140, 255), width=20)
            at = (int((x - 132) * ZOOM), int((y - 36) * ZOOM))
            sheet.image.paste(ring, at, ring)
        sheet.image.paste(planet, (int((x - radius) * ZOOM), int((y - radius) * ZOOM)), planet)
        if name == "Saturn":
            front = ring.crop((0, 36 * ZOOM, *ring.size))
            sheet.image.paste(front, (at[0], at[1] + 36 * ZOOM), front)
        sheet.text(x, 250, name, "sans-bold", 24, "white", "ms")
        sheet.text(x, 278, distance, "sans", 18, "#b9c4dc", "ms")
    return sheet.finish(), 0


def chart():
    """Bars and a line: what a picture costs and how many pixels each token stands for."""
    sizes = [(448, 448), (640, 480), (800, 600), (1024, 768), (1280, 720), (1344, 1344), (1920, 1080)]
    tokens = [64, 192, 320, 320, 448, 640, 576]
    pixels = [w * h / t for (w, h), t in zip(sizes, tokens)]
    plt.rcdefaults()
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 14})
    figure, bars = plt.subplots(figsize=(12, 8), dpi=100)
    places = range(len(sizes))
    drawn = bars.bar(places, tokens, color=SKY, width=0.62)
    bars.bar_label(drawn, padding=4, fontsize=14)
    bars.set_xticks(places, [f"{w} × {h}" for w, h in sizes], fontsize=12)
    bars.set(ylim=(0, 800), xlabel="picture size in pixels", ylabel="visual tokens")
    bars.set_title("What a picture costs in MiniCPM-V 2.6", fontsize=22, weight="bold", loc="left", pad=16)
    bars.grid(axis="y", color=PALE, linewidth=0.8)
    bars.set_axisbelow(True)
    line = bars.twinx()
    line.plot(places, pixels, color=RED, marker="o", markersize=9, linewidth=2.5)
    line.set(ylim=(0, 4000), ylabel="pixels per token")
    for axes in (bars, line):
        axes.spines["top"].set_visible(False)
    labels = ["visual tokens (left)", "pixels per token (right)"]
    bars.legend([drawn, line.lines[0]], labels, loc="upper left", frameon=False, fontsize=14)
    figure.tight_layout(pad=1.6)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    return image, 64


def screenshot():
    """A real screenshot of `page.html`, 1280x720, taken by Chromium without a window."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise Missing("Chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text"]
        options += ["--force-device-scale-factor=1", "--window-size=1280,720", f"--user-data-dir={folder}"]
        command = [browser, *options, f"--screenshot={shot}", PAGE.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return Image.open(shot, formats=["PNG"]).convert("RGB"), 128


def street_sign():
    """A street sign as it hangs in many Chinese cities: name, pinyin, and the two directions."""
    sheet = Sheet(800, 400, "#dfeaf2")
    houses = [(0, 120, 190), (120, 90, 250), (210, 140, 150), (350, 80, 280), (430, 150, 200)]
    for x, w, h in [*houses, (580, 100, 260), (680, 120, 170)]:
        sheet.box(x, 400 - h, x + w, 400, "#cbd9e3")
        for wy in range(400 - h + 22, 400, 34):
            for wx in range(x + 14, x + w - 20, 28):
                sheet.box(wx, wy, wx + 11, wy + 15, "#dfeaf2")
    for x in (150, 638):
        sheet.box(x, 60, x + 12, 400, "#7d858c")
    sheet.box(50, 80, 750, 310, "#0b4ea2", "white", 6, 18)
    sheet.text(400, 192, "学院路", "cjk-bold", 96, "white", "ms")
    sheet.text(400, 244, "XUEYUAN LU", "sans-bold", 32, "white", "ms")
    sheet.text(400, 288, "12 — 48", "sans", 26, "white", "ms")
    for x, name, letter, way in ((115, "西", "W", -1), (685, "东", "E", 1)):
        sheet.text(x, 168, name, "cjk-bold", 50, "white", "ms")
        sheet.text(x, 206, letter, "sans-bold", 28, "white", "ms")
        sheet.polygon([(x + 24 * way, 246), (x - 18 * way, 230), (x - 18 * way, 262)], "white")
    return sheet.finish(), 32


def station_sign():
    """A sign in a railway station in English, Chinese and French, with arrows and distances."""
    left, up, right = -1, -1j, 1  # a turn is a factor in the complex plane; y points down
    rows = [
        ("Exit", "出口", "Sortie", "60 m", left, GREEN),
        ("Platforms 1 to 4", "1 至 4 站台", "Quais 1 à 4", "25 m", up, BLUE),
        ("Tickets", "售票处", "Billets", "40 m", right, BLUE),
        ("Lost property", "失物招领处", "Objets trouvés", "110 m", right, BLUE),
        ("Restrooms", "洗手间", "Toilettes", "35 m", left, BLUE),
    ]
    arrow = [(-36, -9), (4, -9), (4, -32), (40, 0), (4, 32), (4, 9), (-36, 9)]
    sheet = Sheet(1000, 800, "#23272c")
    for i, (english, chinese, french, distance, turn, color) in enumerate(rows):
        y = 24 + 152 * i
        sheet.box(24, y, 976, y + 144, "#f7f5ef", radius=10)
        sheet.box(40, y + 16, 152, y + 128, color, radius=10)
        points = [complex(px, py) * turn for px, py in arrow]
        sheet.polygon([(96 + p.real, y + 72 + p.imag) for p in points], "white")
        sheet.text(184, y + 66, english, "sans-bold", 42)
        sheet.text(184, y + 116, french, "sans", 30, GRAY)
        sheet.text(600, y + 90, chinese, "cjk-bold", 46)
        sheet.text(952, y + 88, distance, "sans", 24, GRAY, "rs")
    return sheet.finish(), 64


def shapes():
    """Four shapes on a 2x2 grid, pure colors on white."""
    sheet = Sheet(224, 224)
    sheet.disc(56, 56, 36, (220, 30, 30))
    sheet.box(132, 20, 204, 92, (30, 80, 220))
    sheet.polygon([(56, 130), (18, 202), (94, 202)], (20, 160, 60))
    sheet.disc(168, 168, 36, (245, 200, 20))
    return sheet.finish(), 64


def numbers():
    """A small document of the nano model's world: five words with numbers, too small to read in the overview."""
    sheet = Sheet(224, 336)
    for i, line in enumerate(("north 47", "price 85", "star 15", "", "row 92", "date 60")):
        x, y = 112 * (i % 2), 112 * (i // 2)
        sheet.text(x + 56, y + 56, line, "sans-bold", 16, "black", "mm")
    return sheet.finish(), 16
