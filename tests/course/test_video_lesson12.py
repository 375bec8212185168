"""Lesson 12: its panels show the package's numbers, and what its text says of them is so."""

import nbformat
import numpy as np
import pytest
import torch
from places import ROOT
from svg import canvas_texts, inside_the_canvas, texts

from minicpmv_ref.course import draw, panels
from minicpmv_ref.course.draw.language import watched_model
from minicpmv_ref.inputs.files import read_json
from minicpmv_ref.peers import plan
from minicpmv_ref.toy.boxes import overlap

pytestmark = pytest.mark.usefixtures("strict_panels")

CELLS = nbformat.read(ROOT / "notebooks/12_many_pictures_and_video.ipynb", as_version=4).cells
PROSE = "".join(cell.source for cell in CELLS if cell.cell_type == "markdown")


# ---- what a clip costs


@pytest.mark.parametrize("state", [(1280, 720, 61, 2, 3), (448, 448, 1, 1, 1), (1920, 1080, 600, 2, 10)])
def test_costs_are_those_of_the_peers(state):
    width, height, seconds, slices, rate = state
    canvas, shown = draw.clip_costs(*state), canvas_texts(draw.clip_costs(*state))
    inside_the_canvas(canvas)
    name = next(name for name, size in draw.FRAME_SIZES.items() if size == (width, height))
    panel = panels.ClipCosts(seconds, name, slices, rate)
    assert repr(panel) == f"ClipCosts(seconds={seconds}, size={name!r}, slices={slices}, rate={rate})"
    status = panel.status
    for system, cost in canvas.facts["costs"].items():
        limit = {"max_tiles": slices} if system == "minicpm-v-2.6" else {}
        assert cost.tokens == plan(system, (width, height), frames=cost.frames, **limit).visual_tokens
        assert f"{cost.tokens:,}" in shown
        assert f"{cost.frames} frames, {cost.tokens:,} tokens and {draw.in_bytes(cost.cache)}" in status
    lines = [shape[0] for kind, shape, _ in canvas.shapes if kind == "path" and len(shape[0]) == draw.SECONDS]
    dots = [shape[:2] for kind, shape, _ in canvas.shapes if kind == "dot"]
    assert [line[seconds - 1] for line in lines] == dots


def test_the_cache_is_what_transformers_keeps():
    """One token through each language model, without weights; of 4.6 the layers with keys and values only."""
    from transformers import DynamicCache, LlamaConfig, Qwen2Config, Qwen3_5TextConfig, Qwen3Config

    one_in_four = dict(num_hidden_layers=24, hidden_size=1024, num_attention_heads=8, num_key_value_heads=2)
    configs = {
        "minicpm-v-2.6": Qwen2Config(
            num_hidden_layers=28, hidden_size=3584, num_attention_heads=28, num_key_value_heads=4
        ),
        "minicpm-v-4.5": Qwen3Config(num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128),
        "minicpm-v-4.6": Qwen3_5TextConfig(**one_in_four),
        "llava-next-video": LlamaConfig(),  # the defaults are those of the 7B
    }
    for system, config in configs.items():
        cache, kinds = DynamicCache(config=config), getattr(config, "layer_types", None)
        wide = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        held, one = 0, torch.zeros(1, config.num_key_value_heads, 1, wide)
        for layer in range(config.num_hidden_layers):
            if not kinds or kinds[layer] == "full_attention":
                held += sum(part.numel() for part in cache.update(one, one, layer))
        assert held == draw.CLIP_SYSTEMS[system][2], system


def test_what_the_lesson_says_of_costs():
    at = {seconds: draw.clip_costs(1280, 720, seconds, 2, 3).facts["costs"] for seconds in (60, 61, 600)}
    assert (at[60]["minicpm-v-4.5"].tokens, at[61]["minicpm-v-4.5"].tokens) == (11520, 5888)
    long = at[600]
    assert min(long, key=lambda system: 600 / long[system].frames) == "minicpm-v-4.5"
    assert long["minicpm-v-4.5"].frames == 540
    assert draw.clip_cost("minicpm-v-2.6", (1280, 720), 600, slices=1).tokens == 4096
    assert min(long, key=lambda system: long[system].tokens) == "llava-next-video"
    assert max(long, key=lambda system: long[system].cache) == "llava-next-video"
    packed = [
        seconds
        for seconds in range(1, 60)
        if draw.clip_cost("minicpm-v-4.5", (448, 448), seconds, rate=10).together == 3
    ]
    assert packed[0] == 37
    assert "From 37 seconds on" in PROSE
    assert round(draw.CLIP_SYSTEMS["llava-next-video"][2] / draw.CLIP_SYSTEMS["minicpm-v-4.6"][2]) == 43


