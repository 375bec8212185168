"""The experiments: each runs, the page says what their JSON files say, and a run that was stopped goes on.

Those that train have fast versions of a few steps, which prove that they run. What they conclude is tested with made-up
grades: the better arm must win, and lose where the grades are turned around.
"""

import json
import math
import random
import re
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from itertools import product
from operator import itemgetter
from types import SimpleNamespace

import pytest
from places import ROOT
from tiny import short_answers

from experiments import _arms, _frame
from experiments._frame import CONFIRMED, NOT_CONFIRMED, REFUTED, Each, Finding
from minicpmv_ref import MiniCPMV, nano, plan_slices, v2_5
from minicpmv_ref import __main__ as commands
from minicpmv_ref.deploy.sequence import Loading, Peak

NO_CLAIM = {"alignment", "capstone"}  # scripts beside the claims; helpers have names that begin with "_"
TRAINED = (
    "text_size slicing cost_curve position_schemes queries pooling stage_ladder stages frozen_llm rewriting packing "
    "sft_order multilingual connectors connector_steps visual_expert one_position vision_centric text_only "
    "vit_rate vit_frozen answer_machine few_tiles interleaved single_first connector_first "
    "resolution group_frames early_merge zero_shot_clips clip_mixing few_frames"
).split()
UNTRAINED = [name for name in _frame.NAMES if name not in TRAINED]
MEASURED = {"prefill", "loading"}  # their figures depend on the machine
WHOLE = "pooling"  # one training stands for all: its model and its answers are whole, and it is run again
FLAT = replace(nano, vision=replace(nano.vision, layers=1), llm=replace(nano.llm, num_hidden_layers=1))
DONE = [name for name in _frame.NAMES if (_frame.RESULTS / f"{name}.json").exists()]


