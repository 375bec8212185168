"""MiniCPM-V 4.7: rotary positions that say where a token stands in the picture.

Up to 4.6 a picture's tokens were numbered like words. In 4.7 every token has three positions (t, h, w). Text counts all
three up together. A picture is a canvas: its slices lie at their true places, its overview is stretched over all of
them, t stands still, and the text after it goes on one step past the canvas's longer side.
T tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import torch

from ..inputs.checks import check_int, check_list, check_size, check_type, shown


class Markers(NamedTuple):
    """Ids of the tokens around views: `<image>`, `</image>`, `<slice>`, `</slice>` and the newline."""

    image_start: int
    image_end: int
    slice_start: int
    slice_end: int
    newline: int


@dataclass
class _Frame:
    """A picture, or a frame of a clip: its views as (start, end) in the prompt with their sizes in tokens."""

    start: int  # of <image>
    spans: list[tuple[int, int]]  # the overview, then the slices
    grids: list[tuple[int, int]]  # (rows, cols) in tokens
    end: int = 0  # one past the markers that close it

    @property
    def columns(self) -> int:
        """Of the slices. Between two of a row stand `</slice><slice>`; a wider gap is the newline that ends the row."""
        slices = self.spans[1:]
        count = next((k + 1 for k, (a, b) in enumerate(pairwise(slices)) if b[0] - a[1] > 2), len(slices))
        return count if count and len(slices) % count == 0 else len(slices)

    @property
    def canvas(self) -> tuple[int, int]:
        """(rows, cols) in tokens of all slices together, or of the overview if there are none."""
        if len(self.spans) == 1:
            return self.grids[0]
        rows, cols = self.grids[1]
        return rows * ((len(self.spans) - 1) // self.columns), cols * self.columns


def canvas_position_ids(
    ids: list[int], visual: list[bool], grids: list[tuple[int, int]], markers: Markers, merge: int = 4
):
    """Number the tokens of a prompt.

    Args:
        ids: T token ids.
        visual: T, True for the slots of visual tokens.
        grids: (rows, cols) in patches of each view, in the order of the prompt.
        markers: the ids of the tokens around views.
        merge: a visual token stands for merge x merge patches: 4 in the "16x" mode, 2 in "4x".

    Returns:
        LongTensor (3, T) of positions t, h, w; and the number that is added to the place of a token written after the
        prompt to get its position.

    Raises:
        TypeError, ValueError: lists that do not fit each other.

    Example:
        >>> marks = Markers(1, 2, 3, 4, 5)
        >>> ids, visual = [9, 1, 0, 0, 0, 0, 2, 9], [False, False, True, True, True, True, False, False]
        >>> positions, delta = canvas_position_ids(ids, visual, [(8, 8)], marks)  # 2 x 2 tokens
        >>> positions.tolist()
        [[0, 1, 1, 1, 1, 1, 1, 4], [0, 0, 1, 1, 2, 2, 3, 4], [0, 0, 1, 2, 1, 2, 3, 4]]

    Source: get_rope_index in modeling_minicpmv4_7.py of transformers.
    """
    check_int("merge", merge)
    check_type("markers", markers, Markers)
    if len(check_list("ids", ids)) != len(check_list("visual", visual)):
        raise ValueError(f"ids and visual must be equally long, got {len(ids)} and {len(visual)}")
    positions, index, now = torch.zeros(3, len(ids), dtype=torch.long), 0, 0
    for frame in _frames(ids, visual, grids, markers, merge):
        text = max(0, frame.start - index)
        positions[:, index : index + text] = now + torch.arange(text)
        now += text
        _place(positions, frame, now)
        now += max(frame.canvas) + 1
        index = frame.end
    positions[:, index:] = now + torch.arange(len(ids) - index)
    return positions, int(positions.max()) + 1 - len(ids) if ids else 0


def _frames(ids, visual, grids, markers, merge) -> list[_Frame]:
    """A run of visual tokens is a view: a slice after `<slice>`, otherwise the overview of a new frame."""
    runs, place = [], 0
    for is_view, run in groupby(map(bool, visual)):
        length = len(list(run))
        runs += [(place, place + length)] * is_view
        place += length
    if len(runs) != len(check_list("grids", grids, list, tuple)):
        raise ValueError(f"the prompt has slots for {len(runs)} views, but there are {len(grids)} grids")
    frames: list[_Frame] = []
    for (start, end), grid in zip(runs, grids):
        rows, cols = (number // merge for number in check_size(grid, "grids", "(rows, cols)"))
        if rows * cols != end - start:
            raise ValueError(
                f"a view of {shown(tuple(grid))} patches has {rows * cols} tokens, but {end - start} slots"
            )
        if frames and ids[start - 1] == markers.slice_start:
            frames[-1].spans.append((start, end))
            frames[-1].grids.append((rows, cols))
        else:
            frames.append(_Frame(start - 1, [(start, end)], [(rows, cols)]))
    for frame in frames:
        frame.end = frame.spans[-1][1]
        while frame.end < len(ids) and ids[frame.end] in markers:
            frame.end += 1
    return frames


def _place(positions: torch.Tensor, frame: _Frame, origin: int) -> None:
    """Write the positions of one frame, from `<image>` to its last marker."""

    def at(index: int, h: int, w: int) -> None:  # counted from the canvas's corner
        positions[1:, index] = torch.tensor([origin + h, origin + w])

    def fill(span: tuple[int, int], h: torch.Tensor, w: torch.Tensor) -> None:
        here = torch.cartesian_prod(h.round().long(), w.round().long()).T
        positions[1:, slice(*span)] = origin + here

    (height, width), (overview, *slices) = frame.canvas, frame.spans
    positions[:, frame.start : frame.end] = origin
    positions[1:, frame.start] = max(origin - 1, 0)  # <image> just outside of the canvas
    if overview[1] < frame.end:
        at(overview[1], height, width)  # </image> past its far corner
    rows, cols = frame.grids[0]
    fill(
        overview, *(torch.linspace(0, side - 1, n, dtype=torch.float32) for side, n in ((height, rows), (width, cols)))
    )
    if not slices:
        return
    tall, wide = frame.grids[1]
    for k, (span, (rows, cols)) in enumerate(zip(slices, frame.grids[1:])):
        top, left = k // frame.columns * tall, k % frame.columns * wide
        at(span[0] - 1, top, left)  # <slice> at the corner where it begins, </slice> where it ends
        if span[1] < frame.end:
            at(span[1], top + rows - 1, left + cols - 1)
        fill(span, top + torch.arange(rows), left + torch.arange(cols))
        if k + 1 < len(slices):
            for newline in range(span[1] + 1, slices[k + 1][0] - 1):  # right of its row
                at(newline, (k // frame.columns + 1) * tall - 1, width)
