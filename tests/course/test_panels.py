"""The panels without a browser: every control at both ends, pictures against the package's numbers, errors."""

import ast
import asyncio
import base64
import html
import io
import math
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from svg import SVG, svg_of, texts

from minicpmv_ref import Processor, SliceConfig, best_grid, candidate_grids, paper_grid, partition_score, plan_slices
from minicpmv_ref.course import check, draw, panels
from minicpmv_ref.course.panel import Panel, as_html, choice, player, slider, toggle
from minicpmv_ref.scale.records import read_records

pytestmark = pytest.mark.usefixtures("strict_panels")

PANELS = {kind.__name__: kind for kind in vars(panels).values() if isinstance(kind, type) and issubclass(kind, Panel)}
del PANELS["Panel"]
RECORDS = Path(__file__).resolve().parents[2] / "data_samples" / "records" / "test.json"
PANELS["YourRecords"] = lambda: panels.YourRecords(read_records(RECORDS)[0], Processor.from_pretrained("nano"))


def ends(control):
    """The first and the last value that a control can have."""
    if hasattr(control, "min"):
        return control.min, control.max
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return values[0], values[-1]
    return False, True


# ---- one file for each lesson


@pytest.mark.parametrize("package", [draw, panels, check], ids=lambda package: package.__name__.split(".")[-1])
def test_every_file_is_offered_and_no_name_hides_another(package):
    files = sorted(Path(package.__file__).parent.glob("[!_]*.py"))
    owners = {path.stem: f"the file {path.name}" for path in files}
    for path in files:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", [node])  # of an assignment; else a function or a class
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            for name in [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else names:
                if name.startswith("_"):
                    continue
                assert name not in owners, f"{name} in {path.name} would hide {owners[name]}"
                owners[name] = f"{name} in {path.name}"
                assert hasattr(package, name), f"add `from .{path.stem} import *` to {package.__name__}"


# ---- every panel


@pytest.mark.parametrize("name", PANELS)
def test_every_control_moves_the_picture(name):
    panel = PANELS[name]()
    start = [(control, control.value) for control in panel.controls.values()]
    for control in panel.controls.values():
        for other, value in start:  # one control may have moved another: a picture of fewer slices, say
            other.value = value
        before = control.value
        seen = set()
        if len({*ends(control)}) == 1:
            assert control.layout.display == "none", f"{control.description} has nothing to choose"
            continue
        for value in (*ends(control), before):
            control.value = value
            assert panel.error is None
            assert panel._alert.value == ""
            assert 'role="status"' in panel._status.value
            assert panel.status in html.unescape(re.sub("<[^>]+>", "", panel._status.value))
            seen.add(panel.picture_box.value)
        assert len(seen) > 1, f"{control.description} changes nothing"


@pytest.mark.parametrize("name", PANELS)
def test_all_controls_at_their_ends_together(name):
    panel = PANELS[name]()
    for end in (0, 1):
        with panel.hold():
            for control in panel.controls.values():
                control.value = ends(control)[end]
        assert panel.error is None


@pytest.mark.parametrize("name", PANELS)
def test_what_a_saved_notebook_holds(name):
    bundle, metadata = PANELS[name]()._repr_mimebundle_()
    assert bundle["text/plain"] == repr(PANELS[name]()), "nbval compares this text"
    assert " at 0x" not in bundle["text/plain"]
    (kind,) = {"image/png", "image/jpeg"} & bundle.keys()
    assert metadata == {kind: {"alt": PANELS[name]().status}}, "screen readers get the words of the status line"
    image = Image.open(io.BytesIO(base64.b64decode(bundle[kind])))
    assert image.format.lower() == kind.split("/")[1]
    assert image.width >= 600
    assert len(bundle[kind]) < 200_000
    assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 8, "the picture is not empty"


@pytest.mark.parametrize("name", PANELS)
def test_pictures_say_in_words_what_they_show(name):
    panel = PANELS[name]()
    assert (
        f'aria-label="{panel.status}"' in panel.picture_box.value or f'alt="{panel.status}"' in panel.picture_box.value
    )


@pytest.mark.parametrize("name", PANELS)
def test_text_is_large_enough(name):
    """In a picture of the normal width, which is shown one to one on a small projector."""
    for element in re.findall(r'font-size="([\d.]+)"', PANELS[name]().picture_box.value):
        assert float(element) >= 14


# ---- the base


class Root(Panel):
    def __init__(self, number=4):
        super().__init__(number=slider("number", number, -4, 9))

    def draw(self, number):
        return draw.guess(1, math.sqrt(number))

    def describe(self, number):
        return f"<root> of {number}"


def test_an_error_is_shown_and_raised_and_then_forgotten():
    panel = Root()
    picture = panel.picture_box.value
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        panel.controls["number"].value = -1
    assert 'role="alert"' in panel._alert.value
    assert "ValueError" in panel._alert.value
    assert panel.status == panel._status.value == ""
    assert panel.picture_box.value == picture
    assert not {"image/png", "image/jpeg"} & panel._repr_mimebundle_()[0].keys()
    panel.controls["number"].value = 9
    assert panel.error is None
    assert panel._alert.value == ""
    assert panel.picture_box.value != picture
    assert panel._status.value == '<div role="status">&lt;root&gt; of 9</div>'


def test_an_error_is_only_shown_in_lessons(monkeypatch):
    monkeypatch.setattr(Panel, "strict", False)
    panel = Root()
    panel.controls["number"].value = -1
    assert "ValueError" in panel._alert.value
    assert isinstance(panel.error, ValueError)


@pytest.mark.parametrize("strict", [True, False])
def test_a_panel_that_never_worked_raises(monkeypatch, strict):
    monkeypatch.setattr(Panel, "strict", strict)
    with pytest.raises(ValueError):
        Root(-1)


def test_hold_draws_once(monkeypatch):
    panel, drawn = Root(), []
    monkeypatch.setattr(panel, "draw", lambda number: drawn.append(number) or "<svg/>")
    with panel.hold():
        for number in (5, 6):
            panel.controls["number"].value = number
            with panel.hold():
                pass
    assert drawn == [6]


def test_a_picture_of_html_says_what_it_shows():
    assert as_html("<svg/>", 'a "b"') == '<div role="img" aria-label="a &quot;b&quot;"><svg/></div>'


def test_a_slow_panel_draws_ahead_while_nothing_else_is_to_do(monkeypatch):
    monkeypatch.setattr(Root, "slow", True)
    panel, drawn = Root(), []
    monkeypatch.setattr(panel, "draw", lambda number: drawn.append(number) or f"<svg>{number}</svg>")

    async def moves(*numbers):
        for number in numbers:
            panel.controls["number"].value = number
        await asyncio.sleep(0.1)
        return [drawn.pop(0) for _ in list(drawn)]

    assert asyncio.run(moves(5)) == [5, 6, 4]
    assert panel.picture_box.value.endswith("<svg>5</svg></div>"), "the picture stays"
    assert asyncio.run(moves(6, 9)) == [6, 9, 8], "nothing beyond the slider, nothing beside a place that was left"
    monkeypatch.setattr(Root, "slow", False)
    assert asyncio.run(moves(7)) == [7]


def test_controls():
    with pytest.raises(ValueError, match="width must be between 1 and 9, got 10"):
        slider("width", 10, 1, 9)
    assert choice("layer", [("first", 0), ("last", 5)], 5).value == 5
    for labels in ("ab", draw.PAPERS, draw.WEIGHT_KINDS, draw.WORLD_KINDS, draw.CHECKERS, draw.SHIPPED):
        if hasattr(style := choice("x", list(labels), next(iter(labels))).style, "button_width"):
            wide = int(style.button_width.removesuffix("px"))
            assert max(draw.text_width(str(label), 16) for label in labels) < wide <= 192, "no label is cut"
    assert toggle("mask", True).value is True
    width = slider("width", 3, 1, 9)
    play = player(width)
    assert play.max == 9
    width.max = 12
    assert play.max == 12


@pytest.mark.parametrize(
    ("text", "taken", "why"),
    [
        ("7", 7, ""),
        ("\u22124", -4, ""),
        ("-5", -4, "-5 is below -4, the least value; -4 is taken."),
        ("1000000000", 9, "1000000000 is above 9, the largest value; 9 is taken."),
        ("1e9", 1, "'1e9' is not a whole number; 1 is taken."),
        ("6.9", 6, "'6.9' is not a whole number; 6 is taken."),
        ("many", 4, "'many' is not a whole number; 4 is taken."),
        ("", 4, "'' is not a whole number; 4 is taken."),
    ],
)
def test_a_typed_number_that_is_not_taken_is_explained(monkeypatch, text, taken, why):
    monkeypatch.setattr(Root, "draw", lambda self, number: draw.Canvas())
    panel = Root()
    panel.picture_box.typed = {"label": "number", "text": text, "turn": 1}
    assert panel.values() == {"number": taken}
    assert (
        html.unescape(panel._status.value)
        == f'<div role="status">{f"number: {why} " if why else ""}<root> of {taken}</div>'
    )
    panel.controls["number"].value = taken  # the browser's own value, which is the same
    panel.controls["number"].value = 3
    panel.controls["number"].value = taken
    assert "taken" not in panel._status.value, "said once"


# ---- the canvas


def test_svg_and_pixels_show_the_same_picture():
    canvas = draw.Canvas(40, 20)
    canvas.rect(10, 5, 20, 10, draw.BLUE, title="a <hint>")
    canvas.image(0, 0, 8, 8, Image.new("RGB", (1, 1), draw.RED), smooth=False)
    canvas.path([(0, 18), (40, 18)], draw.GREEN, 4)
    canvas.dot(35, 5, 4, draw.PURPLE)
    svg = ET.fromstring(canvas.svg())
    assert [element.tag.removeprefix(SVG) for element in svg] == ["rect", "rect", "image", "polyline", "circle"]
    assert svg[1].attrib["fill"] == draw.BLUE
    assert svg[1][0].text == "a <hint>"
    image = canvas.to_pil(2)
    assert image.size == (80, 40)
    for place, color in {(40, 20): draw.BLUE, (6, 6): draw.RED, (40, 36): draw.GREEN, (70, 10): draw.PURPLE}.items():
        assert "#{:02X}{:02X}{:02X}".format(*image.getpixel(place)) == color
    assert image.getpixel((18, 20)) == (255, 255, 255)


def test_guess():
    canvas = draw.guess({"a": 3}, {"a": 4, "b": 8.5}, "which?")
    assert repr(canvas) == "a: truth 4, your guess 3; b: truth 8.5, no guess yet"
    assert repr(draw.guess(0, 192)) == "truth 192, your guess 0"
    bars = [float(width) for width in re.findall(r'width="([\d.]+)" height="22"', canvas.svg())]
    assert [bar / bars[-1] for bar in bars] == pytest.approx([3 / 8.5, 4 / 8.5, 1], rel=1e-3)
    data, metadata = canvas._repr_mimebundle_()
    assert data["text/plain"] == repr(canvas)
    assert metadata == {"image/png": {"width": canvas.width, "height": canvas.height, "alt": repr(canvas)}}
    for label in ("", "sorted", "average of four"):
        for kind, shape, _ in draw.guess({label: 1}, {label: 1, "b": 2}).shapes:
            if kind == "text" and shape[5] == "left":
                assert shape[0] + draw.text_width(shape[2], shape[3], shape[6]) <= draw.WIDTH
    with pytest.raises(ValueError, match="must be a number, got '192'"):
        draw.guess("192", 192)
    with pytest.raises(ValueError, match="no label 'A'; the labels are 'a', 'b'"):
        draw.guess({"A": 3}, {"a": 4, "b": 8.5})


@pytest.mark.parametrize("yours", [None, {"a": None}, {}])
def test_without_a_guess_the_truth_is_folded_away(yours):
    bundle = draw.guess(yours, {"a": 417, "b": 8.5}, "which <one>?")._repr_mimebundle_()
    assert bundle.keys() == {"text/plain", "text/html"}, "no picture, for it would show the truth"
    assert bundle["text/plain"] == "which <one>?: no guess yet"
    shown, fold = re.fullmatch("(.*)<details>(.*)</details></div>", bundle["text/html"], re.DOTALL).groups()
    assert "which &lt;one&gt;?" in shown
    assert not re.search(r"\d|█", shown), "neither the numbers nor their bars"
    bars = re.findall(r"^(?:<pre>)?(\w)  (█+)░*  ([\d.]+)$", fold, re.MULTILINE)
    assert [(label, number) for label, _, number in bars] == [("a", "417"), ("b", "8.5")]
    assert [len(bar) for _, bar, _ in bars] == [40, 1]
    assert "style" not in bundle["text/html"], "a page that drops styles and scripts shows the same"


def test_axes_place_values():
    canvas = draw.Canvas(200, 100)
    axes = draw.Axes(canvas, (50, 10, 100, 60), (-1, 3), (0, 6))
    assert axes.at(-1, 0) == (50, 70)
    assert axes.at(3, 6) == (150, 10)
    axes.line([(0, 3), (1, 6)], draw.BLUE)
    axes.dot(1, 6)
    axes.level(3, "three")
    axes.under(1, "one")
    (line, dot, level, three, one) = (shape for _, shape, _ in canvas.shapes)
    assert line[:2] == ([(75, 40), (100, 10)], draw.BLUE)
    assert dot[:2] == (100, 10)
    assert level[0] == [(50, 40), (150, 40)]
    assert three[0] < 50 and three[5] == "right" and three[2] == "three"
    assert one[0] == 100 and one[1] > 70 and one[5] == "middle"


def test_parts_of_many_pictures():
    canvas = draw.Canvas(200, 100)
    assert canvas.picture(Image.new("RGB", (40, 10)), (5, 20, 80, 80), "title") == (5, 20, 80, 20)
    assert canvas.stack(5, 50, 10, [(20, draw.BLUE, "a"), (30, draw.RED, None)]) == 55
    canvas.mesh((0, 0, 60, 30), 3, 2, draw.INK)
    canvas.legend(5, 70, [(draw.BLUE, "a"), (draw.RED, "b")])
    kinds = [kind for kind, _, _ in canvas.shapes]
    assert kinds == ["text", "image", "rect", "rect", *["path"] * 3, "rect", "text", "rect", "text"]
    assert [shape[:4] for kind, shape, _ in canvas.shapes[2:4]] == [(5, 50, 20, 10), (25, 50, 30, 10)]
    assert [shape[0] for _, shape, _ in canvas.shapes[4:7]] == [
        [(20, 0), (20, 30)],
        [(40, 0), (40, 30)],
        [(0, 15), (60, 15)],
    ]
    assert canvas.shapes[-1][1][:2] == (5 + 34 + draw.text_width("a", 14) + 19, 83)


@pytest.mark.parametrize("words", ["one two three", "a", "", "Unterschriftenmappenverzeichnis is a long word"])
def test_wrap(words):
    lines = draw.wrap(words, 80)
    assert all(draw.text_width(line) <= 80 for line in lines)
    assert " ".join(lines).split()[-1:] == words.split()[-1:]


@pytest.mark.parametrize(("values", "line"), [({"x": 0}, "x  █"), ({"x": -2}, "x  █"), ({"x": None}, "x  ░")])
def test_text_bars(values, line):
    assert draw.text_bars(values).startswith(line)
    assert len(draw.text_bars(values).split("  ")[1]) == 40


# ---- lesson 01


SIZES = [(448, 448), (449, 448), (1240, 1754), (4096, 1), (1, 4096), (1080, 1080), (4032, 3024), (2400, 300)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfg", [SliceConfig(), SliceConfig(224, 14, 16), SliceConfig(max_slice_nums=1)])
def test_playground_shows_the_numbers_of_the_package(size, cfg):
    panel = panels.SlicingPlayground("cat.jpg", *size, cfg.max_slice_nums, cfg.scale_resolution)
    plan, candidates, shown = plan_slices(size, cfg), candidate_grids(size, cfg), texts(panel)
    scores = {grid: partition_score(size, grid) for grid in candidates}
    assert panel.draw(**panel.values()).facts == {"plan": plan, "scores": scores, "grid": plan.grid}
    for grid in candidates:
        assert f"{grid[0]} x {grid[1]}" in shown
        assert draw.signed(partition_score(size, grid)) in shown
    bars = [bar.attrib for bar in svg_of(panel).iter(SVG + "rect") if bar.attrib["fill"] in (draw.SKY, draw.ORANGE)]
    assert len(bars) == len(candidates)
    won = [bar["fill"] == draw.ORANGE for bar in bars]
    assert won == [grid == plan.grid for grid in candidates]
    if plan.grid:
        assert f"slices {plan.grid[0]} x {plan.grid[1]}" in shown
        assert float(bars[won.index(True)]["width"]) == min(float(bar["width"]) for bar in bars)
        assert "{} x {}".format(*plan.slice_size) in panel.status
    images = list(svg_of(panel).iter(SVG + "image"))
    assert len(images) == (2 if plan.grid else 1)
    for image, (width, height) in zip(images, (plan.overview_size, plan.refined_size)):
        assert float(image.attrib["width"]) / float(image.attrib["height"]) == pytest.approx(width / height, rel=1e-3)
    assert f"= {plan.visual_tokens(64)}, and with 96 queries {plan.visual_tokens(96)}" in shown[-1]
    assert f"{plan.visual_tokens(64)} tokens at 64 queries, {plan.visual_tokens(96)} at 96" in panel.status


def test_playground_cuts_where_the_package_cuts():
    """Left half red, right half blue, cut 2 x 1: the mesh runs between the colors."""
    image = Image.new("RGB", (896, 448), draw.RED)
    image.paste(draw.BLUE, (448, 0, 896, 448))
    canvas = draw.playground(image.size, SliceConfig(), image)
    _overview, mesh = [shape for kind, shape, _ in canvas.shapes if kind == "image"]
    x, y, w, h = mesh[:4]
    pixels = canvas.to_pil(1)
    row = [pixels.getpixel((round(x + w * part), round(y + h / 2))) for part in (0.25, 0.5, 0.75)]
    names = {(213, 94, 0): "red", (240, 228, 66): "yellow", (0, 114, 178): "blue"}
    assert [min(names, key=lambda name: math.dist(name, pixel)) for pixel in row] == list(names)
    assert all(min(math.dist(name, pixel) for name in names) < 40 for pixel in row)


def test_text_stays_inside_the_picture():
    for size in (*SIZES, (4096, 4096), (3999, 4001), (4001, 1234)):
        for most in (9, 16):
            canvas = draw.playground(size, SliceConfig(max_slice_nums=most), Image.new("RGB", (8, 8)))
            for kind, shape, _ in canvas.shapes:
                if kind == "text":
                    x, y, text, points, _, align, bold = shape
                    width = draw.text_width(text, points, bold)
                    left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
                    assert left >= -1, text
                    assert left + width <= canvas.width + 1, text
                    assert y <= canvas.height


def upload(panel, name, content):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    panel._upload.value = ({**file, "last_modified": datetime(2024, 8, 3, tzinfo=UTC)},)


def photo(width, height, **options):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(file, format="JPEG", **options)
    return file.getvalue()


def test_an_own_picture():
    panel = panels.SlicingPlayground()
    upload(panel, "holiday.jpg", photo(640, 480))
    assert panel.values()["picture"] == "holiday.jpg"
    assert (panel.values()["width"], panel.values()["height"]) == (640, 480)
    upload(panel, "holiday.jpg", photo(300, 200))  # another file with the same name
    assert (panel.values()["width"], panel.values()["height"]) == (300, 200)
    panel.controls["picture"].value = "cat.jpg"
    assert (panel.values()["width"], panel.values()["height"]) == draw.load_sample("cat.jpg").size
    panel.controls["picture"].value = "holiday.jpg"
    assert panel.values()["width"] == 300


def test_an_own_picture_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    panel = panels.SlicingPlayground()
    upload(panel, "portrait.jpg", photo(640, 480, exif=exif))
    assert (panel.values()["width"], panel.values()["height"]) == (480, 640)


def test_a_transparent_picture_says_what_becomes_of_it():
    file = io.BytesIO()
    Image.new("RGBA", (40, 30)).save(file, format="PNG")
    panel = panels.SlicingPlayground()
    for name, content in (("logo.png", file.getvalue()), ("holiday.jpg", photo(64, 64))):
        upload(panel, name, content)
        warned = "logo.png is transparent in places. Alpha is dropped" in panel.status
        assert warned == (name == "logo.png") and "tokens" in panel.status


def test_a_picture_larger_than_the_sliders():
    panel = panels.SlicingPlayground()
    upload(panel, "huge.jpg", photo(6000, 50))
    assert (panel.values()["width"], panel.values()["height"]) == (6000, 50)
    assert "6000 x 50" in panel.status


@pytest.mark.parametrize("content", [b"", b"no picture", photo(64, 64)[:300]])
def test_a_file_that_is_no_picture(content):
    panel = panels.SlicingPlayground("cat.jpg")
    with pytest.raises(ValueError, match=r"broken\.jpg is not a picture that can be read"):
        upload(panel, "broken.jpg", content)
    assert "broken.jpg" in panel._alert.value
    assert panel.values()["picture"] == "cat.jpg"
    panel.controls["width"].value = 600
    assert panel._alert.value == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"), (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC")],
)
def test_an_upload_goes_through_the_same_door(content, words):
    panel = panels.SlicingPlayground("cat.jpg")
    with pytest.raises(ValueError, match=rf"a\.png is not a picture that can be read: it is .*{words}"):
        upload(panel, "a.png", content)
    assert words in panel._alert.value


