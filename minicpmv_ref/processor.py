"""From a conversation with pictures to tensors: slicing, normalizing, laying out, tokenizing, padding.

Implements the released processors of 2.0, 2.5 and 2.6 behind one call, single or batched, for inference and training.
Left out: audio. A video is a list of frames here (`load_clip` reads files).
S samples in the batch, T tokens, views of a sample in the order of its text: overview, then slices, image by image.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .config import MiniCPMVConfig, SliceConfig
from .inputs.batches import check_bounds, check_sample
from .inputs.checks import LIMITS, WrongType, check_int, check_list, check_type, located, shown
from .inputs.messages import PLACEHOLDER, SLOT, check_messages, read_contents, reserved_tokens, sample_frames  # noqa: F401
from .inputs.pictures import load_image, upright_size
from .inputs.published import base_folder, find_folder, read_config
from .inputs.tokenizer import (
    TOKENIZER,
    check_fits,
    check_template,
    marker_ids,
    merged_answers,
    read_tokenizer,
    save_tokenizer,
    stop_ids,
)
from .prompt import answer_labels, image_bounds, image_layout, render_chat
from .slicing import SlicePlan, check_plan, plan_slices, resize_views

MAX_FRAME_SLICES = 2  # of a frame of a video, as in the official examples for 2.6
SHORTER = "a smaller max_slice_nums, fewer images or less text makes it shorter"


@dataclass
class Batch:
    """What the model takes. Lists have one entry per sample; tensors are padded on the left."""

    input_ids: torch.Tensor  # LongTensor (S, T), as the next three
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor  # not shifted; -100: unsupervised
    images: list[list[torch.Tensor]]  # views, normalized (3, 14 * rows, 14 * cols)
    patch_grids: list[list[tuple[int, int]]]  # (rows, cols) of each view
    image_bounds: list[torch.Tensor]  # LongTensor (views, 2): where the slots of a view stand in the row of input_ids
    plans: list[list[SlicePlan]]  # of each image
    stop_ids: tuple[int, ...]  # tokens that end an answer
    pad_id: int

    def to(self, device=None, dtype: torch.dtype | None = None) -> Batch:
        """Move all tensors to a device; `dtype` changes the pictures only.

        Raises:
            TypeError, ValueError: a dtype that is none of floating point, a device that torch does not know.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise WrongType(f"dtype must be a floating-point dtype of torch, got {shown(dtype)}")
        try:
            device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError):
            raise ValueError(f"device must be one of torch, got {shown(device)}") from None
        tensors = {n: getattr(self, n) for n in ("input_ids", "attention_mask", "position_ids", "labels")}
        ids = {name: None if ids is None else ids.to(device) for name, ids in tensors.items()}  # packed rows: no mask
        images = [[view.to(device=device, dtype=dtype) for view in views] for views in self.images]
        return replace(self, **ids, images=images)


