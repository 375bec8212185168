"""config.py: the presets against the published releases, and every check by the name of its field."""

import dataclasses
import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
from places import ROOT
from transformers import GraniteConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, SiglipVisionConfig
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.config import (
    PRESETS,
    LLMConfig,
    MiniCPMVConfig,
    ResamplerConfig,
    SliceConfig,
    VisionConfig,
    nano,
    v2_0,
    v2_5,
    v2_6,
)
from minicpmv_ref.inputs.published import base_folder, config_from_published, find_folder, read_config

PUBLISHED = json.loads((ROOT / "tests/golden/published_layouts.json").read_text())
RELEASES = [(v2_0, PUBLISHED["2.0"]), (v2_5, PUBLISHED["2.5"]), (v2_6, PUBLISHED["2.6"])]
releases = pytest.mark.parametrize("preset, published", RELEASES, ids=["2.0", "2.5", "2.6"])
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)

VISION = dict(width=8, layers=1, heads=2, mlp_width=12)
RESAMPLER = dict(num_queries=4, width=16, kv_width=8)
LLM = dict(
    family="llama",
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=50,
)
GRANITE = dict(LLM, family="granite", scale_emb=12, scale_depth=1.4, dim_model_base=8)


def tiny(**changes):
    parts = dict(
        version="2.6",
        vision=VisionConfig(**VISION),
        resampler=ResamplerConfig(**RESAMPLER),
        llm=LLMConfig(**LLM),
    )
    return MiniCPMVConfig(**{**parts, **changes})


# --- the presets ---


@releases
def test_presets_equal_the_published_configs(preset, published):
    config = published["config"]
    for field in dataclasses.fields(LLMConfig):
        if field.name != "family":
            assert getattr(preset.llm, field.name) == config.get(field.name), field.name
    assert preset.version == str(config.get("version", "2.0"))  # 2.0's file has no version
    assert preset.resampler.num_queries == config["query_num"]
    assert preset.slicing.patch_size == preset.vision.patch_size == config["patch_size"]
    slicing = {**config, **config.get("slice_config", {})}
    assert preset.slicing.max_slice_nums == slicing["max_slice_nums"]
    assert preset.slicing.scale_resolution == slicing.get("scale_resolution", 448) == config["image_size"]
    if "vision_config" in config:
        vision = config["vision_config"]
        assert preset.vision.width == vision["hidden_size"]
        assert preset.vision.layers == vision["num_hidden_layers"] - config["drop_vision_last_layer"]
        assert preset.vision.heads == vision["num_attention_heads"]
        assert preset.vision.mlp_width == vision["intermediate_size"]
        assert preset.vision.table_side == vision["image_size"] // vision["patch_size"]


@releases
def test_presets_equal_the_published_tensors(preset, published):
    shapes = {name: tuple(shape) for name, shape in published["tensors"].items()}
    llm, vision, resampler = preset.llm, preset.vision, preset.resampler
    old = preset.version == "2.0"  # timm's names

    layers = {name.split(".")[3] for name in shapes if name.startswith("llm.model.layers.")}
    assert len(layers) == llm.num_hidden_layers
    first = "llm.model.layers.0"
    assert shapes["llm.model.embed_tokens.weight"] == (llm.vocab_size, llm.hidden_size)
    assert ("llm.lm_head.weight" in shapes) is not llm.tie_word_embeddings
    assert shapes[f"{first}.mlp.gate_proj.weight"] == (llm.intermediate_size, llm.hidden_size)
    assert shapes[f"{first}.self_attn.q_proj.weight"][0] == llm.num_attention_heads * llm.head_width
    assert shapes[f"{first}.self_attn.k_proj.weight"][0] == llm.num_key_value_heads * llm.head_width
    assert (f"{first}.self_attn.q_proj.bias" in shapes) is (llm.family == "qwen2")

    blocks = "vpm.blocks." if old else "vpm.encoder.layers."
    assert len({name[len(blocks) :].split(".")[0] for name in shapes if name.startswith(blocks)}) == vision.layers
    assert shapes[f"{blocks}0.mlp.fc1.weight"] == (vision.mlp_width, vision.width)
    table = shapes["vpm.pos_embed"][1:] if old else shapes["vpm.embeddings.position_embedding.weight"]
    assert table == (vision.table_side**2, vision.width)
    patches = "vpm.patch_embed.proj.weight" if old else "vpm.embeddings.patch_embedding.weight"
    assert shapes[patches] == (vision.width, 3, vision.patch_size, vision.patch_size)

    assert shapes["resampler.query"] == (resampler.num_queries, resampler.width)
    assert shapes["resampler.kv_proj.weight"] == (resampler.width, resampler.kv_width)
    assert ("resampler.pos_embed" in shapes) is (resampler.version == "2.0")


