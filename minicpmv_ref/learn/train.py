"""Training: one loop for every stage, and the command that runs the stages one after the other.

A step draws fresh samples from the world, packs them, and takes one AdamW step. There is no data set, so there are no
epochs. What is learned where stands in `stages.py`. Left out: several processes, data of your own.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..model import MiniCPMV
from ..processor import Processor
from ..prompt import answer_labels, image_bounds, image_layout
from ..slicing import plan_slices
from .contrast import Contrast
from .data import Sample, blind, spell, stream
from .evaluate import evaluate
from .packing import PackedBatch, pack, pack_batch, packed_loss, sample_lengths
from .stages import PARTS, STAGES, Profile, Stage, freeze, scaled, start

WARM_UP = 0.03  # share of the steps during which the rate rises
DATA_VERSION = 2  # of the world; a checkpoint says which one it was trained on


class Step(NamedTuple):
    """What one step of training reports."""

    step: int  # from 1
    loss: float  # mean over the supervised tokens of this step
    rate: float  # of the learning rates, 1 at their highest
    tokens: int  # of all samples, visual ones included
    views: int  # pictures and slices that were encoded
    seconds: float  # since the stage began


def train(
    model: MiniCPMV,
    processor: Processor,
    stage: Stage,
    seed: int = 0,
    *,
    objective=None,
    half_precision: bool | None = None,
) -> Iterator[Step]:
    """Train a model for one stage, in place.

    Args:
        model, processor: they belong together. The parts that the stage does not name are frozen, and stay so.
        stage: what learns, from what, for how many steps.
        seed: of the samples and of everything else that is random.
        objective: from `objective_for`, if you want to ask it for its held-out loss; None makes one.
        half_precision: True computes in bfloat16 where that is safe; the weights stay float32. None does so where the
            machine multiplies bfloat16 faster.

    Yields:
        A Step after each step. You may stop at any time.

    Raises:
        FloatingPointError: the loss is not a finite number.

    Example:
        >>> from dataclasses import replace
        >>> from minicpmv_ref.learn.stages import stage_named
        >>> model, processor = start(), Processor.from_pretrained("nano")
        >>> [step.views for step in train(model, processor, replace(stage_named("stage-1"), steps=2, batch=3))]
        [3, 3]

    Source: paper section 4: what each stage trains; the rates and the schedule are this project's.
    """
    torch.manual_seed(seed)
    device = model.resampler.query.device
    objective = objective or objective_for(model, processor, stage)
    parameters = freeze(model, stage)
    if stage.objective == "contrast":  # its scaffolding learns with the ViT and is thrown away
        parameters = [p for p in objective.parameters() if p.requires_grad]
        groups = [{"params": parameters, "lr": stage.rates["vpm"]}]
    else:
        groups = [{"params": list(getattr(model, part).parameters()), "lr": lr} for part, lr in stage.rates.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, stage.steps))
    samples = draw_samples(stage, seed, "train", objective.view)
    if half_precision is None:
        half_precision = fast_bfloat16(device)
    model.train()
    began = time.perf_counter()
    for step in range(1, stage.steps + 1):
        drawn = [next(samples) for _ in range(stage.batch)]
        with torch.autocast(device.type, torch.bfloat16, enabled=half_precision):
            loss, tokens, views = objective(drawn, step)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{stage.name}, step {step}: the loss is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = schedule.get_last_lr()[0] / groups[0]["initial_lr"]
        optimizer.step()
        schedule.step()
        yield Step(step, loss.item(), rate, tokens, views, time.perf_counter() - began)
    model.eval()


def draw_samples(stage: Stage, seed: int, split: str, view: int) -> Iterator[Sample]:
    """The endless samples of a stage."""
    scales = {1.0: 1 - stage.large, 2.0: stage.large}
    return stream(f"{stage.name}/{seed}", stage.mixture, split, scales=scales, turns=stage.turns, view=view)


def rate_at(step: int, steps: int) -> float:
    """The learning rate as a share of its highest: a short rise, then half a cosine down to 2 percent."""
    warm = min(1.0, (step + 1) / max(1, WARM_UP * steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether this machine multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # private; without it: float32
    return bool(supported())


# ---- one objective each: samples in, (loss, tokens, views) out


class _Answer:
    """Predict the answers."""

    def __init__(self, model: MiniCPMV, processor: Processor, stage: Stage):
        self.model, self.processor = model, processor
        self.view = model.config.slicing.scale_resolution  # side in pixels of what the world draws
        if stage.half:
            slicing = processor.config.slicing
            slicing = replace(slicing, scale_resolution=slicing.scale_resolution // 2, max_slice_nums=1)
            self.processor = Processor(processor.tokenizer, replace(processor.config, slicing=slicing))

    def __call__(self, samples: list[Sample], step: int):
        packed, samples = self.packed(samples, step)
        return packed_loss(self.model, packed, self.visual(samples)), *_sizes(packed)

    def packed(self, samples: list[Sample], step: int) -> tuple[PackedBatch, list[Sample]]:
        # llama.cpp writes no <image_id>, the official code does: every other step learns without.
        batch = self.processor([sample.messages for sample in samples], use_image_id=step % 2 == 0)
        lengths = sample_lengths(batch)
        (row,) = pack(lengths, sum(lengths))  # all in one row, equal lengths side by side
        return pack_batch(batch, [row]).to(self.model.resampler.query.device), [samples[i] for i in row]

    def visual(self, samples: list[Sample]):
        return None  # the model looks at the pictures


class _Spelled(_Answer):
    """Predict the answers from pictures that are spelled in words. The ViT does not run at all."""

    def visual(self, samples: list[Sample]) -> torch.Tensor:
        return spelled_tokens(self.model, self.processor, samples)


class _Raw(_Spelled):
    """The same in raw text, one line for a question and its answer: no roles, no turns, no end tokens.

    That is how an LLM begins. Here it also takes half the tokens, and the answer stands next to its question, so
    looking things up is learned many times sooner than inside the chat template.
    """

    def packed(self, samples: list[Sample], step: int) -> tuple[PackedBatch, list[Sample]]:
        batch = self.processor.collate([self._line_by_line(sample, step) for sample in samples])
        lengths = sample_lengths(batch)
        (row,) = pack(lengths, sum(lengths))
        return pack_batch(batch, [row]).to(self.model.resampler.query.device), [samples[i] for i in row]

    def _line_by_line(self, sample: Sample, step: int) -> dict:
        config, tokenizer = self.processor.config, self.processor.tokenizer
        plan = plan_slices(sample.image.size, config.slicing)
        text = image_layout(plan, config.resampler.num_queries, config.version, 0 if step % 2 == 0 else None)
        answers = []
        for question, answer in pairwise(blind(sample.messages)):
            if question["role"] == "user":
                text += f"\n{question['content']}"
                answers.append((len(text), len(text) + 1 + len(answer["content"])))
                text += f" {answer['content']}"
        encoded = tokenizer(text + "\n", add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        bounds = image_bounds(ids, self.processor.token_ids, config.version)
        labels = answer_labels(ids, encoded["offset_mapping"], answers)
        return dict(
            ids=ids, labels=labels, images=[torch.empty(0)] * len(bounds), patch_grids=[], bounds=bounds, plans=[plan]
        )


def spelled_tokens(model: MiniCPMV, processor: Processor, samples: Sequence[Sample]) -> torch.Tensor:
    """Say pictures in words, as visual tokens would.

    Args:
        model: its word embeddings are used; gradients reach them.
        processor: its tokenizer is used.
        samples: pictures that `spell` can spell.

    Returns:
        Tensor (B, 16, D): for all views of all samples, the sums of the embeddings of each slot's words.
    """
    table = model.llm.get_input_embeddings()
    slots = [slot for sample in samples for view in spell(sample) for slot in view]
    ids = {word: processor.tokenizer(word, add_special_tokens=False).input_ids for slot in set(slots) for word in slot}
    split = [word for word, tokens in ids.items() if len(tokens) != 1]
    if split:
        raise ValueError(f"these words are not single tokens of the tokenizer: {split}")
    tokens, ends = [], [0]
    for slot in slots:
        tokens += [ids[word][0] for word in slot]
        ends.append(len(tokens))
    tokens, starts = (torch.tensor(x, device=table.weight.device) for x in (tokens, ends[:-1]))
    return F.embedding_bag(tokens, table.weight, starts, mode="sum").unflatten(0, (-1, 16))


class _Contrast(Contrast):
    """Match captions and pictures, at full and at half resolution in turn."""

    def __init__(self, model: MiniCPMV, processor: Processor, stage: Stage):
        super().__init__(model, processor.tokenizer)
        self.view = self.slicing.scale_resolution
        self.to(model.resampler.query.device)

    def __call__(self, samples: list[Sample], step: int):
        view = self.slicing.scale_resolution // (1 + step % 2)
        return super().__call__(samples, view), 0, len(samples)


def objective_for(model: MiniCPMV, processor: Processor, stage: Stage):
    """Build what a stage minimizes: a function of (samples, step) that gives (loss, tokens, views)."""
    return {"answer": _Answer, "spelled": _Spelled, "raw": _Raw, "contrast": _Contrast}[stage.objective](
        model, processor, stage
    )


def _sizes(packed: PackedBatch) -> tuple[int, int]:
    return sum(row[-1] for row in packed.borders), sum(len(views) for views in packed.images)


def held_out_loss(objective, stage: Stage, n: int = 64, seed: int = 0) -> float:
    """The loss of a stage on held-out samples: the number to watch while it trains.

    Args:
        objective: from `objective_for`.
        stage: its stage.
        n: samples.
        seed: of the samples, which no seed of the training can draw.

    Returns:
        Mean negative log-likelihood per supervised token, in nats; for "contrast" the sigmoid loss.
    """
    samples = draw_samples(stage, seed, "test", objective.view)
    with torch.no_grad():
        return objective([next(samples) for _ in range(n)], step=0)[0].item()


# ---- the command


def run(
    folder: str | os.PathLike,
    profile: Profile,
    processor: Processor,
    only: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    report=print,
    progress: bool = True,
) -> MiniCPMV:
    """Train stage after stage; each leaves a checkpoint, its metrics and its grades in a folder of its own.

    Stages whose checkpoint is there already are loaded, not trained again: a run that was cut off goes on with the
    stage that was cut.

    Args:
        folder: where to write: folder/stage-1/model.safetensors and so on, and folder/metrics.jsonl.
        profile: how long.
        processor: its tokenizer belongs to `profile.config`.
        only: train this stage alone, from the stage before it in the folder.
        seed: of weights and samples.
        device: "cpu" or "cuda".
        report: takes one line of text at a time.
        progress: show a bar.

    Returns:
        The trained model.

    Raises:
        ValueError: an unknown stage.
        OSError: the stage before `only` is not there; the folder cannot be written.
        FloatingPointError: the loss is not a finite number.
    """
    folder = Path(folder)
    names = [stage.name for stage in STAGES]
    if only is not None and only not in names:
        raise ValueError(f"no stage {only!r}; there are {', '.join(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    model = start(profile.config, seed).to(device)
    for number, stage in enumerate(scaled(stage, profile) for stage in STAGES):
        place = folder / stage.name
        if only is not None and number > names.index(only):
            break
        if stage.name != only and (place / "model.safetensors").is_file():
            model = MiniCPMV.from_pretrained(place).float().to(device)
            report(f"{stage.name}: done before, loaded from {place}")
            continue
        if only is not None and stage.name != only:
            raise FileNotFoundError(f"{only} starts from {stage.name}, and there is no checkpoint in {place}")
        _run_stage(model, processor, stage, seed, place, folder / "metrics.jsonl", profile.grades, report, progress)
    return model


def _run_stage(model, processor, stage, seed, place, log, grades, report, progress) -> None:
    from tqdm import tqdm

    learning = ", ".join(part for part in PARTS if part in stage.rates)
    report(f"{stage.name}: {learning} for {stage.steps} steps of {stage.batch} samples")
    torch.manual_seed(seed)
    objective = objective_for(model, processor, stage)
    before = held_out_loss(objective, stage)
    every = max(1, stage.steps // 50)
    recent: list[Step] = []
    began, cpu = time.perf_counter(), time.process_time()
    with open(log, "a", encoding="utf-8") as lines, tqdm(total=stage.steps, disable=not progress, unit="step") as bar:
        for step in train(model, processor, stage, seed, objective=objective):
            recent.append(step)
            bar.update()
            if step.step % every == 0 or step.step == stage.steps:
                seconds = step.seconds - (recent[0].seconds if len(recent) > 1 else 0)
                count = max(1, len(recent) - 1)
                row = {
                    "stage": stage.name,
                    "step": step.step,
                    "loss": sum(s.loss for s in recent) / len(recent),
                    "rate": step.rate,
                    "tokens_per_s": sum(s.tokens for s in recent[-count:]) / seconds,
                    "views_per_s": sum(s.views for s in recent[-count:]) / seconds,
                    "seconds": step.seconds,
                }
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_s']:.0f}")
                recent = [step]
        after = held_out_loss(objective, stage)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        report(f"{stage.name}: held-out loss {before:.3f} -> {after:.3f} in {seconds:.0f} s ({cpu:.0f} CPU-s)")
        result = {"stage": stage.name, "held_out_before": before, "held_out_after": after, "seconds": seconds}
        if stage.objective == "answer":
            result["grades"] = evaluate(model, processor, seed="grades", n=grades)
            report("    " + ", ".join(f"{name} {share:.2f}" for name, share in result["grades"].items()))
        lines.write(json.dumps(result) + "\n")
    processor.save_pretrained(place)
    model.save_pretrained(place)  # last: with its weights a stage counts as done


def plot(folder: str | os.PathLike) -> Path:
    """Draw the losses of all stages of a run.

    Args:
        folder: of `run`.

    Returns:
        The path of the picture, folder/curves.png.

    Raises:
        OSError: there are no metrics in the folder.
    """
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if "loss" in row:
            curve = curves.setdefault(row["stage"], [])
            if curve and row["step"] <= curve[-1][0]:  # the stage was trained again
                curve.clear()
            curve.append((row["step"], row["loss"]))
    figure = Figure(figsize=(3 * len(curves), 3), layout="constrained")
    for axis, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        axis.plot(*zip(*curve))
        axis.set(title=name, xlabel="step", yscale="log")
    figure.axes[0].set_ylabel("loss")
    path = Path(folder) / "curves.png"
    draft = path.with_name(f".{os.getpid()}.png")
    figure.savefig(draft)
    os.replace(draft, path)
    return path
