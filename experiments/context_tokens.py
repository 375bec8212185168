"""How many tokens does a picture cost? Sixteen sizes, this model beside two others, by their published arithmetic."""

from __future__ import annotations

import math
import re
from statistics import median

from minicpmv_ref import peers, plan_slices
from minicpmv_ref.prompt import image_layout

from ._frame import CONFIRMED, REFUTED, Claim, Finding
from ._sizes import SIZES

CLAIM = Claim(
    title="640 tokens for 1.8 million pixels, 75 % fewer than most",
    place="README of 2.6; section 3.2 of the paper has the idea (64 or 96 tokens for a slice).",
    says="A picture of 1.8 million pixels costs 640 tokens, 75 % fewer than in most models.",
    done="Visual tokens of sixteen sizes, with the markers around them as 2.6 writes them, beside LLaVA-NeXT (AnyRes, "
    "unpadded, 336-pixel tiles) and InternVL 1.5 (at most 12 tiles), computed by their rules.",
    limits="What most models do: two are computed, both of the same months. What the tokens are worth: LLaVA-NeXT sees "
    "at most 672 x 672 pixels beside its overview, and LLaVA-1.5 reads any picture in 576 tokens, at 336 x 336. "
    "Markers of the other two are not counted.",
)
SETTINGS = {profile: {"pictures": list(SIZES)} for profile in ("fast", "cpu", "gpu")}


def with_markers(size: tuple[int, int]) -> int:
    """Tokens of a picture in the prompt of 2.6: each marker, digit and line break is one, and so is each slot."""
    return len(re.findall(r"<[^>]+>|\d|\n", image_layout(plan_slices(size), 64, "2.6")))


def run(setting: dict, each) -> Finding:
    def count(name: str) -> list[int]:
        size, plan = SIZES[name], plan_slices(SIZES[name])
        others = [peers.plan(system, size).visual_tokens for system in ("llava-next", "internvl-1.5")]
        return [plan.visual_tokens(64), with_markers(size), plan.visual_tokens(96), *others]

    found = dict(zip(setting["pictures"], each(setting["pictures"], count)))
    head = ["picture", "size", "2.0 and 2.6", "with markers (2.6)", "2.5", "LLaVA-NeXT", "InternVL 1.5"]
    table = [head, *([name, "{} x {}".format(*SIZES[name]), *map("{:,}".format, found[name])] for name in found)]
    ours, _, _, *others = found["the paper's largest"]
    fewer = [1 - ours / other for other in others]
    every = [1 - row[0] / other for row in found.values() for other in row[3:]]
    least, where = min((1 - row[0] / min(row[3:]), name) for name, row in found.items())
    return Finding(
        CONFIRMED if ours == 640 and math.isclose(min(fewer), 0.75, abs_tol=0.05) else REFUTED,
        f"At 1344 x 1344 it is 640 against {others[0]:,} (LLaVA-NeXT, {fewer[0]:.0%} fewer) and {others[1]:,} "
        f"(InternVL 1.5, {fewer[1]:.0%} fewer). Over all sixteen sizes the saving is {least:.0%} ({where}) to "
        f"{max(every):.0%}, median {median(every):.0%}. Markers add {min(row[1] - row[0] for row in found.values())} "
        f"to {max(row[1] - row[0] for row in found.values())} tokens.",
        {
            "visual tokens at 1344 x 1344": ours,
            "fewer than LLaVA-NeXT there": f"{fewer[0]:.1%}",
            "fewer than InternVL 1.5 there": f"{fewer[1]:.1%}",
            "median over sizes and both": f"{median(every):.1%}",
        },
        table=table,
    )