@releases
def test_parameters_counted_by_hand(preset, published):
    """Every matrix of the model as a product of two config fields; the sum is the published total."""
    llm, vision, resampler = preset.llm, preset.vision, preset.resampler
    d, f, kv = llm.hidden_size, llm.intermediate_size, llm.num_key_value_heads * llm.head_width
    bias = d + 2 * kv if llm.family == "qwen2" else 0
    of_llm = 2 * llm.vocab_size * d + d
    of_llm += llm.num_hidden_layers * (2 * d * d + 2 * d * kv + bias + 3 * d * f + 2 * d)

    d, f = vision.width, vision.mlp_width
    of_vision = d * (3 * vision.patch_size**2 + 1) + d * vision.table_side**2 + 2 * d
    of_vision += vision.layers * (4 * d * (d + 1) + d * (f + 1) + f * (d + 1) + 4 * d)

    d, q = resampler.width, resampler.num_queries
    of_resampler = q * d * (2 if resampler.version == "2.0" else 1) + d * resampler.kv_width
    of_resampler += 4 * d * (d + 1) + 3 * 2 * d + d * d
    assert of_llm + of_vision + of_resampler == published["parameters"]


def test_what_differs_between_the_releases():
    assert [(c.vision.position, c.vision.act) for c in (v2_0, v2_5, v2_6)] == [
        ("interpolate", "gelu"),
        ("released_2_5", "gelu_tanh"),
        ("bucket", "gelu_tanh"),
    ]
    assert [c.resampler.heads for c in (v2_0, v2_5, v2_6)] == [18, 32, 28]
    assert ResamplerConfig(num_queries=4, width=192, kv_width=64).heads == 1  # embed_dim // 128
    assert [c.llm.family for c in (v2_0, v2_5, v2_6)] == ["granite", "llama", "qwen2"]
    assert [c.vision.layers for c in (v2_0, v2_5, v2_6)] == [26, 27, 27]
    assert {c.vision.width // c.vision.heads for c in (v2_0, v2_5, v2_6)} == {72}
    assert {c.vision.eps for c in (v2_0, v2_5, v2_6)} == {c.resampler.eps for c in (v2_0, v2_5, v2_6)} == {1e-6}


def test_nano_is_small_but_fit_for_llama_cpp():
    assert nano.version == nano.resampler.version == "2.6"
    assert nano.llm.hidden_size % 256 == nano.llm.intermediate_size % 256 == 0  # K-quants pack 256 weights
    assert nano.resampler.width // nano.resampler.heads == 128
    assert (nano.vision.table_side, nano.vision.patch_size, nano.vision.position) == (70, 14, "bucket")
    assert nano.vision.mlp_width != nano.vision.width
    assert 56 <= nano.slicing.scale_resolution <= 112
    assert nano.slicing.max_slice_nums == 9


def test_multipliers_of_minicpm():
    llm = v2_0.llm
    assert llm.embedding_multiplier == 12
    assert llm.residual_multiplier == pytest.approx(1.4 / math.sqrt(40))
    assert llm.logits_divisor == 9
    assert llm.head_width == 64
    for other in (v2_5.llm, v2_6.llm, nano.llm):
        assert (other.embedding_multiplier, other.residual_multiplier, other.logits_divisor) == (1, 1, 1)


# --- to_dict, from_dict, frozen, replace ---


@presets
def test_round_trip_through_json(preset):
    copy = MiniCPMVConfig.from_dict(json.loads(json.dumps(preset.to_dict())))
    assert copy == preset
    assert MiniCPMVConfig.from_dict(preset.to_dict()) == preset


def test_round_trip_keeps_every_field():
    """A value other than the default in each field, so that a forgotten one shows."""
    config = MiniCPMVConfig(
        version="2.0",
        vision=VisionConfig(16, 3, 4, 20, patch_size=7, table_side=9, position="interpolate", act="gelu", eps=1e-4),
        resampler=ResamplerConfig(num_queries=9, width=24, kv_width=16, heads=3, version="2.0", eps=1e-3),
        llm=LLMConfig(
            "granite", 24, 40, 5, 6, 3, 77, 1e-3, 5e4, 99, True, 0.3, scale_emb=2.5, scale_depth=1.1, dim_model_base=6
        ),
        slicing=SliceConfig(scale_resolution=70, patch_size=7, max_slice_nums=4),
    )
    data = json.loads(json.dumps(config.to_dict()))
    assert MiniCPMVConfig.from_dict(data) == config
    for name in ("vision", "resampler", "llm", "slicing"):
        part = getattr(config, name)
        assert data[name] == {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        for field in dataclasses.fields(part):
            if field.default is not dataclasses.MISSING:
                assert getattr(part, field.name) != field.default, f"{name}.{field.name}"


def test_to_dict_gives_a_copy():
    config = tiny()
    config.to_dict()["vision"]["width"] = 999
    assert config.vision.width == 8


def test_from_dict_without_slicing_takes_the_default():
    data = v2_6.to_dict()
    del data["slicing"]
    assert MiniCPMVConfig.from_dict(data) == v2_6


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda d: d.update(extra=1), "unknown fields ['extra']"),
        (lambda d: d.pop("version"), "missing fields ['version']"),
        (lambda d: d.pop("llm"), "missing fields ['llm']"),
        (lambda d: d["vision"].update(depth=3), "config.vision: unknown fields ['depth']"),
        (lambda d: d["llm"].pop("vocab_size"), "vocab_size"),
        (lambda d: d["resampler"].pop("kv_width"), "kv_width"),
        (lambda d: d["vision"].update(layers=0), "VisionConfig.layers must be an integer of at least 1, got 0"),
        (lambda d: d["slicing"].update(patch_size="14"), "SliceConfig.patch_size"),
        (lambda d: d.update(vision=None), "config.vision must be a dict"),
        (lambda d: d.update(llm=[1, 2]), "config.llm must be a dict"),
        (lambda d: d.update(version=2.6), "MiniCPMVConfig.version must be one of"),
    ],
)
def test_from_dict_names_what_is_wrong(damage, words):
    data = tiny().to_dict()
    damage(data)
    with pytest.raises(ValueError) as error:
        MiniCPMVConfig.from_dict(data)
    assert words in str(error.value)


