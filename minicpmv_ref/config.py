"""Every size of the model as a frozen dataclass, and the presets of the three released models plus nano.

Nothing here needs torch. Sizes that follow from other sizes are properties, so they can never be stale.
The presets are checked to the last parameter: built on the meta device, v2_0, v2_5 and v2_6 have
3,434,965,792, 8,537,092,336 and 8,099,175,152 parameters, the totals of the released files.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from .checks import LIMITS, check_int, check_list, check_number, check_type, printable, shown
from .files import read_json

VERSIONS = ("2.0", "2.5", "2.6")


def _check_numbers(config) -> None:
    """Check the type of every number of a config, and that none is absurd."""
    for entry in fields(config):
        name, value = f"{type(config).__name__}.{entry.name}", getattr(config, entry.name)
        kind, _, optional = entry.type.partition(" | ")
        if kind == "str" or (value is None and optional):
            continue
        if kind == "bool":
            check_type(name, value, bool, what="true or false")
        elif kind == "float":
            check_number(name, value, above=0, most=LIMITS.get(entry.name, LIMITS["config_fraction"]))
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {shown(value)}")
        else:
            check_int(name, value, most=LIMITS.get(entry.name, LIMITS["config_integer"]))


def _check_choice(config, name: str, allowed: tuple) -> None:
    if getattr(config, name) not in allowed:
        raise ValueError(f"{type(config).__name__}.{name} must be one of {allowed}, got {shown(getattr(config, name))}")


@dataclass(frozen=True)
class SliceConfig:
    """How an image is cut: slices of about `scale_resolution` squared pixels, at most `max_slice_nums` of them."""

    scale_resolution: int = 448  # side in pixels of one square slice; not the side of the position table
    patch_size: int = 14  # side in pixels of one ViT patch; every slice side is a multiple of it
    max_slice_nums: int = 9  # the overview is not counted

    def __post_init__(self):
        _check_numbers(self)
        if self.scale_resolution < self.patch_size:
            raise ValueError(
                f"SliceConfig.scale_resolution must be at least patch_size = {self.patch_size}, "
                f"got {self.scale_resolution}"
            )
        if self.scale_resolution > self.patch_size * LIMITS["view_side"]:
            raise ValueError(
                f"SliceConfig.scale_resolution must be at most {LIMITS['view_side']} patches of patch_size = "
                f"{self.patch_size}, got {self.scale_resolution}"
            )


@dataclass(frozen=True)
class VisionConfig:
    """A SigLIP-style ViT. `position` says how a patch finds its row in the position table."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_size: int = 14
    table_side: int = 70  # the position table has table_side * table_side rows
    position: str = "bucket"  # "bucket" (2.6), "interpolate" (2.0) or "released_2_5"
    act: str = "gelu_tanh"  # "gelu_tanh" (2.5, 2.6) or the exact "gelu" (2.0)
    eps: float = 1e-6

    def __post_init__(self):
        _check_numbers(self)
        _check_choice(self, "position", ("bucket", "interpolate", "released_2_5"))
        _check_choice(self, "act", ("gelu_tanh", "gelu"))
        if self.width % self.heads:
            raise ValueError(f"VisionConfig.width = {self.width} is not a multiple of heads = {self.heads}")


class _Derived(int):
    """A number that was computed, not given: `dataclasses.replace` passes it on, and it is computed again."""


