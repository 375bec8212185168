"""Together or in turns: the operating system's figures against the sums of the tensors' bytes."""

import io
import json
import subprocess
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import VERSIONS, ask, phone_model, picture, tiny_model, tiny_processor

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.deploy import sequence
from minicpmv_ref.deploy.memory import parameters
from minicpmv_ref.deploy.sequence import measure, missing
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.processor import read_tokenizer
from minicpmv_ref.scale.profiles import larger

linux = pytest.mark.skipif(missing() is not None, reason="needs Linux")
QUESTION = "What is this?"

# Real processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model():
    """57 M weights in float32: 102 MB of vision, 128 MB of language."""
    return MiniCPMV.seeded(larger)


@linux
@pytest.mark.parametrize("mapped", [False, True])
def test_peaks_are_the_sum_and_the_larger(random_model, mapped):
    model, image = random_model, picture(112, 112)
    processor = Processor(read_tokenizer(BUNDLED / "nano"), larger)
    found = measure(model, processor, image, QUESTION, 3, mapped)
    count = parameters(larger)
    vision, language = 4 * (count["vpm"] + count["resampler"]), 4 * count["llm"]
    assert (found.vision, found.language) == (vision, language)

    assert found.together.rise == pytest.approx(vision + language, rel=0.1)
    assert found.in_turns.rise == pytest.approx(max(vision, language), rel=0.1)
    assert found.together.rise - found.in_turns.rise > min(vision, language) / 2
    for peak in (found.together, found.in_turns):
        assert peak.rise == peak.highest - peak.before
        assert peak.before > 50e6  # Python and PyTorch, before a weight is there

    answer = model.generate(processor(ask(image, QUESTION)), 3)[0].tolist()
    assert found.together.tokens == found.in_turns.tokens == answer


@linux
def test_a_process_that_dies_leaves_its_last_words(tmp_path):
    with pytest.raises(OSError, match=r"died with exit code 1: .*no checkpoint folder at .*language"):
        sequence._run(tmp_path, {})


def test_the_process_has_a_malloc_that_gives_back(tmp_path, monkeypatch):
    """A limit that is set does not grow (man mallopt). Without it, the peak is now right, now too high."""

    def run(command, env, **_):
        assert env["MALLOC_MMAP_THRESHOLD_"] == str(128 * 1024)
        assert env["MALLOC_ARENA_MAX"] == "1"
        assert json.loads((tmp_path / "job.json").read_text()) == {"mapped": True}
        (tmp_path / "together.json").write_text('{"before": 1, "highest": 3, "tokens": [5]}')
        (tmp_path / "in turns.json").write_text('{"before": 1, "highest": 2, "tokens": [5]}')
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(sequence.subprocess, "run", run)
    assert sequence._run(tmp_path, {"mapped": True}) == [sequence.Peak(1, 3, [5]), sequence.Peak(1, 2, [5])]


# Both ways, in this process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("version", [*VERSIONS, "tied"])
def test_the_answer_is_the_same(tmp_path, version, mapped, in_turns):
    model, processor = phone_model() if version == "tied" else (tiny_model(version), tiny_processor(version))
    sequence._write_parts(tmp_path, model, processor)
    batch = processor(ask(picture(130, 90), QUESTION))
    answer = sequence._answer(tmp_path, batch, 5, mapped, in_turns)
    assert answer == model.generate(batch, 5)[0].tolist()


@pytest.mark.parametrize("in_turns", [False, True])
def test_who_is_there_when_language_comes(tmp_path, monkeypatch, in_turns):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    sequence._write_parts(tmp_path, model, processor)
    load, eyes, order = sequence._load, [], []

    def watched(folder, mapped):
        order.append((folder.name, mapped, [tensor() is not None for tensor in eyes]))
        part = load(folder, mapped)
        if folder.name == "vision":
            eyes.extend(map(weakref.ref, (part.vpm.post_layernorm.weight, part.resampler.query)))
        return part

    monkeypatch.setattr(sequence, "_load", watched)
    sequence._answer(tmp_path, processor(ask(picture(56, 56), QUESTION)), 1, False, in_turns)
    assert order == [("vision", False, []), ("language", False, [not in_turns] * 2)]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_part_has_no_bytes_of_the_other(tmp_path, mapped):
    sizes = sequence._write_parts(tmp_path, tiny_model("2.6"), tiny_processor("2.6"))
    for part, other, size in (("vision", "language", sizes[0]), ("language", "vision", sizes[1])):
        loaded = dict(sequence._load(tmp_path / part, mapped).named_parameters())
        mine = [p for name, p in loaded.items() if name.startswith(sequence.PARTS[part])]
        assert sum(p.nbytes for p in mine) == size
        assert not any(p.is_meta for p in mine)
        assert all(p.is_meta for name, p in loaded.items() if name.startswith(sequence.PARTS[other]))
        assert len(mine) < len(loaded)