def test_configs_are_frozen():
    config = tiny()
    for part in (config, config.vision, config.resampler, config.llm, config.slicing):
        with pytest.raises(FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, 1)
    assert {config: 1}[tiny()] == 1  # equal and hashable, so a config can be a key


def test_derived_values_are_never_stale():
    llm = LLMConfig(**GRANITE)
    wide = replace(llm, hidden_size=64, num_hidden_layers=4)
    assert (llm.head_width, wide.head_width) == (4, 16)
    assert (llm.logits_divisor, wide.logits_divisor) == (2, 8)
    assert wide.residual_multiplier == pytest.approx(0.7)
    assert replace(llm, scale_emb=3).embedding_multiplier == 3


def test_heads_of_the_resampler_follow_its_width():
    small = ResamplerConfig(num_queries=4, width=256, kv_width=8)
    assert (small.heads, type(small.heads + 0)) == (2, int)
    wide = replace(small, width=1024)
    assert (wide.heads, replace(wide, width=4096).heads, replace(wide, width=64).heads) == (8, 32, 1)
    # A number that the caller chose stays, also when it equals the derived one.
    chosen = ResamplerConfig(num_queries=4, width=256, kv_width=8, heads=2)
    assert replace(chosen, width=1024).heads == replace(wide, heads=2).heads == 2
    assert chosen == small
    assert repr(wide).count("heads=8") == 1
    assert json.loads(json.dumps(wide.heads)) == 8


# --- every check ---

