"""Shards: many records in a few tar files, which disks and networks read faster than many small files.

    index.json         {"records": 48, "shards": [{"file": "shard-000000.tar", "records": 16}, ...]}
    shard-000000.tar   000000.0.png  000000.json  000001.0.jpg  000001.json  ...

The tar files are those of `webdataset`, which writes and reads them here, so its own tools read them, too. Each JSON is
a record of the official format, its pictures named by what follows the key, and a checksum of everything.

Opening checks every byte once. A damaged record is named, counted and left out before training begins, so the loop
meets no holes. What is left is a list in a seeded order, endless over epochs. Its position is one whole number for all
processes: process `rank` of `size` takes the positions that leave the rest `rank` when divided by `size`. So nothing is
lost or seen twice, whatever the number of processes, and whatever it is after a resume.

The price: each process reads every shard (one core: about 400 MB/s), though it decodes only its own pictures.
Left out: shards behind a URL, compressed tar files.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import count
from pathlib import Path

from tqdm.auto import tqdm
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..files import read_json, replacing
from ..processor import Processor
from .records import ONE, Problem, Record, Report, misfit

INDEX = "index.json"
MEND = "copy or download the shard again, or write it anew"


# ---- 1. Writing


def write_shards(
    records: Sequence[Record], folder: str | os.PathLike, per_shard: int = 1000, seed: int = 0
) -> list[Path]:
    """Write records as tar files. The same records give the same bytes.

    They are shuffled here, once, so that each shard is a fair sample of all: later only whole shards change places, and
    records inside of a shard. Picture files are copied as they are, so let `read_records(..., pictures="whole")` look
    at them before.

    Args:
        records: at least one.
        folder: for the shards; made if it is missing. It is complete once index.json is there, which is written last.
        per_shard: records of a shard; whoever reads holds one or two shards in memory.
        seed: of the shuffle.

    Returns:
        The paths of the shards.

    Raises:
        ValueError: no records, a `per_shard` below 1.
        FileExistsError: there are shards in the folder.
        OSError: a picture cannot be read, the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.learn.records import read_records
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> [path.name for path in write_shards(records, tempfile.mkdtemp(), per_shard=40)]
        ['shard-000000.tar', 'shard-000001.tar']
    """
    if not records or per_shard < 1:
        raise ValueError(f"there must be a record, and one or more in a shard; got {len(records)=}, {per_shard=}")
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise FileExistsError(f"{folder} holds shards already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shuffled = random.Random(seed).sample(list(records), len(records))
    paths, lines = [], []
    for first in tqdm(range(0, len(shuffled), per_shard), "shards", disable=None, leave=False, delay=2):
        part = shuffled[first : first + per_shard]
        path = folder / f"shard-{len(paths):06d}.tar"
        # Without a fixed time and owner, the same records would give other bytes.
        with _replacing(path) as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for number, record in enumerate(part, start=first):
                tar.write({"__key__": f"{number:06d}", **_members(record)})
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
    for number, (placeholder, path) in enumerate(record.images.items()):
        suffix = path.suffix.lower()
        name = f"{number}{suffix if re.fullmatch('[.][a-z0-9]{1,5}', suffix) else ''}"
        pictures[name], names[placeholder] = path.read_bytes(), name
    entry = {
        "id": record.id,
        "image": names[ONE] if list(names) == [ONE] else names,
        "conversations": [{"role": role, "content": content} for role, content in record.turns],
    }
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
        (the good records, Report). A file that breaks off, or a name inside of it that cannot be read, takes along what
        lies behind in the same shard; each record that is lost so is counted, too.

    Raises:
        OSError: the index or a whole shard is not there.
        ValueError: an index that is not one; no good record.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.learn.records import read_records
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> folder = tempfile.mkdtemp()
        >>> shard = write_shards(records, folder)[0]
        >>> content = shard.read_bytes()
        >>> _ = shard.write_bytes(content.replace(b"Read the text", b"Reed the text", 1))
        >>> shards, report = open_shards(folder)
        >>> len(shards), report.skipped, report.problems[0].what
        (47, 1, 'the bytes have changed since they were written')
    """
    folder = Path(folder)
    counts = _read_index(folder)
    good, problems, first = {}, [], 0
    for name, n in tqdm(counts.items(), folder.name, disable=None, leave=False, delay=2):
        records, flaws = _read_shard(folder / name, first, n)
        problems += [Problem(number, None, name, what, MEND) for number, what in sorted(flaws.items())]
        for number, record in list(records.items()) if processor else ():
            if flaw := misfit(record, processor):
                problems.append(Problem(number, record.id, name, *flaw))
                del records[number]
        good[name] = (first, n, tuple(records))
        first += n
    report = Report(folder, first, tuple(problems))
    if report.skipped == report.total:
        raise ValueError(f"no record is good. {report.text(3)}")
    return Shards(folder, good), report