def test_an_unknown_sample():
    with pytest.raises(ValueError, match=r"no sample 'none\.jpg'"):
        panels.SlicingPlayground("none.jpg")


@pytest.mark.parametrize("size", [(448, 448), (449, 448), (848, 600), (1800, 1800), (1, 1)])
def test_cliff(size):
    panel = panels.OnePixelCliff(*size)
    tokens = plan_slices(size).visual_tokens(64)
    assert f"{size[0]} x {size[1]}: {tokens}" in texts(panel)
    assert panel.status.startswith(f"{size[0]} x {size[1]} costs {tokens} tokens.")
    (dot,) = svg_of(panel).iter(SVG + "circle")
    curve = max(svg_of(panel).iter(SVG + "polyline"), key=lambda line: len(line.attrib["points"]))
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    x, y = float(dot.attrib["cx"]), float(dot.attrib["cy"])
    assert any(
        min(a[0], b[0]) - 0.1 <= x <= max(a[0], b[0]) + 0.1 and b[1] == pytest.approx(y, abs=0.01)
        for a, b in pairwise(points)
    )
    facts = panel.draw(**panel.values()).facts
    assert facts["tokens"] == tokens
    for (left, low), (right, high) in pairwise(facts["curve"]):
        assert left == right or low == high, "a step is level or upright"
        for width in {max(left, 1), right - 1} if low == high and right > left + 1 else ():
            assert plan_slices((width, size[1])).visual_tokens(64) == low


