"""What later versions of MiniCPM-V changed between the ViT and the language model.

4.5: the 3-D resampler, in which up to six frames of a video share 64 tokens. 4.6: two mergers in the resampler's place,
the first in the middle of the ViT, so that most of its layers see a quarter of the patches.
B views, L patches, G groups of frames, Q queries, C width of the ViT, E width of the LLM.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import ResamplerConfig
from ..inputs.checks import check_choice, check_int, check_list
from ..resampler import Resampler, check_features

TIMES = 72_000  # rows of the released table of times: two hours in steps of 0.1 s


class Resampler3D(Resampler):
    """The resampler of 4.5: 2.6's, but the queries read all frames of a group at once.

    A key is ln_kv(kv_proj(features)) + position in the picture + position in time; a value has neither. The frames of a
    group stand side by side along the keys, and one cross-attention turns them into `num_queries` tokens. Weights and
    their names are those of 2.6.

    Args:
        cfg: a ResamplerConfig of version "2.6".

    Raises:
        TypeError, ValueError: no ResamplerConfig; one of another version.

    Example:
        >>> from minicpmv_ref import ResamplerConfig
        >>> resampler = Resampler3D(ResamplerConfig(num_queries=4, width=32, kv_width=24))
        >>> frames, grids = [torch.zeros(6, 24)] * 4, [(2, 3)] * 4
        >>> resampler(frames, grids, [[-1], [2, 6, 9]]).shape  # a picture, and three frames in one group
        torch.Size([2, 4, 32])

    Source: resampler.py of MiniCPM-V 4.5, the form of batch_3d_resampler: true.
    """

    def __init__(self, cfg: ResamplerConfig):
        super().__init__(cfg)
        check_choice("cfg.version", cfg.version, ("2.6",))

    def forward(self, features, patch_grids, temporal_ids: list[list[int]] | None = None) -> torch.Tensor:
        """Resample pictures and groups of frames.

        Args:
            features: for each frame its patch features (L, C), group after group.
            patch_grids: for each frame its (rows, cols).
            temporal_ids: for each group the times of its frames in steps of 0.1 s; -1 is a picture without a time.
                None: every entry is a picture.

        Returns:
            Tensor (G, Q, E).

        Raises:
            TypeError: no lists of such things.
            ValueError: lists that do not fit each other; a time outside -1 to 71,999.
        """
        if temporal_ids is None:
            return super().forward(features, patch_grids)
        check_features(features, patch_grids, self.cfg.kv_width)
        groups = [
            check_list("a group of temporal_ids", group, empty=False)
            for group in check_list("temporal_ids", temporal_ids)
        ]
        times = [check_int("a temporal id", time, least=-1, most=TIMES - 1) for group in groups for time in group]
        if len(times) != len(features):
            raise ValueError(f"temporal_ids has {len(times)} times, but there are {len(features)} frames of features")
        if not groups:
            return self.query.new_empty(0, *self.query.shape)
        q, pooled, start = self._queries(), [], 0
        for group in groups:
            frames = range(start, start := start + len(group))
            parts = [self._frame(i, features, patch_grids, times[i]) for i in frames]
            keys, values = (torch.cat(each, dim=2) for each in zip(*parts))
            out = F.scaled_dot_product_attention(q[None], keys, values)
            pooled.append(rearrange(out, "1 h q k -> q (h k)"))
        return self._finish(torch.stack(pooled))

    def _frame(self, i: int, features, patch_grids, time: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (1, H, L, K) of one frame: its time adds one constant to all its keys."""
        keys, values = self._keys_values([i], features, patch_grids)
        if time < 0:
            return keys, values
        weight, _ = self.attn.part("k")
        constant = F.linear(time_embedding(self.cfg.width, time).to(keys), weight)
        return keys + rearrange(constant, "(h k) -> 1 h 1 k", h=self.cfg.heads), values


def time_embedding(width: int, time: int) -> torch.Tensor:
    """Fixed 1-D sine-cosine position of a time: sines in the first half of the channels, cosines in the second.

    Args:
        width: channels, an even number.
        time: in steps of 0.1 s.

    Returns:
        Tensor (width,), float32.

    Raises:
        TypeError, ValueError: no such numbers.

    Example:
        >>> time_embedding(4, 1)
        tensor([0.8415, 0.0100, 0.5403, 0.9999])

    Source: get_1d_sincos_pos_embed_from_temporal_size in resampler.py of MiniCPM-V 4.5, float32 in numpy as released.
    """
    if check_int("width", width) % 2:
        raise ValueError(f"width must be even, got {width}")
    half = width // 2
    frequency = 1.0 / 10000 ** (np.arange(half, dtype=np.float32) / half)
    angle = np.float32(check_int("time", time, least=0, most=TIMES - 1)) * frequency
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)]))


