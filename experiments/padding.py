"""How much of a batch is padding? Arithmetic on lengths: what packing can save at most, and where it saves little."""

from __future__ import annotations

import random
from statistics import median

from minicpmv_ref.learn.packing import pack

from ._fair import draw_length
from ._frame import CONFIRMED, NOT_CONFIRMED, Claim, Finding, median_interval

CLAIM = Claim(
    title="Packing makes pre-training 2 to 3 times faster",
    place="Section 4.1, data packing.",
    says="Packing samples into rows of fixed length instead of padding them makes pre-training 2 to 3 times faster.",
    done="Lengths like those of captions (log-normal, median 33 tokens) go into batches of 8 or 32 in random order, "
    "padded to the longest, and into rows of 2,048 by `pack`. All tokens are counted, padding included: their ratio "
    "is what packing can save if every token costs the same. Once for text alone, once with the 64 tokens of "
    "one view before each caption, once with one to ten views. Confirmed means: at least 2 with one view and batches "
    "of 8.",
    limits="Time: attention, kernels and the ViT are not counted ([benchmarks](../benchmarks/README.md) has timings). "
    "The paper gives neither its lengths nor what it was compared with, so these lengths are ours. It also cuts the "
    "last sample of a row, which `pack` does not.",
)
SETTINGS = {
    "fast": {"seeds": 3, "samples": 256},
    "cpu": {"seeds": 20, "samples": 4096},
    "gpu": {"seeds": 20, "samples": 65536},
}
ROW = 2048
VIEWS = {"captions alone": (0, 0), "one view and a caption": (1, 1), "1 to 10 views and a caption": (1, 10)}
MAIN, BATCH = "one view and a caption", 8


def lengths_with_views(kind: str, n: int, rng: random.Random) -> list[int]:
    """Tokens of n samples: a caption, and 64 tokens and two markers for each view."""
    return [draw_length("caption-like", rng) + 66 * rng.randint(*VIEWS[kind]) for _ in range(n)]


def padded(lengths: list[int], batch: int) -> int:
    """Tokens of all batches, in the order given, each as wide as its longest sample."""
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(len(part) * max(part) for part in batches)


def run(setting: dict, each) -> Finding:
    def count(seed: int) -> dict:
        """Useful shares and ratios of each kind: [padded 8, padded 32, packed, ratio 8, ratio 32]."""
        shares = {}
        for kind in VIEWS:
            lengths = lengths_with_views(kind, setting["samples"], random.Random(seed))
            useful, packed = sum(lengths), ROW * len(pack(lengths, ROW))
            wide = [padded(lengths, batch) for batch in (BATCH, 32)]
            shares[kind] = [useful / n for n in (*wide, packed)] + [n / packed for n in wide]
        return shares

    seeds = list(range(setting["seeds"]))
    found = each(seeds, count)
    columns = {kind: list(zip(*(seed[kind] for seed in found))) for kind in VIEWS}
    table = [["samples", "useful, padded by 8", "by 32", "useful, packed", "saves against 8", "against 32"]]
    for kind, (*useful, ratio8, ratio32) in columns.items():
        table.append([kind, *(f"{median(share):.1%}" for share in useful)])
        table[-1] += [f"{median(ratio8):.2f}x", f"{median(ratio32):.2f}x"]
    ratio = columns[MAIN][3]
    low, high = median_interval(ratio)
    alone = columns["captions alone"]
    name, other = f"times fewer tokens, {MAIN}, batches of {BATCH}", "captions alone, batches of 8"
    return Finding(
        CONFIRMED if low >= 2 else NOT_CONFIRMED,
        f"A pre-training sample is a picture and its caption: {median(ratio):.2f} times fewer tokens against batches "
        f"of 8, {median(columns[MAIN][4]):.2f} against 32. Captions alone would save {median(alone[3]):.2f} and "
        f"{median(alone[4]):.2f}; the 64 tokens that each picture brings make lengths more alike. So 2 to 3 is "
        "possible, but it is a figure of the lengths and of the batch that one compares with.",
        {name: round(median(ratio), 3), other: round(median(alone[3]), 3)},
        {name: [round(low, 3), round(high, 3)], other: [round(end, 3) for end in median_interval(alone[3])]},
        table,
        seeds,
    )
