"""Lesson 07: the world that nano learns from, and the stages: what learns, the loss, and what the model says."""

import math
import random
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw

from minicpmv_ref.config import nano
from minicpmv_ref.counts import parameters
from minicpmv_ref.inputs.files import parse_json, read_json
from minicpmv_ref.slicing import plan_slices, slice_image
from minicpmv_ref.toy.questions import more_questions
from minicpmv_ref.toy.scenes import draw_shape
from minicpmv_ref.toy.words import ENGLISH, PAINT, SHAPES

from .canvas import SAMPLES, Axes, Canvas, fit, preview, text_width, wrap
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, RED, SKY
from .language import quick_model

WORLD_KINDS = {"caption": "caption", "question": "question", "crop": "crop", "document": "read"}  # words in a menu: key
SCENES = ("caption", "question")  # the kinds that show one
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


def draw_said(canvas: Canvas, x: float, y: float, width: float, said: str, truth: str, most: int = 4):
    """What a model said, from (x, y) in at most `most` lines of this width; words that are not the truth's are red."""
    words, right, start = said.split() or ["(nothing)"], [*truth.replace(",", "").split(), *[""] * 99], x
    for place, word in enumerate(words):
        word = wrap(word, width, 14)[-1]
        if x > start and x + text_width(word, 14) > start + width:
            if most == 1:
                canvas.text(x, y, "…", 14, GRAY)
                break
            x, y, most = start, y + 18, most - 1
        canvas.text(x, y, word, 14, INK if word.strip(",") == right[place] else RED)
        x += text_width(word + " ", 14)


# ---- the world


@lru_cache(maxsize=256)
def world_item(kind: str, seed: int, things: tuple | None = None):
    """A training sample of the world, and its views as nano's slicer cuts them: (Sample, [PIL images]).

    Args:
        kind: "caption", "question", "crop" or "read".
        seed: draws another sample.
        things: of a scene, in place of the seed's, which then draws their sizes and the question; else no matter.
    """
    from minicpmv_ref.toy import data

    sample = data.draw(f"lesson 07/{seed}", kind)
    if things and kind in SCENES:
        scene, rng = data.Scene(things), random.Random(seed)
        asked = ENGLISH.describe, data.caption(scene, ENGLISH)
        if kind == "question":
            ((_, asked),) = more_questions(scene, rng, ENGLISH, 1)
        image, key = data.draw_scene(scene, rng), scene.content
        talk = data.conversation([image], [asked])
        sample = replace(sample, image=image, messages=talk, key=key, held_out=data.is_held_out(key), facts=scene)
    return sample, slice_image(sample.image, nano.slicing)


def nano_says(kind: str, seed: int, things: tuple | None = None) -> str:
    """nano's answer to a sample of the world. Four seeds are asked at once: keys come one after the other."""
    seeds = range(seed, seed + 1) if things else range(seed - seed % 4, seed - seed % 4 + 4)
    return _nano_says(kind, seeds, things)[seed - seeds.start]


@lru_cache(maxsize=64)
def _nano_says(kind, seeds, things):
    from minicpmv_ref.learn.evaluate import answers

    return answers(*quick_model(), [world_item(kind, seed, things)[0].prompt for seed in seeds], max_new_tokens=32)


