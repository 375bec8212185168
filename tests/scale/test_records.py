"""Your own data: every kind of bad record is named, good ones are what the official script shows, training resumes."""

import json
import os
import random
import re
import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
from make_records import main as make_records
from PIL import Image
from places import ROOT
from standins import byte_tokenizer, word_tokenizer
from tiny import picture, talk, tiny_processor

from minicpmv_ref import Processor, load_image, nano, v2_0, v2_5, v2_6
from minicpmv_ref.__main__ import main
from minicpmv_ref.inputs.checks import LIMITS
from minicpmv_ref.inputs.messages import RESERVED
from minicpmv_ref.scale import records as records_module
from minicpmv_ref.scale.records import (
    Problem,
    Record,
    Report,
    check_entry,
    check_records,
    messages,
    read_records,
)
from minicpmv_ref.toy.data import is_held_out

GOLDEN = json.loads((ROOT / "tests/golden/sft_labels.json").read_text())
EXAMPLE = ROOT / "data_samples" / "records"
TALK = [("user", "What is this?"), ("assistant", "A cat."), ("user", "Color?"), ("assistant", "Black.")]


def good(**changes):
    return {"id": "good", "image": "a.png", "conversations": talk("<image>\nWhat is this?", "A cat."), **changes}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    picture(60, 40, 1).save(folder / "a.png")
    picture(40, 60, 2).save(folder / "b.jpg", quality=90)
    return folder


def write(folder, *records):
    path = folder / "my.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def read(folder, *records, **options):
    return read_records(write(folder, *records), **options)


# ---- what is good


def test_good_records_keep_their_order(folder):
    two = good(
        id=2,
        image={"<image_00>": "a.png", "<image_7>": "./b.jpg"},
        conversations=talk("<image_7>", "x", "<image_00>\nand?", "y"),
    )
    records, report = read(folder, good(), two, good(id="plain", conversations=talk("Hi", "Yo"), source="mine"))
    assert (report.total, report.skipped, report.problems) == (3, 0, ())
    assert str(report) == f"{folder / 'my.json'}: 3 records, 3 good, 0 skipped"
    assert [record.id for record in records] == ["good", "2", "plain"]
    assert records[1].images == {"<image_00>": folder / "a.png", "<image_7>": folder / "b.jpg"}
    assert records[2].turns == (("user", "<image>\nHi"), ("assistant", "Yo"))  # a picture without a place goes first


def test_a_byte_order_mark_does_no_harm(folder):
    path = folder / "my.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([good()]).encode())
    assert len(read_records(path)[0]) == 1


# ---- what is bad: (changes of a good record, field, words of the report)

