"""Lesson 07b: your data, your GPU."""

import re
from functools import partial

from minicpmv_ref.config import nano, v2_0, v2_5, v2_6

from .cases import Case, exercise


@exercise
def misplaced():
    """six records: right ones, no placeholder, one too many, one in a later question; names in order."""
    from minicpmv_ref.scale.records import PLACEHOLDERS

    one, two = "<image_00>", "<image_01>"
    for names, texts in (
        (["<image>"], ["<image>\nWhat is this?", "A cat."]),
        (["<image>"], ["What is this?", "A cat."]),
        ([one, two], [f"{one}\nAnd this?", "A cat.", f"{two}\nAnd this?", "A dog."]),
        ([one, two], [f"{one}\n{one}\nThe same?", "Yes."]),
        ([two, one], ["<image>\nWhich one?", "The first."]),
        ([one, two], [f"{one}{two}", "A cat and a dog.", f"Look at {two} again.", "A dog."]),
    ):
        found = PLACEHOLDERS.findall(" ".join(texts))
        yield Case((names, texts), [name for name in names if found.count(name) != 1])


@exercise
def lora_parameters():
    """nano and three versions of MiniCPM-V at rank 1 to 64; whole numbers."""
    import torch

    from minicpmv_ref.model import MiniCPMV
    from minicpmv_ref.scale.lora import ADAPTED

    for config, rank in ((nano, 8), (nano, 1), (v2_0, 64), (v2_5, 16), (v2_6, 64)):
        with torch.device("meta"):  # shapes are all that is needed
            modules = dict(MiniCPMV(config).named_modules())
        sides = sum(sum(module.weight.shape) for name, module in modules.items() if re.fullmatch(ADAPTED, name))
        yield Case((config, rank), rank * sides)


@exercise
def extracted():
    """five matrices, wide and high, rank 1 to 3: the shapes of A and B, and the merged matrix again to 1e-4."""
    import torch

    random = torch.Generator().manual_seed(0)
    for m, n, rank, alpha in ((4, 4, 1, 1), (4, 4, 2, 2), (4, 6, 2, 8), (6, 4, 3, 1.5), (5, 3, 1, 16)):
        w, a, b = (torch.randn(shape, generator=random) for shape in ((m, n), (rank, n), (m, rank)))
        merged = w + alpha / rank * torch.einsum("mr,rn->mn", b, a)
        words = f"A ({rank}, {n}) and B ({m}, {rank}), float tensors that give the merged matrix again"
        yield Case((w, merged, rank, alpha), words, partial(_gives, w, merged, rank, alpha))


def _gives(w, merged, rank, alpha, pair) -> bool:
    import torch

    if not isinstance(pair, (tuple, list)) or [isinstance(each, torch.Tensor) for each in pair] != [True, True]:
        return False
    a, b = pair
    fits = a.shape == (rank, w.shape[1]) and b.shape == (w.shape[0], rank)
    if not fits or not (a.is_floating_point() and b.is_floating_point()):
        return False
    return torch.allclose(w.double() + alpha / rank * b.double() @ a.double(), merged.double(), atol=1e-4)
