"""GGUF: exact sizes of the published models, files that gguf's own reader agrees with, and every refusal."""

import json
import math
import struct
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import gguf
import jinja2
import numpy as np
import pytest
import torch
from tiny import phone_config, phone_model, tiny_config, tiny_processor, with_tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from minicpmv_ref import MiniCPMV, Processor, nano, v2_0, v2_5, v2_6
from minicpmv_ref.deploy.gguf import (
    MIXTURES,
    encode,
    export,
    llm_tensors,
    plan_mixture,
    plan_vision,
    vision_tensors,
)
from minicpmv_ref.deploy.gguf_keys import PRE_TOKENIZERS, chat_template, tokenizer_keys
from minicpmv_ref.deploy.gguf_reader import read_gguf
from minicpmv_ref.deploy.kquant import FORMATS, dequantize, quantize
from minicpmv_ref.deploy.runtime import Runtime
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.processor import read_tokenizer
from minicpmv_ref.prompt import render_chat

PUBLISHED = {"v2_0": v2_0, "v2_5": v2_5, "v2_6": v2_6}


@pytest.fixture(scope="module")
def small():
    return phone_model()


# The plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "f16", "q4_k_m", "vision"),
    [
        ("v2_0", 6_015_780_864, 1_958_649_760, 0.86e9),
        ("v2_5", 16_061_054_976, 4_912_898_048, 1.015e9),
        ("v2_6", 15_226_193_920, 4_675_147_520, 0.974e9),
    ],
)
def test_sizes_of_the_published_models(name, f16, q4_k_m, vision):
    config = PUBLISHED[name]
    assert plan_mixture(config).total_bytes == q4_k_m
    assert plan_mixture(config, "F16").total_bytes == f16
    assert plan_vision(config).total_bytes == pytest.approx(vision, rel=0.006)
    assert math.prod(plan_mixture(config, "F16").shapes["token_embd.weight"]) * 2 < f16


def test_the_honest_total_of_2_5():
    """ "16 GB become 5" is the language model alone; the eye stays in 16 bits."""
    vision = plan_vision(v2_5).total_bytes
    assert round((plan_mixture(v2_5, "F16").total_bytes + vision) / 1e9, 2) == 17.08
    assert round((plan_mixture(v2_5).total_bytes + vision) / 1e9, 2) == 5.93
    assert round(plan_mixture(v2_5).bits_per_weight, 3) == 4.894
    assert round(plan_mixture(v2_6).bits_per_weight, 3) == 4.913


def better_layers(config, tensor: str) -> list[int]:
    kinds = plan_mixture(config).kinds
    return [i for i in range(config.llm.num_hidden_layers) if kinds[f"blk.{i}.{tensor}.weight"] == "Q6_K"]


@pytest.mark.parametrize("tensor", ["attn_v", "ffn_down"])
def test_layers_with_more_bits(tensor):
    assert better_layers(v2_5, tensor) == [0, 1, 2, 3, *range(6, 28, 3), 28, 29, 30, 31]
    assert better_layers(v2_6, tensor) == [0, 1, 2, *range(5, 24, 3), 24, 25, 26, 27]
    # Fewer than 8 layers: an eighth of them is none, so only every third is better, and the last.
    assert better_layers(phone_config(layers=7), tensor) == [2, 5, 6]
    assert better_layers(phone_config(layers=2), tensor) == [1]


def test_kinds_of_the_other_tensors():
    kinds = plan_mixture(v2_6).kinds
    assert kinds["output.weight"] == "Q6_K" and kinds["token_embd.weight"] == "Q4_K"
    assert plan_mixture(phone_config()).kinds["token_embd.weight"] == "Q6_K", "tied: it is the output matrix, too"
    layer = {name.removeprefix("blk.4."): kind for name, kind in kinds.items() if name.startswith("blk.4.")}
    vectors = dict.fromkeys("attn_norm.weight ffn_norm.weight attn_q.bias attn_k.bias attn_v.bias".split(), "F32")
    names = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
    assert layer == {**vectors, **{f"{name}.weight": "Q4_K" for name in names}}


def test_rows_that_do_not_fit_fall_back():
    assert Counter(plan_mixture(v2_0).kinds.values())["Q8_0"] == 20, "5760 is no multiple of 256"
    assert Counter(plan_mixture(v2_0).kinds.values())["Q5_0"] == 20
    kinds = plan_mixture(phone_config(ff=544)).kinds  # a multiple of 32
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.1.ffn_down.weight"]) == ("Q5_0", "Q8_0")
    for mixture in ("Q4_K_M", "Q8_0"):
        kinds = plan_mixture(phone_config(ff=500), mixture).kinds
        assert (kinds["blk.0.ffn_down.weight"], kinds["blk.1.ffn_down.weight"]) == ("F16", "F16")
        assert kinds["blk.0.ffn_up.weight"] == mixture.removesuffix("_M")


