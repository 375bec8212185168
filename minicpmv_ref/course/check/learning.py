"""Lesson 07: learning in stages."""

from .cases import Case, exercise


@exercise
def sigmoid_loss():
    import torch
    import torch.nn.functional as F

    for logits, match in (
        ([[2.0, -1.0], [-3.0, 1.0]], [[1, 0], [0, 1]]),
        ([[0.0, 0.0], [0.0, 0.0]], [[1, 0], [0, 1]]),
        ([[1.0, 2.0], [3.0, 4.0]], [[1, 1], [1, 1]]),  # two pictures of the same scene
        ([[5.0, -2.0, 0.5], [-1.0, -4.0, -3.0], [0.0, 1.0, 2.0]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ):
        logits, match = torch.tensor(logits), torch.tensor(match) == 1
        want = F.binary_cross_entropy_with_logits(logits, match.float(), reduction="sum") / len(logits)
        yield Case((logits, match), want.item(), tolerance=1e-5)


@exercise
def learns():
    from dataclasses import replace

    import torch

    from minicpmv_ref.config import nano
    from minicpmv_ref.learn.stages import STAGES, freeze
    from minicpmv_ref.model import MiniCPMV

    # A resampler of version 2.0, which has positions that never learn.
    old = replace(nano, version="2.0", resampler=replace(nano.resampler, version="2.0"))
    with torch.device("meta"):  # names without numbers
        model = MiniCPMV(old)
    for stage in STAGES:
        freeze(model, stage)
        learning = {name: p.requires_grad for name, p in model.named_parameters()}
        for name in ("resampler.query", "resampler.pos_embed", "llm.model.norm.weight", "vpm.post_layernorm.weight"):
            yield Case((tuple(stage.learning_rates), name), learning[name])


@exercise
def rate():
    from minicpmv_ref.learn.train import lr_scale_at

    for steps in (100, 600, 1200):
        for step in (0, 1, 2, 3, steps // 4, steps // 2, steps - 1):
            yield Case((step, steps), lr_scale_at(step, steps), tolerance=1e-6)
