"""One check for the tensors that come into this room's functions."""

from __future__ import annotations

import math

import torch

from ..inputs.checks import check_type, shown


def check_tensor(name: str, value, axes: str, square: str = "", integer: bool = False) -> torch.Tensor:
    """Return `value` if it is a tensor of finite or integer numbers with these axes, none of them empty.

    Args:
        name: of the argument, for the message.
        value: what came.
        axes: their names in the message, as "B L C".
        square: an axis whose length must be a square number.
        integer: True for whole numbers.

    Raises:
        TypeError: no tensor.
        ValueError: other axes, an empty one, numbers of the wrong kind.
    """
    check_type(name, value, torch.Tensor)
    names = axes.split()
    fits = value.ndim == len(names) and 0 not in value.shape
    if fits and square:
        length = value.shape[names.index(square)]
        fits = math.isqrt(length) ** 2 == length
    if not fits or (value.is_floating_point() == integer) or value.is_complex():
        rule = f", {square} a square number" if square else ""
        kind = "integers" if integer else "floating-point numbers"
        raise ValueError(
            f"{name} must be {kind} ({', '.join(names)}){rule}, got {shown(tuple(value.shape))} of {value.dtype}"
        )
    return value
