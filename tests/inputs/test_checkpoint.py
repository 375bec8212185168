"""Checkpoints: every published tensor arrives where it belongs, and every damaged folder is one clear error."""

import json
import math
import os
import random
import re
import shutil
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published import (
    HIDDEN,
    LAYOUTS,
    LLM_LAYERS,
    TABLE_SIDE,
    VERSIONS,
    VPM_LAYERS,
    WIDTH,
    small_config,
    small_shapes,
    small_tensors,
    write_published,
    write_shards,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_config

import minicpmv_ref.inputs.checkpoint as checkpoint
import minicpmv_ref.inputs.published as published_room
from minicpmv_ref import (
    LLMConfig,
    MiniCPMV,
    MiniCPMVConfig,
    Processor,
    ResamplerConfig,
    VisionConfig,
    nano,
    v2_0,
    v2_5,
    v2_6,
)
from minicpmv_ref.inputs.checkpoint import INDEX, WEIGHTS, published_name
from minicpmv_ref.inputs.published import config_from_published, find_folder, read_config

PRESETS = {"2.0": v2_0, "2.5": v2_5, "2.6": v2_6}
TOTALS = {"2.0": 3_434_965_792, "2.5": 8_537_092_336, "2.6": 8_099_175_152}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One published folder of each version in float32, never written to."""
    made = {version: tmp_path_factory.mktemp("published") / version for version in VERSIONS}
    for version, folder in made.items():
        write_published(folder, version)
    return made


@pytest.fixture
def broken(folders, tmp_path):
    """A fresh copy of the 2.6 folder, to be broken."""
    return Path(shutil.copytree(folders["2.6"], tmp_path / "broken"))


def edit_json(file: Path, **changes) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        data.pop(name, None)
        if value is not ...:
            data[name] = value
    file.write_text(json.dumps(data), encoding="utf-8")


def fails(folder: Path, *words: str) -> str:
    """Loading fails with a ValueError or OSError that has all words in it."""
    with pytest.raises((ValueError, OSError)) as caught:
        MiniCPMV.from_pretrained(folder)
    message = str(caught.value)
    assert type(caught.value) in (ValueError, FileNotFoundError), caught.type
    assert all(word in message for word in words), message
    return message


# --- The full-size layouts, on the meta device ---------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_names_shapes_and_totals_are_the_published_ones(version):
    preset, golden = PRESETS[version], {n: tuple(s) for n, s in LAYOUTS[version]["tensors"].items()}
    with torch.device("meta"):
        model = MiniCPMV(preset)
    parts, shapes = {}, {}
    for name, tensor in model.state_dict().items():
        file_name, part = published_name(name, preset)
        shape = (1, *tensor.shape) if file_name == "vpm.pos_embed" else tuple(tensor.shape)
        parts.setdefault(file_name, []).append(part)
        if part is not None:
            assert shapes.setdefault(file_name, (3 * shape[0], *shape[1:])) == (3 * shape[0], *shape[1:])
        else:
            assert file_name not in shapes, "two of our tensors read the same published one"
            shapes[file_name] = shape
    assert shapes == golden
    assert all(which == [None] or sorted(which) == [0, 1, 2] for which in parts.values())
    assert sum(p.numel() for p in model.parameters()) == TOTALS[version] == LAYOUTS[version]["parameters"]


@pytest.mark.parametrize("version", VERSIONS)
def test_published_configs_are_the_presets(version):
    assert config_from_published(LAYOUTS[version]["config"]) == PRESETS[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_vision_config_overrides_the_tower_and_counts_layers_before_the_drop(version):
    tower = dict(hidden_size=48, num_hidden_layers=5, num_attention_heads=3, intermediate_size=80, image_size=42)
    for drop in (True, False):
        data = LAYOUTS[version]["config"] | {"vision_config": tower, "drop_vision_last_layer": drop}
        vision = config_from_published(data).vision
        assert (vision.width, vision.heads, vision.mlp_width, vision.table_side) == (48, 3, 80, 3)
        assert vision.layers == 5 - drop
        assert (vision.position, vision.act) == (PRESETS[version].vision.position, PRESETS[version].vision.act)


def test_defaults_of_the_published_config_class():
    data = {k: v for k, v in LAYOUTS["2.6"]["config"].items() if k != "drop_vision_last_layer"}
    assert config_from_published(data).vision.layers == 26  # the class drops the last layer unless told otherwise
    data = LAYOUTS["2.6"]["config"]
    cut = {"scale_resolution": 336, "max_slice_nums": 4, "patch_size": 14}
    slicing = config_from_published(data | {"slice_config": cut}).slicing
    assert (slicing.scale_resolution, slicing.max_slice_nums) == (336, 4)
    with_bare_numbers = {k: v for k, v in data.items() if k != "slice_config"} | {"max_slice_nums": 5}
    assert config_from_published(with_bare_numbers).slicing.max_slice_nums == 5


@pytest.mark.parametrize("version", VERSIONS)
def test_a_preprocessor_config_that_says_otherwise(tmp_path, version):
    """The released `chat` stops where the two files differ; the released processor cuts as the second one says."""
    (tmp_path / "config.json").write_text(json.dumps(LAYOUTS[version]["config"]))
    queries = PRESETS[version].resampler.num_queries
    good = dict(max_slice_nums=9, scale_resolution=448, patch_size=14, slice_mode=True, image_feature_size=queries)
    good |= dict(norm_mean=[0.5] * 3, norm_std=[0.5] * 3, im_start="<image>", version=float(version))
    good |= dict(use_image_id=version == "2.6")
    bad = dict(max_slice_nums=4, scale_resolution=336, patch_size=16, slice_mode=False, image_feature_size=32)
    bad |= dict(norm_mean=[0.48, 0.46, 0.41], norm_std=[0.26, 0.26, 0.28])
    bad |= dict(use_image_id=False) if version == "2.6" else {}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(good))
    assert read_config(tmp_path) == PRESETS[version]
    for name, value in bad.items():
        file.write_text(json.dumps(good | {name: value}))
        with pytest.raises(
            ValueError, match=rf"preprocessor_config\.json: {name} is .*, but the model of config\.json"
        ):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PRESETS[version].to_dict()))  # ours says all by itself
    assert read_config(tmp_path) == PRESETS[version]


# --- Scaled-down published folders ---------------------------------------------------------------------------------


def by_hand(version: str, tensors: dict) -> tuple[MiniCPMVConfig, dict]:
    """Config and state dict as one would write them down with the published files open, without `published_name`."""
    family = {"2.0": "granite", "2.5": "llama", "2.6": "qwen2"}[version]
    data = small_config(version)
    llm = LLMConfig(
        family, 64, 96, 3, 4, 4 if version == "2.0" else 2, 1024, data["rms_norm_eps"], data["rope_theta"], 2048,
        **(dict(scale_emb=12, scale_depth=1.4, dim_model_base=16) if version == "2.0" else {}),
        initializer_range=data["initializer_range"],
    )  # fmt: skip
    position = {"2.0": "interpolate", "2.5": "released_2_5", "2.6": "bucket"}[version]
    act = "gelu" if version == "2.0" else "gelu_tanh"
    vision = VisionConfig(32, 2, 2, 48, table_side=6, position=position, act=act)
    resampler = ResamplerConfig(4, 64, 32, version=version)
    config = MiniCPMVConfig(version, vision, resampler, llm, replace(nano.slicing, scale_resolution=56))
    if version != "2.0":
        return config, dict(tensors)
    state = {name: t for name, t in tensors.items() if not name.startswith("vpm.")}
    state["vpm.embeddings.patch_embedding.weight"] = tensors["vpm.patch_embed.proj.weight"]
    state["vpm.embeddings.patch_embedding.bias"] = tensors["vpm.patch_embed.proj.bias"]
    state["vpm.embeddings.position_embedding.weight"] = tensors["vpm.pos_embed"][0]
    for kind in ("weight", "bias"):
        state[f"vpm.post_layernorm.{kind}"] = tensors[f"vpm.norm.{kind}"]
        for layer in range(VPM_LAYERS):
            ours, timm = f"vpm.encoder.layers.{layer}", f"vpm.blocks.{layer}"
            fused = tensors[f"{timm}.attn.qkv.{kind}"]
            state[f"{ours}.self_attn.q_proj.{kind}"] = fused[:WIDTH]
            state[f"{ours}.self_attn.k_proj.{kind}"] = fused[WIDTH : 2 * WIDTH]
            state[f"{ours}.self_attn.v_proj.{kind}"] = fused[2 * WIDTH :]
            state[f"{ours}.self_attn.out_proj.{kind}"] = tensors[f"{timm}.attn.proj.{kind}"]
            for a, b in {
                "layer_norm1": "norm1",
                "layer_norm2": "norm2",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items():
                state[f"{ours}.{a}.{kind}"] = tensors[f"{timm}.{b}.{kind}"]
    return config, state


def picture_batch(folder, config):
    from PIL import Image

    image = Image.radial_gradient("L").resize((130, 90))
    tokenizer = Processor.from_pretrained(folder).tokenizer
    messages = [{"role": "user", "content": [image, "What is this?"]}]
    return Processor(tokenizer, config)(messages)


@pytest.mark.parametrize("shards", [0, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensor_of_a_published_folder_arrives(tmp_path, version, dtype, shards):
    tensors = write_published(tmp_path, version, dtype, shards)
    model = MiniCPMV.from_pretrained(tmp_path)
    config, state = by_hand(version, tensors)
    assert model.config == config == read_config(tmp_path)
    loaded = model.state_dict()
    assert set(loaded) == set(state)
    assert sum(t.numel() for t in loaded.values()) == sum(t.numel() for t in tensors.values())
    for name, tensor in loaded.items():
        assert tensor.dtype == dtype and torch.equal(tensor, state[name]), name
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert not model.training
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"resampler.pos_embed"} if version == "2.0" else set())


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_a_model_whose_weights_were_set_by_hand(folders, version):
    config, state = by_hand(version, small_tensors(version))
    by_name = MiniCPMV(config).eval()
    by_name.load_state_dict(state)
    model = MiniCPMV.from_pretrained(folders[version])
    batch = picture_batch(folders[version], config)
    with torch.no_grad():
        logits = model(batch).logits
        assert logits.isfinite().all() and logits.std() > 0.01
        torch.testing.assert_close(logits, by_name(batch).logits, rtol=0, atol=0)


def test_2_0_tower_equals_a_forward_written_with_timm_names(folders):
    """The fused tensor is q, k, v in this order; everything by its published name, on one grid that needs no resize."""
    t = {name: tensor.double() for name, tensor in small_tensors("2.0").items()}
    image = torch.rand(3, 14 * TABLE_SIDE, 14 * TABLE_SIDE, generator=torch.Generator().manual_seed(1)).double()

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = F.conv2d(image[None], t["vpm.patch_embed.proj.weight"], t["vpm.patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2) + t["vpm.pos_embed"]
    for layer in range(VPM_LAYERS):
        block = f"vpm.blocks.{layer}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").reshape(1, -1, 3, 2, WIDTH // 2).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (WIDTH // 2) ** -0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        x = x + linear(mixed, f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    expected = norm(x, "vpm.norm")[0]

    with torch.no_grad():
        (features,) = MiniCPMV.from_pretrained(folders["2.0"]).double().vpm([image])
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_resampler_equals_torch_s_attention_with_the_published_tensors(folders, version):
    """By the names in the files; a transposed `proj` or a swapped row and column would show here."""
    t = {n.removeprefix("resampler."): x.double() for n, x in small_tensors(version).items() if "resampler" in n}
    rows, cols = 3, 5
    features = torch.randn(rows * cols, WIDTH, generator=torch.Generator().manual_seed(2)).double()

    def norm(x, name):
        return F.layer_norm(x, (HIDDEN,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    frequency = 10000.0 ** (-torch.arange(HIDDEN // 4).double() / (HIDDEN // 4))
    position = torch.stack([
        torch.cat([col * frequency, col * frequency, row * frequency, row * frequency])
        for row in range(rows) for col in range(cols)
    ]).reshape(rows * cols, 4, -1)  # fmt: skip
    position = torch.stack([position[:, 0].sin(), position[:, 1].cos(), position[:, 2].sin(), position[:, 3].cos()], 1)
    attention = torch.nn.MultiheadAttention(HIDDEN, 1).double()
    attention.load_state_dict({n.removeprefix("attn."): x for n, x in t.items() if n.startswith("attn.")})
    query = norm(t["query"], "ln_q") + (t["pos_embed"] if version == "2.0" else 0)
    x = norm(features @ t["kv_proj.weight"].T, "ln_kv")
    with torch.no_grad():
        mixed, _ = attention(query, x + position.flatten(1), x)
        tokens = MiniCPMV.from_pretrained(folders[version]).double().resampler([features], [(rows, cols)])
    torch.testing.assert_close(tokens[0], norm(mixed, "ln_post") @ t["proj"], rtol=1e-5, atol=1e-5)


def test_the_published_tokenizer_is_read_as_data(folders):
    for version in VERSIONS:
        processor = Processor.from_pretrained(folders[version])  # the folder's .py files would end the interpreter
        tokenizer = processor.tokenizer
        assert type(tokenizer).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert (tokenizer.unk_token, tokenizer.pad_token) == ("<unk>", "<|endoftext|>")
        assert processor.config == read_config(folders[version])
        assert tokenizer("a <image><unk></image>")["input_ids"][-3:] == [4, 3, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("version", VERSIONS)
def test_saving_and_loading_again_is_bit_equal(tmp_path, version, dtype):
    write_published(tmp_path / "theirs", version, dtype)
    first = MiniCPMV.from_pretrained(tmp_path / "theirs")
    first.save_pretrained(tmp_path / "ours")
    second = MiniCPMV.from_pretrained(tmp_path / "ours")
    assert second.config == first.config
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)
    # Our own files are strict as well, and written under our names, in 2.0 too.
    assert set(load_file(tmp_path / "ours" / WEIGHTS)) == set(a)
    assert sorted(os.listdir(tmp_path / "ours")) == ["config.json", "model.safetensors"]


def test_saving_into_a_published_folder_replaces_its_weights(broken):
    model = MiniCPMV.from_pretrained(broken)
    with torch.no_grad():
        model.resampler.query += 1
    model.save_pretrained(broken)  # the old shards and their index still lie there
    assert torch.equal(MiniCPMV.from_pretrained(broken).resampler.query, model.resampler.query)


def test_tied_embeddings_are_stored_once_and_tied_again(tmp_path):
    model = MiniCPMV.seeded(nano)
    model.save_pretrained(tmp_path)
    assert "llm.lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    again = MiniCPMV.from_pretrained(tmp_path)
    assert again.llm.lm_head.weight is again.llm.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


# --- Tensors that are no parameters, and tied copies ---------------------------------------------------------------


def add_tensors(folder: Path, **tensors) -> None:
    """Put tensors into the last shard and into the index."""
    index = json.loads((folder / INDEX).read_text())
    file = max(index["weight_map"].values())
    held = load_file(folder / file) | tensors
    save_file(held, folder / file)
    edit_json(folder / INDEX, weight_map=index["weight_map"] | dict.fromkeys(tensors, file))


def test_known_tensors_that_are_no_parameters_are_accepted(folders, tmp_path):
    for version in VERSIONS:
        folder = Path(shutil.copytree(folders[version], tmp_path / version))
        before = MiniCPMV.from_pretrained(folder).state_dict()
        extra = {f"llm.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(8) for i in range(LLM_LAYERS)}
        extra["vpm.embeddings.position_ids"] = torch.arange(36)[None]
        if version != "2.0":
            extra["resampler.pos_embed"] = torch.zeros(70, 70, HIDDEN)  # a buffer there
        add_tensors(folder, **extra)
        after = MiniCPMV.from_pretrained(folder).state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_2_0_needs_its_pos_embed(folders, tmp_path):
    folder = Path(shutil.copytree(folders["2.0"], tmp_path / "2.0"))
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    file = index.pop("resampler.pos_embed")
    save_file({n: t for n, t in load_file(folder / file).items() if n in index}, folder / file)
    edit_json(folder / INDEX, weight_map=index)
    fails(folder, "1 missing", "resampler.pos_embed")


def test_a_stored_copy_of_a_tied_head_must_be_equal(broken):
    edit_json(broken / "config.json", tie_word_embeddings=True)
    fails(broken, "lm_head is tied", "differs")  # the folder was written with a head of its own
    tensors = small_tensors("2.6")
    copies = {
        "equal": tensors["llm.model.embed_tokens.weight"].clone(),
        "other dtype": tensors["llm.model.embed_tokens.weight"].half(),
        "other shape": tensors["llm.model.embed_tokens.weight"][1:].clone(),
        "absent": None,
    }
    for kind, copy in copies.items():
        shutil.rmtree(broken)
        write_published(broken, "2.6")
        edit_json(broken / "config.json", tie_word_embeddings=True)
        for file in [broken / INDEX, *broken.glob("*.safetensors")]:
            file.unlink()
        kept = tensors | {"llm.lm_head.weight": copy}
        write_shards(broken, {n: t for n, t in kept.items() if t is not None}, 2)
        if kind in ("equal", "absent"):
            model = MiniCPMV.from_pretrained(broken)
            assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
            assert torch.equal(model.llm.lm_head.weight, tensors["llm.model.embed_tokens.weight"])
        else:
            fails(broken, "lm_head is tied", "differs")


# --- Wrong tensors -------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change) -> None:
    """Write the folder's weights anew after `change(tensors)`."""
    tensors = small_tensors("2.6")
    change(tensors)
    for file in [folder / INDEX, *folder.glob("*.safetensors")]:
        file.unlink()
    write_shards(folder, tensors, 2)


def test_a_missing_tensor_is_named(broken):
    rewrite(broken, lambda t: t.pop("resampler.ln_kv.bias"))
    fails(broken, "1 missing: resampler.ln_kv.bias", str(broken))


def test_a_surplus_tensor_is_named(broken):
    rewrite(broken, lambda t: t.update({"vpm.head.weight": torch.ones(2)}))
    fails(broken, "1 surplus: vpm.head.weight")


def test_a_misshapen_tensor_is_named_with_both_shapes(broken):
    rewrite(broken, lambda t: t.update({"resampler.query": torch.ones(5, HIDDEN)}))
    fails(broken, "1 misshapen: resampler.query is (5, 64), should be (4, 64)")


def test_a_transposed_tensor_is_misshapen_even_if_it_has_as_many_numbers(broken):
    rewrite(broken, lambda t: t.update({"resampler.kv_proj.weight": t["resampler.kv_proj.weight"].T.contiguous()}))
    fails(broken, "resampler.kv_proj.weight is (32, 64), should be (64, 32)")


def test_many_problems_are_counted_not_listed(broken):
    edit_json(broken / "config.json", num_hidden_layers=LLM_LAYERS + 1)
    assert "9 more" in fails(broken, "12 missing: llm.model.layers.3.")
    rewrite(broken, lambda t: [t.update({f"x{i}": torch.ones(1)}) for i in range(3)])
    assert "3 surplus: x0, x1, x2" in fails(broken, "missing") and "0 more" not in fails(broken, "surplus")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_of_another_version_is_refused(folders, tmp_path, version):
    other = {"2.0": "2.6", "2.5": "2.0", "2.6": "2.5"}[version]
    folder = Path(shutil.copytree(folders[version], tmp_path / "f"))
    shutil.copy(folders[other] / "config.json", folder)
    fails(folder, f"this {other} model", "surplus")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_floats_are_refused(broken, dtype):
    rewrite(broken, lambda t: t.update({"resampler.proj": t["resampler.proj"].to(dtype)}))
    fails(broken, "floats", "resampler.proj")


def test_float64_is_kept(broken):
    rewrite(broken, lambda t: t.update({name: tensor.double() for name, tensor in t.items()}))
    assert {t.dtype for t in MiniCPMV.from_pretrained(broken).state_dict().values()} == {torch.float64}


# --- Not a number --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_weight_that_is_no_number_is_named(tmp_path, dtype, value):
    tensors = small_tensors("2.6", dtype)
    for name in random.Random(str(value)).sample(sorted(tensors), 6):
        bad = tensors[name].clone()
        bad.view(-1)[-1] = value
        write_published(tmp_path, "2.6")
        write_shards(tmp_path, tensors | {name: bad}, 3)
        fails(tmp_path, f"{name} holds a NaN or an infinity", ".safetensors")
    write_shards(tmp_path, tensors, 3)
    MiniCPMV.from_pretrained(tmp_path)


def test_the_largest_numbers_are_numbers(broken):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        largest = torch.full((4, HIDDEN), torch.finfo(dtype).max, dtype=dtype)
        largest[0] *= -1
        tensors = {name: t.to(dtype) for name, t in small_tensors("2.6").items()} | {"resampler.query": largest}
        write_shards(broken, tensors, 3)
        assert torch.equal(MiniCPMV.from_pretrained(broken).resampler.query, largest)


def test_fused_tensors_of_2_0_and_our_own_files_are_looked_at(tmp_path):
    tensors = small_tensors("2.0")
    write_published(tmp_path / "2.0", "2.0")
    bad = tensors["vpm.blocks.1.attn.qkv.bias"].clone()
    bad[2 * WIDTH] = math.nan
    write_shards(tmp_path / "2.0", tensors | {"vpm.blocks.1.attn.qkv.bias": bad}, 3)
    fails(tmp_path / "2.0", "vpm.blocks.1.attn.qkv.bias holds a NaN")
    model = MiniCPMV.from_pretrained("nano")
    model.llm.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.inf  # a bfloat16 that was converted to float16
    model.save_pretrained(tmp_path / "ours")
    fails(tmp_path / "ours", "llm.model.layers.0.mlp.up_proj.weight holds a NaN or an infinity")


# --- Parts of different dtypes -------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SQUARE = [(i, j, (i + j) % 3) for i in range(3) for j in range(3)]  # any two parts have each pair of dtypes once


@pytest.mark.parametrize(("vpm", "resampler", "llm"), [[DTYPES[i] for i in row] for row in SQUARE])
def test_parts_of_different_dtypes_answer_together(folders, tmp_path, vpm, resampler, llm):
    """As modules_to_save of the official LoRA script leave them."""
    for version in VERSIONS:
        folder = tmp_path / version
        write_published(folder, version)
        kinds = {"vpm": vpm, "resampler": resampler, "llm": llm}
        write_shards(folder, {n: t.to(kinds[n.partition(".")[0]]) for n, t in small_tensors(version).items()}, 3)
        model, whole = MiniCPMV.from_pretrained(folder), MiniCPMV.from_pretrained(folders[version])
        assert {name: getattr(model, name).state_dict().popitem()[1].dtype for name in kinds} == kinds
        batch = picture_batch(folder, whole.config)
        with torch.no_grad():
            visual = model.encode_images(batch.images[0], batch.patch_grids[0])
            assert visual.dtype == resampler and model.embed(batch).dtype == llm
            logits, expected = model(batch).logits, whole(batch).logits
        assert logits.dtype == llm
        assert F.cosine_similarity(logits.float(), expected, dim=-1).mean() > 0.98
        model.generate(batch, 2)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("table", "rest"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_embeddings_of_another_dtype_than_the_llm(tmp_path, version, table, rest):
    """The official LoRA script saves embed_tokens as well."""
    write_published(tmp_path, version)
    tensors = {name: t.to(table if "embed_tokens" in name else rest) for name, t in small_tensors(version).items()}
    write_shards(tmp_path, tensors, 3)
    model = MiniCPMV.from_pretrained(tmp_path)
    batch = picture_batch(tmp_path, model.config)
    with torch.no_grad():
        assert model.embed(batch).dtype == model(batch).logits.dtype == rest
    answer = model.generate(batch, 5)
    model.llm.model.embed_tokens.to(rest)
    assert torch.equal(answer, model.generate(batch, 5))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ("resampler.ln_kv.weight", "resampler.ln_kv.weight is torch.float32"),
        ("vpm.encoder.layers.1.mlp.fc1.weight", "vpm.encoder.layers.1.mlp.fc1.weight is torch.float32"),
        ("llm.model.layers.2.mlp.down_proj.weight", "llm.model.layers.2.mlp.down_proj.weight is torch.float32"),
        ("llm.lm_head.weight", "llm.lm_head.weight is torch.float32"),
    ],
)
def test_dtypes_mixed_within_a_part_are_one_error(broken, odd, words):
    rewrite(broken, lambda t: t.update({name: x.bfloat16() for name, x in t.items() if name != odd}))
    fails(broken, words, "is torch.bfloat16", "need one dtype", str(broken))


