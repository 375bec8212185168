"""One stage of training that survives a crash: it resumes from its newest training checkpoint and writes new ones.

    StageRun(...).train()   set up or resume -> check the memory -> wrap for all processes -> steps -> result

After a step the run may write a row of the log, and a training checkpoint; a signal stops it between two steps.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..counts import PARTS
from ..inputs.checks import check_int, check_list, check_number, check_type
from ..learn.objectives import objective_for
from ..learn.stages import Stage
from ..learn.train import Step, loop_parts, optimizer_for
from ..model import MiniCPMV
from ..processor import Processor
from ..toy.data import Sample
from .budget import budget, checkpointed, compile_layers, device_memory, mfu, peak_flops
from .loader import prefetch
from .machine import DEFAULT, Machine
from .metrics import append_row, drop_rows_after
from .parallel import LossModule, check_sharding, full_optimizer_state, load_optimizer_state, unshard, wrap_distributed
from .signals import Stopped, wait_for_step
from .steps import run_steps
from .training_checkpoints import (
    Damaged,
    Header,
    best_checkpoint,
    has_checksums,
    load_training,
    save_training,
    set_aside,
    training_checkpoints,
)


@dataclass(frozen=True)
class StageData:
    """What a stage learns from, and what it is measured on.

    Args:
        samples: as for `learn.train.train`; None draws them from the toy world.
        held_out: from the objective to its held-out loss, which is asked for at each training checkpoint.
        sparse: True where samples may have no picture, as in data of your own.
        settings: what identifies the data: it must be the same for a training that resumes.
    """

    samples: Callable[[int], Sample] | None = None
    held_out: Callable | None = None
    sparse: bool = False
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """Where a training writes, and what it prints.

    Args:
        checkpoints: the folder of its training checkpoints; they stay there.
        log: the JSONL file of its metrics; other stages may have written to it before.
        every: steps between two training checkpoints; None is a tenth of all, from 10 to 500.
        report: takes one line of text at a time.
        progress: show a bar.
        watch: is called after each step.
    """

    checkpoints: Path
    log: Path
    every: int | None = None
    report: Callable[[str], object] = print
    progress: bool = True
    watch: Callable[[Step], object] = lambda step: None


@dataclass
class Progress:
    """What a stage has measured so far; saved in each training checkpoint."""

    seconds: float = 0.0  # of all steps
    row: float = 0.0  # seconds at the last row of the log
    recent: list = field(default_factory=list)  # (loss, tokens, views, flops) of each step since that row
    before: float | None = None  # held-out loss at the start
    after: float | None = None  # the newest held-out loss

    @classmethod
    def from_notes(cls, path: Path, notes: dict) -> Progress:
        """The notes of the training checkpoint at `path`, or Damaged."""
        try:
            for name in ("seconds", "row"):
                check_number(name, notes[name], least=0)
            for name in ("before", "after"):
                if notes[name] is not None:
                    check_number(name, notes[name])
            for row in check_list("recent", notes["recent"], list):
                if len([check_number("recent", number) for number in row]) != 4:
                    raise ValueError(f"recent must hold rows of 4 numbers, got {row}")
        except (KeyError, ValueError) as error:
            raise Damaged(path, f"its notes make no sense: {error}") from error
        return cls(**{name: notes[name] for name in asdict(cls())})


class StageRun:
    """One stage, from its newest training checkpoint to its end.

    Args:
        model, processor, stage, seed: as for `learn.train.train`.
        output: where to write.
        data: what to learn from; None is the toy world, without a held-out loss.
        optimizer: as for `learn.train.train`; what it holds learns.
        machine: how to use the machine. The model stays on its device. After `train`, a sharded model is still sharded,
            and `unshard` makes an ordinary one of it. "contrast" trains the ViT alone and always replicates.

    Raises:
        TypeError, ValueError: no Stage; a seed or `every` that cannot be; fewer samples than micro-batches or
            processes; sharding without processes or with samples that have no picture.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from minicpmv_ref.learn.stages import stage_named, start
        >>> stage, folder, lines = replace(stage_named("stage-1"), steps=2, batch=1), Path(tempfile.mkdtemp()), []
        >>> output = Output(folder / "saves", folder / "metrics.jsonl", report=lines.append, progress=False)
        >>> result = StageRun(start(), Processor.from_pretrained("nano"), stage, output).train()
        >>> lines[0]
        'stage-1: resampler for 2 steps of 1 samples'
        >>> [path.name for path in training_checkpoints(folder / "saves")]
        ['step-000002']
    """

    def __init__(
        self,
        model: MiniCPMV,
        processor: Processor,
        stage: Stage,
        output: Output,
        data: StageData | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
        machine: Machine = DEFAULT,
    ):
        self.model, self.processor, self.stage = model, processor, check_type("stage", stage, Stage)
        self.output, self.data, self.optimizer = output, data or StageData(), optimizer
        self.seed = check_int("seed", seed, least=0)
        self.machine = machine.for_stage(stage)
        self.every = min(max(10, stage.steps // 10), 500) if output.every is None else check_int("every", output.every)
        # Whatever is wrong with the options is found here, before anything is read, measured or written.
        self.machine.inputs(None, None, stage)
        if self.machine.shard:
            check_sharding(self.data.sparse)
        self.settings = settings_of(stage, seed, self.data.settings)
        self.done, self.progress = 0, Progress()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.machine.processes.rank == 0

    def train(self) -> dict:
        """Take the steps that are left.

        Returns:
            {"stage": name, "held_out_before": loss, "held_out_after": loss, "seconds": of its steps}; without
            `held_out` the losses are None.

        Raises:
            ValueError, OSError, FloatingPointError: as for `train_steps`, with the last good state saved (not by a
                sharded model whose sample was bad: then the last training checkpoint is the newest); a training
                checkpoint that does not fit, or all of them damaged; a full disk, which leaves the checkpoint before it
                complete; processes that found different ones; a held-out loss that is not finite.
            Stopped: Ctrl-C, SIGTERM or a closed terminal, after the end of a step and with its state saved.
        """
        self._set_up()
        self._resume_or_measure()
        self._check_memory()
        self._open_log()
        self._distribute()
        self._take_steps()
        return self._result()

    # ---- before the first step

    def _set_up(self) -> None:
        stage = self.stage
        learning = ", ".join(part for part in PARTS if part in stage.learning_rates)
        if self.optimizer:
            count = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
            learning = f"{count:,} parameters"
        self.output.report(f"{stage.name}: {learning} for {stage.steps} steps of {stage.batch} samples")
        torch.manual_seed(self.seed)
        self.objective, self.samples, self.optimizer = loop_parts(
            self.model, self.processor, stage, self.seed, samples=self.data.samples, optimizer=self.optimizer
        )
        if self.machine.compile:
            compile_layers(self.model)

    def _resume_or_measure(self) -> None:
        """Load the newest training checkpoint; at the very start, measure the held-out loss."""
        if path := self._load_newest():
            doubt = "" if has_checksums(path) else ", which has no checksums: what was damaged there is not noticed"
            self.output.report(f"{self.stage.name}: goes on after step {self.done}, from {path}{doubt}")
        else:
            self.progress.before = self.progress.after = self._held_out_loss(self.model, self.objective)
        processes = self.machine.processes
        if processes.all_reduce_sum(self.done)[0] != self.done * processes.size:
            where = f"make {self.output.checkpoints} the same for all of them"
            raise ValueError(f"not every process goes on after step {self.done}: {where}")

    def _load_newest(self) -> Path | None:
        """Load the newest training checkpoint that is not damaged; its path, or None if there are none at all."""
        damaged, report = {}, self.output.report
        for path in reversed(training_checkpoints(self.output.checkpoints)):
            try:
                done, notes = load_training(path, self.model, self.optimizer, self.objective, self.settings)
                self.done, self.progress = done, Progress.from_notes(path, notes)
            except Damaged as error:
                damaged[path] = error
                continue
            for each, error in damaged.items():
                if self.is_first:
                    report(f"{error}. It is called {set_aside(each).name} now, and does not count")
            best_checkpoint(self.output.checkpoints, report)  # reports older ones that are damaged
            return path
        if damaged:
            raise next(iter(damaged.values()))
        return None

    def _check_memory(self) -> None:
        """Report what a step needs, and refuse what cannot fit."""
        machine, stage, device = self.machine, self.stage, self.model.device
        first = [self.samples(number) for number in range(min(8, stage.batch))]
        share = math.ceil(stage.batch / machine.processes.size)
        options = machine.micro_batches, machine.in_bfloat16(device), machine.checkpointing
        need = budget(self.model, self.objective, first, share, *options)
        need = need.sharded(machine.processes.size) if machine.shard else need
        self.output.report(need.line(device))
        if need.total > 1.5 * (has := device_memory(device)[1]):  # a machine that swaps would take for ever
            raise ValueError(
                f"a step needs about {need.total / 1e9:.1f} GB, but there are {has / 1e9:.1f} in all: take a smaller "
                "batch, more micro-batches, or checkpointing"
            )

    def _open_log(self) -> None:
        log = self.output.log
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.is_first and (damaged := drop_rows_after(log, self.stage.name, self.done)):
            self.output.report(f"{log}: {damaged} damaged lines are left out")

    def _distribute(self) -> None:
        """Wrap model and objective for all processes. Sharding replaces the parameters, so it needs a new optimizer."""
        machine = self.machine
        state = full_optimizer_state(self.model, self.optimizer) if machine.shard else {}
        module = LossModule(self.model, self.objective)
        self.module = wrap_distributed(module, machine.processes, machine.shard, self.data.sparse)
        if machine.shard:
            self.optimizer = optimizer_for(self.model, self.stage)
            load_optimizer_state(self.model, self.optimizer, state)

    # ---- the steps

    def _take_steps(self) -> None:
        from tqdm import tqdm

        stage, machine, progress = self.stage, self.machine, self.progress
        if self.done == 0:
            torch.manual_seed(self.seed)
        inputs = machine.inputs(self.objective, self.samples, stage)
        steps = prefetch(inputs, range(self.done + 1, stage.steps + 1), machine.workers)
        steps = run_steps(self.model, self.module, stage, self.optimizer, machine, steps)
        earlier, breaks = progress.seconds, 0.0  # seconds of the steps before, and between the steps since
        bar = tqdm(total=stage.steps, initial=self.done, disable=not self.output.progress, unit="step")
        with checkpointed(self.model) if machine.checkpointing else nullcontext(), wait_for_step() as caught, bar:
            while self.done < stage.steps:
                try:
                    step = next(steps)
                except (FloatingPointError, ValueError, OSError) as error:
                    self._save_after(error, caught)
                    raise
                self.done, progress.seconds = step.step, earlier + step.seconds - breaks
                began = time.perf_counter()
                progress.recent.append((step.loss, step.tokens, step.views, step.flops))
                bar.update()
                self.output.watch(step)
                self._after_step(step, caught, bar)
                breaks += time.perf_counter() - began
        self.model.eval()

    def _after_step(self, step: Step, caught: list[int], bar) -> None:
        """Log, save and stop, if it is time to."""
        # All processes stop after the same step, or some would wait for ever.
        stopping = self.machine.processes.all_reduce_sum(len(caught))[0] > 0
        saving = self.done % self.every == 0 or self.done == self.stage.steps
        if saving:
            state = self._full_state()
            model, _, objective = state
            self.progress.after = self._held_out_loss(model, objective)
        if saving or self.done % max(1, self.stage.steps // 50) == 0:
            # Log before saving: on resume, rows newer than the checkpoint are dropped; a missing one is lost.
            self._log(step, bar, held_out=saving)
        if saving:
            self._save(*state, self.progress.after)
            del state, model, objective  # of a sharded model, a full copy
        if stopping:
            raise Stopped((caught or [signal.SIGTERM])[0], self.done, self._save(*self._full_state()))

    def _log(self, step: Step, bar, held_out: bool) -> None:
        progress = self.progress
        row = row_of(self.stage, step, progress, self.model.device)
        if self.is_first:
            append_row(self.output.log, row | ({"held_out": progress.after} if held_out else {}))
        bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_s']:.0f}")
        progress.row, progress.recent = progress.seconds, []

    def _held_out_loss(self, model: MiniCPMV, objective) -> float | None:
        model.eval()  # no dropout, should there be any
        loss = self.data.held_out(objective) if self.data.held_out else None
        model.train()
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(f"{self.stage.name}, after step {self.done}: the held-out loss is {loss}")
        return loss

    def _full_state(self) -> tuple:
        """(model, optimizer, objective) as one process has them; of a sharded model, all must call this together."""
        if not self.machine.shard:
            return self.model, self.optimizer, self.objective
        model = unshard(self.model)
        optimizer = optimizer_for(model, self.stage)
        load_optimizer_state(model, optimizer, full_optimizer_state(self.model, self.optimizer))
        return model, optimizer, objective_for(model, self.processor, self.stage)

    def _save(self, model: MiniCPMV, optimizer, objective, held_out: float | None = None) -> Path:
        if not self.is_first:
            return self.output.checkpoints
        header = Header(self.done, held_out, self.settings, asdict(self.progress))
        return save_training(self.output.checkpoints, header, model, self.processor, optimizer, objective)

    def _save_after(self, error: Exception, caught: list[int]) -> None:
        """Save the last good state after an error; raise Stopped if a signal caused it."""
        not_finite = isinstance(error, FloatingPointError)
        if self.machine.shard and not not_finite:
            return  # only this process failed, and a sharded state is gathered by all processes together
        try:
            path = self._save(*self._full_state())
        except FloatingPointError as worse:  # the weights themselves are not finite
            raise FloatingPointError(f"{error}; {worse}") from error
        if caught:  # the signal may have reached the workers first
            raise Stopped(caught[0], self.done, path) from error
        hint = ", to start from with a smaller learning rate" if not_finite else ""
        self.output.report(f"{self.stage.name}: the state after step {self.done} is saved in {path}{hint}")

    # ---- after the last step

    def _result(self) -> dict:
        name, progress = self.stage.name, self.progress
        before, after, seconds = progress.before, progress.after, progress.seconds
        if self.data.held_out:
            self.output.report(f"{name}: held-out loss {before:.3f} -> {after:.3f} in {seconds:.0f} s")
        return {"stage": name, "held_out_before": before, "held_out_after": after, "seconds": seconds}


def settings_of(stage: Stage, seed: int, data: dict | None = None) -> dict:
    """What has to be the same for a training that resumes."""
    return {"stage": stage.settings(), "seed": seed, **(data or {})}


def row_of(stage: Stage, step: Step, progress: Progress, device: torch.device) -> dict:
    """One row of the log: means over the steps since the row before it."""
    loss, tokens, views, flops = (sum(each) for each in zip(*progress.recent))
    seconds = progress.seconds - progress.row
    row = {
        "stage": stage.name,
        "step": step.step,
        "loss": loss / len(progress.recent),
        "rate": step.lr_scale,
        "tokens_per_s": tokens / seconds,
        "views_per_s": views / seconds,
        "seconds": progress.seconds,
    }
    if flops:
        row["tflops_per_s"] = flops / seconds / 1e12
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return row | ({"mfu": mfu(flops, seconds, peak)} if flops and peak else {})
