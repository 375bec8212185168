"""Compare what a port has computed with a kit: equal, equal within a tolerance, or the first difference in words.

A mistake is named only if the data proves it: the right answer, transformed as the mistake would, equals the port's in
every item that it explains, and no item contradicts it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ..config import MiniCPMVConfig
from ..inputs.checks import check_type, printable, shown
from ..inputs.files import plain_file, read_json
from .kit import KIT, PER_VIEW, RIGHT, STAGES, Kit
from .mistakes import Answer, guesses

# Of the largest number of the right answer, or of 1 if that is larger. Integers must be equal.
TOLERANCE = {"pixels": 1e-5, "positions": 1e-4, "vit": 1e-3, "resampler": 1e-3, "logits": 1e-3}
MOST_BYTES = 4 * 2**30
PAIRS = ("grid", "sizes", "bounds")  # their last axis


@dataclass
class Verdict:
    """What came out for one stage: numbers of items, and the differences in words."""

    stage: str
    equal: int = 0
    close: int = 0
    different: int = 0
    largest: float = 0.0  # difference among the close ones
    words: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)  # those that were recognized

    def __str__(self) -> str:
        total = self.equal + self.close + self.different
        how = f" within a tolerance, the largest difference is {self.largest:.2g}" if self.close else ""
        text = f"{self.different} of {total} differ" if self.different else f"equal, {total} of {total}{how}"
        return "\n    ".join([f"{self.stage:<10} {text}", *self.words])


def check(folder: str | os.PathLike, theirs: str | os.PathLike) -> list[Verdict]:
    """Compare a port's dump with a kit.

    Args:
        folder: the kit.
        theirs: a file .npz, .safetensors or .json with arrays named STAGE/ITEM, or STAGE/ITEM/VIEW for stages of
            views. Any subset of the kit's items.

    Returns:
        A Verdict for each stage that the dump has, in the order of STAGES.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: no kit, or a dump that is damaged, names an unknown stage or item, or holds a NaN or a wrong shape.
    """
    kit, found = read_kit(folder), grouped(arrays(Path(check_type("theirs", theirs, str, os.PathLike))))
    if not found:
        raise ValueError(f"{theirs} holds no arrays; the stages are {', '.join(STAGES)}")
    for stage, items in found.items():
        for item, views in items.items():
            if item not in kit.right[stage]:
                raise ValueError(f"{stage} has no item {shown(item)}; it has {shown(list(kit.right[stage]), 200)}")
            items[item] = [_checked(f"{stage}/{item}", view, kit.right[stage][item][0], stage) for view in views]
    return [compare(kit, stage, found[stage]) for stage in STAGES if stage in found]


@np.errstate(all="ignore")  # a port may dump numbers that overflow when they are squared
def compare(kit: Kit, stage: str, theirs: dict[str, Answer]) -> Verdict:
    verdict, right = Verdict(stage), kit.right[stage]
    rest = [item for item in theirs if not same(stage, right[item], theirs[item])]
    sound = [item for item in theirs if item not in rest]
    off = [max(float(np.abs(a - b).max(initial=0)) for a, b in zip(right[item], theirs[item])) for item in sound]
    verdict.equal, verdict.different, verdict.largest = off.count(0), len(rest), max(off, default=0)
    verdict.close = len(off) - verdict.equal
    explained: dict[str, set[str]] = {}
    for item in rest:
        for name, guess in guesses(kit, stage, item, right[item], theirs[item]):
            if same(stage, guess, theirs[item]):
                explained.setdefault(name, set()).add(item)
    for item in sound if explained else ():
        for name, guess in guesses(kit, stage, item, right[item], theirs[item]):
            if not same(stage, guess, right[item]):  # the mistake would change what is right here
                explained.pop(name, None)
    while found := max((items & set(rest) for items in explained.values()), key=len, default=None):
        names = [name for name, items in explained.items() if items & set(rest) == found][:3]
        verdict.mistakes += names
        first = next(item for item in rest if item in found)
        verdict.words.append(f"{'; or: '.join(names)}   ({len(found)} of them, the first is {shown(first)})")
        rest = [item for item in rest if item not in found]
    if rest:
        verdict.words.append(f"{rest[0]}: {in_words(stage, right[rest[0]], theirs[rest[0]])}")
        verdict.words += [f"and {len(rest) - 1} more that no known mistake explains"] * (len(rest) > 1)
    return verdict


def same(stage: str, right: Answer, theirs: Answer) -> bool:
    """Equal, or within the stage's tolerance."""
    if len(right) != len(theirs) or any(a.shape != b.shape for a, b in zip(right, theirs)):
        return False
    return all(np.abs(a - b).max(initial=0) <= _tolerance(stage, a) for a, b in zip(right, theirs))


def _tolerance(stage: str, right: np.ndarray) -> float:
    scale = max(1.0, float(np.abs(right).max(initial=0)))
    return TOLERANCE[stage] * scale if right.dtype.kind == "f" else 0


