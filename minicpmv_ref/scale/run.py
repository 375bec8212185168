"""The engine: the loop of `learn/train.py` taken apart, so that nothing is lost and a machine is used in full.

`run` trains stage after stage; `train_stage` trains one and goes on from its last save; `train_steps` is the loop. How
nothing is lost stands in `saves.py`, what several processes share in `parallel.py`, how the next steps are prepared
while this one computes in `loader.py`, and what a step costs in `budget.py`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from ..counts import PARTS, flops
from ..inputs.checkpoint import WEIGHTS
from ..inputs.checks import check_int, check_list, check_number, check_type, shown
from ..inputs.files import only_one, parse_json, plain_file, replacing
from ..learn.evaluate import evaluate
from ..learn.objectives import draw_samples, held_out_loss, objective_for
from ..learn.packing import PackedBatch
from ..learn.stages import STAGES, Stage, start
from ..learn.train import Step, optimizer_for, update
from ..model import MiniCPMV
from ..processor import Processor
from ..toy.data import Sample
from .budget import budget, checkpointed, compile_layers, device_memory, mfu, peak_flops, workload_of
from .loader import Coming, check_workers, prepared
from .parallel import ALONE, Learner, World, backward, check_sharding, load_optimizer, spread, unshard, whole
from .profiles import Profile, scaled
from .saves import (
    Damaged,
    Stopped,
    best_in,
    clear_end,
    finish,
    has_checksums,
    read_save,
    saves_in,
    set_aside,
    wait_for_step,
    write_save,
)

DATA_VERSION = 2  # of the world; a checkpoint says which one it was trained on
SAVES = "saves"  # the folder of a stage's saves, in that of its checkpoint
LOCK = ".training.lock"  # held by the training that writes into a folder


def train_steps(
    model: MiniCPMV,
    processor: Processor,
    stage: Stage,
    seed: int = 0,
    *,
    objective=None,
    samples: Callable[[int], Sample] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    done: int = 0,
    half_precision: bool | None = None,
    world: World = ALONE,
    learner: nn.Module | None = None,
    pieces: int = 1,
    workers: int = 0,
) -> Iterator[Step]:
    """As `learn.train.train`, taken apart: it goes on after any step, in one of several processes, in parts of a batch.

    Args:
        model, processor, stage, seed, objective, samples, optimizer: as for `learn.train.train`.
        done: steps that this model and this optimizer have behind them. Samples and learning rate go on from there, so
            a resumed training ends with the same weights as one that was never interrupted.
        half_precision: True computes in bfloat16 where that is safe; the weights stay float32. None does so where the
            machine multiplies bfloat16 faster.
        world: from `join`, if several processes train together: each takes its share of every step's samples.
        learner: from `spread`, on this model and this objective; None replicates.
        pieces: compute the samples of a step in so many parts, one after the other, to save memory.
        workers: processes that draw and slice the next steps' samples while this step computes; 0 does it in between.

    Yields:
        A Step after each step, numbered from done + 1. You may stop at any time.

    Raises:
        ValueError: a `done` that is not from 0 to the stage's steps; fewer samples than pieces or processes; workers
            on a system that cannot fork; a sample that is too long for the model; a number that is none or cannot be.
        FloatingPointError: the loss or its gradient is not finite. The weights are still those before that step.
    """
    check_type("stage", stage, Stage)
    check_int("seed", seed, least=0)
    check_type("world", world, World)
    if not 0 <= check_type("done", done, int) <= stage.steps:
        raise ValueError(f"done must be from 0 to {stage.steps}, got {done}")
    if done == 0:
        torch.manual_seed(seed)
    objective = objective or objective_for(model, processor, stage)
    samples = samples or draw_samples(stage, seed, "train", objective.view)
    optimizer = optimizer or optimizer_for(model, stage, objective)
    learner = learner or spread(Learner(model, objective), world)
    if stage.objective == "contrast":
        pieces = 1  # it compares all samples with each other
    # A generator would raise only at its first step, so the checks stand outside of it.
    coming = Coming(objective, samples, stage.batch, world, pieces)
    steps = prepared(coming, range(done + 1, stage.steps + 1), workers)
    return _steps(model, stage, objective, learner, steps, optimizer, half_precision, world)


def _steps(model, stage, objective, learner, steps, optimizer, half_precision, world) -> Iterator[Step]:
    device = model.resampler.query.device
    if half_precision is None:
        half_precision = fast_bfloat16(device)
    model.train()
    began = time.perf_counter()
    for step, names, pieces in steps:
        optimizer.zero_grad(set_to_none=True)
        try:
            if isinstance(pieces, Exception):
                raise pieces
            loss, tokens, views = backward(learner, pieces, world, half_precision)
        except (ValueError, OSError) as error:
            kind = ValueError if isinstance(error, ValueError) else OSError
            raise kind(f"{stage.name}, step {step}, one of the samples {names}: {error}") from error
        try:
            rate = update(optimizer, stage, step, loss, whole)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; its samples: {names}") from None
        flops = sum(flops_of(model, stage, piece) for piece in pieces)
        yield Step(step, loss, rate, tokens, views, time.perf_counter() - began, flops)
    model.eval()


def flops_of(model: MiniCPMV, stage: Stage, prepared) -> int:
    """FLOPs of a prepared part of a step; 0 where they are not counted: adapters, and the scaffolding of "contrast"."""
    packed = prepared[0]
    if not isinstance(packed, PackedBatch) or model.has_adapters:
        return 0
    return flops(model.config, workload_of(packed, model.config.slicing.patch_size), stage.learning_rates)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether this machine multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # private; without it: float32
    return bool(supported())


def run(
    folder: str | os.PathLike,
    profile: Profile,
    processor: Processor,
    only: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    report=print,
    progress: bool = True,
    **options,
) -> MiniCPMV:
    """Train stage after stage; each leaves a checkpoint, its metrics and its grades in a folder of its own.

    A run that was cut off goes on where it was: finished stages are loaded, and the one that was cut continues from
    its last save.

    Args:
        folder: where to write: folder/stage-1/model.safetensors and so on, and folder/metrics.jsonl.
        profile: how long.
        processor: its tokenizer belongs to `profile.config`.
        only: train this stage alone, from the stage before it in the folder.
        seed: of weights and samples.
        device: "cpu" or "cuda".
        report: takes one line of text at a time.
        progress: show a bar.
        options: `world`, `shard`, `pieces`, `workers`, `checkpointing` and `compiled`, as for `train_stage`.

    Returns:
        The trained model.

    Raises:
        ValueError: an unknown stage; a save of another profile or seed.
        OSError: the stage before `only` is not there; the folder cannot be written; another training writes there.
        FloatingPointError: the loss is not a finite number.
        Stopped: Ctrl-C or SIGTERM; everything is saved.
    """
    folder = Path(folder)
    check_type("profile", profile, Profile)
    check_int("seed", seed, least=0)
    check_device(device)
    if only is not None and check_type("only", only, str) not in (names := [stage.name for stage in STAGES]):
        raise ValueError(f"no stage {shown(only)}; there are {', '.join(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, check_type("world", options.get("world", ALONE), World)):
        return _run(folder, profile, processor, only, seed, device, report, progress, options)


def check_device(device: str | torch.device) -> None:
    """Raise a ValueError for a device that this torch cannot use."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that this torch can use, got {shown(device)}: {error}") from error


