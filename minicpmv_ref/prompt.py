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
from types import MappingProxyType
from typing import NamedTuple

import torch

from .config import VERSIONS
from .inputs.batches import token_row
from .inputs.checks import LIMITS, WrongType, check_choice, check_int, check_list, check_type
from .inputs.messages import SLOT, TURNS, check_messages, reserved_in
from .inputs.tokenizer import marker_ids
from .slicing import SlicePlan

DEFAULT_SYSTEM = "You are a helpful assistant."  # 2.6 only


class Turn(NamedTuple):
    """How a version writes a turn."""

    before: str  # stands before the role
    after: str  # stands after the role; then comes the content
    end: str  # ends the turn, and belongs to the answer
    gap: str  # stands before the next turn
    names: Mapping[str, str] = MappingProxyType({})  # of roles, where they differ from ours

    def head(self, role: str) -> str:
        return self.before + self.names.get(role, role) + self.after


TEMPLATES = {
    "2.0": Turn("<", ">", "", "", {"user": "用户", "assistant": "AI"}),  # only the whole conversation has an end, eos
    "2.5": Turn("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", ""),
    "2.6": Turn("<|im_start|>", "\n", "<|im_end|>", "\n"),
}


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
        TypeError, ValueError: no SlicePlan, an unknown version, image_id or num_queries that no prompt has.

    Example:
        >>> from minicpmv_ref import plan_slices
        >>> image_layout(plan_slices((640, 480)), 1)
        '<image_id>0</image_id><image><unk></image><slice><unk></slice><slice><unk></slice>'

    Source: get_slice_image_placeholder and get_grid_placeholder in image_processing_minicpmv.py of each version.
    """
    check_choice("version", version, VERSIONS)
    check_type("plan", plan, SlicePlan)
    num_queries = check_int("num_queries", num_queries, most=LIMITS["num_queries"])
    check_int("plan.num_slices", plan.num_slices, least=0, most=LIMITS["max_slice_nums"])
    if image_id is not None:
        image_id = check_int("image_id", image_id, least=0)
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
        TypeError: input_ids that are no integers, or neither a tokenizer nor a mapping.
        ValueError: markers that do not come in pairs of one kind; the message counts them.

    Example:
        >>> ids = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4}
        >>> image_bounds([9, 1, 0, 0, 2, 3, 0, 0, 4, 9], ids).tolist()
        [[2, 4], [6, 8]]

    Source: processing_minicpmv.py of MiniCPM-V 2.6, _convert.
    """
    check_choice("version", version, VERSIONS)
    ids = token_row("input_ids", input_ids)
    token_ids = tokens if isinstance(tokens, Mapping) else marker_ids(tokens)
    kinds = ("image", "slice") if version == "2.6" else ("image",)
    opens = [check_int(f"tokens['<{kind}>']", token_ids.get(f"<{kind}>"), least=0) for kind in kinds]
    closes = [check_int(f"tokens['</{kind}>']", token_ids.get(f"</{kind}>"), least=0) for kind in kinds]
    starts = torch.isin(ids, torch.tensor(opens, device=ids.device)).nonzero()[:, 0]
    ends = torch.isin(ids, torch.tensor(closes, device=ids.device)).nonzero()[:, 0]
    if (
        len(starts) != len(ends)
        or (starts > ends).any()
        or (starts[1:] < ends[:-1]).any()
        or ((ids[starts] == opens[-1]) != (ids[ends] == closes[-1])).any()  # <image> ... </slice>
    ):
        raise ValueError(
            f"the prompt has {len(starts)} view openings ({', '.join(f'<{kind}>' for kind in kinds)}) and {len(ends)} "
            "closings that do not pair up; a truncated prompt or a marker typed as text causes this"
        )
    return torch.stack([starts + 1, ends], dim=1)


def render_chat(
    messages: list[dict], version: str = "2.6", bos: str = "", eos: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation as the text that a model of this version was trained on.

    If the last message is the user's, the header of the coming answer is added. If it is the assistant's, the text is
    a training sample.

    Args:
        messages: [{"role": "system" | "user" | "assistant", "content": str}, ...], images already laid out.
        version: "2.0", "2.5" or "2.6".
        bos, eos: text of the first token (2.0 and 2.5) and of the last one of a finished conversation (2.0).

    Returns:
        (text, answers): `answers` are the (start, end) characters of what the assistant said, its end token included.

    Raises:
        TypeError: messages that are no list of dicts, content that is no text.
        ValueError: no messages, an unknown role, a system message where the version has none, a key other than role
            and content, a token in a content that would begin or end a turn.

    Example:
        >>> render_chat([{"role": "user", "content": "Hi"}], "2.0", bos="<s>")
        ('<s><用户>Hi<AI>', [])
        >>> text, answers = render_chat([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
        >>> [text[start:end] for start, end in answers]
        ['Yo<|im_end|>']

    Source: the chat templates in tokenizer_config.json of 2.5 and 2.6; modeling_minicpmv.py of 2.0, chat.
    """
    check_choice("version", version, VERSIONS)
    check_type("bos", bos, str)
    check_type("eos", eos, str)
    for number, message in enumerate(check_messages(messages, version)):
        content = check_type(f"message {number}: content", message.get("content"), str)
        if typed := reserved_in(content, TURNS):
            raise ValueError(f"message {number}: {typed} is reserved for the chat template, it cannot be text")
    if version == "2.6" and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]

    turn, text, answers = TEMPLATES[version], bos if version != "2.6" else "", []
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        ends = version == "2.0" and role == "assistant" and number == len(messages) - 1
        start = len(text := text + turn.head(role))
        text += (content.strip() if version == "2.5" else content) + (eos if ends else turn.end)
        if role == "assistant":
            answers.append((start, len(text)))
        text += turn.gap
    return text + (turn.head("assistant") if role != "assistant" else ""), answers


def answer_labels(input_ids: list[int], offsets: list[tuple[int, int]], answers: list[tuple[int, int]]) -> list[int]:
    """Keep the ids of answer tokens, -100 elsewhere. Not shifted: labels[t] is the token at t, the loss shifts.

    Args:
        input_ids: token ids of the whole text.
        offsets: for each token its (start, end) characters, from a fast tokenizer.
        answers: the (start, end) characters of the answers, from `render_chat`.

    Returns:
        A list as long as input_ids. The official fine-tuning code supervises the end token twice and shifts
        beforehand; here each answer token is supervised once.

    Raises:
        TypeError, ValueError: other than lists of pairs of integers, more or fewer offsets than ids.

    Example:
        >>> answer_labels([7, 8, 9], [(0, 3), (3, 5), (5, 6)], [(3, 6)])
        [-100, 8, 9]

    Source: finetune/dataset.py of OpenBMB/MiniCPM-V, conversation_to_ids.
    """
    ids = token_row("input_ids", input_ids).tolist()
    offsets, answers = check_list("offsets", offsets), check_list("answers", answers)
    if len(ids) != len(offsets):
        raise ValueError(f"offsets must have one entry for each of the {len(ids)} input_ids, got {len(offsets)}")
    try:
        # Subtle: a token that begins in the header belongs to the header, even if it reaches into the answer.
        return [
            token if any(start <= first < end for start, end in answers) else -100
            for token, (first, _) in zip(ids, offsets)
        ]
    except (TypeError, ValueError, RuntimeError):  # the last: an array of torch is neither larger nor smaller
        raise WrongType("offsets and answers must be lists of (start, end) pairs of integers") from None
