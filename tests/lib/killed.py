"""A training that is killed at 20 random moments and goes on each time. Run by test_saves.py, in a process of its own.

A fresh process, because it forks: a child needs no second to import torch, and one thread is all that survives a fork.
Half of the children die at a random line of the code that trains and saves, half after a random time, which may be in
the middle of a file. The next one goes on. Prints one JSON object for each kill: which training checkpoint
there is and how many steps are lost; and one for each training that gets to its end: whether that is the end of one
that nobody killed.
"""

import hashlib
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny import picture, tiny_model, tiny_processor

from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.scale import metrics, signals, stage_run, steps
from minicpmv_ref.scale import training_checkpoints as checkpoints
from minicpmv_ref.scale.records import Record
from minicpmv_ref.scale.stage_run import Output, StageData, StageRun
from minicpmv_ref.scale.training_checkpoints import training_checkpoints

STAGE = Stage("mine", "answer", {"vpm": 1e-3, "resampler": 1e-3, "llm": 1e-3}, {}, steps=6, batch=2)
EVERY = 2  # steps from one training checkpoint to the next
KILLS = 20
WATCHED = {module.__file__ for module in (checkpoints, metrics, signals, stage_run, steps)}


def training(folder: Path, before_step=lambda step: None) -> str:
    """Train in a folder until the end; what it ends with, as a checksum."""
    records = [Record(str(i), {"<image>": folder.parent / f"{i % 5}.png"}, talk(i)) for i in range(16)]
    model = tiny_model("2.6")

    def sample(number):
        before_step(number // STAGE.batch + 1)
        return records[number]

    folder.mkdir(exist_ok=True)
    output = Output(folder / "saves", folder / "metrics.jsonl", EVERY, lambda line: None, progress=False)
    data = StageData(sample, held_out=lambda objective: objective(records[:2], 0)[0].item())
    StageRun(model, tiny_processor("2.6"), STAGE, output, data).train()
    last = training_checkpoints(folder / "saves")[-1]
    digest = hashlib.sha256((last / "model.safetensors").read_bytes())
    digest.update((last / "training.safetensors").read_bytes())
    digest.update(json.dumps(curve(folder / "metrics.jsonl")).encode())
    checkpoints.clean_up(folder, but=last)
    assert list(last.parent.iterdir()) == [last], "something was left behind"
    return digest.hexdigest()


def talk(i: int) -> tuple[tuple[str, str], ...]:
    return ("user", "<image>\nWhat is this?"), ("assistant", "A cat" * (i % 4 + 1))


def curve(log: Path) -> list[tuple]:
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return [tuple(row.get(key) for key in ("step", "loss", "rate", "held_out")) for row in rows]


def killer(moment: int):
    """A trace function that ends this process at its line number `moment` of the watched files."""
    left = moment

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in WATCHED:
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace, lambda: moment - left


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for i in range(5):
        picture(60 + 30 * i, 50, i).save(folder / f"{i}.png")
    trace, lines = killer(sys.maxsize)
    sys.settrace(trace)
    training(folder / "traced")
    sys.settrace(None)
    began = time.perf_counter()
    want = training(folder / "whole")
    seconds = time.perf_counter() - began

    rng = random.Random(0)
    started = mmap.mmap(-1, 1)  # the step that the child is in; shared, and not lost with it
    kills = trainings = 0
    while kills < KILLS:
        place = folder / str(trainings)
        started[0] = 0
        by_line = kills % 2 == 1
        moment = rng.randrange(1, lines())

        def child_work(place=place, by_line=by_line, moment=moment):
            if by_line:
                sys.settrace(killer(moment)[0])
            digest = training(place, lambda step: started.__setitem__(0, step))
            sys.settrace(None)
            print(json.dumps({"equal": digest == want}), flush=True)

        child = in_child(child_work)
        if not by_line:
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        found = training_checkpoints(place / "saves")
        saved = int(found[-1].name.removeprefix("step-")) if found else 0
        if os.WIFSIGNALED(status):
            kills += 1
            lost = max(0, started[0] - 1 - saved)
            print(json.dumps({"kill": kills, "saved": saved, "lost": lost, "by_line": by_line}), flush=True)
        elif status != 0:
            raise SystemExit("a training ended with an error")
        else:
            trainings += 1
    print(json.dumps({"equal": training(folder / str(trainings)) == want}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
