"""What a panel shows: its picture is an SVG, so a test can ask for its shapes and its words. A canvas has both too."""

import re
import time
import xml.etree.ElementTree as ET

from minicpmv_ref.course.draw import text_width

SVG = "{http://www.w3.org/2000/svg}"


def svg_of(panel) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*</svg>", panel.picture_box.value, re.DOTALL)[0])


def shapes(panel, kind: str) -> list[ET.Element]:
    return list(svg_of(panel).iter(SVG + kind))


def texts(panel) -> list[str]:
    return [element.text for element in shapes(panel, "text")]


def canvas_shapes(canvas, kind: str) -> list[tuple]:
    return [shape for name, shape, _ in canvas.shapes if name == kind]


def canvas_texts(canvas) -> list[str]:
    return [text for _, _, text, *_ in canvas_shapes(canvas, "text")]


def touch(panel, key: str, at=None, start=None, trait: str = "touched"):
    """What the browser sends when a spot is clicked, dragged from `start` to `at`, or (trait "pointed") pointed at."""
    at = at or panel.spots[key].at
    panel.picture_box.set_trait(trait, {"spot": key, "start": start or at, "at": at, "turn": time.time()})


def inside_the_canvas(canvas):
    """Assert that no text, rectangle or picture of a Canvas is cut."""
    for kind, shape, _ in canvas.shapes:
        if kind == "text":
            x, y, text, size, _, align, bold = shape
            width = text_width(text, size, bold)
            left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
            assert 0 <= left <= left + width <= canvas.width + 1, text
            assert 10 <= y <= canvas.height, text
        if kind in ("rect", "image"):
            x, y, w, h = shape[:4]
            assert -1 <= x <= x + w <= canvas.width + 1, shape[:4]
            assert -1 <= y <= y + h <= canvas.height + 1, shape[:4]
