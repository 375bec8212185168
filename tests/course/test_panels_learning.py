"""Panels of lesson 07: samples of the world and their spelling, own scenes, the stages and what they say."""

import json

import pytest
from svg import canvas_shapes as shapes
from svg import canvas_texts as texts
from svg import inside_the_canvas, touch

from minicpmv_ref import MiniCPMV, Processor, nano, plan_slices, slice_image, v2_5
from minicpmv_ref.course import draw, panels
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.learn.stages import PARTS, STAGES, stage_named
from minicpmv_ref.scale.expected import bands, expected_losses
from minicpmv_ref.toy import data

pytestmark = pytest.mark.usefixtures("strict_panels")

NAMES = [stage.name for stage in STAGES]
CELL = 66.5  # side of one of the 16 cells


REAL = draw.nano_says


@pytest.fixture(autouse=True)
def wise(monkeypatch):
    """A nano that knows every answer, so that no model has to run."""
    monkeypatch.setattr(draw.learning, "nano_says", lambda *item: draw.world_item(*item)[0].answer)


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
        assert shown[4].tobytes() == view.tobytes()
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
    panel = panels.World("read")
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


# ---- an own scene


def test_four_clicks_draw_a_scene():
    panel = panels.World("caption", 3)
    for place, brush in enumerate((("red", "star"), ("blue", "circle"), ("black", "square"), ("red", "star"))):
        touch(panel, f"brush {brush}")
        touch(panel, f"place {place}")
        wanted = f"{brush[0]} {brush[1]} {draw.PLACES[place]}"
        assert wanted in panel.status
        assert wanted in panel.facts["said"]
    sample, _ = draw.world_item("caption", 3, panel.values()["things"])
    assert (
        sample.answer
        == panel.facts["said"]
        == ("red star top left, blue circle top right, black square bottom left, red star bottom right.")
    )
    assert sample.key == data.Scene(panel.values()["things"]).content
    assert sample.held_out == data.is_held_out(sample.key) == ("held out" in panel.status)
    assert draw.PLACES == data.PLACES
    middle = [sample.image.getpixel((28 + 56 * (n % 2), 28 + 56 * (n // 2))) for n in range(4)]
    for pixel, color in zip(middle, ("red", "blue", "black", "red")):
        assert pixel == pytest.approx(data.PAINT[color], abs=25)


def test_the_same_click_takes_a_shape_away_but_not_the_last():
    panel = panels.World("caption", 3)
    for place in range(4):
        touch(panel, f"place {place}")
    for place in range(4):
        touch(panel, f"place {place}")
    assert [thing.place for thing in panel.values()["things"]] == [3]
    panel.undo()
    assert panel.values()["things"] is None
    assert panel.status == panels.World("caption", 3).status


def test_questions_about_an_own_scene_are_true():
    panel = panels.World("question", 0)
    touch(panel, "place 2")
    touch(panel, "brush ('green', 'square')")
    touch(panel, "place 1")
    things, asked = panel.values()["things"], set()
    for seed in range(40):
        sample, _ = draw.world_item("question", seed, things)
        question, answer = sample.messages[0]["content"][1], sample.answer
        asked.add(question)
        if question == "How many shapes are there?":
            assert answer == str(len(things))
        if question == "Where is the green square?":
            assert answer == "top right"
    assert len(asked) > 8
    panel.controls["kind"].value = "read"
    assert panel.spots == {}
    assert "place" not in " ".join(panel.spots), "a document is not drawn with clicks"
    assert draw.world_item("read", 0, things)[0].key == draw.world_item("read", 0)[0].key


def test_nano_describes_a_drawn_scene():
    assert REAL("caption", 3) == draw.world_item("caption", 3)[0].answer


@pytest.mark.parametrize("said", ["", "red star top left", "one " * 60, "w" * 200])
def test_a_wrong_word_is_red(said):
    canvas = draw.Canvas(200, 100)
    draw.draw_said(canvas, 4, 20, 180, said, "red, circle top left.", 4)
    inside_the_canvas(canvas)
    wrong = [text for _, _, text, _, color, *_ in shapes(canvas, "text") if color == draw.RED]
    assert wrong == [word for word in texts(canvas) if word not in ("red", "top", "…")]


# ---- the stages


def test_the_schedule_is_that_of_the_stages():
    canvas = draw.stage_story(draw.shipped_story(), 1)
    assert list(canvas.facts["parts"]) == NAMES == list(draw.MEANINGS)
    for name, parts in canvas.facts["parts"].items():
        stage = stage_named(name)
        for part, role in parts.items():
            assert (role == "learns") == (part in stage.learning_rates)
            assert role in ("learns", "frozen") or stage.objective != "answer"
        assert parts["resampler"] == "not in use" or not name.startswith("start")
    assert sum(color == draw.GREEN for *_, color, _, _ in (r[:7] for r in shapes(canvas, "rect"))) == sum(
        len(stage.learning_rates) for stage in STAGES
    )
    rates = [f"{rate:g}" for part in PARTS for s in STAGES for p, rate in s.learning_rates.items() if p == part]
    assert [text for text in texts(canvas) if text.startswith("0.00") or text.startswith("0.000")] == rates


def test_recorded_answers_are_the_checkpoints():
    """One of five; the tool makes them all."""
    told = json.loads((BUNDLED / "answers.json").read_text(encoding="utf-8"))
    assert told["pictures"] == [list(each) for each in draw.SHOWN]
    assert told["truth"] == [sample.answer for sample in draw.shown_samples()]
    assert all(sample.held_out for sample in draw.shown_samples())
    processor = Processor.from_pretrained("nano")
    for name in ("nano-stage-2",):
        assert draw.show_pictures(MiniCPMV.from_pretrained(name), processor) == tuple(told["said"][name])
    moments = {moment.stage: moment for moment in draw.shipped_story().moments}
    assert list(moments) == NAMES
    for stage in STAGES:
        checkpoint = draw.AFTER.get(stage.name)
        assert moments[stage.name].step == stage.steps
        assert moments[stage.name].said == (tuple(told["said"][checkpoint]) if checkpoint else None)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_moment_of_the_training_of_nano(number):
    panel = panels.Stages(number)
    name, right = NAMES[number - 1], panel.facts["right"]
    canvas = panel.draw(number)
    inside_the_canvas(canvas)
    assert panel.status.startswith(f"{name}, step {stage_named(name).steps:,}. What learns: ")
    learns = list(stage_named(name).learning_rates)
    named = "everything" if len(learns) == 3 else " and ".join(draw.PART_NAMES[part] for part in learns)
    assert f"What learns: {named}, " in panel.status
    curves = [color for _, color, _ in shapes(canvas, "path") if color in (draw.BLUE, draw.PALE)]
    assert curves.count(draw.BLUE) == number, "what comes after is pale"
    if right is None:
        assert name not in draw.AFTER
        assert texts(canvas).count("sees no pixels" if name in ("start-text", "start-chat") else "not recorded") == 3
    else:
        assert "Words in their right place: " in panel.status
        assert f"{right[0][0]} of {right[0][1]} in the scene" in panel.status
    touch(panel, "moment 5")
    assert panel.values() == {"moment": 5}


def test_words_in_their_right_place():
    assert draw.words_right(draw.shipped_story(), 8)[0] == (16, 16)
    story = draw.own_story({"stage-1": 4})
    story.moments[0] = draw.Moment("stage-1", 0, ("black star top", "star, ring, below", "sign"))
    assert draw.words_right(story, 1) == [(2, 16), (3, 3), (0, 4)]


def test_a_training_of_your_own_grows(monkeypatch):
    said = iter([("black", "star", ""), ("black triangle", "star", "right")])  # in the middle and at the end
    monkeypatch.setattr(draw.learning, "show_pictures", lambda *model: next(said))
    monkeypatch.setattr(draw, "show_pictures", draw.learning.show_pictures)
    panel = panels.Stages(own={"stage-1": 4, "stage-2": 2})
    assert repr(panel) == "Stages(moment=1)"
    assert panel.story.moments[0].said == tuple(
        json.loads((BUNDLED / "answers.json").read_text())["said"]["nano-start"]
    )
    ends = []
    for step, loss in enumerate((5.0, 4.0, 0.001, 99.0), 1):  # the last two leave the plot
        panel.follow("stage-1", step, loss, None, None)
        canvas = panel.draw(1)
        inside_the_canvas(canvas)
        curve = [points for points, color, _ in shapes(canvas, "path") if color == draw.BLUE]
        ends += [line[-1][0] for line in curve]
        assert all(32 <= y <= 124 for line in curve for _, y in line)
    assert ends == sorted(ends) and len(ends) == 3, "one point is no line"
    assert panel.values() == {"moment": 3}
    assert panel.controls["moment"].max == 3
    assert [right for right, _ in panel.facts["right"]] == [2, 1, 1]
    left, middle, last = panel.facts["places"]
    assert left < middle < last
    for x, moment in ((0, 1), (left + 1, 2), (middle, 2), (middle + 1, 3), (9999, 3)):
        touch(panel, "moment 3", (x, 50))
        assert panel.values() == {"moment": moment}


def test_sizes_of_the_parts():
    assert sum(draw.part_sizes().values()) == 4_355_200
    assert "What learns: resampler, 8.4% of all parameters." in panels.Stages(4).status


def test_how_much_smaller_nano_is():
    """The lesson says 2,000 times."""
    import torch

    with torch.device("meta"):
        paper = sum(p.numel() for p in MiniCPMV(v2_5).parameters())
    assert round(paper / sum(draw.part_sizes().values()), -3) == 2000


# ---- a normal loss


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


def test_bands_and_the_shipped_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(draw.learning, "SAMPLES", tmp_path / "images")
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
    inside_the_canvas(bare)
    inside_the_canvas(alone)
