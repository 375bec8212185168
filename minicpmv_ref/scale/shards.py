"""Shards: many records in a few tar files, which disks and networks read faster than many small files.

    index.json         {"records": 48, "shards": [{"file": "shard-000000.tar", "records": 16}, ...]}
    shard-000000.tar   000000.0.png  000000.json  000001.0.jpg  000001.json  ...

The tar files are those of `webdataset`, which writes them here, so its own tools read them, too. Each JSON is an entry
of the official format (`entries.py`), its pictures named by what follows the key, and a checksum of everything. Reading
takes nothing on trust: only plain files of these names, of sizes that the shard has on the disk, and entries that
`check_entry` finds good.

Opening checks every byte once. A damaged record is named, counted and left out before training begins. What is left is
a list in a seeded order, endless over epochs. The position in it is one whole number for all processes, which share the
positions of each step (`Processes.share`). So nothing is lost or seen twice, whatever the number of processes, and
whatever it is after a resume.

Why not webdataset's reader: it streams shards, so a run resumes at a shard and not at a sample; it reads links, sparse
and compressed files of any size; and it has no checksums. The price of ours: each process reads every shard (one core:
about 400 MB/s), though it decodes only its own pictures. Left out: shards at a URL, compressed tar files.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from tqdm.auto import tqdm

from ..inputs.checks import LIMITS, check_int, check_type, shown
from ..inputs.files import parse_json, plain_file, read_json, replacing
from ..processor import Processor
from .entries import ONE, Flaw, Record, check_entry
from .records import Notes, Problem, Report, check_records, misfit, picture_bytes, picture_flaw

INDEX = "index.json"
FIX = "copy or download the shard again, or write it anew"  # of all that is wrong with a shard
CHANGED = ("", "the bytes have changed since they were written", FIX)
BLOCK = 512  # a tar is made of blocks: a header, then the content, filled up with zeros


# ---- 1. Writing


def write_shards(
    records: Sequence[Record], folder: str | os.PathLike, per_shard: int = 1000, seed: int = 0
) -> list[Path]:
    """Write records as tar files. The same records give the same bytes.

    They are shuffled here, once, so that each shard is a fair sample of all: later only shards change places, and
    records inside of a shard. Picture files are copied as they are: check them with `read_records(...,
    pictures="decode")` before.

    Args:
        records: at least one; `Shards`, too.
        folder: for the shards; made if it is missing. It is complete once index.json is there, which is written last.
        per_shard: records of a shard; a reader holds one or two shards in memory, of 4 GiB at most.
        seed: of the shuffle.

    Returns:
        The paths of the shards.

    Raises:
        TypeError: an argument of another type.
        ValueError: no records, a `per_shard` below 1, a record that reading would refuse.
        FileExistsError: there are shards in the folder.
        OSError: a picture cannot be read, the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.scale.records import read_records
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> [path.name for path in write_shards(records, tempfile.mkdtemp(), per_shard=40)]
        ['shard-000000.tar', 'shard-000001.tar']
    """
    from webdataset import TarWriter  # needed for nothing else

    check_records(records)
    check_type("seed", seed, int, str)
    per_shard = check_int("there must be a record, and one or more in a shard: per_shard", per_shard)
    folder = Path(check_type("folder", folder, str, os.PathLike))
    if (folder / INDEX).exists():
        raise FileExistsError(f"{folder} holds shards already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shuffled = random.Random(seed).sample(range(len(records)), len(records))
    paths, lines = [], []
    for first in tqdm(range(0, len(shuffled), per_shard), "shards", disable=None, leave=False, delay=2):
        part = shuffled[first : first + per_shard]
        path = folder / f"shard-{len(paths):06d}.tar"
        # Without a fixed time and owner, the same records would give other bytes.
        with _replacing(path) as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for number, index in enumerate(part, start=first):
                tar.write({"__key__": f"{number:06d}", **_members(records[index])})
        paths.append(path)
        lines.append({"file": path.name, "records": len(part)})
    with _replacing(folder / INDEX) as file:
        file.write(json.dumps({"records": len(shuffled), "shards": lines}, indent=1).encode())
    return paths


@contextmanager
def _replacing(path: Path):
    """A file under a temporary name, which takes its own name when it is complete."""
    try:
        with replacing(path) as (draft,), open(draft, "wb") as file:
            yield file
    except OSError as error:
        raise OSError(f"could not write {path}: {error}") from error


def _members(record: Record) -> dict[str, bytes]:
    """The files of a record: its pictures, and its entry in the official format."""
    pictures, names = {}, {}
    for number, (placeholder, file) in enumerate(record.images.items()):
        suffix = Path(getattr(file, "name", "")).suffix.lower()  # a Path and a file in memory both have one
        name = f"{number}{suffix if re.fullmatch('[.][a-z0-9]{1,5}', suffix) else ''}"
        pictures[name], names[placeholder] = picture_bytes(file), name
    entry = {
        "id": record.id,
        "image": names[ONE] if list(names) == [ONE] else names,
        "conversations": [{"role": role, "content": content} for role, content in record.turns],
    }
    again, flaws, _ = check_entry(entry, lambda name: (name, None))
    if flaws or again.turns != record.turns:
        what = ": ".join(flaws[0][:2]) if flaws else "an answer begins with white space, or a placeholder is missing"
        raise ValueError(f"record {shown(record.id, 40)} would not be read again: {what}")
    entry["crc32"] = _checksum(entry, pictures)
    return {**pictures, "json": json.dumps(entry, ensure_ascii=False).encode()}


def _checksum(entry: dict, pictures: dict[str, bytes]) -> int:
    """CRC-32 of an entry and its pictures. It finds damage; it does not stop a forger."""
    total = zlib.crc32(json.dumps(entry, sort_keys=True).encode())
    for name in sorted(pictures):
        total = zlib.crc32(pictures[name], total)
    return total


# ---- 2. Reading


def open_shards(folder: str | os.PathLike, processor: Processor | None = None) -> tuple[Shards, Report]:
    """Read all shards once, and leave out what is damaged.

    Args:
        folder: from `write_shards`.
        processor: of the model that you train, as for `read_records`; it leaves out records that are too long for it.

    Returns:
        (the good records, Report). Where a file breaks off, or a header in it cannot be read, the rest of that shard is
        lost; each record that is lost so is counted, too.

    Raises:
        OSError: the index or a shard is not there, or no plain file.
        TypeError: an argument of another type.
        ValueError: an index that is not one, or claims more than the shards can hold; a shard that is too large; no
            good record.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.scale.records import read_records
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> folder = tempfile.mkdtemp()
        >>> shard = write_shards(records, folder)[0]
        >>> content = shard.read_bytes()
        >>> _ = shard.write_bytes(content.replace(b"Read the text", b"Reed the text", 1))
        >>> shards, report = open_shards(folder)
        >>> len(shards), report.skipped, report.problems[0].what
        (47, 1, 'the bytes have changed since they were written')
    """
    folder = Path(check_type("folder", folder, str, os.PathLike))
    check_type("processor", processor, Processor, type(None))
    counts = _read_index(folder)
    good, problems, notes, first = {}, [], Notes(), 0
    for name, n in tqdm(counts.items(), folder.name, disable=None, leave=False, delay=2):
        fine = []
        for number, record, flaws, spaced in _read_shard(folder / name, first, n, look=True):
            if processor and not flaws and (flaw := misfit(record, processor)):
                flaws.append(("", *flaw))
            for field, what, fix in flaws:
                what = f"{field}: {what}" if field else what
                problems.append(Problem(number, record and record.id, name, what, fix))
            if not flaws:
                fine.append(number)
                notes.add(number, record, spaced)
        good[name] = (first, n, tuple(fine))
        first += n
    report = Report(folder, first, tuple(problems), notes.texts())
    if report.skipped == report.total:
        raise ValueError(f"no record is good. {report.text(3)}")
    return Shards(folder, good), report


def _read_index(folder: Path) -> dict[str, int]:
    """Shard -> records that were written into it."""
    if not (folder / INDEX).exists():
        raise FileNotFoundError(f"no {INDEX} in {folder}; it is written last, so the shards are not complete")
    try:
        lines = read_json(folder / INDEX)["shards"]
        counts = {line["file"]: line["records"] for line in lines}
        # An index from a stranger must not reach outside its folder.
        plain = all(re.fullmatch(r"[\w-]+\.tar", name) and type(n) is int and n > 0 for name, n in counts.items())
    except (KeyError, TypeError):
        counts = plain = None
    if not counts or not plain or len(counts) < len(lines):
        raise ValueError(f"{folder / INDEX} is not the index of shards")
    size = sum(plain_file(folder / name, LIMITS["shard_bytes"]).stat().st_size for name in counts)
    most = LIMITS["lost_records"] + size // (4 * BLOCK)  # an entry and a picture, each with its header
    if sum(counts.values()) > most:
        raise ValueError(f"{folder / INDEX} claims {sum(counts.values()):,} records; {size:,} bytes cannot hold them")
    return counts


Found = tuple[int, Record | None, list[Flaw], int]  # number, what `check_entry` returns


def _read_shard(path: Path, first: int, n: int, look: bool = False) -> Iterator[Found]:
    """All records that should be in a shard, by their numbers; `look` opens the pictures."""
    found: dict[int, Found] = {}
    stopped = ""
    plain_file(path, LIMITS["shard_bytes"])
    with open(path, "rb") as file:
        try:
            for key, files in _groups(file):
                number = int(key)
                if number in range(first, first + n) and number not in found:
                    found[number] = (number, *_record(files, f"{path.name}/{key}", look))
        except ValueError as error:
            stopped = f"; reading stopped: {error}"
    for number in range(first, first + n):
        yield found.pop(number, None) or (number, None, [("", f"it is not in the shard{stopped}", FIX)], 0)


def _groups(file) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """The files of one record after another: its number, and {name: content}; None: no plain file, or too large."""
    key, files, damage = "", {}, None
    try:
        for name, content in _plain_members(file):
            match = re.fullmatch(r"([0-9]{6,12})\.([a-z0-9.]{1,16})", name)
            if not match:
                continue  # nothing that `write_shards` writes
            if files and match[1] != key:
                yield key, files
                files = {}
            key = match[1]
            files[match[2]] = None if match[2] in files else content  # which of two would be the right one?
    except ValueError as error:
        damage = error
    if files:
        yield key, files  # before the damage
    if damage:
        raise damage


def _plain_members(file) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of all members of a tar; the content of a link, a device, a sparse or a huge file is None.

    Header by header, and with no extension of the format: what these may claim, such as a sparse file of a terabyte,
    is not what lies on the disk.
    """
    size, place = os.fstat(file.fileno()).st_size, 0
    while place < size:
        file.seek(place)
        block = file.read(BLOCK)
        if not any(block):
            return  # a block of zeros is the end
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise ValueError(f"{error}" if place else f"{error}: no tar file, or a compressed one") from None
        place += BLOCK
        if member.size < 0 or place + member.size > size:
            raise ValueError("unexpected end of data")
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.size <= LIMITS["picture_bytes"]
        yield member.name, file.read(member.size) if plain else None
        place += -(-member.size // BLOCK) * BLOCK


def _record(files: dict[str, bytes | None], name: str, look: bool) -> tuple[Record | None, list[Flaw], int]:
    """One record of a shard, as `check_entry` returns it."""
    if odd := next((file for file, content in files.items() if content is None), None):
        return None, [("", f"{odd} is there twice, too large, or no plain file", FIX)], 0
    try:
        entry = parse_json(files["json"])
        checksum, images = entry.pop("crc32"), entry["image"]
        pictures = {file: files[file] for file in (images.values() if isinstance(images, dict) else [images])}
        if checksum != _checksum(entry, pictures):
            return None, [CHANGED], 0
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None, [CHANGED], 0

    def find(file: str):
        picture = io.BytesIO(pictures[file])  # a picture opens from memory as from a path
        picture.name = f"{name}.{file}"  # for errors
        return picture, picture_flaw(picture, picture.name, decode=False) if look else None

    return check_entry(entry, find)


class Shards(Sequence):
    """The good records of a folder, from `open_shards`. Shards are read when their turn comes, and two are kept.

    Args:
        folder: of the shards.
        good: shard -> (number of its first record, how many were written, numbers of those that are good).

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.scale.records import read_records
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> folder = tempfile.mkdtemp()
        >>> _ = write_shards(records, folder, per_shard=20)
        >>> shards, _ = open_shards(folder)
        >>> len(shards), shards.sample(0).id == shards.sample(0, seed=1).id
        (48, False)
    """

    def __init__(self, folder: Path, good: dict[str, tuple[int, int, tuple[int, ...]]]):
        self.folder, self.good = folder, good
        self._places = [(name, number) for name, (*_, numbers) in good.items() for number in numbers]
        self._read = lru_cache(maxsize=2)(self._read)
        self._order = lru_cache(maxsize=2)(self._order)  # a batch may reach into the next epoch

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """A record, or a list of them, in the order of the files.

        Raises:
            IndexError: there is no such record.
            TypeError: neither an integer nor a slice.
            ValueError: it was damaged since the shards were opened.
            OSError: the shard has gone.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, number = self._places[check_int("index", index, -sys.maxsize)]
        record = self._read(name).get(number)
        if record is None:
            raise ValueError(f"record {number} of {self.folder / name} was damaged since the shards were opened")
        return record

    def _read(self, name: str) -> dict[int, Record]:
        first, n, _ = self.good[name]
        return {number: record for number, record, *_ in _read_shard(self.folder / name, first, n) if record}

    def sample(self, position: int, seed: int = 0) -> Record:
        """Give the record at a position of a training, counted over all of its epochs and processes.

        `train_steps(..., samples=shards.sample)` takes it from here.

        Args:
            position: from 0, without end.
            seed: of the order.

        Returns:
            A Record. Each epoch has every record once; shards come in an order of its own, and so do their records.

        Raises:
            TypeError: not an integer; a seed that is neither an int nor text.
            ValueError: a negative position; as for `shards[index]`.
        """
        check_type("seed", seed, int, str)
        epoch, place = divmod(check_int("positions count from 0: position", position, least=0), len(self))
        return self[self._order(f"{seed}/{epoch}")[place]]

    def _order(self, seed: str) -> list[int]:
        rng = random.Random(seed)
        shards: dict[str, list[int]] = {}
        for index, (name, _) in enumerate(self._places):
            shards.setdefault(name, []).append(index)
        return [
            i for name in rng.sample(list(shards), len(shards)) for i in rng.sample(shards[name], len(shards[name]))
        ]
