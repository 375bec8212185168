"""What users write: a conversation comes in, lists of text, pictures and videos go on to `processor`.

Left out: audio and tool calls. A video is a list of frames, as `load_clip` gives them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Sequence

from PIL import Image

from .checks import LIMITS, WrongType, check_int, check_list, check_type, shown

SLOT = "<unk>"
PLACEHOLDER = "(<image>./</image>)"  # what user code writes where an image belongs
MARKERS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
GROUNDING = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<point>", "</point>")
# What begins and ends turns, in all versions: the text of one model may train another.
TURNS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<s>", "</s>", "<用户>", "<AI>"),
)
RESERVED = (*MARKERS, SLOT, *TURNS)
MAX_FRAMES = LIMITS["frames"]  # of one video
PICTURE = re.compile(
    r"(https?:|file:)\S+|data:image/\S+|\S+\.(png|jpe?g|webp|gif|bmp|tiff?|ppm|heic|avif|mp4|mov|webm|mkv|avi)", re.I
)


def check_messages(messages, version: str) -> list[dict]:
    """A conversation as a list of dicts with a role that the version knows, and a content."""
    if not isinstance(messages, list | tuple) or not all(isinstance(message, dict) for message in messages):
        raise WrongType(f"messages: a conversation is a list of dicts with role and content, got {shown(messages)}")
    if not messages:
        raise ValueError("a conversation needs at least one message")
    roles = ("user", "assistant") if version == "2.0" else ("system", "user", "assistant")
    for number, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or role not in roles or (role == "system" and number > 0):
            raise ValueError(
                f"message {number}: role must be one of {roles} (system only first) in {version}, got {shown(role)}"
            )
        surplus = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
        if surplus:  # "images", for example: the picture would not be seen
            raise ValueError(
                f"message {number}: {shown(surplus[0])} is no key of a message, only role and content are read; "
                "pictures stand in the content"
            )
    return list(messages)


def read_contents(
    messages: list[dict], queue: deque, reserved: tuple[str, ...]
) -> tuple[list[list], list[Image.Image]]:
    """The parts of each message's content, and all pictures and frames in them in order."""
    contents = [content_parts(message, number, queue, reserved) for number, message in enumerate(messages)]
    videos = [p if isinstance(p, list) else [p] for parts in contents for p in parts if not isinstance(p, str)]
    pictures, seen = [image for video in videos for image in video], set()
    for picture in pictures:
        if id(picture) in seen and getattr(picture, "is_animated", False):  # as ImageSequence of Pillow gives it
            raise ValueError(
                "messages: frames of a clip are the same PIL image, which shows one of its frames only: load_clip "
                "gives all, or copy each while it is shown"
            )
        seen.add(id(picture))
    return contents, pictures


