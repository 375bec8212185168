"""What one GPU does with all of this, in ten minutes: training, memory, K-quants, packing, decoding, NCCL.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json     with CUDA; then python tools/figures.py
    python benchmarks/gpu.py --device cpu --tiny                    does it run? Its figures mean nothing

training   steps of sft-2 as `train --profile gpu` takes them, in bfloat16, from inputs that are ready: the profile's
           model, and one as wide as 2.6 with two layers in ViT and LLM. Beside it: what one process on the CPU
           prepares, a large matrix product, the memory that `budget` says. compiled: with `--compile`.
answer     2.6 in full size, random weights in bfloat16, a picture of ten views. Beside it: the memory of `estimate`.
kquant     the search in torch, beside numpy. Bytes are asserted equal.
packing    attention alone, forward and backward in bfloat16: ours, one SDPA call for each run of equal lengths, beside
           SDPA on padded samples, torch's varlen_attn and flash_attn. Results and gradients are asserted equal.
decode     `Runtime` beside transformers' generate(), tokens asserted equal, as in decode.py.
nccl       one process: all_reduce, and a step replicated (DDP) and sharded (FSDP2), beside a plain one; equal losses.

Each attempt is made by itself, the most valuable first. What fails, or no longer fits, says so in its row.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import decode
from _attention import PEERS, attention
from _card import Card, rates, row
from _report import arguments, report

from experiments._fair import draw_length
from minicpmv_ref.config import nano, v2_6
from minicpmv_ref.deploy.kquant import quantize
from minicpmv_ref.deploy.memory import estimate
from minicpmv_ref.learn.objectives import draw_samples, objective_for
from minicpmv_ref.learn.stages import stage_named, start
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.scale.budget import budget, compile_layers, mfu, peak_flops
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.parallel import ONE_PROCESS, LossModule, wrap_distributed
from minicpmv_ref.scale.profiles import PROFILES, scaled
from minicpmv_ref.scale.steps import run_steps

READY, NEW = 3, 32  # steps whose inputs are prepared, and then come again and again; tokens of an answer
WIDE = replace(  # 2.6, but with two layers, and with the words and the small views of the toy world
    nano,
    vision=replace(v2_6.vision, layers=2),
    resampler=replace(v2_6.resampler, num_queries=nano.resampler.num_queries),
    llm=replace(v2_6.llm, num_hidden_layers=2, vocab_size=nano.llm.vocab_size),
)
SMALL = replace(nano, vision=replace(nano.vision, layers=1), llm=replace(nano.llm, num_hidden_layers=1))
MODELS = {"gpu profile": PROFILES["gpu"].config, "2.6, two layers": WIDE}


# ---- training


class Training:
    """A model, and the inputs of a few steps."""

    def __init__(self, card: Card, config, batch: int | None = None):
        stage = scaled(stage_named("sft-2"), PROFILES["gpu"])
        self.stage = replace(stage, batch=batch or (2 if card.tiny else stage.batch))
        self.model = start(SMALL if card.tiny else config).to(card.device)
        self.objective = objective_for(self.model, Processor.from_pretrained("nano"), self.stage)
        self.optimizer = optimizer_for(self.model, self.stage)
        self.machine = Machine(card.device, half_precision=True)
        samples = draw_samples(self.stage, 0, "train", self.objective.view)
        first = [samples(number) for number in range(2 if card.tiny else 8)]
        while (need := budget(self.model, self.objective, first, self.stage.batch, 1, True).total) > 0.8 * card.free:
            self.stage = replace(self.stage, batch=self.stage.batch // 2)
        self.need = need
        began = time.perf_counter()
        inputs = self.machine.inputs(self.objective, samples, self.stage)
        self.inputs = [inputs[step] for step in range(1, READY + 1)]
        pictures = [sum(map(len, prepared[0].plans)) for _, _, (prepared,) in self.inputs]
        self.pictures = sum(pictures) / READY  # of a step
        self.prepared = sum(pictures) / (time.perf_counter() - began)

    def steps(self, count: int, module=None) -> list:
        """Take so many steps."""
        ready = ((step, *self.inputs[step % READY][1:]) for step in range(1, count + 1))
        module = module or LossModule(self.model, self.objective)
        return list(run_steps(self.model, module, self.stage, self.optimizer, self.machine, ready))


def training(card: Card, name: str, compiled: bool):
    made = Training(card, MODELS[name])
    if compiled:
        compile_layers(made.model, "eager" if card.tiny else "inductor")
    made.steps(READY)  # allocates, compiles, chooses kernels
    count = READY * card.fit(made.steps(READY)[-1].seconds, 1 if card.tiny else 10)
    steps, peak = card.peak(lambda: made.steps(count))
    seconds, what = steps[-1].seconds, f"{name}{', compiled' * compiled}, {made.stage.batch} samples"
    pictures, flops = made.pictures * count / seconds, sum(step.flops for step in steps)
    side = 256 if card.tiny else 8192
    a = torch.randn(side, side, device=card.device, dtype=torch.bfloat16)
    product = 2 * side**3 / 1e9 / min(card.turns({"product": lambda: a @ a.T})["product"])
    yield row(what, "tokens/s", sum(step.tokens for step in steps) / seconds)
    yield row(what, "pictures/s", pictures, "prepared by one process", made.prepared)
    yield row(what, "TFLOP/s", flops / seconds / 1e12, "a large product", product)
    if limit := peak_flops(torch.cuda.get_device_name(card.device)) if card.cuda else None:
        yield row(what, "MFU", mfu(flops, seconds, limit))
    if peak:
        yield row(what, "peak GB", peak / 1e9, "budget", made.need / 1e9)
        where = card.waits(lambda: made.steps(READY))
        yield row(what, "waits in a step", sum(where.values()) / READY) | {"where, in three steps": where}


# ---- answers


def answer(card: Card):
    config, dtype = (SMALL, "float32") if card.tiny else (v2_6, "bfloat16")
    side = 3 * config.slicing.scale_resolution
    chat = [{"role": "user", "content": [Image.new("RGB", (side, side)), "What is this?"]}]
    batch = Processor(Processor.from_pretrained("nano").tokenizer, config)(chat)
    need = estimate(config, dtype=dtype, slices=len(batch.images[0]) - 1, tokens=batch.input_ids.shape[1] + NEW).total
    if need > 0.9 * card.free:
        raise MemoryError(f"an answer needs {need / 1e9:.0f} GB, and {card.free / 1e9:.0f} are free")
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with card.device:
            model = MiniCPMV(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    batch = replace(batch.to(card.device, getattr(torch, dtype)), stop_ids=())
    (_, peak) = card.peak(lambda: model.generate(batch, NEW))
    times = card.turns({"first": lambda: model.generate(batch, 1), "all": lambda: model.generate(batch, NEW)})
    first, every = (median(times[name]) / 1000 for name in ("first", "all"))
    yield row("2.6, ten views, to the first token", "s", first)
    yield row("2.6, ten views, the next tokens", "tokens/s", (NEW - 1) / (every - first))
    if peak:
        yield row("2.6, ten views", "peak GB", peak / 1e9, "estimate", need / 1e9)


def decoding(card: Card, dtype: str):
    name, length = "768 x 12", 8 if card.tiny else 512
    model = decode.lively(SMALL if card.tiny else decode.SIZES[name]).to(card.device, getattr(torch, dtype))
    calls = decode.candidates(model, decode.prompt(length, model.config.llm.vocab_size).to(card.device))
    decode.check(calls, model, dtype)
    times = card.turns({"ours": calls["Runtime"], "generate()": calls["transformers"]})
    yield rates(f"{name}, {dtype}, prompt of {length}", "tokens/s", decode.NEW, times, "generate()")


def kquant(card: Card, kind: str, weighted: bool):
    side, rng = 256 if card.tiny else 4096, np.random.default_rng(0)
    x, importance = rng.standard_normal((side, side), np.float32), rng.random(side, np.float32) if weighted else None
    calls = {"ours": partial(quantize, x, kind, importance, card.device)}
    calls |= {"numpy": partial(quantize, x, kind, importance)}
    ours, theirs = (call() for call in calls.values())
    assert (ours == theirs).all(), f"{(ours != theirs).any(axis=1).sum()} of {side} rows have other bytes"
    yield rates(f"{kind}{', importance' * weighted}", "MB/s", x.nbytes / 1e6, card.turns(calls), "numpy")


def packing(card: Card, kind: str, peer: str):
    rng = random.Random(0)
    lengths = [3, 5, 5, 9] if card.tiny else sorted(draw_length(kind, rng) for _ in range(256))
    times = card.turns(attention(lengths, peer, card.device))
    yield rates(f"{kind}, {sum(lengths)} tokens", "million tokens/s", sum(lengths) / 1e6, times, peer)


# ---- one process


def one_process(card: Card):
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # nobody else needs to reach it
    dist.init_process_group("nccl" if card.cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.ones(2**10 if card.tiny else 2**26, device=card.device)
        times = card.turns({"all_reduce": lambda: dist.all_reduce(x)})["all_reduce"]
        yield row(f"all_reduce of {x.nbytes / 1e6:.3g} MB", "GB/s", x.nbytes / 1e6 / median(times))
        plain = Training(card, MODELS["gpu profile"], 2 if card.tiny else 16)
        wanted = [step.loss for step in plain.steps(READY)]
        for name in ("replicated (DDP)", "sharded (FSDP2)"):
            own = Training(card, MODELS["gpu profile"], plain.stage.batch)
            module = LossModule(own.model, own.objective)
            if name.startswith("sharded"):
                module = wrap_distributed(module, ONE_PROCESS, shard=True)
                own.optimizer = optimizer_for(own.model, own.stage)
            else:
                module = DistributedDataParallel(module, gradient_as_bucket_view=True)
            losses = [step.loss for step in own.steps(READY, module)]
            assert np.allclose(losses, wanted, rtol=1e-2), f"{name}: losses {losses}, without {wanted}"
            times = card.turns({"ours": partial(own.steps, 1, module), "a plain step": partial(plain.steps, 1)})
            yield rates(f"{name}, {plain.stage.batch} samples", "steps/s", 1, times, "a plain step")
    finally:
        dist.destroy_process_group()


def attempts(card: Card) -> list[tuple]:
    """(part, what, function), the most valuable first. What compiles stands last: nobody knows how long it takes."""
    return [
        *(("training", name, partial(training, card, name, False)) for name in MODELS),
        ("answer", "2.6, ten views", partial(answer, card)),
        *(("kquant", kind, partial(kquant, card, kind, False)) for kind in ("Q4_K", "Q6_K")),
        ("kquant", "Q4_K, importance", partial(kquant, card, "Q4_K", True)),
        *(
            ("packing", f"{kind}, {peer}", partial(packing, card, kind, peer))
            for kind in ("caption-like", "uniform 16..512")
            for peer in PEERS
        ),
        *(("decode", dtype, partial(decoding, card, dtype)) for dtype in ("float32", "bfloat16")),
        ("nccl", "one process", partial(one_process, card)),
        *(("training", f"{name}, compiled", partial(training, card, name, True)) for name in MODELS),
    ]


def main() -> None:
    parser = arguments(__doc__, rounds=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--parts", nargs="+", help="only these, such as kquant packing")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    Machine(args.device)  # a ValueError if torch has none
    card = Card(torch.device(args.device), time.perf_counter() + 60 * args.minutes, args.rounds, args.tiny)
    rows = []
    try:
        for part, what, measure in attempts(card):
            if part not in (args.parts or [part]):
                continue
            try:
                if card.left < 15 * (not card.tiny):
                    raise TimeoutError(f"no time left of {args.minutes:g} minutes")
                for found in measure():
                    rows.append({"part": part, **found})
                    print(rows[-1], file=sys.stderr, flush=True)
            except Exception as error:
                said = " ".join(str(error).replace("|", "/").split())[:150]
                rows.append({"part": part, "what": what, "error": f"{type(error).__name__}: {said}"})
                print(rows[-1], file=sys.stderr, flush=True)
            gc.collect()  # what an attempt held, before the next one asks how much memory is free
            torch.cuda.empty_cache()
    finally:  # Ctrl-C, too
        name = torch.cuda.get_device_name(card.device) if card.cuda else card.device.type
        report("gpu", args, rows, device=name, cuda=torch.version.cuda, dtype="bfloat16", unit="see each row")


if __name__ == "__main__":
    main()