def result(name: str) -> dict:
    return json.loads((_frame.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# ---- the page


def test_the_page_is_up_to_date():
    assert _frame.PAGE.read_text(encoding="utf-8") == _frame.page()


@pytest.mark.parametrize("name", DONE)
def test_the_figures_are_those_of_the_scripts_settings(name):
    kept = result(name)
    assert kept["profile"] in ("cpu", "gpu")
    assert kept["setting"] == _frame.as_json(import_module(f"experiments.{name}").SETTINGS[kept["profile"]])
    assert kept["verdict"] in _frame.VERDICTS and kept["machine"] and kept["seconds"] >= 0
    assert all(low <= kept["figures"][figure] <= high for figure, (low, high) in kept["intervals"].items())
    assert len({len(row) for row in kept["table"]}) == 1


def test_every_script_is_named_and_every_result_has_a_script():
    scripts = {path.stem for path in (ROOT / "experiments").glob("[!_]*.py")} - NO_CLAIM
    assert scripts == set(_frame.NAMES) and len(_frame.NAMES) == len(scripts)
    assert {path.stem for path in _frame.RESULTS.glob("*.json")} <= scripts
    assert set(UNTRAINED) <= set(DONE)


def test_a_claim_without_a_result_is_listed_as_not_run():
    page = _frame.PAGE.read_text(encoding="utf-8")
    for number, name in enumerate(_frame.NAMES, start=1):
        title = f"{number}. {import_module(f'experiments.{name}').CLAIM.title}"
        assert (f"| {title} | not run yet | |" in page) == (name not in DONE)
        assert (f"## {title}" in page) == (name in DONE)


def test_links_of_the_page_resolve():
    targets = re.findall(r"\]\(([^)#\s]+)\)", _frame.PAGE.read_text(encoding="utf-8"))
    assert len(targets) > 14 and all((_frame.PAGE.parent / target).exists() for target in targets)


def test_a_changed_figure_or_verdict_changes_the_page(tmp_path):
    for name in DONE:
        (tmp_path / f"{name}.json").write_text(json.dumps(result(name)))
    assert _frame.page(tmp_path) == _frame.page()
    for key, value in (("verdict", REFUTED), ("found", "?"), ("figures", {"a": 1}), ("seconds", -1), ("machine", "?")):
        changed = {**result("padding"), "intervals": {}, key: value}
        (tmp_path / "padding.json").write_text(json.dumps(changed))
        assert _frame.page(tmp_path) != _frame.page(), key
    (tmp_path / "padding.json").unlink()
    assert "not run yet" in _frame.page(tmp_path)


# ---- the frame


@pytest.mark.parametrize("name", _frame.NAMES)
def test_the_fast_version_runs(name, tmp_path, monkeypatch, one_thread):
    before = {path: path.read_bytes() for path in _frame.RESULTS.glob("*.json")}
    for module in (_arms, import_module(f"experiments.{name}")):
        if name in TRAINED and name not in (WHOLE, "early_merge") and hasattr(module, "nano"):
            monkeypatch.setattr(module, "nano", FLAT)
    with nullcontext() if name == WHOLE else short_answers():
        found = _frame.run(name, "fast", runs=tmp_path, results=tmp_path / "real")
    assert json.loads((tmp_path / "fast" / f"{name}.json").read_text(encoding="utf-8")) == found
    assert not (tmp_path / "real").exists()
    assert {path: path.read_bytes() for path in _frame.RESULTS.glob("*.json")} == before
    assert _frame.section("title", import_module(f"experiments.{name}").CLAIM, found)
    assert len({len(row) for row in found["table"]}) == 1
    assert all(low <= found["figures"][figure] <= high for figure, (low, high) in found["intervals"].items())
    if name in {*UNTRAINED, WHOLE} - MEASURED:
        again = _frame.run(name, "fast", again=True, runs=tmp_path)
        assert {**again, "seconds": 0, "machine": ""} == {**found, "seconds": 0, "machine": ""}


def test_a_real_profile_writes_its_result(tmp_path):
    found = _frame.run("q4k_size", "cpu", runs=tmp_path / "runs", results=tmp_path / "real")
    assert json.loads((tmp_path / "real/q4k_size.json").read_text(encoding="utf-8")) == found
    assert not (tmp_path / "runs/cpu/q4k_size.json").exists()


def test_a_stopped_run_goes_on(tmp_path):
    path, seen = tmp_path / "kept.json", []

    def square(x):
        if x == 3 and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(x)
        return (x, x * x)

    with pytest.raises(KeyboardInterrupt):
        Each(path, {"a": 1})([1, 2, 3], square)
    each = Each(path, {"a": 1})
    seen.append("again")
    assert each([1, 2, 3], square) == [[1, 1], [2, 4], [3, 9]]
    assert seen == [1, 2, "again", 3] and each.seconds > 0
    assert Each(path, {"a": 1}).seconds == each.seconds
    for other in (Each(path, {"a": 2}), Each(path, {"a": 1}, again=True)):  # start afresh
        seen.clear()
        assert other([1], square) == [[1, 1]] and seen == [1]


def test_two_measurements_of_the_same_item_are_kept_apart(tmp_path):
    def one(x):
        return 1

    def two(x):
        return 2

    each = Each(tmp_path / "kept.json", {})
    assert each([0], one) + each([0], two) + each([0], one) == [1, 2, 1]


@pytest.mark.parametrize(("name", "profile"), [("nothing", "fast"), ("padding", "quick")])
def test_unknown_names(name, profile):
    with pytest.raises(ValueError, match=f"{name!r}, {profile!r}"):
        _frame.run(name, profile)


def test_a_finding_is_checked():
    with pytest.raises(ValueError, match="verdict"):
        Finding("maybe", "", {"a": 1})
    with pytest.raises(ValueError, match="intervals"):
        Finding(CONFIRMED, "", {"a": 1}, {"b": [0, 1]})


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_frame, "RUNS", tmp_path)
    monkeypatch.setattr(_frame, "NAMES", ["q4k_size"])
    kept = _frame.run
    monkeypatch.setattr(_frame, "run", lambda name, profile, again: kept(name, profile, again, tmp_path, tmp_path))
    monkeypatch.setattr(_frame, "PAGE", tmp_path / "claims.md")
    assert commands.main(["experiment", "all"]) == 0
    assert "q4k_size: confirmed here" in capsys.readouterr().out and not _frame.PAGE.exists()
    assert commands.main(["experiment", "q4k_size", "--profile", "cpu"]) == 0
    assert _frame.PAGE.read_text(encoding="utf-8") == _frame.page()
    assert commands.main(["experiment", "nothing"]) == 1
    assert "error: an experiment is one of q4k_size" in capsys.readouterr().err


# ---- the claims


def test_slices_of_the_whole_range_by_another_count():
    """Random sizes instead of a grid, and the extreme sizes at which the promise is just kept."""
    rng = random.Random(0)
    for _ in range(3000):
        aspect = 6 ** rng.uniform(-1, 1)
        area = 448 * 448 * 9 ** rng.random()
        size = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        grid = plan_slices(size).grid
        if grid and max(size) <= 6 * min(size) and size[0] * size[1] <= 9 * 448 * 448:
            shape = size[0] * grid[1] / (size[1] * grid[0])
            assert 0.5 - 1e-9 <= shape <= 2 + 1e-9
            assert 0.33 <= size[0] * size[1] / (grid[0] * grid[1] * 448 * 448) <= 1.5
    assert plan_slices((1098, 183)).grid == (3, 1)  # 6:1 in three pieces of 2:1
    assert result("slice_guarantees")["figures"]["longest piece in the promised range"] == "2.000:1"


def test_the_grid_of_sizes():
    sizes = import_module("experiments.slice_guarantees").sizes
    view = 448 * 448
    tried = set(sizes((1, 2), (1, 6), 16))
    sides = range(16, 2048, 16)
    inside = {(w, h) for w, h in product(sides, sides) if view < w * h <= 2 * view and max(w, h) <= 6 * min(w, h)}
    assert tried == inside
    assert all(max(w, h) > 6 * min(w, h) for w, h in sizes((1, 2), (6, 20), 16))
    assert all(max(w, h) <= 20 * min(w, h) for w, h in sizes((1, 2), (6, 20), 16))


def test_markers():
    """Counted with the tokenizer of 2.6."""
    count = import_module("experiments.context_tokens").with_markers
    known = {(448, 448): 69, (640, 480): 201, (1000, 1000): 334, (1920, 1080): 598, (1344, 1344): 665, (4000, 400): 663}
    assert {size: count(size) for size in known} == known


def test_bending():
    bend = import_module("experiments.any_aspect").bend
    assert bend((200, 100), (1, 1)) == pytest.approx(2) == bend((100, 200), (448, 448))
    assert bend((200, 100), (50, 25)) == pytest.approx(1)
    assert bend((100, 100), (110, 100)) == pytest.approx(1.1) == bend((100, 100), (100, 110))


def test_padding():
    padding = import_module("experiments.padding")
    assert padding.padded([3, 1, 2, 5], 2) == 2 * 3 + 2 * 5
    assert padding.padded([3, 1, 2], 2) == 2 * 3 + 2
    alone, one, many = (padding.lengths_with_views(kind, 500, random.Random(0)) for kind in padding.VIEWS)
    assert min(alone) >= 8 and 30 < sorted(alone)[250] < 37
    assert [a + 66 for a in alone] == one or min(one) >= 74
    assert max(many) > max(one) and min(many) >= 74


def test_operations_of_the_prefill_are_those_of_its_matrices():
    """Two for each weight and token, and the products of attention on top."""
    from minicpmv_ref.deploy.memory import parameters

    row = next(row for row in result("prefill")["table"] if row[0] == "2.5, 10^9 operations" and row[1] == "9")
    vit, resampler, prefill = (1e9 * float(cell.replace(",", "")) for cell in row[2:5])
    tokens, llm = 10 * 96 + 32, v2_5.llm
    head = 2 * llm.vocab_size * llm.hidden_size  # the embedding multiplies nothing, the head reads one token
    attention = 4 * llm.num_hidden_layers * tokens**2 * llm.hidden_size
    expected = 2 * tokens * (parameters(v2_5)["llm"] - head) + head + attention
    assert prefill == pytest.approx(expected, rel=0.01)
    longest = max(r * c for r, c in plan_slices((9 * 448, 448)).patch_grids)  # 2.5 pads to it
    pictures = 2 * longest * 10 * 27 * 15_239_504 + 4 * 27 * 10 * longest**2 * 1152
    assert vit == pytest.approx(pictures, rel=0.01)
    assert resampler < vit < prefill


def test_share_of_the_prefill():
    share = import_module("experiments.prefill").first_token_share
    assert share([2, 1, 3, 9]) == 0.5 and share([2, 1, 3, 9], npu=2) == 0.6


def test_density_is_published():
    figures = result("token_density")["figures"]
    assert figures["pixels a token at 1344 x 1344, 64 queries"] == round(1344**2 / 640, 1) == 2822.4
    assert figures["the same with 96 queries"] == round(1344**2 / 960, 1) == 1881.6


def test_bytes_of_the_quantized_model():
    figures = result("q4k_size")["figures"]
    assert figures["language model of 2.5, Q4_K_M"] == "4.91 GB" and figures["before, all in F16"] == "17.08 GB"


def test_a_verdict_can_be_the_other_one(monkeypatch, tmp_path):
    """Feed each script figures that break its claim: no verdict is a constant."""

    def verdict(name):
        return _frame.run(name, "fast", again=True, runs=tmp_path)["verdict"]

    for name in set(UNTRAINED) - MEASURED:
        assert verdict(name) == result(name)["verdict"]
    module = import_module("experiments.slice_guarantees")
    monkeypatch.setitem(module.CASES, "released rule", ("code", 9, 1, 9, 1, 12, 1))
    assert verdict("slice_guarantees") == REFUTED
    monkeypatch.setitem(module.CASES, "released rule", ("paper", 9, 1, 9, 1, 6, 1))
    assert verdict("slice_guarantees") == REFUTED
    monkeypatch.setitem(import_module("experiments.token_density").PUBLISHED, 96, 1883)
    assert verdict("token_density") == REFUTED
    monkeypatch.setattr("experiments.context_tokens.peers.plan", lambda *_: SimpleNamespace(visual_tokens=576))
    assert verdict("context_tokens") == REFUTED
    monkeypatch.setattr("experiments.any_aspect.bend", lambda a, b: 1.2)
    assert verdict("any_aspect") == REFUTED
    monkeypatch.setattr("experiments.padding.BATCH", 64)
    assert verdict("padding") == CONFIRMED
    monkeypatch.setattr("experiments.prefill.NPU", 0.5)
    assert verdict("prefill") == NOT_CONFIRMED
    for in_turns, wanted in ((10_000_000, CONFIRMED), (17_000_000, NOT_CONFIRMED), (3_000_000, NOT_CONFIRMED)):
        together, turns = Peak(5, 17_000_005, [1]), Peak(5, in_turns + 5, [1])
        found = Loading(7_000_000, 10_000_000, together, turns)
        monkeypatch.setattr("experiments.loading.measure", lambda *_, found=found: found)
        assert verdict("loading") == wanted
    monkeypatch.setattr("experiments.loading.measure", lambda *_: found._replace(in_turns=Peak(5, 9, [2])))
    with pytest.raises(ValueError, match="nano: the answers differ"):
        verdict("loading")
    monkeypatch.setitem(import_module("experiments.q4k_size").PRESETS, "v2_5", nano)
    assert verdict("q4k_size") == REFUTED


# ---- the claims that need training


def made_up(name: str, arm_of, level_of) -> str:
    """The verdict of a script whose runs all gave made-up grades: good ones for the arms of a high level."""

    class Grades(dict):
        def __missing__(self, grade):
            if grade in ("steps", "views", "tokens"):
                return 32
            if grade == "jumps":
                return 1 - self["level"]
            return [(1 - self["level"] if grade.endswith("nats") else self["level"]) + 0.01 * i for i in range(20)]

    def each(items, measure):
        return [Grades(level=level_of(arm_of(item))) for item in items]

    module = import_module(f"experiments.{name}")
    return module.run(module.SETTINGS["cpu"], each).verdict


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("slicing", "slices"),
        ("stages", "all three"),
        ("frozen_llm", "frozen"),
        ("rewriting", "rewritten"),
        ("sft_order", "part 1, then part 2"),
        ("pooling", "learned queries"),
        ("multilingual", "light fine-tuning"),
        ("text_only", "30 % text"),
        ("group_frames", "one group"),
        ("clip_mixing", "mixed"),
        ("vit_frozen", "ViT learns"),
        ("interleaved", "interleaved"),
        ("single_first", "one picture, then two"),
        ("few_frames", "4 frames, 16 tokens"),
        ("connector_first", "connector first"),
        ("resolution", "112 px, 4 tokens"),
    ],
)
def test_the_better_arm_wins(name, better):
    arm_of = itemgetter(0)
    assert made_up(name, arm_of, lambda arm: 0.6 if arm == better else 0.4) == CONFIRMED
    assert made_up(name, arm_of, lambda arm: 0.4 if arm == better else 0.6) == REFUTED
    assert made_up(name, arm_of, lambda arm: 0.5) == NOT_CONFIRMED


