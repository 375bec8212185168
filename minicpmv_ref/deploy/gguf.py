"""GGUF: the model becomes two files that llama.cpp runs, the language model and its eye.

Implements what llama.cpp wants for 2.5, 2.6 and nano: the language model in one file, ViT and resampler in another
(the "mmproj"), and the mixtures F32, F16, Q8_0 and Q4_K_M, byte for byte what llama.cpp's own quantizer makes of the
F32 file. How a file is laid out stands in gguf_reader.py.
Left out: 2.0, whose vision part llama.cpp does not have; the exceptions of Q4_K_M for mixtures of experts and for
Llama 70B; tokenizers that are not byte-level BPE.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from torch import nn

from ..config import LLMConfig, MiniCPMVConfig
from ..inputs.checks import check_choice, check_type, shown
from ..inputs.files import replacing
from ..model import MiniCPMV
from ..processor import Processor
from .gguf_reader import padded, read_gguf, tensor_bytes
from .kquant import FORMATS, dequantize, quantize

__all__ = ["MIXTURES", "Plan", "export", "plan_mixture", "plan_vision", "read_gguf"]

MIXTURES = {  # name -> the number that the file gives it
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}
BITE = 1 << 20  # weights that are float32 at a time: 4 MB


# What stands in the two files ----------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Where a tensor of a file comes from."""

    key: str  # in MiniCPMV's state dict
    shape: tuple[int, ...]  # in the file, slowest axis first
    third: int | None = None  # which third of a fused tensor


def llm_tensors(cfg: LLMConfig) -> dict[str, Source]:
    """List the tensors of the language model in the order of the file: by layer (those of none first), then by name.

    Example:
        >>> from minicpmv_ref import v2_6
        >>> llm_tensors(v2_6.llm)["blk.27.ffn_down.weight"]
        Source(key='llm.model.layers.27.mlp.down_proj.weight', shape=(3584, 18944), third=None)

    Source: gguf-py, tensor_mapping.py; the order is that of llama.cpp's weights_map.
    """
    d, f, v = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    kv = cfg.num_key_value_heads * cfg.head_width
    whole = {
        "token_embd.weight": Source("llm.model.embed_tokens.weight", (v, d)),
        "output_norm.weight": Source("llm.model.norm.weight", (d,)),
    }
    if not cfg.tie_word_embeddings:
        whole["output.weight"] = Source("llm.lm_head.weight", (v, d))
    layer = {
        "attn_norm.weight": ("input_layernorm.weight", (d,)),
        "attn_q.weight": ("self_attn.q_proj.weight", (d, d)),
        "attn_k.weight": ("self_attn.k_proj.weight", (kv, d)),
        "attn_v.weight": ("self_attn.v_proj.weight", (kv, d)),
        "attn_output.weight": ("self_attn.o_proj.weight", (d, d)),
        "ffn_norm.weight": ("post_attention_layernorm.weight", (d,)),
        "ffn_gate.weight": ("mlp.gate_proj.weight", (f, d)),
        "ffn_up.weight": ("mlp.up_proj.weight", (f, d)),
        "ffn_down.weight": ("mlp.down_proj.weight", (d, f)),
    }
    if cfg.family == "qwen2":
        layer |= {f"attn_{p}.bias": (f"self_attn.{p}_proj.bias", (d if p == "q" else kv,)) for p in "qkv"}
    tensors = dict(sorted(whole.items()))
    for i in range(cfg.num_hidden_layers):
        for name, (key, shape) in sorted(layer.items()):
            tensors[f"blk.{i}.{name}"] = Source(f"llm.model.layers.{i}.{key}", shape)
    return tensors


