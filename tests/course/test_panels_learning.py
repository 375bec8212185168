"""Panels of lesson 07: samples of the world and their spelling, the stages against `stages.py` and the paper."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from svg import canvas_shapes as shapes
from svg import canvas_texts as texts

from minicpmv_ref import nano, plan_slices, slice_image, v2_5
from minicpmv_ref.course import draw, panels
from minicpmv_ref.course.panel import Panel
from minicpmv_ref.learn.stages import PARTS, STAGES, stage_named
from minicpmv_ref.learn.train import lr_scale_at
from minicpmv_ref.scale.expected import bands, expected_losses
from minicpmv_ref.toy import data

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [stage.name for stage in STAGES]
CELL = 66.5  # side of one of the 16 cells
HIGHEST = max(rate for stage in STAGES for rate in stage.learning_rates.values())
CURVE = [(0, 2.5), (10, 1.0), (40, 0.5)]


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setattr(Panel, "strict", True)


@pytest.fixture(autouse=True)
def no_shipped_metrics(monkeypatch, tmp_path):
    monkeypatch.setattr(draw.learning, "SAMPLES", tmp_path / "images")


# ---- the world


@pytest.mark.parametrize("kind", draw.WORLD_KINDS.values())
def test_a_training_sample_and_its_views(kind):
    for seed in range(12):
        sample, views = draw.world_item(kind, seed)
        assert (sample.kind, sample.held_out) == (kind, False)
        assert [view.tobytes() for view in views] == [v.tobytes() for v in slice_image(sample.image, nano.slicing)]
        assert len(views) == 1 if kind != "read" else len(views) > 6
    assert len({draw.world_item(kind, seed)[0].key for seed in range(12)}) > 8


@pytest.mark.parametrize("seed", [1, 4, 17])
def test_the_chosen_view_is_framed_and_shown(seed):
    sample, views = draw.world_item("read", seed)
    plan = plan_slices(sample.image.size, nano.slicing)
    for number, view in enumerate(views, 1):
        canvas = draw.world_sample("read", seed, number)
        (x, y, w, h, *_), shown = shapes(canvas, "image")
        assert w / h == pytest.approx(sample.image.width / sample.image.height)
        assert shown[4] is view
        assert shown[5] is False
        frame, box = [r for r in shapes(canvas, "rect") if r[5] == draw.RED]
        assert box[:4] == (350, 32, 266, 266)
        if number == 1:
            assert frame[:4] == pytest.approx((x, y, w, h))
        else:
            left, top, right, bottom = plan.boxes[number - 2]
            scale = w / plan.refined_size[0]
            wanted = (x + left * scale, y + top * scale, (right - left) * scale, (bottom - top) * scale)
            assert frame[:4] == pytest.approx(wanted)
        assert len([r for r in shapes(canvas, "rect") if r[5] == draw.SKY]) == len(plan.boxes)
        name = "overview" if number == 1 else f"slice {number - 1} of {len(views) - 1}"
        assert f"{name}: {view.width} x {view.height}" in texts(canvas)


@pytest.mark.parametrize("kind", draw.WORLD_KINDS.values())
def test_words_stand_in_the_cell_of_their_token(kind):
    for seed in (2, 3, 17):
        sample, views = draw.world_item(kind, seed)
        for number in range(1, len(views) + 1):
            canvas = draw.world_sample(kind, seed, number, words=True)
            assert len(shapes(canvas, "image")) == 1
            cells = [[] for _ in range(16)]
            for x, y, text, _, _, align, bold in shapes(canvas, "text"):
                if align == "middle":
                    assert 36 <= y <= 32 + 266
                    cells[int((y - 6 - 32) // CELL) * 4 + int((x - 350) // CELL)].append(text)
                    assert draw.text_width(text, 14, bold) < CELL
            assert cells == [[word.strip() for word in slot] for slot in data.spell(sample)[number - 1]]


def test_the_conversation_fits():
    for kind in draw.WORLD_KINDS.values():
        for seed in range(100):
            canvas = draw.world_sample(kind, seed)
            sample, _ = draw.world_item(kind, seed)
            said = [t for t in shapes(canvas, "text") if t[1] > 300]
            assert said[0][2] == sample.messages[0]["content"][1]
            assert " ".join(t[2] for t in said[1:]) == sample.answer
            assert all(t[1] <= 374 and t[0] + draw.text_width(t[2], t[3], t[6]) <= 633 for t in said)


def test_the_view_slider_follows_the_picture():
    panel = panels.World()
    sample, views = draw.world_item(panel.values()["kind"], panel.values()["seed"])
    width, height = sample.image.size
    assert panel.controls["view"].max == len(views) > 6
    panel.controls["view"].value = 3
    panel.controls["words"].value = True
    assert panel.status == (
        f"A {width} x {height} picture, {len(views)} views, of which number 3 is shown in words. "
        f"The answer: {sample.answer}"
    )
    panel.controls["kind"].value = "caption"
    assert (panel.values()["view"], panel.controls["view"].max) == (1, 1)
    sample, _ = draw.world_item("caption", panel.values()["seed"])
    assert panel.status == f"A 112 x 112 picture, one view in words. The answer: {sample.answer}"


# ---- the stages


def blocks(canvas):
    """(fill, texts) of the three parts."""
    found = []
    for x, y, w, h, fill, *_ in shapes(canvas, "rect"):
        if (y, w, h) == (34, 190, 92):
            inside = [t[2] for t in shapes(canvas, "text") if x <= t[0] <= x + w and y <= t[1] <= y + h]
            found.append((fill, inside))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_learns_is_green_and_has_its_rate(name):
    stage = stage_named(name)
    for percent in (0, 35, 100):
        now = lr_scale_at(round(percent / 100 * stage.steps), stage.steps)
        canvas = draw.stage_picture(name, "ours", percent)
        found = dict(zip(PARTS, blocks(canvas), strict=True))
        for part in PARTS:
            fill, words = found[part]
            assert (fill == draw.GREEN) == (part in stage.learning_rates)
            assert words[0] == draw.PART_NAMES[part]
            if part in stage.learning_rates:
                assert words[2] == f"learns, rate {stage.learning_rates[part] * now:.1e}"
            else:
                assert words[2] == ("frozen" if stage.objective == "answer" else "not in use")
        assert canvas.facts["rates"] == {part: rate * now for part, rate in stage.learning_rates.items()}
        assert canvas.facts["schedule"][percent] == (round(percent / 100 * stage.steps), now)
        lengths = [r[2] for r in shapes(canvas, "rect") if r[3] == 12 and r[4] == "white"]
        rates = [stage.learning_rates[part] for part in PARTS if part in stage.learning_rates]
        assert lengths == pytest.approx([170 * rate * now / HIGHEST for rate in rates])


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_trains_the_same_parts(name):
    paper, ours = draw.PAPER_STAGES[name], stage_named(name)
    canvas = draw.stage_picture(name, "paper")
    fills = [fill for fill, _ in blocks(canvas)]
    if name.startswith("start"):
        assert paper.learns == ()
        assert draw.GREEN not in fills
        (part,) = ours.learning_rates
        assert [words[2] for _, words in blocks(canvas)] == [
            "taken as released" if each == part else "not in use" for each in PARTS
        ]
    else:
        assert set(paper.learns) == set(ours.learning_rates)
        assert [fill == draw.GREEN for fill in fills] == [part in paper.learns for part in PARTS]
    assert "learning rate" not in texts(canvas)
    if not paper.learns:  # nothing to draw but where the paper starts from
        assert texts(canvas)[0] == f"{name}: the paper starts from {paper.views}"
        assert len(texts(canvas)) == 1 + 3 * len(PARTS)
        return
    assert "no batch sizes and no steps." in texts(canvas)
    for percent in (0, 20, 100):  # the slider moves something for the paper, too
        ((x, y, *_),) = shapes(draw.stage_picture(name, "paper", percent), "dot")
        assert (x, y) == (346 + 240 * percent / 100, 340)


def test_sizes_of_the_parts():
    ours, paper = draw.part_sizes("ours"), draw.part_sizes("paper")
    assert sum(ours.values()) == 4_355_200
    assert paper["resampler"] == 89_038_848
    assert paper["llm"] == pytest.approx(8.03e9, rel=1e-3)
    assert paper["vpm"] > 400e6
    assert v2_5.slicing.scale_resolution == draw.PAPER_STAGES["stage-2"].side == 2 * draw.PAPER_STAGES["stage-1"].side
    assert [words[1] for _, words in blocks(draw.stage_picture("stage-1", "paper"))] == ["418 M", "89 M", "8.0 B"]
    assert [words[1] for _, words in blocks(draw.stage_picture("stage-1"))] == ["1.36 M", "0.37 M", "2.62 M"]


@pytest.mark.parametrize("whose", draw.OWNERS.values())
@pytest.mark.parametrize("name", NAMES)
def test_bars_are_the_shares_of_the_samples(name, whose):
    shares = draw.stage_shares(name, whose)
    known = [share for share in shares.values() if share is not None]
    assert sum(known) == pytest.approx(1 if known else 0)
    canvas = draw.stage_picture(name, whose)
    assert canvas.facts["shares"] == shares
    bars = [r[2] for r in shapes(canvas, "rect") if r[4] == draw.BLUE]
    assert bars == pytest.approx([130 * share for share in known])
    assert set(shares) <= set(texts(canvas))
    assert texts(canvas).count("no number given") == len(shares) - len(known)


def test_shares_by_hand():
    mixture = stage_named("stage-3").data_mix
    assert list(mixture) == ["caption", "crop", "read"]
    wanted = [weight / sum(mixture.values()) for weight in mixture.values()]
    assert list(draw.stage_shares("stage-3", "ours").items()) == [
        (kind, pytest.approx(share)) for kind, share in zip(mixture, wanted)
    ]
    assert draw.stage_shares("sft-1", "paper")["OCR"] == pytest.approx(1.7 / 5.33)  # table 2
    assert "2.67 of 5.33 million samples" in texts(draw.stage_picture("sft-1", "paper", 50))
    assert draw.PAPER_STAGES["sft-2"].data == {"part 1 again": 0.4, "OCR": 0.69, "instructions": 1.9, "text only": None}
    assert draw.stage_shares("stage-3", "paper") == {"captions": None, "OCR": None}
    assert "40 of 200 million samples" in texts(draw.stage_picture("stage-1", "paper"))
    assert not [t for t in texts(draw.stage_picture("stage-3", "paper")) if "million" in t]


def test_resolutions():
    seen = {name: " ".join(texts(draw.stage_picture(name))) for name in NAMES}
    assert "no pixels" in seen["start-text"]
    assert "112 x 112 pixels and half of it in turn" in seen["start-vit"]
    assert "56 x 56 pixels one view" in seen["stage-1"]
    assert "112 x 112 pixels one view" in seen["stage-2"]
    assert all("112 x 112 pixels and slices" in seen[name] for name in ("stage-3", "sft-1", "sft-2"))
    assert "224 x 224 pixels" in texts(draw.stage_picture("stage-1", "paper"))
    assert "resolution" not in texts(draw.stage_picture("start-text", "paper"))
    for name, share in (("stage-1", 0.5), ("stage-2", 1)):
        (square,) = [r for r in shapes(draw.stage_picture(name), "rect") if r[4] == draw.ORANGE]
        assert square[2:4] == (44 * share, 44 * share)
        assert square[1] + square[3] == 208


@pytest.mark.parametrize("percent", [0, 20, 100])
def test_the_curves(percent):
    stage = stage_named("stage-1")
    canvas = draw.stage_picture("stage-1", "ours", percent, CURVE)
    (x, y, *_) = shapes(canvas, "dot")[0]
    assert x == pytest.approx(346 + 240 * percent / 100)
    assert y == pytest.approx(340 - 100 * lr_scale_at(round(percent / 100 * stage.steps), stage.steps))
    (loss,) = [points for points, color, _ in shapes(canvas, "path") if color == draw.BLUE]
    assert loss == [pytest.approx((346 + 240 * step / 40, 340 - 100 * value / 2.5)) for step, value in CURVE]
    assert {"2.50", "0.50", "loss over 40 steps"} <= set(texts(canvas))
    assert [(x, align) for x, _, text, _, _, align, _ in shapes(canvas, "text") if text in ("2.50", "0.50")] == [
        (340, "right"),
        (594, "left"),
    ]
    bare = draw.stage_picture("stage-1", "ours", percent)
    assert not [text for text in texts(bare) if "loss" in text]
    assert not [color for _, color, _ in shapes(bare, "path") if color == draw.BLUE]


@pytest.mark.parametrize("whose", draw.OWNERS.values())
@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_the_picture(name, whose):
    for losses in ((), CURVE, [(0, 11.25), (1, 12.5)]):
        canvas = draw.stage_picture(name, whose, 100, losses)
        for x, y, text, points, _, align, bold in shapes(canvas, "text"):
            width = draw.text_width(text, points, bold)
            left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
            assert points >= 14
            assert left >= 0, text
            assert left + width <= (640 if x > 320 or y < 140 else 326), text
            assert 14 <= y <= 374
        for x, y, w, h, *_ in shapes(canvas, "rect"):
            assert x >= 0 <= w and x + w <= 640 and y >= 0 and y + h <= 380
        if name == "start-text" and whose == "ours":
            assert max(r[1] + r[3] for r in shapes(canvas, "rect") if r[4] == draw.BLUE) < 352, "the last bar is free"


# ---- learning curves


def test_curves_of_a_run(tmp_path):
    rows = [
        {"stage": "stage-1", "step": 10, "loss": 3.0},
        {"stage": "stage-1", "step": 20, "loss": 2.0},
        {"stage": "stage-1", "held_out_before": 3.0, "held_out_after": 2.0},
        {"stage": "stage-2", "step": 10, "loss": 1.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    wanted = {"stage-1": [(10, 3.0), (20, 2.0)], "stage-2": [(10, 1.0)]}
    assert draw.stage_losses(path) == wanted
    assert draw.stage_losses(wanted) is wanted
    assert panels.Stages("stage-2", metrics=str(path)).losses == wanted


def test_shipped_curves(tmp_path):
    assert draw.stage_losses() == {}
    (tmp_path / "checkpoints").mkdir()
    shipped = {"stages": {"stage-1": {"seconds": 3, "held_out_after": 1.0, "loss": [[12, 2.5], [24, 0.75]]}}}
    (tmp_path / "checkpoints/metrics.json").write_text(json.dumps(shipped), encoding="utf-8")
    assert draw.stage_losses() == {"stage-1": [(12, 2.5), (24, 0.75)]}
    assert "0.75" in texts(panels.Stages().draw("stage-1", "ours", 20))
    assert not [text for text in texts(panels.Stages().draw("stage-2", "ours", 20)) if "loss" in text]


def test_bands_and_the_shipped_curve(tmp_path):
    bare = draw.loss_bands()  # no checkpoints: no shipped curves
    (tmp_path / "checkpoints").mkdir()
    shipped = {"stages": {"stage-1": {"loss": [[12, 2.5], [24, 0.75]]}}}
    (tmp_path / "checkpoints/metrics.json").write_text(json.dumps(shipped), encoding="utf-8")
    canvas = draw.loss_bands({"stage-1": [(0, 9.0), (1, 3.0), (2, 2.0)], "stage-2": [(5, 3.0)]})
    assert [*bare.facts] == [name for name in NAMES if bands(name)] and [*canvas.facts] == ["stage-1", "stage-2"]
    for name, facts in canvas.facts.items():
        assert [limits for _, *limits in facts["band"]] == [list(limits) for limits in bands(name)]
        assert [[loss for _, loss in run] for run in facts["runs"]] == expected_losses()[name]
        assert [step for step, *_ in facts["band"]] == [10 * n + 5 for n in range(len(bands(name)))]
    facts = canvas.facts["stage-1"]
    assert facts["shipped"] == [(6, 2.5), (18, 0.75)], "a mean of twelve steps stands at their middle"
    assert facts["mine"] == [(1, 3.0), (2, 2.0)], "there is no logarithm of step 0"
    alone = draw.loss_bands({"stage-1": [(5, 3.0), (15, 2.0)]})
    assert len([path for path in shapes(alone, "path") if path[1] == draw.RED]) == 1
    drawn = [r for r in shapes(canvas, "rect") if r[4] == draw.SKY]
    assert len(drawn) == 1 + sum(len(bands(name)) for name in canvas.facts), "and one in the legend"
    for x, y, text, points, _, align, bold in (*shapes(bare, "text"), *shapes(alone, "text")):
        width = draw.text_width(text, points, bold)
        left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
        assert points >= 14 and left >= 0 and left + width <= 640 and y <= 376, text


# ---- the panel


def test_words_and_numbers():
    panel = panels.Stages("stage-3", percent=50, metrics={"stage-3": CURVE})
    sizes = draw.part_sizes("ours")
    share = (sizes["vpm"] + sizes["resampler"]) / sum(sizes.values())
    rate = lr_scale_at(stage_named("stage-3").steps // 2, stage_named("stage-3").steps)
    assert panel.status == (
        f"stage-3: {draw.MEANINGS['stage-3']}. Here the ViT and the resampler learn, {share:.1%} of all parameters; "
        f"after 50 percent of the steps at {rate:.2f} times the highest rate."
    )
    svg = ET.fromstring(re.search(r"<svg.*</svg>", panel.picture_box.value, re.DOTALL)[0])
    assert "2.50" in [element.text for element in svg.iter(SVG + "text")]
    panel.controls["whose"].value = "paper"
    assert panel.status.endswith("In the paper the ViT and the resampler learn, 5.9% of all parameters.")
    panel.controls["stage"].value = "start-vit"
    assert panel.status == "start-vit: in the paper nothing learns here, for it starts from a SigLIP as released."
    assert "picture? Here the ViT learns" in panels.Stages("start-vit").status
    panel.controls["stage"].value = "stage-2"
    assert "In the paper the ViT learns, 4.9%" in panel.status
    panel.controls["stage"].value = "sft-1"
    assert "In the paper the ViT, the resampler and the LLM learn, 100.0%" in panel.status
    assert (
        repr(panels.Stages(metrics={}))
        == repr(panels.Stages())
        == ("Stages(stage='stage-1', whose='ours', percent=20)")
    )


def test_how_much_smaller_nano_is():
    """The lesson says 2,000 times."""
    sizes = [sum(draw.part_sizes(whose).values()) for whose in ("paper", "ours")]
    assert round(sizes[0] / sizes[1], -3) == 2000


def test_every_stage_has_a_meaning_and_a_place_in_the_paper():
    assert list(draw.MEANINGS) == list(draw.PAPER_STAGES) == [*NAMES]