def test_a_claim_of_three_in_order_needs_each_step():
    """And what a single arm may cost is bounded from above."""
    for name in ("connectors", "vision_centric"):
        for levels, wanted in (
            ({"sva": 0.7, "shuffle": 0.6}, CONFIRMED),
            ({"sva": 0.7, "shuffle": 0.5}, NOT_CONFIRMED),
            ({"sva": 0.4, "shuffle": 0.6}, REFUTED),
        ):
            assert made_up(name, itemgetter(0), lambda arm, levels=levels: levels.get(arm, 0.5)) == wanted
    for cost, wanted in ((0.05, CONFIRMED), (0.2, REFUTED)):
        levels = {"one position": 0.6 - cost}
        assert made_up("one_position", itemgetter(0), lambda arm, levels=levels: levels.get(arm, 0.6)) == wanted


def test_ratios_of_5_and_10_must_beat_both_ends():
    for levels, wanted in (
        ({5: 0.6, 10: 0.6}, CONFIRMED),
        ({5: 0.7, 10: 0.5}, CONFIRMED),  # their mean counts
        ({5: 0.6, 10: 0.6, 50: 0.6}, NOT_CONFIRMED),
        ({1: 0.6}, REFUTED),
    ):
        assert made_up("vit_rate", itemgetter(0), lambda arm, levels=levels: levels.get(arm, 0.4)) == wanted


