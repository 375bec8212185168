"""Files from strangers are read with care, and our own are written whole or not at all.

Reading: only plain files (a pipe or a device would hang or fill the memory), only up to a limit, and JSON without the
slips that Python's reader lets pass. Writing: under a temporary name first. Nothing here needs torch.
"""

from __future__ import annotations

import glob
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .checks import LIMITS, printable, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# ---- reading


def plain_file(file: str | os.PathLike, most: int | None = None) -> Path:
    """Make sure that a path is a plain file, before it is opened.

    Args:
        file: its path.
        most: bytes that it may have; None does not look.

    Returns:
        The path.

    Raises:
        OSError: it does not exist, or is a folder, a pipe or a device.
        ValueError: it is larger than `most` bytes, or the path has a zero byte.

    Example:
        >>> plain_file("no/such/file")
        Traceback (most recent call last):
        FileNotFoundError: there is no file no/such/file
    """
    path = Path(file)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {printable(str(path))}") from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is a pipe or a device, not a plain file")
    if most is not None and status.st_size > most:
        raise ValueError(f"{path} has {status.st_size:,} bytes; at most {most:,} are read")
    return path


def read_json(file: str | os.PathLike, most: int = LIMITS["json_bytes"]) -> dict:
    """Read a JSON object from a file.

    Args:
        file: its path.
        most: bytes that it may have.

    Returns:
        The object.

    Raises:
        OSError: there is no such plain file, or it cannot be read.
        ValueError: too large, not UTF-8, no JSON (see `parse_json`), or no object.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = path.write_text('{"a": 1}')
        >>> read_json(path)
        {'a': 1}
    """
    path = plain_file(file, most)
    try:
        data = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def parse_json(text: str | bytes):
    """Read JSON as the standard has it: no key twice in an object, no NaN.

    Args:
        text: text, or bytes in UTF-8 (a byte order mark is skipped).

    Returns:
        What it holds.

    Raises:
        ValueError: anything else; the message says what.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' stands twice in one object, {'a': 2}
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=_checked_object, parse_constant=float)
        _check_finite("the list", data)
        return data
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    except RecursionError:
        raise ValueError("too many lists or objects inside each other") from None


def _checked_object(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    for key, value in pairs:
        _check_finite(key, value)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object, {shown(found)}")
    return found


def _check_finite(name: str, value) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{shown(name)} is {value}, which is no number in JSON")
    for item in value if isinstance(value, list) else ():
        _check_finite(name, item)


# ---- writing

_locks: set = set()  # those that this process holds


@contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Write files whole or not at all: they take their names when all of them are complete and on the disk.

    Args:
        paths: of the files, in the order in which they get their names.

    Yields:
        A temporary path beside each: write there. If the block fails, these are removed and nothing is replaced. What
        a killed process left behind is removed by the next that writes the same file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as (draft,):
        ...     _ = draft.write_text("whole")
        ...     path.exists()
        False
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    drafts, modes = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths], []
    try:
        for draft, path in zip(drafts, paths):
            _remove_dead_drafts(path)
            draft.touch()
            modes.append(stat.S_IMODE(draft.stat().st_mode))  # what the user's umask leaves
        yield drafts
        for draft, mode in zip(drafts, modes):
            draft.chmod(mode)  # safetensors lets nobody else read what it writes
            flush(draft)
        for draft, path in zip(drafts, paths):
            os.replace(draft, path)
        for folder in dict.fromkeys(path.parent for path in paths):
            flush(folder)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _remove_dead_drafts(path: Path) -> None:
    """Remove drafts of this file whose writer is no longer alive."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = draft.name[len(path.name) + 2 : -len(".part")]
        if number.isdecimal() and int(number) != os.getpid() and not _alive(int(number)):
            with suppress(OSError):  # another process may have been faster
                draft.unlink()


def _alive(process: int) -> bool:
    """Whether a process of this number runs here. On Windows, where asking would end it, the answer is always yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to somebody else
        return True
    return True


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a new name may get there before the bytes do."""
    if path.is_dir() and os.name != "posix":
        return  # only there can a folder be opened
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def only_one(file: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; a process that dies lets it go.

    Args:
        file: the lock, an empty file that is there meanwhile (on Windows it stays). Its folder exists.
        what: what is going on elsewhere if the lock is taken, for the message.

    Raises:
        OSError: another process, or another block of this one, holds the lock.

    Example:
        >>> import tempfile
        >>> with only_one(Path(tempfile.mkdtemp()) / ".lock", "another training writes here"):
        ...     pass
    """
    with open(file, "ab") as held:
        if fcntl is not None:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(held.fileno()), os.stat(file)):
                    raise FileNotFoundError  # whoever held it has just ended and removed it
            except (BlockingIOError, FileNotFoundError):
                raise BlockingIOError(f"{what} (it holds {file})") from None
            except OSError:  # a file system without locks
                pass
        else:
            import msvcrt

            try:
                msvcrt.locking(held.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError:
                raise BlockingIOError(f"{what} (it holds {file})") from None
        _locks.add(held)
        try:
            yield
        finally:
            _locks.discard(held)
            if fcntl is not None and not held.closed:
                file.unlink(missing_ok=True)


def _let_go() -> None:
    """A worker that was forked would hold the lock of its parent, and longer than the parent lives."""
    for held in _locks:
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