def vision_tensors(config: MiniCPMVConfig) -> dict[str, Source]:
    """List the tensors of ViT and resampler.

    `resampler.pos_embed_k` is not among them: llama.cpp computes the positions of the keys itself, as we do, and only
    insists that a tensor of that name is there. `export` writes a row of zeros.

    Example:
        >>> from minicpmv_ref import v2_6
        >>> vision_tensors(v2_6)["resampler.attn.k.weight"]
        Source(key='resampler.attn.in_proj_weight', shape=(3584, 3584), third=1)

    Source: llama.cpp, tools/mtmd/clip.cpp, and the conversion scripts of MiniCPM-V beside it.
    """
    vision, d, q = config.vision, config.resampler.width, config.resampler.num_queries
    e, f, p = vision.width, vision.mlp_width, vision.patch_size
    tensors = {
        "v.patch_embd.weight": Source("vpm.embeddings.patch_embedding.weight", (e, 3, p, p)),
        "v.patch_embd.bias": Source("vpm.embeddings.patch_embedding.bias", (e,)),
        "v.position_embd.weight": Source("vpm.embeddings.position_embedding.weight", (vision.table_side**2, e)),
        "v.post_ln.weight": Source("vpm.post_layernorm.weight", (e,)),
        "v.post_ln.bias": Source("vpm.post_layernorm.bias", (e,)),
    }
    names = {
        "ln1": ("layer_norm1", ()),
        "attn_q": ("self_attn.q_proj", (e,)),
        "attn_k": ("self_attn.k_proj", (e,)),
        "attn_v": ("self_attn.v_proj", (e,)),
        "attn_out": ("self_attn.out_proj", (e,)),
        "ln2": ("layer_norm2", ()),
        "ffn_up": ("mlp.fc1", (e,)),
        "ffn_down": ("mlp.fc2", (f,)),
    }
    for i in range(vision.layers):
        for name, (key, inputs) in names.items():
            outputs = f if name == "ffn_up" else e
            tensors[f"v.blk.{i}.{name}.weight"] = Source(f"vpm.encoder.layers.{i}.{key}.weight", (outputs, *inputs))
            tensors[f"v.blk.{i}.{name}.bias"] = Source(f"vpm.encoder.layers.{i}.{key}.bias", (outputs,))
    tensors |= {
        "resampler.query": Source("resampler.query", (q, d)),
        "resampler.kv.weight": Source("resampler.kv_proj.weight", (d, e)),
        "resampler.proj.weight": Source("resampler.proj", (d, d)),
        "resampler.attn.out.weight": Source("resampler.attn.out_proj.weight", (d, d)),
        "resampler.attn.out.bias": Source("resampler.attn.out_proj.bias", (d,)),
    }
    for third, name in enumerate("qkv"):
        tensors[f"resampler.attn.{name}.weight"] = Source("resampler.attn.in_proj_weight", (d, d), third)
        tensors[f"resampler.attn.{name}.bias"] = Source("resampler.attn.in_proj_bias", (d,), third)
    for name in ("q", "kv", "post"):
        for kind in ("weight", "bias"):
            tensors[f"resampler.ln_{name}.{kind}"] = Source(f"resampler.ln_{name}.{kind}", (d,))
    return tensors


