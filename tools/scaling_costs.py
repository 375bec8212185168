"""What would the real training cost? The formulas, the guesses, and what has to be measured.

scaling.py makes a page of it. Operations are counted exactly (a test compares with PyTorch's counter); memory is that
of deploy/memory.py; time is operations / (peak x MFU). What nobody published is a guess: it says so beside its name.
"""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments._frame import machine  # noqa: E402
from minicpmv_ref import plan_slices  # noqa: E402
from minicpmv_ref.config import MiniCPMVConfig, SliceConfig, nano, v2_0, v2_5, v2_6  # noqa: E402
from minicpmv_ref.counts import Workload, flops_by_part, planned_state_bytes  # noqa: E402
from minicpmv_ref.deploy.memory import estimate  # noqa: E402
from minicpmv_ref.model import MiniCPMV  # noqa: E402
from minicpmv_ref.processor import load_image, normalize_views  # noqa: E402

MODELS = {"2.0": v2_0, "2.5": v2_5, "2.6": v2_6}
EVERYTHING = ("vpm", "resampler", "llm")

# ---- facts about hardware (NVIDIA's data sheets of H100 SXM and DGX H100), and guesses

PEAK = 989.4e12  # operations a second, bfloat16, dense
CARD = 80e9  # bytes
NVLINK, NETWORK = 450e9, 50e9  # bytes a second and card, one way: inside a node of 8, and between nodes (400 Gbit/s)
CORES = 14  # of the host, for one card: 112 in a DGX H100
CARDS = (8, 64, 256)

MFU = 0.4  # a guess
RESERVE = 0.1  # of a card, for CUDA, buffers and fragmentation: a guess
STORE = 2e9  # bytes a second that a shared file system takes: a guess
EVERY = 1800  # seconds between two checkpoints: a guess
REWRITER = 8e9  # parameters of the model that rewrites captions: a guess
PHOTO, SCAN, MIXED = (640, 480), (2480, 3508), (1280, 720)  # a web picture, an A4 scan, a mixture: guesses


@dataclass(frozen=True)
class Stage:
    """A stage as published, and what has to be guessed to put a price on it."""

    title: str
    trains: tuple[str, ...]
    published: str  # how many samples, in the paper's words
    samples: float
    size: tuple[int, int]  # of a picture, (width, height): a guess
    text: int  # tokens of a sample that are not visual: a guess
    slicing: SliceConfig = SliceConfig()
    pair: bool = False  # two answers learn, and a frozen copy reads both

    @property
    def patches(self) -> list[int]:
        """Patches of each view."""
        return [rows * cols for rows, cols in plan_slices(self.size, self.slicing).patch_grids]


ONE_VIEW = SliceConfig(max_slice_nums=1)
PART_1 = [560e3, 1.4e6, 60e3, 570e3, 135e3, 125e3, 1.7e6, 780e3]  # Table 2, captions to chat
PART_2 = [400e3, 690e3, 1.9e6]  # text-only has no size there
STAGES = {
    "pre-1": Stage(
        "resampler, at 224 x 224", ("resampler",), "200 M captions", 200e6, PHOTO, 64, SliceConfig(224, 14, 1)
    ),
    "pre-2": Stage("ViT, 224 to 448 x 448", ("vpm",), "200 M more captions", 200e6, PHOTO, 64, ONE_VIEW),
    "pre-3": Stage(
        "ViT and resampler, slices",
        ("vpm", "resampler"),
        "amount not given; Table 1 has 39 M + 11 M pictures with text",
        39e6 + 11e6,
        SCAN,
        512,
    ),
    "SFT": Stage(
        "everything, slices",
        EVERYTHING,
        f"Table 2: {sum(PART_1) / 1e6:.2f} M + {sum(PART_2) / 1e6:.2f} M, text-only not counted",
        sum(PART_1) + sum(PART_2),
        MIXED,
        256,
    ),
    "DPO": Stage("not stated; here everything", EVERYTHING, "6 K pairs of 3 K pictures", 6e3, MIXED, 256, pair=True),
}


# ---- the formula


def flops(config: MiniCPMVConfig, patches: list[int], text: int, trains=(), batch: int = 1) -> dict[str, int]:
    """Count the operations of one step, forward and backward, by part. The LM head runs on every token.

    Args:
        config: a MiniCPMVConfig.
        patches: of each view of a sample.
        text: tokens of a sample that are not visual.
        trains: the parts that learn, of "vpm", "resampler" and "llm"; none: forward only.
        batch: equal samples.

    Returns:
        {"vpm": ..., "resampler": ..., "llm": ...}; a multiplication and an addition are two operations.
    """
    # The released 2.5 pads all views to the longest, and attends to the padding.
    seen = [max(patches, default=0)] * len(patches) if config.vision.position == "released_2_5" else patches
    views, tokens = len(patches), len(patches) * config.resampler.num_queries + text
    squares, padding = sum(length**2 for length in seen), sum(seen) - sum(patches)
    one = Workload(tokens, tokens, tokens**2, views, sum(patches), squares, padding)
    return flops_by_part(config, Workload(*(batch * count for count in one)), trains)


