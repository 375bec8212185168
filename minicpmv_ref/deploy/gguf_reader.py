"""The GGUF format, and a reader that trusts no file.

A GGUF file is a header, named values ("keys"), a table of tensors, and their bytes, all little endian:

    "GGUF"  version  how many tensors  how many keys
    keys      name, type, value: sizes of the model, the tokenizer, the chat template
    tensors   name, shape (fastest axis first), kind, where its bytes begin
    bytes     every tensor at a multiple of 32

A text is its length and its UTF-8; an array is a type, a length and its values. Left out: big-endian files, arrays of
arrays, and models that are split over several files.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..inputs.checks import printable, shown
from ..inputs.files import plain_file
from .kquant import FORMATS, dequantize

ALIGNMENT = 32  # bytes; a key of the file may say otherwise
LONGEST_KEY, LONGEST_NAME = 256, 64  # bytes; llama.cpp has room for 63 in the name of a tensor

# The types of values: numbers by their letter in `struct`, then the other two.
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
NUMPY_CODES = {"I": "u4", "i": "i4", "Q": "u8", "q": "i8", "?": "u1"}  # where numpy's letters mean something else
STRING, ARRAY = 8, 9


def tensor_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor without padding.

    Example:
        >>> tensor_bytes("Q4_K", (10, 512))
        2880
    """
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return math.prod(shape) // weights * size


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


@dataclass(frozen=True)
class Stored:
    """A tensor of a file. Its bytes stay in the file: they are read whenever they are looked at."""

    name: str
    kind: str
    shape: tuple[int, ...]  # slowest axis first, as in numpy and torch
    file: Path
    start: int  # where its bytes begin
    state: tuple[int, ...]  # of the file, as `_state` gives it

    @property
    def data(self) -> np.ndarray:
        """Its bytes (uint8, read-only), read now.

        Raises:
            OSError: the file is gone, or it is not as it was when `read_gguf` read it.
        """
        plain_file(self.file)
        with open(self.file, "rb") as file:
            if _state(file) != self.state:
                raise OSError(f"{printable(str(self.file))} has changed since it was read: read it again")
            file.seek(self.start)
            data = np.empty(tensor_bytes(self.kind, self.shape), np.uint8)
            if file.readinto(data) != len(data):
                raise OSError(f"{printable(str(self.file))} has become shorter while it was read")
        data.flags.writeable = False  # nothing that is written here would reach the file
        return data

    def numpy(self) -> np.ndarray:
        """The weights as float32.

        Raises:
            OSError: as `data`.
            ValueError: a kind that cannot be decoded here, or weights that are not finite.
        """
        data = self.data
        if self.kind in FORMATS:
            rows = data.reshape(math.prod(self.shape[:-1]), -1)
            weights = dequantize(rows, self.kind, self.shape[-1]).reshape(self.shape)
        elif self.kind in ("F16", "F32"):
            weights = data.view("<f2" if self.kind == "F16" else "<f4").astype(np.float32).reshape(self.shape)
        else:
            raise ValueError(f"{self.kind} cannot be decoded; known are F32, F16, {', '.join(FORMATS)}")
        if not (np.isfinite(weights.min()) and np.isfinite(weights.max())):  # a NaN is both
            raise ValueError(f"{printable(str(self.file))}: {shown(self.name)} holds a NaN or an infinity")
        return weights


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What changes when somebody writes to an open file, or puts another in its place."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class GGUF:
    """What a file holds. Values of `keys` are numbers, bool, str, numpy arrays, or lists of str."""

    keys: dict[str, object]
    tensors: dict[str, Stored]


def read_gguf(path: str | os.PathLike) -> GGUF:
    """Read a GGUF file, whoever wrote it.

    Only its keys are loaded. A tensor is read when it is looked at, for a language model may not fit into memory
    twice. It is not mapped either: cutting a mapped file short would end the process. If the file has changed in the
    meantime, looking at a tensor is an OSError.

    A count or length in the file is never believed before that many bytes are seen to be there, so it cannot make the
    reader allocate more than a few times its own size, or keep it busy for long.

    Args:
        path: a file of GGUF version 2 or 3, little endian, with tensors of any kind that ggml knows.

    Returns:
        A GGUF with `.keys` (name -> value) and `.tensors` (name -> Stored; `.numpy()` decodes it).

    Raises:
        ValueError: not a GGUF file, or a damaged one; the message says where it ends or what is impossible.
        OSError: the file does not exist, cannot be read, or is no plain file.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "smallest.gguf")
        ...     _ = path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
        ...     read_gguf(path)
        GGUF(keys={}, tensors={})

    Source: ggml, docs/gguf.md and gguf.cpp, gguf_init_from_file.
    """
    path = plain_file(path)
    try:
        with open(path, "rb") as file:
            return _read(_Cursor(file, path))
    except ValueError as error:  # bytes may be no UTF-8
        raise ValueError(f"{printable(str(path))} is not a sound GGUF file: {error}") from None


