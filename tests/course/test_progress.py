"""Completion codes and guesses: what learners see and send, and what a teacher reads out of it."""

import io
import json
import sys
import threading

import pytest
from places import ROOT

from minicpmv_ref.__main__ import main
from minicpmv_ref.commands.progress import collect, exercises
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
    assert collect(line, {"visual_tokens"}) == ({"Ada Lovelace": {"visual_tokens"}}, {}, [])


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
    (copies / "codes.rtf").write_bytes(b"{\\rtf1 Zo\xeb: boxes-AAAA}")
    (copies / "progress.json").write_text("{")
    for name, words in {
        "codes.txt": "no codes were found",
        "none.txt": "not read: none.txt: this is no text file",
        ".": "this is no text file",
        "codes.rtf": "save it as plain text in UTF-8",
        "progress.json": "not read: progress.json: it is damaged",
    }.items():
        assert main(["progress", "--collect", name]) == 1
        said = capsys.readouterr()
        assert words in said.out + said.err


def code(name, exercise):
    return progress.code(exercise, name)


def test_lines_as_mail_and_chats_change_them():
    ada, ben = code("Ada", "boxes"), code("Ben", "boxes")
    read = [
        f"> Ada: {ada}",
        f"[29.11.26, 10:02:11] Ben: Ben: {ben}",
        f"\ufeffEve: {code('Eve', 'boxes')}",  # where files were joined
        f"李雷：{code('李雷', 'boxes')}",
        f"Bo Li: {code('Bo Li', 'boxes')}",
        f"{code('Bo Li', 'shrink')}",  # a long line was broken
        "Thanks, Ben: see you at 10:30!",
        "[29.11.26, 10:02] Cem: Cem? tokens | 64 | 192",
        "Ada? tokens | 128 | 192",
    ]
    solved, guesses, wrong = collect("\n".join(read), {"boxes", "shrink"})
    assert wrong == []
    assert solved == {
        "Ada": {"boxes"},
        "Ben": {"boxes"},
        "Eve": {"boxes"},
        "李雷": {"boxes"},
        "Bo Li": {"boxes", "shrink"},
    }
    assert guesses == {"tokens": ("192", {"Cem": "64", "Ada": "128"})}


def test_what_is_not_read_is_said_and_costs_nobody_else():
    told = {
        f"Ada: {code('Ada', 'boxes')} (done!)": "not read: Ada: boxes-",
        f"ada: {code('ada', 'boxes').lower()}": "not read: ada: boxes-",
        f"Ada: {code('Ada', 'boxes').replace('-', '–')}": "not read: Ada: boxes–",
        code("Ada", "boxes"): "(no name stands before it)",
        f"{'x' * 41}: {code('Ada', 'boxes')}": "(a name has 1 to 40 characters",
        f"Ada: {code('Ada', 'older')}": "sent by Ada, is of no exercise of this course",
        "Ada? tokens | 64": "not read: Ada? tokens | 64",
    }
    for line, words in told.items():
        solved, guesses, (wrong,) = collect(f"\n{line}\nBen: {code('Ben', 'boxes')}", {"boxes", "shrink"})
        assert words in wrong and (solved, guesses) == ({"Ben": {"boxes"}}, {}), line
    lines = ["Ada? tokens | 1 | 192", "Ben? tokens | 2 | 191", "Cem? tokens | 3 | 192"]
    assert collect("\n".join(lines), {"boxes"}) == (
        {},
        {"tokens": ("192", {"Ada": "1", "Cem": "3"})},
        ["does not fit: Ben has 191 for the truth of 'tokens', and most have 192"],
    )


def test_files_of_other_systems(copies, capsys):
    check.learner("Ada")
    check.visual_tokens(right_tokens)
    for name, encoding in (("a", "utf-16"), ("b", "utf-8-sig")):
        (copies / f"{name}.txt").write_text(f"{name}: {code(name, 'boxes')}\n", encoding=encoding)
    (copies / "c.txt").write_bytes("Zoë: boxes-AAAA".encode("cp1252"))
    out = said(capsys, "--collect", "a.txt", "b.txt", "c.txt", "progress.json")
    assert "not read: c.txt: its letters cannot be read" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("     1")] == ["Ada", "a", "b"]


def test_a_terminal_without_boxes(copies, monkeypatch):
    check.visual_tokens(right_tokens)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert main(["progress"]) == 0
    sys.stdout.flush()
    assert b"x...   open: boxes" in sys.stdout.buffer.getvalue()


def test_two_kernels_note_at_the_same_moment(copies, monkeypatch):
    """One reads while the other is about to write: it waits, and nothing is lost."""
    other, write = threading.Thread(target=progress.solved, args=["boxes"]), progress.write

    def slow(kept):
        if threading.current_thread() is not other:
            other.start()
            other.join(0.1)
        write(kept)

    monkeypatch.setattr(progress, "write", slow)
    progress.solved("shrink")
    other.join(10)
    assert progress.read() == {"solved": ["boxes", "shrink"]}
    assert [path.name for path in copies.iterdir()] == ["progress.json"]


def test_who_comes_after_somebody_else_is_told(copies, capsys):
    check.learner("Ada")
    check.learner("Ben")
    assert "solved" not in capsys.readouterr().out.replace("Solved exercises", "")
    check.visual_tokens(right_tokens)
    check.learner("ben")
    assert "solved 1" not in capsys.readouterr().out
    told = "ben solved 1 exercises here. They count as yours now; if you are new, move my_notebooks away."
    check.learner("Cem")
    assert capsys.readouterr().out.endswith(f"from now on.\n{told}\n")
    assert said(capsys, "--name", "Dora").startswith("Cem solved 1 exercises here.")


def test_the_handout_of_learners_counts(copies, monkeypatch):
    (copies.parent / "student_notebooks").mkdir()
    monkeypatch.chdir(copies.parent / "student_notebooks")
    check.visual_tokens(right_tokens)
    assert progress.read() == {"solved": ["visual_tokens"]}


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
