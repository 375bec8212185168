"""Two trainings that are killed while they end, at each call that gives a file another name or removes one.

Run by test_saves.py, in a process of its own, for the reasons of killed.py. Each training is prepared up to its last
training checkpoint. Each child goes on from there and dies; then the same call must come to the end that nobody
interrupted. Prints one JSON object for each kill. The second argument is how many seconds this may take: if there are
too few for all calls, some are left out evenly.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from killed import in_child, talk
from safetensors.torch import load_file
from tiny import picture, tiny_config, tiny_model, tiny_processor

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.scale import finetune
from minicpmv_ref.scale import run as train
from minicpmv_ref.scale.profiles import Profile

CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir")


def kill_at(moment: int) -> list[int]:
    """Let this process die at its call number `moment` of these; the list holds how many there were."""
    count = [0]

    def patched(real):
        def call(*args, **options):
            count[0] += 1
            if count[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, patched(getattr(os, name)))
    return count


def files_of(folder: Path) -> dict[str, str]:
    """Checksums of all files that do not know how many seconds it took; training.json by its name alone."""
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.name != "metrics.jsonl"
    }


def digest(path: Path) -> str:
    if path.is_dir() or path.name == "training.json":
        return ""
    data = path.read_bytes()
    if path.suffix == ".safetensors":  # the order of its metadata is not always the same
        data = b"".join(name.encode() + t.numpy().tobytes() for name, t in sorted(load_file(path).items()))
    return hashlib.sha256(data).hexdigest()


def own_data(folder: Path):
    """`train --data`, full or as LoRA."""
    base = folder / "tiny"
    tiny_model("2.6").save_pretrained(base)
    tiny_processor("2.6").save_pretrained(base)
    for i in range(3):
        picture(60 + 30 * i, 50, i).save(folder / f"{i}.png")
    turns = [[{"role": role, "content": content} for role, content in talk(i)] for i in range(3)]
    records = [{"id": str(i), "image": f"{i}.png", "conversations": turns[i]} for i in range(3)]
    (folder / "my.json").write_text(json.dumps(records), encoding="utf-8")

    def work(out: Path, lora: int | None = None):
        recipe = finetune.Recipe(steps=2, batch=1, lora=lora)
        options = dict(recipe=recipe, report=lambda line: None, progress=False)
        return finetune.train_on(folder / "my.json", base, out, **options)

    return work


def small_world(out: Path):
    """`train` without data, one stage of two steps."""
    train.STAGES = (replace(stage_named("stage-2"), data_mix={"caption": 1}),)
    train.evaluate = lambda *args, **options: {"read": 0.5}
    profile = Profile(steps=1e-9, batch=1e-9, config=tiny_config("2.6"), grades=1)
    train.run(out, profile, tiny_processor("2.6"), report=lambda line: None, progress=False)


def prepared(work, folder: Path, module) -> Path:
    """A training that has its last training checkpoint, and has not yet begun to end."""

    def crash(*args, **options):
        raise InterruptedError

    real, module.finish = module.finish, crash
    try:
        work(folder)
    except InterruptedError:
        return folder
    finally:
        module.finish = real
    raise AssertionError("it did not end")


def whole_or_not_there(checkpoint: Path, wanted: dict) -> bool:
    """What a reader finds after the kill: no weights, or the checkpoint with all of its files."""
    if not (checkpoint / "model.safetensors").is_file():
        return False
    found = files_of(checkpoint)
    assert all(found.get(name) == total for name, total in wanted.items()), "weights are there, other files are not"
    MiniCPMV.from_pretrained(checkpoint), Processor.from_pretrained(checkpoint)
    return True


def main(folder: Path, seconds: float) -> None:
    torch.set_num_threads(1)
    train.held_out_loss = lambda objective, stage: 1.0
    mine = own_data(folder)
    ways = {
        "data": (mine, finetune, "."),
        "lora": (lambda out: mine(out, lora=2), finetune, "."),
        "run": (small_world, train, "stage-2"),
    }
    for name, (work, module, place) in ways.items():
        began = time.perf_counter()
        start = prepared(work, folder / name, module)
        whole = shutil.copytree(start, folder / f"{name} whole")
        count = folder / f"{name} count"

        def counted(work=work, whole=whole, count=count):
            calls = kill_at(sys.maxsize)
            work(whole)
            count.write_text(str(calls[0]))

        assert os.waitpid(in_child(counted), 0)[1] == 0
        wanted, calls = files_of(whole), int(count.read_text())
        at_once = files_of(whole / place)
        spent = time.perf_counter() - began
        step = max(1, round(calls * spent / (seconds / len(ways))))
        for moment in sorted({*range(1, calls + 1, step), calls}):
            out = shutil.copytree(start, folder / f"{name} {moment}")

            def child(work=work, out=out, moment=moment):
                kill_at(moment)
                work(out)

            status = os.waitpid(in_child(child), 0)[1]
            assert os.WIFSIGNALED(status), f"{name} {moment}: it was not killed"
            there = whole_or_not_there(out / place, at_once)
            work(out)
            found = files_of(out)
            assert found == wanted, f"{name} {moment}: {sorted(found.items() ^ wanted.items())}"
            print(json.dumps({"way": name, "kill": moment, "of": calls, "there": there}), flush=True)
            shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
