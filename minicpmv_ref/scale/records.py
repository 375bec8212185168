"""Your own data: the JSON files of the official fine-tuning code, checked up front, as conversations.

    [{"id": "0",
      "image": "a.png",                             one picture, or {"<image_00>": "a.png", "<image_01>": "b.png"}
      "conversations": [{"role": "user", "content": "<image>\\nWhat is this?"},
                        {"role": "assistant", "content": "A receipt."}]}]

Everything that can be wrong with a file is reported before training begins. The official code meets a bad record in
the middle of training, logs "data fetch error" and silently takes another one at random: you never learn how much of
your data it saw. Here a record is good and used, or bad and named. `finetune.py` trains on the good ones.
`check_entry` is the one validator: what comes from shards passes it, too.
Left out: records without a picture, videos, system turns, URLs, JSON Lines.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..inputs.checks import LIMITS, WrongType, check_choice, check_int, check_type, printable, shown
from ..inputs.files import parse_json, plain_file
from ..inputs.pictures import load_image, picture_size
from ..processor import Processor
from ..prompt import reserved_in

ONE = "<image>"  # the placeholder where `image` is a path
PLACEHOLDERS = re.compile(r"<image(?:_\d+)?>")
PICTURES = ("exist", "header", "whole")  # how closely to look at each


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


@dataclass(frozen=True)
class Problem:
    """What is wrong in one place, and how to mend it."""

    number: int | None  # of the record, counted from 0; None: the file as a whole
    id: str | None
    field: str  # "conversations[1].content", for example
    what: str
    mend: str

    def __str__(self):
        name = "" if self.id is None else f" (id {shown(self.id, 40)})"
        place = "the file" if self.number is None else f"record {self.number}{name}"
        return printable(f"{place}{self.field and ', ' + self.field}: {self.what}; {self.mend}")


@dataclass(frozen=True)
class Report:
    """What `read_records` found in a file, or `open_shards` in a folder."""

    path: Path
    total: int  # records in the file
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()  # on records that are good

    @property
    def skipped(self) -> int:
        """How many records are bad."""
        return len({problem.number for problem in self.problems} - {None})

    def text(self, most: int = 20) -> str:
        """The counts on one line, one line for each of the first `most` problems, and the notes."""
        most = check_int("most", most, least=0)
        kinds = Counter(re.split(r"[\[.]", problem.field)[0] or "record" for problem in self.problems)
        counted = f" ({', '.join(f'{kind} {n}' for kind, n in kinds.most_common())})" if kinds else ""
        good = self.total - self.skipped
        lines = [f"{self.path}: {self.total} records, {good} good, {self.skipped} skipped{counted}"]
        lines += [f"  {problem}" for problem in self.problems[:most]]
        if len(self.problems) > most:
            lines.append(f"  and {len(self.problems) - most} more")
        return printable("\n".join([*lines, *(f"  note: {note}" for note in self.notes)]))

    __str__ = text


@dataclass
class Notes:
    """Counts what is worth knowing about records that are good."""

    first_with: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    example: str = ""
    spaced: int = 0

    def add(self, number: int, record: Record, spaced: int) -> None:
        """Count a good record, and how many of its answers began with white space."""
        self.spaced += spaced
        first = self.first_with.setdefault(record.id, number)
        if first != number:
            self.example = self.example or f"record {number} has that of record {first}, {shown(record.id, 40)}"
            self.repeated += 1

    def texts(self) -> tuple[str, ...]:
        """The lines for a report."""
        lines = []
        if self.repeated:
            all_kept = "an id is for messages only, so all are kept"
            lines.append(f"ids that came before, in {self.repeated:,} of the records ({self.example}); {all_kept}")
        if self.spaced:
            why = "a tokenizer may join it with the header before the answer, and no question ends like that"
            lines.append(f"white space before an answer, left out in {self.spaced:,} of the answers: {why}")
        return tuple(lines)


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
            absolute paths, name a folder that holds all of them. It may be a link itself.
        pictures: how closely to look. "exist": the files are there; "header": each says that it is a picture of a
            possible size; "whole": each is decoded, which takes longer and finds truncated ones, too.
        processor: of the model that you train. Each good record is laid out for it once, which takes as long as reading
            an epoch and finds records that are too long for the model. None does not ask.
        strict: True raises at the first sight of a problem; False skips bad records and reports them.

    Returns:
        (good records in the order of the file, Report). White space before an answer is left out, and an id may stand
        in several records; the report's notes count both.

    Raises:
        OSError: the JSON file is no plain file or cannot be opened; `root` is no folder.
        TypeError: an argument of another type.
        ValueError: an unknown value of `pictures`; a file that is too large; with `strict`, any problem: the message is
            the report's beginning.

    Example:
        >>> import json, tempfile
        >>> from PIL import Image
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
    check_type("path", path, str, os.PathLike)
    check_type("root", root, str, os.PathLike, type(None))
    check_type("processor", processor, Processor, type(None))
    check_choice("pictures", pictures, PICTURES)
    path = Path(path)
    root = path.parent if root is None else Path(root)
    entries, problems = _load(path)
    if not root.is_dir():
        raise NotADirectoryError(f"root must be a folder, and {printable(str(root))} is none")
    records, notes, find = [], Notes(), _finder(root, pictures)
    # The bar shows only in a terminal, and only if there is time to look at it.
    for number, entry in enumerate(tqdm(entries, path.name, disable=None, leave=False, delay=2)):
        record, flaws, spaced = check_entry(entry, find)
        if processor and not flaws and (flaw := misfit(record, processor)):
            flaws.append(("", *flaw))
        problems += [Problem(number, _id(entry), *flaw) for flaw in flaws]
        if not flaws:
            records.append(record)
            notes.add(number, record, spaced)
    report = Report(path, len(entries), tuple(problems), notes.texts())
    if strict and problems:
        raise ValueError(report.text(5))
    return records, report


def check_records(records: Sequence[Record]) -> Sequence[Record]:
    """Make sure that these are records, one at least: a list or tuple of them, or `Shards`.

    Raises:
        TypeError: something else; the message gives the number of an item that is no Record.
        ValueError: no record.
    """
    if not isinstance(records, Sequence) or isinstance(records, str | bytes):
        raise WrongType(f"records must be a list of Record, or shards, got {type(records).__name__}: {shown(records)}")
    for number, record in enumerate(records if isinstance(records, list | tuple) else ()):
        check_type(f"records[{number}]", record, Record)
    if not records:
        raise ValueError("there must be a record: at least one record is needed, got none")
    return records


def misfit(record: Record, processor: Processor) -> tuple[str, str] | None:
    """Say why a processor cannot take a record, and how to mend that; None if it can."""
    try:
        processor(record.messages)
    except (OSError, ValueError) as error:
        return _reason(error).removeprefix("messages: "), "mend it, or take the record out"
    return None


def _load(path: Path) -> tuple[list, list[Problem]]:
    raw = plain_file(path, LIMITS["records_bytes"]).read_bytes()
    try:
        data = parse_json(raw)
    except ValueError as error:
        return [], [Problem(None, None, "", *_json_flaw(str(error)))]
    if not isinstance(data, list):
        return [], [Problem(None, None, "", f"not a list but {shown(data, 60)}", _list_hint(data))]
    if not data:
        return [], [Problem(None, None, "", "the list is empty", "it should hold at least one record")]
    return data, []


def _json_flaw(why: str) -> tuple[str, str]:
    if why.startswith("not UTF-8"):
        return why, "save it as UTF-8"
    if "Extra data" in why:
        return f"not JSON: {why}", "one list is wanted: for JSON Lines, put [ ] around all and commas between the lines"
    if "stands twice" in why:
        return f"not JSON: {why}", "which one counts? Take the other out"
    # The example in the official readme is not JSON either: single quotes, and a comma behind the last item.
    return f"not JSON: {why}", "JSON wants one list, double quotes, and no comma behind the last item"


def _list_hint(data) -> str:
    if isinstance(data, dict) and data and not data.keys() & {"id", "image", "conversations", "messages"}:
        if all(isinstance(value, dict) for value in data.values()):
            return "for an object of records, write its values without their keys, and [ ] around them"
        if key := next((key for key, value in data.items() if isinstance(value, list)), None):
            return f"if {shown(key, 40)} holds the records, let the file be that list alone"
    return "put [ ] around the records"


Flaw = tuple[str, str, str]  # field, what is wrong, how to mend it
MOST_FLAWS = 20  # of one record; a list of a million wrong turns needs no million lines


def check_entry(entry, find: Callable) -> tuple[Record | None, list[Flaw], int]:
    """Check one entry in the format of the official fine-tuning code, wherever it comes from.

    Args:
        entry: what JSON gave, believed in nothing.
        find: takes what stands where a picture's path should, a text, and returns (file, None), or (None, (what is
            wrong, how to mend it)).

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
    if _id(entry) is None:
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
    return Record(_id(entry), files, kept), [], sum(a != b for a, b in zip(turns, kept))


