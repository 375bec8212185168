"""How much is a picture bent? The views of adaptive slicing against one fixed square."""

from __future__ import annotations

import math
import random
from statistics import median

from minicpmv_ref import plan_slices

from ._frame import CONFIRMED, REFUTED, Claim, Finding, median_interval
from ._sizes import SIZES

CLAIM = Claim(
    title="Any aspect ratio, nearly unbent",
    place="Section 3.2 (adaptive visual encoding) and the abstract: up to 1.8 million pixels at any aspect ratio.",
    says="Pictures of any aspect ratio are encoded without the distortion of a fixed square, in slices that are near "
    "to what the ViT was trained on.",
    done="Bending is the factor by which a picture's width is stretched against its height; 1 is unbent. Sixteen real "
    "sizes, upright and lying, and random ones (both sides log-uniform from 64 to 4,096), against a resize to one "
    "square. Slices: their shape, and their patches against the 1,024 of a 448 x 448 view. Confirmed means: never "
    "bent by more than 1.1.",
    limits="Whether unbent pictures are answered better: that needs a trained model. Above nine views, detail is lost "
    "to shrinking all the same.",
)
SETTINGS = {
    "fast": {"seeds": 3, "pictures": 100},
    "cpu": {"seeds": 12, "pictures": 5000},
    "gpu": {"seeds": 12, "pictures": 50000},
}


def bend(size: tuple[int, int], view: tuple[int, int]) -> float:
    """By how much a resize stretches one direction more than the other; at least 1."""
    return math.exp(abs(math.log(size[0] / size[1]) - math.log(view[0] / view[1])))


def measure_size(size: tuple[int, int]) -> dict:
    plan = plan_slices(size)
    width, height = plan.slice_size or plan.overview_size
    return {
        "square": bend(size, (1, 1)),
        "overview": bend(size, plan.overview_size),
        "slices": bend(size, plan.refined_size or plan.overview_size),
        "shape": bend((width, height), (1, 1)),
        "patches": width * height / (14 * 14) / 1024,
    }


def run(setting: dict, each) -> Finding:
    def random_sizes(seed: int) -> list[list[float]]:
        """Pictures up to 6:1: the bend that 95 of 100 stay within, the worst, and 95 of 100 by a square."""
        rng = random.Random(seed)
        drawn = []
        while len(drawn) < setting["pictures"]:
            size = tuple(round(64 * 64 ** rng.random()) for _ in range(2))
            if max(size) <= 6 * min(size):
                drawn.append(measure_size(size))
        rank = round(0.95 * (len(drawn) - 1))
        slices, square = (sorted(d[key] for d in drawn) for key in ("slices", "square"))
        return [slices[rank], slices[-1], square[rank]]

    def real_size(name: str) -> dict:
        return measure_size(SIZES[name])

    def turned(name: str) -> dict:
        return measure_size(SIZES[name][::-1])

    real = dict(zip(SIZES, each(SIZES, real_size)))
    both = [*real.values(), *each(SIZES, turned)]
    seeds = list(range(setting["seeds"]))
    high, worst, square = zip(*each(seeds, random_sizes))
    table = [["picture", "size", "bent by a square", "overview", "slices", "slice's shape", "its patches of 1,024"]]
    for name, size in SIZES.items():
        row = real[name]
        bends = [f"{row[key]:.3f}" for key in ("square", "overview", "slices")]
        table.append([name, "{} x {}".format(*size), *bends, f"{row['shape']:.2f}:1", f"{row['patches']:.0%}"])
    middle, by_square = (median(row[key] for row in both) for key in ("slices", "square"))
    long_sides = max(both, key=lambda row: row["slices"])
    names = "slices bend 95 of 100 random pictures by at most"
    return Finding(
        CONFIRMED if max(*worst, long_sides["slices"]) < 1.1 else REFUTED,
        f"Over the real sizes, slices bend by {middle:.3f} at the median and {long_sides['slices']:.3f} at worst, "
        f"where one square bends by {by_square:.2f} and {max(row['square'] for row in both):.2f}. In "
        f"{setting['seeds']} draws of {setting['pictures']:,} random pictures up to 6:1, the worst is "
        f"{max(worst):.3f}. What bending is left comes from whole patches of 14 pixels. Slices of real sizes have "
        f"{min(row['patches'] for row in both):.0%} to {max(row['patches'] for row in both):.0%} of 1,024 patches.",
        {
            names: round(median(high), 4),
            "one square bends 95 of 100 by at most": round(median(square), 2),
            "real sizes, median bend by slices": round(middle, 4),
            "real sizes, median bend by one square": round(by_square, 2),
        },
        {names: [round(end, 4) for end in median_interval(high)]},
        table,
        seeds,
    )