def test_an_answer_machine_must_exist_and_be_prevented():
    module = import_module("experiments.answer_machine")
    for kept, wanted in (
        ({module.CHAT: 0.6, module.PROMPTED: 0.6}, CONFIRMED),
        ({module.CHAT: 0.6}, NOT_CONFIRMED),
        ({module.CHAT: 0.6, module.PROMPTED: 0.2}, REFUTED),
    ):
        assert made_up("answer_machine", itemgetter(0), lambda arm, kept=kept: kept.get(arm, 0.4)) == wanted
    taught = {arm: [module.training(arm, 0)(number) for number in range(5)] for arm in module.ARMS}
    said = {arm: [(s.messages[0]["content"][-1], s.answer) for s in samples] for arm, samples in taught.items()}
    assert [question.startswith(module.SHORTLY) for question, _ in said[module.PROMPTED]] == [True] * 5
    assert [answer.endswith(".") for _, answer in said[module.MIXED]] == [True, False, False, False, False]
    assert said[module.MIXED][0][0].startswith(module.AT_LENGTH) and said[module.MIXED][1:] == said[module.PLAIN][1:]
    sentences = ["The star is blue.", "There is a triangle at the top right.", "The purple star is at the bottom left."]
    samples = [_arms.draw(1, "question", topic=topic) for topic in module.SENTENCES]
    assert [module.in_a_sentence(sample) for sample in samples] == sentences


def test_more_tiles_must_help_on_every_larger_page():
    module = import_module("experiments.few_tiles")

    def verdict(**words):
        def each(items, measure):
            return [[words.get(f"c{g[0] * g[1]}_{most}", 0.3) + 0.01 * i for i in range(5)] for g, most, _ in items]

        return module.run({**module.SETTINGS["cpu"], "begin": "random"}, each).verdict

    assert verdict(c9_9=0.9, c12_12=0.4, c16_16=0.4, c25_25=0.4) == CONFIRMED
    assert verdict(c12_12=0.4, c16_16=0.4) == NOT_CONFIRMED and verdict(c25_25=0.2) == REFUTED


def test_rows_hold_the_pictures_and_words_of_their_samples():
    module = import_module("experiments.interleaved")
    arms = {arm: module.training(arm, 0) for arm in module.ARMS}
    pairs = [arms[module.PAIRS](number) for number in range(3)]
    row, front = arms[module.ROW](0), arms[module.FRONT](0)
    assert [m["content"] for m in row.messages[1::2]] == [sample.answer for sample in pairs]
    assert [m["content"][0].tobytes() for m in row.messages[::2]] == [sample.image.tobytes() for sample in pairs]
    assert [image.tobytes() for image in front.images] == [sample.image.tobytes() for sample in pairs]
    assert front.answer == " ".join(sample.answer for sample in pairs)


def test_an_event_of_two_frames_is_seen_by_all_frames_and_by_half_of_the_four():
    module, seen = import_module("experiments.few_frames"), []
    for seed in range(12):
        clips = {arm: module.clip(f"x{seed}", "event", shown) for arm, (shown, _) in module.ARMS.items()}
        (few, question), (all_frames, again) = (clips[arm].messages[0]["content"] for arm in module.ARMS)
        pixels = [frame.tobytes() for frame in all_frames]
        still = max(pixels, key=pixels.count)
        assert question == again and clips[module.MANY].answer == clips[module.WHOLE].answer
        assert sum(one != still for one in pixels) == 2 and [frame.tobytes() for frame in few] == pixels[2::4]
        seen.append(any(frame.tobytes() != still for frame in few))
    assert 2 <= sum(seen) <= 10
    model = module.with_queries("random", 4, "cpu")
    assert len(model.resampler.query) == 4 and model.config.resampler.num_queries == 4


