"""What a stage minimizes: samples become tensors, and tensors become a loss.

An objective has two halves: `prepare(samples, step)` makes tensors without the model, `loss` makes of them (loss,
tokens, views, supervised tokens). Called, it does both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from ..inputs.checks import check_int, check_type
from ..model import MiniCPMV
from ..processor import Batch, Processor
from ..prompt import answer_labels, image_bounds, image_layout
from ..slicing import plan_slices
from ..toy.data import Sample, blind, numbered
from ..toy.spelled import embed_words, spelled_words
from .contrast import Contrast
from .packing import PackedBatch, pack, pack_batch, packed_loss, sample_lengths
from .stages import Stage


def objective_for(model: MiniCPMV, processor: Processor, stage: Stage):
    """Build what a stage minimizes: called with (samples, step), it gives (loss, tokens, views, supervised tokens).

    The loss is a mean over the supervised tokens; "contrast" counts its whole batch as one.
    """
    check_type("stage", stage, Stage)
    kinds = {"answer": _Answer, "spelled": _Spelled, "raw": _Raw, "contrast": _Contrast}
    return kinds[stage.objective](model, processor, stage)


def draw_samples(stage: Stage, seed: int, split: str, view: int) -> Callable[[int], Sample]:
    """The sample with each number, as many as you like."""
    scales = {1.0: 1 - stage.large, 2.0: stage.large}
    options = dict(scales=scales, turns=stage.turns, view=view, aligned=stage.aligned)
    return numbered(f"{stage.name}/{seed}", stage.data_mix, split, **options)


def held_out_loss(objective, stage: Stage, n: int = 64) -> float:
    """The loss of a stage on n held-out samples, which training never sees, whatever its seed.

    Returns:
        Mean negative log-likelihood per supervised token, in nats; for "contrast" the sigmoid loss.
    """
    check_int("n", n)
    sample = draw_samples(stage, 0, "test", objective.view)
    with torch.no_grad():
        return objective([sample(number) for number in range(n)], step=0)[0].item()


class _Answer:
    """Predict the answers."""

    def __init__(self, model: MiniCPMV, processor: Processor, stage: Stage):
        self.model, self.processor, self.stage = model, processor, stage
        self.view = model.config.slicing.scale_resolution  # side in pixels of what the world draws
        if stage.half:
            slicing = processor.config.slicing
            slicing = replace(slicing, scale_resolution=slicing.scale_resolution // 2, max_slice_nums=1)
            self.processor = Processor(processor.tokenizer, replace(processor.config, slicing=slicing))

    def __call__(self, samples: Sequence[Sample], step: int):
        return self.loss(self.prepare(samples, step))

    def prepare(self, samples: Sequence[Sample], step: int) -> tuple[PackedBatch, tuple | None]:
        """A packed batch, and the words of its pictures; None: the model looks at the pictures."""
        batch = self.batch(samples, step)
        lengths = sample_lengths(batch)
        (row,) = pack(lengths, sum(lengths))  # all in one row, equal lengths side by side
        return pack_batch(batch, [row]), self.words([samples[i] for i in row])

    def batch(self, samples: Sequence[Sample], step: int) -> Batch:
        # llama.cpp writes no <image_id>, the official code does: every other step learns without.
        return self.processor([sample.messages for sample in samples], use_image_id=self.stage.ids or step % 2 == 0)

    def words(self, samples: Sequence[Sample]) -> tuple | None:
        return None

    def loss(self, prepared):
        packed, words = prepared
        visual = None if words is None else embed_words(self.model, *words)
        tokens, views = sum(row[-1] for row in packed.borders), sum(map(len, packed.images))
        supervised = int((packed.labels != -100).sum())
        return packed_loss(self.model, packed.to(self.model.device), visual), tokens, views, supervised


class _Spelled(_Answer):
    """Predict the answers from pictures that are spelled in words. The ViT does not run at all."""

    def words(self, samples: Sequence[Sample]) -> tuple:
        return spelled_words(self.processor, samples)


class _Raw(_Spelled):
    """The same in raw text, as an LLM begins: a line for a question and its answer, no roles, no turns, no end tokens.

    It takes half the tokens, and looking things up is learned many times sooner than inside the chat template.
    """

    def batch(self, samples: Sequence[Sample], step: int) -> Batch:
        return self.processor.collate([self._line_by_line(sample, step) for sample in samples])

    def _line_by_line(self, sample: Sample, step: int) -> dict:
        config, tokenizer = self.processor.config, self.processor.tokenizer
        plan = plan_slices(sample.image.size, config.slicing)
        text = image_layout(plan, config.resampler.num_queries, config.version, 0 if step % 2 == 0 else None)
        answers = []
        for question, answer in pairwise(blind(sample.messages)):
            if question["role"] == "user":
                text += f"\n{question['content']}"
                answers.append((len(text), len(text) + 1 + len(answer["content"])))
                text += f" {answer['content']}"
        encoded = tokenizer(text + "\n", add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        bounds = image_bounds(ids, self.processor.token_ids, config.version)
        labels = answer_labels(ids, encoded["offset_mapping"], answers)
        images = [torch.empty(0)] * len(bounds)
        return dict(ids=ids, labels=labels, images=images, patch_grids=[], bounds=bounds, plans=[plan])


class _Contrast(Contrast):
    """Match captions and pictures, at full and at half resolution in turn."""

    def __init__(self, model: MiniCPMV, processor: Processor, stage: Stage):
        super().__init__(model, processor.tokenizer)
        self.view = self.slicing.scale_resolution
        self.to(model.device)

    def forward(self, samples: Sequence[Sample], step: int):
        return self.loss(self.prepare(samples, step))

    def prepare(self, samples: Sequence[Sample], step: int) -> tuple:
        return self.inputs(samples, self.slicing.scale_resolution // (1 + step % 2))

    def loss(self, prepared):
        return self.compare(*prepared), 0, len(prepared[0]), 1
