"""Lesson 09: Q4_K, bit by bit."""

import numpy as np

from .cases import Case, exercise


@exercise
def bits_per_weight():
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    shapes = {  # weights, group, bits of a level, bits of a scale, is there a low?
        "Q6_K": (256, 16, 6, 8, False),
        "Q4_K": (256, 32, 4, 6, True),
        "Q5_K": (256, 32, 5, 6, True),
        "Q3_K": (256, 16, 3, 6, False),
        "Q2_K": (256, 16, 2, 4, True),
    }
    for kind, shape in shapes.items():
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        yield Case(shape, 8 * size / weights)


@exercise
def best_line():
    yield Case(([-1.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0, 1, 2]), (2.0, -1.0), tolerance=1e-6)
    yield Case(([-1.0, 1.0, 2.0], [3.0, 1.0, 1.0], [0, 1, 1]), _line([-1, 1, 2], [3, 1, 1], [0, 1, 1]), tolerance=1e-6)
    yield Case(([3.0, 5.0], [1.0, 1.0], [1, 2]), (13 / 5, 0.0), tolerance=1e-6)
    rng = np.random.default_rng(0)
    for shift in (0.0, -4.0, 4.0):
        x, w = rng.standard_normal(5).round(1) + shift, rng.uniform(0.5, 2, 5).round(1)
        levels = np.rint(15 * (x - x.min()) / np.ptp(x)).astype(int)
        x, w, levels = x.round(1).tolist(), w.tolist(), levels.tolist()
        yield Case((x, w, levels), _line(x, w, levels), tolerance=1e-6)


def _line(x, w, levels):
    """(scale, low) by numpy's own least squares; where low would be above 0 it is 0, and the scale is fitted alone."""
    root = np.sqrt(w)
    columns = np.stack([root * levels, root], axis=1)
    scale, low = np.linalg.lstsq(columns, root * x, rcond=None)[0]
    if low > 0:
        (scale,), low = np.linalg.lstsq(columns[:, :1], root * x, rcond=None)[0], 0
    return float(scale), float(low)


@exercise
def six_bits():
    from minicpmv_ref.deploy.kquant import dequantize

    rng = np.random.default_rng(1)
    ramp = [1, 2, 3, 4, 5, 6, 7, 8, 0x21, 0x43, 0x65, 0x87]
    for packed in ([*range(1, 9), 0, 0, 0, 0], ramp, *(rng.integers(0, 256, 12).tolist() for _ in range(4))):
        # With d = dmin = 1 and all levels 0, weights are -m; with all levels 1 they are sc - m.
        ones = np.ones(2, "<f2").tobytes()
        zero, one = (
            dequantize(np.frombuffer(ones + bytes(packed) + bytes([nibbles] * 128), np.uint8)[None], "Q4_K", 256)[
                0, ::32
            ]
            for nibbles in (0x00, 0x11)
        )
        yield Case((packed,), ((one - zero).astype(int).tolist(), (-zero).astype(int).tolist()))


@exercise
def richer_layers():
    from dataclasses import replace

    from minicpmv_ref.config import nano
    from minicpmv_ref.deploy.gguf import plan_mixture

    for layers in (8, 16, 32, 28, 12, 4, 1, 27):
        config = replace(nano, llm=replace(nano.llm, num_hidden_layers=layers))
        kinds = plan_mixture(config).kinds
        yield Case((layers,), [i for i in range(layers) if kinds[f"blk.{i}.attn_v.weight"] == "Q6_K"])
