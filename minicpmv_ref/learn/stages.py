"""The schedule as data: which part learns in which stage, from what, for how long.

    start-text  the LLM learns to read and answer, from pictures that are spelled in words, as raw text
    start-chat  the same as a conversation (the paper starts from an LLM that has learned both)
    start-vit   the ViT learns to see, from pictures and captions that must match (the paper starts from SigLIP)
    stage-1     the resampler alone, at half resolution: it learns to speak to the LLM
    stage-2     the ViT alone, at full resolution: it learns to see details
    stage-3     ViT and resampler, with slices and documents: they learn to read; the LLM stays as it is
    sft-1       everything, short answers
    sft-2       everything, long answers and readings
    sft-3-words to sft-5   several pictures, clips and boxes, from a finished nano; see LATER

Nothing here trains; `train.py` does. Left out: the learning rates of the paper, which fit a model 2,000 times as large.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from ..counts import PARTS
from ..inputs.checks import check_choice, check_int, check_number, check_type, shown
from ..model import MiniCPMV
from ..toy.start import start  # noqa: F401  the model that the first stage begins with

OBJECTIVES = ("answer", "spelled", "raw", "contrast")


@dataclass(frozen=True)
class Stage:
    """One stage of training. TypeError or ValueError names a field that cannot be."""

    name: str  # of the stage and of the checkpoint that it leaves
    objective: str  # "answer" predicts the answers, as in every stage of the paper. "spelled": the same, with pictures
    # spelled in words; "raw": that as raw text, without the chat template; "contrast": which caption fits which picture
    learning_rates: dict[str, float]  # the highest of each part that learns; a part that is not named is frozen
    data_mix: dict[str, float]  # weight of each kind of sample, see `toy.data.draw`
    steps: int  # of the optimizer
    batch: int = 32  # samples of one step
    half: bool = False  # show every picture at half resolution and in one view
    turns: int = 1  # questions about one picture
    large: float = 0.0  # share of the scenes that are two views wide, and so are sliced
    aligned: bool = True  # keep each line of a document inside one slice; or put it anywhere
    ids: bool = False  # write `<image_id>` at every step, not only at every other one

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
        fields = asdict(self)
        if not self.ids:  # checkpoints from before there was this field
            del fields["ids"]
        return {on_disk.get(name, name): value for name, value in fields.items()}


# Each stage with its learning rates, then its data mix.
# fmt: off
STAGES = (
    Stage("start-text", "raw", {"llm": 1.5e-3}, {
        "question": 4, "talk": 2, "caption": 0.5, "long": 0.5, "crop": 2, "find": 1.5, "read": 0.7, "lookup": 0.5,
    }, steps=1800, turns=8, large=0.05),
    Stage("start-chat", "spelled", {"llm": 6e-4}, {
        "question": 3, "talk": 1.5, "caption": 0.5, "long": 0.5, "crop": 2, "find": 2, "read": 1.5, "lookup": 1,
    }, steps=700, turns=4, large=0.05),
    Stage("start-vit", "contrast", {"vpm": 1e-3}, {"caption": 1, "crop": 2}, steps=6000, batch=64),
    Stage("stage-1", "answer", {"resampler": 3e-3}, {"caption": 1}, steps=600, half=True),
    Stage("stage-2", "answer", {"vpm": 1e-3}, {"caption": 1, "crop": 1.5}, steps=1500),
    Stage("stage-3", "answer", {"vpm": 1e-3, "resampler": 1e-3}, {
        "caption": 2, "crop": 5, "read": 1,
    }, steps=2500, large=0.1),
    Stage("sft-1", "answer", {"vpm": 3e-4, "resampler": 6e-4, "llm": 6e-4}, {
        "question": 4, "talk": 1.5, "crop": 2.5, "find": 2, "read": 2, "lookup": 1,
    }, steps=2500, turns=6, large=0.1),
    Stage("sft-2", "answer", {"vpm": 2e-4, "resampler": 4e-4, "llm": 4e-4}, {
        "question": 2, "talk": 1.5, "long": 1.5, "caption": 1, "crop": 1.5, "find": 1, "read": 2.5, "lookup": 1,
    }, steps=1200, turns=6, large=0.1),
)
LATER = (  # several pictures, clips and boxes, from a finished nano; the schedule above does without
    # Where pictures are words, to find "picture 2" is learned in minutes; among pixels it was not learned in an hour.
    Stage("sft-3-words", "spelled", {"llm": 8e-4}, {"pair": 6, "many": 5, "clip": 8, "question": 1, "talk": 0.5,
        "crop": 1.5, "find": 0.7, "read": 0.5, "lookup": 0.5}, 700, 24, turns=8, ids=True),  # steps, batch
    Stage("sft-3", "answer", {"vpm": 3e-4, "resampler": 6e-4, "llm": 5e-4}, {
        "many": 3, "clip": 3, "one box": 9, "box": 7, "word box": 1, "question": 2, "talk": 1, "long": 1, "caption": 1,
        "crop": 3, "find": 1, "read": 2.5, "lookup": 0.8, "read anywhere": 0.3}, steps=1300, turns=6, large=0.1),
    Stage("sft-4", "answer", {"vpm": 2e-4, "resampler": 4e-4, "llm": 7e-4}, {  # mostly clips
        "motion": 10, "clip": 6, "pair": 3, "many": 3, "one box": 5, "box": 2, "question": 2, "talk": 1, "long": 1,
        "caption": 0.5, "crop": 3, "find": 0.7, "read": 2, "lookup": 0.3}, steps=330, turns=6, large=0.1),
    Stage("sft-5-words", "spelled", {"llm": 6e-4}, {"coming": 8, "clip": 4, "motion": 1, "many": 6, "pair": 3,
        "question": 1, "talk": 0.5, "crop": 1.5, "find": 0.7, "read": 0.5, "lookup": 0.5}, 400, 24, turns=8, ids=True),
    Stage("sft-5", "answer", {"vpm": 3e-4, "resampler": 6e-4, "llm": 6e-4}, {"coming": 5, "clip": 3, "motion": 1,
        "many": 3, "pair": 1, "one box": 6, "box": 8, "word box": 0.5, "question": 2.5, "talk": 1, "long": 1,
        "caption": 0.5, "crop": 3, "find": 0.7, "read": 3, "lookup": 0.8}, steps=1200, turns=6, large=0.1),
)
# fmt: on


def stage_named(name: str) -> Stage:
    """Look up a stage; ValueError if there is none of this name."""
    check_type("stage", name, str, what="the name of a stage")
    known = {stage.name: stage for stage in (*STAGES, *LATER)}
    if name not in known:
        raise ValueError(f"no stage {shown(name)}; there are {', '.join(known)}")
    return known[name]


def freeze(model: MiniCPMV, stage: Stage) -> list[nn.Parameter]:
    """Let exactly the parts of a model learn that a stage names, and freeze the others, in place.

    Returns:
        The parameters that learn.

    Raises:
        TypeError, ValueError: no model, no Stage; a model with LoRA adapters, which say by themselves what learns.

    Example:
        >>> model = start()
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
