"""A whole training, end to end: our loop beside transformers' Trainer on the same model, samples, steps and optimizer.

    python benchmarks/train.py --threads 2 --json benchmarks/results/train.json     on a quiet machine, some 20 minutes
    python benchmarks/train.py --steps 2 --batch 4 --rounds 1                       does it run?

The model is nano, the samples are those of the stage sft-2, all parts learn. Everybody is given the drawn samples and
makes tensors of them in the loop, without workers; AdamW, rates, clipping and dtype are equal.
Trainer's batches: padded; sorted, each step's samples by length and then padded; padding-free, one row whose positions
restart, as DataCollatorWithFlattening makes it. Each in one batch and in micro-batches of a quarter. The best of these
is chosen first; then it and ours take turns. It calls our ViT and resampler, so that only the training differs.
ours: `train_steps`. Beside it, each time without one thing: packing (padded rows), equal views in one pass (each view
alone), the head on supervised tokens only (logits of every token).
The losses of all steps are asserted equal, up to rounding, before anything is timed.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import gemm_rate, measure, speedup

from minicpmv_ref.learn.objectives import _Answer, draw_samples, objective_for
from minicpmv_ref.learn.packing import pack_batch, packed_loss, sample_lengths, score
from minicpmv_ref.learn.stages import Stage, stage_named, start
from minicpmv_ref.learn.train import lr_scale_at, optimizer_for
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Batch, Processor
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.steps import train_steps

OURS, PARTS = "ours", 4  # micro-batches of a step


# ---- theirs


class Wrapped(nn.Module):
    """What Trainer trains: a batch goes in, the loss comes out, a mean over the supervised tokens of a whole step."""

    def __init__(self, model: MiniCPMV):
        super().__init__()
        self.model = model

    def forward(self, batch: dict, labels: torch.Tensor, num_items_in_batch=None, **more):
        batch = Batch(**batch)
        logits = self.model.llm(
            inputs_embeds=self.model.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
        vocabulary = self.model.config.llm.vocab_size
        return {"loss": self.model.llm.loss_function(logits, labels, vocabulary, num_items_in_batch=num_items_in_batch)}


class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def collate(processor: Processor, size: int, flat: bool, items: list) -> dict:
    """A batch of (number, sample), padded or in one row, with <image_id> in every other step, as our objective has."""
    step = items[0][0] // size + 1
    batch = processor([sample.messages for _, sample in items], use_image_id=step % 2 == 0)
    if flat:
        batch = pack_batch(batch, [list(range(len(items)))]).as_batch()
    return {"batch": vars(batch), "labels": batch.labels}


def with_trainer(model: MiniCPMV, processor: Processor, stage: Stage, samples: list, args, kind: str, parts: int):
    """Train a copy of the model; returns the loss of every step."""
    model = copy.deepcopy(model).train()
    if kind == "sorted":
        samples = sorted(samples, key=lambda item: (item[0] // stage.batch, args.lengths[item[0]]))
    optimizer = optimizer_for(model, stage)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_scale_at(step, stage.steps))
    settings = TrainingArguments(
        output_dir="unused",
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch // parts,
        gradient_accumulation_steps=parts,
        logging_steps=1,
        max_grad_norm=1.0,
        bf16=args.bfloat16,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_strategy="steps",
        log_level="error",
    )
    trainer = InOrder(
        Wrapped(model),
        settings,
        data_collator=partial(collate, processor, stage.batch, kind == "padding-free"),
        train_dataset=samples,
        optimizers=(optimizer, schedule),
    )
    trainer.pop_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


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


WITHOUT = {"ours without packing": Padded, "ours, view by view": ViewByView, "ours, logits of all tokens": FullHead}


def with_ours(model: MiniCPMV, processor: Processor, stage: Stage, samples: list, args, objective=None):
    """Train a copy of the model; returns the loss of every step."""
    model = copy.deepcopy(model)
    made = (objective or objective_for)(model, processor, stage)
    machine = Machine(half_precision=args.bfloat16)
    steps = train_steps(model, processor, stage, samples=lambda i: samples[i][1], objective=made, machine=machine)
    steps = list(steps)
    args.counted = {"flops": sum(step.flops for step in steps)}  # 0 without packing
    return [step.loss for step in steps]


# ---- beside each other


def candidates(args) -> tuple[dict, dict, dict]:
    """Trainings by name: theirs, ours; and what their samples hold."""
    stage = replace(stage_named("sft-2"), steps=args.steps, batch=args.batch)
    model, processor = start(seed=args.seed), Processor.from_pretrained("nano")
    drawn = draw_samples(stage, args.seed, "train", 112)
    samples = [(number, drawn(number)) for number in range(stage.steps * stage.batch)]
    batch = processor([sample.messages for _, sample in samples])
    args.lengths = dict(enumerate(sample_lengths(batch)))
    holds = {"tokens": sum(args.lengths.values()), "pictures": len(samples), "views": sum(map(len, batch.images))}
    holds["supervised"] = int((batch.labels != -100).sum())
    common = model, processor, stage, samples, args
    theirs = {
        f"Trainer, {kind}, {parts} x {stage.batch // parts}": partial(with_trainer, *common, kind, parts)
        for kind in ("padded", "sorted", "padding-free")
        for parts in (1, PARTS)
    }
    ours = {OURS: partial(with_ours, *common)}
    ours |= {name: partial(with_ours, *common, objective=kind) for name, kind in WITHOUT.items()}
    return theirs, ours, holds


def assert_same_losses(found: dict[str, list[float]], tolerance: float) -> None:
    wanted = found[OURS]
    for name, losses in found.items():
        far = max(abs(a / b - 1) for a, b in zip(losses, wanted, strict=True))
        assert far < tolerance, f"{name}: a loss differs by {far:.1e} of it: {losses}, {OURS} {wanted}"


def peak(name: str, args) -> float:
    """The most memory in MB of a process that trains once and does nothing else."""
    options = [f"--{key}={getattr(args, key)}" for key in ("threads", "steps", "batch", "seed")]
    options += ["--bfloat16"] * args.bfloat16
    run = subprocess.run([sys.executable, __file__, *options, "--peak", name], stdout=subprocess.PIPE, text=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="both under autocast")
    parser.add_argument("--peak", metavar="NAME", help="train this one once, and print the memory that it took in MB")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    theirs, ours, holds = candidates(args)
    if args.peak:
        (theirs | ours)[args.peak]()
        # Not getrusage: on Linux its peak is at least that of the process that started this one.
        print(int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
        return

    # The first call of each is also its untimed one.
    assert_same_losses({name: run() for name, run in (theirs | ours).items()}, 0.02 if args.bfloat16 else 2e-3)
    tried = {name: median(times) for name, times in measure(theirs, min(3, args.rounds))[0].items()}
    best = min(tried, key=tried.get)
    wall, cpu = measure({best: theirs[best], **ours}, args.rounds)
    ours[OURS]()
    of_rate = args.counted["flops"] / median(wall[OURS]) / gemm_rate(torch.bfloat16 if args.bfloat16 else torch.float32)
    rows = []
    for name in wall:
        row = {"training": name, "wall": speedup(wall[name], wall[OURS]), "CPU": speedup(cpu[name], cpu[OURS])}
        row |= {f"{what}/s": 1000 * holds[what] / median(wall[name]) for what in ("tokens", "pictures")}
        rows.append(row | {"MB": peak(name, args)} | ({"roofline": of_rate} if name == OURS else {}))
    dtype = "bfloat16" if args.bfloat16 else "float32"
    tried = {name: round(times / args.steps) for name, times in tried.items()}
    report("train", args, rows, dtype=dtype, holds=holds, tried=tried, unit="a second; times slower than ours; MB")


if __name__ == "__main__":
    main()
