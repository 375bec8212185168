"""Successive halving on pretended clocks, and the roofline against PyTorch's own count of operations."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minicpmv_ref import MiniCPMV
from minicpmv_ref.config import PRESETS, nano, v2_0, v2_5, v2_6
from minicpmv_ref.deploy.gguf import MIXTURES, plan_mixture, plan_vision
from minicpmv_ref.deploy.memory import kv_cache_numbers
from minicpmv_ref.deploy.tune import CHIPS, Chip, Work, answer_work, halving, roofline

# The search ----------------------------------------------------------------------------------------------------------


class Clock:
    """Pretended seconds; remembers who was timed."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, []

    def __call__(self, setting):
        self.calls.append(setting)
        return self.seconds(setting)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 16])
def test_without_noise_the_fastest_wins(count):
    for best in range(count):
        clock = Clock(lambda setting, best=best: 1 + abs(setting - best))
        found = halving(range(count), clock)
        assert found.best == best
        assert found.runs == len(clock.calls)
        assert all(list(times.values()) == sorted(times.values()) for times in found.rounds)


def test_who_is_timed_how_often():
    clock = Clock(lambda setting: setting)
    found = halving([5, 4, 3, 2, 1], clock, runs=2)
    assert clock.calls == [5, 4, 3, 2, 1] * 2 + [1, 2, 3] * 4 + [1, 2] * 8
    assert [list(times) for times in found.rounds] == [[1, 2, 3, 4, 5], [1, 2, 3], [1, 2]]
    assert found.runs == 10 + 12 + 16
    clock = Clock(lambda setting: setting)
    assert halving([7], clock, runs=3).best == 7
    assert clock.calls == [7, 7, 7]
    assert halving(range(1, 17), Clock(float)).runs == 64


def test_the_least_time_counts():
    """Setting 1 is the fastest, but its first run and its last are disturbed."""
    seconds = {1: iter([1.9, 1.0, 9.0]), 2: iter([1.5, 1.4, 1.3]), 3: iter([3.0]), 4: iter([4.0])}
    found = halving([1, 2, 3, 4], lambda setting: next(seconds[setting]))
    assert found.best == 1
    assert found.rounds == [{2: 1.5, 1: 1.9, 3: 3.0, 4: 4.0}, {1: 1.0, 2: 1.3}]


def test_noise_that_only_adds_does_not_fool_it():
    rng, hits = random.Random(0), 0
    for _ in range(50):
        clock = Clock(lambda setting: (1 + 0.3 * setting) * (1 + rng.expovariate(5)))
        hits += halving(range(16), clock).best == 0
    assert hits >= 45


def test_equal_settings_keep_their_order():
    assert halving("abcd", lambda setting: 1.0).best == "a"


def test_what_cannot_run():
    assert halving([1, 2, 3], lambda setting: math.inf if setting < 3 else 5.0).best == 3
    with pytest.raises(ValueError, match="no setting can run"):
        halving([1, 2], lambda setting: math.inf)
    for bad in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"above 0 seconds, got .* for 'a'"):
            halving(["a"], lambda setting, bad=bad: bad)
    with pytest.raises(ZeroDivisionError):
        halving([0], lambda setting: 1 / setting)


@pytest.mark.parametrize("settings", [[], [1, 1]])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="settings must be different and at least one"):
        halving(settings, float)


@pytest.mark.parametrize("runs", [0, True, 1.0])
def test_bad_runs(runs):
    with pytest.raises(ValueError, match="runs must be an integer of at least 1"):
        halving([1], float, runs)


# The roofline --------------------------------------------------------------------------------------------------------