# The mixture ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What each tensor of a file is stored as."""

    kinds: dict[str, str]  # tensor -> "F32", "F16", "Q4_K", ...
    shapes: dict[str, tuple[int, ...]]

    def bytes_of(self, name: str) -> int:
        return tensor_bytes(self.kinds[name], self.shapes[name])

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, each padded to a multiple of 32; header and tokenizer come on top."""
        return sum(padded(self.bytes_of(name)) for name in self.kinds)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.total_bytes / sum(math.prod(shape) for shape in self.shapes.values())


def plan_mixture(config: MiniCPMVConfig, mixture: str = "Q4_K_M") -> Plan:
    """Decide what every tensor of the language model is stored as. Needs no weights.

    Q4_K_M stores most matrices as Q4_K, 4.5 bits per weight. More bits, Q6_K, go where errors hurt most: to the output
    matrix, and to the values and the last matrix of the MLP in half of the layers: the first and last eighth, and
    every third between them. Rows that are no multiple of 256 fall back to formats with blocks of 32.

    Args:
        config: a MiniCPMVConfig.
        mixture: "F32", "F16", "Q8_0" or "Q4_K_M". Vectors (norms and biases) are F32 in all of them.

    Returns:
        A Plan: `.kinds` (tensor -> kind), `.shapes`, `.total_bytes`, `.bits_per_weight`.

    Raises:
        TypeError: no MiniCPMVConfig.
        ValueError: an unknown mixture.

    Example:
        >>> from minicpmv_ref import v2_5
        >>> plan = plan_mixture(v2_5)
        >>> plan.kinds["blk.4.attn_v.weight"], plan.kinds["blk.6.attn_v.weight"], plan.total_bytes
        ('Q4_K', 'Q6_K', 4912898048)

    Source: llama.cpp, llama-quant.cpp, llama_tensor_get_type.
    """
    check_type("config", config, MiniCPMVConfig)
    check_choice("mixture", mixture, MIXTURES)
    shapes = {name: source.shape for name, source in llm_tensors(config.llm).items()}
    kinds = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            kinds[name] = "F32"
        elif mixture == "Q4_K_M":
            kinds[name] = _fall_back(_q4_k_m(name, config.llm), shape[-1])
        else:
            kinds[name] = _fall_back(mixture, shape[-1])
    return Plan(kinds, shapes)


def plan_vision(config: MiniCPMVConfig, kind: str = "F16") -> Plan:
    """As `plan_mixture`, for ViT and resampler. They stay in 16 bits: the eye is small, and errors add up in it.

    Args:
        config: a MiniCPMVConfig.
        kind: "F16" or "F32" of the matrices; vectors and the queries are F32.

    Raises:
        TypeError: no MiniCPMVConfig.
        ValueError: another kind.

    Example:
        >>> from minicpmv_ref import v2_5
        >>> before = plan_mixture(v2_5, "F16").total_bytes + plan_vision(v2_5).total_bytes
        >>> after = plan_mixture(v2_5, "Q4_K_M").total_bytes + plan_vision(v2_5).total_bytes
        >>> f"{before / 1e9:.2f} GB -> {after / 1e9:.2f} GB"
        '17.08 GB -> 5.93 GB'
    """
    check_type("config", config, MiniCPMVConfig)
    if not isinstance(kind, str) or kind not in ("F16", "F32"):
        raise ValueError(f"kind: ViT and resampler are stored as F16 or F32, got {shown(kind)}")
    shapes = {name: source.shape for name, source in vision_tensors(config).items()}
    kinds = {name: kind if len(shape) > 1 else "F32" for name, shape in shapes.items()}
    shapes["resampler.pos_embed_k"] = (1, config.resampler.width)
    return Plan({**kinds, "resampler.query": "F32", "resampler.pos_embed_k": "F32"}, shapes)


def _q4_k_m(name: str, cfg: LLMConfig) -> str:
    if name == ("token_embd.weight" if cfg.tie_word_embeddings else "output.weight"):
        return "Q6_K"
    if name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "Q6_K" if _more_bits(int(name.split(".")[1]), cfg.num_hidden_layers) else "Q4_K"
    return "Q4_K"


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fall_back(kind: str, cols: int) -> str:
    """What a matrix is stored as if its rows do not divide into the blocks of `kind`."""
    if kind in ("Q4_K", "Q6_K") and cols % 256:
        kind = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[kind]
    if kind in FORMATS and cols % FORMATS[kind].weights:
        kind = "F16"
    return kind


# Writing -------------------------------------------------------------------------------------------------------------


def export(
    model,
    processor,
    folder: str | os.PathLike,
    mixture: str = "Q4_K_M",
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Path, Path]:
    """Write a model as the two GGUF files that llama.cpp takes.

    One tensor at a time is converted: beside the model, memory holds its largest tensor as stored, twice at most.

    What llama.cpp does otherwise than the released code: it cuts every picture into at most 9 slices, stretches a
    picture that it does not cut to a square, gives cut ones a black border instead of stretching them a little, rounds
    half a patch up (Python rounds to even), writes no image ids, and gives 2.5 two-dimensional positions.

    Args:
        model: a MiniCPMV of version 2.5 or 2.6, in any dtype. Weights are widened to float32 and quantized from there.
        processor: its Processor; the tokenizer goes into the file.
        folder: where `model-<mixture>.gguf` and `mmproj-F16.gguf` (F32 for the mixture F32) go. Made if missing.
        mixture: "F32", "F16", "Q8_0" or "Q4_K_M", of the language model; ViT and resampler stay in 16 bits.
        force: True replaces files that are there.
        progress: called after each tensor with (its name, bytes done, bytes in all).

    Returns:
        (path of the language model, path of ViT and resampler).

    Raises:
        FileExistsError: a file is there and `force` is False.
        TypeError: no MiniCPMV, no Processor, or a folder that is no path.
        ValueError: an unknown mixture, a model or a tokenizer that llama.cpp cannot run, a model with adapters, a
            tensor that is not finite or would be read back as something else (too large or too small for float16).
        OSError: the folder cannot be written; what was there before is untouched.

    Example:
        >>> import tempfile
        >>> from minicpmv_ref import MiniCPMV, Processor
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     llm, mmproj = export(model, processor, folder)
        ...     llm.name, mmproj.name, read_gguf(llm).keys["general.architecture"]
        ('model-Q4_K_M.gguf', 'mmproj-F16.gguf', 'llama')

    Source: llama.cpp, convert_hf_to_gguf.py, tools/mtmd/clip.cpp; llama-quant.cpp, llama_model_quantize_impl.
    """
    check_type("processor", processor, Processor)
    folder = Path(check_type("folder", folder, str, os.PathLike))
    config = check_type("model", model, MiniCPMV).config
    _check_runs_in_llama_cpp(config)
    weights_of(model, [*llm_tensors(config.llm).values(), *vision_tensors(config).values()])
    llm_plan, eye_kind = plan_mixture(config, mixture), "F32" if mixture == "F32" else "F16"
    eye_plan = plan_vision(config, eye_kind)
    llm_keys = [*_llm_keys(config), *_tokenizer_keys(processor.tokenizer, config)]
    # The order in which llama.cpp's quantizer leaves these two; only quantized files have the first.
    llm_keys += [("uint32", "general.quantization_version", 2)] if mixture not in ("F32", "F16") else []
    llm_keys += [("uint32", "general.file_type", int(MIXTURES[mixture]))]

    paths = folder / f"model-{mixture}.gguf", folder / f"mmproj-{eye_kind}.gguf"
    for path in paths:
        if path.exists() and not force:
            raise FileExistsError(f"{path} is there already; force=True replaces it")
    folder.mkdir(parents=True, exist_ok=True)
    total, done = llm_plan.total_bytes + eye_plan.total_bytes, 0

    def report(name: str, size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(name, done, total)

    with replacing(*paths) as (llm, eyes):
        _write(llm, ARCHITECTURES[config.llm.family], llm_keys, llm_plan, _llm_weights(model), report)
        _write(eyes, "clip", _vision_keys(config, eye_kind), eye_plan, _vision_weights(model), report)
    return paths


def _check_runs_in_llama_cpp(config: MiniCPMVConfig) -> None:
    """Refuse what llama.cpp would refuse, abort on, or silently compute otherwise; see clip.cpp, minicpmv.cpp."""
    vision, resampler = config.vision, config.resampler
    problems = {
        "version is 2.0, and it has the vision part of 2.5 and later only": config.version == "2.0",
        f"vision.act is {vision.act}, and it has the tanh GELU only": vision.act != "gelu_tanh",
        "vision.position is interpolate, and it has the table look-up only": vision.position == "interpolate",
        f"vision.table_side is {vision.table_side}, and it counts on 70": vision.table_side != 70,
        # Equal widths are its sign of old files, in which the two matrices of the MLP are swapped.
        "vision.mlp_width equals vision.width, and it would swap the MLP's matrices": vision.mlp_width == vision.width,
        f"resampler heads are {resampler.width / resampler.heads:g} wide, and its own are 128": (
            resampler.width != 128 * resampler.heads
        ),
        f"vision.eps {vision.eps} and resampler.eps {resampler.eps} differ, and it has one": (
            vision.eps != resampler.eps
        ),
    }
    for text, is_so in problems.items():
        if is_so:
            raise ValueError(f"llama.cpp cannot run this model: {text}")


ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "granite": "minicpm"}  # ours -> llama.cpp's


def _write(path: Path, architecture: str, keys: list, plan: Plan, weights: Iterator, report: Callable) -> None:
    with closing(GGUFWriter(path, architecture)) as writer:
        for kind, key, value in keys:
            getattr(writer, f"add_{kind}")(key, value)
        for name, kind in plan.kinds.items():
            number = GGMLQuantizationType[kind]
            writer.add_tensor_info(name, plan.shapes[name], np.dtype(np.float32), plan.bytes_of(name), raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (name, kind), (weight_name, weight) in zip(plan.kinds.items(), weights, strict=True):
            if name != weight_name or tuple(weight.shape) != plan.shapes[name]:
                raise ValueError(f"{name} {plan.shapes[name]} expected, got {weight_name} {tuple(weight.shape)}")
            writer.write_tensor_data(encode(name, weight, kind))
            report(name, padded(plan.bytes_of(name)))


def encode(name: str, weight: torch.Tensor, kind: str) -> np.ndarray:
    """A tensor as stored. Rows are independent, so a big matrix is never float32 as a whole.

    The row with the largest weight is read back: what is too small for a kind would be noise or zeros in the file.
    """
    parts, largest, error = [], 0.0, 0.0
    for rows in weight.split(max(1, BITE // weight[0].numel())):
        rows = rows.detach().float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} has a weight that is not a finite number")
        parts.append(_encode_rows(name, rows, kind))
        sizes = np.abs(rows).reshape(len(rows), -1).max(axis=1)
        row = sizes.argmax()
        if kind != "F32" and sizes[row] > largest:
            stored = parts[-1][row : row + 1]
            back = dequantize(stored, kind, rows.shape[1]) if kind in FORMATS else stored.astype(np.float32)
            largest, error = float(sizes[row]), float(np.abs(back - rows[row]).max())
    if error > largest / 4:
        raise ValueError(
            f"{name} has no weight above {largest:.2g}: too small for {kind}, which would change one by {error:.2g}"
        )
    return np.concatenate(parts)


def _encode_rows(name: str, rows: np.ndarray, kind: str) -> np.ndarray:
    if kind in FORMATS:
        try:
            return quantize(rows, kind)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    with np.errstate(over="ignore"):
        stored = rows.astype(np.float16 if kind == "F16" else np.float32)
    if not np.isfinite(stored).all():
        raise ValueError(f"{name} has the weight {rows.flat[np.abs(rows).argmax()]}: float16 ends at 65504")
    return stored


def weights_of(model: nn.Module, sources: Iterable[Source], prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict of a model that holds all of these tensors under their own names."""
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    missing = [source.key for source in sources if source.key not in state]
    if missing:
        adapters = any("lora_" in key or ".base_layer." in key for key in state)
        hint = ": it has LoRA adapters, so merge_lora first" if adapters else ""
        raise ValueError(f"the model has no tensor {missing[0]}{hint}")
    return state


