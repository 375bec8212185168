"""`lab.py ask FILE... QUESTION`: the plan, the answer as it comes, the timings; and one clear error where it cannot."""

import io
import re

import pytest
from PIL import Image
from places import ROOT

from minicpmv_ref import peers, plan_slices
from minicpmv_ref.__main__ import main
from minicpmv_ref.inputs.published import find_folder, read_config

IMAGES = ROOT / "data_samples" / "images"
SAMPLE = str(IMAGES / "temple.jpg")


def test_plan_answer_and_timings(capsys):
    assert main(["ask", SAMPLE, "What is this?", "--max-new-tokens", "5"]) == 0
    out = capsys.readouterr().out
    config = read_config(find_folder("nano"))
    plan = plan_slices((640, 427), config.slicing)
    assert "640 x 427" in out
    assert f"{plan.grid[0]} x {plan.grid[1]} (columns x rows), {plan.slice_size[0]} x {plan.slice_size[1]}" in out
    assert f"{plan.visual_tokens(config.resampler.num_queries)} visual tokens" in out
    assert "answer: " in out
    for stage in ("slice and normalize", "ViT", "resampler", "LLM, prompt and first token"):
        assert re.search(rf"^{stage} +\d+\.\d ms$", out, flags=re.M), stage
    assert "may go on" not in out  # it has ended by itself


def test_the_same_answer_as_chat(capsys):
    from minicpmv_ref import MiniCPMV, Processor, load_image

    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    messages = [{"role": "user", "content": [load_image(SAMPLE), "What color is the roof?"]}]
    want = model.chat(messages, processor, max_new_tokens=6, temperature=1.0, seed=3, max_slice_nums=2)
    options = ["--max-new-tokens", "6", "--temperature", "1", "--seed", "3", "--max-slice-nums", "2"]
    assert main(["ask", SAMPLE, "What color is the roof?", *options]) == 0
    answer = capsys.readouterr().out.split("answer: ")[1].split("\n\nread the picture")[0]
    assert answer == "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in want)


def clip_file(path, count=20):
    first, *others = [Image.new("RGB", (112, 112), (240, 240, 200 + number)) for number in range(count)]
    first.save(path, save_all=True, append_images=others, duration=100)
    return str(path)


def test_several_pictures_and_a_clip_give_the_answer_of_chat(tmp_path, capsys):
    from minicpmv_ref import MiniCPMV, Processor, load_clip, load_image

    clip, shapes, numbers = clip_file(tmp_path / "a.gif"), str(IMAGES / "shapes.png"), str(IMAGES / "numbers.png")
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    content = [load_image(shapes), load_clip(clip, 5), load_image(numbers), "What is this?"]
    want = model.chat([{"role": "user", "content": content}], processor, max_new_tokens=6, max_slice_nums=1)
    options = ["--frames", "5", "--max-slice-nums", "1", "--max-new-tokens", "6", "--model", "nano"]
    assert main(["ask", shapes, clip, numbers, "What is this?", *options]) == 0
    out = capsys.readouterr().out
    assert out.split("answer: ")[1].split("\n\nread the picture")[0] == want
    assert out.startswith("model     nano\npicture 1 224 x 224 pixels, 16 visual tokens\n")
    assert "\nclip      5 frames of 2.0 s, 112 x 112 pixels, 80 visual tokens\npicture 2 224 x 336 pixels" in out
    assert " patches -> 112 visual tokens, " in out and "note" not in out


