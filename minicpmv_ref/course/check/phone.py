"""Lesson 10: on the phone."""

import struct

from .cases import Case, exercise


@exercise
def read_header():
    yield Case((b"GGUF" + struct.pack("<IQQ", 3, 38, 26),), (3, 38, 26))
    yield Case((b"GGUF" + struct.pack("<IQQ", 2, 300, 70_000) + b"and so on",), (2, 300, 70_000))
    yield Case((b"GGUF" + struct.pack("<IQQ", 3, 5_000_000_000, 1),), (3, 5_000_000_000, 1))
    yield Case((b"GGML" + struct.pack("<IQQ", 3, 38, 26),), None)
    yield Case((b"GGUF" + struct.pack("<IQ", 3, 38),), None)


@exercise
def way_to_load():
    cases = [  # memory, eyes, language, seeing, reading
        ((12, 1, 5, 1, 2), "together"),
        ((8, 1, 5, 1, 2), "together"),
        ((7, 1, 5, 1, 2), "in turns"),
        ((6, 1, 5, 1, 2), "not at all"),
        ((9, 4, 4, 3, 1), "in turns"),
        ((6, 4, 4, 3, 1), "not at all"),
        ((9, 4, 4, 1, 1), "together"),
    ]
    for case, want in cases:
        yield Case(case, want)


@exercise
def tokens_per_second():
    for case in [(100, 20, 0, 5), (76.8e9, 4.7e9, 1216, 131_072), (100, 30, 10, 2), (1e9, 0.0, 1000, 1e4)]:
        bandwidth, weights, tokens, a_token = case
        yield Case(case, bandwidth / (weights + tokens * a_token))


@exercise
def to_int8():
    blocks = [[1.0, -2.0, 0.5], [127.0, -64.0, 3.0, 0.0], [0.1, -0.3, 0.05], [-254.0, 3.2, 3.0], [0.0, 0.0]]
    for x in blocks:
        scale = max(map(abs, x)) / 127
        yield Case((x,), ([round(v / scale) if scale else 0 for v in x], scale), tolerance=1e-9)
