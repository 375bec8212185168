"""The browser's harness on planted notebooks: it sees what is right, and it can fail."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from places import ROOT

import notebooks  # tools/notebooks.py

SLIDER = """
import ipywidgets as widgets
slider, status = widgets.IntSlider(value=2, max=9), widgets.HTML("value 2")
slider.observe(lambda change: setattr(status, "value", f"value {change['new']}"), "value")
widgets.VBox([slider, status])
"""


def plant(server, name, *sources):
    """Write a notebook without outputs into the served folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources])
    # The normal form names a kernel; without one, JupyterLab stops and asks.
    (server.notebooks / name).write_text(notebooks.dumps(notebook), encoding="utf-8")
    return name


@pytest.mark.browser
def test_a_good_notebook(lab_server, lab_tab):
    name = plant(lab_server, "planted_good.ipynb", "from minicpmv_ref import best_grid\nprint(best_grid((1920, 1080)))")
    lab = lab_tab(name)
    lab.run_all()
    assert lab.errors() == []
    assert lab.outputs()[0][0]["text"] == "(4, 2)\n"
    assert lab.outside == []


@pytest.mark.browser
def test_an_error_is_found(lab_server, lab_tab):
    name = plant(lab_server, "planted_error.ipynb", "print('before')", "1 / 0")
    lab = lab_tab(name)
    lab.run_all()
    assert lab.errors() == ["cell 1: ZeroDivisionError: division by zero"]
    assert lab.outputs()[0][0]["text"] == "before\n"


@pytest.mark.browser
def test_an_alert_and_an_outside_request_are_found(lab_server, lab_tab):
    page = '<div role="alert">wrong grid</div><img src="http://outside.invalid/x.png">'
    name = plant(lab_server, "planted_alert.ipynb", f"from IPython.display import HTML\nHTML({page!r})")
    lab = lab_tab(name)
    lab.run_all()
    lab.wait_for_text(0, "wrong grid")
    assert lab.errors() == ["alert: wrong grid"]
    assert set(lab.outside) == {"http://outside.invalid/x.png"}


@pytest.mark.browser
def test_a_slider_moves_by_keyboard(lab_server, lab_tab, tmp_path):
    lab = lab_tab(plant(lab_server, "planted_slider.ipynb", SLIDER))
    lab.run_all()
    lab.wait_for_text(0, "value 2")
    lab.press(lab.sliders(cell=0).first, "ArrowRight", times=3)
    lab.wait_for_text(0, "value 5")
    lab.cell(0).get_by_text("value 5").hover()
    lab.screenshot(tmp_path / "lab.png")
    assert (tmp_path / "lab.png").stat().st_size > 10_000
    # The news question of the first start would cover panels: our settings answer it.
    assert lab.page.locator(".Toastify__toast").count() == 0


@pytest.mark.parametrize(("ci", "outcome"), [("true", "2 failed, 2 skipped, 2 errors"), ("false", "6 skipped")])
def test_a_skip_is_a_failure_where_ci_is_set(tmp_path, ci, outcome):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    for mark in ("browser", "llamacpp", "usefixtures"):
        (tmp_path / f"test_{mark}.py").write_text(
            "import pytest\npytestmark = pytest.mark." + mark + "\n"
            "@pytest.mark.skip(reason='no tool')\ndef test_marked(): pass\n"
            "def test_inside(): pytest.skip('no tool')\n"
        )
    flags = ["-W", "ignore", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, str(tmp_path)],
        env={**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert outcome in run.stdout
    assert (run.returncode == 0) == (ci == "false")
    if ci == "true":
        assert "CI is set, so a test marked ['browser'] must run, but: Skipped: no tool" in run.stdout
