"""Lesson 06: samples in rows, and what one row's tokens may look at."""

import random
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from PIL import Image

from minicpmv_ref.slicing import plan_slices

from .canvas import BLUE, GRAY, INK, PALE, SKY, Canvas

SAMPLE_KINDS = {  # (words in a menu, key)
    "captions": "captions",
    "pictures": "pictures",
    "text only": "text",
    "all equal": "equal",
}
STRATEGIES = {  # (words in a menu, key)
    "one sample a row": "padded",
    "first fit": "first_fit",
    "best fit, longest first": "pack",
    "truncate (the paper)": "truncate",
}
MANY = 40  # samples to place
LONGEST = 768  # tokens of a sample at most, so that every one fits into the smallest row
EVERYDAY = [(448, 448), (640, 480), (800, 600), (1024, 768), (1280, 720), (1080, 1920), (1240, 1754), (4032, 3024)]
FORBIDDEN = "#F6D59B"  # pairs of two samples: a light orange


class Placed(NamedTuple):
    """A plan of rows.

    rows: for each row [(picture tokens, other tokens), ...] of its samples, pictures first.
    width: tokens of a row. lost: tokens that were cut off. samples: all samples, (picture tokens, other tokens).
    """

    rows: list
    width: int
    lost: int
    samples: list

    @property
    def fill(self) -> float:
        return sum(map(sum, self.samples), -self.lost) / (self.width * len(self.rows))


def picture_tokens(size) -> int:
    """Tokens of one picture in version 2.6: number, markers, 64 slots a view, newlines between rows of slices."""
    plan = plan_slices(size)
    rows = plan.grid[1] if plan.grid else 1
    return 3 + (1 + plan.num_slices) * (64 + 2) + rows - 1


def some_samples(kind: str, seed: int) -> list:
    """MANY samples as (picture tokens, other tokens). Lengths of text are drawn from a lognormal distribution."""
    rng, samples = random.Random(seed), []
    for _ in range(MANY):
        words = min(max(round(rng.lognormvariate(3.5, 0.9)), 8), LONGEST)  # median 33
        picture = 0
        if kind == "captions":
            picture = picture_tokens((448, 448))
        elif kind == "pictures" and rng.random() < 0.8:  # the others have none
            picture = picture_tokens(rng.choice(EVERYDAY))
        elif kind == "equal":
            picture, words = picture_tokens((448, 448)), 59
        samples.append((picture, min(words, LONGEST - picture)))
    return samples


@lru_cache(maxsize=64)
def place_samples(kind: str, strategy: str, capacity: int, seed: int) -> Placed:
    """Place `some_samples` in rows.

    Args:
        kind, strategy: values of SAMPLE_KINDS and STRATEGIES.
        capacity: tokens of a row, at least LONGEST. Without packing a row is as wide as the longest sample.
    """
    from minicpmv_ref.learn.packing import first_fit, pack, pack_truncate

    samples = some_samples(kind, seed)
    lengths, lost = [sum(sample) for sample in samples], 0
    if strategy == "padded":
        rows, capacity = [[i] for i in range(MANY)], max(lengths)
    elif strategy == "truncate":
        shortest = [max(picture, 1) for picture, _ in samples]  # never into a picture
        plan = pack_truncate(lengths, capacity, shortest)
        lost = plan.lost
        rows = [[(samples[i][0], kept - samples[i][0]) for i, kept in row] for row in plan.rows]
        return Placed(rows, capacity, lost, samples)
    else:
        rows = {"first_fit": first_fit, "pack": pack}[strategy](lengths, capacity)
    return Placed([[samples[i] for i in row] for row in rows], capacity, lost, samples)


def pairs_used(row) -> float:
    """Share of a row's causal pairs, padding left out, whose two tokens are in one sample."""
    pairs = lambda n: n * (n + 1) / 2  # noqa: E731
    return sum(pairs(sum(sample)) for sample in row) / pairs(sum(map(sum, row)))


