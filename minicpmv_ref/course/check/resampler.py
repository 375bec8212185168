"""Lesson 03: the resampler."""

import math

from minicpmv_ref.config import v2_0, v2_5, v2_6

from .cases import Case, exercise


@exercise
def spread():
    """six lists, also with a weight of 0; a float, right to 0.0001."""
    cases = [[1.0], [0.5, 0.5], [0.25] * 4, [0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.7, 0.1, 0.1, 0.1]]
    for weights in cases:
        entropy = -sum(w * math.log(w) for w in weights if w > 0)
        yield Case((weights,), math.exp(entropy), tolerance=1e-4)


@exercise
def masked_weights():
    """batches of one, two and three rows; a torch tensor of dtype float32, right to 0.000001."""
    import torch

    for lengths in ([3], [4, 2], [1, 5, 3]):
        scores = torch.linspace(-2, 3, len(lengths) * max(lengths)).reshape(len(lengths), -1).sin() * 3
        weights = torch.zeros_like(scores)
        for row, length in enumerate(lengths):
            weights[row, :length] = scores[row, :length].softmax(dim=-1)
        yield Case((scores, lengths), weights)


@exercise
def resampler_parameters():
    """2.6, 2.5 and 2.0; the int must be equal."""
    for cfg in (v2_6.resampler, v2_5.resampler, v2_0.resampler):
        e, c, q = cfg.width, cfg.kv_width, cfg.num_queries
        parts = [q * e, e * c, 3 * (e * e + e), e * e + e, 3 * 2 * e, e * e]
        yield Case((q, e, c, cfg.version), sum(parts) + (q * e if cfg.version == "2.0" else 0))


@exercise
def hides():
    """nine views, square or not, white, mirrored or random; True or False."""
    import torch

    noise = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    mirror, other_mirror = noise + noise.transpose(0, 1), noise + noise.transpose(0, 1).flip(0, 1)
    nearly = mirror.clone()
    nearly[0, 3, 2] += 1  # one channel of one patch
    white, stripes = noise[0, 0], noise[:3, :1]  # channels of a white patch differ; each row of stripes is white
    yes = white.repeat(3, 5, 1), mirror, noise[:1, :1], white.repeat(4, 4, 1)
    no = noise, stripes.repeat(1, 4, 1), other_mirror, nearly, torch.arange(12.0).reshape(1, 4, 3)
    yield from (Case((view,), hidden) for hidden, views in ((True, yes), (False, no)) for view in views)
