"""Lesson 07: the world that nano learns from, and the stages: what learns, from what, at which resolution."""

import math
from functools import lru_cache
from typing import NamedTuple

from minicpmv_ref.inputs.files import parse_json, read_json
from minicpmv_ref.slicing import plan_slices, slice_image

from .canvas import BLUE, GRAY, GREEN, INK, ORANGE, PALE, RED, SAMPLES, SKY, Axes, Canvas, fit, preview, wrap

WORLD_KINDS = {  # (words in a menu, key)
    "caption": "caption",
    "question": "question",
    "crop": "crop",
    "document": "read",
}
OWNERS = {"this course": "ours", "the paper": "paper"}  # (words in a menu, key)
PART_NAMES = {"vpm": "ViT", "resampler": "resampler", "llm": "LLM"}
MEANINGS = {
    "start-text": "practice on pictures spelled in words, line by line",
    "start-chat": "the same practice as a conversation",
    "start-vit": "which caption belongs to which picture?",
    "stage-1": "the resampler learns to speak to the LLM",
    "stage-2": "the ViT learns details at full resolution",
    "stage-3": "eyes and resampler learn to read slices",
    "sft-1": "everything learns to give short answers",
    "sft-2": "everything learns long answers, too",
}


# ---- the world


@lru_cache(maxsize=256)
def world_item(kind: str, seed: int):
    """A training sample of the world, and its views as nano's slicer cuts them: (Sample, [PIL images])."""
    from minicpmv_ref.config import nano
    from minicpmv_ref.toy import data

    sample = data.draw(f"lesson 07/{seed}", kind)
    return sample, slice_image(sample.image, nano.slicing)


def world_sample(kind: str, seed: int, view: int = 1, words: bool = False) -> Canvas:
    """One sample: the whole picture, one of its views, and what is said about it.

    Args:
        kind: "caption", "question", "crop" or "read".
        seed: draws another sample.
        view: number of the view at the right, from 1: the overview, then the slices row by row.
        words: show the view spelled in words, one cell for each of the 16 visual tokens.
    """
    from minicpmv_ref.config import nano
    from minicpmv_ref.toy.data import spell

    sample, views = world_item(kind, seed)
    canvas, plan = Canvas(), plan_slices(sample.image.size, nano.slicing)
    width, height = sample.image.size
    canvas.text(8, 20, f"the picture: {width} x {height}", bold=True)
    x, y, w, h = fit(sample.image.size, (8, 32, 300, 266))
    canvas.image(x, y, w, h, preview(sample.image, 600))
    for left, top, right, bottom in plan.boxes:
        kx, ky = w / plan.refined_size[0], h / plan.refined_size[1]
        canvas.rect(x + left * kx, y + top * ky, (right - left) * kx, (bottom - top) * ky, stroke=SKY)
    if view > 1:
        left, top, right, bottom = plan.boxes[view - 2]
        canvas.rect(x + left * kx, y + top * ky, (right - left) * kx, (bottom - top) * ky, stroke=RED, line=3)
    else:
        canvas.rect(x, y, w, h, stroke=RED, line=3)

    shown = views[view - 1]
    name = "overview" if view == 1 else f"slice {view - 1} of {len(views) - 1}"
    name += ", in words" if words else f": {shown.width} x {shown.height}"
    canvas.text(350, 20, name, bold=True)
    box, cell = (350, 32, 266, 266), 66.5
    if words:
        for place, slot in enumerate(spell(sample)[view - 1]):
            cx, cy = box[0] + place % 4 * cell, box[1] + place // 4 * cell
            canvas.rect(cx, cy, cell, cell, "none" if slot == (".",) else "#FFF3D6", PALE)
            for line, word in enumerate(slot):
                middle = cy + cell / 2 + 5 + 15.5 * (line - (len(slot) - 1) / 2)
                canvas.text(cx + cell / 2, middle, word.strip(), 14, align="middle")
    else:
        canvas.image(*fit(shown.size, box), shown, smooth=False)
    canvas.rect(*box, stroke=RED, line=3)

    question, answer = sample.messages[0]["content"][1], sample.answer
    canvas.text(8, 326, question, color=BLUE)
    canvas.lines(8, 349, wrap(answer, 624, bold=True), 21, bold=True)
    return canvas


# ---- the stages


class PaperStage(NamedTuple):
    """What the paper says about a stage; it gives no learning rates, no batch sizes and no steps.

    learns: parts. data: millions of samples, or None where the paper gives no number. side: of a view in pixels.
    """

    learns: tuple
    data: dict
    side: int | None
    views: str