def test_unknown_mixture(small, tmp_path):
    with pytest.raises(ValueError, match="F32, F16, Q8_0, Q4_K_M, got 'Q2_K'"):
        plan_mixture(nano, "Q2_K")
    with pytest.raises(ValueError, match="F16 or F32, got 'Q4_K'"):
        plan_vision(nano, "Q4_K")
    with pytest.raises(ValueError, match="got 'q4'"):
        export(*small, tmp_path, "q4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [nano, v2_0, v2_5, v2_6, phone_config("granite"), phone_config("qwen2", tied=False)])
def test_every_parameter_is_in_one_of_the_files(config):
    with torch.device("meta"):
        own = {name: tuple(p.shape) for name, p in MiniCPMV(config).named_parameters()}
    sources = [*llm_tensors(config.llm).values(), *vision_tensors(config).values()]
    for key, shape, third in sources:
        assert own[key] == (shape if third is None else (3 * shape[0], *shape[1:])), key
    used = [key for key, _, third in sources if third in (None, 0)]
    assert len(used) == len(set(used))
    assert set(own) - set(used) == ({"resampler.pos_embed"} if config.version == "2.0" else set())
    assert sorted(third for _, _, third in sources if third is not None) == [0, 0, 1, 1, 2, 2]


# The files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MIXTURES)
def exported(request, small, tmp_path_factory):
    return request.param, export(*small, tmp_path_factory.mktemp("gguf"), request.param)


def test_names_and_sizes(small, exported):
    mixture, (llm, mmproj) = exported
    assert llm.name == f"model-{mixture}.gguf"
    assert mmproj.name == ("mmproj-F32.gguf" if mixture == "F32" else "mmproj-F16.gguf")
    assert sorted(path.name for path in llm.parent.iterdir()) == sorted([llm.name, mmproj.name])
    config = small[0].config
    for path, plan in ((llm, plan_mixture(config, mixture)), (mmproj, plan_vision(config, mmproj.stem[-3:]))):
        assert 0 < path.stat().st_size - plan.total_bytes < 30_000, "the rest is keys, most of it the tokenizer"
        held = sum(tensor.data.nbytes + -tensor.data.nbytes % 32 for tensor in read_gguf(path).tensors.values())
        assert held == plan.total_bytes


def test_the_reader_agrees_with_that_of_gguf(exported):
    for path in exported[1]:
        ours, theirs = read_gguf(path), gguf.GGUFReader(path)
        fields = {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
        assert list(ours.keys) == list(fields)
        for name, value in ours.keys.items():
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == fields[name], name
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            stored = ours.tensors[tensor.name]
            assert stored.kind == tensor.tensor_type.name
            assert stored.shape == tuple(tensor.shape.tolist()[::-1])
            assert stored.data.tobytes() == tensor.data.tobytes()
            with np.errstate(all="ignore"):
                weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert (stored.numpy() == weights.reshape(stored.shape)).all()


def test_tensors_hold_the_weights(small, exported):
    llm, mmproj = exported[1]
    model = small[0]
    state, cfg = model.state_dict(), model.config.llm
    for name, stored in read_gguf(llm).tensors.items():
        want = state[llm_tensors(cfg)[name].key].float().numpy()
        if "attn_q" in name or "attn_k" in name:
            want = want[interleaved(len(want), cfg.head_width)]
        if stored.kind in FORMATS:
            assert (stored.data == quantize(want, stored.kind).ravel()).all(), name
        else:
            assert (stored.numpy() == want.astype(np.float16 if stored.kind == "F16" else np.float32)).all(), name
    tensors = read_gguf(mmproj).tensors
    proj = state["resampler.proj"].T.numpy()
    assert np.allclose(tensors["resampler.proj.weight"].numpy(), proj, rtol=1e-3, atol=1e-6)
    fused = state["resampler.attn.in_proj_weight"].chunk(3)
    assert np.allclose(tensors["resampler.attn.k.weight"].numpy(), fused[1].numpy(), rtol=1e-3, atol=1e-6)
    assert (tensors["resampler.query"].numpy() == state["resampler.query"].numpy()).all()
    assert tensors["v.patch_embd.weight"].shape == (32, 3, 14, 14)
    assert not tensors["resampler.pos_embed_k"].numpy().any()


def interleaved(rows: int, head: int) -> list[int]:
    """Row 2 i + j of a head is what was row i + j * head / 2."""
    return [h * head + i + j * head // 2 for h in range(rows // head) for i in range(head // 2) for j in (0, 1)]


def test_visual_tokens_are_divided_where_the_llm_multiplies_them(tmp_path):
    model, processor = phone_model("granite", tied=False)
    llm, mmproj = export(model, processor, tmp_path, "F32")
    proj = read_gguf(mmproj).tensors["resampler.proj.weight"].numpy()
    assert np.allclose(proj * 12, model.resampler.proj.detach().numpy().T, rtol=1e-6)
    keys = read_gguf(llm).keys
    assert keys["general.architecture"] == "minicpm"
    scales = [keys[f"minicpm.{name}_scale"] for name in ("embedding", "residual", "logit")]
    assert scales == pytest.approx([12, 1.4 / math.sqrt(2), 2])


def test_qwen2_keeps_its_rows_and_has_biases(tmp_path):
    model, processor = phone_model("qwen2", tied=False)
    tensors = read_gguf(export(model, processor, tmp_path, "F32")[0]).tensors
    layer = model.llm.model.layers[1].self_attn
    assert (tensors["blk.1.attn_q.weight"].numpy() == layer.q_proj.weight.detach().numpy()).all()
    assert (tensors["blk.1.attn_k.bias"].numpy() == layer.k_proj.bias.detach().numpy()).all()
    assert list(tensors)[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]


def test_keys(small, exported):
    """All but the tokenizer's, under the names that gguf has; the others are those of llama.cpp's clip-impl.h."""
    mixture, paths = exported
    config, names = small[0].config, gguf.Keys
    text, eye = config.llm, config.vision
    common = {names.General.NAME: "MiniCPM-V 2.6", names.General.TYPE: "model", names.General.ARCHITECTURE: "llama"}
    language = {
        names.General.FILE_TYPE: {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15}[mixture],
        names.LLM.CONTEXT_LENGTH: text.max_position_embeddings,
        names.LLM.EMBEDDING_LENGTH: text.hidden_size,
        names.LLM.BLOCK_COUNT: text.num_hidden_layers,
        names.LLM.FEED_FORWARD_LENGTH: text.intermediate_size,
        names.LLM.VOCAB_SIZE: 1030,
        names.Attention.HEAD_COUNT: 4,
        names.Attention.HEAD_COUNT_KV: 2,
        names.Attention.LAYERNORM_RMS_EPS: text.rms_norm_eps,
        names.Rope.FREQ_BASE: text.rope_theta,
        names.Rope.DIMENSION_COUNT: text.hidden_size // 4,
    }
    language |= {names.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION} if mixture.startswith("Q") else {}
    vision = {
        names.General.TYPE: "mmproj",
        names.General.ARCHITECTURE: "clip",
        names.General.FILE_TYPE: int(mixture != "F32"),
        names.Clip.HAS_VISION_ENCODER: True,
        names.Clip.PROJECTOR_TYPE: "resampler",
        names.ClipVision.IMAGE_SIZE: config.slicing.scale_resolution,
        names.ClipVision.PATCH_SIZE: 14,
        names.ClipVision.EMBEDDING_LENGTH: eye.width,
        names.ClipVision.FEED_FORWARD_LENGTH: eye.mlp_width,
        names.ClipVision.BLOCK_COUNT: eye.layers,
        names.ClipVision.PROJECTION_DIM: 0,
        names.ClipVision.Attention.HEAD_COUNT: eye.heads,
        names.ClipVision.Attention.LAYERNORM_EPS: eye.eps,
        names.ClipVision.IMAGE_MEAN: (0.5, 0.5, 0.5),
        names.ClipVision.IMAGE_STD: (0.5, 0.5, 0.5),
        names.ClipVision.USE_GELU: True,
        **{"clip.has_text_encoder": False, "clip.has_minicpmv_projector": True},
        **{"clip.minicpmv_version": 3, "clip.minicpmv_query_num": config.resampler.num_queries},
    }
    for path, wanted in zip(paths, (language, vision)):
        keys = {name: value for name, value in read_gguf(path).keys.items() if not name.startswith("tokenizer.")}
        keys = {name: tuple(value) if isinstance(value, np.ndarray) else value for name, value in keys.items()}
        wanted = {name.format(arch="llama"): value for name, value in (common | wanted).items()}
        assert keys == {name: np.float32(v) if isinstance(v, float) else v for name, v in wanted.items()}


def test_a_16_bit_model_is_quantized_from_its_exact_values(tmp_path):
    model, processor = phone_model()
    half = model.to(torch.bfloat16)
    first = export(half, processor, tmp_path / "bfloat16")
    second = export(half.float(), processor, tmp_path / "float32")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_progress(small, tmp_path):
    steps = []
    export(*small, tmp_path, progress=lambda *step: steps.append(step))
    config = small[0].config
    names = [*plan_mixture(config).kinds, *plan_vision(config).kinds]
    assert [name for name, _, _ in steps] == names
    total = plan_mixture(config).total_bytes + plan_vision(config).total_bytes
    assert {whole for _, _, whole in steps} == {total} and steps[-1][1] == total
    assert all(a[1] < b[1] for a, b in pairwise(steps))


@pytest.mark.parametrize("mixture", ["F32", "Q4_K_M"])
def test_memory_is_that_of_one_tensor(mixture, tmp_path):
    model, processor = phone_model(ff=2048, layers=6)
    export(model, processor, tmp_path / "warm-up", mixture)
    tracemalloc.start()
    llm, _ = export(model, processor, tmp_path / "measured", mixture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert llm.stat().st_size > 4e6
    assert peak < (5e6 if mixture == "F32" else 12e6)  # quantizing works on half a megabyte, in some twenty arrays


# Old files, and failures in the middle -------------------------------------------------------------------------------


def test_files_are_kept_unless_forced(small, tmp_path):
    llm, mmproj = export(*small, tmp_path)
    before = llm.read_bytes()
    llm.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="model-Q4_K_M"):
        export(*small, tmp_path)
    assert llm.read_bytes() == b"precious"
    with pytest.raises(FileExistsError, match="mmproj-F16"):
        export(*small, tmp_path, "Q8_0")  # the mmproj would be replaced
    assert export(*small, str(tmp_path), force=True) == (llm, mmproj)
    assert llm.read_bytes() == before


@pytest.mark.parametrize(
    ("parameter", "value", "mixture", "words"),
    [
        (
            "llm.model.layers.1.mlp.up_proj.weight",
            float("nan"),
            "Q4_K_M",
            "blk.1.ffn_up.weight has a weight that is not",
        ),
        ("resampler.ln_post.bias", float("inf"), "Q4_K_M", "resampler.ln_post.bias has a weight that is not"),
        ("vpm.embeddings.patch_embedding.weight", -70000.0, "Q4_K_M", "weight -70000.0: float16 ends at 65504"),
        ("llm.model.embed_tokens.weight", 70000.0, "F16", "token_embd.weight has the weight 70000.0"),
    ],
)
def test_a_bad_weight_is_named_and_nothing_is_left(parameter, value, mixture, words, tmp_path):
    model, processor = phone_model()
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"old")
    with torch.no_grad():
        dict(model.named_parameters())[parameter].view(-1)[-1] = value
    with pytest.raises(ValueError, match=words):
        export(model, processor, tmp_path, mixture, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model-Q4_K_M.gguf"]
    assert (tmp_path / "model-Q4_K_M.gguf").read_bytes() == b"old"


MATRIX = "llm.model.layers.1.self_attn.o_proj.weight"  # in GGUF blk.1.attn_output.weight


@pytest.mark.parametrize(
    ("mixture", "parameter", "name", "value"),
    [
        ("Q4_K_M", MATRIX, "blk.1.attn_output.weight", 1e9),
        ("Q4_K_M", "llm.model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight", -3e38),
        ("Q4_K_M", "llm.lm_head.weight", "output.weight", 1e20),
        ("Q8_0", MATRIX, "blk.1.attn_output.weight", 1e7),
        ("Q8_0", "llm.model.embed_tokens.weight", "token_embd.weight", -1e30),
        ("F16", MATRIX, "blk.1.attn_output.weight", -65536.0),
    ],
)
def test_a_weight_that_would_be_read_back_as_infinity_is_refused(mixture, parameter, name, value, tmp_path):
    model, processor = phone_model()
    if parameter not in dict(model.named_parameters()):
        parameter, name = "llm.model.embed_tokens.weight", "token_embd.weight"
    with torch.no_grad():
        dict(model.named_parameters())[parameter].view(-1)[-1] = value
    with pytest.raises(ValueError, match=rf"{name}.* float16"):
        export(model, processor, tmp_path, mixture)
    assert not list(tmp_path.iterdir())
    if mixture != "F16":
        with pytest.raises(ValueError, match=rf"{name}.* float16"):
            Runtime(model, mixture)


@pytest.mark.parametrize(("mixture", "size"), [("Q4_K_M", 2e-5), ("Q4_K_M", 1e-9), ("Q8_0", 1e-6), ("F16", 1e-8)])
def test_a_matrix_too_small_for_its_kind_is_refused_but_zeros_are_not(mixture, size, tmp_path):
    model, processor = phone_model()
    weight = dict(model.named_parameters())[MATRIX]
    with torch.no_grad():
        weight.mul_(size / weight.abs().max())
    with pytest.raises(ValueError, match=r"blk.1.attn_output.weight has no weight above .*: too small for"):
        export(model, processor, tmp_path, mixture)
    with torch.no_grad():
        weight.zero_()
    export(model, processor, tmp_path, mixture)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_matrices_of_usual_sizes_are_near_when_read_back(mixture, size):
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * size
    for kind in {"F32": ["F32"], "F16": ["F16"], "Q8_0": ["Q8_0"], "Q4_K_M": ["Q4_K", "Q6_K", "Q5_0"]}[mixture]:
        stored = encode("a.weight", weight, kind)
        back = dequantize(stored, kind, 512) if kind in FORMATS else stored
        assert np.abs(back - weight.numpy()).max() < 0.25 * size


@pytest.mark.parametrize("part", ["language model", "vision"])
def test_a_model_with_adapters_is_told_to_merge(part, tmp_path):
    model, processor = phone_model()
    target = "q_proj" if part == "language model" else "fc1"
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=[target]), model)
    with pytest.raises(ValueError, match=rf"the model has no tensor .*{target}.weight: .*merge_lora first"):
        export(model, processor, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    if part == "language model":
        with pytest.raises(ValueError, match="merge_lora first"):
            Runtime(model)


def test_arguments_of_other_types_are_named(small, tmp_path):
    model, processor = small
    for arguments, words in (
        ((None, processor, tmp_path), "model must be MiniCPMV"),
        ((model, None, tmp_path), "processor must be Processor"),
        ((model, processor, 3), "folder must be"),
        ((Runtime(model), processor, tmp_path), "the model has no tensor llm"),
    ):
        with pytest.raises(ValueError, match=words):
            export(*arguments)
    for function in (plan_mixture, plan_vision):
        with pytest.raises(TypeError, match="config must be MiniCPMVConfig, got dict"):
            function({})
    with pytest.raises(ValueError, match="mixture must be one of"):
        plan_mixture(model.config, ["Q4_K_M"])
    for mixture in (0, [], ""):
        with pytest.raises(ValueError, match="mixture must be one of"):
            Runtime(model, mixture)
    with pytest.raises(TypeError, match="a Runtime already"):
        Runtime(Runtime(model))
    with pytest.raises(TypeError, match="model must be a MiniCPMV or a folder"):
        Runtime(3)


def test_a_full_disk_leaves_the_old_files(small, tmp_path, monkeypatch):
    paths = export(*small, tmp_path)
    before = [path.read_bytes() for path in paths]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_padding", full)
    with pytest.raises(OSError, match="No space"):
        export(*small, tmp_path, force=True)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.read_bytes() for path in paths] == before


def test_a_folder_that_is_a_file(small, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OSError):
        export(*small, tmp_path / "taken")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(vision=dict(act="gelu")), "vision.act is gelu"),
        (dict(vision=dict(position="interpolate")), "vision.position is interpolate"),
        (dict(vision=dict(table_side=27)), "vision.table_side is 27"),
        (dict(vision=dict(mlp_width=32)), "vision.mlp_width equals vision.width"),
        (dict(vision=dict(eps=1e-5)), "vision.eps 1e-05 and resampler.eps 1e-06"),
        (dict(resampler=dict(heads=4)), "resampler heads are 64 wide"),
        (dict(slicing=dict(scale_resolution=60)), "scale_resolution 60 is not whole patches of 14 pixels"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(change, words, tmp_path):
    config = phone_config()
    config = replace(config, **{part: replace(getattr(config, part), **values) for part, values in change.items()})
    model = MiniCPMV.seeded(config)
    with pytest.raises(ValueError, match=f"llama.cpp cannot run this model: {words}"):
        export(model, Processor(read_tokenizer(BUNDLED / "nano"), config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_2_0_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match=r"version is 2\.0"):
        export(models["2.0"], tiny_processor("2.0"), tmp_path)


# The tokenizer -------------------------------------------------------------------------------------------------------


def test_tokens_types_and_merges(small, exported):
    keys = read_gguf(exported[1][0]).keys
    tokenizer = small[1].tokenizer
    data = json.loads((BUNDLED / "nano" / "tokenizer.json").read_text("utf-8"))
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert tokens[:1024] == tokenizer.convert_ids_to_tokens(range(1024))
    assert tokens[1024:] == [f"[PAD{i}]" for i in range(1024, 1030)]
    normal, control, unused = 1, 3, 5  # llama.cpp's numbers
    special = {added["id"] for added in data["added_tokens"]}
    assert kinds.tolist() == [control if i in special else normal for i in range(1024)] + [unused] * 6
    assert keys["tokenizer.ggml.merges"] == [" ".join(pair) for pair in data["model"]["merges"]]
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    ids = {name: keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")}
    assert ids == {"bos": 1, "eos": 2, "unknown": 3, "padding": 0}
    assert keys["tokenizer.ggml.add_bos_token"] is False


def test_the_names_of_the_cuts():
    names = {PRETOKENIZE_REGEX: "qwen2", TikTokenConverter(None).pattern: "llama-bpe"}
    assert names == PRE_TOKENIZERS


def cut(data):
    return data["pre_tokenizer"]["pretokenizers"][0]["pattern"]


def test_llama_3_is_known_by_its_cut(tmp_path):
    model, _ = phone_model(version="2.5")

    def as_llama_3(data):
        cut(data).update(Regex=TikTokenConverter(None).pattern)
        data["model"].update(ignore_merges=True)
        data.update(normalizer=None)

    processor = with_tokenizer(as_llama_3, model.config)
    llm, mmproj = (read_gguf(path).keys for path in export(model, processor, tmp_path))
    assert llm["tokenizer.ggml.pre"] == "llama-bpe"
    assert "tokenizer.ggml.bos_token_id" not in llm, "this tokenizer has none"
    assert "<|start_header_id|>" in llm["tokenizer.chat_template"]
    assert mmproj["clip.minicpmv_version"] == 2


def test_a_word_added_by_a_user_is_not_a_marker(small, tmp_path):
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    processor = with_tokenizer(lambda data: data["added_tokens"].append({"id": 1024, "content": "MiniCPM", **plain}))
    processor.tokenizer.bos_token = "<|endoftext|>"
    keys = read_gguf(export(small[0], processor, tmp_path)[0]).keys
    assert keys["tokenizer.ggml.tokens"][1024] == "MiniCPM"
    assert keys["tokenizer.ggml.token_type"][1024] == gguf.TokenType.USER_DEFINED
    assert keys["tokenizer.ggml.bos_token_id"] == 0, "its own, where it has one"


def test_other_tokenizers_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match=r"byte-level BPE.* the cut '\\\\w\+'"):
        export(small[0], with_tokenizer(lambda data: cut(data).update(Regex=r"\w+")), tmp_path)
    with pytest.raises(ValueError, match=r"byte-level BPE.* got WordLevel"):
        plain = dict(type="WordLevel", vocab=small[1].tokenizer.get_vocab(), unk_token="<unk>")
        export(small[0], with_tokenizer(lambda data: data.update(model=plain)), tmp_path)
    with pytest.raises(ValueError, match=r"byte-level BPE.* the cut None"):
        export(small[0], with_tokenizer(lambda data: data.update(pre_tokenizer=None)), tmp_path)


def spelled(data):
    return data["pre_tokenizer"]["pretokenizers"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["model"].update(ignore_merges=True), "model.ignore_merges is True"),
        (lambda data: cut(data).update(Regex=TikTokenConverter(None).pattern), "model.ignore_merges is False"),
        (lambda data: spelled(data)[1].update(add_prefix_space=True), "its pre_tokenizer does more"),
        (lambda data: spelled(data)[1].update(use_regex=True), "its pre_tokenizer does more"),
        (lambda data: spelled(data)[0].update(behavior="Removed"), "its pre_tokenizer does more"),
        (lambda data: spelled(data)[0].update(invert=True), "its pre_tokenizer does more"),
        (lambda data: spelled(data).append(dict(type="Digits", individual_digits=True)), "its pre_tokenizer does more"),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "its normalizer is not NFC"),
        (lambda data: data["added_tokens"][8].update(rstrip=True), "rstrip of its added token"),
        (lambda data: data["added_tokens"][8].update(lstrip=True), "lstrip of its added token"),
        (lambda data: data["added_tokens"][8].update(single_word=True), "single_word of its added token"),
    ],
)
def test_text_that_llama_cpp_would_read_otherwise_is_refused(small, change, words):
    """llama.cpp 0.5.0 reads words that no merges reach, spaces, marks or parts of words otherwise than such a one."""
    with pytest.raises(ValueError, match=f"llama.cpp would read text otherwise than this tokenizer: {words}"):
        tokenizer_keys(with_tokenizer(change).tokenizer, small[0].config)