def _id(entry) -> str | None:
    name = entry.get("id") if isinstance(entry, dict) else None
    good = (isinstance(name, str) and name.strip()) or (isinstance(name, int) and not isinstance(name, bool))
    return str(name) if good else None


def _named_images(entry: dict) -> tuple[dict[str, str], list[Flaw]]:
    """{placeholder: path}; a path alone belongs to <image>."""
    mend = 'give a path, or paths by placeholder: {"<image_00>": "a.png"}'
    if "image" not in entry:
        if "images" in entry:
            mend = f"rename images to image; {mend}"
        return {}, [("image", "missing", mend)]
    image = entry["image"]
    named = {ONE: image} if isinstance(image, str) else image
    if not isinstance(named, dict) or not named:
        return {}, [("image", f"must be a path or an object, got {shown(image, 60)}", mend)]
    for placeholder, text in named.items():
        if not PLACEHOLDERS.fullmatch(placeholder) or (placeholder == ONE and len(named) > 1):
            what = f"{shown(placeholder, 40)} cannot be a placeholder"
            return {}, [("image", what, "several are <image_00>, <image_01>")]
        if not isinstance(text, str) or not text.strip():
            return {}, [("image", f"a path must be text, got {shown(text, 60)}", mend)]
    return named, []


def _finder(root: Path, pictures: str) -> Callable:
    """`find` for `check_entry`: pictures are files in a folder. Each is looked at once for all records that show it."""
    looked: dict[Path, tuple[str, str] | None] = {}

    def find(text: str) -> tuple[Path, tuple[str, str] | None]:
        path = root / text
        if path not in looked:
            looked[path] = _file_flaw(text, path, root)
            if not looked[path] and pictures != "exist":
                looked[path] = picture_flaw(path, path.name, whole=pictures == "whole")
        return path, looked[path]

    return find