def test_tied_embeddings_have_the_dtype_of_the_llm(tmp_path):
    model = MiniCPMV.seeded(nano)
    model.llm.bfloat16()
    model.llm.model.embed_tokens.float()
    model.llm.tie_weights()
    model.save_pretrained(tmp_path)
    fails(tmp_path, "llm.model.embed_tokens.weight is torch.float32", "llm.model.layers.0", "is torch.bfloat16")


# --- Lying indexes -------------------------------------------------------------------------------------------------


def weight_map(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]


def test_an_index_that_names_a_file_that_is_not_there(broken):
    files = sorted(set(weight_map(broken).values()))
    (broken / files[1]).unlink()
    fails(broken, files[1])


def test_an_index_that_lists_a_tensor_of_another_shard(broken):
    listed = weight_map(broken)
    name, other = "resampler.proj", next(f for f in listed.values() if f != listed["resampler.proj"])
    edit_json(broken / INDEX, weight_map=listed | {name: other})
    fails(broken, INDEX, "resampler.proj", "listed but not there")


def test_a_shard_that_holds_an_unlisted_tensor(broken):
    listed = weight_map(broken)
    file = listed.pop("resampler.proj")
    edit_json(broken / INDEX, weight_map=listed)
    fails(broken, INDEX, file, "there but not listed: resampler.proj")


