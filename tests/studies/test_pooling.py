import dataclasses
import math

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.statistics import (
    Interval,
    Paired,
    newcombe_interval,
    over_seeds,
    paired_over_seeds,
    wilson_interval,
)
from rrm_jax.studies.calibration import Bin
from rrm_jax.studies.pooling import Total, pool
from rrm_jax.studies.report import claim


def test_students_interval_over_seeds():
    """By hand: mean 0.55, s = 0.05, s / √3 = 0.028868, and t (2 degrees of freedom, 97.5 %) = 4.302653."""
    found = over_seeds([Interval(x, x - 0.001, x + 0.001, 100) for x in (0.5, 0.55, 0.6)])
    assert found.estimate == pytest.approx(0.55)
    assert (found.low, found.high) == (
        pytest.approx(0.55 - 0.124207, abs=1e-6),
        pytest.approx(0.55 + 0.124207, abs=1e-6),
    )
    assert found.n == 300


def test_seeds_that_agree_by_chance_are_no_surer_than_their_items():
    """Three intervals of ± 0.1 are one of ± 0.1 / √3."""
    found = over_seeds([Interval(0.5, 0.4, 0.6, 100)] * 3)
    assert (found.low, found.high) == (pytest.approx(0.5 - 0.1 / math.sqrt(3)), pytest.approx(0.5 + 0.1 / math.sqrt(3)))


def test_seeds_without_an_estimate_are_left_out():
    nothing = Interval(math.nan, math.nan, math.nan, 0)
    one = Interval(0.5, 0.4, 0.6, 10)
    assert over_seeds([nothing, one, nothing]) == one
    assert math.isnan(over_seeds([nothing, nothing]).estimate)


def test_p_over_seeds_is_the_larger_of_two():
    """By hand: t = 0.5 / (0.1 / √3) = 8.660, for which p = 0.013072 with 2 degrees of freedom; 15 against 3 coins:
    2 · (1 + 18 + 153 + 816) / 2^18 = 0.0075378."""
    apart = [Paired(Interval(d, d - 0.1, d + 0.1, 10), 5, 1, 0.2) for d in (0.4, 0.5, 0.6)]
    pooled = paired_over_seeds(apart)
    assert pooled.p == pytest.approx(0.013072, abs=1e-6)
    assert (pooled.a_better, pooled.b_better) == (15, 3)
    uncounted = [dataclasses.replace(one, a_better=0, b_better=0) for one in apart]
    assert paired_over_seeds(uncounted).p == pooled.p
    alike = [Paired(Interval(0.5, 0.4, 0.6, 10), 5, 1, 0.2)] * 3
    assert paired_over_seeds(alike).p == pytest.approx(0.0075378, abs=1e-7)


def test_seeds_that_share_their_items_are_no_surer_of_them():
    """By hand: half the mean width, one seed's n; of 7, 6 and 5 against 1 discordant items, 6 against 1 coins:
    2 · (1 + 7) / 2^7 = 0.125."""
    found = over_seeds([Interval(0.5, 0.4, 0.6, 100)] * 4, same_items=True)
    assert (found.low, found.high, found.n) == (pytest.approx(0.4), pytest.approx(0.6), 100)
    seeds = [Paired(Interval(0.05, -0.01, 0.11, 100), better, 1, 0.1) for better in (7, 6, 5)]
    pooled = paired_over_seeds(seeds, same_items=True)
    assert (pooled.p, pooled.a_better, pooled.b_better) == (0.125, 6, 1)
    assert (pooled.difference.low, pooled.difference.high) == (pytest.approx(-0.01), pytest.approx(0.11))
    first = Bin(0.5, 0.6, 0.5, wilson_interval(0.5, 10))
    assert pool([first, first], same_items=True) == first


def test_seeds_that_are_exactly_alike_are_not_sure_where_nothing_was_counted():
    """The t-test alone would say 0: the items' interval of ± 0.12 has 0.02 · 1.96 / 0.12 = 0.3267 standard deviations,
    and a normal distribution 0.7439 beyond them; two seeds of other items ± 0.12 / √2, 0.4620 and 0.6441."""
    alike = [Paired(Interval(0.02, -0.1, 0.14, 50), 0, 0, math.nan)] * 2
    assert paired_over_seeds(alike, same_items=True).p == pytest.approx(0.7439, abs=1e-4)
    assert paired_over_seeds(alike).p == pytest.approx(0.6441, abs=1e-4)


def test_a_seed_without_an_estimate_does_not_make_p_unknown():
    nothing = Paired(Interval(math.nan, math.nan, math.nan, 0), 0, 0, math.nan)
    some = [Paired(Interval(d, d - 0.1, d + 0.1, 10), 5, 1, 0.2) for d in (0.4, 0.5, 0.6)]
    assert paired_over_seeds([nothing, *some]).p == paired_over_seeds(some).p
    assert paired_over_seeds([nothing, some[0]]) == some[0]


def test_newcombes_interval():
    """Newcombe (1998), table II, example (a), method 10: 56/70 − 48/80 is 0.2000 (0.0524 … 0.3339)."""
    found = newcombe_interval(wilson_interval(56 / 70, 70), wilson_interval(48 / 80, 80))
    assert (found.estimate, found.low, found.high) == (
        pytest.approx(0.2), pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5)
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    name: str
    budget: int | None
    pairs: Total
    mean: float
    exact: bool
    by: dict[str, tuple[Interval, ...]]


def found(pairs: int, mean: float, **changed) -> Found:
    of = Found("a", 5, pairs, mean, True, {"x": (Interval(mean, 0.0, 1.0, pairs),)})
    return dataclasses.replace(of, **changed)


def test_findings_are_pooled_field_by_field():
    pooled = pool([found(10, 0.25), found(20, 0.75, exact=False)])
    assert (pooled.name, pooled.budget, pooled.pairs, pooled.mean, pooled.exact) == ("a", 5, 30, 0.5, False)
    assert (pooled.by["x"][0].estimate, pooled.by["x"][0].n) == (0.5, 30)
    assert pool([found(10, 0.25)]) == found(10, 0.25)


@pytest.mark.parametrize("changed", [{"name": "b"}, {"budget": 6}, {"budget": None}, {"by": {}}, {"by": {"x": ()}}])
def test_findings_of_other_settings_are_not_pooled(changed):
    with pytest.raises(RrmError, match="with the same settings"):
        pool([found(10, 0.5), found(10, 0.5, **changed)])


def test_bins_are_pooled_over_their_pairs():
    empty = Bin(0.5, 0.6, math.nan, wilson_interval(math.nan, 0))
    pooled = pool([Bin(0.5, 0.6, 0.5, wilson_interval(0.5, 10)), empty, Bin(0.5, 0.6, 0.58, wilson_interval(1.0, 30))])
    assert pooled.sure == pytest.approx(0.56)
    assert pooled.right == wilson_interval(35 / 40, 40)


def test_what_a_claim_comes_to():
    outcomes = [
        claim("s", Interval(0.1, low, high, 9), "e").outcome for low, high in ((0.05, 0.2), (-0.1, 0.2), (-0.2, -0.1))
    ]
    assert outcomes == ["shown", "not shown", "contradicted"]
