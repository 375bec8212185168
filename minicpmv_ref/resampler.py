"""The bottleneck: one cross-attention layer in which a few learned queries read any number of patches.

Each of 64 queries (96 in 2.5) looks at about 1,000 patches of a slice and comes back as one token for the LLM.
Implements 2.0 and 2.5/2.6. Left out: dropout. `deploy/fold.py` has a faster form for inference.
B slices (overviews, too), L patches of one, Q queries, E width of the LLM, C of the ViT, H heads, K = E / H head width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import nn

from .config import ResamplerConfig
from .inputs.checks import check_list, check_type, shown
from .linear import Linear, linear
from .positions import sincos_2d

Grids = list[tuple[int, int]]


class Resampler(nn.Module):
    """Turn the patch features of each slice into `num_queries` tokens, as a ResamplerConfig says.

    tokens = ln_post(attention(q = ln_q(query), k = x + position, v = x)) @ proj   with x = ln_kv(kv_proj(features))

    Positions are added to the keys only: they steer where a query looks, not what it reads. In 2.0 the queries, laid
    out as an 8 x 8 square, get positions too.

    Example:
        >>> resampler = Resampler(ResamplerConfig(num_queries=4, width=32, kv_width=24))
        >>> resampler([torch.zeros(15, 24), torch.zeros(6, 24)], [(3, 5), (2, 3)]).shape
        torch.Size([2, 4, 32])

    Source: resampler.py of MiniCPM-V 2.0 and 2.6 (2.5 has the same code as 2.6).
    """

    def __init__(self, cfg: ResamplerConfig):
        super().__init__()
        self.cfg = check_type("cfg", cfg, ResamplerConfig)
        self.query = nn.Parameter(torch.empty(cfg.num_queries, cfg.width))
        self.kv_proj = Linear(cfg.kv_width, cfg.width, bias=False)
        self.attn = AttentionWeights(cfg.width)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(cfg.width, eps=cfg.eps) for _ in range(3))
        self.proj = nn.Parameter(torch.empty(cfg.width, cfg.width))  # multiplied from the right: x @ proj
        if cfg.version == "2.0":
            side = math.isqrt(cfg.num_queries)
            table = rearrange(sincos_2d(cfg.width, side, side), "r c e -> (r c) e").to(self.query.device)
            self.pos_embed = nn.Parameter(table, requires_grad=False)
        # The released 2.6 starts its queries at zero; a small spread, as in 2.0, lets them specialize from step one.
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.kv_proj.weight, std=0.02)
        nn.init.normal_(self.proj, std=cfg.width**-0.5)

    def forward(self, features: list[torch.Tensor], patch_grids: Grids) -> torch.Tensor:
        """Resample a list of slices.

        Args:
            features: for each slice its patch features (L, C).
            patch_grids: for each slice its (rows, cols), rows * cols = L.

        Returns:
            Tensor (B, Q, E).

        Raises:
            TypeError, ValueError: no tensors, no pairs of integers, or features and grids that do not fit each other.
        """
        check_features(features, patch_grids, self.cfg.kv_width)
        if not features:
            return self.query.new_empty(0, *self.query.shape)
        q = self._queries()
        groups = equal_lengths(features)  # slices of equal length share one call; nobody is padded
        pooled = []
        for slices in groups:
            keys, values = self._keys_values(slices, features, patch_grids)
            out = F.scaled_dot_product_attention(repeat(q, "h q k -> b h q k", b=len(slices)), keys, values)
            pooled.append(rearrange(out, "b h q k -> b q (h k)"))
        return self._finish(torch.cat(pooled)[original_order(groups)])

    def attend(self, features: list[torch.Tensor], patch_grids: Grids) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Resample and also return where each query looked.

        Args:
            features, patch_grids: as in `forward`.

        Returns:
            The tokens (B, Q, E), and for each slice the attention weights (H, Q, L), which sum to 1 over L.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        check_features(features, patch_grids, self.cfg.kv_width)
        if not features:
            return self.forward(features, patch_grids), []
        q = self._queries()
        weights, pooled = [], []
        for i in range(len(features)):
            keys, values = self._keys_values([i], features, patch_grids)
            scores = einsum(q, keys[0], "h q k, h l k -> h q l") / math.sqrt(q.shape[-1])
            weights.append(scores.float().softmax(dim=-1).to(q.dtype))
            pooled.append(einsum(weights[-1], values[0], "h q l, h l k -> h q k"))
        return self._finish(rearrange(torch.stack(pooled), "b h q k -> b q (h k)")), weights

    def _queries(self) -> torch.Tensor:
        """The projected queries (H, Q, K): the same for every slice."""
        q = self.ln_q(self.query)
        if self.cfg.version == "2.0":
            q = q + self.pos_embed
        weight, bias = self.attn.part("q")
        return rearrange(F.linear(q, weight, bias), "q (h k) -> h q k", h=self.cfg.heads)

    def _keys_values(self, slices: list[int], features, patch_grids) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (b, H, L, K) of some slices of equal length."""
        x = torch.stack([features[i] for i in slices])  # (b, L, C)
        x = self.ln_kv(self.kv_proj(x))  # (b, L, E)
        positions = torch.stack([_positions(self.cfg.width, *patch_grids[i]) for i in slices]).to(x, non_blocking=True)
        keys = linear(x + positions, *self.attn.part("k"))
        values = linear(x, *self.attn.part("v"))
        return tuple(rearrange(t, "b l (h k) -> b h l k", h=self.cfg.heads) for t in (keys, values))

    def _finish(self, x: torch.Tensor) -> torch.Tensor:
        return self.ln_post(self.attn.out_proj(x)) @ self.proj


