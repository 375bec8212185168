"""The experiments: each runs, the page says what their JSON files say, and a run that was stopped goes on."""

import json
import math
import random
import re
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest

from experiments import frame
from experiments.frame import CONFIRMED, NOT_CONFIRMED, REFUTED, Each, Finding
from minicpmv_ref import __main__ as commands
from minicpmv_ref import nano, plan_slices, v2_5

ROOT = Path(__file__).resolve().parent.parent


def result(name: str) -> dict:
    return json.loads((frame.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# ---- the page


def test_the_page_is_up_to_date():
    assert frame.PAGE.read_text(encoding="utf-8") == frame.page()


@pytest.mark.parametrize("name", frame.NAMES)
def test_the_figures_are_those_of_the_scripts_settings(name):
    kept = result(name)
    assert kept["profile"] in ("cpu", "gpu")
    assert kept["setting"] == frame.as_json(import_module(f"experiments.{name}").SETTINGS[kept["profile"]])
    assert kept["verdict"] in frame.VERDICTS and kept["machine"] and kept["seconds"] >= 0
    assert all(low <= kept["figures"][figure] <= high for figure, (low, high) in kept["intervals"].items())
    assert len({len(row) for row in kept["table"]}) == 1


def test_every_script_is_named_and_every_result_has_a_script():
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"frame", "sizes"}
    assert scripts == set(frame.NAMES) == {path.stem for path in frame.RESULTS.glob("*.json")}


def test_links_of_the_page_resolve():
    targets = re.findall(r"\]\(([^)#\s]+)\)", frame.PAGE.read_text(encoding="utf-8"))
    assert len(targets) > 14 and all((frame.PAGE.parent / target).exists() for target in targets)


def test_a_changed_figure_or_verdict_changes_the_page(tmp_path):
    for name in frame.NAMES:
        (tmp_path / f"{name}.json").write_text(json.dumps(result(name)))
    assert frame.page(tmp_path) == frame.page()
    for key, value in (("verdict", REFUTED), ("found", "?"), ("figures", {"a": 1}), ("seconds", -1), ("machine", "?")):
        changed = {**result("padding"), "intervals": {}, key: value}
        (tmp_path / "padding.json").write_text(json.dumps(changed))
        assert frame.page(tmp_path) != frame.page(), key
    (tmp_path / "padding.json").unlink()
    assert "not run yet" in frame.page(tmp_path)


# ---- the frame


@pytest.mark.parametrize("name", frame.NAMES)
def test_the_fast_version_runs(name, tmp_path):
    before = (frame.RESULTS / f"{name}.json").read_bytes()
    found = frame.run(name, "fast", runs=tmp_path, results=tmp_path / "real")
    assert json.loads((tmp_path / "fast" / f"{name}.json").read_text(encoding="utf-8")) == found
    assert not (tmp_path / "real").exists() and (frame.RESULTS / f"{name}.json").read_bytes() == before
    assert frame.section("title", import_module(f"experiments.{name}").CLAIM, found)
    if name != "prefill":  # the only one that measures time
        again = frame.run(name, "fast", again=True, runs=tmp_path)
        assert {**again, "seconds": 0, "machine": ""} == {**found, "seconds": 0, "machine": ""}


def test_a_real_profile_writes_its_result(tmp_path):
    found = frame.run("q4k_size", "cpu", runs=tmp_path / "runs", results=tmp_path / "real")
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


@pytest.mark.parametrize("n", range(2, 80))
def test_the_interval_of_the_median_covers_it(n):
    """Exactly, by the binomial distribution, and no narrower one would."""
    low, high = frame.median_interval(range(1, n + 1))
    assert low + high == n + 1

    def covered(k):
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    assert covered(low) >= 0.95 or low == 1
    assert covered(low + 1) < 0.95


def test_the_interval_covers_in_a_simulation():
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = frame.median_interval([rng.expovariate(1) for _ in range(12)])
        hits += low <= math.log(2) <= high
    assert hits / 2000 > 0.94


def test_median():
    assert frame.median([3, 1, 2]) == 2 and frame.median([4, 1, 2, 3]) == 2.5


@pytest.mark.parametrize(("name", "profile"), [("nothing", "fast"), ("padding", "quick")])
def test_unknown_names(name, profile):
    with pytest.raises(ValueError, match=f"{name!r}, {profile!r}"):
        frame.run(name, profile)


def test_a_finding_is_checked():
    with pytest.raises(ValueError, match="verdict"):
        Finding("maybe", "", {"a": 1})
    with pytest.raises(ValueError, match="intervals"):
        Finding(CONFIRMED, "", {"a": 1}, {"b": [0, 1]})


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frame, "RUNS", tmp_path)
    monkeypatch.setattr(frame, "NAMES", ["q4k_size"])
    kept = frame.run
    monkeypatch.setattr(frame, "run", lambda name, profile, again: kept(name, profile, again, tmp_path, tmp_path))
    monkeypatch.setattr(frame, "PAGE", tmp_path / "claims.md")
    assert commands.main(["experiment", "all"]) == 0
    assert "q4k_size: confirmed here" in capsys.readouterr().out and not frame.PAGE.exists()
    assert commands.main(["experiment", "q4k_size", "--profile", "cpu"]) == 0
    assert frame.PAGE.read_text(encoding="utf-8") == frame.page()
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


