"""What the alignment experiment adds to the paper's algorithm: two other ways to train, another score, and grades of
the labeler.

    vision  the vision tower and the resampler learn, too
    sft     the chosen answers are imitated, without any reference
    share   answers are scored by the share of their rejected claims
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from minicpmv_ref.inputs.checks import check_list
from minicpmv_ref.learn.dpo import (
    Prepared,
    dpo_step,
    optimizer_for_dpo,
    pair_batch,
    reference_logps,
    set_learning_rate,
    shuffled_batches,
    train_dpo,
)
from minicpmv_ref.learn.rlaif import check_verdicts, score_response
from minicpmv_ref.learn.statistics import Interval, wilson
from minicpmv_ref.model import MiniCPMV


def train_on_pairs(
    model: MiniCPMV, pairs: Sequence[Prepared], config, watch: Callable[[int], object] = lambda step: None
) -> list[dict[str, float]]:
    """`train_dpo` as an Alignment says, or one of the two controls; `watch` and the result as there.

    Raises:
        ValueError: pairs without their pictures where `config.vision` needs them.
    """
    settings = dict(steps=config.steps, batch_size=config.batch, seed=config.seed)
    if not config.vision and not config.sft:
        return train_dpo(model, pairs, lr=config.lr, beta=config.beta, watch=watch, **settings)
    if config.vision and not all(pair.views for pair in pairs):
        raise ValueError("vision=True needs the pictures of each pair: take pairs from prepare")
    reference = reference_logps(model, pairs)
    optimizer, history = optimizer_for_dpo(model if config.vision else model.llm), []
    watch(0)
    for step, chosen in enumerate(shuffled_batches(len(pairs), **settings)):
        set_learning_rate(optimizer, step, config.steps, config.lr)
        batch = pair_batch([pairs[i] for i in chosen])
        if config.vision:
            batch.visual = torch.cat([model.encode_images(*pairs[i].views) for i in chosen])
        history.append(dpo_step(model, optimizer, batch, reference[:, chosen], config.beta, config.sft))
        watch(step + 1)
    return history


def score_share(verdicts: Sequence[bool]) -> float:
    """A control: minus the share of rejected claims, so a long answer may be wrong more often; needs a verdict."""
    score = score_response(verdicts)
    if not len(verdicts):
        raise ValueError("verdicts must hold at least one: an answer without claims has no share of them")
    return score / len(verdicts)


def agreement(verdicts: Sequence[Sequence[bool]], truths: Sequence[Sequence[bool]]) -> dict[str, Interval]:
    """Grade a labeler against the truth. Most claims of a good model are true, so look at both kinds apart.

    Verdicts of the labeler, a list for each answer or picture; truths from `label_by_truth`, for the same claims.

    Returns:
        accuracy     right verdicts, of all
        on_true      true claims accepted
        on_false     false claims rejected: only these can teach the model

    Raises:
        TypeError, ValueError: no lists of True and False; lists that do not match.

    Example:
        >>> figures = agreement([[True, True, False]], [[True, False, False]])
        >>> [round(figures[name].value, 2) for name in ("accuracy", "on_true", "on_false")]
        [0.67, 1.0, 0.5]
    """
    verdicts, truths = (
        [check_verdicts(f"{name}[{number}]", own) for number, own in enumerate(check_list(name, values))]
        for name, values in (("verdicts", verdicts), ("truths", truths))
    )
    if [len(own) for own in verdicts] != [len(own) for own in truths]:
        raise ValueError("verdicts and truths must be about the same claims")
    both = [pair for own, true in zip(verdicts, truths) for pair in zip(own, true)]
    on_true, on_false = ([verdict for verdict, truth in both if truth == wanted] for wanted in (True, False))
    return {
        "accuracy": wilson(sum(verdict == truth for verdict, truth in both), len(both)),
        "on_true": wilson(sum(on_true), len(on_true)),
        "on_false": wilson(len(on_false) - sum(on_false), len(on_false)),
    }
