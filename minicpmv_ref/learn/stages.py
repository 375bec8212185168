"""The schedule as data: which part learns in which stage, from what, for how long.

    start-text  the LLM learns to read and answer, from pictures that are spelled in words, as raw text
    start-chat  the same as a conversation (the paper starts from an LLM that has both behind it)
    start-vit   the ViT learns to see, from pictures and captions that must match (the paper starts from SigLIP)
    stage-1     the resampler alone, at half resolution: it learns to speak to the LLM
    stage-2     the ViT alone, at full resolution: it learns to see details
    stage-3     ViT and resampler, with slices and documents: they learn to read; the LLM stays as it is
    sft-1       everything, short answers
    sft-2       everything, long answers and readings

Nothing here trains; `train.py` does. Left out: the learning rates of the paper, which fit a model 2,000 times as large.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from ..config import MiniCPMVConfig, nano
from ..counts import PARTS
from ..inputs.checks import check_choice, check_int, check_number, check_type, shown
from ..model import MiniCPMV
from ..positions import sincos_2d

OBJECTIVES = ("answer", "spelled", "raw", "contrast")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: of the stage and of the checkpoint that it leaves.
        objective: "answer" (predict the answers, as in every stage of the paper), "spelled" (the same, with pictures
            spelled in words), "raw" (that as raw text, without the chat template) or "contrast" (which caption belongs
            to which picture).
        learning_rates: the highest of each part that learns. A part that is not named is frozen.
        data_mix: weight of each kind of sample, see `data.draw`.
        steps: optimizer steps.
        batch: samples of one step.
        half: True shows every picture at half resolution and in one view.
        turns: questions about one picture.
        large: share of the scenes that are two views wide, and so are sliced.
        aligned: True keeps each line of a document inside one slice, False puts it anywhere.

    Raises:
        TypeError, ValueError: a field that cannot be; the message names it.
    """

    name: str
    objective: str
    learning_rates: dict[str, float]
    data_mix: dict[str, float]
    steps: int
    batch: int = 32
    half: bool = False
    turns: int = 1
    large: float = 0.0
    aligned: bool = True

    def __post_init__(self):
        check_type("name", self.name, str)
        check_choice("objective", self.objective, OBJECTIVES)
        rates = check_type("learning_rates", self.learning_rates, dict)
        if not rates or set(rates) - set(PARTS):
            raise ValueError(f"stage {self.name}: learning_rates must name at least one of {PARTS}, got {rates}")
        for part, rate in rates.items():
            check_number(f"learning_rates[{part!r}]", rate, least=0)
        for kind, weight in check_type("data_mix", self.data_mix, dict).items():
            check_number(f"data_mix[{kind!r}]", weight, least=0)
        for count in ("steps", "batch", "turns"):
            check_int(count, getattr(self, count))
        check_number("large", self.large, least=0, most=1)

    def settings(self) -> dict:
        """The fields as a training checkpoint holds them, under the names they had when the first ones were written."""
        on_disk = {"learning_rates": "rates", "data_mix": "mixture"}
        return {on_disk.get(name, name): value for name, value in asdict(self).items()}


STAGES = (
    Stage(
        "start-text",
        "raw",
        {"llm": 1.5e-3},
        {"question": 4, "talk": 2, "caption": 0.5, "long": 0.5, "crop": 2, "find": 1.5, "read": 0.7, "lookup": 0.5},
        steps=1800,
        turns=8,
        large=0.05,
    ),
    Stage(
        "start-chat",
        "spelled",
        {"llm": 6e-4},
        {"question": 3, "talk": 1.5, "caption": 0.5, "long": 0.5, "crop": 2, "find": 2, "read": 1.5, "lookup": 1},
        steps=700,
        turns=4,
        large=0.05,
    ),
    Stage("start-vit", "contrast", {"vpm": 1e-3}, {"caption": 1, "crop": 2}, steps=6000, batch=64),
    Stage("stage-1", "answer", {"resampler": 3e-3}, {"caption": 1}, steps=600, half=True),
    Stage("stage-2", "answer", {"vpm": 1e-3}, {"caption": 1, "crop": 1.5}, steps=1500),
    Stage(
        "stage-3",
        "answer",
        {"vpm": 1e-3, "resampler": 1e-3},
        {"caption": 2, "crop": 5, "read": 1},
        steps=2500,
        large=0.1,
    ),
    Stage(
        "sft-1",
        "answer",
        {"vpm": 3e-4, "resampler": 6e-4, "llm": 6e-4},
        {"question": 4, "talk": 1.5, "crop": 2.5, "find": 2, "read": 2, "lookup": 1},
        steps=2500,
        turns=6,
        large=0.1,
    ),
    Stage(
        "sft-2",
        "answer",
        {"vpm": 2e-4, "resampler": 4e-4, "llm": 4e-4},
        {"question": 2, "talk": 1.5, "long": 1.5, "caption": 1, "crop": 1.5, "find": 1, "read": 2.5, "lookup": 1},
        steps=1200,
        turns=6,
        large=0.1,
    ),
)


# What `--profile` scales: `fast` proves that every stage runs, `cpu` made the shipped checkpoints, `gpu` goes further.
@dataclass(frozen=True)
class Profile:
    """How long and how wide to train.

    Args:
        steps: factor on the steps of every stage.
        batch: factor on the samples of a step.
        config: of the model.
        grades: items for each grade at the end of a stage.
        lr_scale: factor on all learning rates.
        hard: True shows the harder world: lines of documents anywhere, so that slice borders cut them, and half of the
            scenes two views wide, wherever a stage has larger ones at all.

    Raises:
        TypeError, ValueError: a field that cannot be; the message names it.
    """

    steps: float
    batch: float
    config: MiniCPMVConfig = field(default=nano, repr=False)
    grades: int = 100
    lr_scale: float = 1.0
    hard: bool = False

    def __post_init__(self):
        for factor in ("steps", "batch", "lr_scale"):
            check_number(factor, getattr(self, factor), above=0)
        check_type("config", self.config, MiniCPMVConfig)
        check_int("grades", self.grades)


