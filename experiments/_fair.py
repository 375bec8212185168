"""What a fair comparison of ways to train needs, here and in benchmarks: lengths to train on, and equal results."""

from __future__ import annotations

import random

import torch

LONGEST = 1024


def draw_length(kind: str, rng: random.Random) -> int:
    """Tokens of one sample of text, 8 to LONGEST."""
    length = {
        "caption-like": lambda: round(rng.lognormvariate(3.5, 0.9)),  # median 33
        "wide lognormal": lambda: round(rng.lognormvariate(4.8, 1.0)),  # median 121
        "uniform 16..512": lambda: rng.randint(16, 512),
        "constant 128": lambda: 128,
    }[kind]()
    return min(max(length, 8), LONGEST)


def assert_same_training(
    found: dict[str, tuple[float, torch.Tensor]], loss_limit: float = 1e-5, gradient_limit: float = 1e-4
) -> None:
    """Every way has the loss and the gradient (one long vector) of the first one, up to relative limits."""
    (first, (loss, gradient)), *others = found.items()
    for way, (other, other_gradient) in others:
        assert abs(other - loss) < loss_limit * loss, f"{way}: loss {other}, {first} {loss}"
        error = ((other_gradient - gradient).norm() / gradient.norm()).item()
        assert error < gradient_limit, f"{way}: gradient differs by {error}"


def assert_same_output(found: dict[str, torch.Tensor], limit: float) -> None:
    """Every way has the output of the first one, up to an absolute limit."""
    (_, output), *others = found.items()
    for way, other in others:
        error = (other.float() - output.float()).abs().max().item()
        assert error <= limit, f"{way}: differs by {error}"
