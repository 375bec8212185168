"""The drawing of the whole model that opens every lesson."""

import itertools

import pytest
from places import ROOT
from svg import canvas_shapes, canvas_texts

from minicpmv_ref import nano, v2_0, v2_6
from minicpmv_ref.course import draw


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
    with pytest.raises(ValueError, match=r"one of slicing, vit.*got 'eye'"):
        draw.whole_model("eye")