# ---- which frame


@pytest.mark.parametrize("state", [(6, 4, False), (2, 1, True), (1, 1, False)])
def test_the_attention_is_the_models(state):
    """Recorded attention against a forward pass of its own: the prompt alone, its tokens found by their text."""
    frames, star, ids = state
    model, processor = watched_model()
    pictures, color = draw.star_clip(frames, star)
    content = [*pictures] if ids else [list(pictures)]
    batch = processor([{"role": "user", "content": [*content, draw.STAR_QUESTION]}])
    with torch.no_grad():
        embedded = model.embed(batch)
        attentions = model.llm(inputs_embeds=embedded, output_attentions=True, use_cache=False).attentions
    words = [processor.tokenizer.decode([token]).strip() for token in batch.input_ids[0].tolist()]
    watched = draw.watch_clip(*state)
    assert watched["words"][: watched["asked"]] == ["What", "color", "is", "the", "star", "?"]
    assert watched["right"] == (watched["said"] == color)
    for token, place in ((5, words.index("star")), (6, words.index("?")), (7, len(words) - 1)):
        for layer in range(1, 5):
            looked = attentions[layer - 1][0, :, place].mean(dim=0)
            each = [float(looked[start:end].sum()) for start, end in batch.image_bounds[0].tolist()]
            share, parts, patches = draw.look_at_clip(frames, star, token, layer, ids)
            assert share == pytest.approx(sum(each), abs=1e-5)
            assert parts == pytest.approx(np.array(each) / sum(each), abs=1e-4)
            assert patches.sum(axis=(1, 2)) / patches.size == pytest.approx(parts, abs=1e-4)


@pytest.mark.parametrize("state", [(6, 4, 4, 6, 2), (8, 5, 1, 6, 2, True), (1, 1, 1, 1, 0), (8, 8, 8, 8, 4)])
def test_the_clip_canvas(state):
    canvas = draw.clip_look(*state)
    inside_the_canvas(canvas)
    frames, star = state[:2]
    bars = [shape for kind, shape, _ in canvas.shapes if kind == "rect" and shape[4] in (draw.RED, draw.BLUE)]
    assert [bar[4] == draw.RED for bar in bars] == [k + 1 == star for k in range(frames)]
    assert [bar[3] for bar in bars] == pytest.approx([max(1, 68 * float(part)) for part in canvas.facts["frames"]])
    panel = panels.ClipLook(*state)
    assert f"“{canvas.facts['said']}”, {'right' if canvas.facts['right'] else 'wrong'}" in panel.status
    assert f"frame {star} gets {canvas.facts['frames'][star - 1]:.0%}" in panel.status
    panel.controls["frames"].value = 1
    assert (panel.controls["star"].value, panel.controls["shown"].value, panel.controls["shown"].max) == (1, 1, 1)


def test_what_the_lesson_says_of_looks():
    asks = {star: draw.clip_look(6, star, 1, 6, 2).facts for star in range(1, 7)}
    follows = [star for star, facts in asks.items() if int(facts["frames"].argmax()) + 1 == star]
    assert follows == [1, 2, 3, 4, 6]
    assert [star for star, facts in asks.items() if not facts["right"]] == [5, 6]
    assert asks[6]["said"] == "red"
    spread = draw.clip_look(8, 5, 1, 6, 2).facts
    assert (spread["right"], spread["said"]) == (False, "square")
    assert spread["frames"][4] < 0.2
    said = {(star, ids): draw.watch_clip(8, star, ids) for star in (1, 4) for ids in (False, True)}
    assert [watched["right"] for watched in said.values()] == [True, True, False, False]
    assert [said[4, ids]["said"] for ids in (False, True)] == ["square", "1"]


# ---- boxes


