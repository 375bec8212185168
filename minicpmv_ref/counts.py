"""Parameters, FLOPs and bytes of a model, from its config alone: no weights, no torch. Each formula stands here once.

Left out: norms, activations and rotary positions in FLOPs (as usual), the allocator's waste in bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from typing import NamedTuple

from .config import LLMConfig, MiniCPMVConfig, ResamplerConfig, VisionConfig
from .inputs.checks import WrongType, check_int, check_type, shown

PARTS = ("vpm", "resampler", "llm")


# ---- parameters


def check_counted(config: MiniCPMVConfig) -> None:
    """Refuse a peer's config, too: its numbers do not tell its connector or its expert."""
    if hasattr(check_type("config", config, MiniCPMVConfig), "peer"):
        raise ValueError("config is of a peer, whose connector or expert is not counted: scale.budget measures it")


def parameters(config: MiniCPMVConfig) -> dict[str, int]:
    """Count the parameters of each part, {"vpm": ..., "resampler": ..., "llm": ...}; a tied LM head counts once.

    Raises:
        TypeError, ValueError: no MiniCPMVConfig; a peer's.

    Example:
        >>> from minicpmv_ref.config import v2_6
        >>> sum(parameters(v2_6).values())
        8099175152

    Source: the shapes in the safetensors indexes of the three releases.
    """
    check_counted(config)
    counts = _vision_parameters(config.vision), _resampler_parameters(config.resampler), _llm_parameters(config.llm)
    return dict(zip(PARTS, counts))


def trainable_parameters(config: MiniCPMVConfig) -> dict[str, int]:
    """As `parameters`, without those that never learn: 2.0's positions of the queries."""
    counts, r = parameters(config), config.resampler
    return counts | {"resampler": counts["resampler"] - r.num_queries * r.width * (r.version == "2.0")}


def _vision_parameters(v: VisionConfig) -> int:
    d, f = v.width, v.mlp_width
    attention, mlp, norms = 4 * (d * d + d), d * f + f + f * d + d, 4 * d
    patches, positions = 3 * v.patch_size**2 * d + d, v.table_side**2 * d
    return patches + positions + v.layers * (attention + mlp + norms) + 2 * d


def _resampler_parameters(r: ResamplerConfig) -> int:
    e = r.width
    queries = r.num_queries * e * (2 if r.version == "2.0" else 1)  # 2.0 stores the positions of its queries, too
    return queries + e * r.kv_width + 4 * (e * e + e) + 3 * 2 * e + e * e


def _llm_parameters(c: LLMConfig) -> int:
    d, kv = c.hidden_size, c.num_key_value_heads * c.head_width
    biases = d + 2 * kv if c.family == "qwen2" else 0
    tables = c.vocab_size * d * (1 if c.tie_word_embeddings else 2)
    return tables + c.num_hidden_layers * (_layer_weights(c) + biases + 2 * d) + d


def _layer_weights(c: LLMConfig) -> int:
    """Numbers in the matrices of a layer of the LLM, each of which meets every token."""
    d, kv = c.hidden_size, c.num_key_value_heads * c.head_width
    return 2 * d * d + 2 * d * kv + 3 * d * c.intermediate_size


# ---- FLOPs


class Workload(NamedTuple):
    """What a batch asks of the model: counts over all its samples."""

    tokens: int
    supervised: int  # tokens whose logits are computed
    token_pairs: int  # attention: each token with all tokens that it looks at; for a sample its tokens squared
    views: int = 0  # that the ViT looks at
    patches: int = 0
    patch_pairs: int = 0  # patches of a view, padding included, squared and summed
    padding: int = 0  # patches that the released 2.5 adds to the shorter views; its ViT computes them, too


def flops(config: MiniCPMVConfig, workload: Workload, learning: Collection[str] = PARTS) -> int:
    """Count the FLOPs of one training step, or of a forward pass: the sum of `flops_by_part`."""
    return sum(flops_by_part(config, workload, learning).values())


