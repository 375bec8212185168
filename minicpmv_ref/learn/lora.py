"""LoRA: learn a small correction to each attention projection of the LLM, instead of the projection itself.

    y = W x   becomes   y = W x + (alpha / rank) B A x        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at zero, so a fresh adapter changes nothing. Merging adds (alpha / rank) B A to W, once: then the model is an
ordinary one again. `peft` does the work; its layers are put into a MiniCPMV, which stays a MiniCPMV: it chats,
generates and trains as before. Left out: quantized bases (QLoRA), several adapters at a time, and the official
script's dropout of 5 %, without which a resumed training is exactly the one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import read_json, replacing
from ..model import MiniCPMV

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
PREFIX = "base_model.model."  # of every tensor in peft's files
ADAPTED = r"llm\..*layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"
WHOLE = ("embed_tokens", "resampler", "vpm")  # what the official script trains in full beside the adapters


def add_lora(
    model: MiniCPMV, rank: int = 64, alpha: float | None = None, whole: tuple[str, ...] = WHOLE, seed: int = 0
) -> MiniCPMV:
    """Put LoRA adapters into the attention of the LLM and freeze everything that does not learn.

    Who runs the official script with `--use_lora` trains more than LoRA: the word embeddings, the resampler and, unless
    `tune_vision` is switched off, the whole ViT learn in full, and a frozen second copy of each stays in memory. That
    is the default here, too, so it is in plain sight; `whole=()` is LoRA alone.

    Where input and output embeddings are one tensor (2.0, nano), they stay one. `peft` by itself would train a copy of
    the input side, and saving the merged model as a tied one would then change its answers.

    Args:
        model: changed in place. Give it its dtype and device first; the adapters follow.
        rank: of the corrections.
        alpha: their scale is alpha / rank; None: alpha = rank.
        whole: modules that learn in full, some of "embed_tokens", "resampler", "vpm".
        seed: of A. B is zero.

    Returns:
        The model. Exactly what learns has `requires_grad`.

    Raises:
        ValueError: a rank below 1, an alpha that is not a positive number, another module, a model with adapters.

    Example:
        >>> model = add_lora(MiniCPMV.from_pretrained("nano"), rank=4, whole=())
        >>> type(model.llm.model.layers[0].self_attn.q_proj).__module__
        'peft.tuners.lora.layer'

    Source: finetune/finetune.py and finetune_lora.sh of OpenBMB/MiniCPM-V; LoRA, arXiv 2106.09685, section 4.1.
    """
    alpha = rank if alpha is None else alpha
    if type(rank) is not int or rank < 1 or not 0 < alpha < math.inf:
        raise ValueError(f"rank must be a whole number from 1, alpha a positive number; got {rank=}, {alpha=}")
    unknown = set(whole) - set(WHOLE)
    if isinstance(whole, str) or unknown:
        raise ValueError(f"whole must be some of {WHOLE}, got {whole!r}")
    _inject(model, _settings(r=rank, lora_alpha=alpha, target_modules=ADAPTED, modules_to_save=list(whole)), seed)
    return model


def _settings(**fields) -> LoraConfig:
    return LoraConfig(**{**fields, "modules_to_save": fields["modules_to_save"] or None})


def _inject(model: MiniCPMV, settings: LoraConfig, seed: int = 0) -> None:
    if has_lora(model):
        raise ValueError("the model has adapters already; merge_lora adds them to its weights")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            parameter.requires_grad_(False)  # 2.0's is a constant, which peft cannot know
    _tie(model)
    model.train(model.training)  # new layers begin in training mode, whatever the model is in


def _tie(model: MiniCPMV) -> None:
    """Let the LM head share the word embeddings that are in use, if the config says so."""
    if model.config.llm.tie_word_embeddings:
        model.llm.lm_head.weight = model.llm.get_input_embeddings().weight


def has_lora(model: MiniCPMV) -> bool:
    """Say whether a model has adapters.

    Example:
        >>> has_lora(MiniCPMV.from_pretrained("nano"))
        False
    """
    return any(isinstance(module, LoraLayer | ModulesToSaveWrapper) for module in model.modules())


def lora_optimizer(model: MiniCPMV, rate: float, whole_rate: float | None = None) -> torch.optim.AdamW:
    """Make the optimizer of what learns, for `train(..., optimizer=...)`, which then leaves all the rest alone.

    Args:
        model: with adapters.
        rate: the highest learning rate of the adapters.
        whole_rate: that of the modules that learn in full; None: the same, as in the official script.

    Returns:
        An AdamW.

    Raises:
        ValueError: a model without adapters.

    Example:
        >>> model = add_lora(MiniCPMV.from_pretrained("nano"), rank=4, whole=("resampler",))
        >>> [group["lr"] for group in lora_optimizer(model, 1e-3, 1e-4).param_groups]
        [0.001, 0.0001]
    """
    if not has_lora(model):
        raise ValueError("the model has no adapters")
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapters = [p for name, p in learning.items() if "lora_" in name]
    whole = [p for name, p in learning.items() if "lora_" not in name]
    groups = [{"params": adapters, "lr": rate}]
    if whole:
        groups.append({"params": whole, "lr": rate if whole_rate is None else whole_rate})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01, foreach=True)


def merge_lora(model: MiniCPMV) -> MiniCPMV:
    """Add the adapters to the weights. What is left is an ordinary model, with an ordinary `save_pretrained`.

    In float32 the logits stay the same but for rounding. In bfloat16 the sum W + B A is rounded to 8 bits, which a
    small correction may not survive: merge a float32 model, then convert it.

    Args:
        model: with adapters; changed in place.

    Returns:
        The model, without adapters. All of its parameters can learn again.

    Raises:
        ValueError: no adapters, as in a model whose adapters are merged already; one that is not finite.

    Example:
        >>> model = merge_lora(add_lora(MiniCPMV.from_pretrained("nano"), rank=4))
        >>> has_lora(model)
        False
    """
    if not has_lora(model):
        raise ValueError("the model has no adapters to merge; were they merged before?")
    broken = [name for name, p in model.named_parameters() if p.requires_grad and not p.isfinite().all()]
    if broken:
        raise ValueError(f"{broken[0]} is not finite, and neither would the merged weights be")
    _take_off(model)
    return model


def _take_off(model: MiniCPMV) -> None:
    """Replace peft's layers by plain ones with the same outputs. Adapters that have learned nothing leave no trace."""
    wrapped = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer | ModulesToSaveWrapper)]
    for name, module in wrapped:
        if isinstance(module, ModulesToSaveWrapper):
            plain = module.modules_to_save["default"]
        else:
            module.merge()
            plain = module.get_base_layer()
        model.set_submodule(name, plain)
    del model.peft_config
    _tie(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "resampler.pos_embed")


