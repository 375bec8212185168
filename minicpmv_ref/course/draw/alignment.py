"""Lesson 08: from answers to pairs, the loss that learns from pairs, and what it did to the nano model."""

import math
from functools import cache

import numpy as np
from PIL import Image

from minicpmv_ref.inputs.files import read_json

from .canvas import SAMPLES, Axes, Canvas, text_width, wrap
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, RED, SKY, rgb

RECORDED = SAMPLES.parent / "alignment.json"  # the summary of `python3 lab.py dpo --profile cpu --run all`
CHECKERS = {"the labeler": "labeler", "the truth": "truth"}  # words in a menu: key
BETAS = (0.01, 0.1, 0.3, 1.0)
RATIO = 20  # nats: how far an answer's log-probability moves at most in `dpo_landscape`
TRAITS = {"false mentions": "mention", "false answers": "response", "recall": "recall", "words": "words"}  # menu: key
ROWS = 4  # claims that fit into the table
PER_PAGE = 4  # pictures whose descriptions are shown at once


@cache
def recorded() -> dict:
    """The recorded run, see `experiments.alignment.summarize`."""
    return read_json(RECORDED)


# ---- claims and pairs


@cache
def example(scene: int, checker: str = "labeler") -> dict:
    """One recorded picture, from 1, with all that follows from its answers.

    "claims": for each answer [(claim, p_yes, p_no, verdict, true?), ...]; "pairs" (chosen, rejected) that may be made,
    "drawn": those that are.
    """
    import torch

    from minicpmv_ref.learn.rlaif import build_pairs, is_valid, score_response, split_claims
    from minicpmv_ref.toy.data import draw

    shown = recorded()["examples"][scene - 1]
    known = {}
    for claim, p_yes, p_no, true in shown["claims"]:
        valid = p_yes is not None and bool(is_valid(torch.tensor(p_yes), torch.tensor(p_no)))
        known[claim] = (claim, p_yes, p_no, valid if checker == "labeler" else true, true)
    claims = [[known[claim] for claim in split_claims(answer)] for answer in shown["answers"]]
    scores = [score_response([verdict for *_, verdict, _ in own]) if own else None for own in claims]
    pairs, drawn = build_pairs(scores, max_pairs=len(scores) ** 2), build_pairs(scores, seed=shown["seed"][6:])
    sample, answers = draw(shown["seed"]), shown["answers"]
    return dict(sample=sample, answers=answers, claims=claims, scores=scores, pairs=pairs, drawn=drawn)


def claim_ladder(answer: int, scene: int, checker: str) -> Canvas:
    """One answer with its claims, and the pairs that it enters. `answer` and `scene` count from 1."""
    canvas, shown = Canvas(), example(scene, checker)
    chosen, claims = answer - 1, shown["claims"][answer - 1]
    canvas.image(8, 8, 132, 132, shown["sample"].image, smooth=False, frame=INK)
    canvas.text(154, 22, f"answer {answer}, score {_signed(shown['scores'][chosen])}", bold=True)
    canvas.facts = {"claims": claims[:ROWS], "score": shown["scores"][chosen]}
    canvas.lines(154, 42, wrap(shown["answers"][chosen] or "(empty)", 478, 14)[:2], 18, 14)
    canvas.text(154, 86, "its claims", 14, GRAY)
    canvas.text(404, 86, "p(yes), p(no)", 14, GRAY)
    for row, (claim, p_yes, p_no, verdict, true) in enumerate(claims[:ROWS]):
        y = 94 + 27 * row
        canvas.text(154, y + 14, wrap(claim, 244, 14)[0], 14)
        if p_yes is None:
            canvas.text(404, y + 14, "no question", 14, GRAY)
        else:
            for part, (p, color) in enumerate(((p_yes, BLUE), (p_no, ORANGE))):
                canvas.rect(404, y + 2 + 9 * part, max(1, 66 * p), 8, color)
            canvas.text(476, y + 14, f"{p_yes:.2f}, {p_no:.2f}", 14)
        word = "valid" if verdict else "rejected"
        canvas.text(632, y + 14, word, 14, INK if verdict == true else RED, "right", verdict != true)
    if len(claims) > ROWS:
        canvas.text(154, 216, f"and {len(claims) - ROWS} more", 14, GRAY)
    if any(verdict != true for *_, verdict, true in claims):
        canvas.text(632, 216, "red: the labeler is wrong", 14, RED, "right")
    _ladder(canvas, shown, chosen, checker)
    return canvas


