"""The peers' connectors in nano's size: each stands between nano's ViT and nano's LLM, where the resampler was.

All of them take square views of one size, so a view always becomes the same number of tokens.
B views, L = side * side patches of a view, Q tokens of a view, C width of the ViT, E width of the LLM.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..config import MiniCPMVConfig
from ..inputs.checks import shown
from ..resampler import check_features
from .cambrian import SVA
from .llava import MLP
from .qllama import QLLaMACrossAttention
from .video import pool_frames
from .vila import Projector, downsample


class Connector(nn.Module):
    """What all connectors share: `num_queries`, and the call of the resampler.

    Args:
        config: of the model that it is for.

    A connector defines `tokens`, from the features of views (B, L, C) to their tokens (B, Q, E).
    """

    num_queries: int

    def __init__(self, config: MiniCPMVConfig):
        super().__init__()
        self.width, self.out_width = config.vision.width, config.llm.hidden_size
        self.side = config.slicing.scale_resolution // config.slicing.patch_size

    def forward(self, features: list[torch.Tensor], patch_grids: list[tuple[int, int]]) -> torch.Tensor:
        """Turn the features of square views into tokens.

        Args:
            features: for each view (L, C).
            patch_grids: for each view (side, side).

        Returns:
            Tensor (B, Q, E).

        Raises:
            TypeError, ValueError: views that are no squares of the model's size.
        """
        check_features(features, patch_grids, self.width)
        for number, grid in enumerate(patch_grids):
            if tuple(grid) != (self.side, self.side):
                raise ValueError(
                    f"view {number} has {shown(grid)} patches, but this connector takes {self.side} x {self.side}: "
                    'cut pictures with "square", "padded" or "tiles"'
                )
        if not features:
            return next(self.parameters()).new_empty(0, self.num_queries, self.out_width)
        return self.tokens(torch.stack(features))


class PatchMLP(Connector):
    """LLaVA-1.5: every patch is a token; two linear layers change its width."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        self.num_queries = self.side**2
        self.mlp = MLP(self.width, self.out_width)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


class ShuffleMLP(Connector):
    """InternVL-1.5 and VILA-1.5: 2 x 2 patches side by side, then an MLP."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        self.num_queries = math.ceil(self.side / 2) ** 2
        self.projector = Projector(self.width, self.out_width)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.projector(downsample(x))


class MeanMLP(Connector):
    """The plain alternative to both: the mean of 2 x 2 patches, then an MLP."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        self.num_queries = (self.side // 2) ** 2
        self.mlp = MLP(self.width, self.out_width)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(pool_frames(x))


class SVAConnector(Connector):
    """Cambrian-1: a query for each 2 x 2 patches reads these four, and their mean in place of a coarser encoder."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        self.num_queries = (self.side // 2) ** 2
        self.query = nn.Parameter(torch.randn(self.width) * 0.02)
        self.sva = SVA(self.width, blocks=[1, 2], layers=2, heads=config.vision.heads)
        self.mlp = MLP(self.width, self.out_width)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.sva(self.query, [pool_frames(x), x]))


class QueryTransformer(Connector):
    """InternVL-1.0 in small: two layers in which queries look at each other, then at the picture, then think."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        self.num_queries, heads, width = config.resampler.num_queries, config.llm.num_attention_heads, self.out_width
        self.query = nn.Parameter(torch.randn(self.num_queries, width) * 0.02)
        self.norm1, self.norm2 = (nn.ModuleList(nn.RMSNorm(width) for _ in range(2)) for _ in range(2))
        self.mix = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.read = nn.ModuleList(QLLaMACrossAttention(width, self.width, heads) for _ in range(2))
        self.mlp = nn.ModuleList(MLP(width, width) for _ in range(2))

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        q = self.query.expand(len(x), -1, -1)
        for norm1, mix, read, norm2, mlp in zip(self.norm1, self.mix, self.read, self.norm2, self.mlp):
            normed = norm1(q)
            q = q + mix(normed, normed, normed, need_weights=False)[0]
            q = q + read(q, x)
            q = q + mlp(norm2(q))
        return q


CONNECTORS = {"mlp": PatchMLP, "shuffle": ShuffleMLP, "mean": MeanMLP, "sva": SVAConnector, "qllama": QueryTransformer}
