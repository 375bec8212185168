"""The panels of lesson 08: claims, scores, pairs and losses are the package's, curves those of the recorded run."""

import json
import math

import nbformat
import pytest
import torch
from places import ROOT
from svg import SVG, svg_of, texts, touch
from svg import canvas_shapes as shapes

from experiments._alignment_run import CURVE
from experiments.alignment import RUNS
from minicpmv_ref.course import draw, panels
from minicpmv_ref.learn.dpo import dpo_loss
from minicpmv_ref.learn.rlaif import build_pairs, hallucination, is_true, score_response, split_claims

pytestmark = pytest.mark.usefixtures("strict_panels")
SCENES = range(1, len(draw.recorded()["examples"]) + 1)
CHECKERS = list(draw.CHECKERS.values())
MINUS = "\N{MINUS SIGN}"


def inside(canvas):
    """Every line of text is inside the picture, large enough, and does not end in an ellipsis of ours."""
    assert (canvas.width, canvas.height) == (640, 380)
    for x, y, text, size, _, align, bold in shapes(canvas, "text"):
        width = draw.text_width(text, size, bold)
        left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
        assert size >= 14 and left >= -1 and left + width <= 641 and 12 <= y <= 379, text


# ---- the recorded run


def test_the_recorded_run_is_complete():
    run = draw.recorded()
    assert set(run) >= {"base", "config", "runs", "labeler", "examples"}
    assert "main" in run["runs"] and len(run["runs"]) > 1 and set(run["runs"]) <= set(RUNS)
    for found in run["runs"].values():
        for when in ("before", "after"):
            for way in ("greedy", "sampled"):
                for figure in found[when][way].values():
                    assert len(figure["all"]) == 3 and len(figure["each"]) == len(found["seeds"])
            value, low, high = found[when]["questions"]["all"]
            assert 0 <= low <= value <= high <= 1
        assert all(set(CURVE) <= set(point) for part in found["curve"] for point in part)
        assert found["training"][0][0]["step"] >= 1
    assert draw.RECORDED.stat().st_size < 400_000
    json.dumps(run, allow_nan=False)


def test_examples_are_scenes_of_the_world():
    for scene in SCENES:
        shown = draw.example(scene)
        assert len(shown["answers"]) == 10 and not shown["sample"].held_out
        for claim, _, _, true in draw.recorded()["examples"][scene - 1]["claims"]:
            assert is_true(claim, shown["sample"].facts) == true


# ---- claims and pairs


@pytest.mark.parametrize("checker", CHECKERS)
def test_scores_and_pairs_are_the_packages(checker):
    for scene in SCENES:
        shown = draw.example(scene, checker)
        for answer, claims, score in zip(shown["answers"], shown["claims"], shown["scores"], strict=True):
            assert [claim[0] for claim in claims] == split_claims(answer)
            for _, p_yes, p_no, verdict, true in claims:
                wanted = true if checker == "truth" else p_yes is not None and p_yes > p_no
                assert verdict == wanted
            assert score == (score_response([claim[3] for claim in claims]) if claims else None)
        seed = draw.recorded()["examples"][scene - 1]["seed"].removeprefix("align-")
        assert shown["drawn"] == build_pairs(shown["scores"], seed=seed) and len(shown["drawn"]) <= 2
        assert set(shown["drawn"]) <= set(shown["pairs"]) == set(build_pairs(shown["scores"], max_pairs=10**6))
    assert any(draw.example(scene)["drawn"] for scene in SCENES)


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_ladder_shows_one_answer(checker):
    for scene in SCENES:
        shown = draw.example(scene, checker)
        for answer in (1, 6, 10):
            canvas, claims = draw.claim_ladder(answer, scene, checker), shown["claims"][answer - 1]
            inside(canvas)
            said = [text for _, _, text, *_ in shapes(canvas, "text")]
            score = shown["scores"][answer - 1]
            wanted = "none" if score is None else str(score).replace("-", MINUS)
            assert said[0] == f"answer {answer}, score {wanted}"
            bars = [(w, fill) for x, _, w, _, fill, *_ in shapes(canvas, "rect") if x == 404]
            asked = [claim for claim in claims[: draw.ROWS] if claim[1] is not None]
            ps = [max(1, 66 * p) for claim in asked for p in claim[1:3]]
            assert [w for w, _ in bars] == pytest.approx(ps)
            assert [fill for _, fill in bars] == [draw.BLUE, draw.ORANGE] * len(asked)
            verdicts = [
                (text, color)
                for x, _, text, _, color, align, _ in shapes(canvas, "text")
                if align == "right" and text in ("valid", "rejected")
            ]
            assert verdicts == [
                ("valid" if verdict else "rejected", draw.INK if verdict == true else draw.RED)
                for *_, verdict, true in claims[: draw.ROWS]
            ]
            assert ("red: the labeler is wrong" in said) == any(verdict != true for *_, verdict, true in claims)
            dots = {round((x - 60) / 58): y for x, y, *_ in shapes(canvas, "dot")}
            assert set(dots) == {i for i, s in enumerate(shown["scores"]) if s is not None}
            order = sorted(dots, key=dots.get)
            assert [shown["scores"][i] for i in order] == sorted((shown["scores"][i] for i in order), reverse=True)
            thick = [points for points, _, line in shapes(canvas, "path") if line == 5]
            assert [tuple(round((x - 60) / 58) for x, _ in points) for points in thick] == shown["drawn"]
            thin = [points for points, _, line in shapes(canvas, "path") if line == 1.5]
            mine = [pair for pair in shown["pairs"] if answer - 1 in pair and pair not in shown["drawn"]]
            assert [tuple(round((x - 60) / 58) for x, _ in points) for points in thin] == mine


