"""Lesson 07: learning in stages."""

from .cases import Case, exercise


@exercise
def sigmoid_loss():
    """four batches of two or three pictures, one with captions that belong to both; to 1e-5."""
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
def backward_parts():
    """MiniCPM-V in four stages and five other models, compared with PyTorch's requires_grad; a list of names."""
    ours = {"vpm": [], "resampler": ["vpm"], "words": [], "llm": ["resampler", "words"]}
    towers = {"clip": [], "dino": [], "mlp": ["clip", "dino"], "words": [], "llm": ["mlp", "words"]}
    chain = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["d"]}
    stages = (["resampler"], ["vpm"], ["vpm", "resampler"], ["llm"])
    models = [(ours, list(stage)) for stage in stages] + [(towers, ["dino"]), (towers, ["words"]), (towers, [])]
    for inputs, learning in [*models, (chain, ["b"]), (chain, ["d", "a"])]:
        yield Case((inputs, learning), _asks_torch(inputs, learning))


def _asks_torch(inputs, learning):
    """The parts whose output asks for a gradient, in a model of one number for each part."""
    import torch

    outputs = {}
    for part, before in inputs.items():
        weight = torch.ones((), requires_grad=part in learning)
        outputs[part] = weight * sum((outputs[each] for each in before), torch.ones(()))
    return [part for part, output in outputs.items() if output.requires_grad]


@exercise
def rate():
    """seven steps each of trainings of 100, 250 and 1,200 steps; to 1e-6."""
    from minicpmv_ref.learn.train import lr_scale_at

    for steps in (100, 250, 1200):  # 3 percent of 250 is no whole number
        for step in (0, 1, 2, 3, steps // 4, steps // 2, steps - 1):
            yield Case((step, steps), lr_scale_at(step, steps), tolerance=1e-6)
