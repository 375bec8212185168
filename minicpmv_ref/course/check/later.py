"""Lesson 13: a clip in groups, what a time can do, the right rows, windows, and steps on the canvas."""

import numpy as np

from .cases import Case, exercise


@exercise
def clip_tokens():
    """eleven clips, from 10 seconds to an hour, also around one, two and three minutes; an int, equal."""
    from minicpmv_ref.peers import plan

    for seconds in (10, 60, 61, 100, 120, 121, 150, 179, 180, 181, 3600):
        yield Case((seconds,), plan("minicpm-v-4.5", (640, 360), frames=min(3 * seconds, 540)).visual_tokens)


@exercise
def frame_shares():
    """one to three frames, with and without constants, scores up to 802; a list of numbers, to 1e-4."""
    rng = np.random.default_rng(0)
    for scores, constants in (
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 1.0]),
        ([[2.0, 0.0], [1.0, 1.0]], [0.0, 0.0]),
        ([[0.5, 0.25, 1.5]], [7.0]),
        ([[800.0, 801.0], [799.0, 802.0]], [1.0, 0.0]),
        (rng.standard_normal((3, 4)).round(2).tolist(), rng.standard_normal(3).round(2).tolist()),
    ):
        weights = np.exp(np.array(scores) - np.max(scores) + np.array(constants)[:, None])  # all patches of all frames
        yield Case((scores, constants), (weights.sum(axis=1) / weights.sum()).tolist(), tolerance=1e-4)


@exercise
def fixed_rows():
    """one, two and three frames; a tensor, equal."""
    import torch

    yield Case((torch.arange(1, 7).reshape(3, 2, 1),), torch.tensor([[1], [3], [5], [2], [4], [6]]))
    keys = torch.arange(24).reshape(2, 3, 4)  # (L, F, E)
    yield Case((keys,), torch.cat([keys[:, frame] for frame in range(3)]))
    yield Case((keys[:, :1],), keys[:, 0])


@exercise
def windows():
    """five grids from 2 x 2 to 6 x 4; lists of ints, in order."""
    import torch

    from minicpmv_ref.peers.later import _windows

    for rows, cols in ((2, 2), (2, 4), (4, 2), (4, 6), (6, 4)):
        numbers = torch.arange(float(rows * cols))[:, None]
        yield Case((rows, cols), _windows([numbers], [(rows, cols)], 1)[0][..., 0].int().tolist())


@exercise
def picture_steps():
    """two pictures without slices and five with them, among them a row and a column; two ints, equal."""
    for grid, tile, overview in (
        *((None, None, (7, 10)), (None, None, (9, 4)), ((2, 1), (7, 10), (7, 10)), ((2, 4), (7, 10), (10, 6))),
        *(((5, 1), (6, 10), (3, 23)), ((1, 3), (5, 12), (13, 5)), ((3, 3), (8, 8), (8, 8))),
    ):
        yield Case((grid, tile, overview), _steps(grid, tile, overview))


def _steps(grid, tile, overview):
    """How far a picture moves the word after it: as long as it is in the prompt, and on the package's canvas."""
    from minicpmv_ref.peers.canvas import Markers, canvas_position_ids

    ids, grids = [9, 1, *[0] * (overview[0] * overview[1]), 2], [overview]
    for k in range(grid[0] * grid[1] if grid else 0):
        ids += [5] * (k > 0 and k % grid[0] == 0) + [3, *[0] * (tile[0] * tile[1]), 4]
        grids.append(tile)
    ids.append(9)
    patches = [(4 * rows, 4 * cols) for rows, cols in grids]
    positions, _ = canvas_position_ids(ids, [token == 0 for token in ids], patches, Markers(1, 2, 3, 4, 5))
    return len(ids) - 2, int(positions[0, -1] - positions[0, 0]) - 1