def stage_flops(version: str, stage: Stage) -> float:
    """Operations of one sample, or of one pair."""
    config = MODELS[version]
    learning = sum(flops(config, stage.patches, stage.text, stage.trains).values())
    reading = sum(flops(config, stage.patches, stage.text).values())
    return 2 * (learning + reading) if stage.pair else learning


def card_seconds(operations: float, mfu: float = MFU) -> float:
    return operations / (mfu * PEAK)


def states(config: MiniCPMVConfig, trains: tuple[str, ...]) -> dict[str, int]:
    """Bytes of weights (bfloat16), gradients (bfloat16) and optimizer (float32: weights, two moments of AdamW)."""
    return planned_state_bytes(config, trains, size=2, mixed=True)


SHARDINGS = {  # what is divided among the cards
    "DDP": (),
    "ZeRO-1": ("optimizer",),
    "ZeRO-2": ("optimizer", "gradients"),
    "FSDP": ("optimizer", "gradients", "weights"),
}


def per_card(held: dict[str, int], sharded: tuple[str, ...], cards: int) -> float:
    return sum(size / cards if name in sharded else size for name, size in held.items())


def activations(config: MiniCPMVConfig, stage: Stage, batch: int = 1) -> int:
    """Bytes kept for the backward pass; the LLM's layers are computed again. A ViT that learns nothing keeps nothing.

    Too high where the LLM is frozen: its products then need not keep their inputs.
    """
    views = len(stage.patches)
    tokens = views * config.resampler.num_queries + stage.text
    load = dict(batch=batch, slices=views - 1, tokens=tokens)
    config = replace(config, slicing=stage.slicing)
    need = estimate(config, training=True, checkpointing=True, **load)
    vision = need.vision if "vpm" in stage.trains else estimate(config, **load).vision
    return need.activations + vision


def least_sharding(config: MiniCPMVConfig, stage: Stage, cards: int) -> str:
    """The first way of sharding that leaves room for one sample, the reserve kept free."""
    free = CARD * (1 - RESERVE) - activations(config, stage)
    for name, sharded in SHARDINGS.items():
        if per_card(states(config, stage.trains), sharded, cards) <= free:
            return name
    return "does not fit"


# ---- measuring

SIZES = {"nano / 2": 1, "nano": 2, "nano x 2": 4, "nano x 4": 8}  # widths in units of nano / 2; the last is predicted
SLICES = [0, 2, 4, 9]  # the last is predicted
PATTERNS = [(), ("resampler",), ("vpm",), ("vpm", "resampler"), ("llm",), EVERYTHING]
TEXT, BATCH, FEW, ROUNDS = 48, 8, 2, 9  # tokens, samples, samples with slices, rounds


def scaled(width: int) -> MiniCPMVConfig:
    """nano, `width` / 2 times as wide: four times the operations each time that it doubles."""
    return replace(
        nano,
        vision=replace(nano.vision, width=64 * width, mlp_width=192 * width),
        resampler=replace(nano.resampler, width=128 * width, kv_width=64 * width),
        llm=replace(nano.llm, hidden_size=128 * width, intermediate_size=256 * width),
    )


def plan_of(config: MiniCPMVConfig, slices: int):
    """The plan of a picture that has so many slices."""
    side = config.slicing.scale_resolution
    plan = plan_slices((max(1, slices) * side, side), config.slicing)
    assert plan.num_slices == slices
    return plan


def patches_of(config: MiniCPMVConfig, slices: int) -> list[int]:
    return [rows * cols for rows, cols in plan_of(config, slices).patch_grids]


def step(model, slices: int, text: int, trains, batch: int = 1) -> None:
    """One step, forward and backward, on zeros. Works on the meta device, too."""
    plan, like = plan_of(model.config, slices), model.resampler.query
    for part in EVERYTHING:
        getattr(model, part).requires_grad_(part in trains)
    views = [torch.zeros(3, 14 * rows, 14 * cols, device=like.device) for rows, cols in plan.patch_grids] * batch
    words = torch.zeros(batch, text, dtype=torch.long, device=like.device)
    visual = model.encode_images(views, list(plan.patch_grids) * batch).unflatten(0, (batch, -1)).flatten(1, 2)
    sequence = torch.cat([visual, model.llm.get_input_embeddings()(words)], dim=1)
    # With a cache, transformers does not look for packed samples. On the meta device there is nothing to look at.
    logits = model.llm(inputs_embeds=sequence, use_cache=True).logits
    labels = torch.zeros(logits.shape[:2], dtype=torch.long, device=like.device)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
    if trains:
        model.zero_grad(set_to_none=True)
        loss.backward()


def counted(config: MiniCPMVConfig, slices: int, text: int, trains, batch: int = 1) -> int:
    """The operations of a step as PyTorch counts them, on the meta device: attention is plain products there."""
    with torch.device("meta"):
        model = MiniCPMV(config)
    with FlopCounterMode(display=False) as counter:
        step(model, slices, text, trains, batch)
    return counter.get_total_flops()


