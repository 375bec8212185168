"""The checks at the door, and files from strangers."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minicpmv_ref.inputs.checks import (
    check_choice,
    check_int,
    check_list,
    check_number,
    check_type,
    printable,
    quoted,
    shown,
)
from minicpmv_ref.inputs.files import only_one, parse_json, plain_file, read_json, replacing

WORDS = [
    "/course",
    "C:\\course",
    "/my course",
    "$HOME",
    "a$(echo b)",
    "a`echo b`",
    "it's",
    '"',
    "a|b",
    "a>b",
    "~",
    "!!",
    "*",
    "",
    "李",
]


@pytest.mark.skipif(os.name != "posix", reason="asks a shell of POSIX")
@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_a_quoted_word_as_it_is(word):
    assert subprocess.check_output(["sh", "-c", f"printf %s {quoted(word)}"], text=True, encoding="utf-8") == word


def test_usual_words_stay_as_they_are_and_windows_has_double_quotes(monkeypatch):
    assert quoted("/course/.venv/bin/python3.11") == "/course/.venv/bin/python3.11"
    monkeypatch.setattr("minicpmv_ref.inputs.checks.os", SimpleNamespace(name="nt"))
    assert quoted("C:\\course\\python.exe") == "C:\\course\\python.exe"
    assert quoted("C:\\my course\\python.exe") == '"C:\\my course\\python.exe"'


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value):
    assert check_int("n", value) == 3 and type(check_int("n", value)) is int


@pytest.mark.parametrize("value", [True, 3.0, "3", None, [3], math.nan])
def test_no_whole_numbers(value):
    with pytest.raises(TypeError, match=r"^n must be an integer of at least 1, got "):
        check_int("n", value)


@pytest.mark.parametrize("value", [0, -1, 11, 10**4000])
def test_whole_numbers_out_of_range(value):
    with pytest.raises(ValueError, match=r"^n must be an integer of at least 1 and at most 10, got ") as caught:
        check_int("n", value, most=10)
    assert not isinstance(caught.value, TypeError) and len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, 2.5, 10**400])
def test_numbers_out_of_range(value):
    with pytest.raises(ValueError, match=r"^x must be a finite number above 0 and at most 2, got "):
        check_number("x", value, above=0, most=2)
    assert check_number("x", np.float32(0.5), above=0, most=2) == 0.5
    with pytest.raises(TypeError, match=r"^x must be a number"):
        check_number("x", "0.5", above=0, most=2)


def test_types_choices_and_lists():
    assert check_type("a", "x", str, int) == "x" and check_choice("v", "b", "abc") == "b"
    with pytest.raises(TypeError, match=r"^a must be str or int, got NoneType: None$"):
        check_type("a", None, str, int)
    for value in ("d", None, [], 1):
        with pytest.raises(ValueError, match=r"^v must be one of a, b, got "):
            check_choice("v", value, ("a", "b"))
    given = [1, 2]
    assert check_list("l", given, int) == given and check_list("l", given) is not given
    with pytest.raises(TypeError, match=r"^l\[1\] must be int, got str: 'x'$"):
        check_list("l", [1, "x"], int)
    with pytest.raises(TypeError, match="must be a list, got str"):
        check_list("l", "abc", str)
    with pytest.raises(ValueError, match="at least one item"):
        check_list("l", [], empty=False)


def test_what_is_shown_is_short_and_harmless():
    loop = []
    loop.append(loop)
    for value in ("\x1b]0;x\x07" * 99, b"\x00" * 10**6, 10**5000, loop, "\u202egpj", object()):
        text = shown(value)
        assert len(text) <= 80 and text.isprintable()
    assert printable("a\x1b\u202eb\n") == "a\ufffd\ufffdb\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ('{"a": NaN}', "'a' is nan, which is no number"),
        ('{"a": -Infinity}', "'a' is -inf, which is no number"),
        ('{"a": {"b": [1, [1e999]]}}', "'b' is inf, which is no number"),
        ("[NaN]", "the list' is nan"),
        ("[" * 100_000, "inside each other"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
        ("{'a': 1}", "double quotes"),
    ],
)
def test_json_that_is_none(text, what, tmp_path):
    with pytest.raises(ValueError, match=what):
        parse_json(text)
    file = tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(file)


def test_json_of_other_kinds(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("\ufeff" + json.dumps({"ä": [1, 2.5, None]}), encoding="utf-8")
    assert read_json(file) == {"ä": [1, 2.5, None]}
    with pytest.raises(ValueError, match="at most 5 are read"):
        read_json(file, most=5)
    file.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_json(file)
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
    with pytest.raises(ValueError, match="null"):
        plain_file("a\0b")


@pytest.mark.skipif(os.name != "posix", reason="no pipes or devices in folders here")
def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="not a plain file"):
            read_json(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="no umask here")
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_get_the_mode_that_the_user_wants(tmp_path, mask, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)  # /tmp itself, for example
    path, before = tmp_path / "open" / "a.txt", os.umask(mask)
    try:
        with replacing(path) as (draft,):
            draft.write_text("x")
            draft.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_drafts_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left, alive = tmp_path / f".a.txt.{dead.stdout.strip()}.part", tmp_path / f".a.txt.{os.getppid()}.part"
    other = tmp_path / f".ba.txt.{dead.stdout.strip()}.part"  # the draft of another file
    for draft in (left, alive, other):
        draft.write_text("half")
    with replacing(tmp_path / "a.txt") as (draft,):
        draft.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.txt", alive.name, other.name])


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path, tmp_path / "b.txt") as (draft, _):
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_lock_is_held_by_one(tmp_path):
    file = tmp_path / ".lock"
    with (
        only_one(file, "somebody else writes"),
        pytest.raises(OSError, match="somebody else writes"),
        only_one(file, "somebody else writes"),
    ):
        pass
    with only_one(file, "nobody"):  # it was let go
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_lock_ends_with_its_process_and_not_with_its_workers(tmp_path):
    file = tmp_path / ".lock"
    with only_one(file, "a training"):
        worker = subprocess.Popen([sys.executable, "-c", FORKED, file], stdout=subprocess.PIPE, text=True)
        assert worker.stdout.readline() == "refused\n"
    assert not file.exists()
    worker = subprocess.Popen([sys.executable, "-c", FORKED, file], stdout=subprocess.PIPE, text=True)
    child = int(worker.stdout.readline())
    with pytest.raises(OSError, match="somebody"), only_one(file, "somebody"):
        pass
    worker.kill()
    worker.wait()
    try:
        with only_one(file, "nobody"):
            os.kill(child, 0)  # it is still alive
    finally:
        os.kill(child, 9)
        worker.stdout.close()


FORKED = """
import os, sys, time
from pathlib import Path
from minicpmv_ref.inputs.files import only_one
try:
    with only_one(Path(sys.argv[1]), "x"):
        if not os.fork():
            print(os.getpid(), flush=True)  # by now the child has let go
        time.sleep(60)
except BlockingIOError:
    print("refused", flush=True)
"""