@linux
@pytest.mark.parametrize("mapped", [False, True])
def test_mapped_or_read(tmp_path, mapped):
    sequence._write_parts(tmp_path, tiny_model("2.6"), tiny_processor("2.6"))
    model = sequence._load(tmp_path / "vision", mapped)
    assert (str(tmp_path) in Path("/proc/self/maps").read_text()) is mapped
    del model


def test_the_child_forgets_its_imports(tmp_path, monkeypatch):
    """What it writes, from a status that stands still; and it answers twice, so that nothing is new the second time."""
    calls, settings = [], {"max_new_tokens": 2, "mapped": True}
    (tmp_path / "status").write_text("Name:\ta:b\nVmHWM:\t  20 kB\nVmRSS:\t  10 kB\n")
    monkeypatch.setattr(sequence, "STATUS", tmp_path / "status")
    monkeypatch.setattr(sequence, "RESET", tmp_path / "reset")

    def answer(folder, batch, **settings):
        calls.append((settings, (tmp_path / "reset").exists()))
        return [7]

    monkeypatch.setattr(sequence, "_answer", answer)
    sequence._write_peak(tmp_path, None, "in turns", **settings)
    settings["in_turns"] = True
    assert calls == [(settings, False), (settings, True)]
    assert (tmp_path / "reset").read_text() == "5"
    peak = json.loads((tmp_path / "in turns.json").read_text())
    assert peak == {"before": 10240, "highest": 20480, "tokens": [7]}


@linux
def test_the_other_process_gets_the_picture_upright(tmp_path, monkeypatch):
    """As a file of its own, in 8 bits and without EXIF, so it cannot be turned twice."""
    exif, seen = Image.Exif(), []
    exif[0x112] = 6
    file = io.BytesIO()
    picture(112, 56).save(file, "PNG", exif=exif)

    def run(folder, job):
        with Image.open(folder / "image.png") as image:
            seen.append((image.size, dict(image.getexif())))
        return [sequence.Peak(0, 0, [])] * 2

    monkeypatch.setattr(sequence, "_run", run)
    measure(tiny_model("2.6"), tiny_processor("2.6"), Image.open(file), QUESTION)
    assert seen == [((56, 112), {})]


def test_read_tensors_are_views_of_one_piece(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {str(kind): torch.randn(3, 5, generator=generator).to(kind) for kind in sequence.DTYPES.values()}
    tensors["vector"] = torch.randn(7, generator=generator)
    path = tmp_path / "some.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    read = sequence._read(path)
    assert read.keys() == load_file(path).keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert len({tensor.untyped_storage().data_ptr() for tensor in read.values()}) == 1
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(read["vector"], tensors["vector"])  # read, not mapped


# What is refused -----------------------------------------------------------------------------------------------------


def test_not_on_linux(monkeypatch, tmp_path):
    monkeypatch.setattr(sequence, "RESET", tmp_path / "none")
    assert "needs Linux" in missing()
    with pytest.raises(OSError, match="needs Linux"):
        measure(None, None, None, QUESTION)


@linux
def test_a_kernel_that_keeps_no_peak(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("VmRSS:\t  10 kB\n")
    monkeypatch.setattr(sequence, "STATUS", tmp_path / "status")
    assert "needs Linux" in missing()


@linux
@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (dict(max_new_tokens=0), "max_new_tokens and top_k must be at least 1"),
        (dict(question="<image>"), "reserved"),
        (dict(image=Image.new("RGB", (0, 5))), "size"),
        (dict(image=None), "image must be a PIL image, got NoneType"),
        (dict(image="cat.jpg"), "image must be a PIL image, got str"),
        (dict(question=None), "question must be str, got NoneType"),
        (dict(question=b"What?"), "question must be str, got bytes"),
        (dict(mapped="no"), "mapped must be True or False, got str"),
    ],
)
def test_bad_input_starts_no_process(monkeypatch, bad, match):
    monkeypatch.setattr(sequence, "_run", None)
    monkeypatch.setattr(sequence, "_write_parts", None)
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    with pytest.raises(ValueError, match=match):
        measure(model, processor, **{"image": picture(56, 56), "question": QUESTION, **bad})


def test_rise():
    peak = sequence.Peak(before=5, highest=12, tokens=[1])
    assert peak.rise == 7
