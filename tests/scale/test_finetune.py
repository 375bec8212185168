"""Fine-tuning on your own data: the order of records, all parts or LoRA, files or shards, stopped and gone on with."""

import copy
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from places import LIB, ROOT
from tiny import picture, same_weights, tiny_model, tiny_processor, weights

from minicpmv_ref import MiniCPMV, Processor, parse_boxes
from minicpmv_ref.__main__ import main
from minicpmv_ref.learn.evaluate import answers, evaluate, share_of_words
from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.scale import entries as reading
from minicpmv_ref.scale import finetune as room
from minicpmv_ref.scale import loader, machine
from minicpmv_ref.scale import run as trainer
from minicpmv_ref.scale.finetune import Recipe, digest, in_order, loss_on, read_any, sample_at, train_on, words_right
from minicpmv_ref.scale.lora import load_lora
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.records import Record, messages, read_records
from minicpmv_ref.scale.shards import open_shards, write_shards
from minicpmv_ref.scale.steps import train_steps as train
from minicpmv_ref.scale.training_checkpoints import training_checkpoints

FLOAT32 = Machine(half_precision=False)
STAGE = Stage("mine", "answer", {"resampler": 1e-3, "llm": 1e-3}, {}, steps=6, batch=2)


def entry(number, answer, **changes):
    talk = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": answer}]
    return {"id": number, "image": f"{number}.png", "conversations": talk, **changes}


