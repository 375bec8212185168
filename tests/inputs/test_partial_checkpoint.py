"""Checkpoints that hold only what a stage changed, on top of a base beside them."""

import json

import pytest
import torch

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.inputs.checkpoint import Shard, write_checkpoint
from minicpmv_ref.inputs.published import base_folder


@pytest.fixture
def family(tmp_path):
    """base (whole), child (another resampler), grandchild (another post_layernorm)."""
    base = MiniCPMV.seeded(nano, seed=1)
    base.save_pretrained(tmp_path / "base")
    Processor.from_pretrained("nano").save_pretrained(tmp_path / "base")
    other = MiniCPMV.seeded(nano, seed=2).state_dict()
    resampler = {name: tensor for name, tensor in other.items() if name.startswith("resampler.")}
    write_checkpoint(tmp_path / "child", nano, resampler, base="base")
    norm = {"vpm.post_layernorm.weight": torch.full((128,), 3.0)}
    write_checkpoint(tmp_path / "grandchild", nano, norm, base="child")
    return tmp_path, base.state_dict(), resampler, norm


def test_each_tensor_comes_from_the_last_folder_that_changed_it(family):
    folder, base, resampler, norm = family
    got = MiniCPMV.from_pretrained(folder / "grandchild").state_dict()
    for name, tensor in (base | resampler | norm).items():
        assert torch.equal(got[name], tensor), name


def test_the_tokenizer_comes_from_the_base(family):
    folder = family[0]
    assert len(Processor.from_pretrained(folder / "grandchild").tokenizer) == nano.llm.vocab_size


def test_a_tensor_that_the_model_does_not_have(family):
    folder = family[0]
    write_checkpoint(folder / "child", nano, {"resampler.quary": torch.zeros(16, 256)}, base="base")
    with pytest.raises(ValueError, match=r"1 surplus: resampler\.quary"):
        MiniCPMV.from_pretrained(folder / "child")


def test_a_tensor_of_another_shape(family):
    folder = family[0]
    write_checkpoint(folder / "child", nano, {"resampler.query": torch.zeros(15, 256)}, base="base")
    with pytest.raises(ValueError, match=r"1 misshapen: resampler\.query is \(15, 256\), should be \(16, 256\)"):
        MiniCPMV.from_pretrained(folder / "child")


def test_without_a_base_everything_must_be_there(family):
    folder = family[0]
    config = json.loads((folder / "child" / "config.json").read_text())
    del config["base"]
    (folder / "child" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing"):
        MiniCPMV.from_pretrained(folder / "child")


@pytest.mark.parametrize("base", ["../base", "..", "", "a/b", 3, ["base"]])
def test_a_base_is_a_plain_name(family, base):
    folder = family[0]
    config = json.loads((folder / "child" / "config.json").read_text())
    (folder / "child" / "config.json").write_text(json.dumps(config | {"base": base}))
    with pytest.raises(ValueError, match="must be the name of a folder beside it"):
        MiniCPMV.from_pretrained(folder / "child")


def test_a_base_that_is_not_there(family):
    folder = family[0]
    config = json.loads((folder / "child" / "config.json").read_text())
    (folder / "child" / "config.json").write_text(json.dumps(config | {"base": "gone"}))
    with pytest.raises(FileNotFoundError, match="gone"):
        MiniCPMV.from_pretrained(folder / "child")


def test_bases_in_a_circle(family):
    folder = family[0]
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps(config | {"base": "child"}))
    with pytest.raises(ValueError, match="circle: child -> base -> child"):
        MiniCPMV.from_pretrained(folder / "child")


def test_a_base_with_another_config(family):
    folder = family[0]
    config = json.loads((folder / "base" / "config.json").read_text())
    config["slicing"]["max_slice_nums"] = 4
    (folder / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="configs differ"):
        MiniCPMV.from_pretrained(folder / "child")


def test_a_tensor_that_was_changed_is_not_read_from_the_base(family, monkeypatch):
    folder, base, _, norm = family
    bad = {name: torch.full_like(t, torch.nan) if name in norm else t for name, t in base.items()}
    del bad["llm.lm_head.weight"]  # tied
    write_checkpoint(folder / "base", nano, bad)
    with pytest.raises(ValueError, match=r"base.*vpm\.post_layernorm\.weight holds a NaN"):
        MiniCPMV.from_pretrained(folder / "child")
    read = []
    monkeypatch.setattr(Shard, "read", lambda self, name, read_=Shard.read: read.append(name) or read_(self, name))
    assert MiniCPMV.from_pretrained(folder / "grandchild").vpm.post_layernorm.weight[0] == 3
    assert len(read) == len(set(read)) == len(bad), "every tensor once: no memory for those that are thrown away"


def test_a_whole_model_must_lie_in_the_base(family):
    folder, base, resampler, _ = family
    whole = {name: t for name, t in base.items() if name not in resampler and name != "llm.lm_head.weight"}
    write_checkpoint(folder / "base", nano, whole)
    with pytest.raises(ValueError, match="missing: resampler"):
        MiniCPMV.from_pretrained(folder / "child")


def test_base_folder(family):
    folder = family[0]
    assert base_folder(folder / "grandchild") == folder / "child"
    assert base_folder(folder / "base") is None
