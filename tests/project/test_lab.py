"""lab.py and the command line: what they do before, during and after an installation. Nothing is downloaded."""

import asyncio
import importlib.util
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from command_options import command_parser, takes_a_value
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from places import ROOT
from tornado.websocket import websocket_connect
from traitlets import import_item

from minicpmv_ref.__main__ import COMMANDS, main
from minicpmv_ref.commands import bundle, common, course, reset
from minicpmv_ref.commands import test as test_command
from minicpmv_ref.inputs.translated import fingerprint


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """lab.py as a module, in an empty folder (with a space in its name) that has no environment yet."""
    spec = importlib.util.spec_from_file_location("lab_under_test", ROOT / "lab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "my course"
    root.mkdir()
    for name, value in {
        "ROOT": root,
        "VENV": root / ".venv",
        "REQUIREMENTS": root / "requirements.txt",
        "CONSTRAINTS": root / "constraints.txt",
        "STAMP": root / ".venv" / "stamp",
    }.items():
        monkeypatch.setattr(module, name, value)
    module.REQUIREMENTS.write_text("a==1\n")
    module.CONSTRAINTS.write_text("a==1\nb==2\n")
    return module


@pytest.fixture
def steps(lab, monkeypatch):
    """What lab.py did: "make" and "install", with both replaced by quick stand-ins."""
    done = []

    def make():
        done.append("make")
        lab.venv_python().parent.mkdir(parents=True, exist_ok=True)
        lab.venv_python().touch()
        lab.STAMP.write_text(lab.UNFINISHED)

    monkeypatch.setattr(lab, "make_venv", make)
    monkeypatch.setattr(lab, "install", lambda python, bundle: done.append("install"))
    monkeypatch.setattr(lab, "usable", lambda python: python.exists())
    return done


# ---- the stamp


def test_the_second_time_nothing_is_installed(lab, steps):
    assert lab.ready_python() == lab.venv_python()
    assert lab.ready_python() == lab.venv_python()
    assert steps == ["make", "install"]


@pytest.mark.parametrize("changed", ["REQUIREMENTS", "CONSTRAINTS"])
def test_new_pins_are_installed_into_the_same_environment(lab, steps, changed):
    lab.ready_python()
    getattr(lab, changed).write_text("a==2\n")
    lab.ready_python()
    assert steps == ["make", "install", "install"]


def test_the_key_depends_on_each_part(lab, monkeypatch):
    keys = {lab.stamp_key()}
    lab.REQUIREMENTS.write_text("a==1\na==1\n")
    lab.CONSTRAINTS.write_text("b==2\n")  # the same bytes in a row, cut elsewhere
    keys.add(lab.stamp_key())
    monkeypatch.setattr(lab, "python_version", lambda: "3.99")
    keys.add(lab.stamp_key())
    assert len(keys) == 3


def test_an_interrupted_installation_is_done_again_from_the_start(lab, steps, monkeypatch):
    def interrupted(python, bundle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab, "install", interrupted)
        assert lab.main(["course"]) == 130
    assert lab.STAMP.read_text() == lab.UNFINISHED
    lab.ready_python()
    assert steps == ["make", "make", "install"]
    assert lab.STAMP.read_text() == lab.stamp_key()


def test_a_lost_python_is_noticed(lab, steps):
    lab.ready_python()
    lab.venv_python().unlink()
    lab.ready_python()
    assert steps == ["make", "install", "make", "install"]


LOCKED = """
import sys, time
sys.path.insert(0, {root!r})
import lab
lab.REQUIREMENTS = {requirements!r}
with lab.only_one():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("then", ["done", "killed"])
def test_the_second_of_two_first_starts_waits(lab, steps, capsys, then):
    """It takes what the first one installed; if that one was killed, it installs by itself."""
    code = LOCKED.format(root=str(ROOT), requirements=str(lab.REQUIREMENTS))
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        second = threading.Thread(target=lab.ready_python)
        second.start()
        second.join(1)
        assert second.is_alive() and steps == []
        if then == "done":
            lab.make_venv()
            lab.STAMP.write_text(lab.stamp_key())
            steps.clear()
    finally:
        first.kill()
        first.communicate()
    second.join(30)
    assert not second.is_alive() and steps == ([] if then == "done" else ["make", "install"])
    assert capsys.readouterr().out.count("Another lab.py is installing the packages here") == 1


def test_your_own_environment_is_kept(lab, steps):
    lab.venv_python().parent.mkdir(parents=True)
    lab.venv_python().touch()
    lab.ready_python()
    assert steps == ["install"]


def test_an_environment_of_somebody_else_is_left_alone(lab, steps, monkeypatch, capsys):
    lab.ready_python()
    monkeypatch.setattr(lab.os, "access", lambda path, mode: False)
    assert lab.ready_python() == lab.venv_python()
    lab.REQUIREMENTS.write_text("a==2\n")
    assert lab.main([]) == 1
    assert f"you may not write in {lab.VENV}" in capsys.readouterr().err
    assert steps == ["make", "install"]


def test_an_environment_that_cannot_run_is_not_usable(lab):
    assert not lab.usable(lab.venv_python())
    assert lab.usable(Path(sys.executable))


def test_a_half_made_environment_is_replaced(lab):
    (lab.VENV / "bin").mkdir(parents=True)
    (lab.VENV / "bin" / "leftover").touch()
    lab.make_venv()
    assert not (lab.VENV / "bin" / "leftover").exists()
    assert lab.usable(lab.venv_python())
    assert lab.STAMP.read_text() == lab.UNFINISHED, "only an installation may set the stamp"


# ---- failures


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "2 GB"),
        ("WARNING: Retrying after NewConnectionError: Failed to establish a new connection", "HTTPS_PROXY"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "HTTPS_PROXY"),
        ("ERROR: Ignored the following versions that require a different python: Requires-Python >=3.12", "Python 3."),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no version"),
        ("ERROR: something nobody has seen", "2 GB of free disk space"),
    ],
)
def test_a_failed_installation_says_what_to_do(lab, monkeypatch, capsys, line, advice):
    pip = lab.ROOT / "pip stub.py"
    pip.write_text(f"import sys\nprint('Collecting a==1')\nprint({line!r}, file=sys.stderr)\nsys.exit(1)\n")
    real = lab.run_calmly
    monkeypatch.setattr(lab, "run_calmly", lambda command: real([sys.executable, str(pip)]))
    monkeypatch.setattr(lab, "make_venv", lambda: lab.VENV.mkdir())
    assert lab.main(["course"]) == 1
    error = capsys.readouterr().err
    assert line in error
    assert advice in error
    assert "run the same command again" in error
    assert lab.STAMP.read_text() == lab.UNFINISHED


def test_without_ensurepip_the_package_is_named(lab, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))
    assert lab.main([]) == 1
    assert "sudo apt install python3." in capsys.readouterr().err
    assert not lab.VENV.exists()


def test_a_folder_that_the_terminal_cannot_spell(lab, monkeypatch):
    monkeypatch.setattr(lab, "ready_python", lambda bundle: print("Making /课程/.venv ...") or sys.executable)
    monkeypatch.setattr(lab, "hand_over", lambda python, argv: 0)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert lab.main([]) == 0
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().split() == [b"Making", b"/??/.venv", b"..."]


def test_an_environment_does_not_delete_itself(lab, monkeypatch, capsys):
    monkeypatch.setattr(sys, "prefix", str(lab.VENV))
    assert lab.main([]) == 1
    assert "deactivate" in capsys.readouterr().err


def test_progress_is_calm_and_moves(lab, capsys):
    script = (
        "import time\nfor n in range(3): print(f'Collecting p{n}')\ntime.sleep(2.5)\n"
        "print('Installing collected packages: a, b')"
    )
    code, lines = lab.run_calmly([sys.executable, "-c", script])
    assert (code, len(lines)) == (0, 4)
    shown = capsys.readouterr().out.splitlines()
    assert 2 <= len(shown) <= 4
    assert "p0" in shown[0]
    assert "installed" in shown[-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Collecting torch==2.13.0 (from -r requirements.txt (line 4))", "looking up package 1: torch==2.13.0"),
        ("  Downloading http://x/torch-2.13.0.whl (190.1 MB)", "downloading torch-2.13.0.whl (190.1 MB)"),
        ("Installing collected packages: a, b, c", "unpacking 3 packages (about a minute)"),
        ("Using cached whatever.whl", None),
    ],
)
def test_short_lines(lab, line, words):
    assert lab.short(line, [line]) == words


def test_an_old_python_gets_one_sentence(tmp_path):
    text = (ROOT / "lab.py").read_text(encoding="utf-8")
    older = "import sys\nsys.version_info = (3, 10, 4)\n"
    guard = text[: text.index("import hashlib")].replace("import sys\n", older, 1)
    script = tmp_path / "lab.py"
    script.write_text(guard)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == "minicpmv-ref needs Python 3.11 or newer, and this is 3.10.\n"


# ---- handing over


@pytest.fixture
def fake_package(lab, monkeypatch, tmp_path):
    """A package in lab.ROOT that prints its words and its folder, and obeys `exit N`."""
    package = lab.ROOT / "minicpmv_ref"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, signal, sys, time\n"
        "print(sys.argv[1:], os.path.basename(os.getcwd()), flush=True)\n"
        "if sys.argv[1] == 'exit': sys.exit(int(sys.argv[2]))\n"
        "if sys.argv[1] == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "os.py").write_text("raise SystemExit('a file of the user shadows a module')")
    monkeypatch.chdir(elsewhere)


def test_words_and_folder_and_exit_code_are_handed_over(lab, fake_package, capfd):
    words = ["exit", "7", "a picture.png", "What is it?", "--", "-k", "x"]
    assert lab.hand_over(sys.executable, words) == 7
    assert capfd.readouterr().out == f"{words} else where\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_killed_command_has_the_exit_code_of_the_shell(lab, fake_package):
    assert lab.hand_over(sys.executable, ["die"]) == 128 + signal.SIGKILL


def test_help_needs_no_installation(lab, monkeypatch):
    seen = []
    monkeypatch.setattr(lab, "hand_over", lambda python, argv: seen.append((python, argv)) or 0)
    monkeypatch.setattr(lab, "ready_python", lambda bundle: "the environment")
    for argv in (["--help"], ["-h"], ["test", "--help"], ["test", "--", "--help"], []):
        assert lab.main(argv) == 0
    here = sys.executable
    assert seen == [
        (here, ["--help"]),
        (here, ["-h"]),
        (here, ["test", "--help"]),
        ("the environment", ["test", "--", "--help"]),
        ("the environment", []),
    ]


def test_help_of_a_fresh_copy(tmp_path):
    """With the standard library alone (-S: no installed packages, so no torch and no Pillow)."""
    root = tmp_path / "a fresh copy"
    shutil.copytree(ROOT / "minicpmv_ref", root / "minicpmv_ref", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "lab.py", root)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-I", "-S", str(root / "lab.py"), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "usage: lab.py" in run.stdout
    assert all(re.search(rf"^    {name}\s", run.stdout, re.MULTILINE) for name, _ in COMMANDS)
    assert not (root / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C in another way")
@pytest.mark.parametrize(("send", "number"), [("killpg", signal.SIGINT), ("kill", signal.SIGTERM)])
def test_a_signal_reaches_the_command_and_its_answer_counts(tmp_path, send, number):
    root = tmp_path / "copy"
    (root / "minicpmv_ref").mkdir(parents=True)
    shutil.copy(ROOT / "lab.py", root)
    (root / "minicpmv_ref" / "__init__.py").touch()  # without it, the real package would win
    (root / "minicpmv_ref" / "__main__.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('clean', flush=True)\n    sys.exit(5)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import lab; sys.exit(lab.hand_over(sys.executable, ['x']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    getattr(os, send)(process.pid, number)  # a terminal sends Ctrl-C to both programs; `kill` reaches lab.py alone
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (5, "clean\n", "")


# ---- the command line of the package


IMPORTED = """
import sys
from minicpmv_ref.__main__ import build_parser
build_parser({command!r})
print(*sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("minicpmv_ref.commands.")))
print(*sorted({{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names))
"""
EVERY = sorted(["common", *(name for name, _ in COMMANDS)])


@pytest.mark.parametrize(
    ("command", "files"), [("--help", ["common"]), ("phone", ["common", "export", "phone"]), (None, EVERY)]
)
def test_only_the_files_of_a_command_are_imported_and_no_package(command, files):
    code = IMPORTED.format(command=command)  # -S: no installed packages
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, commands, packages = run.stdout.splitlines()
    assert commands.split() == files
    assert packages.split() == ["__main__", "minicpmv_ref"]


@pytest.mark.parametrize("command", [name for name, _ in COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f" {command} [-h]" in out


def test_every_command_has_its_file():
    files = {path.stem for path in (ROOT / "minicpmv_ref" / "commands").glob("*.py")}
    assert files - {"__init__", "common", "websocket"} == {name for name, _ in COMMANDS}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A root with an empty notebooks folder in place of the repository."""
    root = tmp_path / "a copy"
    (root / "notebooks").mkdir(parents=True)
    (root / "minicpmv_ref").mkdir()
    (root / "minicpmv_ref" / "model.py").touch()
    for module in (common, course, test_command):
        monkeypatch.setattr(module, "ROOT", root)
    for module in (course, reset):
        monkeypatch.setattr(module, "COPIES", root / "my_notebooks")
    return root


@pytest.mark.parametrize("command", ["course", "test"])
def test_without_the_repository_there_is_one_clear_error(copy, capsys, command):
    (copy / "notebooks").rmdir()
    assert main([command]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no notebooks folder beside the package")
    assert error.count("\n") == 1


def test_a_course_without_its_first_notebook(copy, capsys):
    assert main([]) == 1
    assert "no notebook whose name starts with 00_" in capsys.readouterr().err


def test_a_missing_package_is_named(copy, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (copy / "notebooks" / "00_start.ipynb").touch()
    assert main(["course"]) == 1
    assert "needs the package 'jupyterlab'. Run `python3 lab.py`" in capsys.readouterr().err


def test_ports():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(common.CommandError, match=f"port {port} cannot be used"):
            course.free_port(port)
    assert course.free_port(port) == port
    assert 8888 <= course.free_port() < 8988
    with pytest.raises(common.CommandError, match="port 99999 cannot be used"):
        course.free_port(99999)


def test_no_free_port(monkeypatch):
    monkeypatch.setattr(course, "range", lambda *_: [99999], raising=False)
    with pytest.raises(common.CommandError, match="no port from 8888 to 8987 is free"):
        course.free_port()


def test_control_c_is_no_traceback(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "run", interrupted)
    assert main([]) == 130


def test_an_error_of_the_system_is_a_sentence(capsys):
    assert main(["ask", "nowhere.png", "What is it?"]) == 1
    assert capsys.readouterr().err == "error: No such file or directory: 'nowhere.png'\n"


def test_a_reader_who_has_enough_is_no_traceback(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["progress"]) == 141
    assert capfd.readouterr().err == ""


HOSTILE = "red\x1b]0;owned\x07 \u202egnp.exe"


def test_what_a_command_prints_is_not_obeyed_by_a_terminal(monkeypatch, capsys):
    def command(args):
        common.say(HOSTILE)
        common.report_line(HOSTILE)
        raise common.CommandError(HOSTILE)

    monkeypatch.setattr(course, "run", command)
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: red") and out.count("red") == 2
    assert not any(c in out + err for c in "\x1b\x07\u202e")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_knows_few_characters(monkeypatch, encoding):
    """Both streams of every command: what they cannot write becomes a question mark, never a traceback."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command(args):
        print("图", flush=True)
        common.say("/图片/红")
        common.report_line("圆形")
        raise common.CommandError("没有")

    monkeypatch.setattr(course, "run", command)
    assert main([]) == 1
    streams["stderr"].flush()
    streams["stdout"].flush()
    assert streams["stdout"].buffer.getvalue().split() == [b"?", b"/??/?", b"??"]
    assert streams["stderr"].buffer.getvalue().split() == [b"error:", b"??"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such settings")
@pytest.mark.parametrize(
    "settings",
    [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONUTF8": "0", "LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0"}],
    ids=["cp1252", "C"],
)
def test_a_chinese_path_on_such_a_console(tmp_path, settings):
    folder = tmp_path / "图片"
    words = ["export", "nano", str(folder / "out"), "--mixture", "Q8_0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    run = subprocess.run([sys.executable, "-m", "minicpmv_ref", *words], env=environment, capture_output=True)
    assert run.returncode == 0 and run.stderr == b""
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["mmproj-F16.gguf", "model-Q8_0.gguf"]
    assert b"/out/model-Q8_0.gguf" in run.stdout


IMPOSSIBLE = {  # a command line without its last value, and values that no command can work with
    "course --no-browser --port": ("0", "-1", "65536"),
    "ask a.png ? --max-slice-nums": ("0", "-3", "1001", "9" * 30),
    "ask a.png ? --max-new-tokens": ("0", "-1", "9" * 30),
    "ask a.png ? --temperature": ("1e-40", "1e-5", "-0.1", "nan", "inf", "1e400"),
    "ask a.png ? --seed": ("-1", str(2**63), "9" * 30),
    "train --seed": ("-1", str(2**63)),
    "train --threads": ("0", "-1", "100000"),
    "train --workers": ("-1", "9" * 30),
    "train --micro-batches": ("-1", "9" * 30),
    "train --data a.json --from nano --steps": ("-1", "9" * 30),
    "train --data a.json --from nano --batch": ("-1", "9" * 30),
    "train --data a.json --from nano --lr-scale": ("-1", "nan", "inf"),
    "train --data a.json --from nano --lora": ("-1", "3000000"),
    "records a.json --most": ("-1", "9" * 30),
    "shards a.json --out b --per-shard": ("0", "-1", "9" * 30),
    "dpo --threads": ("0", "-1", "100000"),
    "phone a.png ? --max-new-tokens": ("0", "9" * 30),
    "phone a.png ? --threads": ("0", "-1", "100000"),
}


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_impossible_numbers_are_refused_before_anything_is_read(words, monkeypatch, capsys):
    from minicpmv_ref import MiniCPMV, Processor
    from minicpmv_ref.deploy import llamacpp

    monkeypatch.setattr(llamacpp, "missing", lambda: None)
    for kind in (MiniCPMV, Processor):
        monkeypatch.setattr(kind, "from_pretrained", lambda *args: pytest.fail("a model was loaded"))
    argv, option = words.split(), words.split()[-1]
    for value in IMPOSSIBLE[words]:
        assert main([*argv[:-1], f"{option}={value}"]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {option}") and err.count("\n") == 1, (value, err)


def test_every_number_has_a_range():
    """A new option must say which numbers it can work with."""
    numbers = [
        (command, action) for command, _ in COMMANDS for action in takes_a_value(command) if action.type in (int, float)
    ]
    assert len(numbers) > 15
    for command, action in numbers:
        _, least, most = command_parser(command).get_default("ranges")[action.dest]
        assert least <= most < math.inf, (command, action.dest)
        assert action.default is None or least <= action.default <= most


@pytest.mark.parametrize("argv", [[], ["--no-browser"], ["course", "--no-browser", "--port", "9999"]])
def test_course_is_the_default(monkeypatch, argv):
    seen = []
    monkeypatch.setattr(course, "run", lambda args: seen.append((args.no_browser, args.port)))
    assert main(argv) == 0
    assert seen == [("--no-browser" in argv, 9999 if "9999" in argv else None)]


def lesson(path, *sources, output="1"):
    """A notebook whose cells have run, as the originals are saved."""
    printed = nbformat.v4.new_output("stream", text=output)
    cells = [nbformat.v4.new_code_cell(source, execution_count=1, outputs=[printed]) for source in sources]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A lesson"), *cells]), path)


@pytest.fixture
def opened(copy, monkeypatch):
    """A root with two lessons, and what `course` asks JupyterLab for."""
    lesson(copy / "notebooks" / "00_start.ipynb", "1 + 1")
    lesson(copy / "notebooks" / "07b_next.ipynb", "2 + 2")
    asked, server = [], SimpleNamespace(port=8899, start=lambda: asked[-1].append("started"))
    monkeypatch.setattr("jupyterlab.labapp.LabApp.initialize_server", lambda argv: asked.append(argv) or server)
    return asked


def sources(path):
    return [cell.source for cell in nbformat.read(path, 4).cells]


def test_you_work_in_copies_that_are_made_once(copy, opened, capsys):
    mine, original = copy / "my_notebooks", copy / "notebooks"
    before = [path.read_bytes() for path in sorted(original.iterdir())]
    assert main([]) == 0
    # The port is the one that the server got: somebody else may have started at the same moment.
    assert "http://127.0.0.1:8899/lab/tree/my_notebooks/00_start.ipynb?token=" in capsys.readouterr().out
    assert "--ServerApp.port_retries=50" in opened[0] and opened[0][-1] == "started"
    assert "--LabApp.default_url=/lab/tree/my_notebooks/00_start.ipynb" in opened[0]
    assert sorted(path.name for path in mine.iterdir()) == ["00_start.ipynb", "07b_next.ipynb"]
    assert sources(mine / "00_start.ipynb") == sources(original / "00_start.ipynb")
    assert all(
        not cell.outputs and cell.execution_count is None
        for cell in nbformat.read(mine / "00_start.ipynb", 4).cells[1:]
    )

    changed = nbformat.read(mine / "00_start.ipynb", 4)
    changed.cells[1].source = "my answer"
    nbformat.write(changed, mine / "00_start.ipynb")
    kept = (mine / "00_start.ipynb").read_bytes()
    (mine / "07b_next.ipynb").unlink()
    assert main(["--no-browser"]) == 0
    assert (mine / "00_start.ipynb").read_bytes() == kept and (mine / "07b_next.ipynb").exists()
    assert "Newer" not in capsys.readouterr().out
    assert before == [path.read_bytes() for path in sorted(original.iterdir())]


def test_a_newer_lesson_replaces_only_what_you_did_not_change(copy, opened, capsys):
    mine, original = copy / "my_notebooks", copy / "notebooks"
    main([])
    for name, source in (("00_start", "my answer"), ("07b_next", "2 + 2")):  # the second was only run
        notebook = nbformat.read(mine / f"{name}.ipynb", 4)
        notebook.cells[1].update(source=source, execution_count=3, outputs=[nbformat.v4.new_output("stream", text="4")])
        nbformat.write(notebook, mine / f"{name}.ipynb")
    lesson(original / "00_start.ipynb", "1 + 1", output="other outputs are no change")
    capsys.readouterr()
    main([])
    assert "Newer" not in capsys.readouterr().out
    for name in ("00_start", "07b_next"):
        lesson(original / f"{name}.ipynb", "3 + 3")
    main([])
    assert capsys.readouterr().out.splitlines()[0] == (
        "Newer than your copy: 00. `python3 lab.py reset 00` takes the new lesson and keeps your file beside it."
    )
    assert sources(mine / "00_start.ipynb")[1] == "my answer"
    assert sources(mine / "07b_next.ipynb")[1] == "3 + 3"


def test_reset_keeps_every_old_file(copy, opened, capsys):
    mine = copy / "my_notebooks"
    assert main(["reset", "00"]) == 0  # before any `course`, too
    for number in (1, 2):
        (mine / "00_start.ipynb").write_text(f"attempt {number}")  # what JupyterLab cannot open, either
        assert main(["reset", "00"]) == 0
        assert f"Your file is now my_notebooks/00_start.old{number}.ipynb." in capsys.readouterr().out
    assert [(mine / f"00_start.old{number}.ipynb").read_text() for number in (1, 2)] == ["attempt 1", "attempt 2"]
    assert sources(mine / "00_start.ipynb")[1] == "1 + 1"
    for wrong in ("7b", "00_start", "../notebooks/00"):
        assert main(["reset", wrong]) == 1
        assert "choose one of 00, 07b" in capsys.readouterr().err


def test_a_damaged_copy_is_named(copy, opened, capsys):
    main([])
    (copy / "my_notebooks" / "07b_next.ipynb").write_bytes(b"")  # the disk was full
    capsys.readouterr()
    main([])
    assert capsys.readouterr().out.startswith(
        "Your copy is damaged: 07b. `python3 lab.py reset 07b` takes the new lesson"
    )
    assert (copy / "my_notebooks" / "07b_next.ipynb").read_bytes() == b""


@pytest.mark.parametrize("known_by", ["git", "a bundle"])
def test_who_saves_in_the_lesson_itself_is_told(known_by, copy, opened, capsys):
    git = ["git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a"]
    if known_by == "git":
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
            subprocess.run([*git, *words], check=True)
    else:
        (copy / "SHA256SUMS").write_text(bundle.checksums(copy) + "0  wheels/large.whl\n")
    (copy / "minicpmv_ref" / "model.py").chmod(0o755)  # as sticks do
    assert common.changed_files() == {}
    main([])
    main(["reset", "00"])
    assert "not as it came" not in capsys.readouterr().out
    lesson(copy / "notebooks" / "00_start.ipynb", "my answer")
    (copy / "minicpmv_ref" / "model.py").unlink()
    assert common.changed_files() == {"minicpmv_ref/model.py": False, "notebooks/00_start.ipynb": True}
    for words in ([], ["reset", "00"]):
        main(words)
        assert (
            "notebooks/00_start.ipynb is not as it came: somebody saved in the lesson itself" in capsys.readouterr().out
        )
    main(["reset", "07b"])
    assert "not as it came" not in capsys.readouterr().out
    (copy / "notebooks" / "07b_next.ipynb").unlink()
    for words in ([], ["reset", "07b"]):
        main(words)
        assert "notebooks/07b_next.ipynb is not as it came: it is missing" in capsys.readouterr().out


def test_two_files_of_one_lesson_are_not_guessed_between(copy, opened, capsys):
    lesson(copy / "notebooks" / "00_start_mine.ipynb", "1 + 1")
    for words in ([], ["reset", "00"], ["handout", "student"], ["progress"]):
        assert main(words) == 1
        assert "00_start.ipynb and 00_start_mine.ipynb in " in capsys.readouterr().err


def test_a_course_that_somebody_else_installed(copy, opened, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copy / "my_notebooks")
    assert main([]) == 0
    assert main([]) == 1
    assert f"you may not write in {copy / 'my_notebooks'}" in capsys.readouterr().err


def test_the_chinese_copy_stands_beside_the_english_one(copy, opened, capsys):
    mine, original = copy / "my_notebooks", copy / "notebooks"
    start = nbformat.read(original / "00_start.ipynb", 4)
    start.cells[0].source = "Next: [07b](07b_next.ipynb), and [00](00_start.ipynb#x)"
    start.cells.append(nbformat.v4.new_markdown_cell("Not translated, see [00](00_start.ipynb)"))
    nbformat.write(start, original / "00_start.ipynb")
    (original / "zh").mkdir()
    texts = original / "zh" / "00.md"
    chinese = "下一课：[07b](07b_next.ipynb) 和 [00](00_start.ipynb#x)"
    texts.write_text(f"译自\n\n<!-- cell {fingerprint(start.cells[0].source)} -->\n{chinese}\n", encoding="utf-8")
    assert main(["--language", "zh"]) == 0
    assert "/lab/tree/my_notebooks/00_start.zh.ipynb?token=" in capsys.readouterr().out
    assert sorted(path.name for path in mine.iterdir()) == ["00_start.ipynb", "00_start.zh.ipynb", "07b_next.ipynb"]
    assert sources(mine / "00_start.ipynb") == [cell.source for cell in start.cells]
    seen = ["下一课：[07b](07b_next.ipynb) 和 [00](00_start.zh.ipynb#x)", "1 + 1"]
    seen += ["Not translated, see [00](00_start.zh.ipynb)"]
    assert sources(mine / "00_start.zh.ipynb") == seen

    for name in ("00_start", "00_start.zh"):
        notebook = nbformat.read(mine / f"{name}.ipynb", 4)
        notebook.cells[1].source = f"my answer in {name}"
        nbformat.write(notebook, mine / f"{name}.ipynb")
    texts.write_text(texts.read_text(encoding="utf-8").replace("下一课", "下一节课"), encoding="utf-8")
    main([])
    assert "Newer" not in capsys.readouterr().out, "only the Chinese text is newer"
    main(["course", "--language", "zh"])
    assert "`python3 lab.py reset 00 --language zh` takes the new lesson" in capsys.readouterr().out
    assert main(["reset", "00", "--language", "zh"]) == 0
    assert "Your file is now my_notebooks/00_start.zh.old1.ipynb." in capsys.readouterr().out
    assert sources(mine / "00_start.zh.ipynb")[0].startswith("下一节课")
    assert sources(mine / "00_start.ipynb")[1] == "my answer in 00_start"
    texts.write_bytes(b"\xff")
    assert main(["--language", "zh"]) == 1
    assert "00.md cannot be read" in capsys.readouterr().err


def test_what_cannot_be_copied_is_one_clear_error(copy, opened, capsys):
    (copy / "my_notebooks").write_text("a file, not a folder")
    assert main([]) == 1
    assert "my_notebooks" in capsys.readouterr().err
    (copy / "my_notebooks").unlink()
    conflict = (copy / "notebooks" / "00_start.ipynb").read_text().replace("{", "<<<<<<< HEAD\n{", 1)
    (copy / "notebooks" / "00_start.ipynb").write_text(conflict)
    assert main([]) == 1
    assert "00_start.ipynb is not a notebook that can be read" in capsys.readouterr().err


def test_links_and_paths_of_a_copy_lead_where_those_of_the_lesson_do():
    assert course.COPIES.parent == common.notebooks_folder().parent
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{course.COPIES}/x"], cwd=ROOT)
    assert ignored.returncode in (0, 128), "git must not see the copies"  # 128: no repository here


@pytest.fixture
def parts(copy, monkeypatch):
    """The parts that `test` would run, in a copy with two notebooks."""
    (copy / "notebooks" / "00_start.ipynb").touch()
    (copy / "notebooks" / "01_next.ipynb").touch()
    seen = []
    monkeypatch.setattr(test_command, "run_parts", lambda parts: seen.extend(parts) or 0)
    return seen


def test_the_whole_check(parts):
    assert main(["test"]) == 0
    assert [name for name, _, _ in parts] == ["lint", "format", "tests", "coverage", "nbval 00_start", "nbval 01_next"]
    assert all(left_out is None for _, _, left_out in parts)
    command = {name: words for name, words, _ in parts}
    assert "--fail-under=95" in command["coverage"]
    assert "--cov=minicpmv_ref" in command["tests"] and "--fast" not in command["tests"]
    assert f"--include={Path('minicpmv_ref', 'model.py')}" in command["coverage"]
    assert {"--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"} < set(command["nbval 01_next"])
    assert sum(word.startswith("--nbval-sanitize-with=") for word in command["nbval 01_next"]) == 1


def test_the_fast_check(parts):
    assert main(["test", "--fast"]) == 0
    left_out = [name for name, _, reason in parts if reason == "--fast"]
    assert left_out == ["coverage", "nbval 00_start", "nbval 01_next"]
    assert {"--fast", "--dist=loadfile"} < set(parts[2][1])
    assert not any(word.startswith("--cov") for word in parts[2][1])


def test_chosen_tests(parts):
    assert main(["test", "--", "-k", "slicing", "--", "-x"]) == 0
    assert {name: reason for name, _, reason in parts if reason} == {"coverage": "you chose the tests"}
    assert parts[2][1][-4:] == ["-k", "slicing", "--", "-x"]
    assert not any(word.startswith("--numprocesses") for word in parts[2][1])  # the debugger works


def test_every_part_runs_and_the_summary_counts(tmp_path, monkeypatch, capfd):
    (tmp_path / "good.py").write_text("import minicpmv_ref\nprint('good ran')")
    bad = "import os, sys, tempfile\nprint('bad ran in', os.getcwd(), tempfile.mkdtemp())\nsys.exit(3)"
    (tmp_path / "bad.py").write_text(bad)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    three = [("first", ["bad", "--nbval"], None), ("second", ["good"], None), ("third", ["bad"], "--fast")]
    assert test_command.run_parts(three) == 1
    out = capfd.readouterr().out
    assert f"bad ran in {ROOT}" in out
    left = re.search(r"bad ran in \S+ (.*minicpmv-ref-.*)", out)[1]
    assert not Path(left).exists(), "what a killed kernel leaves"
    assert out.index("bad ran") < out.index("good ran") < out.index("==== summary")
    assert [line.split(" s  ")[-1] for line in out.splitlines()[-4:]] == [
        "FAILED (exit code 3)",
        "ok",
        "left out (--fast)",
        "something FAILED",
    ]
    assert test_command.run_parts([("second", ["good"], None)]) == 0
    assert capfd.readouterr().out.endswith("all passed\n")


def test_small_messages_of_a_kernel_do_not_wait(opened, monkeypatch):
    assert main([]) == 0
    (name,) = (words for words in opened[0] if words.startswith("--ServerApp.kernel_websocket_connection_class="))
    kind, delays = import_item(name.partition("=")[2]), []
    monkeypatch.setattr(kind.__mro__[1], "connect", lambda self: "connected")
    connection, handler = kind.__new__(kind), object.__new__(KernelWebsocketHandler)
    handler.set_nodelay, connection.websocket_handler = delays.append, handler
    assert (connection.connect(), delays) == ("connected", [True])


async def printed_by_a_kernel(base, token, code, padding):
    """What a kernel in my_notebooks prints, asked in a message with so many bytes of padding."""
    body = json.dumps(
        {"path": "my_notebooks/00_start.ipynb", "kernel": {"name": "python3"}, "type": "notebook", "name": ""}
    )
    session = urllib.request.Request(f"{base}/api/sessions?token={token}", body.encode(), method="POST")
    with urllib.request.urlopen(session, timeout=60) as answer:
        kernel = json.load(answer)["kernel"]["id"]
    address = f"{base.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={token}"
    socket = await websocket_connect(address, max_message_size=2**28)
    header = {"msg_id": "1", "msg_type": "execute_request", "session": "1", "username": "", "version": "5.3"}
    content = {"code": code, "silent": False, "allow_stdin": False}
    await socket.write_message(
        json.dumps(
            {
                "channel": "shell",
                "header": header,
                "parent_header": {},
                "metadata": {"x": "x" * padding},
                "content": content,
            }
        )
    )
    text = None
    while (message := await asyncio.wait_for(socket.read_message(), 60)) is not None:
        message = json.loads(message)
        if message["header"]["msg_type"] == "stream":
            text = message["content"]["text"]
        if message["content"].get("execution_state") == "idle" and message["parent_header"].get("msg_id") == "1":
            break
    end = urllib.request.Request(f"{base}/api/kernels/{kernel}?token={token}", method="DELETE")
    urllib.request.urlopen(end, timeout=60).close()
    return text


def test_the_course_server(tmp_path):
    """The real thing: it starts from any folder, answers with the token only, and stops on Ctrl-C.

    A kernel works in the folder of the copies, takes a picture of 11 MB, and writes nothing into the terminal.
    """
    root = tmp_path / "a copy"
    shutil.copytree(ROOT / "minicpmv_ref", root / "minicpmv_ref", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), root / "notebooks" / "00_start.ipynb")
    own = ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")
    process = subprocess.Popen(
        [sys.executable, "-m", "minicpmv_ref", "course", "--no-browser"],
        cwd=tmp_path,
        env={**os.environ, **{name: str(tmp_path / name) for name in own}, "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    alarm = threading.Timer(120, process.kill)
    alarm.start()
    try:
        assert process.stdout.readline() == "The course is at\n"
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        assert "/lab/tree/my_notebooks/00_start.ipynb?token=" in url
        page, token = url.split("?token=")
        base = page.split("/lab/")[0]
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{base}/api", timeout=10).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"jupyter-config-data" in answer.read()
        setting = f"{base}/lab/api/settings/@jupyterlab/apputils-extension:notification?token={token}"
        with urllib.request.urlopen(setting, timeout=60) as answer:
            assert json.load(answer)["schema"]["properties"]["fetchNews"]["default"] == "false"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{base}/api/contents?token=wrong", timeout=60)
        code = "import sys; sys.path.insert(0, '..'); import minicpmv_ref, os; print(minicpmv_ref.__file__)"
        printed = asyncio.run(printed_by_a_kernel(base, token, code, padding=11_000_000)).strip()
        assert Path(printed) == root / "my_notebooks" / ".." / "minicpmv_ref" / "__init__.py"
    finally:
        # A job in a shell's background ignores Ctrl-C, and so do its children.
        deaf = os.name != "posix" or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        process.send_signal(signal.SIGTERM if deaf else signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        alarm.cancel()
    assert rest.strip() == "" or (deaf and rest.endswith("received signal 15, stopping\n"))
