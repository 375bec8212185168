"""Your own data: the JSON files of the official fine-tuning code, checked up front, as conversations.

    [{"id": "0",
      "image": "a.png",                             one picture, or {"<image_00>": "a.png", "<image_01>": "b.png"}
      "conversations": [{"role": "user", "content": "<image>\\nWhat is this?"},
                        {"role": "assistant", "content": "A receipt."}]}]

Everything that can be wrong with a file is reported before training begins. The official code meets a bad record in
the middle of training, logs "data fetch error" and silently takes another one at random: you never learn how much of
your data it saw. Here a record is good and used, or bad and named. `finetune.py` trains on the good ones.
Left out: records without a picture, videos, system turns, URLs, JSON Lines.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ..processor import Processor, load_image
from ..prompt import MARKERS, SLOT
from ..slicing import plan_slices

ONE = "<image>"  # the placeholder where `image` is a path
PLACEHOLDERS = re.compile(r"<image(?:_\d+)?>")
PICTURES = ("exist", "header", "whole")  # how closely to look at each
# Text that a tokenizer would turn into more than text: image markers, and the tokens that begin and end turns.
RESERVED = (
    *(marker for marker in MARKERS if marker != ONE),
    SLOT,
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<用户>", "<AI>"),
)


@dataclass(frozen=True)
class Record:
    """One good record. Its pictures stay on the disk until they are needed."""

    id: str
    images: dict[str, Path]  # placeholder -> file
    turns: tuple[tuple[str, str], ...]  # (role, content); every placeholder stands in exactly one content

    @property
    def messages(self) -> list[dict]:
        """What the training loop asks a sample for."""
        return messages(self)


@dataclass(frozen=True)
class Problem:
    """What is wrong in one place, and how to mend it."""

    number: int | None  # of the record, counted from 0; None: the file as a whole
    id: str | None
    field: str  # "conversations[1].content", for example
    what: str
    mend: str

    def __str__(self):
        name = "" if self.id is None else f" (id {self.id!r:.40})"
        place = "the file" if self.number is None else f"record {self.number}{name}"
        return f"{place}{self.field and ', ' + self.field}: {self.what}; {self.mend}"


@dataclass(frozen=True)
class Report:
    """What `read_records` found in a file."""

    path: Path
    total: int  # records in the file
    problems: tuple[Problem, ...]

    @property
    def skipped(self) -> int:
        """How many records are bad."""
        return len({problem.number for problem in self.problems} - {None})

    def text(self, most: int = 20) -> str:
        """The counts on one line, then one line for each of the first `most` problems."""
        kinds = Counter(re.split(r"[\[.]", problem.field)[0] or "record" for problem in self.problems)
        counted = f" ({', '.join(f'{kind} {n}' for kind, n in kinds.most_common())})" if kinds else ""
        good = self.total - self.skipped
        lines = [f"{self.path}: {self.total} records, {good} good, {self.skipped} skipped{counted}"]
        lines += [f"  {problem}" for problem in self.problems[:most]]
        if len(self.problems) > most:
            lines.append(f"  and {len(self.problems) - most} more")
        return "\n".join(lines)

    __str__ = text


# ---- 1. From a file to records


def read_records(
    path: str | os.PathLike,
    root: str | os.PathLike | None = None,
    *,
    pictures: str = "header",
    processor: Processor | None = None,
    strict: bool = False,
) -> tuple[list[Record], Report]:
    """Read a file in the format of the official fine-tuning code, and check all of it.

    Args:
        path: the JSON file.
        root: the folder that picture paths start from and may not leave, not even by a link. None: the file's own, so
            a data set is one folder that can be moved. (The official paths start from wherever you happen to be.) With
            absolute paths, name a folder that holds all of them.
        pictures: how closely to look. "exist": the files are there; "header": each says that it is a picture of a
            possible size; "whole": each is decoded, which takes longer and finds truncated ones, too.
        processor: of the model that you train. Each good record is laid out for it once, which takes as long as reading
            an epoch and finds records that are too long for the model. None does not ask.
        strict: True raises at the first sight of a problem; False skips bad records and reports them.

    Returns:
        (good records in the order of the file, Report).

    Raises:
        OSError: the JSON file cannot be opened.
        ValueError: an unknown value of `pictures`; with `strict`, any problem: the message is the report's beginning.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (60, 40)).save(folder / "a.png")
        >>> talk = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": ""}]
        >>> _ = (folder / "my.json").write_text(json.dumps([{"id": 7, "image": "a.png", "conversations": talk}]))
        >>> records, report = read_records(folder / "my.json")
        >>> len(records), report.skipped
        (0, 1)
        >>> print(report.problems[0])
        record 0 (id '7'), conversations[1].content: the text is empty; write one, or take the record out

    Source: finetune/dataset.py and finetune/readme.md of OpenBMB/MiniCPM-V.
    """
    if pictures not in PICTURES:
        raise ValueError(f"pictures must be one of {PICTURES}, got {pictures!r}")
    path = Path(path)
    root = path.parent if root is None else Path(root)
    entries, problems = _load(path)
    records, first_with, looked = [], {}, {}
    # The bar shows only in a terminal, and only if there is time to look at it.
    for number, entry in enumerate(tqdm(entries, path.name, disable=None, leave=False, delay=2)):
        name = _id(entry)
        record, flaws = _read(entry, root, pictures, looked)
        if name is not None and first_with.setdefault(name, number) != number:
            flaws.insert(0, ("id", f"record {first_with[name]} has the same id", "give each its own"))
        if processor and not flaws and (flaw := misfit(record, processor)):
            flaws.append(("", *flaw))
        problems += [Problem(number, name, *flaw) for flaw in flaws]
        if not flaws:
            records.append(record)
    report = Report(path, len(entries), tuple(problems))
    if strict and problems:
        raise ValueError(report.text(5))
    return records, report


def misfit(record: Record, processor: Processor) -> tuple[str, str] | None:
    """Say why a processor cannot take a record, and how to mend that; None if it can."""
    try:
        processor(record.messages)
    except (OSError, ValueError) as error:
        return _reason(error), "mend it, or take the record out"
    return None


def _load(path: Path) -> tuple[list, list[Problem]]:
    raw = path.read_bytes()
    whole = (None, None, "")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return [], [Problem(*whole, f"not UTF-8: {error}", "save it as UTF-8")]
    except (ValueError, RecursionError) as error:
        # The example in the official readme is not JSON either: single quotes, and a comma behind the last item.
        mend = "JSON wants one list, double quotes, and no comma behind the last item"
        if "Extra data" in str(error):
            mend = "one list is wanted: for JSON Lines, put [ ] around all and commas between the lines"
        return [], [Problem(*whole, f"not JSON: {error}", mend)]
    if not isinstance(data, list):
        return [], [Problem(*whole, f"not a list but {_show(data)}", "put [ ] around the records")]
    if not data:
        return [], [Problem(*whole, "the list is empty", "it should hold at least one record")]
    return data, []


Flaw = tuple[str, str, str]  # field, what is wrong, how to mend it


def _read(entry, root: Path, pictures: str, looked: dict) -> tuple[Record | None, list[Flaw]]:
    """One entry as a Record, and what is wrong with it. `looked` remembers pictures of earlier records."""
    if not isinstance(entry, dict):
        return None, [("", f"not an object but {_show(entry)}", "a record has id, image and conversations")]
    flaws: list[Flaw] = []
    if _id(entry) is None:
        what = f"must be text or a whole number, got {_show(entry['id'])}" if "id" in entry else "missing"
        flaws.append(("id", what, "give each record its own"))
    named, wrong = _named_images(entry)
    flaws += wrong
    files = {}
    for placeholder, text in named.items():
        files[placeholder] = root / text
        if wrong := _file_flaw(text, root) or _picture_flaw(files[placeholder], pictures, looked):
            field = "image" if isinstance(entry["image"], str) else f"image[{placeholder!r}]"
            flaws.append((field, *wrong))
    turns, wrong = _turns(entry)
    flaws += wrong
    if turns and named:
        turns, wrong = _placed(turns, named)
        flaws += wrong
    return (Record(_id(entry), files, tuple(turns)), flaws) if not flaws else (None, flaws)


def _id(entry) -> str | None:
    name = entry.get("id") if isinstance(entry, dict) else None
    good = (isinstance(name, str) and name.strip()) or (isinstance(name, int) and not isinstance(name, bool))
    return str(name) if good else None


def _named_images(entry: dict) -> tuple[dict[str, str], list[Flaw]]:
    """{placeholder: path}; a path alone belongs to <image>."""
    mend = 'give a path, or paths by placeholder: {"<image_00>": "a.png"}'
    if "image" not in entry:
        return {}, [("image", "missing", mend)]
    image = entry["image"]
    named = {ONE: image} if isinstance(image, str) else image
    if not isinstance(named, dict) or not named:
        return {}, [("image", f"must be a path or an object, got {_show(image)}", mend)]
    for placeholder, text in named.items():
        if not PLACEHOLDERS.fullmatch(placeholder) or (placeholder == ONE and len(named) > 1):
            return {}, [("image", f"{placeholder!r:.40} cannot be a placeholder", "several are <image_00>, <image_01>")]
        if not isinstance(text, str) or not text.strip():
            return {}, [("image", f"a path must be text, got {_show(text)}", mend)]
    return named, []


def _file_flaw(text: str, root: Path) -> tuple[str, str] | None:
    path = root / text
    try:
        inside, there = path.resolve().is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a name that is too long, links in a circle
        return f"{text!r:.80} is no path: {_reason(error)}", "mend the path"
    if not inside:
        return f"{text!r:.80} leaves the folder {root}", "move the picture, or name another root"
    if not there:
        return f"there is no file {text!r:.80} in {root}", "mend the path, or bring the picture"
    return None


def _picture_flaw(path: Path, pictures: str, looked: dict) -> tuple[str, str] | None:
    """Open a picture, once for all records that show it."""
    if pictures != "exist" and path not in looked:
        looked[path] = None
        try:
            if pictures == "whole":
                load_image(path)
            else:
                _read_header(path)
        except Exception as error:  # Pillow's plugins raise almost anything on a damaged file
            what = f"{path.name!r:.80} cannot be read as a picture: {_reason(error.__cause__ or error)}"
            looked[path] = what, "save it again, or take the record out"
    return looked.get(path)


def _read_header(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            plan_slices(image.size)  # refuses a size of zero


def _turns(entry: dict) -> tuple[list[tuple[str, str]], list[Flaw]]:
    """(role, content) of all turns; [] if anything is wrong with them."""
    talk = entry.get("conversations")
    shape = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if not isinstance(talk, list) or not talk:
        what = f"must be a list of turns, got {_show(talk)}" if "conversations" in entry else "missing"
        return [], [("conversations", what, shape)]
    flaws: list[Flaw] = []
    for i, turn in enumerate(talk):
        place = f"conversations[{i}]"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            mend = shape
            if isinstance(turn, dict) and "from" in turn:
                mend = "in LLaVA's files rename from to role, value to content, human to user, gpt to assistant"
            flaws.append((place, f"must have role and content, got {_show(turn)}", mend))
            break  # the others will look alike
        role, content = turn["role"], turn["content"]
        wanted = ("user", "assistant")[i % 2]
        if role not in ("user", "assistant"):
            mend = "a system text belongs in the first question" if role == "system" else "rename it"
            flaws.append((f"{place}.role", f"must be user or assistant, got {_show(role)}", mend))
        elif role != wanted and not any(field.endswith("role") for field, *_ in flaws):  # one slip moves all the rest
            flaws.append((f"{place}.role", f"{role} where {wanted} is expected", "user begins, and they take turns"))
        flaws += [(f"{place}.content", *flaw) for flaw in _text_flaws(content, role)]
    if not flaws and len(talk) % 2:
        flaws.append(("conversations", "ends with a question", "the last turn is the assistant's: there is no answer"))
    return ([] if flaws else [(turn["role"], turn["content"]) for turn in talk]), flaws


def _text_flaws(content, role) -> Iterator[tuple[str, str]]:
    if not isinstance(content, str):
        yield f"must be text, got {_show(content)}", "pictures are placeholders in it"
        return
    if not content.strip():
        yield "the text is empty", "write one, or take the record out"
    if any("\ud800" <= c <= "\udfff" for c in content):
        yield "half a character (a lone surrogate) is in it", "write it again"
    text = PLACEHOLDERS.sub(" ", content)
    typed = next((marker for marker in RESERVED if marker in text), None)
    if typed:
        # In the official code this unbalances the markers: "image start token != image end tokens".
        yield f"{typed} is typed as text", "the program writes such markers itself; spell it otherwise"
    if role == "assistant" and (found := PLACEHOLDERS.search(content)):
        yield f"the placeholder {found[0]} is in an answer", "a model writes no pictures; move it to a question"


def _placed(turns: list[tuple[str, str]], named: dict[str, str]) -> tuple[list[tuple[str, str]], list[Flaw]]:
    """Compare placeholders and images. A single picture without a placeholder goes in front of everything."""
    used = Counter(found for _, content in turns for found in PLACEHOLDERS.findall(content))
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
            mend = "one placeholder is one picture: several are <image_00>, <image_01>"
            flaws.append(("conversations", f"{placeholder} stands {times} in the text", mend))
    return turns, flaws


def _show(value) -> str:
    """A short, printable picture of any value."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(error: BaseException) -> str:
    """What an error says, on one short line."""
    text = " ".join(str(error).split())
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
        OSError, ValueError: a picture that has vanished or was damaged since.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (60, 40)).save(path)
        >>> turns = ("user", "Look:\\n<image>\\nWhat is this?"), ("assistant", "Darkness.")
        >>> question, answer = messages(Record("0", {"<image>": path}, turns))
        >>> [part if isinstance(part, str) else part.size for part in question["content"]], answer["content"]
        (['Look:', (60, 40), 'What is this?'], 'Darkness.')

    Source: preprocess in finetune/dataset.py of OpenBMB/MiniCPM-V.
    """
    return [{"role": role, "content": _content(content, record.images)} for role, content in record.turns]


def _content(content: str, images: dict[str, Path]) -> str | list:
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
