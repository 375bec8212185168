"""Lesson 06: samples in rows, and what one row's tokens may look at."""

import random
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from minicpmv_ref.slicing import plan_slices

from .canvas import Axes, Canvas, counted
from .colors import BLUE, GRAY, INK, PALE, RED, SKY, colored

SAMPLE_KINDS = {"captions": "captions", "pictures": "pictures", "text only": "text", "all equal": "equal"}  # menu: key
STRATEGIES = {
    **{"one sample a row": "padded", "first fit": "first_fit", "best fit, longest first": "pack"},
    "truncate (the paper)": "truncate",
}
MANY = 40  # samples to place
LONGEST = 768  # tokens of a sample at most, so that every one fits into the smallest row
EVERYDAY = [(448, 448), (640, 480), (800, 600), (1024, 768), (1280, 720), (1080, 1920), (1240, 1754), (4032, 3024)]
FORBIDDEN = "#F6D59B"  # pairs of two samples: a light orange
MASK = (424, 30, 208, 208)  # where the mask is: x, y, w, h


class Placed(NamedTuple):
    """A plan of rows.

    rows: for each row [(picture tokens, other tokens), ...] of its samples, pictures first.
    width: tokens of a row. lost: tokens that were cut off. samples: all samples, (picture tokens, other tokens).
    numbers: of the samples of each row; none if they were cut.
    """

    rows: list
    width: int
    lost: int
    samples: list
    numbers: list | tuple = ()

    @property
    def used(self) -> int:
        """Rows that hold a sample."""
        return sum(map(bool, self.rows))

    @property
    def fill(self) -> float:
        return sum(map(sum, self.samples), -self.lost) / (self.width * self.used)

    def moved(self, number: int, row: int) -> "Placed | None":
        """The plan with this sample at the end of this row, from 0; None if it does not fit."""
        if number in self.numbers[row]:
            return self
        numbers = [[n for n in own if n != number] for own in self.numbers]
        numbers[row].append(number)
        rows = [[self.samples[n] for n in own] for own in numbers]
        fits = sum(map(sum, rows[row])) <= self.width
        return self._replace(rows=rows, numbers=numbers) if fits else None


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
    """Place `some_samples` in rows of `capacity` tokens, or without packing as wide as the longest sample."""
    from minicpmv_ref.learn.packing import first_fit, pack, pack_truncate

    samples = some_samples(kind, seed)
    lengths = [sum(sample) for sample in samples]
    if strategy == "truncate":
        shortest = [max(picture, 1) for picture, _ in samples]  # never into a picture
        plan = pack_truncate(lengths, capacity, shortest)
        rows = [[(samples[i][0], kept - samples[i][0]) for i, kept in row] for row in plan.rows]
        return Placed(rows, capacity, plan.lost, samples)
    if strategy == "padded":
        rows, capacity = [[i] for i in range(MANY)], max(lengths)
    else:
        rows = {"first_fit": first_fit, "pack": pack}[strategy](lengths, capacity)
    return Placed([[samples[i] for i in row] for row in rows], capacity, 0, samples, rows)


def pairs_used(row) -> float:
    """Share of a row's causal pairs, padding left out, whose two tokens are in one sample."""
    pairs = lambda n: n * (n + 1) / 2  # noqa: E731
    return sum(pairs(sum(sample)) for sample in row) / max(1, pairs(sum(map(sum, row))))


def tokens_of(row) -> list:
    """(number of the sample in its row, from 1; is it of a picture?; position) of each token of a row."""
    samples = enumerate(row, 1)
    return [(n, place < picture, place) for n, (picture, words) in samples for place in range(picture + words)]


def who_sees_whom(row, query: int, key: int) -> str:
    """What the mask says about two tokens of a row."""
    tokens = tokens_of(row)
    if max(query, key) >= len(tokens):
        return "Padding looks at nothing that counts, and nothing looks at it."
    (mine, *_, position), (other, picture, _) = tokens[query], tokens[key]
    what = "a picture's token" if picture else "a token"
    if key > query:
        why = "may not look at it: it comes later"
    elif mine != other:
        why = f"may not look at it: {what} of sample {other}, masked"
    else:
        why = f"may look at it: {what} of the same sample"
    return f"Token {query}, position {position} of sample {mine}; token {key}: it {why}."


