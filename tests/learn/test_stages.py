"""The schedule: what learns, what does not, and the head start of the small model."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from minicpmv_ref import MiniCPMV, nano
from minicpmv_ref.learn.stages import LATER, PARTS, STAGES, Stage, freeze, stage_named, start
from minicpmv_ref.positions import sincos_2d
from minicpmv_ref.scale.profiles import PROFILES, Profile, scaled
from minicpmv_ref.toy.data import KINDS

# What the paper trains (section 4): compression layer; vision encoder; both; then everything, twice.
PAPER = {
    "stage-1": {"resampler"},
    "stage-2": {"vpm"},
    "stage-3": {"vpm", "resampler"},
    "sft-1": {"vpm", "resampler", "llm"},
    "sft-2": {"vpm", "resampler", "llm"},
}


def test_each_stage_trains_what_the_paper_says():
    assert {s.name: set(s.learning_rates) for s in STAGES if s.name in PAPER} == PAPER
    assert [s.name for s in STAGES] == ["start-text", "start-chat", "start-vit", *PAPER]


def test_only_stage_1_is_at_half_resolution_and_documents_come_with_stage_3():
    assert [s.name for s in STAGES if s.half] == ["stage-1"]
    seeing = [s for s in STAGES if s.objective == "answer"]
    assert [s.name for s in seeing if "read" in s.data_mix] == ["stage-3", "sft-1", "sft-2"]


def test_mixtures_name_kinds_of_the_world():
    assert all(set(stage.data_mix) <= set(KINDS) and stage.steps > 0 for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_freeze(stage):
    model = MiniCPMV.seeded(nano)
    learning = {id(p) for p in freeze(model, stage)}
    for part in PARTS:
        for parameter in getattr(model, part).parameters():
            assert parameter.requires_grad == (part in stage.learning_rates) == (id(parameter) in learning)


def test_the_sines_of_2_0_are_a_parameter_that_never_learns():
    """Released as nn.Parameter(...).requires_grad_(False)."""
    model = MiniCPMV.seeded(tiny_config("2.0"))
    freeze(model, stage_named("sft-1"))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["resampler.pos_embed"]


def test_a_stage_that_trains_nothing_that_exists():
    with pytest.raises(ValueError, match="learning_rates must name"):
        Stage("x", "answer", {"encoder": 1e-3}, {"caption": 1}, steps=1)
    with pytest.raises(ValueError, match="learning_rates must name"):
        Stage("x", "answer", {}, {"caption": 1}, steps=1)
    with pytest.raises(ValueError, match=r"no stage 'sft'; there are start-text, .*sft-2"):
        stage_named("sft")
    with pytest.raises(TypeError, match="model must be a model, got NoneType"):
        freeze(None, stage_named("sft-1"))


def test_profiles_scale_steps_and_batches():
    stage = Stage("x", "answer", {"llm": 1e-3}, {"caption": 1}, steps=400, batch=32)
    fast = scaled(stage, PROFILES["fast"])
    assert (fast.steps, fast.batch) == (2, 8)
    assert scaled(stage, PROFILES["cpu"]) == stage


# ---- the head start


def test_start_is_the_same_every_time_and_leaves_the_config_alone():
    one, two = start(nano, 3), start(nano, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert one.config == nano


def test_each_query_starts_at_its_own_part_of_the_picture():
    """Where does a query look when all patches have the same features? Positions alone decide."""
    resampler = start(nano).resampler
    side = math.isqrt(nano.resampler.num_queries)
    n = nano.slicing.scale_resolution // nano.slicing.patch_size
    _, (weights,) = resampler.attend([torch.zeros(n * n, nano.vision.width)], [(n, n)])
    looks = weights.mean(dim=0).reshape(side, side, n, n)
    rows = (looks.sum(dim=3) * torch.arange(n)).sum(dim=2)  # the mean row of each query's look, (side, side)
    cols = (looks.sum(dim=2) * torch.arange(n)).sum(dim=2)
    assert (rows.diff(dim=0) > 0.2).all() and (cols.diff(dim=1) > 0.2).all()


def test_random_queries_all_look_everywhere():
    """The control of the test above."""
    resampler = MiniCPMV.seeded(nano).resampler
    n = nano.slicing.scale_resolution // nano.slicing.patch_size
    _, (weights,) = resampler.attend([torch.zeros(n * n, nano.vision.width)], [(n, n)])
    rows = (weights.mean(dim=0).reshape(-1, n, n).sum(dim=2) * torch.arange(n)).sum(dim=1)
    assert rows.max() - rows.min() < 1


def test_visual_tokens_start_as_large_as_words():
    model = start(nano)
    n = nano.slicing.scale_resolution // nano.slicing.patch_size
    tokens = model.resampler([torch.randn(n * n, nano.vision.width)], [(n, n)])
    words = model.llm.get_input_embeddings().weight
    assert 0.5 < tokens.std() / words.std() < 2


def test_neighbors_have_similar_positions():
    table = start(nano).vpm.embeddings.position_embedding.weight
    side = nano.vision.table_side
    assert torch.allclose(table, 0.3 * sincos_2d(nano.vision.width, side, side).flatten(0, 1))


def test_the_parts_are_those_of_the_model():
    assert [name for name, _ in MiniCPMV.seeded(nano).named_children()] == list(PARTS)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", [3, None]),
        ("objective", ["answers", None, 1]),
        ("learning_rates", [None, [], {"llm": "1"}, {"llm": -1.0}, {"llm": math.nan}, {"llm": math.inf}]),
        ("data_mix", [None, ["caption"], {"caption": None}, {"caption": -1}]),
        ("steps", [0, -1, 1.5, True, "2", None]),
        ("batch", [0, 2.0, [2]]),
        ("turns", [0, 0.5]),
        ("large", [-0.1, 1.1, math.nan, "0"]),
    ],
)
def test_fields_that_cannot_be(field, values):
    for value in values:
        with pytest.raises(ValueError, match=field):
            replace(stage_named("sft-1"), **{field: value})


def test_the_schedule_is_that_of_the_shipped_weights():
    """To change one number means to train them again. The digest is the same where they were committed."""
    schedule = json.dumps([stage.settings() for stage in (*STAGES, *LATER)])
    assert (
        hashlib.sha256(schedule.encode()).hexdigest()
        == "0c4c11da16db8dbafd39c63f4c72778f68230b5624554ef6b1b189fd9b0ffc33"
    )


def test_training_checkpoints_hold_a_stage_under_its_first_names():
    """A run that an older version began is compared with these, see `scale.run.settings_of`."""
    held = stage_named("stage-1").settings()
    assert list(held) == "name objective rates mixture steps batch half turns large aligned".split()
    assert held["rates"] == {"resampler": 3e-3} and held["mixture"] == {"caption": 1}


def test_profiles_and_starts_that_cannot_be():
    for field, value in {"steps": 0, "batch": math.nan, "lr_scale": -1, "grades": 0, "config": None}.items():
        with pytest.raises(ValueError, match=f"{field} must be "):
            replace(PROFILES["fast"], **{field: value})
    for seed in (-1, 0.5, "0", 2**64):
        with pytest.raises(ValueError, match="seed must be an integer"):
            start(seed=seed)
    with pytest.raises(ValueError, match="num_queries must be a square number"):
        start(replace(nano, resampler=replace(nano.resampler, num_queries=15)))
    with pytest.raises(TypeError, match="profile must be Profile"):
        scaled(stage_named("sft-1"), stage_named("sft-1"))
    assert Profile(1e-9, 1e-9).grades == 100
