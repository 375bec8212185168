"""The deployment panel of lesson 10: files, moments and bounds are the package's numbers."""

import subprocess
import sys
from itertools import product

import pytest
from svg import shapes, touch

from minicpmv_ref.config import PRESETS, v2_5
from minicpmv_ref.course import draw, panels
from minicpmv_ref.deploy.gguf import plan_mixture, plan_vision
from minicpmv_ref.deploy.memory import estimate
from minicpmv_ref.deploy.tune import CHIPS, answer_work, roofline

pytestmark = pytest.mark.usefixtures("strict_panels")

STATES = [
    dict(preset=preset, mixture=mixture, in_turns=in_turns, slices=slices, text=text)
    for preset, mixture, in_turns, (slices, text) in product(
        PRESETS, draw.SHIPPED, (False, True), [(0, 64), (9, 256), (9, 1024)]
    )
]


def named(state):
    return " ".join(map(str, state.values()))


@pytest.mark.parametrize("state", STATES, ids=named)
def test_picture(state):
    panel, config = panels.Deployment(**state), PRESETS[state["preset"]]
    filled = [r for r in shapes(panel, "rect") if r.attrib["fill"] in draw.PART_COLORS.values()]
    bars = [r for r in filled if float(r.attrib["height"]) == 18 and float(r.attrib["x"]) < 600]
    eyes = plan_vision(config).total_bytes
    want = [size for name in draw.SHIPPED for size in (plan_mixture(config, name).total_bytes, eyes)]
    widths = [float(bar.attrib["width"]) for bar in bars][: len(want)]
    assert [width / widths[0] for width in widths] == pytest.approx([size / want[0] for size in want], rel=1e-3)
    edges = [float(bar.attrib["x"]) for bar in bars][: len(want)]
    assert edges[1::2] == pytest.approx([x + width for x, width in zip(edges[::2], widths[::2])], abs=0.01)
    words = [text.text for text in shapes(panel, "text")]
    llm = plan_mixture(config, state["mixture"]).total_bytes
    assert draw.in_bytes(llm + eyes) in words

    work = answer_work(config, state["slices"], state["text"], state["mixture"])
    for name, chip in CHIPS.items():
        bounds = {stage: roofline(one, chip).seconds for stage, one in work.items()}
        assert f"≤ {draw.at_most(1 / bounds['write'])}" in words
        assert f"≥ {draw.in_seconds(bounds['see'] + bounds['read'])}" in words
        if name == "phone":
            assert f"at least {draw.in_seconds(bounds['see'] + bounds['read'])}" in panel.status
            assert f"at most {draw.at_most(1 / bounds['write'])} a second" in panel.status


@pytest.mark.parametrize("state", [s for s in STATES if s["slices"] == 9], ids=named)
def test_memory_from_moment_to_moment(state):
    config, mixture, in_turns = PRESETS[state["preset"]], state["mixture"], state["in_turns"]
    tokens = 10 * config.resampler.num_queries + state["text"]
    need = estimate(config, tokens=tokens, mixture=mixture)
    llm, eyes = plan_mixture(config, mixture).total_bytes, plan_vision(config).total_bytes
    together = max(llm + eyes + need.vision, llm + eyes + need.activations + need.kv_cache)
    turns = max(eyes + need.vision, llm + need.activations + need.kv_cache)
    assert together == need.total
    panel = panels.Deployment(**state)
    chosen, other = (turns, together) if in_turns else (together, turns)
    words = [text.text for text in shapes(panel, "text")]
    assert words[words.index("at most") + 1] == draw.in_bytes(chosen)
    assert words[words.index("at most") + 2 :][:2] == ["together" if in_turns else "in turns", draw.in_bytes(other)]
    assert f"at most {draw.in_bytes(chosen)} of memory" in panel.status

    # columns stand on one ground; their heights, and the line of the other way, have one scale
    columns = [r.attrib for r in shapes(panel, "rect") if r.attrib["width"] == "84" and r.attrib["fill"] == "none"]
    assert len(columns) == 5
    heights = [float(column["height"]) for column in columns]
    assert {round(float(c["y"]) + float(c["height"]), 2) for c in columns} == {232}
    [line] = [one for one in shapes(panel, "polyline") if one.attrib["stroke"] == draw.ORANGE]
    lines = line.attrib["points"].split()
    others = [232 - float(point.split(",")[1]) for point in lines[::2]]
    plan = draw.deploy(state["preset"], mixture, 9, state["text"])
    for way, shown in ((in_turns, heights), (not in_turns, others)):
        totals = [sum(parts.values()) for parts in plan.moments(mixture, way).values()]
        assert shown == pytest.approx([96 * total / max(together, turns) for total in totals], abs=0.01)
        assert max(totals) == plan.fullest(mixture, way)
    bold = columns[heights.index(max(heights))]
    assert bold["stroke"] == draw.INK


