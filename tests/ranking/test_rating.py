"""What must hold of every rating by order-free sums or by the games played, for any games: hypothesis draws them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.ranking.field import field_of
from rrm_jax.ranking.games import Games, pad_games
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.rating import RATINGS, Rating, rate, standings
from rrm_jax.ranking.strategies import RoundRobin

COUNT, LENGTH = 6, 30
NAMES = [name for name in RATINGS if name != "survived"]  # which is a knockout's, and tested with it
ATOL = 2e-3  # float32 near 1000

game = st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])).filter(
    lambda g: g[0] != g[1]
)
games_of = st.lists(game, max_size=LENGTH)


def rated(name, games, count=COUNT, orders=5):
    """`games` a list, or Games [1, M]."""
    games = games if isinstance(games, Games) else pad_games([games], length=LENGTH)
    field = field_of([Item("query", count)], 0)
    return np.asarray(rate(Rating(name, orders=orders), RoundRobin(), field, games, COUNT))[0]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(games_of)
def test_any_graph_is_rated_with_finite_numbers(name, games):
    assert np.isfinite(rated(name, games)).all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(games_of, st.permutations(range(COUNT)))
def test_renamed_candidates_have_each_others_ratings(name, games, renamed):
    moved = rated(name, [(renamed[a], renamed[b], s) for a, b, s in games])
    np.testing.assert_allclose(moved[list(renamed)], rated(name, games), rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(games_of, st.randoms())
def test_what_is_masked_might_as_well_not_be_there(name, games, random):
    kept = [random.random() < 0.7 for _ in games]
    full = pad_games([games], length=LENGTH)
    mask = full.mask.copy()
    mask[0, : len(games)] = kept
    garbage = [np.where(mask, x, bad) for x, bad in ((full.first, 99), (full.second, -5), (full.score, np.nan))]
    # "elo-mean" draws its orders by the games' places, so the rest keeps its places there, and moves up elsewhere.
    dropped = [g for g, keep in zip(games, kept, strict=True) if keep]
    plain = full._replace(mask=mask) if name == "elo-mean" else dropped
    np.testing.assert_allclose(rated(name, Games(*garbage, mask)), rated(name, plain), rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("elo")])
@settings(max_examples=25, deadline=None)
@given(games_of, st.randoms())
def test_ratings_by_sums_do_not_depend_on_the_order_of_games(name, games, random):
    shuffled = random.sample(games, len(games))
    np.testing.assert_allclose(rated(name, shuffled), rated(name, games), rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, COUNT - 1), st.randoms())
def test_who_beats_everybody_is_first(name, best, random):
    """In a round robin, in which the others' results are anything. By sequential Elo, late wins are worth as much as
    early ones only if K is small beside the scale, as it is."""
    pairs = random.sample(list(itertools.combinations(range(COUNT), 2)), COUNT * (COUNT - 1) // 2)
    games = [(a, b, float(a == best) if best in (a, b) else random.choice([0.0, 0.5, 1.0])) for a, b in pairs]
    ratings = rated(name, games)
    assert ratings.argmax() == best
    assert np.sum(ratings == ratings[best]) == 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.permutations(range(COUNT)), st.randoms())
def test_a_perfect_judges_round_robin_gives_the_right_order(name, quality, random):
    pairs = random.sample(list(itertools.combinations(range(COUNT), 2)), COUNT * (COUNT - 1) // 2)
    ratings = rated(name, [(a, b, float(quality[a] > quality[b])) for a, b in pairs])
    assert ratings.argsort().tolist() == np.argsort(quality).tolist()


def test_win_rates_weigh_every_opponent_alike():
    games = [(0, 1, 1.0), (0, 1, 1.0), (0, 1, 0.0), (2, 0, 1.0)]
    np.testing.assert_allclose(rated("win-rate", games, 4), [1 / 3, 1 / 3, 1, 0.5, -np.inf, -np.inf], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_rated_last(name):
    ratings = rated(name, [(0, 1, 1.0)], count=3)
    assert (ratings[3:] == -np.inf).all()
    field = field_of([Item("query", 3)], 0)
    assert np.asarray(standings(field, jnp.asarray(ratings)[None], COUNT))[0, 3:].tolist() == [3, 4, 5]