LLAVA = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
TWO = {"<image_00>": "a.png", "<image_01>": "b.jpg"}
BAD = {
    "no image": (dict(image=None), "image", "must be a path or an object, got None"),
    "no image path": (dict(image=""), "image", "a path must be text, got ''"),
    "image list": (dict(image=["a.png"]), "image", "got ['a.png']"),
    "no images": (dict(image={}), "image", "got {}"),
    "placeholder": (dict(image={"<picture>": "a.png"}), "image", "'<picture>' cannot be a placeholder"),
    "half a placeholder": (dict(image={"<image_00>x": "a.png"}), "image", "'<image_00>x' cannot be a placeholder"),
    "mixed placeholders": (dict(image={"<image>": "a.png", "<image_01>": "a.png"}), "image", "'<image>' cannot be"),
    "path is a number": (dict(image={"<image_00>": 5}), "image", "a path must be text, got 5"),
    "missing file": (dict(image="c.png"), "image", "there is no file 'c.png'"),
    "missing file of two": (
        dict(image={**TWO, "<image_01>": "c.png"}, conversations=talk("<image_00><image_01>", "x")),
        "image['<image_01>']",
        "there is no file 'c.png'",
    ),
    "a folder": (dict(image="."), "image", "there is no file '.'"),
    "not a path": (dict(image="a\0.png"), "image", "'a\\x00.png'"),
    "a name too long": (dict(image="a" * 5000), "image", "'aaaaaaaa"),
    "outside": (dict(image="../data/../outside.png"), "image", "'../data/../outside.png' leaves the folder"),
    "absolute": (dict(image=os.devnull), "image", f"'{os.devnull}' leaves the folder"),
    "no turns": (dict(conversations=[]), "conversations", "must be a list of turns, got []"),
    "text for turns": (dict(conversations="Hi"), "conversations", "must be a list of turns, got 'Hi'"),
    "turn is text": (dict(conversations=["Hi"]), "conversations[0]", "must have role and content, got 'Hi'"),
    "no content": (dict(conversations=[{"role": "user"}]), "conversations[0]", "must have role and content"),
    "LLaVA": (dict(conversations=LLAVA), "conversations[0]", "in LLaVA's files rename from to role"),
    "a data URI": (dict(image="data:image/png;base64," + "iVBOR" * 50_000), "image", "is a URL; save the picture as a"),
    "a web address": (dict(image="https://x.org/a.png"), "image", "'https://x.org/a.png' is a URL; save the picture"),
    "a file address": (dict(image="file://here/a.png"), "image", "'file://here/a.png' is a URL; save the picture"),
    "OpenAI's parts": (
        dict(conversations=talk([{"type": "image_url", "image_url": {"url": "data:" + "A" * 9999}}], "Yo")),
        "conversations[0].content",
        "join its texts, with <image> where a picture stands",
    ),
    "transformers' parts": (
        dict(conversations=talk("Hi", [{"type": "text", "text": "Yo"}])),
        "conversations[1].content",
        "join its texts, with <image> where a picture stands",
    ),
    "what a terminal obeys": (dict(image="\x1b[2J\u202e.png"), "image", r"there is no file '\x1b[2J\u202e.png'"),
    "role": (
        dict(conversations=[*talk("Hi"), {"role": "gpt", "content": "Yo"}]),
        "conversations[1].role",
        "must be user or assistant, got 'gpt'",
    ),
    "system": (
        dict(conversations=[{"role": "system", "content": "Be nice."}, *talk("Hi", "Yo")]),
        "conversations[0].role",
        "a system text belongs in the first question",
    ),
    "role is a list": (dict(conversations=[{"role": [], "content": "Hi"}]), "conversations[0].role", "got []"),
    "assistant begins": (dict(conversations=talk("Hi", "Yo")[::-1]), "conversations[0].role", "assistant where user"),
    "twice": (
        dict(conversations=[*talk("a"), *talk("b", "c", "d")]),
        "conversations[1].role",
        "user where assistant is expected",
    ),
    "no answer": (dict(conversations=talk("Hi", "Yo", "Why?")), "conversations", "ends with a question"),
    "empty answer": (dict(conversations=talk("Hi", " \n")), "conversations[1].content", "the text is empty"),
    "empty question": (dict(conversations=talk("", "Yo")), "conversations[0].content", "the text is empty"),
    "content list": (dict(conversations=talk(["Hi"], "Yo")), "conversations[0].content", "must be text, got ['Hi']"),
    "half a character": (dict(conversations=talk("Hi", "\ud83d")), "conversations[1].content", "half a character"),
    "placeholder in an answer": (
        dict(conversations=talk("Hi", "<image>")),
        "conversations[1].content",
        "<image> is in an answer",
    ),
    "too few images": (
        dict(conversations=talk("<image>\nand <image_01>?", "x")),
        "conversations[0].content",
        "<image_01> has no image",
    ),
    "too few images, later": (
        dict(image=TWO, conversations=talk("<image_00><image_01>", "x", "<image>", "y")),
        "conversations[2].content",
        "<image> has no image",
    ),
    "too many images": (
        dict(image=TWO, conversations=talk("<image_01>\nWhat?", "x")),
        "conversations",
        "<image_00> stands nowhere in the text",
    ),
    "one named image, no place": (
        dict(image={"<image_00>": "a.png"}, conversations=talk("What?", "x")),
        "conversations",
        "<image_00> stands nowhere in the text",
    ),
    "placeholder twice": (
        dict(conversations=talk("<image><image>", "x")),
        "conversations",
        "<image> stands 2 times in the text",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_line_for_each_kind_of_bad_record(folder, name):
    changes, field, words = BAD[name]
    picture(9, 9).save(folder.parent / "outside.png")
    records, report = read(folder, good(), good(id="bad\n", **changes), good(id="last"))
    assert [record.id for record in records] == ["good", "last"]
    (problem,) = report.problems
    assert (problem.number, problem.id, problem.field, report.skipped) == (1, "bad\n", field, 1)
    line = str(problem)
    assert line.startswith(f"record 1 (id 'bad\\n'), {field}: ") and words in line and "; " in line
    assert line.isprintable() and len(line) < 400
    assert str(report).splitlines()[1] == f"  {line}"
    with pytest.raises(ValueError, match=re.escape(line)):
        read_records(folder / "my.json", strict=True)


@pytest.mark.parametrize("field", ["id", "image", "conversations"])
def test_missing_fields(folder, field):
    record = good()
    del record[field]
    _, report = read(folder, record)
    assert [(p.field, p.what) for p in report.problems] == [(field, "missing")]


@pytest.mark.parametrize("entry", [5, "a", None, ["a"], True])
def test_a_record_that_is_no_object(folder, entry):
    records, report = read(folder, good(), entry)
    assert len(records) == 1 and str(report.problems[0]).startswith(f"record 1: not an object but {entry!r}; ")


@pytest.mark.parametrize("value", [None, "", " ", True, 1.5, []])
def test_an_id_is_text_or_a_whole_number(folder, value):
    (problem,) = read(folder, good(id=value))[1].problems
    assert problem.field == "id" and problem.what == f"must be text or a whole number, got {value!r}"


def test_ids_that_come_twice_cost_no_record(folder):
    """Files in the manner of LLaVA ask about one picture in many records that share its id; 1 and "1" are one id."""
    entries = [good(id=1, image="no.png"), good(id="1"), good(id="2"), good(id="2"), good(id=2), good(id="3")]
    records, report = read(folder, *entries)
    assert [record.id for record in records] == ["1", "2", "2", "2", "3"] and report.skipped == 1
    assert [(p.number, p.field) for p in report.problems] == [(0, "image")]
    note = "ids that came before, in 2 of the records (record 3 has that of record 2, '2'); an id is for messages only"
    assert report.text().splitlines()[-1] == f"  note: {note}, so all are kept"
    assert len(read_records(folder / "my.json", strict=False)[0]) == 5
    same = [good(id="87286", conversations=talk(f"Question {i}?", "x")) for i in range(300)]
    records, report = read(folder, *same, strict=True)
    assert len(records) == 300 and "in 299 of the records" in report.text(0) and len(report.text().splitlines()) == 2
    assert read(folder, good(id="\x1b[2J"), good(id="\x1b[2J"))[1].text().count("\x1b") == 0


@pytest.mark.parametrize("space", ["\n", " ", "\t\n ", "\r\n"])
def test_white_space_before_an_answer_is_left_out_and_counted(folder, space):
    """Under 2.6's tokenizer a newline there is one token with that of the header, which no question ends with."""
    talks = talk("\n<image>\nWhat?", f"{space}A\n cat.\n", " And?", "Yes.")
    records, report = read(
        folder, good(conversations=talks), good(id="b", conversations=talk("Hi", f"{space}x")), good(id=3)
    )
    assert records[0].turns == (
        ("user", "\n<image>\nWhat?"),
        ("assistant", "A\n cat.\n"),
        ("user", " And?"),
        ("assistant", "Yes."),
    )
    assert report.problems == () and "note: white space before an answer, left out in 2 of the answers" in report.text()
    assert read(folder, good(conversations=talk("Hi", "x\n")))[1].notes == ()


@pytest.mark.parametrize("mark", ["ref", "box", "quad", "point"])
def test_marks_of_places_are_text(folder, mark):
    text = f"Where is <{mark}>1 2 3 4</{mark}>?"
    (record,) = read(folder, good(conversations=talk(f"<image>\n{text}", text)))[0]
    assert [content for _, content in record.turns] == [f"<image>\n{text}", text]


@pytest.mark.parametrize("marker", [token for token in RESERVED if token != "<image>"])
@pytest.mark.parametrize("turn", [0, 1])
def test_markers_cannot_be_typed(folder, marker, turn):
    texts = ["<image>\nWhat?", "This."]
    texts[turn] += f" {marker} "
    (problem,) = read(folder, good(conversations=talk(*texts)))[1].problems
    assert problem.field == f"conversations[{turn}].content" and problem.what == f"{marker} is typed as text"


def test_text_on_both_sides_of_a_picture_is_not_one_marker(folder):
    assert len(read(folder, good(conversations=talk("<sl<image>ice>", "x")))[0]) == 1


def test_what_is_reserved_is_what_a_tokenizer_would_take_for_more_than_text():
    for version in ("2.5", "2.6"):
        special = set(byte_tokenizer(version).get_added_vocab()) - {"<image>", "<|begin_of_text|>", "<|end_of_text|>"}
        assert special <= set(RESERVED)


def test_all_problems_of_a_record_are_listed_and_the_record_counts_once(folder):
    entry = {"id": "", "image": "no.png", "conversations": talk("Hi", "", "</slice>", "<unk>")}
    _, report = read(folder, entry, good())
    assert [p.field for p in report.problems] == ["id", "image", *(f"conversations[{i}].content" for i in (1, 2, 3))]
    assert str(report).splitlines()[0].endswith("2 records, 1 good, 1 skipped (conversations 3, id 1, image 1)")
    assert report.text(2).splitlines()[-1] == "  and 3 more" and len(report.text(2).splitlines()) == 4
    assert len(report.text(5).splitlines()) == 6


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"[{'id': 0}]", "JSON wants one list, double quotes"),
        (b'{"id": 0}\n{"id": 1}\n', "for JSON Lines, put [ ] around all"),
        (b"\xff\xfe[]", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": 0}', "not a list but {'id': 0}; put [ ] around"),
        (b"null", "not a list but None"),
        (b'{"0": {"id": 0}, "1": {"id": 1}}', "for an object of records, write its values without their keys"),
        (b'{"version": 1, "data": [{"id": 0}]}', "if 'data' holds the records, let the file be that list alone"),
        (b'[{"id": 0, "id": 1}]', "the key 'id' stands twice in one object, {'id': 1}; which one counts?"),
        (b'[{"id": 0, "x": {"\\u001b[2J": 1, "\\u001b[2J": 2}}]', r"the key '\x1b[2J' stands twice"),
        (b'[{"id": NaN}]', "not JSON: 'id' is nan, which is no number in JSON; write null, or leave the field out"),
        (b'[{"id": ' + b"9" * 5000 + b"}]", "not JSON"),
        (b"[]", "the list is empty"),
    ],
)
def test_a_file_that_is_no_list_of_records(folder, raw, words):
    path = folder / "my.json"
    path.write_bytes(raw)
    records, report = read_records(path)
    assert records == [] and (report.total, report.skipped) == (0, 0)
    assert str(report.problems[0]).startswith("the file: ") and words in str(report.problems[0])
    with pytest.raises(ValueError, match="the file: "):
        read_records(path, strict=True)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"my\.json"):
        read_records(tmp_path / "my.json")


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes of this kind")
def test_pipes_devices_and_huge_files_are_not_read(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match=f"{name} is a pipe or a device"):
            read_records(folder / name)
    _, report = read(folder, good(image="pipe"), good(image="zero"))
    assert [problem.what.split(" ", 1)[1] for problem in report.problems] == [
        "is a pipe or a device, not a plain file",
        f"leaves the folder {folder} by a link to /dev/zero",
    ]
    monkeypatch.setitem(LIMITS, "picture_bytes", 100)
    (problem,) = read(folder, good(image="b.jpg"), pictures="exist")[1].problems
    assert re.fullmatch(r"'b.jpg' has [\d,]+ bytes", problem.what) and "100 are allowed" in problem.fix
    monkeypatch.setitem(LIMITS, "records_bytes", 10)
    with pytest.raises(ValueError, match="at most 10 are read"):
        read_records(folder / "my.json")


