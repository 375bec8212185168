"""From a conversation with pictures to tensors: slicing, normalizing, laying out, tokenizing, padding.

Implements the released processors of 2.0, 2.5 and 2.6 behind one call, single or batched, for inference and training.
Left out: audio, and video files (a video is a list of frames here).
S samples in the batch, T tokens, views of a sample in the order of its text: overview, then slices, image by image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from .config import MiniCPMVConfig, SliceConfig, base_folder, find_folder, read_config
from .pictures import load_image
from .prompt import MARKERS, PLACEHOLDER, answer_labels, image_bounds, image_layout, marker_ids, render_chat
from .slicing import SlicePlan, plan_slices, resize_views
from .tokenizer import TOKENIZER, read_tokenizer, stop_ids

MAX_FRAMES = 64  # of one video
MAX_FRAME_SLICES = 2


@dataclass
class Batch:
    """What the model takes. Lists have one entry per sample; tensors are padded on the left.

    input_ids, attention_mask, position_ids, labels: LongTensors (S, T). Labels are not shifted; -100: unsupervised.
    images: per sample its views, normalized (3, 14 * rows, 14 * cols).
    patch_grids: per sample the (rows, cols) of its views.
    image_bounds: per sample a LongTensor (views, 2): where the slots of each view stand in its row of input_ids.
    plans: per sample the SlicePlan of each image.
    stop_ids: tokens that end an answer.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    images: list[list[torch.Tensor]]
    patch_grids: list[list[tuple[int, int]]]
    image_bounds: list[torch.Tensor]
    plans: list[list[SlicePlan]]
    stop_ids: tuple[int, ...]
    pad_id: int

    def to(self, device=None, dtype: torch.dtype | None = None) -> Batch:
        """Move all tensors to a device; `dtype` changes the pictures only."""
        ids = {n: getattr(self, n).to(device) for n in ("input_ids", "attention_mask", "position_ids", "labels")}
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
        if not tokenizer.is_fast:
            raise ValueError("the processor needs a fast tokenizer: labels are found by character offsets")
        self.tokenizer, self.config = tokenizer, config
        self.token_ids = marker_ids(tokenizer)
        self.stop_ids = stop_ids(tokenizer, config.version)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> Processor:
        """Read tokenizer and layout from a checkpoint folder: ours, a published one, or "nano".

        Raises:
            ValueError, OSError: the folder, its config or its tokenizer is missing or damaged.
        """
        folder = home = find_folder(path)
        while not (home / TOKENIZER).is_file() and (base := base_folder(home)):
            home = base
        return cls(read_tokenizer(home), read_config(folder))

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write the tokenizer; `MiniCPMV.save_pretrained` writes the config and the weights.

        Raises:
            OSError: the folder cannot be made or written.
        """
        Path(path).mkdir(parents=True, exist_ok=True)  # or an error: the tokenizer itself would only log one
        self.tokenizer.save_pretrained(path)

    def __call__(self, messages, images=None, *, max_slice_nums: int | None = None, use_image_id: bool = True) -> Batch:
        """Process one conversation or a list of them.

        Args:
            messages: [{"role": ..., "content": str | list}, ...]; a list of such lists is a batch. A content list holds
                text (never a path: `load_image` opens files), PIL images, and lists of PIL images (the frames of a
                video, about one per second: 64 at most, more are thinned out evenly; at most 2 slices each; no image
                ids). Its parts are joined by newlines.
            images: PIL images that fill "(<image>./</image>)" in string contents (in a content list, put the picture
                itself), in order; for a batch one list each.
            max_slice_nums: overrides the config's, for all images of this call.
            use_image_id: False leaves out `<image_id>` (2.6 only).

        Returns:
            A Batch. If a conversation ends with the user, its labels cover earlier answers only and the text ends with
            the header of the coming answer.

        Raises:
            ValueError: more or fewer images than placeholders, markers typed as text, an undecodable image, a prompt
                longer than the model's positions.
        """
        if not messages or not isinstance(messages, list | tuple):
            raise ValueError(f"messages must be a list of at least one message or conversation, got {messages!r}")
        is_batch = not isinstance(messages[0], dict)
        samples = messages if is_batch else [messages]
        image_lists = ([None] * len(samples) if images is None else images) if is_batch else [images]
        if not isinstance(image_lists, list | tuple) or len(image_lists) != len(samples):
            raise ValueError(f"images of a batch: give {len(samples)} lists, one for each conversation")
        slicing = self.config.slicing
        if max_slice_nums is not None:
            slicing = replace(slicing, max_slice_nums=max_slice_nums)
        pairs = zip(samples, image_lists, strict=True)
        return self.collate([self._sample(sample, given, slicing, use_image_id) for sample, given in pairs])

    def _sample(self, messages: list[dict], images, slicing: SliceConfig, use_image_id: bool) -> dict:
        if not isinstance(messages, list | tuple) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"a conversation is a list of dicts with role and content, got {messages!r}")
        images = [] if images is None else images
        if not isinstance(images, list | tuple) or not all(isinstance(image, Image.Image) for image in images):
            raise ValueError(f"images= takes a list of PIL images (load_image opens files), got {images!r}")
        plans, views, text_messages = [], [], []
        queue = list(images)
        numbered = 0  # images that got an id so far; frames get none

        def lay_out(image: Image.Image, cfg: SliceConfig, with_id: bool) -> str:
            nonlocal numbered
            image = load_image(image)
            plan = plan_slices(image.size, cfg)
            plans.append(plan)
            views.extend(normalize_views(image, plan))
            number = numbered if with_id else None
            numbered += with_id
            return image_layout(plan, self.config.resampler.num_queries, self.config.version, number)

        for number, message in enumerate(messages):
            parts = _parts(message, number, queue)
            pieces = []
            for part in parts:
                if isinstance(part, str):
                    pieces.append(part)
                elif isinstance(part, Image.Image):
                    pieces.append(lay_out(part, slicing, use_image_id))
                else:
                    frame_cfg = replace(slicing, max_slice_nums=min(MAX_FRAME_SLICES, slicing.max_slice_nums))
                    pieces.extend(lay_out(frame, frame_cfg, False) for frame in sample_frames(part))
            joined = "".join(pieces) if isinstance(message["content"], str) else _join(pieces)
            text_messages.append({"role": message.get("role"), "content": joined})
        if queue:
            raise ValueError(f"{len(queue)} of {len(images)} images have no placeholder {PLACEHOLDER} in the messages")

        text, answers = render_chat(
            text_messages, self.config.version, self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, most = encoded["input_ids"], self.config.llm.max_position_embeddings
        if len(ids) > most:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, {len(views) * self.config.resampler.num_queries} of them visual, "
                f"but the model takes {most}; a smaller max_slice_nums, fewer images or less text makes it shorter"
            )
        bounds = image_bounds(ids, self.token_ids, self.config.version)
        check_slots(bounds, plans, self.config.resampler.num_queries)
        return dict(
            ids=ids,
            labels=answer_labels(ids, encoded["offset_mapping"], answers),
            images=views,
            patch_grids=[grid for plan in plans for grid in plan.patch_grids],
            bounds=bounds,
            plans=plans,
        )

    def collate(self, samples: list[dict]) -> Batch:
        """Pad samples to one Batch; each is a dict of ids, labels, images, patch_grids, bounds and plans."""
        longest = max(len(s["ids"]) for s in samples)
        ids = torch.full((len(samples), longest), self.pad_id)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, s in enumerate(samples):
            pad = longest - len(s["ids"])  # on the left, so that every prompt ends where its answer begins
            ids[row, pad:] = torch.tensor(s["ids"])
            labels[row, pad:] = torch.tensor(s["labels"])
            mask[row, pad:] = 1
            s["bounds"] = s["bounds"] + pad
        return Batch(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            labels=labels,
            images=[s["images"] for s in samples],
            patch_grids=[s["patch_grids"] for s in samples],
            image_bounds=[s["bounds"] for s in samples],
            plans=[s["plans"] for s in samples],
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
        )


def normalize_views(image: Image.Image, plan: SlicePlan) -> list[torch.Tensor]:
    """Resize an RGB image by its plan and scale its pixels to -1..1.

    Args:
        image: an RGB image of size plan.image_size.
        plan: its SlicePlan.

    Returns:
        float32 tensors (3, 14 * rows, 14 * cols): the overview, then the slices row by row. The slices are views of
        one tensor.

    Example:
        >>> image = Image.new("RGB", (640, 480), "white")
        >>> [tuple(view.shape) for view in normalize_views(image, plan_slices(image.size))]
        [(3, 392, 518), (3, 546, 364), (3, 546, 364)]

    Source: image_processing_minicpmv.py: ((x / 255) - 0.5) / 0.5 in float32, to the last bit.
    """
    overview, refined = resize_views(image, plan, finish=_normalize)
    return [overview] + [refined[:, top:bottom, left:right] for left, top, right, bottom in plan.boxes]


def _normalize(image: Image.Image) -> torch.Tensor:
    pixels = rearrange(np.asarray(image), "h w c -> c h w")
    planes = np.empty(pixels.shape, np.float32)
    # x / 127.5 - 1 is ((x / 255) - 0.5) / 0.5 to the last bit, because doubling rounds nothing. numpy converts, divides
    # and transposes in one pass over the pixels, and needs no threads of its own beside the two that resize.
    np.divide(pixels, np.float32(127.5), out=planes)
    return torch.from_numpy(np.subtract(planes, np.float32(1), out=planes))


def sample_frames(frames: list, most: int = MAX_FRAMES) -> list:
    """Thin a video out to at most `most` frames, evenly: the middle of each of `most` equal parts.

    Example:
        >>> sample_frames(list(range(10)), 4)
        [1, 3, 6, 8]

    Source: docs/minicpm_v2dot6_en.md of OpenBMB/MiniCPM-V, encode_video.
    """
    if len(frames) <= most:
        return list(frames)
    gap = len(frames) / most
    return [frames[int(i * gap + gap / 2)] for i in range(most)]


def check_slots(bounds: torch.Tensor, plans: list[SlicePlan], num_queries: int) -> None:
    """Compare the slots in the text with the embeddings the images will give; the most common failure of all.

    Raises:
        ValueError: names the image, the view, and both counts.
    """
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


def _parts(message: dict, number: int, queue: list) -> list:
    """A message's content as a list of text, images and videos; images of the queue fill placeholders."""
    content = message.get("content")
    if isinstance(content, str):
        texts = content.split(PLACEHOLDER)
        if len(texts) - 1 > len(queue):
            raise ValueError(
                f"message {number}: {len(texts) - 1} placeholders {PLACEHOLDER} but only {len(queue)} images left"
            )
        parts = [texts[0]]
        for text in texts[1:]:
            parts += [queue.pop(0), text]
    elif isinstance(content, list | tuple) and content:
        parts = list(content)
    else:
        raise ValueError(f"message {number}: content must be text or a list of text and images, got {content!r}")
    for part in parts:
        if isinstance(part, str):
            typed = [marker for marker in MARKERS if marker in part]
            if typed:
                raise ValueError(
                    f"message {number}: {typed[0]} is reserved for the image layout, it cannot be text "
                    "(a placeholder belongs in a string content; in a list, put the picture itself)"
                )
        elif isinstance(part, list | tuple):
            if not part or not all(isinstance(frame, Image.Image) for frame in part):
                raise ValueError(f"message {number}: a video must be a list of at least one PIL image")
        elif not isinstance(part, Image.Image):
            raise ValueError(
                f"message {number}: {type(part).__name__} is neither text, a PIL image nor a list of frames "
                "(load_image opens files)"
            )
        if not isinstance(part, str) and message.get("role") == "assistant":
            raise ValueError(f"message {number}: an image in an answer would be supervised as text")
    return parts


def _join(pieces: list[str]) -> str:
    """Join the parts of a content list by newlines. 2.0's images bring their own newline."""
    text = ""
    for i, piece in enumerate(pieces):
        brought = piece.endswith(("</image>\n", "</slice>\n"))
        text += piece + ("" if i == len(pieces) - 1 or brought else "\n")
    return text
