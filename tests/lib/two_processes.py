"""What test_parallel.py starts in several processes. Each scenario trains a little; what came out is written.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/lib/two_processes.py FOLDER SCENARIO...
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from minicpmv_ref import Processor, nano
from minicpmv_ref.learn.objectives import draw_samples, objective_for
from minicpmv_ref.learn.stages import Stage, freeze, stage_named, start
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.scale.loader import prefetch
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.parallel import (
    LossModule,
    Processes,
    backward,
    full_optimizer_state,
    join_processes,
    load_optimizer_state,
    unshard,
    wrap_distributed,
)
from minicpmv_ref.scale.steps import run_steps
from minicpmv_ref.toy.data import Sample, blind

CONFIG = replace(nano, vision=replace(nano.vision, layers=1), llm=replace(nano.llm, num_hidden_layers=2))
STEPS = 3
SCENARIOS = {  # stage, what is different
    "all": ("sft-1", {}),
    "first half": ("sft-1", {"until": 2}),
    "second half": ("sft-1", {"done": 2}),
    "micro-batches": ("sft-1", {"until": 2, "micro_batches": 2}),
    "contrast": ("start-vit", {"until": 2}),
    "text": ("sft-1", {"until": 2, "sparse": True}),  # every other sample without a picture: all of the second process
    "all, frozen": ("stage-3", {}),
    "first half, frozen": ("stage-3", {"until": 2}),
    "second half, frozen": ("stage-3", {"done": 2}),
    "first half, shard": ("stage-3", {"until": 2, "shard": True, "micro_batches": 2}),
    "four, shard": ("stage-3", {"until": 2, "shard": True}),
    "second half, shard": ("stage-3", {"done": 2, "shard": True}),
}


def short(name: str) -> Stage:
    """A few steps; five samples, so that two processes have unequally many, but six where all are compared."""
    return replace(stage_named(name), steps=STEPS, batch=6 if name == "start-vit" else 5, turns=2, large=0.3)


def play(name: str, processes: Processes, folder: Path) -> dict:
    """Train one scenario. A first half is written to a file, from which a second half goes on.

    Returns:
        Losses, tokens and views of each step; "seen", the samples of this process; "gradient", its norm before the
        first of them; "weights", their sum of squares; "way", how far they went from the start.
    """
    stage, options = short(SCENARIOS[name][0]), dict(SCENARIOS[name][1])
    sparse, until, done = options.pop("sparse", False), options.pop("until", STEPS), options.pop("done", 0)
    machine = Machine(processes=processes, half_precision=False, **options)
    file = folder / f"{name.replace('second', 'first')}.pt"
    model, seen = start(CONFIG, seed=1), []
    origin = _flat(model)
    saved = torch.load(file, weights_only=True) if done else None
    if saved:
        model.load_state_dict(saved["model"])
    torch.manual_seed(7)  # the contrast's text tower
    processor = Processor.from_pretrained("nano")
    objective = objective_for(model, processor, stage)
    drawn = draw_samples(stage, 0, "train", objective.view)

    def sample(number: int) -> Sample:
        seen.append(number)
        one = drawn(number)
        return replace(one, messages=blind(one.messages)) if sparse and number % 2 else one

    freeze(model, stage)
    module = wrap_distributed(LossModule(model, objective), processes, machine.shard, sparse)
    optimizer = optimizer_for(model, stage, objective)
    if saved:
        load_optimizer_state(model, optimizer, saved["optimizer"])
    # One gradient apart: clipping and AdamW would hide a wrong factor.
    inputs = machine.inputs(objective, sample, stage)
    backward(module, inputs[1][2], processes)
    gradient = torch.nn.utils.clip_grad_norm_(module.parameters(), float("inf")).item()
    seen.clear()
    steps = prefetch(inputs, range(done + 1, until + 1))
    steps = list(run_steps(model, module, stage, optimizer, machine, steps))
    full = unshard(model)
    if until < STEPS and stage.objective != "contrast":  # whose optimizer has more than the model
        state = {"model": full.state_dict(), "optimizer": full_optimizer_state(model, optimizer)}
        if processes.rank == 0:
            torch.save(state, file)
    now = _flat(full)
    return {
        **{name: [getattr(step, name) for step in steps] for name in ("loss", "tokens", "views")},
        "seen": seen,
        "gradient": gradient,
        "weights": now.square().sum().item(),
        "way": (now - origin).norm().item(),
    }


def _flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double()


def listening(process: int | str = "self") -> list[str]:
    """The addresses on which a process waits for calls, as /proc/net/tcp writes them."""
    sockets = [os.readlink(fd) for fd in Path(f"/proc/{process}/fd").iterdir() if fd.is_symlink()]
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    with join_processes() as processes:
        told = {name: play(name, processes, Path(folder)) for name in names}
        told |= {"rank": [processes.rank, processes.size], "processes": processes.all_reduce_sum(1)}
        told["listening"] = listening() if sys.platform == "linux" else []
        told["torchrun"] = listening(os.getppid()) if sys.platform == "linux" else []
    (Path(folder) / f"{processes.rank}.json").write_text(json.dumps(told))