COUNTS = (
    [(SliceConfig, {}, name) for name in ("scale_resolution", "patch_size", "max_slice_nums")]
    + [(VisionConfig, VISION, name) for name in (*VISION, "patch_size", "table_side")]
    + [(ResamplerConfig, RESAMPLER, name) for name in (*RESAMPLER, "heads")]
    + [(LLMConfig, LLM, name) for name in (*list(LLM)[1:], "max_position_embeddings")]
)
# The one None that is allowed: ResamplerConfig.heads, "derive it".
BAD_COUNTS = [(*c, bad) for c in COUNTS for bad in (0, -1, 1.5, True, "3", None) if (c[2], bad) != ("heads", None)]
BAD_COUNTS.append((VisionConfig, VISION, "heads", None))


@pytest.mark.parametrize("kind, given, name, bad", BAD_COUNTS)
def test_counts_are_positive_integers(kind, given, name, bad):
    with pytest.raises(ValueError) as error:
        kind(**{**given, name: bad})
    assert str(error.value) == f"{kind.__name__}.{name} must be an integer of at least 1, got {bad!r}"


@pytest.mark.parametrize(
    "kind, given, name",
    [
        (VisionConfig, VISION, "position"),
        (VisionConfig, VISION, "act"),
        (ResamplerConfig, RESAMPLER, "version"),
        (LLMConfig, LLM, "family"),
        (MiniCPMVConfig, vars(tiny()), "version"),
    ],
)
def test_choices_are_named(kind, given, name):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{name} must be one of .*, got 'nonsense'"):
        kind(**{**given, name: "nonsense"})


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: SliceConfig(scale_resolution=13), "at least patch_size = 14, got 13"),
        (lambda: VisionConfig(**{**VISION, "heads": 3}), "width = 8 is not a multiple of heads = 3"),
        (lambda: ResamplerConfig(**RESAMPLER, heads=5), "width = 16 must be a multiple of heads = 5"),
        (lambda: ResamplerConfig(4, width=18, kv_width=8), "width = 18 must be a multiple of heads = 1 and of 4"),
        (lambda: ResamplerConfig(6, 16, 8, version="2.0"), "num_queries = 6 is not one"),
        (lambda: LLMConfig(**{**LLM, "hidden_size": 18}), "hidden_size 18 must divide into 4 heads"),
        (lambda: LLMConfig(**{**LLM, "num_key_value_heads": 3}), "into 3 key-value heads"),
        (lambda: LLMConfig(**{**GRANITE, "scale_depth": None}), "needs scale_emb, scale_depth and dim_model_base"),
        (lambda: LLMConfig(**LLM, scale_emb=12), "family 'llama' takes no scale_emb"),
        (
            lambda: tiny(vision=VisionConfig(**{**VISION, "width": 12})),
            "resampler.kv_width = 8 must equal vision.width = 12",
        ),
        (
            lambda: tiny(llm=LLMConfig(**{**LLM, "hidden_size": 32})),
            "resampler.width = 16 must equal llm.hidden_size = 32",
        ),
        (lambda: tiny(slicing=SliceConfig(patch_size=16)), "slicing.patch_size = 16 must equal vision.patch_size = 14"),
        (lambda: tiny(version="2.0"), "a 2.0 model cannot hold a 2.6 resampler"),
        (
            lambda: tiny(resampler=ResamplerConfig(**RESAMPLER, version="2.0")),
            "a 2.6 model cannot hold a 2.0 resampler",
        ),
    ],
)
def test_parts_that_do_not_fit(build, words):
    with pytest.raises(ValueError) as error:
        build()
    assert words in str(error.value)


def test_what_the_checks_allow():
    assert SliceConfig(scale_resolution=14).patch_size == 14
    assert ResamplerConfig(num_queries=6, width=16, kv_width=8, version="2.5").num_queries == 6
    assert tiny(version="2.5").resampler.version == "2.6"  # one and the same code
    assert LLMConfig(**{**LLM, "num_key_value_heads": 4}).num_key_value_heads == 4


@presets
@pytest.mark.parametrize("part", ["vision", "resampler", "llm", "slicing"])
def test_an_absent_field_of_our_own_config_is_named(preset, part):
    for name in preset.to_dict()[part]:
        data = preset.to_dict()
        del data[part][name]
        try:  # a field that may be null says the same when it is absent
            assert MiniCPMVConfig.from_dict(data) == preset
            assert name in ("heads", "scale_emb", "scale_depth", "dim_model_base")
        except ValueError as error:
            assert f"missing fields ['{name}']" in str(error) or "needs scale_emb" in str(error)


