"""Saves: all that a training needs to go on as if nothing had happened, in a folder that is whole or not there.

    saves/step-000120/
        config.json, model.safetensors, tokenizer.json, ...   a checkpoint like any other: ask it, or train from it
                                                              (of LoRA the adapter alone: `load_lora` onto the base)
        training.safetensors                                  state of the optimizer and of the random numbers
        training.json                                         step, held-out loss, and what is trained on what

A save is written under a temporary name and renamed when all of it is on the disk, and it is renamed again before it
is removed. Whenever a process dies, each folder step-* is whole, and what is not goes with the next save.
Left out: shards of one model on several machines, and saves that are written while the training goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..checkpoint import WEIGHTS
from ..files import flush, read_json
from ..model import MiniCPMV
from ..processor import Processor

STATE, NOTES = "training.safetensors", "training.json"
KEEP = 2  # saves; and the one with the lowest held-out loss


def saves_in(folder: str | os.PathLike) -> list[Path]:
    """List the saves of a folder, the oldest first; a folder that is not there has none.

    Example:
        >>> saves_in("no/such/folder")
        []
    """
    found = {path: path.name.removeprefix("step-") for path in Path(folder).glob("step-*")}
    return sorted((path for path, step in found.items() if step.isdecimal()), key=lambda path: int(found[path]))


def best_in(folder: str | os.PathLike) -> Path | None:
    """Find the save with the lowest held-out loss; None if no save knows its own."""
    losses = {path: _notes(path)["held_out"] for path in saves_in(folder)}
    return min((path for path in losses if losses[path] is not None), key=losses.get, default=None)


def write_save(
    folder: str | os.PathLike,
    step: int,
    model: MiniCPMV,
    processor: Processor,
    optimizer: torch.optim.Optimizer,
    objective=None,
    *,
    settings: dict | None = None,
    notes: dict | None = None,
    held_out: float | None = None,
    keep: int = KEEP,
) -> Path:
    """Save a training between two steps, and remove older saves.

    Args:
        folder: of the saves of one training.
        step: how many steps are done. If there is a save of this step already, nothing is written.
        model, processor, optimizer: what is trained, and by what.
        objective: the stage's, if it has weights of its own.
        settings: what has to be the same for a training that goes on, as JSON can say it.
        notes: anything else that you want to read again.
        held_out: the loss that decides which save is the best.
        keep: so many of the newest stay, and the best.

    Returns:
        The path of the save.

    Raises:
        ValueError: keep is below 1.
        OSError: the disk is full, or the folder cannot be written. The saves before this one stay whole.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.learn.stages import stage_named, start
        >>> from minicpmv_ref.learn.train import optimizer_for
        >>> model, folder = start(), tempfile.mkdtemp()
        >>> optimizer = optimizer_for(model, stage_named("stage-1"))
        >>> save = write_save(folder, 7, model, Processor.from_pretrained("nano"), optimizer, notes={"seconds": 1.5})
        >>> read_save(save, model, optimizer)
        (7, {'seconds': 1.5})
    """
    if keep < 1:
        raise ValueError(f"at least one save must be kept, got {keep=}")
    folder = Path(folder)
    path = folder / f"step-{step:06d}"
    if path.is_dir():
        return path
    draft = folder / f".{path.name}.part"
    try:
        _clear(folder)
        if hasattr(model, "peft_config"):
            from .lora import save_lora  # peft takes seconds to import

            save_lora(model, draft)
        else:
            model.save_pretrained(draft)
        processor.save_pretrained(draft)
        save_file(_state(model, optimizer, objective), draft / STATE)
        (draft / STATE).chmod(folder.stat().st_mode & 0o666)  # as `replacing` does
        data = {"step": step, "held_out": held_out, "settings": settings or {}, "notes": notes or {}}
        (draft / NOTES).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        # A new name may reach the disk before the bytes do, and then the power fails.
        for part in (*draft.iterdir(), draft):
            flush(part)
        os.replace(draft, path)
        flush(folder)
    except Exception as error:  # safetensors and tokenizers have errors of their own for a full disk
        shutil.rmtree(draft, ignore_errors=True)
        whole = saves_in(folder)
        last = f"the last whole save is {whole[-1]}" if whole else "there is no save before it"
        raise OSError(f"could not write the save {path}: {error}; {last}") from error
    best = best_in(folder)
    for old in saves_in(folder)[:-keep]:
        if old != best:
            _remove(old)
    return path


def read_save(
    path: str | os.PathLike,
    model: MiniCPMV,
    optimizer: torch.optim.Optimizer,
    objective=None,
    settings: dict | None = None,
) -> tuple[int, dict]:
    """Go back to where a save was written: weights, state of the optimizer, random numbers.

    Args:
        path: of the save.
        model, optimizer, objective: as they were made when the training began; changed in place.
        settings: have to be those of the save.

    Returns:
        (steps that are done, the notes).

    Raises:
        ValueError: other settings, a damaged save, or one of another model or optimizer.
        OSError: a file is missing.
    """
    path = Path(path)
    data = _notes(path)
    changed = _differences(data["settings"], json.loads(json.dumps(settings or {})))
    if changed:
        raise ValueError(
            f"{path} belongs to another training: {'; '.join(changed)}. Go on with what was, or write somewhere else"
        )
    adapters = hasattr(model, "peft_config")
    try:
        weights, tensors = {} if adapters else load_file(path / WEIGHTS), load_file(path / STATE)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; if you remove it, the save before it counts") from error
    if adapters:
        from .lora import restore_lora

        restore_lora(model, path)
    else:
        if model.config.llm.tie_word_embeddings:
            weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"]
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path} is of another model: {error}") from error

    names = _names(model, objective)
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    own = {name: p for p, name in names.items() if name.startswith("objective.")}
    state: dict[int, dict] = {}
    index = {names[p]: i for i, p in enumerate(learning)}
    for full, tensor in tensors.items():
        kind, _, name = full.partition("/")
        if kind == "weight" and name in own:
            own.pop(name).data.copy_(tensor)
        elif kind != "random" and name in index and tensor.shape in (learning[index[name]].shape, ()):
            state.setdefault(index[name], {})[kind] = tensor
        elif kind != "random":
            raise ValueError(f"{path / STATE} holds {full}, which this training has no use for")
    if own:
        raise ValueError(f"{path / STATE} lacks {', '.join(own)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return data["step"], data["notes"]


def finish(folder: str | os.PathLike, model: MiniCPMV, processor: Processor, saves: Path, best: bool = False) -> None:
    """Write the checkpoint that a training ends with, then remove its saves.

    Args:
        folder: of the checkpoint.
        model, processor: what was trained.
        saves: the folder of the saves.
        best: True keeps the save with the lowest held-out loss.

    Raises:
        OSError: the disk is full, or the folder cannot be written. The saves are still there.
    """
    try:
        processor.save_pretrained(folder)
        model.save_pretrained(folder)
    except Exception as error:  # as in write_save
        raise OSError(f"could not write {folder}: {error}; the end of the training is saved in {saves}") from error
    remove_saves(saves, but=best_in(saves) if best else None)


def remove_saves(folder: str | os.PathLike, but: Path | None = None) -> None:
    """Remove the saves of a training that has ended, all `but` one."""
    for path in saves_in(folder):
        if path != but:
            _remove(path)
    _clear(Path(folder))
    if but is None:
        shutil.rmtree(folder, ignore_errors=True)


def _notes(path: Path) -> dict:
    data = read_json(path / NOTES)
    if missing := {"step", "held_out", "settings", "notes"} - data.keys():
        raise ValueError(f"{path / NOTES} lacks {', '.join(sorted(missing))}")
    return data


def _state(model: MiniCPMV, optimizer: torch.optim.Optimizer, objective) -> dict[str, torch.Tensor]:
    """All that is not in the model: "exp_avg/NAME" and the like, "weight/NAME" of scaffolding, "random/cpu"."""
    names = _names(model, objective)
    tensors = {"random/cpu": torch.get_rng_state()}
    if model.resampler.query.is_cuda:
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"weight/{name}": p.detach() for p, name in names.items() if name.startswith("objective.")}
    for p, state in optimizer.state.items():
        tensors |= {f"{kind}/{names[p]}": torch.as_tensor(value) for kind, value in state.items()}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _names(model: MiniCPMV, objective) -> dict[nn.Parameter, str]:
    names = {p: name for name, p in model.named_parameters()}
    if isinstance(objective, nn.Module):  # it may hold a part of the model, under another name
        names = {p: f"objective.{name}" for name, p in objective.named_parameters()} | names
    return names


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            long = isinstance(a, str) and isinstance(b, str) and len(a) == len(b) == 64  # checksums of data
            what = "has changed" if long else f"was {a!r:.60} and is {b!r:.60}"
            found.append(f"{prefix}{key} {what}")
    return found


def _remove(path: Path) -> None:
    grave = path.with_name(f".{path.name}.part")
    shutil.rmtree(grave, ignore_errors=True)
    os.replace(path, grave)
    shutil.rmtree(grave)


def _clear(folder: Path) -> None:
    """Remove what a process that died has left behind."""
    for left in folder.glob(".step-*.part"):
        shutil.rmtree(left)


# ---- Ctrl-C and SIGTERM


class Stopped(KeyboardInterrupt):
    """A training was asked to stop, and has saved itself.

    Args:
        number: of the signal: SIGINT (Ctrl-C) or SIGTERM.
        step: steps that are done.
        path: of the save.
    """

    def __init__(self, number: int, step: int, path: Path):
        super().__init__(f"stopped after step {step}; everything is saved in {path}")
        self.code = 128 + number  # the exit code that shells expect: 130 or 143


@contextmanager
def wait_for_step() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of obeying, so that a step can end first. A second one is obeyed at once.

    Yields:
        A list that the numbers of caught signals are put into. Look at it between two steps.

    Example:
        >>> with wait_for_step() as caught:
        ...     signal.raise_signal(signal.SIGINT)
        ...     caught
        [2]
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield caught
        return

    def catch(number, frame):
        caught.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
