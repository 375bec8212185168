"""A folder's config.json: where it lies, and what it says. Ours, or a published one of 2.0, 2.5 or 2.6.

Nothing here needs torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from ..config import LLMConfig, MiniCPMVConfig, ResamplerConfig, SliceConfig, VisionConfig, v2_0, v2_5, v2_6
from .checks import LIMITS, check_int, check_list, check_type, printable, shown
from .files import read_json

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# What a config may switch off in the released code, and what is always on here: cutting, image ids, views in one batch
# (without it the positions of 2.5 follow each view's own length).
SWITCHES = {
    "2.0": {"slice_mode": True},
    "2.5": {"slice_mode": True, "batch_vision_input": True},
    "2.6": {"slice_mode": True, "use_image_id": True},
}
INSTEAD = {"use_image_id": ": set it to true, and give use_image_id=False in each call of the Processor"}
BUNDLED = Path(__file__).resolve().parents[2] / "data_samples" / "checkpoints"


def find_folder(path: str | os.PathLike) -> Path:
    """Resolve a checkpoint's path; "nano" and "nano-..." are the course's own, found beside the package.

    Raises:
        TypeError: not a path.
        OSError: there is no such folder; the message names the place.
    """
    name = os.fspath(check_type("path", path, str, os.PathLike))
    bundled = BUNDLED / name if name == "nano" or name.startswith("nano-") else None
    for folder in filter(None, (bundled, Path(name))):  # a folder of yours may be called nano-something, too
        if os.path.isdir(folder):
            return folder
    hint = " (the course's checkpoints lie beside the package, in its repository)" if bundled else ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = " (this takes a path, not the name of a repository: download its files first)"
    raise FileNotFoundError(f"no checkpoint folder at {printable(str(bundled or name))[:500]}{hint}")


def read_config(folder: Path) -> MiniCPMVConfig:
    """Read a folder's config.json: ours, or a published one of 2.0, 2.5 or 2.6.

    Raises:
        OSError: no config.json; a LoRA adapter without its base.
        ValueError: not JSON, a LoRA adapter beside a model, quantized weights, or a config that no MiniCPM-V of these
            versions has; the message names the field.
    """
    if (folder / "adapter_config.json").is_file():
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder} is a LoRA adapter, no model: `load_lora` puts it onto its base")
        raise ValueError(
            f"{folder} holds a model and a LoRA adapter, which would be left out: move adapter_config.json and "
            "adapter_model.safetensors to a folder of their own, and `load_lora` puts them onto the model"
        )
    names = (CONFIG, "adapter_config.json")  # of a model, and of LoRA before its end
    below = [file for depth in ("*", "*/*") for name in names for file in folder.glob(f"{depth}/{name}")]
    if below and not (folder / CONFIG).exists():  # the folder of a run, or of a training that has not ended
        newest = max(below, key=lambda file: file.stat().st_mtime).parent
        raise FileNotFoundError(f"no {CONFIG} in {folder}; the newest checkpoint below it is {newest}")
    data = read_json(folder / CONFIG)
    if "peer" in data:
        raise ValueError(f"{folder} has another connector or cutting rule: minicpmv_ref.peers.load(path) reads it")
    data.pop("base", None)
    try:
        if "resampler" in data:
            return MiniCPMVConfig.from_dict(data)
        config = config_from_published(data)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    _check_preprocessor(folder / PREPROCESSOR, config)
    return config


def _check_preprocessor(file: Path, config: MiniCPMVConfig) -> None:
    """The released processors cut and normalize as this file says, and `chat` stops where it contradicts config.json.

    Source: chat in modeling_minicpmv.py of 2.6; image_processing_minicpmv.py, MiniCPMVImageProcessor.
    """
    said = vars(config.slicing) | {"image_feature_size": config.resampler.num_queries}
    said |= {"norm_mean": [0.5] * 3, "norm_std": [0.5] * 3} | SWITCHES[config.version]
    given = read_json(file) if file.is_file() else {}
    for name in _contradicted(given, said):
        raise ValueError(
            f"{file}: {name} is {shown(given[name])}, but the model of {CONFIG} beside it has {said[name]}: pictures "
            "would be cut or scaled otherwise than released. Correct one of the two files"
        )


def base_folder(folder: Path) -> Path | None:
    """The folder beside this one that holds what this checkpoint does not: weights that it left as they were.

    Raises:
        OSError: no config.json, or the base is not there.
        ValueError: a base that is not the plain name of a folder, or that leads back to where it began.
    """
    seen = [folder.name]
    while True:
        base = read_json(folder / CONFIG).get("base")
        if base is None:
            return folder.parent / seen[1] if len(seen) > 1 else None
        if not isinstance(base, str) or Path(base).name != base or base in ("", "..", "."):
            raise ValueError(f"{folder / CONFIG}: base must be the name of a folder beside it, got {shown(base)}")
        if base in seen:
            raise ValueError(f"{folder / CONFIG}: its base leads in a circle: {printable(' -> '.join([*seen, base]))}")
        seen.append(base)
        folder = folder.parent / base
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {printable(str(folder))}, which holds the other tensors of {seen[0]}")


def config_from_published(data: dict) -> MiniCPMVConfig:
    """Translate a published config.json.

    Args:
        data: the parsed JSON. 2.0 has no version key and no vision_config, 2.5's version is a string, 2.6's a number.
            A vision_config overrides the tower's dimensions; it counts layers before `drop_vision_last_layer`.
            transformers 5 writes rope_parameters, with rope_theta inside.

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
    check_type("config", data, dict)
    presets = {"2.0": v2_0, "2.5": v2_5, "2.6": v2_6}
    version = str(data.get("version", "2.0"))
    if version not in presets:
        raise ValueError(f'version must be missing (2.0), "2.5" or 2.6, got {shown(data["version"])}')
    preset = presets[version]
    if data.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config says that the weights are quantized (bitsandbytes, AWQ, GPTQ), which is not read "
            "here: download the model in bfloat16 or float16; `export` quantizes it for llama.cpp"
        )
    try:
        _check_fixed(data, "", **SWITCHES[version])
        vision = _published_vision(data, preset)
        llm = _published_llm(data, preset)
        resampler = ResamplerConfig(data["query_num"], llm.hidden_size, vision.width, version=version)
        cuts, tower = _part(data, "slice_config"), _part(data, "vision_config")
        slicing = SliceConfig(
            _agreed("scale_resolution", data, cuts, default=448),
            _agreed("patch_size", data, tower, cuts, default=14),
            _agreed("max_slice_nums", data, cuts, default=9),
        )
    except KeyError as error:
        raise ValueError(f"field {error} is missing from the config of a {version} model") from None
    except ValueError as error:
        raise ValueError(f"impossible config of a {version} model: {error}") from None
    return MiniCPMVConfig(version, vision, resampler, llm, slicing)


