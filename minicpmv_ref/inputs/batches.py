"""Checks of what processor and model are given, and of logits: here, so that their files show the algorithm."""

from __future__ import annotations

import torch

from .checks import WrongType, check_list, check_size, check_type, shown


def token_row(name: str, ids) -> torch.Tensor:
    """Token ids of one prompt, a list or a 1-D tensor, as a LongTensor."""
    try:
        row = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        row = None
    whole = row is not None and not (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool)
    if row is None or row.ndim != 1 or not (whole or len(row) == 0):
        raise WrongType(
            f"{name} must be a list or a 1-D tensor of integers, got "
            + (f"a tensor {(*row.shape,)} of {row.dtype}" if isinstance(ids, torch.Tensor) else shown(ids))
        )
    return row.long()


def check_sample(name: str, sample: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of a sample that `collate` can take."""
    missing = {"ids", "labels", "images", "patch_grids", "bounds", "plans"} - sample.keys()
    if missing:
        raise ValueError(f"{name} must have ids, labels, images, patch_grids, bounds and plans, not {sorted(missing)}")
    ids, labels = token_row(f"{name}['ids']", sample["ids"]), token_row(f"{name}['labels']", sample["labels"])
    if len(ids) != len(labels):
        raise ValueError(f"{name} must have as many labels as ids, got {len(labels)} and {len(ids)}")
    check_bounds(f"{name}['bounds']", sample["bounds"])
    return ids, labels


def check_bounds(name: str, bounds) -> None:
    """Where the slots of each view stand."""
    if not isinstance(bounds, torch.Tensor) or bounds.dtype != torch.long or bounds.shape[1:] != (2,):
        what = f"{bounds.dtype} {(*bounds.shape,)}" if isinstance(bounds, torch.Tensor) else shown(bounds)
        raise WrongType(f"{name} must be a LongTensor (views, 2), got {what}")


def check_views(images, patch_grids, patch: int) -> tuple[list[torch.Tensor], list]:
    """Views (3, patch * rows, patch * cols) and their grids (rows, cols), as two lists of equal length."""
    images = check_list("images", images, torch.Tensor)
    patch_grids = check_list("patch_grids", patch_grids, tuple, list, what="a pair (rows, cols)")
    if len(images) != len(patch_grids):
        raise ValueError(f"images and patch_grids must be equally long, got {len(images)} and {len(patch_grids)}")
    for number, (image, grid) in enumerate(zip(images, patch_grids)):
        rows, cols = check_size(grid, f"patch_grids[{number}]", "(rows, cols)")
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


def check_visual(visual, num_queries: int, width: int) -> None:
    """Visual tokens (B, num_queries, width) in floats."""
    check_type("visual", visual, torch.Tensor, what="a tensor of visual tokens from encode_images")
    if visual.ndim != 3 or tuple(visual.shape[1:]) != (num_queries, width) or not visual.is_floating_point():
        raise ValueError(
            f"visual tokens must be (views, {num_queries}, {width}) in floats, got {shown(tuple(visual.shape))} in "
            f"{visual.dtype}"
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
