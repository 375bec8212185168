"""Are learned queries worth it? Against the plain average of each part of the view, at equal tokens and weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange

from minicpmv_ref.resampler import Resampler

from ._arms import figures, gains, grades, in_words, learn, processor_of, table, verdict, with_new_resampler
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Learned queries beat plain averages",
    place="Section 3.2, token compression: one layer of cross-attention with learned queries.",
    says="Queries that choose where to look keep more of a view in the same number of tokens.",
    done="From the checkpoint after stage 2, a new resampler learns alone, and so does one whose 16 tokens are "
    "averages of the 4 x 4 parts of the view; ViT and LLM stay as they are. The averages go through the same layers "
    "with the same first weights; only attention is gone. Confirmed means: with queries the loss on held-out captions "
    "and lines of text together is lower.",
    limits="One seed and a short training: averages have nothing to learn about where to look, queries do. Each query "
    "here begins at its own part of the view. The ViT learned its details through queries. Toy pictures put things in "
    "places; an average of each place is nearly made for them.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": 400, "batch": 16, "n": 100, "seeds": 1, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": 3000, "batch": 64, "n": 400, "seeds": 1, "device": "cuda"},
}
QUERIES, AVERAGES = "learned queries", "averages"
KINDS, MIXTURE = ["caption", "crop"], {"caption": 1, "crop": 1.5}


class Averages(Resampler):
    """A resampler whose attention is replaced by the plain average of a part of the view for each token."""

    def forward(self, features: list[torch.Tensor], patch_grids: list[tuple[int, int]]) -> torch.Tensor:
        side, pooled = math.isqrt(self.cfg.num_queries), []
        for feature, (rows, _) in zip(features, patch_grids):
            values = F.linear(self.ln_kv(self.kv_proj(feature)), *self.attn.part("v"))  # (L, C) -> (L, E)
            parts = F.adaptive_avg_pool2d(rearrange(values, "(r c) e -> e r c", r=rows), side)
            pooled.append(rearrange(parts, "e r c -> (r c) e"))
        return self.ln_post(self.attn.out_proj(torch.stack(pooled))) @ self.proj


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        name, seed = item
        model = with_new_resampler(setting["begin"], seed, setting["device"])
        if name == AVERAGES:
            averages = Averages(model.resampler.cfg).to(model.resampler.query)
            averages.load_state_dict(model.resampler.state_dict())
            model.resampler = averages
        processor, steps, batch = processor_of(model), setting["steps"], setting["batch"]
        cost = learn(model, processor, "stage-1", seed, steps=steps, batch=batch, data_mix=MIXTURE, half=False)
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (QUERIES, AVERAGES)}
    names = [f"{kind}, nats" for kind in KINDS]
    gained = gains(arms, QUERIES, AVERAGES, *names)
    captions, crops = (gains(arms, QUERIES, AVERAGES, name) for name in names)
    return Finding(
        verdict(gained),
        f"Learned queries save {in_words(gained)} nats a token: {in_words(captions)} on captions, {in_words(crops)} on "
        "lines of text.",
        *figures({"nats less with queries than with averages": gained}),
        table(arms, [*names, *(f"{kind}, right" for kind in KINDS)]),
        seeds,
    )
