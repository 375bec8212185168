"""The whole model: slices go through the ViT and the resampler, land in the slots of the text, and the LLM answers.

Left out: the LLM itself. It is a `transformers` causal LM built from our numbers; we own the glue: where visual tokens
enter, positions, masks, the loss, generation over embeddings. `decoding.py` chooses tokens and writes text.
S samples, T tokens, B views of all samples, Q visual tokens of a view, D width of the LLM, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .config import MiniCPMVConfig
from .decoding import SEEDS, check_sampling, decode_answer, decode_stream, next_token  # noqa: F401 (decode_answer is public here)
from .inputs.batches import check_batch, check_finite, check_shapes, check_views, check_visual
from .inputs.checkpoint import read_tensors, without_tied_head, write_checkpoint
from .inputs.checks import check_int, check_list, check_type
from .inputs.published import BUNDLED, find_folder, read_config
from .llm import build_llm
from .processor import Batch, Processor, check_slots
from .resampler import Resampler
from .slicing import SlicePlan
from .vision import VisionTransformer


@dataclass
class Output:
    loss: torch.Tensor | None  # mean over supervised tokens; None if there are none
    logits: torch.Tensor  # (S, T, V)


class MiniCPMV(nn.Module):
    """MiniCPM-V of a MiniCPMVConfig: `vpm` (the ViT), `resampler`, `llm`. Weights are random until one is loaded.

    A `connector` takes the Resampler's place; it is called as it is and gives as many tokens as the config says.

    Example:
        >>> from minicpmv_ref import nano
        >>> model = MiniCPMV(nano)
        >>> sum(p.numel() for p in model.parameters()) < 5e6
        True

    Source: modeling_minicpmv.py of MiniCPM-V 2.0, 2.5 and 2.6.
    """

    def __init__(self, config: MiniCPMVConfig, connector: nn.Module | None = None):
        super().__init__()
        self.config = check_type("config", config, MiniCPMVConfig)
        self.vpm = VisionTransformer(config.vision)
        self.resampler = Resampler(config.resampler) if connector is None else connector
        self.llm = build_llm(config.llm)

    device = property(lambda self: next(self.parameters()).device, doc="Where its weights are.")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> MiniCPMV:
        """Load config and weights from a folder, in the files' dtype. Later changes of the files do not matter.

        Args:
            path: one of our folders, a published one (2.0, 2.5, 2.6), or "nano", the course's own model. The course's
                checkpoints are stored in bfloat16 and come as float32: not every CPU multiplies bfloat16.

        Returns:
            The model, in evaluation mode. ViT, resampler and LLM may have different dtypes.

        Raises:
            OSError, ValueError: something is missing, surplus, misshapen, damaged or not finite; the message names it.

        Example:
            >>> MiniCPMV.from_pretrained("nano").config.slicing.scale_resolution
            112
        """
        folder = find_folder(path)
        config = read_config(folder)
        model = cls.without_memory(config)  # names and shapes first
        model.read_weights(folder)
        return model.float() if folder.parent == BUNDLED else model  # small models, for machines without bfloat16

    def read_weights(self, folder: Path) -> None:
        """Fill a model that was built without memory from a folder, and put it in evaluation mode."""
        tensors = read_tensors(folder, self.config, {name: t.shape for name, t in self.own_tensors().items()})
        if self.config.llm.tie_word_embeddings:
            tensors["llm.lm_head.weight"] = tensors["llm.model.embed_tokens.weight"]
        self.load_state_dict(tensors, strict=True, assign=True)
        self.llm.tie_weights()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name != "resampler.pos_embed")  # 2.0's is frozen
        self.eval()

    @classmethod
    def without_memory(cls, *args, **options) -> MiniCPMV:
        """Build a model on the meta device: names and shapes only, until `load_state_dict(..., assign=True)`."""
        with torch.device("meta"):
            model = cls(*args, **options)
        # The frequencies of the rotary positions are no parameters, so no checkpoint brings them: compute them here.
        rotary = model.llm.model.rotary_emb
        model.llm.model.rotary_emb = type(rotary)(config=model.llm.config)
        return model

    @classmethod
    def seeded(cls, config: MiniCPMVConfig, seed: int = 0) -> MiniCPMV:
        """Build a model with random weights that are the same every time.

        Raises:
            TypeError, ValueError: not a MiniCPMVConfig, or a seed that is no integer of 64 bits.

        Example:
            >>> from minicpmv_ref import nano
            >>> bool((MiniCPMV.seeded(nano).resampler.query == MiniCPMV.seeded(nano).resampler.query).all())
            True
        """
        seed = check_int("seed", seed, *SEEDS)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
            return cls(config).eval()

    def save_pretrained(self, path: str | os.PathLike, **more) -> None:
        """Write config.json and model.safetensors, names as published for 2.5 and 2.6; a tied lm_head is not repeated.

        Raises:
            OSError: the folder cannot be written; a checkpoint that was there before stays whole.
            ValueError: LoRA adapters are in place; their names are not those of a checkpoint.
        """
        if self.has_adapters:
            raise ValueError("the model has adapters: save them with save_lora, or merge_lora before you save it whole")
        write_checkpoint(path, self.config, self.own_tensors(), **more)

    @property
    def has_adapters(self) -> bool:
        """Whether LoRA adapters are in place; they say by themselves what learns, and have files of their own."""
        return hasattr(self, "peft_config")

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that a checkpoint holds: `state_dict` without a tied lm_head."""
        return without_tied_head(self.state_dict()) if self.config.llm.tie_word_embeddings else self.state_dict()

    def encode_images(self, images: list[torch.Tensor], patch_grids: list[tuple[int, int]]) -> torch.Tensor:
        """Turn views into visual tokens.

        Args:
            images: normalized views (3, 14 * rows, 14 * cols).
            patch_grids: (rows, cols) of each.

        Returns:
            Tensor (B, Q, D). A view's tokens do not depend on the other views, except in the released 2.5 code, where
            this list is one prompt's.

        Raises:
            TypeError, ValueError: no tensors of floats, no pairs of integers, more views than grids, or a view that
                does not have the size its grid says.
        """
        images, patch_grids = check_views(images, patch_grids, self.config.vision.patch_size)
        weight = self.vpm.post_layernorm.weight
        features = self.vpm([image.to(weight) for image in images])
        # The parts of a checkpoint may have different dtypes. Equal ones are left alone: autocast has its own rules.
        dtype = next(chain(self.resampler.parameters(), self.resampler.buffers())).dtype
        if dtype != weight.dtype:
            features = [feature.to(dtype) for feature in features]
        return self.resampler(features, patch_grids)

    def embed(self, batch: Batch, visual: torch.Tensor | None = None) -> torch.Tensor:
        """Embed a batch's text and write the visual tokens into their slots.

        Args:
            batch: from a Processor.
            visual: (B, Q, D) from `encode_images`, if you have it already; all samples' views in order.

        Returns:
            Tensor (S, T, D), the input of `llm`.

        Raises:
            TypeError, ValueError: not a Batch of this model, `visual` is no such tensor, or slots and visual tokens
                do not match (names the image and both counts).
        """
        self._check_batch(batch)
        for bounds, plans in zip(batch.image_bounds, batch.plans):
            check_slots(bounds, plans, self.config.resampler.num_queries)
        embeddings = self._look_up(batch.input_ids)
        if visual is None:
            visual = self._encode(batch)
        check_visual(visual, self.config.resampler.num_queries, self.config.llm.hidden_size)
        slots = [(row, start, end) for row, b in enumerate(batch.image_bounds) for start, end in b.tolist()]
        if len(slots) != len(visual):
            raise ValueError(f"the text has slots for {len(slots)} views, but visual tokens of {len(visual)} came")
        if not slots:
            return embeddings
        places = torch.tensor([(row, column) for row, start, end in slots for column in range(start, end)])
        rows, columns = places.to(embeddings.device, non_blocking=True).T  # a GPU is still busy with the pictures
        # Subtle: MiniCPM-2.4B (2.0) multiplies whatever it is given by 12, but visual tokens are not meant to be.
        visual = rearrange(visual, "b q d -> (b q) d") / self.config.llm.embedding_multiplier
        return embeddings.index_put((rows, columns), visual.to(embeddings))

    def _look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed tokens, in the dtype that the LLM computes in."""
        table = self.llm.get_input_embeddings()
        embeddings = table(ids)
        if not isinstance(table, nn.Module):  # the embedding of a deploy.runtime.Runtime
            return embeddings
        norm = next((p for p in self.llm.parameters() if p.ndim == 1), None)
        # As in encode_images: only a table that has a dtype of its own is converted.
        return embeddings if norm is None or table.weight.dtype == norm.dtype else embeddings.to(norm.dtype)

    def _check_batch(self, batch: Batch) -> None:
        """Refuse what no Processor of this model makes."""
        check_type("batch", batch, Batch, what="a Batch from a Processor")
        check_batch(batch, self.config.llm.vocab_size)
        for row, plans in enumerate(batch.plans):
            check_list(f"batch.plans[{row}]", plans, SlicePlan)

    def _encode(self, batch: Batch) -> torch.Tensor:
        images = check_list("batch.images", batch.images, list, tuple)
        grids = check_list("batch.patch_grids", batch.patch_grids, list, tuple)
        if len(images) != len(grids):  # one for each sample, also where a row has several
            raise ValueError(f"batch.images and batch.patch_grids differ in length: {len(images)} and {len(grids)}")
        if self.config.vision.position == "released_2_5":  # depends on the longest view of the prompt: one by one
            return torch.cat([self.encode_images(*prompt) for prompt in zip(images, grids)])
        return self.encode_images(list(chain.from_iterable(images)), list(chain.from_iterable(grids)))

    def forward(self, batch: Batch) -> Output:
        """Score a batch.

        Returns:
            An object with `.logits` (S, T, V) and `.loss`, the mean over tokens whose label is not -100 (None if there
            are none). Labels are shifted here.

        Raises:
            TypeError, ValueError: as `embed`; labels that the model does not have; logits that are not finite.
        """
        self._check_batch(batch)
        packed = batch.attention_mask is None  # then the positions say where a sample begins
        check_shapes(batch, "position_ids", "labels", *([] if packed else ["attention_mask"]))
        logits = self.llm(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
        check_finite(logits, None if packed else batch.attention_mask.bool(), "forward")
        labels = batch.labels[:, 1:].flatten()
        if (((labels < 0) & (labels != -100)) | (labels >= self.config.llm.vocab_size)).any():
            raise ValueError(f"batch.labels must be -100 or from 0 to {self.config.llm.vocab_size - 1}")
        if not (labels != -100).any():
            return Output(None, logits)
        return Output(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=-100), logits)

    def generate(self, batch: Batch, max_new_tokens: int = 256, **sampling) -> torch.Tensor:
        """Answer a batch of prompts.

        Args:
            batch: from a Processor; its conversations end with the user (a finished answer would be continued).
            max_new_tokens: at most so many; fewer for all if the longest prompt leaves fewer of the model's positions.
            sampling: see `stream`. The default is greedy; the released `chat` samples with temperature 0.7, top_p 0.8,
                top_k 100, repetition_penalty 1.05. There is no beam search.

        Returns:
            LongTensor (S, n): new tokens only, the stop token included, `batch.pad_id` after it.

        Raises:
            TypeError, ValueError: as `embed`; no position left for an answer, an impossible setting, logits that are
                not finite.
        """
        return torch.stack(list(self.stream(batch, max_new_tokens, **sampling)), dim=1)

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
            batch, max_new_tokens, visual: as in `generate` and `embed`.
            temperature: 0 takes the likeliest token (greedy); 0.0001 or more samples.
            top_k: sample from the k likeliest tokens only.
            top_p: sample from the likeliest tokens whose probabilities sum to at least p.
            repetition_penalty: above 1 makes tokens that the answer already has less likely; 0.001 to 1000.
            seed: of the sampling.

        Returns:
            An iterator of LongTensors (S,): the next token of every sample; `batch.pad_id` for those that have stopped.

        Raises:
            TypeError, ValueError: as `generate`.
        """
        check_sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
        self._check_batch(batch)
        check_shapes(batch, "attention_mask", "position_ids", "labels")
        if not batch.attention_mask[:, -1].all():
            raise ValueError("batch.attention_mask ends with padding, but answers continue prompts: pad on the left")
        check_int("batch.pad_id", batch.pad_id, 0, self.config.llm.vocab_size - 1)
        check_list("batch.stop_ids", batch.stop_ids, int)
        free = self.config.llm.max_position_embeddings - batch.input_ids.shape[1]
        if free < 1:
            raise ValueError(f"the prompt fills all {self.config.llm.max_position_embeddings} positions of the model")
        # A generator would raise only at its first token, so the checks stand outside of it.
        steps = min(max_new_tokens, free)
        return self._steps(batch, steps, temperature, top_k, top_p, repetition_penalty, seed, visual)

    @torch.no_grad()
    def _steps(self, batch, steps, temperature, top_k, top_p, repetition_penalty, seed, visual):
        generator = torch.Generator(batch.input_ids.device).manual_seed(int(seed))
        stops = torch.tensor(batch.stop_ids, device=batch.input_ids.device)
        mask, positions = F.pad(batch.attention_mask, (0, steps), value=1), batch.position_ids
        seen = torch.zeros(len(mask), self.config.llm.vocab_size, dtype=torch.bool, device=mask.device)
        running = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        step = {"inputs_embeds": self.embed(batch, visual)}
        cache = None
        for number in range(steps):
            out = self.llm(
                **step,
                attention_mask=mask[:, : number - steps],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            logits = out.logits[:, -1].float()
            check_finite(logits, running, f"token {number + 1} of the answer")
            token = next_token(logits, seen, temperature, top_k, top_p, repetition_penalty, generator)
            token = torch.where(running, token, batch.pad_id)
            yield token
            seen.scatter_(1, token[:, None], True)
            running &= ~torch.isin(token, stops)
            if not running.any():
                return
            step = {"inputs_embeds": self._look_up(token[:, None])}
            positions = positions[:, -1:] + 1

    def chat(self, messages, processor: Processor, stream: bool = False, *, images=None, **options):
        """Answer a conversation in words.

        Args:
            messages, images: as for the Processor; one conversation that ends with the user.
            processor: the Processor of this model. The answer keeps its marks of places (`<ref>`, `<box>`, `<quad>`,
                `<point>` and their ends), as the released `chat` does; other special tokens are left out.
            stream: True returns an iterator of text pieces, as they are generated.
            options: `max_slice_nums`, `use_image_id` go to the processor, all others to `generate`.

        Returns:
            The answer, or an iterator of its pieces.

        Raises:
            TypeError, ValueError: as the Processor and `generate`.

        Example:
            >>> from PIL import Image
            >>> from minicpmv_ref import Processor
            >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
            >>> question = [{"role": "user", "content": [Image.new("RGB", (64, 64)), "What is this?"]}]
            >>> type(model.chat(question, processor, max_new_tokens=4))
            <class 'str'>
        """
        check_type("processor", processor, Processor)
        check_type("stream", stream, bool)
        split = {name: options.pop(name) for name in ("max_slice_nums", "use_image_id") if name in options}
        batch = processor(messages, images, **split)
        if len(batch.input_ids) != 1:
            raise ValueError(f"chat takes one conversation, got {len(batch.input_ids)}; use generate for a batch")
        conversation = messages if isinstance(messages[0], dict) else messages[0]
        if conversation[-1]["role"] == "assistant":
            raise ValueError("the conversation ends with the assistant: there is nothing to answer")
        batch = batch.to(self.llm.device)
        tokens = (int(token) for token in self.stream(batch, **options))
        pieces = decode_stream(tokens, processor.tokenizer, batch.stop_ids)
        return pieces if stream else "".join(pieces)