def test_a_head_that_is_tied_no_more_is_not_left_out(tmp_path):
    """AdamW moves both where `load_state_dict(..., assign=True)` has put two tensors in the place of one."""
    model, processor = phone_model()
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    Runtime(model)  # two equal ones are one
    model.llm.lm_head.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="lm_head is tied to the embeddings by the config, but differs"):
        model.save_pretrained(tmp_path)
    for use in (lambda: export(model, processor, tmp_path), lambda: Runtime(model)):
        with pytest.raises(ValueError, match=r"a tensor that its config does not, llm\.lm_head\.weight, which"):
            use()


def test_a_tokenizer_larger_than_the_model(tmp_path):
    config = phone_config()
    processor = Processor(read_tokenizer(BUNDLED / "nano"), config)
    config = replace(config, llm=replace(config.llm, vocab_size=1000))
    with pytest.raises(ValueError, match="ids up to 1023, but the model's vocab_size is 1000"):
        export(MiniCPMV.seeded(config), processor, tmp_path)


@pytest.mark.parametrize("version", ["2.5", "2.6"])
@pytest.mark.parametrize("roles", [["user"], ["user", "assistant", "user"], ["system", "user"], ["user", "assistant"]])
def test_chat_templates_say_what_we_say(version, roles):
    messages = [{"role": role, "content": f" Say {number}\n"} for number, role in enumerate(roles)]
    template = jinja2.Environment().from_string(chat_template(version))
    text = template.render(messages=messages, add_generation_prompt=roles[-1] != "assistant")
    assert text == render_chat(messages, version, bos="<|begin_of_text|>")[0]


