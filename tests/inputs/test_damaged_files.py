"""Every kind of file that the package reads, damaged: it is read rightly or refused with one clear error.

Bytes are flipped, cut and overwritten; JSON also gets odd values in place of sound ones. `pytest --fuzz N` tries N
damaged files of each kind. GGUF and safetensors alone, and their memory, are in test_fuzz.py.
"""

import json
import math
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from doors import disturb, is_clear, time_limit
from PIL import Image
from test_fuzz import damage
from tiny import ask, picture, tiny_config, tiny_model

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.inputs.jsonl import append_jsonl, read_jsonl
from minicpmv_ref.inputs.pictures import load_image
from minicpmv_ref.inputs.published import BUNDLED, read_config
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.scale.lora import add_lora, has_lora, load_lora, save_lora
from minicpmv_ref.scale.records import read_records
from minicpmv_ref.scale.shards import open_shards, write_shards
from minicpmv_ref.scale.training_checkpoints import Header, load_training, save_training

ROUNDS = 40


@dataclass
class Kind:
    """A folder with sound files, the one that is damaged, the reader, and what is true of everything it reads."""

    make: Callable  # folder -> None
    file: str
    read: Callable  # folder -> answer
    right: Callable = lambda answer: True
    least: float = 0.1  # this share of the damaged files must be refused


@cache
def tiny():
    return tiny_model("2.6").eval()


def make_model(folder):
    tiny().save_pretrained(folder)
    Processor.from_pretrained("nano").save_pretrained(folder)


def answers(folder) -> bool:
    """Load and ask: an answer needs finite weights."""
    model = MiniCPMV.from_pretrained(folder)
    text = model.chat(ask(picture(50, 60), "What?"), Processor.from_pretrained(folder), max_new_tokens=2)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return isinstance(text, str)


def make_adapter(folder):
    model = add_lora(MiniCPMV.seeded(tiny_config("2.6")), 2, modules_to_save=())
    save_lora(model, folder)