# Twenty times nano, 57 M parameters: tokenizer, views and queries are nano's. Whatever GGUF quantizes has rows that
# are multiples of 256, LLM heads are 64 wide and those of the resampler 128, as llama.cpp wants them.
larger = replace(
    nano,
    vision=replace(nano.vision, width=512, layers=8, heads=8, mlp_width=1536),
    resampler=replace(nano.resampler, width=512, kv_width=512),
    llm=replace(
        nano.llm,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
)

PROFILES = {
    "fast": Profile(1 / 200, 1 / 4, grades=2),
    "cpu": Profile(1, 1, grades=50),
    "gpu": Profile(1 / 4, 4, larger, grades=100, lr_scale=0.5, hard=True),
}


def scaled(stage: Stage, profile: Profile) -> Stage:
    """The stage as a profile wants it: at least two steps, and at least two samples in each."""
    check_type("stage", stage, Stage), check_type("profile", profile, Profile)
    if profile.hard:
        # Pictures that are spelled in words must have whole lines in each slice.
        stage = replace(stage, aligned=stage.objective != "answer", large=0.5 if stage.large else 0.0)
    return replace(
        stage,
        steps=max(2, round(stage.steps * profile.steps)),
        batch=max(2, round(stage.batch * profile.batch)),
        learning_rates={part: rate * profile.lr_scale for part, rate in stage.learning_rates.items()},
    )


def stage_named(name: str) -> Stage:
    """Look up a stage; ValueError if there is none of this name."""
    check_type("stage", name, str, what="the name of a stage")
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ValueError(f"no stage {shown(name)}; there are {', '.join(stage.name for stage in STAGES)}")


def freeze(model: MiniCPMV, stage: Stage) -> list[nn.Parameter]:
    """Let exactly the parts learn that a stage names, and freeze the others.

    Args:
        model: changed in place.
        stage: a Stage.

    Returns:
        The parameters that learn.

    Raises:
        TypeError: no model, or no Stage.
        ValueError: the model has LoRA adapters, which say by themselves what learns.

    Example:
        >>> model = MiniCPMV.seeded(nano)
        >>> learning = freeze(model, stage_named("stage-1"))
        >>> sum(p.numel() for p in learning) == sum(p.numel() for p in model.resampler.parameters())
        True
    """
    check_type("model", model, nn.Module, what="a model")
    check_type("stage", stage, Stage)
    if model.has_adapters:
        raise ValueError("the model has adapters: lora_optimizer knows what learns; or merge_lora before")
    for part in PARTS:
        for name, parameter in getattr(model, part).named_parameters():
            constant = name == "pos_embed"  # of 2.0
            parameter.requires_grad_(part in stage.learning_rates and not constant)
    return [p for p in model.parameters() if p.requires_grad]


def start(config: MiniCPMVConfig = nano, seed: int = 0) -> MiniCPMV:
    """Build a model with random weights that are easy to train from.

    A large model learns all this by itself from hundreds of millions of pictures. A small one that trains for an hour
    needs a better start. The model stays the same, only its random numbers are chosen with more care:

    1. Neighbors have similar positions: the ViT's table starts as sines and cosines, not as noise.
    2. The ViT's weights are three times as large. At the usual 0.02 and this width, every layer adds nearly nothing.
    3. Query i looks at its own part of the picture: it starts at the mean position of these patches, and queries and
       keys are projected alike, so that equal things match. At random, all queries see the same average.
    4. The LLM's weights start at 0.06 instead of 0.02, for the reason of 2; the resampler's output has their size.

    Args:
        config: a MiniCPMVConfig whose num_queries is a square.
        seed: of the random numbers.

    Returns:
        A MiniCPMV.

    Raises:
        TypeError, ValueError: no config, num_queries that is no square, or a seed that is not from 0 to 2^63 - 1.

    Example:
        >>> start(nano).resampler.query.shape
        torch.Size([16, 256])
    """
    check_type("config", config, MiniCPMVConfig)
    check_int("seed", seed, least=0)
    if math.isqrt(config.resampler.num_queries) ** 2 != config.resampler.num_queries:
        raise ValueError(f"num_queries must be a square number to start from, got {config.resampler.num_queries}")
    wide = replace(config, llm=replace(config.llm, initializer_range=0.06))
    model = MiniCPMV.seeded(wide, seed)
    model.config = config
    vpm, resampler = model.vpm, model.resampler
    with torch.no_grad():
        for name, parameter in vpm.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(3)
        table = vpm.embeddings.position_embedding.weight
        side = config.vision.table_side
        table.copy_(0.3 * sincos_2d(config.vision.width, side, side).reshape(table.shape))

        side = math.isqrt(config.resampler.num_queries)
        patches = config.slicing.scale_resolution // config.slicing.patch_size
        positions = sincos_2d(config.resampler.width, patches, patches).permute(2, 0, 1)
        resampler.query.copy_(nn.functional.adaptive_avg_pool2d(positions, side).flatten(1).T)
        queries, keys, _ = resampler.attn.in_proj_weight.chunk(3)
        queries.copy_(keys)
        resampler.kv_proj.weight.mul_(5)
        resampler.proj.mul_(0.06)
    return model
