"""What a panel shows: its picture is an SVG, so a test can ask for its shapes and its words. A canvas has both too."""

import re
import time
import xml.etree.ElementTree as ET

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
