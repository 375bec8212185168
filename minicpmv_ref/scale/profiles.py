"""What `--profile` scales: `fast` proves that it all runs, `cpu` made the shipped checkpoints, `gpu` goes further."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..config import MiniCPMVConfig, nano
from ..inputs.checks import check_int, check_number, check_type
from ..learn.stages import Stage


@dataclass(frozen=True)
class Profile:
    """How long and how wide to train.

    TypeError or ValueError names a field that cannot be.
    """

    steps: float  # factor on the steps of every stage
    batch: float  # factor on the samples of a step
    config: MiniCPMVConfig = field(default=nano, repr=False)  # of the model
    grades: int = 100  # items for each grade at the end of a stage
    lr_scale: float = 1.0  # factor on all learning rates
    # The harder world: lines of documents anywhere, so that slice borders cut them, and half of the scenes two views
    # wide, wherever a stage has larger ones at all.
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
