"""Lesson 08: preferences."""

import random

from .cases import Case, exercise


@exercise
def answer_logp():
    """four rows with one or two turns, supervised to the end or not; to 1e-4."""
    import torch

    from minicpmv_ref.learn.dpo import sequence_logps

    generator, two_turns = torch.Generator().manual_seed(8), [-100, -100, 4, -100, -100, 2, 2]
    for labels in ([-100, -100, 3, 1], [-100, 2, 0, -100], two_turns, [-100, 1, 1, 1, 1, 1]):
        labels = torch.tensor(labels)
        logits = 3 * torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
        yield Case((logits, labels), sequence_logps(logits[None], labels[None]).item(), tolerance=1e-4)


@exercise
def beta_limits():
    """four lists of one to seven differences, of both signs; to 0.001."""
    import torch

    from minicpmv_ref.learn.dpo import dpo_loss

    rng = random.Random(8)
    for differences in ([4.0], [-4.0], [6.0, -2.0], [round(rng.uniform(-20, 20), 1) for _ in range(7)]):
        chosen = torch.tensor(differences, dtype=torch.float64)
        zero = torch.zeros_like(chosen)
        small, large = (dpo_loss(chosen, zero, zero, zero, beta)[0].item() for beta in (1e-7, 1e7))
        slope = (small - dpo_loss(zero, zero, zero, zero, 1e-7)[0].item()) / 1e-7
        yield Case((differences,), (round(slope, 4), round(large / 1e7, 4) + 0.0), tolerance=1e-3)  # no -0.0


@exercise
def kept_pairs():
    """nine lists of no to 30 pairs, among them one of which nothing is left."""
    from minicpmv_ref.learn.dpo import Pair
    from minicpmv_ref.learn.rlaif import balance_lengths

    rng, lists = random.Random(8), [[(2, 4), (4, 4), (6, 4)], [(1, 10), (9, 10), (12, 10)], [], [(9, 1)], [(1, 99)]]
    lists += [[(9, 9), (99, 100)], [(3, 14), (4, 2), (1, 5)], [(1, 4), (5, 4)]]
    lists.append([(rng.randint(1, 12), rng.randint(4, 20)) for _ in range(30)])
    for lengths in lists:
        # Words that differ, so that no pair is dropped for being equal.
        pairs = [Pair([], " ".join(["a"] * chosen), " ".join(["b"] * rejected)) for chosen, rejected in lengths]
        kept, _ = balance_lengths(pairs)
        yield Case((lengths,), [lengths[pairs.index(pair)] for pair in kept])
