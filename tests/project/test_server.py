"""docs/server: what JupyterHub starts for a learner. JupyterHub itself is not installed for the tests."""

import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from jupyter_server.serverapp import ServerApp
from places import ROOT
from traitlets.config import Config

from minicpmv_ref.commands import course
from minicpmv_ref.commands.websocket import SendsAtOnce

SERVER = ROOT / "docs" / "server"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """start.py of a small course, run for a learner; returns what it would run."""
    small, home = tmp_path / "opt", tmp_path / "home"
    for name in (".venv", "runs", "my_notebooks", "notebooks", "docs/server"):
        (small / name).mkdir(parents=True)
        (small / name / "file").touch()
    for name in ("jupyterhub_cookie_secret", "jupyterhub.sqlite"):  # a learner may not even read them
        (small / name).touch(mode=0o000)
    shutil.copy(SERVER / "start.py", small / "docs/server")
    shutil.copy(ROOT / "notebooks/00_one_picture.ipynb", small / "notebooks")
    shutil.copytree(ROOT / "notebooks/zh", small / "notebooks/zh")
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "argv", ["start.py", "--port=1"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(course, "COPIES", home / "minicpmv-ref/my_notebooks")  # it was imported from elsewhere
    run = []

    def execv(program, words):
        run.append(words)
        raise SystemExit

    def start(folder, language):
        monkeypatch.setenv("COURSE_LANGUAGE", language)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(folder / "docs/server/start.py"))
        return stop.value.code

    monkeypatch.setattr(os, "execv", execv)
    for language in ("en", "en", "zh"):  # the second login finds the copy
        start(small, language)
        assert run.pop()[1:] == [str(home / "minicpmv-ref/docs/server/start.py"), "--port=1"]
        start(home / "minicpmv-ref", language)
    assert start(home / "minicpmv-ref", "xx") == "COURSE_LANGUAGE must be one of en, zh, got 'xx'"
    return home / "minicpmv-ref", run


def test_a_learner_gets_an_own_copy(started):
    own, run = started
    assert sorted(path.name for path in own.iterdir()) == [".venv", "build", "docs", "my_notebooks", "notebooks"]
    assert (own / ".venv").is_symlink() and (own / ".venv" / "file").exists(), "lab.py installs nothing again"
    lessons = ["00_one_picture.ipynb", "00_one_picture.zh.ipynb"]
    assert sorted(path.name for path in (own / "my_notebooks").iterdir()) == lessons
    for words, first in zip(run, (lessons[0], *lessons), strict=True):
        assert f"--ServerApp.default_url=/lab/tree/my_notebooks/{first}" in words
    assert Path.cwd() == own
    assert run[0] == run[1] and run[0][1:3] == ["-m", "jupyterhub.singleuser"]
    assert f"--ServerApp.root_dir={own}" in run[0] and run[0][-1] == "--port=1"
    assert f"--LabApp.app_settings_dir={own / 'build/settings'}" in run[0]  # answers the question about news
    assert '"fetchNews": "false"' in (own / "build/settings/overrides.json").read_text()
    server = ServerApp()
    server.parse_command_line(run[0][3:])
    assert server.tornado_settings["websocket_max_message_size"] == 2**28  # for pictures; else 10 MB
    assert server.kernel_websocket_connection_class is SendsAtOnce


def test_the_configuration():
    config = Config()
    runpy.run_path(str(SERVER / "jupyterhub_config.py"), {"get_config": lambda: config})
    python, script = (word.removeprefix("/opt/minicpmv-ref/") for word in config.Spawner.cmd)
    assert python == ".venv/bin/python" and (ROOT / script).is_file()
    assert config.PAMAuthenticator.allow_all is True, "since JupyterHub 5 nobody may log in otherwise"
    assert config.Spawner.environment["OMP_NUM_THREADS"] == "1"
