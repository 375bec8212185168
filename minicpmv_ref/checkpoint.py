"""Checkpoint folders: config, tokenizer and tensors in; config and tensors out. Names and numbers, no model classes.

Reads our own folders and the published ones of 2.0, 2.5 and 2.6 (safetensors, one file or shards with an index).
Our state-dict keys are those of 2.5 and 2.6. Only the vision tower of 2.0 has other names, from timm, with q, k and v
fused into one tensor: `published_name` is the whole translation.
Everything is strict: a tensor that is missing, surplus or misshapen is an error that names it. Left out: pickle files.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import LLMConfig, MiniCPMVConfig, ResamplerConfig, SliceConfig, v2_0, v2_5, v2_6

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
BUNDLED = Path(__file__).resolve().parent.parent / "data_samples" / "checkpoints"

# Tensors that old files may hold although no parameter needs them, and why.
NOT_PARAMETERS = {
    r"llm\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "recomputed from rope_theta",
    r"vpm\.embeddings\.position_ids": "recomputed from each slice's shape",
}

# What a config from a stranger may claim. A billion layers would keep us busy long before a tensor is compared.
LIMITS = {"layers": 1000, "num_hidden_layers": 1000, "num_queries": 1024, "table_side": 1024, "patch_size": 1024}
LIMITS |= {"width": 2**16, "kv_width": 2**16, "hidden_size": 2**16, "initializer_range": 1}  # any other integer: 2**20


def find_folder(path: str | os.PathLike) -> Path:
    """Resolve a checkpoint's path; "nano" and "nano-..." are the course's own, found beside the package.

    Raises:
        OSError: there is no such folder; the message names the place.
    """
    name = os.fspath(path)
    bundled = BUNDLED / name if name == "nano" or name.startswith("nano-") else None
    for folder in filter(None, (bundled, Path(name))):  # a folder of yours may be called nano-something, too
        if folder.is_dir():
            return folder
    hint = " (the course's checkpoints lie beside the package, in its repository)" if bundled else ""
    raise FileNotFoundError(f"no checkpoint folder at {bundled or name}{hint}")


def read_config(folder: Path) -> MiniCPMVConfig:
    """Read a folder's config.json: ours, or a published one of 2.0, 2.5 or 2.6.

    Raises:
        OSError: no config.json.
        ValueError: not JSON, or a config that no MiniCPM-V of these versions has; the message names the field.
    """
    data = _read_json(folder / CONFIG)
    try:
        config = MiniCPMVConfig.from_dict(data) if "resampler" in data else config_from_published(data)
        _check_plausible(config)
        return config
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def config_from_published(data: dict) -> MiniCPMVConfig:
    """Translate a published config.json.

    Args:
        data: the parsed JSON. 2.0 has no version key and no vision_config, 2.5's version is a string, 2.6's a number.
            A vision_config overrides the tower's dimensions; it counts layers before `drop_vision_last_layer`.

    Returns:
        The MiniCPMVConfig.

    Raises:
        ValueError: an unknown version, a missing field, or a feature that these models do not have.

    Example:
        >>> config_from_published({"version": 3.0})
        Traceback (most recent call last):
        ...
        ValueError: version must be missing (2.0), "2.5" or 2.6, got 3.0

    Source: config.json and configuration_minicpm.py of the three published repositories.
    """
    presets = {"2.0": v2_0, "2.5": v2_5, "2.6": v2_6}
    version = str(data.get("version", "2.0"))
    if version not in presets:
        raise ValueError(f'version must be missing (2.0), "2.5" or 2.6, got {data["version"]!r}')
    preset = presets[version]
    if data.get("rope_scaling") is not None or data.get("hidden_act", "silu") != "silu":
        raise ValueError("rope_scaling and any hidden_act but silu belong to none of these models")
    drops_last = data.get("drop_vision_last_layer", True)
    if not isinstance(drops_last, bool):
        raise ValueError(f"drop_vision_last_layer must be true or false, got {drops_last!r}")
    try:
        tower = dict(data.get("vision_config") or {})
        default_layers = preset.vision.layers + (version == "2.0")  # 2.0 was built with 27 layers, one is dropped
        patch = data.get("patch_size", 14)
        vision = replace(
            preset.vision,
            width=tower.get("hidden_size", preset.vision.width),
            layers=tower.get("num_hidden_layers", default_layers) - drops_last,
            heads=tower.get("num_attention_heads", preset.vision.heads),
            mlp_width=tower.get("intermediate_size", preset.vision.mlp_width),
            patch_size=tower.get("patch_size", patch),
            table_side=tower["image_size"] // patch if "image_size" in tower else preset.vision.table_side,
        )
        llm_names = (
            "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size rms_norm_eps "
            "max_position_embeddings tie_word_embeddings"
        ).split()
        multipliers = {"scale_emb", "scale_depth", "dim_model_base"} if version == "2.0" else set()
        llm = LLMConfig(
            family=preset.llm.family,
            **{name: data[name] for name in [*llm_names, *sorted(multipliers)]},
            num_key_value_heads=data.get("num_key_value_heads", data["num_attention_heads"]),
            rope_theta=data.get("rope_theta", 10000.0),
            initializer_range=data.get("initializer_range", 0.02),
        )
        resampler = ResamplerConfig(data["query_num"], llm.hidden_size, vision.width, version=version)
        cuts = {**data, **(data.get("slice_config") or {})}
        slicing = SliceConfig(cuts.get("scale_resolution", 448), patch, cuts.get("max_slice_nums", 9))
    except KeyError as error:
        raise ValueError(f"field {error} is missing from the config of a {version} model") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"impossible config of a {version} model: {error}") from None
    return MiniCPMVConfig(version, vision, resampler, llm, slicing)


def read_tokenizer(folder: Path):
    """Load a folder's tokenizer.json as a fast `transformers` tokenizer.

    The published folders name a class of their own in tokenizer_config.json; that would run their code, so only the
    data is read: the tokenizer itself and the names of its special tokens.

    Raises:
        OSError: no tokenizer.json.
        ValueError: a damaged one.
    """
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}")
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = settings.get(name)
        if token is not None:
            special[name] = token.get("content") if isinstance(token, dict) else token
            if not isinstance(special[name], str):
                raise ValueError(f"{folder / 'tokenizer_config.json'}: {name} must be text, got {token!r}")
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file), **special)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f"{file} is not a tokenizer: {error}") from error


def published_name(name: str, config: MiniCPMVConfig) -> tuple[str, int | None]:
    """The name of one of our tensors in a published file.

    Args:
        name: a key of MiniCPMV's state dict.
        config: the model's config; only 2.0 differs.

    Returns:
        (name, part): `part` is 0, 1 or 2 where q, k or v is that third of a fused tensor, else None.

    Example:
        >>> published_name("vpm.encoder.layers.3.self_attn.k_proj.bias", v2_0)
        ('vpm.blocks.3.attn.qkv.bias', 1)
        >>> published_name("vpm.encoder.layers.3.self_attn.k_proj.bias", v2_6)
        ('vpm.encoder.layers.3.self_attn.k_proj.bias', None)
    """
    if config.version != "2.0" or not name.startswith("vpm."):
        return name, None
    if match := re.fullmatch(r"vpm\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
        layer, which, kind = match.groups()
        return f"vpm.blocks.{layer}.attn.qkv.{kind}", "qkv".index(which)
    for ours, timm in {
        "embeddings.patch_embedding": "patch_embed.proj",
        "embeddings.position_embedding.weight": "pos_embed",
        "encoder.layers": "blocks",
        "self_attn.out_proj": "attn.proj",
        "layer_norm": "norm",
        "post_layernorm": "norm",
    }.items():
        name = name.replace(ours, timm)
    return name, None


def read_tensors(folder: Path, config: MiniCPMVConfig, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Read the tensors of a model, in the files' dtype.

    Args:
        folder: a checkpoint folder.
        config: its config.
        shapes: the model's parameters: name -> shape. A tied lm_head is not among them.

    Returns:
        name -> tensor for exactly the names asked for.

    Raises:
        OSError: no weights, or a shard that the index names is not there.
        ValueError: a missing, surplus or misshapen tensor, an index that lies, a damaged shard. Every tensor of the
            files must be used, but for those in NOT_PARAMETERS and a stored copy of a tied lm_head.
    """
    published = "resampler" not in _read_json(folder / CONFIG)  # our own files use our names for 2.0 as well
    source = {name: published_name(name, config) if published else (name, None) for name in shapes}
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        file_name, part = source[name]
        if part is not None:
            shape = (3 * shape[0], *shape[1:])
        elif file_name == "vpm.pos_embed":
            shape = (1, *shape)
        expected[file_name] = tuple(shape)

    shards = _open_shards(folder)
    try:
        where = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118 (not a dict)
        headers = {name: shard.get_slice(name) for name, shard in where.items()}
        found = {name: tuple(header.get_shape()) for name, header in headers.items()}
        _compare(folder, expected, found, config)
        odd = {name for name in expected if headers[name].get_dtype() not in ("F64", "F32", "F16", "BF16")}
        if odd:  # quantized files need their own arithmetic, which lives elsewhere
            raise ValueError(f"{folder}: weights must be 16-bit, 32-bit or 64-bit floats; these are not: {_some(odd)}")
        files = {name: where[name].get_tensor(name) for name in expected}
        if config.llm.tie_word_embeddings and "llm.lm_head.weight" in where:
            copy = where["llm.lm_head.weight"].get_tensor("llm.lm_head.weight")
            embeddings = files["llm.model.embed_tokens.weight"]
            if copy.dtype != embeddings.dtype or not torch.equal(copy, embeddings):
                raise ValueError(f"{folder}: lm_head is tied to the embeddings, but the stored copy differs from them")
    except SafetensorError as error:
        raise ValueError(f"{folder}: damaged weights: {error}") from error

    tensors = {}
    for name, (file_name, part) in source.items():
        tensor = files[file_name]
        tensors[name] = tensor.chunk(3)[part] if part is not None else tensor.reshape(shapes[name])
    return tensors


