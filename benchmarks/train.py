"""A whole training, end to end: our loop beside transformers' Trainer on the same model, samples, steps and optimizer.

    python benchmarks/train.py --steps 4 --one-thread 3 --memory --json benchmarks/results/train.json    some 10 minutes
    python benchmarks/train.py --steps 2 --batch 4 --rounds 1                                            does it run?

The model is nano, the samples are those of the stage sft-2, all parts learn. Everybody is given the drawn samples and
makes tensors of them in the loop, without workers; AdamW, rates, clipping and dtype are equal.
Their batches: padded; sorted, each step's samples by length and then padded; padding-free, one row whose positions
restart, as DataCollatorWithFlattening makes it. Each in one batch and in micro-batches of a quarter.
Their ViT and resampler: ours, so that only the training differs; or what people have, see `_trainers.Vision`.
Their loop: Trainer, or accelerate alone. The best batches for Trainer with our ViT are chosen first; with these batches
the best loop with our ViT and the best loop and vision without it; these two and ours take turns.
ours: `train_steps`, also in one batch or in quarters. Beside it, each time without one thing: packing (padded rows),
equal views in one pass (each view alone), the head on supervised tokens only (logits of every token).
Visual tokens and the losses of all steps are asserted equal, up to rounding, before anything is timed.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import gemm_rate, measure, speedup
from _trainers import KINDS, LOOPS, VISIONS, Vision

from experiments._fair import assert_same_output
from minicpmv_ref.learn.objectives import _Answer, draw_samples, objective_for
from minicpmv_ref.learn.packing import packed_loss, sample_lengths, score
from minicpmv_ref.learn.stages import Stage, stage_named, start
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Batch, Processor
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.steps import train_steps

PARTS = (1, 4)  # micro-batches of a step


# ---- ours, and ours without one thing


class FullHead(_Answer):
    def loss(self, prepared):
        _, *counts = counted(prepared[0])
        return score(self.model, prepared[0]).loss, *counts


class ViewByView(_Answer):
    def loss(self, prepared):
        packed, *counts = counted(prepared[0])
        views = [view for row in packed.images for view in row]
        grids = [grid for row in packed.patch_grids for grid in row]
        visual = torch.cat([self.model.encode_images([view], [grid]) for view, grid in zip(views, grids)])
        return packed_loss(self.model, packed, visual), *counts


class Padded(_Answer):
    def prepare(self, samples, step):
        return self.batch(samples, step), None

    def loss(self, prepared):
        batch, model = prepared[0], self.model
        hidden = model.llm.model(
            inputs_embeds=model.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        asked = batch.labels[:, 1:] != -100
        loss = F.cross_entropy(model.llm.lm_head(hidden[:, :-1][asked]).float(), batch.labels[:, 1:][asked])
        return loss, int(batch.attention_mask.sum()), sum(map(len, batch.images)), int(asked.sum())


def counted(packed) -> tuple:
    """(packed, tokens, views, supervised tokens)"""
    return (
        packed,
        sum(row[-1] for row in packed.borders),
        sum(map(len, packed.images)),
        int((packed.labels != -100).sum()),
    )


WAYS = {
    "ours": objective_for,
    "ours without packing": Padded,
    "ours, view by view": ViewByView,
    "ours, logits of all tokens": FullHead,
}


def with_ours(model: MiniCPMV, processor: Processor, stage: Stage, samples: list, args, objective, parts: int):
    """Train a copy of the model; returns the loss of every step."""
    model = copy.deepcopy(model)
    steps = train_steps(
        model,
        processor,
        stage,
        samples=lambda i: samples[i][1],
        objective=objective(model, processor, stage),
        machine=Machine(half_precision=args.bfloat16, micro_batches=parts),
    )
    steps = list(steps)
    args.counted = args.counted or {"flops": sum(step.flops for step in steps)}  # 0 without packing
    return [step.loss for step in steps]


# ---- beside each other


def candidates(args) -> tuple[list[dict], list[dict], list[dict], dict]:
    """Trainings by name, and what their samples hold.

    (ours, same, other): lists of dicts. Ours: for each number of parts of a step a dict, first as it is, then without
    one thing. Same: for each kind of batches theirs with our ViT, Trainer first. Other: the same kinds with other ViTs.
    """
    stage = replace(stage_named("sft-2"), steps=args.steps, batch=args.batch)
    model, processor = start(seed=args.seed), Processor.from_pretrained("nano")
    drawn = draw_samples(stage, args.seed, "train", 112)
    samples = [(number, drawn(number)) for number in range(stage.steps * stage.batch)]
    batch = processor([sample.messages for _, sample in samples])
    if not args.peak:
        assert_same_tokens(model, batch, args.batch)
    args.lengths, args.counted = dict(enumerate(sample_lengths(batch))), None
    holds = {"tokens": sum(args.lengths.values()), "pictures": len(samples), "views": sum(map(len, batch.images))}
    holds["supervised"] = int((batch.labels != -100).sum())
    common, ours, same, other = (model, processor, stage, samples, args), [], [], []
    for parts in PARTS:
        size = f"{parts} x {stage.batch // parts}"
        ours.append({f"{way}, {size}": partial(with_ours, *common, kind, parts) for way, kind in WAYS.items()})
        for kind in KINDS:
            same.append({}), other.append({})
            for (how, vision), (loop, run) in product(VISIONS.items(), LOOPS.items()):
                group = other[-1] if vision else same[-1]
                group[f"{loop}, {how}, {kind}, {size}"] = partial(run, *common, vision, kind, parts=parts)
    return ours, same, other, holds


@torch.no_grad()
def assert_same_tokens(model: MiniCPMV, batch: Batch, samples: int) -> None:
    """Everybody's vision gives our visual tokens of the first samples."""
    views, grids = ([x for own in every[:samples] for x in own] for every in (batch.images, batch.patch_grids))
    found = {"ours": model.encode_images(views, grids)}
    found |= {name: Vision(model, *how)(views, grids) for name, how in VISIONS.items() if how}
    assert_same_output(found, 1e-4)  # of about unit variance


