"""No lost work: killed, interrupted, out of disk or out of numbers, a training goes on as if nothing had happened."""

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import picture, tiny_model, tiny_processor

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.__main__ import main
from minicpmv_ref.learn import saves as room
from minicpmv_ref.learn import train as trainer
from minicpmv_ref.learn.data import draw
from minicpmv_ref.learn.records import Record
from minicpmv_ref.learn.saves import (
    Stopped,
    best_in,
    finish,
    read_save,
    remove_saves,
    saves_in,
    wait_for_step,
    write_save,
)
from minicpmv_ref.learn.stages import PROFILES, Profile, Stage, stage_named
from minicpmv_ref.learn.train import objective_for, optimizer_for, plot, run, train, train_stage

ANSWER = Stage("mine", "answer", {"vpm": 1e-3, "resampler": 1e-3, "llm": 1e-3}, {}, steps=6, batch=2)
CONTRAST = Stage("see", "contrast", {"vpm": 1e-3}, {"caption": 1}, steps=5, batch=2)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        picture(60 + 30 * i, 50, i).save(folder / f"{i}.png")
    turns = [(("user", "<image>\nWhat?"), ("assistant", "A cat" * (i + 1))) for i in range(5)]
    return [Record(f"id {i}", {"<image>": folder / f"{i % 5}.png"}, turns[i % 5]) for i in range(12)]


def trained(folder, sample, stage=ANSWER, every=2, held_out=lambda objective: 1.0, seed=0, settings=None):
    """Train in a folder; (model, result, lines of the report)."""
    model, lines = tiny_model("2.6"), []
    result = train_stage(
        model,
        tiny_processor("2.6"),
        stage,
        folder / "saves",
        folder / "metrics.jsonl",
        held_out=held_out,
        samples=sample,
        seed=seed,
        settings=settings,
        every=every,
        report=lines.append,
        progress=False,
    )
    return model, result, lines


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def curve(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    speeds = ("tokens_per_s", "views_per_s", "tflops_per_s", "seconds")
    return [{key: row[key] for key in row if key not in speeds} for row in rows]


def steps_of(folder):
    return [int(path.name.removeprefix("step-")) for path in saves_in(folder / "saves")]


@pytest.fixture(scope="module")
def whole(samples, tmp_path_factory):
    """A training that nobody interrupts: its folder, and the weights at its end."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(trained(folder, samples.__getitem__)[0])


# ---- killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_killed_at_twenty_random_moments_it_ends_as_if_nothing_had_happened(tmp_path):
    script = Path(__file__).with_name("killed.py")
    search = os.pathsep.join([str(script.parent), str(script.parent.parent)])
    env = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    kills, ends = [row for row in rows if "kill" in row], [row for row in rows if "equal" in row]
    assert len(kills) == 20 and sum(kill["by_line"] for kill in kills) == 10
    assert all(kill["lost"] <= 2 and kill["saved"] % 2 == 0 for kill in kills)  # every second step is saved
    assert ends and all(end["equal"] for end in ends)


# ---- asked to stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_signal_saves_after_its_step(samples, whole, tmp_path, number, code, step):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    asked = []

    def sample(index):
        asked.append(index)
        estimates = index < ANSWER.batch  # the first samples are asked for once before, to estimate the memory
        if index == 2 * step - 1 and asked.count(index) == 1 + estimates:
            signal.raise_signal(number)  # in the middle of a step
        return samples[index]

    with pytest.raises(Stopped, match=f"stopped after step {step}; everything is saved in .*step-00000{step}") as stop:
        trained(tmp_path, sample)
    assert stop.value.code == code and isinstance(stop.value, KeyboardInterrupt)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    model, _, lines = trained(tmp_path, samples.__getitem__)
    assert f"mine: goes on after step {step}, from " in lines[1]
    assert same(weights(model), whole[1]) and curve(tmp_path) == curve(whole[0])


def test_the_second_signal_is_obeyed_at_once():
    with pytest.raises(KeyboardInterrupt), wait_for_step() as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_signals_are_left_alone():
    found, before = [], signal.getsignal(signal.SIGINT)

    def work():
        with wait_for_step() as caught:
            found.append((caught, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [([], before)]


def test_scaffolding_is_saved_too(tmp_path):
    """A contrast stage trains weights that are not the model's."""

    def sample(index, stop=False):
        if stop and index == 5:
            signal.raise_signal(signal.SIGTERM)
        return draw(index, view=56)

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    want, result, _ = trained(tmp_path / "whole", sample, CONTRAST, held_out=None)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", lambda index: sample(index, stop=True), CONTRAST, held_out=None)
    model, _, _ = trained(tmp_path / "cut", sample, CONTRAST, held_out=None)
    assert same(weights(model), weights(want)) and curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert (result["held_out_before"], result["held_out_after"]) == (None, None)


# ---- out of numbers, out of data


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_ids_and_a_saved_state(
    samples, whole, tmp_path, monkeypatch, what
):
    count = 0

    def broken(model, packed, visual=None, real=trainer.packed_loss):
        nonlocal count
        count += 1
        loss = real(model, packed, visual)
        zero = (model.resampler.query * 0).sum()
        # The first of the five estimates the memory. The root of zero is zero, and its slope is infinite.
        return loss if count < 5 else loss * float("inf") if what == "loss" else loss + zero.sqrt()

    monkeypatch.setattr(trainer, "packed_loss", broken)
    with pytest.raises(FloatingPointError, match=f"mine, step 4: the {what} is (inf|nan); its samples: id 6, id 7"):
        trained(tmp_path, samples.__getitem__)
    assert steps_of(tmp_path) == [2, 3]
    assert all(p.isfinite().all() for p in MiniCPMV.from_pretrained(tmp_path / "saves/step-000003").parameters())
    monkeypatch.undo()
    assert same(weights(trained(tmp_path, samples.__getitem__)[0]), whole[1])


def test_a_picture_that_vanished_stops_with_a_saved_state(samples, whole, tmp_path):
    def sample(index):
        return samples[index] if index != 6 else replace(samples[6], images={"<image>": tmp_path / "no.png"})

    with pytest.raises(OSError, match=r"no\.png"):
        trained(tmp_path, sample)
    assert steps_of(tmp_path) == [2, 3]
    assert same(weights(trained(tmp_path, samples.__getitem__)[0]), whole[1])


# ---- the disk is full


def sizes(save):
    return {path.name: path.stat().st_size for path in save.iterdir()}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "training.safetensors"])