def in_words(stage: str, right: Answer, theirs: Answer) -> str:
    """The first difference: its index and both values."""
    if len(right) != len(theirs):
        return f"{len(theirs)} views, should be {len(right)}"
    view = next(n for n, (a, b) in enumerate(zip(right, theirs)) if not same(stage, [a], [b]))
    ours, other = right[view], theirs[view]
    where = f"view {view}: " * (stage in PER_VIEW)
    shapes = f"the shape is {other.shape}, should be {ours.shape}" * (ours.shape != other.shape)
    if shapes and ours.ndim > 1:
        return where + shapes
    both = min(len(ours), len(other))
    off = np.abs(ours[:both] - other[:both])
    wrong = np.argwhere(off > _tolerance(stage, ours)).tolist()
    if not wrong:
        return f"{where}{shapes}; the first {both} are equal"
    ours, other = ours[tuple(wrong[0])], other[tuple(wrong[0])]
    at = ", ".join(map(str, wrong[0]))
    text = f"{where}the first difference is at index {at}: {other:.6g}, should be {ours:.6g}"
    if stage in TOLERANCE:
        text += f"; the largest is {off.max():.3g}"
    if stage == "pixels" and off.mean() * 127.5 < 12:
        text += f": another resize or decoder, up to {off.max() * 127.5:.0f} of 255 levels"
    return "; ".join(filter(None, (text, shapes)))


def read_kit(folder: str | os.PathLike) -> Kit:
    """Read a kit. Raises OSError or ValueError where it is none."""
    folder = Path(check_type("folder", folder, str, os.PathLike))
    if not (folder / KIT).is_file():
        raise FileNotFoundError(f"{folder} is no kit: there is no {KIT} in it")
    about, right = read_json(folder / KIT), arrays(folder / RIGHT)
    config, table = MiniCPMVConfig.from_dict(read_json(folder / "config.json")), right.pop("table", None)
    answers = grouped(right)
    if about.get("format") != 1 or answers.keys() != set(STAGES):
        raise ValueError(f"{folder} is no whole kit of format 1: make it again")
    return Kit(folder, about, config, answers, None if table is None else torch.from_numpy(table))


def arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz (without pickle), .safetensors or .json file."""
    plain_file(file, MOST_BYTES)
    try:
        if file.suffix == ".npz":
            with open(file, "rb") as content, np.load(content, allow_pickle=False) as data:
                return {name: data[name] for name in data.files}
        if file.suffix == ".safetensors":
            tensors = load_file(file)  # torch's, because numpy has no bfloat16
            return {n: (t.float() if t.is_floating_point() else t).numpy() for n, t in tensors.items()}
        if file.suffix == ".json":
            return {name: np.array(value) for name, value in read_json(file, MOST_BYTES).items()}
    except Exception as error:  # zipfile, zlib, numpy and safetensors raise many kinds on damaged files
        raise ValueError(f"{file} cannot be read: {printable(str(error))}") from None
    raise ValueError(f"{printable(str(file))} must be a .npz, .safetensors or .json file")


def grouped(dump: dict[str, np.ndarray]) -> dict[str, dict[str, Answer]]:
    """stage -> item -> its arrays, in the order of the views."""
    found: dict = {}
    for name, array in dump.items():
        stage, item, *view = [*name.split("/"), ""][:4]
        if stage not in STAGES:
            raise ValueError(f"{shown(name)}: unknown stage {shown(stage)}; the stages are {', '.join(STAGES)}")
        form = r"[^/]+/[^/]+/[0-9]{1,6}" if stage in PER_VIEW else "[^/]+/[^/]+"
        if not re.fullmatch(form, name):
            raise ValueError(f"{shown(name)} must be named {stage}/ITEM{'/VIEW, from 0 on' * (stage in PER_VIEW)}")
        found.setdefault(stage, {}).setdefault(item, {})[int(view[0] or 0)] = array
    for stage, items in found.items():
        for item, views in items.items():
            if sorted(views) != list(range(len(views))):
                raise ValueError(f"{stage}/{shown(item)}: views must be numbered 0, 1, 2, ..., got {sorted(views)}")
            items[item] = [views[number] for number in sorted(views)]
    return found


def _checked(name: str, array: np.ndarray, right: np.ndarray, stage: str) -> np.ndarray:
    """An array of numbers with as many axes as the right one; whole numbers where that has them."""
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a NaN or an infinity at {np.argwhere(~np.isfinite(array))[0].tolist()}")
    if not array.size and not right.size:  # JSON's empty list has no second axis
        array = array.reshape(right.shape)
    if array.ndim != right.ndim or (stage in PAIRS and array.shape[-1] != 2):
        raise ValueError(f"{name} has the shape {array.shape}; the right one has {right.shape}")
    if right.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype.kind == "f" and (odd := (array != np.rint(array)) | (np.abs(array) > 2**53)).any():
        raise ValueError(f"{name} must hold whole numbers, got {array[odd][0]}")
    return array.astype(np.int64)
