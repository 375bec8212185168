"""Lesson 10: on the phone."""

import struct

from minicpmv_ref.config import v2_5
from minicpmv_ref.deploy.memory import kv_cache_numbers, parameters

from .cases import Case, exercise


@exercise
def read_header():
    """five beginnings of files, among them another format, and one that is too short."""
    yield Case((b"GGUF" + struct.pack("<IQQ", 3, 38, 26),), (3, 38, 26))
    yield Case((b"GGUF" + struct.pack("<IQQ", 2, 300, 70_000) + b"and so on",), (2, 300, 70_000))
    yield Case((b"GGUF" + struct.pack("<IQQ", 3, 5_000_000_000, 1),), (3, 5_000_000_000, 1))
    yield Case((b"GGML" + struct.pack("<IQQ", 3, 38, 26),), None)
    yield Case((b"GGUF" + struct.pack("<IQ", 3, 38),), None)


@exercise
def from_storage():
    """fourteen conversations of no to six questions, with memory for both files and for one; whole numbers."""
    conversations = [[True], [True, False], [True, True, False, True], [False, False, True], [], [True] * 5]
    conversations = [(pictures, memory) for pictures in conversations for memory in (6, 5)]
    for pictures, memory in [*conversations, ([False, True, False, False, True, True], 5), ([False, False], 7)]:
        if memory >= 6:
            want = 1 * any(pictures) + 5 * bool(pictures)
        else:
            want = (1 + 5) * sum(pictures) + 5 * (pictures[:1] == [False])
        yield Case((1, 5, memory, pictures), want)


@exercise
def full_batch():
    """eight servers: with and without caches, equal at a whole batch, never full, and 2.5 on the phone."""
    servers = [(100, 10, 5, 50, 0), (100, 10, 5, 51, 0), (100, 10, 6, 50, 1), (100, 10, 5, 50, 1), (100, 10, 5, 50, 2)]
    phone, cache = (6 * 10**12, 76_800_000_000), 2 * kv_cache_numbers(v2_5.llm)
    llm = parameters(v2_5)["llm"]
    servers += [(*phone, llm, 4_620_000_000, tokens * cache) for tokens in (0, 1216, 4096)]
    for flops, bandwidth, count, weights, each in servers:
        want = next((b for b in range(1, 10_000) if 2 * count * b * bandwidth >= (weights + each * b) * flops), None)
        yield Case((flops, bandwidth, count, weights, each), want)