def test_a_tensor_in_two_shards(broken):
    listed = weight_map(broken)
    other = next(f for f in listed.values() if f != listed["resampler.proj"])
    save_file(load_file(broken / other) | {"resampler.proj": torch.zeros(HIDDEN, HIDDEN)}, broken / other)
    fails(broken, "there but not listed: resampler.proj")


@pytest.mark.parametrize("name", ["../x.safetensors", "sub/x.safetensors", "..", ".", "", "ABSOLUTE", "\0", "\ud800"])
def test_an_index_cannot_reach_outside_its_folder(broken, tmp_path, name):
    """The file is there and its content would fit; it is refused for where it is."""
    listed = weight_map(broken)
    file = listed["resampler.proj"]
    outside = tmp_path / "x.safetensors"
    shutil.copy(broken / file, outside)
    (broken / "sub").mkdir()
    shutil.copy(broken / file, broken / "sub" / "x.safetensors")
    name = str(outside) if name == "ABSOLUTE" else name
    lying = {tensor: name if its_file == file else its_file for tensor, its_file in listed.items()}
    edit_json(broken / INDEX, weight_map=lying)
    with pytest.raises((ValueError, OSError), match="plain file name" if name.strip("\0\ud800") else None):
        MiniCPMV.from_pretrained(broken)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"weight_map": []}', '{"weight_map": "x"}', '{"weight_map": {}}',
     '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["b"]}}', "[" * 100000,
     '{"weight_map": ' + "9" * 5000 + "}", "\ufeff{}"],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_an_index_of_the_wrong_kind(broken, content):
    (broken / INDEX).write_text(content, encoding="utf-8")
    fails(broken, str(broken))


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "\u202egnp", "x" * 5000, "a\nb"])
def test_names_from_a_file_do_not_reach_the_terminal(broken, name):
    """In the index, in a shard and in messages about both."""
    listed = weight_map(broken)
    edit_json(broken / INDEX, weight_map=listed | {name: max(listed.values())})
    messages = [fails(broken, "listed but not there")]
    edit_json(broken / INDEX, weight_map=listed | {"resampler.proj": name})
    messages.append(fails(broken))
    edit_json(broken / INDEX, weight_map=listed)
    add_tensors(broken, **{name: torch.ones(2)})
    messages.append(fails(broken, "1 surplus"))
    for message in messages:
        assert len(message) < 1500 and all(c.isprintable() or c == "\n" for c in message), message


