"""Scale on paper: the formula against PyTorch's counter, bytes against real tensors, laws, and the page."""

import json
import re
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import scaling
import scaling_costs as costs
import torch
from scaling_costs import EVERYTHING, MODELS, PATTERNS, SHARDINGS, STAGES, flops, patches_of, prediction, states
from tiny import VERSIONS, tiny_config

from minicpmv_ref import MiniCPMV, nano, plan_slices, v2_0, v2_6
from minicpmv_ref.deploy.memory import estimate, parameters

pytestmark = pytest.mark.usefixtures("one_thread")
KEPT = json.loads(scaling.DATA.read_text(encoding="utf-8"))
CONFIGS = {"nano": nano, **MODELS}


def total(*args) -> int:
    return sum(flops(*args).values())


# ---- the formula


@pytest.mark.parametrize("trains", PATTERNS, ids=" + ".join)
@pytest.mark.parametrize(("slices", "batch"), [(0, 1), (4, 1), (2, 3)])
def test_the_formula_is_what_pytorch_counts(trains, slices, batch):
    """Every product, to the last operation."""
    assert total(nano, patches_of(nano, slices), 48, trains, batch) == costs.counted(nano, slices, 48, trains, batch)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("trains", [(), ("resampler",), ("vpm", "llm"), EVERYTHING], ids=" + ".join)
def test_and_in_every_family(version, trains):
    config = tiny_config(version)
    assert total(config, patches_of(config, 2), 20, trains, 2) == costs.counted(config, 2, 20, trains, 2)


def test_and_by_part():
    """Take the text away, then the pictures: what is left belongs to the others."""
    parts = flops(nano, patches_of(nano, 4), 48)
    text = flops(nano, [], 48 + 5 * nano.resampler.num_queries)
    assert text == {"vpm": 0, "resampler": 0, "llm": parts["llm"]}  # without pictures, nobody asks the resampler
    alone = MiniCPMV.seeded(nano).vpm
    from torch.utils.flop_counter import FlopCounterMode

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for rows, cols in costs.plan_of(nano, 4).patch_grids:
            alone([torch.zeros(3, 14 * rows, 14 * cols, requires_grad=False)])
    assert parts["vpm"] == counter.get_total_flops()


def test_the_count_on_the_page_is_the_formulas():
    assert {case["model"] for case in KEPT["counted"]} == set(CONFIGS)
    assert [case["trains"] for case in KEPT["counted"]][: len(PATTERNS)] == [list(trains) for trains in PATTERNS]
    for case in KEPT["counted"]:
        config = CONFIGS[case["model"]]
        assert total(config, patches_of(config, 4), KEPT["text"], case["trains"]) == case["operations"]


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_about_two_for_each_parameter_and_token(version):
    """The rule of thumb, 2 P T forward and 6 P T with backward, for texts too short for attention to count."""
    config = MODELS[version]
    counts, table = parameters(config), config.llm.vocab_size * config.llm.hidden_size
    assert flops(config, [], 100)["llm"] == pytest.approx(2 * (counts["llm"] - table) * 100, rel=0.01)
    assert flops(config, [], 100, ("llm",))["llm"] == pytest.approx(6 * (counts["llm"] - table) * 100, rel=0.01)


# ---- stages, hours


def test_the_stages_are_those_of_the_paper():
    assert [(name, stage.trains) for name, stage in STAGES.items()] == [
        ("pre-1", ("resampler",)),
        ("pre-2", ("vpm",)),
        ("pre-3", ("vpm", "resampler")),
        ("SFT", EVERYTHING),
        ("DPO", EVERYTHING),
    ]
    assert [stage.samples for stage in STAGES.values()] == [200e6, 200e6, 50e6, pytest.approx(8.32e6), 6e3]
    views = [len(stage.patches) for stage in STAGES.values()]
    assert views == [1, 1, 9, 7, 7]
    for stage, patches in zip(STAGES.values(), (256, 1024, 1024, 1024, 1024)):
        assert all(abs(p / patches - 1) < 0.04 for p in stage.patches)


