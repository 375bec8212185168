"""`lab.py export` and `lab.py phone`: files, sizes and the answer, and one clear error where they cannot."""

import importlib.util
import io
import re
import sys
import tomllib

import pytest
from places import ROOT

from minicpmv_ref import MiniCPMV, Processor, load_image
from minicpmv_ref.__main__ import main
from minicpmv_ref.commands.export import MIXTURES
from minicpmv_ref.deploy import gguf, llamacpp

SAMPLE = str(ROOT / "data_samples" / "images" / "temple.jpg")


def error_of(arguments, capsys) -> str:
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    return err


def test_the_mixtures_are_those_of_the_library():
    assert set(MIXTURES) == set(gguf.MIXTURES)


# export --------------------------------------------------------------------------------------------------------------


def test_export_writes_what_the_library_writes(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert main(["export", "nano", str(folder), "--mixture", "Q8_0"]) == 0
    out = capsys.readouterr().out
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    for path in gguf.export(model, processor, tmp_path / "library", "Q8_0"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
        assert f"{path.stat().st_size / 1e6:.2f} MB  {folder / path.name}" in out
    assert "\r" not in out, "no moving line where nobody watches"


def test_the_default_is_q4_k_m(tmp_path, capsys):
    assert main(["export", "nano", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mmproj-F16.gguf", "model-Q4_K_M.gguf"]


def test_a_folder_of_yours(tmp_path):
    MiniCPMV.from_pretrained("nano").save_pretrained(tmp_path / "mine")
    Processor.from_pretrained("nano").save_pretrained(tmp_path / "mine")
    assert main(["export", str(tmp_path / "mine"), str(tmp_path / "a")]) == 0
    assert main(["export", "nano", str(tmp_path / "b")]) == 0
    names = ["model-Q4_K_M.gguf", "mmproj-F16.gguf"]
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]


def test_files_are_replaced_only_if_forced(tmp_path, capsys):
    old = tmp_path / "mmproj-F16.gguf"
    old.write_text("old")
    err = error_of(["export", "nano", str(tmp_path)], capsys)
    assert err == f"error: {old} is there already; --force replaces it\n"
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]
    assert main(["export", "nano", str(tmp_path), "--force"]) == 0
    assert old.read_bytes()[:4] == b"GGUF"


def test_progress_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["export", "nano", str(tmp_path)]) == 0
    steps = re.findall(r"\r([\d.]+) of ([\d.]+) MB  ([\w.]+)", sys.stdout.getvalue())
    assert len(steps) > 50 and steps[-1][0] == steps[-1][1] and steps[0][2] == "output_norm.weight"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/folder", "OUT"], "no checkpoint folder"),
        (["nano", str(ROOT / "README.md")], "README.md"),
        ([str(ROOT / "docs"), "OUT"], "config.json"),
    ],
)
def test_one_clear_error(arguments, words, tmp_path, capsys):
    err = error_of(["export", *[word.replace("OUT", str(tmp_path / "out")) for word in arguments]], capsys)
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_mixture(capsys):
    with pytest.raises(SystemExit):
        main(["export", "nano", "out", "--mixture", "Q2_K"])
    assert "'Q4_K_M', 'Q8_0', 'F16', 'F32'" in capsys.readouterr().err


# phone ---------------------------------------------------------------------------------------------------------------


@pytest.mark.llamacpp
@pytest.mark.parametrize("mixture", ["Q4_K_M", "F16"])
def test_phone_answers_as_the_library_does(mixture, tmp_path, capsys):
    if llamacpp.missing():
        pytest.skip("needs the extra: pip install minicpmv-ref[llamacpp]")
    assert main(["phone", SAMPLE, "What is this?", "--mixture", mixture, "--max-new-tokens", "5"]) == 0
    out = capsys.readouterr().out
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    paths = gguf.export(model, processor, tmp_path, mixture)
    prompt = llamacpp.prompt_text("What is this?", processor), load_image(SAMPLE)
    answer = llamacpp.run(*paths, [prompt], max_new_tokens=5)[0]
    assert processor.tokenizer.decode(answer.tokens, skip_special_tokens=True) in out
    assert f"{answer.prompt_tokens} tokens, {sum(map(len, answer.visual))} of them visual" in out
    for path in paths:
        assert f"{path.stat().st_size / 1e6:.2f} MB" in out
    assert re.search(rf"decoding {len(answer.tokens)} tokens in [\d.,]+ ms: [\d,]+ tokens/s", out)


