"""The alignment from end to end on a random model: it runs, repeats itself, goes on where it was cut, and ships."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import lively

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.__main__ import main
from minicpmv_ref.learn import align as module
from minicpmv_ref.learn.align import (
    ANSWERS,
    PROFILES,
    REPORT,
    Alignment,
    align,
    apply_changes,
    choose_pairs,
    collect,
    digest,
    measure,
    pictures,
)
from minicpmv_ref.learn.data import caption, draw
from minicpmv_ref.learn.rlaif import append_records, read_records
from minicpmv_ref.learn.words import LANGUAGES

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Alignment(pictures=20, answers=4, max_new_tokens=8, steps=3, batch=4, lr=1e-3, test_pictures=3)


@pytest.fixture(scope="module")
def processor():
    return Processor.from_pretrained("nano")


@pytest.fixture
def model():
    return MiniCPMV.seeded(nano)


@pytest.fixture(scope="module")
def finished(processor, tmp_path_factory):
    """A run that was not disturbed: (figures, folder, the aligned model)."""
    folder, model, lines = tmp_path_factory.mktemp("run"), MiniCPMV.seeded(nano), []
    figures = align(model, processor, TINY, folder=folder, report=lines.append)
    assert [line.split(":")[0] for line in lines] == ["before", "labeler", "pairs", "training", "after"]
    return figures, folder, model


def test_every_step_of_the_pipeline_leaves_its_figures(finished):
    figures, folder, model = finished
    assert figures["config"]["pictures"] == 20 and figures["base"] != digest(model)
    assert figures["pairs"]["built"] >= figures["pairs"]["kept"] > 0
    assert len(figures["training"]) == 3
    assert figures["training"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert figures["training"][-1]["loss"] < figures["training"][0]["loss"]
    assert figures["labeler"]["accuracy"].value == 1.0  # the truth agrees with itself
    records = read_records(folder / ANSWERS)
    assert len(records) == 21 and all(len(record["answers"]) == 4 for record in records[1:])
    assert json.loads((folder / REPORT).read_text()) == json.loads(json.dumps(figures))


def test_only_the_language_model_changes_and_only_changes_are_written(finished, model):
    _, folder, aligned = finished
    assert not list(folder.glob(".*"))  # no drafts
    from safetensors.torch import load_file

    written = load_file(folder / "model.safetensors")
    assert written and all(name.startswith("llm.") for name in written)
    for name, tensor in model._own_tensors().items():
        assert torch.equal(aligned._own_tensors()[name], tensor) == (name not in written)
    apply_changes(model, folder)
    assert digest(model) == digest(aligned)
    assert torch.equal(model.llm.lm_head.weight, aligned.llm.lm_head.weight)  # tied
    with pytest.raises(ValueError, match="changes the model"):
        apply_changes(model, folder)  # it is not the base any more


def test_a_run_repeats_itself_and_goes_on_where_it_was_cut(finished, processor, model, tmp_path):
    figures, folder, aligned = finished
    whole = (folder / ANSWERS).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (
        0,
        len(lines[0]) // 2,
        len(lines[0]),
        len(b"".join(lines[:6])) + 9,
        len(b"".join(lines[:17])),
        len(whole),
    ):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        records = collect(model, processor, pictures(TINY, "train", model), TINY, "truth", path)
        assert path.read_bytes() == whole
        assert records == read_records(path)[1:]
    (tmp_path / ANSWERS).write_bytes(whole[:700])
    again = align(model, processor, TINY, folder=tmp_path)
    assert again == figures and digest(model) == digest(aligned)


def test_answers_of_another_run_are_refused(finished, processor, model, tmp_path):
    _, folder, aligned = finished
    samples = pictures(TINY, "train", model)
    for changed, config, labeler in (
        (aligned, TINY, "truth"),
        (model, replace(TINY, temperature=0.5), "truth"),
        (model, replace(TINY, seed=1), "truth"),
        (model, replace(TINY, language="fr"), "truth"),
        (model, TINY, "self"),
    ):
        with pytest.raises(ValueError, match="another run"):
            collect(changed, processor, samples, config, labeler, folder / ANSWERS)
    records = read_records(folder / ANSWERS)
    append_records(tmp_path / ANSWERS, [records[0], records[2]])
    with pytest.raises(ValueError, match="line 2: not the answers to picture 0"):
        collect(model, processor, samples, TINY, "truth", tmp_path / ANSWERS)
    del records[1]["truths"]
    append_records(tmp_path / "b.jsonl", records[:2])
    with pytest.raises(ValueError, match="line 2: not the answers to picture 0"):
        collect(model, processor, samples, TINY, "truth", tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="line 12: not the answers to picture 10"):
        collect(model, processor, samples[:10], TINY, "truth", folder / ANSWERS)


def test_pictures_are_those_of_the_split(model):
    train, test = (pictures(replace(TINY, pictures=50, test_pictures=40), split, model) for split in ("train", "test"))
    assert (len(train), len(test)) == (50, 40)
    assert not any(sample.held_out for sample in train) and all(sample.held_out for sample in test)
    assert [s.key for s in pictures(replace(TINY, seed=1), "train", model)] != [s.key for s in train[:20]]
    assert pictures(replace(TINY, language="zh", kind="long"), "test", model)[0].language == "zh"


def test_measuring_uses_greedy_and_sampled_answers(processor, model, monkeypatch):
    samples, seen = pictures(replace(TINY, test_pictures=40), "test", model), []

    def answer(model, processor, prompts, n, *, seed, **sampling):
        seen.append((len(prompts), n, seed, sampling))
        return [
            [caption(sample.facts, LANGUAGES["en"])] for sample in samples if any(sample.prompt == p for p in prompts)
        ]

    monkeypatch.setattr(module, "sample_answers", answer)
    figures = measure(model, processor, samples, TINY)
    assert {name: figures[name]["recall"].value for name in figures} == dict(greedy=1, sampled=1)
    greedy, sampled = dict(temperature=0.0, max_new_tokens=8), dict(temperature=1, top_p=1, top_k=100, max_new_tokens=8)
    assert seen == [(32, 1, 0, greedy), (8, 1, 32, greedy), (32, 1, 0, sampled), (8, 1, 32, sampled)]


def test_every_chunk_is_sampled_with_a_seed_of_its_own(processor, model, monkeypatch):
    seen = []

    def answer(model, processor, prompts, n, *, seed, **sampling):
        seen.append((len(prompts), n, seed))
        return [[""] * n for _ in prompts]

    monkeypatch.setattr(module, "sample_answers", answer)
    config = replace(TINY, seed=7)
    collect(model, processor, pictures(config, "train", model), config)
    assert seen == [(16, 4, 7), (4, 4, 23)]


def test_pairs_prefer_what_is_true(model):
    samples = [draw(i) for i in range(3)]
    record = dict(
        answers=["purple star top left, red star top left.", "", "circle.", "purple star top left."],
        claims=["purple star top left", "red star top left", "circle"],
        verdicts=[True, False, False],
    )
    same = dict(answers=["a", "b"], claims=["a", "b"], verdicts=[False, False])
    none = dict(answers=["", "."], claims=[], verdicts=[])
    for language, rho in (("en", 0.5), ("zh", 0.48)):  # 4 of 8 words are missing; 19 of 40 characters
        pairs, counts = choose_pairs([record, same, none], samples, replace(TINY, language=language))
        assert counts == dict(built=2, kept=2, rho=rho, no_claims=3, pictures_without=2)
        assert {pair.chosen for pair in pairs} == {"purple star top left."}
        assert {pair.rejected for pair in pairs} == {record["answers"][0], "circle."}
        assert all(pair.prompt is pairs[0].prompt and pair.prompt == samples[0].prompt for pair in pairs)
    with pytest.raises(ValueError, match="zip"):
        choose_pairs([record], samples, TINY)


@pytest.mark.parametrize("labeler", ["self", "stronger"])
def test_other_labelers(processor, model, labeler):
    judge = "self" if labeler == "self" else (lively(MiniCPMV.seeded(nano)), processor)
    records = collect(model, processor, pictures(TINY, "train", model), TINY, judge)
    assert all(len(r["claims"]) == len(r["verdicts"]) == len(r["truths"]) for r in records)


def test_impossible_runs(processor, model, tmp_path):
    with pytest.raises(ValueError, match="labeler must be"):
        align(model, processor, TINY, "nobody")
    with pytest.raises(ValueError, match="no pairs"):
        align(model, processor, replace(TINY, answers=1), folder=tmp_path)
    assert digest(model) == digest(MiniCPMV.seeded(nano))


def test_damaged_changes_are_refused(finished, model, tmp_path):
    from safetensors.torch import save_file

    _, folder, _ = finished
    (tmp_path / REPORT).write_bytes((folder / REPORT).read_bytes())
    before = digest(model)
    for tensors in ({"llm.surprise": torch.zeros(2)}, {"llm.model.norm.weight": torch.zeros(2)}):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="no tensor of this model"):
            apply_changes(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        apply_changes(model, tmp_path)
    assert digest(model) == before
    with pytest.raises(OSError):
        apply_changes(model, tmp_path / "missing")


def test_the_digest_sees_every_weight(model):
    before = digest(model)
    assert before == digest(MiniCPMV.seeded(nano)) and len(before) == 16
    with torch.no_grad():
        model.vpm.post_layernorm.bias[-1] += 1e-3
    assert digest(model) != before
    assert digest(model.bfloat16()) != before


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "fast", TINY)
    monkeypatch.setattr(MiniCPMV, "from_pretrained", lambda path: MiniCPMV.seeded(nano))
    folder = tmp_path / "run"
    assert main(["dpo", "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "before: greedy" in out and "alignment" in out and str(folder) in out
    assert {"answers.jsonl", "config.json", "model.safetensors", "report.json", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert main(["dpo", "--folder", str(folder), "--seed", "1"]) == 1
    assert "another run" in capsys.readouterr().err