def packed_rows(kind: str, strategy: str, capacity: int, seed: int, row: int) -> Canvas:
    """All rows as bars; for row number `row` (from 1) its positions and the pairs that may attend."""
    canvas, placed = Canvas(), place_samples(kind, strategy, capacity, seed)
    left, wide, top, high = 8, 392, 30, 196
    scale, step = wide / placed.width, min(26, high / len(placed.rows))
    count = len(placed.rows)
    title = f"{count} {'row' if count == 1 else 'rows'} of {placed.width:,}: {placed.fill:.1%} full"
    canvas.text(left, 20, title + f", {placed.lost:,} cut off" * bool(placed.lost), bold=True)
    for number, samples in enumerate(placed.rows, 1):
        y, bar, x = top + step * (number - 1), step - max(1, 0.15 * step), left
        canvas.rect(left, y, wide, bar, PALE)
        for picture, words in samples:
            canvas.rect(x, y, picture * scale, bar, BLUE)
            canvas.rect(x + picture * scale, y, words * scale, bar, SKY)
            x += (picture + words) * scale
            canvas.path([(x, y), (x, y + bar)], "white", 2)
        if number == row:
            canvas.rect(left - 1, y - 1, wide + 2, bar + 2, stroke=INK, line=2)

    chosen = placed.rows[row - 1]
    lengths = [sum(sample) for sample in chosen]
    borders = [0, *accumulate(lengths)]
    low, up = 340, 74 / max(lengths)
    canvas.text(left, 254, f"row {row}: positions 0 to {max(lengths) - 1}", bold=True)
    canvas.path([(left, low), (left + wide, low)], GRAY, 1)
    saw = []
    for start, end in pairwise(borders):
        saw += [(left + start * scale, low), (left + end * scale, low - (end - start) * up), (left + end * scale, low)]
    canvas.path(saw, INK, 2)
    x = left
    for color, meaning, far in ((BLUE, "picture", 96), (SKY, "other tokens", 134), (PALE, "padding", 0)):
        canvas.rect(x, 356, 14, 14, color, GRAY)
        canvas.text(x + 20, 369, meaning, 14)
        x += far

    canvas.text(424, 20, f"mask of row {row}", bold=True)
    canvas.image(424, top, 208, 208, _pairs_image(chosen, placed.width), smooth=False)
    canvas.rect(424, top, 208, 208, stroke=INK)
    canvas.text(424, 258, "down: a token; across: what", 14)
    canvas.text(424, 276, "it may look at", 14)
    for line, (color, meaning) in enumerate(((BLUE, "picture of its sample"), (SKY, "other tokens of it"))):
        canvas.rect(424, 290 + 20 * line, 14, 14, color, GRAY)
        canvas.text(444, 302 + 20 * line, meaning, 14)
    canvas.rect(424, 330, 14, 14, FORBIDDEN, GRAY)
    canvas.text(444, 342, "another sample: masked", 14)
    canvas.text(424, 369, f"{pairs_used(chosen):.1%} of the pairs used", 14)
    return canvas


def _pairs_image(row, width, cells=208):
    """The mask of one row, `cells` pixels a side: which sample and which part a token belongs to decides its color."""
    import numpy as np

    parts = []  # of each token: (its sample, is it of a picture?)
    for number, (picture, words) in enumerate(row):
        parts += [(number, True)] * picture + [(number, False)] * words
    tokens = ((np.arange(cells) + 0.5) * width / cells).astype(int)
    inside = tokens < len(parts)
    owner = np.array([parts[t][0] if t < len(parts) else -1 for t in tokens])
    picture = np.array([t < len(parts) and parts[t][1] for t in tokens])
    past = (tokens[:, None] >= tokens[None, :]) & inside[:, None]
    mine = past & (owner[:, None] == owner[None, :])
    colors = np.full((cells, cells, 3), 255, dtype=np.uint8)
    for where, color in (
        (~inside[:, None] | ~inside[None, :], PALE),
        (past & ~mine, FORBIDDEN),
        (mine & picture, BLUE),
        (mine & ~picture, SKY),
    ):
        colors[where] = tuple(bytes.fromhex(color[1:]))
    return Image.fromarray(colors)
