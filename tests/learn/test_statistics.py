"""Confidence intervals: against the tests that they invert, and by how often they cover the truth."""

import math
import random

import pytest

from experiments._frame import median_interval
from minicpmv_ref.learn.statistics import bootstrap_mean, bootstrap_ratio, wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (50, 1000), (1, 2)])
def test_wilson_is_where_the_score_test_just_holds(hits, n):
    value, low, high = wilson(hits, n)
    assert value == hits / n and 0 <= low <= value <= high <= 1
    assert (low > 0) == (hits > 0) and (high < 1) == (hits < n)
    for p in (low, high):
        if 0 < p < 1:
            assert (hits / n - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n)


def test_wilson_without_trials_and_with_impossible_hits():
    assert wilson(0, 0) == (None, None, None)
    for hits, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="hits"):
            wilson(hits, n)


def test_the_mean_of_nothing():
    assert bootstrap_mean([]) == (None, None, None)


def test_the_bootstrap_finds_the_error_of_a_ratio():
    rng = random.Random(0)
    bottoms = [rng.randint(1, 4) for _ in range(400)]
    tops = [sum(rng.random() < 0.3 for _ in range(n)) for n in bottoms]
    value, low, high = bootstrap_ratio(tops, bottoms)
    assert value == sum(tops) / sum(bottoms)
    error = (0.3 * 0.7 / sum(bottoms)) ** 0.5  # claims are independent here
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)
    assert low < value < high
    assert bootstrap_ratio(tops, bottoms) == bootstrap_ratio(tops, bottoms) != bootstrap_ratio(tops, bottoms, seed=1)
    assert bootstrap_ratio([1, 1], [2, 2])[1:] == (0.5, 0.5)
    assert bootstrap_ratio([0, 0], [0, 0]) == (None, None, None)
    assert bootstrap_ratio([1, 0, 0], [1, 0, 0]) == (1.0, 1.0, 1.0)  # rounds that draw no mention at all do not count


@pytest.mark.parametrize("n", range(2, 80))
def test_the_interval_of_the_median_covers_it(n):
    """Exactly, by the binomial distribution, and no narrower one would."""
    low, high = median_interval(range(1, n + 1))
    assert low + high == n + 1

    def covered(k):
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    assert covered(low) >= 0.95 or low == 1
    assert covered(low + 1) < 0.95


def test_the_interval_covers_in_a_simulation():
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([rng.expovariate(1) for _ in range(12)])
        hits += low <= math.log(2) <= high
    assert hits / 2000 > 0.94


def test_the_interval_of_the_mean_covers_it():
    rng = random.Random(1)
    hits = 0
    for _ in range(400):
        _, low, high = bootstrap_mean([(rng.expovariate(1) + rng.expovariate(1)) / 2 for _ in range(60)])
        hits += low <= 1 <= high
    assert 0.91 < hits / 400 < 0.99  # a bootstrap of 60 skewed items falls a little short of 95 %


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: wilson(1.5, 2), r"hits \(of n\)"),
        (lambda: wilson(0, "2"), "n"),
        (lambda: wilson(0, None), "n"),
        (lambda: bootstrap_ratio(None, [1]), "tops"),
        (lambda: bootstrap_ratio([1], ["1"]), r"bottoms\[0\]"),
        (lambda: bootstrap_ratio([1], [1], seed=None), "seed"),
    ],
)
def test_a_wrong_type_is_named(call, name):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, -1), "n must be an integer of at least 0"),
        (lambda: wilson(0, 10**400), "n must be an integer"),
        (lambda: bootstrap_ratio([1], [1, 2]), "tops and bottoms must be equally long"),
        (lambda: bootstrap_ratio([math.nan], [1]), r"tops\[0\] must be a finite number"),
        (lambda: bootstrap_ratio([1], [-1]), r"bottoms\[0\] must be a finite number"),
        (lambda: bootstrap_ratio([1], [1], rounds=0), "rounds must be an integer of at least 1"),
        (lambda: bootstrap_ratio([1], [1], rounds=10**9), "rounds must be an integer of at least 1 and at most"),
        (lambda: bootstrap_ratio([0] * 50, [0] * 49 + [1], seed=5, rounds=1), "rounds must be more than 1"),
    ],
)
def test_a_wrong_value_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        call()
    assert not isinstance(refusal.value, TypeError)
