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

import pytest
import torch
from places import LIB, ROOT
from safetensors.torch import load_file, save_file
from tiny import picture, same_weights, tiny_model, tiny_processor, weights

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.__main__ import main
from minicpmv_ref.learn import objectives
from minicpmv_ref.learn import train as plain_loop
from minicpmv_ref.learn.objectives import objective_for
from minicpmv_ref.learn.stages import Stage, stage_named
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.scale import run as trainer
from minicpmv_ref.scale import training_checkpoints as checkpoints
from minicpmv_ref.scale.metrics import plot
from minicpmv_ref.scale.parallel import Processes
from minicpmv_ref.scale.profiles import PROFILES, Profile
from minicpmv_ref.scale.records import Record
from minicpmv_ref.scale.run import run
from minicpmv_ref.scale.signals import Stopped, wait_for_step
from minicpmv_ref.scale.stage_run import Output, StageData, StageRun
from minicpmv_ref.scale.steps import train_steps as train
from minicpmv_ref.scale.training_checkpoints import (
    Damaged,
    Header,
    best_checkpoint,
    clean_up,
    finish,
    load_training,
    save_training,
    training_checkpoints,
)
from minicpmv_ref.toy.data import draw

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
    output = Output(folder / "saves", folder / "metrics.jsonl", every, lines.append, progress=False)
    data = StageData(sample, held_out, settings=settings or {})
    result = StageRun(model, tiny_processor("2.6"), stage, output, data, seed=seed).train()
    return model, result, lines


