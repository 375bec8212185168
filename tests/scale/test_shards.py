"""Shards: the same bytes every time, nothing lost or doubled, resumable anywhere, and damage is counted, not met."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from threading import Thread

import pytest
import torch
import webdataset
from PIL import Image
from places import ROOT
from tiny import talk

from minicpmv_ref import Processor, load_image
from minicpmv_ref.__main__ import main
from minicpmv_ref.inputs.checks import LIMITS
from minicpmv_ref.learn.stages import Stage, start
from minicpmv_ref.scale import shards as shards_module
from minicpmv_ref.scale.records import Record, read_records
from minicpmv_ref.scale.shards import INDEX, open_shards, write_shards
from minicpmv_ref.scale.steps import train_steps as train

FROZEN = "bfbc82308fd429df007a9af57510cd4f63cfef60a6609b3f229a0b342e3b2a5f"
GOLDEN = [24, 26, 25, 29, 28, 27, 22, 23, 21, 20, 5, 6]
EXAMPLE = ROOT / "data_samples" / "records" / "train.json"


@pytest.fixture(scope="module")
def records():
    return read_records(EXAMPLE)[0]


@pytest.fixture
def folder(records, tmp_path):
    """48 records in shards of 10, 10, 10, 10 and 8."""
    write_shards(records, tmp_path / "shards", per_shard=10)
    return tmp_path / "shards"


def ids(some):
    return [record.id for record in some]


def stream(shards, seed=0, start=0, rank=0, size=1):
    """The records of one of several processes, which share the positions from `start` on."""
    return map(partial(shards.sample, seed=seed), count(start + rank, size))


def same(one: Record, two: Record) -> bool:
    pictures = [
        [part.tobytes() for turn in record.messages for part in turn["content"] if isinstance(part, Image.Image)]
        for record in (one, two)
    ]
    return (one.id, one.turns, pictures[0]) == (two.id, two.turns, pictures[1]) and len(pictures[0]) == len(one.images)


# ---- writing


def test_what_is_written_is_read(records, folder):
    shards, report = open_shards(folder)
    assert (report.total, report.skipped, report.problems, len(shards)) == (48, 0, (), 48)
    by_id = {record.id: record for record in records}
    assert sorted(ids(shards)) == sorted(by_id) and ids(shards) != ids(records)  # shuffled
    assert all(same(record, by_id[record.id]) for record in shards)
    assert same(shards[0], shards[0])  # a picture can be opened again and again
    assert shards[-1].id == shards[47].id
    with pytest.raises(IndexError):
        shards[48]


def test_the_same_records_give_the_same_bytes(records, folder, tmp_path):
    write_shards(records, tmp_path / "again", per_shard=10)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [INDEX] + [f"shard-{i:06d}.tar" for i in range(5)]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    write_shards(records, tmp_path / "other", per_shard=10, seed=1)
    assert (folder / names[1]).read_bytes() != (tmp_path / "other" / names[1]).read_bytes()
    # Those of the first version: shards that it wrote are read, and these are its bytes.
    assert hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest() == FROZEN


def test_bytes_do_not_depend_on_time_or_user(folder):
    with tarfile.open(folder / "shard-000000.tar") as tar:
        owners = {(member.uid, member.uname, member.gid, member.gname) for member in tar}
        assert owners == {(0, "", 0, "")} and {(member.mtime, member.mode) for member in tar} == {(0, 0o444)}


def test_the_index(folder):
    shards = [{"file": f"shard-{i:06d}.tar", "records": 8 if i == 4 else 10} for i in range(5)]
    assert json.loads((folder / INDEX).read_text()) == {"records": 48, "shards": shards}


def test_webdataset_reads_them_with_its_own_means(records, folder):
    urls = str(folder / "shard-{000000..000004}.tar")
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in found] == [f"{number:06d}" for number in range(48)]
    assert [sample["json"]["id"] for sample in found] == ids(open_shards(folder)[0])
    assert found[0]["0.png"].size == load_image(records[0].images["<image>"]).size
    turns = found[0]["json"]["conversations"]
    assert turns[0]["role"] == "user" and found[0]["json"]["image"] == "0.png"  # the official format


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads from servers through curl")
def test_webdataset_reads_them_from_a_server_and_tells_if_a_worker_dies(folder):
    def die_at_15(sample):
        if sample["__key__"] == "000015":
            os.kill(os.getpid(), signal.SIGKILL)
        return sample

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        urls = f"http://127.0.0.1:{server.server_port}/shard-{{000000..000004}}.tar"
        data = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
        found = [sample["__key__"] for sample in webdataset.WebLoader(data, batch_size=None, num_workers=2)]
        assert sorted(found) == [f"{number:06d}" for number in range(48)]
        with pytest.raises(RuntimeError, match=r"worker .* (exited unexpectedly|is killed by signal)"):
            list(webdataset.WebLoader(data.map(die_at_15), batch_size=None, num_workers=2))
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


def test_reading_needs_no_webdataset(folder):
    code = (
        "import sys; sys.modules['webdataset'] = None; from minicpmv_ref.scale.shards import open_shards; "
        "print(len(open_shards(sys.argv[1])[0]))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "48", ran.stderr


def test_several_pictures_names_and_scripts(tmp_path):
    for number, name in enumerate(("a.b.PNG", "no suffix", "x.a-long-suffix", "照片.jpg")):
        Image.new("RGB", (10 + number, 9), (number, 0, 0)).save(tmp_path / name, format="PNG")
    images = {f"<image_{n:02d}>": tmp_path / name for n, name in enumerate(("照片.jpg", "no suffix", "a.b.PNG"))}
    turns = ("user", "<image_01>\n<image_00> 这 <image_02>"), ("assistant", '\N{GRINNING FACE} \\ " é\n')
    record = Record("../../\0 照", images, turns)
    other = Record("plain", {"<image>": tmp_path / "x.a-long-suffix"}, (("user", "<image>"), ("assistant", "x")))
    write_shards([record, other], tmp_path / "new" / "s")
    back = {each.id: each for each in open_shards(tmp_path / "new" / "s")[0]}
    assert same(back[record.id], record) and same(back["plain"], other)
    assert list(back[record.id].images) == list(images)
    # A suffix that readers may know is kept, in lower case; a part of a name is none.
    names = Counter(name.split(".", 1)[1] for name in members(tmp_path / "new" / "s" / "shard-000000.tar"))
    assert names == {"json": 2, "0.jpg": 1, "1": 1, "2.png": 1, "0": 1}
    assert back["plain"].images["<image>"].name.startswith("shard-000000.tar/00000")  # for errors


def test_a_writing_that_was_cut_off(records, folder, tmp_path, monkeypatch):
    """Whole shards stay, the index is missing, and no draft is left; writing again completes it."""
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    real = webdataset.TarWriter.write

    def full(self, sample):
        if sample["__key__"] == "000025":
            raise OSError(28, "No space left on device")
        real(self, sample)

    monkeypatch.setattr(webdataset.TarWriter, "write", full)
    with pytest.raises(OSError, match=r"could not write .*shard-000002.tar: .*No space left on device"):
        write_shards(records, tmp_path / "cut", per_shard=10)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["shard-000000.tar", "shard-000001.tar"]
    with pytest.raises(FileNotFoundError, match="not complete"):
        open_shards(tmp_path / "cut")
    monkeypatch.undo()

    def full_now(value, **options):
        if "shards" in value:
            raise OSError(28, "No space left on device")
        return ""

    monkeypatch.setattr(json, "dumps", full_now)
    with pytest.raises(OSError, match=r"could not write .*index.json: .*No space left on device"):
        write_shards(records, tmp_path / "cut", per_shard=10)
    assert {path.suffix for path in (tmp_path / "cut").iterdir()} == {".tar"}
    monkeypatch.undo()
    write_shards(records, tmp_path / "cut", per_shard=10)
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == wanted


def test_bad_calls(records, folder, tmp_path):
    for wrong in (dict(records=[]), dict(records=records, per_shard=0)):
        with pytest.raises(ValueError, match="there must be a record"):
            write_shards(**wrong, folder=tmp_path / "x")
    with pytest.raises(FileExistsError, match="holds shards already"):
        write_shards(records, folder)
    gone = Record("gone", {"<image>": tmp_path / "gone.png"}, records[0].turns)
    with pytest.raises(OSError, match=r"gone.png"):
        write_shards([gone], tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == []
    shards, _ = open_shards(folder)
    with pytest.raises(ValueError, match="positions count from 0"):
        shards.sample(-1)


# ---- order, ranks, resume


def test_each_epoch_has_every_record_once(folder):
    shards, _ = open_shards(folder)
    epochs = [ids(shards.sample(position) for position in range(e * 48, e * 48 + 48)) for e in range(3)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [shards.sample(position, seed=1).id for position in range(48)] != epochs[0]


def test_shards_are_read_one_after_the_other(folder, monkeypatch):
    """That is what they are for: an epoch opens each shard once, although records inside of it are mixed."""
    shards, _ = open_shards(folder)
    opened = []
    real = open

    def watched(path, *args):
        opened.append(path.name)
        return real(path, *args)

    monkeypatch.setattr("builtins.open", watched)
    firsts = ids(islice(stream(shards), 48))
    monkeypatch.undo()
    assert Counter(opened) == {f"shard-{i:06d}.tar": 1 for i in range(5)}
    assert opened != sorted(opened)
    place = {record.id: number for number, record in enumerate(shards)}
    numbers = [place[name] for name in firsts[:8]]
    assert numbers != sorted(numbers)


def test_two_shards_and_two_orders_are_kept(folder, monkeypatch):
    """Where one shard or epoch ends and the next begins, a batch meets both, in any order; no more are in memory."""
    shards, _ = open_shards(folder)
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *args: opened.append(path.name[11]) or real(path, *args))
    for number in (9, 10, 8, 11, 20, 12, 7):
        shards[number]
    assert opened == ["0", "1", "2", "0"]
    monkeypatch.undo()
    shuffled = []
    sample = random.Random.sample
    monkeypatch.setattr(random.Random, "sample", lambda *args: shuffled.append(1) or sample(*args))
    for position in (46, 48, 47, 49):
        shards.sample(position)
    assert len(shuffled) == 2 * (1 + 5)  # two epochs: the shards, and the records of each


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_ranks_share_without_loss_or_double(folder, size):
    shards, _ = open_shards(folder)
    alone = ids(islice(stream(shards, seed=3), 96))
    assert alone == [shards.sample(position, seed=3).id for position in range(96)]
    parts = [
        ids(islice(stream(shards, seed=3, rank=rank, size=size), len(range(rank, 96, size)))) for rank in range(size)
    ]
    assert [name for part in parts for name in part] != alone or size == 1
    assert [parts[position % size][position // size] for position in range(96)] == alone
    assert Counter(name for part in parts for name in part) == Counter(alone)


def test_resume_anywhere_with_any_number_of_ranks(folder):
    """Two processes stop in the middle of an epoch, three others go on: one integer is all they need."""
    shards, _ = open_shards(folder)
    wanted = ids(islice(stream(shards), 144))
    rng = random.Random(0)
    for _ in range(10):
        seen, used = [], 0
        while used < 144:
            size, rounds = rng.randint(1, 4), rng.randint(1, 20)
            fresh, _ = open_shards(folder)  # nothing else survives
            ranks = [stream(fresh, start=used, rank=rank, size=size) for rank in range(size)]
            seen += ids(next(rank) for _ in range(rounds) for rank in ranks)
            used += size * rounds
        assert seen[:144] == wanted


def test_the_order_depends_on_nothing_but_the_seed(folder):
    """Other processes, other machines and later versions must agree on it, so it stands here."""
    shards, _ = open_shards(folder)
    place = {record.id: number for number, record in enumerate(shards)}
    assert [place[shards.sample(position, seed=7).id] for position in range(12)] == GOLDEN


def test_training_from_shards_is_training_from_files(records, folder):
    """The same records in the same order: the same losses to the last bit, and a resumed training, too."""
    shards, _ = open_shards(folder)
    by_id = {record.id: record for record in records}
    stage, processor = (
        Stage("mine", "answer", {"resampler": 1e-3}, {}, steps=3, batch=2),
        Processor.from_pretrained("nano"),
    )

    def losses(samples):
        return [step.loss for step in train(start(), processor, stage, samples=samples)]

    from_shards = losses(shards.sample)
    assert from_shards == losses(lambda number: by_id[shards.sample(number).id])
    assert len(set(from_shards)) == 3
    assert all(torch.isfinite(torch.tensor(from_shards)))


# ---- damage


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize("kind", ["png", "json"])
def test_one_damaged_record_is_skipped_counted_and_named(folder, kind):
    whole = ids(open_shards(folder)[0])
    path = folder / "shard-000002.tar"
    member = members(path)[f"000023.{'0.png' if kind == 'png' else 'json'}"]
    content = path.read_bytes()[member.offset_data :][: member.size]
    # In the text: the last letter of the last answer. The entry is still JSON, and only the checksum can tell.
    flip(path, member.offset_data + (member.size // 2 if kind == "png" else content.rindex(b'"}]') - 1))
    shards, report = open_shards(folder)
    assert (report.total, report.skipped, len(shards)) == (48, 1, 47)
    assert report.text() == (
        f"{folder}: 48 records, 47 good, 1 skipped (shard-000002 1)\n"
        "  record 23, shard-000002.tar: the bytes have changed since they were written; "
        "copy or download the shard again, or write it anew"
    )
    assert ids(shards) == whole[:23] + whole[24:]
    for size in (1, 2, 3):
        parts = [islice(stream(shards, rank=rank, size=size), len(range(rank, 47, size))) for rank in range(size)]
        seen = [name for part in parts for name in ids(part)]
        assert sorted(seen) == sorted(ids(shards))


def test_every_flipped_bit_is_found_or_harmless(folder, tmp_path):
    """60 random bits in a shard: either no record is different, or those that are are reported."""
    path = folder / "shard-000000.tar"
    content = path.read_bytes()
    whole = list(open_shards(folder)[0])
    rng = random.Random(0)
    skipped = 0
    for _ in range(60):
        path.write_bytes(content)
        flip(path, rng.randrange(len(content)))
        shards, report = open_shards(folder)
        bad = {problem.number for problem in report.problems}
        assert len(shards) == 48 - report.skipped and bad <= set(range(10))
        kept = [record for number, record in enumerate(whole) if number not in bad][: 10 - len(bad)]
        assert all(same(a, b) for a, b in zip(shards, kept))
        skipped += bool(bad)
    assert skipped > 30


def test_a_damaged_name_takes_along_what_lies_behind(folder):
    path = folder / "shard-000001.tar"
    flip(path, members(path)["000015.0.png"].offset + 2)
    shards, report = open_shards(folder)
    assert {problem.number for problem in report.problems} == set(range(15, 20))
    assert len(shards) == 43 and "it is not in the shard" in report.problems[0].what


def test_half_a_shard(folder):
    path = folder / "shard-000004.tar"
    content = path.read_bytes()
    path.write_bytes(content[: members(path)["000044.json"].offset_data + 5])
    _, report = open_shards(folder)
    assert [problem.number for problem in report.problems] == [44, 45, 46, 47]
    assert "reading stopped: unexpected end of data" in report.problems[1].what
    for nothing in (b"", b"\0" * 20, b"no tar file" * 100):
        path.write_bytes(nothing)
        assert open_shards(folder)[1].skipped == 8


def test_shards_of_something_else(folder):
    with webdataset.TarWriter(str(folder / "shard-000000.tar"), encoder=False) as tar:
        for number, content in enumerate((b"[]", b'{"id": 1}', b"[" * 100_000, b'{"crc32": 0, "image": [], "id": 1}')):
            tar.write({"__key__": f"{number:06d}", "json": content})
        tar.write({"__key__": "000004", "txt": b"x"})
        tar.write({"__key__": "000005", "json": b"5"})
        for surprise in ("surprise", "²²²²²²", "000010", "000033"):  # the last two are numbers of other shards
            tar.write({"__key__": surprise, "json": b"{}"})
    _, report = open_shards(folder)
    assert {problem.number for problem in report.problems} == set(range(10))
    assert Counter(problem.what for problem in report.problems) == {
        "the bytes have changed since they were written": 6,
        "it is not in the shard": 4,
    }


def test_a_record_that_comes_twice_counts_once(folder):
    path = folder / "shard-000000.tar"
    with open(path, "rb") as file:
        found = list(
            webdataset.tariterators.group_by_keys(
                webdataset.tariterators.tar_file_expander([{"url": "x", "stream": file}])
            )
        )
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for sample in [*found, {**found[3], "__key__": "000001"}]:
            tar.write({key: value for key, value in sample.items() if key == "__key__" or key[0] != "_"})
    shards, report = open_shards(folder)
    assert report.skipped == 0 and len(set(ids(shards))) == 48
    with webdataset.TarWriter(str(path), encoder=False) as tar:  # the first one counts, although it is damaged
        for sample in [{"__key__": "000003", "json": b"{}"}, *found]:
            tar.write({key: value for key, value in sample.items() if key == "__key__" or key[0] != "_"})
    shards, report = open_shards(folder)
    assert [problem.number for problem in report.problems] == [3] and len(shards) == 47


def test_damage_after_opening_is_named(folder):
    shards, _ = open_shards(folder)
    path = folder / "shard-000000.tar"
    flip(path, members(path)["000003.json"].offset_data + 5)
    with pytest.raises(ValueError, match=r"record 3 of .*shard-000000.tar was damaged since"):
        shards[3]
    assert shards[2].id


def test_a_shard_is_missing(folder):
    shards, _ = open_shards(folder)
    (folder / "shard-000003.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000003\.tar"):
        open_shards(folder)
    with pytest.raises(FileNotFoundError, match=r"shard-000003\.tar"):
        list(shards)


def test_no_record_is_good(folder):
    for path in folder.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no record is good. .*48 records, 0 good, 48 skipped"):
        open_shards(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"shards": 5}',
        '{"shards": []}',
        '{"shards": [5]}',
        '{"shards": [{"file": "shard-000000.tar"}]}',
        '{"shards": [{"file": "shard-000000.tar", "records": 0}]}',
        '{"shards": [{"file": "shard-000000.tar", "records": "10"}]}',
        '{"shards": [{"file": "shard-000000.tar", "records": true}]}',
        '{"shards": [{"file": "../shard-000000.tar", "records": 10}]}',
        '{"shards": [{"file": 5, "records": 10}]}',
        '{"shards": [{"file": "shard-000000.tar", "records": 10}, {"file": "shard-000000.tar", "records": 10}]}',
        '{"shards": {"file": "shard-000000.tar", "records": 10}}',
        '{"shards": [{"file": "shard-000000.tar\\n", "records": 10}]}',
        '{"shards": [{"file": [], "records": 10}]}',
    ],
)
def test_an_index_that_is_none(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index.json (is not|must hold)"):
        open_shards(folder)


# ---- shards from strangers


def header(name, size, kind=b"0", sparse=b""):
    """A header of a tar with a right checksum, whatever it claims."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else (size % 2**96 | 1 << 95).to_bytes(12, "big")
    block[156:157] = kind
    block[386 : 386 + len(sparse)] = sparse
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def forged(folder, *entries, claims=None, before=()):
    """A shard with these entries, each with a right checksum, and a good record after them."""
    folder.mkdir(exist_ok=True)
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, "PNG")
    blocks = [*before]
    for number, entry in enumerate([*entries, {"id": "last", "image": "0.png", "conversations": TURNS}]):
        named = entry["image"]
        pictures = dict.fromkeys(named.values() if isinstance(named, dict) else [named], file.getvalue())
        entry = {**entry, "crc32": shards_module._checksum(entry, pictures)}
        for name, content in {**pictures, "json": json.dumps(entry).encode()}.items():
            blocks += header(f"{number:06d}.{name}", len(content)), content, bytes(-len(content) % 512)
    (folder / "shard-000000.tar").write_bytes(b"".join(blocks) + bytes(1024))
    lines = [{"file": "shard-000000.tar", "records": claims or len(entries) + 1}]
    (folder / INDEX).write_text(json.dumps({"shards": lines}))
    return folder