def flops_by_part(config: MiniCPMVConfig, workload: Workload, learning: Collection[str] = PARTS) -> dict[str, int]:
    """Count the FLOPs of one training step by part: matrix products and attention, forward and backward.

    A product of n multiplications takes 2 n FLOPs, 2 n more for the gradient of each of its two sides. Attention counts
    in full, as PyTorch's counter and the PaLM paper do it, though a causal kernel leaves out half.

    Args:
        config: of the model.
        workload: of the step.
        learning: the parts that learn; () is a forward pass. A frozen part still passes the gradient on if a part
            before it learns.

    Returns:
        {"vpm": FLOPs, "resampler": FLOPs, "llm": FLOPs}

    Raises:
        TypeError: no MiniCPMVConfig, no Workload, learning that is no collection of parts.
        ValueError: a negative count; a peer's config.

    Example:
        >>> from minicpmv_ref import nano
        >>> workload = Workload(tokens=100, supervised=10, token_pairs=10_000, views=1, patches=64, patch_pairs=4096)
        >>> forward, step = (flops_by_part(nano, workload, parts) for parts in ([], ["resampler"]))
        >>> {part: round(step[part] / forward[part], 1) for part in step}  # a frozen LLM still passes the gradient on
        {'vpm': 1.0, 'resampler': 2.9, 'llm': 2.1}

    Source: Chowdhery et al., PaLM (2022), appendix B; checked against torch.utils.flop_counter.
    """
    check_counted(config)
    for name, count in check_type("workload", workload, Workload)._asdict().items():
        check_int(f"workload.{name}", count, least=0)
    listed = isinstance(learning, list | tuple | Set | Mapping)  # a tensor is a Collection, too
    if not listed or not all(isinstance(part, str) and part in PARTS for part in learning):
        raise WrongType(f"learning must be a list of parts out of {', '.join(PARTS)}, got {shown(learning)}")
    v, r, c = config.vision, config.resampler, config.llm
    w, e, d = v.width, r.width, c.hidden_size
    vit, resampler = (part in learning and workload.views > 0 for part in ("vpm", "resampler"))
    llm = "llm" in learning
    visual = vit or resampler  # do the features of the ViT need a gradient
    tokens = visual or llm  # do the tokens inside the LLM need one
    seen, queries = workload.patches + workload.padding, workload.views * r.num_queries
    products = {  # (multiplications, does the left side have a gradient, does the right side)
        "vpm": [
            (seen * 3 * v.patch_size**2 * w, False, vit),  # pixels get no gradient
            (seen * v.layers * (4 * w * w + 2 * w * v.mlp_width), vit, vit),
            (workload.patch_pairs * v.layers * 2 * w, vit, vit),
        ],
        "resampler": [
            (workload.patches * w * e, vit, resampler),  # kv_proj
            (workload.patches * 2 * e * e, visual, resampler),  # keys and values
            ((workload.views > 0) * r.num_queries * e * e, resampler, resampler),  # the queries are the same for all
            (workload.patches * r.num_queries * e, resampler, visual),  # queries times keys
            (workload.patches * r.num_queries * e, visual, visual),  # attention weights times values
            (queries * 2 * e * e, visual, resampler),  # out_proj and proj
        ],
        "llm": [
            (workload.tokens * c.num_hidden_layers * _layer_weights(c), tokens, llm),
            (workload.token_pairs * c.num_hidden_layers * 2 * d, tokens, tokens),
            (workload.supervised * d * c.vocab_size, tokens, llm),
        ],
    }
    return {part: sum(2 * n * (1 + left + right) for n, left, right in rows) for part, rows in products.items()}


# ---- bytes


def kv_cache_numbers(llm: LLMConfig) -> int:
    """Count the numbers that the KV cache holds for one token: a key and a value of each key-value head of each layer.

    Raises:
        TypeError: no LLMConfig.

    Example:
        >>> from minicpmv_ref.config import v2_0, v2_6
        >>> kv_cache_numbers(v2_0.llm), kv_cache_numbers(v2_6.llm)
        (184320, 28672)

    Source: transformers, cache_utils.py, DynamicCache.
    """
    check_type("llm", llm, LLMConfig)
    return 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_width


def state_bytes(tensors: Iterable) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's two means of each gradient, for parameters that are there."""
    tensors = list(tensors)
    gradients = sum(p.nbytes for p in tensors if p.requires_grad)
    return {"weights": sum(p.nbytes for p in tensors), "gradients": gradients, "optimizer": 2 * gradients}


def planned_state_bytes(config: MiniCPMVConfig, learning: Collection[str], size: int, mixed: bool = False) -> dict:
    """As `state_bytes`, for a config and `size` bytes a number.

    In mixed precision AdamW keeps three float32 numbers of each parameter that learns: the weight and its two means.
    """
    counts = trainable_parameters(config)
    trainable = sum(counts[part] for part in learning)
    weights = sum(parameters(config).values()) * size
    return {"weights": weights, "gradients": trainable * size, "optimizer": trainable * (12 if mixed else 2 * size)}


def square_patches(config: MiniCPMVConfig) -> int:
    """Patches of a square view; others have a few percent more or fewer."""
    return (config.slicing.scale_resolution // config.slicing.patch_size) ** 2
