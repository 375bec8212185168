"""Every command with odd options and paths: one clear line and no traceback, before a model is loaded."""

import json
import random
import shutil
import zlib
from pathlib import Path

import pytest
from command_options import takes_a_value
from doors import time_limit
from places import ROOT

from minicpmv_ref.__main__ import COMMANDS, build_parser, main
from minicpmv_ref.deploy import llamacpp

PICTURE, RECORDS = str(ROOT / "data_samples/images/shapes.png"), "records.json"
SOUND = {  # a command line for each command, with OUT in place of an empty folder; None: patched below
    "course": ["course", "--no-browser", "--port", "8888"],
    "reset": ["reset", "03"],
    "check": ["check"],
    "bundle": ["bundle", "OUT"],
    "handout": ["handout", "student"],
    "slides": ["slides", "01", "--out", "OUT", "--no-browser"],
    "site": ["site", "OUT"],
    "progress": ["progress", "--name", "Ada"],
    "ask": ["ask", PICTURE, "What?", "--model", "nano"],
    "train": ["train", "--data", RECORDS, "--from", "nano", "--out", "OUT", "--held-out", RECORDS],
    "records": ["records", RECORDS, "--quick"],
    "shards": ["shards", RECORDS, "--out", "OUT"],
    "dpo": ["dpo", "--folder", "OUT"],
    "experiment": ["experiment", "slicing"],
    "export": ["export", "nano", "OUT"],
    "phone": ["phone", PICTURE, "What?"],
    "compare": ["compare", "make", "OUT"],
    "test": ["test"],
}
NUMBERS = ("-1", "0", "nan", "inf", "1e-40", "1e400", "9" * 25, "", "x", "0x10", "1_0", "\u0663", "2.5")
TEXTS = (
    "",
    "\0",
    "no/such",
    "x" * 5000,
    "a\x1b[2J\u202e",
    "\udcff",
    "/dev/zero",
    ".",
    RECORDS,
    "nano",
    "-",
    "<|im_end|>",
)


class Reached(Exception):
    """The command would begin its work."""


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch, tmp_path):
    import experiments._frame
    import minicpmv_ref.commands.bundle
    import minicpmv_ref.commands.test
    from minicpmv_ref import MiniCPMV

    def reach(*_, **__):
        raise Reached

    monkeypatch.setattr(MiniCPMV, "from_pretrained", reach)
    monkeypatch.setattr(experiments._frame, "run", reach)
    monkeypatch.setattr(minicpmv_ref.commands.bundle, "look_up", reach)
    monkeypatch.setattr("minicpmv_ref.commands.slides.libraries", reach)
    monkeypatch.setattr("minicpmv_ref.commands.site.needed", reach)
    monkeypatch.setattr(minicpmv_ref.commands.test, "run_parts", reach)
    monkeypatch.setattr("minicpmv_ref.course.progress.FILE", tmp_path / "copies" / "progress.json")
    for command in ("course", "reset"):
        monkeypatch.setattr(f"minicpmv_ref.commands.{command}.COPIES", tmp_path / "copies")
    monkeypatch.setattr("minicpmv_ref.commands.handout.ROOT", tmp_path)
    monkeypatch.setattr("jupyterlab.labapp.LabApp.initialize_server", reach)
    monkeypatch.chdir(tmp_path)
    all_records = json.loads((ROOT / "data_samples/records/train.json").read_text("utf-8"))
    few = [{**entry, "image": "a.png"} for entry in all_records[:2]]
    shutil.copy(PICTURE, "a.png")
    Path(RECORDS).write_text(json.dumps(few), encoding="utf-8")


def outcome(argv, capsys) -> str:
    """ "began", "done", or "refused" with one clear error; anything else is an AssertionError."""
    try:
        with time_limit(repr(argv)):
            code = main(argv)
    except Reached:
        return "began"
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        raise AssertionError(f"{argv!r:.300}: {type(error).__name__}: {error}") from error
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "Traceback" not in err
    if code == 0:
        return "done"
    assert (code in (1, 2) and "rror" in out + err) or "skipped" in out, argv  # `records` reports on stdout
    assert len(err) < 6000 and err.count("\n") < 40
    return "refused"


def values_of(command):
    """(option or the place of a positional, whether a number is wanted) of everything that takes a value."""
    for action in takes_a_value(command):
        yield (*action.option_strings, action.dest)[0], action.type in (int, float)


def with_value(command, name, value, out) -> list[str]:
    argv = [str(out) if word == "OUT" else word for word in SOUND[command]]
    if name.startswith("--"):
        if name in argv:
            at = argv.index(name)
            del argv[at : at + 2]
        return [*argv, f"{name}={value}"]
    positional = [action.dest for action in takes_a_value(command) if not action.option_strings]
    argv[1 + positional.index(name)] = value
    return argv


def test_every_command_is_here():
    assert set(SOUND) == {name for name, *_ in COMMANDS}
    for argv in SOUND.values():
        build_parser().parse_args(argv)


WITH_MARKS = [pytest.param(name, marks=[pytest.mark.llamacpp] * (name == "phone")) for name in SOUND]


@pytest.mark.parametrize("command", WITH_MARKS)
def test_odd_values(command, tmp_path, capsys, request):
    if command == "phone" and llamacpp.missing():
        pytest.skip("needs the extra: pip install minicpmv-ref[llamacpp]")
    rng, out = random.Random(zlib.crc32(command.encode())), tmp_path / "out"
    assert outcome([str(out) if word == "OUT" else word for word in SOUND[command]], capsys) != "refused"
    few = 3 if request.config.getoption("--fuzz") is None else 100
    for name, number in values_of(command):
        for value in rng.sample(NUMBERS if number else TEXTS, few) if few < 10 else (NUMBERS if number else TEXTS):
            outcome(with_value(command, name, value, tmp_path / f"out-{rng.random()}"), capsys)


@pytest.mark.parametrize("value", ["1e-40", "nan", "inf", "-1"])
def test_impossible_temperatures_are_refused_before_the_model_is_loaded(value, capsys):
    assert outcome(["ask", PICTURE, "What?", f"--temperature={value}"], capsys) == "refused"


@pytest.mark.parametrize("command", ["ask", "train"])
@pytest.mark.parametrize("value", ["-1", str(2**64), "9" * 30])
def test_impossible_seeds_are_refused_before_the_model_is_loaded(command, value, tmp_path, capsys):
    assert outcome(with_value(command, "--seed", value, tmp_path), capsys) == "refused"


COUNTS = [(command, name) for command in SOUND for name, number in values_of(command) if number]


@pytest.mark.parametrize(("command", "name"), COUNTS)
def test_absurd_numbers_are_refused_before_the_model_is_loaded(command, name, tmp_path, capsys):
    for value in ("-1", "9" * 25, "nan"):
        assert outcome(with_value(command, name, value, tmp_path), capsys) == "refused", value