# Tiles and tokens that the models' own code gives.
PEERS = {
    (224, 224): (1176, 256),
    (448, 448): (2928, 256),
    (640, 480): (2340, 3328),
    (480, 640): (2352, 3328),
    (512, 512): (2928, 256),
    (672, 672): (2928, 1280),
    (800, 1300): (2064, 1792),
    (1280, 720): (1948, 2304),
    (1344, 1344): (2928, 2560),
    (1920, 1080): (1948, 2304),
    (1080, 1920): (1968, 2304),
    (1000, 200): (1598, 1536),
    (200, 1000): (1656, 1536),
    (3000, 4000): (2352, 3328),
    (5000, 500): (1160, 2816),
}


@pytest.mark.parametrize("size", PEERS)
def test_tokens_of_the_other_models(size):
    tokens = import_module("experiments.context_tokens")
    assert (tokens.llava_next(size), tokens.internvl(size)) == PEERS[size]


def test_tokens_of_the_other_models_against_transformers():
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    torch, tokens = pytest.importorskip("torch"), import_module("experiments.context_tokens")
    canvases = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]  # (height, width), their order
    rng = random.Random(1)
    for _ in range(200):
        width, height = rng.randint(340, 3000), rng.randint(340, 3000)  # smaller ones tie, and the two codes differ
        rows, cols = (side // 14 for side in select_best_resolution((height, width), canvases))
        _, h, w = unpad_image(torch.empty(1, rows, cols), (height, width)).shape
        assert tokens.llava_next((width, height)) == 576 + h * (w + 1), (width, height)
        cols, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        assert tokens.internvl((width, height)) == 256 * (cols * rows + (cols * rows > 1)), (width, height)


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
    alone, one, many = (padding.draw_lengths(kind, 500, random.Random(0)) for kind in padding.VIEWS)
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
        return frame.run(name, "fast", again=True, runs=tmp_path)["verdict"]

    for name in set(frame.NAMES) - {"prefill"}:  # that one depends on the machine
        assert verdict(name) == result(name)["verdict"]
    module = import_module("experiments.slice_guarantees")
    monkeypatch.setitem(module.CASES, "released rule", ("code", 9, 1, 9, 1, 12, 1))
    assert verdict("slice_guarantees") == REFUTED
    monkeypatch.setitem(module.CASES, "released rule", ("paper", 9, 1, 9, 1, 6, 1))
    assert verdict("slice_guarantees") == REFUTED
    monkeypatch.setitem(import_module("experiments.token_density").PUBLISHED, 96, 1883)
    assert verdict("token_density") == REFUTED
    monkeypatch.setattr("experiments.context_tokens.llava_next", lambda size: 576)
    assert verdict("context_tokens") == REFUTED
    monkeypatch.setattr("experiments.any_aspect.bend", lambda a, b: 1.2)
    assert verdict("any_aspect") == REFUTED
    monkeypatch.setattr("experiments.padding.BATCH", 64)
    assert verdict("padding") == CONFIRMED
    monkeypatch.setattr("experiments.prefill.NPU", 0.5)
    assert verdict("prefill") == NOT_CONFIRMED
    monkeypatch.setitem(import_module("experiments.q4k_size").PRESETS, "v2_5", nano)
    assert verdict("q4k_size") == REFUTED
