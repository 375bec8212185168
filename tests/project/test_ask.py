"""`lab.py ask IMAGE QUESTION`: the plan, the answer as it comes, the timings; and one clear error where it cannot."""

import io
import re

import pytest
from PIL import Image
from places import ROOT

from minicpmv_ref import plan_slices
from minicpmv_ref.__main__ import main
from minicpmv_ref.inputs.published import find_folder, read_config

SAMPLE = str(ROOT / "data_samples" / "images" / "temple.jpg")


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


def test_the_same_answer_as_chat(capsys):
    from minicpmv_ref import MiniCPMV, Processor, load_image

    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    messages = [{"role": "user", "content": [load_image(SAMPLE), "What color is the roof?"]}]
    want = model.chat(messages, processor, max_new_tokens=6, temperature=1.0, seed=3, max_slice_nums=2)
    options = ["--max-new-tokens", "6", "--temperature", "1", "--seed", "3", "--max-slice-nums", "2"]
    assert main(["ask", SAMPLE, "What color is the roof?", *options]) == 0
    answer = capsys.readouterr().out.split("answer: ")[1].split("\n\nread the picture")[0]
    assert answer == "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in want)


def test_small_picture_is_not_sliced(tmp_path, capsys):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "small.png")
    assert main(["ask", str(tmp_path / "small.png"), "Color?", "--max-new-tokens", "1"]) == 0
    assert "slices    none" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["<ref>roof</ref><box>1 2 3 4</box>", "<quad>1 2</quad>", "the <point>5 6</point>"])
def test_marks_of_places_are_shown(monkeypatch, capsys, text):
    import torch

    from minicpmv_ref import MiniCPMV, Processor

    ids = Processor.from_pretrained("nano").tokenizer(text + "<|im_end|>")["input_ids"]
    monkeypatch.setattr(MiniCPMV, "stream", lambda *_, **__: iter(torch.tensor(ids)[:, None]))
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
