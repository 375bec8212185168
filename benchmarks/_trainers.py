"""How other people train the same model: Trainer or accelerate, their batches, and their vision towers.

`Vision` makes visual tokens of views with their code and our weights: the ViT padded or packed, then the resampler as
released or ours. `with_trainer` and `with_accelerate` train with it, or with our own ViT and resampler.
"""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange, repeat
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionConfig, Idefics2VisionTransformer
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6VisionConfig, MiniCPMV4_6VisionModel
from vision import peer

from minicpmv_ref.learn.packing import pack_batch
from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.learn.train import lr_scale_at, optimizer_for
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.positions import bucket_position_ids, sincos_2d
from minicpmv_ref.processor import Batch, Processor

# (is the ViT packed, is the resampler the released one); None: our ViT and resampler.
VISIONS = {
    "our ViT": None,
    "padded ViT, released resampler": (False, True),
    "padded ViT, our resampler": (False, False),
    "packed ViT, released resampler": (True, True),
    "packed ViT, our resampler": (True, False),
}
KINDS = ("padded", "sorted", "padding-free")  # of batches


class Vision(nn.Module):
    """Views to visual tokens, as other people compute them; its parameters are those of a model of ours.

    padded: as MiniCPM-V 2.6 was released (`get_vllm_embedding`): a strip of patches for each view, zeros up to the
        longest, and a mask. The encoder is Idefics2's with sdpa, which is faster than the released one.
    packed: MiniCPM-V 4.6 in transformers: all views in one row, and a loop over the views in attention.
    released resampler: torch.nn.MultiheadAttention over padded views; not asked for attention weights, also faster.
    """

    def __init__(self, model: MiniCPMV, packed: bool, released: bool):
        super().__init__()
        self.packed, self.released, self.resampler = packed, released, model.resampler
        if packed:
            self.tower = peer(MiniCPMV4_6VisionModel, MiniCPMV4_6VisionConfig, model.vpm)
            self.tower.vit_merger = None  # this model has none
        else:
            self.tower = peer(Idefics2VisionTransformer, Idefics2VisionConfig, model.vpm)
        cfg = model.config.resampler
        with torch.device("meta"):
            self.attention = nn.MultiheadAttention(cfg.width, cfg.heads)
        self.attention.load_state_dict(dict(model.resampler.attn.named_parameters()), assign=True)
        self.register_buffer("table", sincos_2d(cfg.width, 70, 70), persistent=False)

    def forward(self, images: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor:
        lengths = [rows * cols for rows, cols in grids]
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, L)
        strips = [rearrange(x, "c (r p) (w q) -> c p (r w q)", p=14, q=14) for x in images]
        if self.packed:
            pixels, sizes = torch.cat(strips, dim=-1)[None], torch.tensor(grids, dtype=torch.int32)
            row = self.tower(pixels, sizes, use_vit_merger=False).last_hidden_state[0]
            features = row.split(lengths)
            padded = pad_sequence(features, batch_first=True) if self.released else None
        else:
            padded = self._padded(strips, grids, real)
            features = None if self.released else padded[real].split(lengths)
        return self._resample(padded, grids, real) if self.released else self.resampler(list(features), grids)

    def _padded(self, strips, grids, real) -> torch.Tensor:
        """(B, L, C), of which the mask says what is real."""
        longest, embeddings = 14 * real.shape[1], self.tower.embeddings
        pixels = torch.stack([F.pad(strip, (0, longest - strip.shape[-1])) for strip in strips])
        ids = pad_sequence([bucket_position_ids(*grid) for grid in grids], batch_first=True)
        x = rearrange(embeddings.patch_embedding(pixels), "b c 1 l -> b l c") + embeddings.position_embedding(ids)
        mask = create_bidirectional_mask(self.tower.config, x, real)  # None where nothing is padded
        return self.tower.post_layernorm(self.tower.encoder(x, mask).last_hidden_state)

    def _resample(self, features, grids, real) -> torch.Tensor:
        parts = self.resampler
        x = parts.ln_kv(parts.kv_proj(features))
        positions = [self.table[:rows, :cols].flatten(0, 1) for rows, cols in grids]
        keys = x + pad_sequence(positions, batch_first=True)
        q = repeat(parts.ln_q(parts.query), "q e -> q b e", b=len(x))
        keys, values = (rearrange(t, "b l e -> l b e").contiguous() for t in (keys, x))  # as released
        padding = None if real.all() else ~real
        out, _ = self.attention(q, keys, values, key_padding_mask=padding, need_weights=False)
        return parts.ln_post(rearrange(out, "q b e -> b q e")) @ parts.proj