# Section 4 and tables 1 and 2 of the paper.
PAPER_STAGES = {
    "start-text": PaperStage((), {}, None, "an LLM as released"),
    "start-chat": PaperStage((), {}, None, "an LLM as released"),
    "start-vit": PaperStage((), {}, None, "a SigLIP as released"),
    "stage-1": PaperStage(("resampler",), {"captions": 200}, 224, "one view"),
    "stage-2": PaperStage(("vpm",), {"captions": 200}, 448, "one view"),
    "stage-3": PaperStage(("vpm", "resampler"), {"captions": None, "OCR": None}, 448, "and slices"),
    "sft-1": PaperStage(
        ("vpm", "resampler", "llm"),
        {
            **{"captions": 0.56, "VQA": 1.4, "knowledge": 0.06, "grounding": 0.57},
            **{"reasoning": 0.135, "math": 0.125, "OCR": 1.7, "chat": 0.78},
        },
        448,
        "and slices",
    ),
    "sft-2": PaperStage(
        ("vpm", "resampler", "llm"),
        {"part 1 again": 0.4, "OCR": 0.69, "instructions": 1.9, "text only": None},
        448,
        "and slices",
    ),
}


@lru_cache
def part_sizes(whose: str) -> dict:
    """Parameters of each part: of nano ("ours"), or of MiniCPM-Llama3-V 2.5 ("paper")."""
    import torch

    from minicpmv_ref.config import nano, v2_5
    from minicpmv_ref.model import MiniCPMV

    with torch.device("meta"):  # shapes without memory
        model = MiniCPMV(nano if whose == "ours" else v2_5)
    return {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PART_NAMES}


def stage_losses(metrics=None) -> dict:
    """Learning curves.

    Args:
        metrics: {stage: [(step, loss), ...]}; or the path of the metrics.jsonl of a training run; or None: those of
            the shipped checkpoints, if they are there.

    Returns:
        {stage: [(step, loss), ...]}.
    """
    if isinstance(metrics, dict):
        return metrics
    if metrics is None:
        shipped = SAMPLES.parent / "checkpoints" / "metrics.json"
        if not shipped.is_file():
            return {}
        stages = read_json(shipped)["stages"]
        return {name: [tuple(point) for point in stage["loss"]] for name, stage in stages.items()}
    curves = {}
    with open(metrics, encoding="utf-8") as lines:
        for row in map(parse_json, lines):
            if "loss" in row:
                curves.setdefault(row["stage"], []).append((row["step"], row["loss"]))
    return curves


def stage_shares(name: str, whose: str) -> dict:
    """{kind of sample: share of the stage's samples from 0 to 1, or None where the paper gives no number}."""
    from minicpmv_ref.learn.stages import stage_named

    data = stage_named(name).data_mix if whose == "ours" else PAPER_STAGES[name].data
    total = sum(amount or 0 for amount in data.values())
    return {kind: amount and amount / total for kind, amount in data.items()}


def stage_picture(name: str, whose: str = "ours", percent: int = 20, losses=()) -> Canvas:
    """One stage: the parts with their sizes and learning rates, the samples, the resolution, the curves.

    Args:
        name: of the stage.
        whose: "ours" or "paper".
        percent: of the samples that are done.
        losses: [(step, loss), ...] of this stage.

    Returns:
        A Canvas. Its facts: "parts" {part: "learns", "frozen", "not in use" or "taken as released"},
        "rates" {part: learning rate now}, "shares" as of `stage_shares`, "side" of a view in pixels or None,
        "schedule" [(step, share of the highest rate), ...], "losses".
    """
    from minicpmv_ref.config import nano
    from minicpmv_ref.learn.stages import stage_named
    from minicpmv_ref.learn.train import lr_scale_at

    canvas, stage, paper, ours = Canvas(), stage_named(name), PAPER_STAGES[name], whose == "ours"
    now = lr_scale_at(round(percent / 100 * stage.steps), stage.steps)
    side, views = _resolution(stage, paper, ours, nano)
    canvas.facts = {
        "parts": _roles(stage, paper, ours),
        "rates": {part: rate * now for part, rate in stage.learning_rates.items()} if ours else {},
        "shares": stage_shares(name, whose),
        "side": side,
        "schedule": [],
        "losses": [],
    }
    title = MEANINGS[name] if ours or paper.learns else f"the paper starts from {paper.views}"
    canvas.text(8, 20, f"{name}: {title}", bold=True)
    for number, part in enumerate(PART_NAMES):
        _draw_part(canvas, 8 + 214 * number, part, part_sizes(whose)[part], ours)
    if not ours and not paper.learns:  # the paper begins after the stages of preparation
        return canvas
    _draw_shares(canvas, canvas.facts["shares"])
    canvas.text(8, 366, _amount(stage, paper, ours, percent), 14)
    _draw_resolution(canvas, side, views, nano.slicing.scale_resolution if ours else 448)
    axes = Axes(canvas, (346, 240, 240, 100), (0, 100), (0, 1))
    canvas.path([axes.at(0, 1), axes.at(0, 0), axes.at(100, 0)], GRAY, 1)
    axes.under(0, "start", "left")
    axes.under(100, "end", "right")
    if ours:
        _draw_curves(axes, stage, percent, losses)
    else:
        canvas.lines(354, 262, ("The paper gives no rates,", "no batch sizes and no steps."), 20, 14, color=GRAY)
        canvas.dot(*axes.at(percent, 0), fill=GRAY)
    return canvas