def packed_rows(placed: Placed, row: int, at=None) -> Canvas:
    """All rows as bars; for row number `row` (from 1) its positions and the pairs that may attend.

    `at` marks a place (x, y) of the mask. Its fact "row_at" is a function from y to the number of a row, from 0. Its
    spots: "row", "sample" and "mask".
    """
    canvas, chosen = Canvas(), placed.rows[row - 1]
    _draw_rows(canvas, placed, row)
    _draw_positions(canvas, chosen, placed.width, row)
    canvas.legend(8, 356, ((BLUE, "picture"), (SKY, "other tokens"), (PALE, "padding")))

    canvas.picture(_pairs_image(chosen, placed.width), MASK, f"mask of row {row}", smooth=False, frame=INK)
    if at:
        x, y = (min(max(place, low), low + 207.9) for place, low in zip(at, MASK))
        canvas.path([(424, y), (x, y), (x, 30)], RED, 2)
        canvas.dot(x, y, 5, RED)
    canvas.spot("mask", None, MASK, "who may look at whom", "hover", at, (4, 4))
    canvas.lines(424, 258, ("down: a token; across: what", "it may look at"), 18, 14)
    meanings = (BLUE, "picture of its sample"), (SKY, "other tokens of it"), (FORBIDDEN, "another sample: masked")
    canvas.legend(424, 290, meanings, step=20)
    canvas.text(424, 369, f"{pairs_used(chosen):.1%} of the pairs used", 14)
    return canvas


def _draw_rows(canvas, placed, row):
    """Every row as a bar of its samples; `row` is framed."""
    left, wide, top, high = 8, 392, 30, 196
    scale, step = wide / placed.width, min(26, high / len(placed.rows))
    lost = f", {placed.lost:,} cut off" if placed.lost else ""
    title = f"{counted(placed.used, 'row')} of {placed.width:,}: {placed.fill:.1%} full{lost}"
    canvas.text(left, 20, title, bold=True)
    for number, samples in enumerate(placed.rows, 1):
        y, bar, x = top + step * (number - 1), step - max(1, 0.15 * step), left
        canvas.rect(left, y, wide, bar, PALE)
        canvas.spot("row", number, (left, y, wide, bar), f"show row {number}", chosen=number == row)
        for place, (picture, words) in enumerate(samples):
            start, x = x, canvas.stack(x, y, bar, ((picture * scale, BLUE, None), (words * scale, SKY, None)))
            canvas.path([(x, y), (x, y + bar)], "white", 2)
            if placed.numbers:
                hint = f"{picture} + {words} tokens: drag to another row, or press the up or down arrow"
                item, box = placed.numbers[number - 1][place], (start, y, x - start, bar)
                canvas.spot("sample", item, box, hint, "drag", step=(0, step))
        if number == row:
            canvas.rect(left - 1, y - 1, wide + 2, bar + 2, stroke=INK, line=2)
    canvas.facts["row_at"] = lambda y: int(min(max((y - top) / step, 0), len(placed.rows) - 1))


def _draw_positions(canvas, samples, width, row):
    """The position of each token of a row: it starts again with every sample."""
    lengths = [sum(sample) for sample in samples] or [1]
    axes = Axes(canvas, (8, 266, 392, 74), (0, width), (0, max(lengths)))
    canvas.text(8, 254, f"row {row}: positions 0 to {max(lengths) - 1}", bold=True)
    axes.level(0, color=GRAY)
    saw = []
    for start, end in pairwise([0, *accumulate(lengths)]):
        saw += [(start, 0), (end, end - start), (end, 0)]
    axes.line(saw)


def _pairs_image(row, width, cells=208):
    """The mask of one row, `cells` pixels a side: which sample and which part a token belongs to decides its color."""
    parts = tokens_of(row)
    tokens = ((np.arange(cells) + 0.5) * width / cells).astype(int)
    inside = tokens < len(parts)
    owner = np.array([parts[t][0] if t < len(parts) else -1 for t in tokens])
    picture = np.array([t < len(parts) and parts[t][1] for t in tokens])
    past = (tokens[:, None] >= tokens[None, :]) & inside[:, None]
    mine = past & (owner[:, None] == owner[None, :])
    kinds = np.select([~inside[:, None] | ~inside[None, :], past & ~mine, mine & picture, mine], [1, 2, 3, 4])
    return colored(kinds, ("#FFFFFF", PALE, FORBIDDEN, BLUE, SKY))