def test_hours_follow_from_operations():
    assert costs.card_seconds(costs.PEAK * costs.MFU) == 1
    assert costs.card_seconds(1e18, mfu=0.2) == pytest.approx(2 * costs.card_seconds(1e18, mfu=0.4))
    sft, dpo = STAGES["SFT"], STAGES["DPO"]
    assert costs.stage_flops("2.6", sft) == total(v2_6, sft.patches, sft.text, EVERYTHING)
    both = total(v2_6, dpo.patches, dpo.text, EVERYTHING) + total(v2_6, dpo.patches, dpo.text)
    assert costs.stage_flops("2.6", dpo) == 2 * both  # two answers, a copy that learns and one that is frozen


# ---- memory


@pytest.mark.parametrize("version", ["2.0", "2.6"])  # 2.0 has a table that never learns
def test_states_are_those_of_real_tensors(version):
    model = MiniCPMV.seeded(tiny_config(version)).to(torch.bfloat16)
    for trains in PATTERNS:
        learning = [p for part in trains for p in getattr(model, part).parameters() if p.requires_grad]
        held = states(model.config, trains)
        assert held["weights"] == sum(p.nbytes for p in model.parameters())
        assert held["gradients"] == sum(p.nbytes for p in learning)
        copies = [p.detach().float().requires_grad_() for p in learning]
        for copy in copies:
            copy.grad = torch.zeros_like(copy)
        moments = []
        if copies:
            optimizer = torch.optim.AdamW(copies)
            optimizer.step()
            moments = [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert held["optimizer"] == sum(t.nbytes for t in [*copies, *moments])


def test_each_way_of_sharding_shards_one_thing_more():
    held = {"weights": 10, "gradients": 100, "optimizer": 1000}
    assert [costs.per_card(held, way, 10) for way in SHARDINGS.values()] == [1110, 210, 120, 111]
    assert [costs.per_card(held, way, 1) for way in SHARDINGS.values()] == [1110] * 4


def test_least_sharding(monkeypatch):
    sft, held = STAGES["SFT"], states(v2_6, EVERYTHING)
    for way, sharded in SHARDINGS.items():
        need = costs.per_card(held, sharded, 8) + costs.activations(v2_6, sft)
        monkeypatch.setattr(costs, "CARD", (need + 1) / (1 - costs.RESERVE))
        assert costs.least_sharding(v2_6, sft, 8) == way
        monkeypatch.setattr(costs, "CARD", (need - 1) / (1 - costs.RESERVE))
        assert costs.least_sharding(v2_6, sft, 8) != way
    assert costs.least_sharding(v2_6, sft, 8) == "does not fit"


def test_activations_are_those_of_the_estimate():
    sft, first = STAGES["SFT"], STAGES["pre-1"]
    load = dict(batch=2, slices=6, tokens=7 * 64 + 256)
    need = estimate(v2_6, training=True, checkpointing=True, **load)
    assert costs.activations(v2_6, sft, 2) == need.vision + need.activations
    # A ViT that learns nothing keeps nothing, and at half the resolution it has a quarter of the patches.
    load = dict(slices=0, tokens=64 + 64)
    frozen = estimate(v2_6, **load).vision / 4
    need = estimate(v2_6, training=True, checkpointing=True, **load)
    assert costs.activations(v2_6, first) == frozen + need.activations and frozen < need.vision / 20


# ---- laws


def test_a_law_is_found_again():
    operations = [1e9, 4e9, 16e9, 64e9]
    law = prediction(operations, [0.03 + n / 75e9 for n in operations])
    assert law["fixed"] == pytest.approx(0.03) and law["rate"] == pytest.approx(75e9)
    assert law["error"] == pytest.approx(0, abs=1e-9)


def test_the_last_point_is_predicted_not_fitted():
    operations = [1e9, 4e9, 16e9, 64e9]
    seconds = [0.03 + n / 75e9 for n in operations]
    law = prediction(operations, [*seconds[:-1], 2 * seconds[-1]])
    assert law["error"] == pytest.approx(-0.5) and law["law"] == pytest.approx(seconds)


def test_the_fit_is_numpys():
    n, s = np.array([1.0, 3.0, 11.0, 40.0]), np.array([1.2, 3.3, 9.0, 41.0])
    expected = np.linalg.lstsq(np.stack([1 / s, n / s], axis=1), np.ones(4), rcond=None)[0]
    fixed, rate = costs.fit(list(n), list(s))
    assert [fixed, 1 / rate] == pytest.approx(expected)


def test_the_operations_of_the_small_models_are_counted_ones():
    text, batch = KEPT["text"], KEPT["batch"]
    wide = costs.scaled(4)
    assert costs.scaled(2) == nano
    counts = {name: costs.toy_operations(KEPT, name) for name in ("sizes", "slices", "patterns")}
    assert counts["sizes"][0] == costs.counted(costs.scaled(1), 0, text, EVERYTHING, batch)
    assert counts["slices"][1] == costs.counted(wide, 2, text, EVERYTHING, 2)
    assert counts["patterns"][1] == costs.counted(wide, 0, text, PATTERNS[1], batch)
    assert counts["patterns"][-1] == counts["sizes"][2]
    assert [len(c) for c in counts.values()] == [4, 4, 6]


# ---- measuring


def test_measuring_runs(monkeypatch):
    monkeypatch.setattr(costs, "scaled", lambda width: tiny_config("2.6"))
    monkeypatch.setattr(costs, "MODELS", {"2.6": tiny_config("2.6")})
    monkeypatch.setattr(costs, "measure_write", lambda real=costs.measure_write: real(megabytes=2))
    found = costs.measure(rounds=2)
    assert json.loads(json.dumps(found)) == found and found.keys() == KEPT.keys() - {"earlier"}
    for name, steps in found["steps"].items():
        assert steps.keys() == KEPT["steps"][name].keys()
        assert all(len(times) == 2 and min(times) > 0 for times in steps.values()), name
    assert found["pictures"].keys() == STAGES.keys()
    assert found["write"]["bytes"] == 2_000_000 and len(found["write"]["seconds"]) == 5
    assert found["counted"][: len(PATTERNS)] == KEPT["counted"][: len(PATTERNS)]


def test_candidates_take_turns(monkeypatch):
    seen = []
    monkeypatch.setattr(costs.time, "process_time", count().__next__)  # a clock that ticks when somebody looks at it
    times = costs.cpu_seconds({name: lambda name=name: seen.append(name) for name in "ab"}, rounds=3)
    assert "".join(seen) == "abababab" and times == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_what_is_timed_is_what_is_counted(monkeypatch):
    """The laws set seconds against operations: both must be of the same models and loads."""
    tiny = tiny_config("2.6")
    sizes = {width: replace(tiny, llm=replace(tiny.llm, intermediate_size=32 * width)) for width in (1, 2, 4, 8)}
    timed, counted = [], []

    def step(model, slices, text, trains, batch=1):
        timed.append((model.config, patches_of(model.config, slices), text, trains, batch))

    monkeypatch.setattr(costs, "scaled", sizes.get)
    monkeypatch.setattr(costs, "step", step)
    costs.measure_steps(rounds=1)
    monkeypatch.setattr(costs, "flops", lambda *load: counted.append(load) or {"all": 1})
    expected = [(config, patches_of(config, 0), costs.TEXT, EVERYTHING, 1) for config in sizes.values()]  # for AdamW
    for name in ("sizes", "slices", "patterns"):
        counted.clear()
        costs.toy_operations({"text": costs.TEXT, "batch": costs.BATCH}, name)
        expected += 2 * counted  # the untimed turn, and the timed one
    assert timed == expected


def test_pictures_are_those_of_the_stages(monkeypatch):
    seen = []
    monkeypatch.setattr(costs, "normalize_views", lambda image, plan: seen.append((image.size, plan)))
    costs.measure_pictures(rounds=1)
    assert seen == 2 * [(stage.size, plan_slices(stage.size, stage.slicing)) for stage in STAGES.values()]


@pytest.mark.parametrize("trains", [("vpm",), EVERYTHING])
def test_a_step_gives_gradients_to_what_learns(trains):
    model = MiniCPMV.seeded(tiny_config("2.6"))
    costs.step(model, 0, 8, EVERYTHING)  # what an earlier step left does not stay
    costs.step(model, 2, 8, trains, 2)
    for part in EVERYTHING:
        assert any(p.grad is not None for p in getattr(model, part).parameters()) == (part in trains)


def test_what_was_measured_is_whole():
    assert KEPT["steps"]["sizes"].keys() == KEPT["steps"]["updates"].keys() == costs.SIZES.keys()
    assert list(KEPT["steps"]["slices"]) == [str(n) for n in costs.SLICES]
    assert len(KEPT["steps"]["patterns"]) == len(PATTERNS)
    assert KEPT["pictures"].keys() == STAGES.keys()
    for times in [*KEPT["pictures"].values(), *(t for steps in KEPT["steps"].values() for t in steps.values())]:
        assert len(times) == KEPT["rounds"] and min(times) > 0


# ---- the page

TEXT = scaling.PAGE.read_text(encoding="utf-8")


def rows(heading: str, number: int = 0) -> list[list[str]]:
    """A table of a section, without its head."""
    section = TEXT.split(f"## {heading}\n\n")[1].split("\n## ")[0]
    block = [b for b in section.split("\n\n") if b.startswith("|")][number]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


def numbers(words: str) -> list[float]:
    return [float(word.replace(",", "")) for word in re.findall(r"-?\d[\d,]*\.?\d*", words)]


def said(before: str, after: str) -> float:
    """The number that stands between these words of the page."""
    found = re.search(rf"{before} *([\d,.]+){after}", TEXT.replace("\n", " "))
    return numbers(found[1])[0]


def near(expected, rel=0.01):
    return pytest.approx(expected, rel=rel)


def test_the_page_is_up_to_date():
    assert scaling.page(KEPT) == TEXT


def test_the_page_is_well_formed():
    assert re.findall("^## (.*)$", TEXT, re.MULTILINE)[::9] == ["What is published", "What this page cannot say"]
    assert "{" not in TEXT and "None" not in TEXT and "nan" not in re.findall(r"\w+", TEXT)
    assert all(len(line) <= 120 or line.startswith("|") for line in TEXT.splitlines())
    for block in TEXT.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    links = re.findall(r"\]\(([^)#\s]+)\)", TEXT)
    assert len(links) >= 6 and all((scaling.PAGE.parent / link).exists() for link in links)


def test_another_measurement_makes_another_page():
    for key in ("steps", "pictures", "write", "counted", "machine", "earlier", "rounds"):
        other = json.loads(json.dumps(KEPT))
        if key == "steps":
            other["steps"]["sizes"]["nano x 4"] = [9.0] * KEPT["rounds"]
        elif key == "pictures":
            other["pictures"]["pre-3"] = [9.0]
        elif key == "write":
            other["write"]["seconds"] = [9.0]
        elif key == "counted":
            other["counted"][0]["operations"] *= 2
        else:
            other[key] = {"machine": "a toaster", "earlier": [], "rounds": 99}[key]
        assert scaling.page(other) != TEXT, key


def test_the_hours_of_the_page_are_right():
    """By hand: 200 M samples of 3.91 TFLOP at 0.4 x 989.4 TFLOP/s."""
    table = {row[0]: row[1:] for row in rows("Hours and days")}
    assert float(table["pre-1"][2]) == pytest.approx(200e6 * 3.91e12 / (0.4 * 989.4e12) / 3600, rel=0.003)
    numbers = [[float(cell.replace(",", "")) for cell in row[:3]] for row in table.values()]
    assert [sum(column[:-1]) for column in zip(*numbers)] == pytest.approx([*numbers[-1]], abs=3)
    days = float(table["pre-1"][2]) / 8 / 24
    assert table["pre-1"][3] == f"{days:.1f} days"
    assert table["sum"][3] == "20 days" and float(table["sum"][2].replace(",", "")) / 8 / 24 == pytest.approx(
        20, abs=0.5
    )


# By hand: the same figures from the paper's and the page's own numbers, not from the code that wrote them.

RATE = 0.4 * 989.4e12  # operations a second
P = {version: sum(parameters(config).values()) for version, config in MODELS.items()}


def test_the_words_about_hours_by_hand():
    hours = numbers(rows("Hours and days")[-1][3])[0]
    assert numbers(re.search("sum for 2.6 is (.*) card hours. The", TEXT.replace("\n", " "))[1]) == [
        near(hours * 0.4 / 0.5, 1e-3),
        near(hours * 0.4 / 0.3, 1e-3),
    ]
    shares = {row[0]: row[4:] for row in rows("Operations of one sample")}
    llm, forward = numbers(shares["SFT"][2])[0] / 100, {name: float(row[-1]) for name, row in shares.items()}
    assert said("makes SFT", " times as long") == near(1 + llm / 3)
    assert forward["SFT"] == forward["DPO"] == 3 and all(1 < forward[name] < 3 for name in ("pre-1", "pre-2", "pre-3"))
    assert said("guesses. is", " card hours") == near(400e6 * 128 * 2 * 8e9 / RATE / 3600)


def test_the_views_by_hand():
    words = [numbers(row[3]) for row in rows("What is published")]
    assert [(views, text) for _, _, views, _, text in words] == [(1, 64), (1, 64), (9, 512), (7, 256), (7, 256)]
    assert all(patches == sum(stage.patches) for (*_, patches, _), stage in zip(words, STAGES.values()))


def test_storage_by_hand():
    sizes = [numbers(row[2]) for row in rows("What has to be stored")]
    pixel, captions, pages = said("JPEGs take", " bytes a pixel"), 400e6, 50e6
    assert 0.05 < pixel < 1
    photos = captions * 640 * 480 * pixel / 1e12
    assert [size[0] for size in sizes[:3]] == near(
        [photos, pages * 2480 * 3508 * pixel / 1e12, pages * 9 * 448**2 * pixel / 1e12], 0.03
    )
    features = 200e6 * 252 * 1152 * 2 / 1e12
    assert [sizes[3][0], sizes[4][0]] == near([captions * 64 * 4 / 1e9, features])
    assert sizes[5] == near([2 * p / 1e9 for p in P.values()]) and sizes[6] == near([12 * p / 1e9 for p in P.values()])
    assert said("they take", " times") == near(features / (photos / 2), 0.05)
    assert said("pictures and save", "%") == numbers(rows("Operations of one sample")[0][4])[0]


def test_memory_by_hand():
    for version, stage, *held, _, _ in rows("Memory of one card, and what must be sharded"):
        if stage == "SFT":
            parts = [16, 4 + 12 / 8, 2 + 14 / 8, 16 / 8, 16 / 64]  # bytes of a parameter
            assert [float(size) for size in held[1:]] == near([P[version] * part / 1e9 for part in parts], 0.05)
    assert said("optimizer of 2.6 fill", " cards") == near(16 * P["2.6"] / 80e9, 0.05)


def test_growth_by_hand():
    table, width, layers = v2_6.llm.vocab_size * v2_6.llm.hidden_size, v2_6.llm.hidden_size, v2_6.llm.num_hidden_layers
    each = 6 * (parameters(v2_6)["llm"] - table)  # operations of a token, and of a pair of tokens:
    pair = 12 * layers * width
    heading = "How cost grows"
    slices, queries, lengths, batches = ([numbers(" ".join(row)) for row in rows(heading, n)] for n in range(4))
    for n, visual, vit, resampler, llm, whole, times, _ in slices:
        assert visual == 64 * (n + 1) and whole == near(vit + resampler + llm)
        assert llm == near((each * (visual + 256) + pair * (visual + 256) ** 2) / 1e12)
        assert times == near(whole / slices[0][5], 0.05)
    for n, visual, vit, resampler, llm, whole in queries:
        assert visual == 10 * n and whole == near(vit + resampler + llm)
        assert llm == near((each * (visual + 256) + pair * (visual + 256) ** 2) / 1e12)
    for length, price, share, _ in lengths:
        assert price == near((each + pair * length) / 1e9)
        assert share == pytest.approx(100 * pair * length / (each + pair * length), abs=0.6)
    sft, moved = numbers(rows("Operations of one sample")[3][3])[0], 3 * 2 * P["2.6"]
    for (size, seconds, inside, part, between, whole, activations), row in zip(batches, rows(heading, 3)):
        assert seconds == near(size * sft * 1e12 / RATE, 0.04)
        assert [inside, between] == near([moved / 450e9, moved / 50e9], 0.05)
        assert [part, whole] == near([100 * inside / seconds, 100 * between / seconds], 0.08)
        assert activations == near(size * batches[0][-1])
        assert row[-1] == ("yes" if 2 * P["2.6"] / 1e9 + activations < 0.9 * 80 else "no")


def test_what_breaks_by_hand():
    operations = {row[0]: [float(row[1]), float(row[3])] for row in rows("Operations of one sample")}
    cores, pixel = [], said("JPEGs take", " bytes a pixel")
    for name, picture, *cells in rows("What breaks first"):
        old, new, ms, old_cores, new_cores, storage = map(float, cells)
        rates = [RATE / (tera * 1e12) for tera in operations[name]]
        width, height = numbers(picture)
        assert [old, new] == near(rates, 0.07)
        assert [old_cores, new_cores] == pytest.approx([rate * ms / 1000 for rate in rates], abs=0.06)
        assert storage == pytest.approx(rates[0] * 256 * width * height * pixel / 1e9, abs=0.1)
        cores.append(old_cores)
    assert said("At most", " cores") == max(cores)
    largest = numbers(" ".join(rows("How cost grows")[-1]))[5]
    assert said("which feeds", " cards") == near(said("our code makes", " pictures") * largest * 1e12 / RATE, 0.05)
    disk, low, high = said("disk here takes", " MB/s"), said("range from", " to"), said(r"range from \d+ to", "\\)")
    assert low < disk < high
    state = 12 * P["2.6"] / 1e9
    seconds = state * 1000 / disk
    assert said("SFT you save", " GB") == near(state) and f": {scaling.lasting(seconds)}, which is" in TEXT
    assert said("minutes, which is", "%") == pytest.approx(100 * seconds / 1800, abs=1)
    assert said("GB/s it is", " s") == near(state / 2, 0.02)
    assert said(r"it is \d+ s,", "%") == near(100 * state / 2 / 1800, 0.03)


def test_the_small_models_by_hand():
    heading = "Did small models follow these curves?"
    for number, name in enumerate(("sizes", "slices")):
        times = KEPT["steps"][name].values()
        for (*_, low, middle, high, law, off), kept in zip(rows(heading, number), times):
            assert [float(low), float(middle), float(high)] == near([min(kept), np.median(kept), max(kept)], 0.02)
            assert numbers(off)[0] == pytest.approx(100 * (float(law) / float(middle) - 1), abs=1)
        lowest = prediction(costs.toy_operations(KEPT, name), [min(kept) for kept in times])["error"]
        assert f"made from the lowest times, by {lowest:+.1%}" in TEXT.replace("\n", " ")
    patterns = [[float(cell) for cell in row[1:]] for row in rows(heading, 2)]
    assert patterns[0][0] == near(1 / 3) and patterns[-1] == [1, 1]
    updates = numbers(re.search("Here it costs (.*) ns a parameter", TEXT.replace("\n", " "))[1])
    models = [sum(parameters(costs.scaled(width)).values()) for width in costs.SIZES.values()]
    assert updates == near([1e9 * np.median(t) / n for t, n in zip(KEPT["steps"]["updates"].values(), models)], 0.02)
    assert said("CPU thread,", " times slower") > 100


def test_what_the_words_say_the_numbers_say():
    fits = {(row[0], row[1]): row[-2:] for row in rows("Memory of one card, and what must be sharded")}
    assert all(alone == "yes" for (_, name), (alone, _) in fits.items() if name.startswith("pre"))
    assert fits["2.6", "SFT"] == ["no", "ZeRO-1"]
    supply = rows("What breaks first")
    assert max(float(row[5]) for row in supply) <= costs.CORES  # "enough in such a node"
    assert max(float(row[-1]) for row in supply) * 1e9 > costs.STORE  # "storage breaks sooner"
    assert sum(states(v2_6, EVERYTHING).values()) > costs.CARD > sum(states(v2_0, EVERYTHING).values())
    shares = {row[0]: row[4:7] for row in rows("Operations of one sample")}
    assert shares["pre-1"] == ["6%", "1%", "93%"]
    assert "The largest difference is 0.00%" in TEXT


def test_small_models_follow_the_law():
    """Of what was measured, not of this machine now: nothing is timed here."""
    found = scaling.errors(KEPT)
    assert abs(found["sizes"]) < 0.1 and abs(found["slices"]) < 0.25
    for name in ("sizes", "slices"):
        assert f"**{found[name]:+.1%}**" in TEXT
    times = [np.median(t) for t in KEPT["steps"]["patterns"].values()]
    counts = costs.toy_operations(KEPT, "patterns")
    assert all(abs(t / times[-1] - n / counts[-1]) < 0.1 for n, t in zip(counts, times))


def test_the_benchmark_is_read():
    rates = scaling.benchmark_rates()
    assert list(rates) == ["640x480", "1344x1344", "1920x1080", "3000x4000"]
    assert sorted(rates.values(), reverse=True) == list(rates.values())
    assert f"makes {rates['1344x1344']:.1f} pictures" in TEXT.replace("\n", " ")


@pytest.mark.parametrize(
    ("function", "number", "words"),
    [
        (scaling.lasting, 119, "119 s"),
        (scaling.lasting, 120, "2.0 minutes"),
        (scaling.lasting, 7199, "120 minutes"),
        (scaling.lasting, 7200, "2.0 hours"),
        (scaling.lasting, 86400 * 25, "25 days"),
        (scaling.tera, 3.914e12, "3.91"),
        (scaling.tera, 39.14e12, "39.1"),
        (scaling.tera, 139.4e12, "139"),
        (scaling.giga, 41.23e9, "41.2"),
        (scaling.giga, 102.4e9, "102"),
        (scaling.card_hours, 3600 * 1234.4, "1,234"),
        (scaling.card_hours, 3600 * 0.64, "0.6"),
    ],
)
def test_numbers_as_words(function, number, words):
    assert function(number) == words


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "docs/scaling.md")
    monkeypatch.setattr(scaling, "DATA", tmp_path / "docs/scaling.json")
    monkeypatch.setattr(scaling, "bytes_of_a_pixel", lambda: 0.2)
    monkeypatch.setattr(scaling, "benchmark_rates", lambda: {"1344x1344": 60.0})
    monkeypatch.setattr(scaling, "measure", lambda: {k: v for k, v in KEPT.items() if k != "earlier"})
    scaling.main(["--measure"])
    first = (tmp_path / "docs/scaling.md").read_text()
    assert "there were none" in first and capsys.readouterr().out == "wrote docs/scaling.md\n"
    scaling.main([])
    assert (tmp_path / "docs/scaling.md").read_text() == first
    for runs in (1, 2):  # a new run keeps how far the old ones were off
        scaling.main(["--measure"])
        kept = json.loads((tmp_path / "docs/scaling.json").read_text())
        assert kept["earlier"] == runs * [{"rounds": KEPT["rounds"], **scaling.errors(KEPT)}]