def world_sample(
    kind: str, seed: int, view: int = 1, words: bool = False, things: tuple | None = None, brush: tuple | None = None
) -> Canvas:
    """One sample: the whole picture, one of its views or for a scene what to draw with, and what is said about it.

    What the arguments mean: `World`. Of a scene, its fact "said" is what nano answers, and its spots are "place" of the
    board and "brush".
    """
    sample, views = world_item(kind, seed, things)
    canvas, plan, scene = Canvas(), plan_slices(sample.image.size, nano.slicing), kind in SCENES
    width, height = sample.image.size
    canvas.text(8, 20, f"the picture: {width} x {height}", bold=True)
    x, y, w, h = fit(sample.image.size, (8, 32, 300, 266))
    canvas.image(x, y, w, h, preview(sample.image, 600))
    outlines = [(x, y, w, h)]
    for left, top, right, bottom in plan.boxes:
        kx, ky = w / plan.refined_size[0], h / plan.refined_size[1]
        outlines.append((x + left * kx, y + top * ky, (right - left) * kx, (bottom - top) * ky))
        canvas.rect(*outlines[-1], stroke=SKY)
    canvas.rect(*outlines[view - 1], stroke=RED, line=3)
    if words or not scene:
        _draw_view(canvas, sample, views, view, words)
    else:
        _draw_palette(canvas, brush)
        canvas.facts["said"] = nano_says(kind, seed, things)
        canvas.text(350, 240, "nano says", bold=True)
        draw_said(canvas, 350, 262, 282, canvas.facts["said"], sample.answer, 3)
    for place, name in enumerate(PLACES if scene else ()):
        box = (x + w / 2 * (place % 2), y + h / 2 * (place // 2), w / 2, h / 2)
        canvas.spot("place", place, box, f"{name}: a {' '.join(brush or ('shape',))}, or none")

    canvas.text(8, 326, sample.messages[0]["content"][1], color=BLUE)
    canvas.lines(8, 349, wrap(sample.answer, 624, bold=True), 21, bold=True)
    return canvas


PLACES = ("top left", "top right", "bottom left", "bottom right")  # of a scene


def _draw_view(canvas, sample, views, view, words):
    """A view at the right, in pixels or in words."""
    from minicpmv_ref.toy.data import spell

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


_CELL = 44  # pixels, of the palette


@cache
def _palette(scale=2):
    """Every color and shape of the world: (image, [(color, shape), ...] row by row)."""
    side = scale * _CELL
    image = Image.new("RGB", (side * len(PAINT), side * len(SHAPES)), "white")
    for row, shape in enumerate(SHAPES):
        for col, paint in enumerate(PAINT.values()):
            draw_shape(ImageDraw.Draw(image), shape, side * (col + 0.5), side * (row + 0.5), 0.36 * side, paint)
    return image, [(color, shape) for shape in SHAPES for color in PAINT]


def _draw_palette(canvas, brush):
    image, brushes = _palette()
    canvas.text(350, 20, "click a shape, then a place", bold=True)
    canvas.image(350, 32, 6 * _CELL, 4 * _CELL, image, smooth=False)
    for number, each in enumerate(brushes):
        box = (350 + number % 6 * _CELL, 32 + number // 6 * _CELL, _CELL, _CELL)
        if each == brush:
            canvas.rect(*box, stroke=INK, line=3)
        canvas.spot("brush", each, box, "draw with a " + " ".join(each), chosen=each == brush)


# ---- the stages


class Moment(NamedTuple):
    """A moment of a training: its stage, the step of that stage, the answers to SHOWN (None: not recorded)."""

    stage: str
    step: int
    said: tuple | None


@dataclass
class Story:
    """A training: {stage: steps}, {stage: [(step, loss), ...]} so far, and the moments at which pictures were shown."""

    steps: dict
    curves: dict = field(default_factory=dict)
    moments: list = field(default_factory=list)


SHOWN = (("scene", "caption", 3), ("lines of text", "crop", 3), ("document", "read", 4))  # (name, kind, seed)
# stage: the shipped checkpoint that it ends with
AFTER = {"start-vit": "nano-start", **{f"stage-{i}": f"nano-stage-{i}" for i in (1, 2, 3)}, "sft-2": "nano"}


@cache
def shown_samples() -> tuple:
    """The three held-out pictures that every stage is shown."""
    from minicpmv_ref.toy import data

    return tuple(data.draw(seed, kind, "test") for _, kind, seed in SHOWN)


def show_pictures(model, processor) -> tuple:
    """What a model says to the three pictures."""
    from minicpmv_ref.learn.evaluate import answers

    return tuple(answers(model, processor, [sample.prompt for sample in shown_samples()], max_new_tokens=24))


def stage_losses(metrics=None) -> dict:
    """Learning curves {stage: [(step, loss), ...]}: `metrics` itself, or those of the metrics.jsonl at this path.
    None: those of the shipped checkpoints, if they are there."""
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


def shipped_story() -> Story:
    """The training of nano, and what its checkpoints say."""
    curves, said = stage_losses(), read_json(SAMPLES.parent / "checkpoints" / "answers.json")["said"]
    steps = {name: curve[-1][0] for name, curve in curves.items()}
    told = {name: tuple(said[AFTER[name]]) if name in AFTER else None for name in steps}
    return Story(steps, curves, [Moment(name, steps[name], told[name]) for name in steps])


def own_story(steps: dict) -> Story:
    """A training that begins where `nano-start` stands: {stage: steps}."""
    (begin,) = (moment for moment in shipped_story().moments if moment.stage == "start-vit")
    return Story(steps, {name: [] for name in steps}, [Moment(next(iter(steps)), 0, begin.said)])


def words_right(story: Story, number: int) -> list | None:
    """[(right words, all words), ...] of the three answers at a moment, from 1; None if they are not recorded."""
    from minicpmv_ref.learn.evaluate import share_of_words

    said = story.moments[number - 1].said
    pairs = [([text], [sample.answer]) for text, sample in zip(said or (), shown_samples())]
    counts = [len(truth.split()) for _, (truth,) in pairs]
    return said and [(round(share_of_words(*pair) * count), count) for pair, count in zip(pairs, counts)]


def part_sizes() -> dict:
    """Parameters of each part of nano."""
    return {part: parameters(nano)[part] for part in PART_NAMES}


def stage_story(story: Story, number: int) -> Canvas:
    """A training up to moment `number` (from 1): the loss, what learns in each stage, and what the model says there.

    Its facts: "parts" {stage: {part: "learns", "frozen" or "not in use"}}, "right" as of `words_right`, "places" [x of
    each moment]. Its spots: "moment", each from the one before.
    """
    canvas, moment = Canvas(), story.moments[number - 1]
    canvas.text(8, 20, f"{moment.stage}: {MEANINGS[moment.stage]}", bold=True)
    wide = 544 / len(story.steps)
    begins = {name: 88 + wide * place for place, name in enumerate(story.steps)}
    canvas.facts = {
        "parts": {name: stage_roles(name) for name in story.steps},
        "right": words_right(story, number),
        "places": [begins[each.stage] + wide * each.step / story.steps[each.stage] for each in story.moments],
    }
    _draw_losses(canvas, story, moment, begins, wide)
    for row, part in enumerate(PART_NAMES):
        y = 164 + 19 * row
        canvas.text(80, y + 13, PART_NAMES[part], 14, align="right")
        for name, x in begins.items():
            _draw_role(canvas, (x, y, wide - 2, 17), name, part)
    left = 88
    for place, (each, right) in enumerate(zip(story.moments, canvas.facts["places"]), 1):
        box, words = (min(left, right - 12), 30, max(right - left, 12), 192), f"{each.stage}, step {each.step}"
        canvas.spot("moment", place, box, words, "drag", chosen=place == number)
        left = right
    _draw_answers(canvas, moment, canvas.facts["right"])
    return canvas


def _draw_losses(canvas, story, moment, begins, wide):
    """The loss of all stages side by side, each as wide as the others; what comes after the moment is pale."""
    ends = math.log(0.04), math.log(15)
    canvas.text(8, 44, "loss", 14, BLUE, bold=True)
    frame = Axes(canvas, (88, 32, 542, 92), (0, 1), ends)
    for loss in (0.1, 1, 10):
        frame.level(math.log(loss), loss)
    now = list(begins).index(moment.stage)
    for place, (name, x) in enumerate(begins.items()):
        axes = Axes(canvas, (x, 32, wide - 2, 92), (0, story.steps[name]), ends)
        points = [(step, min(max(math.log(loss), ends[0]), ends[1])) for step, loss in story.curves[name]]
        if len(points) > 1:
            axes.line(points, PALE if place > now else BLUE, 2)
        for row, words in enumerate(name.split("-")):
            canvas.text(x + wide / 2, 140 + 16 * row, words, 14, INK, "middle", bold=place == now)
        if place == now:
            axes.moment(moment.step, ORANGE, 3)


def stage_roles(name: str) -> dict:
    """What each part does in a stage: {part: words}."""
    from minicpmv_ref.learn.stages import stage_named

    stage, blind = stage_named(name), ("vpm", "resampler")
    idle = {"raw": blind, "spelled": blind, "contrast": ("resampler", "llm")}.get(stage.objective, ())
    learns = stage.learning_rates
    return {part: "learns" if part in learns else "not in use" if part in idle else "frozen" for part in PART_NAMES}


def _draw_role(canvas, box, name, part):
    """A cell of the schedule: green with its highest rate if the part learns, white if nothing passes through it."""
    from minicpmv_ref.learn.stages import stage_named

    role, (x, y, w, _) = canvas.facts["parts"][name][part], box
    fill = {"learns": GREEN, "frozen": PALE}.get(role, "white")
    canvas.rect(*box, fill, PALE)
    if role == "learns":
        canvas.text(x + w / 2, y + 13, f"{stage_named(name).learning_rates[part]:g}", 14, "white", "middle", bold=True)


def _draw_answers(canvas, moment, right):
    """The three pictures, and beside each what the model says."""
    for place, ((name, _, _), sample) in enumerate(zip(SHOWN, shown_samples())):
        x = 8 + 212 * place
        score = f": {right[place][0]} of {right[place][1]} right" if right else ""
        canvas.text(x, 246, name + score, 14, bold=True)
        w, h = map(round, fit(sample.image.size, (x, 254, 64, 118))[2:])
        small = sample.image.resize((2 * w, 2 * h), Image.Resampling.BICUBIC)
        canvas.image(x, 254, w, h, small, smooth=False, frame=GRAY)
        if right:
            draw_said(canvas, x + w + 8, 266, 192 - w, moment.said[place], sample.answer, 7)
        else:
            idle = canvas.facts["parts"][moment.stage]["vpm"] == "not in use"
            canvas.text(x + w + 8, 266, "sees no pixels" if idle else "not recorded", 14, GRAY)


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
        first, last = facts["band"][0], facts["band"][-1]
        canvas.alt += f" {name}: {first[1]:.2f} to {first[2]:.2f}, then {last[1]:.2f} to {last[2]:.2f}"
        canvas.alt += f"; yours {facts['mine'][-1][1]:.2f} at the end." if facts["mine"] else "."
    canvas.alt = f"Normal losses: the band of three runs at the start and after {last[0]:.0f} steps.{canvas.alt}"
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
        corners = (middle - 5, high), (middle + 5, low)
        (left, top), (right, bottom) = (axes.at(math.log10(max(step, 4)), loss) for step, loss in corners)
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
