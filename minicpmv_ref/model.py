"""The whole model: slices go through the ViT and the resampler, land in the slots of the text, and the LLM answers.

Left out: the LLM itself. It is a `transformers` causal LM built from our numbers; we own the glue: where visual tokens
enter, positions, masks, the loss, generation over embeddings, streaming.
S samples, T tokens, B views of all samples, Q visual tokens of a view, D width of the LLM, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .checkpoint import read_tensors, write_checkpoint
from .config import BUNDLED, LLMConfig, MiniCPMVConfig, find_folder, read_config
from .processor import Batch, Processor, check_slots
from .resampler import Resampler
from .vision import VisionTransformer


@dataclass
class Output:
    loss: torch.Tensor | None  # mean over supervised tokens; None if there are none
    logits: torch.Tensor  # (S, T, V)


class MiniCPMV(nn.Module):
    """MiniCPM-V: `vpm` (the ViT), `resampler`, `llm`. Weights are random until a checkpoint is loaded.

    Args:
        config: a MiniCPMVConfig, for example one of the presets.

    Example:
        >>> from minicpmv_ref import nano
        >>> model = MiniCPMV(nano)
        >>> sum(p.numel() for p in model.parameters()) < 5e6
        True

    Source: modeling_minicpmv.py of MiniCPM-V 2.0, 2.5 and 2.6.
    """

    def __init__(self, config: MiniCPMVConfig):
        super().__init__()
        self.config = config
        self.vpm = VisionTransformer(config.vision)
        self.resampler = Resampler(config.resampler)
        self.llm = build_llm(config.llm)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> MiniCPMV:
        """Load config and weights from a folder, in the files' dtype.

        Args:
            path: one of our folders, a published one (2.0, 2.5, 2.6), or "nano", the course's own model. The course's
                checkpoints are stored in bfloat16 and come as float32: not every CPU multiplies bfloat16.

        Returns:
            The model, in evaluation mode.

        Raises:
            OSError, ValueError: something is missing, surplus, misshapen or damaged; the message names it.

        Example:
            >>> MiniCPMV.from_pretrained("nano").config.slicing.scale_resolution
            112
        """
        folder = find_folder(path)
        config = read_config(folder)
        with torch.device("meta"):  # names and shapes first; no memory is taken until the files are read
            model = cls(config)
        shapes = {name: tensor.shape for name, tensor in model._own_tensors().items()}
        tensors = read_tensors(folder, config, shapes)
        if config.llm.tie_word_embeddings:
            tensors["llm.lm_head.weight"] = tensors["llm.model.embed_tokens.weight"]
        model.load_state_dict(tensors, strict=True, assign=True)
        model.llm.tie_weights()
        # Frequencies of the rotary positions are no parameters: build them anew, outside the meta device.
        rotary = model.llm.model.rotary_emb
        model.llm.model.rotary_emb = type(rotary)(config=model.llm.config)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name != "resampler.pos_embed")  # 2.0's is frozen
        if folder.parent == BUNDLED:  # small models, for machines that may not know bfloat16
            model.float()
        return model.eval()

    @classmethod
    def seeded(cls, config: MiniCPMVConfig, seed: int = 0) -> MiniCPMV:
        """Build a model with random weights that are the same every time.

        Example:
            >>> from minicpmv_ref import nano
            >>> bool((MiniCPMV.seeded(nano).resampler.query == MiniCPMV.seeded(nano).resampler.query).all())
            True
        """
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
            return cls(config).eval()

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, names as published for 2.5 and 2.6; a tied lm_head is not repeated.

        Raises:
            OSError: the folder cannot be written; a checkpoint that was there before stays whole.
            ValueError: LoRA adapters are in place; their names are not those of a checkpoint.
        """
        if hasattr(self, "peft_config"):
            raise ValueError("the model has adapters: save them with save_lora, or merge_lora before you save it whole")
        write_checkpoint(path, self.config, self._own_tensors())

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        tensors = self.state_dict()
        if self.config.llm.tie_word_embeddings:
            del tensors["llm.lm_head.weight"]
        return tensors

    def encode_images(self, images: list[torch.Tensor], patch_grids: list[tuple[int, int]]) -> torch.Tensor:
        """Turn views into visual tokens.

        Args:
            images: normalized views (3, 14 * rows, 14 * cols).
            patch_grids: (rows, cols) of each.

        Returns:
            Tensor (B, Q, D). A view's tokens do not depend on the other views, except in the released 2.5 code, where
            this list is one prompt's.

        Raises:
            ValueError: a view that does not have the size its grid says.
        """
        patch = self.config.vision.patch_size
        for number, (image, (rows, cols)) in enumerate(zip(images, patch_grids)):
            if tuple(image.shape[1:]) != (patch * rows, patch * cols):
                raise ValueError(
                    f"view {number}: {rows} rows x {cols} columns of patches need {patch * rows} x {patch * cols} "
                    f"pixels (height x width), got {tuple(image.shape[1:])}"
                )
        weight = self.vpm.post_layernorm.weight
        features = self.vpm([image.to(weight) for image in images])
        return self.resampler(features, patch_grids)

    def embed(self, batch: Batch, visual: torch.Tensor | None = None) -> torch.Tensor:
        """Embed a batch's text and write the visual tokens into their slots.

        Args:
            batch: from a Processor.
            visual: (B, Q, D) from `encode_images`, if you have it already; all samples' views in order.

        Returns:
            Tensor (S, T, D), the input of `llm`.

        Raises:
            ValueError: slots and visual tokens that do not match; names the image and both counts.
        """
        for bounds, plans in zip(batch.image_bounds, batch.plans, strict=True):
            check_slots(bounds, plans, self.config.resampler.num_queries)
        embeddings = self.llm.get_input_embeddings()(batch.input_ids)
        if visual is None:
            visual = self._encode(batch)
        expected = (self.config.resampler.num_queries, self.config.llm.hidden_size)
        if tuple(visual.shape[1:]) != expected:
            raise ValueError(f"visual tokens must be (views, {expected[0]}, {expected[1]}), got {tuple(visual.shape)}")
        slots = [(row, start, end) for row, b in enumerate(batch.image_bounds) for start, end in b.tolist()]
        if len(slots) != len(visual):
            raise ValueError(f"the text has slots for {len(slots)} views, but visual tokens of {len(visual)} came")
        if not slots:
            return embeddings
        rows = torch.tensor([row for row, start, end in slots for _ in range(start, end)], device=embeddings.device)
        columns = torch.tensor([c for _, start, end in slots for c in range(start, end)], device=embeddings.device)
        # Subtle: MiniCPM-2.4B (2.0) multiplies whatever it is given by 12, but visual tokens are not meant to be.
        visual = rearrange(visual, "b q d -> (b q) d") / self.config.llm.embedding_multiplier
        return embeddings.index_put((rows, columns), visual.to(embeddings))

    def _encode(self, batch: Batch) -> torch.Tensor:
        if self.config.vision.position == "released_2_5":  # depends on the longest view of the prompt: one by one
            prompts = zip(batch.images, batch.patch_grids, strict=True)
            return torch.cat([self.encode_images(images, grids) for images, grids in prompts])
        images = [view for views in batch.images for view in views]
        return self.encode_images(images, [grid for grids in batch.patch_grids for grid in grids])

    def forward(self, batch: Batch) -> Output:
        """Score a batch.

        Returns:
            An object with `.logits` (S, T, V) and `.loss`, the mean over tokens whose label is not -100 (None if there
            are none). Labels are shifted here.

        Raises:
            ValueError: slots and visual tokens that do not match.
        """
        logits = self.llm(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
        labels = batch.labels[:, 1:].flatten()
        if not (labels != -100).any():
            return Output(None, logits)
        return Output(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=-100), logits)

    def generate(self, batch: Batch, max_new_tokens: int = 256, **sampling) -> torch.Tensor:
        """Answer a batch of prompts.

        Args:
            batch: from a Processor; its conversations end with the user (a finished answer would be continued).
            max_new_tokens: at most so many; fewer if the model's positions run out.
            sampling: see `stream`. The default is greedy; the released `chat` samples with temperature 0.7, top_p 0.8,
                top_k 100, repetition_penalty 1.05. There is no beam search.

        Returns:
            LongTensor (S, n): new tokens only, the stop token included, `batch.pad_id` behind it.

        Raises:
            ValueError: slots and visual tokens that do not match, no room for an answer, an impossible setting.
        """
        steps = list(self.stream(batch, max_new_tokens, **sampling))
        return torch.stack(steps, dim=1)

    def stream(
        self,
        batch: Batch,
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        visual: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Generate token by token, with a KV cache.

        Args:
            batch, max_new_tokens: as in `generate`.
            temperature: 0 takes the likeliest token (greedy); above 0 samples.
            top_k: sample from the k likeliest tokens only.
            top_p: sample from the likeliest tokens whose probabilities sum to at least p.
            repetition_penalty: above 1 makes tokens that the answer already has less likely.
            seed: of the sampling.
            visual: as in `embed`.

        Returns:
            An iterator of LongTensors (S,): the next token of every sample; `batch.pad_id` for those that have stopped.

        Raises:
            ValueError: as `generate`.
        """
        possible = temperature >= 0 and 0 < top_p <= 1 and repetition_penalty > 0  # False for NaN, too
        if not possible or max_new_tokens < 1 or (top_k is not None and top_k < 1):
            raise ValueError(
                "max_new_tokens and top_k must be at least 1, temperature at least 0, top_p in (0, 1] and "
                f"repetition_penalty above 0; got {max_new_tokens=}, {top_k=}, {temperature=}, {top_p=}, "
                f"{repetition_penalty=}"
            )
        room = self.config.llm.max_position_embeddings - batch.input_ids.shape[1]
        if room < 1:
            raise ValueError(f"the prompt fills all {self.config.llm.max_position_embeddings} positions of the model")
        # A generator would raise only at its first token, so the checks stand outside of it.
        return self._steps(
            batch, min(max_new_tokens, room), temperature, top_k, top_p, repetition_penalty, seed, visual
        )

    @torch.no_grad()
    def _steps(self, batch, steps, temperature, top_k, top_p, repetition_penalty, seed, visual):
        generator = torch.Generator(batch.input_ids.device).manual_seed(seed)
        stops = torch.tensor(batch.stop_ids, device=batch.input_ids.device)
        mask, positions = batch.attention_mask, batch.position_ids
        seen = torch.zeros(len(mask), self.config.llm.vocab_size, dtype=torch.bool, device=mask.device)
        running = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        step = {"inputs_embeds": self.embed(batch, visual)}
        cache = None
        for _ in range(steps):
            out = self.llm(
                **step,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            logits = out.logits[:, -1].float()
            if repetition_penalty != 1:
                damped = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
                logits = torch.where(seen, damped, logits)
            if temperature == 0:
                token = logits.argmax(dim=-1)
            else:
                token = _sample(logits / temperature, top_k, top_p, generator)
            token = torch.where(running, token, batch.pad_id)
            yield token
            seen[torch.arange(len(token)), token] = True
            running &= ~torch.isin(token, stops)
            if not running.any():
                return
            step = {"input_ids": token[:, None]}
            mask = F.pad(mask, (0, 1), value=1)
            positions = positions[:, -1:] + 1

    def chat(self, messages, processor: Processor, stream: bool = False, *, images=None, **options):
        """Answer a conversation in words.

        Args:
            messages, images: as for the Processor; one conversation that ends with the user.
            processor: the Processor of this model.
            stream: True returns an iterator of text pieces, as they are generated.
            options: `max_slice_nums`, `use_image_id` go to the processor, all others to `generate`.

        Returns:
            The answer, or an iterator of its pieces.

        Raises:
            ValueError: as the Processor and `generate`.

        Example:
            >>> from PIL import Image
            >>> from minicpmv_ref import Processor
            >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
            >>> question = [{"role": "user", "content": [Image.new("RGB", (64, 64)), "What is this?"]}]
            >>> type(model.chat(question, processor, max_new_tokens=4))
            <class 'str'>
        """
        split = {name: options.pop(name) for name in ("max_slice_nums", "use_image_id") if name in options}
        batch = processor(messages, images, **split)
        if isinstance(messages[-1], dict) and messages[-1]["role"] == "assistant":
            raise ValueError("the conversation ends with the assistant: there is nothing to answer")
        if len(batch.input_ids) != 1:
            raise ValueError(f"chat takes one conversation, got {len(batch.input_ids)}; use generate for a batch")
        batch = batch.to(self.llm.device)
        tokens = (int(token) for token in self.stream(batch, **options))
        pieces = decode_stream(tokens, processor.tokenizer, batch.stop_ids)
        return pieces if stream else "".join(pieces)


def decode_stream(tokens, tokenizer, stop_ids=()) -> Iterator[str]:
    """Decode token ids to text piece by piece, never splitting a character.

    Args:
        tokens: an iterable of ids.
        tokenizer: the tokenizer.
        stop_ids: ids that are not shown.

    Yields:
        Pieces of text; joined, they are the decoded answer.
    """
    ids, shown = [], ""
    for token in tokens:
        if token in stop_ids:
            break
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a character of several tokens is shown once it is whole
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids, skip_special_tokens=True)[len(shown) :]
    if rest:
        yield rest


def _sample(logits: torch.Tensor, top_k: int | None, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """Draw one token of each row of (S, V) logits."""
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of all likelier tokens; 0 for the first, so it stays
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    return order.gather(-1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]


def build_llm(cfg: LLMConfig) -> nn.Module:
    """Build the `transformers` causal LM of a config, with random weights.

    MiniCPM-2.4B of 2.0 is a Granite by another name: both multiply embeddings, residuals and logits by constants.

    Returns:
        A LlamaForCausalLM, Qwen2ForCausalLM or GraniteForCausalLM.
    """
    from transformers import (
        GraniteConfig,
        GraniteForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    config_class, model_class = {
        "granite": (GraniteConfig, GraniteForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[cfg.family]
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
        "max_position_embeddings tie_word_embeddings"
    ).split()
    numbers = {name: getattr(cfg, name) for name in names}
    # JSON may say 1 where transformers insists on 1.0.
    numbers |= {name: float(getattr(cfg, name)) for name in ("rms_norm_eps", "initializer_range")}
    if cfg.family == "granite":
        numbers |= dict(
            embedding_multiplier=cfg.embedding_multiplier,
            residual_multiplier=cfg.residual_multiplier,
            logits_scaling=cfg.logits_divisor,
            attention_multiplier=cfg.head_width**-0.5,
        )
    rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    return model_class(config_class(**numbers, rope_parameters=rope, pad_token_id=None, attn_implementation="sdpa"))