def _llm_weights(model) -> Iterator[tuple[str, torch.Tensor]]:
    cfg, sources = model.config.llm, llm_tensors(model.config.llm)
    state = weights_of(model, sources.values())
    for name, source in sources.items():
        weight = state[source.key]
        if cfg.family != "qwen2" and name.endswith(("attn_q.weight", "attn_k.weight")):
            # Rotary positions turn pairs of channels. Ours pair k with k + half of the head, llama.cpp's "llama" pairs
            # neighbors: reorder the rows, and both turn the same pairs.
            heads = cfg.num_attention_heads if "attn_q" in name else cfg.num_key_value_heads
            weight = rearrange(weight, "(h two k) d -> (h k two) d", h=heads, two=2)
        yield name, weight


def _vision_weights(model) -> Iterator[tuple[str, torch.Tensor]]:
    sources = vision_tensors(model.config)
    state = weights_of(model, sources.values())
    for name, source in sources.items():
        weight = state[source.key]
        if source.third is not None:
            weight = weight.chunk(3)[source.third]
        if name == "resampler.proj.weight":  # ours multiplies from the right
            # MiniCPM-2.4B multiplies its embeddings, and llama.cpp does so with visual tokens too: undo it here.
            weight = weight.T.float() / model.config.llm.embedding_multiplier
        yield name, weight
    yield "resampler.pos_embed_k", torch.zeros(1, model.config.resampler.width)