def test_moments_of_2_5():
    plan = draw.deploy("v2_5", "Q4_K_M", 9, 256)
    need = estimate(v2_5, mixture="Q4_K_M")
    llm, eyes = plan.files["Q4_K_M"]
    assert (llm, eyes) == (4_912_898_048, plan_vision(v2_5).total_bytes)
    moments = plan.moments("Q4_K_M", in_turns=True)
    assert list(moments) == ["load", "see", "swap", "read", "write"]
    assert moments["see"] == {"LLM": 0, "vision part": eyes, "working memory": need.vision}
    assert moments["write"] == {"LLM": llm, "vision part": 0, "KV cache": need.kv_cache}
    assert plan.moments("Q4_K_M", in_turns=False)["swap"] == {"LLM": llm, "vision part": eyes}
    assert plan.tokens == 960 + 256


def test_only_as_many_bytes_as_it_needs():
    """What lesson 10 asks about the panel."""
    half = 12 * 2**30 // 2
    fits = {m: draw.deploy("v2_5", m, 9, 256).fullest(m, in_turns=False) <= half for m in draw.SHIPPED}
    assert fits == {"F16": False, "Q8_0": False, "Q4_K_M": True}
    full, single = (draw.deploy("v2_5", "Q4_K_M", slices, 256) for slices in (9, 0))
    assert single.first_token("phone") < full.first_token("phone") / 2
    assert single.speed("phone") == pytest.approx(full.speed("phone"), rel=0.05)
    small = draw.deploy("nano", "Q4_K_M", 9, 256).files["Q4_K_M"]
    assert small[1] > small[0]


@pytest.mark.parametrize("state", STATES, ids=named)
def test_nothing_leaves_the_picture(state):
    for own in (5, 2000):
        check_inside(draw.deployment(**state, own=own))


def test_measured_points_and_the_own_chip():
    panel = panels.Deployment(own=100)
    plan = draw.deploy("v2_5", "Q4_K_M", 9, 256)
    dots = [float(dot.attrib["cx"]) for dot in shapes(panel, "circle") if dot.attrib["fill"] == draw.ORANGE][1:]
    speeds = [panel.facts["bandwidth"](x) * plan.own_speed(1) for x in dots]
    assert speeds == pytest.approx([1.3, 3.2, 8.2], rel=1e-4) and max(speeds) < plan.speed("phone"), "below the bound"
    assert "(the paper measured 1.3, then 3.2, and tuned 8.2)" in panel.status
    assert panel.status.endswith(f"With 100 GB/s there are at most {100e9 / plan.work['write'].bytes:.3g}.")
    x, y = panel.spots["own"].at
    touch(panel, "own", (x + panel.spots["own"].step[0], y), (x, y))
    assert panel.values()["own"] == 101, "an arrow key"
    touch(panel, "own", (9999, 0))
    assert panel.values()["own"] == 2000
    touch(panel, "file F16")
    assert panel.values()["mixture"] == "F16" and "measured" not in panel.status
    assert not panel.facts["measured"]


def check_inside(canvas):
    spans = []
    for kind, shape, _ in canvas.shapes:
        if kind == "text":
            x, y, text, points, _, align, bold = shape
            width = draw.text_width(text, points, bold)
            left = x - width * {"left": 0, "middle": 0.5, "right": 1}[align]
            assert left >= -1 and left + width <= canvas.width + 1 and 10 < y < canvas.height, text
            assert points >= 14
            spans.append((y, left, left + width, text))
        elif kind == "rect":
            assert shape[0] + shape[2] <= canvas.width and shape[1] + shape[3] <= canvas.height
    for i, (y, left, right, text) in enumerate(spans):
        for other_y, other_left, other_right, other in spans[i + 1 :]:
            assert abs(y - other_y) > 12 or right <= other_left or other_right <= left, (text, other)


def test_words():
    seconds = {73.81: "73.8 s", 1.0: "1 s", 0.9996: "1 s", 0.34: "340 ms", 0.000116: "0.116 ms"}
    assert {s: draw.in_seconds(s) for s in seconds} == seconds
    assert [draw.at_most(s) for s in (16.08, 211.3, 999.7, 14_175.2)] == ["16.1", "211", "1,000", "14,175"]


@pytest.mark.parametrize("share", [0.071, 0.9, 2.5, 0.0])
def test_error_bars(share):
    rows = {"attn_q": {"Q8_0": share / 10, "Q4_K_M": share}, "ffn_down": {"Q8_0": 0.003, "Q4_K_M": share / 2}}
    canvas = draw.error_bars(rows, "error")
    check_inside(canvas)
    assert repr(canvas) == "error: Q8_0, Q4_K_M, for attn_q, ffn_down"  # no numbers: they depend on the weights
    widths = [shape[2] for kind, shape, _ in canvas.shapes if kind == "rect" and shape[3] == 10]
    shares = [number for row in rows.values() for number in row.values()]
    assert [max(number * max(widths) / max(shares), 1) for number in shares] == pytest.approx(widths)
    words = [shape[2] for kind, shape, _ in canvas.shapes if kind == "text"]
    if share == 0.071:
        assert words[-3:] == ["0.71 / 7.1 %", "ffn_down", "0.3 / 3.55 %"]


def test_the_course_starts_without_torch():
    code = "import sys; from minicpmv_ref.course import check, draw, panels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
