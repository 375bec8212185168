"""Training checkpoints: all that a training needs to resume as if nothing had happened.

    saves/step-000120/
        config.json, model.safetensors, tokenizer.json, ...   a checkpoint like any other: ask it, or train from it
                                                              (of LoRA the adapter alone: `load_lora` onto the base)
        training.safetensors                                  state of the optimizer and of the random numbers
        training.json                                         the Header, and checksums

A training checkpoint is written under a temporary name, flushed to the disk, and then renamed. Before it is removed, it
is renamed again. So whenever a process dies, each folder step-* is complete; the next write removes what is not.
Disks fail, too. So training.json has a checksum of every file and one of itself, and all are compared before anything
is loaded. They are CRC-32: three times as fast as SHA-256 (2.2 GB/s against 0.7), and any damage within 32 bits is
found for sure, any other but for one in 2^32. They do not protect against a forger.
Left out: shards of one model on several machines, and writing while the training goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..inputs.checkpoint import WEIGHTS
from ..inputs.checks import check_int, check_number, check_type, printable, shown
from ..inputs.files import flush, plain_file, read_json, replacing
from ..inputs.published import CONFIG, read_config
from ..model import MiniCPMV
from ..processor import Processor

FOLDER = "saves"  # of a training's checkpoints, in the folder that it writes to
STATE, HEADER = "training.safetensors", "training.json"
DRAFT = ".checkpoint.part"  # the folder in which a final checkpoint is made
KEEP = 2  # training checkpoints; and the one with the lowest held-out loss


class Damaged(ValueError, OSError):
    """A training checkpoint whose files are not those that were written: one is missing, changed, or makes no sense.

    Args:
        path: of the training checkpoint.
        reason: what is wrong.
    """

    def __init__(self, path: Path, reason: object):
        super().__init__(f"{path} is damaged: {reason}; if you remove it, the training checkpoint before it counts")
        self.reason = str(reason)


@dataclass(frozen=True)
class Header:
    """What training.json says.

    Args:
        step: how many steps are done.
        held_out: the loss that decides which training checkpoint is the best; None if nothing was measured.
        settings: what has to be the same for a training that resumes, as JSON can say it.
        notes: anything else that you want to read again, as JSON can say it.

    Raises:
        TypeError, ValueError: a step below 0; a loss that is not finite; settings or notes that JSON cannot say.
    """

    step: int
    held_out: float | None = None
    settings: dict = field(default_factory=dict)
    notes: dict = field(default_factory=dict)

    def __post_init__(self):
        check_int("step", self.step, least=0)
        if self.held_out is not None:
            check_number("held_out", self.held_out)
        for name in ("settings", "notes"):  # as JSON gives them back: tuples become lists
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))


def training_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """List the training checkpoints of a folder, the oldest first; a folder that is not there has none.

    Example:
        >>> training_checkpoints("no/such/folder")
        []
    """
    found = [path for path in Path(folder).glob("step-*") if _step_of(path) and path.is_dir()]
    return sorted(found, key=lambda path: (int(_step_of(path)), path.name))


def _step_of(path: Path) -> str:
    step = path.name.removeprefix("step-")
    return step if step.isdecimal() and step.isascii() else ""


def best_checkpoint(folder: str | os.PathLike, report: Callable[[str], object] = lambda line: None) -> Path | None:
    """Find the training checkpoint with the lowest held-out loss, and compare its checksums.

    Args:
        folder: of the training checkpoints.
        report: takes one line for each damaged one, which is skipped.

    Returns:
        Its path; None if none knows its own loss.
    """
    for path in _by_loss(folder, report):
        try:
            _check_files(path, _header(path))
        except Damaged as error:
            report(str(error))
        else:
            return path
    return None


def _by_loss(folder: str | os.PathLike, report=lambda line: None) -> list[Path]:
    """The training checkpoints that know their held-out loss, the lowest first; without those with a damaged header."""
    losses = {}
    for path in training_checkpoints(folder):
        try:
            losses[path] = _header(path)["held_out"]
        except Damaged as error:
            report(str(error))
    return sorted((path for path in losses if losses[path] is not None), key=losses.get)


def save_training(
    folder: str | os.PathLike,
    header: Header,
    model: MiniCPMV,
    processor: Processor,
    optimizer: torch.optim.Optimizer,
    objective=None,
    keep: int = KEEP,
) -> Path:
    """Write a training checkpoint between two steps, and remove older ones.

    Args:
        folder: of the checkpoints of one training.
        header: its step says how many are done. If there is a checkpoint of this step already, nothing is written.
        model, processor, optimizer: what is trained, and by what.
        objective: the stage's, if it has weights of its own.
        keep: so many of the newest stay, and the best.

    Returns:
        The path of the training checkpoint.

    Raises:
        ValueError: keep is below 1.
        FloatingPointError: a weight or the state of the optimizer is not finite; nothing is written.
        OSError: the disk is full, or the folder cannot be written. The checkpoints before this one stay complete.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.learn.stages import stage_named, start
        >>> from minicpmv_ref.learn.train import optimizer_for
        >>> model, folder = start(), tempfile.mkdtemp()
        >>> optimizer = optimizer_for(model, stage_named("stage-1"))
        >>> header = Header(step=7, notes={"seconds": 1.5})
        >>> path = save_training(folder, header, model, Processor.from_pretrained("nano"), optimizer)
        >>> load_training(path, model, optimizer)
        (7, {'seconds': 1.5})
    """
    if check_int("keep", keep, least=0) < 1:
        raise ValueError(f"at least one training checkpoint must be kept, got {keep=}")
    folder = Path(folder)
    path = folder / f"step-{header.step:06d}"
    if path.is_dir():
        return path
    tensors, draft = _state(model, optimizer, objective), folder / f".{path.name}.part"
    for name, tensor in (*model.state_dict().items(), *tensors.items()):
        if not _finite(tensor):
            raise FloatingPointError(f"{name} is not finite, so step {header.step} is not saved; {_newest(folder)}")
    try:
        _clear(folder)
        if model.has_adapters:
            from .lora import save_lora  # peft takes seconds to import

            save_lora(model, draft)
        else:
            model.save_pretrained(draft)
        processor.save_pretrained(draft)
        with replacing(draft / STATE) as (file,):
            save_file(tensors, file)
        _seal(draft, asdict(header))
        os.replace(draft, path)
        flush(folder)
    except Exception as error:  # safetensors and tokenizers have errors of their own for a full disk
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"could not write the training checkpoint {path}: {error}; {_newest(folder)}") from error
    best = _by_loss(folder)[:1]
    for old in training_checkpoints(folder)[:-keep]:
        if old not in best:
            _remove(old)
    return path


def _as_json(name: str, data: dict) -> dict:
    """Data as JSON will give it back, or an error before anything is written."""
    try:
        return json.loads(json.dumps(check_type(name, data, dict), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be a dict that JSON can say: {error}") from error


def _newest(folder: Path) -> str:
    found = training_checkpoints(folder)
    return f"the newest training checkpoint is {found[-1]}" if found else "there is no training checkpoint before it"


def _seal(draft: Path, data: dict) -> None:
    """Write the header with the checksums of all other files, and wait until everything is on the disk."""
    data = data | {"files": {part.name: _checksum(part) for part in sorted(draft.iterdir()) if part.is_file()}}
    data["crc32"] = _own_checksum(data)
    (draft / HEADER).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    # A new name may reach the disk before the bytes do, and then the power fails.
    for part in (*draft.iterdir(), draft):
        flush(part)


def _checksum(file: Path) -> int:
    total = 0
    with open(file, "rb") as data:
        while block := data.read(2**22):
            total = zlib.crc32(block, total)
    return total


def _own_checksum(data: dict) -> int:
    rest = {key: value for key, value in data.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def load_training(
    path: str | os.PathLike,
    model: MiniCPMV,
    optimizer: torch.optim.Optimizer,
    objective=None,
    settings: dict | None = None,
) -> tuple[int, dict]:
    """Load a training checkpoint: weights, state of the optimizer, random numbers.

    After an error nothing is changed. Those of older versions, without checksums, are read, too.

    Args:
        path: of the training checkpoint.
        model, optimizer, objective: as they were made when the training began; changed in place.
        settings: have to be those that were saved.

    Returns:
        (steps that are done, the notes).

    Raises:
        Damaged: a file is missing or changed, or says what cannot be; a ValueError and an OSError in one.
        ValueError: other settings, or a checkpoint of another model or optimizer.
        OSError: a file cannot be read.
    """
    path = Path(path)
    data = _header(path)
    _check_same(path, _differences(data["settings"], _as_json("settings", settings or {})))
    _check_files(path, data)
    if STATE not in data.get("files", [STATE]):
        raise Damaged(path, f"{HEADER} does not name {STATE}")
    if adapters := model.has_adapters:
        from .lora import WEIGHTS as ADAPTER
        from .lora import restore_lora

        _tensors(path, ADAPTER)  # are they finite?
    else:
        weights = _tensors(path, WEIGHTS)
        if model.config.llm.tie_word_embeddings and "llm.model.embed_tokens.weight" in weights:
            weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"]
        _compare(path, weights, model.state_dict())
        _check_same(path, _differences(_config(path) or model.config.to_dict(), model.config.to_dict()))
    tensors, random = _tensors(path, STATE), torch.Generator()
    state, own = _optimizer_state(path, tensors, _names(model, objective), optimizer)
    try:
        random.set_state(tensors["random/cpu"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise Damaged(path, f"{STATE} holds no state of the random numbers: {error}") from error
    # All is checked: from here on, things change.
    restore_lora(model, path) if adapters else model.load_state_dict(weights)
    for parameter, tensor in own.items():
        parameter.data.copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(random.get_state())
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return data["step"], data["notes"]


def _config(path: Path) -> dict:
    """The config of a training checkpoint; {} for a model with another connector, whose settings are its own."""
    try:
        return {} if "peer" in read_json(path / CONFIG) else read_config(path).to_dict()
    except (ValueError, FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(path, error) from error


def _check_same(path: Path, changed: list[str]) -> None:
    if changed:
        what = "; ".join(changed)
        raise ValueError(f"{path} belongs to another training: {what}. Go on with what was, or write somewhere else")


def _compare(path: Path, weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    here, there = ({name: (tuple(t.shape), t.dtype) for name, t in each.items()} for each in (wanted, weights))
    odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if odd:
        what = f"{odd[0]} is {there.get(odd[0], 'missing')}, should be {here.get(odd[0], 'absent')}"
        raise ValueError(f"{path} is of another model: {len(odd)} tensors do not fit; {what}")


def _optimizer_state(path: Path, tensors: dict, names: dict, optimizer) -> tuple[dict[int, dict], dict]:
    """The optimizer's state by number of parameter, and the weights of the scaffolding by parameter."""
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    index = {names[p]: i for i, p in enumerate(learning)}
    scaffolding = {name: p for p, name in names.items() if name.startswith("objective.")}
    state: dict[int, dict] = {}
    own = {}
    for full, tensor in tensors.items():
        kind, _, name = full.partition("/")
        if full in ("random/cpu", "random/cuda"):
            continue
        like = scaffolding.get(name) if kind == "weight" else learning[index[name]] if name in index else None
        if like is None:
            raise ValueError(f"{path / STATE} holds {printable(full)}, which this training has no use for")
        shape = () if kind == "step" else like.shape
        if tensor.shape != shape or not tensor.is_floating_point():
            raise Damaged(path, f"{STATE}: {full} must be numbers of shape {tuple(shape)}, got {tuple(tensor.shape)}")
        negative = kind == "exp_avg_sq" and (tensor < 0).any()
        if negative or (kind == "step" and not (tensor >= 1 and tensor % 1 == 0)):
            raise Damaged(path, f"{STATE}: {full} holds numbers that no step leaves there")
        if kind == "weight":
            own[like] = tensor
        else:
            state.setdefault(index[name], {})[kind] = tensor.clone()  # the optimizer would keep the file itself open
    if lost := [name for name, p in scaffolding.items() if p not in own]:
        raise ValueError(f"{path / STATE} lacks {', '.join(lost)}")
    # A parameter that never had a gradient has no state. One that has some of it would start again from zero.
    kinds = {kind for each in state.values() for kind in each}
    if state and isinstance(optimizer, torch.optim.Adam):
        kinds |= {"step", "exp_avg", "exp_avg_sq"}
    for i, each in state.items():
        if lost := sorted(kinds - each.keys()):
            raise Damaged(path, f"{STATE} lacks {lost[0]}/{names[learning[i]]}")
    return state, own


