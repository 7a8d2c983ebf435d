"""Whom the adaptive strategy asks about, and when nothing can change any more."""

import numpy as np
import pytest

from rrm_jax.ranking.adaptive import Adaptive
from rrm_jax.ranking.bradley_terry import elo_scale, fit
from rrm_jax.ranking.field import field_of
from rrm_jax.ranking.games import Games, tally
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.rating import Rating, rate
from rrm_jax.ranking.stopping import winner_is_certain
from rrm_jax.ranking.strategies import RoundRobin

pytestmark = pytest.mark.usefixtures("quick_compiles")
COUNT = 4000


def games_of(results, count=COUNT) -> Games:
    """(First, second, score) of one tournament, in all alike."""
    first, second, score = (np.tile(np.array(x), (count, 1)) for x in zip(*results, strict=True))
    return Games(first.astype(np.int32), second.astype(np.int32), score.astype(np.float32), np.ones(first.shape, bool))


def test_whoever_little_is_known_of_challenges_most_among_equals():
    """1, 2 and 3 have won half against each other; 2 has played least, so the best draws are most often its own."""
    field = field_of([Item(str(at), 4) for at in range(COUNT)], 0)
    results = [(0, 1, 1)] * 3 + [(0, 2, 1)] * 3 + [(1, 3, 1), (1, 3, 0)] * 8 + [(2, 3, 1), (2, 3, 0)]
    asked = Adaptive()._challenges(field, games_of(results), 3, 4, 4)
    named = np.asarray(asked.second)[np.asarray(asked.mask)]
    share = np.bincount(named, minlength=4) / named.size
    assert share[0] == 0  # the leader
    assert share[2] > max(share[1], share[3]) + 0.03  # 0.39, 0.31, 0.30; 3 standard errors are 0.023


def test_votes_that_repeat_themselves_count_whole_where_no_correlation_is_said():
    field = field_of([Item("x", 3)], 0)
    games = games_of([(0, 1, 1)] * 5 + [(0, 1, 0), (1, 2, 1)], 1)
    rated = rate(Rating("bradley-terry"), RoundRobin(), field, games, 3)
    theta = fit(tally(games, 3), field.count).theta
    np.testing.assert_array_equal(rated, elo_scale(theta, 1000.0, 400.0))
    tempered = rate(Rating("bradley-terry"), Adaptive(correlation=1.0), field, games, 3)
    assert abs(float(tempered[0, 0] - rated[0, 0])) > 20


def test_the_exact_rule_reckons_with_gaps_that_widen():
    """By hand, k = scale = 400: A beats B, 1200 and 800, then C, who was expected to lose by 0.76, 1296.1 and 903.9.
    One game is left, of the two losers. Were no gap wider than today's 496 it could bring C 378 points, too few; the
    bound is 400 σ((496 + 2 · 400) ln 10 / 400) = 399.8, enough."""
    field = field_of([Item("x", 3)], 0)
    rating, games = Rating("elo", k=400.0), games_of([(0, 1, 1), (0, 2, 1)], 1)
    rated = np.asarray(rate(rating, RoundRobin(), field, games, 3))[0]
    np.testing.assert_allclose(rated, [1296.1, 800.0, 903.9], atol=0.05)
    assert not winner_is_certain(rating, RoundRobin(), field, games, 3)[0]
    assert winner_is_certain(rating, RoundRobin(), field, games_of([(0, 1, 1), (0, 2, 1), (1, 2, 1)], 1), 3)[0]