# --- published configs: whatever wrote the file, the same model or an error ---


def by_transformers_5(version: str) -> dict:
    """A published config as `save_pretrained` of transformers 5 writes it, through the classes of its parts."""
    published = json.loads(json.dumps(PUBLISHED[version]["config"]))
    parts = {
        "2.0": (GraniteConfig,),
        "2.5": (LlamaConfig, Idefics2VisionConfig),
        "2.6": (Qwen2Config, SiglipVisionConfig),
    }
    again = parts[version][0](**published).to_dict()
    if version != "2.0":
        again["vision_config"] = parts[version][1](**published["vision_config"]).to_dict()
        cut = PreTrainedConfig(**published["slice_config"], scale_resolution=448)
        again["slice_config"] = cut.to_dict()
    return json.loads(json.dumps(again))


@releases
def test_a_config_saved_again_by_transformers_5_is_the_same_model(preset, published):
    again = by_transformers_5(preset.version)
    assert "rope_parameters" in again and "rope_theta" not in again  # what this is about
    assert config_from_published(again) == config_from_published(published["config"]) == preset
    for other in (10000.0, 500000.0, 1000000.0, 12345):
        moved = again | {"rope_parameters": {"rope_theta": other, "rope_type": "default"}}
        assert config_from_published(moved) == replace(preset, llm=replace(preset.llm, rope_theta=other))


@releases
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
        {"rope_type": "default", "factor": 4.0},
        {"full_attention": {"rope_type": "default"}},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_scaled_positions_are_refused_wherever_they_stand(preset, published, name, scaling):
    for data in (published["config"], by_transformers_5(preset.version)):
        with pytest.raises(ValueError, match=f"{name}.*rope_scaling"):
            config_from_published(data | {name: scaling | {"rope_theta": preset.llm.rope_theta}})


@releases
@pytest.mark.parametrize(
    "field",
    "rope_theta num_key_value_heads hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size "
    "rms_norm_eps max_position_embeddings tie_word_embeddings query_num initializer_range patch_size max_slice_nums "
    "scale_resolution image_size".split(),
)
def test_an_absent_field_is_named_or_the_version_s_own(preset, published, field):
    data = {name: value for name, value in published["config"].items() if name != field}
    try:
        assert config_from_published(data) == preset
    except ValueError as error:
        assert f"{field!r} is missing from the config of a {preset.version} model" in str(error)
    if field == "rope_theta" and preset.version != "2.0":
        for nothing in ({}, {"rope_parameters": None}, {"rope_parameters": {"rope_type": "default"}}):
            with pytest.raises(ValueError, match="'rope_theta' is missing"):
                config_from_published(data | nothing)


@pytest.mark.parametrize(
    "field", "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size".split()
)
def test_a_vision_config_is_whole(field):
    data = json.loads(json.dumps(PUBLISHED["2.6"]["config"]))
    del data["vision_config"][field]
    with pytest.raises(ValueError, match=f"vision_config.{field}' is missing"):
        config_from_published(data)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, "rope_theta is 1000000.0 in one place"),
        ({"rope_scaling": {"rope_theta": 5.0}}, "rope_theta is 1000000.0 in one place and 5.0 in another"),
        ({"patch_size": 16}, "patch_size is 16 in one place and 14 in another"),
        ({"scale_resolution": 224, "slice_config": {"scale_resolution": 448}}, "scale_resolution is 224 in one place"),
        ({"max_slice_nums": 4}, "max_slice_nums is 4 in one place and 9 in another"),
        ({"slice_config": {"patch_size": 7}}, "patch_size is 14 in one place and 7 in another"),
        ({"head_dim": 64}, "head_dim = 64 belongs to none"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window = True belongs to none"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: layers that are not full_attention"),
        ({"attention_bias": True}, "attention_bias = True belongs to none"),
        ({"mlp_bias": True}, "mlp_bias = True belongs to none"),
        ({"scale_emb": 12}, "scale_emb = 12 belongs to none"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' belongs to none"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act = 'gelu' belongs to none"),
        ({"vision_config": {"layer_norm_eps": 1e-5}}, "vision_config.layer_norm_eps = 1e-05 belongs to none"),
        ({"vision_config": {"num_channels": 4}}, "vision_config.num_channels = 4 belongs to none"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "weights are quantized"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "download the model in bfloat16"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"slice_mode": False}, "slice_mode = False belongs to none"),
        ({"use_image_id": False}, "use_image_id = False belongs to none of these models: set it to true, and give"),
        ({**PUBLISHED["2.5"]["config"], "batch_vision_input": False}, "batch_vision_input = False belongs to none"),
    ],
)
def test_what_contradicts_or_is_not_built_is_refused(change, words):
    data = json.loads(json.dumps(PUBLISHED["2.6"]["config"]))
    for name, value in change.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) and name in data else value
    with pytest.raises(ValueError) as error:
        config_from_published(data)
    assert words in str(error.value)