def curve(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    speeds = ("tokens_per_s", "views_per_s", "tflops_per_s", "seconds")
    return [{key: row[key] for key in row if key not in speeds} for row in rows]


def steps_of(folder):
    return [int(path.name.removeprefix("step-")) for path in training_checkpoints(folder / "saves")]


@pytest.fixture(scope="module")
def whole(samples, tmp_path_factory):
    """A training that nobody interrupts: its folder, and the weights at its end."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(trained(folder, samples.__getitem__)[0])


def test_a_kill_loses_a_tenth_of_the_steps_and_never_many(tmp_path):
    output = Output(tmp_path, tmp_path / "log")
    every = [StageRun(None, None, replace(ANSWER, steps=n), output).every for n in (3, 99, 1_000, 5_000, 10**6)]
    assert every == [10, 10, 100, 500, 500]


# ---- killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_killed_at_twenty_random_moments_it_ends_as_if_nothing_had_happened(tmp_path):
    script = LIB / "killed.py"
    search = os.pathsep.join([str(LIB), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    kills, ends = [row for row in rows if "kill" in row], [row for row in rows if "equal" in row]
    assert len(kills) == 20 and sum(kill["by_line"] for kill in kills) == 10
    assert all(kill["lost"] <= 2 and kill["saved"] % 2 == 0 for kill in kills)  # every second step is saved
    assert ends and all(end["equal"] for end in ends)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_killed_while_it_ends_the_checkpoint_is_whole_or_not_there_and_the_same_call_finishes(tmp_path):
    """With your own data, as LoRA, and in the small world. Then the weights are there, or the call goes on."""
    script = LIB / "killed_at_the_end.py"
    search = os.pathsep.join([str(LIB), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, script, tmp_path, "10"]  # seconds; 4000 of them kill at every call
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["way"] for row in rows} == {"data", "lora", "run"}
    assert {row["there"] for row in rows} == {False, True}


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
    assert same_weights(weights(model), whole[1]) and curve(tmp_path) == curve(whole[0])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal closes on Windows")
def test_a_terminal_that_closes_asks_to_stop_and_nohup_does_not():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with wait_for_step() as caught:
            signal.raise_signal(signal.SIGHUP)  # of the terminal, and once more of its shell
            signal.raise_signal(signal.SIGHUP)
            assert caught == [signal.SIGHUP, signal.SIGHUP]
        assert signal.signal(signal.SIGHUP, signal.SIG_IGN) == signal.SIG_DFL
        with wait_for_step() as caught:
            signal.raise_signal(signal.SIGHUP)
            assert caught == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and Stopped(signal.SIGHUP, 1, "x").code == 129
    finally:
        signal.signal(signal.SIGHUP, before)


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
    assert same_weights(weights(model), weights(want)) and curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert (result["held_out_before"], result["held_out_after"]) == (None, None)


# ---- out of numbers, out of data


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_ids_and_a_saved_state(
    samples, whole, tmp_path, monkeypatch, what
):
    count = 0

    def broken(model, packed, visual=None, real=objectives.packed_loss):
        nonlocal count
        count += 1
        loss = real(model, packed, visual)
        zero = (model.resampler.query * 0).sum()
        # The first of the five estimates the memory. The root of zero is zero, and its slope is infinite.
        return loss if count < 5 else loss * float("inf") if what == "loss" else loss + zero.sqrt()

    monkeypatch.setattr(objectives, "packed_loss", broken)
    with pytest.raises(FloatingPointError, match=f"mine, step 4: the {what} is (inf|nan); its samples: id 6, id 7"):
        trained(tmp_path, samples.__getitem__)
    assert steps_of(tmp_path) == [2, 3]
    assert all(p.isfinite().all() for p in MiniCPMV.from_pretrained(tmp_path / "saves/step-000003").parameters())
    monkeypatch.undo()
    assert same_weights(weights(trained(tmp_path, samples.__getitem__)[0]), whole[1])


def test_a_picture_that_vanished_stops_with_a_saved_state(samples, whole, tmp_path):
    def sample(index):
        return samples[index] if index != 6 else replace(samples[6], images={"<image>": tmp_path / "no.png"})

    with pytest.raises(OSError, match=r"no\.png"):
        trained(tmp_path, sample)
    assert steps_of(tmp_path) == [2, 3]
    assert same_weights(weights(trained(tmp_path, samples.__getitem__)[0]), whole[1])


# ---- the disk is full


def sizes(save):
    return {path.name: path.stat().st_size for path in save.iterdir()}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "training.safetensors"])
def test_a_full_disk_is_one_error_and_leaves_the_save_before_it_whole(samples, whole, tmp_path, name):
    """A limit on the size of files is a full disk that needs no disk: the kernel refuses to write on."""
    resource = pytest.importorskip("resource")
    full = sizes(training_checkpoints(whole[0] / "saves")[-1])[name] // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def sample(index):
        if index == 6:  # in step 4, after the save of step 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        return samples[index]

    try:
        words = r"could not write the training checkpoint .*step-000004: .*; the newest training checkpoint is .*02$"
        if name == "config.json":  # the log is larger than this file
            words = r"could not write .*metrics\.jsonl: "
        with pytest.raises(OSError, match=words):
            trained(tmp_path, sample)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == ["step-000002"]
    assert same_weights(weights(trained(tmp_path, samples.__getitem__)[0]), whole[1])


def test_no_step_of_writing_leaves_half_a_save(tmp_path, monkeypatch):
    """The disk may also be full when a file is closed, flushed or renamed."""
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    save_training(tmp_path, Header(1), model, processor, optimizer)

    def full(*args, real):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    def writing(moment):
        nonlocal left
        left = moment
        with monkeypatch.context() as context:
            context.setattr(checkpoints.os, "fsync", lambda *args, real=os.fsync: full(*args, real=real))
            context.setattr(checkpoints.os, "replace", lambda *args, real=os.replace: full(*args, real=real))
            save_training(tmp_path, Header(2), model, processor, optimizer)

    left = 0
    writing(1000)
    calls = 1000 - left
    assert calls > 12
    for call in range(1, calls + 1):
        shutil.rmtree(tmp_path / "step-000002")
        with pytest.raises(OSError, match=r"could not write the training checkpoint .*step-000002.*No space left"):
            writing(call)
        # The last two calls rename the save and flush its new name.
        kept = ["step-000001", "step-000002"] if call == calls else ["step-000001"]
        assert sorted(path.name for path in tmp_path.iterdir()) == kept
        for path in training_checkpoints(tmp_path):
            load_training(path, model, optimizer)
        (tmp_path / "step-000002").mkdir(exist_ok=True)


def test_a_full_disk_at_the_end_leaves_the_saves(samples, tmp_path):
    resource = pytest.importorskip("resource")
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    path = save_training(tmp_path / "saves", Header(6), model, processor, optimizer_for(model, ANSWER))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("tokenizer.json", "model.safetensors"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (sizes(path)[name] // 2, limits[1]))
            with pytest.raises(OSError, match=r"could not write .*; the end of the training is saved in .*saves"):
                finish(tmp_path, model, processor)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert training_checkpoints(tmp_path / "saves") == [path] and not (tmp_path / "model.safetensors").exists()
    finish(tmp_path, model, processor, best=True)
    MiniCPMV.from_pretrained(tmp_path)
    assert training_checkpoints(tmp_path / "saves") == []


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
    assert best_checkpoint(tmp_path / "saves").name == "step-000002"
    assert (result["held_out_before"], result["held_out_after"]) == (9.0, 6.0)
    assert "mine: held-out loss 9.000 -> 6.000 in" in lines[-1]
    assert [row["held_out"] for row in curve(tmp_path)] == [5.0, 3.0, 4.0, 3.5, 3.2, 6.0]
    clean_up(tmp_path, but=best_checkpoint(tmp_path / "saves"))
    assert steps_of(tmp_path) == [2]
    (tmp_path / "saves/step-000001.damaged").mkdir()
    shutil.copytree(tmp_path / "saves/step-000002", tmp_path / "saves/mine")  # somebody keeps a copy
    clean_up(tmp_path)
    assert [path.name for path in (tmp_path / "saves").iterdir()] == ["mine"]
    shutil.rmtree(tmp_path / "saves/mine")
    clean_up(tmp_path)
    assert not (tmp_path / "saves").exists()


def test_more_can_be_kept_but_not_none(tmp_path):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    for step in (8, 999_998, 999_999, 1_000_000):
        save_training(tmp_path, Header(step), model, processor, optimizer, keep=3)
    (tmp_path / "step-notes").mkdir()  # somebody else's
    assert [path.name for path in training_checkpoints(tmp_path)] == ["step-999998", "step-999999", "step-1000000"]
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="at least one training checkpoint"):
        save_training(tmp_path, Header(12), model, processor, optimizer, keep=0)


def test_each_save_is_a_checkpoint(whole):
    for path in training_checkpoints(whole[0] / "saves"):
        model, processor = MiniCPMV.from_pretrained(path), Processor.from_pretrained(path)
        model.chat([{"role": "user", "content": [picture(60, 40), "What?"]}], processor, max_new_tokens=2)
    assert same_weights(weights(model), whole[1])


def test_what_a_dead_process_left_goes_with_the_next_save(tmp_path):
    for name in (".step-000002.part", ".step-000003.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"half")
    model = tiny_model("2.6")
    path = save_training(tmp_path, Header(3), model, tiny_processor("2.6"), optimizer_for(model, ANSWER))
    assert list(tmp_path.iterdir()) == [path] and not (path / "half").exists()
    written = (path / "model.safetensors").stat().st_mtime_ns
    save_training(tmp_path, Header(3), tiny_model("2.6", seed=1), tiny_processor("2.6"), optimizer_for(model, ANSWER))
    assert (path / "model.safetensors").stat().st_mtime_ns == written  # a save never changes


# ---- what is read


def test_reading_a_save_restores_everything(samples, tmp_path):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    list(train(model, processor, replace(ANSWER, steps=3), samples=samples.__getitem__, optimizer=optimizer))
    want = copy.deepcopy((weights(model), optimizer.state_dict()["state"], torch.get_rng_state()))
    header = Header(3, notes={"a": [1.5]}, settings={"b": (1, 2)})
    path = save_training(tmp_path, header, model, processor, optimizer)
    again = tiny_model("2.6", seed=1)
    optimizer = optimizer_for(again, ANSWER)
    torch.manual_seed(99)
    assert load_training(path, again, optimizer, settings={"b": (1, 2)}) == (3, {"a": [1.5]})
    state = optimizer.state_dict()["state"]
    assert same_weights(weights(again), want[0]) and torch.equal(torch.get_rng_state(), want[2])
    assert state.keys() == want[1].keys() and len(state) == len(list(model.parameters()))
    assert all(same_weights(state[i], want[1][i]) for i in state)
    assert torch.equal(again.llm.lm_head.weight, model.llm.lm_head.weight)


def test_a_save_of_another_training_is_refused(samples, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    for options, words in (
        ({"seed": 1}, r"step-000006 belongs to another training: seed was 0 and is 1\. Go on with what was"),
        ({"stage": replace(ANSWER, steps=9)}, "stage.steps was 6 and is 9"),
        ({"stage": replace(ANSWER, learning_rates={"llm": 1e-3})}, "stage.rates.resampler was 0.001 and is None"),
        ({"settings": {"data": "new"}}, "data was None and is 'new'"),
    ):
        with pytest.raises(ValueError, match=words):
            trained(tmp_path, samples.__getitem__, **options)
    assert curve(tmp_path) == curve(whole[0])


def test_a_damaged_save_is_named(whole, tmp_path):
    source, path = training_checkpoints(whole[0] / "saves")[-1], tmp_path / "step-000006"
    settings = json.loads((source / "training.json").read_text("utf-8"))["settings"]

    def broken(change, stage=ANSWER, version="2.6"):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        change(path)
        model = tiny_model(version)
        load_training(path, model, optimizer_for(model, stage), settings=settings)

    def cut(name):
        return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-9])

    for name in ("model.safetensors", "training.safetensors"):
        with pytest.raises(ValueError, match=r"is damaged.*if you remove it, the training checkpoint before it counts"):
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
        broken(lambda path: None, stage=replace(ANSWER, learning_rates={"llm": 1e-3}))
    model = tiny_model("2.6")
    objective = objective_for(model, tiny_processor("2.6"), CONTRAST)
    with pytest.raises(ValueError, match=r"lacks objective\.glances"):
        load_training(source, model, optimizer_for(model, ANSWER), objective, settings)


def rewritten(path, checksum=True, **fields):
    """Change fields of training.json, with a checksum that fits, or as it was before there were any."""
    data = json.loads((path / "training.json").read_text("utf-8")) | fields
    del data["crc32"]
    if checksum:
        data["crc32"] = checkpoints._own_checksum(data)
    else:
        del data["files"]
    (path / "training.json").write_text(json.dumps(data), encoding="utf-8")


def state_of(model, optimizer):
    state = optimizer.state_dict()["state"]
    return copy.deepcopy((weights(model), {f"{i} {kind}": state[i][kind] for i in state for kind in state[i]}))


@pytest.fixture(scope="module")
def source(samples, tmp_path_factory):
    """A save of a training of three steps, and what was saved."""
    model, processor, folder = tiny_model("2.6"), tiny_processor("2.6"), tmp_path_factory.mktemp("source")
    optimizer = optimizer_for(model, ANSWER)
    list(train(model, processor, replace(ANSWER, steps=3), samples=samples.__getitem__, optimizer=optimizer))
    path = save_training(folder, Header(3, 0.5, {"a": 1}, {"b": 2}), model, processor, optimizer)
    return path, state_of(model, optimizer)


@pytest.fixture
def attempt(source, tmp_path):
    """Damage a copy of the save and read it; after an error, nothing of what was given may be changed."""

    def attempt(damage):
        path = tmp_path / "step-000003"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source[0], path)
        damage(path)
        model = tiny_model("2.6", seed=1)
        optimizer = optimizer_for(model, ANSWER)
        before = state_of(model, optimizer)
        try:
            return load_training(path, model, optimizer, settings={"a": 1}), state_of(model, optimizer)
        except ValueError:
            assert all(same_weights(*pair) for pair in zip(before, state_of(model, optimizer)))
            raise

    return attempt


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.safetensors", "config.json", "tokenizer.json", "training.json"]
)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_one_flipped_bit_is_found(attempt, name, place):
    def flip(path):
        data = bytearray((path / name).read_bytes())
        data[int(place * len(data))] ^= 4
        (path / name).write_bytes(data)

    with pytest.raises(Damaged, match=rf"step-000003 is damaged: .*{name}.* is not what was written|is not JSON"):
        attempt(flip)


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("step", [0.5, 3.0, -1, "3", [3], None, True, 1e300, 4, 2**70]),
        ("held_out", ["1", [1.0], True, {}]),
        ("settings", [[], "a", None, 3]),
        ("notes", [[], "b", None]),
        ("files", [[], "c", {"../x": 1}, {"training.safetensors": "1"}, {}]),
        ("more", [1]),
    ],
)
def test_fields_that_cannot_be_are_refused(attempt, field, values, checksum):
    if field == "files" and not checksum:
        return
    for value in values:
        with pytest.raises(Damaged, match=rf"is damaged: .*{field}|says step 4|checksum|training\.safetensors"):
            attempt(lambda path, value=value: rewritten(path, checksum, **{field: value}))


def test_saves_from_before_there_were_checksums_are_read(attempt, source):
    told, found = attempt(lambda path: rewritten(path, checksum=False))
    assert told == (3, {"b": 2}) and all(same_weights(*pair) for pair in zip(found, source[1]))


def test_going_on_from_a_save_without_checksums_is_told(samples, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "saves/step-000006")
    rewritten(tmp_path / "saves/step-000004", checksum=False)
    model, _, lines = trained(tmp_path, samples.__getitem__)
    assert lines[1].endswith("step-000004, which has no checksums: what was damaged there is not noticed")
    assert same_weights(weights(model), whole[1])
    assert not any("no checksums" in line for line in trained(tmp_path, samples.__getitem__)[2])


def tensors_changed(name, change, checksum=False):
    def damage(path):
        tensors = load_file(path / name)
        change(tensors)
        save_file({key: t.clone() for key, t in tensors.items()}, path / name)
        rewritten(path, checksum)

    return damage


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("training.safetensors", lambda t: t.pop("exp_avg/resampler.query"), "lacks exp_avg/resampler.query"),
        ("training.safetensors", lambda t: t.pop("step/resampler.query"), "lacks step/resampler.query"),
        ("training.safetensors", lambda t: t.pop("random/cpu"), "no state of the random numbers"),
        ("training.safetensors", lambda t: t["random/cpu"].fill_(255), "no state of the random numbers"),
        ("training.safetensors", lambda t: t["exp_avg/resampler.query"].fill_(torch.nan), "query is not finite"),
        ("training.safetensors", lambda t: t["exp_avg_sq/resampler.query"].neg_(), "numbers that no step leaves"),
        ("training.safetensors", lambda t: t["step/resampler.query"].fill_(1.5), "numbers that no step leaves"),
        ("training.safetensors", lambda t: t["step/resampler.query"].fill_(-1), "numbers that no step leaves"),
        (
            "training.safetensors",
            lambda t: t.update({"exp_avg/resampler.query": torch.tensor(1.0)}),
            r"must be numbers of shape \(4, 64\), got \(\)",
        ),
        (
            "training.safetensors",
            lambda t: t.update({"exp_avg_sq/resampler.query": t["exp_avg_sq/resampler.query"].long()}),
            "must be numbers of shape",
        ),
        (
            "training.safetensors",
            lambda t: t.update({"exp_old/resampler.query": t["exp_avg/resampler.query"]}),
            "lacks exp_old/",
        ),
        ("model.safetensors", lambda t: t["resampler.query"].view(-1)[5:6].fill_(torch.inf), "query is not finite"),
    ],
)
def test_tensors_that_cannot_be_are_refused(attempt, name, change, words):
    """Without checksums, too."""
    with pytest.raises(Damaged, match=words):
        attempt(tensors_changed(name, change))
    with pytest.raises(Damaged, match="is not what was written"):
        attempt(tensors_changed(name, change, checksum=True))


def test_the_save_before_a_damaged_one_is_taken(samples, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    assert steps_of(tmp_path) == [2, 4, 6]  # the best, and the last two
    for step, name in ((6, "training.safetensors"), (2, "training.json")):
        file = tmp_path / f"saves/step-00000{step}" / name
        file.write_bytes(file.read_bytes()[:-20] + b"\xff" * 20)
    model, _, lines = trained(tmp_path, samples.__getitem__)
    assert "step-000006 is damaged: 'training.safetensors' is not what was written" in lines[1]
    assert lines[1].endswith("It is called step-000006.damaged now, and does not count")
    assert "step-000002 is damaged: " in lines[2] and "training.json is not JSON" in lines[2]
    assert lines[3].startswith("mine: goes on after step 4, from ")
    assert same_weights(weights(model), whole[1]) and curve(tmp_path) == curve(whole[0])
    assert (tmp_path / "saves/step-000006.damaged").is_dir()
    for path in training_checkpoints(tmp_path / "saves"):
        (path / "model.safetensors").unlink()
    names = sorted(path.name for path in (tmp_path / "saves").iterdir())
    with pytest.raises(Damaged, match=r"step-000006 is damaged: there is no file .*if you remove it"):
        trained(tmp_path, samples.__getitem__)
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == names


def test_a_best_save_that_is_damaged_is_passed_over(source, tmp_path):
    said = []
    for step, held_out in ((1, 3.0), (2, 1.0), (3, 2.0)):
        shutil.copytree(source[0], tmp_path / f"step-00000{step}")
        rewritten(tmp_path / f"step-00000{step}", step=step, held_out=held_out)
    assert best_checkpoint(tmp_path).name == "step-000002"
    (tmp_path / "step-000002" / "tokenizer.json").write_text("{}")
    assert best_checkpoint(tmp_path, said.append).name == "step-000003"
    (tmp_path / "step-000003" / "training.json").write_text("{}")
    assert best_checkpoint(tmp_path, said.append).name == "step-000001"
    assert "'tokenizer.json' is not what was written" in said[0] and "lacks held_out" in said[1] and len(said) == 3


def test_what_was_read_does_not_hang_on_the_file(source, tmp_path):
    """Tensors may be mapped to their file. Then other bytes in it would be other numbers in a running training."""
    path = shutil.copytree(source[0], tmp_path / "step-000003")
    model = tiny_model("2.6", seed=1)
    optimizer = optimizer_for(model, ANSWER)
    load_training(path, model, optimizer, settings={"a": 1})
    for name in ("model.safetensors", "training.safetensors"):
        with open(path / name, "r+b") as file:
            file.write(bytes([7]) * (path / name).stat().st_size)
    assert all(same_weights(*pair) for pair in zip(state_of(model, optimizer), source[1]))


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    optimizer = optimizer_for(model, ANSWER)
    for options, error, words in (
        ({"step": 0.5}, TypeError, "step must be an integer"),
        ({"step": -1}, ValueError, "step must be an integer of at least 0"),
        ({"held_out": float("nan")}, ValueError, "held_out must be a finite number"),
        ({"held_out": "1"}, TypeError, "held_out must be a number"),
        ({"notes": {"a": float("inf")}}, ValueError, "notes must be a dict that JSON can say"),
        ({"notes": {"a": {1}}}, ValueError, "notes must be a dict that JSON can say"),
        ({"settings": [1]}, ValueError, "settings must be a dict"),
        ({"keep": 1.5}, TypeError, "keep must be an integer"),
    ):
        given = {"keep": options.pop("keep", 2)}
        with pytest.raises(error, match=words):
            save_training(tmp_path, Header(**({"step": 1} | options)), model, processor, optimizer, **given)
    model.resampler.query.data[0, 0] = torch.nan
    with pytest.raises(
        FloatingPointError,
        match=r"resampler\.query is not finite, so step 1 is not saved; there is no training ch",
    ):
        save_training(tmp_path, Header(1), model, processor, optimizer)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(samples, tmp_path):
    """The loss may be fine in step 3 and its weights not."""

    def spoil(index):
        if index == 6 and shown:
            shown[0].resampler.query.data.fill_(torch.inf)
        return samples[index]

    shown = []

    def held_out(objective):
        shown[:] = [objective.model]
        return 1.0

    with pytest.raises(FloatingPointError, match=r"step 4: the loss is nan; .*query is not finite, .*step-000002$"):
        trained(tmp_path, spoil, held_out=held_out)
    assert steps_of(tmp_path) == [2]
    losses = iter([1.0, float("inf")])
    with pytest.raises(FloatingPointError, match=r"mine, after step 2: the held-out loss is inf"):
        trained(tmp_path / "new", samples.__getitem__, held_out=lambda objective: next(losses))


def test_files_get_the_users_umask(tmp_path):
    """In a folder that everybody may write, too."""
    if os.name != "posix":
        pytest.skip("no umask here")
    model, processor = tiny_model("2.6"), tiny_processor("2.6")
    for mask in (0o077, 0o022):
        folder = tmp_path / str(mask)
        (folder / "saves").mkdir(parents=True)
        (folder / "saves").chmod(0o1777)
        folder.chmod(0o1777)
        before = os.umask(mask)
        try:
            path = save_training(folder / "saves", Header(1), model, processor, optimizer_for(model, ANSWER))
            modes = {file.stat().st_mode & 0o777 for file in path.iterdir()} | {path.stat().st_mode & 0o666}
            finish(folder, model, processor)
            modes |= {file.stat().st_mode & 0o777 for file in folder.iterdir()}
        finally:
            os.umask(before)
        assert modes == {0o666 & ~mask}


def test_damaged_lines_of_the_log_are_counted_and_left_out(samples, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "saves/step-000006")
    log = tmp_path / "metrics.jsonl"
    odd = [
        "[1, 2]",
        '{"stage": 3, "step": 1}',
        '{"step": 1}',
        '{"stage": "mine", "step": "1", "loss": 1}',
        '"x"',
        "\udc80",
    ]
    odd += ['{"stage": "mine", "step": 1, "loss": NaN}', "[" * 100_000, '{"stage": "mine", "stage": "x"}']
    log.write_bytes(log.read_bytes() + "\n".join(odd).encode("utf-8", "surrogateescape"))
    assert plot(tmp_path).stat().st_size > 1000
    _, _, lines = trained(tmp_path, samples.__getitem__)
    assert any(line == f"{log}: {len(odd)} damaged lines are left out" for line in lines)
    assert curve(tmp_path) == curve(whole[0])
    log.unlink()
    log.mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl is a folder"):
        plot(tmp_path)


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
        context.setattr(sys.modules[__name__], "SHORT", replace(SHORT, lr_scale=0.5))
        with pytest.raises(ValueError, match=r"stage-1 is not what this run would write: stage.rates.resampler was"):
            quick_run(tmp_path / "whole")
    with monkeypatch.context() as context:
        context.setattr(trainer, "evaluate", crash)
        with pytest.raises(RuntimeError, match="no memory"):
            quick_run(tmp_path / "cut")
    assert not (tmp_path / "cut/stage-1/model.safetensors").exists()  # it does not count as done
    model, lines = quick_run(tmp_path / "cut")
    assert lines[1].startswith("stage-1: goes on after step 2, from ") and "read 0.50" in lines[4]
    assert same_weights(weights(model), weights(want)) and curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_a_run_goes_on_inside_a_stage(two_stages, tmp_path, monkeypatch):
    want, _ = quick_run(tmp_path / "whole")

    def interrupted(*args, real=plain_loop.draw_samples):
        sample, (stage, _, split, _), asked = real(*args), args, []

        def drawn(number):
            asked.append(number)
            if stage.name == "sft-1" and split == "train" and number == 1 and asked.count(1) == 2:
                signal.raise_signal(signal.SIGTERM)  # not while the memory is estimated
            return sample(number)

        return drawn

    with monkeypatch.context() as context:
        context.setattr(plain_loop, "draw_samples", interrupted)
        with pytest.raises(Stopped, match="stopped after step 1; "):
            quick_run(tmp_path / "cut")
    model, lines = quick_run(tmp_path / "cut")
    assert lines[0].startswith("stage-1: done before") and lines[2].startswith("sft-1: goes on after step 1")
    assert same_weights(weights(model), weights(want)) and curve(tmp_path / "cut") == curve(tmp_path / "whole")
    kept = (tmp_path / "cut/sft-1/model.safetensors").rename(tmp_path / "kept")
    with monkeypatch.context() as context:  # the stage once more, and interrupted
        context.setattr(plain_loop, "draw_samples", interrupted)
        with pytest.raises(Stopped):
            quick_run(tmp_path / "cut", only="sft-1")
    kept.rename(tmp_path / "cut/sft-1/model.safetensors")  # as at the end: with training checkpoints it is not done
    with pytest.raises(ValueError, match=r"stage-1 is not what this run would write: seed was 0 and is 1"):
        quick_run(tmp_path / "cut", seed=1)
    (tmp_path / "cut/stage-1/training.json").unlink()  # as older versions left it
    with pytest.raises(ValueError, match=r"sft-1/saves/step-000001 belongs to another training: seed was 0 and is 1"):
        quick_run(tmp_path / "cut", seed=1)
    # From another start, the interrupted stage is another one, too.
    with pytest.raises(ValueError, match=r"belongs to another training: from was None and is '\w+"):
        quick_run(tmp_path / "cut", only="sft-1", checkpoint="nano")


def test_a_second_run_in_one_folder_is_refused(two_stages, tmp_path):
    with trainer.alone_in(tmp_path), pytest.raises(OSError, match=f"another training writes to {tmp_path}"):
        quick_run(tmp_path)
    with trainer.alone_in(tmp_path), trainer.alone_in(tmp_path, Processes(1, 2)):  # one training of two processes
        assert [path.name for path in tmp_path.iterdir()] == [".training.lock"]
    assert not list(tmp_path.iterdir())


def test_the_command_says_how_to_go_on(two_stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "fast", SHORT)

    def interrupted(*args, real=plain_loop.draw_samples):
        sample, split, asked = real(*args), args[2], []

        def drawn(number):
            asked.append(number)
            if split == "train" and len(asked) > 1:  # the first time, the memory is estimated
                signal.raise_signal(signal.SIGTERM)
            return sample(number)

        return drawn

    with monkeypatch.context() as context:
        context.setattr(plain_loop, "draw_samples", interrupted)
        # One sample in a step: a second signal would be obeyed at once.
        context.setattr(trainer, "scaled", lambda stage, profile: replace(stage, steps=2, batch=1))
        assert main(["train", "--out", str(tmp_path), "--threads", "1"]) == 143
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("stopped after step 1; everything is saved in ")
        assert last.endswith("step-000001; the same command goes on from there")