def test_a_million_faults_are_not_a_million_lines(folder):
    talks = [{"role": "user", "content": ""}] * 10_000
    images = {f"<image_{i}>": "no.png" for i in range(10_000)}
    for entry in (good(conversations=talks), good(image=images), good(image=images, conversations=talks)):
        assert len(read(folder, entry)[1].problems) == 20
    assert len(str(read(folder, good(conversations=talk("Hi", "x" * 10**6, "x" * 10**6)))[1])) < 1000


def test_names_that_other_formats_use(folder):
    openai, several = good(), good()
    openai["messages"] = openai.pop("conversations")
    several["images"] = [several.pop("image")]
    first, second = read(folder, openai, several)[1].problems
    assert [(p.field, p.what) for p in (first, second)] == [("conversations", "missing"), ("image", "missing")]
    assert "rename messages to conversations" in first.fix and "rename images to image" in second.fix


def test_wrong_types_are_named(folder):
    path = write(folder, good())
    for call, name in {
        lambda: read_records(None): "path",
        lambda: read_records(5): "path",
        lambda: read_records(b"my.json"): "path",
        lambda: read_records(path, root=5): "root",
        lambda: read_records(path, processor="nano"): "processor",
        lambda: messages(None): "record",
        lambda: messages(good()): "record",
        lambda: check_records(None): "records",
        lambda: check_records("abc"): "records",
        lambda: check_records(iter([])): "records",
        lambda: check_records([good()]): r"records\[0\]",
        lambda: Report(path, 0, ()).text("5"): "most",
    }.items():
        with pytest.raises(TypeError, match=f"^{name} must be "):
            call()
    for pictures in (None, 5, [], "ALL"):
        with pytest.raises(ValueError, match="pictures must be one of exist, header, decode, got"):
            read_records(path, pictures=pictures)
    with pytest.raises(ValueError, match="most must be an integer of at least 0"):
        Report(path, 0, ()).text(-1)
    with pytest.raises(NotADirectoryError, match=r"root must be a folder, and .*a\.png is none"):
        read_records(path, folder / "a.png")
    with pytest.raises(ValueError, match="at least one record"):
        check_records([])


