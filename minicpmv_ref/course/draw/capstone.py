"""Lesson 14: sizes of published models over the years."""

import math
from datetime import date
from itertools import pairwise
from typing import NamedTuple

from .canvas import Axes, Canvas
from .colors import BLUE, GRAY, INK, PALE, SKY

GPT_4V = 63.5  # OpenCompass, mean of 8 benchmarks, as printed in OpenBMB's tables


class Published(NamedTuple):
    """A published model: billions of parameters, mean score on the 8 benchmarks of OpenCompass, and where these stand.

    score is None where the sources print none on this scale. An arXiv number gives the month; the day is then the 15th.
    """

    name: str
    day: date
    billions: float
    score: float | None
    source: str


_V2_6, _V4_0, _V4_5 = (f"MiniCPM-V, minicpm_v{name}_en.md" for name in ("2dot6", "4", "4dot5"))
_NEWS = "its README, News"
PUBLISHED = (
    Published("LLaVA-NeXT-34B", date(2024, 1, 30), 34, 55.0, f"{_V2_6}; llava-vl.github.io/blog/2024-01-30-llava-next"),
    Published("MiniCPM-V 2.5", date(2024, 5, 20), 8.5, 58.8, f"{_V2_6}, minicpm_llama3_v2dot5.md; {_NEWS}"),
    Published("GLM-4V-9B", date(2024, 6, 5), 13, 59.1, f"{_V2_6}; THUDM/GLM-4, README"),
    Published("Cambrian-34B", date(2024, 6, 15), 34, 58.3, f"{_V2_6}; arXiv 2406.16860"),
    Published("InternVL2-8B", date(2024, 7, 2), 8.0, 64.1, f"{_V2_6}; internvl.github.io/blog/2024-07-02-InternVL-2.0"),
    Published("MiniCPM-V 2.6", date(2024, 8, 6), 8.1, 65.2, f"{_V4_0}; {_NEWS}"),
    Published("InternVL2.5-4B", date(2024, 12, 15), 3.7, 65.1, f"{_V4_0}; arXiv 2412.05271"),
    Published("InternVL2.5-8B", date(2024, 12, 15), 8.1, 68.1, f"{_V4_0}; arXiv 2412.05271"),
    Published("MiniCPM-o 2.6", date(2025, 1, 13), 8.7, 70.2, f"{_V4_0}; {_NEWS}"),
    Published("Qwen2.5-VL-3B", date(2025, 2, 15), 3.8, 64.5, f"{_V4_0}; arXiv 2502.13923"),
    Published("Qwen2.5-VL-7B", date(2025, 2, 15), 8.3, 70.9, f"{_V4_0}; arXiv 2502.13923"),
    Published("MiMo-VL-7B-RL", date(2025, 6, 15), 8.3, 76.4, f"{_V4_5}; arXiv 2506.03569"),
    Published("GLM-4.1V-9B", date(2025, 7, 15), 10.3, 76.6, f"{_V4_5}; arXiv 2507.01006"),
    Published("MiniCPM-V 4.0", date(2025, 8, 2), 4.1, 69.0, f"{_V4_0}; {_NEWS}"),
    Published("MiniCPM-V 4.5", date(2025, 8, 26), 8.7, 77.0, f"{_V4_5}; {_NEWS}"),
    Published("MiniCPM-V 4.6", date(2026, 5, 11), 1.3, None, "MiniCPM-V, README; rits.shanghai.nyu.edu/ai"),
)


def smallest(level: float) -> list[Published]:
    """The models that reach a score and are smaller than all before them that do, in order of time."""
    found: list[Published] = []
    for model in sorted(PUBLISHED, key=lambda model: (model.day, model.billions)):
        if model.score is not None and model.score >= level and (not found or model.billions < found[-1].billions):
            found.append(model)
    return found


def halving_months(steps: list[Published]) -> float | None:
    """Months in which the size halved, from the first to the last of them; None where there is one or none."""
    if len(steps) < 2:
        return None
    months = (steps[-1].day - steps[0].day).days / 365.25 * 12
    return months / math.log2(steps[0].billions / steps[-1].billions)


def sizes_over_years(level: float) -> Canvas:
    """Size against time: filled if the score is at least `level`. Facts: "smallest" (names), "halving" (months)."""
    canvas, steps = Canvas(), smallest(level)
    canvas.facts |= {"smallest": [model.name for model in steps], "halving": halving_months(steps)}
    axes = Axes(canvas, (64, 34, 560, 270), (2023.95, 2026.55), (math.log2(1), math.log2(45)))
    canvas.text(8, 20, "billions of parameters (each line: half the one above)", bold=True)
    for billions in (1, 2, 4, 8, 16, 32):
        axes.level(math.log2(billions), billions)
    for year in (2024, 2025, 2026):
        axes.moment(year)
        axes.under(year, year)
    places = [(_year(model.day), math.log2(model.billions)) for model in steps]
    if steps:
        path = [places[0]]
        for before, after in pairwise(places):
            path += [(after[0], before[1]), after]
        axes.line([*path, (axes.xs[1], places[-1][1])], BLUE, 3)
    for model in PUBLISHED:
        x, y = axes.at(_year(model.day), math.log2(model.billions))
        reached = model.score is not None and model.score >= level
        fill = BLUE if model in steps else SKY if reached else PALE if model.score is not None else "white"
        canvas.dot(x, y, 8, fill, GRAY)
        right, down, align = _LABELS.get(model.name, (13, 5, "left"))
        label = model.name.removeprefix("MiniCPM-")
        canvas.text(x + right, y + down, label, 14, INK if reached else GRAY, align)
    words = f"score of at least {level:g}: the smallest so far"
    canvas.legend(8, 340, [(BLUE, words), (SKY, "others"), (PALE, "below it"), ("white", "not scored")])
    pace = f"models on the line: {len(steps)}; no pace can be read off"
    if len(steps) > 1:
        ends = f"{steps[0].billions:g} to {steps[-1].billions:g} billion"
        pace = f"{ends}: halved every {canvas.facts['halving']:.1f} months"
    canvas.text(8, 374, pace, 14)
    return canvas


_LABELS = {  # where a label stands beside its dot, if not to the right: it would cover another
    "LLaVA-NeXT-34B": (-8, -13, "left"),
    "MiniCPM-V 2.5": (-12, 5, "right"),
    "InternVL2-8B": (8, 26, "right"),
    "MiniCPM-V 2.6": (-6, -13, "left"),
    "InternVL2.5-8B": (6, 23, "left"),
    "InternVL2.5-4B": (20, 24, "right"),
    "MiniCPM-o 2.6": (4, -17, "right"),
    "Qwen2.5-VL-3B": (-4, 24, "left"),
    "Qwen2.5-VL-7B": (-10, -28, "left"),
    "MiMo-VL-7B-RL": (12, 23, "left"),
    "GLM-4.1V-9B": (13, -4, "left"),
    "MiniCPM-V 4.0": (13, -2, "left"),
    "MiniCPM-V 4.5": (13, 0, "left"),
    "MiniCPM-V 4.6": (-12, 5, "right"),
}


def _year(day: date) -> float:
    return day.year + (day.timetuple().tm_yday - 1) / 365.25
