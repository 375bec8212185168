"""Pictures spelled in words: each visual token becomes the sum of the embeddings of a few words. So an LLM can practice
to read before there is a vision encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..linear import is_plain
from ..model import MiniCPMV
from ..processor import Processor
from .data import Sample, spell


def spelled_tokens(model: MiniCPMV, processor: Processor, samples: Sequence[Sample]) -> torch.Tensor:
    """Spell pictures in words, in place of visual tokens.

    Args:
        model: its word embeddings are used; gradients reach them.
        processor: its tokenizer is used.
        samples: pictures that `spell` can spell.

    Returns:
        Tensor (B, 16, D): for all views of all samples, the sums of the embeddings of each slot's words.

    Example:
        >>> from minicpmv_ref.toy.data import draw
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> spelled_tokens(model, processor, [draw(0)]).shape
        torch.Size([1, 16, 256])
    """
    return embed_words(model, *spelled_words(processor, samples))


def spelled_words(processor: Processor, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids of all slots' words in one row, and where each slot starts in it."""
    slots = [slot for sample in samples for view in spell(sample) for slot in view]
    ids = {word: processor.tokenizer(word, add_special_tokens=False).input_ids for slot in set(slots) for word in slot}
    split = [word for word, tokens in ids.items() if len(tokens) != 1]
    if split:
        raise ValueError(f"these words are not single tokens of the tokenizer: {split}")
    tokens, ends = [], [0]
    for slot in slots:
        tokens += [ids[word][0] for word in slot]
        ends.append(len(tokens))
    return torch.tensor(tokens), torch.tensor(ends[:-1])


def embed_words(model: MiniCPMV, tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Add up the embeddings of each slot's words."""
    table, device = model.llm.get_input_embeddings(), model.device
    tokens, starts = tokens.to(device), starts.to(device)
    if is_plain(table, nn.Embedding):  # in one pass over the tokens
        summed = F.embedding_bag(tokens, table.weight, starts, mode="sum")
    else:  # a wrapped table, with an adapter for example, must be called
        words = table(tokens)
        slot = torch.bucketize(torch.arange(len(tokens), device=device), starts, right=True) - 1
        summed = words.new_zeros(len(starts), words.shape[1]).index_add(0, slot, words)
    return summed.unflatten(0, (-1, 16))