def test_an_expert_must_leave_the_text_exactly_as_it_was():
    module = import_module("experiments.visual_expert")

    def verdict(sees: float, text: float) -> str:
        def each(items, measure):
            if items[0][0] == "text":
                return [[1.0, 2.0]]
            level, alone = (sees, [1.0, text]) if items[0][0] == module.EXPERT else (0.5, [1.5, 2.5])
            grades = {f"{kind}, {grade}": [1 - level] * 2 for kind in module.KINDS for grade in ("nats", "right")}
            return [grades | {"steps": 1, "views": 1, "tokens": 1, module.ALONE: alone}] * 3

        return module.run(module.SETTINGS["cpu"], each).verdict

    assert verdict(0.6, 2.0) == CONFIRMED and verdict(0.5, 2.0) == NOT_CONFIRMED
    assert verdict(0.6, 2.0 + 1e-7) == verdict(0.4, 2.0) == REFUTED


@pytest.mark.parametrize(
    ("right", "verdict"), [({}, CONFIRMED), ({8: 0.4}, NOT_CONFIRMED), ({8: 0.1}, REFUTED), ({12: 0.0}, CONFIRMED)]
)
def test_a_clip_must_beat_a_random_frame_at_every_length(right, verdict):
    module = import_module("experiments.zero_shot_clips")

    def each(items, measure):
        return [
            {"right": [right.get(frames, 0.8) + 0.01 * i for i in range(-5, 6)], "random frame": [0.4] * 11}
            for frames, _, _ in items
        ]

    assert module.run(module.SETTINGS["cpu"], each).verdict == verdict


def test_steadiness_alone_confirms_nothing():
    module = import_module("experiments.rewriting")
    assert module.jumps([1.0, 1.5, 1.0]) == pytest.approx(0.5 / (3.5 / 3))

    def verdict(nats, jumps):
        grades = {f"{kind}, {grade}": [0.5] * 3 for kind in module.KINDS for grade in ("nats", "right")}
        grades |= {"steps": 1, "views": 1, "tokens": 1, "jumps": 0.2}
        noisy = grades | {"question, nats": [nats] * 3, "jumps": jumps}
        return module.run(
            module.SETTINGS["cpu"], lambda items, measure: [grades if items[0][0] == "rewritten" else noisy]
        ).verdict

    assert verdict(nats=0.9, jumps=0.4) == CONFIRMED
    assert verdict(nats=0.5, jumps=0.4) == verdict(nats=0.9, jumps=0.2) == NOT_CONFIRMED
    assert verdict(nats=0.9, jumps=0.1) == REFUTED


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("slicing", ("one view, as many steps", "one view, as many views")),
        ("stages", ("without stage-1", "without stage-2", "without stage-3")),
        ("multilingual", ("none", "the same without French", "an LLM without French")),
    ],
)
def test_every_control_counts(name, arms):
    for good in arms:
        assert made_up(name, itemgetter(0), lambda arm, good=good: 0.4 if arm in arms and arm != good else 0.6) == (
            NOT_CONFIRMED
        )


def trainings(name: str, monkeypatch) -> dict:
    """For each arm of a script: [(stage, model, processor, everything else that `learn` was given), ...]."""
    module, calls = import_module(f"experiments.{name}"), []

    def learn(model, processor, stage, seed, languages=None, **changes):
        calls.append((stage, model, processor, {**changes, "languages": languages}))
        return {"steps": 2, "views": 6, "tokens": 9, "losses": [1.0, 2.0, 1.0, 2.0]}

    def grades(*args, **options):
        return {f"{kind}, {grade}": [0.5] * 3 for kind in args[2] for grade in ("nats", "right")}

    def each(items, measure):
        results = []
        for item in items:
            before = len(calls)
            results.append(measure(item))
            found[item[0]] = calls[before:]
        return results

    found = {}
    monkeypatch.setattr(module, "learn", learn)
    monkeypatch.setattr(module, "grades", grades)
    module.run(module.SETTINGS["fast"], each)
    return found


