"""Six connectors between the same ViT and LLM: resampler, three MLPs, SVA, and queries of a small transformer."""

from __future__ import annotations

from dataclasses import replace

from minicpmv_ref import Processor, nano
from minicpmv_ref.counts import parameters
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.peers.nano import swap
from minicpmv_ref.scale.steps import train_steps

from ._arms import checkpoint, cost_of, figures, gains, grades, in_words, table, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="On text, SVA is better than an MLP, and an MLP better than a resampler",
    place="Cambrian-1, arXiv 2406.16860, table of connectors: OCR 55.5 for SVA, 50.1 for the concatenation and its "
    "MLP, 27.1 for a plain resampler.",
    says="Queries that are tied to a region keep what text needs; queries that may look everywhere lose it.",
    done="From the checkpoint after stage 2, a new connector learns alone on captions and lines of text; ViT and LLM "
    "stay as they are, and each picture is one square view. Confirmed means: on held-out lines of text the loss with "
    "SVA (16 tokens) is lower than with the MLP on 2 x 2 shuffled patches (16 tokens), and that lower than with the "
    "resampler (16 tokens). The other rows are for comparison; the last one has the 64 tokens of the plain MLP, but "
    "fewer steps, so that ViT and LLM compute as much as with 16.",
    limits="A short training of one connector, from random weights; nothing else learns. SVA reads one encoder here, "
    "and its means, where Cambrian-1 has four. The ViT learned together with a resampler. One learning rate for all. A "
    "resampler may need longer than this: see the next claim.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": 120, "batch": 16, "n": 40, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": 3000, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
ARMS = ("resampler", "mlp", "shuffle", "mean", "sva", "qllama")
EQUAL = "mlp, equal operations"
KINDS, DATA_MIX = ["caption", "crop"], {"caption": 1, "crop": 1.5}
TEXT = 24  # tokens of a sample beside its visual ones, about


def with_connector(begin: str, connector: str, seed: int, device: str, **extras) -> tuple[MiniCPMV, Processor]:
    """A checkpoint with a new connector; every picture is one square view. `extras` are those of `swap`."""
    model, processor = swap(checkpoint(begin), Processor.from_pretrained("nano"), connector, "square", seed, **extras)
    return model.to(device), processor


def learn_connector(
    model: MiniCPMV, processor: Processor, seed: int, steps: int, batch: int, optimizer=None, **changes
) -> dict:
    """Train the connector alone, at the same learning rate for all; an optimizer or changes may say otherwise."""
    changes = {"data_mix": DATA_MIX, **changes, "steps": steps, "batch": batch, "half": False}
    stage = replace(stage_named("stage-1"), **changes)
    done = list(train_steps(model, processor, stage, seed, optimizer=optimizer))
    return cost_of(done) | {"parameters": sum(p.numel() for p in model.resampler.parameters())}


def operations(tokens: int = 16) -> tuple[int, int]:
    """What ViT and LLM compute forward for one view of so many tokens: parameters times what they see."""
    sizes = parameters(nano)
    return sizes["vpm"] * 64, sizes["llm"] * (TEXT + tokens)


def steps_at_equal_operations(steps: int, tokens: int, more: int) -> int:
    """How many steps with `more` tokens a view cost what `steps` with `tokens` do."""
    return round(steps * sum(operations(tokens)) / sum(operations(more)))


def run(setting: dict, each) -> Finding:
    begin, batch, n, device = (setting[name] for name in ("begin", "batch", "n", "device"))

    def arm(item: list) -> dict:
        name, seed = item
        equal, connector = name == EQUAL, name.split(",")[0]
        steps = steps_at_equal_operations(setting["steps"], 16, 64) if equal else setting["steps"]
        model, processor = with_connector(begin, connector, seed, device)
        cost = learn_connector(model, processor, seed, steps, batch)
        return cost | grades(model, processor, KINDS, n)

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (*ARMS, EQUAL)}
    over_mlp = gains(arms, "sva", "shuffle", "crop, nats")
    over_resampler = gains(arms, "shuffle", "resampler", "crop, nats")
    kept = gains(arms, "shuffle", "mlp", "crop, nats")
    return Finding(
        weakest(verdict(over_mlp), verdict(over_resampler)),
        f"On lines of text SVA saves {in_words(over_mlp)} nats a token against the MLP on shuffled patches, and that "
        f"{in_words(over_resampler)} against the resampler. With all 64 patches as tokens the MLP differs by "
        f"{in_words(kept)} from its shuffled form with 16, where plus means that 16 are better.",
        *figures(
            {
                "nats on text that SVA saves against the shuffled MLP": over_mlp,
                "nats on text that the shuffled MLP saves against the resampler": over_resampler,
                "nats on text that 16 shuffled tokens save against 64": kept,
                "nats on captions that SVA saves against the shuffled MLP": gains(
                    arms, "sva", "shuffle", "caption, nats"
                ),
            }
        ),
        table(arms, [f"{kind}, {grade}" for kind in KINDS for grade in ("nats", "right")]),
        seeds,
    )