class Processor:
    """Turn conversations with PIL images into a Batch.

    Args:
        tokenizer: a fast `transformers` tokenizer that knows the image markers.
        config: a MiniCPMVConfig; version, slicing, number of queries and maximal length are read from it.

    Raises:
        ValueError: a tokenizer without image markers, or without character offsets.

    Example:
        >>> processor = Processor.from_pretrained("nano")
        >>> batch = processor([{"role": "user", "content": [Image.new("RGB", (300, 100)), "What is this?"]}])
        >>> batch.plans[0][0].grid, len(batch.images[0]), batch.image_bounds[0].shape
        ((3, 1), 4, torch.Size([4, 2]))

    Source: processing_minicpmv.py of each version, and `chat` in modeling_minicpmv.py.
    """

    def __init__(self, tokenizer, config: MiniCPMVConfig):
        check_type("config", config, MiniCPMVConfig)
        if not getattr(tokenizer, "is_fast", False):
            raise WrongType("the processor needs a fast tokenizer: labels are found by character offsets")
        self.tokenizer, self.config = tokenizer, config
        self.token_ids = marker_ids(tokenizer)
        check_fits(tokenizer, config)
        self.stop_ids = stop_ids(tokenizer, config.version)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> Processor:
        """Read tokenizer and layout from a checkpoint folder: ours, a published one, or "nano".

        Raises:
            ValueError, OSError: something is missing or damaged; a chat template that writes other prompts than ours.
        """
        folder = find_folder(path)
        config = read_config(folder)
        return cls(cls.tokenizer_in(folder, config.version), config)

    @staticmethod
    def tokenizer_in(folder: Path, version: str):
        """The tokenizer of a checkpoint folder, or of the folder that holds what it left as it was."""
        while not (folder / TOKENIZER).is_file() and (base := base_folder(folder)):
            folder = base
        tokenizer = read_tokenizer(folder, version)
        check_template(folder, tokenizer, version, render_chat)
        return tokenizer

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write the tokenizer; `MiniCPMV.save_pretrained` writes the config and the weights.

        Raises:
            OSError: the folder cannot be made or written.
        """
        save_tokenizer(self.tokenizer, path)

    def __call__(self, messages, images=None, *, max_slice_nums: int | None = None, use_image_id: bool = True) -> Batch:
        """Process one conversation or a list of them.

        Args:
            messages: [{"role": ..., "content": str | list}, ...]; a list of such lists is a batch. A content list holds
                text (never a path: `load_image` opens files), PIL images, and lists of PIL images (the frames of a
                video, about one per second: 64 at most, more are thinned out evenly; at most 2 slices each; no image
                ids). Text and images may be written {"type": "text", "text": ...} and {"type": "image", "image": ...},
                too. Its parts are joined by newlines.
            images: PIL images that fill "(<image>./</image>)" in string contents (in a content list, put the picture
                itself), in order; for a batch one list each.
            max_slice_nums: overrides the config's, for all images of this call.
            use_image_id: False leaves out `<image_id>` (2.6 only).

        Returns:
            A Batch. If a conversation ends with the user, its labels cover earlier answers only and the text ends with
            the header of the coming answer.

        Raises:
            TypeError: an argument, or a part of a content, of another type.
            ValueError: more or fewer images than placeholders, a reserved token typed as text, an undecodable image, a
                prompt longer than the model's positions; in a conversation that ends with the assistant, an answer
                whose beginning changes the tokens before it (2.6: a newline).
        """
        if not isinstance(messages, list | tuple) or not messages:
            raise WrongType(f"messages must be a list of at least one message or conversation, got {shown(messages)}")
        check_type("use_image_id", use_image_id, bool, np.bool_, what="True or False")
        is_batch = not isinstance(messages[0], dict)
        samples = messages if is_batch else [messages]
        image_lists = ([None] * len(samples) if images is None else images) if is_batch else [images]
        if not isinstance(image_lists, list | tuple) or len(image_lists) != len(samples):
            raise WrongType(f"images of a batch: give {len(samples)} lists, one for each conversation")
        slicing = self.config.slicing
        if max_slice_nums is not None:
            slicing = replace(slicing, max_slice_nums=check_int("max_slice_nums", max_slice_nums))
        pairs = zip(samples, image_lists, strict=True)
        written = located(is_batch, lambda pair: self._write(*pair, slicing, bool(use_image_id)), pairs)
        return self.collate(located(is_batch, lambda sample: self._add_pixels(**sample), written))

    def plan(self, size: tuple[int, int], cfg: SliceConfig) -> SlicePlan:
        """The rule that cuts pictures; the processors of the peers have others."""
        return plan_slices(size, cfg)

    def views(self, picture: Image.Image, plan: SlicePlan) -> list[torch.Tensor]:
        """The normalized views of a picture that `plan` has planned."""
        return normalize_views(picture, plan)

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Tokens that a content must not hold; see `inputs.messages.reserved_tokens`."""
        return reserved_tokens(self.tokenizer)

    def _write(self, messages: list[dict], images, slicing: SliceConfig, use_image_id: bool) -> dict:
        """A sample without its pixels: what is wrong with text and sizes is found before pixels cost time."""
        queries, version = self.config.resampler.num_queries, self.config.version
        messages = check_messages(messages, version)
        if not isinstance(images, list | tuple | None) or not all(isinstance(i, Image.Image) for i in images or ()):
            raise WrongType(f"images= takes a list of PIL images (load_image opens files), got {shown(images)}")
        queue = deque(images or ())
        contents, pictures = read_contents(messages, queue, self.reserved)
        if queue:
            raise ValueError(f"{len(queue)} of {len(images)} images have no placeholder {PLACEHOLDER} in the messages")
        parts = [part for content in contents for part in content]
        characters = sum(len(part) for part in parts if isinstance(part, str))
        self._check_length(len(pictures) * queries, characters)

        plans, text_messages = [], []
        image_ids = count()  # frames of a video get none
        frame_cfg = replace(slicing, max_slice_nums=min(MAX_FRAME_SLICES, slicing.max_slice_nums))

        def lay_out(image: Image.Image, cfg: SliceConfig, image_id: int | None) -> str:
            plan = self.plan(upright_size(image), cfg)
            check_plan(plan)
            plans.append(plan)
            return image_layout(plan, queries, version, image_id)

        for message, parts in zip(messages, contents):
            pieces = []
            for part in parts:
                if isinstance(part, str):
                    pieces.append(part)
                elif isinstance(part, Image.Image):
                    pieces.append(lay_out(part, slicing, next(image_ids) if use_image_id else None))
                else:
                    pieces.extend(lay_out(frame, frame_cfg, None) for frame in part)
            joined = "".join(pieces) if isinstance(message["content"], str) else _join(pieces)
            text_messages.append({"role": message["role"], "content": joined})
        self._check_length(sum(plan.visual_tokens(queries) for plan in plans))
        return dict(pictures=pictures, plans=plans) | self._encode(text_messages, plans)

    def _check_length(self, visual: int, characters: int = 0) -> None:
        """Refuse what cannot fit before it is tokenized or resized."""
        most = self.config.llm.max_position_embeddings
        if visual > most or characters > most * LIMITS["token_characters"]:
            what = f"{visual} visual tokens or more" if visual > most else f"{characters} characters of text"
            raise ValueError(f"the prompt has {what}, but the model takes {most} tokens; {SHORTER}")

    def _encode(self, messages: list[dict], plans: list[SlicePlan]) -> dict:
        """Tokens, labels and bounds of messages whose images are laid out."""
        tokenizer, config = self.tokenizer, self.config
        queries, most = config.resampler.num_queries, config.llm.max_position_embeddings
        text, answers = render_chat(messages, config.version, tokenizer.bos_token or "", tokenizer.eos_token or "")
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        if len(ids) > most:
            visual = sum(plan.visual_tokens(queries) for plan in plans)
            what = f"{len(ids)} tokens, {visual} of them visual"
            raise ValueError(f"the prompt has {what}, but the model takes {most}; {SHORTER}")
        for token, times in Counter(i for i in ids if i in self._reserved_ids).items():
            name = self._reserved_ids[token]
            if times > text.count(name):  # a normalizer has made it: fullwidth letters, for example
                raise ValueError(f"messages: the tokenizer reads {name} in a text that is spelled otherwise")
        bounds = image_bounds(ids, self.token_ids, config.version)
        check_slots(bounds, plans, queries)
        if messages[-1]["role"] == "assistant" and (merged := merged_answers(text, answers, encoded, tokenizer)):
            number = [n for n, message in enumerate(messages) if message["role"] == "assistant"][merged[0]]
            raise ValueError(
                f"message {number}: the answer begins with {shown(messages[number]['content'][:8])}, which changes the "
                "tokens of the header before it: it would be learned after another prompt than it is asked with. "
                "Strip white space from answers"
            )
        return dict(ids=ids, labels=answer_labels(ids, encoded["offset_mapping"], answers), bounds=bounds)

    @cached_property
    def _reserved_ids(self) -> dict[int, str]:
        """Reserved tokens that this tokenizer knows; not `<unk>`, which also stands for what it does not know."""
        ids = {self.tokenizer.convert_tokens_to_ids(token): token for token in self.reserved if token != SLOT}
        return {i: token for i, token in ids.items() if i not in (None, self.tokenizer.unk_token_id)}

    def _add_pixels(self, pictures: list[Image.Image], plans: list[SlicePlan], **written) -> dict:
        """Add the pixels to what `_write` returns."""
        views = [view for image, plan in zip(pictures, plans) for view in self.views(load_image(image), plan)]
        grids = [grid for plan in plans for grid in plan.patch_grids]
        return dict(images=views, patch_grids=grids, plans=plans, **written)

    def collate(self, samples: list[dict]) -> Batch:
        """Pad samples to one Batch.

        Args:
            samples: dicts of ids and labels (lists of one length), images, patch_grids, bounds (views, 2), counted
                without padding, and plans. They are not changed.

        Raises:
            TypeError, ValueError: no list of such dicts, a key is missing, more or fewer labels than ids.

        Example:
            >>> processor = Processor.from_pretrained("nano")
            >>> empty = dict(images=[], patch_grids=[], plans=[], bounds=torch.zeros(0, 2, dtype=torch.long))
            >>> processor.collate([dict(ids=[5, 6], labels=[-100, 6], **empty)]).input_ids
            tensor([[5, 6]])
        """
        samples = check_list("samples", samples, dict, empty=False)
        rows = [check_sample(f"samples[{number}]", sample) for number, sample in enumerate(samples)]
        longest = max(len(given) for given, _ in rows)
        ids = torch.full((len(samples), longest), self.pad_id)
        labels, mask, bounds = torch.full_like(ids, -100), torch.zeros_like(ids), []
        for row, (sample, (given, answers)) in enumerate(zip(samples, rows)):
            pad = longest - len(given)  # on the left, so that every prompt ends where its answer begins
            ids[row, pad:] = given
            labels[row, pad:] = answers
            mask[row, pad:] = 1
            bounds.append(sample["bounds"] + pad)
        return Batch(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            labels=labels,
            images=[s["images"] for s in samples],
            patch_grids=[s["patch_grids"] for s in samples],
            image_bounds=bounds,
            plans=[s["plans"] for s in samples],
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
        )