# The reader ----------------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def number(value: int) -> bytes:
    """The type and value of a uint32."""
    return struct.pack("<II", 4, value)


def file(tmp_path, keys=(), tensors=(), data=b"", magic=b"GGUF", version=3, counts=None):
    """A GGUF file by hand. keys: (name, type and value as bytes); tensors: (name, shape, kind, offset)."""
    raw = magic + struct.pack("<I", version) + struct.pack("<QQ", *(counts or (len(tensors), len(keys))))
    raw += b"".join(text(name) + value for name, value in keys)
    for name, shape, kind, offset in tensors:
        raw += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    raw += b"\0" * (-len(raw) % 32) + data
    path = tmp_path / "by hand.gguf"
    path.write_bytes(raw)
    return path


def test_a_file_by_hand(tmp_path):
    """Every type of value, and a tensor that ends with the file, without padding."""
    values = {
        "u8": ("<IB", 0, 200),
        "i8": ("<Ib", 1, -100),
        "u16": ("<IH", 2, 60000),
        "i16": ("<Ih", 3, -30000),
        "u32": ("<II", 4, 2**32 - 1),
        "i32": ("<Ii", 5, -(2**31)),
        "f32": ("<If", 6, 0.5),
        "bool": ("<I?", 7, True),
        "u64": ("<IQ", 10, 2**64 - 1),
        "i64": ("<Iq", 11, -(2**63)),
        "f64": ("<Id", 12, 0.1),
    }
    keys = [(name, struct.pack(*value)) for name, value in values.items()]
    arrays = {name: (code, [value, value]) for name, (code, _, value) in values.items()}
    for name, (code, pair) in arrays.items():
        kind = values[name][1]
        keys.append((f"{name}s", struct.pack("<IIQ", 9, kind, 2) + struct.pack("<" + 2 * code[2:], *pair)))
    keys.append(("text", struct.pack("<I", 8) + text("Où ça ? 图")))
    keys.append(("texts", struct.pack("<IIQ", 9, 8, 2) + text("") + text("ab")))
    weights = np.arange(6, dtype="<f4")
    read = read_gguf(file(tmp_path, keys, [("w", (3, 2), 0, 0)], weights.tobytes()))
    for name, (_, _, value) in values.items():
        assert read.keys[name] == value
        assert read.keys[f"{name}s"].tolist() == [value, value]
    assert read.keys["text"] == "Où ça ? 图" and read.keys["texts"] == ["", "ab"]
    assert (read.tensors["w"].numpy() == weights.reshape(2, 3)).all()
    with pytest.raises(ValueError, match="read-only"):
        read.tensors["w"].data[0] = 1