def _ladder(canvas, shown, chosen, checker):
    scores, drawn = shown["scores"], shown["drawn"]
    lowest = min([-1, *(score for score in scores if score is not None)])
    spots = {number: (60 + 58 * number, 258 + 84 * (score or 0) / lowest) for number, score in enumerate(scores)}
    canvas.text(8, 236, f"scores of answers 1 to 10 by the {checker}; a line is a pair", bold=True)
    levels = range(0, lowest - 1, -1) if lowest > -5 else (0, lowest)
    for level in levels:
        y = 258 + 84 * level / lowest
        canvas.text(8, y + 5, _signed(level), 14)
        canvas.path([(40, y), (600, y)], PALE, 1)
    for better, worse in shown["pairs"]:
        if chosen in (better, worse) and (better, worse) not in drawn:
            canvas.path([spots[better], spots[worse]], SKY, 1.5)
    for better, worse in drawn:
        canvas.path([spots[better], spots[worse]], GREEN, 5)
    for number, (x, y) in spots.items():
        if scores[number] is not None:
            canvas.dot(x, y, 9 if number == chosen else 7, BLUE if number == chosen else GRAY)
        canvas.text(x, 374, number + 1, 14, INK, "middle", number == chosen)


def _signed(score) -> str:
    return "none" if score is None else f"{score}".replace("-", "−")


# ---- the loss


def preference(chosen: float, rejected: float, beta: float) -> tuple[float, float, float]:
    """(margin of the rewards, loss, gradient weight) of one pair, from its two log-ratios in nats."""
    margin = beta * (chosen - rejected)
    loss = math.log1p(math.exp(-margin)) if margin > -30 else -margin
    return margin, loss, beta / (1 + math.exp(margin))


def pairs_at(moment: int) -> tuple[int, list]:
    """(step, log-ratios [(chosen, rejected), ...]) of the recorded pairs of the main run, at a moment from 0."""
    point = recorded()["runs"]["main"]["watched"][0][moment]
    return point["step"], point["ratios"]


def dpo_landscape(chosen: int, rejected: int, beta: float, moment: int) -> Canvas:
    """The loss as a curve over the difference of the log-ratios, and as a surface over both; `pairs_at` in green.

    Its facts: "margin", "loss" and "weight" as of `preference`, "curve" [(difference, loss), ...], "pairs" as drawn,
    and "axes" {"curve" or "surface": axes}, of which each is a spot.
    """
    canvas = Canvas()
    margin, loss, weight = preference(chosen, rejected, beta)
    xs = [2 * RATIO * i / 80 for i in range(-80, 81)]
    curve = [(x, preference(x, 0, beta)[1]) for x in xs]
    step, pairs = pairs_at(moment)
    canvas.facts = {"margin": margin, "loss": loss, "weight": weight, "curve": curve, "pairs": pairs, "axes": {}}
    _draw_loss_curve(canvas, chosen - rejected, beta)
    _draw_loss_surface(canvas, chosen, rejected, beta)
    canvas.text(632, 276, f"green: {len(pairs)} recorded pairs, step {step}", 14, GREEN, "right")

    def number(value):
        return f"({_signed(value)})" if value < 0 else f"{value}"

    numbers = f"{beta:g} × ({_signed(chosen)} − {number(rejected)}) = {_signed(f'{margin:.3g}')}"
    formulas = f"loss = −log σ(margin) = {loss:.4g}", f"gradient weight = β σ(−margin) = {weight:.3g}"
    canvas.lines(44, 299, (f"margin = β (chosen − rejected) = {numbers}", *formulas), 24)
    canvas.text(44, 372, "right: blue is below log 2; orange is above, the pair is in the wrong order", 14, GRAY)
    return canvas