def _tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one file. They may stay mapped to it: copy what you keep."""
    try:
        tensors = load_file(plain_file(path / name))
    except (SafetensorError, FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(path, printable(f"{name}: {error}")) from error
    for key, tensor in tensors.items():
        if not _finite(tensor):
            raise Damaged(path, f"{name}: {printable(key)} is not finite")
    return tensors


def finish(
    folder: str | os.PathLike,
    model: MiniCPMV,
    processor: Processor,
    best: bool = False,
    notes: dict | None = None,
) -> None:
    """Write the checkpoint that a training ends with, then remove its training checkpoints.

    All files are complete and on the disk before the first gets its name, and the weights get theirs last. A process
    that dies leaves no model.safetensors and all training checkpoints, or the complete checkpoint: see `finished`.

    Args:
        folder: of the checkpoint; the training checkpoints are in its folder `FOLDER`.
        model, processor: what was trained.
        best: True keeps the training checkpoint with the lowest held-out loss.
        notes: what `finished` will return, as JSON can say it; None leaves no notes.

    Raises:
        OSError: the disk is full, or the folder cannot be written. The training checkpoints are still there.
    """
    folder = Path(folder)
    kept = best_checkpoint(folder / FOLDER) if best else None
    draft, last = folder / DRAFT, training_checkpoints(folder / FOLDER)[-1:]
    shutil.rmtree(draft, ignore_errors=True)
    try:
        processor.save_pretrained(draft)
        model.save_pretrained(draft)
        if notes is not None and last:
            _seal(draft, _header(last[0]) | {"notes": _as_json("notes", notes)})
        for part in (*draft.iterdir(), draft):
            flush(part)
        (folder / WEIGHTS).unlink(missing_ok=True)  # those of an earlier training do not belong to what comes now
        for part in sorted(draft.iterdir(), key=lambda part: part.name == WEIGHTS):
            os.replace(part, folder / part.name)
        flush(folder)
    except Exception as error:  # as in save_training
        shutil.rmtree(draft, ignore_errors=True)
        where = f"the end of the training is saved in {folder / FOLDER}"
        raise OSError(f"could not write {folder}: {error}; {where}") from error
    clean_up(folder, but=kept)


def finished(folder: str | os.PathLike, settings: dict | None) -> dict | None:
    """Find out whether a training with these settings has ended here.

    Args:
        folder: of the checkpoint that `finish` wrote.
        settings: as in the Header.

    Returns:
        The notes that `finish` got; None if the folder holds no checkpoint, or not one of `finish` with notes.

    Raises:
        ValueError: another training has ended here, or a file was changed since; the message says what is different.
    """
    folder = Path(folder)
    if not ((folder / WEIGHTS).is_file() and (folder / HEADER).is_file()):
        return None
    try:
        data = _read_header(folder)
        _check_files(folder, data)
    except Damaged as error:
        raise ValueError(error.reason) from error
    if changed := _differences(data["settings"], _as_json("settings", settings or {})):
        raise ValueError("; ".join(changed))
    return data["notes"]


def clean_up(folder: Path, but: Path | None = None) -> None:
    """Remove what a finished training no longer needs: all its training checkpoints `but` one.

    Without one, their folder goes as well, if nothing else is in there.
    """
    shutil.rmtree(folder / DRAFT, ignore_errors=True)
    saves = folder / FOLDER
    for path in training_checkpoints(saves):
        if path != but:
            _remove(path)
    _clear(saves)
    if but is None:
        for damaged in saves.glob("step-*.damaged"):
            shutil.rmtree(damaged, ignore_errors=True)
        with suppress(OSError):  # it is not empty, for somebody keeps a copy there
            saves.rmdir()


def _header(path: Path) -> dict:
    """What training.json of a training checkpoint says, checked."""
    data = _read_header(path)
    if _step_of(path) and int(_step_of(path)) != data["step"]:
        raise Damaged(path, f"{HEADER} says step {data['step']}")
    return data


def _read_header(path: Path) -> dict:
    known = {"step", "held_out", "settings", "notes"}
    try:
        data = read_json(path / HEADER)
        if missing := known - data.keys():
            raise ValueError(f"{path / HEADER} lacks {', '.join(sorted(missing))}")
        if more := data.keys() - known:  # none: written by a version without checksums
            if more != {"files", "crc32"} or data["crc32"] != _own_checksum(data):
                raise ValueError(f"{path / HEADER} is not what was written: its checksum is another one")
            check_type("files", data["files"], dict)
        Header(**{name: data[name] for name in known})
    except (ValueError, FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(path, error) from error
    return data


def _check_files(path: Path, data: dict) -> None:
    """Compare the checksums, if there are some."""
    for name, checksum in data.get("files", {}).items():
        try:
            if Path(name).name != name or _checksum(plain_file(path / name)) != checksum:
                raise ValueError(f"{shown(name)} is not what was written: its checksum is another one")
        except (ValueError, FileNotFoundError, IsADirectoryError) as error:
            raise Damaged(path, error) from error


def has_checksums(path: Path) -> bool:
    """Without checksums, as older versions wrote, damage is not noticed; the user should know."""
    return "files" in _header(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged training checkpoint, so that it no longer counts; its new path."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def _state(model: MiniCPMV, optimizer: torch.optim.Optimizer, objective) -> dict[str, torch.Tensor]:
    """All that is not in the model: "exp_avg/NAME" and so on, "weight/NAME" of the objective, "random/cpu"."""
    names = _names(model, objective)
    tensors = {"random/cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
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
        moved = key == "from" and old.get("weights") == new.get("weights") is not None  # the same base
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b and not moved:
            long = isinstance(a, str) and isinstance(b, str) and len(a) == len(b) == 64  # checksums of data
            what = "has changed" if long else f"was {a!r:.60} and is {b!r:.60}"
            found.append(f"{prefix}{key} {what}")
    return found


def _remove(path: Path) -> None:
    hidden = path.with_name(f".{path.name}.part")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def _clear(folder: Path) -> None:
    """Remove incomplete folders of a process that died."""
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part)