def _published_vision(data: dict, preset: MiniCPMVConfig) -> VisionConfig:
    drops_last = check_type("drop_vision_last_layer", data.get("drop_vision_last_layer", True), bool)
    tower = _part(data, "vision_config")
    if not tower:  # 2.0 was built with 27 layers, too
        return replace(preset.vision, layers=27 - drops_last, patch_size=_agreed("patch_size", data, default=14))
    act = "gelu" if preset.vision.act == "gelu" else "gelu_pytorch_tanh"
    _check_fixed(tower, "vision_config.", hidden_act=act, layer_norm_eps=preset.vision.eps, num_channels=3)
    names = "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size".split()
    for name in names:
        if name not in tower:
            raise KeyError(f"vision_config.{name}")
        check_int(f"vision_config.{name}", tower[name], most=LIMITS["config_integer"])
    patch = check_int("patch_size", _agreed("patch_size", data, tower, default=14), most=LIMITS["patch_size"])
    width, layers, heads, mlp_width, side = (tower[name] for name in names)
    return replace(
        preset.vision,
        width=width,
        layers=layers - drops_last,
        heads=heads,
        mlp_width=mlp_width,
        patch_size=patch,
        table_side=side // patch,
    )


def _published_llm(data: dict, preset: MiniCPMVConfig) -> LLMConfig:
    multipliers = ["dim_model_base", "scale_depth", "scale_emb"]
    fixed = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)
    _check_fixed(data, "", **fixed, **({} if preset.version == "2.0" else dict.fromkeys(multipliers)))
    kinds = check_list("layer_types", [] if data.get("layer_types") is None else data["layer_types"])
    if any(kind != "full_attention" for kind in kinds):
        raise ValueError("layer_types: layers that are not full_attention belong to none of these models")
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
        "rms_norm_eps max_position_embeddings tie_word_embeddings"
    ).split()
    llm = LLMConfig(
        family=preset.llm.family,
        **{name: data[name] for name in names + (multipliers if preset.version == "2.0" else [])},
        rope_theta=_rope_theta(data, preset),
        initializer_range=data.get("initializer_range", preset.llm.initializer_range),
    )
    _check_fixed(data, "", head_dim=llm.head_width)
    return llm


def _rope_theta(data: dict, preset: MiniCPMVConfig) -> float:
    """The base of the rotary positions. Scaling is refused wherever it stands."""
    places = {name: _part(data, name) for name in ("rope_parameters", "rope_scaling")}
    for name, place in places.items():
        for key, value in place.items():
            plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1, "rope_theta": value}
            if value is not None and (key not in plain or value != plain[key]):
                raise ValueError(
                    f"{name}.{printable(key)}: scaled positions (rope_scaling) belong to no model read here"
                )
    default = preset.llm.rope_theta if preset.version == "2.0" else None  # its class has one of its own: 10000
    return _agreed("rope_theta", data, *places.values(), default=default)


def _part(data: dict, name: str) -> dict:
    return {} if data.get(name) is None else check_type(name, data[name], dict, what="an object of fields")


def _agreed(name: str, *places: dict, default=None):
    """A field that may stand in several places, which must agree; without a default one of them must have it."""
    found = [place[name] for place in places if place.get(name) is not None] or [default]
    if found[0] is None:
        raise KeyError(name)
    for other in found:
        if other != found[0]:
            raise ValueError(f"{name} is {shown(found[0])} in one place and {shown(other)} in another")
    return found[0]


def _check_fixed(given: dict, where: str, **allowed) -> None:
    """Refuse what would change the computation and that none of these models has."""
    for name in _contradicted(given, allowed):
        raise ValueError(f"{where}{name} = {shown(given[name])} belongs to none of these models{INSTEAD.get(name, '')}")


def _contradicted(given: dict, wanted: dict) -> list[str]:
    """The names whose values in a file are others; a file need not give them."""
    return [name for name, value in wanted.items() if given.get(name) is not None and given[name] != value]
