"""InternVL-1.5: up to 12 (40) square tiles and a thumbnail, and four patches in one token.

Implements the tiles, pixel shuffle in both published orders and the MLP after it (VILA's is the same). InternVL-1.0's
QLLaMA stands in qllama.py. Left out: the ViT and the language model.
"""

from __future__ import annotations

import torch
from PIL import Image

from ..inputs.checks import check_choice, check_int, shown
from ..inputs.pictures import to_rgb
from .llava import MOST_SIDE, squares
from .qllama import QLLaMACrossAttention
from .shapes import check_tensor
from .sizes import tile_grid
from .vila import Projector, side_by_side

SHUFFLES = {"v2": "rows", "v1": "columns"}

__all__ = ["Projector", "QLLaMACrossAttention", "pixel_shuffle", "tile", "tile_grid"]


def tile(image: Image.Image, max_num: int = 12, side: int = 448) -> list[Image.Image]:
    """Cut a picture into square tiles, row by row, and put a thumbnail of the whole picture after them.

    Args:
        image: a picture of any size; it is stretched to fill the grid, nothing is padded.
        max_num: most tiles; 12 in training, up to 40 at test time.
        side: of a tile in pixels.

    Returns:
        Pictures of side x side: the tiles and the thumbnail, or one picture if the grid is 1 x 1.

    Raises:
        TypeError, ValueError: no picture, or a number that cannot be.

    Example:
        >>> len(tile(Image.new("RGB", (640, 480))))  # 4 x 3 tiles and the thumbnail
        13

    Source: dynamic_preprocess in internvl_chat/internvl/train/dataset.py.
    """
    image, side = to_rgb(image), check_int("side", side, most=MOST_SIDE)
    columns, rows = tile_grid(image.size, max_num, side)
    large = image.resize((columns * side, rows * side))
    tiles = squares(large, side)
    return tiles if len(tiles) == 1 else [*tiles, image.resize((side, side))]


def pixel_shuffle(x: torch.Tensor, version: str = "v2") -> torch.Tensor:
    """Put the features of each 2 x 2 square of patches side by side: 1,024 patches become 256 wider tokens.

    Args:
        x: (B, rows, cols, C), even sides.
        version: "v2" is InternVL-1.5's; "v1" is the one before, which returns the picture transposed.

    Returns:
        (B, rows / 2, cols / 2, 4C); for "v1" (B, cols / 2, rows / 2, 4C).

    Raises:
        TypeError, ValueError: no such tensor, an odd side, an unknown version.

    Example:
        >>> pixel_shuffle(torch.zeros(1, 32, 32, 8)).shape
        torch.Size([1, 16, 16, 32])

    Source: pixel_shuffle in modeling_internvl_chat.py (ps_version); InternVLModel.pixel_shuffle in transformers.
    """
    check_choice("version", version, SHUFFLES)
    if check_tensor("x", x, "B rows cols C").shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"x must be (B, rows, cols, C) with even rows and cols, got {shown(tuple(x.shape))}")
    return side_by_side(x, 2, SHUFFLES[version])