def test_a_name_twice(broken):
    text = (broken / INDEX).read_text()
    (broken / INDEX).write_text(text.replace('"weight_map": {', '"weight_map": {"resampler.proj": "x.safetensors", '))
    fails(broken, INDEX, "'resampler.proj' stands twice")
    (broken / INDEX).write_text(text)
    shard = one_shard(broken)
    data = shard.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    about = json.dumps(json.loads(data[8 : 8 + length])["resampler.proj"])
    header = b'{"resampler.proj": ' + about.encode() + b", " + data[9 : 8 + length]
    shard.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    fails(broken, shard.name, "'resampler.proj' stands twice")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_no_files(broken):
    for file in (one_shard(broken), broken / INDEX, broken / "config.json"):
        kept = file.read_bytes()
        for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink("nowhere", path)):
            file.unlink()
            make(file)
            with pytest.raises(OSError, match=re.escape(file.name) if file.name != INDEX else None):
                MiniCPMV.from_pretrained(broken)
        file.unlink()
        file.write_bytes(kept)
    os.mkfifo(broken / WEIGHTS)
    with pytest.raises(OSError, match="pipe or a device"):
        MiniCPMV.from_pretrained(broken)


def test_an_index_that_is_too_large(broken, monkeypatch):
    (broken / INDEX).write_bytes(b'{"weight_map": {' + b" " * 64 * 2**20 + b"}}")
    fails(broken, INDEX, "at most 67,108,864 are read")