# --- limits ---


@pytest.mark.parametrize(
    "build, words",
    [
        (
            lambda: SliceConfig(max_slice_nums=1001),
            "SliceConfig.max_slice_nums must be an integer of at least 1 and at",
        ),
        (lambda: replace(SliceConfig(), max_slice_nums=10**9), "SliceConfig.max_slice_nums"),
        (lambda: SliceConfig(scale_resolution=2**20), "SliceConfig.scale_resolution must be at most 128 patches"),
        (lambda: SliceConfig(patch_size=1), "SliceConfig.scale_resolution must be at most 128 patches"),
        (lambda: SliceConfig(10**9, 10**9), "SliceConfig"),
        (lambda: ResamplerConfig(10**9, 16, 8), "ResamplerConfig.num_queries"),
        (lambda: VisionConfig(**VISION, table_side=10**6), "VisionConfig.table_side"),
        (lambda: LLMConfig(**{**LLM, "num_hidden_layers": 10**9}), "LLMConfig.num_hidden_layers"),
        (lambda: LLMConfig(**LLM, rope_theta=math.nan), "LLMConfig.rope_theta must be a finite number"),
        (lambda: LLMConfig(**LLM, rms_norm_eps="1e-6"), "LLMConfig.rms_norm_eps must be a number"),
        (lambda: LLMConfig(**LLM, tie_word_embeddings=1), "LLMConfig.tie_word_embeddings must be true or false"),
        (lambda: tiny(vision=None), "MiniCPMVConfig.vision must be VisionConfig"),
    ],
)
def test_what_a_config_may_claim(build, words):
    with pytest.raises(ValueError) as error:
        build()
    assert words in str(error.value)


def test_the_limits_leave_room():
    assert SliceConfig(scale_resolution=980, max_slice_nums=1000).max_slice_nums == 1000
    assert SliceConfig(scale_resolution=128 * 14).patch_size == 14


# --- folders ---


def test_a_folder_with_a_model_and_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for read in (read_config, Processor.from_pretrained, MiniCPMV.from_pretrained):
        with pytest.raises(FileNotFoundError, match="is a LoRA adapter, no model: `load_lora`"):
            read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(nano.to_dict()))
    for read in (read_config, Processor.from_pretrained, MiniCPMV.from_pretrained):
        with pytest.raises(ValueError, match="a model and a LoRA adapter, which would be left out"):
            read(tmp_path)


def test_names_from_files_are_printable(tmp_path):
    evil = "a\x1b[2J\u202eb"
    for data in (
        nano.to_dict() | {evil: 1},
        nano.to_dict() | {"version": evil},
        {"version": evil},
        PUBLISHED["2.6"]["config"] | {"hidden_act": evil},
        PUBLISHED["2.6"]["config"] | {"rope_parameters": {evil: evil}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(data))
        with pytest.raises(ValueError) as error:
            read_config(tmp_path)
        assert str(error.value).isprintable()
    (tmp_path / "config.json").write_text(json.dumps(nano.to_dict() | {"base": evil}))
    with pytest.raises((ValueError, OSError)) as error:
        base_folder(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("path", [None, 3, b"nano", ["nano"]])
def test_a_path_is_text(path):
    with pytest.raises(TypeError, match="path must be"):
        find_folder(path)