def write_checkpoint(folder: str | os.PathLike, config: MiniCPMVConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write config.json and model.safetensors. Both are complete under a temporary name before either replaces a file.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drafts = {name: folder / f".{name}.{os.getpid()}.part" for name in (WEIGHTS, CONFIG)}
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, drafts[WEIGHTS], metadata={"format": "pt"})
        drafts[CONFIG].write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        for name, draft in drafts.items():
            os.replace(draft, folder / name)
    except SafetensorError as error:
        raise OSError(f"could not write {folder / WEIGHTS}: {error}") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _check_plausible(config: MiniCPMVConfig) -> None:
    """Check the type of every number, and that none is absurd."""
    for part in (config.vision, config.resampler, config.llm, config.slicing):
        for name, kind in ((field.name, field.type) for field in fields(part)):
            value, most = getattr(part, name), LIMITS.get(name, 1e12 if kind.startswith("float") else 2**20)
            if kind == "str" or (value is None and kind.endswith("None")):
                continue
            if kind == "bool" and not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
            if kind != "bool" and (isinstance(value, bool | str | list | dict) or not 0 < value <= most):
                raise ValueError(f"{name} must be a number above 0 and at most {most:g}, got {value!r}")


def _open_shards(folder: Path) -> list:
    """Open every weight file of a folder and check that the index tells the truth about each."""
    # One whole file wins over an index: saving into a published folder leaves the old shards behind.
    if (folder / WEIGHTS).is_file():
        return [_open(folder / WEIGHTS)]
    if not (folder / INDEX).is_file():
        pickles = {file.name for file in folder.glob("*.bin")}
        hint = (
            f"; pickle files ({_some(pickles)}) are not read, because they can run code of their author: "
            "get the safetensors files, or convert them where you trust them"
        )
        raise FileNotFoundError(f"neither {WEIGHTS} nor {INDEX} in {folder}" + (hint if pickles else ""))
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map from tensor names to file names")
    shards = []
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or file in ("", ".."):  # an index from a stranger must not reach outside its folder
            raise ValueError(f"{folder / INDEX} names {file!r}, which is not a plain file name")
        shard = _open(folder / file)
        claimed, held = {name for name, f in weight_map.items() if f == file}, set(shard.keys())
        if claimed != held:
            raise ValueError(
                f"{folder / INDEX} does not match {file}: listed but not there: {_some(claimed - held)}; "
                f"there but not listed: {_some(held - claimed)}"
            )
        shards.append(shard)
    return shards


