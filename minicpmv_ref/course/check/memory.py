"""Lesson 05: memory."""

import random

from minicpmv_ref.config import PRESETS, v2_0, v2_6
from minicpmv_ref.deploy.memory import estimate, kv_cache_numbers, parameters

from .cases import Case, exercise


@exercise
def overtakes():
    """ten pairs of lines: crossing, equal at one length, never crossing, and 2.0 against 2.6; whole tokens or None."""
    lines = [((0, 2), (10, 1)), ((10, 3), (24, 1)), ((5, 1), (9, 1)), ((5, 1), (9, 4)), ((9, 1), (5, 2))]
    lines += [((7, 2), (7, 1)), ((7, 1), (7, 1)), ((100, 7), (1000, 4)), ((3, 1), (10**12, 0))]
    pair = tuple((2 * sum(parameters(config).values()), 2 * kv_cache_numbers(config.llm)) for config in (v2_0, v2_6))
    for (light, a), (heavy, b) in [*lines, pair]:
        crossing = (heavy - light) // (a - b) + 1 if a > b else None
        yield Case(((light, a), (heavy, b)), 0 if light > heavy else crossing)


@exercise
def block_bits():
    """Q8_0, Q5_0, Q4_K, Q5_K and Q6_K, to nine digits."""
    kinds = (32, 8, 0, 0, 1), (32, 5, 0, 0, 1), (256, 4, 16, 6, 2), (256, 5, 16, 6, 2), (256, 6, 16, 8, 1)
    for weights, level, small, small_bits, floats in kinds:  # of a block, bits, small numbers, their bits, float16s
        bits = (weights * level + small * small_bits + 16 * floats) / weights
        yield Case((weights, level, small, small_bits, floats), bits)


@exercise
def fullest():
    """lists of no life to twelve, with ties, lives that touch, and steps up to 10 to the 18."""
    rng = random.Random(5)
    lists = [[(0, 4, 10)], [(0, 2, 5), (2, 3, 6)], [(1, 5, 2), (2, 4, 3), (3, 6, 4)], [], [(3, 5, 2), (0, 2, 2)]]
    lists += [[(10**18, 10**18 + 3, 7), (0, 10**18 + 1, 1)]]
    lists += [[(b := rng.randint(0, 9), b + rng.randint(1, 6), rng.randint(1, 9)) for _ in range(12)] for _ in range(4)]
    for lives in lists:
        now, best = 0, (0, 0)
        changes = sorted({step for born, freed, _ in lives for step in (born, freed)})
        for step in changes:  # what is freed goes first: a life ends just before `freed`
            now += sum(size * ((born == step) - (freed == step)) for born, freed, size in lives)
            best = (step, now) if now > best[1] else best
        yield Case((lives,), best)


@exercise
def largest_batch():
    """2.6, 2.0 and nano with 1 to 143 GB, among them one that does not fit at all; whole numbers."""
    for name, gigabytes in [("v2_6", 80), ("v2_6", 60), ("v2_0", 80), ("v2_0", 36), ("nano", 1), ("v2_6", 143)]:
        memory, batch = gigabytes * 10**9, 0
        while estimate(PRESETS[name], training=True, batch=batch + 1).total <= memory:
            batch += 1
        yield Case((PRESETS[name], memory), batch)
