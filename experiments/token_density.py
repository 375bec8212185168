"""1,024 patches become 64 tokens, 2,822 pixels share one: the published figures, and those of other sizes."""

from __future__ import annotations

from statistics import median

from minicpmv_ref import plan_slices, v2_5, v2_6

from ._frame import CONFIRMED, REFUTED, Claim, Finding
from ._sizes import SIZES

CLAIM = Claim(
    title="2,822 pixels in one token",
    place="Section 3.2 (1,024 patches of a slice become 64 tokens, 96 in 2.5); README of 2.6 (token density 2,822, "
    "of 2.5: 1,882).",
    says="A view of 448 x 448 has 1,024 patches and becomes 64 tokens, so that one token holds 2,822 pixels.",
    done="The resampler of 2.6 runs on 1,024 patches (shapes only, on PyTorch's meta device). Then pixels are divided "
    "by visual tokens for sixteen sizes, and for every size of a grid up to 4,096 x 4,096.",
    limits="How much of the pixels a token really holds. Pixels are those of the file: a large picture is shrunk "
    "before the ViT sees it, which makes its density look better, not the model.",
)
SETTINGS = {"fast": {"step": 256}, "cpu": {"step": 8}, "gpu": {"step": 4}}
PUBLISHED = {64: 2822, 96: 1882}


def run(setting: dict, each) -> Finding:
    def resample(patches: int) -> list[int]:
        import torch

        from minicpmv_ref.resampler import Resampler

        with torch.device("meta"):
            resampler, features = Resampler(v2_6.resampler), torch.empty(patches, v2_6.vision.width)
        return list(resampler([features], [(32, patches // 32)]).shape)

    def densities(width: int) -> list[float]:
        """Pixels of a token for all heights of this width."""
        heights = range(setting["step"], 4097, setting["step"])
        return [width * height / plan_slices((width, height)).visual_tokens(64) for height in heights]

    (_, tokens, _) = each([1024], resample)[0]
    ours = {queries: 1344 * 1344 / plan_slices((1344, 1344)).visual_tokens(queries) for queries in PUBLISHED}
    right = tokens == 64 and all(round(ours[queries]) == published for queries, published in PUBLISHED.items())
    rows = each(range(setting["step"], 4097, setting["step"]), densities)
    every = [density for row in rows for density in row]
    near = sum(abs(density / ours[64] - 1) < 0.1 for density in every) / len(every)

    one, more = (size[0] * size[1] / plan_slices(size).visual_tokens(64) for size in ((448, 448), (449, 448)))
    table, seen = [["picture", "size", "views", "pixels a token, 64", "96", "pixels that the ViT sees, a token"]], []
    for name, size in SIZES.items():
        plan = plan_slices(size)
        sees = sum(rows * cols * 14 * 14 for rows, cols in plan.patch_grids) / plan.visual_tokens(64)
        seen.append(sees)
        each_token = [size[0] * size[1] / plan.visual_tokens(q) for q in (64, v2_5.resampler.num_queries)]
        table.append([name, "{} x {}".format(*size), str(1 + plan.num_slices), *(f"{d:,.0f}" for d in each_token)])
        table[-1].append(f"{sees:,.0f}")
    return Finding(
        CONFIRMED if right else REFUTED,
        f"Both figures are those of one size, 1344 x 1344: nine slices, with the overview's tokens counted and its "
        f"pixels not. Only {near:.0%} of the grid's sizes are within 10 % of 2,822. Density is no property of the "
        f"model: from 448 x 448 to 449 x 448 it falls from {one:,.0f} to {more:,.0f}, and beyond 1.8 million pixels it "
        f"grows without limit, as tokens end at 640. What the ViT gets is always about the same: {min(seen):,.0f} to "
        f"{max(seen):,.0f} pixels for a token.",
        {
            "pixels a token at 1344 x 1344, 64 queries": round(ours[64], 1),
            "the same with 96 queries": round(ours[96], 1),
            "tokens of 1,024 patches": tokens,
            "median of the grid": round(median(every)),
            "smallest and largest of the grid": f"{min(every):.1f} and {max(every):,.0f}",
        },
        table=table,
    )