def normalize_views(image: Image.Image, plan: SlicePlan) -> list[torch.Tensor]:
    """Resize an RGB image by its plan and scale its pixels to -1..1.

    Args:
        image: a PIL image of size plan.image_size; it is read as RGB.
        plan: its SlicePlan.

    Returns:
        float32 tensors (3, 14 * rows, 14 * cols): the overview, then the slices row by row. The slices are views of
        one tensor.

    Raises:
        TypeError, ValueError: no PIL image or one that cannot be decoded, no SlicePlan or one of another size.

    Example:
        >>> image = Image.new("RGB", (640, 480), "white")
        >>> [tuple(view.shape) for view in normalize_views(image, plan_slices(image.size))]
        [(3, 392, 518), (3, 546, 364), (3, 546, 364)]

    Source: image_processing_minicpmv.py: ((x / 255) - 0.5) / 0.5 in float32, to the last bit.
    """
    check_type("image", image, Image.Image, what="a PIL image")
    check_type("plan", plan, SlicePlan)
    if image.size != plan.image_size:
        raise ValueError(f"plan must be of the image's size (width, height) {image.size}, got {plan.image_size}")
    overview, refined = resize_views(image, plan, finish=_normalize)
    return [overview] + [refined[:, top:bottom, left:right] for left, top, right, bottom in plan.boxes]