def cpu_seconds(calls: dict, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every call in every round; calls take turns, after one untimed turn."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(round(time.process_time() - start, 6))
    return times


def measure(rounds: int = ROUNDS) -> dict:
    """Everything that the page needs a clock for."""
    torch.set_num_threads(1)
    found = {"rounds": rounds, "batch": BATCH, "text": TEXT, "counted": measure_counts()}
    found |= {"steps": measure_steps(rounds), "pictures": measure_pictures(rounds)}
    return {**found, "write": measure_write(), "machine": machine("cpu")}


def measure_counts() -> list[dict]:
    """PyTorch's count of nano with slices for every freezing pattern, and of 2.6 in full size."""
    cases = [("nano", nano, trains) for trains in PATTERNS]
    cases += [(version, config, EVERYTHING) for version, config in MODELS.items()]
    return [
        {"model": name, "trains": list(trains), "operations": counted(config, 4, TEXT, trains)}
        for name, config, trains in cases
    ]


def measure_steps(rounds: int) -> dict:
    """CPU seconds of passes and of AdamW by size, of passes by slices, and of nano x 2 by freezing pattern."""
    models = {name: MiniCPMV.seeded(scaled(width)).train() for name, width in SIZES.items()}
    optimizers = {}
    for name, model in models.items():
        step(model, 0, TEXT, EVERYTHING)
        optimizers[name] = torch.optim.AdamW(model.parameters(), lr=0.0, foreach=True)
        optimizers[name].step()

    def passes(name, slices=0, trains=EVERYTHING, batch=BATCH):
        return lambda: step(models[name], slices, TEXT, trains, batch)

    # Updates first: they need the gradients of all parts, which a frozen pass would take away.
    found = {"updates": cpu_seconds({name: optimizers[name].step for name in SIZES}, rounds)}
    found["sizes"] = cpu_seconds({name: passes(name) for name in SIZES}, rounds)
    found["slices"] = cpu_seconds({str(slices): passes("nano x 2", slices, batch=FEW) for slices in SLICES}, rounds)
    found["patterns"] = cpu_seconds(
        {" + ".join(t) or "nothing": passes("nano x 2", trains=t) for t in PATTERNS}, rounds
    )
    return found


def measure_pictures(rounds: int) -> dict[str, list[float]]:
    """CPU seconds of one picture of every stage: decode its JPEG, then slice and normalize."""
    calls = {}
    for name, stage in STAGES.items():
        file = io.BytesIO()
        photo = load_image(ROOT / "data_samples/images/temple.jpg")
        photo.resize(stage.size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)

        def run(file=file, slicing=stage.slicing):
            image = load_image(file)
            normalize_views(image, plan_slices(image.size, slicing))

        calls[name] = run
    return cpu_seconds(calls, rounds)


def measure_write(megabytes: int = 256) -> dict:
    """Seconds to write safetensors and to see them on the disk, by the clock on the wall."""
    tensors, seconds = {"weights": torch.zeros(megabytes, 250_000)}, []
    (ROOT / "runs").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=ROOT / "runs") as folder:  # on this disk, and git does not look there
        for _ in range(5):
            start = time.perf_counter()
            file = Path(folder) / "model.safetensors"
            save_file(tensors, file)
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            seconds.append(round(time.perf_counter() - start, 4))
    return {"bytes": megabytes * 1_000_000, "seconds": seconds}


# ---- laws


def fit(operations: list[float], seconds: list[float]) -> tuple[float, float]:
    """seconds = fixed + operations / rate, with the least squares of relative errors. Returns (fixed, rate)."""
    a, b = [1 / s for s in seconds], [n / s for n, s in zip(operations, seconds)]
    aa, ab, bb = (sum(x * y for x, y in zip(p, q)) for p, q in ((a, a), (a, b), (b, b)))
    determinant = aa * bb - ab * ab
    fixed, slope = (sum(a) * bb - sum(b) * ab) / determinant, (sum(b) * aa - sum(a) * ab) / determinant
    return fixed, 1 / slope


def prediction(operations: list[float], seconds: list[float]) -> dict:
    """Fit all but the last, predict the last."""
    fixed, rate = fit(operations[:-1], seconds[:-1])
    law = [fixed + n / rate for n in operations]
    return {"fixed": fixed, "rate": rate, "law": law, "error": law[-1] / seconds[-1] - 1}


def toy_operations(kept: dict, experiment: str) -> list[int]:
    """Operations of what `measure_steps` timed."""
    text, batch, wide = kept["text"], kept["batch"], scaled(SIZES["nano x 2"])
    if experiment == "sizes":
        loads = [(scaled(width), 0, EVERYTHING, batch) for width in SIZES.values()]
    elif experiment == "slices":
        loads = [(wide, slices, EVERYTHING, FEW) for slices in SLICES]
    else:
        loads = [(wide, 0, trains, batch) for trains in PATTERNS]
    return [sum(flops(config, patches_of(config, s), text, trains, b).values()) for config, s, trains, b in loads]