def fake(monkeypatch, answers, claims):
    monkeypatch.setattr(
        draw.alignment, "recorded", lambda: {"examples": [dict(seed="align-0/7", answers=answers, claims=claims)]}
    )
    draw.example.cache_clear()


def test_answers_that_ramble_or_say_nothing(monkeypatch):
    long = ", ".join(f"purple triangle number {i} somewhere in the bottom right corner of it" for i in range(6))
    claims = [[claim, None, None, False] for claim in split_claims(long)]
    claims.append(["red star top left", 0.5, 0.5, True])
    fake(
        monkeypatch,
        [long, "", "red star top left.", "x" * 300, *["red star top left."] * 6],
        [*claims, ["x" * 300, None, None, False]],
    )
    try:
        for answer in range(1, 11):
            inside(draw.claim_ladder(answer, 1, "labeler"))
        said = [text for _, _, text, *_ in shapes(draw.claim_ladder(1, 1, "labeler"), "text")]
        assert "and 2 more" in said and "no question" in said and f"{MINUS}6" in said
        shown = draw.example(1)
        assert shown["scores"][:3] == [-6, None, -1], "a tie is not valid"
        said = [text for _, _, text, *_ in shapes(draw.claim_ladder(2, 1, "truth"), "text")]
        assert said[:2] == ["answer 2, score none", "(empty)"]
        panel = panels.ClaimsToPairs(answer=2)
        assert panel.status == "Answer 2 of 10 makes no claim, so it has no score and enters no pair."
    finally:
        draw.example.cache_clear()


def test_words_of_the_claims_panel():
    scene = next(scene for scene in SCENES if draw.example(scene)["drawn"])
    shown = draw.example(scene)
    better, _ = shown["drawn"][0]
    panel = panels.ClaimsToPairs(better + 1, scene)
    claims, rejected = len(shown["claims"][better]), -shown["scores"][better]
    assert panel.status.startswith(
        f"Answer {better + 1} of 10 makes {claims} claim{'s' * (claims != 1)}, {rejected} of them rejected: score"
    )
    could = sum(pair[0] == better for pair in shown["pairs"])
    chosen = sum(pair[0] == better for pair in shown["drawn"])
    assert f"could be chosen in {could} pair" in panel.status and f"it is chosen in {chosen} and" in panel.status


# ---- the loss


