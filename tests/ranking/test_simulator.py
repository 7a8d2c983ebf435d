"""The simulated judge is what it says it is."""

import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.ranking.field import Pairs, field_of
from rrm_jax.ranking.games import Games
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.rating import Rating, rate, standings
from rrm_jax.ranking.simulator import Simulator, ask_simulator, draw_world, verdicts, world_of_labels
from rrm_jax.ranking.stopping import Stop
from rrm_jax.ranking.strategies import RoundRobin
from rrm_jax.ranking.tournament import play

COUNT, SIZE = 4000, 4
FIELD = field_of([Item(str(at), SIZE) for at in range(COUNT)], 0)
WORLD = draw_world(FIELD, SIZE)
NOTHING = Games(*(np.zeros((COUNT, 1), kind) for kind in (np.int32, np.int32, np.float32, bool)))

pytestmark = pytest.mark.usefixtures("quick_compiles")


def pairs(*named):
    first, second = (np.tile(np.array(x, np.int32), (COUNT, 1)) for x in zip(*named, strict=True))
    return Pairs(first, second, np.ones(first.shape, bool))


def ask(judge, *named, games=NOTHING, world=WORLD):
    return np.asarray(verdicts(judge, world, pairs(*named), games))


@pytest.mark.parametrize(("spread", "right"), [(1.0, 0.725), (2.0, 0.828), (4.0, 0.906)])
def test_noise_is_as_stated(spread, right):
    strength = np.asarray(WORLD.strength)
    named = ask(Simulator(spread), (0, 1), (2, 3))
    better = np.stack([strength[:, 0] > strength[:, 1], strength[:, 2] > strength[:, 3]], axis=1)
    assert abs(np.mean(named == better) - right) < 0.02  # 4 standard errors of 8,000; numbers by drawing 4 M pairs


def test_a_pair_has_one_verdict_a_meeting_whoever_is_named_first():
    judge = Simulator(1.0, position_bias=0.5, pair_error=0.5, intransitivity=0.5, votes=2)
    once = ask(judge, (0, 1), (3, 2))
    np.testing.assert_array_equal(once, 1 - ask(judge, (1, 0), (2, 3)))
    again = ask(judge, (0, 1), (2, 3), (1, 0))
    np.testing.assert_array_equal(again[:, 0], once[:, 0])
    assert 0.1 < np.mean(again[:, 2] == again[:, 0]) < 0.9  # the second meeting is another vote
    played = Games(*(np.asarray(x) for x in (*pairs((0, 1))[:2], once[:, :1], pairs((0, 1)).mask)))
    np.testing.assert_array_equal(ask(judge, (1, 0), games=played)[:, 0], again[:, 2])


def test_votes_help_and_an_error_of_the_pair_limits_them():
    strength = np.asarray(WORLD.strength)
    better = strength[:, 0] > strength[:, 1]
    right = {
        (votes, error): np.mean(ask(Simulator(1.0, pair_error=error, votes=votes), (0, 1))[:, 0] == better)
        for votes in (1, 9)
        for error in (0.0, 3.0)
    }
    assert right[9, 0.0] > right[1, 0.0] + 0.08
    assert right[9, 3.0] < right[1, 3.0] + 0.08


def test_position_bias_favours_nobody_in_particular_and_cycles_come_from_traits():
    biased = ask(Simulator(0.0, position_bias=9.0), (0, 1))
    assert abs(biased.mean() - 0.5) < 0.032
    named = ask(Simulator(0.0, intransitivity=50.0), (0, 1), (1, 2), (2, 0), (0, 1))
    assert np.mean(named[:, 0] == named[:, 3]) > 0.95  # no coins, of which as many cycles would come
    cyclic = np.mean((named[:, :3].sum(axis=1) == 0) | (named[:, :3].sum(axis=1) == 3))
    assert abs(cyclic - 0.25) < 0.03  # three random directions in a plane: a circle round the origin, 1 in 4


def test_position_bias_falls_on_either_by_a_coin_of_its_own():
    """By hand: odds of 1 and a bias of ±1 are (σ(2) + σ(0)) / 2 = 0.6904; equal strengths and any bias ½."""
    strength = np.tile(np.float32([0.5, -0.5, 0.5, 0.5]), (COUNT, 1))
    world = WORLD._replace(strength=strength, traits=np.zeros((COUNT, SIZE, 2), np.float32))
    better = ask(Simulator(1.0, position_bias=1.0), (0, 1), (1, 3), world=world)
    assert abs(better[:, 0].mean() - 0.6904) < 0.03  # 4 standard errors of 4,000
    assert abs(1 - better[:, 1].mean() - 0.6904) < 0.03
    assert abs(ask(Simulator(1.0, position_bias=50.0), (0, 2), world=world).mean() - 0.5) < 0.03


def test_labels_make_a_judge_of_that_accuracy():
    correct = np.tile(np.array([True, False, True, False]), (COUNT, 1))
    world = world_of_labels(FIELD, correct)
    named = ask(Simulator(np.log(4.0).item()), (0, 1), (3, 2), (0, 2), world=world)
    np.testing.assert_allclose(named.mean(axis=0), [0.8, 0.2, 0.5], rtol=0, atol=0.032)  # 4 standard errors


@pytest.mark.thorough
@pytest.mark.parametrize("rating", ["points", "elo"])
def test_the_exact_rule_changes_no_winner_of_ten_thousand_tournaments(rating):
    size = 6
    field = field_of([Item(str(at), size) for at in range(10_000)], 1)
    ask = ask_simulator(Simulator(3.0), draw_world(field, size))
    best, compared = [], []
    whole, early = RoundRobin(in_rounds=True), RoundRobin(in_rounds=True, prune=rating == "points")
    for strategy, stop in ((whole, Stop()), (early, Stop(certain=True))):
        played = play(field, size, strategy, ask, Rating(rating), stop)
        best.append(np.asarray(standings(field, rate(Rating(rating), strategy, field, played.games, size), size))[:, 0])
        compared.append(int(played.compared.sum()))
    np.testing.assert_array_equal(*best)
    saved = 1 - compared[1] / compared[0]
    print(f"by {rating} {100 * saved:.1f} % of the comparisons are saved")
    assert saved > (0.05 if rating == "points" else 0)


def test_wrong_settings_are_refused():
    with pytest.raises(RrmError, match="votes"):
        Simulator(votes=0)
    with pytest.raises(RrmError, match="pair_error"):
        Simulator(pair_error=-1.0)
