"""Notebooks in a real JupyterLab in a real browser, for tests.

    with lab_server.open("01_slicing.ipynb") as lab:     # lab_server: the fixture of conftest.py
        lab.run_all()
        assert lab.errors() == []
        lab.press(lab.sliders(cell=7).first, "ArrowRight", times=3)
        lab.cell(7).locator("img").hover()
        lab.wait_for_text(7, "3 x 2 slices")
        lab.screenshot(path)
        assert lab.outside == []                         # no request left this machine

`lab.page` is Playwright's own page, for all that is not wrapped here. Cells are counted from 0, markdown
included. Each `lab_server.open` starts its own browser, which takes eight seconds; `lab.open` shows another notebook in
the same tab. Keep no browser open for longer than a file of tests: its event loop runs in all of them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlsplit

from places import ROOT

TIMEOUT = 180  # seconds, for every wait: the machines that run tests are often busy
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
KERNEL_IDLE = "() => jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
OUTPUTS = """() => [...jupyterapp.shell.currentWidget.content.model.cells].map(cell => {
    const found = [];
    for (let i = 0; i < (cell.outputs?.length ?? 0); i++) found.push(cell.outputs.get(i).toJSON());
    return found;
})"""
OPEN = """async path => {
    const before = [...jupyterapp.shell.widgets('main')];
    await (await jupyterapp.commands.execute('docmanager:open', {path})).context.ready;
    for (const widget of before) {
        await widget.context?.sessionContext.shutdown();
        widget.dispose();
    }
}"""
IS_OPEN = "path => jupyterapp.shell.currentWidget?.context?.path === path"
# The stored outputs go first: otherwise a notebook that never ran would look fine.
RUN_ALL = """() => {
    window.allCellsRan = false;
    for (const cell of jupyterapp.shell.currentWidget.content.model.cells) {
        if (cell.type === 'code') cell.clearExecution();
    }
    jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.allCellsRan = true; });
}"""
NOT_RUN = """() => [...jupyterapp.shell.currentWidget.content.model.cells].flatMap((cell, number) =>
    cell.type === 'code' && cell.sharedModel.source.trim() && !cell.executionCount ? [number] : [])"""


@cache
def chromium_path() -> str | None:
    """The browser to use: the system's, else the one that `playwright install chromium` made, else None."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


class LabServer:
    """A JupyterLab server on a free port, with its own settings. `folder` must be empty."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.notebooks = folder / "repository" / "notebooks"
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self.log = folder / "server.log"

    def __enter__(self) -> LabServer:
        # Lessons read ../data_samples, so the copy stands beside a link or copy of it.
        source = ROOT / "notebooks"
        if source.is_dir():
            shutil.copytree(source, self.notebooks, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        else:
            self.notebooks.mkdir(parents=True)
        if (ROOT / "data_samples").is_dir():
            _link_or_copy(ROOT / "data_samples", self.notebooks.parent / "data_samples")

        own = {"TMPDIR": str(self.folder)}  # of kernels, which leave their files when they are killed
        for name in (
            *("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR"),
            *("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"),
        ):
            own[name] = str(self.folder / name.lower())
        settings = self.folder / "settings"
        settings.mkdir()
        quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
        (settings / "overrides.json").write_text(json.dumps(quiet), encoding="utf-8")
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
                    *(f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"),
                    *(f"--ServerApp.root_dir={self.notebooks.parent}", f"--LabApp.app_settings_dir={settings}"),
                    *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
                    # as commands/course.py
                    "--ServerApp.kernel_websocket_connection_class=minicpmv_ref.commands.websocket.SendsAtOnce",
                ],
                env={**os.environ, **own, "PYTHONPATH": python_path, "JUPYTER_PREFER_ENV_PATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_up(self):
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    @contextmanager
    def open(self, name: str, width: int = 1280, height: int = 720):
        """Open a notebook of the served notebooks folder in a fresh browser; yields a `LabPage`."""
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
            try:
                context = browser.new_context(viewport={"width": width, "height": height})
                context.set_default_timeout(TIMEOUT * 1000)
                page = context.new_page()
                lab = LabPage(page)
                page.goto(
                    f"http://127.0.0.1:{self.port}/lab/tree/notebooks/{quote(name)}?token={self.token}&reset",
                    wait_until="domcontentloaded",
                )
                page.wait_for_function("() => window.jupyterapp !== undefined")
                lab.wait_idle()
                yield lab
                lab.shut_down_kernel()
            finally:
                browser.close()


class LabPage:
    """One notebook in the browser."""

    def __init__(self, page):
        self.page = page
        self.outside: list[str] = []  # addresses of requests that left this machine
        page.context.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.outside.append(url)

    def open(self, name: str):
        """Show another notebook of the served notebooks folder, and close the one that is here with its kernel."""
        self.outside.clear()
        self.page.evaluate(OPEN, f"notebooks/{name}")
        self.page.wait_for_function(IS_OPEN, arg=f"notebooks/{name}")
        self.wait_idle()

    # -- running

    def wait_idle(self):
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        try:
            self.page.wait_for_function(KERNEL_IDLE)
        except PlaywrightTimeout:
            dialogs = self.page.locator(".jp-Dialog").all_inner_texts()
            raise AssertionError(f"no idle kernel after {TIMEOUT} s; open dialogs: {dialogs}") from None

    def run_all(self):
        """Run every cell and wait until the kernel is idle. JupyterLab stops at the first error."""
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function("() => window.allCellsRan")
        self.wait_idle()
        left = self.page.evaluate(NOT_RUN)
        if left and not self.errors():
            raise AssertionError(f"JupyterLab did not run the cells {left}")

    def shut_down_kernel(self):
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    # -- what came out, read from the notebook's model (the page may hide or shorten it)

    def outputs(self) -> list[list[dict]]:
        """The outputs of every cell, as nbformat dicts; an empty list for markdown."""
        return self.page.evaluate(OUTPUTS)

    def errors(self) -> list[str]:
        """One line for every error output, and for every panel that shows an alert."""
        found = [
            f"cell {number}: {output['ename']}: {output['evalue']}"
            for number, outputs in enumerate(self.outputs())
            for output in outputs
            if output["output_type"] == "error"
        ]
        alerts = self.page.locator(".jp-Notebook [role=alert]").all_inner_texts()
        return found + [f"alert: {text}" for text in alerts if text.strip()]

    # -- moving about

    def cell(self, number: int):
        """Locator of a cell, scrolled into view: the mouse reaches only what is on the screen."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(number)
        cell.scroll_into_view_if_needed()
        return cell

    def sliders(self, cell: int):
        return self.cell(cell).get_by_role("slider")

    def press(self, locator, key: str, times: int = 1):
        """Focus a control (a slider, a button) and press a key."""
        locator.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def wait_for_text(self, cell: int, text: str):
        """Wait until a cell shows this text, for example in a panel's status line."""
        self.cell(cell).get_by_text(text).first.wait_for()

    def screenshot(self, path: Path | str):
        self.page.screenshot(path=str(path))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link_or_copy(source: Path, target: Path):
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:  # Windows, without the right to make links
        shutil.copytree(source, target)
