"""The language model once more, as small and quick as it gets: a decoder of its own, with plain or quantized weights.

`Runtime` is a MiniCPMV whose LLM is a `Decoder`. In float it gives the answers of MiniCPMV.generate; with little to
compute (small models, one conversation) it is about twice as fast, because it does less around the same products:
three matrices become one, two become one, the KV cache is there before the tokens come, a norm takes fewer steps, and a
matrix meets a single token as fast as memory delivers it. With a quantization mixture, weights stay in their blocks and
are unpacked a few rows at a time, each time they are used: that shows how little memory an answer takes, and what
quantization does to it. It is no fast way to run them: real engines multiply the blocks.
Implements Llama, Qwen2 (biases) and MiniCPM-2.4B (three multipliers). Left out: training, sliding windows.
S samples, T new tokens, N tokens in the cache, D width, H heads, G key-value heads, K head width, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..config import LLMConfig, MiniCPMVConfig
from ..inputs.checks import check_choice, check_type
from ..linear import is_quicker, linear
from ..model import MiniCPMV
from ..resampler import Resampler
from ..vision import VisionTransformer
from .gguf import CHUNK, encode, weights_of
from .gguf_plan import llm_tensors, plan_mixture
from .kquant import FORMATS, dequantize


class Runtime(MiniCPMV):
    """A model for answers only: the same ViT and resampler, and a `Decoder` in place of the LLM.

    Args:
        model: a MiniCPMV, or a folder as for `MiniCPMV.from_pretrained`. Its ViT and resampler are shared, the weights
            of its LLM are copied.
        mixture: None keeps the weights as they are. A quantization mixture of `plan_mixture`, for example
            "Q4_K_M", quantizes the LLM's as `export` does; it then computes in float32.
        activations: "float", or "int8" to round what meets a quantized matrix to 8 bits, as llama.cpp does.

    Raises:
        TypeError: neither a MiniCPMV nor a path; a Runtime.
        ValueError: an unknown mixture or kind of activations, "int8" without a mixture, a model with adapters, a tensor
            that the mixture cannot hold (named).
        OSError: as `MiniCPMV.from_pretrained`.

    Example:
        >>> from minicpmv_ref import MiniCPMV, Processor
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> batch = processor([{"role": "user", "content": "What is this?"}])
        >>> bool((Runtime(model).generate(batch, 8) == model.generate(batch, 8)).all())
        True

    Source: this project; what it equals is `transformers`' LLM in MiniCPMV.generate, and llama.cpp's arithmetic.
    """

    def __init__(self, model: MiniCPMV | str | os.PathLike, mixture: str | None = None, activations: str = "float"):
        nn.Module.__init__(self)
        check_type("model", model, MiniCPMV, str, os.PathLike, what="a MiniCPMV or a folder")
        if isinstance(model, Runtime):
            raise TypeError("model is a Runtime already: give the MiniCPMV, whose weights are still whole")
        if not isinstance(model, MiniCPMV):
            model = _Unbuilt.from_pretrained(model)
        self.config, self.vpm, self.resampler = model.config, model.vpm, model.resampler
        self.llm = Decoder(model.llm, model.config, mixture, activations)
        self.eval()

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """A Runtime is made from a checkpoint and is none. Raises a TypeError."""
        raise TypeError("a Runtime cannot be saved: save the MiniCPMV, or export it to GGUF")


class _Unbuilt(MiniCPMV):
    """A model whose LLM is nothing but weights: without `transformers`' classes, which take two seconds to import."""

    def __init__(self, config: MiniCPMVConfig):
        nn.Module.__init__(self)
        self.config, self.llm = config, _Weights(config.llm)
        self.vpm, self.resampler = VisionTransformer(config.vision), Resampler(config.resampler)

    @classmethod
    def without_memory(cls, config: MiniCPMVConfig) -> _Unbuilt:
        with torch.device("meta"), _NotNormal():
            return cls(config)