def alone_in(folder: Path, world: World = ALONE):
    """A context that a second training in the same folder cannot enter: it gets an OSError. The first process asks."""
    return only_one(folder / LOCK, f"another training writes to {folder}") if world.rank == 0 else nullcontext()


def _run(folder, profile, processor, only, seed, device, report, progress, options) -> MiniCPMV:
    names, world = [stage.name for stage in STAGES], options.get("world", ALONE)
    model = start(profile.config, seed).to(device)
    for number, stage in enumerate(scaled(stage, profile) for stage in STAGES):
        place = folder / stage.name
        if only is not None and number > names.index(only):
            break
        if stage.name != only and (place / WEIGHTS).is_file() and not saves_in(place / SAVES):
            model = MiniCPMV.from_pretrained(place).float().to(device)
            report(f"{stage.name}: done before, loaded from {place}")
            if world.rank == 0:
                clear_end(place, place / SAVES)
            continue
        if only is not None and stage.name != only:
            raise FileNotFoundError(f"{only} starts from {stage.name}, and there is no checkpoint in {place}")
        log = folder / "metrics.jsonl"
        result = train_stage(
            model,
            processor,
            stage,
            place / SAVES,
            log,
            held_out=lambda objective, stage=stage: held_out_loss(objective, stage),
            seed=seed,
            settings={"world": DATA_VERSION},
            report=report,
            progress=progress,
            **options,
        )
        model = unshard(model)
        if world.rank > 0:
            continue
        if stage.objective == "answer":
            result["grades"] = evaluate(model, processor, seed="grades", n=profile.grades)
            grades = ", ".join(f"{name} {share:.2f}" for name, share in result["grades"].items())
            report(f"    of {profile.grades} new items each: {grades}")
        _append(log, result)
        finish(place, model, processor, place / SAVES)  # with weights and without saves a stage counts as done
    return model