def _draw_loss_curve(canvas, x, beta):
    """The loss against the difference of the log-ratios, with the tangent at `x`."""
    loss, weight, curve = canvas.facts["loss"], canvas.facts["weight"], canvas.facts["curve"]
    most, largest = 2 * RATIO, max(2.0, curve[0][1])
    axes = Axes(canvas, (44, 34, 320, 200), (-most, most), (0, largest))
    canvas.text(44, 20, "loss over the difference of log-ratios", 14, bold=True)
    for value in (0, math.log(2), largest) if largest < 9 else (0, largest):  # log 2 would sit on 0
        axes.level(value, f"{value:.2g}")
    axes.moment(0)
    axes.line(curve, BLUE, 3)
    run = min(14, 0.3 * largest / weight)  # nats to each side, but not out of the plot
    ends = max(x - run, -most, x - (largest - loss) / weight), min(x + run, most, x + loss / weight)
    axes.line([(end, loss - weight * (end - x)) for end in ends], RED)
    for better, worse in canvas.facts["pairs"]:
        axes.dot(better - worse, preference(better, worse, beta)[1], 3, GREEN)
    axes.dot(x, loss, color=RED)
    canvas.facts["axes"]["curve"] = axes
    canvas.spot("curve", None, axes.box, "click or drag: another difference", "drag", axes.at(x, loss), (4, 0))
    for value, align in ((-most, "left"), (0, "middle"), (most, "right")):
        axes.under(value, _signed(value), align)
    axes.under(0, "chosen − rejected, in nats", row=1)


def _draw_loss_surface(canvas, chosen, rejected, beta):
    box, ends = (424, 34, 200, 200), (-RATIO, RATIO)
    axes = Axes(canvas, box, ends, ends)
    canvas.text(404, 20, "loss over both log-ratios", 14, bold=True)
    canvas.image(*box, _surface(beta), smooth=False, frame=INK)
    for better, worse in canvas.facts["pairs"]:
        axes.dot(worse, better, 3, GREEN)
    axes.dot(rejected, chosen, color=RED)
    canvas.facts["axes"]["surface"] = axes
    canvas.spot("surface", None, box, "click or drag: another pair", "drag", axes.at(rejected, chosen), (5, 5))
    for y, label in ((46, _signed(RATIO)), (140, "chosen"), (234, _signed(-RATIO))):
        canvas.text(418, y, label, 14, GRAY, "right")
    for value, label, align in ((-RATIO, _signed(-RATIO), "left"), (0, "rejected", "middle"), (RATIO, RATIO, "right")):
        axes.under(value, label, align)


@cache
def _surface(beta, cells=100):
    """Loss by color: blue below log 2, orange above; white is log 2."""
    steps = ((np.arange(cells) + 0.5) / cells * 2 - 1) * RATIO
    loss = np.logaddexp(0, -beta * (steps[::-1, None] - steps[None, :]))
    blue, orange = (np.array(rgb(color), float) for color in (BLUE, ORANGE))
    share = np.where(loss < math.log(2), 1 - loss / math.log(2), np.minimum(1, (loss - math.log(2)) / 2))[..., None]
    colors = 255 + share * (np.where((loss < math.log(2))[..., None], blue, orange) - 255)
    return Image.fromarray(colors.round().astype(np.uint8))


# ---- what training did