class _Weights(nn.Module):
    """The weights of an LLM under the names that `transformers` gives them."""

    def __init__(self, cfg: LLMConfig):
        super().__init__()
        shapes = {source.key.removeprefix("llm."): source.shape for source in llm_tensors(cfg).values()}
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        for key, shape in shapes.items():
            *path, name = key.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(name, nn.Parameter(torch.empty(shape)))

    dtype = property(lambda self: self.model.embed_tokens.weight.dtype)
    device = property(lambda self: self.model.embed_tokens.weight.device)

    def tie_weights(self) -> None:
        """Nothing to do: what is tied is one tensor when it is read."""


class _NotNormal(TorchFunctionMode):
    """Leaves out normal_, whose form for tensors without memory makes torch import its compiler: two more seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs or {})


class Step(NamedTuple):
    logits: torch.Tensor  # (S, T or 1, V)
    past_key_values: Cache


class _Layer(NamedTuple):
    attention_norm: Norm
    qkv: Matrix  # D -> (H + 2 G) K
    out: Matrix  # H K -> D
    mlp_norm: Norm
    gate_up: Matrix  # D -> 2 F
    down: Matrix  # F -> D


class Decoder:
    """A Llama-family decoder for inference, called as `transformers`' LLMs are.

    Args:
        llm: a LlamaForCausalLM, Qwen2ForCausalLM or GraniteForCausalLM, as built by `build_llm`.
        config: the MiniCPMVConfig it belongs to.
        mixture, activations: as in `Runtime`.

    Source: transformers, modeling_llama.py, modeling_qwen2.py and modeling_granite.py.
    """

    def __init__(self, llm: nn.Module, config: MiniCPMVConfig, mixture: str | None = None, activations: str = "float"):
        check_choice("activations", activations, ("float", "int8"))
        if activations == "int8" and mixture is None:
            raise ValueError('activations="int8" needs a mixture: int8 is what meets quantized weights')
        self.cfg = config.llm
        self.device = llm.device
        self.dtype = llm.model.norm.weight.dtype if mixture is None else torch.float32  # embeddings may have another
        kinds = {} if mixture is None else plan_mixture(config, mixture).kinds
        sources = llm_tensors(self.cfg)
        state = weights_of(llm, sources.values(), prefix="llm.")

        def vector(name):
            return state[sources[name].key].to(self.dtype, copy=True)

        def norm(name):
            return Norm(vector(name), self.cfg.rms_norm_eps)

        def matrix(*names):
            weights = [state[sources[f"{name}.weight"].key] for name in names]
            biases = [vector(f"{name}.bias") for name in names if f"{name}.bias" in sources]
            bias = torch.cat(biases) if biases else None
            if mixture is None:
                return Matrix(torch.cat(weights), bias)
            parts = [(f"{name}.weight", kinds[f"{name}.weight"], w) for name, w in zip(names, weights)]
            return Blocks(parts, bias, activations)

        self.embeddings = matrix("token_embd")
        self.layers = []
        for i in range(self.cfg.num_hidden_layers):
            blk = f"blk.{i}."
            self.layers.append(
                _Layer(
                    norm(blk + "attn_norm.weight"),
                    matrix(*(blk + "attn_" + part for part in "qkv")),
                    matrix(blk + "attn_output"),
                    norm(blk + "ffn_norm.weight"),
                    matrix(blk + "ffn_gate", blk + "ffn_up"),
                    matrix(blk + "ffn_down"),
                )
            )
        self.norm = norm("output_norm.weight")
        self.head = self.embeddings if self.cfg.tie_word_embeddings else matrix("output")

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        held = [self.embeddings, self.norm, *(part for layer in self.layers for part in layer)]
        return sum(part.nbytes for part in held) + (0 if self.head is self.embeddings else self.head.nbytes)

    def get_input_embeddings(self):
        """A function from ids to embeddings."""
        return lambda ids: self.embeddings.look_up(ids).to(self.dtype)

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Step:
        """Run some tokens.

        Args:
            input_ids (S, T) or inputs_embeds (S, T, D): the new tokens.
            attention_mask: (S, N + T), 0 where a token is padding; None: there is none.
            position_ids: (S, T); None: they count on from the cache.
            past_key_values: what the last call returned; None: a new conversation.
            use_cache: ignored; the cache is always there.
            logits_to_keep: for so many last tokens; 0: for all.

        Returns:
            An object with `.logits` (S, T, V) and `.past_key_values`. The cache is written in place.

        Raises:
            ValueError: more tokens than the model has positions.
        """
        cfg = self.cfg
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds  # (S, T, D)
        samples, count = x.shape[:2]
        cache = past_key_values or Cache(cfg, samples, count + 256, x)
        start = cache.length
        cache.grow(count)
        residual = cfg.residual_multiplier
        if position_ids is None:
            position_ids = torch.arange(start, cache.length, device=x.device).expand(samples, count)
        turn = cache.cosines[position_ids], cache.sines[position_ids]  # (S, T, 1, K) each
        mask = _visible(attention_mask, start, count, x)
        if cfg.embedding_multiplier != 1:
            x = x * cfg.embedding_multiplier

        for layer, part in zip(self.layers, cache.parts(start)):
            # If only the last token is asked, the last layer needs no more of the others than their keys and values.
            asking = 1 if logits_to_keep == 1 and layer is self.layers[-1] else count
            seen = self._attend(layer, layer.attention_norm(x), turn, part, mask, asking)
            x = torch.add(x if asking == count else x[:, -asking:], seen, alpha=residual)
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = torch.add(x, layer.down(F.silu(gate, inplace=True).mul_(up)), alpha=residual)

        logits = self.head(self.norm(x[:, -logits_to_keep:]))
        return Step(logits / cfg.logits_divisor if cfg.logits_divisor != 1 else logits, cache)

    def _attend(self, layer: _Layer, x, turn, part, mask, asking: int) -> torch.Tensor:
        """Grouped-query attention, (S, T, D) -> (S, asking, D). Plain views: einops takes longer than the products."""
        heads, groups = self.cfg.num_attention_heads, self.cfg.num_key_value_heads
        qkv = layer.qkv(x).unflatten(-1, (heads + 2 * groups, -1))  # (S, T, H + 2 G, K)
        # Rotary positions: channel k and its partner half a head away turn as a pair. The sines carry the sign.
        qk = qkv.narrow(2, 0, heads + groups)
        partners = qk.roll(qk.shape[-1] // 2, dims=-1)
        qk.mul_(turn[0]).addcmul_(partners, turn[1])
        keys, values, new = part
        new.copy_(qkv.narrow(2, heads, 2 * groups))
        if asking == 1:
            # The heads of a group stand where queries do, so that no key is repeated for them.
            q = qkv[:, -1, :heads].unflatten(1, (groups, -1))  # (S, G, H / G, K)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=None if mask is None else mask[:, :, -1:])
            return layer.out(out.reshape(len(out), 1, -1))
        q = qkv[:, :, :heads].transpose(1, 2)  # (S, H, T, K)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return layer.out(out.transpose(1, 2).flatten(2))


def _visible(attention_mask, start: int, count: int, x: torch.Tensor) -> torch.Tensor | None:
    """Which token may look at which, bool (S, 1, T, N + T); None: at all before it, the plain case."""
    if attention_mask is not None and attention_mask.all():
        attention_mask = None
    if attention_mask is None and (count == 1 or start == 0):
        return None
    rows = torch.arange(start, start + count, device=x.device)[:, None]
    columns = torch.arange(start + count, device=x.device)
    mask = (columns <= rows)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None]  # padding looks at nothing; SDPA gives it zeros
    return mask


class Cache:
    """Keys and values of all tokens so far, allocated before they come; and the rotary positions of as many tokens."""

    def __init__(self, cfg: LLMConfig, samples: int, room: int, like: torch.Tensor):
        self.cfg, self.length = cfg, 0
        self.store = like.new_empty(cfg.num_hidden_layers, samples, 2 * cfg.num_key_value_heads, 0, cfg.head_width)
        self._resize(min(room, cfg.max_position_embeddings))

    def grow(self, count: int) -> None:
        """Count new tokens, and double the room when they no longer fit. Raises a ValueError beyond all positions."""
        most, room = self.cfg.max_position_embeddings, self.store.shape[3]
        if self.length + count > most:
            raise ValueError(f"the model has {most} positions, but {self.length + count} tokens came")
        self.length += count
        if self.length > room:
            self._resize(min(max(self.length, 2 * room), most))

    def parts(self, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each layer its keys, its values, (S, G, N + T, K) each, and where the new of both go, (S, T, 2 G, K)."""
        held = self.store.narrow(3, 0, self.length)
        new = held.narrow(3, start, self.length - start).transpose(2, 3)
        return zip(*(part.unbind() for part in (*held.chunk(2, dim=2), new)))

    def _resize(self, room: int) -> None:
        old = self.store
        self.store = old.new_empty(*old.shape[:3], room, old.shape[4])
        self.store[..., : old.shape[3], :] = old
        half = torch.arange(0, old.shape[4], 2, dtype=torch.float32, device=old.device) / old.shape[4]
        angles = torch.arange(room, device=old.device)[:, None] * self.cfg.rope_theta**-half  # (room, K / 2)
        cosines, sines = angles.cos()[:, None], angles.sin()[:, None]
        self.cosines = torch.cat([cosines, cosines], dim=-1).to(old.dtype)  # (room, 1, K)
        self.sines = torch.cat([-sines, sines], dim=-1).to(old.dtype)


