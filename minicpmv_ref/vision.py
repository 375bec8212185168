"""A SigLIP-style ViT that reads slices of any shape in one pass, without padding.

The patches of all slices are laid end to end in one long row (NaViT's "patch n' pack"). Everything but attention
works on single patches, so it does not care where a slice ends. Attention runs once for each slice length:
slices of equal length share one call. Left out: dropout (none in any released config), pooling heads.
N patches of all slices together, B slices (overviews, too), L patches of one, D width, H heads, K head width.
Module names give the state-dict keys of MiniCPM-V 2.5 and 2.6, so published weights load as they are.
"""

from __future__ import annotations

from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .config import VisionConfig
from .inputs.checks import check_list, check_type, shown
from .linear import Linear, is_plain, suits_onednn
from .positions import bucket_position_ids, interpolate_position_table


class VisionTransformer(nn.Module):
    """Encode normalized slices of any shape into one feature vector per patch.

    Args:
        cfg: a VisionConfig. `position` chooses how a patch finds its position: "bucket" (2.6), "interpolate" (2.0)
            or "released_2_5", the ids that the released 2.5 code computes: one-dimensional, over the longest slice
            of the list, with padding that takes part in attention. Only there do slices influence each other.

    Example:
        >>> vit = VisionTransformer(VisionConfig(width=32, layers=1, heads=2, mlp_width=48))
        >>> [tuple(f.shape) for f in vit([torch.zeros(3, 28, 42), torch.zeros(3, 14, 14)])]
        [(6, 32), (1, 32)]

    Source: MiniCPM-V 2.6, modeling_navit_siglip.py, SiglipVisionTransformer; 2.0 uses timm's
        vit_so400m_patch14_siglip_384, 2.5 transformers' Idefics2VisionTransformer.
    """

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = check_type("cfg", cfg, VisionConfig)
        self.embeddings = _Embeddings(cfg)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(cfg) for _ in range(cfg.layers))})
        self.post_layernorm = nn.LayerNorm(cfg.width, eps=cfg.eps)
        self.apply(_init_weights)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Encode a list of slices.

        Args:
            images: normalized slices (3, 14 * rows, 14 * cols); shapes may differ.

        Returns:
            For each slice its features (rows * cols, D), row by row.

        Raises:
            TypeError, ValueError: a slice that is no float tensor (3, H, W) with sides that are multiples of the patch.
        """
        images = check_list("images", images, torch.Tensor, what="a slice, which is a tensor (3, H, W)")
        if not images:
            return []
        grids = [self._patch_grid(image) for image in images]
        lengths = [rows * cols for rows, cols in grids]
        if self.cfg.position == "released_2_5":
            return self._like_released_2_5(images, lengths)
        features = [None] * len(images)
        # Measured: a tensor above 32 MB is new memory from the system at each use, which costs a CPU up to a sixth.
        limit = 4096 if images[0].is_cpu and not torch.is_grad_enabled() else sum(lengths)
        for group in self._groups(lengths, limit):
            patches = torch.cat([self._patchify(images[i]) for i in group])
            positions = self.embeddings.positions([grids[i] for i in group])
            for i, feature in zip(group, self._encode(patches, positions, [lengths[i] for i in group])):
                features[i] = feature
        return features

    def _groups(self, lengths: list[int], limit: int) -> list[list[int]]:
        """Which slices share a row: about `limit` patches, equal lengths as neighbors."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        ends = accumulate(lengths[i] for i in order)
        return [[i for i, _ in same] for _, same in groupby(zip(order, ends), lambda pair: pair[1] // (limit + 1))]

    def _encode(self, patches: torch.Tensor, positions: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
        x = self.embeddings.patches(patches) + positions  # (N, D)
        runs = [(length, len(list(same))) for length, same in groupby(lengths)]  # they share an attention call
        for layer in self.encoder["layers"]:
            x = layer(x, runs)
        return self.post_layernorm(x).split(lengths)

    def _patch_grid(self, image: torch.Tensor) -> tuple[int, int]:
        p = self.cfg.patch_size
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape or image.shape[1] % p or image.shape[2] % p:
            raise ValueError(f"a slice must be (3, {p} * rows, {p} * cols), got {shown(tuple(image.shape))}")
        if not image.is_floating_point():
            raise ValueError(f"a slice must hold normalized pixels, which are floating-point, got {image.dtype}")
        return image.shape[1] // p, image.shape[2] // p

    def _patchify(self, image: torch.Tensor) -> torch.Tensor:
        """(3, p * rows, p * cols) -> (rows * cols, 3 * p * p), in the order of the convolution's weights."""
        p = self.cfg.patch_size
        return rearrange(image, "c (r p) (w q) -> (r w) (c p q)", p=p, q=p)

    def _like_released_2_5(self, images: list[torch.Tensor], lengths: list[int]) -> list[torch.Tensor]:
        """The released 2.5 code: black-box faithful, not sensible.

        It pads every slice to the longest with zeros, then fills its mask with `mask[i, :n] = True` on a tensor of
        shape (B, 1, L). That indexes the axis of size 1, so the whole mask is True: padding is attended, and the
        code believes that every slice is one row of L patches. Hence ids floor(70 k / L): one-dimensional.
        2.6 repaired it ("add tgt_sizes").
        """
        longest = max(lengths)
        patches = torch.cat([F.pad(p, (0, 0, 0, longest - len(p))) for p in map(self._patchify, images)])
        positions = self.embeddings.positions([(1, longest)]).repeat(len(images), 1)
        padded = self._encode(patches, positions, [longest] * len(images))
        return [feature[:length] for feature, length in zip(padded, lengths)]


class _Embeddings(nn.Module):
    """A patch becomes a vector: its 3 * 14 * 14 pixels times a matrix, plus its position."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = cfg
        p = cfg.patch_size
        # A convolution by name, because the published weights are stored as one; with stride = kernel it is a matmul.
        self.patch_embedding = nn.Conv2d(3, cfg.width, kernel_size=p, stride=p)
        self.position_embedding = nn.Embedding(cfg.table_side**2, cfg.width)

    def patches(self, patches: torch.Tensor) -> torch.Tensor:
        if is_plain(self.patch_embedding, nn.Conv2d):
            return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        squares = rearrange(patches, "n (c p q) -> n c p q", c=3, p=self.cfg.patch_size)
        return self.patch_embedding(squares).flatten(1)  # (N, D, 1, 1) -> (N, D)

    def positions(self, grids: list[tuple[int, int]]) -> torch.Tensor:
        """(N, D), slice after slice."""
        side, table, device = self.cfg.table_side, self.position_embedding, next(self.parameters()).device
        if self.cfg.position == "interpolate":
            whole = table.weight if is_plain(table, nn.Embedding) else table(torch.arange(side**2, device=device))
            return torch.cat([interpolate_position_table(whole, *grid) for grid in grids])
        # One look-up: each has a gradient as large as the table. Last slice first, as autograd would add up several.
        ids = [bucket_position_ids(*grid, side) for grid in reversed(grids)]
        return torch.cat(table(torch.cat(ids).to(device, non_blocking=True)).split([len(own) for own in ids])[::-1])


class _Layer(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(cfg.width, eps=cfg.eps)
        self.self_attn = _Attention(cfg)
        self.layer_norm2 = nn.LayerNorm(cfg.width, eps=cfg.eps)
        self.mlp = _MLP(cfg)

    def forward(self, x: torch.Tensor, runs: list[tuple[int, int]]) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), runs)
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.heads = cfg.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(cfg.width, cfg.width) for _ in range(4))

    def forward(self, x: torch.Tensor, runs: list[tuple[int, int]]) -> torch.Tensor:
        """x (N, D); `runs` says which neighbors form a slice: [(L, how many slices of that length), ...]."""
        sizes, outs = [length * count for length, count in runs], []
        # Split, never slice: the gradient of each slice would be a tensor of all N patches, nearly all of them zero.
        for (_, count), *qkv in zip(runs, *(proj(x).split(sizes) for proj in (self.q_proj, self.k_proj, self.v_proj))):
            q, k, v = (rearrange(t, "(b l) (h k) -> b h l k", b=count, h=self.heads) for t in qkv)
            out = F.scaled_dot_product_attention(q, k, v)  # no mask: a slice sees itself and nothing else
            outs.append(rearrange(out, "b h l k -> (b l) (h k)"))
        return self.out_proj(torch.cat(outs))


class _MLP(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.fc1 = Linear(cfg.width, cfg.mlp_width)
        self.fc2 = Linear(cfg.mlp_width, cfg.width)
        self.approximate = "tanh" if cfg.act == "gelu_tanh" else "none"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Patches are independent here, so a CPU computes them in chunks: the hidden layer, the widest tensor of the
        # model, then stays in the cache (1.1 times faster) and never exists in full. A GPU wants one big matmul.
        chunks = x.split(1024) if x.is_cpu else [x]
        return torch.cat([self.fc2(self._hidden(chunk)) for chunk in chunks])

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """gelu(fc1(x)); where oneDNN multiplies, it does both in one pass."""
        # The operator is torch's own but private, so it may vanish; the line below it computes the same.
        if _ONE_PASS and is_plain(self.fc1, Linear) and suits_onednn(x, self.fc1.weight):
            return _ONE_PASS(x, self.fc1.weight, self.fc1.bias, "gelu", [], self.approximate)
        return F.gelu(self.fc1(x), approximate=self.approximate)


_ONE_PASS = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
