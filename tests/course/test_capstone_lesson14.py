"""Lesson 14: every size has its source, the panel and the report show what was computed, and a prediction stays."""

import json
import math
import re
from dataclasses import asdict, replace

import nbformat
import pytest
import torch
from places import ROOT
from svg import texts

from experiments import _arms, capstone
from experiments._frame import CONFIRMED, NOT_CONFIRMED, REFUTED, as_json
from experiments.capstone import Arm, Proposal
from minicpmv_ref import SliceConfig, best_grid, plan_slices
from minicpmv_ref.course import draw, panels
from minicpmv_ref.deploy.gguf_plan import plan_mixture
from minicpmv_ref.deploy.kquant import dequantize, quantize

pytestmark = pytest.mark.usefixtures("strict_panels")

CELLS = nbformat.read(ROOT / "notebooks/14_your_own_change.ipynb", as_version=4).cells
TINY = Proposal(
    "Four for sixteen", "Because.", Arm("16", connector="resampler"), Arm("4", connector="resampler", queries=4), -0.1,
    "All.", begin="random", steps=2, batch=2, n=2, seeds=1,
)  # fmt: skip


# ---- sizes


def test_every_point_names_where_it_is_printed():
    assert len(draw.PUBLISHED) == 16
    for model in draw.PUBLISHED:
        table, where = model.source.split("; ")
        assert table.startswith("MiniCPM-V, ")
        assert re.search(r"README|arXiv \d{4}\.\d{5}|\w+\.\w+/", where)
        if found := re.search(r"arXiv (\d\d)(\d\d)\.|/blog/20(\d\d)-(\d\d)-", where):
            year, month = (int(part) for part in found.groups() if part)
            assert (model.day.year, model.day.month) == (2000 + year, month)


@pytest.mark.parametrize("level", [50, 55, 60, draw.GPT_4V, 66, 69, 77, 80])
def test_the_smallest_so_far(level):
    reached = [model for model in draw.PUBLISHED if (model.score or 0) >= level]
    earlier = {m.name: [o for o in reached if (o.day, o.billions) < (m.day, m.billions)] for m in reached}
    expected = {m.name for m in reached if all(m.billions < o.billions for o in earlier[m.name])}
    steps = draw.smallest(level)
    assert {model.name for model in steps} == expected
    canvas = draw.sizes_over_years(level)
    pace = draw.halving_months(steps)
    assert canvas.facts == {"smallest": [model.name for model in steps], "halving": pace}
    if len(steps) > 1:
        days = (steps[-1].day - steps[0].day).days
        assert steps[0].billions * 0.5 ** (days / (pace * 365.25 / 12)) == pytest.approx(steps[-1].billions)
    for kind, shape, _ in canvas.shapes:
        if kind == "text":
            x, y, text, size, _, align, bold = shape
            left = x - draw.text_width(text, size, bold) * {"left": 0, "middle": 0.5, "right": 1}[align]
            assert 0 <= left <= left + draw.text_width(text, size, bold) <= canvas.width, text
            assert y <= canvas.height


def test_the_panel_says_what_it_shows():
    panel = panels.SizesOverYears()
    assert panel.status.endswith("InternVL2.5-4B with 3.7 billion (December 2024). The size halved every 4.9 months.")
    shown = texts(panel)
    assert "8 to 3.7 billion: halved every 4.9 months" in shown
    assert all(model.name.removeprefix("MiniCPM-") in str(shown) for model in draw.PUBLISHED)
    panel.controls["score"].value = 75
    assert panel.status.endswith("MiMo-VL-7B-RL with 8.3 billion (June 2025). That gives no pace.")
    panel.controls["score"].value = 80
    assert "the smallest so far: none" in panel.status


# ---- arms


def test_two_arms_differ_in_one_thing():
    for old, new, said in (
        (Arm("a"), Arm("b"), "these are equal"),
        (Arm("a"), Arm("b", slices=4, position="interpolate"), "differ in slices, position"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(TINY, old=old, new=new)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"queries": 4}, "only a new resampler"),
        ({"connector": "shuffle"}, "takes square views"),
        ({"grid": "mine"}, "grid"),
        ({"mixture": "Q4"}, "mixture"),
        ({"slices": 0}, "slices"),
    ],
)
def test_a_wrong_arm_is_one_clear_error(wrong, said):
    with pytest.raises(ValueError, match=said):
        Arm("a", **wrong)
    for field, value in (("steps", -1), ("kinds", ("poem",)), ("at_least", math.nan)):
        with pytest.raises(ValueError, match=field):
            replace(TINY, **{field: value})


def test_the_default_arm_is_the_checkpoint_and_each_field_changes_its_part():
    plain = _arms.checkpoint("random")
    for arm in (Arm("a"), Arm("a", slices=4), Arm("a", position="interpolate"), Arm("a", grid="one column")):
        model, processor = capstone.build(arm, "random", seed=3)
        same = [torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values())]
        assert all(same)
        assert (
            processor.config
            == model.config
            == replace(
                plain.config,
                vision=replace(plain.config.vision, position=arm.position),
                slicing=replace(plain.config.slicing, max_slice_nums=arm.slices),
            )
        )
        assert model.vpm.cfg == model.config.vision
    model, processor = capstone.build(Arm("a", connector="mean", cutting="square"), "random", seed=3)
    assert model.peer["connector"] == "mean"
    assert processor.plan((300, 100), processor.config.slicing).grid is None