def adapted(folder) -> bool:
    model = MiniCPMV.seeded(tiny_config("2.6"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    try:
        load_lora(model, folder)
    except Exception:
        assert not has_lora(model) and not hasattr(model, "peft_config")
        assert all(torch.equal(before.pop(name), p) and p.requires_grad for name, p in model.named_parameters())
        assert not before
        raise
    return all(torch.isfinite(p).all() for p in model.parameters())


def make_records(folder):
    for name in "ab":
        Image.new("RGB", (30, 20), "red").save(folder / f"{name}.png")
    talk = [{"role": "user", "content": "<image>\nWhat is this?"}, {"role": "assistant", "content": "a star"}]
    two = [{"role": "user", "content": "<image_00> or <image_01>?"}, {"role": "assistant", "content": "both"}]
    entries = [
        {"id": "0", "image": "a.png", "conversations": talk},
        {"id": "1", "image": {"<image_00>": "a.png", "<image_01>": "b.png"}, "conversations": two},
    ]
    (folder / "my.json").write_text(json.dumps(entries))


def good_records(records) -> bool:
    """What is called good, the processor takes, with every picture in its place."""
    processor = Processor.from_pretrained("nano")
    for record in records:
        batch = processor(record.messages)
        assert len(batch.plans[0]) == len(record.images) and (batch.labels != -100).any()
    return True


def make_shards(folder):
    make_records(folder)
    records, _ = read_records(folder / "my.json")
    write_shards(records, folder / "shards", per_shard=1)


def read_shards(folder):
    return open_shards(folder / "shards", Processor.from_pretrained("nano"))[0]


@cache
def saved_state():
    model = MiniCPMV.seeded(tiny_config("2.6"))
    optimizer = optimizer_for(model, stage_named("sft-2"))
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()
    return model, optimizer


def make_save(folder):
    header = Header(7, settings={"a": 1})
    save_training(folder, header, saved_state()[0], Processor.from_pretrained("nano"), saved_state()[1])


def read_back(folder):
    model = MiniCPMV.seeded(tiny_config("2.6"), seed=1)
    optimizer = optimizer_for(model, stage_named("sft-2"))
    step, _ = load_training(folder / "step-000007", model, optimizer, settings={"a": 1})
    return step, model, optimizer


def is_what_was_saved(answer) -> bool:
    step, model, optimizer = answer
    pairs = zip(saved_state()[0].parameters(), model.parameters(), strict=True)
    old, new = (each.state_dict()["state"] for each in (saved_state()[1], optimizer))
    assert step == 7 and all(torch.equal(a, b) for a, b in pairs) and old.keys() == new.keys()
    return all(
        torch.equal(torch.as_tensor(old[i][kind]), torch.as_tensor(new[i][kind])) for i in old for kind in old[i]
    )


def make_answers(folder):
    append_jsonl(folder / "a.jsonl", [{"a": 1, "b": ["x"]}, {"a": 2, "b": ["y"]}])


def picture_kind(suffix, **options):
    def make(folder):
        picture(23, 17).save(folder / f"a.{suffix}", **options)

    return Kind(
        make, f"a.{suffix}", lambda folder: load_image(folder / f"a.{suffix}"), lambda image: image.mode == "RGB"
    )


KINDS = {
    "config": Kind(make_model, "config.json", read_config),
    "nano's config": Kind(lambda folder: shutil.copy(BUNDLED / "nano/config.json", folder), "config.json", read_config),
    "tokenizer": Kind(make_model, "tokenizer.json", answers),
    "tokenizer settings": Kind(make_model, "tokenizer_config.json", answers, least=0.05),
    "weights": Kind(make_model, "model.safetensors", answers, least=0.02),
    "adapter settings": Kind(make_adapter, "adapter_config.json", adapted),
    "adapter": Kind(make_adapter, "adapter_model.safetensors", adapted, least=0.02),
    "records": Kind(make_records, "my.json", lambda folder: read_records(folder / "my.json")[0], good_records, 0),
    "shard": Kind(make_shards, "shards/shard-000000.tar", read_shards, good_records, 0),
    "shard index": Kind(make_shards, "shards/index.json", read_shards, good_records),
    "a training's notes": Kind(make_save, "step-000007/training.json", read_back, is_what_was_saved, 0.5),
    "a training's weights": Kind(make_save, "step-000007/model.safetensors", read_back, is_what_was_saved, 0.9),
    "a training's state": Kind(make_save, "step-000007/training.safetensors", read_back, is_what_was_saved, 0.9),
    "sampled answers": Kind(make_answers, "a.jsonl", lambda folder: read_jsonl(folder / "a.jsonl"), least=0),
    **{suffix: picture_kind(suffix) for suffix in ("png", "gif", "bmp", "ppm", "tiff")},
    "jpg": picture_kind("jpg", quality=80),
    "webp": picture_kind("webp", quality=80),
}


def damaged(whole: bytes, rng: random.Random, name: str) -> bytes:
    if name.endswith(".json") and rng.random() < 0.7:
        try:
            return json.dumps(
                disturb(json.loads(whole), rng), default=lambda value: rng.choice([math.nan, "x"])
            ).encode()
        except (TypeError, ValueError, RecursionError, UnicodeError):  # an odd value that JSON does not know
            pass
    return damage(whole, rng)


@pytest.mark.parametrize("name", KINDS)
def test_damage(name, tmp_path, request, one_thread):
    kind, rng = KINDS[name], random.Random(zlib.crc32(name.encode()))
    kind.make(tmp_path)
    file = tmp_path / kind.file
    whole, refused = file.read_bytes(), 0
    assert kind.right(kind.read(tmp_path))
    rounds = request.config.getoption("--fuzz") or ROUNDS
    for number in range(rounds):
        raw = damaged(whole, rng, kind.file)
        file.unlink()
        file.write_bytes(raw)
        try:
            with time_limit(f"{name} {number}"):
                answer = kind.read(tmp_path)
        except (ValueError, OSError) as error:
            assert is_clear(error, [""]), f"{number}: {type(error).__name__}: {error}"
            refused += 1
        else:
            assert kind.right(answer), number
    assert refused >= kind.least * rounds, refused
