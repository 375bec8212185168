"""Video and several pictures in LLaVA-NeXT-Video and -Interleave: pooled frames, scaled positions, two orders.

Frames go through the ViT like pictures; each is then pooled to a quarter of its tokens. For a video that is longer than
what the language model was trained on, all rotary positions are divided by a number.
L = side * side patches of a frame, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange

from ..inputs.checks import LIMITS, check_choice, check_int, check_list, check_number
from .shapes import check_tensor


def pool_frames(features: torch.Tensor, stride: int = 2) -> torch.Tensor:
    """Average each stride x stride square of patches of a video frame: 576 tokens become 144.

    Args:
        features: (frames, L, D), L = side * side patches; a last row or column that fills no square is dropped.
        stride: side of a square in patches.

    Returns:
        (frames, (side // stride)^2, D)

    Raises:
        TypeError, ValueError: features that are no square, a stride that is larger.

    Example:
        >>> pool_frames(torch.zeros(16, 576, 8)).shape
        torch.Size([16, 144, 8])

    Source: LlavaNextVideoPooler in transformers; get_2dPool in llava/model/llava_arch.py.
    """
    side = math.isqrt(check_tensor("features", features, "frames L D", square="L").shape[1])
    check_int("stride", stride, most=side)
    pooled = F.avg_pool2d(rearrange(features, "f (h w) d -> f d h w", h=side), stride)
    return rearrange(pooled, "f d h w -> f (h w) d")


def rope_factor(frames: int, tokens_a_frame: int = 144, trained: int = 4096, text: int = 1000) -> int:
    """By which whole number positions must be divided so that a video fits the positions an LLM was trained on.

    Args:
        frames: of the video.
        tokens_a_frame: after pooling.
        trained: positions that the LLM saw in training.
        text: positions that are kept for the text.

    Returns:
        1 if the video fits as it is.

    Raises:
        TypeError, ValueError: no whole numbers of at least 1.

    Example:
        >>> rope_factor(16), rope_factor(32), rope_factor(56)
        (1, 2, 3)

    Source: playground/demo/video_demo.py of LLaVA-NeXT. The often quoted "56 frames at factor 2" leaves none for text.
    """
    numbers = dict(frames=frames, tokens_a_frame=tokens_a_frame, trained=trained, text=text)
    for name, number in numbers.items():
        check_int(name, number)
    return max(1, math.ceil((frames * tokens_a_frame + text) / trained))


def scaled_frequencies(head_width: int, base: float = 10000.0, factor: float = 1.0) -> torch.Tensor:
    """Frequencies of rotary positions, divided by `factor`: the same as dividing every position by it.

    Args:
        head_width: of a query, even.
        base: of the rotary positions.
        factor: 2 lets 8,192 positions look like 4,096.

    Returns:
        (head_width / 2,)

    Raises:
        TypeError, ValueError: an odd head width.

    Example:
        >>> scaled_frequencies(4, factor=2)
        tensor([0.5000, 0.0050])

    Source: "linear" in ROPE_INIT_FUNCTIONS of transformers.
    """
    if check_int("head_width", head_width, most=LIMITS["width"]) % 2:
        raise ValueError(f"head_width must be even, got {head_width}")
    check_number("base", base, above=1, most=1e12)
    check_number("factor", factor, least=1, most=1e6)
    return 1 / base ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width) / factor


def place_pictures(parts: list, order: str = "in_place") -> list:
    """Order the pictures and texts of a message as LLaVA-NeXT-Interleave was trained: both orders, mixed.

    Args:
        parts: pictures and texts in reading order; what is no str counts as a picture.
        order: "in_place", or "in_front" with all pictures before the text.

    Returns:
        The same parts in that order.

    Raises:
        TypeError, ValueError: no list, an unknown order.

    Example:
        >>> place_pictures(["left:", 1, "right:", 2], "in_front")
        [1, 2, 'left:', 'right:']

    Source: the LLaVA-NeXT-Interleave report, arXiv 2407.07895, section 4.
    """
    parts = check_list("parts", parts)
    check_choice("order", order, ("in_place", "in_front"))
    return parts if order == "in_place" else sorted(parts, key=lambda part: isinstance(part, str))