@pytest.mark.llamacpp
def test_phone_refuses_what_ask_refuses(capsys):
    if llamacpp.missing():
        pytest.skip("needs the extra: pip install minicpmv-ref[llamacpp]")
    for arguments, words in [
        ([str(ROOT / "README.md"), "?"], "not a picture"),
        ([SAMPLE, "<image>?"], "<image> is reserved"),
        ([SAMPLE, llamacpp.MARKER], "<__media__> is reserved"),
        ([SAMPLE, "?", "--model", "no/such/folder"], "no checkpoint folder"),
        ([SAMPLE, "?", "--max-new-tokens", "0"], "max_new_tokens"),
        ([SAMPLE, "why " * 3000], "the model takes"),
    ]:
        err = error_of(["phone", *arguments], capsys)
        assert words in err and err.count("\n") == 1


@pytest.fixture
def stand_in(monkeypatch):
    """An answer of llama.cpp without llama.cpp."""
    import numpy as np

    jobs = []

    def run(llm, mmproj, prompts, max_new_tokens, threads):
        jobs.append((gguf.read_gguf(llm), gguf.read_gguf(mmproj), prompts, max_new_tokens, threads))
        tokens = Processor.from_pretrained("nano").tokenizer("a \x1b[31m red one").input_ids
        return [llamacpp.Answer(tokens, 30, 0.5, 0.25, [np.zeros((16, 256))], np.zeros(9))]

    monkeypatch.setattr(llamacpp, "run", run)
    monkeypatch.setattr(llamacpp, "missing", lambda: None)
    return jobs


def test_phone_hands_over_and_prints(stand_in, capsys):
    assert main(["phone", SAMPLE, "Color?", "--mixture", "Q8_0", "--threads", "2", "--max-new-tokens", "7"]) == 0
    out = capsys.readouterr().out
    llm, mmproj, [(text, [image])], most, threads = stand_in[0]
    assert llm.keys["general.file_type"] == 7 and mmproj.keys["general.architecture"] == "clip"
    assert f"{llamacpp.MARKER}\nColor?" in text and image.size == (640, 427)
    assert (most, threads) == (7, 2)
    assert "30 tokens, 16 of them visual, in 500.0 ms" in out
    assert "\x1b" not in out and "red one" in out, "control characters do not reach the terminal"
    count = len(Processor.from_pretrained("nano").tokenizer("a \x1b[31m red one").input_ids)
    assert f"decoding {count} tokens in 250.0 ms: {count / 0.25:.0f} tokens/s" in out


def test_phone_keeps_the_marks_of_places_and_drops_the_stop_token(stand_in, monkeypatch, capsys):
    import numpy as np

    text = "<ref>the star</ref><box>10 20 300 400</box><|im_end|>"
    tokens = Processor.from_pretrained("nano").tokenizer(text).input_ids
    answer = llamacpp.Answer(tokens, 30, 0.5, 0.25, [np.zeros((16, 256))], np.zeros(9))
    monkeypatch.setattr(llamacpp, "run", lambda *args: [answer])
    assert main(["phone", SAMPLE, "Where?"]) == 0
    assert f"answer: {text.removesuffix('<|im_end|>')}\n" in capsys.readouterr().out


def test_phone_without_the_extra_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llama_cpp" else find(name, *a))
    err = error_of(["phone", SAMPLE, "?"], capsys)
    assert "CMAKE_ARGS=-DGGML_NATIVE=OFF" in err and "C++ compiler" in err
    with pytest.raises(ImportError, match="pip install llama-cpp-python"):
        llamacpp.run("a", None, [])


def test_the_version_to_install_is_the_tested_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = project["optional-dependencies"]["llamacpp"]
    assert pin in llamacpp.INSTALL
    assert pin.replace("-", "_") in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_prompt_text_equals_the_processors():
    processor = Processor.from_pretrained("nano")
    batch = processor([{"role": "user", "content": [load_image(SAMPLE), "What?"]}], use_image_id=False)
    text = processor.tokenizer.decode(batch.input_ids[0])
    text = re.sub(r"<image>.*(</image>|</slice>)", llamacpp.MARKER, text, flags=re.S)
    assert llamacpp.prompt_text("What?", processor) == text
    assert llamacpp.MARKER not in llamacpp.prompt_text("What?", processor, images=0)
    for marker in (llamacpp.MARKER, "</slice>"):
        with pytest.raises(ValueError, match=f"{marker} is reserved"):
            llamacpp.prompt_text(f"What {marker}", processor)