def alignment_runs(point: int, run: str, trait: str, page: int) -> Canvas:
    """Margin and a trait against the steps, all runs in one plot, and what is said at one moment.

    In the curves blue is this run, gray the main run. `point` counts the moments at which descriptions were graded,
    from 0; `page` counts groups of PER_PAGE pictures, from 1. What is said is the main run's where a run has none. Its
    facts: "margin" and the trait, each [(step, value), ...] of this run; "moment" (step, value of the trait); "runs"
    {run: (false mentions, recall)} after it; "said" (run, step); "claims" {picture: [(claim, true?), ...]}; "left_out"
    {picture: [thing, ...]}; "axes" of the two curves. Its spots: "moment" and "run".
    """
    canvas, runs = Canvas(), recorded()["runs"]
    graded = joined_rounds(runs[run], "curve")
    moment = graded[min(point, len(graded) - 1)]
    canvas.facts = {"moment": (moment["step"], moment[trait]), "axes": {}, "claims": {}, "left_out": {}}
    words = next(words for words, key in TRAITS.items() if key == trait)
    as_text = "{:.3g}".format if trait == "words" else "{:.0%}".format
    _draw_run(canvas, 54, "reward margin", run, ("training", "margin"), moment, "{:.2f}".format)
    _draw_run(canvas, 262, words, run, ("curve", trait), moment, as_text)
    canvas.text(8, 176, "drag the orange line" if run == "main" else f"blue: {run}; gray: main", 14, GRAY)
    _draw_all_runs(canvas, run)
    speaker = run if "watched" in runs[run] else "main"
    said = min(joined_rounds(runs[speaker], "watched"), key=lambda each: abs(each["step"] - moment["step"]))
    canvas.facts["said"] = speaker, said["step"]
    canvas.text(8, 204, f"{speaker}, step {said['step']}, about held-out pictures", bold=True)
    _draw_said(canvas, said["said"], page)
    return canvas


def _draw_run(canvas, left, title, run, what, moment, as_text):
    """One figure of a run over its steps, and of the main run under it."""
    (kind, name), runs = what, recorded()["runs"]
    lines = [(GRAY, runs["main"])] * (run != "main") + [(BLUE, runs[run])]
    points = [[(p["step"], p[name]) for p in joined_rounds(each, kind) if p[name] is not None] for _, each in lines]
    canvas.facts[name] = points[-1]
    xs, ys = zip(*(point for line in points for point in line))
    most, step = max(1, *xs), min(moment["step"], max(xs))
    low, high = (min(ys), max(ys)) if max(ys) > min(ys) else (min(ys) - 0.1, max(ys) + 0.1)
    box = (left, 30, 146, 110)
    axes = canvas.facts["axes"][name] = Axes(canvas, box, (0, most), (low, high))
    canvas.text(left, 20, title, 14, bold=True)
    for level in (low, high):
        axes.level(level, _signed(as_text(level)))
    axes.moment(step, ORANGE, 2)
    for (color, _), line in zip(lines, points):
        axes.line(line, color, 3)
    value = dict(points[-1]).get(moment["step"])
    if value is not None:
        axes.dot(step, value, 7, RED)
    axes.under(0, "0", "left")
    axes.under(most, f"{most} steps", "right")
    at, by = axes.at(step, (low + high) / 2), (box[2] / last_moment(run), 0)
    canvas.spot("moment", name, box, "click or drag: another moment", "drag", at, by)


def _draw_all_runs(canvas, run):
    """Recall against false mentions after each run, before all runs, and of the careful model."""
    after = {name: each["after"] for name, each in recorded()["runs"].items()}
    every = after | {"before": recorded()["runs"]["main"]["before"], "nano": recorded()["careful"]}
    points = {name: [each["greedy"][key]["all"] for key in ("mention", "recall")] for name, each in every.items()}
    canvas.facts["runs"] = {name: (x[0], y[0]) for name, (x, y) in points.items()}
    xs, ys = zip(*canvas.facts["runs"].values())
    axes = Axes(canvas, (478, 30, 150, 110), (0, 1.04 * max(xs)), (min(ys) - 0.01, 1.01))
    canvas.text(440, 20, "recall after each run", 14, bold=True)
    for level in (min(ys), 0.9, 1):
        axes.level(level, f"{level:.0%}")
    axes.under(0, "0%", "left")
    axes.under(max(xs), f"{max(xs):.0%}", "right")
    axes.under(max(xs) / 2, "false mentions", row=1)
    for name, (x, y) in canvas.facts["runs"].items():
        axes.dot(x, y, 6, {"before": INK, "nano": GREEN}.get(name, SKY))
        across, down = axes.at(x, y)
        if name in after:
            words = f"show run {name}: {x:.1%} false mentions, recall {y:.1%}"
            canvas.spot("run", name, (across - 7, down - 7, 14, 14), words, chosen=name == run)
    (x, *from_x), (y, *from_y) = points[run]
    axes.line([(end, y) for end in from_x], BLUE)
    axes.line([(x, end) for end in from_y], BLUE)
    axes.dot(x, y, 7, BLUE)
    across, down = axes.at(x, y)
    canvas.text(min(across, 636 - text_width(run, 14) / 2), down - 12, run, 14, BLUE, "middle")
    for name, align, shift in (("nano", "left", (11, 5)), ("before", "right", (8, 20))):
        across, down = axes.at(*canvas.facts["runs"][name])
        canvas.text(across + shift[0], down + shift[1], name, 14, INK, align)


