"""LoRA: learn a small correction to each attention projection of the LLM, instead of the projection itself.

    y = W x   becomes   y = W x + (alpha / rank) B A x        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at zero, so a fresh adapter changes nothing. Merging adds (alpha / rank) B A to W, once: then the model is an
ordinary one again. `peft` does the work; its layers are put into a MiniCPMV, which stays a MiniCPMV: it chats,
generates and trains as before. Left out: quantized bases (QLoRA), several adapters at a time, and the official
script's dropout of 5 %, without which a resumed training is exactly the one that was never interrupted.
An adapter's files are those of `peft`, and may come from a stranger: they are checked, and compared with a copy of the
model that has no weights, before the model is touched. `PeftModel.from_pretrained` does none of that: it reads pickle
files, imports what the settings name, takes a missing tensor with a warning, and looks for a missing folder on the Hub.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..inputs.checkpoint import DTYPES, Shard, fingerprint
from ..inputs.checks import check_choice, check_int, check_list, check_number, check_precision, check_type, shown
from ..inputs.files import replacing
from ..model import MiniCPMV
from .lora_settings import ADAPTED, MODULES_TO_SAVE, lora_settings, named, read_settings
from .trainable import learning, table, training_bytes  # noqa: F401  lessons take them from here

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
PREFIX = "base_model.model."  # of every tensor in peft's files


def add_lora(
    model: MiniCPMV,
    rank: int = 64,
    alpha: float | None = None,
    modules_to_save: tuple[str, ...] = MODULES_TO_SAVE,
    seed: int = 0,
    *,
    whole: tuple[str, ...] | None = None,
) -> MiniCPMV:
    """Put LoRA adapters into the attention of the LLM and freeze everything that does not learn.

    The official script with `--use_lora` trains more than LoRA: the word embeddings, the resampler and, unless
    `tune_vision` is off, the ViT learn in full, and a frozen second copy of each stays in memory. That is the default
    here, too; `modules_to_save=()` is LoRA alone.

    Where input and output embeddings are one tensor (nano), they stay one. `peft` by itself would train a copy of the
    input side, and saving the merged model as a tied one would then change its answers.

    Args:
        model: changed in place. Give it its dtype and device first; the adapters follow.
        rank: of the corrections.
        alpha: their scale is alpha / rank; None: alpha = rank.
        modules_to_save: modules that learn in full, some of "embed_tokens", "resampler", "vpm" (peft's name for them).
        seed: of A, from 0. B is zero.
        whole: the old name of `modules_to_save`.

    Returns:
        The model. Exactly what learns has `requires_grad`.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a rank below 1 or far above any use, an alpha that is not a positive number, another module, a
            model with adapters.

    Example:
        >>> model = add_lora(MiniCPMV.from_pretrained("nano"), rank=4, modules_to_save=())
        >>> type(model.llm.model.layers[0].self_attn.q_proj).__module__
        'peft.tuners.lora.layer'

    Source: finetune/finetune.py and finetune_lora.sh of OpenBMB/MiniCPM-V; LoRA, arXiv 2106.09685, section 4.1.
    """
    _check_bare(model)
    in_full = modules_to_save if whole is None else whole
    for name in check_list("modules_to_save", in_full, str):
        check_choice("each of modules_to_save", name, MODULES_TO_SAVE)
    seed = check_int("seed", seed, least=0)
    settings = lora_settings(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=ADAPTED,
        modules_to_save=list(in_full) or None,
    )
    _inject(model, settings, seed)
    return model


def _check_bare(model: MiniCPMV) -> None:
    if has_lora(check_type("model", model, MiniCPMV)):
        raise ValueError("the model has adapters already: merge_lora adds them to its weights, or take a fresh base")


def _inject(model: MiniCPMV, settings: LoraConfig, seed: int = 0) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            parameter.requires_grad_(False)  # 2.0's is a constant, which peft cannot know
    _check_tied(model)
    _tie(model)
    model.train(model.training)  # new layers begin in training mode, whatever the model is in


def _check_tied(model: MiniCPMV) -> None:
    """Refuse an adapter on one of two layers that are one tensor: merged, it would change the other one, too."""
    if not model.config.llm.tie_word_embeddings:
        return
    head, words = model.llm.lm_head, model.llm.get_input_embeddings()
    wrong = "lm_head" if isinstance(head, LoraLayer | ModulesToSaveWrapper) else "embed_tokens"
    if wrong == "lm_head" or isinstance(words, LoraLayer):
        raise ValueError(f"no adapter on {wrong}: word embeddings and LM head are one tensor in this model")


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
    check_type("model", model, nn.Module)
    return any(isinstance(module, LoraLayer | ModulesToSaveWrapper) for module in model.modules())


def _check_adapted(model: MiniCPMV, otherwise: str) -> None:
    if not has_lora(check_type("model", model, MiniCPMV)):
        raise ValueError(f"the model has no adapters{otherwise}")
    if "default" not in getattr(model, "peft_config", {}):
        raise ValueError("the model's adapters are not called 'default', so neither add_lora nor load_lora made them")


def lora_optimizer(model: MiniCPMV, rate: float, full_rate: float | None = None) -> torch.optim.AdamW:
    """Make the optimizer of what learns, for `train(..., optimizer=...)`, which then leaves all the rest alone.

    Args:
        model: with adapters.
        rate: the highest learning rate of the adapters.
        full_rate: that of the modules that learn in full; None: the same, as in the official script.

    Returns:
        An AdamW.

    Raises:
        ValueError: a model without adapters, a rate below 0.

    Example:
        >>> model = add_lora(MiniCPMV.from_pretrained("nano"), rank=4, modules_to_save=("resampler",))
        >>> [group["lr"] for group in lora_optimizer(model, 1e-3, 1e-4).param_groups]
        [0.001, 0.0001]
    """
    _check_adapted(model, "")
    rate = check_number("rate", rate, least=0)
    full_rate = rate if full_rate is None else check_number("full_rate", full_rate, least=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_precision(trained.values())
    adapters = [p for name, p in trained.items() if "lora_" in name]
    in_full = [p for name, p in trained.items() if "lora_" not in name]
    groups = [{"params": adapters, "lr": rate}]
    if in_full:
        groups.append({"params": in_full, "lr": full_rate})
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
        ValueError: no adapters, as in a model whose adapters are merged already; one that is not finite, or whose sum
            with the weights is not; one on a layer that shares its weights. The model is unchanged then.

    Example:
        >>> model = merge_lora(add_lora(MiniCPMV.from_pretrained("nano"), rank=4))
        >>> has_lora(model)
        False
    """
    _check_adapted(model, " to merge; were they merged before?")
    broken = [name for name, p in model.named_parameters() if p.requires_grad and not p.isfinite().all()]
    if broken:
        raise ValueError(f"{broken[0]} is not finite, and neither would the merged weights be")
    _check_tied(model)
    _check_one_table(model)
    wrapped = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer | ModulesToSaveWrapper)]
    for name, layer in wrapped:
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            if not (weight + layer.get_delta_weight("default").to(weight.dtype)).isfinite().all():
                raise ValueError(f"{name}: weights and adapter together exceed the numbers of {weight.dtype}")
    for name, layer in wrapped:
        if isinstance(layer, LoraLayer):
            layer.merge()
        plain = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer.modules_to_save["default"]
        model.set_submodule(name, plain)
    del model.peft_config
    _tie(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "resampler.pos_embed")
    return model