def test_a_record_made_by_hand_shows_all_of_its_pictures(folder):
    turns = ("user", "<image>\nWhat?"), ("assistant", "x")
    path = folder / "a.png"
    for images, text in (
        ({}, "<image>"),
        ({"<image>": path, "<image_01>": path}, "<image>"),
        ({"<image_0>": path}, ""),
    ):
        record = Record("\x1b[2J", images, (("user", f"{text}\nWhat?"), turns[1]))
        with pytest.raises(ValueError, match=r"placeholders in its text: .*; pictures: ") as caught:
            messages(record)
        assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="each must stand there once"):
        messages(Record("x", {"<image>": path}, (("user", "<image><image>"), turns[1])))


def test_an_entry_is_checked_wherever_its_pictures_are():
    """`find` says what a name stands for: a path, or a file in memory."""
    assert check_entry(good(), lambda name: (name.upper(), None))[0].images == {"<image>": "A.PNG"}
    _, flaws, _ = check_entry(good(), lambda name: (None, ("it is gone", "bring it")))
    assert flaws == [("image", "it is gone", "bring it")]
    assert str(Problem(3, "\x1b\x07", "\x1b", "\x1b", "\u202e")).isprintable()


def test_strict_shows_the_first_problems(folder):
    with pytest.raises(ValueError) as caught:
        read(folder, *[5] * 8, strict=True)
    assert str(caught.value).count("not an object") == 5 and str(caught.value).endswith("and 3 more")


