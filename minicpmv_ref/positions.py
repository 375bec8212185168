"""Where a patch stands: bucketed table rows (2.6), an interpolated table (2.0), fixed sines (resampler keys).

A ViT learns one table of positions, 70 x 70 rows (27 x 27 in 2.0). A slice can have any shape, say 28 x 37 patches.
2.6 looks up the nearest cell of the table; 2.0 resizes the table; the resampler computes sines for any grid.
Left out: the one-dimensional ids of the released 2.5 code; they depend on the whole prompt, so `vision.py` has them.
Patch grids are (rows, cols). D width, S side of the table.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from .inputs.checks import LIMITS, WrongType, check_int, check_type, shown


def bucket_position_ids(rows: int, cols: int, side: int = 70, exact: bool = False) -> torch.Tensor:
    """Give each patch of a grid its row in a side x side position table: the nearest cell, no interpolation.

    Args:
        rows, cols: the grid in patches; either may be larger than `side`. At most 524,288 patches.
        side: cells on one side of the square table, at most 1,024.
        exact: False: the float32 arithmetic of the released 2.6 code, which the weights were trained with. True:
            floor(side * i / n) in integers, as transformers' MiniCPM-V 4.6 and llama.cpp do. The two differ for n = 25,
            49, 50, 55, 58, 77, ... (the released ids are one too low at a few patches).

    Returns:
        LongTensor (rows * cols,), row by row; values in 0 .. side * side - 1.

    Raises:
        TypeError, ValueError: a count that is no integer of at least 1, a grid that is too large, another `exact`.

    Example:
        >>> bucket_position_ids(2, 3).tolist()  # patch (r, c) -> 70 * floor(70 r / 2) + floor(70 c / 3)
        [0, 23, 46, 2450, 2473, 2496]
        >>> bucket_position_ids(1, 25)[5].item(), bucket_position_ids(1, 25, exact=True)[5].item()
        (13, 14)

    Source: MiniCPM-V 2.6, modeling_navit_siglip.py, SiglipVisionEmbeddings.forward.
    """
    check_type("exact", exact, bool, what="True or False")
    rows, cols, side = _check_grid(rows, cols, side)
    bucket = _exact_buckets if exact else _released_buckets
    return rearrange(side * bucket(rows, side)[:, None] + bucket(cols, side)[None, :], "r c -> (r c)")


def _exact_buckets(n: int, side: int) -> torch.Tensor:
    return side * torch.arange(n) // n


def _released_buckets(n: int, side: int) -> torch.Tensor:
    """Which of `side` equal intervals of [0, 1) holds i / n, in float32 as released."""
    # Subtle: 1/n is rounded to float32 before the range is built, and the interval borders are float32 too. That is
    # what moves 5/25 = 0.2 below the border 14/70 = 0.2. `n` must be a tensor here for the rounding to happen.
    step = (1 / torch.tensor(n, dtype=torch.float32)).item()
    borders = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32)
    return torch.bucketize(torch.arange(0, 1 - 1e-6, step, dtype=torch.float32), borders, right=True)


def interpolate_position_table(table: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Resize a learned position table to any patch grid: bicubic with antialiasing, in float32.

    Args:
        table: (S * S, D), row by row.
        rows, cols: the grid in patches.

    Returns:
        Tensor (rows * cols, D) in the table's dtype; the table itself when the grid is S x S.

    Raises:
        TypeError, ValueError: a table that is no floating-point tensor with a square number of rows; counts as above.

    Example:
        >>> interpolate_position_table(torch.ones(27 * 27, 8), 28, 37).shape
        torch.Size([1036, 8])

    Source: 2.0 through timm's resample_abs_pos_embed; paper section 3.2, "Slice encoding".
    """
    check_type("table", table, torch.Tensor, what="a tensor")
    if not table.is_floating_point():
        raise WrongType(f"table must hold floating-point numbers, got {table.dtype}")
    side = round(len(table) ** 0.5) if table.ndim else 0
    if table.ndim != 2 or side * side != len(table):
        raise ValueError(f"table must be (S * S, D) with a square number of rows, got {tuple(table.shape)}")
    rows, cols, _ = _check_grid(rows, cols, side, table.shape[1])
    if (rows, cols) == (side, side):
        return table
    square = rearrange(table.float(), "(r c) d -> 1 d r c", r=side)
    resized = F.interpolate(square, size=(rows, cols), mode="bicubic", antialias=True)
    return rearrange(resized, "1 d r c -> (r c) d").to(table.dtype)


def sincos_2d(dim: int, rows: int, cols: int) -> torch.Tensor:
    """Compute fixed 2-D sine-cosine positions: the first half of the channels holds the column, the second the row.

    Args:
        dim: channels D, a multiple of 4 (sine and cosine of column, sine and cosine of row).
        rows, cols: the grid in patches; positions are the integers 0, 1, 2, ... and not normalized.

    Returns:
        Tensor (rows, cols, dim), float32.

    Raises:
        TypeError, ValueError: `dim` no multiple of 4, a count that is no integer above 0, a grid too large.

    Example:
        >>> sincos_2d(8, 1, 2)[0, 1].round(decimals=2).tolist()  # column 1: sin 1, sin 0.01, cos 1, cos 0.01; row 0
        [0.8399999737739563, 0.009999999776482582, 0.5400000214576721, 1.0, 0.0, 0.0, 1.0, 1.0]

    Source: MiniCPM-V 2.6, resampler.py, get_2d_sincos_pos_embed. Its variables emb_h and emb_w are swapped ("here w
        goes first"); ports that trust the names put the row first.
    """
    dim = check_int("dim", dim, least=-math.inf, most=LIMITS["width"])
    if dim < 4 or dim % 4:
        raise ValueError(f"dim must be a positive multiple of 4, got {dim}")
    rows, cols, _ = _check_grid(rows, cols, 1, dim)
    along_col, along_row = _sincos_1d(dim // 2, cols), _sincos_1d(dim // 2, rows)
    table = np.empty((rows, cols, dim), dtype=np.float32)
    table[..., : dim // 2] = along_col[None, :]
    table[..., dim // 2 :] = along_row[:, None]
    return torch.from_numpy(table)


def _sincos_1d(dim: int, n: int) -> np.ndarray:
    """(n, dim): sines of n positions at dim/2 frequencies, then their cosines. float32 in numpy, as released."""
    frequency = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float32) / (dim / 2.0))
    angle = np.arange(n, dtype=np.float32)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _check_grid(rows, cols, side, channels: int = 1) -> tuple[int, int, int]:
    got = f"rows={shown(rows)}, cols={shown(cols)}, side={shown(side)}"
    try:
        rows, cols = (check_int("count", n) for n in (rows, cols))
        side = check_int("side", side, most=LIMITS["table_side"])
    except ValueError as error:
        rule = f"a grid has a whole number of patches, at least 1 a side, and a table at most {LIMITS['table_side']:,}"
        raise type(error)(f"{rule}, got {got}") from None
    if rows * cols > LIMITS["grid_patches"] or rows * cols * channels > LIMITS["grid_numbers"]:
        raise ValueError(f"a grid of so many patches, of {channels} channels each, is not computed: {got}")
    return rows, cols, side