def _llm_keys(config: MiniCPMVConfig) -> list[tuple[str, str, object]]:
    """(type, key, value)."""
    llm, arch = config.llm, ARCHITECTURES[config.llm.family]
    keys = [
        ("string", "general.type", "model"),
        ("string", "general.name", f"MiniCPM-V {config.version}"),
        ("uint32", f"{arch}.context_length", llm.max_position_embeddings),
        ("uint32", f"{arch}.embedding_length", llm.hidden_size),
        ("uint32", f"{arch}.block_count", llm.num_hidden_layers),
        ("uint32", f"{arch}.feed_forward_length", llm.intermediate_size),
        ("uint32", f"{arch}.attention.head_count", llm.num_attention_heads),
        ("uint32", f"{arch}.attention.head_count_kv", llm.num_key_value_heads),
        ("float32", f"{arch}.attention.layer_norm_rms_epsilon", llm.rms_norm_eps),
        ("float32", f"{arch}.rope.freq_base", llm.rope_theta),
        ("uint32", f"{arch}.rope.dimension_count", llm.head_width),
        ("uint32", f"{arch}.vocab_size", llm.vocab_size),
    ]
    if llm.family == "granite":
        keys += [
            ("float32", f"{arch}.embedding_scale", llm.embedding_multiplier),
            ("float32", f"{arch}.residual_scale", llm.residual_multiplier),
            ("float32", f"{arch}.logit_scale", llm.logits_divisor),
        ]
    return keys