def test_arms_differ_in_what_they_say(monkeypatch):
    """And in nothing else: steps, batches, stages and rates are those of the other arms."""
    arms = trainings("slicing", monkeypatch)
    most = {name: runs[0][2].config.slicing.max_slice_nums for name, runs in arms.items()}
    assert list(most.values()) == [9, 1, 1]
    steps = [runs[0][3]["steps"] for runs in arms.values()]
    assert steps == [2, 2, 3]  # six views in batches of two

    (frozen, words), (unfrozen, more_words) = trainings("frozen_llm", monkeypatch).values()
    rates = [set(arm[3].pop("learning_rates")) for arm in (frozen, unfrozen)]
    assert rates == [{"vpm", "resampler"}, {"vpm", "resampler", "llm"}]
    assert frozen[3] == unfrozen[3] and frozen[3]["data_mix"] == {"noisy": 1}
    assert words[3] == more_words[3] and words[0] == "sft-1"

    clean, noisy = trainings("rewriting", monkeypatch).values()
    assert [run[3]["data_mix"] for run in clean[:2]] == [{"caption": 1}] * 2
    assert [run[3]["data_mix"] for run in noisy[:2]] == [{"noisy": 1}] * 2
    assert clean[2][3] == noisy[2][3] and [run[0] for run in clean] == ["stage-1", "stage-2", "sft-1"]

    arms = {name: [run[0] for run in runs] for name, runs in trainings("stages", monkeypatch).items()}
    assert arms["without stage-2"] == ["stage-1", "stage-3", "sft-1"] and len(arms["all three"]) == 4

    order, shuffled = trainings("sft_order", monkeypatch).values()
    assert [run[0] for run in order] == [run[0] for run in shuffled] == ["sft-1", "sft-2"]
    assert order[0][3]["data_mix"] != order[1][3]["data_mix"] and shuffled[0][3] == shuffled[1][3]

    (queries,), (averages,) = trainings("pooling", monkeypatch).values()
    assert [type(run[1].resampler).__name__ for run in (queries, averages)] == ["Resampler", "Averages"]
    weights = [run[1].resampler.state_dict() for run in (queries, averages)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert queries[0] == averages[0] == "stage-1" and queries[3] == averages[3] and not queries[3]["half"]

    arms = trainings("queries", monkeypatch)
    assert [runs[0][2].config.resampler.num_queries for runs in arms.values()] == [4, 16, 64]
    assert [len(runs[0][1].resampler.query) for runs in arms.values()] == [4, 16, 64]

    arms = {
        name: [run[3]["languages"] for run in runs] for name, runs in trainings("multilingual", monkeypatch).items()
    }
    two, three = {"en": 1, "zh": 1}, {"en": 1, "zh": 1, "fr": 1}
    assert arms["light fine-tuning"][:3] == [three, two, two] and arms["none"] == []  # read once for all arms
    assert arms["light fine-tuning"][3] == pytest.approx({"en": 0.485, "zh": 0.485, "fr": 0.03})
    assert arms["the same without French"] == [two]
    assert arms["an LLM without French"] == [two, two, two, arms["light fine-tuning"][3]]


def test_a_group_knows_the_order_of_its_frames_only_by_their_times():
    module = import_module("experiments.group_frames")
    model = module.with_groups("random", "cpu")
    clip = module.draw_clip("x", "time")
    back = clip._replace(frames=clip.frames[::-1])
    changes = {}
    for arm in module.GROUPS:
        clips = module.Clips(model, _arms.processor_of(model), arm)
        one, other = clips.visual([clip]), clips.visual([back])
        changes[arm] = float((one - other).detach().abs().max())
        assert clips.batch([clip]).image_bounds[0].shape == (len(one), 2)
    assert len(module.GROUPS[module.APART][1]) == 6
    assert changes[module.TIMELESS] < 1e-5 < 1e-3 < changes[module.GROUP]
    kinds = [module.draw_clip(f"x{n}", kind) for kind in module.KINDS for n in range(30)]
    assert all(clip.answer in clip.question for clip in kinds[:30])
    assert not {clip.question for clip in kinds[:30]} & {clip.question for clip in kinds[30:]}


def test_the_verdict_on_an_early_merger_forgives_a_tenth():
    def verdict(early):
        return made_up("early_merge", itemgetter(0), lambda arm: early if arm.startswith("after layer 1") else 0.5)

    assert [verdict(level) for level in (0.6, 0.45, 0.35)] == [CONFIRMED, CONFIRMED, REFUTED]


@pytest.mark.parametrize("after", [1, 4])
def test_operations_of_a_merger_in_the_vit_are_counted_by_torch(after):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = import_module("experiments.early_merge")
    with torch.device("meta"):
        connector, image = module.MergeAndMLP(), torch.empty(3, 112, 112)
        vit = module.MergingViT(nano.vision).merge(after, connector.merger)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = vit([image])
    with torch.no_grad(), FlopCounterMode(display=False) as last:
        assert connector(features, [(8, 8)]).shape == (1, 16, 256)
    counts = module.operations(after)
    assert counts["ViT"] == counter.get_total_flops()
    assert last.get_total_flops() < counts["after"]


def test_every_step_up_must_be_better():
    levels = {4: 0.2, 16: 0.5, 64: 0.6}
    assert made_up("queries", itemgetter(0), levels.get) == CONFIRMED
    assert made_up("queries", itemgetter(0), {**levels, 64: 0.5}.get) == NOT_CONFIRMED
    assert made_up("queries", itemgetter(0), {**levels, 64: 0.4}.get) == REFUTED
    levels = {"no stage": 0.2, "stage 1": 0.4, "stages 1 and 2": 0.5, "all three": 0.6}
    assert made_up("stage_ladder", itemgetter(0), levels.get) == CONFIRMED
    assert made_up("stage_ladder", itemgetter(0), {**levels, "stage 1": 0.2}.get) == NOT_CONFIRMED
    assert made_up("stage_ladder", itemgetter(0), {**levels, "all three": 0.4}.get) == REFUTED
    levels = {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.3, 6: 0.3, 9: 0.6}
    assert made_up("cost_curve", int, levels.get) == CONFIRMED
    assert made_up("cost_curve", int, {**levels, 4: 0.6}.get) == NOT_CONFIRMED
    assert made_up("cost_curve", int, {**levels, 1: 0.4}.get) == REFUTED


def test_the_verdict_on_text_size_is_about_small_text_only():
    size = import_module("experiments.text_size")

    def verdict(small, large):
        def each(items, measure):
            gains = [small if cols * rows >= 6 else large for (cols, rows), _ in items]
            return [{"with slices": [0.5 + gain] * 9, "one view": [0.5] * 9} for gain in gains]

        setting = {**size.SETTINGS["cpu"], "begin": "random"}
        return size.run(setting, each).verdict

    assert verdict(0.1, -0.1) == CONFIRMED and verdict(-0.1, 0.1) == REFUTED and verdict(0, 0.1) == NOT_CONFIRMED


def test_the_verdict_on_positions():
    module = import_module("experiments.position_schemes")
    setting = {**module.SETTINGS["fast"], "begin": "random"}

    def verdict(gain, at_home=0.0):
        def each(items, measure):
            better = [scheme == module.AS_2_0 for scheme, _ in items]
            home = [shape == (8, 8) for _, shape in items]
            return [{"nats": [1 - b * (at_home if h else gain)] * 9, "right": [0.5] * 9} for b, h in zip(better, home)]

        return module.run(setting, each).verdict

    assert (verdict(0.1), verdict(-0.1), verdict(0.0)) == (CONFIRMED, REFUTED, NOT_CONFIRMED)
    with pytest.raises(AssertionError, match="at 8 x 8"):
        verdict(0.1, at_home=0.1)


def test_the_verdict_on_packing():
    module = import_module("experiments.packing")
    setting = {**module.SETTINGS["cpu"], "seeds": 1}

    def verdict(seconds):
        times = {module.PADDED: 1.0, module.SORTED: 0.8, module.ALL_LOGITS: 0.7, module.PACKED: seconds}
        found = {way: [100, [time] * 5] for way, time in times.items()}
        return module.run(setting, lambda items, measure: [{"useful": 50, "ways": found}]).verdict

    assert (verdict(0.4), verdict(0.6), verdict(1.1)) == (CONFIRMED, NOT_CONFIRMED, REFUTED)


# ---- what the experiments that train have in common


def test_gains_are_better_minus_worse_whatever_the_grade():
    arms = {"a": [{"x, nats": [1, 2], "x, right": [0.5]}], "b": [{"x, nats": [4, 3], "x, right": [0.25]}]}
    assert _arms.gains(arms, "a", "b", "x, nats", "x, right") == [[3, 1, 0.25]]
    assert _arms.gains(arms, "b", "a", "x, nats") == [[-3, -1]]


def test_a_verdict_needs_every_seed():
    up, down, flat = [1.0, 1.2, 0.9], [-1.0, -1.2, -0.9], [-3.0, 3.0, 0.1]
    assert _arms.verdict([up, up]) == CONFIRMED and _arms.verdict([down, down]) == REFUTED
    assert _arms.verdict([up, [-0.1, -0.1, -0.1]]) == NOT_CONFIRMED  # the mean is far above 0, one seed is not
    assert _arms.verdict([down, [0.1, 0.1, 0.1]]) == NOT_CONFIRMED
    assert _arms.verdict([flat]) == _arms.verdict([[0.0] * 5]) == NOT_CONFIRMED
    assert _arms.weakest(CONFIRMED, NOT_CONFIRMED) == NOT_CONFIRMED
    assert _arms.weakest(CONFIRMED, NOT_CONFIRMED, REFUTED) == REFUTED
    assert _arms.weakest(CONFIRMED, CONFIRMED) == CONFIRMED


def test_items_are_averaged_over_the_seeds_first():
    """Items of the same number are the same item: what differs between items is no noise between seeds."""
    mean, ends = _arms.mean_over_items([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    assert mean == 0 and ends == [0, 0]


@pytest.fixture(scope="module")
def random_model():
    return _arms.checkpoint("random")


def test_grades_of_items_are_those_of_the_model(random_model):
    processor = _arms.processor_of(random_model)
    samples = _arms.held_out("crop", 3)
    assert all(sample.held_out for sample in samples) and len({sample.key for sample in samples}) == 3
    losses = _arms.nats(random_model, processor, samples)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        alone = [random_model(processor([sample.messages])).loss.item() for sample in samples]
    assert losses == pytest.approx(alone, rel=1e-4)
    spelled = _arms.nats(random_model, processor, samples, "spelled")
    assert spelled != pytest.approx(losses, rel=1e-3)
    random_model.vpm.requires_grad_(False)
    with torch.no_grad():  # a blind ViT changes nothing where pictures are spelled
        table = random_model.vpm.embeddings.position_embedding.weight
        kept = table.clone()
        table.zero_()
        assert _arms.nats(random_model, processor, samples, "spelled") == spelled
        assert _arms.nats(random_model, processor, samples) != losses
        table.copy_(kept)


def test_shares_of_words_are_those_of_each_item(random_model, monkeypatch):
    samples = _arms.held_out("read", 2)
    said = [samples[0].answer, "nothing"]
    monkeypatch.setattr(_arms, "answers", lambda *args, **options: said)
    assert _arms.right(random_model, None, samples) == [1.0, 0.0]
    monkeypatch.setattr(_arms, "nats", lambda *args: [1.0, 2.0])
    found = _arms.grades(random_model, None, ["read"], 2)
    assert found == {"read, nats": [1.0, 2.0], "read, right": [1.0, 0.0]}


def test_one_view_for_training_too(random_model):
    sample = _arms.held_out("read", 1)[0]
    batches = [_arms.processor_of(random_model, most)([sample.messages]) for most in (9, 1)]
    assert len(batches[0].images[0]) > 1 and len(batches[1].images[0]) == 1


def test_a_short_training_changes_what_it_is_told(random_model, monkeypatch):
    seen = []

    def train(model, processor, stage, seed, samples=None):
        seen.append((stage, seed, samples))
        return iter([SimpleNamespace(views=3, tokens=40, loss=2.0), SimpleNamespace(views=1, tokens=2, loss=1.0)])

    monkeypatch.setattr(_arms, "train_steps", train)
    processor = _arms.processor_of(random_model)
    cost = _arms.learn(random_model, processor, "stage-3", 5, steps=2, data_mix={"noisy": 1})
    assert cost == {"steps": 2, "views": 4, "tokens": 42, "losses": [2.0, 1.0]}
    (stage, seed, samples) = seen[0]
    assert (stage.name, stage.steps, stage.data_mix, seed, samples) == ("stage-3", 2, {"noisy": 1}, 5, None)
    _arms.learn(random_model, processor, "sft-1", 5, {"fr": 1}, turns=1, data_mix={"question": 1})
    samples = [seen[1][2](number) for number in range(5)]
    assert {sample.language for sample in samples} == {"fr"} and not any(sample.held_out for sample in samples)


def test_steps_of_a_stage_left_out_go_to_the_others():
    schedule = import_module("experiments.stages").schedule
    assert schedule([40, 80, 30], None) == {"stage-1": 40, "stage-2": 80, "stage-3": 30}
    assert schedule([40, 80, 30], "stage-2") == {"stage-1": 86, "stage-3": 64}
    for out in ("stage-1", "stage-2", "stage-3"):
        assert sum(schedule([40, 80, 30], out).values()) == 150


def test_shuffled_parts_show_each_kind_as_often():
    from minicpmv_ref.learn.stages import stage_named

    shuffled = import_module("experiments.sft_order").shuffled([110, 60])
    assert sum(shuffled.values()) == pytest.approx(170)
    one, two = (stage_named(part).data_mix for part in ("sft-1", "sft-2"))
    expected = 110 * one["read"] / sum(one.values()) + 60 * two["read"] / sum(two.values())
    assert shuffled["read"] == pytest.approx(expected) and set(shuffled) == set(one) | set(two)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 3), (4, 4)])
