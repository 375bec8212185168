"""From logits to a token, and from tokens to the text of an answer.

Implements greedy decoding and sampling (temperature, top-k, top-p, repetition penalty). Left out: beam search.
S samples, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile

import torch

from .inputs.checks import LIMITS, WrongType, check_int, check_number, shown
from .inputs.messages import GROUNDING

_SMALLEST, _LARGEST = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
SEEDS = -(2**63), 2**64 - 1  # the smallest and the largest that torch takes


def check_sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed) -> None:
    check_int("max_new_tokens", max_new_tokens, -math.inf, math.inf)
    if top_k is not None:
        check_int("top_k", top_k, -math.inf, math.inf)
    if max_new_tokens < 1 or (top_k is not None and top_k < 1):
        raise ValueError(f"max_new_tokens and top_k must be at least 1, got {shown(max_new_tokens)} and {shown(top_k)}")
    if check_number("temperature", temperature, least=0):
        check_number("temperature", temperature, least=LIMITS["temperature"])
    check_number("top_p", top_p, above=0, most=1)
    if not temperature and (top_k is not None or top_p != 1):  # transformers warns, too
        warnings.warn("temperature is 0, so the likeliest token is taken: top_k and top_p do nothing", stacklevel=4)
    most = LIMITS["repetition_penalty"]
    check_number("repetition_penalty", repetition_penalty, 1 / most, most)
    check_int("seed", seed, *SEEDS)


def next_token(logits, seen, temperature, top_k, top_p, repetition_penalty, generator) -> torch.Tensor:
    """Choose the next token of each row of (S, V) logits; `seen` (S, V) marks the tokens that an answer already has."""
    if repetition_penalty != 1:
        damped = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(seen, damped, logits)
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Large logits may overflow here; two infinite ones would have no probabilities.
    return _sample((logits / temperature).clamp(_SMALLEST, _LARGEST), top_k, top_p, generator)


def _sample(logits: torch.Tensor, top_k: int | None, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """Sample one token of each row of (S, V) logits."""
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of all likelier tokens
    before[:, 0] = -1  # the likeliest stays, however small top_p is
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    return order.gather(-1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]


def until_stop(tokens: Iterable[int], stop_ids: Collection[int]) -> Iterator[int]:
    """The tokens before the first stop token."""
    return takewhile(lambda token: token not in stop_ids, tokens)


def decode_answer(tokens: Iterable[int], tokenizer, stop_ids: Iterable[int] = ()) -> str:
    """Decode the tokens of one answer to the text that is shown: all pieces of `decode_stream`.

    Raises:
        TypeError, ValueError: as `decode_stream`.

    Example:
        >>> from minicpmv_ref import Processor
        >>> tokenizer = Processor.from_pretrained("nano").tokenizer
        >>> decode_answer(tokenizer("<box>1 2 3 4</box><|im_end|>")["input_ids"], tokenizer)
        '<box>1 2 3 4</box>'

    Source: _decode_text in modeling_minicpmv.py of MiniCPM-V 2.6, which cuts off the stop token and keeps the marks.
    """
    return "".join(decode_stream(tokens, tokenizer, stop_ids))


def decode_stream(tokens: Iterable[int], tokenizer, stop_ids: Iterable[int] = ()) -> Iterator[str]:
    """Decode token ids to text piece by piece, never splitting a character.

    Marks of places (`<ref>`, `<box>`, `<quad>`, `<point>` and their ends) are part of an answer. All other special
    tokens, those that end it and padding among them, are not shown.

    Args:
        tokens, tokenizer: ids, one after the other, and the tokenizer that knows them.
        stop_ids: ids that end the answer.

    Returns:
        An iterator of pieces of text; joined, they are the decoded answer.

    Raises:
        TypeError: tokens or stop_ids that are no integers, a tokenizer that is none.
        ValueError: negative ids.
    """
    if not (hasattr(tokenizer, "decode") and hasattr(tokenizer, "added_tokens_decoder")):
        raise WrongType(f"tokenizer must be one of transformers, got {type(tokenizer).__name__}: {shown(tokenizer)}")
    stops = {check_int("stop_ids", token, 0) for token in _iterable("stop_ids", stop_ids)}
    return _pieces(_iterable("tokens", tokens), tokenizer, stops)


def _iterable(name: str, value) -> Iterator:
    try:
        return iter(value)
    except TypeError:
        what = f"got {type(value).__name__}: {shown(value)}"
        raise WrongType(f"{name} must be token ids, one after the other, {what}") from None


def _pieces(tokens: Iterator[int], tokenizer, stops: set[int]) -> Iterator[str]:
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    hidden = {number for number, content in special.items() if content not in GROUNDING}
    # Only tokens that still wait are decoded, or an answer would take quadratic time. Those of the piece before them
    # are decoded as well: what a token looks like may depend on its neighbor (some drop the first space of a text).
    before, waiting, left_out = [], [], 0
    checked = (check_int("tokens", token, 0, 2**32 - 1) for token in tokens)
    for token in until_stop(checked, stops):
        if token in hidden:
            continue
        waiting.append(token)
        piece = tokenizer.decode(before + waiting)[left_out:]
        if not piece.endswith("\ufffd"):  # a character of several tokens is shown once it is whole
            yield piece
            before, waiting = waiting, []
            left_out = len(tokenizer.decode(before))
    if waiting:
        yield tokenizer.decode(before + waiting)[left_out:]
