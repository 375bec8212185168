"""The colors of all pictures: Okabe-Ito's, which color-blind people can tell apart, and three grays."""

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
INK, GRAY, PALE = "#222222", "#767676", "#E6E6E6"


def rgb(color: str) -> tuple[int, int, int]:
    """(red, green, blue) of "#RRGGBB"."""
    return tuple(bytes.fromhex(color[1:]))
