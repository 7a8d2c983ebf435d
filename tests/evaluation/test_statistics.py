"""Against hand calculations, scipy's tests and intervals, and what a 95 % interval must do: hold the truth 95 times."""

import math

import numpy as np
import pytest
import scipy.stats

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_of,
    mcnemar_exact,
    paired_bootstrap,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 7, 18 / 256), (7, 1, 18 / 256), (0, 6, 2 / 64), (1, 2, 1.0)],
)
def test_mcnemar_by_hand(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p, rel=1e-15)


@pytest.mark.parametrize(("b", "c"), [(15, 4), (120, 90), (700, 900), (3000, 3100)])
def test_mcnemar_is_scipys_binomial_test(b, c):
    assert mcnemar_exact(b, c) == pytest.approx(scipy.stats.binomtest(b, b + c, 0.5).pvalue, rel=1e-9)


def test_an_interval_is_near_scipys():
    values = np.random.default_rng(0).random(300) < 0.8
    ours = bootstrap_interval(values, resamples=4000)
    theirs = scipy.stats.bootstrap(
        (values.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.estimate == values.mean()
    assert ours.low == pytest.approx(theirs.low, abs=0.005)
    assert ours.high == pytest.approx(theirs.high, abs=0.005)


def test_a_95_percent_interval_holds_the_truth_about_95_times_of_100():
    rng = np.random.default_rng(3)
    intervals = [bootstrap_interval(rng.random(100) < 0.7, seed, resamples=400) for seed in range(300)]
    held = np.mean([interval.low <= 0.7 <= interval.high for interval in intervals])
    assert 0.90 <= held <= 0.98


def test_an_interval_depends_on_values_and_seed_alone():
    values = [0, 1, 1, 0.5, 1, 0, 1]
    assert bootstrap_interval(values, 4) == bootstrap_interval(values, 4)
    assert bootstrap_interval(values, 4, resamples=50) != bootstrap_interval(values, 5, resamples=50)


def test_equal_values_have_no_spread_and_none_has_no_estimate():
    one = bootstrap_interval([1.0] * 9)
    assert (one.estimate, one.low, one.high, one.n) == (1, 1, 1, 9)
    none = bootstrap_interval([])
    assert none.n == 0
    assert math.isnan(none.estimate)
    assert math.isnan(none.low)


def test_a_ratio_is_resampled_with_its_denominator():
    top, bottom = np.array([1.0, 0, 2, 0]), np.array([2.0, 0, 2, 0])

    def ratio(draws):
        with np.errstate(invalid="ignore"):
            return top[draws].sum(1) / bottom[draws].sum(1)

    found = bootstrap_of(ratio, 4)
    assert found.estimate == 0.75
    assert found.low == 0.5  # only the first item, beside those that count nothing
    assert found.high == 1.0


def test_large_samples_are_drawn_in_parts():
    values = np.arange(30_000) % 2
    found = bootstrap_interval(values, resamples=300)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(30_000), rel=0.2)


def test_two_judges_on_the_same_items_by_hand():
    a = [1, 1, 1, 1, 0, 0.5, 1, 1]
    b = [1, 0, 0, 0, 1, 0, 0, 0]
    found = paired_bootstrap(a, b)
    assert (found.a_better, found.b_better) == (6, 1)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)
    assert found.difference.estimate == (6.5 - 2) / 8
    assert found.difference.low < found.difference.estimate < found.difference.high


def test_pairing_tells_apart_what_two_intervals_would_not():
    rng = np.random.default_rng(7)
    b = (rng.random(400) < 0.6).astype(float)
    a = b.copy()
    a[np.flatnonzero(b == 0)[:15]] = 1
    found = paired_bootstrap(a, b)
    assert found.difference.low > 0
    assert bootstrap_interval(a).low < bootstrap_interval(b).high
    assert found.p == 2 / 2**15


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (1, 1), (490, 500)])
def test_wilson_is_scipys(right, n):
    theirs = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    ours = wilson_interval(right / n, n)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-6), pytest.approx(theirs.high, abs=1e-6))
    assert math.isnan(wilson_interval(0.5, 0).low)


def test_of_all_right_an_interval_is_wilsons_and_of_others_the_bootstraps():
    assert share_interval([1.0] * 8) == wilson_interval(1.0, 8)
    assert share_interval([0.0]) == wilson_interval(0.0, 1)
    mixed = [1.0, 0.0, 0.5, 1.0]
    assert share_interval(mixed, 3, 200) == bootstrap_interval(mixed, 3, 200)
    assert share_interval([0.5] * 4, 0, 200).low == 0.5
    assert share_interval([]).n == 0


def test_what_cannot_be():
    with pytest.raises(RrmError, match="the same items twice, not 2 and 1"):
        paired_bootstrap([1, 0], [1])
    with pytest.raises(RrmError, match="finite"):
        bootstrap_interval([math.nan])
    with pytest.raises(RrmError, match="counts items"):
        mcnemar_exact(-1, 2)
    with pytest.raises(RrmError, match="level"):
        bootstrap_interval([1.0], level=1.0)
