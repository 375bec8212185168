"""The text side: where an image stands in a prompt, what a conversation looks like, which tokens are supervised.

An image becomes markers around `<unk>` slots, one slot for each visual token; the model later writes its visual
embeddings into the slots. Implements the layouts and chat templates of 2.0, 2.5 and 2.6. Left out: tool calls.
U stands for one `<unk>` slot below. For a 2 x 2 grid:

    2.0  <image>UU</image><slice><image>UU</image><image>UU</image>\\n<image>UU</image><image>UU</image></slice>\\n
    2.5  the same without the last \\n: <slice> wraps the whole block, every slice is wrapped by <image>
    2.6  <image_id>0</image_id><image>UU</image><slice>UU</slice><slice>UU</slice>\\n<slice>UU</slice><slice>UU</slice>
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .config import VERSIONS
from .slicing import SlicePlan

SLOT = "<unk>"
PLACEHOLDER = "(<image>./</image>)"  # what user code writes where an image belongs
MARKERS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
DEFAULT_SYSTEM = "You are a helpful assistant."  # 2.6 only


def image_layout(plan: SlicePlan, num_queries: int, version: str = "2.6", image_id: int | None = 0) -> str:
    """Write the text that stands for one image.

    Args:
        plan: the image's SlicePlan.
        num_queries: visual tokens of one view: 64, or 96 in 2.5.
        version: "2.0", "2.5" or "2.6".
        image_id: the image's number in its prompt, counted from 0; None leaves it out. Only 2.6 writes it.

    Returns:
        Markers and `<unk>` slots. Rows of slices are joined by a newline; none follows the last row (but 2.0 ends the
        whole image with one).

    Raises:
        ValueError: an unknown version, or fewer than 1 query.

    Example:
        >>> from minicpmv_ref import plan_slices
        >>> image_layout(plan_slices((640, 480)), 1)
        '<image_id>0</image_id><image><unk></image><slice><unk></slice><slice><unk></slice>'

    Source: get_slice_image_placeholder and get_grid_placeholder in image_processing_minicpmv.py of each version.
    """
    _check_version(version)
    if num_queries < 1:
        raise ValueError(f"num_queries must be at least 1, got {num_queries}")
    slots = SLOT * num_queries
    overview = f"<image>{slots}</image>"
    one_slice = f"<slice>{slots}</slice>" if version == "2.6" else overview
    cols, rows = plan.grid or (0, 0)
    mesh = "\n".join([one_slice * cols] * rows)
    if mesh and version != "2.6":
        mesh = f"<slice>{mesh}</slice>"
    name = f"<image_id>{image_id}</image_id>" if version == "2.6" and image_id is not None else ""
    return name + overview + mesh + ("\n" if version == "2.0" else "")


def image_bounds(input_ids, tokens, version: str = "2.6") -> torch.Tensor:
    """Find the slots of every view in a tokenized prompt.

    Args:
        input_ids: token ids of one prompt: a list or a 1-D tensor.
        tokens: a tokenizer, or a mapping from the markers `<image>`, `</image>`, `<slice>`, `</slice>` to ids.
        version: "2.0", "2.5" or "2.6". In 2.6 `<slice>` opens a view; in 2.0 and 2.5 it wraps a block of views.

    Returns:
        LongTensor (views, 2): start and end (exclusive) of the slots, in the order of the text.

    Raises:
        ValueError: markers that do not come in pairs; the message counts them.

    Example:
        >>> ids = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4}
        >>> image_bounds([9, 1, 0, 0, 2, 3, 0, 0, 4, 9], ids).tolist()
        [[2, 4], [6, 8]]

    Source: processing_minicpmv.py of MiniCPM-V 2.6, _convert.
    """
    _check_version(version)
    ids = torch.as_tensor(input_ids)
    token_ids = tokens if isinstance(tokens, Mapping) else marker_ids(tokens)
    names = ("image", "slice") if version == "2.6" else ("image",)
    opens, closes = ([token_ids[form.format(name)] for name in names] for form in ("<{}>", "</{}>"))
    starts = torch.isin(ids, torch.tensor(opens)).nonzero()[:, 0] + 1
    ends = torch.isin(ids, torch.tensor(closes)).nonzero()[:, 0]
    if len(starts) != len(ends) or (starts > ends).any() or (starts[1:] <= ends[:-1]).any():
        raise ValueError(
            f"the prompt has {len(starts)} view openings ({', '.join(f'<{n}>' for n in names)}) and {len(ends)} "
            "closings that do not pair up; a truncated prompt or a marker typed as text causes this"
        )
    return torch.stack([starts, ends], dim=1)


def marker_ids(tokenizer) -> dict[str, int]:
    """Look up the ids of `<image>`, `</image>`, `<slice>` and `</slice>`.

    Raises:
        ValueError: the tokenizer does not know one of them.
    """
    ids = {marker: tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS[:4]}
    unknown = [m for m, i in ids.items() if i is None or i == tokenizer.convert_tokens_to_ids(SLOT)]
    if unknown:
        raise ValueError(f"this tokenizer does not know {', '.join(unknown)}: it is not one of a MiniCPM-V model")
    return ids


def render_chat(
    messages: list[dict], version: str = "2.6", bos: str = "", eos: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation as the text that a model of this version was trained on.

    If the last message is the user's, the header of the coming answer is added. If it is the assistant's, the text is
    a training sample.

    Args:
        messages: [{"role": "system" | "user" | "assistant", "content": str}, ...], images already laid out.
        version: "2.0", "2.5" or "2.6".
        bos: text of the first token; used by 2.0 and 2.5.
        eos: text of the last token of a finished 2.0 conversation.

    Returns:
        (text, answers): `answers` are the (start, end) characters of what the assistant said, its end token included.

    Raises:
        ValueError: no messages, an unknown role, a system message where the version has none.

    Example:
        >>> render_chat([{"role": "user", "content": "Hi"}], "2.0", bos="<s>")
        ('<s><用户>Hi<AI>', [])
        >>> text, answers = render_chat([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
        >>> [text[start:end] for start, end in answers]
        ['Yo<|im_end|>']

    Source: the chat templates in tokenizer_config.json of 2.5 and 2.6; modeling_minicpmv.py of 2.0, chat.
    """
    _check_version(version)
    _check_messages(messages, version)
    if version == "2.6" and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]

    text, answers = bos if version != "2.6" else "", []
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        last = number == len(messages) - 1
        if version == "2.6":
            head, end, tail = f"<|im_start|>{role}\n", "<|im_end|>", "\n"
        elif version == "2.5":
            head, end, tail = f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", ""
            content = content.strip()
        else:  # 2.0 ends only the conversation, not the turn
            head, end, tail = "<用户>" if role == "user" else "<AI>", eos if last and role == "assistant" else "", ""
        start = len(text) + len(head)
        text += head + content + end
        if role == "assistant":
            answers.append((start, len(text)))
        text += tail
    if messages[-1]["role"] != "assistant":
        text += {
            "2.0": "<AI>",
            "2.5": "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "2.6": "<|im_start|>assistant\n",
        }[version]
    return text, answers


