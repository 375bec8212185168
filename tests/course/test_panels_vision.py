"""The position explorer and the pictures of lesson 02: what they show are the package's numbers."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from svg import SVG, svg_of, texts, touch

from minicpmv_ref.course import draw, panels
from minicpmv_ref.course.panel import Panel
from minicpmv_ref.positions import bucket_position_ids, interpolate_position_table

pytestmark = pytest.mark.usefixtures("strict_panels")

GRIDS = [(24, 43), (32, 32), (1, 1), (5, 7), (90, 11), (70, 70), (4, 227), (227, 4), (240, 240), (1, 240)]


def images(panel):
    """The small images inside a panel's picture: the table, its corner, the errors, the color bar."""
    addresses = [element.attrib["href"] for element in svg_of(panel).iter(SVG + "image")]
    return [Image.open(BytesIO(b64decode(address.split(",")[1]))).convert("RGB") for address in addresses]


def hexadecimal(pixel):
    return "#{:02X}{:02X}{:02X}".format(*pixel)


def centers(n):
    return (np.arange(n) + 0.5) / n


def surface(rows, cols):
    return np.cos(2 * np.pi * centers(rows))[:, None] * np.sin(2 * np.pi * centers(cols))[None, :]


# ---- the panel


@pytest.mark.parametrize("side", [70, 27])
@pytest.mark.parametrize("method", ["bucket", "exact"])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_table_shows_the_cells_that_the_package_reads(grid, method, side):
    panel = panels.PositionExplorer(*grid, method, side)
    ids = bucket_position_ids(*grid, side, exact=method == "exact")
    counts = torch.bincount(ids, minlength=side * side).tolist()
    table, corner, _, _ = images(panel)
    assert table.size == (side, side)
    colors = {0: draw.PALE, 1: draw.BLUE, 2: draw.ORANGE}
    assert [hexadecimal(pixel) for pixel in table.get_flattened_data()] == [colors[min(n, 2)] for n in counts]
    assert corner.tobytes() == table.crop((0, 0, side // 5, side // 5)).tobytes()
    used = sum(count > 0 for count in counts)
    assert panel.status.startswith(
        f"{grid[0]} x {grid[1]} patches read {used:,} of {side * side:,} cells" + ("," if max(counts) > 1 else ";")
    )
    assert (f"up to {max(counts)} patches share one" in panel.status) == (max(counts) > 1)
    assert f"{side * side - used:,} are never read" in panel.status
    assert ("by several" in texts(panel)) == (max(counts) > 1)


@pytest.mark.parametrize("side", [70, 27])
@pytest.mark.parametrize("method", ["bucket", "exact", "interpolate"])
@pytest.mark.parametrize("grid", GRIDS)
def test_errors_are_distances_from_the_surface(grid, method, side):
    table = torch.from_numpy(surface(side, side)).reshape(-1, 1)
    if method == "interpolate":
        got = interpolate_position_table(table, *grid)
    else:
        got = table[bucket_position_ids(*grid, side, exact=method == "exact")]
    wanted = np.abs(got.numpy().reshape(grid) - surface(*grid))
    panel = panels.PositionExplorer(*grid, method, side)
    np.testing.assert_allclose(draw.look_up(*grid, method, side)[1], wanted, atol=1e-6)
    assert f"{wanted.mean():.3f} on average, {wanted.max():.3f} at worst" in panel.status
    _, _, errors, bar = images(panel)
    assert errors.size == grid[::-1]
    scale = list(bar.get_flattened_data())[: bar.width]
    for place in {(0, 0), (grid[0] // 2, grid[1] // 3), (grid[0] - 1, grid[1] - 1)}:
        step = round(min(wanted[place] / draw.WORST, 1) * (bar.width - 1))
        shown = np.array(errors.getpixel(place[::-1]), dtype=int)
        assert np.abs(shown - scale[step]).max() <= 8, "the color bar tells the error"


def test_interpolation_mixes_every_cell():
    panel = panels.PositionExplorer(24, 43, "interpolate")
    assert {hexadecimal(pixel) for pixel in images(panel)[0].get_flattened_data()} == {draw.SKY}
    assert "each mixes the cells around its center" in panel.status
    assert "rows read:  1.0, 3.9, 6.8" in " ".join(texts(panel))


def test_interpolation_reads_at_the_centers():
    """A ramp, resized: far from its ends a patch gets the value of the place that the panel names."""
    ramp = torch.arange(70.0)[:, None].expand(70, 70).reshape(-1, 1)
    got = interpolate_position_table(ramp, 24, 5).reshape(24, 5)[3:-3, 0]
    np.testing.assert_allclose(got, draw.lines_read(24, "interpolate")[3:-3], atol=0.05)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_lines_read_are_the_ids(grid):
    shown = texts(panels.PositionExplorer(*grid))
    for name, n in zip(("rows", "columns"), grid):
        (line,) = (text for text in shown if text.startswith(f"{name} read:"))
        numbers = re.findall(r"\d+", line)
        ids = bucket_position_ids(1, n).tolist()
        listed = [int(number) for number in numbers]
        assert listed[:-1] == ids[: len(listed) - 1]
        assert listed[-1] == ids[-1]
        assert ("…" in line) == (len(listed) < n)
        assert 8 + draw.text_width(line) <= draw.WIDTH


def test_one_bit_is_seen():
    released, exact = (panels.PositionExplorer(25, 40, method) for method in ("bucket", "exact"))
    assert "rows read:  0, 2, 5, 8, 11, 13, 16" in " ".join(texts(released))
    assert "rows read:  0, 2, 5, 8, 11, 14, 16" in " ".join(texts(exact))


def test_a_grid_that_no_slider_has():
    with pytest.raises(ValueError, match="rows of patches must be between 1 and 240, got 0"):
        panels.PositionExplorer(0, 5)


def test_an_error_is_shown(monkeypatch):
    panel = panels.PositionExplorer()
    monkeypatch.setattr(Panel, "strict", False)
    monkeypatch.setattr(draw, "position_explorer", lambda **state: 1 / 0)
    panel.controls["rows"].value = 25
    assert "ZeroDivisionError" in panel._alert.value
    monkeypatch.undo()
    panel.controls["rows"].value = 26
    assert panel._alert.value == ""
    assert panel.status.startswith("26 x 43 patches")


@pytest.mark.parametrize("method", ["bucket", "interpolate"])
@pytest.mark.parametrize("grid", GRIDS)
def test_everything_stays_inside_the_picture(grid, method):
    canvas = draw.position_explorer(*grid, method)
    for kind, shape, _ in canvas.shapes:
        if kind == "text":
            x, y, text, size, _, align, bold = shape
            width = draw.text_width(text, size, bold)
            left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
            assert 0 <= left <= left + width <= canvas.width, text
            assert y <= canvas.height
        if kind in ("rect", "image"):
            x, y, w, h = shape[:4]
            assert 0 <= x <= x + w <= canvas.width
            assert 0 <= y <= y + h <= canvas.height
        if kind == "dot":  # centers of patches, inside the corner
            assert 221 <= shape[0] <= 221 + 198
            assert 30 <= shape[1] <= 30 + 198


# ---- linked: a patch and its cell


@pytest.mark.parametrize("side", [70, 27])
@pytest.mark.parametrize("grid", [(24, 43), (5, 7), (90, 151)])
def test_pointing_at_a_patch_and_at_a_cell(grid, side):
    panel = panels.PositionExplorer(*grid, "bucket", side)
    ids = bucket_position_ids(*grid, side).reshape(grid)
    for part in (0, 0.4, 0.999):
        spot = panel.spots[f"patches {grid}"]
        x, y, w, h = spot.box
        touch(panel, spot.key, (x + part * w, y + part * h), trait="pointed")
        row, col = int(part * grid[0]), int(part * grid[1])
        cell = divmod(int(ids[row, col]), side)
        here = "row {}, column {}".format(*cell)
        assert f"The patch in row {row}, column {col} reads the cell in {here} of the table." in panel.status
        many = int((ids == ids[row, col]).sum())
        more = "" if many == 1 else " So does another patch." if many == 2 else f" So do {many - 1} more patches."
        assert panel.status.endswith(" of the table." + more)
        left, top, wide, high = panel.facts["frames"]["patches"]
        assert wide * high == pytest.approx(many * w * h / ids.numel())
        assert left <= x + part * w <= left + wide and top <= y + part * h <= top + high
        assert panel.facts["frames"]["table"][:2] == pytest.approx(
            (8 + 198 * cell[1] / side, 30 + 198 * cell[0] / side)
        )
        touch(panel, f"table {(side, side)}", (8 + 198 * part, 30 + 198 * part), trait="pointed")
        row = int(part * side)
        many = int((ids == row * side + row).sum())
        assert panel.status == f"Table, row {row}, column {row}: read by " + (
            "no patch." if not many else f"{many} patch{'es' * (many > 1)}."
        )
    touch(panel, "", (0, 0), trait="pointed")
    assert "patches read" in panel.status and panel.facts["frames"] == {}


def test_an_arrow_key_goes_to_the_next_patch():
    panel = panels.PositionExplorer(24, 43, "interpolate")
    touch(panel, "patches (24, 43)", trait="pointed")
    for row, col in ((12, 21), (12, 22)):
        assert panel.status.startswith(f"The patch in row {row}, column {col} mixes the cells around row ")
        spot = panel.spots["patches (24, 43)"]
        touch(panel, spot.key, (spot.at[0] + spot.step[0], spot.at[1]), trait="pointed")
    panel.controls["rows"].value = 25
    assert panel.facts["frames"] == {}, "another grid has other patches"


# ---- tables side by side


def test_tables():
    canvas = draw.tables({"2.6": bucket_position_ids(24, 43), "2.5": bucket_position_ids(1, 1032)})
    assert repr(canvas) == "2.6: 1032 of 4900 cells are read; 2.5: 70 of 4900 cells are read"
    first, second = (shape[4] for kind, shape, _ in canvas.shapes if kind == "image")
    assert {y for y in range(70) for x in range(70) if hexadecimal(second.getpixel((x, y))) == draw.BLUE} == {0}
    assert sum(hexadecimal(pixel) == draw.BLUE for pixel in first.get_flattened_data()) == 1032
    assert draw.tables({"one": [0, 0, 3]}, side=2).words == "one: 2 of 4 cells are read"
