"""CogVLM2: the language model keeps its weights, and image tokens get a second set of them in every layer.

Implements the mask that says which token uses which expert, the position ids in which all tokens of an image share one
position, the decoder layer with two experts and one attention, and the convolution and gated MLP between ViT and LLM.
Left out: the ViT (EVA2-CLIP-E) and loading the released 19B model.
B samples, T tokens, D width, H heads, G key-value heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from ..inputs.checks import check_int, check_type, shown
from .shapes import check_tensor

LANGUAGE, VISION = 0, 1  # types; an image is boi, its tokens and eoi, all of type VISION; padding is -1


def expert_mask(types: torch.Tensor) -> torch.Tensor:
    """Which tokens use the vision expert: those of type vision whose next token is of type vision, too.

    So the last one of an image, eoi, uses the language expert: its output predicts the first token of the text. The
    last token of the row has no next one and always uses the language expert.

    Args:
        types: (B, T), 0 for language, 1 for vision, -1 for padding.

    Returns:
        (B, T) bool.

    Raises:
        TypeError, ValueError: no tensor of such types.

    Example:
        >>> expert_mask(torch.tensor([[0, 1, 1, 1, 1, 0]])).int().tolist()  # BOS, boi, two patches, eoi, text
        [[0, 1, 1, 1, 0, 0]]

    Source: get_expert_mask in modeling_cogvlm.py of cogvlm2-llama3-chat-19B.
    """
    vision = _check_types(types) == VISION
    return vision & F.pad(vision[:, 1:], (0, 1))


def expert_position_ids(types: torch.Tensor) -> torch.Tensor:
    """Rotary positions in which all tokens of an image between boi and eoi share one position.

    A position is counted at every language token and at the first token of each image after boi; boi and eoi count as
    language. So 2,304 image tokens cost one position. Padding counts nothing, and the row's first token has 0.

    Args:
        types: (B, T), 0 for language, 1 for vision, -1 for padding.

    Returns:
        (B, T) LongTensor.

    Raises:
        TypeError, ValueError: no tensor of such types.

    Example:
        >>> expert_position_ids(torch.tensor([[0, 1, 1, 1, 1, 0]])).tolist()
        [[0, 1, 2, 2, 3, 4]]

    Source: build_position_ids in modeling_cogvlm.py of cogvlm2-llama3-chat-19B.
    """
    vision = _check_types(types) == VISION
    before, after = F.pad(vision[:, :-1], (1, 0)), F.pad(vision[:, 1:], (0, 1))
    inner = vision & before & after  # neither boi nor eoi
    first = inner & ~F.pad(inner[:, :-1], (1, 0))
    counts = (types == LANGUAGE) | (vision & ~inner) | first
    return F.pad(counts[:, 1:], (1, 0)).long().cumsum(dim=1)  # the row's first token has 0, whatever it is


class VisualExpertLayer(nn.Module):
    """A decoder layer in which every token goes through one of two sets of weights, and all meet in one attention.

    Doubled are the projections to queries, keys and values, the output projection and the MLP. The norms are shared.
    If only the vision expert is trained, text without an image is computed exactly as before.

    Args:
        width: of the LLM.
        mlp_width: of each MLP.
        heads, kv_heads: of queries; of keys and values.
        eps: of the norms.
        rope_base: of the rotary positions.

    Example:
        >>> layer, types = VisualExpertLayer(16, 24, heads=4, kv_heads=2), torch.tensor([[0, 1, 1, 1, 0]])
        >>> layer(torch.zeros(1, 5, 16), expert_mask(types), expert_position_ids(types))[0].shape
        torch.Size([1, 5, 16])

    Source: CogVLMDecoderLayer in modeling_cogvlm.py of cogvlm2-llama3-chat-19B.
    """

    def __init__(self, width, mlp_width, heads, kv_heads, eps: float = 1e-5, rope_base: float = 500000.0):
        super().__init__()
        if check_int("width", width) % check_int("heads", heads) or heads % check_int("kv_heads", kv_heads):
            raise ValueError(f"width {width} must divide into {heads} heads, and those into {kv_heads} key-value heads")
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, eps=eps) for _ in range(2))
        self.self_attn = _Attention(width, heads, kv_heads, rope_base)
        self.mlp = nn.ModuleDict({f"{name}_mlp": _MLP(width, mlp_width) for name in ("vision", "language")})

    def forward(self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past=None, there=None):
        """One layer.

        Args:
            x: (B, T, D).
            mask: (B, T), True where the vision expert is used: `expert_mask`.
            positions: (B, T): `expert_position_ids`.
            past: the keys and values that the layer returned for the tokens before, or None.
            there: (B, all tokens so far), False for padding, at which nobody looks; None: there is none.

        Returns:
            (B, T, D), and the keys and values of all tokens so far.
        """
        seen, past = self.self_attn(self.input_layernorm(x), mask, positions, past, there)
        x = x + seen
        return x + self.experts(self.post_attention_layernorm(x), mask), past

    def experts(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The two MLPs: x (B, T, D), mask (B, T) -> (B, T, D)"""
        return by_expert(x, mask, self.mlp["vision_mlp"], self.mlp["language_mlp"])


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, rope_base: float):
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.rope_base = heads, kv_heads, width // heads, rope_base
        fused = (heads + 2 * kv_heads) * self.head_width  # queries, keys and values in one matrix
        self.vision_expert_query_key_value = nn.Linear(width, fused, bias=True)
        self.vision_expert_dense = nn.Linear(width, width, bias=False)
        self.language_expert_query_key_value = nn.Linear(width, fused, bias=False)
        self.language_expert_dense = nn.Linear(width, width, bias=False)

    def forward(self, x, mask, positions, past, there=None):
        fused = by_expert(x, mask, self.vision_expert_query_key_value, self.language_expert_query_key_value)
        fused = rearrange(fused, "b t (h k) -> b h t k", k=self.head_width)
        q, k, v = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = (_rotate(t, positions, self.rope_base) for t in (q, k))
        if past is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(past, (k, v)))
        every = [repeat(t, "b g t k -> b (g n) t k", n=self.heads // self.kv_heads) for t in (k, v)]
        # Causal over the order of the tokens, not over their positions: image tokens that share one do not see ahead.
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - q.shape[2])
        causal = causal if there is None else causal & there[:, None, None]
        out = F.scaled_dot_product_attention(q, *every, attn_mask=causal)
        out = rearrange(out, "b h t k -> b t (h k)")
        return by_expert(out, mask, self.vision_expert_dense, self.language_expert_dense), (k, v)


class _MLP(nn.Module):
    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, mlp_width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Adapter(nn.Module):
    """From the ViT's patches to the LLM's tokens: a convolution over 2 x 2 patches, a gated MLP, then boi and eoi.

    Args:
        kv_width: of the ViT.
        width: of the LLM.
        mlp_width: of the gated MLP.

    Example:
        >>> Adapter(kv_width=8, width=16, mlp_width=24)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 6, 16])

    Source: EVA2CLIPModel and GLU in visual.py of cogvlm2-llama3-chat-19B.
    """

    def __init__(self, kv_width: int, width: int, mlp_width: int):
        super().__init__()
        self.conv = nn.Conv2d(kv_width, kv_width, kernel_size=2, stride=2)
        wide = {
            "dense_h_to_4h": (width, mlp_width),
            "gate_proj": (width, mlp_width),
            "dense_4h_to_h": (mlp_width, width),
        }
        linears = {name: nn.Linear(*sizes, bias=False) for name, sizes in wide.items()}
        first = nn.Linear(kv_width, width, bias=False)
        self.linear_proj = nn.ModuleDict({"linear_proj": first, "norm1": nn.LayerNorm(width), **linears})
        self.boi, self.eoi = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (B, side * side, kv_width), without CLS, side even -> (B, 1 + (side / 2)^2 + 1, width)"""
        side = math.isqrt(check_tensor("features", features, "B L C", square="L").shape[1])
        if side % 2 or features.shape[2] != self.conv.in_channels:
            raise ValueError(
                f"features must be (B, side * side, {self.conv.in_channels}) with an even side, got "
                f"{shown(tuple(features.shape))}"
            )
        x = self.conv(rearrange(features, "b (r c) d -> b d r c", r=side))
        x = self.gated(rearrange(x, "b d r c -> b (r c) d"))
        return torch.cat([self.boi.expand(len(x), -1, -1), x, self.eoi.expand(len(x), -1, -1)], dim=1)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        part = self.linear_proj
        x = F.gelu(part["norm1"](part["linear_proj"](x)))
        return part["dense_4h_to_h"](F.silu(part["gate_proj"](x)) * part["dense_h_to_4h"](x))


def by_expert(x: torch.Tensor, mask: torch.Tensor, vision: Callable, language: Callable) -> torch.Tensor:
    """Send each token through its expert; neither computes the other's tokens: x (B, T, D), mask (B, T)"""
    if check_type("mask", mask, torch.Tensor).dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(  # a mask of 0 and 1 would choose the tokens number 0 and 1
            f"mask must be True and False for each of {shown(tuple(x.shape[:2]))} tokens, as expert_mask gives, got "
            f"{shown(tuple(mask.shape))} of {mask.dtype}"
        )
    flat, seen = x.flatten(0, 1), mask.flatten()
    parts = [vision(flat[seen]), language(flat[~seen])]
    out = parts[0].new_empty(len(flat), parts[0].shape[-1])  # the dtype of autocast, if it is on
    out[seen], out[~seen] = parts[0], parts[1]
    return rearrange(out, "(b t) d -> b t d", b=len(x))


def _rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions on halves: x (B, H, T, K), positions (B, T)."""
    width = x.shape[-1]
    frequencies = 1 / base ** (torch.arange(0, width, 2, dtype=torch.float32, device=x.device) / width)
    angles = positions[:, None, :, None] * frequencies  # (B, 1, T, K / 2)
    cos, sin, (left, right) = angles.cos().to(x), angles.sin().to(x), x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def _check_types(types: torch.Tensor) -> torch.Tensor:
    check_tensor("types", types, "B T", integer=True)
    if not ((types >= -1) & (types <= 1)).all():
        raise ValueError(
            f"types must be (B, T) of 0 (language), 1 (vision) and -1 (padding), got {shown(types.tolist())}"
        )
    return types