def test_cliff_says_what_one_more_pixel_costs():
    assert panels.OnePixelCliff(448, 448).status.endswith("One pixel wider costs 128 more: 192.")
    assert panels.OnePixelCliff(848, 600).status.endswith("One pixel wider costs 128 fewer: 192.")
    assert panels.OnePixelCliff(500, 448).status.endswith("One pixel wider costs the same.")


@pytest.mark.parametrize("size", [(300, 100), (640, 480), (1080, 1080), (3000, 1200), (1920, 1080)])
def test_map(size):
    panel = panels.PaperAgainstCode(*size)
    paper, code = paper_grid(size), best_grid(size) or (1, 1)
    assert {"paper {} x {}".format(*paper), "code {} x {}".format(*code)} <= set(texts(panel))
    facts = {"case": draw.compare_grids(size), "paper": paper, "code": code}
    assert facts.items() <= panel.facts.items()
    assert ("They agree." in panel.status) == (paper == code)
    assert ("tie" in panel.status) == (size == (1080, 1080))
    assert ("more than 9 slices" in panel.status) == (size == (3000, 1200))


def test_map_colors_are_the_cases():
    canvas = draw.paper_map(100, 100)
    pixels = canvas.to_pil(1)
    for size in [(200, 120), (500, 500), (3000, 1200), (1500, 1500), (120, 900)]:
        part = [math.log(side / draw.SMALLEST) / math.log(draw.LARGEST / draw.SMALLEST) for side in size]
        place = round(62 + 300 * part[0]), round(12 + 300 * (1 - part[1]))
        assert "#{:02X}{:02X}{:02X}".format(*pixels.getpixel(place)) == draw.CASES[draw.compare_grids(size)][1]