def _open(file: Path):
    if not file.is_file():
        raise FileNotFoundError(f"no weight file {file}")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}") from error


def _compare(folder: Path, expected: dict, found: dict, config: MiniCPMVConfig) -> None:
    needless = {name for name in found if any(re.fullmatch(pattern, name) for pattern in NOT_PARAMETERS)}
    if config.llm.tie_word_embeddings:
        needless.add("llm.lm_head.weight")
    if config.version != "2.0":
        needless.add("resampler.pos_embed")  # a buffer in 2.5 and 2.6, recomputed for each slice's shape
    missing, surplus = set(expected) - set(found), set(found) - set(expected) - needless
    misshapen = {name for name in set(expected) & set(found) if expected[name] != found[name]}
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if surplus:
        problems.append(f"{len(surplus)} surplus: {_some(surplus)}")
    if misshapen:
        shapes = {f"{name} is {found[name]}, should be {expected[name]}" for name in misshapen}
        problems.append(f"{len(misshapen)} misshapen: {_some(shapes)}")
    if problems:
        raise ValueError(f"{folder} does not hold this {config.version} model: " + "; ".join(problems))


def _some(names: set[str], most: int = 3) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"


def _read_json(file: Path) -> dict:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # damaged JSON, damaged UTF-8, a number of 5,000 digits
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(data).__name__}")
    return data
