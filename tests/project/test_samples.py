"""The table in data_samples/README.md tells the truth, and tools/make_samples.py still draws the pictures."""

import re
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, ImageChops
from places import ROOT

from minicpmv_ref import SliceConfig, load_clip, plan_slices

IMAGES = ROOT / "data_samples" / "images"
README = (ROOT / "data_samples" / "README.md").read_text("utf-8")
COLUMNS = ["File", "Pixels", "Grid", "Tokens", "What it shows", "Origin", "License"]


def table():
    """The rows of the README's first table as dictionaries."""
    lines = re.search(r"(?:^\|.*\n)+", README, re.MULTILINE)[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == COLUMNS
    return [dict(zip(head, row, strict=True)) for row in rows]


def file_of(row):
    name, target = re.fullmatch(r"\[(.+)\]\((.+)\)", row["File"]).groups()
    assert unquote(target) == f"images/{name}"
    return IMAGES / name


ROWS = table()
by_file = pytest.mark.parametrize("row", ROWS, ids=[file_of(row).stem for row in ROWS])


def test_every_file_is_listed_once():
    listed = [file_of(row).name for row in ROWS]
    assert len(listed) == len(set(listed)) >= 14
    assert set(listed) == {path.name for path in IMAGES.iterdir()}


def test_the_folder_is_small():
    sizes = {path.name: path.stat().st_size for path in IMAGES.iterdir()}
    assert sum(sizes.values()) < 4_000_000
    assert max(sizes.values()) < 250_000, max(sizes, key=sizes.get)


@by_file
def test_row_matches_its_picture(row):
    with Image.open(file_of(row)) as image:
        image.load()
        assert row["Pixels"] == f"{image.width}x{image.height}"
        assert len(image.getexif()) == 0  # an orientation tag would make the size ambiguous
        assert image.format == {".jpg": "JPEG", ".png": "PNG"}[file_of(row).suffix]
        assert np.asarray(image.convert("RGB")).std() > 10  # it shows something


@by_file
def test_grid_and_tokens_are_the_package_s(row):
    with Image.open(file_of(row)) as image:
        plan = plan_slices(image.size, SliceConfig())
    assert row["Grid"] == ("{}x{}".format(*plan.grid) if plan.grid else "-")
    assert row["Tokens"] == str(plan.visual_tokens(64))


@by_file
def test_origin_and_license_are_named(row):
    assert row["What it shows"] and row["Origin"]
    assert re.match(r"(Public domain|CC0|MIT|\[CC BY 2\.0\]\(https://\S+\))$", row["License"])


def test_the_samples_reach_both_ends_of_slicing():
    tokens = {int(row["Tokens"]) for row in ROWS}
    assert min(tokens) == 64 and max(tokens) == 640
    grids = {row["Grid"] for row in ROWS}
    assert {"-", "1x2", "2x1", "2x2", "1x4", "5x1", "2x3", "3x2", "2x4", "3x3"} <= grids


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_samples

    return make_samples


@pytest.mark.parametrize("name", ["shapes", "numbers", "receipt", "banner", "chart", "document"])
def test_the_script_draws_the_committed_picture(script, tmp_path, name):
    script.main(["--only", name, "--out", str(tmp_path)])
    with Image.open(tmp_path / f"{name}.png") as a, Image.open(IMAGES / f"{name}.png") as b:
        difference = np.asarray(ImageChops.difference(a.convert("RGB"), b.convert("RGB")))
    assert a.size == b.size
    # Pixels, not bytes: compressors and font rasterizers may differ between machines.
    assert difference.mean() < 1


def test_clips_are_drawn_again_and_their_table_is_right(script, tmp_path):
    folder, listed = IMAGES.parent / "clips", []
    for names, sample in script.draw_clips(tmp_path).items():
        files = ", ".join(f"[{name}](clips/{name})" for name in names)
        frames = "1 each" if len(names) > 1 else str(len(load_clip(folder / names[0])))
        question, answer = sample.messages[0]["content"][-1], sample.answer
        assert f"| {files} | 112x112 | {frames} | {question} | {answer} |\n" in README
        shown = [image for name in names for image in load_clip(folder / name)]
        assert sample.held_out and len(shown) == len(sample.images)
        for name in names:
            assert list(map(pixels, load_clip(folder / name))) == list(map(pixels, load_clip(tmp_path / name)))
        for image, drawn in zip(shown, sample.images):
            assert np.abs(np.subtract(image, drawn, dtype=int)).max() <= 2  # a palette of few colors
        listed += names
    assert {path.name for path in folder.iterdir()} == set(listed)


def pixels(image):
    return image.tobytes()


def test_a_missing_font_skips_the_picture_and_says_so(script, tmp_path, monkeypatch, capsys):
    from samples import sheet

    sheet.load_font.cache_clear()
    monkeypatch.setattr(sheet, "system_fonts", dict)
    script.main(["--only", "street_sign", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    assert "skipped  street_sign.png: font NotoSansCJK-Bold.ttc is not installed" in capsys.readouterr().out


def test_photographs_are_cropped_from_a_folder(script, tmp_path):
    sources, out = tmp_path / "sources", tmp_path / "out"
    for source, _ in script.PHOTOS.values():
        (sources / source).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((1411, 1411), 60).save(sources / source)
    script.main(["--only", "shapes", "--out", str(out), "--photos", str(sources)])
    assert {path.name for path in out.iterdir()} == {"shapes.png", *script.PHOTOS}
    for name, size in (("astronaut_449x448.jpg", (449, 448)), ("retina.jpg", (1344, 1344))):
        with Image.open(out / name) as cropped:
            assert cropped.size == size
    assert (out / "rocket.jpg").read_bytes() == (sources / "skimage/data/rocket.jpg").read_bytes()
