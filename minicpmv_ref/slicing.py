"""Adaptive slicing: an image size goes in, the grid of slices and every pixel size come out.

Implements the released rule (equal in 2.0, 2.5 and 2.6) to the last bit, and the paper's literal equations as
`paper_grid`, because the two disagree. Left out: the `never_split` flag, which no released caller sets.
Sizes are (width, height) in pixels, slice grids (cols, rows), patch grids (rows, cols). No torch.

The rule in short:
    N = ceil(width * height / 448^2), at most 9; N <= 1: no slices, one view of about 448^2 pixels
    candidates: every cols x rows = N - 1, N or N + 1, except 1 and more than 9
    winner: the grid whose shape is nearest the image's, nearest in log(width / height); of equals the first
    overview: the whole image at about 448^2 pixels, sides rounded to multiples of the 14-pixel patch
    slices: the whole image resized so that a cols x rows mesh cuts it into equal parts of about 448^2 pixels
    order: the overview first, then the slices row by row
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from .config import SliceConfig
from .inputs.checks import LIMITS, check_int, check_size, check_type
from .inputs.pictures import check_sides, to_rgb

Size = tuple[int, int]  # (width, height) in pixels
Grid = tuple[int, int]  # (cols, rows)


def candidate_grids(size: Size, cfg: SliceConfig = SliceConfig()) -> list[Grid]:
    """List the slice grids that the released code considers, in its order.

    Args:
        size: (width, height) of the image in pixels.
        cfg: the slicing parameters.

    Returns:
        (cols, rows) pairs; an empty list when the image is not sliced.

    Raises:
        TypeError, ValueError: `size` is not two integers from 1 to 2^31, `cfg` no SliceConfig.

    Example:
        >>> candidate_grids((1000, 700))  # N = ceil(3.49) = 4, so 3, 4 and 5 slices are tried
        [(1, 3), (3, 1), (1, 4), (2, 2), (4, 1), (1, 5), (5, 1)]
        >>> candidate_grids((448, 448))
        []

    Source: MiniCPM-V 2.6, image_processing_minicpmv.py, get_sliced_grid.
    """
    width, height = check_size(size)
    most = check_type("cfg", cfg, SliceConfig).max_slice_nums
    ideal = min(math.ceil(width * height / (cfg.scale_resolution * cfg.scale_resolution)), most)
    if ideal <= 1:
        return []
    counts = [n for n in (ideal - 1, ideal, ideal + 1) if n != 1 and n <= most]
    return [grid for n in counts for grid in _factor_pairs(n)]


def partition_score(size: Size, grid: Grid) -> float:
    """Score how well a grid's shape fits the image's: the paper's S(m, n), 0 at best.

    Args:
        size: (width, height) of the image in pixels.
        grid: (cols, rows) of slices.

    Returns:
        A float <= 0: minus the distance of the two log aspect ratios.

    Raises:
        TypeError, ValueError: a side or a grid entry that is no integer from 1 to 2^31.

    Example:
        >>> partition_score((800, 400), (2, 1)), round(partition_score((800, 400), (1, 2)), 3)
        (-0.0, -1.386)

    Source: paper section 3.2, in the float64 expression order of get_sliced_grid. The order matters:
        1080 x 1080 is cut (3, 2) and not (2, 3) because log(3/2) and log(2/3) differ in the last bit.
    """
    width, height = check_size(size)
    cols, rows = check_size(grid, "grid", "(cols, rows)")
    return -abs(math.log(width / height) - math.log(cols / rows))


def best_grid(size: Size, cfg: SliceConfig = SliceConfig()) -> Grid | None:
    """Choose the slice grid as the released models do.

    Args:
        size: (width, height) of the image in pixels.
        cfg: as for `candidate_grids`.

    Returns:
        (cols, rows), or None when the image is not sliced.

    Raises:
        TypeError, ValueError: as `candidate_grids`.

    Example:
        >>> best_grid((1920, 1080)), best_grid((1080, 1920)), best_grid((300, 200))
        ((4, 2), (2, 4), None)

    Source: MiniCPM-V 2.6, image_processing_minicpmv.py, get_sliced_grid.
    """
    # Subtle: max() keeps the first of equals, as the official strict `<` does.
    return max(candidate_grids(size, cfg), key=lambda grid: partition_score(size, grid), default=None)


def paper_grid(size: Size, cfg: SliceConfig = SliceConfig()) -> Grid:
    """Choose the slice grid by the paper's equations, taken literally.

    N = ceil(W * H / (W_v * H_v)), "in practice N < 10"; candidates C = C_(N-1) + C_N + C_(N+1); the best S(m, n)
    wins. The released code has three rules that the text does not print: an image with N = 1 is not cut, one with N = 2
    is always cut, and no grid has more than `max_slice_nums` slices. So the two disagree, mostly on small images.

    Args:
        size: (width, height) of the image in pixels.
        cfg: as for `candidate_grids`; `scale_resolution` is W_v = H_v, `max_slice_nums` the largest N.

    Returns:
        (cols, rows); (1, 1) means that the paper would not cut.

    Raises:
        TypeError, ValueError: as `candidate_grids`.

    Example:
        >>> paper_grid((640, 480)), best_grid((640, 480))
        ((1, 1), (2, 1))

    Source: paper section 3.2, "Image partition". Even among the same candidates a tie may fall the other way: the code
        takes the logarithm of width / height first, so 1080 x 1080 is cut (3, 2) by the code, (2, 3) by the equations.
    """
    width, height = check_size(size)
    check_type("cfg", cfg, SliceConfig)
    ideal = min(math.ceil(width * height / cfg.scale_resolution**2), cfg.max_slice_nums)
    candidates = [grid for n in (ideal - 1, ideal, ideal + 1) for grid in _factor_pairs(n)]
    target = math.log(1)  # W_v / H_v: the slices are meant to be square
    return max(candidates, key=lambda grid: -abs(math.log((width / grid[0]) / (height / grid[1])) - target))


@dataclass(frozen=True)
class SlicePlan:
    """Everything about a sliced image that follows from its size alone; no pixels needed."""

    image_size: Size
    patch_size: int
    overview_size: Size
    grid: Grid | None = None  # None: the overview is the only view
    slice_size: Size | None = None

    @property
    def num_slices(self) -> int:
        """Slices in the grid, without the overview; 0 when the image is not sliced."""
        return self.grid[0] * self.grid[1] if self.grid else 0

    @property
    def refined_size(self) -> Size | None:
        """The size the whole image is resized to before the mesh cuts it."""
        return (self.slice_size[0] * self.grid[0], self.slice_size[1] * self.grid[1]) if self.grid else None

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The slices as (left, top, right, bottom) in the refined image, row by row."""
        if not self.grid:
            return []
        (cols, rows), (w, h) = self.grid, self.slice_size
        return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for r in range(rows) for c in range(cols)]

    @property
    def patch_grids(self) -> list[tuple[int, int]]:
        """(rows, cols) of patches of every view, the overview first."""
        sizes = [self.overview_size] + [self.slice_size] * self.num_slices
        return [(height // self.patch_size, width // self.patch_size) for width, height in sizes]

    def visual_tokens(self, num_queries: int) -> int:
        """Visual tokens that the LLM reads: `num_queries` for each view (64 in 2.0 and 2.6, 96 in 2.5)."""
        return check_int("num_queries", num_queries) * (1 + self.num_slices)


def plan_slices(size: Size, cfg: SliceConfig = SliceConfig()) -> SlicePlan:
    """Work out the grid and every size of a sliced image.

    Args:
        size: (width, height) of the image in pixels.
        cfg: as for `candidate_grids`.

    Returns:
        A SlicePlan with .grid .overview_size .refined_size .slice_size .num_slices .patch_grids .visual_tokens(n).

    Raises:
        TypeError, ValueError: as `candidate_grids`.

    Example:
        >>> plan = plan_slices((1920, 1080))
        >>> plan.grid, plan.overview_size, plan.slice_size, plan.num_slices, plan.visual_tokens(64)
        ((4, 2), (602, 336), (420, 476), 8, 576)

    Source: MiniCPM-V 2.6, image_processing_minicpmv.py, slice_image and get_refine_size.
    """
    size = check_size(size)
    grid = best_grid(size, cfg)
    if grid is None:  # small images are enlarged: every view has about scale_resolution squared pixels
        return SlicePlan(size, cfg.patch_size, _fit_area(size, cfg))
    # Subtle: the sides are first rounded to multiples of the grid, then divided by it.
    slice_size = tuple(_round_to_multiple(side, n) / n for side, n in zip(size, grid))
    return SlicePlan(size, cfg.patch_size, _fit_area(size, cfg), grid, _fit_area(slice_size, cfg))


def slice_image(image: Image.Image, cfg: SliceConfig = SliceConfig()) -> list[Image.Image]:
    """Cut an image into its views.

    Args:
        image: a PIL image of any mode; it is read as RGB. `load_image` applies EXIF orientation, this does not.
        cfg: the slicing parameters.

    Returns:
        RGB images: the overview first, then the slices row by row.

    Raises:
        TypeError: `image` is no PIL image, `cfg` no SliceConfig.
        ValueError: an image without pixels, one too long for its width, or one whose file turns out to be damaged.

    Example:
        >>> [view.size for view in slice_image(Image.new("RGB", (640, 480)))]
        [(518, 392), (364, 546), (364, 546)]

    Source: MiniCPM-V 2.6, image_processing_minicpmv.py, slice_image and split_to_patches.
    """
    plan = plan_slices(check_type("image", image, Image.Image, what="a PIL image").size, cfg)
    overview, refined = resize_views(image, plan)
    return [overview] + [refined.crop(box) for box in plan.boxes]


def resize_views(image: Image.Image, plan: SlicePlan, finish: Callable = lambda view: view) -> tuple:
    """Resize an image to both sizes of its plan (bicubic): (finish(overview), finish(refined)).

    Without a grid the second is None.

    Pillow releases the interpreter lock, so the two run side by side; so does a `finish` that releases it as well.
    """
    check_plan(plan)
    if check_type("image", image, Image.Image, what="a PIL image").size != plan.image_size:
        raise ValueError(f"plan is for an image of size {plan.image_size}, got one of {image.size}")
    image = to_rgb(image)

    def view(size: Size):
        return finish(image.resize(size, Image.Resampling.BICUBIC))

    if not plan.grid:
        return view(plan.overview_size), None
    overview = _pool.submit(view, plan.overview_size)
    refined = view(plan.refined_size)
    return overview.result(), refined


def _new_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resize")


_new_pool()
if hasattr(os, "register_at_fork"):  # not on Windows
    # Subtle: a forked process (a DataLoader worker) inherits the pool but not its thread, and would wait forever.
    os.register_at_fork(after_in_child=_new_pool)


def check_plan(plan: SlicePlan) -> None:
    """Refuse views that take minutes or gigabytes, before any work; `plan_slices` itself is exact for every size."""
    check_sides(check_type("plan", plan, SlicePlan).image_size)
    refined = plan.refined_size or (0, 0)
    pixels = math.prod(plan.overview_size) + math.prod(refined)
    patches = pixels // plan.patch_size**2
    if pixels > LIMITS["picture_pixels"] or patches > LIMITS["picture_patches"]:
        raise ValueError(
            f"the views of this image would have {pixels:,} pixels and {patches:,} patches, at most "
            f"{LIMITS['picture_pixels']:,} and {LIMITS['picture_patches']:,} are computed; a smaller max_slice_nums or "
            "scale_resolution makes them fewer"
        )


def _factor_pairs(n: int) -> list[Grid]:
    """All (cols, rows) with cols * rows = n, cols ascending."""
    return [(cols, n // cols) for cols in range(1, n + 1) if n % cols == 0]


def _round_to_multiple(length: float, step: int) -> int:
    # Subtle: Python rounds half to even, so 35 / 14 = 2.5 gives 28 and 49 / 14 = 3.5 gives 56.
    return max(round(length / step) * step, step)


def _fit_area(size: tuple[float, float], cfg: SliceConfig) -> Size:
    """Scale a size to about scale_resolution squared pixels, both sides multiples of the patch."""
    width, height = size
    ratio = width / height
    # Subtle: int() truncates, and the width is computed from the already truncated height.
    height = int(cfg.scale_resolution / math.sqrt(ratio))
    width = int(height * ratio)
    return _round_to_multiple(width, cfg.patch_size), _round_to_multiple(height, cfg.patch_size)