class Wrapped(nn.Module):
    """What Trainer trains: a batch goes in, the loss comes out, a mean over the supervised tokens of a whole step."""

    def __init__(self, model: MiniCPMV, vision: nn.Module | None = None):
        super().__init__()
        self.model, self.vision = model, vision

    def forward(self, batch: dict, labels: torch.Tensor, num_items_in_batch=None, **more):
        batch, visual = Batch(**batch), None
        if self.vision is not None:
            views = [view for views in batch.images for view in views]
            visual = self.vision(views, [grid for grids in batch.patch_grids for grid in grids])
        logits = self.model.llm(
            inputs_embeds=self.model.embed(batch, visual),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
        vocabulary = self.model.config.llm.vocab_size
        return {"loss": self.model.llm.loss_function(logits, labels, vocabulary, num_items_in_batch=num_items_in_batch)}


class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def collate(processor: Processor, size: int, flat: bool, items: list) -> dict:
    """A batch of (number, sample), padded or in one row, with <image_id> in every other step, as our objective has."""
    step = items[0][0] // size + 1
    batch = processor([sample.messages for _, sample in items], use_image_id=step % 2 == 0)
    if flat:
        batch = pack_batch(batch, [list(range(len(items)))]).as_batch()
    return {"batch": vars(batch), "labels": batch.labels}


def parts_of(model: MiniCPMV, processor: Processor, stage: Stage, samples: list, args, vision, kind: str) -> tuple:
    """What a training of a copy of the model needs; `vision` is of VISIONS, `kind` of KINDS."""
    model = copy.deepcopy(model).train()
    if kind == "sorted":
        samples = sorted(samples, key=lambda item: (item[0] // stage.batch, args.lengths[item[0]]))
    optimizer = optimizer_for(model, stage)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_scale_at(step, stage.steps))
    wrapped = Wrapped(model, None if vision is None else Vision(model, *vision))
    return wrapped, optimizer, schedule, samples, partial(collate, processor, stage.batch, kind == "padding-free")


def with_trainer(*common, parts: int) -> list[float]:
    """Train with Trainer in so many micro-batches; returns the loss of every step. `common` as for `parts_of`."""
    wrapped, optimizer, schedule, samples, collator = parts_of(*common)
    stage, args = common[2], common[4]
    settings = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written, but it makes the folder
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch // parts,
        gradient_accumulation_steps=parts,
        logging_steps=1,
        max_grad_norm=1.0,
        bf16=args.bfloat16,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_strategy="steps",
        log_level="error",
    )
    schedules = (optimizer, schedule)
    trainer = InOrder(wrapped, settings, data_collator=collator, train_dataset=samples, optimizers=schedules)
    trainer.pop_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def with_accelerate(*common, parts: int) -> list[float]:
    """The same in a loop of accelerate alone, which needs no set-up of a Trainer."""
    wrapped, optimizer, schedule, samples, collator = parts_of(*common)
    stage, args = common[2], common[4]
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if args.bfloat16 else "no")
    loader = DataLoader(samples, stage.batch // parts, collate_fn=collator)
    wrapped, optimizer, loader = accelerator.prepare(wrapped, optimizer, loader)
    losses, batches = [], iter(loader)
    for _ in range(stage.steps):
        step = list(islice(batches, parts))
        asked = sum(int((batch["labels"] != -100).sum()) for batch in step)
        losses.append(0.0)
        for batch in step:
            loss = wrapped(**batch, num_items_in_batch=asked)["loss"]
            accelerator.backward(loss)
            losses[-1] += loss.item()
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


LOOPS = {"Trainer": with_trainer, "accelerate": with_accelerate}
