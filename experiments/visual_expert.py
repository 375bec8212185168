"""CogVLM's visual expert inside nano's LLM, beside a connector alone and an LLM that learns with it."""

from __future__ import annotations

from minicpmv_ref import Processor
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.peers.expert import expert_optimizer

from ._arms import checkpoint, figures, gains, grades, held_out, in_words, nats, table, verdict, weakest
from ._frame import CONFIRMED, REFUTED, Claim, Finding
from .connectors import KINDS, learn_connector, with_connector

CLAIM = Claim(
    title="A visual expert leaves the language as it was and sees better than a connector alone",
    place="CogVLM, arXiv 2311.03079, section 2 and table 4: captions (CIDEr on COCO) 142.8 with the expert, 140.3 with "
    "a tuned LLM, 131.2 with an MLP adapter alone.",
    says="The LLM's own weights stay, so text is answered as before; the second set of weights for image tokens brings "
    "as much as tuning the LLM.",
    done="From the checkpoint after stage 2, with a new MLP on 2 x 2 shuffled patches, on captions and lines of text: "
    "the connector alone learns; or the expert with it; or the whole LLM with it. Then the LLM is graded alone, on "
    "questions about pictures that are spelled in words. Confirmed means: with the expert every one of these losses "
    "equals that of the checkpoint exactly, and on held-out captions and lines of text together its loss is lower than "
    "that of the connector alone.",
    limits="The first half is a theorem, so its test only finds errors of the code. A short training of a small LLM, "
    "one learning rate for expert and tuned LLM. The expert doubles the LLM's weights, but a token meets as many as "
    "before. CogVLM trains on 1.5 billion pictures.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": 120, "batch": 16, "n": 60, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": 3000, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
# Expected: text equal to the last bit; the expert ahead of the connector alone by more than 0.1 nats, no clear
# difference to the tuned LLM, which answers questions about spelled pictures worse than before.
ADAPTER, EXPERT, TUNED = ARMS = ("connector alone", "with expert", "LLM tuned")
ALONE = "the LLM alone, nats"
RATES = {"resampler": 3e-3, "llm": stage_named("sft-1").learning_rates["llm"]}


def text_losses(model: MiniCPMV, n: int) -> list[float]:
    """The LLM alone: words in place of visual tokens are words, so they are language for an expert, too."""
    alone = MiniCPMV(model.config)
    alone.llm = model.llm
    return nats(alone.to(model.device).eval(), Processor.from_pretrained("nano"), held_out("question", n), "spelled")


def run(setting: dict, each) -> Finding:
    begin, n, device = (setting[name] for name in ("begin", "n", "device"))

    def arm(item: list) -> dict:
        name, seed = item
        model, processor = with_connector(begin, "shuffle", seed, device, expert=name == EXPERT)
        optimizer = expert_optimizer(model, RATES["llm"], RATES["resampler"]) if name == EXPERT else None
        rates = {"learning_rates": RATES} if name == TUNED else {}
        cost = learn_connector(model, processor, seed, setting["steps"], setting["batch"], optimizer, **rates)
        return cost | {ALONE: text_losses(model, n)} | grades(model, processor, KINDS, n)

    def before(item: list) -> list[float]:
        return text_losses(checkpoint(begin, device), n)

    seeds = list(range(setting["seeds"]))
    (at_first,) = each([["text"]], before)
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    equal = all(found[ALONE] == at_first for found in arms[EXPERT])
    names = [f"{kind}, nats" for kind in KINDS]
    sees = gains(arms, EXPERT, ADAPTER, *names)
    over_tuned = gains(arms, EXPERT, TUNED, *names)
    text = gains(arms | {EXPERT: [{ALONE: at_first}] * len(seeds)}, EXPERT, TUNED, ALONE)
    return Finding(
        weakest(CONFIRMED if equal else REFUTED, verdict(sees)),
        f"With the expert the LLM alone answers {'exactly as before' if equal else 'NOT as before'}, at every item; a "
        f"tuned LLM loses {in_words(text)} nats a token there. On captions and lines of text the expert saves "
        f"{in_words(sees)} against the connector alone and {in_words(over_tuned)} against the tuned LLM.",
        *figures(
            {
                "nats that the expert saves against the connector alone": sees,
                "nats that it saves against a tuned LLM": over_tuned,
                "nats that the tuned LLM loses on text": text,
            }
        ),
        table(arms, [*(f"{kind}, {grade}" for kind in KINDS for grade in ("nats", "right")), ALONE]),
        seeds,
    )