def _roles(stage, paper, ours):
    """What each part does in a stage: {part: words}."""
    blind = ("vpm", "resampler")
    idle = {"raw": blind, "spelled": blind, "contrast": ("resampler", "llm")}.get(stage.objective, ())
    if not ours and not paper.learns:
        return {part: "taken as released" if part in stage.learning_rates else "not in use" for part in PART_NAMES}
    learns = stage.learning_rates if ours else paper.learns
    return {part: "learns" if part in learns else "not in use" if part in idle else "frozen" for part in PART_NAMES}


def _draw_part(canvas, x, part, size, ours):
    """A block of the model: green if it learns, white if nothing passes through it."""
    from minicpmv_ref.learn.stages import STAGES

    y, w, h = 34, 190, 92
    words, rate = canvas.facts["parts"][part], canvas.facts["rates"].get(part)
    color, ink = {"learns": (GREEN, "white"), "frozen": (PALE, INK)}.get(words, ("white", GRAY))
    canvas.rect(x, y, w, h, color, GRAY)
    canvas.text(x + 10, y + 24, PART_NAMES[part], bold=True, color=ink)
    canvas.text(x + w - 10, y + 24, _short(size), 15, color=ink, align="right")
    if words == "learns":
        words += f", rate {rate:.1e}" if ours else ", rate not given"
    canvas.text(x + 10, y + 52, words, 15, color=ink)
    if rate is not None:
        highest = max(rate for each in STAGES for rate in each.learning_rates.values())
        canvas.rect(x + 10, y + 66, w - 20, 12, stroke="white")
        canvas.rect(x + 10, y + 66, (w - 20) * rate / highest, 12, "white")
    if part != list(PART_NAMES)[-1]:
        canvas.arrow((x + w + 4, y + h / 2), (x + w + 20, y + h / 2))


def _draw_shares(canvas, shares):
    canvas.text(8, 154, "what it practices on", bold=True)
    for row, (kind, share) in enumerate(shares.items()):
        y = 164 + 22 * row
        canvas.text(112, y + 14, kind, 14, align="right")
        if share is None:
            canvas.text(120, y + 14, "no number given", 14, GRAY)
        else:
            canvas.rect(120, y, 130 * share, 17, BLUE)
            canvas.text(126 + 130 * share, y + 14, f"{share:.0%}", 14)


def _draw_resolution(canvas, side, views, full):
    canvas.text(330, 154, "resolution", bold=True)
    if not side:
        canvas.text(330, 182, "no pixels: pictures come in words", 14)
        return
    canvas.rect(330, 164, 44, 44, stroke=PALE, line=2)
    canvas.rect(330, 208 - 44 * side / full, 44 * side / full, 44 * side / full, ORANGE)
    canvas.lines(386, 182, (f"{side} x {side} pixels", views), 20, 14)


def _draw_curves(axes, stage, percent, losses):
    """The learning rate and, if there is one, the loss, over the steps of a stage."""
    from minicpmv_ref.learn.train import lr_scale_at

    canvas, steps = axes.canvas, [round(p / 100 * stage.steps) for p in range(101)]
    schedule = [(step, lr_scale_at(step, stage.steps)) for step in steps]
    canvas.facts |= {"schedule": schedule, "losses": list(losses)}
    canvas.text(330, 232, "learning rate", 14, ORANGE, bold=True)
    axes.line([(p, rate) for p, (_, rate) in enumerate(schedule)], ORANGE)
    canvas.dot(*axes.at(percent, schedule[percent][1]), fill=ORANGE)
    if losses:
        last, most = max(step for step, _ in losses) or 1, max(loss for _, loss in losses)
        canvas.text(456, 232, f"loss over {last:,} steps", 14, BLUE, bold=True)
        axes = Axes(canvas, axes.box, (0, last), (0, most))
        axes.line(losses, BLUE)
        for x, y, (_, loss), align in (
            (axes.box[0] - 6, axes.at(*losses[0])[1], losses[0], "right"),
            (axes.at(*losses[-1])[0] + 8, axes.at(*losses[-1])[1], losses[-1], "left"),
        ):
            canvas.text(x, min(y + 5, axes.at(0, 0)[1]), f"{loss:.2f}", 14, BLUE, align)


