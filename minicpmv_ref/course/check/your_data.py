"""Lesson 07b: your data, your GPU."""

from .cases import Case, exercise


@exercise
def misplaced():
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
    import re

    import torch

    from minicpmv_ref.config import nano, v2_0, v2_5, v2_6
    from minicpmv_ref.model import MiniCPMV
    from minicpmv_ref.scale.lora import ADAPTED

    for config, rank in ((nano, 8), (nano, 1), (v2_0, 64), (v2_5, 16), (v2_6, 64)):
        with torch.device("meta"):  # shapes are all that is needed
            modules = dict(MiniCPMV(config).named_modules())
        sides = sum(sum(module.weight.shape) for name, module in modules.items() if re.fullmatch(ADAPTED, name))
        yield Case((config, rank), rank * sides)


@exercise
def merged():
    import torch

    random = torch.Generator().manual_seed(0)
    for m, n, rank, alpha in ((4, 4, 2, 2), (4, 6, 2, 8), (6, 4, 3, 1.5), (5, 3, 1, 16)):
        w, a, b = (torch.randn(shape, generator=random) for shape in ((m, n), (rank, n), (m, rank)))
        yield Case((w, a, b, alpha), w + alpha / rank * torch.einsum("mr,rn->mn", b, a), tolerance=1e-4)
