"""The colors of all pictures: Okabe-Ito's, which color-blind people can tell apart, and three grays."""

import numpy as np
from PIL import Image

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
INK, GRAY, PALE = "#222222", "#767676", "#E6E6E6"


def rgb(color: str) -> tuple[int, int, int]:
    """(red, green, blue) of "#RRGGBB"."""
    return tuple(bytes.fromhex(color[1:]))


def colored(numbers, colors) -> Image.Image:
    """One pixel for each number of an array (rows, cols): the color that stands at this place in a list."""
    return Image.fromarray(np.array([rgb(color) for color in colors], np.uint8)[numbers])


def cividis(shares) -> Image.Image:
    """One pixel for each share of an array (rows, cols): dark blue at 0, yellow at 1."""
    from matplotlib import colormaps

    return Image.fromarray(colormaps["cividis"](np.clip(shares, 0, 1), bytes=True)[..., :3])