def _draw_said(canvas, said, page):
    """Pictures of one page, and what is said about each: false claims in red, things that are left out in gray."""
    from minicpmv_ref.learn.rlaif import is_true, read_claim, split_claims

    first = PER_PAGE * (page - 1)
    canvas.text(632, 204, "red: false; gray: left out", 14, GRAY, "right")
    for place, text in enumerate(said[first : first + PER_PAGE]):
        sample, x, y = held_out(first + place), 8 + 316 * (place % 2), 212 + 84 * (place // 2)
        claims = [(claim, is_true(claim, sample.facts)) for claim in split_claims(text)]
        named = {(meaning.color, meaning.shape) for claim, _ in claims if (meaning := read_claim(claim))}
        left_out = [f"{t.color} {t.shape}" for t in sample.facts.things if (t.color, t.shape) not in named]
        canvas.facts["claims"][first + place], canvas.facts["left_out"][first + place] = claims, left_out
        canvas.image(x, y, 78, 78, sample.image, smooth=False, frame=INK)
        lines = [(claim, INK if true else RED) for claim, true in claims] + [(thing, GRAY) for thing in left_out]
        for line, (words, color) in enumerate(lines[:5]):
            canvas.text(x + 86, y + 13 + 16 * line, wrap(words, 226, 14)[0], 14, color)


@cache
def held_out(number: int):
    """The picture of the test split whose description is recorded under this number, from 0."""
    from minicpmv_ref.toy.data import draw

    return draw(f"align-{recorded()['config']['seed']}/{number}", split="test")


def last_moment(run: str) -> int:
    """The number of the last moment at which descriptions were graded; a run of several rounds has more of them."""
    return sum(map(len, recorded()["runs"][run]["curve"])) - 1


def joined_rounds(run: dict, kind: str) -> list[dict]:
    """The rounds of a run, one after the other.

    Grading may stop before the last step of a round; the log of training has it.
    """
    points, start = [], 0
    for part, training in zip(run[kind], run["training"], strict=True):
        points += [{**point, "step": start + point["step"]} for point in part]
        start += training[-1]["step"]
    return points


def run_words(point: int, run: str, trait: str, page: int) -> str:
    """What `alignment_runs` shows, in words."""
    found = recorded()["runs"][run]
    graded = joined_rounds(found, "curve")
    first, here = graded[0], graded[min(point, len(graded) - 1)]
    name = next(words for words, key in TRAITS.items() if key == trait)

    def said(value):
        return "nothing to count" if value is None else f"{value:.1f}" if trait == "words" else f"{value:.1%}"

    pictures = recorded()["config"]["test_pictures"] * len(found["seeds"])
    mention, recall = (found["after"]["greedy"][figure]["all"][0] for figure in ("mention", "recall"))
    return (
        f"Run {run}, step {here['step']}, {recorded()['config']['watched']} pictures: {name} {said(here[trait])}, "
        f"before the first step {said(first[trait])}. After training, {pictures} pictures: {mention:.1%} false "
        f"mentions, recall {recall:.1%}."
    )