def test_grids():
    cfg = SliceConfig()
    for size in ((640, 480), (1000, 1300), (2400, 800), (300, 200), (1080, 1080)):
        rules = {name: rule(size, cfg) for name, rule in capstone.GRIDS.items()}
        assert rules["released"] == best_grid(size, cfg)
        assert (rules["one column"] is None) == (rules["released"] is None)
        if rules["one column"] and size[0] <= 2 * size[1]:
            assert rules["one column"][0] == 1
    assert (best_grid((500, 500), cfg), capstone.last_of_equals((500, 500), cfg)) == ((1, 2), (2, 1))
    processor = capstone.build(Arm("a", grid="one column"), "random", 0)[1]
    cfg = processor.config.slicing
    plan = processor.plan((224, 336), cfg)
    assert plan.grid[0] == 1
    assert plan.overview_size == plan_slices((224, 336), cfg).overview_size
    assert math.prod(plan.slice_size) == pytest.approx(112**2, rel=0.2)
    processor.rule = capstone.GRIDS["last of equals"]
    for size in ((640, 480), (100, 100), (333, 1000)):
        assert processor.plan(size, cfg).num_slices == plan_slices(size, cfg).num_slices


@pytest.mark.parametrize("mixture", ["Q4_K_M", "Q6_K", "F16"])
def test_rounded_weights_are_those_of_the_file(mixture):
    model, before = _arms.checkpoint("random"), _arms.checkpoint("random").state_dict()
    capstone.round_weights(model, mixture)
    after = model.state_dict()
    kinds = capstone.kinds_of(mixture)
    if mixture == "Q4_K_M":
        assert kinds == plan_mixture(model.config, mixture).kinds
        assert capstone.llm_bytes(mixture) == plan_mixture(model.config, mixture).total_bytes
    assert capstone.llm_bytes("Q4_K") < capstone.llm_bytes("Q4_K_M") < capstone.llm_bytes("Q6_K")
    name, key = "blk.1.ffn_gate.weight", "llm.model.layers.1.mlp.gate_proj.weight"
    weight = before[key].numpy()
    kind = kinds[name]
    expected = before[key].half().float() if kind == "F16" else torch.from_numpy(
        dequantize(quantize(weight, kind), kind, weight.shape[1]))  # fmt: skip
    assert torch.equal(after[key], expected)
    assert not torch.equal(after[key], before[key])
    assert torch.equal(after["vpm.post_layernorm.weight"], before["vpm.post_layernorm.weight"])


# ---- the run


def test_both_arms_compute_as_much():
    costs = [capstone.step_operations(TINY, arm, batches=1) for arm in (TINY.old, TINY.new)]
    assert costs[0] > costs[1]
    long = capstone.equal_steps(1000, *costs)
    assert long * costs[1] == pytest.approx(1000 * costs[0], rel=1e-3)
    assert capstone.equal_steps(0, 1, 2) == 0
    assert capstone.equal_steps(1, 1, 9) == 1


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capstone") / "mine"
    return folder, capstone.run(TINY, folder)


def test_a_run_writes_its_result_and_keeps_its_prediction(done, monkeypatch):
    folder, result = done
    assert [path.name for path in folder.iterdir()] == ["result.json"]
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["proposal"] == as_json(asdict(TINY))
    steps = [int(row[1]) for row in result["table"][1:]]
    assert steps[0] == 2 <= steps[1]
    monkeypatch.setattr(capstone, "train_and_grade", lambda *_: pytest.fail("it is done already"))
    assert capstone.run(TINY, folder) == result
    with pytest.raises(ValueError, match="result of another proposal"):
        capstone.run(replace(TINY, at_least=-0.2), folder)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    seen, grades = [], {"steps": 1, "views": 1, "tokens": 1, "flops": 1} | {
        f"{kind}, {grade}": [0.5, 0.25] for kind in TINY.kinds for grade in ("nats", "right")
    }  # fmt: skip

    def stops(proposal, arm, steps, seed, device):
        seen.append((arm.name, seed))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return grades

    monkeypatch.setattr(capstone, "arms_and_steps", lambda p: {"16": (p.old, 2), "4": (p.new, 2)})
    monkeypatch.setattr(capstone, "train_and_grade", stops)
    with pytest.raises(KeyboardInterrupt):
        capstone.run(TINY, tmp_path)
    assert capstone.run(TINY, tmp_path)["gain"] == 0
    assert seen == [("16", 0), ("4", 0), ("4", 0)]