def test_another_alignment(tmp_path):
    keys = [("general.alignment", number(8))]
    path = file(tmp_path, keys, [("a", (1,), 0, 0), ("b", (1,), 0, 8)], struct.pack("<f4xf4x", 1, 2))
    tensors = read_gguf(path).tensors
    assert (tensors["a"].numpy().item(), tensors["b"].numpy().item()) == (1, 2)


def test_a_kind_that_is_known_but_not_decoded(tmp_path):
    stored = read_gguf(file(tmp_path, (), [("w", (32,), 2, 0)], b"\0" * 18)).tensors["w"]
    assert stored.kind == "Q4_0" and len(stored.data) == 18
    with pytest.raises(ValueError, match="Q4_0 cannot be decoded"):
        stored.numpy()


ONE = b"\0" * 32
BAD = {
    "empty file": (None, "empty"),
    "magic": (dict(magic=b"FUGG"), "does not begin with 'GGUF'"),
    "version": (dict(version=1), "version is 1"),
    "big endian": (dict(version=3 << 24), "version is 50331648"),
    "no keys": (dict(counts=(0, 2**63)), "a name of 0 bytes"),
    "no tensors": (dict(counts=(2**63, 0)), "a name of 0 bytes"),
    "long key": (dict(keys=[("x" * 257, number(1))]), "a name of 257 bytes at byte 24"),
    "one key more": (dict(keys=[("k", number(1))], counts=(0, 2)), "a name of 0 bytes"),
    "endless key": (dict(keys=[("k", number(1))], counts=(0, 2), data=b"\xff" * 9), "bytes at byte"),
    "endless text": (dict(keys=[("k", struct.pack("<IQ", 8, 2**60))]), "1152921504606846976 bytes announced"),
    "endless array": (dict(keys=[("k", struct.pack("<IIQ", 9, 12, 2**61))]), "bytes announced"),
    "endless texts": (dict(keys=[("k", struct.pack("<IIQ", 9, 8, 2**61))]), "bytes announced"),
    "array of arrays": (dict(keys=[("k", struct.pack("<IIQ", 9, 9, 1))]), "type of value 9"),
    "unknown type": (dict(keys=[("k", struct.pack("<I", 13))]), "type of value 13"),
    "key twice": (dict(keys=[("k", number(1)), ("k", number(1))]), "the key 'k' comes twice"),
    "not UTF-8": (dict(keys=[(b"\xff", number(1))]), "utf-8"),
    "alignment 0": (dict(keys=[("general.alignment", number(0))]), "power of two, got 0"),
    "alignment 24": (dict(keys=[("general.alignment", number(24))]), "power of two, got 24"),
    "alignment text": (dict(keys=[("general.alignment", struct.pack("<I", 8) + text("8"))]), "power of two, got '8'"),
    "alignment bool": (dict(keys=[("general.alignment", struct.pack("<I?", 7, True))]), "power of two, got True"),
    "no axes": (dict(tensors=[("w", (), 0, 0)]), "'w' has 0 axes"),
    "five axes": (dict(tensors=[("w", (1,) * 5, 0, 0)]), "'w' has 5 axes"),
    "long name": (dict(tensors=[("x" * 65, (1,), 0, 0)]), "a name of 65 bytes"),
    "axis of 0": (dict(tensors=[("w", (4, 0), 0, 0)]), "cannot have the shape (0, 4)"),
    "kind": (dict(tensors=[("w", (4,), 4, 0)]), "kind 4, which ggml does not know"),
    "block": (dict(tensors=[("w", (128,), 12, 0)]), "Q4_K cannot have the shape (128,)"),
    "too large": (dict(tensors=[("w", (9,), 0, 0)], data=ONE), "36 bytes announced"),
    "overflow": (dict(tensors=[("w", (2**62, 4), 0, 0)], data=ONE), "bytes announced"),
    "offset": (dict(tensors=[("w", (1,), 0, 32)], data=2 * ONE), "'w' begins at 32, but the tensor before it"),
    "shared": (dict(tensors=[("a", (1,), 0, 0), ("b", (1,), 0, 0)], data=2 * ONE), "'b' begins at 0"),
    "unaligned": (dict(tensors=[("a", (1,), 0, 0), ("b", (1,), 0, 4)], data=2 * ONE), "'b' begins at 4"),
    "tensor twice": (dict(tensors=[("a", (1,), 0, 0), ("a", (1,), 0, 32)], data=2 * ONE), "tensor 'a' comes twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case, tmp_path):
    parts, words = BAD[case]
    path = file(tmp_path, **(parts or {}))
    if parts is None:
        path.write_bytes(b"")
    with pytest.raises(ValueError) as error:
        read_gguf(path)
    assert words in str(error.value) and "by hand.gguf is not a sound GGUF file: " in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(OSError):
        read_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(OSError):
        read_gguf(tmp_path)


def test_every_cut_is_noticed(small, tmp_path):
    """Wherever a file ends too early, the reader says so."""
    path = export(*small, tmp_path)[0]
    whole = path.read_bytes()
    last = list(read_gguf(path).tensors.values())[-1].data.nbytes
    end = len(whole) - -last % 32  # of the last tensor; what follows is padding
    short = tmp_path / "short.gguf"
    for size in [*range(400), *range(400, end, 4999), end - 1]:
        short.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"short\.gguf"):
            read_gguf(short)
    short.write_bytes(whole[:end])
    assert list(read_gguf(short).tensors) == list(read_gguf(path).tensors)


def test_the_tiny_models_of_other_tests_do_not_fit_a_phone():
    """So no test here uses them by mistake."""
    with pytest.raises(ValueError, match="cannot run this model"):
        export(MiniCPMV.seeded(tiny_config("2.6")), tiny_processor("2.6"), "never")
