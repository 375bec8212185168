"""Is this loss normal? The bands of the toy stages, and the one sentence of a run that leaves them."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from places import ROOT

from minicpmv_ref.learn.stages import STAGES, stage_named
from minicpmv_ref.learn.train import Step
from minicpmv_ref.scale import run as trainer
from minicpmv_ref.scale.expected import WINDOW, bands, expected_losses, first_outside, watch
from minicpmv_ref.scale.profiles import PROFILES, scaled

SHIPPED = json.loads((ROOT / "data_samples" / "checkpoints" / "metrics.json").read_text(encoding="utf-8"))["stages"]


class Nano:
    config = PROFILES["cpu"].config


def said(stage, losses, model=Nano, begin=1):
    """What a run with these losses says."""
    told = []
    look = watch(stage, model, told.append)
    for number, loss in enumerate(losses, start=begin):
        look(Step(number, loss, 1.0, 0, 0, 0.0))
    return told


def middle(name):
    """A run in the middle of its bands."""
    return [(low + high) / 2 for low, high in bands(name) for _ in range(WINDOW)]


def test_three_seeds_of_each_stage_whose_predecessor_is_shipped():
    measured = expected_losses()
    assert set(measured) == {stage.name for stage in STAGES} - {"start-chat", "sft-2"}
    for name, runs in measured.items():
        assert len(runs) == 3 and len(set(map(tuple, runs))) == 3
        assert len({len(run) for run in runs}) == 1 and 30 <= WINDOW * len(runs[0]) <= 100
        for run in runs:
            assert said(stage_named(name), [mean for mean in run for _ in range(WINDOW)]) == []


@pytest.mark.parametrize("name", ["stage-1", "stage-2", "start-text"])
def test_the_shipped_training_is_normal(name):
    """Its log has means over other steps; the bands over these steps hold them."""
    limits = bands(name)
    per_step = [limits[number // WINDOW] for number in range(WINDOW * len(limits))]
    rows = [(0, 0.0), *map(tuple, SHIPPED[name]["loss"])]
    inside = [(before, now, loss) for (before, _), (now, loss) in pairwise(rows) if now <= len(per_step)]
    assert inside
    for before, now, loss in inside:
        low, high = (sum(ends) / (now - before) for ends in zip(*per_step[before:now]))
        assert low <= loss <= high


def test_a_run_that_leaves_its_band_says_so_once():
    normal = middle("stage-1")
    assert said(stage_named("stage-1"), normal) == []
    high = normal[:10] + [3.0] * 40
    (sentence,) = said(stage_named("stage-1"), high)
    assert sentence.startswith(
        "stage-1: is this loss normal? Its mean over steps 11 to 20 is 3.00, and 0.90 to 1.10 in"
    )
    assert "too high" in sentence
    (sentence,) = said(stage_named("stage-1"), [0.01] * 100)
    assert "steps 1 to 10 is 0.01" in sentence and "too low" in sentence
    assert len(said(stage_named("stage-1"), [math.nan] * 20)) == 1


def test_only_whole_windows_of_the_same_stage_count():
    stage, wrong = stage_named("stage-1"), [9.0] * 100
    assert len(said(stage, wrong[:9])) == 0 and len(said(stage, wrong[:10])) == 1
    assert said(stage, wrong[:16], begin=5) and not said(stage, wrong[:13], begin=7)  # it goes on after a stop
    assert said(stage, wrong, begin=101) == []
    assert said(replace(stage, batch=8), wrong) == [] == said(stage_named("sft-2"), wrong)
    assert said(scaled(stage, PROFILES["fast"]), wrong) == []

    class Larger:
        config = PROFILES["gpu"].config

    assert said(stage, wrong, Larger) == []
    assert len(said(scaled(stage, PROFILES["cpu"]), wrong)) == 1


def test_first_outside():
    limits = [(4.0, 5.0), (2.0, 3.5)]
    assert first_outside([4.5] * 10 + [3.0] * 10 + [99.0] * 10, limits) is None
    assert first_outside([4.5] * 10 + [1.0] * 10, limits) == 20
    assert first_outside([4.5] * 10 + [1.0] * 9, limits) is None
    assert first_outside([4.5] * 9 + [math.nan], limits) == 10


def test_train_watches_its_stages(tmp_path, monkeypatch):
    """`run` hands each step of a stage to the watch."""
    steps, names = [], []

    def spy(stage, model, report):
        names.append(stage.name)
        return steps.append

    monkeypatch.setattr(trainer, "watch", spy)
    monkeypatch.setattr(trainer, "STAGES", [replace(stage_named("stage-1"), steps=2, batch=2)])
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {})
    monkeypatch.setattr(trainer, "held_out_loss", lambda *_, **__: 1.0)
    from minicpmv_ref import Processor

    same = replace(PROFILES["cpu"])
    trainer.run(tmp_path, same, Processor.from_pretrained("nano"), report=lambda text: None, progress=False)
    assert names == ["stage-1"] and [step.step for step in steps] == [1, 2]
