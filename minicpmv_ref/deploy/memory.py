"""Will it fit? How many bytes a model takes, by arithmetic alone: no weights, no torch.

Memory is a timeline. What counts is the fullest moment, so every estimate lists its moments and what lives in each:

    inference   see       the ViT and the resampler look at all views           weights, vision
                read      the LLM reads the whole prompt                        weights, activations, KV cache
                write     the LLM writes, one token at a time                   weights, KV cache
    training    forward   the loss is there; what backward needs is kept        weights, optimizer, vision, activations
                backward  the gradient has passed the LLM's first layer         weights, optimizer, vision, gradients
                update    AdamW takes its step                                  weights, optimizer, gradients

Implements the model of this package with `transformers`' LLMs, SDPA attention (no T x T matrix) and AdamW; all
parameters train, gradients are set to None after each step. Left out: the allocator's waste, the pictures themselves,
padding, several devices, and the float32 master copies of mixed precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import LLMConfig, MiniCPMVConfig
from ..counts import PARTS, check_counted, kv_cache_numbers, parameters, planned_state_bytes, square_patches
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
    activations: int  # working memory of the LLM; in training what it keeps for the backward pass
    kv_cache: int
    vision: int  # working memory of the ViT and the resampler; in training what they keep for the backward pass
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
        mixture: a quantization mixture of `plan_mixture`, for example "Q4_K_M": weights as in the two GGUF files, the
            LLM quantized, ViT and resampler in 16 bits. The dtype is then that of activations and cache. Not for
            training.
        checkpointing: training keeps only the input of each layer of the LLM, and computes the layer again in the
            backward pass. The ViT is not checkpointed.

    Returns:
        An Estimate. Weights, gradients, optimizer and KV cache are exact; activations and vision follow from what
        PyTorch keeps alive (totals are tested against its profiler's peak: 8 % for an answer, 5 % for training).

    Raises:
        TypeError: no MiniCPMVConfig, a count that is no integer, a switch that is not True or False.
        ValueError: an unknown dtype or mixture, a count below 1, fewer tokens than the pictures have, more than the
            model has positions for, a combination that does not exist, or a peer's config.

    Example:
        >>> from minicpmv_ref.config import v2_6
        >>> need = estimate(v2_6, batch=1, slices=9, tokens=1000)
        >>> need.weights, need.kv_cache, need.fullest
        (16198350304, 57344000, 'see')

    Source: this project; the counts follow from model.py and from transformers' modeling_llama.py.
    """
    check_counted(config)
    for name, value in (("training", training), ("checkpointing", checkpointing)):
        check_type(name, value, bool, what="True or False")
    size = _bytes_of(dtype)
    views, rows = _views_and_tokens(config, batch, images, slices, tokens)
    if mixture is not None and training:
        raise ValueError("quantized weights cannot be trained: give either mixture or training")
    if checkpointing and not training:
        raise ValueError("checkpointing saves nothing without training")
    if training:
        return _training_step(config, size, views, rows, checkpointing)

    weights = sum(parameters(config).values()) * size if mixture is None else _quantized(config, mixture)
    cache = rows * kv_cache_numbers(config.llm) * size
    vision, activations = views * _vision_working_bytes(config, size), rows * _llm_working_bytes(config.llm, size)
    moments = {
        "see": {"weights": weights, "vision": vision},
        "read": {"weights": weights, "activations": activations, "kv_cache": cache},
        "write": {"weights": weights, "kv_cache": cache},
    }
    return Estimate(weights, 0, 0, activations, cache, vision, moments)


def _views_and_tokens(config: MiniCPMVConfig, batch, images, slices, tokens) -> tuple[int, int]:
    """Views and tokens of all samples, checked."""
    batch, images, slices = check_int("batch", batch), check_int("images", images, 0), check_int("slices", slices, 0)
    visual = images * (1 + slices) * config.resampler.num_queries
    tokens = visual + 256 if tokens is None else check_int("tokens", tokens, -(2**63))
    if tokens < max(visual, 1):
        raise ValueError(f"tokens must be an integer of at least {max(visual, 1)} (the visual ones), got {tokens}")
    if tokens > config.llm.max_position_embeddings:
        raise ValueError(f"the model has {config.llm.max_position_embeddings} positions, got tokens = {tokens}")
    if slices > config.slicing.max_slice_nums:
        raise ValueError(f"a picture has at most {config.slicing.max_slice_nums} slices, got {slices}")
    return batch * images * (1 + slices), batch * tokens


