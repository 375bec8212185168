"""The site, the playground in JavaScript and the cheat sheet. The playground runs in a browser against Python."""

import importlib.util
import json
import random
import re
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from PIL import Image
from places import ROOT

import cheatsheet  # tools/cheatsheet.py
from minicpmv_ref.__main__ import main
from minicpmv_ref.commands import common, site
from minicpmv_ref.config import SliceConfig
from minicpmv_ref.slicing import candidate_grids, partition_score, plan_slices

GOLDEN = json.loads((ROOT / "tests/golden/slicing.json").read_text(encoding="utf-8"))["vectors"]
PLANS = """all => all.map(([size, side, most]) => {
    const {grid, overview, slice, grids, scores} = planSlices(size, side, 14, most);
    return [grid, overview, slice ?? null, grids, scores];
})"""
RENDERED = "[...document.querySelectorAll('mjx-container')].length"


@pytest.fixture
def view():
    """A page of a browser; `view.outside` are the requests that left this machine, `view.errors` what went wrong."""
    from playwright.sync_api import sync_playwright

    from browser import FLAGS, chromium_path

    if chromium_path() is None:
        pytest.skip("no chromium: run .ci/setup, or `playwright install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})  # a phone
        page.outside, page.errors = [], []
        page.on("request", lambda request: page.outside.append(request.url) if urlsplit(request.url).hostname else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()


def lists(value):
    return json.loads(json.dumps(value))


@pytest.mark.browser
def test_the_pages_without_python(view, tmp_path):
    view.goto((ROOT / "docs/site/slicing.html").as_uri() + "#1080x1080")
    assert "The grid of 3 x 2 (columns x rows) wins" in view.inner_text("#status")
    asked = [((v["width"], v["height"]), v["scale_resolution"], v["max_slice_nums"]) for v in GOLDEN]
    for golden, found in zip(GOLDEN, view.evaluate(PLANS, asked)):
        assert found[:3] == [golden["grid"], golden["overview_size"], golden["slice_size"]], golden
    draw = random.Random(5)
    asked = [((draw.randint(1, 5000), draw.randint(1, 5000)), 448, draw.randint(1, 12)) for _ in range(2000)]
    asked += [((side, side), 448, 9) for side in range(400, 1400, 7)]  # ties
    for (size, side, most), (grid, overview, slice_, grids, scores) in zip(asked, view.evaluate(PLANS, asked)):
        cfg = SliceConfig(side, 14, most)
        plan = plan_slices(size, cfg)
        assert [grid, overview, slice_] == lists([plan.grid, plan.overview_size, plan.slice_size]), size
        assert grids == lists(candidate_grids(size, cfg))
        assert scores == pytest.approx([partition_score(size, grid) for grid in candidate_grids(size, cfg)], abs=1e-12)

    Image.new("RGB", (449, 448), "teal").save(tmp_path / "own.png")
    view.set_input_files("#file", tmp_path / "own.png")
    view.wait_for_function("document.querySelector('#width').value === '449'")
    assert view.inner_text("#status").endswith("3 views x 64 = 192 tokens.")
    view.select_option("#queries", "96")
    assert view.inner_text("#status").endswith("3 views x 96 = 288 tokens.")
    view.fill("#most", "1")
    assert "it is not cut" in view.inner_text("#status") and view.inner_text("#scores") == "None."
    view.get_by_role("button", name="1920x1080").click()
    view.fill("#most", "9")
    assert view.inner_text(".best").split("\t")[:2] == ["4 x 2", "-0.1178"]
    assert view.url.endswith("#1920x1080")
    assert view.evaluate("document.documentElement.scrollWidth") <= 390

    view.goto((ROOT / "docs/cheatsheet.html").as_uri())
    for paper in ("A4", "Letter"):
        printed = view.pdf(format=paper, margin=dict.fromkeys(("top", "bottom", "left", "right"), "9mm"))
        assert len(re.findall(rb"/Type /Page\b(?!s)", printed)) == 2, paper
    assert view.outside == view.errors == []


def test_the_cheat_sheet_has_the_numbers_of_the_package():
    assert (ROOT / "docs/cheatsheet.html").read_text(encoding="utf-8") == cheatsheet.page()


def test_what_the_site_is_made_of(tmp_path):
    pages = site.collect(tmp_path)
    assert {ROOT / name for name in ("docs/claims.md", "minicpmv_ref/slicing.py", "minicpmv_ref/peers")} < pages
    assert set(ROOT.glob("notebooks/*.ipynb")) < pages
    assert "<svg" in (tmp_path / "index.md").read_text() and "<rect" in (tmp_path / "index.md").read_text()
    # Every link of every page leads to a file beside it; so does every entry of the table of contents.
    for path in tmp_path.rglob("*.md"):
        text = path.read_text(encoding="utf-8").partition("~~~~~~")[0]  # what follows is code
        for name in (match[1] for match in site.LINK.finditer(text) if match[1] and ":" not in match[1]):
            assert (path.parent / name).is_file(), f"{path.relative_to(tmp_path)} links to {name}"
    listed = re.findall(r"```{toctree}\n(.*?)```", (tmp_path / "index.md").read_text(), re.DOTALL)
    names = [re.sub(r".*<|>", "", line) for block in listed for line in block.splitlines() if line and line[0] != ":"]
    assert len(names) > 10
    assert [name for name in names if not list(tmp_path.glob(f"{name}.*"))] == []
    # The panel of lesson 03 answers to the mouse without Python.
    cells = nbformat.read(tmp_path / "notebooks/03_resampler.ipynb", 4).cells
    (panel,) = [cell.outputs[0].data["text/html"] for cell in cells if cell.source == site.LIVE]
    assert ":has(.q3:hover)" in panel and "Query 5." in panel


def test_links_become_those_of_the_site():
    linked = []
    text = "[`a](b)`](../minicpmv_ref/slicing.py) [c](peers) `[d](e)` [f](#g) [h](https://i) [j](../README.md#k)"
    moved = site.links_in(text, ROOT / "minicpmv_ref" / "x.md", linked)
    assert moved == ("[`a](b)`](slicing.py.md) [c](peers/files.md) `[d](e)` [f](#g) [h](https://i) [j](../README.md#k)")
    assert linked == [ROOT / "minicpmv_ref/slicing.py", ROOT / "minicpmv_ref/peers", ROOT / "README.md"]
    with pytest.raises(common.CommandError, match=r"README.md links to nowhere.md, which does not exist"):
        site.links_in("[a](nowhere.md)", ROOT / "README.md", linked)


def test_only_a_new_folder_or_a_site_is_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.txt").touch()
    assert main(["site", str(tmp_path)]) == 1
    assert "is neither empty nor a site" in capsys.readouterr().err
    (tmp_path / site.MARK).touch()
    assert site.checked(str(tmp_path)) == tmp_path
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["site", str(tmp_path)]) == 1
    assert "Install the extra `site` once" in capsys.readouterr().err


def test_the_whole_site(request, tmp_path):
    """A minute, and only where the extra `site` is installed."""
    if not all(importlib.util.find_spec(name) for name in ("myst_nb", "furo")):
        pytest.skip("needs the extra: pip install minicpmv-ref[site]")
    view = request.getfixturevalue("view")
    assert main(["site", str(tmp_path / "site")]) == 0
    pages = sorted((tmp_path / "site").rglob("*.html"))
    for path in pages:
        for name in re.findall(r'<[a-z]+ [^<>]*?(?:href|src)="([^"<>]*)"', path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:|#|$", name):
                target = path.parent / unquote(urlsplit(name).path)
                assert target.exists(), f"{path.relative_to(tmp_path)} links to {name}"

    def open_page(name, query=""):
        view.goto((tmp_path / "site" / name).as_uri() + query)
        assert view.evaluate("document.documentElement.scrollWidth") <= 390, name

    for path in (tmp_path / "site" / "notebooks").glob("*.html"):
        open_page(f"notebooks/{path.name}")
        formulas = view.evaluate("document.querySelectorAll('.math').length")
        view.wait_for_function(f"{RENDERED} === {formulas}")
        assert view.evaluate("document.querySelectorAll('[data-mjx-error], merror').length") == 0
    open_page("notebooks/03_resampler.html")
    queries = view.locator(".mcv-look .q")
    for number in (2, 9):
        queries.nth(number).hover()
        seen = view.evaluate(
            "[...document.querySelectorAll('.mcv-look .m')]"
            ".filter(each => each.checkVisibility({visibilityProperty: true})).map(each => each.getAttribute('class'))"
        )
        assert set(seen) == {f"m m{number}"}
    open_page("search.html", "?q=resampler")
    view.wait_for_function("document.querySelectorAll('#search-results li').length > 5")
    open_page("playground.html")
    assert "wins" in view.frame_locator("iframe").locator("#status").inner_text()
    assert view.outside == view.errors == []
