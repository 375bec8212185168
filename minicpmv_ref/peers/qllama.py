"""InternVL-1.0: 96 learned queries in front of a LLaMA, which read the picture in every second layer.

Implements the cross-attention of these layers, and the second stage of training: three tasks in one forward pass, each
with its own mask and loss. Left out: the ViT (3,200 wide) and LLaMA itself.
B samples, L patches, Q queries, T text tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..inputs.checks import LIMITS, check_choice, check_int
from .shapes import check_tensor

TASKS = ("itm", "itc", "itg")


class QLLaMACrossAttention(nn.Module):
    """The layer through which QLLaMA's queries read a picture: a cross-attention between two RMSNorms, without biases.

    Args:
        width: of LLaMA.
        kv_width: of the ViT.
        heads: of the attention.
        eps: of both norms.

    Example:
        >>> layer = QLLaMACrossAttention(width=8, kv_width=6, heads=2)
        >>> layer(torch.zeros(1, 96, 8), torch.zeros(1, 10, 6)).shape
        torch.Size([1, 96, 8])

    Source: LlamaCrossAttention in modeling_qllama.py of InternVL-1.0; in every second layer, after self-attention.
    """

    def __init__(self, width: int, kv_width: int, heads: int, eps: float = 1e-6):
        super().__init__()
        if check_int("width", width) % check_int("heads", heads):
            raise ValueError(f"width = {width} must be a multiple of heads = {heads}")
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=eps), nn.RMSNorm(kv_width, eps=eps)
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(kv_width, width, bias=False) for _ in range(2))

    def forward(self, hidden: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """hidden (B, Q, width) of the queries, vision (B, L, kv_width) -> (B, Q, width), to be added to hidden."""
        vision = self.norm2(vision)
        q, k, v = self.q_proj(self.norm1(hidden)), self.k_proj(vision), self.v_proj(vision)
        q, k, v = (rearrange(t, "b l (h k) -> b h l k", h=self.heads) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(rearrange(out, "b h l k -> b l (h k)"))


def stage2_mask(task: str, num_queries: int, text: torch.Tensor) -> torch.Tensor:
    """Who may look where: the three tasks of the second stage differ in nothing else before their losses.

    "itm" (do picture and text match?): queries and text see each other. "itc" (contrast): they do not, so each side has
    a vector of its own; text looks back only. "itg" (write the caption): as "itc", but text also sees all queries.

    Args:
        task: "itm", "itc" or "itg".
        num_queries: Q; the queries stand before the text.
        text: (B, T), nonzero where a text token is real, zero where it is padding, which nobody sees.

    Returns:
        (B, Q + T, Q + T), True where the row's token may look at the column's.

    Raises:
        TypeError, ValueError: an unknown task, no query, text of another shape.

    Example:
        >>> stage2_mask("itg", 1, torch.tensor([[1, 1]]))[0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]

    Source: _prepare_attention_mask in internvl_stage2/modeling_internvl.py of InternVL-1.0.
    """
    check_choice("task", task, TASKS)
    check_int("num_queries", num_queries, most=LIMITS["num_queries"])
    if isinstance(text, torch.Tensor) and text.dtype == torch.bool:
        text = text.long()
    check_tensor("text", text, "B T", integer=True)
    real = F.pad(text.bool(), (num_queries, 0), value=True)[:, None, :]  # (B, 1, Q + T)
    place = torch.arange(real.shape[-1], device=text.device)
    row, col = place[:, None], place[None, :]
    from_query, to_query, causal = row < num_queries, col < num_queries, col <= row
    allowed = {
        "itm": from_query | ~from_query,
        "itc": (from_query & to_query) | (~from_query & ~to_query & causal),
        "itg": to_query | (~from_query & causal),
    }
    return allowed[task] & real


class AttentionPooling(nn.Module):
    """One vector of all queries: their mean asks, all of them answer.

    Args:
        width: of the queries.
        out_width: of the vector.
        heads: of the attention.

    Example:
        >>> AttentionPooling(width=8, out_width=5, heads=2)(torch.zeros(4, 3, 8)).shape
        torch.Size([4, 5])

    Source: AttentionPoolingBlock in modeling_intern_vit.py of InternVL-1.0 ("clip_projector2").
    """

    def __init__(self, width: int, out_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.cross_attn = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in "qkv"})
        for name in "qkv":
            self.cross_attn.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))
        self.cross_attn["proj"] = nn.Linear(width, out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, Q, width) -> (B, out_width)"""
        asking, part = x.mean(dim=1, keepdim=True), self.cross_attn
        q = part["q"](self.norm1_q(asking)) + part.q_bias
        k, v = part["k"](self.norm1_k(x)) + part.k_bias, part["v"](self.norm1_v(x)) + part.v_bias
        q, k, v = (rearrange(t, "b l (h k) -> b h l k", h=self.heads) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return part["proj"](rearrange(out, "b h 1 k -> b (h k)"))


def matching_loss(queries: torch.Tensor, matches: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """ITM: every query votes whether picture and text belong together, and the votes are averaged.

    Args:
        queries: (B, Q, D), outputs under the "itm" mask.
        matches: (B,), 1 where they do, 0 where the text is another picture's.
        head: from D to 2.

    Returns:
        The mean cross-entropy, a scalar.

    Example:
        >>> matching_loss(torch.zeros(2, 3, 4), torch.tensor([0, 1]), nn.Linear(4, 2, bias=False)).item()
        0.6931471824645996

    Source: forward in internvl_stage2/modeling_internvl.py of InternVL-1.0.
    """
    return F.cross_entropy(head(queries).mean(dim=1), matches)


def contrast_loss(images: torch.Tensor, texts: torch.Tensor, scale: float, smoothing: float = 0.0) -> torch.Tensor:
    """ITC: each picture must find its text among all texts of the batch, and each text its picture.

    Args:
        images: (B, D), from AttentionPooling over the queries under the "itc" mask.
        texts: (B, D), the last real text token's output, projected.
        scale: the cosine of two vectors is multiplied by it; learned.
        smoothing: share of the target that is given to all texts alike.

    Returns:
        The mean of both cross-entropies, a scalar.

    Example:
        >>> contrast_loss(torch.eye(2), torch.eye(2), scale=100.0).item() < 1e-6
        True

    Source: forward in internvl_stage2/modeling_internvl.py of InternVL-1.0; one process here, so no gathering.
    """
    cosines = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(cosines), device=cosines.device)
    return sum(F.cross_entropy(each, own, label_smoothing=smoothing) for each in (cosines, cosines.T)) / 2


def caption_loss(text: torch.Tensor, labels: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """ITG: each text token's output must say the next token; the first one is not asked for.

    Args:
        text: (B, T, D), outputs of the text under the "itg" mask.
        labels: (B, T), the same tokens, not shifted, and -100 for padding.
        head: from D to the vocabulary.

    Returns:
        The mean cross-entropy over all supervised tokens, a scalar.

    Example:
        >>> caption_loss(torch.zeros(1, 3, 4), torch.tensor([[1, 0, -100]]), nn.Linear(4, 2, bias=False)).item()
        0.6931471824645996

    Source: forward in internvl_stage2/modeling_internvl.py of InternVL-1.0.
    """
    return F.cross_entropy(head(text[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