def test_ten_pictures_and_more_are_numbered_apart_from_their_size(capsys):
    shapes = str(IMAGES / "shapes.png")
    assert main(["ask", *[shapes] * 11, "What is this?", "--max-slice-nums", "1", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^picture (\d+) +224 x 224 pixels, 16 visual tokens$", out, re.M) == [
        str(n) for n in range(1, 12)
    ]


def test_options_between_files_and_question_are_said(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ask", SAMPLE, SAMPLE, "--frames", "3", "What is this?"])
    assert stopped.value.code == 2
    assert "What is this? (files and question stand together" in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("files", "question", "many"),
    [
        (["a.png"], "Where is the cat?", False),
        (["a.png", "a.png"], "Which?", True),
        (["a.gif"], "What?", True),
        (["a.png"], "Give the box of the cat.", True),
        (["a.png"], "What is in <box>1 2 3 4</box>?", True),
        (["a.png"], "Is it boxing?", False),
    ],
)
def test_which_model_of_the_course_answers(files, question, many, there, tmp_path, monkeypatch):
    import minicpmv_ref.inputs.published as published

    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    clip_file(tmp_path / "a.gif")
    asked = []
    monkeypatch.setattr(published, "BUNDLED", tmp_path)

    def load(name):
        asked.append(name)
        raise ValueError("enough")

    monkeypatch.setattr("minicpmv_ref.commands.ask.load", load)
    if there:
        (tmp_path / "nano-many").mkdir()
    assert main(["ask", *[str(tmp_path / file) for file in files], question]) == 1
    assert asked == ["nano-many" if many and there else "nano"]


def test_only_pictures_of_the_small_world_are_taken_without_a_note():
    from minicpmv_ref import load_image, nano
    from minicpmv_ref.commands.ask import looks_drawn, outside
    from minicpmv_ref.inputs.clips import read_clip
    from minicpmv_ref.toy import data

    most = 4 * 9 * nano.slicing.scale_resolution**2
    known = {path.name for path in IMAGES.iterdir() if looks_drawn(load_image(path), most)}
    assert known == {"shapes.png", "numbers.png"}  # all photographs, pages, signs and charts are flagged
    for name in ("astronaut.jpg", "galaxies.jpg", "cat.jpg"):  # not because of their size
        assert not looks_drawn(load_image(IMAGES / name), 10**7)
    for kind in data.KINDS:
        for seed in range(5):
            image = data.draw(seed, kind).image
            file = io.BytesIO()
            image.save(file, "JPEG", quality=75)
            assert looks_drawn(image, most) and looks_drawn(load_image(file), most)
    cat = [read_clip(IMAGES / "cat.jpg")]
    assert outside(cat, "nano", nano) and not outside(cat, str(IMAGES), nano)  # of other models we know nothing


def test_a_photograph_gets_one_line_before_the_answer(capsys):
    assert main(["ask", SAMPLE, "What?", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"\nnote      nano knows .* --model FOLDER asks a published model \(see README\.md\)\n\nanswer", out
    )


def said(monkeypatch, text):
    """Let the model answer this."""
    import torch

    from minicpmv_ref import MiniCPMV, Processor

    ids = Processor.from_pretrained("nano").tokenizer(text + "<|im_end|>")["input_ids"]
    monkeypatch.setattr(MiniCPMV, "stream", lambda *_, **__: iter(torch.tensor(ids)[:, None]))


def test_boxes_are_drawn(monkeypatch, tmp_path, capsys):
    said(monkeypatch, "<ref>green triangle</ref><box>250 500 750 1000</box>")
    Image.new("RGB", (200, 100), "white").save(tmp_path / "a.png")
    assert main(["ask", str(tmp_path / "a.png"), "Where?", "--draw", str(tmp_path / "b.png"), "--model", "nano"]) == 0
    out = capsys.readouterr().out
    assert "\nbox       green triangle: 50, 50, 150, 100 (left, top, right, bottom in pixels)\ndrawn     " in out
    with Image.open(tmp_path / "b.png") as drawn:
        assert drawn.size == (600, 300)  # three times as large
        for x, y in ((151, 200), (300, 151), (449, 200)):
            assert drawn.getpixel((x, y)) == (255, 0, 255), (x, y)
        assert drawn.getpixel((300, 220)) == drawn.getpixel((140, 200)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("text", "words"),
    [("top left", "the answer has no box"), ("<box>1 2 3</box>", "must hold 4 whole numbers")],
)
def test_an_answer_without_boxes_is_said(text, words, monkeypatch, tmp_path, capsys):
    said(monkeypatch, text)
    assert main(["ask", SAMPLE, "Where?", "--draw", str(tmp_path / "b.png"), "--model", "nano"]) == 1
    shown = capsys.readouterr()
    assert f"answer: {text}\n" in shown.out and words in shown.err and not list(tmp_path.iterdir())


def test_where_is_asked_as_the_model_was_trained():
    from minicpmv_ref.commands.ask import box_question

    assert box_question("Where is the green triangle?") == "Give the box of the green triangle."
    assert box_question(" where's milk ") == "Give the box of milk."
    assert box_question("What is where?") == "What is where?"


def test_boxes_are_asked_for_in_one_view(monkeypatch, tmp_path, capsys):
    said(monkeypatch, "<box>1 2 3 4</box>")
    pair = peers.load("nano")
    monkeypatch.setattr("minicpmv_ref.commands.ask.load", lambda _: pair)
    monkeypatch.setattr("minicpmv_ref.inputs.published.BUNDLED", tmp_path)
    (tmp_path / "nano-many").mkdir()
    command = ["ask", SAMPLE, "Where is the roof?", "--draw", str(tmp_path / "b.png"), "--model", "nano-many"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "\nasked     Give the box of the roof. (in one view, as it has learned boxes)\n" in out
    assert "slices    none, as asked" in out
    assert main([*command, "--max-slice-nums", "2"]) == 0
    out = capsys.readouterr().out
    assert "\nasked     Give the box of the roof.\n" in out and "slices    2 x 1" in out


def test_small_picture_is_not_sliced(tmp_path, capsys):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "small.png")
    assert main(["ask", str(tmp_path / "small.png"), "Color?", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "slices    none" in out
    assert out.endswith(" ms\n\nThe answer may go on: --max-new-tokens 1 allows no more.\n")


@pytest.mark.parametrize("text", ["<ref>roof</ref><box>1 2 3 4</box>", "<quad>1 2</quad>", "the <point>5 6</point>"])
def test_marks_of_places_are_shown(monkeypatch, capsys, text):
    said(monkeypatch, text)
    assert main(["ask", SAMPLE, "Where is the roof?"]) == 0
    assert f"answer: {text}\n" in capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(monkeypatch, capsys):
    import minicpmv_ref.model as model_room

    def hostile(tokens, tokenizer, stop_ids):
        list(tokens)
        yield "\x1b]0;owned\x07fine"

    monkeypatch.setattr(model_room, "decode_stream", hostile)
    assert main(["ask", SAMPLE, "?", "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "fine" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([str(ROOT / "README.md"), "?"], "not a picture"),
        ([str(ROOT / "nowhere.jpg"), "?"], "nowhere.jpg"),
        ([SAMPLE, "?", "--model", "no/such/folder"], "no checkpoint folder"),
        ([SAMPLE, "<image>?"], "<image> is reserved"),
        ([SAMPLE, "?", "--max-slice-nums", "0"], "max_slice_nums"),
        ([SAMPLE, "?", "--max-new-tokens", "0"], "max_new_tokens"),
        ([SAMPLE, "why " * 3000], "the model takes 2048"),
        ([SAMPLE, str(ROOT / "README.md"), "?"], "not a picture"),
        ([SAMPLE, SAMPLE], "the question is missing"),
        ([SAMPLE, " "], "the question, the last argument, is empty"),
        ([SAMPLE, "?", "--frames", "4"], "none is given"),
        ([SAMPLE, SAMPLE, "?", "--draw", "b.png"], "got 2 files"),
        ([SAMPLE, "?", "--draw", "b.pdf"], "save it as .png"),
        ([SAMPLE, "?", "--draw", "no/such/b.png"], "there is no folder"),
        ([SAMPLE, "?", "--draw", SAMPLE], "would overwrite the picture itself"),
    ],
)
def test_one_clear_error(arguments, words, capsys):
    assert main(["ask", *arguments]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and "Traceback" not in err


def test_parts_of_different_dtypes_answer(tmp_path, capsys):
    from minicpmv_ref import MiniCPMV, Processor

    for name in ("vpm", "resampler", "llm"):
        model = MiniCPMV.from_pretrained("nano")
        getattr(model, name).bfloat16()
        model.save_pretrained(tmp_path / name)
        Processor.from_pretrained("nano").save_pretrained(tmp_path / name)
        assert main(["ask", SAMPLE, "What?", "--max-new-tokens", "2", "--model", str(tmp_path / name)]) == 0
        assert "answer: " in capsys.readouterr().out


def test_a_narrow_terminal_encoding(monkeypatch):
    """A Windows console that knows only 256 characters must not crash on a Chinese answer."""
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", narrow)
    assert main(["ask", SAMPLE, "图中有什么?", "--max-new-tokens", "8"]) == 0
