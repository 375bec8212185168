"""A run of several stages: each goes on where it was interrupted, and leaves a checkpoint, its metrics and its grades.

`stage_run.py` trains one stage, `steps.py` has the loop, `training_checkpoints.py` says how nothing is lost,
`parallel.py` what several processes share, `loader.py` how inputs are prepared ahead, `budget.py` what a step costs.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from ..inputs.checkpoint import WEIGHTS, fingerprint
from ..inputs.checks import check_int, check_type
from ..inputs.files import only_one
from ..learn.evaluate import evaluate
from ..learn.objectives import held_out_loss
from ..learn.stages import LATER, STAGES, Stage, stage_named, start
from ..model import MiniCPMV
from ..processor import Processor
from .expected import watch
from .machine import DEFAULT, Machine
from .metrics import METRICS, append_row
from .parallel import ONE_PROCESS, Processes, unshard
from .profiles import Profile, scaled
from .stage_run import Output, StageData, StageRun, settings_of
from .training_checkpoints import FOLDER, clean_up, finish, finished, training_checkpoints

DATA_VERSION = 2  # of the toy world; a checkpoint says which one it was trained on
LOCK = ".training.lock"  # held by the training that writes into a folder


def run(
    folder: str | os.PathLike,
    profile: Profile,
    processor: Processor,
    only: str | None = None,
    seed: int = 0,
    report=print,
    progress: bool = True,
    machine: Machine = DEFAULT,
    checkpoint: str | os.PathLike | None = None,
) -> MiniCPMV:
    """Train stage after stage; each leaves a checkpoint, its metrics and its grades in a folder of its own.

    A run that was interrupted goes on where it was: finished stages are loaded, `only` as well, and the interrupted
    one resumes from its newest training checkpoint.

    Args:
        folder: where to write: folder/stage-1/model.safetensors and so on, and folder/metrics.jsonl.
        profile: the config, how many steps and samples, and which learning rates.
        processor: its tokenizer belongs to `profile.config`.
        only: train this stage alone, from the stage before it in the folder. Those of LATER are trained only so.
        seed: of weights and samples.
        report: takes one line of text at a time.
        progress: show a bar.
        machine: how to use the machine.
        checkpoint: with `only`: start from this one, for example "nano"; the folder needs no other stage.

    Returns:
        The trained model.

    Raises:
        ValueError: an unknown stage; a finished stage, or a training checkpoint, of another profile, seed or start.
        OSError: the stage before `only`, or the checkpoint, is not there; the folder cannot be written; another
            training writes there.
        FloatingPointError: the loss is not a finite number.
        Stopped: Ctrl-C, SIGTERM or a closed terminal; everything is saved.
    """
    folder = Path(folder)
    check_type("profile", profile, Profile)
    seed = check_int("seed", seed, least=0)
    check_type("machine", machine, Machine)
    stages = _stages(only, alone=checkpoint is not None)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, machine.processes):
        model = start(profile.config, seed) if checkpoint is None else MiniCPMV.from_pretrained(checkpoint).float()
        data = {"world": DATA_VERSION}  # with the stage and the seed: what has to be the same
        if checkpoint is not None:
            data["from"] = fingerprint(dict(model.named_parameters()))
        model = model.to(machine.device)
        for stage in stages:
            place, stage = folder / stage.name, scaled(stage, profile)
            if (place / WEIGHTS).is_file() and not training_checkpoints(place / FOLDER):
                _check_finished(place, settings_of(stage, seed, data))
                model = MiniCPMV.from_pretrained(place).float().to(machine.device)
                anew = "; to train it anew, move that away or write somewhere else" if stage.name == only else ""
                report(f"{stage.name}: done before, loaded from {place}{anew}")
                if machine.processes.rank == 0:
                    clean_up(place)
            elif only is not None and stage.name != only:
                raise FileNotFoundError(f"{only} starts from {stage.name}, and there is no checkpoint in {place}")
            else:
                look = watch(stage, model, report)
                output = Output(place / FOLDER, folder / METRICS, report=report, progress=progress, watch=look)
                model = _train_stage(model, processor, stage, output, profile.grades, data, seed, machine)
    return model


def _stages(only: str | None, alone: bool) -> tuple[Stage, ...]:
    """The stages of a run: all but the later ones, or those up to `only`, or that one alone."""
    if only is None:
        if alone:
            raise ValueError("a checkpoint to start from needs the stage that goes on from it")
        return STAGES
    known = (*STAGES, *LATER)
    number = known.index(stage_named(only))
    return known[number if alone else 0 : number + 1]


def _check_finished(place: Path, settings: dict) -> None:
    """Refuse a finished stage that this run would not write. One without notes, of an older version, is believed."""
    try:
        finished(place, settings)
    except ValueError as error:
        raise ValueError(f"{place} is not what this run would write: {error}. Write somewhere else") from error


def _train_stage(model, processor, stage: Stage, output: Output, grades: int, settings: dict, seed: int, machine):
    """Train, grade and write one stage; the trained model."""
    data = StageData(held_out=lambda objective: held_out_loss(objective, stage), settings=settings)
    result = StageRun(model, processor, stage, output, data, seed=seed, machine=machine).train()
    model = unshard(model)
    if machine.processes.rank == 0:
        if stage.objective == "answer":
            result["grades"] = evaluate(model, processor, seed="grades", n=grades)
            said = ", ".join(f"{name} {share:.2f}" for name, share in result["grades"].items())
            output.report(f"    of {grades} new items each: {said}")
        append_row(output.log, result)
        # With weights and no training checkpoint it counts as done.
        finish(output.checkpoints.parent, model, processor, notes={})
    return model


def alone_in(folder: Path, processes: Processes = ONE_PROCESS):
    """A context that a second training in the folder cannot enter (OSError). Only rank 0 takes the lock."""
    return only_one(folder / LOCK, f"another training writes to {folder}") if processes.rank == 0 else nullcontext()