@pytest.fixture
def files(tmp_path):
    """my.json with five good records and a bad one, test.json with a good one, and their pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(5):
        picture(60 + 30 * i, 50, i).save(folder / f"{i}.png")
    entries = [entry(i, "A cat" * (i + 1)) for i in range(5)]
    (folder / "my.json").write_text(json.dumps([*entries, entry("bad", "A cat")]))
    (folder / "test.json").write_text(json.dumps([entry(0, "And a cat")]))
    return folder / "my.json", folder / "test.json"


@pytest.fixture
def small(files):
    return read_records(files[0])[0]


@pytest.fixture
def checkpoint(tmp_path):
    tiny_model("2.6").save_pretrained(tmp_path / "tiny")
    tiny_processor("2.6").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


# ---- the order, and the loop


def test_every_epoch_shows_every_record_once_in_a_new_order():
    order = [sample_at(i, 7, "s") for i in range(70)]
    epochs = [tuple(order[i : i + 7]) for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(epochs)) > 5
    assert [sample_at(i, 7, "s") for i in reversed(range(70))] == order[::-1]
    assert [sample_at(i, 7, "t") for i in range(70)] != order
    counts = [sum(sample_at(7 * e, 7, "s") == k for e in range(700)) for k in range(7)]
    assert all(60 < count < 145 for count in counts)  # each record comes first about 100 times
    for index, n in ((-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="index counts from 0"):
            sample_at(index, n)


def fine_tuned(records, stage=STAGE, **options):
    model, options = tiny_model("2.6"), {"machine": FLOAT32, "samples": in_order(records), **options}
    return model, list(train(model, tiny_processor("2.6"), stage, **options))


def test_records_come_in_their_order(small):
    for seed in (0, 3):
        samples = in_order(small, seed)
        assert [samples(i) for i in range(12)] == [small[sample_at(i, 5, seed)] for i in range(12)]
    with pytest.raises(ValueError, match="at least one record"):
        in_order([])


def test_shards_come_in_an_order_of_their_own(small, tmp_path):
    write_shards(small, tmp_path / "shards", per_shard=2)
    shards, _ = open_shards(tmp_path / "shards")
    samples = in_order(shards, 3)
    assert [samples(i).id for i in range(12)] == [shards.sample(i, seed=3).id for i in range(12)]


def test_a_resumed_run_ends_as_the_uninterrupted_one(small, monkeypatch):
    shown = []
    monkeypatch.setattr(reading, "messages", lambda record, real=messages: shown.append(record.id) or real(record))
    whole, steps = fine_tuned(small)
    uninterrupted = shown[:]
    shown.clear()
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, STAGE)
    given = {"samples": in_order(small), "machine": FLOAT32}
    run = train(model, processor, STAGE, optimizer=optimizer, **given)
    losses = [next(run).loss for _ in range(3)]
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again = tiny_model("2.6", seed=1)
    again.load_state_dict(saved[0])
    optimizer = optimizer_for(again, STAGE)
    optimizer.load_state_dict(saved[1])
    rest = list(train(again, processor, STAGE, optimizer=optimizer, done=3, **given))
    assert [step.step for step in rest] == [4, 5, 6]
    assert losses + [step.loss for step in rest] == [step.loss for step in steps]
    assert [step.lr_scale for step in rest] == [step.lr_scale for step in steps[3:]]
    assert same_weights(weights(whole), weights(again))
    assert shown == uninterrupted == [small[sample_at(i, 5, 0)].id for i in range(12)]


def test_only_the_parts_of_the_stage_learn(small):
    before, (model, _) = weights(tiny_model("2.6")), fine_tuned(small)
    changed = {name.split(".")[0] for name, p in weights(model).items() if not torch.equal(p, before[name])}
    assert changed == {"resampler", "llm"}


def test_it_learns_and_the_loss_does_not_depend_on_the_batch(small):
    stage = replace(STAGE, steps=30, batch=5, learning_rates={"resampler": 3e-3, "llm": 3e-3})
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    before = loss_on(model, processor, small)
    assert loss_on(model, processor, small, batch=1) == pytest.approx(before, rel=1e-5)
    batch = processor([messages(record) for record in small])
    assert model(batch).loss.item() == pytest.approx(before, rel=1e-5)
    list(train(model, processor, stage, samples=in_order(small), machine=FLOAT32))
    assert loss_on(model, processor, small) < 0.3 * before


def test_a_loss_on_nothing():
    for score in (loss_on, words_right):
        with pytest.raises(ValueError, match="at least one record"):
            score(tiny_model("2.6"), tiny_processor("2.6"), [])


def test_words_that_are_right(small, monkeypatch):
    talk = (("user", "<image>\nWhat?"), ("assistant", "A cat"), ("user", "And?"), ("assistant", "two dogs"))
    records, asked = [replace(small[0], turns=talk), replace(small[1], turns=talk[:2])], []

    def answers(model, processor, prompts, **options):
        asked.append([len(prompt) for prompt in prompts])
        return ["A dog", "two dogs", "A cat"][: len(prompts)]

    monkeypatch.setattr(room, "answers", answers)
    assert words_right(None, None, records) == 5 / 6  # each question after the true answers before it
    assert words_right(None, None, records, n=1, seed=1) == 1 / 2  # of seed 0 it is the second question
    assert asked == [[1, 3, 1], [1]]


def test_long_answers_are_not_cut_off(small, monkeypatch):
    """A model that says the right words, as far as it may go on."""
    processor, text = tiny_processor("2.6"), " ".join(map(str, range(200)))
    records = [replace(small[0], turns=(("user", "<image>\nRead."), ("assistant", text)))]

    def answers(model, processor, prompts, max_new_tokens):
        ids = processor.tokenizer(text)["input_ids"] + [processor.stop_ids[0]]
        return [processor.tokenizer.decode(ids[:max_new_tokens], skip_special_tokens=True)] * len(prompts)

    monkeypatch.setattr(room, "answers", answers)
    assert words_right(None, processor, records) == 1


def known_answers(monkeypatch, said):
    """Let a model say these texts, by the number that is its question."""
    asked = []

    def answers(model, processor, prompts, **options):
        asked.append([int(prompt[-1]["content"].split()[-1]) for prompt in prompts])
        return [said(number) for number in asked[-1]]

    monkeypatch.setattr(room, "answers", answers)
    return asked


def asking(numbers, *, turns=1):
    """Records of text alone, with questions that are numbers; every answer is "yes"."""
    talk = [(("user", f"Question {number}"), ("assistant", "yes")) for number in numbers]
    return [Record(str(i), {}, sum(talk[i : i + turns], ())) for i in range(0, len(talk), turns)]


@pytest.mark.parametrize("turns", [1, 2, 40])
def test_answers_are_drawn_from_all_of_them(monkeypatch, turns):
    """The first 100 of 400 are right, so a quarter is; from the front, it would be all."""
    asked = known_answers(monkeypatch, lambda number: "yes" if number < 100 else "no")
    records = asking(range(400), turns=turns)
    assert words_right(None, None, records, n=400) == words_right(None, None, records, n=500) == 1 / 4
    assert asked.pop() == asked.pop() == list(range(400))
    shares = [words_right(None, None, records, seed=seed) for seed in (0, 0, 1, 2, "x")]
    assert shares[0] == shares[1] and len(set(map(tuple, asked))) == 4  # a seed decides
    assert all(0.1 < share < 0.4 for share in shares)
    assert all(len(set(numbers)) == 100 and numbers == sorted(numbers) for numbers in asked)
    counts = [0] * 400
    for seed in range(60):
        words_right(None, None, records, seed=seed)
        for number in asked[-1]:
            counts[number] += 1
    assert min(counts) >= 2 and max(counts) < 32  # each is asked 15 times on average


def test_up_to_a_hundred_answers_are_all_asked(monkeypatch):
    asked = known_answers(monkeypatch, lambda number: "yes" if number < 10 else "no")
    for n in (1, 40, 100):
        assert words_right(None, None, asking(range(n))) == min(1, 10 / n) and asked[-1] == list(range(n))


def test_the_report_says_how_many_answers_were_asked(files, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "answers", lambda model, processor, prompts, **how: ["And a cat"] * len(prompts))
    for n, words in ((130, "100 of 130"), (3, "3 of 3")):
        files[1].write_text(json.dumps([entry(0, "And a cat", id=i) for i in range(n)]))
        lines = []
        train_on(
            files[0], checkpoint, tmp_path / str(n), files[1], recipe=Recipe(1, 1), report=lines.append, progress=False
        )
        assert lines[-1] == f"records: 100% of the held-out words right -> 100%, in {words} answers"


def test_wrong_types_are_named(small, files, checkpoint):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    for call, name in {
        lambda: sample_at(0.5, 3): ".*index",
        lambda: sample_at(True, 3): ".*index",
        lambda: sample_at(0, "3"): ".*n",
        lambda: sample_at(0, 3, None): "seed",
        lambda: in_order(None): "records",
        lambda: in_order(iter(small)): "records",
        lambda: in_order([*small, None]): r"records\[5\]",
        lambda: in_order(small, 0.5): "seed",
        lambda: loss_on(model, processor, "abc"): "records",
        lambda: loss_on(model, processor, small, batch=2.0): "batch",
        lambda: words_right(model, processor, {}): "records",
        lambda: words_right(model, processor, small, n="5"): "n",
        lambda: words_right(model, processor, small, seed=[]): "seed",
        lambda: words_right(None, processor, small): "model",
        lambda: read_any(None): "path",
        lambda: read_any(b"my.json"): "path",
        lambda: read_any(files[0], root=5): "root",
        lambda: read_any(files[0], processor="nano"): "processor",
        lambda: digest(None): "record",
        lambda: digest(small): "record",
        lambda: answers(None, processor, []): "model",
        lambda: answers(model, None, []): "processor",
        lambda: answers(model, processor, "Hi"): "prompts",
        lambda: answers(model, processor, [{"role": "user", "content": "Hi"}]): r"prompts\[0\]",
        lambda: evaluate(model, processor, n=1.5): "n",
        lambda: evaluate(model, processor, seed=None): "seed",
        lambda: evaluate(None, processor): "model",
        lambda: share_of_words("abc", "abc"): "said",
        lambda: share_of_words(["a"], [5]): r"wanted\[0\]",
    }.items():
        with pytest.raises(TypeError, match=f"^{name} must be "):
            call()
    for call, words in {
        lambda: sample_at(0, 10**12): "n must be an integer of at least 1 and at most 100,000,000",
        lambda: loss_on(model, processor, small, batch=0): "batch must be an integer of at least 1",
        lambda: words_right(model, processor, small, n=0): "n must be an integer of at least 1",
        lambda: words_right(model, processor, [replace(small[0], turns=small[0].turns[:1])]): "with an answer",
        lambda: loss_on(
            model, processor, [replace(small[0], turns=small[0].turns[:1])]
        ): "none of their tokens is supervised",
        lambda: evaluate(model, processor, n=0): "n must be an integer of at least 1",
        lambda: evaluate(model, processor, language="de"): "language must be one of en, zh, fr",
        lambda: share_of_words(["a"], []): "said must hold as many answers as wanted, 0, got 1",
        lambda: share_of_words([], []): "wanted must hold at least one word",
        lambda: share_of_words(["a"], [" , "]): "wanted must hold at least one word",
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_a_model_that_learns_still_does_after_a_failed_answer(small):
    model, processor = tiny_model("2.6").train(), tiny_processor("2.6")
    with pytest.raises(ValueError):
        answers(model, processor, [[]])
    assert model.training


def test_a_record_that_is_too_long_is_named_and_not_cut(small):
    long = replace(small[0], id="novel", turns=(*small[0].turns[:1], ("assistant", "cat " * 2000)))
    run = train(tiny_model("2.6"), tiny_processor("2.6"), STAGE, samples=in_order([long]))
    where = "mine, step 1, one of the samples novel, novel: conversation 0"
    with pytest.raises(ValueError, match=rf"{where}: the prompt has \d+ tokens"):
        next(run)


def test_a_loss_that_is_not_finite_stops_with_its_step(small):
    model = tiny_model("2.6")
    with torch.no_grad():
        model.resampler.query.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"mine, step 1: the loss is nan; its samples: \d, \d"):
        next(train(model, tiny_processor("2.6"), STAGE, samples=in_order(small)))


# ---- the command


def arguments(files, checkpoint, out, *options):
    data, test = files
    where = ["--from", str(checkpoint), "--held-out", str(test), "--out", str(out), "--threads", "1"]
    return ["train", "--data", str(data), *where, *options]


def command(files, checkpoint, out, *options):
    return main(arguments(files, checkpoint, out, *options))


def interrupted(files, checkpoint, out, monkeypatch, *options, at=7):
    """The command, and Ctrl-C at a sample; of two in a step, the seventh from 0 stands in step 4."""

    def interrupt(index, n, seed, real=sample_at):
        if index == at:
            signal.raise_signal(signal.SIGINT)
        return real(index, n, seed)

    with monkeypatch.context() as context:
        context.setattr(room, "sample_at", interrupt)
        return command(files, checkpoint, out, *options)


def losses_in(folder):
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def words_of(folder, file):
    return words_right(MiniCPMV.from_pretrained(folder), Processor.from_pretrained(folder), read_records(file)[0])


def loss_of(folder, file):
    return loss_on(MiniCPMV.from_pretrained(folder), Processor.from_pretrained(folder), read_records(file)[0])


def test_the_command_trains_on_your_data(files, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(files, checkpoint, out, "--steps", "12", "--batch", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"my.json, seed 0, 1 CPU threads; everything is written to {out}")
    assert lines[1].endswith("my.json: 6 records, 5 good, 1 skipped (image 1)") and "record 5 (id 'bad')" in lines[2]
    assert lines[3].endswith("test.json: 1 records, 1 good, 0 skipped")
    assert lines[4] == "records: vpm, resampler, llm for 12 steps of 2 samples"
    assert lines[5].startswith("memory: about 0.")
    before, after = map(float, re.search(r"held-out loss (\S+) -> (\S+) in \d+ s", lines[6]).groups())
    assert before == pytest.approx(loss_of(checkpoint, files[1]), abs=1e-3)
    assert after == pytest.approx(loss_of(out, files[1]), abs=1e-3) and after < before
    words = [f"{words_of(folder, files[1]):.0%}" for folder in (checkpoint, out)]
    assert lines[7] == f"records: {words[0]} of the held-out words right -> {words[1]}, in 1 of 1 answers"
    assert lines[8] == f'ask it: lab.py ask IMAGE "QUESTION" --model {out}'
    assert main(["ask", str(files[0].with_name("0.png")), "What?", "--model", str(out), "--max-new-tokens", "2"]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if "held_out" in row] == [10, 12]
    assert (out / "curves.png").is_file() and not (out / "saves").exists()
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {out.stat().st_mode & 0o666}
    assert command(files, checkpoint, out) == 1  # nothing is overwritten
    assert "holds a checkpoint already; write somewhere else" in capsys.readouterr().err


def test_several_pictures_and_boxes_train(files, checkpoint, tmp_path, capsys):
    """Records in the official form: pictures by their placeholders, a box in an answer and one in a question."""
    folder, pair = files[0].parent, {"<image_00>": "0.png", "<image_01>": "3.png"}
    told = "<ref>cat</ref><box>100 200 300 400</box>"
    talks = [
        (pair, "<image_00>\n<image_01>\nWhere is the cat in picture 2?", told),
        ("1.png", "<image>\nWhat is in <box>0 0 500 1000</box>?", "A cat"),
    ]
    records = []
    for image, question, answer in talks:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        records.append({"id": len(records), "image": image, "conversations": turns})
    (folder / "many.json").write_text(json.dumps(records))
    processor = Processor.from_pretrained(checkpoint)
    found, report = read_records(folder / "many.json", pictures="decode", processor=processor)
    assert len(found) == 2 and not report.problems
    batch = processor([record.messages for record in found])
    assert [len(plans) for plans in batch.plans] == [2, 1]
    learned = batch.input_ids[0][batch.labels[0] != -100]
    assert processor.tokenizer.decode(learned).startswith(told)
    both, out = (folder / "many.json", folder / "many.json"), tmp_path / "out"
    assert command(both, checkpoint, out, "--steps", "40", "--batch", "2", "--lr-scale", "10") == 0
    assert "of the held-out words right -> 100%, in 2 of 2 answers" in capsys.readouterr().out
    said = MiniCPMV.from_pretrained(out).chat(found[0].messages[:-1], processor, max_new_tokens=32)
    assert parse_boxes(said, (1000, 500)) == [("cat", (100, 100, 300, 200))]


@contextmanager
def another_config(checkpoint):
    """The same weights, but fewer slices of a picture."""
    kept = (checkpoint / "config.json").read_text()
    config = json.loads(kept)
    config["slicing"]["max_slice_nums"] = 2
    (checkpoint / "config.json").write_text(json.dumps(config))
    yield
    (checkpoint / "config.json").write_text(kept)


def test_the_command_goes_on_where_it_was_stopped(files, checkpoint, tmp_path, monkeypatch, capsys):
    options = ("--steps", "6", "--batch", "2")
    assert command(files, checkpoint, tmp_path / "whole", *options) == 0

    assert interrupted(files, checkpoint, tmp_path / "cut", monkeypatch, *options) == 130
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("stopped after step 4; everything is saved in ") and said.endswith("goes on from there")
    assert command(files, checkpoint, tmp_path / "cut", *options, "--seed", "1") == 1
    assert "seed was 0 and is 1" in capsys.readouterr().err
    picture(70, 50, 9).save(files[0].with_name("1.png"))  # another picture under the same name
    assert command(files, checkpoint, tmp_path / "cut", *options) == 1
    assert "belongs to another training: data has changed. Go on" in capsys.readouterr().err
    picture(90, 50, 1).save(files[0].with_name("1.png"))
    with another_config(checkpoint):
        assert command(files, checkpoint, tmp_path / "cut", *options) == 1
    assert "slicing.max_slice_nums was 9 and is 2. Go on" in capsys.readouterr().err
    assert command(files, checkpoint, tmp_path / "cut", *options) == 0
    assert "records: goes on after step 4, from " in capsys.readouterr().out
    whole, cut = (MiniCPMV.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert same_weights(weights(whole), weights(cut))


def test_the_same_command_again_says_that_it_is_done(files, checkpoint, tmp_path, capsys):
    out, options = tmp_path / "out", ("--steps", "2", "--batch", "2")
    assert command(files, checkpoint, out, *options) == 0
    capsys.readouterr()
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "curves.png"}
    (out / ".checkpoint.part").mkdir()  # as a process leaves it that was killed at the very end
    (out / "curves.png").unlink()
    assert command(files, checkpoint, out, *options) == 0
    said = capsys.readouterr().out
    assert f"records: done before, {out} is its end" in said and "memory: " not in said
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "curves.png"} == times
    assert (out / "curves.png").is_file()
    for other, words in (
        (("--seed", "1"), "seed was 0 and is 1"),
        (("--steps", "3"), "stage.steps was 2 and is 3"),
        (("--lora", "2"), "lora was None and is 2"),
    ):
        assert command(files, checkpoint, out, *options, *other) == 1
        error = capsys.readouterr().err
        assert f"{out} holds a checkpoint already; write somewhere else" in error and words in error
    shutil.copytree(checkpoint, tmp_path / "moved")  # the same base in another place
    assert command(files, tmp_path / "moved", out, *options) == 0
    assert "records: done before" in capsys.readouterr().out
    with another_config(checkpoint):
        assert command(files, checkpoint, out, *options) == 1
    assert "the config has changed" in capsys.readouterr().err
    base = MiniCPMV.from_pretrained(checkpoint)  # the folder is still there, with other weights
    with torch.no_grad():
        base.resampler.proj += 1
    base.save_pretrained(other := tmp_path / "other")
    kept = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert command(files, checkpoint, out, *options) == 1
    assert "weights has changed" in capsys.readouterr().err
    (checkpoint / "model.safetensors").write_bytes(kept)
    (out / "tokenizer_config.json").write_text("{}")
    assert command(files, checkpoint, out, *options) == 1
    assert "'tokenizer_config.json' is not what was written" in capsys.readouterr().err
    (out / "training.json").unlink()  # as before there were such notes, or as anybody's checkpoint
    assert command(files, checkpoint, out, *options) == 1
    assert f"{out} holds a checkpoint already; write somewhere else" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_half_a_checkpoint_is_none(files, checkpoint, tmp_path, lost):
    """Without one of the two there is nothing to ask, so the command writes it."""
    out, options = tmp_path / "out", ("--steps", "2", "--batch", "2")
    assert command(files, checkpoint, out, *options) == 0
    whole = weights(MiniCPMV.from_pretrained(out))
    (out / lost).unlink()
    if lost == "config.json":
        (out / "training.json").unlink()
    assert command(files, checkpoint, out, *options) == 0
    assert same_weights(weights(MiniCPMV.from_pretrained(out)), whole)


def test_two_trainings_in_one_folder_are_noticed(files, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with trainer.alone_in(out):
        assert command(files, checkpoint, out, "--steps", "1", "--batch", "1") == 1
        assert f"another training writes to {out}" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [".training.lock"]
    assert command(files, checkpoint, out, "--steps", "1", "--batch", "1") == 0


def test_the_best_save_is_kept_if_it_is_not_the_last(files, checkpoint, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(room, "loss_on", lambda *args: next(losses))
    lines = []
    result = train_on(
        files[0], checkpoint, tmp_path / "out", files[1], recipe=Recipe(12, 1), report=lines.append, progress=False
    )
    kept = tmp_path / "out" / "saves" / "step-000010"
    assert list(kept.parent.iterdir()) == [kept] and MiniCPMV.from_pretrained(kept)
    assert f"the held-out loss was lowest in {kept}, which is kept" in lines[-2]
    assert result["words_before"] == 0 and lines[-1].startswith("records: 0% of the held-out words right -> ")
    again = train_on(
        files[0], checkpoint, tmp_path / "out", files[1], recipe=Recipe(12, 1), report=lines.append, progress=False
    )
    assert again == result and list(kept.parent.iterdir()) == [kept]
    assert (result["held_out_before"], result["held_out_after"]) == (3.0, 2.0)


def test_without_held_out_records_nothing_is_measured(files, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", "--data", str(files[0]), "--from", str(checkpoint), "--out", str(out), "--steps", "1"]) == 0
    assert "held-out" not in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["held_out"] for row in rows] == [None] and (out / "curves.png").is_file()


def test_held_out_records_that_are_not_held_out_are_counted(files, checkpoint, tmp_path, capsys):
    assert command((files[0], files[0]), checkpoint, tmp_path / "out", "--steps", "1", "--batch", "1") == 0
    assert "5 of the held-out records are in the training data, too (there are 5)" in capsys.readouterr().out
    known = [entry(0, "A cat", id=name) for name in "abc"]  # one picture and text, three records
    files[1].write_text(json.dumps([*known, entry(0, "Another")]))
    assert command(files, checkpoint, tmp_path / "again", "--steps", "1", "--batch", "1") == 0
    assert "3 of the held-out records are in the training data, too (there are 4)" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_with_your_data(files, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(files, checkpoint, out, "--strict") == 1
    err = capsys.readouterr().err
    assert "6 records, 5 good, 1 skipped (image 1)" in err and "record 5 (id 'bad'), image: there is no file" in err
    assert command(files, checkpoint, out, "--steps", "0") == 1
    assert "at least one step and one record in it, got steps=0, batch=8" in capsys.readouterr().err
    assert command(files, checkpoint, out, "--lr-scale", "0") == 1
    assert "lr_scale must be a finite number above 0, got 0" in capsys.readouterr().err
    for option, words in {
        ("--micro-batches", "0"): "micro_batches must be from 1 to the 8 samples of a process, got 0",
        ("--pieces", "9"): "micro_batches must be from 1 to the 8 samples of a process, got 9",
        ("--threads", "0"): "--threads must be 1 or more, got 0",
        ("--seed", str(2**70)): "--seed must be from 0 to 2^63 - 1",
        ("--batch", "10000000"): "take a smaller batch, more micro-batches, or checkpointing",
    }.items():
        assert command(files, checkpoint, out, *option) == 1
        assert words in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command(files, checkpoint, out, "--device", "cuda") == 1
        assert "there is no GPU that this torch can use" in capsys.readouterr().err
    files[1].write_text("[]")
    assert command(files, checkpoint, out) == 1
    assert "test.json holds no good record" in capsys.readouterr().err
    assert command(files, tmp_path / "nowhere", out) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not out.exists()


def test_a_digest_knows_texts_and_pictures(small, files):
    first = small[0]
    others = [replace(first, turns=first.turns[:1]), replace(first, images=small[1].images)]
    assert len({digest(record) for record in (first, *others, *small[1:])}) == 7
    moved = {"<image>": files[0].with_name("0.png").rename(files[0].parent.parent / "other name.png")}
    before = digest(replace(small[0], images=moved))
    moved["<image>"].rename(files[0].with_name("0.png"))
    assert digest(first) == before == digest(replace(first, id="x"))  # what things are called does not matter


# ---- LoRA


def test_the_command_trains_adapters_and_merges_them(files, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(files, checkpoint, out, "--lora", "2", "--steps", "12", "--lr-scale", "1") == 0
    said = capsys.readouterr().out
    model = load_lora(MiniCPMV.from_pretrained(checkpoint), out / "adapter")
    learning = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert f"records: {learning:,} parameters for 12 steps of 8 samples" in said
    batch = tiny_processor("2.6")([messages(record) for record in read_records(files[0])[0]])
    with torch.no_grad():
        adapted, merged = (m(batch).logits for m in (model, MiniCPMV.from_pretrained(out)))
        base = MiniCPMV.from_pretrained(checkpoint)(batch).logits
    assert torch.allclose(adapted, merged, atol=1e-5) and not torch.allclose(base, merged, atol=1e-3)
    before, after = map(float, re.search(r"held-out loss (\S+) -> (\S+) in", said).groups())
    assert after < before and after == pytest.approx(loss_of(out, files[1]), abs=1e-3)
    assert not (out / "saves").exists()
    (out / "model.safetensors").unlink()  # to save space: base and adapter make it again
    assert command(files, checkpoint, out, "--lora", "3", "--steps", "1") == 1
    assert f"{out / 'adapter'} is all that is left of another training; write somewhere" in capsys.readouterr().err


def test_adapters_that_were_stopped_go_on(files, checkpoint, tmp_path, monkeypatch, capsys):
    options = ("--lora", "2", "--steps", "6", "--batch", "2")
    assert command(files, checkpoint, tmp_path / "whole", *options) == 0
    assert interrupted(files, checkpoint, tmp_path / "cut", monkeypatch, *options) == 130
    (save,) = training_checkpoints(tmp_path / "cut" / "saves")
    assert load_lora(MiniCPMV.from_pretrained(checkpoint), save)  # a save is an adapter like any other
    for other, words in ((("--lora", "3"), "lora was 2 and is 3"), ((), "lora was 2 and is None")):
        assert command(files, checkpoint, tmp_path / "cut", *other, *options[2:]) == 1
        assert words in capsys.readouterr().err
    assert main(["ask", str(files[0].with_name("0.png")), "What?", "--model", str(save)]) == 1
    assert f"{save} is a LoRA adapter, no model: `load_lora` puts it onto its base" in capsys.readouterr().err
    with another_config(checkpoint):
        assert command(files, checkpoint, tmp_path / "cut", *options) == 1
    assert "was trained on a model with another config" in capsys.readouterr().err
    assert command(files, checkpoint, tmp_path / "cut", *options) == 0
    assert "records: goes on after step 4, from " in capsys.readouterr().out
    whole, cut = (MiniCPMV.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert same_weights(weights(whole), weights(cut))


def test_adapters_that_cannot_be(files, checkpoint, tmp_path, capsys):
    assert command(files, checkpoint, tmp_path / "out", "--lora", "0") == 1
    assert "lora is the rank of the adapters, 1 or more, got 0" in capsys.readouterr().err
    assert command(files, checkpoint, tmp_path / "out", "--lora", "2", "--shard") == 1
    assert "LoRA and sharding do not go together here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- two processes


def test_one_process_then_two_that_share_the_model_then_one(files, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: False)  # its rounding differs from batch to batch
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    options = ("--steps", "6", "--batch", "3", "--lr-scale", "1")
    assert command(files, checkpoint, tmp_path / "whole", *options) == 0
    script, environment = LIB / "two_commands.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    assert interrupted(files, checkpoint, tmp_path / "cut", monkeypatch, *options, at=4) == 130
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), "10"]
    words = arguments(files, checkpoint, tmp_path / "cut", *options, "--shard")
    run = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, timeout=120)
    assert "2 processes of 1 CPU threads" in run.stdout
    assert "records: goes on after step 2, from " in run.stdout
    assert "stopped after step 4; everything is saved in " in run.stdout, run.stderr[-2000:]
    assert command(files, checkpoint, tmp_path / "cut", *options) == 0
    assert "records: goes on after step 4, from " in capsys.readouterr().out
    whole, cut = (losses_in(tmp_path / name) for name in ("whole", "cut"))
    assert cut == pytest.approx(whole, rel=1e-5) and whole[0] > 1.2 * whole[-1]
    assert loss_of(tmp_path / "cut", files[1]) == pytest.approx(loss_of(tmp_path / "whole", files[1]), rel=1e-5)


def test_sharding_needs_processes_and_pictures(files, checkpoint, tmp_path, capsys):
    assert command(files, checkpoint, tmp_path / "out", "--shard") == 1
    assert "sharding needs processes that torchrun started" in capsys.readouterr().err


# ---- shards, and workers


@pytest.fixture
def shards(files):
    folder = files[0].parent / "shards"
    write_shards(read_records(files[0])[0], folder, per_shard=2)
    return folder


def test_the_command_trains_on_shards(shards, files, checkpoint, tmp_path, monkeypatch, capsys):
    options = ("--steps", "6", "--batch", "2")
    assert command((shards, files[1]), checkpoint, tmp_path / "whole", *options) == 0
    assert f"{shards}: 5 records, 5 good, 0 skipped" in capsys.readouterr().out
    assert command((shards, shards), checkpoint, tmp_path / "twice", *options) == 0
    assert "5 of the held-out records are in the training data, too" in capsys.readouterr().out
    whole, twice = (MiniCPMV.from_pretrained(tmp_path / name) for name in ("whole", "twice"))
    assert same_weights(weights(whole), weights(twice)) and not same_weights(weights(whole), weights(tiny_model("2.6")))
    assert command((shards, files[1]), checkpoint, tmp_path / "out", "--root", str(tmp_path)) == 1
    assert "holds its pictures; a root belongs to a JSON file" in capsys.readouterr().err
    damaged = bytearray((shards / "shard-000001.tar").read_bytes())
    damaged[600] ^= 1
    (shards / "shard-000001.tar").write_bytes(damaged)
    assert command((shards, files[1]), checkpoint, tmp_path / "out", "--strict") == 1
    assert "5 records, 4 good, 1 skipped" in capsys.readouterr().err


def test_records_in_shards_that_are_too_long_are_found_up_front(files, tmp_path):
    records = read_records(files[0])[0]
    long = replace(records[0], id="novel", turns=(*records[0].turns[:1], ("assistant", "cat " * 2000)))
    write_shards([*records, long], tmp_path / "shards")
    assert len(open_shards(tmp_path / "shards")[0]) == 6
    shards, report = open_shards(tmp_path / "shards", tiny_processor("2.6"))
    assert len(shards) == 5 and report.skipped == 1 and "novel" not in {record.id for record in shards}
    assert re.search(r"\(id 'novel'\), shard-000000.tar: the prompt has \d+ tokens", str(report.problems[0]))


def test_workers_change_nothing(files, small, shards):
    """Whoever prepares the samples, the weights are the same to the last bit, and so are the random numbers after."""
    for records in (small, open_shards(shards)[0]):
        (mine, steps), random = fine_tuned(records), torch.get_rng_state()
        yours, others = fine_tuned(records, machine=Machine(half_precision=False, workers=2))
        assert same_weights(weights(mine), weights(yours)) and [s[:5] for s in steps] == [s[:5] for s in others]
        assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 1), (3, 1, 2), (64, 1, 8), (64, 16, 3), (4, 8, 1)])
def test_a_gpu_gets_workers_that_are_allowed(monkeypatch, cores, processes, workers):
    """However few cores a container gives to this process."""
    monkeypatch.setattr(loader, "cores", lambda: cores)
    assert loader.usual_workers("cuda", processes) == workers and loader.usual_workers("cpu", processes) == 0
    loader.check_workers(workers)
    with pytest.raises(ValueError, match=f"workers must be from 0 to {max(2, cores)}, "):
        loader.check_workers(max(2, cores) + 1)


class Large:
    """Inputs that do not fit into a pipe, so a worker is still writing when the next step computes."""

    def __getitem__(self, step: int) -> bytes:
        return bytes(2**20)


def test_a_worker_that_dies_while_it_writes_is_not_waited_for():
    signal.alarm(60)  # which ends a test that hangs
    for _ in range(2):  # torch sets its own handler for dead workers only once
        steps = loader.prefetch(Large(), range(1, 9), workers=1)
        next(steps)
        time.sleep(0.3)
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
        with pytest.raises(OSError, match="a worker process died, perhaps for lack of memory"):
            next(steps)
    signal.alarm(0)


def test_what_goes_wrong_in_a_worker_is_told_as_always(small):
    novel = replace(small[0], id="novel", turns=(*small[0].turns[:1], ("assistant", "cat " * 2000)))
    gone = replace(small[0], images={"<image>": small[0].images["<image>"].with_name("gone.png")})
    for record, error, words in ((novel, ValueError, "step 1, one of the samples novel"), (gone, OSError, "gone.png")):
        told = []
        for workers in (0, 1):
            with pytest.raises(error, match=words) as caught:
                fine_tuned([record], machine=Machine(half_precision=False, workers=workers))
            told.append(str(caught.value))
        assert told[0] == told[1]
    steps = train(tiny_model("2.6"), tiny_processor("2.6"), STAGE, samples=in_order(small), machine=Machine(workers=1))
    next(steps)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(OSError, match="a worker process died, perhaps for lack of memory"):
        list(steps)
    for workers in (-1, 100_000):
        with pytest.raises(ValueError, match=rf"workers must be from 0 to \d+, .*, got {workers}"):
            fine_tuned(small, machine=Machine(workers=workers))
    with pytest.raises(ValueError, match="micro_batches must be from 1 to the 2 samples of a process, got 3"):
        fine_tuned(small, machine=Machine(micro_batches=3))
