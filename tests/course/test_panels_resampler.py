"""Attention by hover without a browser: maps, words and the saved picture against `attend`, and errors."""

import base64
import io
import re
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image
from svg import SVG, svg_of, touch

from minicpmv_ref import MiniCPMV, plan_slices, sincos_2d
from minicpmv_ref.course import draw, panels
from minicpmv_ref.processor import normalize_views

pytestmark = pytest.mark.usefixtures("strict_panels")


def attend(picture, reader):
    """The weights once more, from the package's parts."""
    image = draw.load_sample(picture)
    if reader == "nano":
        model = MiniCPMV.from_pretrained("nano").float()
        plan = plan_slices(image.size, model.config.slicing)
        with torch.no_grad():
            return plan, model.resampler.attend(model.vpm(normalize_views(image, plan)), list(plan.patch_grids))[1]
    plan = plan_slices(image.size)
    blank = [torch.zeros(rows * cols, 128) for rows, cols in plan.patch_grids]
    return plan, draw.place_reader(reader).attend(blank, list(plan.patch_grids))[1]


def maps(panel):
    """{query: [map of levels, ...]} as the page holds them, the overview first."""
    svg = svg_of(panel)
    found = {}
    for image in svg.iter(SVG + "image"):
        if "class" in image.attrib:
            png = Image.open(io.BytesIO(base64.b64decode(image.attrib["href"].partition(",")[2])))
            assert (png.mode, image.attrib["preserveAspectRatio"]) == ("P", "none")
            found.setdefault(int(image.attrib["class"].removeprefix("m m")), []).append(np.asarray(png))
    return found


def said(panel):
    """What the names of the queries say to a screen reader; the page shows the same words."""
    names = [unescape(name) for name in re.findall(r'<input [^>]*aria-label="([^"]+)"', panel.picture_box.value)]
    assert names == [
        unescape(words) for words in re.findall(r'<p class="m m\d+"[^>]*>([^<]+)</p>', panel.picture_box.value)
    ]
    return names


