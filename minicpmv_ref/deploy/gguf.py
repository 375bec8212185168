"""GGUF: the model becomes two files that llama.cpp runs, the language model and the vision part.

Implements what llama.cpp wants for 2.5, 2.6 and nano: the language model in one file, ViT and resampler in another
(the "mmproj"), byte for byte what llama.cpp's own quantizer makes of the F32 file. gguf_plan.py says what the files
hold, gguf_keys.py writes their named values, gguf_reader.py describes their layout.
Left out: 2.0, whose vision part llama.cpp does not have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from gguf import GGMLQuantizationType, GGUFWriter
from torch import nn

from ..config import MiniCPMVConfig
from ..inputs.checks import check_type
from ..inputs.files import replacing
from ..model import MiniCPMV
from ..processor import Processor
from .gguf_keys import ARCHITECTURES, llm_keys, tokenizer_keys, vision_keys
from .gguf_plan import MIXTURES, Plan, Source, llm_tensors, plan_mixture, plan_vision, vision_tensors
from .gguf_reader import padded, read_gguf
from .kquant import FORMATS, dequantize, quantize

__all__ = ["MIXTURES", "Plan", "export", "plan_mixture", "plan_vision", "read_gguf"]

CHUNK = 1 << 20  # weights that are float32 at a time: 4 MB


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
    half a patch up (Python rounds to even), writes no image ids, gives 2.5 two-dimensional positions, and reads accents
    that stand apart from their letters as they are (the tokenizer of 2.6 joins them first, NFC).

    Args:
        model: a MiniCPMV of version 2.5 or 2.6, in any dtype. Weights are widened to float32 and quantized from there.
        processor: its Processor; the tokenizer goes into the file.
        folder: where `model-<mixture>.gguf` and `mmproj-F16.gguf` (F32 for the mixture F32) go. Made if missing.
        mixture: the quantization mixture of the language model, "F32", "F16", "Q8_0" or "Q4_K_M"; ViT and resampler
            stay in 16 bits.
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
    llm_plan, vision_kind = plan_mixture(config, mixture), "F32" if mixture == "F32" else "F16"
    vision_plan = plan_vision(config, vision_kind)
    values = [*llm_keys(config), *tokenizer_keys(processor.tokenizer, config)]
    # The order in which llama.cpp's quantizer leaves these two; only quantized files have the first.
    values += [("uint32", "general.quantization_version", 2)] if mixture not in ("F32", "F16") else []
    values += [("uint32", "general.file_type", int(MIXTURES[mixture]))]

    paths = folder / f"model-{mixture}.gguf", folder / f"mmproj-{vision_kind}.gguf"
    for path in paths:
        if path.exists() and not force:
            raise FileExistsError(f"{path} is there already; force=True replaces it")
    folder.mkdir(parents=True, exist_ok=True)
    total, done = llm_plan.total_bytes + vision_plan.total_bytes, 0

    def report(name: str, size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(name, done, total)

    with replacing(*paths) as (llm, vision):
        _write(llm, ARCHITECTURES[config.llm.family], values, llm_plan, _llm_weights(model), report)
        _write(vision, "clip", vision_keys(config, vision_kind), vision_plan, _vision_weights(model), report)
    return paths


def _check_runs_in_llama_cpp(config: MiniCPMVConfig) -> None:
    """Refuse what llama.cpp would refuse, abort on, or silently compute otherwise; see clip.cpp, minicpmv.cpp."""
    vision, resampler, side = config.vision, config.resampler, config.slicing.scale_resolution
    problems = {
        "version is 2.0, and it has the vision part of 2.5 and later only": config.version == "2.0",
        f"vision.act is {vision.act}, and it has the tanh GELU only": vision.act != "gelu_tanh",
        "vision.position is interpolate, and it has the table look-up only": vision.position == "interpolate",
        f"vision.table_side is {vision.table_side}, and it counts on 70": vision.table_side != 70,
        f"scale_resolution {side} is not whole patches of {vision.patch_size} pixels, and it would cut the rest off": (
            side % vision.patch_size > 0
        ),
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
    for rows in weight.split(max(1, CHUNK // weight[0].numel())):
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
    """The state dict of a model that holds these tensors under their own names, and no other ones in the same parts."""
    if hasattr(model, "peer"):
        raise ValueError("llama.cpp knows no other connector, cutting rule or expert: export the model it was made of")
    state, keys = {prefix + key: t for key, t in model.state_dict().items()}, [source.key for source in sources]
    if missing := [key for key in keys if key not in state]:
        hint = ": it has LoRA adapters, so merge_lora first" if any("lora_" in key for key in state) else ""
        raise ValueError(f"the model has no tensor {missing[0]}{hint}")
    parts = {key.partition(".")[0] for key in keys}
    surplus = {key for key in state if key.partition(".")[0] in parts} - {*keys}
    head = "llm.lm_head.weight"
    if head in surplus and torch.equal(state[head], state["llm.model.embed_tokens.weight"]):
        surplus.remove(head)  # tied: one tensor of the file
    if surplus:
        raise ValueError(f"the model has a tensor that its config does not, {min(surplus)}, which would be left out")
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