def test_an_index_that_is_not_text(broken):
    (broken / INDEX).write_bytes(b"\xff\xfe\x00{")
    fails(broken, INDEX, "not JSON")


# --- Damaged shards ------------------------------------------------------------------------------------------------


def one_shard(folder: Path) -> Path:
    return folder / weight_map(folder)["resampler.proj"]


def test_a_truncated_shard_at_many_cuts(broken):
    file = one_shard(broken)
    whole = file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 4, len(whole) - 1}
    cuts |= {int(len(whole) * i / 23) for i in range(23)}
    for cut in sorted(cuts):
        file.unlink()  # a new file each time: an old one may still be mapped
        file.write_bytes(whole[:cut])
        fails(broken, file.name)


def test_bytes_behind_the_end(broken):
    with one_shard(broken).open("ab") as file:
        file.write(b"\0")
    fails(broken, one_shard(broken).name)


@pytest.mark.parametrize("length", [0, 1, 2**27, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length(broken, length):
    file = one_shard(broken)
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(struct.pack("<Q", length) + data[8:])
    fails(broken, file.name)


@pytest.mark.parametrize(
    "header",
    [
        {"resampler.proj": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 10**15]}},
        {"resampler.proj": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}},
        {"resampler.proj": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}},
        {"resampler.proj": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}},
        {"resampler.proj": {"dtype": "X9", "shape": [16], "data_offsets": [0, 64]}},
        {"resampler.proj": "a tensor"},
        ["resampler.proj"],
    ],
    ids=lambda header: json.dumps(header)[-50:],
)
def test_a_header_that_lies_about_its_tensors(broken, header):
    file = one_shard(broken)
    text = json.dumps(header).encode()
    file.unlink()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    fails(broken, file.name)


