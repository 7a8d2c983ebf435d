"""Bradley–Terry against published ratings and intervals, a hand calculation, and what must hold for any games."""

import csv
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.ranking.bradley_terry import elo_scale, fit, intervals, probability_best
from rrm_jax.ranking.games import Tallies, pad_games, tally

COUNT = 5
game = st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])).filter(
    lambda g: g[0] != g[1]
)
games_of = st.lists(game, max_size=12)


def tallied(tournaments, length=12, count=COUNT, dtype=np.float32):
    return tally(pad_games(tournaments, length=length, dtype=dtype), count)


def theta_of(games, **how):
    return np.asarray(fit(tallied([games]), np.array([COUNT]), **how).theta)[0]


def test_two_candidates_by_hand():
    # 3 wins, 1 loss, prior variance 4: 3 − 4 σ(d) = (d / 2) / 4 for each θ = ± d / 2; d from bisection.
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 3 - 4 / (1 + math.exp(-middle)) > middle / 8 else (low, middle)
    with jax.enable_x64(True):
        fitted = fit(tallied([[(0, 1, 1.0)] * 3 + [(1, 0, 1.0)]], 4, 2, np.float64), np.array([2]))
    np.testing.assert_allclose(fitted.theta[0], [low / 2, -low / 2], rtol=0, atol=1e-9)  # float64
    # Of d: 4 games' curvature and a prior of variance 8; each θ is half of d away from their mean.
    p = 1 / (1 + math.exp(-low))
    expected = np.array([[1, -1], [-1, 1]]) / (4 * p * (1 - p) + 1 / 8) / 4
    np.testing.assert_allclose(fitted.covariance[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["simple", "food", "llmfao"])
def test_real_battles_give_the_published_strengths(real_data, name):
    folder = real_data / "evalica_battles"
    with open(folder / f"{name}-golden.csv", encoding="utf-8") as file:
        golden = {r["item"]: float(r["score"]) for r in csv.DictReader(file) if r["algorithm"] == "bradley_terry"}
    at = {player: index for index, player in enumerate(golden)}
    score = {"left": 1.0, "right": 0.0, "tie": 0.5}
    with open(folder / f"{name}.csv", encoding="utf-8") as file:
        battles = [(at[r["left"]], at[r["right"]], score[r["winner"]]) for r in csv.DictReader(file)]
    expected = np.log(np.array(list(golden.values())))
    with jax.enable_x64(True):
        tallies = tally(pad_games([battles], dtype=np.float64), len(at))
        fitted = fit(tallies, np.array([len(at)]), prior=1e9, sandwich=True)
        theta = np.asarray(fitted.theta)[0]
    if name == "llmfao":
        np.testing.assert_allclose(theta, expected - expected.mean(), rtol=0, atol=1e-4)  # float64; golden: 1e-6 steps
        with open(folder / "llmfao_arena_rank_bt_ci.csv", encoding="utf-8") as file:
            theirs = {r["competitors"]: r for r in csv.DictReader(file)}
        low, high = (np.asarray(elo_scale(x))[0] for x in intervals(fitted.theta, fitted.sandwich))
        width = np.array([float(theirs[p]["rating_upper"]) - float(theirs[p]["rating_lower"]) for p in golden])
        ratings = np.array([float(theirs[p]["ratings"]) for p in golden])
        ours = np.asarray(elo_scale(theta))
        np.testing.assert_allclose(ours - ours.mean(), ratings - ratings.mean(), rtol=0, atol=0.1)  # points
        np.testing.assert_allclose(high - low, width, rtol=0.03)
    else:
        assert np.argsort(theta).tolist() == np.argsort(expected).tolist()


@settings(max_examples=30, deadline=None)
@given(games_of, st.permutations(range(COUNT)), st.randoms())
def test_names_and_order_of_games_do_not_matter(games, renamed, random):
    plain = theta_of(games)
    moved = theta_of([(renamed[a], renamed[b], s) for a, b, s in random.sample(games, len(games))])
    np.testing.assert_allclose(moved[list(renamed)], plain, rtol=0, atol=1e-4)  # float32
    swapped = theta_of([(b, a, 1 - s) for a, b, s in games])
    np.testing.assert_allclose(swapped, plain, rtol=0, atol=1e-4)
    assert abs(plain.sum()) < 1e-4


@settings(max_examples=30, deadline=None)
@given(games_of, st.booleans())
def test_any_graph_has_an_answer_at_which_the_slope_is_zero(games, position_bias):
    tallies = tallied([games])
    fitted = fit(tallies, np.array([COUNT]), position_bias=position_bias, sandwich=True)
    for x in fitted:
        assert np.isfinite(np.asarray(x)).all()
    theta, bias = np.asarray(fitted.theta, np.float64)[0], float(fitted.bias[0])
    slope, slope_bias = -theta / 4, -bias
    for a, b, s in games:
        error = s - 1 / (1 + math.exp(-(theta[a] - theta[b] + bias)))
        slope[a] += error
        slope[b] -= error
        slope_bias += error
    np.testing.assert_allclose(slope, 0, atol=2e-5)
    assert not position_bias or abs(slope_bias) < 2e-5
    assert position_bias or bias == 0


def test_padding_and_company_change_nothing():
    games = [(0, 1, 1.0), (1, 2, 1.0), (2, 0, 0.5)]
    alone = fit(tallied([games], count=3), np.array([3]))
    padded = fit(tallied([[(4, 3, 1.0)], games, []]), np.array([5, 3, 2]))
    np.testing.assert_allclose(padded.theta[1, :3], alone.theta[0], rtol=0, atol=1e-6)  # float32
    np.testing.assert_allclose(padded.covariance[1, :3, :3], alone.covariance[0], rtol=0, atol=1e-5)
    assert not np.asarray(padded.theta[1, 3:]).any()
    assert not np.asarray(padded.theta[2]).any()


def test_who_wins_all_is_first_and_the_better_known_the_surer():
    round_robin = [(a, b, 1.0) for a in range(COUNT) for b in range(a + 1, COUNT)]
    assert theta_of(round_robin).argsort().tolist() == [4, 3, 2, 1, 0]
    sure = [
        float(probability_best(f.theta, f.covariance, np.array([COUNT]))[0])
        for f in (fit(tallied([round_robin * n], 40), np.array([COUNT])) for n in (0, 1, 4))
    ]
    assert 0 <= sure[0] < 0.05 < sure[1] < sure[2] < 1


def test_the_leaders_probability_is_that_of_correlated_normal_gaps():
    theta = np.array([[0.0, 1.0, 0.5, 9.0]], np.float32)  # the fourth is padding
    covariance = np.diag([0.4, 0.5, 0.3, 1.0]).astype(np.float32)
    covariance[0, 1] = covariance[1, 0] = 0.2
    covariance[1, 2] = covariance[2, 1] = -0.1
    wins = [
        0.5 * math.erfc(gap / math.sqrt(2 * v)) for gap, v in ((1, 0.4 + 0.5 - 2 * 0.2), (0.5, 0.3 + 0.5 + 2 * 0.1))
    ]
    found = probability_best(theta, covariance[None], np.array([3]))
    np.testing.assert_allclose(found, [1 - sum(wins)], rtol=1e-5)  # float32


def test_position_bias_is_found():
    rng = np.random.default_rng(0)
    strength, bias, games = rng.normal(size=COUNT), 0.8, []
    for _ in range(4000):
        a, b = rng.permutation(COUNT)[:2].tolist()
        games.append((a, b, float(rng.random() < 1 / (1 + math.exp(-(strength[a] - strength[b] + bias))))))
    fitted = fit(tallied([games]), np.array([COUNT]), position_bias=True)
    assert abs(float(fitted.bias[0]) - bias) < 0.15  # 4 standard errors
    np.testing.assert_allclose(fitted.theta[0], strength - strength.mean(), rtol=0, atol=0.25)


def test_derivatives_are_the_implicit_functions():
    games = [(0, 1, 0.6), (1, 2, 0.7), (2, 0, 0.4), (3, 4, 0.9), (0, 4, 0.2)]
    with jax.enable_x64(True):
        tallies = tallied([games], dtype=np.float64)

        def first(score):
            return fit(Tallies(score, tallies.count, tallies.square), jnp.array([COUNT])).theta[0, 0]

        slope = np.asarray(jax.grad(first)(tallies.score))[0]
        for a, b, _ in games:
            step = np.zeros((1, COUNT, COUNT))
            step[0, a, b] = 1e-5
            numeric = (first(tallies.score + step) - first(tallies.score - step)) / 2e-5
            np.testing.assert_allclose(slope[a, b], numeric, rtol=1e-5)  # float64


@settings(max_examples=30, deadline=None)
@given(games_of)
def test_with_the_weakest_prior_rounding_makes_no_strengths(games):
    """float32 agrees with float64, though next to nothing holds those together who have not met."""
    games = games + [(b, a, 0.25) for a, b, _ in games]  # so that no strength runs away
    single = fit(tallied([games], 24), np.array([COUNT]), prior=1e3).theta[0]
    with jax.enable_x64(True):
        double = fit(tallied([games], 24, dtype=np.float64), np.array([COUNT]), prior=1e3).theta[0]
    np.testing.assert_allclose(single, double, rtol=0, atol=5e-3)
    assert abs(np.sum(single)) < 1e-5


def test_who_never_loses_is_far_ahead_without_a_prior_and_nothing_overflows():
    chain = [(a, a + 1, 1.0) for a in range(COUNT - 1)] * 2
    fitted = fit(tallied([chain, []]), np.array([COUNT, COUNT]), prior=np.inf, sandwich=True)
    assert np.isfinite(np.concatenate([np.ravel(x) for x in fitted])).all()
    theta = np.asarray(fitted.theta)
    assert (np.diff(theta[0]) < -4).all()
    assert not theta[1].any()


def test_an_interval_is_of_what_games_tell():
    """Strengths drawn as the prior has them: 95 % of the intervals about them hold them, and they become narrow. What
    all candidates share no game tells, and no strength that is measured from their mean has."""
    count, candidates, each = 400, 4, 100
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, (count, candidates))
    truth -= truth.mean(axis=1, keepdims=True)
    pairs = list(itertools.combinations(range(candidates), 2))
    wins = {(i, j): rng.binomial(each, 1 / (1 + np.exp(truth[:, j] - truth[:, i]))) for i, j in pairs}
    score, games = np.zeros((count, candidates, candidates)), np.zeros((count, candidates, candidates))
    for (i, j), won in wins.items():
        score[:, i, j], games[:, i, j] = won, each
    fitted = fit(Tallies(*(np.float32(x) for x in (score, games, score))), np.full(count, candidates), sandwich=True)
    low, high = (np.asarray(x) for x in intervals(fitted.theta, fitted.covariance))
    assert 0.93 < np.mean((low < truth) & (truth < high)) < 0.97  # of 1,600; a standard error is 0.005
    np.testing.assert_allclose(np.asarray(fitted.covariance).sum(axis=2), 0, atol=1e-4)  # float32
    # The sandwich, which the prior is no part of but for what it shrinks, says nearly the same.
    variance = lambda x: np.diagonal(np.asarray(x), axis1=1, axis2=2)  # noqa: E731
    assert np.median(variance(fitted.sandwich) / variance(fitted.covariance)) == pytest.approx(1, abs=0.1)