class _Cursor:
    """A place in a file from which numbers and texts are taken, never from beyond its end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.place = file, path, 0
        self.state = _state(file)
        self.size = os.fstat(file.fileno()).st_size

    def skip(self, count: int) -> int:
        """Move on by `count` bytes and return where they begin."""
        left = self.size - self.place
        if count > left:
            raise ValueError(f"{count} bytes announced at byte {self.place}, but only {left} are left")
        self.place += count
        return self.place - count

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.skip(count)
        data = self.file.read(count)
        if len(data) < count:
            raise ValueError(f"it has become shorter while it was read: it ends before byte {start + count}")
        return data

    def number(self, code: str):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return str(self.take(self.number("Q")), "utf-8")

    def name(self, most: int) -> str:
        start = self.place
        name = self.text()
        if not 1 <= self.place - start - 8 <= most:
            raise ValueError(f"a name of {self.place - start - 8} bytes at byte {start}: 1 to {most} are allowed")
        return name

    def array(self, code: str, count: int) -> np.ndarray:
        dtype = np.dtype("<" + NUMPY_CODES.get(code, code))
        return np.frombuffer(self.take(count * dtype.itemsize), dtype, count)


def _read(cursor: _Cursor) -> GGUF:
    if cursor.size == 0:
        raise ValueError("it is empty")
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, not 2 or 3")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")

    keys: dict[str, object] = {}
    for _ in range(key_count):  # a lie about the count ends at the end of the file
        name = cursor.name(LONGEST_KEY)
        if name in keys:
            raise ValueError(f"the key {shown(name)} comes twice")
        keys[name] = _value(cursor, cursor.number("I"))
    alignment = keys.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment must be a power of two, got {shown(alignment)}")

    table, end = {}, 0
    for _ in range(tensor_count):
        name, kind, shape, offset = _tensor_info(cursor)
        if name in table:
            raise ValueError(f"the tensor {shown(name)} comes twice")
        if offset != end:  # they follow each other, so no two can share bytes
            raise ValueError(f"{shown(name)} begins at {offset}, but the tensor before it ends at {end}")
        table[name] = kind, shape, offset
        end += padded(tensor_bytes(kind, shape), alignment)

    start, tensors = padded(cursor.place, alignment), {}
    for name, (kind, shape, offset) in table.items():
        cursor.place = start + offset
        begin = cursor.skip(tensor_bytes(kind, shape))
        tensors[name] = Stored(name, kind, shape, cursor.path, begin, cursor.state)
    return GGUF(keys, tensors)


def _value(cursor: _Cursor, kind: int):
    if kind == STRING:
        return cursor.text()
    if kind == ARRAY:
        kind, count = cursor.number("I"), cursor.number("Q")
        if kind == STRING:
            return [cursor.text() for _ in range(count)]
        if kind in CODES:
            return cursor.array(CODES[kind], count)
    elif kind in CODES:
        return cursor.number(CODES[kind])
    raise ValueError(f"at byte {cursor.place} stands the type of value {kind}, which is unknown or an array of arrays")


def _tensor_info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    name, axes = cursor.name(LONGEST_NAME), cursor.number("I")
    if not 1 <= axes <= 4:
        raise ValueError(f"{shown(name)} has {axes} axes, not 1 to 4")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]  # the file has the fastest axis first
    number = cursor.number("I")
    if number not in GGMLQuantizationType._value2member_map_:
        raise ValueError(f"{shown(name)} is of kind {number}, which ggml does not know")
    kind = GGMLQuantizationType(number)
    if min(shape) < 1 or shape[-1] % GGML_QUANT_SIZES[kind][0]:
        raise ValueError(f"{shown(name)} of kind {kind.name} cannot have the shape {shape}")
    return name, kind.name, shape, cursor.number("Q")