@pytest.mark.parametrize("beta", draw.BETAS)
def test_the_loss_and_its_gradient_are_the_packages(beta):
    for chosen, rejected in ((0, 0), (-2, -7), (20, -20), (-20, 20), (3, 3)):
        ratios = [torch.tensor([float(x)], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
        zero = torch.zeros(1, dtype=torch.float64)
        loss, better, worse = dpo_loss(*ratios, zero, zero, beta)
        loss.backward()
        found = draw.preference(chosen, rejected, beta)
        assert found == pytest.approx(((better - worse).item(), loss.item(), ratios[1].grad.item()), abs=1e-12)


@pytest.mark.parametrize("beta", draw.BETAS)
def test_curve_surface_and_dot_show_the_loss(beta):
    for chosen, rejected in ((-2, -7), (20, -20), (-20, 20), (0, 0)):
        canvas = draw.dpo_landscape(chosen, rejected, beta, 4)
        inside(canvas)
        facts = canvas.facts
        assert (facts["margin"], facts["loss"], facts["weight"]) == draw.preference(chosen, rejected, beta)
        assert facts["curve"] == [(x / 2, draw.preference(x / 2, 0, beta)[1]) for x in range(-80, 81)]
        curve = max((points for points, *_ in shapes(canvas, "path")), key=len)
        (x0, top), (x1, bottom) = curve[0], curve[-1]
        largest, smallest = (draw.preference(x, 0, beta)[1] for x in (-40, 40))
        scale = (largest - smallest) / (bottom - top)
        (at, height, *_), (right, down, *_) = (dot for dot in shapes(canvas, "dot") if dot[3] == draw.RED)
        assert -40 + 80 * (at - x0) / (x1 - x0) == pytest.approx(chosen - rejected)
        assert largest - scale * (height - top) == pytest.approx(draw.preference(chosen, rejected, beta)[1], abs=1e-6)
        tangent = next(points for points, color, _ in shapes(canvas, "path") if color == draw.RED)
        slope = -scale * (tangent[1][1] - tangent[0][1]) / ((tangent[1][0] - tangent[0][0]) * 80 / (x1 - x0))
        for x, y in tangent:
            assert x0 - 0.01 <= x <= x1 + 0.01 and 33.9 <= y <= 234.1, "inside the plot"
        assert -slope == pytest.approx(draw.preference(chosen, rejected, beta)[2], rel=1e-6)
        ((x, y, w, h, image, _),) = shapes(canvas, "image")
        assert ((right - x) / w * 40 - 20, 20 - (down - y) / h * 40) == pytest.approx((rejected, chosen))
        if chosen != rejected and beta > 0.01:
            spot = (min(99, int((right - x) / w * 100)), min(99, int((down - y) / h * 100)))
            red, _, blue = image.getpixel(spot)
            assert (blue > red) == (chosen > rejected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_recorded_pairs_are_where_they_were(beta):
    moments = draw.recorded()["runs"]["main"]["watched"][0]
    assert [each["step"] for each in moments] == [p["step"] for p in draw.recorded()["runs"]["main"]["curve"][0]]
    assert moments[0]["ratios"] == [[0, 0]] * 32, "the policy is the reference"
    for number in (0, 5, 8):
        canvas, ratios = draw.dpo_landscape(0, 0, beta, number), moments[number]["ratios"]
        assert draw.pairs_at(number) == (moments[number]["step"], ratios) == (10 * number, canvas.facts["pairs"])
        dots = [(x, y) for x, y, *_, fill, _ in shapes(canvas, "dot") if fill == draw.GREEN]
        curve, surface = (canvas.facts["axes"][name] for name in ("curve", "surface"))
        wanted = [curve.at(c - r, draw.preference(c, r, beta)[1]) for c, r in ratios]
        assert dots == wanted + [surface.at(r, c) for c, r in ratios]
        assert all(0 <= x <= 640 and 0 <= y <= 380 for x, y in dots)
    assert sum(c > r for c, r in moments[-1]["ratios"]) > 24, "what training is for"


def test_words_and_formula_of_the_loss():
    panel = panels.PreferenceLoss()
    said = texts(panel)
    assert any(text.endswith(f"= 0.1 \N{MULTIPLICATION SIGN} ({MINUS}2 {MINUS} ({MINUS}7)) = 0.5") for text in said)
    assert any(text.endswith("= 0.4741") for text in said) and any(text.endswith("= 0.0378") for text in said)
    pairs = draw.pairs_at(8)[1]
    assert panel.status == (
        "Margin 0.5, loss 0.4741: the pair is in the right order. "
        "One nat more of chosen minus rejected lowers the loss by about 0.0378. "
        f"Recorded, step 80: {sum(c > r for c, r in pairs)} of 32 pairs are in the right order; "
        f"{sum(c < 0 for c, _ in pairs)} chosen answers have become less likely."
    )
    assert "in the wrong order" in panels.PreferenceLoss(-3, 2).status
    assert f"loss {math.log(2):.4g}: the pair is in no order" in panels.PreferenceLoss(4, 4).status


def test_the_pair_can_be_dragged():
    panel = panels.PreferenceLoss()
    touch(panel, "surface", panel.facts["axes"]["surface"].at(-3.4, 7.7))
    assert (panel.values()["rejected"], panel.values()["chosen"]) == (-3, 8)
    touch(panel, "curve", panel.facts["axes"]["curve"].at(5, 1))
    assert (panel.values()["rejected"], panel.values()["chosen"]) == (-3, 2), "rejected stays"
    touch(panel, "curve", (9999, 0))
    assert (panel.values()["rejected"], panel.values()["chosen"]) == (-20, 20), "as far as it goes"
    for name, axes in panel.facts["axes"].items():  # an arrow key moves by one nat
        x, y = panel.spots[name].at
        before = axes.value(x, y)[0] - 1
        touch(panel, name, (x - panel.spots[name].step[0], y), (x, y))
        difference = panel.values()["chosen"] - panel.values()["rejected"]
        assert (difference if name == "curve" else panel.values()["rejected"]) == pytest.approx(
            max(before, -20 if name == "surface" else -40)
        )


# ---- the runs


@pytest.mark.parametrize("trait", draw.TRAITS.values())
def test_curves_are_the_recorded_ones(trait):
    runs = draw.recorded()["runs"]
    for name, run in runs.items():
        points = draw.joined_rounds(run, "curve")
        for point in (0, len(points) - 1):
            canvas = draw.alignment_runs(point, name, trait, 1)
            inside(canvas)
            value = points[point][trait]
            assert canvas.facts["moment"] == (points[point]["step"], value)
            for kind, key in (("training", "margin"), ("curve", trait)):
                wanted = [(p["step"], p[key]) for p in draw.joined_rounds(run, kind) if p[key] is not None]
                axes = canvas.facts["axes"][key]
                drawn = [line for line, color, _ in shapes(canvas, "path") if color == draw.BLUE]
                assert canvas.facts[key] == wanted and [axes.at(*p) for p in wanted] in drawn
                both = [p[key] for each in {name, "main"} for p in draw.joined_rounds(runs[each], kind)]
                both = [value for value in both if value is not None]
                assert axes.ys == (min(both), max(both)), "axes that fit"
            dots = [(x, y) for x, y, _, fill, _ in shapes(canvas, "dot") if fill == draw.RED]
            assert (canvas.facts["axes"][trait].at(points[point]["step"], value) in dots) == (value is not None)
    words = panels.AlignmentRuns(0, "random", trait).status
    assert words.startswith(
        f"Run random, step 0, 32 pictures: {next(w for w, key in draw.TRAITS.items() if key == trait)} "
    )


def test_every_run_is_in_the_scatter():
    canvas, run = draw.alignment_runs(3, "sft", "recall", 1), draw.recorded()
    greedy = {name: each["after"]["greedy"] for name, each in run["runs"].items()}
    greedy |= {"before": run["runs"]["main"]["before"]["greedy"], "nano": run["careful"]["greedy"]}
    assert canvas.facts["runs"] == {n: (g["mention"]["all"][0], g["recall"]["all"][0]) for n, g in greedy.items()}
    assert [spot.item for spot in canvas.spots.values() if spot.name == "run"] == list(run["runs"])
    x, y = canvas.facts["runs"]["sft"]
    words = f"After training, 600 pictures: {x:.1%} false mentions, recall {y:.1%}."
    assert panels.AlignmentRuns(3, "sft").status.endswith(words)


def test_what_is_said_is_checked_against_the_scene():
    moments = draw.recorded()["runs"]["main"]["watched"][0]
    figures = hallucination(moments[8]["said"], [draw.held_out(n).facts for n in range(12)])
    false, left_out, things = 0, 0, 0
    for page in (1, 2, 3):
        canvas = draw.alignment_runs(8, "main", "mention", page)
        inside(canvas)
        for number, claims in canvas.facts["claims"].items():
            assert [claim for claim, _ in claims] == split_claims(moments[8]["said"][number])
            scene = draw.held_out(number).facts
            assert all(true == is_true(claim, scene) for claim, true in claims)
            things += len({(thing.color, thing.shape) for thing in scene.things})
            left_out += len(set(canvas.facts["left_out"][number]))
            false += sum(not true for _, true in claims)
    assert 1 - left_out / things == pytest.approx(figures["recall"].value)
    assert false >= figures["mention"].value * figures["mentions"].value * 12 - 1e-6
    assert draw.alignment_runs(4, "truth", "mention", 1).facts["said"] == ("main", 40)


def test_rounds_follow_each_other():
    run = {"curve": [[{"step": 0}, {"step": 4}]] * 2, "training": [[{"step": 1}, {"step": 5}]] * 2}
    assert [point["step"] for point in draw.joined_rounds(run, "curve")] == [0, 4, 5, 9]
    assert [point["step"] for point in draw.joined_rounds(run, "training")] == [1, 5, 6, 10]


def test_the_slider_ends_with_the_run():
    panel = panels.AlignmentRuns(point=99, run="rounds")
    assert panel.values()["point"] == panel.controls["point"].max == 26
    touch(panel, "run main")
    assert panel.values()["run"] == "main" and panel.values()["point"] == panel.controls["point"].max == 8
    assert "step 80," in panel.status
    touch(panel, "moment margin", panel.facts["axes"]["margin"].at(33, 0))
    assert "step 30," in panel.status
    x, y = panel.spots["moment mention"].at
    touch(panel, "moment mention", (x + panel.spots["moment mention"].step[0], y), (x, y))
    assert "step 40," in panel.status


def test_svg_is_what_the_panel_shows():
    panel = panels.AlignmentRuns()
    assert len(list(svg_of(panel).iter(SVG + "polyline"))) > 4


# ---- the lesson


def test_the_paper_is_quoted_right():
    cells = nbformat.read(ROOT / "notebooks/08_rlaif_dpo.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "from 13.1 to 10.3 percent of responses, and from 6.4 to 5.0 percent of mentions" in prose