# ---- on the disk


def save_lora(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Write what was learned, and nothing else, in the files of `peft`.

    Args:
        model: with adapters.
        folder: for adapter_config.json and adapter_model.safetensors; made if it is missing.

    Raises:
        ValueError: a model without adapters.
        OSError: the folder cannot be written; an adapter that was there before stays whole.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_lora(add_lora(MiniCPMV.from_pretrained("nano"), rank=4, whole=()), folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    if not has_lora(model):
        raise ValueError("the model has no adapters to save; save_pretrained writes a whole model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = model.peft_config["default"].to_dict() | {"inference_mode": True}
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    settings = json.dumps(fields, indent=2, sort_keys=True, default=str)
    tensors = {PREFIX + name: t.cpu().contiguous() for name, t in get_peft_model_state_dict(model).items()}
    # With the weights go the base they need and the settings they were made with: a file beside may be another one's.
    metadata = {"format": "pt", "settings": settings, "base": _base(model), "base_weights": _fingerprint(model)}
    try:
        with replacing(folder / SETTINGS, folder / WEIGHTS) as (first, second):
            first.write_text(settings, encoding="utf-8")
            save_file(tensors, second, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"could not write {folder / WEIGHTS}: {error}") from error


def _base(model: MiniCPMV) -> str:
    return json.dumps(model.config.to_dict(), sort_keys=True)


def _fingerprint(model: MiniCPMV) -> str:
    """A checksum of the base's weights, from the first numbers of each tensor.

    They are rounded to bfloat16, so a base that was stored in 16 bits is the same in 32.
    """
    plain = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name and ".modules_to_save." not in name:
            plain[name.replace(".base_layer", "").replace(".original_module", "")] = parameter
    digest = hashlib.sha256()
    for name in sorted(plain):
        digest.update(name.encode())
        digest.update(plain[name].detach().flatten()[:64].bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def load_lora(model: MiniCPMV, folder: str | os.PathLike) -> MiniCPMV:
    """Put a saved adapter onto the base that it was trained on, to use it, to train it further or to merge it.

    Args:
        model: a fresh base; changed in place, and only if nothing is wrong.
        folder: from `save_lora`, or an adapter that `peft` has saved. Such a one does not say which weights it belongs
            to, so only names and shapes can be compared.

    Returns:
        The model.

    Raises:
        OSError: a file is not there.
        ValueError: a damaged file, weights that do not belong to the settings beside them, another base (as one that
            this adapter was merged into), a kind of adapter that is not known here, a model with adapters.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_lora(add_lora(MiniCPMV.from_pretrained("nano"), rank=4), folder)
        >>> has_lora(load_lora(MiniCPMV.from_pretrained("nano"), folder))
        True
    """
    folder = Path(folder)
    if has_lora(model):
        raise ValueError("the model has adapters already; load onto a fresh base")
    settings = _read_settings(folder)
    tensors, metadata = _read_weights(folder)
    if metadata.get("settings", (folder / SETTINGS).read_text("utf-8")) != (folder / SETTINGS).read_text("utf-8"):
        raise ValueError(f"{folder}: {SETTINGS} and {WEIGHTS} are not of the same adapter")
    if metadata.get("base", _base(model)) != _base(model):
        raise ValueError(f"{folder} was trained on a model with another config")
    if metadata.get("base_weights", fingerprint := _fingerprint(model)) != fingerprint:
        raise ValueError(f"{folder} was trained on other weights; was it merged into this model before?")
    try:
        _inject(model, settings)
    except (ValueError, TypeError) as error:  # peft's own, for settings that fit nothing here
        if has_lora(model):
            _take_off(model)
        raise ValueError(f"{folder / SETTINGS}: {error}") from error
    try:
        _set(model, tensors, folder)
    except ValueError:
        _take_off(model)
        raise
    return model


def restore_lora(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Give the adapters that a model has the numbers of a saved one, as when a training goes on.

    Args:
        model: with adapters; changed in place, and only if nothing is wrong.
        folder: from `save_lora`, of an adapter of the same kind.

    Raises:
        ValueError: a model without adapters, a damaged file, an adapter of another shape or kind.
        OSError: a file is not there.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> one, other = (add_lora(MiniCPMV.from_pretrained("nano"), rank=4, seed=seed) for seed in (0, 1))
        >>> save_lora(one, folder)
        >>> restore_lora(other, folder)
        >>> name = "llm.model.layers.0.self_attn.q_proj.lora_A.default.weight"
        >>> torch.equal(one.get_parameter(name), other.get_parameter(name))
        True
    """
    if not has_lora(model):
        raise ValueError("the model has no adapters; load_lora puts saved ones onto it")
    _set(model, _read_weights(Path(folder))[0], folder)


def _set(model: MiniCPMV, tensors: dict[str, torch.Tensor], folder: str | os.PathLike) -> None:
    wanted = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model).items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        what = f"{odd[0]} is {found.get(odd[0], 'missing')}, should be {wanted.get(odd[0], 'absent')}"
        raise ValueError(f"{folder} does not fit this model: {len(odd)} tensors are wrong; {what}")
    set_peft_model_state_dict(model, tensors)


# Fields of adapter_config.json that say what the adapter computes, and those that say where it came from. A file that
# sets any other is refused: peft would import a module that a stranger's file may name, or change the base's weights.
MEANING = {"r", "lora_alpha", "target_modules", "modules_to_save", "lora_dropout", "use_rslora"}
ORIGIN = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type", "peft_version"}


def _read_settings(folder: Path) -> LoraConfig:
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"no {SETTINGS} in {folder}")
    fields = read_json(folder / SETTINGS)
    if fields.pop("peft_type", None) != "LORA":
        raise ValueError(f"{folder / SETTINGS} is not of a LoRA adapter")
    plain = json.loads(json.dumps(LoraConfig().to_dict(), default=str))
    odd = sorted(k for k in fields.keys() - MEANING - ORIGIN if fields[k] != plain.get(k))
    if odd:
        raise ValueError(f"{folder / SETTINGS}: {odd[0]} = {fields[odd[0]]!r:.80} is not supported")
    known = {"modules_to_save": None} | {key: fields[key] for key in MEANING & fields.keys()}
    try:
        return _settings(**known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / SETTINGS}: {error}") from error


def _read_weights(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not (folder / WEIGHTS).is_file():
        hint = "; adapter_model.bin is a pickle file, which is not read" * (folder / "adapter_model.bin").is_file()
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}{hint}")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error


# ---- what learns, and what that costs


def learning(model: MiniCPMV) -> dict[str, tuple[int, int]]:
    """Count the parameters of each part: those that learn, and all.

    Args:
        model: with or without adapters.

    Returns:
        {part: (learning, all)}. "frozen copies" are what `peft` keeps of modules that learn in full.

    Example:
        >>> counts = learning(add_lora(MiniCPMV.from_pretrained("nano"), rank=4, whole=()))
        >>> counts["adapters"], counts["resampler"][0]
        ((28672, 28672), 0)
    """
    counts = dict.fromkeys(("vpm", "resampler", "embed_tokens", "llm", "adapters", "frozen copies"), (0, 0))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            part = "adapters"
        elif ".original_module." in name:
            part = "frozen copies"
        else:
            part = "embed_tokens" if "embed_tokens" in name else name.split(".")[0]
        some, total = counts[part]
        counts[part] = some + parameter.numel() * parameter.requires_grad, total + parameter.numel()
    return counts


def training_bytes(model: MiniCPMV) -> dict[str, int]:
    """Estimate what training takes whatever the batch: weights, gradients, and AdamW's two means of each gradient.

    Args:
        model: with or without adapters; its `requires_grad` says what learns.

    Returns:
        {"weights": bytes, "gradients": bytes, "optimizer": bytes}.

    Example:
        >>> model = MiniCPMV.from_pretrained("nano")
        >>> whole, lora = training_bytes(model), training_bytes(add_lora(model, rank=4, whole=()))
        >>> whole["optimizer"] == 2 * whole["weights"], lora["optimizer"] * 50 < whole["optimizer"]
        (True, True)
    """
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return {"weights": weights, "gradients": gradients, "optimizer": 2 * gradients}


def table(model: MiniCPMV) -> str:
    """Write `learning` and `training_bytes` as text.

    Example:
        >>> print(table(add_lora(MiniCPMV.from_pretrained("nano"), rank=4, whole=("resampler",))).splitlines()[0])
        part                 learn          all
    """
    rows = [("part", "learn", "all")]
    counts = learning(model) | {"together": tuple(map(sum, zip(*learning(model).values())))}
    rows += [(part, f"{some:,}", f"{total:,}") for part, (some, total) in counts.items() if total]
    lines = [f"{part:<14}{some:>12} {total:>12}" for part, some, total in rows]
    lines += [f"{what:<14}{size / 1e6:>9.2f} MB" for what, size in training_bytes(model).items()]
    return "\n".join(lines)
