"""VILA-1.5: four neighboring patches become one token by putting their features side by side.

Implements the downsampling on any grid (padded with zeros to even sides), the projector after it, and the two kinds of
samples from interleaved web pages. Left out: the ViT (SigLIP, 27 x 27 patches) and the language model.
L patches, L' tokens, C width of the ViT.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..inputs.checks import check_choice, check_int, check_list, shown
from .shapes import check_tensor

ORDERS = {"rows": "b (r p) (c q) d -> b r c (p q d)", "columns": "b (r p) (c q) d -> b c r (p q d)"}


def downsample(x: torch.Tensor, order: str = "rows", factor: int = 2) -> torch.Tensor:
    """Put the features of each factor x factor square of patches side by side in one token.

    Args:
        x: (B, L, C), the patches of square pictures row by row; sides are padded with zeros to a multiple of `factor`.
        order: "rows" reads the squares row by row. "columns" reads them column by column, which is what the released
            VILA-1.5 does: its code lacks a transposition, and its weights learned to live with that.
        factor: side of a square in patches.

    Returns:
        (B, L', factor^2 * C) with L' = ceil(side / factor)^2: 729 patches become 196 tokens.

    Raises:
        TypeError: no tensor.
        ValueError: patches that are no square, or an unknown order.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 16, 1)
        >>> downsample(x)[0].int().tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
        >>> downsample(x, order="columns")[0, 1].int().tolist()
        [8, 9, 12, 13]

    Source: DownSampleBlock in llava/model/multimodal_projector/base_projector.py, branch vila1.5 ("columns") and main
    since December 2024 ("rows").
    """
    check_choice("order", order, ORDERS)
    check_int("factor", factor, most=64)
    side = math.isqrt(check_tensor("x", x, "B L C", square="L").shape[1])
    missing = -side % factor
    grid = F.pad(rearrange(x, "b (r c) d -> b r c d", r=side), (0, 0, 0, missing, 0, missing))
    return side_by_side(grid, factor, order).flatten(1, 2)


def side_by_side(grid: torch.Tensor, factor: int, order: str) -> torch.Tensor:
    """Put the features of each factor x factor square of a grid (B, rows, cols, C) side by side."""
    return rearrange(grid, ORDERS[order], p=factor, q=factor)


class Projector(nn.Sequential):
    """The MLP after the downsampling: LayerNorm, Linear, GELU, Linear. InternVL-1.5 has the same one.

    Args:
        kv_width: width of the ViT; the first layers are four times as wide.
        width: of the LLM.

    Example:
        >>> Projector(kv_width=3, width=5)(downsample(torch.zeros(1, 25, 3))).shape
        torch.Size([1, 9, 5])

    Source: "mlp_downsample" in llava/model/multimodal_projector/base_projector.py; there the downsampling itself is
    layer 0, so the published names count from 1.
    """

    def __init__(self, kv_width: int, width: int):
        wide = 4 * kv_width
        super().__init__(nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))


def interleaved_sample(sentences: list[str], pictures: list[tuple], pairs: bool = False) -> list[tuple]:
    """Write one training sample from a web page: each picture stands directly before its sentence.

    Args:
        sentences: of the page, in order.
        pictures: (picture, number of its sentence), any order; the first six in reading order are kept.
        pairs: True supervises only the sentence after a picture, which makes picture-text pairs of the page.

    Returns:
        [(part, supervised), ...]: a picture, never supervised, or a sentence and whether its tokens are in the loss.

    Raises:
        TypeError, ValueError: no such lists, or a picture of a sentence that is not there.

    Example:
        >>> interleaved_sample(["A cat.", "It sleeps."], [("photo", 1)])
        [('A cat.', True), ('photo', False), ('It sleeps.', True)]
        >>> interleaved_sample(["A cat.", "It sleeps."], [("photo", 1)], pairs=True)
        [('A cat.', False), ('photo', False), ('It sleeps.', True)]

    Source: LazyMMC4Dataset in llava/data/dataset.py of VILA; arXiv 2312.07533, section 3.2.
    """
    sentences = check_list("sentences", sentences, str)
    pictures = check_list("pictures", pictures, list, tuple, what="a picture and the number of its sentence")
    for entry in pictures:
        if len(entry) != 2:
            raise ValueError(f"each of pictures must be (picture, number of its sentence), got {shown(entry)}")
        check_int("the number of a sentence", entry[1], least=0, most=len(sentences) - 1)
    kept = sorted(pictures, key=lambda entry: entry[1])[:6]
    parts = []
    for number, sentence in enumerate(sentences):
        here = [(picture, False) for picture, place in kept if place == number]
        parts += [*here, (sentence, bool(here) or not pairs)]
    return parts
