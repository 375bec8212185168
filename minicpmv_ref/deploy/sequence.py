"""Both parts in memory at once, or in turns: what the second step of the paper saves, measured.

An answer needs the vision part (ViT and resampler) first, and the language model only when that is done:

    together    load vision, load language,  see,                               read and write
    in turns    load vision,                 see,  free vision, load language,  read and write

Arithmetic says: at most V + L and some working memory, or the larger of the two and some. `measure` asks Linux for the
resident set (RSS): the bytes of a process that really are in memory, and the most there ever were (VmHWM). Four
things would blur that figure:
  * A process remembers its highest point, and so does its allocator: each way gets a process of its own. Both are
    copies (forks) of one that has imported everything and loaded nothing: imports take seconds, an answer takes none.
  * Python and PyTorch take far more than a small model, and more than ever while they are imported. So the question is
    answered once before anything counts, which brings all code into memory; then the highest point is reset.
  * malloc keeps what is freed for later, unless it is large, and it learns what large is: nano's vision part may stay
    for that reason alone. With a fixed limit, all pieces above it go back at once.
  * Weights that are mapped, not read, belong to the file: their pages count once they are touched, but Linux may drop
    them at any time. Read weights (the default here) stay, so they are the honest figure. `mapped` shows the other.
Left out: GPUs, quantized weights, and time: in turns, every new picture waits until both parts are loaded again.
V, L bytes of the weights of vision and language.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ..inputs.checkpoint import DTYPES, WEIGHTS, write_checkpoint
from ..inputs.checks import check_type
from ..inputs.files import read_json
from ..inputs.pictures import load_image
from ..inputs.published import read_config
from ..model import MiniCPMV
from ..processor import Processor

PARTS = {"vision": ("vpm.", "resampler."), "language": ("llm.",)}  # beginnings of the names of their tensors
WAYS = {"together": False, "in turns": True}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LARGE = 128 * 1024  # bytes; malloc's own first limit, which it would raise with every large piece that is freed


class Peak(NamedTuple):
    """Memory of a process that answered one question, in bytes of RSS."""

    before: int  # everything is imported, no weight is loaded
    highest: int  # the most from then on
    tokens: list[int]  # of the answer

    @property
    def rise(self) -> int:
        """What loading and answering took."""
        return self.highest - self.before


class Loading(NamedTuple):
    """What `measure` found. In theory the rises are vision + language and max(vision, language), and a little more."""

    vision: int  # bytes of the weights of ViT and resampler
    language: int  # bytes of the weights of the LLM; tied ones count once
    together: Peak
    in_turns: Peak


def missing() -> str | None:
    """Why memory cannot be measured here, or None if it can.

    Example:
        >>> missing() is None or "Linux" in missing()
        True
    """
    if RESET.exists() and "VmHWM" in STATUS.read_text():
        return None
    return f"this needs Linux: it reads the highest memory from {STATUS} and resets it through {RESET}"


def measure(model, processor, image: Image.Image, question: str, max_new_tokens=4, mapped=False) -> Loading:
    """Answer one question with both ways of loading, each in a fresh process on one thread, and measure their memory.

    Args:
        model: a MiniCPMV. Its weights are written to temporary files, one for each part.
        processor: its Processor.
        image: a PIL image.
        question: about the image.
        max_new_tokens: of the answer; it may end earlier.
        mapped: False reads the files into memory; True maps them, and what is touched counts.

    Returns:
        A Loading: the bytes of both parts, and a Peak for each way.

    Raises:
        OSError: not on Linux (`missing` says why), no room for the temporary files, or a process died; the message
            ends with its last words.
        TypeError: `image` is no PIL image, `question` no text, `mapped` neither True nor False.
        ValueError: as the Processor and `MiniCPMV.stream`.

    Source: the paper, section 5, loads ViT and language model one after the other.
    """
    if missing():
        raise OSError(missing())
    if hasattr(model, "peer") or hasattr(processor, "cutting"):  # see peers/nano.py
        raise ValueError("a part of this model would be lost: measure the MiniCPMV that it was made of")
    check_type("image", image, Image.Image, what="a PIL image")
    check_type("question", question, str)
    check_type("mapped", mapped, bool, what="True or False")
    messages = [{"role": "user", "content": [image, question]}]
    model.stream(processor(messages), max_new_tokens)  # no token yet: bad input is refused here, not in the child
    with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as folder:
        sizes = _write_parts(Path(folder), model, processor)
        load_image(image).save(Path(folder, "image.png"))
        job = {"question": question, "max_new_tokens": max_new_tokens, "mapped": mapped}
        return Loading(*sizes, *_run(Path(folder), job))


def _write_parts(folder: Path, model, processor) -> list[int]:
    """Two checkpoints, each with a part of the tensors. Returns their bytes."""
    sizes = []
    for part, beginnings in PARTS.items():
        tensors = {name: t for name, t in model.own_tensors().items() if name.startswith(beginnings)}
        write_checkpoint(folder / part, model.config, tensors)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
    processor.save_pretrained(folder / "language")
    return sizes


def _run(folder: Path, job: dict) -> list[Peak]:
    """The peaks of both ways: together, in turns."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    search = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    settings = {"MALLOC_MMAP_THRESHOLD_": str(LARGE), "MALLOC_ARENA_MAX": "1"}
    child = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(folder)],
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, search))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if child.returncode:
        words = child.stdout.strip().splitlines()[-5:]
        raise OSError(f"the measured process died with exit code {child.returncode}: {'; '.join(words)}")
    return [Peak(**read_json(folder / f"{way}.json")) for way in WAYS]