def test_letters_of_a_page(grid):
    pages = import_module("experiments._pages")
    image, text = pages.page(0, grid)
    assert image.size == (grid[0] * 112, grid[1] * 112)
    assert text.count(",") == min(3, grid[0] * grid[1]) - 1
    assert pages.page(0, grid)[1] == text != pages.page(1, grid)[1]
    cells = grid[0] * grid[1]
    boxes = [(c * 112, r * 112, c * 112 + 112, r * 112 + 112) for c in range(grid[0]) for r in range(grid[1])]
    assert sum(image.crop(box).convert("L").getextrema()[0] < 100 for box in boxes) == min(3, cells)
    assert pages.letters(grid, cells) == pytest.approx(11.7, abs=0.1)
    assert pages.letters(grid, 1) == pytest.approx(pages.letters(grid, cells) / cells**0.5)


def test_averages_equal_attention_where_there_is_nothing_to_choose():
    """All patches alike: whatever the queries look at, they read the same."""
    torch, module = pytest.importorskip("torch"), import_module("experiments.pooling")
    resampler = MiniCPMV.seeded(nano).resampler
    averages = module.Averages(nano.resampler)
    averages.load_state_dict(resampler.state_dict())
    same = [torch.randn(1, 128).expand(rows * cols, 128) for rows, cols in ((8, 8), (4, 4), (5, 12))]
    grids = [(8, 8), (4, 4), (5, 12)]
    assert torch.allclose(averages(same, grids), resampler(same, grids), atol=1e-5)
    features = torch.randn(64, 128)
    moved = features.clone()
    moved[[0, 9]] = moved[[9, 0]]  # inside the first part of 2 x 2 patches
    far = features.clone()
    far[[0, 2]] = far[[2, 0]]  # from the first part to the second
    one, two, three = averages([features, moved, far], [(8, 8)] * 3)
    assert torch.allclose(one, two, atol=1e-6) and torch.allclose(one[2:], three[2:], atol=1e-6)
    assert not torch.allclose(one[:2], three[:2], atol=1e-3)


