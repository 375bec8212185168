"""Files of one object a line: cut anywhere, damaged, and what must not be written."""

import math
import os

import pytest

from minicpmv_ref.inputs.jsonl import append_jsonl, read_jsonl

ENTRIES = [{"key": "a", "answers": ["é", "红色"]}, {"key": "b", "n": 2}, {"key": "c"}]


def test_a_file_that_is_cut_anywhere_goes_on(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, ENTRIES[:2])
    append_jsonl(path, ENTRIES[2:])
    complete = path.read_bytes()
    assert read_jsonl(path) == ENTRIES
    ends = [i + 1 for i, byte in enumerate(complete) if byte == 10]
    for cut in range(len(complete) + 1):
        path.write_bytes(complete[:cut])
        kept = sum(end <= cut for end in ends)
        assert read_jsonl(path) == ENTRIES[:kept]
        append_jsonl(path, ENTRIES[kept:])
        assert path.read_bytes() == complete


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b.replace(b'"n": 2', b'"n": '), "line 2: not JSON"),
        (lambda b: b.replace(b'{"key": "c"}', b"[1]"), "line 3: a JSON object is expected"),
        (lambda b: b"\xff" + b, "line 1: not JSON"),
        (lambda b: b"\n" + b, "line 1: not JSON"),
    ],
)
def test_damage_elsewhere_is_an_error(tmp_path, damage, message):
    path = tmp_path / "answers.jsonl"
    append_jsonl(path, ENTRIES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_jsonl(path)


def test_an_entry_that_is_not_json_is_not_written(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_jsonl(path, ENTRIES)
    for bad in ({"score": math.nan}, {"score": math.inf}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            append_jsonl(path, [{"key": "fine"}, bad])
    assert read_jsonl(path) == ENTRIES


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"image": object()}, "not JSON serializable"),
        ({1: "a", "1": "b"}, "stands twice"),
        ({(1, 2): "a"}, "keys must be str"),
        ({"text": "\ud800"}, "surrogates not allowed"),
        ({"text": math.nan}, "not JSON compliant"),
    ],
)
def test_an_entry_that_would_not_come_back_is_not_written(tmp_path, bad, reason):
    path = tmp_path / "answers.jsonl"
    append_jsonl(path, ENTRIES)
    with pytest.raises(ValueError, match=rf"entries\[1\] is not JSON: .*{reason}"):
        append_jsonl(path, [{"key": "fine"}, bad])
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(ValueError, match=r"entries\[0\] is not JSON"):
        append_jsonl(path, [deep])
    with pytest.raises(TypeError, match=r"entries\[0\] must be dict"):
        append_jsonl(path, ["text"])
    assert read_jsonl(path) == ENTRIES


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "inside each other"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b'{"a": NaN}', "no number in JSON"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'["\\u001b[2J"]', "a JSON object is expected"),
    ],
)
def test_lines_that_are_no_entries(tmp_path, line, reason):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"line 2: .*{reason}") as refusal:
        read_jsonl(path)
    assert len(str(refusal.value)) < 1000 and "\x1b" not in str(refusal.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_and_a_folder_are_no_entries(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError):
            read_jsonl(path)
        with pytest.raises(OSError):
            append_jsonl(path, [{"a": 1}])


@pytest.mark.parametrize("call", [lambda: read_jsonl(3), lambda: append_jsonl(None, [])])
def test_what_is_no_path_is_named(call):
    with pytest.raises(TypeError, match=r"^path must be"):
        call()