TURNS = talk("<image>\nWhat?", "This.")
GOOD = {"id": 0, "image": "0.png", "conversations": TURNS}
TWO = {"<image_00>": "0.png", "<image_01>": "1.png"}
FORGED = {
    "never shown": (dict(image=TWO, conversations=talk("<image_00>", "x")), "conversations: <image_01> stands nowhere"),
    "no picture": (dict(conversations=talk("<image> <image_01>", "x")), "conversations[0].content: <image_01> has no"),
    "shown twice": (dict(conversations=talk("<image><image>", "x")), "conversations: <image> stands 2 times"),
    "no id": (dict(id=None), "id: must be text or a whole number, got None"),
    "id is a list": (dict(id=[[]]), "id: must be text or a whole number, got [[]]"),
    "id is a fraction": (dict(id=0.5), "id: must be text or a whole number, got 0.5"),
    "empty": (dict(conversations=talk("<image>", " ")), "conversations[1].content: the text is empty"),
    "no turns": (dict(conversations=[]), "conversations: must be a list of turns, got []"),
    "turns are text": (dict(conversations="Hi"), "conversations: must be a list of turns, got 'Hi'"),
    "a turn is a number": (dict(conversations=[5]), "conversations[0]: must have role and content, got 5"),
    "content is a number": (dict(conversations=talk("<image>", 5)), "conversations[1].content: must be text, got 5"),
    "a system turn": (dict(conversations=[{"role": "system", "content": "x"}]), "conversations[0].role: must be user"),
    "no answer": (dict(conversations=talk("<image>")), "conversations: ends with a question"),
    "control token": (dict(conversations=talk("<image>", "a<|im_end|>")), "<|im_end|> is typed as text"),
    "marker": (dict(conversations=talk("<image>", "</slice>")), "conversations[1].content: </slice> is typed"),
    "placeholder": (dict(image={"<picture>": "0.png"}), "image: '<picture>' cannot be a placeholder"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_record_is_checked_as_one_in_a_file(tmp_path, name):
    changes, words = FORGED[name]
    shards, report = open_shards(forged(tmp_path / "s", {**GOOD, **changes}))
    assert ids(shards) == ["last"] and {(p.number, p.field) for p in report.problems} == {(0, "shard-000000.tar")}
    assert words in str(report.problems[0])
    for file in ("0.png", "1.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / file)
    (tmp_path / "my.json").write_text(json.dumps([{**GOOD, **changes}]))
    same = read_records(tmp_path / "my.json")[1].problems
    assert [p.what for p in report.problems] == [f"{p.field}: {p.what}" for p in same]


def test_what_is_fine_in_a_file_is_fine_in_a_shard(tmp_path):
    entry = {"id": 7, "image": "0.png", "conversations": talk("What?", "\n<ref>This</ref>.")}
    shards, report = open_shards(forged(tmp_path / "s", entry, entry), Processor.from_pretrained("nano"))
    assert ids(shards) == ["7", "7", "last"] and report.problems == ()
    assert shards[0].turns == (("user", "<image>\nWhat?"), ("assistant", "<ref>This</ref>."))
    assert [note[:20] for note in report.notes] == ["ids that came before", "white space before a"]
    assert len([part for part in shards[0].messages[0]["content"] if isinstance(part, Image.Image)]) == 1


def test_a_picture_that_is_none_is_found_when_shards_are_opened(tmp_path, records):
    for name, content in {"a.png": b"no picture", "b.png": b"", "c.png": b"\x89PNG\r\n\x1a\n"}.items():
        (tmp_path / name).write_bytes(content)
    turns = ("user", "<image>"), ("assistant", "x")
    bad = [Record(name, {"<image>": tmp_path / f"{name}.png"}, turns) for name in "abc"]
    write_shards([*records[:3], *bad], tmp_path / "s")
    shards, report = open_shards(tmp_path / "s")
    assert len(shards) == 3 == len(report.problems)
    assert all("cannot be read as a picture" in problem.what for problem in report.problems)


SPARSE = b"%011o\0%011o\0" % (2**32 - 512, 512) + bytes(73) + b"%011o\0" % 2**32  # 4 GB, but for the last 512 bytes
MEMBERS = {
    "a sparse file": header("000000.1.png", 512, b"S", SPARSE) + bytes(512),
    "a link": header("000000.1.png", 0, b"2"),
    "a hard link": header("000000.1.png", 0, b"1"),
    "a device": header("000000.1.png", 0, b"3"),
    "a pipe": header("000000.1.png", 0, b"6"),
    "a folder": header("000000.1.png", 0, b"5"),
    "another file of that name": header("000000.0.png", 3) + b"abc" + bytes(509),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_only_plain_members_are_read(tmp_path, name):
    shards, report = open_shards(forged(tmp_path / "s", GOOD, before=[MEMBERS[name]]))
    assert ids(shards) == ["last"] and ".png is there twice, too large, or no plain file" in report.problems[0].what


@pytest.mark.parametrize("name", ["../000000.0.png", "/000000.0.png", "a/000000.0.png", "000000.0.png/", "x" * 90, "."])
def test_members_of_other_names_are_passed_over(tmp_path, name):
    extension = header("ext", 21, b"x") + b"21 path=000000.0.png\n" + bytes(491)  # it claims another name for the next
    before = [header(name, 3) + b"abc" + bytes(509), extension, header("000000", 3) + b"abc" + bytes(509)]
    shards, report = open_shards(forged(tmp_path / "s", GOOD, before=before))
    assert ids(shards) == ["0", "last"] and report.problems == ()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [INDEX, "shard-000000.tar"]


@pytest.mark.parametrize("size", [2**20, 2**33, 2**70, -512, -1])
def test_a_size_that_the_shard_does_not_have_ends_its_reading(tmp_path, size):
    folder = forged(tmp_path / "s", GOOD)
    path = folder / "shard-000000.tar"
    content = path.read_bytes()
    place = content.rindex(b"000001.json")
    path.write_bytes(content[:place] + header("000001.json", size) + content[place + 512 :])
    shards, report = open_shards(folder)
    assert ids(shards) == ["0"] and [problem.number for problem in report.problems] == [1]


def test_a_file_that_is_too_large_is_named(tmp_path, monkeypatch):
    folder = forged(tmp_path / "s", {**GOOD, "conversations": talk("Hi", "x" * 5000)})
    assert len(open_shards(folder)[0]) == 2
    monkeypatch.setitem(LIMITS, "picture_bytes", 4000)
    assert "json is there twice, too large, or no plain file" in open_shards(folder)[1].problems[0].what
    monkeypatch.setitem(LIMITS, "shard_bytes", 4000)
    with pytest.raises(ValueError, match=r"shard-000000.tar has [\d,]+ bytes; at most 4,000 are read"):
        open_shards(folder)


def test_compressed_shards_are_not_read(folder):
    path = folder / "shard-000001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    _, report = open_shards(folder)
    assert report.skipped == 10 and "no tar file, or a compressed one" in report.problems[0].what


def test_a_count_that_the_bytes_cannot_hold_is_refused_before_any_work(tmp_path):
    for claims in (10**12, 2**63, 10_020):
        with pytest.raises(ValueError, match=r"index.json claims [\d,]+ records; [\d,]+ bytes cannot hold them"):
            open_shards(forged(tmp_path / "s", claims=claims))
    _, report = open_shards(forged(tmp_path / "s", claims=5000))  # as if most of the shard had been cut off
    assert (report.total, report.skipped) == (5000, 4999)


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes of this kind")
@pytest.mark.parametrize("name", ["shard-000000.tar", INDEX])
def test_pipes_and_devices_are_no_shards(tmp_path, name):
    folder = forged(tmp_path / "s")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(OSError, match=f"{name} is a pipe or a device"):
        open_shards(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(OSError, match=f"{name} is a pipe or a device"):
        open_shards(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and counted as on Linux")
def test_two_kilobytes_take_no_gigabytes(tmp_path):
    """In a process of its own, which may take 0.3 GB more than it has after its imports."""
    folder = forged(tmp_path / "s", GOOD, before=[MEMBERS["a sparse file"]])
    script = (
        "import os, resource, sys; from minicpmv_ref.scale.shards import open_shards\n"
        "most = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE') + 300 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most)); print(open_shards(sys.argv[1])[1])"
    )
    how = dict(env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    run = subprocess.run([sys.executable, "-c", script, str(folder)], timeout=120, **how)
    assert "2 records, 1 good, 1 skipped" in run.stdout, run.stderr[-2000:]


def test_what_would_not_be_read_is_not_written(records, tmp_path):
    path = next(iter(records[0].images.values()))
    for images, turns, words in (
        ({"<image>": path, "<image_01>": path}, (("user", "<image>"), ("assistant", "x")), "cannot be a placeholder"),
        ({"<image>": path}, (("user", "<image>"), ("assistant", " x")), "an answer begins with white space"),
        ({"<image>": path}, (("user", "What?"), ("assistant", "x")), "or a placeholder is missing"),
        ({"<image>": path}, (("user", "<image>"), ("assistant", "<|im_end|>")), "typed as text"),
        ({}, (("user", "Hi"), ("assistant", "x")), "must be a path or an object"),
    ):
        with pytest.raises(ValueError, match=f"record 'odd' would not be read again: .*{words}"):
            write_shards([Record("odd", images, turns)], tmp_path / "s")
        assert list((tmp_path / "s").iterdir()) == []


def test_shards_are_written_from_shards(records, folder, tmp_path):
    write_shards(open_shards(folder)[0], tmp_path / "again", per_shard=20)
    again = {record.id: record for record in open_shards(tmp_path / "again")[0]}
    assert len(again) == 48 and all(same(again[record.id], record) for record in records)
    names = {name.split(".", 1)[1] for name in members(tmp_path / "again" / "shard-000000.tar")}
    assert names <= {"json", "0.png", "1.png"}


def test_wrong_types_are_named(records, folder, tmp_path):
    shards, _ = open_shards(folder)
    for call, name in {
        lambda: write_shards(None, tmp_path / "x"): "records",
        lambda: write_shards(iter(records), tmp_path / "x"): "records",
        lambda: write_shards([*records, "x"], tmp_path / "x"): r"records\[48\]",
        lambda: write_shards(records, 5): "folder",
        lambda: write_shards(records, tmp_path / "x", per_shard=1.5): ".*per_shard",
        lambda: write_shards(records, tmp_path / "x", seed=None): "seed",
        lambda: open_shards(None): "folder",
        lambda: open_shards(folder, "nano"): "processor",
        lambda: shards["0"]: "index",
        lambda: shards[1.0]: "index",
        lambda: shards.sample("0"): ".*position",
        lambda: shards.sample(0, None): "seed",
    }.items():
        with pytest.raises(TypeError, match=f"^{name} must be "):
            call()
    assert not (tmp_path / "x").exists()


# ---- the command


def test_the_command(tmp_path, capsys):
    assert main(["shards", str(EXAMPLE), "--out", str(tmp_path / "s"), "--per-shard", "20"]) == 0
    out = capsys.readouterr().out
    assert "48 records, 48 good, 0 skipped" in out and "48 records, 3 tar files" in out and str(tmp_path / "s") in out
    assert len(open_shards(tmp_path / "s")[0]) == 48
    assert main(["shards", str(EXAMPLE), "--out", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "s" / "shard-000003.tar").exists()


def test_the_command_leaves_out_and_reports_bad_records(tmp_path, capsys):
    entries = json.loads(EXAMPLE.read_text())[:3]
    entries[1]["conversations"] = []
    entries[2]["image"] = "../x.png"
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    entries[0]["image"] = "a.png"
    path = tmp_path / "my.json"
    path.write_text(json.dumps(entries))
    assert main(["shards", str(path), "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "3 records, 1 good, 2 skipped" in out and "record 1" in out and "leaves the folder" in out
    assert len(open_shards(tmp_path / "s")[0]) == 1
    half = (tmp_path / "a.png").read_bytes()[:-40]
    (tmp_path / "a.png").write_bytes(half)  # pictures are decoded before they are written
    assert main(["shards", str(path), "--out", str(tmp_path / "t")]) == 1
    assert "no good record" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("missing.json", [], "missing.json"),
        ("bad.json", [], "no good record"),
        ("good", ["--per-shard", "0"], "one or more in a shard"),
        ("good", ["--out", "FILE"], "FILE"),
    ],
)
def test_the_command_says_one_clear_error(tmp_path, capsys, file, options, words):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "FILE").write_text("")
    source = EXAMPLE if file == "good" else tmp_path / file
    options = [str(tmp_path / word) if word == "FILE" else word for word in options]
    assert main(["shards", str(source), "--out", str(tmp_path / "s"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error