def test_a_full_disk_is_one_error_and_leaves_the_save_before_it_whole(samples, whole, tmp_path, name):
    """A limit on the size of files is a full disk that needs no disk: the kernel refuses to write on."""
    resource = pytest.importorskip("resource")
    full = sizes(saves_in(whole[0] / "saves")[-1])[name] // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def sample(index):
        if index == 6:  # in step 4, after the save of step 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        return samples[index]

    try:
        words = r"could not write the save .*step-000004: .*; the last whole save is .*02$"
        if name == "config.json":  # the log is larger than this file
            words = r"could not write .*metrics\.jsonl: "
        with pytest.raises(OSError, match=words):
            trained(tmp_path, sample)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == ["step-000002"]
    assert same(weights(trained(tmp_path, samples.__getitem__)[0]), whole[1])


@pytest.mark.parametrize("call", range(1, 12))
def test_no_step_of_writing_leaves_half_a_save(samples, tmp_path, monkeypatch, call):
    """The disk may also be full when a file is closed, flushed or renamed."""
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    write_save(tmp_path, 1, model, processor, optimizer)
    left = call

    def full(*args, real):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(room.os, "fsync", lambda *args, real=os.fsync: full(*args, real=real))
    monkeypatch.setattr(room.os, "replace", lambda *args, real=os.replace: full(*args, real=real))
    with pytest.raises(OSError, match=r"could not write the save .*step-000002.*No space left"):
        write_save(tmp_path, 2, model, processor, optimizer)
    monkeypatch.undo()
    # The last two calls rename the save and flush its new name.
    kept = ["step-000001", "step-000002"] if call == 11 else ["step-000001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    for path in saves_in(tmp_path):
        read_save(path, model, optimizer)


def test_a_full_disk_at_the_end_leaves_the_saves(samples, tmp_path):
    resource = pytest.importorskip("resource")
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    path = write_save(tmp_path / "saves", 6, model, processor, optimizer_for(model, ANSWER))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("tokenizer.json", "model.safetensors"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (sizes(path)[name] // 2, limits[1]))
            with pytest.raises(OSError, match=r"could not write .*; the end of the training is saved in .*saves"):
                finish(tmp_path, model, processor, tmp_path / "saves")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert saves_in(tmp_path / "saves") == [path] and not (tmp_path / "model.safetensors").exists()
    finish(tmp_path, model, processor, tmp_path / "saves", best=True)
    MiniCPMV.from_pretrained(tmp_path)
    assert saves_in(tmp_path / "saves") == []


def test_a_row_of_the_log_that_was_cut_is_forgotten(samples, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "saves/step-000006")
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"stage": "other", "step": 9, "loss": 1.0}\n' + log.read_text("utf-8") + '{"stage": "mi', "utf-8")
    trained(tmp_path, samples.__getitem__)
    assert curve(tmp_path) == [{"stage": "other", "step": 9, "loss": 1.0}, *curve(whole[0])]
    assert plot(tmp_path).stat().st_size > 1000


# ---- what is kept


def test_the_last_ones_and_the_best_are_kept(samples, tmp_path):
    losses = iter([9.0, 5.0, 3.0, 4.0, 3.5, 3.2, 6.0])  # before, then after each step
    _, result, lines = trained(tmp_path, samples.__getitem__, every=1, held_out=lambda objective: next(losses))
    assert steps_of(tmp_path) == [2, 5, 6]
    assert best_in(tmp_path / "saves").name == "step-000002"
    assert (result["held_out_before"], result["held_out_after"]) == (9.0, 6.0)
    assert "mine: held-out loss 9.000 -> 6.000 in" in lines[-1]
    assert [row["held_out"] for row in curve(tmp_path)] == [5.0, 3.0, 4.0, 3.5, 3.2, 6.0]
    remove_saves(tmp_path / "saves", but=best_in(tmp_path / "saves"))
    assert steps_of(tmp_path) == [2]
    remove_saves(tmp_path / "saves")
    assert not (tmp_path / "saves").exists()


def test_more_can_be_kept_but_not_none(tmp_path):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    for step in (8, 999_998, 999_999, 1_000_000):
        write_save(tmp_path, step, model, processor, optimizer, keep=3)
    (tmp_path / "step-notes").mkdir()  # somebody else's
    assert [path.name for path in saves_in(tmp_path)] == ["step-999998", "step-999999", "step-1000000"]
    assert best_in(tmp_path) is None
    with pytest.raises(ValueError, match="at least one save"):
        write_save(tmp_path, 12, model, processor, optimizer, keep=0)


def test_each_save_is_a_checkpoint(whole):
    for path in saves_in(whole[0] / "saves"):
        model, processor = MiniCPMV.from_pretrained(path), Processor.from_pretrained(path)
        model.chat([{"role": "user", "content": [picture(60, 40), "What?"]}], processor, max_new_tokens=2)
    assert same(weights(model), whole[1])


def test_what_a_dead_process_left_goes_with_the_next_save(tmp_path):
    for name in (".step-000002.part", ".step-000003.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"half")
    model = tiny_model("2.6")
    path = write_save(tmp_path, 3, model, tiny_processor("2.6"), optimizer_for(model, ANSWER))
    assert list(tmp_path.iterdir()) == [path] and not (path / "half").exists()
    written = (path / "model.safetensors").stat().st_mtime_ns
    write_save(tmp_path, 3, tiny_model("2.6", seed=1), tiny_processor("2.6"), optimizer_for(model, ANSWER))
    assert (path / "model.safetensors").stat().st_mtime_ns == written  # a save never changes


# ---- what is read


def test_reading_a_save_restores_everything(samples, tmp_path):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    list(train(model, processor, replace(ANSWER, steps=3), samples=samples.__getitem__, optimizer=optimizer))
    want = copy.deepcopy((weights(model), optimizer.state_dict()["state"], torch.get_rng_state()))
    path = write_save(tmp_path, 3, model, processor, optimizer, notes={"a": [1.5]}, settings={"b": (1, 2)})
    again = tiny_model("2.6", seed=1)
    optimizer = optimizer_for(again, ANSWER)
    torch.manual_seed(99)
    assert read_save(path, again, optimizer, settings={"b": (1, 2)}) == (3, {"a": [1.5]})
    state = optimizer.state_dict()["state"]
    assert same(weights(again), want[0]) and torch.equal(torch.get_rng_state(), want[2])
    assert state.keys() == want[1].keys() and len(state) == len(list(model.parameters()))
    assert all(same(state[i], want[1][i]) for i in state)
    assert torch.equal(again.llm.lm_head.weight, model.llm.lm_head.weight)


def test_a_save_of_another_training_is_refused(samples, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    for options, words in (
        ({"seed": 1}, r"step-000006 belongs to another training: seed was 0 and is 1\. Go on with what was"),
        ({"stage": replace(ANSWER, steps=9)}, "stage.steps was 6 and is 9"),
        ({"stage": replace(ANSWER, rates={"llm": 1e-3})}, "stage.rates.resampler was 0.001 and is None"),
        ({"settings": {"data": "new"}}, "data was None and is 'new'"),
    ):
        with pytest.raises(ValueError, match=words):
            trained(tmp_path, samples.__getitem__, **options)
    assert curve(tmp_path) == curve(whole[0])


def test_a_damaged_save_is_named(whole, tmp_path):
    source, path = saves_in(whole[0] / "saves")[-1], tmp_path / "step-000006"
    settings = json.loads((source / "training.json").read_text("utf-8"))["settings"]

    def broken(change, stage=ANSWER, version="2.6"):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        change(path)
        model = tiny_model(version)
        read_save(path, model, optimizer_for(model, stage), settings=settings)

    def cut(name):
        return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-9])

    for name in ("model.safetensors", "training.safetensors"):
        with pytest.raises(ValueError, match=r"is damaged.*if you remove it, the save before it counts"):
            broken(cut(name))
        with pytest.raises(OSError, match=name):
            broken(lambda path, name=name: (path / name).unlink())
    with pytest.raises(ValueError, match=r"training\.json is not JSON"):
        broken(cut("training.json"))
    with pytest.raises(ValueError, match=r"training\.json lacks held_out, notes, step"):
        broken(lambda path: (path / "training.json").write_text('{"settings": {}}'))
    with pytest.raises(ValueError, match="is of another model"):
        broken(lambda path: None, version="2.5")
    with pytest.raises(ValueError, match=r"holds exp_avg/.*, which this training has no use for"):
        broken(lambda path: None, stage=replace(ANSWER, rates={"llm": 1e-3}))
    model = tiny_model("2.6")
    objective = objective_for(model, tiny_processor("2.6"), CONTRAST)
    with pytest.raises(ValueError, match=r"lacks objective\.glances"):
        read_save(source, model, optimizer_for(model, ANSWER), objective, settings)


# ---- a run of several stages

SHORT = Profile(steps=1e-9, batch=1e-9, grades=1)


@pytest.fixture
def two_stages(monkeypatch):
    stages = tuple(replace(stage_named(name), name=name) for name in ("stage-1", "sft-1"))
    monkeypatch.setattr(trainer, "STAGES", stages)
    monkeypatch.setattr(trainer, "evaluate", lambda *args, **options: {"read": 0.5})
    monkeypatch.setattr(trainer, "held_out_loss", partial(trainer.held_out_loss, n=2))


def quick_run(folder, **options):
    lines = []
    model = run(folder, SHORT, Processor.from_pretrained("nano"), report=lines.append, progress=False, **options)
    return model, lines


def test_a_crash_while_grading_loses_nothing(two_stages, tmp_path, monkeypatch):
    def crash(*args, **options):
        raise RuntimeError("no memory")

    want, _ = quick_run(tmp_path / "whole")
    assert not list((tmp_path / "whole").rglob("saves"))  # a finished stage needs none
    with monkeypatch.context() as context:
        context.setattr(trainer, "evaluate", crash)
        with pytest.raises(RuntimeError, match="no memory"):
            quick_run(tmp_path / "cut")
    assert not (tmp_path / "cut/stage-1/model.safetensors").exists()  # it does not count as done
    model, lines = quick_run(tmp_path / "cut")
    assert lines[1].startswith("stage-1: goes on after step 2, from ") and "read 0.50" in lines[4]
    assert same(weights(model), weights(want)) and curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_a_run_goes_on_inside_a_stage(two_stages, tmp_path, monkeypatch):
    want, _ = quick_run(tmp_path / "whole")

    def interrupted(*args, real=trainer.draw_samples):
        sample, (stage, _, split, _), asked = real(*args), args, []

        def drawn(number):
            asked.append(number)
            if stage.name == "sft-1" and split == "train" and number == 1 and asked.count(1) == 2:
                signal.raise_signal(signal.SIGTERM)  # not while the memory is estimated
            return sample(number)

        return drawn

    with monkeypatch.context() as context:
        context.setattr(trainer, "draw_samples", interrupted)
        with pytest.raises(Stopped, match="stopped after step 1; "):
            quick_run(tmp_path / "cut")
    model, lines = quick_run(tmp_path / "cut")
    assert lines[0].startswith("stage-1: done before") and lines[2].startswith("sft-1: goes on after step 1")
    assert same(weights(model), weights(want)) and curve(tmp_path / "cut") == curve(tmp_path / "whole")
    with monkeypatch.context() as context:  # the stage once more, and interrupted: it does not count as done
        context.setattr(trainer, "draw_samples", interrupted)
        with pytest.raises(Stopped):
            quick_run(tmp_path / "cut", only="sft-1")
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        quick_run(tmp_path / "cut", seed=1)


def test_the_command_says_how_to_go_on(two_stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "fast", SHORT)

    def interrupted(*args, real=trainer.draw_samples):
        sample, split, asked = real(*args), args[2], []

        def drawn(number):
            asked.append(number)
            if split == "train" and len(asked) > 1:  # the first time, the memory is estimated
                signal.raise_signal(signal.SIGTERM)
            return sample(number)

        return drawn

    with monkeypatch.context() as context:
        context.setattr(trainer, "draw_samples", interrupted)
        # One sample in a step: a second signal would be obeyed at once.
        context.setattr(trainer, "scaled", lambda stage, profile: replace(stage, steps=2, batch=1))
        assert main(["train", "--out", str(tmp_path), "--threads", "1"]) == 143
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("stopped after step 1; everything is saved in ")
        assert last.endswith("step-000001; the same command goes on from there")
