"""Weight files from strangers: thousands of damaged ones, and each is read or refused with one clear error.

Never a crash, never a hang, never memory far beyond the file's size. Damage is seeded, so a failure repeats.
"""

import json
import os
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from minicpmv_ref.config import nano
from minicpmv_ref.deploy.gguf_reader import read_gguf
from minicpmv_ref.inputs.checkpoint import WEIGHTS, read_tensors
from minicpmv_ref.inputs.published import CONFIG

ROUNDS = 3000
SECONDS = 5  # of CPU time for one file of a few kB, which takes a millisecond: a hang, not a slow machine
SLACK = 300_000  # bytes that Python itself may take: messages, tracebacks, caches
NUMBERS = [0, 1, 3, 7, 8, 9, 31, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]


def damage(raw: bytes, rng: random.Random) -> bytes:
    """Change a file in one to four places, mostly near its beginning, where the lengths and counts stand."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = int(len(raw) * rng.random() ** rng.choice([1, 3]))
        action = rng.randrange(7)
        if action == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif action == 1 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            raw[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif action == 3:
            raw[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) % 2**32)
        elif action == 4:
            raw = raw[:at]
        elif action == 5:
            raw[at:at] = rng.randbytes(rng.randint(1, 40))
        else:
            del raw[at : at + rng.randint(1, 40)]
    return bytes(raw)


def survive(read, raw: bytes) -> tuple[str, int]:
    """Call `read`: ("read" or "refused", peak of memory)."""
    tracemalloc.clear_traces()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    tracemalloc.reset_peak()
    try:
        read()
        outcome = "read"
    except (ValueError, OSError) as error:
        assert 0 < len(str(error)) < 2000
        outcome = "refused"
    assert time.process_time() - start < SECONDS
    return outcome, tracemalloc.get_traced_memory()[1] - before


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def small_gguf() -> bytes:
    """A sound file with every kind of value, some tensors, and little else: damage hits something that matters."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    keys = {
        "general.alignment": struct.pack("<II", 4, 32),
        "general.name": struct.pack("<I", 8) + text("MiniCPM-V"),
        "tokens": struct.pack("<IIQ", 9, 8, 40) + b"".join(text(str(i)) for i in range(40)),
        "types": struct.pack("<IIQ40i", 9, 5, 40, *range(40)),
        "bytes": struct.pack("<IIQ40B", 9, 0, 40, *range(40)),
        "flag": struct.pack("<I?", 7, True),
        "eps": struct.pack("<Id", 12, 1e-6),
        "big": struct.pack("<Iq", 11, -1),
    }
    tensors = [("a", (256, 2), 12, 288), ("b", (7,), 0, 32), ("c", (32, 3), 8, 128), ("d", (5, 2, 2), 1, 64)]
    raw, offset = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)), 0
    raw += b"".join(text(name) + value for name, value in keys.items())
    for name, shape, kind, size in tensors:
        raw += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += size
    return raw + b"\0" * (-len(raw) % 32) + bytes(range(256)) * 2


def test_gguf(tmp_path, traced):
    path, whole, rng = tmp_path / "x.gguf", small_gguf(), random.Random(0)
    path.write_bytes(whole)

    def read():
        for stored in read_gguf(path).tensors.values():
            stored.numpy()

    assert survive(read, whole)[0] == "read"
    outcomes = []
    for _ in range(ROUNDS):
        raw = damage(whole, rng)
        path.unlink()  # the old file may still be mapped
        path.write_bytes(raw)
        outcome, peak = survive(read, raw)
        assert peak < 20 * len(raw) + SLACK
        outcomes.append(outcome)
    assert outcomes.count("refused") > ROUNDS / 2 and outcomes.count("read") > ROUNDS / 50


def test_noise_is_no_gguf(tmp_path, traced):
    path, rng = tmp_path / "x.gguf", random.Random(1)
    for _ in range(500):
        head = rng.choice([b"", b"GGUF", b"GGUF" + struct.pack("<I", 3), small_gguf()[: rng.randrange(600)]])
        raw = head + rng.randbytes(rng.randrange(2000))
        path.write_bytes(raw)
        outcome, peak = survive(lambda: read_gguf(path), raw)
        assert outcome == "refused" and peak < 20 * len(raw) + SLACK