@pytest.mark.parametrize(
    ("a", "b"), [((0, 0, 9, 5), (3, 2, 12, 9)), ((2, 2, 4, 4), (0, 0, 9, 9)), ((0, 0, 2, 2), (5, 5, 9, 9))]
)
def test_overlap_is_what_pixels_say(a, b):
    masks = np.zeros((2, 12, 12), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, (a, b)):
        mask[top:bottom, left:right] = True
    assert overlap(a, b) == ((masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum())


@pytest.mark.parametrize("place", [(200, 200, "small"), (480, 500, "middle"), (800, 800, "large")])
def test_the_true_box_is_where_the_triangle_is(place):
    image, box = draw.box_scene(*place)
    down, across = np.nonzero(np.asarray(image)[..., 0] < 100)
    found = [1000 * edge / image.width for edge in (across.min(), down.min(), across.max() + 1, down.max() + 1)]
    assert found == pytest.approx(box, abs=1.5 * 1000 / image.width)


def test_the_boxes_panel():
    panel = panels.Boxes(420, 460)
    assert panel.status.endswith("the true one (220, 260, 620, 640): their IoU is 1.00.")
    for x, size, iou in ((620, "large", "0.33"), (420, "middle", "0.49")):
        panel.controls["x"].value, panel.controls["size"].value = x, size
        assert panel.status.endswith(f"their IoU is {iou}.")
        assert iou in texts(panel)
    assert panels.Boxes(800, 800, "small").status.endswith("their IoU is 0.00.")
    inside_the_canvas(draw.box_look(800, 800, "large"))


def test_what_the_lesson_says_of_boxes():
    found = {size: draw.box_look(480, 500, size, "nano-many").facts for size in ("large", "middle", "small")}
    assert ", ".join(f"{size} {facts['iou']:.2f}" for size, facts in found.items()).capitalize() in PROSE
    for facts in found.values():
        assert max(abs(said - true) for said, true in zip(facts["said"][:2], facts["true"])) <= 50
    small = draw.box_look(700, 300, "small", "nano-many").facts
    assert small["said"][2] - small["said"][0] == 280 and small["said"][3] < small["true"][3]
    assert f"{small['iou']:.2f}" == "0.32"


@pytest.mark.parametrize("answer", ["top left", "<box>1 2 3</box>", "<box>500 0 100 900</box>", "<box>1 2 3 4"])
def test_an_answer_without_a_readable_box(monkeypatch, answer):
    monkeypatch.setattr("minicpmv_ref.course.draw.video.asked_box", lambda *_: answer)
    panel = panels.Boxes()
    assert panel.status == f"The answer “{answer}” holds no box that can be read."
    assert "there is none" in texts(panel)


# ---- measured curves


def test_the_curve_shows_its_values():
    canvas = draw.shares([1, 2, 8], {"a": (draw.RED, [1, 0.5, 0]), "b": (draw.BLUE, [0, 0.25, 1])}, "t", "n")
    inside_the_canvas(canvas)
    dots = [shape for kind, shape, _ in canvas.shapes if kind == "dot"]
    assert [round((212 - y) / 176, 6) for _, y, *_ in dots] == [1, 0.5, 0, 0, 0.25, 1]
    assert {"1", "2", "8", "a", "b", "t", "n"} <= set(canvas_texts(canvas))


def test_what_the_lesson_says_of_the_experiments():
    clips, mixing = (
        read_json(ROOT / f"experiments/results/{name}.json") for name in ("zero_shot_clips", "clip_mixing")
    )
    head, *rows = clips["table"]
    share = {name: {int(row[0]): float(row[k]) for row in rows} for k, name in enumerate(head) if k}
    low = [k for k in range(1, 9) if share["with ids"][k] < share["video"][k] - 0.2]
    assert low == [7, 8]
    worse = [k for k, value in share["video, factor 2"].items() if value < share["video"][k]]
    assert worse == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]
    assert share["video, factor 2"][24] == share["video"][24] > 2 * share["random frame"][24]
    assert clips["verdict"] == "confirmed here"
    head, *rows = mixing["table"]
    kept = {row[0]: float(row[head.index("caption, right")].split()[0]) for row in rows}
    assert kept == pytest.approx({"mixed": 0.99, "clips only": 0.17}, abs=0.005)
    assert mixing["figures"]["nats that mixing saves on clips"] == pytest.approx(-0.16, abs=0.005)
    assert mixing["verdict"] == "refuted here"
    assert "0.16 nats" in PROSE
