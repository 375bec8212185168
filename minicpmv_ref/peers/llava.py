"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: one MLP, and pictures cut to fit a ViT that takes squares only.

Implements the MLP connector, and the tiles of AnyRes with their merge: unpad, one newline token after each row, and the
cap of the OneVision era. Left out: the ViT (CLIP, SigLIP) and the language model; video is in video.py.
L = side * side patches of a view, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import nn

from ..inputs.checks import LIMITS, check_int, check_size, shown
from ..inputs.pictures import to_rgb
from .shapes import check_tensor
from .sizes import NEXT_CANVASES, best_resolution, cap_grid, fit_inside, unpad

MOST_SIDE = 2048  # of a tile, in pixels
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


class MLP(nn.Module):
    """LLaVA's connector: Linear, GELU, Linear, on each patch alone. As many tokens come out as patches went in.

    Args:
        kv_width: width of the ViT.
        width: of the LLM.

    Example:
        >>> MLP(kv_width=6, width=8)(torch.zeros(576, 6)).shape
        torch.Size([576, 8])

    Source: llava/model/multimodal_projector/builder.py (mlp2x_gelu); LlavaMultiModalProjector in transformers.
    """

    def __init__(self, kv_width: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(kv_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (..., kv_width) -> (..., width)"""
        return self.linear_2(F.gelu(self.linear_1(features)))


def pad_to_square(image: Image.Image) -> Image.Image:
    """Put a picture into the middle of a square of the ViT's mean color: LLaVA-1.5 keeps shapes and wastes the rest.

    Args:
        image: a picture of any size.

    Returns:
        A square picture as large as the longer side.

    Raises:
        TypeError, ValueError: no PIL image; a side above 16,384, whose square would take gigabytes.

    Example:
        >>> pad_to_square(Image.new("RGB", (40, 10))).size
        (40, 40)

    Source: expand2square in llava/mm_utils.py; the color is int(255 * mean) of CLIP.
    """
    image = to_rgb(image)
    side = check_int("the longer side of image", max(image.size), most=LIMITS["padded_side"])
    square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in CLIP_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def anyres_views(image: Image.Image, side: int = 336, ties: str = "public") -> list[Image.Image]:
    """Cut a picture as AnyRes does: the whole picture squeezed into a square, then the tiles of a padded larger copy.

    Args:
        image: a picture of any size.
        side: of the square ViT input in pixels; the canvases are as many squares of it as those of LLaVA-NeXT.
        ties: which of two equally good resolutions wins, as in `best_resolution`.

    Returns:
        1 + tiles pictures of side x side: the base view first, then the tiles row by row.

    Raises:
        TypeError: no PIL image.
        ValueError: a side or ties that cannot be.

    Example:
        >>> len(anyres_views(Image.new("RGB", (640, 480))))
        5

    Source: process_anyres_image in llava/mm_utils.py; LlavaNextImageProcessorPil in transformers.
    """
    image, side = to_rgb(image), check_int("side", side, most=MOST_SIDE)
    canvases = tuple((width // 336 * side, height // 336 * side) for width, height in NEXT_CANVASES)
    width, height = best_resolution(image.size, ties, canvases)
    fitted = image.resize(fit_inside(image.size, (width, height)), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (width, height))  # black
    canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return [image.resize((side, side), Image.Resampling.BICUBIC), *squares(canvas, side)]


def squares(image: Image.Image, side: int) -> list[Image.Image]:
    """Cut a picture whose sides are multiples of `side` into squares, row by row."""
    corners = [(x, y) for y in range(0, image.height, side) for x in range(0, image.width, side)]
    return [image.crop((x, y, x + side, y + side)) for x, y in corners]


def cut_padding(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut off the rows or columns of a feature map that saw nothing but padding.

    Args:
        features: (rows, cols, D), of a canvas on which the picture stands in the middle.
        size: (width, height) of the picture.

    Returns:
        (rows', cols', D). One row or column of padding can remain: what is cut off is the same on both sides.

    Raises:
        TypeError, ValueError: no such features or size.

    Example:
        >>> cut_padding(torch.zeros(4, 4, 8), (200, 100)).shape
        torch.Size([2, 4, 8])

    Source: unpad_image in llava/model/llava_arch.py and in transformers' modeling_llava_next.py.
    """
    check_tensor("features", features, "rows cols D")
    rows, cols = unpad(tuple(features.shape[:2]), size)
    top, left = (features.shape[0] - rows) // 2, (features.shape[1] - cols) // 2
    return features[top : top + rows, left : left + cols]


def merge(
    base: torch.Tensor,
    tiles: torch.Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    newline: torch.Tensor,
    max_tiles: int | None = None,
) -> torch.Tensor:
    """Lay the tokens of all views in one row: the base view, then the tiles as if they were one large view.

    The tiles' feature maps are put together to one map, the padding is cut off, a newline token is put at the end of
    each row of the map, and the map is read row by row.

    Args:
        base: (L, D), the features of the base view; L = side * side patches.
        tiles: (cols * rows, L, D), row by row.
        grid: (cols, rows) of the tiles.
        size: (width, height) of the picture in pixels.
        newline: (D,), learned.
        max_tiles: if given, a map of more than 1.1^2 * max_tiles * L patches is shrunk to max_tiles * L (bilinear).

    Returns:
        (L + rows' * (cols' + 1), D)

    Raises:
        TypeError, ValueError: features, grid and size that do not fit each other.

    Example:
        >>> base, tiles, newline = torch.zeros(9, 2), torch.zeros(2, 9, 2), torch.ones(2)
        >>> merge(base, tiles, (2, 1), (60, 30), newline).shape  # 9 + 3 * (6 + 1)
        torch.Size([30, 2])

    Source: prepare_inputs_labels_for_multimodal in llava/model/llava_arch.py (spatial_unpad, anyres_max_N);
    pack_image_features of LlavaNextModel and LlavaOnevisionModel in transformers.
    """
    columns, rows = check_size(grid, "grid", "(cols, rows)")
    side = math.isqrt(len(check_tensor("base", base, "L D", square="L")))
    if check_tensor("tiles", tiles, "tiles L D").shape != (columns * rows, *base.shape):
        raise ValueError(
            f"tiles must be {columns * rows} of (cols, rows) = ({columns}, {rows}), each of the base view's "
            f"{tuple(base.shape)}, got {shown(tuple(tiles.shape))}"
        )
    whole = rearrange(tiles, "(r c) (h w) d -> (r h) (c w) d", r=rows, h=side)
    whole = cut_padding(whole, size)
    if max_tiles is not None:
        capped = cap_grid(tuple(whole.shape[:2]), check_int("max_tiles", max_tiles), side)
        if capped != tuple(whole.shape[:2]):
            channels_first = rearrange(whole, "h w d -> 1 d h w")
            whole = rearrange(F.interpolate(channels_first, capped, mode="bilinear"), "1 d h w -> h w d")
    return torch.cat([base, with_newlines(whole, newline)])


def with_newlines(features: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    """Put a newline token (D,) after each row of a feature map and read it row by row.

    (rows, cols, D) -> (rows * (cols + 1), D)
    """
    if check_tensor("newline", newline, "D").shape != features.shape[2:]:
        raise ValueError(f"newline must be as wide as the features, {features.shape[2]}, got {len(newline)}")
    lines = torch.cat([features, newline.to(features).expand(len(features), 1, -1)], dim=1)
    return rearrange(lines, "r c d -> (r c) d")