@pytest.mark.parametrize("payload", ["texts", "numbers", "keys", "tensors"])
def test_memory_grows_with_the_file_and_not_with_its_claims(payload, tmp_path, traced):
    """The most memory that a byte of a sound file can cost: many small things."""
    count = 20_000

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    keys, tensors = [], []
    if payload == "texts":
        keys = [text("k") + struct.pack("<IIQ", 9, 8, count) + b"".join(text(f"{i:02}") for i in range(count))]
    elif payload == "numbers":
        keys = [text("k") + struct.pack("<IIQ", 9, 0, 16 * count) + bytes(16 * count)]
    elif payload == "keys":
        keys = [text(f"{i:x}") + struct.pack("<IB", 0, 1) for i in range(count)]
    else:
        tensors = [text(f"{i:x}") + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(count)]
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    raw += bytes(-len(raw) % 32 + 32 * len(tensors))
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    outcome, peak = survive(lambda: read_gguf(path), raw)
    assert outcome == "read" and peak < 20 * len(raw) + SLACK


def test_safetensors(tmp_path, traced):
    """The same for `read_tensors`, which leaves the header to the safetensors library."""
    shapes = {"vpm.a": (3, 5), "resampler.b": (7,), "llm.c": (2, 2, 2)}
    rng = random.Random(2)
    (tmp_path / CONFIG).write_text(json.dumps(nano.to_dict()))
    path = tmp_path / WEIGHTS
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    whole = path.read_bytes()
    outcomes = []
    for _ in range(ROUNDS):
        raw = damage(whole, rng)
        path.unlink()  # the old file may still be mapped
        path.write_bytes(raw)
        outcome, peak = survive(lambda: read_tensors(tmp_path, nano, shapes), raw)
        assert peak < 20 * len(raw) + SLACK
        outcomes.append(outcome)
    assert outcomes.count("refused") > ROUNDS / 2 and outcomes.count("read") > ROUNDS / 50


@pytest.mark.parametrize("damage", ["cut", "overwritten", "removed", "replaced", "touched"])
def test_a_gguf_file_that_changes_after_it_was_read(tmp_path, damage):
    """Its tensors are read when they are looked at: those of the file that was opened, or none."""
    path = tmp_path / "x.gguf"
    path.write_bytes(small_gguf())
    os.utime(path, ns=(0, 0))
    read = read_gguf(path)
    before = {name: stored.numpy() for name, stored in read.tensors.items()}
    if damage == "cut":
        os.truncate(path, 200)
    elif damage == "overwritten":
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    elif damage == "touched":
        os.utime(path)
    else:
        path.unlink()
        if damage == "replaced":
            path.write_bytes(bytes(3000))
    for name, stored in read.tensors.items():
        with pytest.raises(OSError, match="changed" if damage != "removed" else "no file"):
            stored.numpy()
        assert stored.shape == before[name].shape
    assert read.keys["tokens"][-1] == "39" and read.keys["types"].tolist() == list(range(40))


def test_weights_of_a_gguf_file_that_are_no_numbers(tmp_path):
    raw = bytearray(small_gguf())
    start = len(raw) - 512
    path = tmp_path / "x.gguf"
    for name, at, bad in (("a", 1, b"\x7c"), ("b", 290, b"\x80\x7f"), ("c", 321, b"\xfc"), ("d", 450, b"\0\x7c")):
        damaged = raw[: start + at] + bad + raw[start + at + len(bad) :]
        path.write_bytes(damaged)
        tensors = read_gguf(path).tensors
        with pytest.raises(ValueError, match=f"'{name}' holds a NaN or an infinity"):
            tensors[name].numpy()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_gguf_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    os.symlink("/dev/zero", tmp_path / "zero.gguf")
    for name in ("pipe.gguf", "zero.gguf"):
        with pytest.raises(OSError, match="pipe or a device"):
            read_gguf(tmp_path / name)


@pytest.mark.parametrize("name", ["\x1b[2J", "\u202exyz", "\x9b31m"])
def test_names_in_a_gguf_file_do_not_reach_the_terminal(tmp_path, name):
    raw = name.encode()
    text = struct.pack("<Q", len(raw)) + raw
    key, tensor = text + struct.pack("<IB", 0, 1), text + struct.pack("<IQIQ", 1, 0, 0, 0)
    for counts, body in (((0, 2), key + key), ((1, 0), tensor)):
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)
        with pytest.raises(ValueError) as caught:
            read_gguf(tmp_path / "x.gguf")
        assert str(caught.value).isprintable()