class WindowMerger(nn.Module):
    """The merger in the middle of 4.6's ViT: attention inside each 2 x 2 window, then four patches become one.

    x = x + attention(layer_norm1(x)) inside the window; out = mlp(the four side by side) + their mean. It stands after
    the ViT's seventh layer; the other twenty layers see a quarter of the patches.

    Args:
        width: C, of the ViT.
        heads: of the attention.
        mlp_width: of the ViT's own MLPs; the merger's is four times as wide.
        eps: of the norms.

    Example:
        >>> WindowMerger(width=8, heads=2, mlp_width=12)([torch.zeros(24, 8)], [(4, 6)])[0].shape
        torch.Size([6, 8])

    Source: MiniCPMV4_6ViTWindowAttentionMerger in transformers.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, eps: float = 1e-6):
        super().__init__()
        if check_int("width", width) % check_int("heads", heads):
            raise ValueError(f"width = {width} must be a multiple of heads = {heads}")
        self.self_attn = _WindowAttention(width, heads)
        self.layer_norm1, self.pre_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(4 * width, eps=eps)
        self.linear_1, self.linear_2 = nn.Linear(4 * width, 4 * mlp_width), nn.Linear(4 * mlp_width, width)

    def forward(self, features: list[torch.Tensor], patch_grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Merge the patches of each view.

        Args:
            features: for each view its patches (rows * cols, C).
            patch_grids: for each view its (rows, cols), even numbers.

        Returns:
            For each view (rows / 2 * cols / 2, C).

        Raises:
            TypeError, ValueError: features and grids that do not fit; an odd number.
        """
        merged = []
        for windows in _windows(features, patch_grids, self.linear_2.out_features):  # (N, 4, C)
            x = windows + self.self_attn(self.layer_norm1(windows))
            hidden = F.gelu(self.linear_1(self.pre_norm(x.flatten(1))), approximate="tanh")
            merged.append(self.linear_2(hidden) + x.mean(dim=1))
        return merged


class Merger(nn.Module):
    """The merger after 4.6's ViT, where the resampler was: 2 x 2 patches side by side, then an MLP to the LLM's width.

    Args:
        width: C, of the ViT.
        out_width: E, of the LLM.

    Example:
        >>> Merger(width=8, out_width=16)([torch.zeros(24, 8)], [(4, 6)])[0].shape
        torch.Size([6, 16])

    Source: MiniCPMV4_6Merger in transformers, with merger_times = 1.
    """

    def __init__(self, width: int, out_width: int):
        super().__init__()
        wide = 4 * check_int("width", width)
        mlp = {"pre_norm": nn.LayerNorm(wide, eps=1e-6), "linear_1": nn.Linear(wide, wide)}
        self.mlp = nn.ModuleList(
            [nn.ModuleDict({**mlp, "linear_2": nn.Linear(wide, check_int("out_width", out_width))})]
        )

    def forward(self, features: list[torch.Tensor], patch_grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        """As `WindowMerger.forward`, to width E."""
        part = self.mlp[0]
        windows = _windows(features, patch_grids, part["linear_1"].in_features // 4)
        wide = [part["pre_norm"](each.flatten(1)) for each in windows]
        return [part["linear_2"](F.gelu(part["linear_1"](x))) for x in wide]


class _WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            rearrange(p(x), "n l (h k) -> n h l k", h=self.heads) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n h l k -> n l (h k)"))


def _windows(features, patch_grids, width: int) -> list[torch.Tensor]:
    """For each view its 2 x 2 windows (N, 4, C), row by row."""
    check_features(features, patch_grids, width)
    windows = []
    for feature, (rows, cols) in zip(features, patch_grids):
        if rows % 2 or cols % 2:
            raise ValueError(f"patch_grids must have even rows and cols, got {rows} x {cols}")
        windows.append(rearrange(feature, "(r p c q) d -> (r c) (p q) d", r=rows // 2, p=2, q=2))
    return windows