def _short(count: int) -> str:
    return (
        f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.2f} M"
    )


def _amount(stage, paper, ours, percent) -> str:
    if ours:
        return f"{stage.steps:,} steps of {stage.batch}: {stage.steps * stage.batch:,} samples"
    total = sum(amount for amount in paper.data.values() if amount is not None)
    return f"{total * percent / 100:.3g} of {total:.3g} million samples" if total else ""


def _resolution(stage, paper, ours, config):
    """(side of a view in pixels, words about the views); (None, ...) if no picture is seen."""
    if not ours:
        return paper.side, paper.views
    full = config.slicing.scale_resolution
    if stage.objective in ("raw", "spelled"):
        return None, ""
    if stage.objective == "contrast":
        return full, "and half of it in turn"
    return (full // 2, "one view") if stage.half else (full, "and slices" if "read" in stage.data_mix else "one view")


# ---- a normal loss


def loss_bands(mine=None) -> Canvas:
    """The first steps of each toy stage: the band, the three runs in it, and the shipped run to its end.

    Args:
        mine: your own losses, as for `stage_losses`: {stage: [(step, loss), ...]}, or the path of a metrics.jsonl. Then
            the picture has only these stages.

    Returns:
        A Canvas. Its facts: {stage: {"band": [(step, low, high), ...], "runs": a curve for each seed, "shipped": its
        curve, "mine": yours}}. A mean of several steps stands at their middle.
    """
    from minicpmv_ref.learn.stages import STAGES
    from minicpmv_ref.scale.expected import WINDOW, bands, expected_losses

    canvas, measured, shipped = Canvas(), expected_losses(), stage_losses()
    own = stage_losses(mine) if mine is not None else {}
    stages = [stage for stage in STAGES if stage.name in measured and (stage.name in own or mine is None)]
    canvas.words = f"Normal losses of {', '.join(stage.name for stage in stages)}"
    for place, stage in enumerate(stages):
        name = stage.name
        middles = [WINDOW * (number + 0.5) for number in range(len(measured[name][0]))]
        means = shipped.get(name, [])  # each of the steps since the point before it
        canvas.facts[name] = facts = {
            "band": [(step, *limits) for step, limits in zip(middles, bands(name))],
            "runs": [list(zip(middles, losses)) for losses in measured[name]],
            "shipped": [(step - means[0][0] / 2, loss) for step, loss in means],
            "mine": [point for point in own.get(name, []) if point[0] > 0],
        }
        box = (44 + 214 * (place % 3), 30 + 172 * (place // 3), 160, 112)
        _draw_band(canvas, box if len(stages) > 1 else (44, 30, 560, 290), stage, facts)
    meanings = [(SKY, "band"), (INK, "three runs"), (GRAY, "shipped, one run"), (RED, "yours")]
    canvas.legend(44, 358, meanings if own else meanings[:3])
    canvas.text(632, 372, "loss over steps", 14, GRAY, "right")
    return canvas


def _draw_band(canvas, box, stage, facts):
    """One stage over the logarithm of its steps."""
    runs = [*facts["runs"], facts["shipped"]]
    most = max([loss for run in runs for _, loss in run] + [high for _, _, high in facts["band"]])
    x, y, w, h = box
    axes = Axes(canvas, box, (math.log10(4), math.log10(stage.steps)), (0, most * 1.05))
    canvas.text(x, y - 8, stage.name, bold=True)
    for middle, low, high in facts["band"]:
        (left, top), (right, bottom) = (
            axes.at(math.log10(max(step, 4)), loss) for step, loss in ((middle - 5, high), (middle + 5, low))
        )
        canvas.rect(left, top, right - left, bottom - top, SKY)
    canvas.path([(x, y), (x, y + h), (x + w, y + h)], GRAY, 1)
    curves = [(facts["shipped"], GRAY, 2), *((run, INK, 1) for run in facts["runs"]), (facts["mine"], RED, 2)]
    for curve, color, line in filter(lambda each: each[0], curves):
        axes.line([(math.log10(max(step, 4)), min(loss, most * 1.05)) for step, loss in curve], color, line)
    for step in (10, 100, 1000):
        if step < stage.steps:
            axes.under(math.log10(step), f"{step:,}")
    for loss in (0, most):
        axes.beside(loss, f"{loss:.1f}" if loss else "0")