def test_intervals_of_other_levels_by_hand():
    low, high = intervals(np.array([[1.0]]), np.array([[[4.0]]]), level=0.6826894921)
    np.testing.assert_allclose([low[0, 0], high[0, 0]], [-1, 3], rtol=0, atol=1e-5)  # one standard deviation; float32


def test_a_weak_prior_hides_no_variance():
    """Maximum likelihood in float32 against float64: 1,000 games of each pair, whose differences are known well."""
    rng = np.random.default_rng(1)
    count = np.triu(np.full((1, 8, 8), 1000.0), 1)
    score = rng.binomial(1000, 0.6, (1, 8, 8)) * (count > 0)
    found = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            tallies = Tallies(*(np.asarray(x, dtype) for x in (score, count, score)))
            for bias in (False, True):
                fitted = fit(tallies, np.array([8]), prior=np.inf, position_bias=bias)
                found[dtype, bias] = np.asarray(fitted.covariance)[0], np.asarray(fitted.bias_variance)[0]
    for bias in (False, True):
        (one, of_bias), (other, expected) = found[np.float32, bias], found[np.float64, bias]
        np.testing.assert_allclose(np.diag(one), np.diag(other), rtol=2e-3)
        assert of_bias == pytest.approx(expected, rel=2e-3)
        assert 1e-4 < np.diag(other).min() < 1e-2