def fastest(runs: dict, args) -> str:
    """The fastest of some trainings. What takes 1.2 times as long as it at the first call is timed no more."""
    for name in [name for name in runs if name not in args.tried]:
        began = time.perf_counter()
        args.losses[name] = runs[name]()
        args.tried[name] = 1000 * (time.perf_counter() - began)
    limit = 1.2 * min(args.tried[name] for name in runs)
    near = {name: run for name, run in runs.items() if args.tried[name] <= limit}
    args.tried |= {name: min(times) for name, times in measure(near, min(2, args.rounds))[0].items()}
    return min(near, key=args.tried.get)


def fastest_group(groups: list[dict], args) -> tuple[str, int]:
    """The fastest of the first trainings of all groups, and the number of its group."""
    first = {name: group[name] for group in groups for name in list(group)[:1]}
    best = fastest(first, args)
    return best, list(first).index(best)


def assert_same_losses(found: dict[str, list[float]], tolerance: float) -> None:
    """Every training has the losses of the first one."""
    first, wanted = next(iter(found.items()))
    for name, losses in found.items():
        far = max(abs(a / b - 1) for a, b in zip(losses, wanted, strict=True))
        assert far < tolerance, f"{name}: a loss differs by {far:.1e} of it: {losses}, {first} {wanted}"


def peak(name: str, args) -> float:
    """The most memory in MB of a process that trains once, for two steps, and does nothing else."""
    options = [f"--{key}={getattr(args, key)}" for key in ("threads", "batch", "seed")]
    options += ["--bfloat16"] * args.bfloat16
    run = [sys.executable, __file__, *options, "--steps=2", "--peak", name]
    return float(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="both under autocast")
    parser.add_argument("--one-thread", type=int, default=0, metavar="ROUNDS", help="so many more rounds on one thread")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each, in processes of their own")
    parser.add_argument("--peak", metavar="NAME", help="train this one once, and print the memory that it took in MB")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.tried, args.losses = {}, {}
    ours, same, other, holds = candidates(args)
    named = {name: run for group in ours + same + other for name, run in group.items()}
    if args.peak:
        named[args.peak]()
        # Not getrusage: on Linux its peak is at least that of the process that started this one.
        print(int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
        return

    own, parts = fastest_group(ours, args)
    _, batches = fastest_group(same, args)
    best, whole = (
        [fastest(group, args) for group in (same[batches], other[batches])],
        [next(iter(group)) for group in ours],
    )
    runs = {name: named[name] for name in dict.fromkeys([*best, *whole, *ours[parts]])}
    args.losses |= {name: run() for name, run in runs.items() if name not in args.losses}
    assert_same_losses(args.losses, 0.02 if args.bfloat16 else 2e-3)
    wall, cpu = measure(runs, args.rounds)
    of_rate = args.counted["flops"] / median(wall[own]) / gemm_rate(torch.bfloat16 if args.bfloat16 else torch.float32)
    torch.set_num_threads(1)
    alone = measure(runs, args.one_thread)
    rows = []
    for name in runs:
        row = {"training": name, "wall": speedup(wall[name], wall[own]), "CPU": speedup(cpu[name], cpu[own])}
        row |= {f"{what}/s": 1000 * holds[what] / median(wall[name]) for what in ("tokens", "pictures")}
        if args.one_thread:
            row |= {f"{k}, one thread": speedup(times[name], times[own]) for k, times in zip(("wall", "CPU"), alone)}
        if args.memory:
            row["MB"] = peak(name, args)
        rows.append(row | ({"roofline": of_rate} if name == own else {}))
    dtype = "bfloat16" if args.bfloat16 else "float32"
    tried = {name: round(times / args.steps) for name, times in args.tried.items()}
    report("train", args, rows, dtype=dtype, holds=holds, tried=tried, unit="a second; times slower than ours; MB")


if __name__ == "__main__":
    main()