def _check_one_table(model: MiniCPMV) -> None:
    """Refuse embeddings of which peft has trained a copy: as long as they are the LM head, too, that has to learn."""
    head, words = model.llm.lm_head, model.llm.get_input_embeddings()
    copied = model.config.llm.tie_word_embeddings and isinstance(words, ModulesToSaveWrapper)
    if copied and head.weight is not words.weight and not torch.equal(head.weight, words.weight):
        raise ValueError("embed_tokens learned without the LM head, but they are one tensor in this model")


# ---- on the disk


def save_lora(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Write what was learned, and nothing else, in the files of `peft`.

    Args:
        model: with adapters.
        folder: for adapter_config.json and adapter_model.safetensors; made if it is missing.

    Raises:
        ValueError: a model without adapters; word embeddings that `peft` itself untied from the LM head.
        OSError: the folder cannot be written; an adapter that was there before stays as it was.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_lora(add_lora(MiniCPMV.from_pretrained("nano"), rank=4, modules_to_save=()), folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    _check_adapted(model, " to save; save_pretrained writes a model without adapters")
    _check_one_table(model)
    folder = _folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = model.peft_config["default"].to_dict() | {"inference_mode": True}
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    settings = json.dumps(fields, indent=2, sort_keys=True, default=str)
    tensors = {PREFIX + name: t.cpu().contiguous() for name, t in _tensors(model).items()}
    # With the weights go the base they need and the settings they were made with: a file beside may be another one's.
    metadata = {"format": "pt", "settings": settings, "base": _base(model), "base_weights": _fingerprint(model)}
    try:
        with replacing(folder / SETTINGS, folder / WEIGHTS) as (first, second):
            first.write_text(settings, encoding="utf-8")
            save_file(tensors, second, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"could not write {named(folder)}/{WEIGHTS}: {error}") from error


def _folder(folder: str | os.PathLike) -> Path:
    return Path(check_type("folder", folder, str, os.PathLike, what="a path"))


def _tensors(model: MiniCPMV) -> dict[str, torch.Tensor]:
    """What an adapter's file holds, without peft's prefix."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _check_base(model: MiniCPMV, file: Shard, where: str, ending: str) -> None:
    """Refuse an adapter of another base; one that names none, as peft writes it, is believed."""
    if file.metadata.get("base", _base(model)) != _base(model):
        raise ValueError(f"{where} was trained on a model with another config")
    if file.metadata.get("base_weights", ours := _fingerprint(model)) != ours:
        raise ValueError(f"{where} was trained on other weights{ending}")


def _base(model: MiniCPMV) -> str:
    return json.dumps(model.config.to_dict(), sort_keys=True)


def _fingerprint(model: MiniCPMV) -> str:
    """That of the base, without adapters."""
    plain = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name and ".modules_to_save." not in name:
            plain[name.replace(".base_layer", "").replace(".original_module", "")] = parameter
    return fingerprint(plain)


def load_lora(model: MiniCPMV, folder: str | os.PathLike) -> MiniCPMV:
    """Put a saved adapter onto the base that it was trained on: to use it, to train it further or to merge it.

    Args:
        model: a fresh base; changed in place, and only if nothing is wrong.
        folder: from `save_lora`, or from `peft` itself, which does not write down which weights an adapter belongs to:
            then only names and shapes are compared. A pattern of names must be as simple as that of the official
            script; an expression that may take for ever is refused.

    Returns:
        The model.

    Raises:
        OSError: a file is not there.
        ValueError: a damaged file, weights that are not finite or do not belong to the settings beside them, another
            base (also one that this adapter was merged into), settings out of range, an unknown kind of adapter or one
            on embeddings that are the LM head, too; a model with adapters.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_lora(add_lora(MiniCPMV.from_pretrained("nano"), rank=4), folder)
        >>> has_lora(load_lora(MiniCPMV.from_pretrained("nano"), folder))
        True
    """
    _check_bare(model)
    folder = _folder(folder)
    where = named(folder)
    settings, file = _opened(folder)
    _check_base(model, file, where, "; was it merged into this model before?")
    of_peft = "settings" not in file.metadata and "embed_tokens" in (settings.modules_to_save or ())
    if of_peft and model.config.llm.tie_word_embeddings:  # see _check_one_table
        raise ValueError(f"{where}: embed_tokens learned without the LM head, here they are one tensor")
    try:
        wanted = _rehearse(model, settings)
    except ValueError as error:  # peft's own, for settings that fit nothing here
        why = " ".join(str(error).split())[:200]  # peft prints a module with all that is in it
        raise ValueError(f"{where}: {SETTINGS} does not fit this model: {why}") from error
    tensors = _read_tensors(file, wanted, folder)
    _inject(model, settings)
    set_peft_model_state_dict(model, tensors)
    return model


def _rehearse(model: MiniCPMV, settings: LoraConfig) -> dict[str, torch.Tensor]:
    """What the file of an adapter with these settings must hold. A copy of the model without any memory is adapted."""
    without_memory = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    without_memory |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    skeleton = copy.deepcopy(model, without_memory)  # deepcopy takes what is in this table instead of copying it
    with torch.device("meta"):
        _inject(skeleton, settings)
    return _tensors(skeleton)


def restore_lora(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Load the weights of a saved adapter into the adapters that a model has, as when a training goes on.

    Args:
        model: with adapters; changed in place, and only if nothing is wrong.
        folder: from `save_lora`, of an adapter of the same kind.

    Raises:
        ValueError: a model without adapters, a damaged file, an adapter of another shape, kind or scale, or one that
            was trained on another config or other weights.
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
    _check_adapted(model, "; load_lora puts saved ones onto it")
    folder = _folder(folder)
    settings, file = _opened(folder)
    ours = model.peft_config["default"]
    for key in ("r", "lora_alpha", "use_rslora", "lora_dropout"):
        if getattr(settings, key) != getattr(ours, key):
            what = f"{key} is {getattr(settings, key)}, that of the model's adapters {getattr(ours, key)}"
            raise ValueError(f"{named(folder)} holds another kind of adapter: {what}")
    _check_base(model, file, named(folder), " than those it would be put onto")
    set_peft_model_state_dict(model, _read_tensors(file, _tensors(model), folder))


def _opened(folder: Path) -> tuple[LoraConfig, Shard]:
    """The settings of a saved adapter, checked, and the file of its weights, of which nothing is read yet."""
    settings, file, where = folder / SETTINGS, folder / WEIGHTS, named(folder)
    if not os.path.exists(settings):  # Path's own raises for a name that is too long
        raise FileNotFoundError(f"no {SETTINGS} in {where}")
    checked = read_settings(settings)
    if not file.exists():
        hint = "; adapter_model.bin is a pickle file, which is not read" * (folder / "adapter_model.bin").is_file()
        raise FileNotFoundError(f"no {WEIGHTS} in {where}{hint}")
    shard, text = Shard(file), settings.read_text("utf-8")
    if shard.metadata.get("settings", text) != text:
        raise ValueError(f"{where}: {SETTINGS} and {WEIGHTS} are not of the same adapter")
    return checked, shard


def _read_tensors(file: Shard, wanted: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Compare a file's names and shapes with what is wanted, then read its tensors and look at their numbers."""
    where = named(folder)
    stored = {name.removeprefix(PREFIX): name for name in file.header}
    if len(stored) < len(file.header):
        raise ValueError(f"{where}/{WEIGHTS} has a tensor twice, with and without {PREFIX}")
    found = {name: tuple(file.header[key]["shape"]) for name, key in stored.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    odd = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if odd:
        what = f"{shown(odd[0])} is {found.get(odd[0], 'missing')}, should be {shapes.get(odd[0], 'absent')}"
        raise ValueError(f"{where} does not fit this model: {len(odd)} tensors are wrong; {what}")
    tensors = {}
    for name, key in stored.items():
        check_choice(f"{where}/{WEIGHTS}: the dtype of {name}", file.header[key]["dtype"], DTYPES)
        tensors[name] = file.read(key).to(wanted[name].dtype)
        if not tensors[name].isfinite().all():
            raise ValueError(f"{where}/{WEIGHTS}: {name} is not finite as {wanted[name].dtype}")
    return tensors
