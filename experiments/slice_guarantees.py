"""Do slices keep the shape and the area that LLaVA-UHD promises? All sizes of a dense grid are cut."""

from __future__ import annotations

import math

from minicpmv_ref import SliceConfig, paper_grid, plan_slices

from ._frame import CONFIRMED, REFUTED, Claim, Finding

CLAIM = Claim(
    title="Slices are never longer than 2:1",
    place="LLaVA-UHD (arXiv 2403.11703), whose partition section 3.2 of the paper takes over.",
    says="For N up to 20 and pictures from 1:6 to 6:1, a slice's shape stays within 1:2 and 2:1, and its area within "
    "0.33 and 1.5 of the area that the ViT was trained on.",
    done="All sizes of a grid are cut, and the worst slice is noted: as a "
    "piece of the picture itself, which the claim is about, and as the view of whole patches that the ViT gets. Once "
    "with the released rule, once with as many slices as LLaVA-UHD allows, once by the paper's equations taken "
    "literally, then outside the promised range.",
    limits="Whether a ViT reads slices of 2:1 as well as square ones. Pictures of one view are not sliced, so nothing "
    "is promised for them. Sizes between the grid's are not tried.",
)
VIEW = 448 * 448
CASES = {  # name -> rule, most slices, N from and to, aspect ratio from and to, coarseness of the grid
    "released rule": ("code", 9, 1, 9, 1, 6, 1),
    "N up to 20": ("code", 21, 1, 20, 1, 6, 2),
    "the paper's equations": ("paper", 9, 1, 9, 1, 6, 1),
    "larger pictures": ("code", 9, 9, 100, 1, 6, 8),
    "longer pictures": ("code", 9, 1, 9, 6, 100, 1),
}
SETTINGS = {"fast": {"step": 60}, "cpu": {"step": 3}, "gpu": {"step": 1}}


def sizes(views: tuple[int, int], shapes: tuple[int, int], step: int):
    """All (width, height) of a grid with an area in `views` (of 448 x 448) and a longer : shorter side in `shapes`."""
    (least, most), (square, long) = (n * VIEW for n in views), shapes
    for width in range(step, math.isqrt(most * long) + 1, step):
        for height in range(step, min(most // width, width * long) + 1, step):
            aspect = max(width / height, height / width)
            if width * height > least and (square < aspect <= long or aspect == square == 1):
                yield width, height


def run(setting: dict, each) -> Finding:
    def cut(name: str) -> dict:
        rule, most_slices, *bounds, coarse = CASES[name]
        cfg = SliceConfig(max_slice_nums=most_slices)
        worst = dict(sizes=0, aspect=0.0, least=math.inf, most=0.0, view_aspect=0.0, least_view=math.inf, most_view=0.0)
        worst |= dict(broken_aspect=0, broken_area=0, where=None, first=math.inf)
        for width, height in sizes(bounds[:2], bounds[2:], setting["step"] * coarse):
            plan = plan_slices((width, height), cfg) if rule == "code" else None
            cols, rows = plan.grid if plan else paper_grid((width, height), cfg)
            aspect = max(width * rows / (height * cols), height * cols / (width * rows))
            area = width * height / (cols * rows * VIEW)
            if aspect > worst["aspect"]:
                worst |= {"aspect": aspect, "where": [width, height]}
            worst |= {"least": min(worst["least"], area), "most": max(worst["most"], area)}
            worst["sizes"] += 1
            if aspect > 2 + 1e-9:
                worst["broken_aspect"] += 1
                worst["first"] = min(worst["first"], max(width / height, height / width))
            worst["broken_area"] += not 0.33 <= area <= 1.5
            if plan:
                w, h = plan.slice_size
                worst["view_aspect"] = max(worst["view_aspect"], w / h, h / w)
                worst["least_view"] = min(worst["least_view"], w * h / VIEW)
                worst["most_view"] = max(worst["most_view"], w * h / VIEW)
        return worst

    found = dict(zip(CASES, each(CASES, cut)))
    released, wide, paper, large, long = found.values()
    kept = not any(case[key] for case in (released, wide) for key in ("broken_aspect", "broken_area"))
    table = [["case", "every", "sizes", "longest piece", "of", "piece area", "break 2:1", "break the area"]]
    table[0] += ["longest view", "view area"]
    for name, case in found.items():
        table.append([name, f"{setting['step'] * CASES[name][-1]} px", f"{case['sizes']:,}", f"{case['aspect']:.2f}"])
        table[-1] += ["{} x {}".format(*case["where"]), f"{case['least']:.2f} to {case['most']:.2f}"]
        table[-1] += [f"{case[key] / case['sizes']:.1%}" for key in ("broken_aspect", "broken_area")]
        views = [f"{case['view_aspect']:.2f}", f"{case['least_view']:.2f} to {case['most_view']:.2f}"]
        table[-1] += views if case["view_aspect"] else ["", ""]
    return Finding(
        CONFIRMED if kept else REFUTED,
        f"{'No' if kept else 'Some'} size of {released['sizes'] + wide['sizes']:,} in the promised range "
        f"{'breaks' if kept else 'break'} it. Rounded to whole patches, the views that the ViT gets reach "
        f"{released['view_aspect']:.2f}:1. The promise ends where it says: from {long['first']:.2f}:1 on, pictures "
        f"have slices beyond 2:1, up to {long['aspect']:.1f}:1 at {long['where'][0]} x {long['where'][1]}, and those "
        f"of more than nine views have pieces of up to {large['most']:.1f} views, which are shrunk to one. The paper's "
        "equations, taken literally, break the area inside the range: they leave a picture of two views whole "
        f"({paper['least']:.2f} to {paper['most']:.2f}). The released code never considers that.",
        {
            "longest piece in the promised range": f"{max(released['aspect'], wide['aspect']):.3f}:1",
            "its areas": f"{min(released['least'], wide['least']):.3f} to {max(released['most'], wide['most']):.3f}",
            "views that the ViT gets (released rule)": f"{released['least_view']:.3f} to {released['most_view']:.3f}",
        },
        table=table,
    )
