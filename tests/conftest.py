"""Shared by all tests: the repository's root on the import path, and no silent skips where all tools exist."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; see minicpmv_ref/__main__.py
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores have workers of their own

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "tools"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# Tests with one of these marks may skip on your machine. Where CI is set, .ci/setup has installed what they
# need, so a skip there is a failure. Never skip such a test at the top of its file: no report would carry its mark.
MUST_RUN_IN_CI = {"browser", "llamacpp"}


# For `--fast`: the test functions that take long, one a line as "file.py::function". `pytest --record-slow` writes it.
SLOW = Path(__file__).with_name("slow.txt")
SLOW_SECONDS = 0.2  # of CPU time, all parameters of a function together


# `lab.py test` wants the core and what it reads with covered by their own tests. Only these are traced: tracing makes
# Python half as fast again, in the others for nothing.
TRACED = {"core", "inputs", "test_ask.py", "test_translations.py"}  # folders and files


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, metavar="N", help="odd inputs for each public function (usually 60)")
    parser.addoption("--fast", action="store_true", help="without the tests that tests/slow.txt lists")
    parser.addoption("--record-slow", action="store_true", help="measure the tests that run, and renew tests/slow.txt")


def pytest_configure(config):
    if config.getoption("--record-slow"):
        from slow import Recorder

        config.pluginmanager.register(Recorder(SLOW, SLOW_SECONDS))


def function_of(item) -> str:
    return f"{item.path.name}::{item.originalname}"


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("_cov"):
        for item in items:
            if not TRACED & {item.path.parent.name, item.path.name}:
                item.add_marker("no_cover")
    if config.getoption("--fast"):
        slow = set(SLOW.read_text(encoding="utf-8").split())
        config.hook.pytest_deselected(items=[item for item in items if function_of(item) in slow])
        items[:] = [item for item in items if function_of(item) not in slow]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marks = MUST_RUN_IN_CI & {mark.name for mark in item.iter_markers()}
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and marks
        and os.environ.get("CI", "").lower() in ("1", "true")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI is set, so a test marked {sorted(marks)} must run, but: {reason}"
    return report


def pytest_terminal_summary(terminalreporter):
    """What tests measure and do not judge: each `record_property`."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    """One JupyterLab server for all browser tests, on a copy of notebooks/. See tests/lib/browser.py."""
    from browser import LabServer, chromium_path

    if chromium_path() is None:
        pytest.skip("no chromium: run .ci/setup, or `playwright install chromium`")
    with LabServer(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def lab_tab(lab_server):
    """`lab_tab(name)` shows a notebook in the browser of this file of tests, in place of the one before."""
    with ExitStack() as stack:
        tabs = []

        def show(name):
            if tabs:
                tabs[0].open(name)
            else:
                tabs.append(stack.enter_context(lab_server.open(name)))
            return tabs[0]

        yield show


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models():
    """A tiny model of every version; see tests/lib/tiny.py."""
    from tiny import VERSIONS, tiny_model

    return {version: tiny_model(version) for version in VERSIONS}


@pytest.fixture(scope="module")
def processors():
    """Their processors."""
    from tiny import VERSIONS, tiny_processor

    return {version: tiny_processor(version) for version in VERSIONS}


@pytest.fixture
def strict_panels(monkeypatch):
    """An error in a panel is raised, not shown in its place."""
    from minicpmv_ref.course.panel import Panel

    monkeypatch.setattr(Panel, "strict", True)
