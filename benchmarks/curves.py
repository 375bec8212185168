"""How does the cost grow? Milliseconds beside what a count of operations predicts, for six numbers that may grow.

    python benchmarks/curves.py --threads 2 --json benchmarks/results/curves.json --picture benchmarks/curves.png

The model has 30 million random weights: large enough that products count more than calls. Sizes take turns; the median
of the rounds counts. A slope is the exponent: with 1, twice as many take twice as long. Predicted is that of
`minicpmv_ref.counts.flops`; a measured slope below it says that small sizes do not fill the machine.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report

from minicpmv_ref.config import nano
from minicpmv_ref.counts import Workload, flops, flops_by_part
from minicpmv_ref.learn.packing import pack, pack_batch, packed_loss, sample_lengths
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.resampler import Resampler

SIZES = dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4)
CONFIG = replace(
    nano,
    vision=replace(nano.vision, width=384, heads=6, mlp_width=1536),
    resampler=replace(nano.resampler, num_queries=64, width=512, kv_width=384, heads=4),
    llm=replace(nano.llm, max_position_embeddings=4096, **SIZES),
)
SIDE = 16  # patches on a side of a view
TEXT, SHORT = 64, 128  # tokens beside pictures; of a sample of a batch


def operations(*parts: str, tokens: int = 0, samples: int = 1, views: int = 0, queries: int = 64) -> int:
    """Of `samples` samples of `tokens` tokens together, whose last tokens are asked, and of some views."""
    config = replace(CONFIG, resampler=replace(CONFIG.resampler, num_queries=queries))
    work = Workload(tokens, samples, tokens**2 // samples, views, views * SIDE**2, views * SIDE**4)
    return sum(flops_by_part(config, work, [])[part] for part in parts)


def cases(model: MiniCPMV) -> dict[str, dict[int, tuple]]:
    """What grows -> size -> (call, operations)"""
    both = ("vpm", "resampler")

    def read(tokens: int, samples: int = 1):
        x = torch.randn(samples, tokens, CONFIG.llm.hidden_size)
        return partial(model.llm, inputs_embeds=x, use_cache=False, logits_to_keep=1)

    def encode(count: int):
        return partial(model.encode_images, [torch.randn(3, 14 * SIDE, 14 * SIDE)] * count, [(SIDE, SIDE)] * count)

    def resample(queries: int):
        resampler = Resampler(replace(CONFIG.resampler, num_queries=queries)).eval()
        return partial(resampler, [torch.randn(SIDE**2, CONFIG.vision.width)] * 8, [(SIDE, SIDE)] * 8)

    def answer(count: int):
        look, prompt = encode(count), read(TEXT + count * 64)
        return lambda: (look(), prompt())

    return {
        "slices": {n: (encode(n), operations(*both, views=n)) for n in (1, 2, 4, 8)},
        "queries": {n: (resample(n), operations("resampler", views=8, queries=n)) for n in (16, 64, 256, 1024)},
        "prompt length": {n: (read(n), operations("llm", tokens=n)) for n in (128, 256, 512, 1024, 2048)},
        "batch": {n: (read(SHORT, n), operations("llm", tokens=n * SHORT, samples=n)) for n in (1, 2, 4, 8, 16)},
        "packing capacity": packing(model),
        "pictures": {n: (answer(n), operations(*both, "llm", tokens=TEXT + 64 * n, views=n)) for n in (1, 2, 4, 8)},
    }


def packing(model: MiniCPMV) -> dict[int, tuple]:
    """A training step of 16 samples in rows of any capacity: the operations stay the same."""
    texts = [[("user", "Look. " * (8 + n)), ("assistant", "Yes")] for n in range(16)]
    chats = [[{"role": role, "content": content} for role, content in text] for text in texts]
    batch = Processor.from_pretrained("nano")(chats)
    lengths, supervised = sample_lengths(batch), int((batch.labels != -100).sum())
    count = flops(CONFIG, Workload(sum(lengths), supervised, sum(n * n for n in lengths)), ["llm"])

    def step(packed):
        with torch.enable_grad():
            packed_loss(model, packed).backward()

    rows = {capacity: pack_batch(batch, pack(lengths, capacity)) for capacity in (max(lengths), 256, 512, 2048)}
    return {capacity: (partial(step, packed), count) for capacity, packed in rows.items()}


def slope(sizes, values) -> float:
    """The exponent that fits best."""
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 6) + 0.0  # not -0


@torch.no_grad()
def measure(found: dict[int, tuple], rounds: int, clock) -> dict[int, float]:
    times = {size: [] for size in found}
    for turn in range(rounds + 1):  # the first is not counted
        for size, (call, _) in found.items():
            start = clock()
            call()
            times[size] += [1000 * (clock() - start)] * (turn > 0)
    return {size: median(each) for size, each in times.items()}


def draw(rows: list[dict], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6), layout="constrained")
    for axis, row in zip(figure.subplots(2, 3).flat, rows):
        sizes, ms, line = row["sizes"], row["milliseconds"], row["operations"]
        scale = np.exp(np.mean(np.log(ms)) - np.mean(np.log(line)))
        axis.loglog(sizes, np.multiply(line, scale), color="#0072B2", label=f"predicted, slope {row['predicted']:.2f}")
        axis.loglog(sizes, ms, "o", color="#D55E00", label=f"measured, slope {row['measured']:.2f}")
        axis.set(xlabel=row["what"], ylabel="milliseconds", ylim=(min(ms) / 2, max(ms) * 3))
        axis.set_xticks(sizes, map(str, sizes), minor=False)
        axis.minorticks_off()
        axis.legend(loc="upper left", frameon=False, fontsize=9)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--picture", metavar="FILE", help="draw the curves there")
    parser.add_argument("--cpu", action="store_true", help="CPU time, for crowded machines; use 1 thread")
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for what, found in cases(MiniCPMV.seeded(CONFIG)).items():
        times, counts = measure(found, args.rounds, clock), [count for _, count in found.values()]
        sizes, ms = list(times), list(times.values())
        row = {"what": what, "range": f"{sizes[0]} to {sizes[-1]}", "first": ms[0], "last": ms[-1]}
        row |= {"predicted": slope(sizes, counts), "measured": slope(sizes, ms)}
        rows.append(row | {"sizes": sizes, "milliseconds": ms, "operations": counts})
        print(row, file=sys.stderr, flush=True)
    if args.picture:
        draw(rows, args.picture)
    report("curves", args, rows, dtype="float32", unit="milliseconds; slopes are exponents")


if __name__ == "__main__":
    main()
