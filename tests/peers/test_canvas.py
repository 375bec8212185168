"""4.7's canvas positions against transformers."""

import random
from types import MethodType, SimpleNamespace

import pytest
import torch

from minicpmv_ref.peers.canvas import Markers, canvas_position_ids

MARKERS = Markers(1, 2, 3, 4, 5)


def by_transformers(ids, visual, grids, merge):
    from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7Model

    names = dict(image_start_id=1, image_end_id=2, slice_start_id=3, slice_end_id=4, newline_id=5)
    model = SimpleNamespace(config=SimpleNamespace(**names, downsample_mode="4x" if merge == 2 else "16x"))
    for name in ("_group_visual_frames", "get_vision_position_ids", "get_rope_index"):
        setattr(model, name, MethodType(getattr(MiniCPMV4_7Model, name), model))
    model._frame_end_idx = MiniCPMV4_7Model._frame_end_idx
    positions, delta = model.get_rope_index(
        torch.tensor([ids]), torch.tensor([visual]).int(), torch.tensor(grids).reshape(-1, 2)
    )
    return positions[:, 0], delta.item()


def prompt(rng: random.Random, merge: int):
    """Text and up to four pictures or frames, each with or without slices, some of them side by side."""
    ids, visual, grids = [], [], []

    def add(*tokens, seen=False):
        ids.extend(tokens)
        visual.extend([seen] * len(tokens))

    def view(grid):
        grids.append((grid[0] * merge, grid[1] * merge))
        add(*[0] * (grid[0] * grid[1]), seen=True)

    for _ in range(rng.randint(0, 4)):
        if rng.random() < 0.6:
            add(*[9] * rng.randint(1, 5))
        add(1)
        view((rng.randint(1, 6), rng.randint(1, 6)))
        add(2)
        if rng.random() < 0.6:
            columns, rows = rng.randint(1, 4), rng.randint(1, 4)
            grid = (rng.randint(1, 5), rng.randint(1, 5))
            for row in range(rows):
                add(*[5] * (row > 0))
                for _ in range(columns):
                    add(3)
                    view(grid)
                    add(4)
        if rng.random() < 0.4:
            add(5)
    add(*[9] * rng.randint(0, 6))
    return ids or [9], visual or [False], grids


@pytest.mark.parametrize("merge", [4, 2])
def test_positions_are_transformers(merge):
    rng, sliced = random.Random(merge), 0
    for _ in range(400):
        ids, visual, grids = prompt(rng, merge)
        positions, delta = canvas_position_ids(ids, visual, grids, MARKERS, merge)
        theirs, their_delta = by_transformers(ids, visual, grids, merge)
        assert torch.equal(positions, theirs), (ids, grids)
        assert delta == their_delta
        sliced += 3 in ids
    assert sliced > 100


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="slots for 1 views"):
        canvas_position_ids([1, 0, 2], [False, True, False], [], MARKERS)
    with pytest.raises(ValueError, match="4 tokens, but 1 slots"):
        canvas_position_ids([1, 0, 2], [False, True, False], [(8, 8)], MARKERS)
