"""Lesson 03: the resampler."""

import math

from minicpmv_ref.config import v2_0, v2_5, v2_6

from .cases import Case, exercise


@exercise
def spread():
    cases = [[1.0], [0.5, 0.5], [0.25] * 4, [0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.7, 0.1, 0.1, 0.1]]
    for weights in cases:
        entropy = -sum(w * math.log(w) for w in weights if w > 0)
        yield Case((weights,), math.exp(entropy), tolerance=1e-4)


@exercise
def masked_weights():
    import torch

    for lengths in ([3], [4, 2], [1, 5, 3]):
        scores = torch.linspace(-2, 3, len(lengths) * max(lengths)).reshape(len(lengths), -1).sin() * 3
        weights = torch.zeros_like(scores)
        for row, length in enumerate(lengths):
            weights[row, :length] = scores[row, :length].softmax(dim=-1)
        yield Case((scores, lengths), weights)


@exercise
def resampler_parameters():
    for cfg in (v2_6.resampler, v2_5.resampler, v2_0.resampler):
        e, c, q = cfg.width, cfg.kv_width, cfg.num_queries
        parts = [q * e, e * c, 3 * (e * e + e), e * e + e, 3 * 2 * e, e * e]
        yield Case((q, e, c, cfg.version), sum(parts) + (q * e if cfg.version == "2.0" else 0))


@exercise
def fixed_positions():
    from minicpmv_ref.positions import sincos_2d

    for dim, rows, cols in [(4, 1, 1), (8, 3, 3), (8, 2, 3), (64, 28, 37), (32, 4, 227)]:
        yield Case((dim, rows, cols), sincos_2d(dim, rows, cols), tolerance=1e-4)