@dataclass(frozen=True)
class ResamplerConfig:
    """One cross-attention layer that turns any number of patches into `num_queries` tokens."""

    num_queries: int
    width: int  # of the LLM
    kv_width: int  # of the ViT
    heads: int | None = None  # None: one head per 128 channels, as released
    version: str = "2.6"
    eps: float = 1e-6

    def __post_init__(self):
        _check_numbers(self)
        if self.heads is None or isinstance(self.heads, _Derived):
            # The only derived value that a caller may override, so it is stored, not a property.
            object.__setattr__(self, "heads", _Derived(max(1, self.width // 128)))
        _check_choice(self, "version", VERSIONS)
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"ResamplerConfig.width = {self.width} must be a multiple of heads = {self.heads} and of 4 "
                "(two sine and two cosine quarters)"
            )
        if self.version == "2.0" and math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise ValueError(f"2.0 lays its queries out as a square; num_queries = {self.num_queries} is not one")


@dataclass(frozen=True)
class LLMConfig:
    """The language model. It is a `transformers` causal LM; these are the numbers it is built from."""

    family: str  # "granite" (MiniCPM-2.4B of 2.0), "llama" (2.5, nano) or "qwen2" (2.6)
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    # The three multipliers of MiniCPM-2.4B, under their published names; None means "not used".
    scale_emb: float | None = None
    scale_depth: float | None = None
    dim_model_base: int | None = None

    def __post_init__(self):
        _check_choice(self, "family", ("granite", "llama", "qwen2"))
        _check_numbers(self)
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"LLMConfig: hidden_size {self.hidden_size} must divide into {self.num_attention_heads} heads, "
                f"and those into {self.num_key_value_heads} key-value heads"
            )
        multipliers = (self.scale_emb, self.scale_depth, self.dim_model_base)
        if self.family == "granite" and not all(multipliers):
            raise ValueError("LLMConfig of family 'granite' needs scale_emb, scale_depth and dim_model_base")
        if self.family != "granite" and any(m is not None for m in multipliers):
            raise ValueError(f"LLMConfig of family {self.family!r} takes no scale_emb, scale_depth, dim_model_base")

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_multiplier(self) -> float:
        """What the LLM multiplies its input embeddings by (12 in 2.0; visual tokens are not meant to be)."""
        return self.scale_emb or 1.0

    @property
    def residual_multiplier(self) -> float:
        return self.scale_depth / math.sqrt(self.num_hidden_layers) if self.scale_depth else 1.0

    @property
    def logits_divisor(self) -> float:
        return self.hidden_size / self.dim_model_base if self.dim_model_base else 1.0


_PARTS = {"vision": VisionConfig, "resampler": ResamplerConfig, "llm": LLMConfig, "slicing": SliceConfig}


@dataclass(frozen=True)
class MiniCPMVConfig:
    """The whole model: eyes (`vision`), the bottleneck (`resampler`), the mouth (`llm`), and the scissors (`slicing`).

    `version` chooses text layout and chat template: "2.0", "2.5" or "2.6".
    """

    version: str
    vision: VisionConfig
    resampler: ResamplerConfig
    llm: LLMConfig
    slicing: SliceConfig = field(default_factory=SliceConfig)

    def __post_init__(self):
        _check_choice(self, "version", VERSIONS)
        for name, kind in _PARTS.items():
            check_type(f"MiniCPMVConfig.{name}", getattr(self, name), kind)
        for left, right, a, b in (
            ("resampler.kv_width", "vision.width", self.resampler.kv_width, self.vision.width),
            ("resampler.width", "llm.hidden_size", self.resampler.width, self.llm.hidden_size),
            ("slicing.patch_size", "vision.patch_size", self.slicing.patch_size, self.vision.patch_size),
        ):
            if a != b:
                raise ValueError(f"MiniCPMVConfig: {left} = {a} must equal {right} = {b}")
        if (self.version == "2.0") != (self.resampler.version == "2.0"):
            raise ValueError(f"a {self.version} model cannot hold a {self.resampler.version} resampler")

    def to_dict(self) -> dict:
        """The config as plain JSON types; `from_dict` is its inverse."""
        parts = {name: dict(vars(getattr(self, name))) for name in _PARTS}
        return {"version": self.version, **parts}

    @classmethod
    def from_dict(cls, data: dict) -> MiniCPMVConfig:
        """Build a config from `to_dict`'s output.

        Raises:
            ValueError: an unknown, missing or impossible field, by name.
        """
        check_type("config", data, dict)
        unknown = set(data) - {"version", *_PARTS}
        missing = {"version", "vision", "resampler", "llm"} - set(data)
        if unknown or missing:
            raise ValueError(f"config: unknown fields {_listed(unknown)}, missing fields {_listed(missing)}")
        parts = {}
        for name, kind in _PARTS.items():
            given = check_type(f"config.{name}", data.get(name, {}), dict, what="a dict of fields")
            unknown = set(given) - {f.name for f in fields(kind)}
            # A default would be another model's: `to_dict` writes all. None says that there is nothing.
            missing = {f.name for f in fields(kind) if f.default is not None} - set(given)
            missing = missing if name in data else set()
            if unknown or missing:
                wrong = f"unknown fields {_listed(unknown)}, missing fields {_listed(missing)}"
                raise ValueError(f"config.{name}: {wrong}")
            parts[name] = kind(**given)
        return cls(version=data["version"], **parts)


def _listed(names: set) -> str:
    return shown(sorted(map(str, names)), 200)


_SIGLIP = dict(width=1152, heads=16, mlp_width=4304)

v2_0 = MiniCPMVConfig(
    version="2.0",
    # 27 layers were trained, the last one is dropped. The exact GELU is what timm 0.9.10 builds: its model names no
    # activation, so it takes timm's default.
    vision=VisionConfig(**_SIGLIP, layers=26, table_side=27, position="interpolate", act="gelu"),
    resampler=ResamplerConfig(num_queries=64, width=2304, kv_width=1152, version="2.0"),
    llm=LLMConfig(
        family="granite",
        hidden_size=2304,
        intermediate_size=5760,
        num_hidden_layers=40,
        num_attention_heads=36,
        num_key_value_heads=36,
        vocab_size=122753,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        scale_emb=12,
        scale_depth=1.4,
        dim_model_base=256,
    ),
)

v2_5 = MiniCPMVConfig(
    version="2.5",
    vision=VisionConfig(**_SIGLIP, layers=27, position="released_2_5"),
    resampler=ResamplerConfig(num_queries=96, width=4096, kv_width=1152, version="2.5"),
    llm=LLMConfig(
        family="llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=8192,
    ),
)

v2_6 = MiniCPMVConfig(
    version="2.6",
    vision=VisionConfig(**_SIGLIP, layers=27),
    resampler=ResamplerConfig(num_queries=64, width=3584, kv_width=1152),
    llm=LLMConfig(
        family="qwen2",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=151666,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
    ),
)

# The course's own model: slice side and number of queries are the big one's divided by four (112 pixels, 16 queries),
# widths and depths far smaller, every algorithm the same. Small enough for a CPU, real enough for llama.cpp.
nano = MiniCPMVConfig(
    version="2.6",
    vision=VisionConfig(width=128, layers=4, heads=4, mlp_width=384),
    resampler=ResamplerConfig(num_queries=16, width=256, kv_width=128),
    llm=LLMConfig(
        family="llama",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1024,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    ),
    slicing=SliceConfig(scale_resolution=112),
)

PRESETS = {"v2_0": v2_0, "v2_5": v2_5, "v2_6": v2_6, "nano": nano}


# ---- config.json

CONFIG = "config.json"
BUNDLED = Path(__file__).resolve().parent.parent / "data_samples" / "checkpoints"


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
    data = read_json(folder / CONFIG)
    data.pop("base", None)
    try:
        return MiniCPMVConfig.from_dict(data) if "resampler" in data else config_from_published(data)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


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
    for name, value in allowed.items():
        if given.get(name) is not None and given[name] != value:
            raise ValueError(f"{where}{name} = {shown(given[name])} belongs to none of these models")