def train_stage(
    model: MiniCPMV,
    processor: Processor,
    stage: Stage,
    saves: Path,
    log: Path,
    *,
    held_out: Callable | None = None,
    samples: Callable[[int], Sample] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    sparse: bool = False,
    seed: int = 0,
    settings: dict | None = None,
    every: int | None = None,
    report=print,
    progress: bool = True,
    world: World = ALONE,
    shard: bool = False,
    pieces: int = 1,
    workers: int = 0,
    checkpointing: bool = False,
    compiled: bool = False,
) -> dict:
    """Train one stage so that nothing is lost: it goes on from its last whole save, and saves again and again.

    Args:
        model, processor, stage, samples, optimizer, seed: as for `train_steps`.
        saves: the folder of its saves; they stay there.
        log: the JSONL file of its metrics; other stages may have written to it before.
        held_out: from the objective to its held-out loss, which is asked for at each save.
        sparse: True where samples may have no picture, as in data of your own.
        settings: what else must be the same for a training that goes on, the data for example.
        every: steps from one save to the next; None is a tenth of all steps, and ten at least.
        report, progress: as for `run`.
        world, pieces, workers: as for `train_steps`. The first process alone writes; it needs the folder, the others
            read it.
        shard: True lets each process hold a part of each tensor, see `parallel.spread`; at a save all of them build the
            whole model once. Behind it the model is sharded, and `unshard` makes a whole one of it. "contrast" trains
            the ViT alone and always replicates.
        checkpointing: compute each layer twice, see `budget.checkpointed`.
        compiled: let torch.compile fuse what it can, see `budget.compile_layers`; the first steps take long.

    Returns:
        {"stage": name, "held_out_before": loss, "held_out_after": loss, "seconds": of its steps}; without
        `held_out` the losses are None.

    Raises:
        ValueError, OSError, FloatingPointError: as for `train_steps`, with the last good state saved; a save that does
            not fit, or all of them damaged; a full disk, which leaves the save before it whole; processes that found
            different saves.
        Stopped: Ctrl-C or SIGTERM, after the end of a step and with its state saved.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from minicpmv_ref.learn.stages import stage_named
        >>> model, processor, folder = start(), Processor.from_pretrained("nano"), Path(tempfile.mkdtemp())
        >>> stage = replace(stage_named("stage-1"), steps=2, batch=1)
        >>> said = []
        >>> log, quiet = folder / "metrics.jsonl", {"report": said.append, "progress": False}
        >>> _ = train_stage(model, processor, stage, folder / "saves", log, **quiet)
        >>> said[0]
        'stage-1: resampler for 2 steps of 1 samples'
        >>> [save.name for save in saves_in(folder / "saves")]
        ['step-000002']
    """
    from tqdm import tqdm

    check_type("stage", stage, Stage)
    check_int("seed", seed, least=0)
    every = max(10, stage.steps // 10) if every is None else check_int("every", every)
    shard = shard and stage.objective != "contrast"
    pieces = 1 if stage.objective == "contrast" else pieces
    # All that can be wrong with the options, before anything is read, measured or written.
    Coming(None, None, stage.batch, world, pieces)
    check_workers(workers)
    if shard:
        check_sharding(sparse)
    learning = ", ".join(part for part in PARTS if part in stage.learning_rates)
    if optimizer:
        learning = f"{sum(p.numel() for group in optimizer.param_groups for p in group['params']):,} parameters"
    report(f"{stage.name}: {learning} for {stage.steps} steps of {stage.batch} samples")
    torch.manual_seed(seed)
    objective = objective_for(model, processor, stage)
    optimizer = optimizer or optimizer_for(model, stage, objective)
    if compiled:
        compile_layers(model)
    settings = settings_of(stage, seed, settings)
    state: dict = {"seconds": 0.0, "row": 0.0, "recent": []}  # all seconds, those at the last row, steps since then
    done = 0

    def whole_now():
        """Model, optimizer and objective as one process would have them; all processes must call this together."""
        if not shard:
            return model, optimizer, objective
        plain = unshard(model)
        its_optimizer = optimizer_for(plain, stage)
        its_optimizer.load_state_dict(whole(optimizer.state_dict()))
        return plain, its_optimizer, objective_for(plain, processor, stage)

    def measured(model, objective) -> float | None:
        model.eval()  # no dropout, should there be any
        loss = held_out(objective) if held_out else None
        model.train()
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(f"{stage.name}, after step {done}: the held-out loss is {loss}")
        return loss

    def save(model, optimizer, objective, held_out: float | None = None) -> Path:
        if world.rank > 0:
            return saves
        options = {"settings": settings, "notes": state, "held_out": held_out}
        return write_save(saves, done, model, processor, optimizer, objective, **options)

    if found := _newest(saves, lambda path: read_save(path, model, optimizer, objective, settings), world, report):
        path, done, state = found
        doubt = "" if has_checksums(path) else ", which has no checksums: what was damaged there is not noticed"
        report(f"{stage.name}: goes on after step {done}, from {path}{doubt}")
    else:
        state["before"] = state["after"] = measured(model, objective)
    if world.total(done)[0] != done * world.size:
        raise ValueError(f"not every process goes on after step {done}: make {saves} the same for all of them")
    earlier, breaks = state["seconds"], 0.0  # seconds of the steps before, and of the saves since
    sample = samples or draw_samples(stage, seed, "train", objective.view)
    probe = [sample(number) for number in range(min(8, stage.batch))]
    device = model.resampler.query.device
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    share = math.ceil(stage.batch / world.size)
    need = budget(model, objective, probe, share, pieces, fast_bfloat16(device), checkpointing)
    need = need.sharded(world.size) if shard else need
    report(need.line(device))
    if need.total > 1.5 * (has := device_memory(device)[1]):  # nobody waits for a machine that swaps itself to death
        raise ValueError(
            f"a step needs about {need.total / 1e9:.1f} GB, but there are {has / 1e9:.1f} in all: take a smaller "
            "batch, more pieces, or checkpointing"
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    if world.rank == 0 and (lost := _forget(log, stage.name, done)):
        report(f"{log}: {lost} damaged lines are left out")
    learner = spread(Learner(model, objective), world, shard, sparse)
    if shard:  # its parameters are new ones
        unsharded, optimizer = optimizer, optimizer_for(model, stage)
        load_optimizer(optimizer, unsharded.state_dict())
        del unsharded
    given = dict(objective=objective, samples=sample, optimizer=optimizer, done=done, pieces=pieces, workers=workers)
    steps = train_steps(model, processor, stage, seed, **given, world=world, learner=learner)
    thrift = checkpointed(model) if checkpointing else nullcontext()
    bar = tqdm(total=stage.steps, initial=done, disable=not progress, unit="step")
    with thrift, wait_for_step() as caught, bar:
        while done < stage.steps:
            try:
                step = next(steps)
            except (FloatingPointError, ValueError, OSError) as error:
                # A bad sample is one process's own trouble, and it cannot gather what is sharded by itself.
                if not shard or isinstance(error, FloatingPointError):
                    try:
                        path = save(*whole_now())
                    except FloatingPointError as worse:  # the weights themselves are not finite
                        raise FloatingPointError(f"{error}; {worse}") from error
                    if caught:  # the signal may have reached the workers first
                        raise Stopped(caught[0], done, path) from error
                    hint = ", to start from at a smaller rate" if isinstance(error, FloatingPointError) else ""
                    report(f"{stage.name}: the state after step {done} is saved in {path}{hint}")
                raise
            done, state["seconds"] = step.step, earlier + step.seconds - breaks
            began = time.perf_counter()
            state["recent"].append((step.loss, step.tokens, step.views, step.flops))
            bar.update()
            stopping = world.total(len(caught))[0] > 0  # all stop after the same step, or some would wait for ever
            saving = done % every == 0 or done == stage.steps
            if saving:
                now = whole_now()
                state["after"] = measured(now[0], now[2])
            if saving or done % max(1, stage.steps // 50) == 0:
                row = _row(stage, step, state, peak)
                # Before the save: a row that the save does not know is forgotten, one that is missing would stay so.
                if world.rank == 0:
                    _append(log, row | ({"held_out": state["after"]} if saving else {}))
                bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_s']:.0f}")
                state |= {"row": state["seconds"], "recent": []}
            if saving:
                save(*now, state["after"])
                del now
            if stopping:
                raise Stopped((caught or [signal.SIGTERM])[0], done, save(*whole_now()))
            breaks += time.perf_counter() - began
    model.eval()
    before, after, seconds = state["before"], state["after"], state["seconds"]
    if held_out:
        report(f"{stage.name}: held-out loss {before:.3f} -> {after:.3f} in {seconds:.0f} s")
    return {"stage": stage.name, "held_out_before": before, "held_out_after": after, "seconds": seconds}


def settings_of(stage: Stage, seed: int, more: dict | None = None) -> dict:
    """What has to be the same for a training that goes on."""
    return {"stage": stage.settings(), "seed": seed, **(more or {})}


def _newest(saves: Path, read: Callable, world: World, report) -> tuple[Path, int, dict] | None:
    """Go back to the newest save that is whole: (its path, steps that are done, notes); None if there are no saves."""
    damaged = {}
    for path in reversed(saves_in(saves)):
        try:
            done, state = read(path)
            _check_state(path, state)
        except Damaged as error:
            damaged[path] = error
            continue
        for each, error in damaged.items():
            if world.rank == 0:
                report(f"{error}. It is called {set_aside(each).name} now, and does not count")
        best_in(saves, report)  # tells of older ones that are damaged
        return path, done, state
    if damaged:
        raise next(iter(damaged.values()))
    return None


def _check_state(path: Path, state: dict) -> None:
    try:
        for name in ("seconds", "row"):
            check_number(name, state[name], least=0)
        for name in ("before", "after"):
            if state[name] is not None:
                check_number(name, state[name])
        for row in check_list("recent", state["recent"], list):
            _, _, _, _ = [check_number("recent", number) for number in row]
    except (KeyError, ValueError) as error:
        raise Damaged(path, f"its notes cannot be: {error}") from error


def _row(stage: Stage, step: Step, state: dict, peak: float | None) -> dict:
    """One row of the log: means over the steps since the row before it."""
    loss, tokens, views, flops = (sum(each) for each in zip(*state["recent"]))
    seconds = state["seconds"] - state["row"]
    row = {
        "stage": stage.name,
        "step": step.step,
        "loss": loss / len(state["recent"]),
        "rate": step.rate,
        "tokens_per_s": tokens / seconds,
        "views_per_s": views / seconds,
        "seconds": state["seconds"],
    }
    if flops:
        row["tflops_per_s"] = flops / seconds / 1e12
    return row | ({"mfu": mfu(flops, seconds, peak)} if flops and peak else {})


def _append(log: Path, row: dict) -> None:
    try:
        with open(log, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
    except OSError as error:  # a full disk has no name
        raise OSError(f"could not write {log}: {error}") from error


def _rows(log: Path) -> tuple[list[dict], int]:
    """The rows of a log, and how many lines are none: a full disk or a process that died may have cut one."""
    rows = []
    lines = plain_file(log).read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    for line in lines:
        try:
            row = check_type("a row", parse_json(line), dict)
            check_type("stage", row.get("stage"), str)
            for name in ("step", "loss", "held_out"):
                if row.get(name) is not None:
                    check_number(name, row[name])
        except ValueError:
            continue
        rows.append(row)
    return rows, len(lines) - len(rows)


def _forget(log: Path, stage: str, step: int) -> int:
    """Take out what a stage wrote after a step: these steps are taken again. Returns how many lines were damaged."""
    found, lost = _rows(log)
    rows = [row for row in found if row["stage"] != stage or row.get("step", math.inf) <= step]
    try:
        with replacing(log) as (draft,):
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise OSError(f"could not write {log}: {error}") from error
    return lost


def plot(folder: str | os.PathLike) -> Path:
    """Draw the losses of all stages of a run, in training and held out.

    Args:
        folder: of `run`.

    Returns:
        The path of the picture, folder/curves.png.

    Raises:
        OSError: there are no metrics in the folder.
    """
    from matplotlib.figure import Figure

    log = Path(folder) / "metrics.jsonl"
    rows = [row for row in _rows(log)[0] if row.get("loss") is not None and row.get("step") is not None]
    if not rows:
        raise FileNotFoundError(f"there are no metrics in {log}")
    curves = {row["stage"]: ([], []) for row in rows}
    for row in rows:
        curves[row["stage"]][0].append((row["step"], row["loss"]))
        if row.get("held_out") is not None:
            curves[row["stage"]][1].append((row["step"], row["held_out"]))
    figure = Figure(figsize=(3 * len(curves), 3), layout="constrained")
    for axis, (name, (curve, held_out)) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        axis.plot(*zip(*curve), label="training")
        if held_out:
            axis.plot(*zip(*held_out), "o", label="held out")
            axis.legend()
        axis.set(title=name, xlabel="step", yscale="log")
    figure.axes[0].set_ylabel("loss")
    path = Path(folder) / "curves.png"
    with replacing(path) as (draft,):
        figure.savefig(draft, format="png")
    return path
