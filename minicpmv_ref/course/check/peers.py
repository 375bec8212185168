"""Lesson 11: the other systems."""

from minicpmv_ref.peers.sizes import best_resolution, unpad

from .cases import Case, exercise


@exercise
def best_canvas():
    """eight sizes, wide, tall, square, and small ones that tie; two ints, (width, height), equal."""
    for size in [(640, 480), (1000, 200), (200, 1000), (600, 290), (300, 200), (336, 336), (673, 1345), (672, 330)]:
        yield Case((size,), best_resolution(size))


@exercise
def without_padding():
    """padding in rows and in columns, and cases where n + 1 stay; two ints, (rows, cols), equal."""
    cases = [((48, 48), (640, 480)), ((24, 72), (1000, 200)), ((72, 24), (200, 1000)), ((48, 48), (900, 500))]
    cases += [((48, 48), (1920, 1080)), ((24, 72), (600, 290)), ((24, 24), (24, 5)), ((48, 24), (300, 600))]
    for grid, size in cases:
        yield Case((grid, size), unpad(grid, size))


@exercise
def shuffle():
    """five shapes, not only squares; a tensor, every number in its place."""
    import torch

    from minicpmv_ref.peers.internvl import pixel_shuffle

    for rows, cols, width in ((2, 2, 1), (2, 4, 1), (4, 2, 3), (6, 6, 2), (32, 32, 5)):
        x = torch.arange(float(rows * cols * width)).reshape(rows, cols, width)
        yield Case((x,), pixel_shuffle(x[None]).reshape(-1, 4 * width))


@exercise
def repaired():
    """1, 2, 3 and 14 tokens a side; a tensor, every number in its place."""
    import torch

    from minicpmv_ref.peers.vila import downsample

    for side, width in ((2, 1), (4, 1), (6, 2), (27, 3)):
        x = torch.arange(float(side * side * width)).reshape(1, -1, width)
        yield Case((downsample(x, "columns")[0],), downsample(x)[0])


@exercise
def uses_vision():
    """no, one and two pictures, short runs, a row that ends in an image; a list of True and False."""
    import torch

    from minicpmv_ref.peers.cogvlm import expert_mask

    for text in ("00", "0111100", "01100", "010", "11", "1", "0111011100", "01111110", "01110111"):
        types = [int(kind) for kind in text]
        yield Case((types,), expert_mask(torch.tensor([types]))[0].tolist())