def test_random_bytes_and_empty_files(broken):
    file = one_shard(broken)
    for content in (b"", b"\0" * 8, random.Random(0).randbytes(1000), b"PK\x03\x04" + bytes(100), b"<!DOCTYPE html>"):
        file.unlink()
        file.write_bytes(content)
        fails(broken, file.name)


def test_no_weights_and_pickle_files(broken):
    for file in [broken / INDEX, *broken.glob("*.safetensors")]:
        file.unlink()
    fails(broken, WEIGHTS, INDEX, str(broken))
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    fails(broken, "pytorch_model.bin", "pickle", "safetensors")


def test_a_directory_in_place_of_a_file(broken):
    file = one_shard(broken)
    file.unlink()
    file.mkdir()
    fails(broken, file.name)


# --- Wrong configs -------------------------------------------------------------------------------------------------

NUMBERS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size rms_norm_eps "
    "rope_theta max_position_embeddings query_num patch_size initializer_range"
).split()
WRONG = ["3", "", -1, 0, True, False, math.nan, math.inf, 0.5, [], [64], {}, {"a": 1}, 10**9, 10**30, 10**400, -1e400]


def test_no_config(broken):
    (broken / "config.json").unlink()
    fails(broken, "config.json")
    files = "sft-1/config.json", "stage-1/config.json", "saves/step-20/config.json", "saves/step-30/adapter_config.json"
    for number, name in enumerate(files):  # as a run leaves them
        (broken / name).parent.mkdir(parents=True)
        (broken / name).touch()
        os.utime(broken / name, (number, number))
        fails(broken, f"no config.json in {broken}; the newest checkpoint below it is {(broken / name).parent}")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", '"x"', "{}", "NaN", '{"version": 2.6,}', "[" * 100000])
def test_a_config_of_the_wrong_kind(broken, content):
    (broken / "config.json").write_text(content, encoding="utf-8")
    fails(broken, "config.json")


@pytest.mark.parametrize(
    "field",
    "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size rms_norm_eps "
    "max_position_embeddings tie_word_embeddings query_num".split(),
)
def test_a_missing_field_is_named(broken, field):
    edit_json(broken / "config.json", **{field: ...})
    fails(broken, "config.json", field, "missing")


@pytest.mark.parametrize("field", ["scale_emb", "scale_depth", "dim_model_base"])
def test_2_0_needs_its_multipliers(folders, tmp_path, field):
    folder = Path(shutil.copytree(folders["2.0"], tmp_path / "f"))
    edit_json(folder / "config.json", **{field: ...})
    fails(folder, field, "missing")
    for wrong in ("12", -1, 0, True, math.nan, math.inf, None, [12]):
        edit_json(folder / "config.json", **{field: wrong})
        fails(folder, "config.json", field)


@pytest.mark.parametrize("field", NUMBERS)
def test_impossible_numbers_are_refused(broken, field):
    fractions = ("rms_norm_eps", "rope_theta", "initializer_range")
    for wrong in WRONG:
        edit_json(broken / "config.json", **{field: wrong})
        if field in fractions and (wrong == 0.5 or (wrong == 10**9 and field != "initializer_range")):  # strange only
            assert getattr(MiniCPMV.from_pretrained(broken).config.llm, field) == wrong
        else:
            fails(broken, "config.json")


@pytest.mark.parametrize(
    "field", "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size".split()
)
def test_impossible_numbers_of_the_tower_are_refused(broken, field):
    tower = small_config("2.6")["vision_config"]
    for wrong in WRONG:
        edit_json(broken / "config.json", vision_config=tower | {field: wrong})
        fails(broken, str(broken))


@pytest.mark.parametrize(
    ("field", "wrong", "words"),
    [
        ("version", 3.0, "version must be"),
        ("version", "4.6", "version must be"),
        ("version", None, "version must be"),
        ("version", [2.6], "version must be"),
        ("version", True, "version must be"),
        ("rope_scaling", {"type": "linear", "factor": 2}, "rope_scaling"),
        ("hidden_act", "gelu", "hidden_act"),
        ("drop_vision_last_layer", "false", "drop_vision_last_layer"),
        ("tie_word_embeddings", "false", "tie_word_embeddings"),
        ("vision_config", [1], ""),
        ("vision_config", "siglip", ""),
        ("slice_config", [1], ""),
        ("slice_config", 7, ""),
        ("slice_config", {"max_slice_nums": 0}, "max_slice_nums"),
        ("slice_config", {"scale_resolution": "448"}, "scale_resolution"),
    ],
)
def test_impossible_settings_are_refused(broken, field, wrong, words):
    edit_json(broken / "config.json", **{field: wrong})
    fails(broken, "config.json", words)


OURS = [
    (part, field.name)
    for part, kind in (("vision", VisionConfig), ("resampler", ResamplerConfig), ("llm", LLMConfig))
    for field in fields(kind)
]


@pytest.mark.parametrize(("part", "field"), OURS)
def test_impossible_numbers_in_our_own_config(tmp_path, part, field):
    config = nano.to_dict()
    for wrong in ["x", -1, [], {}, math.nan, 10**30]:
        (tmp_path / "config.json").write_text(json.dumps(config | {part: config[part] | {field: wrong}}))
        fails(tmp_path, "config.json")


def test_unknown_and_missing_parts_of_our_own_config(tmp_path):
    config = nano.to_dict()
    for wrong in (
        config | {"extra": 1},
        {k: v for k, v in config.items() if k != "llm"},
        config | {"llm": []},
        config | {"llm": None},
        config | {"vision": config["vision"] | {"depth": 3}},
        config | {"version": "3.0"},
        config | {"version": ["2.6"]},
        config | {"version": "2.0"},
        config | {"slicing": {"scale_resolution": 112, "patch_size": 16}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        fails(tmp_path, "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path) == nano


# --- Tokenizer files -----------------------------------------------------------------------------------------------


def test_tokenizer_errors(broken):
    file, settings = broken / "tokenizer.json", broken / "tokenizer_config.json"
    whole, fine = file.read_bytes(), settings.read_bytes()
    for content in (b"", b"{", b"[]", b"{}", b"null", whole[: len(whole) // 2], b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="tokenizer"):
            Processor.from_pretrained(broken)
    file.write_bytes(whole)
    for content in (
        b"",
        b"[]",
        b'{"eos_token": {}}',
        b'{"eos_token": 3}',
        b'{"eos_token": [1]}',
        b'{"eos_token": true}',
    ):
        settings.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
            Processor.from_pretrained(broken)
    settings.write_bytes(fine)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        Processor.from_pretrained(broken)


# --- Where folders are looked for ----------------------------------------------------------------------------------


def test_nano_is_found_beside_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert MiniCPMV.from_pretrained("nano").config == nano
    assert Processor.from_pretrained("nano").config == nano
    monkeypatch.setattr(published_room, "BUNDLED", tmp_path / "elsewhere")
    for load in (MiniCPMV.from_pretrained, Processor.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"elsewhere.nano.*beside the package"):
            load("nano")


def test_a_folder_of_ones_own_may_be_called_nano_something(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    MiniCPMV.seeded(nano).save_pretrained("nano-mine")
    assert MiniCPMV.from_pretrained("nano-mine").config == nano
    with pytest.raises(FileNotFoundError, match="nano-yours"):
        find_folder("nano-yours")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder at .*absent"):
        MiniCPMV.from_pretrained(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="file"):
        MiniCPMV.from_pretrained(tmp_path / "file")


# --- Saving when something goes wrong ------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a signal: no `except Exception` sees it."""


def disk_full(tensors, file, metadata=None):
    Path(file).write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


def killed_while_writing(tensors, file, metadata=None):
    Path(file).write_bytes(b"half of it")
    raise Killed


@pytest.mark.parametrize("accident", [disk_full, killed_while_writing])
def test_an_accident_while_saving_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch, accident):
    old, new = MiniCPMV.seeded(nano, 0), MiniCPMV.seeded(nano, 1)
    old.save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    monkeypatch.setattr(checkpoint, "save_file", accident)
    with pytest.raises((OSError, Killed)):
        new.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    assert torch.equal(MiniCPMV.from_pretrained(tmp_path).resampler.query, old.resampler.query)


def test_an_accident_while_writing_the_config(tmp_path, monkeypatch):
    old = MiniCPMV.seeded(nano, 0)
    old.save_pretrained(tmp_path)
    monkeypatch.setattr(Path, "write_text", lambda self, *a, **k: disk_full(None, self))
    with pytest.raises(OSError, match="No space left"):
        MiniCPMV.seeded(nano, 1).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert torch.equal(MiniCPMV.from_pretrained(tmp_path).resampler.query, old.resampler.query)


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_between_the_two_renames_leaves_a_whole_checkpoint(tmp_path, monkeypatch, step):
    """Each file is renamed whole, so old and new never mix within one; both models have the same config here."""
    old, new = MiniCPMV.seeded(nano, 0), MiniCPMV.seeded(nano, 1)
    old.save_pretrained(tmp_path)
    rename, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == step:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(Killed):
        new.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    expected = old if step == 1 else new
    assert torch.equal(MiniCPMV.from_pretrained(tmp_path).resampler.query, expected.resampler.query)


def test_the_library_s_own_error_becomes_an_os_error(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match=r"could not write .*No space left"):
        MiniCPMV.seeded(nano).save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        MiniCPMV.seeded(nano).save_pretrained(tmp_path / "file")


def test_saving_over_the_files_one_was_loaded_from(tmp_path):
    """Nothing may be lost, whether the tensors are copies of the file or still mapped from it."""
    MiniCPMV.seeded(nano).save_pretrained(tmp_path)
    model = MiniCPMV.from_pretrained(tmp_path)
    with torch.no_grad():
        model.resampler.proj *= 2
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    again = MiniCPMV.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(expected[name], again[name]) for name in again)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "removed"])
@pytest.mark.parametrize("kind", ["ours", "based on another", "published 2.0", "published 2.6"])
def test_what_happens_to_the_files_does_not_matter_any_more(tmp_path, kind, damage):
    """A mapped file that is cut short would end the process (SIGBUS); `cp` overwrites a file in place."""
    folder = tmp_path / "model"
    if kind.startswith("published"):
        write_published(folder, kind[-3:])
    else:
        MiniCPMV.seeded(nano).save_pretrained(folder)
    if kind == "based on another":
        checkpoint.write_checkpoint(tmp_path / "child", nano, {"resampler.query": torch.ones(16, 256)}, base="model")
    model = MiniCPMV.from_pretrained(tmp_path / "child" if kind == "based on another" else folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if Path("/proc/self/maps").exists():
        assert ".safetensors" not in Path("/proc/self/maps").read_text()
    for file in tmp_path.rglob("*.safetensors"):
        if damage == "removed":
            file.unlink()
            continue
        with file.open("r+b") as content:
            content.truncate(100) if damage == "cut" else content.write(bytes(file.stat().st_size))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_that_shrinks_while_it_is_read(broken):
    shard = checkpoint.Shard(one_shard(broken))
    with shard.file.open("r+b") as content:
        content.truncate(shard.start + 10)
    with pytest.raises(ValueError, match="has become shorter"):
        shard.read("resampler.proj")


def test_the_written_file_says_that_it_is_for_torch(tmp_path):
    MiniCPMV.seeded(nano).save_pretrained(tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


# --- Fuzz ----------------------------------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        # Most of a shard is numbers, which any byte may be part of; what can break is its beginning.
        reach = min(len(data), rng.choice((16, 600, 10**9))) or 1
        i, j = rng.randrange(reach), rng.randrange(reach)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[i] = rng.randrange(256)
        elif kind == 2:
            data[i:] = b""
        elif kind == 3:
            i, j = sorted((i, j))
            data[i:j] = b""
        elif kind == 4 and data:
            data[i], data[j] = data[j], data[i]
        else:
            data[i:i] = rng.choice((b"0", b"9" * 9, b"-", b"null", b'"', b"{", b"[]", b"\xff", b"../", b"1e999"))
    return bytes(data)


def test_fuzzed_folders_load_or_fail_cleanly(folders, tmp_path):
    rng = random.Random(0)
    outcomes = {True: 0, False: 0}
    for round_ in range(320):
        source = folders[rng.choice(VERSIONS)]
        folder = tmp_path / str(round_)
        folder.mkdir()
        shards = sorted(file.name for file in source.glob("*.safetensors"))
        victim = rng.choice(["config.json", "config.json", INDEX, *shards])
        for name in ("config.json", INDEX, *shards):
            if name == victim:
                (folder / name).write_bytes(mutate((source / name).read_bytes(), rng))
            else:
                (folder / name).hardlink_to(source / name)
        try:
            model = MiniCPMV.from_pretrained(folder)
            outcomes[True] += 1
            assert not any(t.is_meta for t in model.parameters())
            del model
        except (ValueError, OSError) as error:
            outcomes[False] += 1
            assert len(str(error)) > 10
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 25, outcomes


def test_small_shapes_cover_every_kind_of_tensor():
    """The scaled-down layout keeps one of each published name, layer numbers aside."""
    for version in VERSIONS:
        kinds = [
            {re.sub(r"\.\d+\.", ".N.", n) for n in names}
            for names in (LAYOUTS[version]["tensors"], small_shapes(version))
        ]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_transformers_reads_the_llm_of_our_folder_with_its_own_means(version, tmp_path):
    from transformers import AutoModelForCausalLM

    model = MiniCPMV.seeded(tiny_config(version))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    ours = {name.removeprefix("llm."): tensor for name, tensor in tensors.items() if name.startswith("llm.")}
    save_file(ours, tmp_path / WEIGHTS, metadata={"format": "pt"})
    model.llm.config.save_pretrained(tmp_path)
    theirs, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, model.llm(ids).logits)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