def _read_index(folder: Path) -> dict[str, int]:
    """Shard -> records that were written into it."""
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"no {INDEX} in {folder}; it is written last, so the shards are not complete")
    try:
        counts = {line["file"]: line["records"] for line in read_json(folder / INDEX)["shards"]}
        # An index from a stranger must not reach outside its folder.
        plain = all(re.fullmatch(r"[\w-]+\.tar", name) and type(n) is int and n > 0 for name, n in counts.items())
    except (KeyError, TypeError):
        counts = plain = None
    if not counts or not plain:
        raise ValueError(f"{folder / INDEX} is not the index of shards")
    return counts


def _read_shard(path: Path, first: int, n: int) -> tuple[dict[int, Record], dict[int, str]]:
    """The good records of a shard by their numbers, and what is wrong with the others."""
    records, flaws, stopped = {}, {}, []
    with open(path, "rb") as file:
        # A handler that says no ends the reading where webdataset cannot go on; what is missing is counted below.
        options = {"handler": stopped.append}
        for sample in group_by_keys(tar_file_expander([{"url": path.name, "stream": file}], **options), **options):
            key = sample["__key__"]
            number = int(key) if re.fullmatch("[0-9]{6,12}", key) else -1
            if number in range(first, first + n) and number not in records.keys() | flaws.keys():
                try:
                    records[number] = _record(sample, f"{path.name}/{key}")
                except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
                    flaws[number] = "the bytes have changed since they were written"
    reason = f"; reading stopped: {stopped[0].args[0]}" if stopped else ""
    missing = {number: f"it is not in the shard{reason}" for number in range(first, first + n) if number not in records}
    return records, missing | flaws


def _record(sample: dict[str, bytes], name: str) -> Record:
    entry = json.loads(sample["json"])
    checksum, images = entry.pop("crc32"), entry["image"]
    images = images if isinstance(images, dict) else {ONE: images}
    pictures = {file: sample[file] for file in images.values()}
    if checksum != _checksum(entry, pictures):
        raise ValueError("checksum")
    files = {}
    for placeholder, file in images.items():
        files[placeholder] = io.BytesIO(pictures[file])  # a picture opens from memory as from a path
        files[placeholder].name = f"{name}.{file}"  # for errors
    return Record(entry["id"], files, tuple((turn["role"], turn["content"]) for turn in entry["conversations"]))


class Shards(Sequence):
    """The good records of a folder, from `open_shards`. Shards are read when their turn comes, and two are kept.

    Args:
        folder: of the shards.
        good: shard -> (number of its first record, how many were written, numbers of those that are good).

    Example:
        >>> import tempfile
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.learn.records import read_records
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> folder = tempfile.mkdtemp()
        >>> _ = write_shards(records, folder, per_shard=20)
        >>> shards, _ = open_shards(folder)
        >>> len(shards), shards.sample(0).id == shards.sample(0, seed=1).id
        (48, False)
        >>> from itertools import islice
        >>> parts = [[record.id for record in islice(shards.stream(rank=rank, size=2), 24)] for rank in range(2)]
        >>> len(set(parts[0] + parts[1]))
        48
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
            ValueError: it was damaged since the shards were opened.
            OSError: the shard has gone.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, number = self._places[index]
        record = self._read(name).get(number)
        if record is None:
            raise ValueError(f"record {number} of {self.folder / name} was damaged since the shards were opened")
        return record

    def _read(self, name: str) -> dict[int, Record]:
        first, n, _ = self.good[name]
        return _read_shard(self.folder / name, first, n)[0]

    def sample(self, position: int, seed: int = 0) -> Record:
        """The record at a position of a training, counted over all of its epochs and processes.

        `train(..., samples=shards.sample)` takes it from here.

        Args:
            position: from 0, without end.
            seed: of the order.

        Returns:
            A Record. Each epoch has every record once; shards come in an order of its own, and so do their records.

        Raises:
            ValueError: a negative position; as for `shards[index]`.
        """
        if position < 0:
            raise ValueError(f"positions count from 0, got {position}")
        epoch, place = divmod(position, len(self))
        return self[self._order(f"{seed}/{epoch}")[place]]

    def _order(self, seed: str) -> list[int]:
        rng = random.Random(seed)
        shards: dict[str, list[int]] = {}
        for index, (name, _) in enumerate(self._places):
            shards.setdefault(name, []).append(index)
        return [
            i for name in rng.sample(list(shards), len(shards)) for i in rng.sample(shards[name], len(shards[name]))
        ]

    def stream(self, seed: int = 0, start: int = 0, rank: int = 0, size: int = 1) -> Iterator[Record]:
        """One process's part of the positions from `start` on, without end.

        To resume, with as many processes as you like, keep how many samples all of them have used: that is `start`.

        Args:
            seed: of the order.
            start: samples that all processes together have behind them.
            rank, size: this process's number, from 0, and how many there are.

        Returns:
            An iterator of Records: positions start + rank, start + rank + size, ...

        Raises:
            ValueError: a rank that is not below size, a negative number.
        """
        if not 0 <= rank < size or start < 0:
            raise ValueError(f"rank must be from 0 to size - 1, start from 0; got {rank=}, {size=}, {start=}")
        return map(partial(self.sample, seed=seed), count(start + rank, size))