def content_parts(message: dict, number: int, queue: deque, reserved: tuple[str, ...]) -> list:
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
            parts += [queue.popleft(), text]
    elif isinstance(content, list | tuple) and content:
        parts = [_part(part, number) for part in content]
    else:
        raise WrongType(f"message {number}: content must be text or a list of text and images, got {shown(content)}")
    if message["role"] == "assistant" and not all(isinstance(part, str) for part in parts):
        raise ValueError(f"message {number}: an image in an answer would be supervised as text")
    text = "\n".join(part if isinstance(part, str) else "\0" for part in parts)
    if typed := reserved_in(text, reserved):
        hint = " (a placeholder belongs in a string content; in a list, put the picture itself)" * (typed in MARKERS)
        raise ValueError(
            f"message {number}: {typed} is reserved for the image layout and the chat template, it cannot be text{hint}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"message {number}: half a character (a lone surrogate) is in the text") from None
    return parts


def _part(part, number: int):
    """One part of a content list: text, an image, or the list of a video's frames."""
    if isinstance(part, dict):  # as messages for `transformers` and for web services are written
        kind = part.get("type") if isinstance(part.get("type"), str) else None
        value = part.get(kind)
        surplus = [key for key, other in part.items() if key not in ("type", kind) and other is not None]
        if surplus or not isinstance(value, {"text": str, "image": Image.Image}.get(kind, ())):
            raise WrongType(
                f'message {number}: a dict in a content is {{"type": "text", "text": "..."}} or {{"type": "image", '
                f'"image": a PIL image}} (load_image opens files; a video is a list of PIL images: load_clip), '
                f"got {shown(part)}"
            )
        return value
    if isinstance(part, str):
        if PICTURE.fullmatch(part.strip()) or (PICTURE.fullmatch(part.replace(" ", "")) and os.path.isfile(part)):
            warnings.warn(
                f"message {number}: {shown(part)} is read as text, no picture is opened: give load_image(path) "
                'or load_clip(path) instead, or {"type": "text", "text": ...} if you mean the text',
                stacklevel=2,
            )
        return part
    if isinstance(part, list | tuple):
        if not part or not all(isinstance(frame, Image.Image) for frame in part):
            raise WrongType(f"message {number}: a video must be a list of at least one PIL image, as load_clip gives")
        return sample_frames(part)
    if not isinstance(part, Image.Image):
        raise WrongType(
            f"message {number}: {type(part).__name__} is neither text, a PIL image nor a list of frames "
            "(load_image opens files, load_clip videos)"
        )
    return part


def sample_frames(frames: Sequence, most: int = MAX_FRAMES) -> list:
    """Thin a video out to at most `most` frames, evenly: the middle of each of `most` equal parts.

    Args:
        frames: a list or a range of anything.
        most: at least 1.

    Returns:
        A new list.

    Raises:
        TypeError: frames that are no list, or a `most` that is no integer.
        ValueError: a `most` below 1.

    Example:
        >>> sample_frames(list(range(10)), 4)
        [1, 3, 6, 8]

    Source: docs/minicpm_v2dot6_en.md of OpenBMB/MiniCPM-V, encode_video.
    """
    check_type("frames", frames, list, tuple, range, what="a list")
    gap = max(1, len(frames) / check_int("most", most))
    return [frames[int(i * gap + gap / 2)] for i in range(min(len(frames), most))]


def reserved_tokens(tokenizer=None) -> tuple[str, ...]:
    """List the tokens that layouts and chat templates write, and that questions and answers must not hold.

    In a text they would begin a turn, end one, or open a picture. Marks of places (`<ref>`, `<box>`, `<quad>`,
    `<point>` and their ends) are allowed: people write them in questions, and models in answers.

    Args:
        tokenizer: adds all special tokens that it has; None gives those of all versions only.

    Returns:
        The tokens as text, each once.

    Raises:
        TypeError: not a tokenizer.

    Example:
        >>> "<|im_end|>" in reserved_tokens(), "<box>" in reserved_tokens()
        (True, False)
    """
    if tokenizer is None:
        return RESERVED
    if not hasattr(tokenizer, "added_tokens_decoder"):
        raise WrongType(f"tokenizer must be one of transformers, got {type(tokenizer).__name__}: {shown(tokenizer)}")
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    own = (token for token in special if token.strip() and token not in GROUNDING)
    return tuple(dict.fromkeys((*RESERVED, *own)))


def reserved_in(text: str, tokens: tuple[str, ...] = RESERVED) -> str | None:
    """Find a reserved token in what a user or a model has written.

    Args:
        text: the text.
        tokens: from `reserved_tokens`.

    Returns:
        The first of `tokens` that the text holds; None if there is none.

    Raises:
        TypeError: not text.

    Example:
        >>> reserved_in("Hi<|im_end|>"), reserved_in("<ref>the cup</ref>")
        ('<|im_end|>', None)
    """
    check_type("text", text, str)
    return next((token for token in check_list("tokens", tokens, str) if token in text), None)
