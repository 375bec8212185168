"""Completion codes and guesses: what learners see and send, and what a teacher reads out of it."""

import json

import pytest
from places import ROOT

from minicpmv_ref.__main__ import main
from minicpmv_ref.commands.progress import exercises
from minicpmv_ref.course import check, draw, progress


def right_tokens(grid, num_queries):
    return (1 + (grid[0] * grid[1] if grid else 0)) * num_queries


def not_yet(grid, num_queries):
    raise NotImplementedError


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A kernel that runs in the folder of the copies; nobody has said a name."""
    folder = tmp_path / "my_notebooks"
    folder.mkdir()
    monkeypatch.setattr(progress, "FILE", folder / "progress.json")
    monkeypatch.setattr(progress, "_here", {})
    monkeypatch.chdir(folder)
    return folder


def said(capsys, *words):
    assert main(["progress", *words]) == 0
    return capsys.readouterr().out


def test_a_solved_exercise_prints_its_code_and_others_do_not_change(copies, capsys):
    check.visual_tokens(right_tokens)
    assert capsys.readouterr().out == "correct\n"
    check.learner(" Ada  Lovelace")
    assert "Hello, Ada Lovelace." in capsys.readouterr().out
    check.visual_tokens(not_yet)
    assert capsys.readouterr().out.startswith("not attempted yet\ntested: ")
    check.visual_tokens(lambda grid, num_queries: 64)
    assert capsys.readouterr().out == "<lambda>((2, 1), 64) gave 64, expected 192.\n"
    check.visual_tokens(right_tokens)
    line = f"Ada Lovelace: {progress.code('visual_tokens', 'ada lovelace')}"
    assert capsys.readouterr().out == f"correct\n{line}\n"
    progress._here.clear()  # a new kernel: the name is in the file
    check.visual_tokens(right_tokens)
    assert line in capsys.readouterr().out
    assert progress.collect(line) == ({"Ada Lovelace": {"visual_tokens"}}, {}, [])


def test_elsewhere_nothing_is_written(copies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check.visual_tokens(right_tokens)
    draw.guess(128, 192, "tokens")
    check.learner("Ada")
    check.visual_tokens(right_tokens)
    assert capsys.readouterr().out.endswith(f"correct\nAda: {progress.code('visual_tokens', 'Ada')}\n")
    assert not progress.FILE.exists()


def test_the_table_of_one_learner(copies, capsys):
    assert "You: 0 of " in said(capsys)
    check.visual_tokens(right_tokens)
    draw.guess(128, 192, "tokens of 449 x 448")
    draw.guess({"b": 2}, {"a": 1, "b": 2.5}, "which?")
    out = said(capsys)
    assert "01 slicing" + 19 * " " + "■□□□   open: boxes shrink is_right" in out
    assert "progress --name" in out and "?" not in out.splitlines()[-2]
    out = said(capsys, "--name", "Ada")
    lines = out.split("For your teacher:\n")[1].splitlines()
    code = progress.code("visual_tokens", "Ada")
    assert lines == [f"Ada: {code}", "Ada? tokens of 449 x 448 | 128 | 192", "Ada? which?: b | 2 | 2.5"]


def test_the_table_of_a_class(copies, tmp_path, capsys):
    ada = " ".join(progress.code(name, "Ada") for name in ("visual_tokens", "boxes"))
    sent = [
        "Hello, here are mine:",
        f"Ada: {ada}",
        f"  ada: {progress.code('spread', 'ADA')}",  # the same person, later
        f"Ben: {progress.code('boxes', 'Ben')}, {progress.code('boxes', 'Ada')}",
        "Ada? tokens of 449 x 448 | 128 | 192",
        "Ben? tokens of 449 x 448 | 192 | 192",
    ]
    file = tmp_path / "codes.txt"
    file.write_text("\n".join(sent), encoding="utf-8")
    out = said(capsys, "--collect", str(file))
    assert f"does not fit: {progress.code('boxes', 'Ada')} is not the code of Ben" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("Ada", "Ben"))}
    assert rows["Ada"][:4] == [".", "2/4", ".", "1/4"] and rows["Ada"][-1] == "3"
    assert rows["Ben"][:4] == [".", "1/4", ".", "."] and rows["Ben"][-1] == "1"
    assert "visual_tokens 1, boxes 2, shrink 0, is_right 0" in out
    assert "tokens of 449 x 448: 2 guesses\n         128  █ 1\n         192  █ 1  <- the truth\n" in out


@pytest.mark.parametrize("name", ["", "  ", "a: b", "why?", "a|b", "x" * 41, "a\x1b[2J", 7, None])
def test_names_that_codes_cannot_hold(name, copies):
    with pytest.raises(ValueError, match="a name has 1 to 40 characters"):
        check.learner(name)
    assert not progress.FILE.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"solved": 3}', '{"guesses": [1]}', '{"name": 5, "solved": ["a"]}'])
def test_a_damaged_file_is_named_and_stops_no_lesson(text, copies, capsys):
    progress.FILE.write_text(text)
    check.visual_tokens(right_tokens)
    draw.guess(1, 2, "which?")
    assert capsys.readouterr().out.startswith(f"correct\n(not noted: {progress.FILE} is damaged")
    assert main(["progress"]) == 1
    assert "delete it" in capsys.readouterr().err
    assert progress.FILE.read_text() == text


def test_files_without_codes(copies, capsys):
    (copies / "codes.txt").write_text("dear teacher\n")
    for name, words in (("codes.txt", "has no codes"), ("none.txt", "is no text file"), (".", "is no text file")):
        assert main(["progress", "--collect", name]) == 1
        assert words in capsys.readouterr().err


def test_every_exercise_is_in_the_table():
    listed = [name for names in exercises(ROOT / "notebooks").values() for name in names]
    assert sorted(listed) == sorted(check.EXERCISES)


def test_the_guesses_of_a_class():
    canvas = draw.guess([64, 128, 128, 96.5], 192, "tokens")
    assert canvas.words == "truth 192, guessed by 0 of 4; guesses: 64 by 1, 96.5 by 1, 128 by 2"
    widths = [shape[2] for kind, shape, _ in canvas.shapes if kind == "rect"]
    assert len(widths) == 4 and widths[2] == 2 * widths[0] and widths[3] == 2
    many = draw.guess(list(range(30)) * 2 + [5], 100, "many")
    assert sum(kind == "rect" for kind, _, _ in many.shapes) == 11
    for bad in ([], ["a"], [None]):
        with pytest.raises(ValueError, match="must be numbers"):
            draw.guess(bad, 3)
    with pytest.raises(ValueError, match="one number"):
        draw.guess([1], {"a": 1})


def test_the_file_is_readable_by_people(copies):
    check.learner("Zoë 李")
    check.visual_tokens(right_tokens)
    assert json.loads(progress.FILE.read_text(encoding="utf-8")) == {"name": "Zoë 李", "solved": ["visual_tokens"]}
    assert "李" in progress.FILE.read_text(encoding="utf-8")