def _training_step(config: MiniCPMVConfig, size: int, views: int, rows: int, checkpointing: bool) -> Estimate:
    state = planned_state_bytes(config, PARTS, size)
    always = {part: state[part] for part in ("weights", "optimizer")}
    vision = views * _vision_kept_bytes(config, size)
    layer, head = _llm_kept_bytes(config.llm, size)
    if checkpointing:
        inputs = config.llm.num_hidden_layers * config.llm.hidden_size * size
        activations = rows * (inputs + max(layer, head))
    else:
        activations = rows * (config.llm.num_hidden_layers * layer + head)
    gradients = state["gradients"]
    llm_gradients = parameters(config)["llm"] * size
    moments = {
        "forward": {**always, "vision": vision, "activations": activations},
        "backward": {**always, "vision": vision, "activations": rows * layer, "gradients": llm_gradients},
        # One tensor at a time: its root mean square, and that divided by a correction.
        "update": {**always, "gradients": gradients, "activations": 2 * _largest_tensor(config) * size},
    }
    return Estimate(state["weights"], gradients, state["optimizer"], activations, 0, vision, moments)


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


def _vision_working_bytes(config: MiniCPMVConfig, size: int) -> int:
    """Bytes of a view in the fullest moment of the ViT and the resampler, without gradients."""
    v, e = config.vision, config.resampler.width
    pixels = 3 * v.patch_size**2 * (1 if size == 4 else 2)  # as patches; below float32 the converted views as well
    attention = pixels + 9 * v.width  # x, its norm, q, k, v, the positions, and the result in three forms
    mlp = pixels + 5 * v.width + 2 * v.mlp_width  # a CPU computes the MLP in chunks and needs less
    resampler = v.width + 4 * e  # features; x, positions, keys, values
    return square_patches(config) * max(attention, mlp, resampler) * size


def _llm_working_bytes(c: LLMConfig, size: int) -> int:
    """Bytes of a token in the fullest moment of a layer of the LLM, without gradients and cache."""
    kv = c.num_key_value_heads * c.head_width
    mlp = 4 * c.hidden_size + 3 * c.intermediate_size  # the prompt, x, x + attention, its norm; gate, up, product
    attention = 8 * c.hidden_size + 2 * kv  # the prompt, x, its norm, q and its four forms before rotary; k, v
    return (max(mlp, attention) + 2 * c.head_width) * size  # and one cosine and sine for all heads and layers


def _vision_kept_bytes(config: MiniCPMVConfig, size: int) -> int:
    """Bytes of a view that are kept for the backward pass. Every product keeps its input, every norm, too."""
    v, r = config.vision, config.resampler
    # two sums, two norms, q, k, v, attention in two forms; the MLP before and after its activation
    layer = 9 * v.width + 2 * v.mlp_width
    patch = 3 * v.patch_size**2 + v.layers * layer + 2 * v.width + 5 * r.width
    query = 6 * r.width
    return (square_patches(config) * patch + r.num_queries * query) * size


def _llm_kept_bytes(c: LLMConfig, size: int) -> tuple[int, int]:
    """Bytes of a token that are kept for the backward pass, in one layer of the LLM and in its head."""
    d, kv = c.hidden_size, c.num_key_value_heads * c.head_width
    norm = 2 * d * size + 4 * d  # normalized, times gain; and x in float32: x itself, or a copy
    layer = (2 * d + 2 * kv + 4 * c.intermediate_size) * size + 2 * norm  # q, attention, k, v; the MLP's four
    head = norm + c.vocab_size * (size + 4 + 4)  # logits; their log-softmax and its gradient in float32
    return layer, head


def _largest_tensor(config: MiniCPMVConfig) -> int:
    """Numbers in the largest parameter."""
    v, e, c = config.vision, config.resampler.width, config.llm
    vision = max(v.table_side**2 * v.width, v.width * v.mlp_width)
    return max(vision, 3 * e * e, c.hidden_size * max(c.vocab_size, c.intermediate_size))


def _quantized(config: MiniCPMVConfig, mixture: str) -> int:
    from .gguf_plan import plan_mixture, plan_vision  # these need numpy, the rest of this file does not

    return plan_mixture(config, mixture).total_bytes + plan_vision(config).total_bytes


def _bytes_of(dtype) -> int:
    if not isinstance(dtype, str) and type(dtype).__name__ != "dtype":  # torch's, without an import of torch
        raise WrongType(f"dtype must be one of {', '.join(DTYPES)}, got {type(dtype).__name__}: {shown(dtype)}")
    return DTYPES[check_choice("dtype", str(dtype).removeprefix("torch."), DTYPES)]
