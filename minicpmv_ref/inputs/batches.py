"""What the model is given, and the logits that come out: checked here, so that `model.py` shows the algorithm."""

from __future__ import annotations

import torch

from .checks import check_int, check_list, check_type, shown


def check_views(images, patch_grids, patch: int) -> tuple[list[torch.Tensor], list]:
    """Views (3, patch * rows, patch * cols) and their grids (rows, cols), as two lists of equal length."""
    images = check_list("images", images, torch.Tensor)
    patch_grids = check_list("patch_grids", patch_grids, tuple, list, what="a pair (rows, cols)")
    if len(images) != len(patch_grids):
        raise ValueError(f"images and patch_grids must be equally long, got {len(images)} and {len(patch_grids)}")
    for number, (image, grid) in enumerate(zip(images, patch_grids)):
        if len(grid) != 2:
            raise ValueError(f"patch_grids[{number}] must be a pair (rows, cols), got {shown(grid)}")
        rows, cols = (check_int(f"patch_grids[{number}]", count) for count in grid)
        if tuple(image.shape[1:]) != (patch * rows, patch * cols):
            raise ValueError(
                f"view {number}: {rows} rows x {cols} columns of patches need {patch * rows} x {patch * cols} "
                f"pixels (height x width), got {shown(tuple(image.shape[1:]))}"
            )
        if not image.is_floating_point():
            raise ValueError(f"images[{number}] must hold normalized pixels, which are floats, got {image.dtype}")
    return images, patch_grids


def check_batch(batch, vocab_size: int) -> None:
    """Ids that a model of so many tokens has; for each sample where its views stand, and a list of plans."""
    ids = check_type("batch.input_ids", batch.input_ids, torch.Tensor)
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype != torch.long:
        raise ValueError(
            f"batch.input_ids must be a LongTensor (samples, tokens), got {shown(tuple(ids.shape))} of {ids.dtype}"
        )
    low, high = torch.stack(ids.aminmax()).tolist()  # a GPU is waited for once
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"batch.input_ids must be from 0 to {vocab_size - 1}, which are all tokens of this model, got "
            f"{low if low < 0 else high}: does the processor belong to it?"
        )
    for name, kinds in (("image_bounds", [torch.Tensor]), ("plans", [list, tuple])):
        entries = check_list(f"batch.{name}", getattr(batch, name), *kinds)
        if len(entries) != len(ids):
            raise ValueError(f"batch.{name} must have {len(ids)} entries, as input_ids, got {len(entries)}")
    for row, bounds in enumerate(batch.image_bounds):
        if bounds.ndim != 2 or bounds.shape[1] != 2 or bounds.is_floating_point():
            raise ValueError(f"batch.image_bounds[{row}] must be integers (views, 2), got {tuple(bounds.shape)}")
        edges = bounds.flatten().tolist()
        if edges != sorted(edges) or (edges and (edges[0] < 0 or edges[-1] > ids.shape[1])):
            raise ValueError(
                f"batch.image_bounds[{row}] must rise from 0 to at most {ids.shape[1]}, got {shown(edges)}"
            )


def check_shapes(batch, *names: str) -> None:
    """Compare other tensors of a batch with its ids."""
    for name in names:
        tensor = check_type(f"batch.{name}", getattr(batch, name), torch.Tensor)
        if tensor.shape != batch.input_ids.shape or tensor.is_floating_point():
            raise ValueError(
                f"batch.{name} must be integers {tuple(batch.input_ids.shape)}, as input_ids, got "
                f"{shown(tuple(tensor.shape))} of {tensor.dtype}"
            )


def check_finite(logits: torch.Tensor, asked: torch.Tensor | None, where: str) -> None:
    """Refuse logits (..., V) that are not numbers, for the samples or tokens that are `asked`, a mask (...) or all."""
    # A NaN or +inf anywhere is the largest; a token with -inf is merely impossible, unless all are.
    most = logits.detach().amax(dim=-1)
    bad = most - most != 0  # an infinity minus itself is NaN
    bad = bad if asked is None else bad & asked
    if bad.any():
        sample = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"{where}: the logits of sample {sample} are not finite numbers. A weight or a picture holds a NaN or an "
            "infinity, or the model's numbers are too large for its dtype (float16 ends at 65,504; try bfloat16)"
        )
