"""Files of one JSON object a line that grow while a program works, and survive that it is stopped at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from .checks import LIMITS, check_list, check_type, shown
from .files import parse_json, plain_file


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Read a file of one JSON object a line.

    A program that was stopped while it wrote leaves a last line without its end. Such a line is not read, and
    `append_jsonl` removes it, so that work goes on after the last complete line.

    Args:
        path: the file; it may be missing.

    Returns:
        The objects, [] if there is no file.

    Raises:
        TypeError: not a path.
        OSError: no plain file, or it cannot be read.
        ValueError: a complete line that is not a JSON object (names the line); a file of more than 2 GB.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> append_jsonl(path, [{"key": "a"}, {"key": "b"}])
        >>> _ = path.write_bytes(path.read_bytes()[:-4])  # cut in the middle of a line
        >>> read_jsonl(path)
        [{'key': 'a'}]
        >>> append_jsonl(path, [{"key": "c"}])
        >>> [entry["key"] for entry in read_jsonl(path)]
        ['a', 'c']
    """
    path = Path(check_type("path", path, str, os.PathLike))
    entries = []
    try:
        plain_file(path, LIMITS["records_bytes"])
    except FileNotFoundError:
        return []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number}: a JSON object is expected, got {shown(entry, 60)}")
        entries.append(entry)
    return entries


def append_jsonl(path: str | os.PathLike, entries: Sequence[dict]) -> None:
    """Add objects to a file, after its last complete line. On return they are on the disk.

    Args:
        path: the file; it and its folder are made if missing.
        entries: JSON objects.

    Raises:
        TypeError: not a path, no list of dicts.
        OSError: the file cannot be written, or is no plain file.
        ValueError: an entry that is not JSON, NaN included; nothing is written then.
    """
    path = Path(check_type("path", path, str, os.PathLike))
    text = b"".join(_line(number, entry) for number, entry in enumerate(check_list("entries", entries, dict)))
    if path.exists():
        plain_file(path, LIMITS["records_bytes"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(0)
        complete = file.read().rfind(b"\n") + 1
        file.truncate(complete)  # a line without its end
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _line(number: int, entry: dict) -> bytes:
    """One line of the file; what would be read as something else is refused."""
    try:
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        parse_json(line)  # 1 and "1" are two keys here and one there
        return line + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"entries[{number}] is not JSON: {error}") from None
