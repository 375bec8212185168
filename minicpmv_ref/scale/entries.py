"""One record: its check, and the conversation that it becomes.

An entry is what JSON gave, believed in nothing, from a file (`records.py`) or from a shard (`shards.py`):

    {"id": "0",
     "image": "a.png",                             one picture, or {"<image_00>": "a.png", "<image_01>": "b.png"}
     "conversations": [{"role": "user", "content": "<image>\\nWhat is this?"},
                       {"role": "assistant", "content": "A receipt."}]}

`check_entry` makes a Record of it, or says all that is wrong and how to fix it. Left out: records without a picture,
videos, system turns.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..inputs.checks import check_type, printable, shown
from ..inputs.pictures import load_image
from ..prompt import reserved_in

ONE = "<image>"  # the placeholder where `image` is a path
PLACEHOLDERS = re.compile(r"<image(?:_\d+)?>")


@dataclass(frozen=True)
class Record:
    """One good record. Its pictures stay on the disk until they are needed; those of shards are files in memory."""

    id: str  # for messages only; several records may share it
    images: dict[str, Path | io.BytesIO]  # placeholder -> file
    turns: tuple[tuple[str, str], ...]  # (role, content); every placeholder stands in exactly one content

    @property
    def messages(self) -> list[dict]:
        """What the training loop asks a sample for."""
        return messages(self)


# ---- 1. From an entry to a record


Flaw = tuple[str, str, str]  # field, what is wrong, how to fix it
MOST_FLAWS = 20  # of one record; a list of a million wrong turns needs no million lines


def check_entry(entry, find: Callable) -> tuple[Record | None, list[Flaw], int]:
    """Check one entry in the format of the official fine-tuning code, wherever it comes from.

    Args:
        entry: what JSON gave, believed in nothing.
        find: takes what stands where a picture's path should, a text, and returns (file, None), or (None, (what is
            wrong, how to fix it)).

    Returns:
        (a Record or None, what is wrong with the entry, how many answers of a good one lost white space in front).

    Example:
        >>> talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": " A cat."}]
        >>> entry = {"id": 0, "image": "a.png", "conversations": talk}
        >>> record, flaws, spaced = check_entry(entry, lambda text: (Path(text), None))
        >>> record.turns[1], flaws, spaced
        (('assistant', 'A cat.'), [], 1)
    """
    if not isinstance(entry, dict):
        return None, [("", f"not an object but {shown(entry, 60)}", "a record has id, image and conversations")], 0
    flaws: list[Flaw] = []
    if entry_id(entry) is None:
        what = f"must be text or a whole number, got {shown(entry['id'], 60)}" if "id" in entry else "missing"
        flaws.append(("id", what, "give each record one"))
    named, wrong = _named_images(entry)
    flaws += wrong
    files = {}
    for placeholder, text in named.items():
        files[placeholder], wrong = find(text)
        if wrong and len(flaws) < MOST_FLAWS:
            flaws.append(("image" if isinstance(entry["image"], str) else f"image[{placeholder!r}]", *wrong))
    turns, wrong = _turns(entry)
    flaws += wrong
    if turns and named:
        turns, wrong = _placed(turns, named)
        flaws += wrong
    if flaws:
        return None, flaws[:MOST_FLAWS], 0
    # Under 2.6's tokenizer a newline before an answer becomes one token with that of the header. At the question the
    # header stands alone, so the model would have learned to answer another prompt.
    kept = tuple((role, text.lstrip() if role == "assistant" else text) for role, text in turns)
    return Record(entry_id(entry), files, kept), [], sum(a != b for a, b in zip(turns, kept))


def entry_id(entry) -> str | None:
    """The id of an entry as text; None if it has none that is good."""
    name = entry.get("id") if isinstance(entry, dict) else None
    good = (isinstance(name, str) and name.strip()) or (isinstance(name, int) and not isinstance(name, bool))
    return str(name) if good else None


def _named_images(entry: dict) -> tuple[dict[str, str], list[Flaw]]:
    """{placeholder: path}; a path alone belongs to <image>."""
    fix = 'give a path, or paths by placeholder: {"<image_00>": "a.png"}'
    if "image" not in entry:
        if "images" in entry:
            fix = f"rename images to image; {fix}"
        return {}, [("image", "missing", fix)]
    image = entry["image"]
    named = {ONE: image} if isinstance(image, str) else image
    if not isinstance(named, dict) or not named:
        return {}, [("image", f"must be a path or an object, got {shown(image, 60)}", fix)]
    for placeholder, text in named.items():
        if not PLACEHOLDERS.fullmatch(placeholder) or (placeholder == ONE and len(named) > 1):
            what = f"{shown(placeholder, 40)} cannot be a placeholder"
            return {}, [("image", what, "several are <image_00>, <image_01>")]
        if not isinstance(text, str) or not text.strip():
            return {}, [("image", f"a path must be text, got {shown(text, 60)}", fix)]
    return named, []


def _turns(entry: dict) -> tuple[list[tuple[str, str]], list[Flaw]]:
    """(role, content) of all turns; [] if anything is wrong with them."""
    talk = entry.get("conversations")
    shape = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if not isinstance(talk, list) or not talk:
        what = f"must be a list of turns, got {shown(talk, 60)}" if "conversations" in entry else "missing"
        if "messages" in entry and "conversations" not in entry:
            shape = f"rename messages to conversations; {shape}"
        return [], [("conversations", what, shape)]
    flaws: list[Flaw] = []
    slipped = False  # one slip moves all the rest
    for i, turn in enumerate(talk):
        place = f"conversations[{i}]"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            fix = shape
            if isinstance(turn, dict) and "from" in turn:
                fix = "in LLaVA's files rename from to role, value to content, human to user, gpt to assistant"
            flaws.append((place, f"must have role and content, got {shown(turn, 60)}", fix))
            break  # the others will look alike
        role, content = turn["role"], turn["content"]
        wanted = ("user", "assistant")[i % 2]
        if role not in ("user", "assistant"):
            fix = "a system text belongs in the first question" if role == "system" else "rename it"
            flaws.append((f"{place}.role", f"must be user or assistant, got {shown(role, 60)}", fix))
            slipped = True
        elif role != wanted and not slipped:
            flaws.append((f"{place}.role", f"{role} where {wanted} is expected", "user begins, and they take turns"))
            slipped = True
        flaws += [(f"{place}.content", *flaw) for flaw in _text_flaws(content, role)]
        if len(flaws) >= MOST_FLAWS:
            break
    if not flaws and len(talk) % 2:
        flaws.append(("conversations", "ends with a question", "the last turn is the assistant's: there is no answer"))
    return ([] if flaws else [(turn["role"], turn["content"]) for turn in talk]), flaws


def _text_flaws(content, role) -> Iterator[tuple[str, str]]:
    if not isinstance(content, str):
        fix = "pictures are placeholders in it"
        if isinstance(content, list) and content and isinstance(content[0], dict) and "type" in content[0]:
            fix = "join its texts, with <image> where a picture stands, and give the picture's path as image"
        yield f"must be text, got {shown(content, 60)}", fix
        return
    if not content.strip():
        yield "the text is empty", "write one, or take the record out"
    if any("\ud800" <= c <= "\udfff" for c in content):
        yield "half a character (a lone surrogate) is in it", "write it again"
    if typed := reserved_in(PLACEHOLDERS.sub(" ", content)):
        # In the official code this unbalances the markers: "image start token != image end tokens".
        yield f"{typed} is typed as text", "the program writes such markers itself; spell it otherwise"
    if role == "assistant" and (found := PLACEHOLDERS.search(content)):
        yield f"the placeholder {found[0]} is in an answer", "a model writes no pictures; move it to a question"


def _placed(turns: list[tuple[str, str]], named: dict[str, str]) -> tuple[list[tuple[str, str]], list[Flaw]]:
    """Compare placeholders and images. A single picture without a placeholder goes in front of everything."""
    used = _in_text(turns)
    if not used and list(named) == [ONE]:
        role, content = turns[0]
        return [(role, f"{ONE}\n{content}"), *turns[1:]], []
    flaws: list[Flaw] = []
    for i, (_, content) in enumerate(turns):
        for found in sorted(set(PLACEHOLDERS.findall(content)) - named.keys()):
            flaws.append((f"conversations[{i}].content", f"{found} has no image", "add its path, or take it out"))
    for placeholder in named:
        if used[placeholder] != 1:
            times = f"{used[placeholder]} times" if used[placeholder] else "nowhere"
            fix = "one placeholder is one picture: several are <image_00>, <image_01>"
            flaws.append(("conversations", f"{placeholder} stands {times} in the text", fix))
    return turns, flaws


def reason(error: BaseException) -> str:
    """What an error says, on one short line."""
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= 160 else text[:157] + "..."


# ---- 2. From a record to a conversation


def messages(record: Record) -> list[dict]:
    """Open a record's pictures and write its conversation as the Processor takes it.

    A picture stands on a line of its own, as `chat` will show it when the model is asked. Where your text already puts
    it there, this is what the official code makes of it, with five exceptions on purpose:

    1. The official code forgets `<image_id>` for pictures that are too small to be sliced, and does not count them.
       When it answers it does write the id, so training and answering differ.
    2. Around <image_00> it adds newlines to those you wrote: "A\\n<image_00>\\nB" becomes four of them.
    3. It stacks pictures in the order of the "image" object but fills them into the text in the order of the text. If
       the two differ, the model sees the wrong ones. Here each goes to its own placeholder.
    4. It looks for <image> in the first question only; in a later one the marker stays in the text, unpaired.
    5. It does not turn photographs upright that a camera has marked as lying on their side.

    Labels are the Processor's: it supervises each end token once; the official code has it twice in a row.

    Args:
        record: from `read_records`.

    Returns:
        [{"role": ..., "content": ...}, ...], the content of a turn with pictures as a list of text and PIL images.

    Raises:
        TypeError: no Record.
        ValueError: a record made by hand whose placeholders are not its pictures; a picture that was damaged since.
        OSError: a picture that has vanished since.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (60, 40)).save(path)
        >>> turns = ("user", "Look:\\n<image>\\nWhat is this?"), ("assistant", "Darkness.")
        >>> question, answer = messages(Record("0", {"<image>": path}, turns))
        >>> [part if isinstance(part, str) else part.size for part in question["content"]], answer["content"]
        (['Look:', (60, 40), 'What is this?'], 'Darkness.')

    Source: preprocess in finetune/dataset.py of OpenBMB/MiniCPM-V.
    """
    check_type("record", record, Record)
    if _in_text(record.turns) != Counter(dict.fromkeys(record.images, 1)):
        used, named = (" ".join(some) or "none" for some in (_in_text(record.turns), record.images))
        what = f"placeholders in its text: {shown(used)}; pictures: {shown(named)}; each must stand there once"
        raise ValueError(f"record {shown(record.id, 40)}: {what}")
    return [{"role": role, "content": _content(content, record.images)} for role, content in record.turns]


def _in_text(turns: Sequence[tuple[str, str]]) -> Counter:
    """How often each placeholder stands in the text."""
    return Counter(found for _, content in turns for found in PLACEHOLDERS.findall(content))


def _content(content: str, images: dict[str, Path | io.BytesIO]) -> str | list:
    texts, names = PLACEHOLDERS.split(content), PLACEHOLDERS.findall(content)
    if not names:
        return content
    parts: list = []
    for i, text in enumerate(texts):
        # The Processor joins parts by a newline, so the newline that was there goes.
        first, last = i == 0, i == len(texts) - 1
        keep = text != "" if first or last else text not in ("", "\n")  # "\n" between two pictures is the joint itself
        if keep:
            text = text if first else text.removeprefix("\n")
            parts.append(text if last else text.removesuffix("\n"))
        if not last:
            parts.append(load_image(images[names[i]]))
    return parts