@pytest.mark.parametrize("reader", draw.READERS)
@pytest.mark.parametrize("head", ["mean", 0, 1])
@pytest.mark.parametrize("picture", ["screenshot.png", "cat.jpg"])
def test_maps_and_words_equal_attend(picture, reader, head):
    panel = panels.AttentionByHover(picture, reader, head)
    plan, weights = attend(picture, reader)
    weights = [w.mean(dim=0).numpy() if head == "mean" else w[head].numpy() for w in weights]
    for w in weights:
        np.testing.assert_allclose(w.sum(axis=-1), 1, atol=1e-5)
    ceiling = max(w.max() for w in weights)
    shown, words = maps(panel), said(panel)
    assert len(shown) == len(words) == 16
    for query in range(16):
        overview = weights[0][query].reshape(plan.patch_grids[0])
        expected = [overview]
        if plan.grid:
            cols, rows = plan.grid
            tall, wide = plan.patch_grids[1]
            mosaic = np.zeros((rows * tall, cols * wide))
            for i, w in enumerate(weights[1:]):
                top, left = tall * (i // cols), wide * (i % cols)
                mosaic[top : top + tall, left : left + wide] = w[query].reshape(tall, wide)
            expected.append(mosaic)
        assert len(shown[query]) == len(expected)
        for got, want in zip(shown[query], expected):
            assert got.shape == want.shape
            np.testing.assert_allclose(got / 63, np.sqrt(want / ceiling), atol=0.5 / 63 + 1e-3)

        seen = overview[overview > 0]  # 0 log 0 is 0
        entropy = -(seen * np.log(seen)).sum()
        parts = re.match(
            rf"Query {query}\. (?:Overview|View): spread over (\d+) of ([\d,]+) patches; most, ([\d.]+)%, "
            r"on row (\d+), column (\d+)\.",
            words[query],
        )
        assert int(parts[1]) == pytest.approx(np.exp(entropy), abs=0.51)
        assert int(parts[2].replace(",", "")) == overview.size
        assert float(parts[3]) == pytest.approx(100 * overview.max(), abs=0.051)
        assert overview[int(parts[4]), int(parts[5])] == pytest.approx(overview.max(), rel=1e-4)
        assert ("Slices: over" in words[query]) == bool(plan.grid)


def test_the_status_says_whose_attention_it_is():
    panel = panels.AttentionByHover("cat.jpg")
    assert panel.status.startswith(
        "One view: 26 x 39 patches. Resampler built by hand to look at places; the mean of 2"
    )
    panel.controls["head"].value = 1
    assert "; head 1. " in panel.status
    panel.controls["reader"].value = "nano"
    assert "Resampler of the nano model; head 1. " in panel.status
    panel.controls["picture"].value = "screenshot.png"
    assert panel.status.startswith("Overview: 6 x 11 patches and 8 slices of 8 x 7. ")


@pytest.mark.parametrize(
    ("picture", "view", "place"), [("screenshot.png", "slices", (50, 30)), ("cat.jpg", "one", (9, 20))]
)
def test_pointing_at_a_patch_marks_the_queries_that_read_it(picture, view, place):
    panel = panels.AttentionByHover(picture, "places", 1)
    shown = panel.picture_box.value
    plan, weights = attend(picture, "places")
    spot = next(spot for spot in panel.spots.values() if spot.name == view)
    (x, y, w, h), (rows, cols), (row, col) = spot.box, spot.item, place
    touch(panel, spot.key, (x + w * (col + 0.5) / cols, y + h * (row + 0.5) / rows), trait="pointed")
    tall, wide = plan.patch_grids[-1]
    number = plan.grid[0] * (row // tall) + col // wide + 1 if plan.grid else 0
    patch = weights[number][1][:, row % tall * wide + col % wide].numpy()
    best = int(patch.argmax())
    words = f"Patch in row {row}, column {col} of the {'slices' if plan.grid else 'view'}: query {best} reads it most"
    assert panel.status.startswith(f"{words}, with {patch.max():.2%} of its weight")
    marks = panel._marks.value
    colors = [sum(map(int, rgb)) for rgb in re.findall(r" span\{background:rgb\((\d+), (\d+), (\d+)\)", marks)]
    assert len(colors) == 16 and colors[best] == max(colors), "the brightest one"
    frame = [float(pixels) for pixels in re.findall(r"([\d.]+)px", marks)]
    assert frame == pytest.approx([x + w * col / cols, y + h * row / rows, w / cols, h / rows], abs=0.01)
    assert panel.picture_box.value == shown, "the chosen query stays chosen"
    panel.controls["head"].value = 0
    assert marks and panel._marks.value == "" and "head 0" in panel.status


def test_a_patch_that_nobody_reads():
    assert draw.readers_of(np.zeros(16), 0.5) == "no query reads it"
    assert draw.readers_of(np.array([0, 0.25, 0.0001]), 0.5) == "query 1 reads it most, with 25.00% of its weight"


@pytest.mark.parametrize("kind", ["places", "stripes"])
def test_queries_look_where_they_were_built_to(kind):
    weights = draw.place_reader(kind).attend([torch.zeros(1024, 128)], [(32, 32)])[1][0].reshape(2, 16, 32, 32)
    for query in range(16):
        row, col = 4 + 8 * (query // 4), 4 + 8 * (query % 4)
        for head in range(2):
            across, down = weights[head, query].sum(dim=0), weights[head, query].sum(dim=1)
            if kind == "places" or head == 0:
                assert across.argmax() == col
            if kind == "places" or head == 1:
                assert down.argmax() == row
        if kind == "stripes":  # the other direction is flat
            torch.testing.assert_close(weights[0, query], weights[0, query, :1].expand(32, 32), rtol=0, atol=1e-6)
            torch.testing.assert_close(weights[1, query], weights[1, query, :, :1].expand(32, 32), rtol=0, atol=1e-6)


def test_the_query_of_a_place_is_its_sines():
    assert torch.equal(draw.place_reader().query[5], sincos_2d(256, 32, 32)[12, 12])


def test_spread():
    assert draw.patches_seen(np.full(7, 1 / 7)) == pytest.approx(7)
    assert draw.patches_seen(np.array([[0.5, 0.5], [0, 0]])) == pytest.approx(2)


def test_one_chosen_query_and_no_script():
    html = panels.AttentionByHover(query=9).picture_box.value
    assert html.count(" checked") == 1
    assert re.search(r'<label class="q q9"><input [^>]* checked ', html)
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    assert 'role="img"' not in html, "an image would hide its radio buttons"
    for query in range(16):  # a rule for the mouse and one for the chosen query
        assert f":has(.q{query}:hover) .m{query}" in html
        assert f":has(.q{query}>:checked) .m{query}" in html


def test_small_enough_to_send():
    assert len(panels.AttentionByHover().picture_box.value) < 120_000


def test_the_saved_picture_shows_the_chosen_query():
    """Bright where the query looks, dark elsewhere, in the overview of a picture that is not cut."""
    panel = panels.AttentionByHover("numbers.png", query=0)
    canvas = panel.snapshot(**panel.values())
    image, ground = (
        next(shape[4] for kind, shape, _ in each.shapes if kind == "image")
        for each in (canvas, panel.draw(**panel.values()))
    )
    rows, cols = plan_slices(draw.load_sample("numbers.png").size).patch_grids[0]
    gray = np.asarray(image.convert("L").resize((cols, rows), Image.Resampling.BOX)).astype(float)
    share = gray / np.asarray(ground.convert("L").resize((cols, rows)))
    assert share[4, 4] > 1.5 * share[20, 20]
    assert repr(panel) == "AttentionByHover(picture='numbers.png', reader='places', head='mean')"


def test_text_stays_inside_the_saved_picture():
    for picture in ("banner.png", "receipt.png", "document.png", "cat.jpg", "screenshot.png"):
        for reader in ("places", "nano"):
            panel = panels.AttentionByHover(picture, reader)
            for kind, shape, _ in panel.snapshot(**panel.values()).shapes:
                if kind == "text":
                    x, y, text, points, _, align, bold = shape
                    width = draw.text_width(text, points, bold)
                    left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
                    assert left >= 0, text
                    assert left + width <= draw.WIDTH, text
                    assert y <= draw.HEIGHT, text


@pytest.mark.parametrize("wrong", [dict(picture="none.jpg"), dict(reader="none"), dict(head=2)])
def test_a_panel_that_cannot_be_made(wrong):
    with pytest.raises(Exception, match=r"none|Invalid selection"):
        panels.AttentionByHover(**wrong)


def test_an_error_is_shown(monkeypatch):
    panel = panels.AttentionByHover("cat.jpg")
    monkeypatch.setattr(draw, "attention_of", lambda *state: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        panel.controls["head"].value = 0
    assert "ZeroDivisionError" in panel._alert.value
    assert panel.status == ""
    monkeypatch.undo()
    panel.controls["head"].value = 1
    assert panel._alert.value == ""


def test_the_trained_nano_is_read_from_its_checkpoint(tmp_path, monkeypatch):
    from minicpmv_ref import config
    from minicpmv_ref.inputs import published

    model = MiniCPMV.seeded(config.nano, seed=7)
    model.save_pretrained(tmp_path / "nano")
    monkeypatch.setattr(published, "BUNDLED", tmp_path)
    eye, reader = draw.nano_reader.__wrapped__()
    for part, whole in ((eye, model.vpm), (reader, model.resampler)):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name