def _file_flaw(text: str, path: Path, root: Path) -> tuple[str, str] | None:
    name = shown(text)
    if re.match("data:|[a-z0-9]+://", text):
        return f"{name} is a URL", "save the picture as a file, and give its path"
    try:
        target, home = path.resolve(), root.resolve()
        if not target.is_relative_to(home):
            return _outside(text, target, root)
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a name that is too long, links in a circle
        return f"{name} is no path: {_reason(error)}", "mend the path"
    if status is None or stat.S_ISDIR(status.st_mode):
        return f"there is no file {name} in {root}", "mend the path, or bring the picture"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} is a pipe or a device, not a plain file", "save the picture as a file, and give its path"
    if status.st_size > LIMITS["picture_bytes"]:
        most = LIMITS["picture_bytes"]
        return f"{name} has {status.st_size:,} bytes", f"save it smaller; {most:,} are allowed"
    return None


def _outside(text: str, target: Path, root: Path) -> tuple[str, str]:
    """Say how to read a picture that is not in the root, for what files say must not decide what is read."""
    parts = Path(text).parts
    by_link = Path(os.path.abspath(root / text)).is_relative_to(os.path.abspath(root))
    if by_link and target.parts[-len(parts) :] == parts:
        other = Path(*target.parts[: -len(parts)])
    elif by_link or Path(text).is_absolute():
        other = target.parent
    else:
        return f"{shown(text)} leaves the folder {root}", "move the picture, or name another root"
    way = f" by a link to {target}" if by_link else ""
    mend = f"move the picture, or name the folder that holds it as root (--root {shlex.quote(str(other))})"
    if not Path(text).is_absolute() and other == target.parent and len(parts) > 1:
        mend += " and let paths start there"
    return f"{shown(text)} leaves the folder {root}{way}", mend


def picture_bytes(file: Path | io.BytesIO) -> bytes:
    """The bytes of a record's picture, wherever it is."""
    return file.getvalue() if isinstance(file, io.BytesIO) else plain_file(file, LIMITS["picture_bytes"]).read_bytes()


def picture_flaw(source, name: str, whole: bool) -> tuple[str, str] | None:
    """Open a picture, and say what is wrong with it; `whole` decodes it, too."""
    try:
        if whole:
            load_image(source)
        else:
            picture_size(source)
    except Exception as error:  # Pillow's plugins raise almost anything on a damaged file
        what = f"{shown(name)} cannot be read as a picture: {_reason(error.__cause__ or error)}"
        return what, "save it again, or take the record out"
    return None


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
            mend = shape
            if isinstance(turn, dict) and "from" in turn:
                mend = "in LLaVA's files rename from to role, value to content, human to user, gpt to assistant"
            flaws.append((place, f"must have role and content, got {shown(turn, 60)}", mend))
            break  # the others will look alike
        role, content = turn["role"], turn["content"]
        wanted = ("user", "assistant")[i % 2]
        if role not in ("user", "assistant"):
            mend = "a system text belongs in the first question" if role == "system" else "rename it"
            flaws.append((f"{place}.role", f"must be user or assistant, got {shown(role, 60)}", mend))
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
        mend = "pictures are placeholders in it"
        if isinstance(content, list) and content and isinstance(content[0], dict) and "type" in content[0]:
            mend = "join its texts, with <image> where a picture stands, and give the picture's path as image"
        yield f"must be text, got {shown(content, 60)}", mend
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
            mend = "one placeholder is one picture: several are <image_00>, <image_01>"
            flaws.append(("conversations", f"{placeholder} stands {times} in the text", mend))
    return turns, flaws


def _reason(error: BaseException) -> str:
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
