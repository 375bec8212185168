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

from .files import read_json

VERSIONS = ("2.0", "2.5", "2.6")


def _check_positive(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name} must be an integer of at least 1, got {value!r}")


def _check_choice(config, name: str, allowed: tuple) -> None:
    if getattr(config, name) not in allowed:
        raise ValueError(f"{type(config).__name__}.{name} must be one of {allowed}, got {getattr(config, name)!r}")


@dataclass(frozen=True)
class SliceConfig:
    """How an image is cut: slices of about `scale_resolution` squared pixels, at most `max_slice_nums` of them."""

    scale_resolution: int = 448  # side in pixels of one square slice; not the side of the position table
    patch_size: int = 14  # side in pixels of one ViT patch; every slice side is a multiple of it
    max_slice_nums: int = 9  # the overview is not counted

    def __post_init__(self):
        _check_positive(self, "scale_resolution", "patch_size", "max_slice_nums")
        if self.scale_resolution < self.patch_size:
            raise ValueError(
                f"SliceConfig.scale_resolution must be at least patch_size = {self.patch_size}, "
                f"got {self.scale_resolution}"
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
        _check_positive(self, "width", "layers", "heads", "mlp_width", "patch_size", "table_side")
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
        _check_positive(self, "num_queries", "width", "kv_width")
        if self.heads is None or isinstance(self.heads, _Derived):
            # The only derived value that a caller may override, so it is stored, not a property.
            object.__setattr__(self, "heads", _Derived(max(1, self.width // 128)))
        _check_positive(self, "heads")
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
        _check_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _check_positive(self, "num_key_value_heads", "vocab_size", "max_position_embeddings")
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
        parts = {name: dict(vars(getattr(self, name))) for name in ("vision", "resampler", "llm", "slicing")}
        return {"version": self.version, **parts}

    @classmethod
    def from_dict(cls, data: dict) -> MiniCPMVConfig:
        """Build a config from `to_dict`'s output.

        Raises:
            ValueError: an unknown, missing or impossible field, by name.
        """
        kinds = {"vision": VisionConfig, "resampler": ResamplerConfig, "llm": LLMConfig, "slicing": SliceConfig}
        unknown = set(data) - {"version", *kinds}
        missing = {"version", "vision", "resampler", "llm"} - set(data)
        if unknown or missing:
            raise ValueError(f"config: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
        parts = {}
        for name, kind in kinds.items():
            given = data.get(name, {})
            if not isinstance(given, dict):
                raise ValueError(f"config.{name} must be a dict of fields, got {given!r}")
            strange = set(given) - {f.name for f in fields(kind)}
            if strange:
                raise ValueError(f"config.{name}: unknown fields {sorted(strange)}")
            try:
                parts[name] = kind(**given)
            except TypeError as error:  # a missing field
                raise ValueError(f"config.{name}: {error}") from None
        return cls(version=data["version"], **parts)


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
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = " (this takes a path, not the name of a repository: download its files first)"
    raise FileNotFoundError(f"no checkpoint folder at {bundled or name}{hint}")


def read_config(folder: Path) -> MiniCPMVConfig:
    """Read a folder's config.json: ours, or a published one of 2.0, 2.5 or 2.6.

    Raises:
        OSError: no config.json; a LoRA adapter without its base.
        ValueError: not JSON, or a config that no MiniCPM-V of these versions has; the message names the field.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is a LoRA adapter, no model: `load_lora` puts it onto its base")
    data = read_json(folder / CONFIG)
    data.pop("base", None)
    try:
        config = MiniCPMVConfig.from_dict(data) if "resampler" in data else config_from_published(data)
        _check_plausible(config)
        return config
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
            raise ValueError(f"{folder / CONFIG}: base must be the name of a folder beside it, got {base!r}")
        if base in seen:
            raise ValueError(f"{folder / CONFIG}: its base leads in a circle: {' -> '.join([*seen, base])}")
        seen.append(base)
        folder = folder.parent / base
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}, which holds the other tensors of {seen[0]}")


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


def _check_plausible(config: MiniCPMVConfig) -> None:
    """Check the type of every number, and that none is absurd."""
    for part in (config.vision, config.resampler, config.llm, config.slicing):
        for name, kind in ((entry.name, entry.type) for entry in fields(part)):
            value, most = getattr(part, name), LIMITS.get(name, 1e12 if kind.startswith("float") else 2**20)
            if kind == "str" or (value is None and kind.endswith("None")):
                continue
            if kind == "bool" and not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
            if kind != "bool" and (isinstance(value, bool | str | list | dict) or not 0 < value <= most):
                raise ValueError(f"{name} must be a number above 0 and at most {most:g}, got {value!r}")
