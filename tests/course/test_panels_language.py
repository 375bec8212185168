"""The token strip and answer attention of lesson 04: what they show are the package's numbers."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from svg import shapes, texts

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
    cells, views = panel._tokens(**panel.values())
    assert panel.controls["view"].max == panel._play.max == len(views)
    for number in {1, 2 if len(views) > 1 else 1, len(views)}:
        panel.controls["view"].value = number
        _, image, view, start, end = views[number - 1]
        assert f"positions {start} to {end - 1}" in panel.status
        assert f"image {image}, " + (f"slice {view}" if view else "overview") in texts(panel)
        assert f"{len(cells)} tokens" in texts(panel)
        slots = [r.attrib for r in shapes(panel, "rect") if r.attrib["fill"] in (draw.ORANGE, "white")]
        slots = [r for r in slots if r.get("stroke") in (draw.ORANGE, draw.RED) and float(r["y"]) < 250]
        assert len(slots) == draw.STRIP_SLOTS * len(views)
        filled = [r["fill"] == draw.ORANGE for r in slots]
        assert filled == [slot < draw.STRIP_SLOTS * number for slot in range(len(slots))]
        here = [float(r["x"]) + float(r["width"]) / 2 for r in slots if r["stroke"] == draw.RED]
        tips = [
            line.attrib["points"].split() for line in shapes(panel, "polyline") if line.attrib["stroke"] == draw.RED
        ]
        tips = [float(points[1].split(",")[0]) for points in tips if len(points) == 2]
        assert tips == pytest.approx(here, abs=1.5)
        assert list(outside(panel.draw(**panel.values()))) == []


@pytest.mark.parametrize(("version", "queries"), [("2.0", 64), ("2.5", 96), ("2.6", 64)])
def test_the_status_counts_the_real_tokens(version, queries):
    panel = panels.TokenStrip("chart.png", 1, version)
    plan = plan_slices(draw.load_sample("chart.png").size)
    text = image_layout(plan, queries, version).removesuffix("\n") + "\nWhat is this?"
    count = len(draw.nano_tokenizer()(text, add_special_tokens=False)["input_ids"])
    assert f"has {count:,} tokens, {plan.visual_tokens(queries):,} of them visual" in panel.status


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
        answer = model.generate(batch, 12)  # by the quick attention
        words = [processor.tokenizer.decode([i]).strip() for i in answer[0].tolist()]
        model.llm.set_attn_implementation("eager")
        row = torch.cat([model.embed(batch, visual), model.llm.get_input_embeddings()(answer[:, :1])], dim=1)
        attentions = model.llm(inputs_embeds=row, output_attentions=True).attentions
    assert len(watched["words"]) == len(words)
    prompt = batch.input_ids.shape[1]
    for token in (1, 2)[: len(words)]:
        per_layer = [layer[0, :, prompt - 2 + token].mean(dim=0) for layer in attentions]
        for layer in (None, 1, 4):
            looks = torch.stack(per_layer).mean(dim=0) if layer is None else per_layer[layer - 1]
            slots = torch.stack([looks[start:end] for start, end in batch.image_bounds[0].tolist()])
            seen = draw.look("shapes.png", token, layer)
            assert seen["share"] == pytest.approx(float(slots.sum()), rel=1e-3)
            assert seen["slots"] == pytest.approx((slots / slots.mean()).numpy(), rel=1e-3)
            for view, patches in enumerate(seen["patches"]):
                assert patches.shape == batch.patch_grids[0][view]
                by_hand = sum(slots[view, q] * weights[view][:, q].mean(dim=0) for q in range(16)) / slots.sum()
                by_hand = by_hand * sum(map(np.size, seen["patches"]))
                assert patches.ravel() == pytest.approx(by_hand.numpy(), rel=1e-3)


@pytest.mark.parametrize("layer", [None, 1, 4])
def test_an_even_look_is_one(layer):
    seen = draw.look("chart.png", 1, layer)
    assert seen["slots"].mean() == pytest.approx(1, rel=1e-4)
    assert np.concatenate([patches.ravel() for patches in seen["patches"]]).mean() == pytest.approx(1, rel=1e-4)
    assert 0 < seen["share"] < 1


@pytest.fixture
def planted(monkeypatch):
    """A model that looks at visual token 3 of slice 2 only, which looks at one patch only."""
    plan = plan_slices((900, 448))
    grids = [(2, 3)] * 3
    slots = np.full((4, 2, 3, 16), 1e-9)
    slots[:, :, 2, 3] = 0.5
    one_patch = np.full((16, 6), 1e-9)
    one_patch[:, 4] = 1  # row 1, column 1
    watched = dict(words=["one", "<end>"], slots=slots, resampler=[one_patch] * 3, plan=plan, patch_grids=grids)
    for where in (draw, draw.language):
        monkeypatch.setattr(where, "watch_answer", lambda picture, name="nano": watched)


def test_the_brightest_patch_is_where_the_model_looks(planted):
    panel = panels.AnswerAttention("cat.jpg", stretch=False)
    assert panel.status.startswith("Token 1 of 2, “one”: 50% of the attention is on slots. Most is on visual token 3")
    assert "of slice 2, 48.00 times an even look; the brightest patch gets 18.00 times." in panel.status
    canvas = panel.draw(**panel.values())
    _overview, slices = [shape for kind, shape, _ in canvas.shapes if kind == "image" and shape[5]]
    w, h, image = slices[2:5]
    yellow = {
        (col, row): image.getpixel((int((col + 0.5) * image.width / 6), int((row + 0.5) * image.height / 2)))[0]
        for col in range(6)
        for row in range(2)
    }
    assert max(yellow, key=yellow.get) == (4, 1)  # second slice, its middle column, lower row
    assert {"0.25 x", "4.00 x", "one", "<end>", "slices 2 x 1"} <= set(texts(panel))
    assert w / h == pytest.approx(image.width / image.height, rel=1e-2)


def test_stretched_colors_name_their_ends():
    panel, seen = panels.AnswerAttention("chart.png", stretch=True), draw.look("chart.png", 1)
    least, most = seen["slots"].min(), seen["slots"].max()
    least = max(least, most / 1000)  # a weight may be zero
    assert {draw.language._times(least), draw.language._times(most)} <= set(texts(panel))
    bar = draw.language._heat([[least, most]], least, most)
    assert [bar.getpixel((0, 0)), bar.getpixel((1, 0))] == [
        colormaps["cividis"](end, bytes=True)[:3] for end in (0, 255)
    ]
    even = draw.language._heat([[1.0]], 0.25, 4).getpixel((0, 0))
    assert even == draw.language._heat([[0.5]], 0.125, 2).getpixel((0, 0)), "the middle of the scale"


@pytest.mark.parametrize("name", panels.AnswerAttention.pictures)
def test_attention_stays_inside_the_picture(name):
    panel = panels.AnswerAttention(name)
    for stretch in (False, True):
        for token in (1, panel.controls["token"].max):
            assert list(outside(draw.answer_attention(name, token, None, stretch))) == []


def test_an_odd_answer_is_shown():
    tokenizer = draw.nano_tokenizer()
    first_byte = tokenizer("猫", add_special_tokens=False)["input_ids"][0]
    assert draw.language._as_word(tokenizer, first_byte, ()) == "·"
    assert draw.language._as_word(tokenizer, 5, (5,)) == "<end>"
    canvas = draw.Canvas()
    draw.language._draw_answer(canvas, ["an extremely long word"] * 12, 4)
    assert list(outside(canvas)) == []
    assert max(shape[1] for _, shape, _ in canvas.shapes) < 60, "two lines"


def test_a_weight_may_be_zero(planted):
    watched = draw.watch_answer("cat.jpg")
    watched["slots"][:, :, 0] = 0
    watched["resampler"][0][:, 0] = 0
    panel = panels.AnswerAttention("cat.jpg", stretch=True)
    assert {"0.05 x", "48 x"} <= set(texts(panel)), "a thousandth of the most, and the most"


def test_another_model_is_a_folder():
    folder = str(find_folder("nano"))
    panel, nanos = panels.AnswerAttention(model=folder), panels.AnswerAttention()
    assert panel.status == nanos.status
    assert draw.watched_model(folder)[0] is not draw.watched_model()[0]
    with pytest.raises(OSError, match="no/such"):
        panels.AnswerAttention(model="no/such")
