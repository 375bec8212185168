"""What the two GGUF files hold: every tensor under llama.cpp's name, and what each is stored as. Needs no weights.

The quantization mixtures F32, F16, Q8_0 and Q4_K_M are llama.cpp's. Left out: the exceptions of Q4_K_M for mixtures of
experts and for Llama 70B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from gguf import LlamaFileType

from ..config import LLMConfig, MiniCPMVConfig
from ..inputs.checks import check_choice, check_type, shown
from .gguf_reader import padded, tensor_bytes
from .kquant import FORMATS

MIXTURES = {  # name -> the number that the file gives it
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}


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


# The quantization mixture ---------------------------------------------------------------------------------------------


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
    """As `plan_mixture`, for ViT and resampler. They stay in 16 bits: they are small, and errors add up in them.

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
