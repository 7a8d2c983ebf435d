"""Tournaments with simulated judges: what is asked, what comes out, and what it may depend on."""

import collections
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_judges import Simulated, champion, distinct_quality, play, results_of
from test_elo import by_the_formula

from rrm_jax.errors import RrmError
from rrm_jax.ranking.adaptive import Adaptive
from rrm_jax.ranking.protocol import Comparison, Item, Outcome
from rrm_jax.ranking.rating import Rating
from rrm_jax.ranking.strategies import Knockout, RandomOpponents, RoundRobin, Swiss

pytestmark = pytest.mark.usefixtures("quick_compiles")


STRATEGIES = (RoundRobin(), RoundRobin(in_rounds=True), RandomOpponents(2), Knockout(), Knockout(seeding=1), Swiss())
STRATEGIES = (*STRATEGIES, Adaptive(correlation=0.0))
NAMES = [f"{type(strategy).__name__}-{at}" for at, strategy in enumerate(STRATEGIES)]


counts = st.lists(st.integers(1, 13), min_size=4, max_size=4)


@settings(max_examples=30, deadline=None)
@given(counts, st.integers(0, 2**64))
def test_knockout_plays_its_bracket_and_finds_the_best(counts, seed):
    quality = distinct_quality([*counts, 13], seed)  # one shape, so that one program is compiled
    results, judge = play(quality, Knockout(), seed)
    for (id, values), result in zip(quality.items(), results, strict=True):
        n = len(values)
        assert (result.id, result.best) == (id, champion(values))
        assert result.ranking[0] == result.best
        assert sorted(result.ranking) == list(range(n))
        assert result.comparisons == n - 1 == Knockout().most_comparisons(n)
        assert result.tokens == 7 * (n - 1)
        mine = [[c for c in one if c.item_id == id] for one in judge.rounds]
        mine = [one for one in mine if one]
        assert len(mine) == math.ceil(math.log2(n))
        lost = set()
        for one in mine:
            taking_part = [c for pair in one for c in (pair.i, pair.j)]
            assert len(taking_part) == len(set(taking_part)) == 2 * ((n - len(lost)) // 2)
            assert not lost & set(taking_part)
            lost |= {min((pair.i, pair.j), key=values.__getitem__) for pair in one}
        assert result.ratings[result.best] == len(mine) == max(result.ratings)
        assert list(result.ratings).count(float(len(mine))) == 1


def test_after_a_round_of_seeding_those_who_won_meet_those_who_lost():
    quality = distinct_quality([8] * 6)
    results, judge = play(quality, Knockout(seeding=1))
    assert [one.best for one in results] == [champion(values) for values in quality.values()]
    for id, values in quality.items():
        before, after = ([(c.i, c.j) for c in one if c.item_id == id] for one in judge.rounds[:2])
        won = {max(pair, key=values.__getitem__) for pair in before}
        assert [len(won.intersection(pair)) for pair in after] == [1] * 4


def test_a_game_without_a_winner_goes_to_either_by_a_fair_coin():
    """160 coins, whose standard deviation is 6.3."""
    _, judge = play({f"q{at}": [0] * 8 for at in range(40)}, Knockout(), how={"invalid": "draw"})
    there = {(c.item_id, at) for c in judge.rounds[1] for at in (c.i, c.j)}
    assert abs(sum((c.item_id, c.i) in there for c in judge.rounds[0]) - 80) < 26


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(0, 2**64))
def test_elo_plays_each_pair_once_in_one_round(counts, seed):
    quality = distinct_quality([*counts, 9], seed)  # one shape, so that one program is compiled
    results, judge = play(quality, RoundRobin(), seed)
    assert len(judge.rounds) <= 1
    for (id, values), result in zip(quality.items(), results, strict=True):
        n = len(values)
        assert result.comparisons == n * (n - 1) // 2 == RoundRobin().most_comparisons(n)
        asked = [frozenset((c.i, c.j)) for c in judge.asked if c.item_id == id]
        assert sorted(map(sorted, asked)) == sorted(map(list, itertools.combinations(range(n), 2)))
        assert result.best == champion(values)
        games = [(c.i, c.j, float(values[c.i] > values[c.j])) for c in judge.asked if c.item_id == id]
        assert result.ratings == pytest.approx(by_the_formula(games, n), abs=2e-4)
        assert list(result.ranking) == sorted(range(n), key=lambda c: -result.ratings[c])


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_a_tournament_is_the_same_in_any_company(strategy):
    quality = distinct_quality([5, 8, 1, 2, 7])
    together, _ = play(quality, strategy, 3, accuracy=0.7, invalid=0.2)
    backwards, _ = play(dict(reversed(quality.items())), strategy, 3, accuracy=0.7, invalid=0.2)
    alone = [play({id: values}, strategy, 3, accuracy=0.7, invalid=0.2)[0][0] for id, values in quality.items()]
    for one, two, three in zip(together, reversed(backwards), alone, strict=True):
        assert one.ranking == two.ranking == three.ranking
        assert one.ratings == pytest.approx(two.ratings, abs=1e-4)
        assert one.ratings == pytest.approx(three.ratings, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_seeds_and_ids_draw_different_tournaments(strategy):
    def first_round(id, seed):
        judge = Simulated({id: list(range(8))})
        results_of([Item(id, 8)], strategy, judge, seed=seed)
        return tuple((c.i, c.j) for c in judge.rounds[0])

    drawn = {first_round(id, seed) for id in "abc" for seed in range(5)}
    assert len(drawn) == 15
    assert first_round("a", 1) == first_round("a", 1)


def test_brackets_are_drawn_uniformly():
    # 3 possible first rounds of 4 candidates; 600 ids; 4 standard deviations of a count are 46.
    _, judge = play({str(at): [0, 1, 2, 3] for at in range(600)}, Knockout())
    by_item = collections.defaultdict(set)
    for c in judge.rounds[0]:
        by_item[c.item_id].add(frozenset((c.i, c.j)))
    seen = collections.Counter(frozenset(pairs) for pairs in by_item.values())
    assert len(seen) == 3
    assert all(abs(count - 200) < 46 for count in seen.values())


@pytest.mark.parametrize("bracket", [None, (0, 1, 2, 3, 4)])
def test_byes_are_drawn_uniformly_and_not_twice_while_others_had_none(bracket):
    _, judge = play({str(at): [0, 1, 2, 3, 4] for at in range(500)}, Knockout(bracket))
    first, twice = collections.Counter(), 0
    for at in range(500):
        played = [{c for pair in one if pair.item_id == str(at) for c in (pair.i, pair.j)} for one in judge.rounds]
        (bye,) = set(range(5)) - played[0]
        first[bye] += 1
        twice += bye not in played[1]
    assert twice == 0
    assert all(abs(first[c] - 100) < 36 for c in range(5))  # 4 standard deviations


@pytest.mark.parametrize(
    ("strategy", "expected"), [*zip(STRATEGIES, [1000.0] * 3 + [0.0] * 2 + [1000.0] * 2, strict=True)], ids=NAMES
)
def test_one_candidate_is_not_judged(strategy, expected):
    (result,), judge = play({"only": [3]}, strategy)
    assert judge.rounds == []
    assert (result.best, result.ranking, result.ratings, result.comparisons) == (0, (0,), (expected,), 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_to_rank_is_nothing(strategy):
    assert results_of([], strategy, Simulated({})) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_wrong_items_are_errors(strategy):
    with pytest.raises(RrmError, match="'empty' has no candidates"):
        results_of([Item("empty", 0)], strategy, Simulated({}))
    with pytest.raises(RrmError, match="'a' appears twice"):
        results_of([Item("a", 2), Item("a", 3)], strategy, Simulated({}))


def test_a_compare_function_that_answers_too_little_or_nonsense_is_found_out():
    with pytest.raises(ValueError, match="shorter"):
        results_of([Item("a", 4)], RoundRobin(), lambda asked: [Outcome(1)])
    with pytest.raises(ValueError, match="winner must be"):
        Outcome(0)  # type: ignore[arg-type]


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", [RoundRobin(), Knockout(), Swiss(), Adaptive()])
def test_no_verdicts_at_all_favour_no_position(strategy):
    quality = {str(at): [0] * 4 for at in range(800)}
    results, _ = play(quality, strategy)
    best = collections.Counter(result.best for result in results)
    assert all(abs(best[c] - 200) < 49 for c in range(4))  # 4 standard deviations
    assert all(result.invalid == result.comparisons == result.invalid_votes for result in results)


def test_a_strength_lies_in_the_middle_of_its_interval():
    (result,), _ = play({"a": [3, 2, 1, 0]}, RoundRobin())
    for low, strength, high in zip(result.low, result.strengths, result.high, strict=True):
        assert low < strength < high
        assert strength - low == pytest.approx(high - strength, rel=1e-3)  # float32, near 1000


def test_a_round_has_room_for_what_it_asks():
    assert Adaptive().shape(16)[1] == 8  # of its knockout's first round; then 4 a round
    assert Adaptive(parallel=20).shape(16)[1] == 20


def test_draws_leave_equal_ratings_in_an_order_that_favours_no_position():
    quality = {str(at): [0] * 4 for at in range(800)}
    results, _ = play(quality, RoundRobin(), how={"invalid": "draw"})
    assert all(set(result.ratings) == {1000.0} for result in results)
    for place in range(4):
        at = collections.Counter(result.ranking[place] for result in results)
        assert all(abs(at[c] - 200) < 49 for c in range(4))


def test_an_invalid_comparison_is_a_coin_or_a_draw():
    def ratings(id, **options):
        return results_of([Item(id, 2)], RoundRobin(), lambda asked: [Outcome(None)], **options)[0].ratings

    assert ratings("x", invalid="draw") == (1000, 1000)
    coins = collections.Counter(ratings(str(at)) for at in range(400))
    assert set(coins) == {(1002, 998), (998, 1002)}
    assert abs(coins[1002, 998] - 200) < 40


def test_sums_of_votes_tokens_and_cuts():
    outcome = Outcome(1, tokens=11, votes=(1, None, 1, 2), cut_off=1, truncated_inputs=3, forced=2)
    (result,) = results_of([Item("a", 3)], Knockout(), lambda asked: [outcome] * len(asked))
    assert (result.comparisons, result.votes, result.tokens) == (2, 8, 22)
    assert (result.invalid, result.invalid_votes, result.cut_off, result.truncated_inputs, result.forced) == (
        0,
        2,
        2,
        6,
        4,
    )


def test_more_comparisons_help_a_noisy_judge():
    """A judge right 70 % of the time: the winner of 900 tournaments of 8 is best more often by Elo than by knockout,
    which asks four times less, and both beat chance (1/8)."""
    quality = distinct_quality([8] * 900, seed=5)
    right = {}
    for strategy in (RoundRobin(), Knockout()):
        results, judge = play(quality, strategy, 1, accuracy=0.7)
        right[type(strategy)] = sum(
            result.best == champion(values) for result, values in zip(results, quality.values(), strict=True)
        )
        assert len(judge.asked) == 900 * strategy.most_comparisons(8)
    # 0.7³ = 0.343 of knockouts: 309 ± 57 (4 σ).
    assert 252 <= right[Knockout] <= 366
    assert right[RoundRobin] > right[Knockout]


def test_a_given_bracket_must_fit_the_item():
    _, judge = play({"a": [0, 1, 2, 3]}, Knockout(bracket=(2, 0, 1, 3)))
    assert [(c.i, c.j) for c in judge.rounds[0]] == [(2, 0), (1, 3)]
    with pytest.raises(RrmError, match="'b' has 3"):
        play({"b": [0, 1, 2]}, Knockout(bracket=(2, 0, 1, 3)))
    with pytest.raises(RrmError, match="each of 0 … once"):
        Knockout(bracket=(2, 2, 1, 3))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_a_perfect_judge_gives_the_best(strategy):
    quality = distinct_quality([5, 8, 1, 2, 7, 3, 4, 6])
    how = {"rating": Rating("points")} if isinstance(strategy, RandomOpponents) else {}
    results, judge = play(quality, strategy, how=how)
    for result, (id, values) in zip(results, quality.items(), strict=True):
        assert result.comparisons <= strategy.most_comparisons(len(values))
        met = collections.Counter((frozenset((c.i, c.j)), c.meeting) for c in judge.asked if c.item_id == id)
        assert set(met.values()) <= {1}  # who meets again is told so
        assert all(c.i != c.j and max(c.i, c.j) < len(values) for c in judge.asked if c.item_id == id)
        if not isinstance(strategy, RandomOpponents):  # with few opponents two may lose to none
            assert result.best == champion(values)


def test_random_opponents_are_distinct_and_as_many_as_asked():
    _, judge = play({str(at): list(range(6)) for at in range(50)}, RandomOpponents(3))
    for at in range(50):
        mine = [(c.i, c.j) for c in judge.asked if c.item_id == str(at)]
        assert len(mine) == len(set(mine)) == 18
        assert collections.Counter(i for i, _ in mine) == dict.fromkeys(range(6), 3)


def test_swiss_pairs_equals_and_hardly_anybody_twice():
    quality = {"even": [*range(8)], "odd": [*range(7)]}
    _, judge = play(quality, Swiss(rounds=4))
    for id, values in quality.items():
        points, met, sat_out = collections.Counter(), set(), []
        for one in judge.rounds:
            mine = [c for c in one if c.item_id == id]
            assert len({x for c in mine for x in (c.i, c.j)}) == 2 * (len(values) // 2)
            sat_out += set(range(len(values))) - {x for c in mine for x in (c.i, c.j)}
            for c in mine:
                assert abs(points[c.i] - points[c.j]) <= 2  # where all nearer ones were met before
                met.add(frozenset((c.i, c.j)))
            for c in mine:
                points[c.i if values[c.i] > values[c.j] else c.j] += 1
        assert len(set(sat_out)) == len(sat_out)
        assert len(met) >= sum(len(values) // 2 for _ in range(4)) - 1


def test_comparisons_of_a_round_come_together_across_items():
    quality = distinct_quality([4, 8, 3])
    _, judge = play(quality, Knockout())
    ids = [[comparison.item_id for comparison in one] for one in judge.rounds]
    assert [collections.Counter(one) for one in ids] == [
        {"q0": 2, "q1": 4, "q2": 1},
        {"q0": 1, "q1": 2, "q2": 1},
        {"q1": 1},
    ]
    assert all(isinstance(comparison, Comparison) for comparison in judge.asked)