class Norm:
    """An RMS norm. torch's own is one step on a GPU, but ten on a CPU, so there it is written in four, quicker."""

    def __init__(self, gain: torch.Tensor, eps: float):
        self.gain, self.eps = gain, eps
        if gain.is_cpu:
            # x / sqrt(mean of squares + eps) = x * sqrt(D) / sqrt(sum of squares + D * eps), in float32 at least.
            self.gain = gain.to(torch.promote_types(gain.dtype, torch.float32)) * len(gain) ** 0.5
            self.least = self.gain.new_tensor((len(gain) * eps) ** 0.5)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_cpu:
            return F.rms_norm(x, self.gain.shape, self.gain, self.eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.gain.dtype)
        return (x / length.hypot(self.least) * self.gain).to(x.dtype)

    @property
    def nbytes(self) -> int:
        return self.gain.nbytes


class Matrix:
    """A plain matrix (rows, cols) with its bias; several matrices that meet the same input are stacked into one.

    The product with a single token is also a sum of columns, weighted by the token's numbers, which `embedding_bag`
    computes. Which is quicker depends on processor, dtype and threads (1.8 times either way were seen), so it is tried.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight, self.bias = weight, bias
        self.columns = torch.arange(weight.shape[1], dtype=torch.int32)[None]  # all of them; int64 would be slower
        self.sums_columns = weight.is_cpu and _columns_are_quicker(*weight.shape, weight.dtype, torch.get_num_threads())
        if self.sums_columns:
            self.weight = weight.T.contiguous().T  # column by column

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() != self.weight.shape[1]:
            return linear(x, self.weight, self.bias)
        if not self.sums_columns:
            return F.linear(x, self.weight, self.bias)  # what `linear` looks for takes as long as a small product
        y = _sum_columns(self.columns, self.weight, x)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


def _sum_columns(columns: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.embedding_bag(columns, weight.T, per_sample_weights=x.reshape(1, -1), mode="sum")


@cache
def _columns_are_quicker(rows: int, cols: int, dtype: torch.dtype, threads: int) -> bool:
    """Whether on this machine one token meets a matrix of this size faster as a sum of columns; tried once."""
    rows = min(rows, max(1, 2**22 // cols))  # 16 MB: more would take as long for each row
    with torch.device("cpu"):
        x, weight, columns = torch.ones(1, cols), torch.ones(rows, cols), torch.arange(cols, dtype=torch.int32)[None]
    x, weight = x.to(dtype), weight.to(dtype)
    by_column = weight.T.contiguous().T
    return is_quicker(lambda: _sum_columns(columns, by_column, x), lambda: F.linear(x, weight))


class Blocks:
    """A matrix that stays quantized. Rows are unpacked each time they are used, and not kept."""

    def __init__(self, parts: list[tuple[str, str, torch.Tensor]], bias: torch.Tensor | None, activations: str):
        self.bias, self.activations, self.device = bias, activations, parts[0][2].device
        self.cols = parts[0][2].shape[1]
        self.parts = [(kind, encode(name, weight, kind)) for name, kind, weight in parts]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        products = []
        rounded = {}  # parts of one matrix may want their input rounded in different ways
        for kind, packed in self.parts:
            way = ROUNDING.get(kind, "float") if self.activations == "int8" else "float"
            if way not in rounded:
                rounded[way] = round_activations(x, way)
            step = max(1, CHUNK // self.cols)
            for first in range(0, len(packed), step):
                products.append(linear(rounded[way], self._unpack(kind, packed[first : first + step])))
        y = torch.cat(products, dim=-1)
        return y if self.bias is None else y + self.bias

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        ((kind, packed),) = self.parts
        return self._unpack(kind, packed[ids.flatten().cpu().numpy()]).unflatten(0, ids.shape)

    def _unpack(self, kind: str, packed: np.ndarray) -> torch.Tensor:
        rows = dequantize(packed, kind, self.cols) if kind in FORMATS else packed.astype(np.float32)
        return torch.from_numpy(rows).to(self.device)

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for _, packed in self.parts) + (0 if self.bias is None else self.bias.nbytes)


# How llama.cpp rounds what meets a matrix of a kind (float matrices in float32 meet it as it is).
ROUNDING = {"Q4_K": "Q8_K", "Q5_K": "Q8_K", "Q6_K": "Q8_K", "Q8_0": "Q8_0", "Q5_0": "Q8_0", "F16": "F16"}


def round_activations(x: torch.Tensor, way: str) -> torch.Tensor:
    """Round activations as llama.cpp does before it multiplies them with quantized weights ("W4A8").

    Q8_K: blocks of 256 share one float32 scale; the largest becomes -127 or 127. Q8_0: blocks of 32, a float16 scale.

    Args:
        x: (..., cols) float32; cols a multiple of the block.
        way: "Q8_K", "Q8_0", "F16" or "float" (unchanged).

    Returns:
        A tensor of the same shape, float32: the numbers that the rounded ones stand for.

    Raises:
        ValueError: an unknown way, or columns that do not fill whole blocks.

    Example:
        >>> x = torch.linspace(-1, 1, 256)
        >>> round((round_activations(x, "Q8_K") - x).abs().max().item(), 4)  # half of 1 / 127
        0.0039

    Source: ggml, ggml-quants.c, quantize_row_q8_K_ref, and quantize_row_q8_0 of ggml-cpu for x86-64.
    """
    check_type("x", x, torch.Tensor)
    check_choice("way", way, ("Q8_K", "Q8_0", "F16", "float"))
    if way == "float":
        return x
    if way == "F16":
        return x.half().float()
    block = 256 if way == "Q8_K" else 32
    if not x.ndim or x.shape[-1] % block or not x.is_floating_point():
        columns = x.shape[-1] if x.ndim else "none"
        raise ValueError(f"x: {way} takes floats, columns in blocks of {block}, got {columns} of {x.dtype}")
    x = x.unflatten(-1, (-1, block))
    most = x.abs().amax(dim=-1, keepdim=True)
    safe = torch.where(most == 0, 1, most)  # a block of zeros stays one
    per_unit = torch.full_like(safe, 127) / safe  # NOTE 127 / safe would multiply by a rounded inverse
    unit = (most / 127).half().float() if way == "Q8_0" else 1 / per_unit
    return (torch.round(x * per_unit) * unit).flatten(-2)