def test_the_three_position_schemes(random_model):
    torch, module = pytest.importorskip("torch"), import_module("experiments.position_schemes")
    models = module.schemes(random_model)
    table = models[module.AS_2_0].vpm.embeddings
    assert torch.equal(table.positions([(8, 8)]), random_model.vpm.embeddings.positions([(8, 8)]))
    assert torch.equal(models[module.FEW].vpm.embeddings.positions([(8, 8)]), table.positions([(8, 8)]))
    wide = [model.vpm.embeddings.positions([(4, 16)]) for model in models.values()]
    assert not any(torch.allclose(wide[a], wide[b], atol=1e-4) for a, b in ((0, 1), (0, 2), (1, 2)))
    # The buckets of a table of 8: two columns share an entry, and every second row is left out.
    assert torch.equal(wide[1].unflatten(0, (4, 16))[1, 6], table.position_embedding.weight[2 * 8 + 3])
    sample = module.numbers(0, 4, 16)
    assert sample.held_out and sample.image.size == (224, 56) and sample.answer == module.numbers(0, 16, 4).answer


def test_ways_that_differ_are_not_timed(random_model):
    module = import_module("experiments.packing")
    samples = module.draw_samples(4, 3)
    assert len({sample.kind for sample in samples}) > 1
    calls = module.ways(random_model, _arms.processor_of(random_model), samples, "cpu")
    random_model.requires_grad_(True)
    module.assert_equal(random_model, calls)
    batches, loss_of = calls[module.PACKED]
    with pytest.raises(AssertionError, match="packed: loss"):
        module.assert_equal(random_model, {**calls, module.PACKED: (batches, lambda row: 1.01 * loss_of(row))})
    with pytest.raises(AssertionError, match="packed: gradient"):
        half = loss_of(batches[0]).item() / 2

        def other(row):
            return 0.5 * loss_of(row) + half

        module.assert_equal(random_model, {module.PADDED: (batches, loss_of), module.PACKED: (batches, other)})
