"""The drawing of the whole model that opens every lesson, and the panel of lesson 00, which is the same drawing."""

import itertools
import re

import numpy as np
import pytest
from places import ROOT
from svg import canvas_shapes, canvas_texts, inside_the_canvas, touch

from minicpmv_ref import nano, slice_image, v2_0, v2_6
from minicpmv_ref.course import draw, panels

pytestmark = pytest.mark.usefixtures("strict_panels")


def lit_rectangles(canvas):
    return {(x, y, w, h) for x, y, w, h, fill, *_ in canvas_shapes(canvas, "rect") if fill == draw.YELLOW}


@pytest.mark.parametrize("lit", [(), "resampler", ("vit", "llm"), tuple(draw.MODEL_PARTS)])
def test_exactly_the_chosen_parts_are_lit(lit):
    canvas = draw.whole_model(lit)
    chosen = (lit,) if isinstance(lit, str) else lit
    assert canvas.facts["lit"] == chosen
    assert lit_rectangles(canvas) == {canvas.facts["boxes"][part] for part in chosen}
    assert repr(canvas) == "The whole model" + (f", lit: {', '.join(chosen)}" if chosen else "")


@pytest.mark.parametrize("config", [v2_0, v2_6, nano], ids=lambda config: config.version)
def test_its_sizes_are_those_of_the_config(config):
    canvas = draw.whole_model(config=config)
    words = " | ".join(canvas_texts(canvas))
    assert f"about {config.slicing.scale_resolution}²" in words
    assert f"{config.vision.width:,} wide" in words
    assert f"{config.resampler.num_queries} a view" in words
    assert f"row of embeddings, {config.llm.hidden_size:,} wide" in words
    assert list(canvas.facts["sizes"].values()) == [
        *(config.slicing.scale_resolution, config.vision.width),
        *(config.resampler.num_queries, config.llm.hidden_size),
    ]


def test_every_part_stands_alone_and_names_a_lesson():
    facts = draw.whole_model().facts
    for (x, y, w, h), (left, top, wide, high) in itertools.combinations(facts["boxes"].values(), 2):
        assert x + w < left or left + wide < x or y + h < top or top + high < y, "two parts overlap"
    for lesson in facts["lessons"].values():
        assert list((ROOT / "notebooks").glob(f"{lesson}_*.ipynb"))


def test_words_stay_inside_the_picture_and_inside_their_boxes():
    canvas = draw.whole_model("llm")
    boxes = canvas.facts["boxes"].values()
    for x, y, text, size, _, align, _ in canvas_shapes(canvas, "text"):
        wide = draw.text_width(text, size)
        left = x - wide * {"left": 0, "middle": 0.5, "right": 1}[align]
        assert left >= 0 and left + wide <= canvas.width and size < y < canvas.height, text
        for bx, by, bw, bh in boxes:
            if align == "middle" and bx < x < bx + bw and by < y < by + bh:
                assert bx < left and left + wide < bx + bw, text


def test_it_is_a_small_picture_and_sharp():
    image = draw.whole_model("vit").encode_image()
    assert image.startswith(b"\x89PNG")
    assert len(image) < 40_000


def test_an_unknown_part_is_one_clear_error():
    with pytest.raises(ValueError, match=r"one of slicing, patches.*got 'eye'"):
        draw.whole_model("eye")


# ---- the panel of lesson 00


def test_a_click_on_a_stage_lights_its_parts_and_links_to_its_lesson():
    panel = panels.WholeModel()
    assert [spot.item for spot in panel.spots.values()] == [1, 2, 3, 4, 5, 6]
    for number, stage in enumerate(draw.STAGES, 1):
        touch(panel, f"stage {number}")
        assert panel.values()["stage"] == number
        assert panel.status.startswith(f"Stage {number} of 6, {stage.name}: from ")
        lit = [draw.MODEL_PARTS[part][2] for part in stage.parts]
        assert lit_rectangles(panel.draw(**panel.values())) == set(lit)
        x, y, w, h = stage.box
        for left, top, wide, high in lit:
            assert x < left and left + wide < x + w and y < top and top + high < y + h
        (link,) = re.findall(r'<a href="([^"]+)" target="_blank"', panel.picture_box.value)
        assert (ROOT / "notebooks" / link).is_file() and f"lesson {link[:2]} →" in panel.picture_box.value
    for (x, y, w, h), (left, top, wide, high) in itertools.combinations([stage.box for stage in draw.STAGES], 2):
        assert x + w < left or left + wide < x or y + h < top or top + high < y, "two stages overlap"


def test_the_tensors_are_nanos():
    picture, question = "shapes.png", "What color is the triangle?"
    seen, (model, processor) = draw.follow(picture, question), draw.watched_model()
    image = draw.load_sample(picture)
    messages = [{"role": "user", "content": [image, question]}]
    batch = processor(messages)
    assert [view.tobytes() for view in seen["views"]] == [v.tobytes() for v in slice_image(image, nano.slicing)]
    np.testing.assert_array_equal(seen["pixels"], batch.images[0][0].numpy())
    cols = batch.patch_grids[0][0][1]
    for patch in (0, cols + 2):  # row by row
        top, left = 14 * (patch // cols), 14 * (patch % cols)
        square = seen["pixels"][:, top : top + 14, left : left + 14]
        np.testing.assert_array_equal(seen["patches"][patch], square.reshape(-1))
    tokens = model.encode_images(batch.images[0], batch.patch_grids[0]).detach()
    np.testing.assert_allclose(seen["tokens"], tokens.numpy(), atol=1e-4)
    np.testing.assert_allclose(seen["row"][seen["slots"] > 0], seen["tokens"].reshape(-1, 256), atol=1e-4)
    scores = model(batch).logits[0, -1].detach().softmax(dim=-1)
    np.testing.assert_allclose(seen["scores"], scores.numpy(), atol=1e-4)
    assert seen["best"][0] == ("green", pytest.approx(float(scores.max()), abs=1e-4))
    assert seen["answer"] == model.chat(messages, processor, max_new_tokens=32) == "green"


@pytest.mark.parametrize("picture", ["shapes.png", "cat.jpg", "banner.png"])
def test_the_stages_hand_on_what_they_make(picture):
    """What goes out of a stage comes into the next one, and nothing is cut."""
    before = None
    for stage in range(1, 7):
        canvas = draw.course_map(stage, picture, "Describe the picture.")
        inside_the_canvas(canvas)
        assert before in (None, canvas.facts["in"])
        before = canvas.facts["out"]
    assert before == "scores (1024,)"