def counted(run) -> int:
    """Operations by PyTorch's own counter; plain attention, because it does not know the fused kernels of the CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


OTHERS = {
    "nano": nano,
    "untied": replace(nano, llm=replace(nano.llm, tie_word_embeddings=False)),
    "other sizes": replace(nano, llm=replace(nano.llm, num_key_value_heads=4, intermediate_size=768)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("slices", [0, 2])
def test_operations_are_those_that_pytorch_counts(name, slices):
    config = OTHERS[name]
    model, work = MiniCPMV.seeded(config), answer_work(config, slices, text=20)
    views, side = 1 + slices, config.slicing.scale_resolution
    patches = side // config.vision.patch_size
    images = [torch.zeros(3, side, side)] * views
    assert work["see"].flops == counted(lambda: model.encode_images(images, [(patches, patches)] * views))
    tokens, seen = torch.zeros(1, views * 16 + 20, dtype=torch.long), []
    assert work["read"].flops == counted(lambda: seen.append(model.llm(input_ids=tokens, logits_to_keep=1)))
    cache = seen[0].past_key_values
    assert work["write"].flops == counted(lambda: model.llm(input_ids=tokens[:, :1], past_key_values=cache))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_bytes(preset, mixture):
    config, plan = PRESETS[preset], plan_mixture(PRESETS[preset], mixture)
    work = answer_work(config, slices=3, text=100, mixture=mixture)
    tokens = 4 * config.resampler.num_queries + 100
    assert work["see"].bytes == plan_vision(config).total_bytes
    unread = 0 if "output.weight" not in plan.kinds else plan.bytes_of("token_embd.weight")
    for stage, length in (("read", tokens), ("write", tokens + 1)):
        assert work[stage].bytes == plan.total_bytes - unread + 2 * length * kv_cache_numbers(config.llm)


def test_what_waits_for_what():
    """Seeing and reading wait for arithmetic, writing for memory, on every chip and for every release."""
    for config in (v2_0, v2_5, v2_6):
        for chip in CHIPS.values():
            limits = {stage: roofline(work, chip).limit for stage, work in answer_work(config).items()}
            assert limits == {"see": "compute", "read": "compute", "write": "memory"}


def test_the_bound_is_above_what_the_paper_reports():
    bound = roofline(answer_work(v2_5)["write"], CHIPS["phone"])
    assert 1 / bound.seconds == pytest.approx(76.8e9 / answer_work(v2_5)["write"].bytes)
    assert 8.2 < 1 / bound.seconds < 2 * 8.2


def test_roofline():
    assert roofline(Work(10, 10), Chip(5, 2)) == (5.0, "memory")
    assert roofline(Work(10, 10), Chip(2, 5)) == (5.0, "compute")
    assert roofline(Work(10, 10), Chip(5, 5)) == (2.0, "compute")
    assert Work(12, 8).intensity == 1.5
    for chip in (Chip(0, 1), Chip(1, -1)):
        with pytest.raises(ValueError, match="above 0"):
            roofline(Work(1, 1), chip)


def test_chips_say_what_they_are_made_of():
    assert CHIPS["phone"].bandwidth == 2 * 4.8e9 * 64 / 8
    assert CHIPS["RTX 4090"].bandwidth == 384 * 21e9 / 8
    assert (CHIPS["phone"].flops, CHIPS["RTX 4090"].flops) == (6e12, 83e12)  # the paper, section 5
    assert CHIPS["laptop CPU"] == (4 * 3e9 * 2 * 8 * 2, 2 * 3.2e9 * 64 / 8)  # 2 units x 8 floats x 2 operations
    assert CHIPS["MacBook M1"] == pytest.approx((8 * 128 * 2 * 1.278e9, 4.266e9 * 128 / 8), rel=0.01)


@pytest.mark.parametrize("bad", [dict(slices=-1), dict(slices=1.0), dict(text=0), dict(text=True)])
def test_bad_counts(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an integer of at least"):
        answer_work(nano, **bad)


def test_unknown_mixture():
    with pytest.raises(ValueError, match="mixture must be one of"):
        answer_work(nano, mixture="Q3")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: halving(3, float), "settings must be Iterable"),
        (lambda: halving([[1], [2]], float), "settings: each of them must be hashable"),
        (lambda: halving([1], 3), "measure must be a function"),
        (lambda: halving([1], str), "a time must be seconds, got str"),
        (lambda: halving([1], lambda setting: None), "a time must be seconds"),
        (lambda: roofline((1, 1), CHIPS["phone"]), "work must be Work"),
        (lambda: roofline(Work(1, None), CHIPS["phone"]), "work.bytes must be a number"),
        (lambda: roofline(Work(1, 1), (1, 1)), "chip must be Chip"),
        (lambda: answer_work({}), "config must be MiniCPMVConfig"),
    ],
)
def test_a_wrong_type_is_a_type_error(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("work", "chip"),
    [
        (Work(math.nan, 1), Chip(1, 1)),
        (Work(-1, 1), Chip(1, 1)),
        (Work(1, 1), Chip(math.nan, 1)),
        (Work(1, 1), Chip(1, math.inf)),
    ],
)
def test_a_roofline_of_no_numbers(work, chip):
    with pytest.raises(ValueError, match="finite number"):
        roofline(work, chip)
