"""Will it fit? How many bytes a model takes, by arithmetic alone: no weights, no torch.

Memory is a timeline. What counts is the fullest moment, so every estimate lists its moments and what lives in each:

    inference   see       the ViT and the resampler look at all views           weights, vision
                read      the LLM reads the whole prompt                        weights, activations, KV cache
                write     the LLM writes, one token at a time                   weights, KV cache
    training    forward   the loss is there; all that the way back needs waits  weights, optimizer, vision, activations
                backward  the way back leaves the LLM's first layer             weights, optimizer, vision, gradients
                update    AdamW takes its step                                  weights, optimizer, gradients

Implements the model of this package with `transformers`' LLMs, SDPA attention (no T x T matrix) and AdamW; all
parameters train, gradients are set to None after each step. Left out: the allocator's waste, the pictures themselves,
padding, several devices, and the float32 master copies of mixed precision.
B samples, N patches of all views, T tokens, Q queries, D width, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import LLMConfig, MiniCPMVConfig, ResamplerConfig, VisionConfig
from ..inputs.checks import WrongType, check_choice, check_int, check_type, shown

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of one number

# Bytes that a device has, and the share of them that a model may take. The shares are rules of thumb, not
# measurements: half of a phone belongs to its system and other apps, a tenth of a GPU to CUDA and fragmentation.
DEVICES = {f"{gb} GB phone": (gb * 2**30, 0.5) for gb in (8, 12, 16)}
DEVICES |= {f"{gb} GB GPU": (gb * 2**30, 0.9) for gb in (8, 12, 16, 24, 80)}


@dataclass(frozen=True)
class Estimate:
    """Bytes by part; `moments` says which parts live at the same time: {moment: {part: bytes}}."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # working memory of the LLM; in training what it keeps for the way back
    kv_cache: int
    vision: int  # working memory of the ViT and the resampler; in training what they keep for the way back
    moments: dict[str, dict[str, int]]

    @property
    def fullest(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def total(self) -> int:
        """Bytes in the fullest moment."""
        return sum(self.moments[self.fullest].values())


def estimate(
    config: MiniCPMVConfig,
    training: bool = False,
    dtype="bfloat16",
    batch: int = 1,
    images: int = 1,
    slices: int = 9,
    tokens: int | None = None,
    mixture: str | None = None,
    checkpointing: bool = False,
) -> Estimate:
    """Estimate the memory of one forward pass with an answer, or of one training step.

    Args:
        config: a MiniCPMVConfig, for example a preset.
        training: True for a step of AdamW on all parameters.
        dtype: "float32", "bfloat16" or "float16" (or torch's): of weights, activations and cache.
        batch: samples at a time.
        images: pictures of a sample.
        slices: of a picture, without the overview; 0 for a picture that is not cut.
        tokens: of a sample, visual ones, text and answer together. None: the visual ones and 256 more.
        mixture: a mixture of `plan_mixture`, for example "Q4_K_M": weights as in the two GGUF files, the LLM quantized,
            ViT and resampler in 16 bits. The dtype is then that of activations and cache. Inference only.
        checkpointing: training keeps only the input of each layer of the LLM, and computes the layer again on the way
            back. The ViT is not checkpointed.

    Returns:
        An Estimate. Weights, gradients, optimizer and KV cache are exact; activations and vision follow from what
        PyTorch keeps alive (totals are tested against its profiler's peak: 8 % for an answer, 5 % for training).

    Raises:
        TypeError: no MiniCPMVConfig, a count that is no integer, a switch that is not True or False.
        ValueError: an unknown dtype or mixture, a count below 1, fewer tokens than the pictures have, more than the
            model has positions for, or a combination that does not exist.

    Example:
        >>> from minicpmv_ref.config import v2_6
        >>> need = estimate(v2_6, batch=1, slices=9, tokens=1000)
        >>> need.weights, need.kv_cache, need.fullest
        (16198350304, 57344000, 'see')

    Source: this project; the counts follow from model.py and from transformers' modeling_llama.py.
    """
    check_type("config", config, MiniCPMVConfig)
    for name, value in (("training", training), ("checkpointing", checkpointing)):
        check_type(name, value, bool, what="True or False")
    size = _bytes_of(dtype)
    batch, images, slices = check_int("batch", batch), check_int("images", images, 0), check_int("slices", slices, 0)
    visual = images * (1 + slices) * config.resampler.num_queries
    tokens = visual + 256 if tokens is None else check_int("tokens", tokens, -(2**63))
    if tokens < max(visual, 1):
        raise ValueError(f"tokens must be an integer of at least {max(visual, 1)} (the visual ones), got {tokens}")
    if tokens > config.llm.max_position_embeddings:
        raise ValueError(f"the model has {config.llm.max_position_embeddings} positions, got tokens = {tokens}")
    if slices > config.slicing.max_slice_nums:
        raise ValueError(f"a picture has at most {config.slicing.max_slice_nums} slices, got {slices}")
    if mixture is not None and training:
        raise ValueError("quantized weights cannot be trained: give either mixture or training")
    if checkpointing and not training:
        raise ValueError("checkpointing saves nothing without training")

    views = batch * images * (1 + slices)
    counts, rows = parameters(config), batch * tokens
    total = sum(counts.values())
    weights = total * size if mixture is None else _quantized(config, mixture)
    cache = rows * kv_cache_numbers(config.llm) * size
    if not training:
        vision = views * _seen(config, size)
        activations = rows * _read(config.llm, size)
        moments = {
            "see": {"weights": weights, "vision": vision},
            "read": {"weights": weights, "activations": activations, "kv_cache": cache},
            "write": {"weights": weights, "kv_cache": cache},
        }
        return Estimate(weights, 0, 0, activations, cache, vision, moments)

    frozen = config.resampler.num_queries * config.resampler.width * (config.version == "2.0")  # pos_embed
    gradients = (total - frozen) * size
    always = {"weights": weights, "optimizer": 2 * gradients}  # AdamW: a mean and a mean square of each gradient
    vision = views * _kept_by_vision(config, size)
    layer, head = _kept_by_llm(config.llm, size)
    if checkpointing:
        inputs = config.llm.num_hidden_layers * config.llm.hidden_size * size
        activations = rows * (inputs + max(layer, head))
    else:
        activations = rows * (config.llm.num_hidden_layers * layer + head)
    moments = {
        "forward": {**always, "vision": vision, "activations": activations},
        "backward": {**always, "vision": vision, "activations": rows * layer, "gradients": counts["llm"] * size},
        # One tensor at a time: its root mean square, and that divided by a correction.
        "update": {**always, "gradients": gradients, "activations": 2 * _largest_tensor(config) * size},
    }
    return Estimate(weights, gradients, always["optimizer"], activations, 0, vision, moments)


def fits(need: Estimate | int, device: str) -> bool:
    """Say whether an estimate fits a device, with room for what else lives there.

    Args:
        need: an Estimate, or bytes.
        device: a name of `DEVICES`.

    Returns:
        True if the total is at most the share of the device's memory that a model may take.

    Raises:
        TypeError: neither an Estimate nor an integer.
        ValueError: an unknown device, fewer than no bytes.

    Example:
        >>> from minicpmv_ref.config import v2_6
        >>> [name for name in DEVICES if fits(estimate(v2_6), name)]
        ['24 GB GPU', '80 GB GPU']

    Source: this project. The shares in `DEVICES` are rules of thumb.
    """
    memory, share = DEVICES[check_choice("device", device, DEVICES)]
    return (need.total if isinstance(need, Estimate) else check_int("need", need, 0)) <= memory * share


def parameters(config: MiniCPMVConfig) -> dict[str, int]:
    """Count the parameters of each part.

    Args:
        config: a MiniCPMVConfig.

    Returns:
        {"vpm": ..., "resampler": ..., "llm": ...}; an LM head that is tied to the embeddings counts once.

    Raises:
        TypeError: no MiniCPMVConfig.

    Example:
        >>> from minicpmv_ref.config import v2_6
        >>> sum(parameters(v2_6).values())
        8099175152

    Source: the shapes in the safetensors indexes of the three releases.
    """
    check_type("config", config, MiniCPMVConfig)
    return {
        "vpm": _vision_parameters(config.vision),
        "resampler": _resampler_parameters(config.resampler),
        "llm": _llm_parameters(config.llm),
    }


def kv_cache_numbers(llm: LLMConfig) -> int:
    """Numbers that the KV cache holds for one token: a key and a value of each key-value head of each layer.

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
    attention = 2 * d * d + 2 * d * kv + (d + 2 * kv if c.family == "qwen2" else 0)
    layer = attention + 3 * d * c.intermediate_size + 2 * d
    tables = c.vocab_size * d * (1 if c.tie_word_embeddings else 2)
    return tables + c.num_hidden_layers * layer + d


def _largest_tensor(config: MiniCPMVConfig) -> int:
    v, e, c = config.vision, config.resampler.width, config.llm
    vision = max(v.table_side**2 * v.width, v.width * v.mlp_width)
    return max(vision, 3 * e * e, c.hidden_size * max(c.vocab_size, c.intermediate_size))


def _patches(config: MiniCPMVConfig) -> int:
    """Patches of a view: a square slice has so many, others a few percent more or fewer."""
    return (config.slicing.scale_resolution // config.slicing.patch_size) ** 2


def _seen(config: MiniCPMVConfig, size: int) -> int:
    """Bytes of a view in the fullest moment of the ViT and the resampler, without gradients."""
    v, e = config.vision, config.resampler.width
    pixels = 3 * v.patch_size**2 * (1 if size == 4 else 2)  # as patches; below float32 the converted views as well
    attention = pixels + 9 * v.width  # x, its norm, q, k, v, the positions, and the result in three forms
    mlp = pixels + 5 * v.width + 2 * v.mlp_width  # a CPU takes bites of the MLP and needs less
    resampler = v.width + 4 * e  # features; x, positions, keys, values
    return _patches(config) * max(attention, mlp, resampler) * size


def _read(c: LLMConfig, size: int) -> int:
    """Bytes of a token in the fullest moment of a layer of the LLM, without gradients and cache."""
    kv = c.num_key_value_heads * c.head_width
    mlp = 4 * c.hidden_size + 3 * c.intermediate_size  # the prompt, x, x + attention, its norm; gate, up, product
    attention = 8 * c.hidden_size + 2 * kv  # the prompt, x, its norm, q and its four forms on the way to rotary; k, v
    return (max(mlp, attention) + 2 * c.head_width) * size  # and one cosine and sine for all heads and layers


def _kept_by_vision(config: MiniCPMVConfig, size: int) -> int:
    """Bytes of a view that wait for the way back. Every product keeps its input, every norm, too."""
    v, r = config.vision, config.resampler
    layer = (
        9 * v.width + 2 * v.mlp_width
    )  # two sums, two norms, q, k, v, attention in two forms; the MLP before and after
    patch = 3 * v.patch_size**2 + v.layers * layer + 2 * v.width + 5 * r.width
    query = 6 * r.width
    return (_patches(config) * patch + r.num_queries * query) * size


def _kept_by_llm(c: LLMConfig, size: int) -> tuple[int, int]:
    """Bytes of a token that wait for the way back, in one layer of the LLM and in its head."""
    d, kv = c.hidden_size, c.num_key_value_heads * c.head_width
    norm = 2 * d * size + 4 * d  # normalized, times gain; and x in float32: x itself, or a copy
    layer = (2 * d + 2 * kv + 4 * c.intermediate_size) * size + 2 * norm  # q, attention, k, v; the MLP's four
    head = norm + c.vocab_size * (size + 4 + 4)  # logits; their log-softmax and its gradient in float32
    return layer, head


def _quantized(config: MiniCPMVConfig, mixture: str) -> int:
    from .gguf import plan_mixture, plan_vision  # these need torch, the rest of this file does not

    return plan_mixture(config, mixture).total_bytes + plan_vision(config).total_bytes


def _bytes_of(dtype) -> int:
    if not isinstance(dtype, str) and type(dtype).__name__ != "dtype":  # torch's, without an import of torch
        raise WrongType(f"dtype must be one of {', '.join(DTYPES)}, got {type(dtype).__name__}: {shown(dtype)}")
    return DTYPES[check_choice("dtype", str(dtype).removeprefix("torch."), DTYPES)]
