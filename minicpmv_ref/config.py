"""Every size of the model as a frozen dataclass, and the presets of the three released models plus nano.

Nothing here needs torch. Sizes that follow from other sizes are properties, so they can never be stale.
The presets are checked to the last parameter: built on the meta device, v2_0, v2_5 and v2_6 have
3,434,965,792, 8,537,092,336 and 8,099,175,152 parameters, the totals of the released files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from .inputs.checks import LIMITS, check_choice, check_int, check_number, check_type, shown

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
        check_choice("VisionConfig.position", self.position, ("bucket", "interpolate", "released_2_5"))
        check_choice("VisionConfig.act", self.act, ("gelu_tanh", "gelu"))
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
        check_choice("ResamplerConfig.version", self.version, VERSIONS)
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
        check_choice("LLMConfig.family", self.family, ("granite", "llama", "qwen2"))
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
    """The whole model. `version` chooses text layout and chat template: "2.0", "2.5" or "2.6"."""

    version: str
    vision: VisionConfig
    resampler: ResamplerConfig
    llm: LLMConfig
    slicing: SliceConfig = field(default_factory=SliceConfig)

    def __post_init__(self):
        check_choice("MiniCPMVConfig.version", self.version, VERSIONS)
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


def __getattr__(name: str):
    """Names that users find here although reading a folder's config.json stands in a file of its own."""
    if name not in ("config_from_published", "BUNDLED"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .inputs import published

    return getattr(published, name)
