"""Where the training of a small model begins: random weights, chosen with some care."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from ..config import MiniCPMVConfig, nano
from ..inputs.checks import check_int, check_type
from ..model import MiniCPMV
from ..positions import sincos_2d


def start(config: MiniCPMVConfig = nano, seed: int = 0) -> MiniCPMV:
    """Build a model with random weights that are easy to train from.

    A large model learns all this by itself from hundreds of millions of pictures. A small one that trains for an hour
    needs a better start. The model stays the same, only its random numbers are chosen with more care:

    1. Neighbors have similar positions: the ViT's table starts as sines and cosines, not as noise.
    2. The ViT's weights are three times as large. At the usual 0.02 and this width, every layer adds nearly nothing.
    3. Query i looks at its own part of the picture: it starts at the mean position of these patches, and queries and
       keys are projected alike, so that equal things match. At random, all queries see the same average.
    4. The LLM's weights start at 0.06 instead of 0.02, for the reason of 2; the resampler's output has their size.

    Args:
        config: a MiniCPMVConfig whose num_queries is a square.
        seed: of the random numbers, from 0 to 2^63 - 1.

    Returns:
        A MiniCPMV.

    Raises:
        TypeError, ValueError: an argument that cannot be.

    Example:
        >>> start(nano).resampler.query.shape
        torch.Size([16, 256])
    """
    check_type("config", config, MiniCPMVConfig)
    seed = check_int("seed", seed, least=0)
    if math.isqrt(config.resampler.num_queries) ** 2 != config.resampler.num_queries:
        raise ValueError(f"num_queries must be a square number to start from, got {config.resampler.num_queries}")
    wide = replace(config, llm=replace(config.llm, initializer_range=0.06))
    model = MiniCPMV.seeded(wide, seed)
    model.config = config
    vpm, resampler = model.vpm, model.resampler
    with torch.no_grad():
        for name, parameter in vpm.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(3)
        table = vpm.embeddings.position_embedding.weight
        side = config.vision.table_side
        table.copy_(0.3 * sincos_2d(config.vision.width, side, side).reshape(table.shape))

        side = math.isqrt(config.resampler.num_queries)
        patches = config.slicing.scale_resolution // config.slicing.patch_size
        positions = sincos_2d(config.resampler.width, patches, patches).permute(2, 0, 1)
        resampler.query.copy_(nn.functional.adaptive_avg_pool2d(positions, side).flatten(1).T)
        queries, keys, _ = resampler.attn.in_proj_weight.chunk(3)
        queries.copy_(keys)
        resampler.kv_proj.weight.mul_(5)
        resampler.proj.mul_(0.06)
    return model