def _normalize(image: Image.Image) -> torch.Tensor:
    planes = np.empty((3, image.height, image.width), np.float32)
    # x / 127.5 - 1 is ((x / 255) - 0.5) / 0.5 to the last bit, because doubling rounds nothing. A few rows stay in the
    # cache from one step to the next. numpy needs no threads of its own beside the two that resize.
    for plane, channel in zip(planes, map(np.asarray, image.split())):
        for top in range(0, len(plane), 64):
            np.divide(channel[top : top + 64], np.float32(127.5), out=plane[top : top + 64])
            plane[top : top + 64] -= 1
    return torch.from_numpy(planes)


def check_slots(bounds: torch.Tensor, plans: list[SlicePlan], num_queries: int) -> None:
    """Compare the slots in the text with the embeddings the images will give; the most common failure of all.

    Raises:
        TypeError, ValueError: slots that do not match (names the image, the view, and both counts); other types.
    """
    check_bounds("bounds", bounds)
    plans, num_queries = check_list("plans", plans, SlicePlan), check_int("num_queries", num_queries)
    expected = [(i, v, 1 + plan.num_slices) for i, plan in enumerate(plans) for v in range(1 + plan.num_slices)]
    for (i, v, views), (start, end) in zip(expected, bounds.tolist()):
        if end - start != num_queries:
            view = "overview" if v == 0 else f"slice {v} of {views - 1}"
            raise ValueError(f"image {i}, {view}: {end - start} slots in the text but {num_queries} embeddings")
    if len(expected) != len(bounds):
        # The first image that is not whole; or the one after the last, if the text has too many slots.
        first = expected[len(bounds)][0] if len(bounds) < len(expected) else len(plans)
        raise ValueError(
            f"image {first}: the text has slots for {len(bounds)} views but the images have {len(expected)}: "
            f"{len(bounds) * num_queries} slots, {len(expected) * num_queries} embeddings"
        )


def _join(pieces: list[str]) -> str:
    """Join the parts of a content list by newlines. 2.0's images bring their own newline."""
    ended = [p if p.endswith(("</image>\n", "</slice>\n")) else p + "\n" for p in pieces[:-1]]
    return "".join([*ended, *pieces[-1:]])