class AttentionWeights(nn.Module):
    """The parameters of a multi-head attention under the names of torch.nn.MultiheadAttention."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def part(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(weight (E, E), bias (E,)) of the "q", "k" or "v" projection."""
        i = "qkv".index(name)
        return self.in_proj_weight.chunk(3)[i], self.in_proj_bias.chunk(3)[i]


@lru_cache(maxsize=8)
def _positions(width: int, rows: int, cols: int) -> torch.Tensor:
    """(L, E), row by row. Cached, because all slices of a picture have the same shape; never written to."""
    return rearrange(sincos_2d(width, rows, cols), "r c e -> (r c) e")


def equal_lengths(features: list[torch.Tensor]) -> list[list[int]]:
    """Group slice numbers by length, in order of first appearance; for a CPU's inference only 1,024 patches a group."""
    groups: dict[int, list[int]] = {}
    for i, feature in enumerate(features):
        groups.setdefault(len(feature), []).append(i)
    if torch.is_grad_enabled() or not features[0].is_cpu:
        return list(groups.values())
    # Measured: tensors that stay in the cache make it up to 1.3 times faster.
    few = {length: max(1, 1024 // length) for length in groups}
    return [same[i : i + few[n]] for n, same in groups.items() for i in range(0, len(same), few[n])]


def original_order(groups: list[list[int]]) -> list[int]:
    """The index that brings grouped slices back into their first order."""
    order = [i for slices in groups for i in slices]
    return sorted(range(len(order)), key=order.__getitem__)


def check_features(features, patch_grids, kv_width: int) -> None:
    check_list("features", features, torch.Tensor)
    check_list("patch_grids", patch_grids)
    if len(features) != len(patch_grids):
        raise ValueError(f"{len(features)} slices of features but {len(patch_grids)} patch grids")
    for i, (feature, grid) in enumerate(zip(features, patch_grids)):
        check_list(f"patch_grids[{i}]", grid, int)
        fits = len(grid) == 2 and min(grid) >= 1 and feature.shape == (grid[0] * grid[1], kv_width)
        if not fits or not feature.is_floating_point():
            raise ValueError(
                f"slice {i}: features must be floating-point numbers (rows * cols, {kv_width}) with (rows, cols) = "
                f"{shown(grid)}, got {shown(tuple(feature.shape))} of {feature.dtype}"
            )
