"""Lesson 05: memory."""

from minicpmv_ref.config import PRESETS, v2_0, v2_5, v2_6
from minicpmv_ref.deploy.memory import estimate, kv_cache_numbers

from .cases import Case, exercise


@exercise
def cache_tokens():
    for config, budget in [(v2_6, 10**9), (v2_0, 10**9), (v2_5, 10**9), (v2_6, 57_344), (v2_6, 57_343), (v2_0, 0)]:
        yield Case((config, budget), budget // (2 * kv_cache_numbers(config.llm)))


@exercise
def block_bits():
    kinds = {  # weights of a block, bits of a level, small numbers, their bits, float16 numbers
        "Q8_0": (32, 8, 0, 0, 1),
        "Q5_0": (32, 5, 0, 0, 1),
        "Q4_K": (256, 4, 16, 6, 2),
        "Q5_K": (256, 5, 16, 6, 2),
        "Q6_K": (256, 6, 16, 8, 1),
    }
    for weights, level, small, small_bits, floats in kinds.values():
        bits = (weights * level + small * small_bits + 16 * floats) / weights
        yield Case((weights, level, small, small_bits, floats), bits)


@exercise
def peak_in_turns():
    for case in [(1, 5, 0, 0, 0), (10, 50, 3, 2, 1), (10, 50, 60, 2, 1), (10, 50, 45, 3, 2), (40, 50, 12, 3, 9)]:
        eyes, language, seen, read, cache = case
        yield Case(case, max(eyes + seen, language + read + cache))


@exercise
def largest_batch():
    for name, gigabytes in [("v2_6", 80), ("v2_6", 60), ("v2_0", 80), ("v2_0", 36), ("nano", 1), ("v2_6", 143)]:
        memory, batch = gigabytes * 10**9, 0
        while estimate(PRESETS[name], training=True, batch=batch + 1).total <= memory:
            batch += 1
        yield Case((PRESETS[name], memory), batch)
