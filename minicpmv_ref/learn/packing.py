"""Packing: several samples share one row, and the result is that of each sample alone.

A padded batch is as wide as its longest sample; the rest is padding. Here samples stand end to end in rows of a fixed
capacity. Three things keep them apart: attention stops at the borders, positions restart, and the first token of a
sample is never predicted from the sample before. Loss and gradients are those of the separate samples.
Left out: the paper's own code (never published), packing across devices, generation from packed rows.
S samples, R rows, T tokens of a row, N = R * T tokens of all rows, V vocabulary, H heads, K head width.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import index
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..inputs.checks import WrongType, check_int, check_list, check_type, shown
from ..model import MiniCPMV, Output
from ..processor import Batch
from ..slicing import SlicePlan

# ---- 1. Which samples share a row


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Plan rows by best-fit decreasing: the longest sample first, each into the fullest row that still takes it.

    Takes O(n log n): rows with equal room are interchangeable, so only the different rooms are searched.

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a row.

    Returns:
        For each row the indices of its samples, longest first. Shuffle the rows before training: the long samples are
        in the first ones.

    Raises:
        TypeError, ValueError: no integers, or below 1; a length over the capacity (`pack_truncate` cuts those).

    Example:
        >>> pack([3, 9, 2, 6, 4, 6], capacity=12)  # 30 tokens need at least three rows
        [[1, 0], [3, 5], [4, 2]]

    Source: Johnson, Near-optimal bin packing algorithms (1973): at most 11/9 of the fewest possible rows, plus 4.
    """
    lengths, capacity = _check_lengths(lengths, capacity, fits=True)
    rows, rooms, rows_with = [], [], {}  # rooms: sorted, each once; rows_with[room]: the rows that have it
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(rooms, lengths[i])  # the smallest room that is large enough
        if place == len(rooms):
            row, room = [], capacity
            rows.append(row)
        else:
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[place]
        row.append(i)
        room -= lengths[i]
        if room and room not in rows_with:
            rows_with[room] = []
            insort(rooms, room)
        if room:
            rows_with[room].append(row)
    return rows


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Plan rows by first fit: samples in the order given, each into the first row that still takes it.

    Needs more padding than `pack`, but not all data before it begins. Arguments and errors are those of `pack`.

    Returns:
        For each row the indices of its samples, increasing.

    Example:
        >>> first_fit([3, 9, 2, 6, 4, 6], capacity=10)
        [[0, 2, 4], [1], [3], [5]]

    Source: Dosa and Sgall, First fit bin packing: a tight analysis (2013): at most 1.7 times the fewest possible rows.
    """
    lengths, capacity = _check_lengths(lengths, capacity, fits=True)
    # A tournament: the leaves are the rooms of all rows, of which there are as many as samples at most, and every
    # node holds the larger of its two children. So the first row with enough room is found from the root down.
    size = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * size)
    rows = [[] for _ in lengths]
    for i, length in enumerate(lengths):
        node = 1
        while node < size:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[node - size].append(i)
        room[node] -= length
        while node := node // 2:
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [row for row in rows if row]


class TruncatedRows(NamedTuple):
    """What `pack_truncate` keeps and what it loses."""

    rows: list[list[tuple[int, int]]]  # (index, kept tokens) of each sample
    lost: int  # tokens that are in no row
    dropped: list[int]  # samples that are in no row


def pack_truncate(lengths: Sequence[int], capacity: int, shortest: Sequence[int] | None = None) -> TruncatedRows:
    """Plan rows by the paper's rule: samples in their order, and the end of the last one is cut off to fit.

    Nearly all rows are full, but tokens are lost. A sample is never cut below its `shortest`: then it opens the next
    row instead, and if even an empty row is too small, it is dropped.

    Args:
        lengths, capacity: as for `pack`, but a length may exceed the capacity.
        shortest: how many of its first tokens a sample needs to make sense, see `shortest_cuts`; None means 1.

    Raises:
        TypeError, ValueError: no integers, or below 1; not one `shortest` for each sample.

    Example:
        >>> pack_truncate([3, 9, 2, 6, 4, 6], capacity=10)
        TruncatedRows(rows=[[(0, 3), (1, 7)], [(2, 2), (3, 6), (4, 2)], [(5, 6)]], lost=4, dropped=[])

    Source: paper section 4.1, data packing: "truncating the last sample".
    """
    lengths, capacity = _check_lengths(lengths, capacity, fits=False)
    shortest = [1] * len(lengths) if shortest is None else _integers("shortest", shortest)
    if len(shortest) != len(lengths):
        raise ValueError(f"there are {len(lengths)} lengths, but shortest has {len(shortest)} entries")
    rows, lost, dropped, room = [], 0, [], 0
    for i, length in enumerate(lengths):
        need = min(length, max(1, shortest[i]))
        if need > capacity:
            dropped.append(i)
            lost += length
            continue
        if need > room:
            rows.append([])
            room = capacity
        kept = min(length, room)
        rows[-1].append((i, kept))
        room -= kept
        lost += length - kept
    return TruncatedRows(rows, lost, dropped)


def _check_lengths(lengths: Sequence[int], capacity: int, fits: bool) -> tuple[list[int], int]:
    lengths, (capacity,) = _integers("lengths", lengths), _integers("capacity", [capacity])
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {shown(capacity)}")
    for i, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"sample {i} has {shown(length)} tokens; every sample needs at least 1")
        if fits and length > capacity:
            sizes = f"{shown(length)} tokens, but a row takes {shown(capacity)}"
            raise ValueError(f"sample {i} has {sizes}; pack_truncate cuts samples")
    return lengths, capacity


def _integers(name: str, values: Iterable) -> list[int]:
    """The values as ints. Sets and dicts have no order, and True is no length."""
    if not isinstance(values, Iterable) or isinstance(values, Mapping | Set | str | bytes):
        raise WrongType(f"{name} must be integers in a list, got {type(values).__name__}: {shown(values)}")
    try:
        return [_index(value) for value in values]
    except (TypeError, ValueError) as error:  # numpy's and torch's arrays of several numbers are either
        raise WrongType(f"{name} must be integers: {error}") from None


def _index(value) -> int:
    if isinstance(value, bool | np.bool_) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
        raise TypeError(f"got {shown(value)}")
    return index(value)


# ---- 2. A Batch becomes a PackedBatch


@dataclass
class PackedBatch:
    """R rows with several samples in each, padded on the right. `packed_loss` and `score` take it."""

    input_ids: torch.Tensor  # (R, T)
    position_ids: torch.Tensor  # (R, T), from 0 in each sample
    labels: torch.Tensor  # (R, T), -100 where unsupervised and at the start of each sample
    borders: list[list[int]]  # of a row: where its samples start, and where the last ends; [0, 5, 12] are two samples
    images: list[list[torch.Tensor]]  # of each sample, since 2.5 encodes a prompt's views together
    patch_grids: list[list[tuple[int, int]]]
    image_bounds: list[torch.Tensor]  # of each row
    plans: list[list[SlicePlan]]

    def as_batch(self) -> Batch:
        """The rows as a Batch without a mask. `model(packed.as_batch())` is right, but slow: transformers finds the
        samples by positions that restart, and builds a mask (with a mask or a cache it would mix the samples).
        """
        views = self.images, self.patch_grids, self.image_bounds, self.plans
        return Batch(self.input_ids, None, self.position_ids, self.labels, *views, stop_ids=(), pad_id=0)

    def to(self, device=None, dtype: torch.dtype | None = None) -> PackedBatch:
        """Move all tensors to a device; `dtype` changes the pictures only."""
        ids = {name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "labels")}
        images = [[view.to(device=device, dtype=dtype) for view in views] for views in self.images]
        return replace(self, **ids, images=images)


def shortest_cuts(batch: Batch) -> list[int]:
    """Count the tokens up to the end of each sample's last image (1 without images): `pack_truncate` must not cut them.

    A cut inside an image would leave an unbalanced marker and too few slots for its visual tokens. A cut between two
    images would leave words about a picture that is not there.
    """
    starts, cuts = _starts(batch), []
    for ids, start, bounds, plans in zip(batch.input_ids, starts, batch.image_bounds, batch.plans):
        if not len(bounds):
            cuts.append(1)
            continue
        slices = plans[-1].num_slices
        closings = ids[bounds[:, 1]]
        # 2.0 and 2.5 wrap the slices of an image once more, so one more marker closes it. There the overview ends with
        # the same marker as a slice; in 2.6 it does not.
        wrapped = slices > 0 and closings[-1 - slices] == closings[-1]
        cuts.append(int(bounds[-1, 1]) + 1 + int(wrapped) - start)
    return cuts


def sample_lengths(batch: Batch) -> list[int]:
    """Count the tokens of each sample of a padded Batch: what `pack` takes."""
    return [batch.input_ids.shape[1] - start for start in _starts(batch)]


def _starts(batch: Batch) -> list[int]:
    """The column at which each sample begins."""
    check_type("batch", batch, Batch)
    check_type("batch.attention_mask (a packed batch has none)", batch.attention_mask, torch.Tensor)
    if batch.attention_mask.shape != batch.input_ids.shape:
        shapes = [tuple(tensor.shape) for tensor in (batch.input_ids, batch.attention_mask)]
        raise ValueError(f"the batch has {shapes[0]} tokens, but its mask is {shapes[1]}")
    starts = (batch.attention_mask == 0).sum(dim=1)
    columns = torch.arange(batch.input_ids.shape[1], device=starts.device)
    if not torch.equal(batch.attention_mask != 0, columns >= starts[:, None]):
        raise ValueError("the batch must be padded on the left, as the Processor does it")
    return starts.tolist()


def pack_batch(batch: Batch, rows: Iterable[Sequence[int | tuple[int, int]]]) -> PackedBatch:
    """Move the samples of a padded Batch into rows.

    Args:
        batch: from a Processor.
        rows: from `pack` or `first_fit` (indices) or `pack_truncate` (index, kept tokens). Samples may be left out.
            Neighbors of equal length share an attention call, and `pack` makes them neighbors.

    Returns:
        A PackedBatch, as wide as its fullest row.

    Raises:
        TypeError, ValueError: no Batch; rows of other than integers and pairs; an empty row; a sample that is not
            there, comes twice, or is cut before the end of its last image.

    Example:
        >>> from minicpmv_ref import Processor
        >>> chats = [[{"role": "user", "content": text}] for text in ("Hi", "What is this?", "Hello")]
        >>> batch = Processor.from_pretrained("nano")(chats)
        >>> packed = pack_batch(batch, pack(sample_lengths(batch), capacity=64))
        >>> tuple(batch.input_ids.shape), tuple(packed.input_ids.shape), packed.borders
        ((3, 27), (2, 54), [[0, 27, 54], [0, 25]])

    Source: paper section 4.1: position ids and attention masks keep the samples of a row apart.
    """
    lengths = sample_lengths(batch)
    rows = _check_rows(rows, lengths, shortest_cuts(batch))
    width = max(sum(kept for _, kept in row) for row in rows)
    ids = batch.input_ids.new_full((len(rows), width), batch.pad_id)
    positions, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    borders, bounds = [[0] for _ in rows], [[] for _ in rows]
    for r, row in enumerate(rows):
        for s, kept in row:
            start = batch.input_ids.shape[1] - lengths[s]
            begin = borders[r][-1]
            end = begin + kept
            old, new = (s, slice(start, start + kept)), (r, slice(begin, end))
            ids[new] = batch.input_ids[old]
            positions[new] = batch.position_ids[old]  # they start at 0 in every sample already
            labels[new] = batch.labels[old]
            labels[r, begin] = -100  # subtle: the loss shifts, so the sample before would predict this token
            borders[r].append(end)
            bounds[r].append(batch.image_bounds[s] + (begin - start))
    order = [s for row in rows for s, _ in row]
    images, grids = ([own[s] for s in order] for own in (batch.images, batch.patch_grids))
    plans = [[plan for s, _ in row for plan in batch.plans[s]] for row in rows]
    return PackedBatch(ids, positions, labels, borders, images, grids, [torch.cat(b) for b in bounds], plans)


def _check_rows(rows, lengths: list[int], cuts: list[int]) -> list[list[tuple[int, int]]]:
    """Complete every entry to (index, kept tokens)."""
    plan, seen = [], set()
    for number, row in enumerate(check_type("rows", rows, Iterable, what="a list of lists")):
        plan.append([])
        for entry in check_list(name := f"rows[{number}]", row):
            pair = entry if isinstance(entry, tuple) else (entry, None)
            if len(pair) != 2:
                raise ValueError(f"{name} must hold indices or pairs (index, kept tokens), got {shown(entry)}")
            s = check_int(name, pair[0], least=-(2**63))
            if s not in range(len(lengths)):
                raise ValueError(f"there is no sample {s}; the batch has {len(lengths)}")
            if s in seen:
                raise ValueError(f"sample {s} comes twice")
            seen.add(s)
            kept = check_int(name, pair[1], least=-(2**63)) if pair is entry else lengths[s]
            if kept not in range(1, lengths[s] + 1):
                raise ValueError(f"sample {s} has {lengths[s]} tokens, so {kept} of them cannot be kept")
            if kept < cuts[s]:
                where = f"sample {s} is cut to {kept} tokens, but its last image ends at {cuts[s]}"
                raise ValueError(f"{where}; give shortest_cuts(batch) to pack_truncate")
            plan[-1].append((s, kept))
    if not plan or not all(plan):
        raise ValueError(f"rows must be lists of at least one sample, got {plan}")
    return plan


# ---- 3. Scoring


def packed_loss(model: MiniCPMV, packed: PackedBatch, visual: torch.Tensor | None = None) -> torch.Tensor | None:
    """Compute the loss of a packed batch for training: the mean over the supervised tokens of all samples.

    If one step has several packed batches, weight each loss by its supervised tokens. The LM head runs on the
    supervised tokens only, which saves time without packing, too; `score` runs it on all.

    Args:
        model: a MiniCPMV; its `llm` attends by `packed_attention` from now on, see there.
        packed: from `pack_batch`.
        visual: (B, Q, D) visual tokens, if you have them already; of all views in the order of the packed samples.

    Returns:
        A scalar; None if nothing is supervised.

    Raises:
        TypeError, ValueError: no MiniCPMV, no PackedBatch; slots and visual tokens that do not match.

    Example:
        >>> from minicpmv_ref import Processor
        >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> batch = Processor.from_pretrained("nano")([chat, chat])
        >>> model = MiniCPMV.from_pretrained("nano")
        >>> bool(abs(packed_loss(model, pack_batch(batch, [[0, 1]])) - model(batch).loss) < 1e-5)
        True
    """
    check_type("model", model, MiniCPMV), check_type("packed", packed, PackedBatch)
    labels = rearrange(packed.labels, "r t -> (r t)")
    supervised = (labels != -100).nonzero()[:, 0]  # never the first token of a sample, so the one before is in it, too
    if not len(supervised):
        return None
    return _cross_entropy(_logits(model, packed, supervised - 1, visual), labels[supervised])


def score(model: MiniCPMV, packed: PackedBatch) -> Output:
    """Score a packed batch as `model(batch)` does a padded one: loss and all logits.

    Returns:
        An Output: `.logits` (R, T, V), meaningless after the last border of a row, and `.loss`.

    Raises:
        TypeError, ValueError: as `packed_loss`; logits that are not finite.
    """
    check_type("model", model, MiniCPMV), check_type("packed", packed, PackedBatch)
    logits = _logits(model, packed)  # (N, V)
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite: a weight of the model or a picture holds a NaN or an infinity")
    # Shift the labels, not the logits: that would copy the largest tensor of all. The last token predicts nothing.
    labels = F.pad(rearrange(packed.labels, "r t -> (r t)")[1:], (0, 1), value=-100)
    loss = _cross_entropy(logits, labels) if (labels != -100).any() else None
    return Output(loss, rearrange(logits, "(r t) v -> r t v", r=len(packed.input_ids)))


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


def _logits(model: MiniCPMV, packed: PackedBatch, keep: torch.Tensor | int = 0, visual=None) -> torch.Tensor:
    """Run the LLM on all rows as one long row. `keep`: the tokens whose logits are wanted; 0 means all."""
    if model.llm.config._attn_implementation != "packed":
        model.llm.set_attn_implementation("packed")
    return model.llm(
        # All rows as one: borders separate rows, too.
        inputs_embeds=rearrange(model.embed(packed.as_batch(), visual), "r t d -> 1 (r t) d"),
        position_ids=rearrange(packed.position_ids, "r t -> 1 (r t)"),
        # transformers passes a 4-D mask on as it is and builds none. An empty one fits nothing: if the runs ever got
        # lost, ordinary attention would stop with an error instead of mixing the samples.
        attention_mask=torch.empty(0, 0, 0, 0, device=packed.input_ids.device),
        use_cache=False,
        runs=_runs(packed),  # an unknown argument: transformers hands it down to the attention function
        logits_to_keep=keep,
    ).logits[0]


def _runs(packed: PackedBatch) -> list[tuple[int, int]]:
    """Lengths of all samples, end to end, neighbors of equal length counted together: [(length, count), ...]."""
    lengths = []
    for borders in packed.borders:
        lengths += [end - start for start, end in pairwise(borders)]
        lengths += [1] * (packed.input_ids.shape[1] - borders[-1])  # padding: samples of one token, which cost nothing
    return [(length, len(list(same))) for length, same in groupby(lengths)]


def packed_attention(
    module, query, key, value, attention_mask, dropout: float = 0.0, scaling: float | None = None, runs=None, **kwargs
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each sample. No mask, and no work between samples.

    transformers finds this function under the name "packed" in its AttentionInterface. query (1, H, N, K); key and
    value perhaps with fewer heads; runs: [(length, how many neighbors of that length), ...], N tokens together. Without
    runs it is exactly "sdpa", so a model that was switched still reads padded batches and generates as before.

    Returns:
        (Tensor (1, N, H, K), None).

    Raises:
        ValueError: runs that do not cover the N tokens.
    """
    if runs is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    sizes = [length * count for length, count in runs]
    if sum(sizes) != query.shape[2]:
        raise ValueError(f"the samples have {sum(sizes)} tokens, but the row has {query.shape[2]}")
    # Split, never slice: the gradient of each slice would be a tensor of all N tokens, nearly all of them zero.
    parts = zip(runs, *(rearrange(x, "1 h n k -> n h k").split(sizes) for x in (query, key, value)))
    outs = []
    for (length, _), *qkv in parts:
        q, k, v = (rearrange(x, "(b l) h k -> b h l k", l=length) for x in qkv)
        grouped = module.num_key_value_groups > 1
        options = dict(dropout_p=dropout, scale=scaling, enable_gqa=grouped)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        outs.append(rearrange(out, "b h l k -> (b l) h k"))
    return torch.cat(outs)[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)  # for batches without runs
