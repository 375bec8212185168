"""Cambrian-1's Spatial Vision Aggregator (SVA): each query reads its own region in several encoders' features.

Implements the layers in both published forms, the cutting of feature maps into regions, and the masks of padding.
A plain resampler lets every query look everywhere; here a query of an L x L grid sees the r x r patches of its region.
Left out: the encoders, and the extra layers inside the language model (they are these layers again).
B pictures, L queries a side, r_i patches a side of a region in encoder i, D width, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..inputs.checks import LIMITS, check_int, check_list, shown
from .llava import cut_padding, with_newlines
from .shapes import check_tensor


def regions(features: torch.Tensor, queries: int) -> torch.Tensor:
    """Cut a feature map into the regions of its queries.

    Args:
        features: (B, side * side, D), row by row.
        queries: L queries a side; `side` is a multiple of it.

    Returns:
        (B * L * L, r * r, D) with r = side / L: picture by picture, queries row by row, patches row by row.

    Raises:
        TypeError, ValueError: no square map, or one that does not divide.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 16, 1)
        >>> regions(x, queries=2)[1].flatten().tolist()
        [2.0, 3.0, 6.0, 7.0]

    Source: rearrange_vision_tower_features_train in cambrian_arch.py.
    """
    side = math.isqrt(check_tensor("features", features, "B L D", square="L").shape[1])
    if side % check_int("queries", queries):
        raise ValueError(f"features have {side} patches a side, which is no multiple of queries = {queries}")
    return rearrange(features, "b (y r x s) d -> (b y x) (r s) d", y=queries, x=queries, r=side // queries)


def seen_regions(sizes: list[tuple[int, int]], side: int, queries: int) -> torch.Tensor:
    """Which patches of each region show the picture, when pictures stand in the middle of a square that is padded.

    Args:
        sizes: (width, height) of each picture.
        side: of the feature map in patches.
        queries: L queries a side.

    Returns:
        (B * L * L, r * r) bool. A region of padding alone counts as seen in full: softmax needs something to see.

    Raises:
        TypeError, ValueError: no such sizes or numbers.

    Example:
        >>> seen_regions([(40, 20)], side=4, queries=4).reshape(4, 4).int().tolist()  # rows 0 and 3 are reset
        [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
        >>> seen_regions([(40, 20)], side=4, queries=1).int().tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]]

    Source: unmask_attention_mask in cambrian_arch.py.
    """
    maps = []
    if check_int("side", side, most=LIMITS["table_side"]) % check_int("queries", queries):
        raise ValueError(f"side must be a multiple of queries = {queries}, got {side}")
    for size in check_list("sizes", sizes, list, tuple, empty=False):
        rows = torch.arange(side * side).reshape(side, side, 1).double()
        shown_map = torch.zeros(side * side, 1)
        shown_map[cut_padding(rows, size).flatten().long()] = 1
        maps.append(shown_map)
    cut = regions(torch.stack(maps), queries)[..., 0].bool()
    return cut | ~cut.any(dim=1, keepdim=True)


class SVA(nn.Module):
    """Aggregate several encoders' features into L x L tokens, each from its own region.

    One layer, for each query q, with c the mean of the first encoder's tokens, the same for all queries of a picture:

        x = proj_in([q, proj_context(c)])
        x = norm(x + attention(x, the keys of its region in all encoders side by side))
        q = q + mlp(x)

    With separate=True each encoder has an attention of its own, and a softmax over encoders, computed from [q, c],
    weighs their results; where a region is one patch, an MLP takes the attention's place.

    Args:
        width: D, of the queries and of every encoder's projected features.
        blocks: [r_0, r_1, ...], the side of a region in each encoder; [1, 1, 1, 4] in the released 8B.
        layers: how many; they share the query and the features.
        heads: of the attention.
        separate: see above.

    Example:
        >>> sva = SVA(width=32, blocks=[1, 2])
        >>> sva(torch.zeros(32), [torch.zeros(1, 16, 32), torch.zeros(1, 64, 32)]).shape  # 4 x 4 queries
        torch.Size([1, 16, 32])

    Source: VisionTokenSampler in cambrian/model/vision_sampler.py.
    """

    def __init__(self, width: int, blocks: list[int], layers: int = 3, heads: int = 16, separate: bool = False):
        super().__init__()
        self.blocks = [check_int("blocks", block) for block in check_list("blocks", blocks, int, empty=False)]
        if check_int("width", width) % check_int("heads", heads):
            raise ValueError(f"width = {width} must be a multiple of heads = {heads}")
        kind = _SeparateLayer if separate else _JointLayer
        self.layers = nn.ModuleList(kind(width, self.blocks, heads) for _ in range(check_int("layers", layers)))

    def forward(self, query: torch.Tensor, features: list[torch.Tensor], seen: list[torch.Tensor] | None = None):
        """Aggregate.

        Args:
            query: (D,), learned, the same for all places; or (B, L * L, D), the tokens of an earlier layer.
            features: for each encoder (B, (L * r_i)^2, D), row by row.
            seen: for each encoder the mask of `seen_regions`; None sees all.

        Returns:
            (B, L * L, D)

        Raises:
            TypeError, ValueError: features that do not fit `blocks`.
        """
        side = self._queries_a_side(features)
        keys = [regions(feature, side) for feature in features]
        masks = seen or [torch.ones(each.shape[:2], dtype=torch.bool, device=each.device) for each in keys]
        pictures = len(features[0])
        context = features[0].mean(dim=1, keepdim=True).repeat_interleave(side * side, dim=0)  # (B * L * L, 1, D)
        q = query.expand(pictures, side * side, -1) if query.ndim == 1 else query
        q = rearrange(q, "b n d -> (b n) 1 d")
        for layer in self.layers:
            q = layer(q, context, keys, masks)
        return rearrange(q, "(b n) 1 d -> b n d", b=pictures)

    def _queries_a_side(self, features: list[torch.Tensor]) -> int:
        for each in check_list("features", features):
            check_tensor("features", each, "B L D", square="L")
        sides = [math.isqrt(each.shape[1]) / block for each, block in zip(features, self.blocks)]
        one_size = len({(len(each), each.shape[2]) for each in features}) == 1
        if len(features) != len(self.blocks) or len(set(sides)) != 1 or sides[0] % 1 or not one_size:
            raise ValueError(
                f"features must be {len(self.blocks)} maps of one B and D, their sides one number times {self.blocks}, "
                f"got {shown([tuple(each.shape) for each in features])}"
            )
        return int(sides[0])


class _Layer(nn.Module):
    """What both forms share: context in, MLP out, and positions inside regions of more than one patch."""

    def __init__(self, width: int, blocks: list[int]):
        super().__init__()
        self.proj_context = nn.Linear(width, width, bias=False)
        self.proj_in = nn.Linear(2 * width, width, bias=False)
        self.proj_out = _MLP(width, width, width)
        self.norm = nn.LayerNorm(width)
        for number, block in enumerate(blocks):
            if block > 1:
                table = nn.Parameter(torch.randn(block * block, width) * 0.02)
                self.register_parameter(f"pos_embed_{number}", table)

    def forward(self, q, context, keys, masks):
        places = [getattr(self, f"pos_embed_{number}", None) for number in range(len(keys))]
        keys = [each if place is None else each + place for each, place in zip(keys, places)]
        both = torch.cat([q, self.proj_context(context)], dim=-1)  # (N, 1, 2D)
        x = self.proj_in(both)
        return q + self.proj_out(self.norm(x + self.look(x, both, keys, masks)))


class _JointLayer(_Layer):
    def __init__(self, width: int, blocks: list[int], heads: int):
        super().__init__(width, blocks)
        self.cross_attn = _Attention(width, heads, [f"_{number}" for number in range(len(blocks))])

    def look(self, x, both, keys, masks):
        return self.cross_attn(x, keys, masks)


class _SeparateLayer(_Layer):
    def __init__(self, width: int, blocks: list[int], heads: int):
        super().__init__(width, blocks)
        self.weight_mlp = _MLP(2 * width, width, len(blocks))
        for number, block in enumerate(blocks):
            inner = _Attention(width, heads, [""]) if block > 1 else _MLP(width, width, width)
            self.add_module(f"aggregate_{number}", nn.ModuleDict({"attention_layer": inner}))

    def look(self, x, both, keys, masks):
        weights = self.weight_mlp(both).softmax(dim=-1)  # (N, 1, encoders)
        found = []
        for number, (key, mask) in enumerate(zip(keys, masks)):
            inner = getattr(self, f"aggregate_{number}")["attention_layer"]
            found.append(inner(x, [key], [mask]) if isinstance(inner, _Attention) else inner(key))
        return sum(weight * each for weight, each in zip(weights.split(1, dim=-1), found))


class _Attention(nn.Module):
    """Each source has its own key and value projections; all keys stand side by side in one softmax."""

    def __init__(self, width: int, heads: int, sources: list[str]):
        super().__init__()
        self.heads, self.sources = heads, sources
        for name in ["q_proj", *(f"{part}_proj{source}" for source in sources for part in "kv")]:
            self.add_module(name, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False)))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, keys, masks):
        def all_of(part):
            return torch.cat([getattr(self, f"{part}_proj{name}")(key) for name, key in zip(self.sources, keys)], dim=1)

        q, k, v = (
            rearrange(t, "n l (h k) -> n h l k", h=self.heads) for t in (self.q_proj(x), all_of("k"), all_of("v"))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.cat(masks, dim=1)[:, None, None, :])
        return self.o_proj(rearrange(out, "n h l k -> n l (h k)"))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


def tokens_with_newlines(tokens: torch.Tensor, size: tuple[int, int], newline: torch.Tensor) -> torch.Tensor:
    """What the LLM reads at inference: the rows that show the picture, a newline token after each.

    Args:
        tokens: (L * L, D) of one picture.
        size: (width, height) of the picture in pixels.
        newline: (D,), learned.

    Returns:
        (rows' * (cols' + 1), D)

    Raises:
        TypeError, ValueError: no square of tokens, no size.

    Example:
        >>> tokens_with_newlines(torch.zeros(576, 4), (640, 480), torch.zeros(4)).shape
        torch.Size([450, 4])

    Source: prepare_inputs_labels_for_multimodal in cambrian_arch.py.
    """
    side = math.isqrt(len(check_tensor("tokens", tokens, "L D", square="L")))
    return with_newlines(cut_padding(rearrange(tokens, "(r c) d -> r c d", r=side), size), newline)