def answer_labels(input_ids: list[int], offsets: list[tuple[int, int]], answers: list[tuple[int, int]]) -> list[int]:
    """Keep the ids of answer tokens, -100 elsewhere. Not shifted: labels[t] is the token at t, the loss shifts.

    Args:
        input_ids: token ids of the whole text.
        offsets: for each token its (start, end) characters, from a fast tokenizer.
        answers: the (start, end) characters of the answers, from `render_chat`.

    Returns:
        A list as long as input_ids. The official fine-tuning code supervises the end token twice and shifts
        beforehand; here each answer token is supervised once.

    Example:
        >>> answer_labels([7, 8, 9], [(0, 3), (3, 5), (5, 6)], [(3, 6)])
        [-100, 8, 9]

    Source: finetune/dataset.py of OpenBMB/MiniCPM-V, conversation_to_ids.
    """
    # Subtle: a token that begins in the header belongs to the header, even if it reaches into the answer.
    return [
        token if any(start <= first < end for start, end in answers) else -100
        for token, (first, _) in zip(input_ids, offsets, strict=True)
    ]


def _check_version(version: str) -> None:
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {VERSIONS}, got {version!r}")


def _check_messages(messages: list[dict], version: str) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    roles = ("user", "assistant") if version == "2.0" else ("system", "user", "assistant")
    for number, message in enumerate(messages):
        if message.get("role") not in roles or (message["role"] == "system" and number > 0):
            raise ValueError(
                f"message {number}: role must be one of {roles} (system only first) in {version}, "
                f"got {message.get('role')!r}"
            )
