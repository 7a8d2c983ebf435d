"""Elo against the formula in plain Python float64 and against published ratings of a real battle log."""

import csv
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.ranking.elo import elo_over_orders, elo_ratings
from rrm_jax.ranking.games import Games


def by_the_formula(matches, count, k=4.0, scale=400.0, initial=1000.0):
    ratings = [initial] * count
    for first, second, score in matches:
        expected = 1 / (1 + 10 ** ((ratings[second] - ratings[first]) / scale))
        gain = k * (score - expected)
        ratings[first] += gain
        ratings[second] -= gain
    return ratings


def arrays(tournaments, dtype=np.float32):
    """Ragged lists of (first, second, score) as padded arrays; the padding is garbage that the mask must hide."""
    shape = (len(tournaments), max(1, *map(len, tournaments)))
    first, second = np.zeros(shape, np.int32), np.ones(shape, np.int32)
    score, mask = np.full(shape, 0.9, dtype), np.zeros(shape, bool)
    for row, matches in enumerate(tournaments):
        for at, (a, b, s) in enumerate(matches):
            first[row, at], second[row, at], score[row, at], mask[row, at] = a, b, s, True
    return first, second, score, mask


COUNT = 6
match = st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.sampled_from([0.0, 0.5, 1.0]))
tournament = st.lists(match.filter(lambda m: m[0] != m[1]), max_size=40)
# Few shapes, so that few programs are compiled: always 3 tournaments, padded to 40 matches.
tournaments = st.lists(tournament, min_size=3, max_size=3)


def rate(tournaments, dtype=np.float32, **options):
    first, second, score, mask = arrays([*tournaments, [(0, 1, 0.5)] * 40], dtype)
    return np.asarray(elo_ratings(first, second, score, mask, COUNT, **options))[:-1]


