"""Causal attention inside samples, forward and backward in bfloat16: ours, and three ways to have it otherwise.

Ours: samples stand end to end, and neighbors of equal length share one SDPA call. The peers: SDPA on padded samples;
torch's varlen_attn; flash_attn's flash_attn_varlen_func. 16 heads of 64, 4 of keys and values.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, groupby
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange

from experiments._fair import assert_same_training
from minicpmv_ref.learn.packing import packed_attention

HEADS, GROUPS, WIDTH = 16, 4, 64
PEERS = ("padded SDPA", "varlen_attn", "flash_attn")


def attention(lengths: list[int], peer: str, device) -> dict:
    """Calls of "ours" and of a peer, whose results and gradients were equal. ImportError where a peer is missing."""
    options = dict(device=device, dtype=torch.bfloat16)
    flat = [torch.randn(sum(lengths), h, WIDTH, **options).requires_grad_() for h in (HEADS, GROUPS, GROUPS)]
    if peer == "padded SDPA":
        real = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)  # (S, T)
        leaves = [torch.zeros(*real.shape, *x.shape[1:], **options) for x in flat]
        leaves = [y.masked_scatter(real[..., None, None], x.detach()).requires_grad_() for y, x in zip(leaves, flat)]
        theirs = partial(trained, padded, leaves, real[..., None, None])
    else:
        real, leaves = slice(None), flat
        theirs = partial(trained, varlen(peer, lengths, device), leaves)
    calls = {"ours": partial(trained, packed(lengths), flat), peer: theirs}
    found = {"ours": (calls["ours"]().item(), torch.cat([x.grad.flatten().float() for x in flat]))}
    found[peer] = theirs().item(), torch.cat([x.grad[real].flatten().float() for x in leaves])
    assert_same_training(found, 1e-2, 5e-2)  # bfloat16
    return calls


def trained(attend, leaves: list, real=1) -> torch.Tensor:
    """The sum of the squared results, of real tokens only, and its gradient in the leaves."""
    for leaf in leaves:
        leaf.grad = None
    loss = (attend(*leaves).float() * real).square().sum()
    loss.backward()
    return loss


def packed(lengths: list[int]):
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    layer = SimpleNamespace(num_key_value_groups=HEADS // GROUPS)
    return lambda *qkv: packed_attention(layer, *(rearrange(x, "n h k -> 1 h n k") for x in qkv), None, runs=runs)[0][0]


def padded(*qkv):
    """A causal token never looks at padding on its right, so this needs no mask."""
    q, k, v = (rearrange(x, "s t h k -> s h t k") for x in qkv)
    return rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), "s h t k -> s t h k")


def varlen(peer: str, lengths: list[int], device):
    if peer == "varlen_attn":
        from torch.nn.attention.varlen import varlen_attn as attend

        options = dict(window_size=(-1, 0), enable_gqa=True)
    else:
        from flash_attn import flash_attn_varlen_func as attend

        options = dict(causal=True)
    edges = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return lambda *qkv: attend(*qkv, edges, edges, max(lengths), max(lengths), **options)