# ---- pictures


def test_how_closely_pictures_are_looked_at(folder):
    (folder / "text.png").write_text("no picture")
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "stub.png").write_bytes((folder / "a.png").read_bytes()[:20])
    names = ["a.png", "text.png", "cut.jpg", "stub.png"]
    path = write(folder, *(good(id=name, image=name) for name in names))
    for pictures, bad in (("exist", []), ("header", ["text.png", "stub.png"]), ("decode", names[1:])):
        records, report = read_records(path, pictures=pictures)
        assert [problem.id for problem in report.problems] == bad
        assert all("cannot be read as a picture" in problem.what for problem in report.problems)
        assert [record.id for record in records] == [name for name in names if name not in bad]
    with pytest.raises(ValueError, match="pictures must be one of"):
        read_records(path, pictures="all")
    record = Record("x", {"<image>": folder / "cut.jpg"}, (("user", "<image>"), ("assistant", "x")))
    with pytest.raises(ValueError, match=r"cut\.jpg is not a picture"):
        messages(record)


def test_a_picture_too_large_to_be_true(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    for pictures in ("header", "decode", "whole"):  # "whole" is the first name of "decode"
        (problem,) = read(folder, good(), pictures=pictures)[1].problems
        assert "decompression bomb" in problem.what


def test_pictures_that_would_start_a_program_or_compute_for_minutes_are_refused(folder):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (folder / "c.png").write_bytes(postscript)
    Image.new("1", (1, 200_000)).save(folder / "d.png")
    for pictures in ("header", "decode"):
        first, second = read(folder, good(image="c.png"), good(image="d.png"), pictures=pictures)[1].problems
        assert "'c.png' cannot be read as a picture" in first.what and "PostScript" in first.what
        assert "'d.png' cannot be read as a picture" in second.what and "too long for its width" in second.what


def test_a_picture_is_opened_once_for_all_its_records(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(records_module, "load_image", lambda path: opened.append(path))
    read(folder, *(good(id=i) for i in range(5)), good(id=5, image="b.jpg"), pictures="decode")
    assert opened == [folder / "a.png", folder / "b.jpg"]


def test_paths_start_from_the_file_whatever_the_working_folder(folder, monkeypatch, tmp_path):
    write(folder, good())
    monkeypatch.chdir(tmp_path)
    (record,), _ = read_records("data/my.json")
    assert load_image(record.images["<image>"]).size == (60, 40)


def test_another_root(folder, tmp_path):
    assert len(read(folder, good(image="data/a.png"), root=tmp_path)[0]) == 1
    assert len(read(folder, good(image=str(folder / "a.png")))[0]) == 1  # absolute, and inside
    (tmp_path / "json").mkdir()
    path = write(tmp_path / "json", good(image=str(folder / "a.png")))
    assert "leaves the folder" in str(read_records(path)[1])
    assert len(read_records(path, folder)[0]) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_does_not_lead_out(folder, tmp_path):
    picture(9, 9).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "fine.png").symlink_to(folder / "a.png")
    records, report = read(folder, good(image="link.png"), good(id="fine", image="fine.png"))
    assert [record.id for record in records] == ["fine"] and "leaves the folder" in report.problems[0].what


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_that_leads_out_says_what_to_name_as_root(folder, tmp_path):
    """What is written in a file or packed in an archive must not decide what is read; you may, by naming a root."""
    store = tmp_path / "my store"
    (store / "coco").mkdir(parents=True)
    picture(9, 9).save(store / "coco" / "a.png")
    (folder / "coco").symlink_to(store / "coco")
    (folder / "other").symlink_to(store / "coco")
    absolute = str(store / "coco" / "a.png")
    entries = [good(image=image) for image in ("coco/a.png", "other/a.png", absolute, "../x.png")]
    told = [problem.what + "; " + problem.fix for problem in read(folder, *entries)[1].problems]
    assert f"leaves the folder {folder} by a link to {absolute}; " in told[0]
    assert told[0].endswith(f"as root (--root {shlex.quote(str(store))})")  # a path with a space, ready to be copied
    assert told[1].endswith(f"as root (--root {shlex.quote(str(store / 'coco'))}) and let paths start there")
    assert told[2].endswith(f"as root (--root {shlex.quote(str(store / 'coco'))})") and "by a link" not in told[2]
    assert told[3].endswith("leaves the folder " + str(folder) + "; move the picture, or name another root")
    path = folder / "my.json"
    for root, good_ones in ((store, [0, 2]), (store / "coco", [2])):
        bad = {problem.number for problem in read_records(path, root)[1].problems}
        assert [number for number in range(4) if number not in bad] == good_ones


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_inside_the_root_are_followed(folder, tmp_path):
    (folder / "deep" / "er").mkdir(parents=True)
    picture(9, 9).save(folder / "deep" / "er" / "c.png")
    (folder / "pictures").symlink_to(folder / "deep" / "er")  # a folder
    (folder / "relative").symlink_to("deep/er")
    (tmp_path / "root").symlink_to(folder)  # the root itself
    entries = [good(image=image) for image in ("pictures/c.png", "relative/c.png", "a.png")]
    write(folder, *entries)
    for path, root in (
        (folder / "my.json", None),
        (tmp_path / "root" / "my.json", None),
        (folder / "my.json", tmp_path / "root"),
    ):
        records, report = read_records(path, root)
        assert len(records) == 3 and report.problems == ()


# ---- what the model is shown


def official(batch):
    """What the official code makes of our ids and labels: see `official_sample` in test_prompt.py."""
    ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    if 151656 not in ids:  # <slice>: a picture that is not sliced loses its <image_id>
        cut = slice(ids.index(151658), ids.index(151659) + 1)
        del ids[cut], labels[cut]
    target = labels[1:] + [-100]
    for place, label in enumerate(labels):
        if label == 151645:  # every end token is supervised twice
            target[place] = label
    return ids, target


@pytest.mark.parametrize("first", ["<image>\nWhat is this?", "What is this?"])
@pytest.mark.parametrize("size", ["640x480", "300x200"])
def test_token_ids_and_labels_of_the_official_script(folder, size, first):
    picture(*map(int, size.split("x"))).save(folder / "c.png")
    (record,), _ = read(folder, good(image="c.png", conversations=talk(first, "A cat.", "Color?", "Black.")))
    p = Processor(word_tokenizer(), replace(v2_6, resampler=replace(v2_6.resampler, num_queries=2)))
    batch = p(messages(record))
    ids, target = official(batch)
    assert ids == GOLDEN[size]["input_ids"]
    assert target == GOLDEN[size]["target"]
    assert [list(grid) for grid in batch.patch_grids[0]] == GOLDEN[size]["tgt_sizes"]


def test_several_pictures_are_the_official_text_without_its_extra_newlines(folder):
    picture(640, 480).save(folder / "c.png")
    picture(300, 200).save(folder / "d.png")
    images = {"<image_00>": "c.png", "<image_01>": "d.png"}
    (record,), _ = read(folder, good(image=images, conversations=talk("A\n<image_00>\n<image_01>\nB", "ok")))
    p = Processor(byte_tokenizer("2.6"), replace(v2_6, resampler=replace(v2_6.resampler, num_queries=2)))
    text = p.tokenizer.decode(p(messages(record)).input_ids[0])
    assert text.replace("<image_id>1</image_id>", "") == re.sub("\n+", "\n", GOLDEN["multi"])


@pytest.mark.parametrize("config", [v2_0, v2_5, v2_6], ids=lambda config: config.version)
def test_pictures_on_lines_of_their_own_are_put_in_place_to_the_letter(folder, config):
    """Random texts and newlines around them: the Processor's text is the content with each placeholder replaced."""
    rng = random.Random(0)
    p = Processor(byte_tokenizer(config.version), replace(config, resampler=replace(config.resampler, num_queries=1)))
    image = "<image><unk></image>"
    for _ in range(40):
        lines = [rng.choice(["", "ab", " c "]) for _ in range(5)]
        places = sorted(rng.sample(range(5), rng.randint(1, 3)))
        for number, place in enumerate(places):
            lines[place] = f"<image_{number}>"
        content = "\n".join(lines)
        named = {f"<image_{number}>": "a.png" for number in range(len(places))}
        (record,), _ = read(folder, good(image=named, conversations=talk(content, "x")), pictures="exist")
        text = p.tokenizer.decode(p(messages(record), use_image_id=False).input_ids[0])
        expected = re.sub(r"<image_\d>", image, content)
        if config.version == "2.5":
            expected = expected.strip()
        if config.version == "2.0" and content.endswith(f"<image_{len(places) - 1}>"):
            expected += "\n"  # its layout ends with one; elsewhere that is the newline between the lines
        assert expected in text, (content, text)
        head = {"2.0": "<用户>", "2.5": "user<|end_header_id|>\n\n", "2.6": "<|im_start|>user\n"}[config.version]
        tail = {"2.0": "<AI>", "2.5": "<|eot_id|>", "2.6": "<|im_end|>"}[config.version]
        assert text.split(head)[1].split(tail)[0] == expected


def test_pictures_in_the_middle_of_a_line_get_lines_of_their_own(folder):
    (record,), _ = read(folder, good(image=TWO, conversations=talk("Left <image_00> or<image_01><image_00x>?", "x")))
    parts = messages(record)[0]["content"]
    assert [part if isinstance(part, str) else part.size for part in parts] == [
        "Left ",
        (60, 40),
        " or",
        (40, 60),
        "<image_00x>?",
    ]


def test_each_picture_goes_to_its_own_placeholder(folder):
    """In the official code the order of the object decides, and the pictures would be swapped."""
    swapped = {"<image_01>": "b.jpg", "<image_00>": "a.png"}
    turns = talk("<image_00>\nWhat?", "x", "<image_01>\nAnd?", "y")
    one, two = (read(folder, good(image=image, conversations=turns))[0][0] for image in (TWO, swapped))
    for record in (one, two):
        said = messages(record)
        assert [said[0]["content"][0].size, said[2]["content"][0].size] == [(60, 40), (40, 60)]
        assert said[1] == {"role": "assistant", "content": "x"}
    assert one.messages[2]["content"][1] == "And?"


def test_records_that_are_too_long_for_a_model_are_found_up_front(folder):
    long = good(id="novel", conversations=talk("What?", "cat " * 2000))
    cut = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    path = write(folder, good(), long, good(id="cut", image="cut.jpg"))
    assert len(read_records(path)[0]) == 3
    records, report = read_records(path, processor=tiny_processor("2.6"))
    assert [record.id for record in records] == ["good"] and report.skipped == 2
    assert re.match(r"record 1 \(id 'novel'\): the prompt has \d+ tokens, 4 of them visual", str(report.problems[0]))
    assert "cut.jpg" in report.problems[1].what


# ---- the example and the command


@pytest.mark.parametrize(("split", "count"), [("train", 48), ("test", 16)])
def test_the_example_is_good_and_fits_the_nano_model(split, count):
    records, report = read_records(EXAMPLE / f"{split}.json", pictures="decode", strict=True)
    assert len(records) == report.total == count
    processor = Processor.from_pretrained("nano")
    batch = processor([messages(record) for record in records[:1] + records[-1:]])
    assert len(batch.plans[0]) == 1 and len(batch.plans[1]) == 2
    assert all(plan.grid in [(1, n) for n in (6, 7, 8)] for plans in batch.plans for plan in plans)
    assert batch.input_ids.shape[1] < nano.llm.max_position_embeddings


def test_the_example_keeps_its_halves_apart():
    for split in ("train", "test"):
        for record in read_records(EXAMPLE / f"{split}.json", pictures="exist")[0]:
            if len(record.images) == 1:
                assert is_held_out("text " + record.turns[1][1]) == (split == "test")


def test_answers_of_the_example_are_in_its_receipts():
    records, _ = read_records(EXAMPLE / "train.json", pictures="exist")
    lines = {next(iter(r.images.values())): r.turns[1][1].split(", ") for r in records if len(r.images) == 1}
    for record in records:
        for (_, question), (_, answer) in pairwise(record.turns):
            if word := re.search(r"What number is right of (\w+)\?", question):
                found = [line for file in record.images.values() for line in lines[file] if word[1] in line.split()]
                assert found == [f"{word[1]} {answer}"]


def test_the_tool_draws_the_example_again(tmp_path, capsys):
    make_records(["--out", str(tmp_path)])
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert files == sorted(p.relative_to(EXAMPLE) for p in EXAMPLE.rglob("*.*") if p.name != "README.md")
    for file in files:
        if file.suffix == ".json":
            assert (tmp_path / file).read_text("utf-8") == (EXAMPLE / file).read_text("utf-8")
        else:
            with Image.open(tmp_path / file) as new, Image.open(EXAMPLE / file) as old:
                assert new.tobytes() == old.tobytes() and new.mode == old.mode == "L"
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*.*")) < 1_000_000
    assert "48 records" in capsys.readouterr().out


def test_the_command_prints_the_report(folder, capsys):
    assert main(["records", str(EXAMPLE / "test.json")]) == 0
    assert capsys.readouterr().out == f"{EXAMPLE / 'test.json'}: 16 records, 16 good, 0 skipped\n"
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-500])
    path = write(folder, good(), good(id="b", image="cut.png"), 5, good(id="d", image="data/a.png"))
    assert main(["records", str(path), "--most", "2"]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{path}: 4 records, 1 good, 3 skipped (image 2, record 1)"
    assert lines[0].startswith("  record 1 (id 'b'), image: 'cut.png' cannot be read") and lines[2] == "  and 1 more"
    assert main(["records", str(path), "--quick", "--root", str(folder.parent)]) == 1
    assert "4 records, 1 good, 3 skipped (image 2, record 1)" in capsys.readouterr().out
    path = write(folder, good(conversations=talk("What?", "cat " * 4000)))
    assert main(["records", str(path)]) == 0 and main(["records", str(path), "--model", "nano"]) == 1
    assert "but the model takes 2048" in capsys.readouterr().out
    assert main(["records", str(folder / "no.json")]) == 1
    assert re.search(r"error: there is no file .*no\.json", capsys.readouterr().err)