@settings(max_examples=60, deadline=None)
@given(tournaments, st.sampled_from([4.0, 32.0]), st.sampled_from([400.0, 173.7]))
def test_float64_equals_the_formula(games, k, scale):
    with jax.enable_x64(True):
        ratings = rate(games, np.float64, k=k, scale=scale, initial=1500.0)
    assert ratings.dtype == np.float64
    expected = [by_the_formula(matches, COUNT, k, scale, 1500.0) for matches in games]
    np.testing.assert_allclose(ratings, expected, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(tournaments)
def test_float32_equals_the_formula_within_its_digits(games):
    ratings = rate(games)
    assert ratings.dtype == np.float32
    expected = [by_the_formula(matches, COUNT) for matches in games]
    np.testing.assert_allclose(ratings, expected, rtol=0, atol=2e-4)  # float32 near 1000 has steps of 6e-5


@settings(max_examples=30, deadline=None)
@given(tournament, st.permutations(range(COUNT)))
def test_names_of_candidates_do_not_matter(games, renamed):
    plain, moved = rate([games, [(renamed[a], renamed[b], s) for a, b, s in games], []])[:2]
    np.testing.assert_allclose(moved[list(renamed)], plain, rtol=0, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(tournament)
def test_who_is_named_first_does_not_matter(games):
    plain, swapped = rate([games, [(b, a, 1 - s) for a, b, s in games], []])[:2]
    np.testing.assert_allclose(swapped, plain, rtol=0, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(tournaments)
def test_rating_points_are_moved_not_made(games):
    np.testing.assert_allclose(rate(games).mean(axis=1), 1000.0, rtol=0, atol=1e-4)


def test_masked_matches_and_absent_candidates_keep_the_initial_rating():
    ratings = rate([[], [(4, 1, 1.0)], []])
    assert (ratings[0] == 1000).all()
    assert (ratings[1] == [1000, 998, 1000, 1000, 1002, 1000]).all()


def test_order_of_games_matters_as_it_does_in_the_formula():
    games = [(0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0)]
    forwards, backwards = rate([games, games[::-1], []])[:2]
    assert forwards.argmax() == by_the_formula(games, 3).index(max(by_the_formula(games, 3)))
    assert forwards.argmax() != backwards.argmax()


def test_integer_scores_and_plain_lists_are_taken():
    ratings = elo_ratings(np.array([[0]]), np.array([[1]]), np.array([[1]]), np.array([[True]]), 2)
    assert ratings.dtype == np.float32
    assert ratings.tolist() == [[1002, 998]]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_any_number_of_matches_is_played_to_the_end(length):
    games = [(at % COUNT, (at + 1) % COUNT, float(at % 3) / 2) for at in range(length)]
    ratings = elo_ratings(*arrays([games, games[:-1]]), COUNT)
    np.testing.assert_allclose(ratings[0], by_the_formula(games, COUNT), rtol=0, atol=2e-4)
    np.testing.assert_allclose(ratings[1], by_the_formula(games[:-1], COUNT), rtol=0, atol=2e-4)


def test_the_mean_over_drawn_orders_is_the_mean_over_all_orders():
    games = [(0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0), (0, 1, 0.0)]
    every = np.array([by_the_formula(order, 3, k=200.0) for order in itertools.permutations(games)])
    # A gap between the games, and another tournament beside them: neither may change anything.
    first, second, score, mask = arrays([[games[0], (0, 1, 0.3), *games[1:]], [(0, 1, 1.0)]])
    mask[0, 1] = False
    drawn = Games(first, second, score, mask)
    keys = np.array([[1, 2], [3, 4]], np.uint32)
    mean, spread = elo_over_orders(drawn, keys, 3, orders=4000, k=200.0)
    error = 4.5 * every.std(axis=0) / np.sqrt(4000)
    assert (np.abs(mean[0] - every.mean(axis=0)) < error).all()
    np.testing.assert_allclose(spread[0], every.std(axis=0), rtol=0.06)
    np.testing.assert_allclose([mean[1], spread[1]], [[1100, 900, 1000], [0, 0, 0]], rtol=0, atol=1e-4)  # float32
    again, _ = elo_over_orders(drawn, keys, 3, orders=100, k=200.0)
    other, _ = elo_over_orders(drawn, keys + 1, 3, orders=100, k=200.0)
    assert (again == elo_over_orders(drawn, keys, 3, orders=100, k=200.0)[0]).all()
    assert (again[0] != other[0]).all()


def test_derivatives_are_those_of_the_formula():
    games = [(0, 1, 0.8), (1, 2, 0.3), (2, 0, 0.6), (3, 1, 0.5), (0, 1, 0.1)] * 4
    with jax.enable_x64(True):
        first, second, score, mask = arrays([games], np.float64)
        mask[0, 7] = False

        def last(score, k):
            return elo_ratings(first, second, score, mask, 4, k=k)[0, 1]

        by_score, by_k = jax.grad(last, argnums=(0, 1))(jnp.asarray(score), 40.0)
        for at in range(len(games)):
            step = np.zeros_like(score)
            step[0, at] = 1e-4
            numeric = (last(score + step, 40.0) - last(score - step, 40.0)) / 2e-4
            np.testing.assert_allclose(by_score[0, at], numeric, rtol=1e-6, atol=1e-8)  # float64
        np.testing.assert_allclose(by_k, (last(score, 40.01) - last(score, 39.99)) / 0.02, rtol=1e-6)
    assert by_score[0, 7] == 0


BATTLES = {"llmfao": 8931, "food": 30, "simple": 16}


@pytest.mark.parametrize("name", BATTLES)
def test_real_battles_give_the_published_ratings(real_data, name):
    folder = real_data / "evalica_battles"
    with open(folder / f"{name}.csv", encoding="utf-8") as file:
        battles = list(csv.DictReader(file))
    assert len(battles) == BATTLES[name]
    with open(folder / f"{name}-golden.csv", encoding="utf-8") as file:
        golden = {row["item"]: float(row["score"]) for row in csv.DictReader(file) if row["algorithm"] == "elo"}
    at = {player: index for index, player in enumerate(golden)}
    score = {"left": 1.0, "right": 0.0, "tie": 0.5}
    games = [(at[row["left"]], at[row["right"]], score[row["winner"]]) for row in battles]
    expected = list(golden.values())
    with jax.enable_x64(True):
        exact = np.asarray(elo_ratings(*arrays([games], np.float64), len(at)))[0]
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-9)
    single = np.asarray(elo_ratings(*arrays([games]), len(at)))[0]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-3)  # points; ratings differ by tenths of a point
    assert np.argsort(single).tolist() == np.argsort(expected).tolist()