def _vision_keys(config: MiniCPMVConfig, kind: str) -> list[tuple[str, str, object]]:
    vision = config.vision
    return [
        ("string", "general.type", "mmproj"),
        ("string", "general.name", f"MiniCPM-V {config.version}"),
        ("bool", "clip.has_text_encoder", False),
        ("bool", "clip.has_vision_encoder", True),
        ("bool", "clip.has_minicpmv_projector", True),
        ("string", "clip.projector_type", "resampler"),
        ("int32", "clip.minicpmv_version", {"2.5": 2, "2.6": 3}[config.version]),  # chooses the markers
        ("uint32", "clip.minicpmv_query_num", config.resampler.num_queries),
        ("uint32", "clip.vision.image_size", config.slicing.scale_resolution),
        ("uint32", "clip.vision.patch_size", vision.patch_size),
        ("uint32", "clip.vision.embedding_length", vision.width),
        ("uint32", "clip.vision.feed_forward_length", vision.mlp_width),
        ("uint32", "clip.vision.projection_dim", 0),
        ("uint32", "clip.vision.attention.head_count", vision.heads),
        ("float32", "clip.vision.attention.layer_norm_epsilon", vision.eps),
        ("uint32", "clip.vision.block_count", vision.layers),
        ("array", "clip.vision.image_mean", [0.5, 0.5, 0.5]),
        ("array", "clip.vision.image_std", [0.5, 0.5, 0.5]),
        ("bool", "clip.use_gelu", True),
        ("uint32", "general.file_type", int(MIXTURES[kind])),
    ]


# The tokenizer -------------------------------------------------------------------------------------------------------

# How text is cut into words before BPE: llama.cpp knows it by name, a tokenizer.json by its regular expression.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    _WORDS.replace("DIGITS", r"\p{N}"): "qwen2",  # each digit by itself: 2.6, nano
    _WORDS.replace("DIGITS", r"\p{N}{1,3}"): "llama-bpe",  # 2.5
}
CHAT_TEMPLATES = {
    "2.5": (
        "{% for message in messages %}"
        "{{ ('<|begin_of_text|>' if loop.first else '') + '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "2.6": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
        "{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}


def _tokenizer_keys(tokenizer, config: MiniCPMVConfig) -> list[tuple[str, str, object]]:
    """(type, key, value) of a byte-level BPE tokenizer."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    words = _find(data["pre_tokenizer"], "Regex")
    if data["model"]["type"] != "BPE" or words not in PRE_TOKENIZERS:
        raise ValueError(
            f"only byte-level BPE tokenizers that cut text as Qwen2 or Llama 3 do can be exported, got "
            f"{data['model']['type']} with the cut {words!r}"
        )
    tokens = {number: (token, TokenType.NORMAL) for token, number in data["model"]["vocab"].items()}
    for added in data["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    size = config.llm.vocab_size
    if max(tokens) >= size:
        raise ValueError(f"the tokenizer has ids up to {max(tokens)}, but the model's vocab_size is {size}")
    rows = [tokens.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]  # embeddings of nothing
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]]
    keys = [
        ("string", "tokenizer.ggml.model", "gpt2"),
        ("string", "tokenizer.ggml.pre", PRE_TOKENIZERS[words]),
        ("array", "tokenizer.ggml.tokens", [token for token, _ in rows]),
        ("array", "tokenizer.ggml.token_type", [int(kind) for _, kind in rows]),
        ("array", "tokenizer.ggml.merges", merges),
    ]
    # A text of 2.6 begins with <|im_start|>. Without this key llama.cpp would take token 11 for a beginning.
    first = tokenizer.bos_token_id
    first = tokenizer.convert_tokens_to_ids("<|im_start|>") if first is None and config.version == "2.6" else first
    special = {
        "bos": first,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    keys += [("uint32", f"tokenizer.ggml.{name}_token_id", i) for name, i in special.items() if i is not None]
    # False also in 2.5: the chat template begins with the token, and twice would be once too often.
    keys += [("bool", "tokenizer.ggml.add_bos_token", False)]
    return [*keys, ("string", "tokenizer.chat_template", CHAT_TEMPLATES[config.version])]


def _find(tree, key: str):
    """The first value of a key anywhere in a JSON tree."""
    if isinstance(tree, dict) and key in tree:
        return tree[key]
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((found for found in (_find(branch, key) for branch in branches) if found is not None), None)
