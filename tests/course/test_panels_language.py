"""The token strip and answer attention of lesson 04: what they show are the package's numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from svg import canvas_shapes, canvas_texts, inside_the_canvas, shapes, texts, touch

from minicpmv_ref import MiniCPMV, Processor, plan_slices
from minicpmv_ref.course import draw, panels
from minicpmv_ref.inputs.published import find_folder
from minicpmv_ref.prompt import image_bounds, image_layout

pytestmark = pytest.mark.usefixtures("strict_panels")

VERSIONS = ["2.0", "2.5", "2.6"]
PROMPTS = [("cat.jpg",), ("galaxies.jpg", "street_sign.png"), ("retina.jpg", "street_sign.png", "cat.jpg")]
STRIPS = [(name, images, version) for name in panels.TokenStrip.pictures for images in (1, 3) for version in VERSIONS]


def outside(canvas):
    """Texts and rectangles that leave the canvas."""
    for kind, shape, _ in canvas.shapes:
        if kind == "text":
            x, y, text, points, _, align, bold = shape
            width = draw.text_width(text, points, bold)
            left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
            if left < -1 or left + width > canvas.width + 1 or y > canvas.height or y < 10:
                yield text
        elif kind == "rect":
            x, y, w, h = shape[:4]
            if x < 0 or y < 0 or x + w > canvas.width or y + h > canvas.height:
                yield shape


# ---- the token strip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pictures", PROMPTS)
def test_the_strip_is_the_tokenized_layout(pictures, version):
    cells, views = draw.strip_tokens(pictures, version)
    plans = [plan_slices(draw.load_sample(name).size) for name in pictures]
    layouts = [image_layout(plan, draw.STRIP_SLOTS, version, i) for i, plan in enumerate(plans)]
    message = "".join(text.removesuffix("\n") + "\n" for text in layouts) + "What is this?"
    assert "".join(word for _, word in cells) == message
    ids = draw.nano_tokenizer()(message, add_special_tokens=False)["input_ids"]
    assert [list(view[3:]) for view in views] == image_bounds(ids, draw.nano_tokenizer(), version).tolist()
    assert [view[:3] for view in views] == [
        (name, i, v) for i, name in enumerate(pictures) for v in range(1 + plans[i].num_slices)
    ]
    counts = {kind: sum(cell[0] == kind for cell in cells) for kind in draw.STRIP_KINDS}
    assert sum(counts.values()) == len(cells)
    assert counts["slot"] == draw.STRIP_SLOTS * len(views)
    assert counts["image_id"] == (2 * len(pictures) if version == "2.6" else 0)
    assert counts["newline"] == message.count("\n")
    cut = sum(plan.grid is not None for plan in plans)
    assert counts["slice"] == 2 * (sum(plan.num_slices for plan in plans) if version == "2.6" else cut)


@pytest.mark.parametrize(("name", "images", "version"), STRIPS)
def test_visual_tokens_go_to_their_slots(name, images, version):
    panel = panels.TokenStrip(name, images, version, 1)
    _, views = panel._tokens(**panel.values())
    assert panel.controls["view"].max == len(views)
    for number in {1, 2 if len(views) > 1 else 1, len(views)}:
        panel.controls["view"].value = number
        _, image, view, *_ = views[number - 1]
        assert f"image {image}, " + (f"slice {view}" if view else "overview") in texts(panel)
        slots = [r.attrib for r in shapes(panel, "rect") if r.attrib["fill"] in (draw.ORANGE, "white")]
        slots = [r for r in slots if r.get("stroke") in (draw.ORANGE, draw.RED) and float(r["y"]) < 250]
        assert len(slots) == draw.STRIP_SLOTS * len(views)
        filled = [r["fill"] == draw.ORANGE for r in slots]
        assert filled == [slot < draw.STRIP_SLOTS * number for slot in range(len(slots))]
        here = [r for r in slots if r["stroke"] == draw.RED]
        lens = [line.get("points").split() for line in shapes(panel, "polyline") if line.get("stroke") == draw.RED]
        sides = [float(points[0].split(",")[0]) for points in lens]
        assert sides == pytest.approx([float(here[0]["x"]), float(here[-1]["x"]) + float(here[-1]["width"])], abs=1.5)
        assert list(outside(panel.draw(**panel.values()))) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pictures", PROMPTS)
def test_the_slots_are_those_of_the_real_prompt(pictures, version):
    plans, queries = [plan_slices(draw.load_sample(name).size) for name in pictures], 96 if version == "2.5" else 64
    layouts = [image_layout(plan, queries, version, i) for i, plan in enumerate(plans)]
    text = "".join(layout.removesuffix("\n") + "\n" for layout in layouts) + "What is this?"
    ids = draw.nano_tokenizer()(text, add_special_tokens=False)["input_ids"]
    bounds = image_bounds(ids, draw.nano_tokenizer(), version).tolist()
    panel = panels.TokenStrip(pictures[0], len(pictures), version, 1)
    assert f"has {len(ids):,} tokens, {ids.count(ids[bounds[0][0]]):,} of them visual" in panel.status
    for number in sorted({1, 2 if len(bounds) > 1 else 1, len(bounds)}):
        start, end = bounds[number - 1]
        touch(panel, f"view {number}")
        assert panel.values()["view"] == number and panel.facts == {"slots": range(start, end), "tokens": len(ids)}
        assert f"positions {start} to {end - 1}." in panel.status
    grid = panel.spots[f"slots {(queries // 16, 16)}"]
    for slot in (0, 17, queries - 1):
        row, col = divmod(slot, 16)
        x, y, w, h = grid.box
        touch(panel, grid.key, (x + w * (col + 0.5) / 16, y + h * (row + 0.5) / (queries // 16)), trait="pointed")
        assert panel.status.endswith(f"its visual token {slot} goes to position {start + slot} of the message.")
        assert sum(shape[4] == draw.RED for shape in canvas_shapes(panel.draw(**panel.values()), "rect")) == 1
    touch(panel, "", (0, 0), trait="pointed")
    assert f"positions {start} to {end - 1}." in panel.status


def test_fewer_views_move_the_slider_back():
    panel = panels.TokenStrip("retina.jpg", 3, "2.6", 14)
    panel.controls["images"].value = 1
    assert panel.values()["view"] == panel.controls["view"].max == 10
    panel.controls["picture"].value = "cat.jpg"
    assert panel.values()["view"] == 1
    panel.controls["images"].value = 2
    assert panel.controls["view"].max == 4


def test_slices_are_cropped_row_by_row():
    image = Image.new("RGB", (30, 20))
    for number in range(6):
        image.paste((40 * number, 0, 0), (10 * (number % 3), 10 * (number // 3), 10 * (number % 3) + 10, 20))
    plan = plan_slices((1300, 850))
    assert plan.grid == (3, 2)
    for number in range(6):
        assert draw.language._crop_view(image, plan, number + 1).getcolors() == [(100, (40 * number, 0, 0))]
    assert draw.language._crop_view(image, plan, 0) is image


# ---- answer attention


def test_attention_is_the_models():
    """By an own forward pass over prompt and answer, one head and one patch at a time."""
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    batch = processor([{"role": "user", "content": [draw.load_sample("shapes.png"), "Describe the picture."]}])
    watched = draw.watch_answer("shapes.png")
    with torch.inference_mode():
        visual, weights = model.resampler.attend(model.vpm(batch.images[0]), batch.patch_grids[0])
        answer = model.generate(batch, 24)  # by the quick attention
        words = [processor.tokenizer.decode([i]).strip() for i in answer[0].tolist()]
        model.llm.set_attn_implementation("eager")
        row = torch.cat([model.embed(batch, visual), model.llm.get_input_embeddings()(answer)], dim=1)
        out = model.llm(inputs_embeds=row, output_attentions=True)
    assert watched["words"] == [*words[:-1], "<end>"]
    prompt, (rows, cols) = batch.input_ids.shape[1], draw.cell_grid("shapes.png")
    assert (rows, cols) == batch.patch_grids[0][0]
    wide = watched["plan"].grid[0]
    for token in (1, 12):
        scores = out.logits[0, prompt - 2 + token].softmax(dim=-1)
        assert watched["chances"][token - 1] == pytest.approx(float(scores[answer[0, token - 1]]), rel=1e-3)
        per_layer = [layer[0, :, prompt - 2 + token].mean(dim=0) for layer in out.attentions]
        for layer in (0, 1, 4):
            looks = per_layer[layer - 1] if layer else torch.stack(per_layer).mean(dim=0)
            by_hand = np.zeros((rows, cols))
            for view, (start, end) in enumerate(batch.image_bounds[0].tolist()):
                patches = looks[start:end] @ weights[view].mean(dim=0)
                high, broad = batch.patch_grids[0][view]
                across, down = (wide, watched["plan"].grid[1]) if view else (1, 1)
                for place, weight in enumerate(patches.tolist()):  # a hundred points of each patch, and their cells
                    for point in range(100):
                        y = (place // broad + (point // 10 + 0.5) / 10) / high
                        x = (place % broad + (point % 10 + 0.5) / 10) / broad
                        if view:
                            y, x = (y + (view - 1) // wide) / down, (x + (view - 1) % wide) / across
                        by_hand[int(y * rows), int(x * cols)] += weight / 100
            np.testing.assert_allclose(draw.look("shapes.png", token, layer), by_hand, atol=2e-4)


def test_pieces_of_a_line():
    assert draw.language._overlap(2, 3).tolist() == [[1, 0.5, 0], [0, 0.5, 1]]
    assert draw.language._overlap(3, 2).sum(axis=0).tolist() == [1, 1]


def test_gray_covers_what_the_model_sees():
    image = Image.new("RGB", (80, 40), "red")
    covered = draw.cover_cells(image, (2, 4), [(1, 0), (0, 3)])
    gray = [(x, y) for x in range(80) for y in range(40) if covered.getpixel((x, y)) == draw.COVER]
    assert gray == [(x, y) for x in range(80) for y in range(40) if (x < 20 and y >= 20) or (x >= 60 and y < 20)]
    assert image.getcolors() == [(3200, (255, 0, 0))], "the picture itself stays"


def test_what_lesson_04_says_about_red():
    """Two cells hold most of what "red" looks at; covered, they change another word."""
    whole, covered = draw.watch_answer("shapes.png"), ((0, 1), (1, 1))
    cells = draw.look("shapes.png", 1)
    assert sorted(divmod(int(n), 8) for n in cells.ravel().argsort()[-2:]) == sorted(covered)
    now = draw.watch_answer("shapes.png", covered)
    assert [(a, b) for a, b in zip(whole["words"], now["words"]) if a != b] == [("circle", "square")]
    assert whole["words"].index("yellow") + 1 == [a == b for a, b in zip(whole["words"], now["words"])].index(False)
    assert now["chances"][0] > 0.99
    all_of_it = tuple((row, col) for row in range(3) for col in range(3))
    assert draw.watch_answer("shapes.png", all_of_it)["words"][0] == "black"
    assert [round(100 * draw.look("shapes.png", 1, layer).sum()) for layer in (1, 2, 3, 4)] == [0, 41, 51, 0]


@pytest.fixture
def planted(monkeypatch):
    """A model that looks at one patch of slice 2, in layer 2 only; what is covered changes its last word."""
    grids = [(2, 3)] * 3
    slots = np.zeros((4, 2, 3, 16))
    slots[1, :, 2, 3] = 0.5
    one_patch = np.zeros((16, 6))
    one_patch[:, 4] = 1  # row 1, column 1
    watched = dict(words=["one", "two"], chances=[0.5, 1.0], slots=slots, resampler=[one_patch] * 3)
    watched |= dict(plan=plan_slices((900, 448)), patch_grids=grids)
    monkeypatch.setattr(
        draw.language,
        "watch_answer",
        lambda picture, covered=(), name="nano": (
            watched | (dict(words=["one", "three", "more"], chances=[0.25, 0.0]) if covered else {})
        ),
    )
    monkeypatch.setattr(draw, "watch_answer", draw.language.watch_answer)
    monkeypatch.setattr(draw.language, "cell_grid", lambda picture, name="nano": (2, 3))


def test_the_share_of_each_layer_and_its_brightest_cell(planted):
    panel = panels.AnswerAttention("cat.jpg", layer=2)
    assert panel.status == (
        "Token 1 of 2, “one”: in layer 2, 50% of its attention is on the picture, most on row 2, column 3 (50.0%)."
    )  # the fifth of six columns of patches in the slices
    assert {"mean: 12%", "layer 1: 0%", "layer 2: 50%", "layer 4: 0%"} <= set(texts(panel))
    assert panel.facts["cells"].sum() == pytest.approx(0.5)
    canvas = panel.draw(**panel.values())
    pale = [shape[4] for shape in canvas_shapes(canvas, "image")][2]  # layer 1
    bright = [shape[4] for shape in canvas_shapes(canvas, "image")][3]
    photo = draw.preview(draw.load_sample("cat.jpg"), 400)
    corner = int(photo.width * 0.85), int(photo.height * 0.75)
    assert bright.getpixel(corner) == photo.getpixel(corner), "full color"
    assert min(pale.getpixel(corner)) >= 255 - 0.13 * 255, "nothing is on the picture: nearly white"


def test_a_click_and_a_drag_cover_and_uncover(planted):
    panel = panels.AnswerAttention("cat.jpg")
    assert "click or drag on the picture" in " ".join(texts(panel))
    x, y, w, h = panel.facts["box"]
    at = lambda row, col: (x + w * (col + 0.5) / 3, y + h * (row + 0.5) / 2)  # noqa: E731
    touch(panel, "cell (0, 1)")
    assert panel.values()["covered"] == ((0, 1),)
    assert panel.status.endswith("With 1 of 6 cells covered: another answer; the chance of “one” goes from 50% to 25%.")
    drawn = [text for text in canvas_shapes(panel.draw(**panel.values()), "text") if text[4] == draw.RED]
    assert [text[2] for text in drawn] == ["three", "more"], "what has changed"
    touch(panel, "cell (1, 0)", at(0, 1), at(1, 0))
    assert panel.values()["covered"] == ((0, 0), (0, 1), (1, 0), (1, 1))
    touch(panel, "cell (0, 0)", (9999, -9999), at(0, 0))
    assert panel.values()["covered"] == ((1, 0), (1, 1)), "a drag from a covered cell uncovers"
    for turn in (at(1, 1), at(0, 2)):  # one drag there and back: what it left is as before
        panel.picture_box.touched = {"spot": "cell (1, 2)", "start": at(1, 2), "at": turn, "turn": 1}
    assert panel.values()["covered"] == ((0, 2), (1, 0), (1, 1), (1, 2))
    panel.cover(())
    assert repr(panel) == "AnswerAttention(token=1, picture='cat.jpg', layer=0, covered=())"
    touch(panel, "token 2")
    touch(panel, "layer 3")
    assert (panel.values()["token"], panel.values()["layer"]) == (2, 3)


def test_another_picture_is_not_covered():
    panel = panels.AnswerAttention(token=20, covered=((0, 0),))
    panel.controls["picture"].value = "chart.png"
    assert panel.values()["covered"] == ()
    assert panel.values()["token"] == panel.controls["token"].max == len(draw.watch_answer("chart.png")["words"])


@pytest.mark.parametrize("name", panels.AnswerAttention.pictures)
def test_attention_stays_inside_the_picture(name):
    inside_the_canvas(draw.answer_attention(name, 2, 0, ((0, 0), (1, 2)) if name == "shapes.png" else ()))


def test_an_odd_answer_is_shown():
    tokenizer = draw.nano_tokenizer()
    first_byte = tokenizer("猫", add_special_tokens=False)["input_ids"][0]
    assert draw.language._as_word(tokenizer, first_byte, ()) == "·"
    assert draw.language._as_word(tokenizer, 5, (5,)) == "<end>"
    canvas = draw.Canvas()
    draw.language._draw_answer(canvas, 6, "answer", ["an extremely long word"] * 12, [1.0] * 12, 4)
    inside_the_canvas(canvas)
    assert canvas_texts(canvas)[-1] == "…", "it is cut after two lines"
    assert max(shape[1] for shape in canvas_shapes(canvas, "text")) < 60
    assert list(canvas.spots) == [f"token {number}" for number in range(1, len(canvas.spots) + 1)]


def test_another_model_is_a_folder():
    folder = str(find_folder("nano"))
    panel, nanos = panels.AnswerAttention(model=folder), panels.AnswerAttention()
    assert panel.status == nanos.status
    assert draw.watched_model(folder)[0] is not draw.watched_model()[0]
    with pytest.raises(OSError, match="no/such"):
        panels.AnswerAttention(model="no/such")
