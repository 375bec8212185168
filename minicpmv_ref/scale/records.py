"""Your own data: the JSON files of the official fine-tuning code, all of them checked before training begins.

A file is a list of entries; `entries.py` shows one. The official code meets a bad entry in the middle of training, logs
"data fetch error" and silently takes another one at random: you never learn how much of your data it saw. Here an entry
is good and used, or bad and named. `finetune.py` trains on the good ones.
Left out: records without a picture, videos, system turns, URLs, JSON Lines.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..inputs.checks import LIMITS, WrongType, check_choice, check_int, check_type, printable, quoted, shown
from ..inputs.files import parse_json, plain_file
from ..inputs.pictures import load_image, picture_size
from ..processor import Processor
from .entries import ONE, PLACEHOLDERS, Flaw, Record, check_entry, entry_id, messages, reason  # noqa: F401

PICTURES = ("exist", "header", "decode")  # how closely to look at each


@dataclass(frozen=True)
class Problem:
    """What is wrong in one place, and how to fix it."""

    number: int | None  # of the record, counted from 0; None: of the file
    id: str | None
    field: str  # "conversations[1].content", for example
    what: str
    fix: str

    def __str__(self):
        name = "" if self.id is None else f" (id {shown(self.id, 40)})"
        place = "the file" if self.number is None else f"record {self.number}{name}"
        return printable(f"{place}{self.field and ', ' + self.field}: {self.what}; {self.fix}")


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
        fields = [problem.field for problem in self.problems if problem.number is not None]
        kinds = Counter(re.split(r"[\[.]", field)[0] or "record" for field in fields)
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


# ---- from a file to records


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
            a data set is one folder that can be moved. With absolute paths, name a folder that holds all of them. It
            may be a link itself.
        pictures: how closely to look. "exist": the files are there; "header": each says that it is a picture of a
            possible size; "decode" takes longer and finds truncated ones, too.
        processor: of the model that you train: finds records that are too long for it, in the time of an epoch's
            reading. None does not ask.
        strict: True raises if there is any problem; False skips bad records and reports them.

    Returns:
        (good records in the order of the file, Report). White space before an answer is left out, and an id may stand
        in several records; the report's notes count both.

    Raises:
        OSError: the JSON file is no plain file or cannot be opened; `root` is no folder.
        TypeError: an argument of another type.
        ValueError: an unknown value of `pictures`; a file that is too large; with `strict`, any problem: the message
            begins the report.

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
    pictures = "decode" if pictures == "whole" else pictures  # its first name
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
        problems += [Problem(number, entry_id(entry), *flaw) for flaw in flaws]
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
    """Say why a processor cannot take a record, and how to fix that; None if it can."""
    try:
        processor(record.messages)
    except (OSError, ValueError) as error:
        return reason(error).removeprefix("messages: "), "fix it, or take the record out"
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
    if "no number in JSON" in why:
        return f"not JSON: {why}", "write null, or leave the field out"
    if "stands twice" in why:
        return f"not JSON: {why}", "which one counts? Take the other out"
    # The example in the official readme is not JSON either: single quotes, and a comma after the last item.
    return f"not JSON: {why}", "JSON wants one list, double quotes, and no comma after the last item"


def _list_hint(data) -> str:
    if isinstance(data, dict) and data and not data.keys() & {"id", "image", "conversations", "messages"}:
        if all(isinstance(value, dict) for value in data.values()):
            return "for an object of records, write its values without their keys, and [ ] around them"
        if key := next((key for key, value in data.items() if isinstance(value, list)), None):
            return f"if {shown(key, 40)} holds the records, let the file be that list alone"
    return "put [ ] around the records"


# ---- pictures


def _finder(root: Path, pictures: str) -> Callable:
    """`find` for `check_entry`: pictures are files in a folder. Each is looked at once for all records that show it."""
    looked: dict[Path, tuple[str, str] | None] = {}

    def find(text: str) -> tuple[Path, tuple[str, str] | None]:
        path = root / text
        if path not in looked:
            looked[path] = _file_flaw(text, path, root)
            if not looked[path] and pictures != "exist":
                looked[path] = picture_flaw(path, path.name, decode=pictures == "decode")
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
        return f"{name} is no path: {reason(error)}", "fix the path"
    if status is None or stat.S_ISDIR(status.st_mode):
        return f"there is no file {name} in {root}", "fix the path, or bring the picture"
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
    fix = f"move the picture, or name the folder that holds it as root (--root {quoted(str(other))})"
    if not Path(text).is_absolute() and other == target.parent and len(parts) > 1:
        fix += " and let paths start there"
    return f"{shown(text)} leaves the folder {root}{way}", fix


def picture_bytes(file: Path | io.BytesIO) -> bytes:
    """The bytes of a record's picture, wherever it is."""
    return file.getvalue() if isinstance(file, io.BytesIO) else plain_file(file, LIMITS["picture_bytes"]).read_bytes()


def picture_flaw(source, name: str, decode: bool) -> tuple[str, str] | None:
    """Open a picture, and say what is wrong with it; `decode` reads all of its pixels, too."""
    try:
        if decode:
            load_image(source)
        else:
            picture_size(source)
    except Exception as error:  # Pillow's plugins raise almost anything on a damaged file
        what = f"{shown(name)} cannot be read as a picture: {reason(error.__cause__ or error)}"
        return what, "save it again, or take the record out"
    return None