def test_a_gpu_takes_more_steps_and_samples(tmp_path, monkeypatch):
    asked = []

    def fake(proposal, arm, steps, seed, device):
        asked.append((proposal.n, steps, device))
        grades = {f"{kind}, {grade}": [0.5] * 2 for kind in TINY.kinds for grade in ("nats", "right")}
        return grades | {"steps": steps, "views": 1, "tokens": 1, "flops": 1}

    monkeypatch.setattr(capstone, "train_and_grade", fake)
    monkeypatch.setattr(capstone, "arms_and_steps", lambda p: {"16": (p.old, p.steps), "4": (p.new, p.steps)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        capstone.run(TINY, tmp_path, profile="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    result = capstone.run(TINY, tmp_path, profile="gpu")
    assert asked == [(20, 50, "cuda")] * 2
    assert "a GPU" in result["machine"]
    assert result["proposal"]["steps"] == 50


def made_up(gain, at_least=-0.1):
    old = {"steps": 1, "views": 1, "tokens": 1, "flops": 2e9}
    old |= {f"{kind}, {grade}": [0.5, 0.6, 0.7] for kind in TINY.kinds for grade in ("nats", "right")}
    new = old | {f"{kind}, nats": [value - gain for value in old[f"{kind}, nats"]] for kind in TINY.kinds}
    proposal = replace(TINY, at_least=at_least)
    return capstone.conclude(proposal, {"16": [old] * 3, "4": [new] * 3})


def test_the_verdict_is_about_the_predicted_number():
    assert [made_up(gain)["verdict"] for gain in (0.3, -0.05, -0.2)] == [CONFIRMED, CONFIRMED, REFUTED]
    assert [made_up(gain, 0.2)["verdict"] for gain in (0.3, 0.1)] == [CONFIRMED, REFUTED]
    assert _arms.decided([0.1, 0.3], [0.2, -0.1]) == NOT_CONFIRMED
    found = made_up(0.3)
    assert (found["gain"], found["interval"], found["seeds"]) == (0.3, [0.3, 0.3], [0.3] * 3)


def test_a_rehearsal_is_tiny_and_knows_the_size_of_the_real_run(monkeypatch):
    asked = []

    def fake(proposal, arm, steps, seed):
        asked.append((proposal.n, steps, seed))
        grades = {f"{kind}, {grade}": [0.5] * 2 for kind in TINY.kinds for grade in ("nats", "right")}
        return grades | {"steps": 1, "views": 1, "tokens": 1, "flops": 1, "clock": [6.0, 3.0]}

    monkeypatch.setattr(capstone, "train_and_grade", fake)
    proposal = replace(TINY, n=40, seeds=3, steps=100)
    steps = [steps for _, steps in capstone.arms_and_steps(proposal).values()]
    minutes = capstone.rehearse(proposal)["minutes"]
    assert asked == [(2, 2, 0)] * 2
    assert minutes == pytest.approx(3 * (6 * sum(steps) + 2 * 2 * 40 * 3) / 60, abs=0.06)


# ---- the page


def test_the_report_is_written_whole_and_says_everything(done, tmp_path):
    folder, result = done
    text = capstone.report(folder, tmp_path / "page")
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["report.md", "report.png"]
    assert (tmp_path / "page/report.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "page/report.png").read_bytes().startswith(b"\x89PNG")
    for said in ("# Four for sixteen", "Because.", "lose at most 0.1 nats", f"**Verdict: {result['verdict']}.**",
                 f"{result['gain']:+.4f}", "queries: 16 becomes 4", "steps 2", "batch 2", "](report.png)", "All.",
                 result["machine"]):  # fmt: skip
        assert said in text, said
    (axes,) = capstone.figure(result).axes
    zero, predicted, ends, gain, seeds = (list(line.get_xdata()) for line in axes.lines)
    assert (zero[0], predicted[0]) == (0, -0.1)
    assert (ends, gain, seeds) == (result["interval"], [result["gain"]], result["seeds"])
    assert "save at least 0.2 nats" in capstone.page({**result, "proposal": {**result["proposal"], "at_least": 0.2}})


@pytest.mark.parametrize("name", capstone.WORKED)
def test_worked_proposals_are_reported_as_they_were_run(name):
    folder = capstone.SHIPPED / name
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["proposal"] == as_json(asdict(capstone.WORKED[name]))
    assert (folder / "report.md").read_text(encoding="utf-8") == capstone.page(result)
    assert sorted(path.name for path in folder.iterdir()) == ["report.md", "report.png", "result.json"]
    assert {path.name for path in capstone.SHIPPED.iterdir()} == set(capstone.WORKED)
    costs = [float(row[4]) for row in result["table"][1:]]
    assert costs[1] == pytest.approx(costs[0], rel=0.03)
    assert _arms.decided(result["interval"], result["seeds"], result["proposal"]["at_least"]) == result["verdict"]


def test_the_lesson_lists_the_predictions():
    prose = "".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    for name in ("four_queries", "one_column", "all_q4_k"):  # a fourth proposal needs no change of the lesson
        number = capstone.WORKED[name].at_least
        assert f"| {f'saves at least {number:g}' if number >= 0 else f'loses at most {-number:g}'} |" in prose
    for level, pace in ((55, "3.3"), (64, "4.9"), (66, "7.7")):
        assert f"{draw.halving_months(draw.smallest(level)):.1f}" == pace and f"{pace} months" in prose