# In the child --------------------------------------------------------------------------------------------------------


def _child(folder: Path) -> None:
    job = read_json(folder / "job.json")
    torch.set_num_threads(1)  # each would have buffers of its own; and a process with threads must not be copied
    processor = Processor.from_pretrained(folder / "language")
    batch = processor([{"role": "user", "content": [load_image(folder / "image.png"), job.pop("question")]}])
    MiniCPMV.without_memory(processor.config)  # imports the LLM's code
    for way in WAYS:
        copy = get_context("fork").Process(target=_write_peak, args=(folder, batch, way), kwargs=job)
        copy.start(), copy.join()
        if copy.exitcode:
            sys.exit(f"the copy that loads {way} ended with exit code {copy.exitcode}")


def _write_peak(folder: Path, batch, way: str, **settings) -> None:
    _answer(folder, batch, in_turns=WAYS[way], **settings)
    RESET.write_text("5")  # the highest point is now
    before = _resident("VmRSS")
    tokens = _answer(folder, batch, in_turns=WAYS[way], **settings)
    peak = {"before": before, "highest": _resident("VmHWM"), "tokens": tokens}
    (folder / f"{way}.json").write_text(json.dumps(peak), encoding="utf-8")


def _resident(which: str) -> int:
    """Bytes: VmRSS, the resident set now, or VmHWM, its highest point."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[which].split()[0]) * 1024  # "  1234 kB"


@torch.inference_mode()
def _answer(folder: Path, batch, max_new_tokens: int, mapped: bool, in_turns: bool) -> list[int]:
    vision = _load(folder / "vision", mapped)
    if not in_turns:
        language = _load(folder / "language", mapped)
    visual = vision.encode_images(batch.images[0], batch.patch_grids[0])
    if in_turns:
        del vision  # its memory is free here: nothing else holds the tensors
        language = _load(folder / "language", mapped)
    return [int(token) for token in language.stream(batch, max_new_tokens, visual=visual)]


def _load(folder: Path, mapped: bool) -> MiniCPMV:
    """A model with one part. The other stays on the meta device, where tensors have shapes and no bytes."""
    config = read_config(folder)
    model = MiniCPMV.without_memory(config)
    tensors = load_file(folder / WEIGHTS) if mapped else _read(folder / WEIGHTS)  # the library maps files
    model.load_state_dict(tensors, strict=False, assign=True)
    model.llm.tie_weights()
    return model.eval()


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file: views of one piece of memory, which is free when the last of them is."""
    content = np.fromfile(path, np.uint8)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__")
    content, tensors = torch.from_numpy(content), {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        piece = content[start + begin : start + end]
        tensors[name] = piece.view(DTYPES[about["dtype"]]).reshape(about["shape"])
    return tensors


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
