"""The resampler for inference only, with everything multiplied out that does not depend on the picture.

B slices, L patches of one slice, Q queries, E width of the LLM, C width of the ViT, H heads, K = E / H head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn

from ..inputs.checks import check_type
from ..linear import Linear, is_plain, linear
from ..positions import sincos_2d
from ..resampler import AttentionWeights, Grids, Resampler, check_features, equal_lengths, original_order


def fold(resampler: Resampler) -> FoldedResampler:
    """Multiply out everything in a resampler that does not depend on the picture: same tokens, a fraction of the work.

    The queries never change after training, so most of a resampler is a product of constants. Write W for kv_proj,
    g and b for gain and shift of ln_kv, f for one patch's features (C,), p for its position. Then:

        1. LayerNorm subtracts the mean over the E outputs. That is linear, so it can be done to W beforehand:
           W' = W - column means, and ln_kv(W f) = g * (W' f) / std + b.
        2. std^2 = |W' f|^2 / E + eps = |R f|^2 + eps with R from W' = Q R, divided by sqrt(E): C x C instead of E x C.
        3. A score is q . (Wk (x + p) + bk). Terms without f or p are equal for all patches; softmax ignores them.
           With a = Wk^T q, the "looker", what remains is ((a * g) W') f / std + a . p.
        4. p is separable: half of it depends on the column, half on the row. So a . p needs rows + cols dot
           products instead of rows * cols.
        5. Values are averaged over patches, and averaging is linear: average f / std first (C numbers), then apply
           Wv (g * W') once per query instead of once per patch. What is left, Wv b + bv, only shifts the bias of
           out_proj, because weights sum to 1. Gain and shift of ln_post move into proj in the same way.

    Args:
        resampler: a Resampler on any device, in any dtype.

    Returns:
        A module that is called as the resampler is. It keeps no gradients and does not follow later changes of the
        weights: fold again after training.

    Raises:
        TypeError: no Resampler.
        ValueError: a part of it is wrapped (LoRA, a quantized layer, hooks), so its weights do not say what it does.

    Example:
        >>> from minicpmv_ref import ResamplerConfig
        >>> resampler = Resampler(ResamplerConfig(num_queries=4, width=32, kv_width=24))
        >>> features, grids = [torch.randn(15, 24)], [(3, 5)]
        >>> torch.allclose(fold(resampler)(features, grids), resampler(features, grids), atol=1e-5)
        True

    Source: this project; the function it equals is resampler.py of MiniCPM-V 2.0 and 2.6.
    """
    return FoldedResampler(resampler)


class FoldedResampler(nn.Module):
    """The resampler with its constant parts multiplied out; made by `fold`, for inference only."""

    def __init__(self, resampler: Resampler):
        super().__init__()
        _check_plain(resampler)
        cfg = self.cfg = resampler.cfg
        wide = {name: p.detach().double() for name, p in resampler.named_parameters()}  # fold once, in float64
        norm = {name: (wide[f"{name}.weight"], wide[f"{name}.bias"]) for name in ("ln_q", "ln_kv")}
        (wq, wk, wv), (bq, _, bv) = wide["attn.in_proj_weight"].chunk(3), wide["attn.in_proj_bias"].chunk(3)

        query = F.layer_norm(wide["query"], (cfg.width,), *norm["ln_q"], cfg.eps)
        query = query + wide["pos_embed"] if cfg.version == "2.0" else query
        query = rearrange(query @ wq.T + bq, "q (h k) -> h q k", h=cfg.heads) / math.sqrt(cfg.width // cfg.heads)
        gain, shift = norm["ln_kv"]
        centered = wide["kv_proj.weight"] - wide["kv_proj.weight"].mean(dim=0)  # (E, C)

        looker = einsum(query, rearrange(wk, "(h k) e -> h k e", h=cfg.heads), "h q k, h k e -> h q e")
        reader = rearrange(wv * gain, "(h k) e -> h k e", h=cfg.heads) @ centered
        folded = {
            "looker": rearrange(looker, "h q e -> (h q) e"),  # (H * Q, E), meets the positions
            "look": rearrange((looker * gain) @ centered, "h q c -> (h q) c"),  # (H * Q, C), meets the features
            "spread": torch.linalg.qr(centered).R / math.sqrt(cfg.width),  # (C, C), |spread f| is the std
            "read": reader,  # (H, K, C)
            "mix": wide["attn.out_proj.weight"],
            "mix_bias": wide["attn.out_proj.weight"] @ (wv @ shift + bv) + wide["attn.out_proj.bias"],
            "last": wide["ln_post.weight"][:, None] * wide["proj"],
            "last_bias": wide["ln_post.bias"] @ wide["proj"],
        }
        for name, value in folded.items():
            self.register_buffer(name, value.to(resampler.query.dtype, copy=True))

    @torch.no_grad()
    def forward(self, features: list[torch.Tensor], patch_grids: Grids) -> torch.Tensor:
        """As `Resampler.forward`, without gradients."""
        check_features(features, patch_grids, self.cfg.kv_width)
        if not features:
            return self.last.new_empty(0, self.cfg.num_queries, self.cfg.width)
        groups = equal_lengths(features)
        pooled = []
        for slices in groups:
            f = torch.stack([features[i] for i in slices])  # (b, L, C)
            std = (linear(f, self.spread).float().square().sum(-1, keepdim=True) + self.cfg.eps).sqrt()
            f = f / std.to(f)
            scores = self.look @ f.mT  # (b, H * Q, L)
            scores += torch.stack([self._position_scores(*patch_grids[i]) for i in slices])
            seen = rearrange(scores.softmax(dim=-1) @ f, "b (h q) c -> b h q c", h=self.cfg.heads)
            pooled.append(rearrange(seen @ self.read.mT, "b h q k -> b q (h k)"))
        x = linear(torch.cat(pooled)[original_order(groups)], self.mix, self.mix_bias)
        return F.layer_norm(x, (self.cfg.width,), eps=self.cfg.eps) @ self.last + self.last_bias

    def _position_scores(self, rows: int, cols: int) -> torch.Tensor:
        """looker . position of every patch, (H * Q, L): a sum of a column part and a row part, never all L sines."""
        half = self.cfg.width // 2
        of_col = sincos_2d(2 * half, 1, cols)[0, :, :half].to(self.looker)
        of_row = sincos_2d(2 * half, rows, 1)[:, 0, half:].to(self.looker)
        col_part, row_part = self.looker[:, :half] @ of_col.T, self.looker[:, half:] @ of_row.T
        return rearrange(row_part[:, :, None] + col_part[:, None, :], "n r c -> n (r c)")


def _check_plain(resampler: Resampler) -> None:
    check_type("resampler", resampler, Resampler)
    kinds = (Resampler, Linear, nn.Linear, nn.LayerNorm, AttentionWeights)
    for name, module in resampler.named_modules(prefix="resampler"):
        if not any(is_plain(module, kind) for kind in kinds):
            kind = type(module).__name__
            raise ValueError(f"{name} is wrapped ({kind}, or hooks): merge or remove the wrapper before you fold")
