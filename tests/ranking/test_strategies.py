"""Tournaments with simulated judges: what is asked, what comes out, and what it may depend on."""

import collections
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_judges import Simulated
from test_elo import by_the_formula

from rrm_jax.errors import RrmError
from rrm_jax.ranking.strategies import Comparison, Elo, Item, Knockout, Match, Outcome, run_tournaments

STRATEGIES = (Elo, Knockout)


def items_of(quality):
    return [Item(id, len(values)) for id, values in quality.items()]


def play(quality, strategy, **judge):
    judge = Simulated(quality, **judge)
    return run_tournaments(items_of(quality), strategy, judge), judge


def distinct_quality(counts, seed=0):
    rng = random.Random(seed)
    return {f"q{at}": rng.sample(range(1000), count) for at, count in enumerate(counts)}


def champion(values):
    return max(range(len(values)), key=values.__getitem__)


counts = st.lists(st.integers(1, 13), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(0, 2**64))
def test_knockout_plays_its_bracket_and_finds_the_best(counts, seed):
    quality = distinct_quality(counts, seed)
    results, judge = play(quality, Knockout(seed))
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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(0, 2**64))
def test_elo_plays_each_pair_once_in_one_round(counts, seed):
    quality = distinct_quality([*counts, 9], seed)  # one shape, so that one program is compiled
    results, judge = play(quality, Elo(seed))
    assert len(judge.rounds) <= 1
    for (id, values), result in zip(quality.items(), results, strict=True):
        n = len(values)
        assert result.comparisons == n * (n - 1) // 2 == Elo().most_comparisons(n)
        asked = [frozenset((c.i, c.j)) for c in judge.asked if c.item_id == id]
        assert sorted(map(sorted, asked)) == sorted(map(list, itertools.combinations(range(n), 2)))
        assert result.best == champion(values)
        games = [(c.i, c.j, float(values[c.i] > values[c.j])) for c in judge.asked if c.item_id == id]
        assert result.ratings == pytest.approx(by_the_formula(games, n), abs=2e-4)
        assert list(result.ranking) == sorted(range(n), key=lambda c: -result.ratings[c])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tournament_is_the_same_in_any_company(strategy):
    quality = distinct_quality([5, 8, 1, 2, 7])
    together, _ = play(quality, strategy(3), accuracy=0.7, invalid=0.2)
    backwards, _ = play(dict(reversed(quality.items())), strategy(3), accuracy=0.7, invalid=0.2)
    alone = [play({id: values}, strategy(3), accuracy=0.7, invalid=0.2)[0][0] for id, values in quality.items()]
    for one, two, three in zip(together, reversed(backwards), alone, strict=True):
        assert one.ranking == two.ranking == three.ranking
        assert one.ratings == pytest.approx(two.ratings, abs=1e-4)
        assert one.ratings == pytest.approx(three.ratings, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seeds_and_ids_draw_different_tournaments(strategy):
    def first_round(id, seed):
        judge = Simulated({id: list(range(8))})
        run_tournaments([Item(id, 8)], strategy(seed), judge)
        return tuple((c.i, c.j) for c in judge.rounds[0])

    drawn = {first_round(id, seed) for id in "abc" for seed in range(5)}
    assert len(drawn) == 15
    assert first_round("a", 1) == first_round("a", 1)


def test_brackets_are_drawn_uniformly():
    # 3 possible first rounds of 4 candidates; 600 ids; 4 standard deviations of a count are 46.
    seen = collections.Counter()
    for at in range(600):
        pairs = Knockout(0).propose(Item(str(at), 4), [])
        seen[frozenset(map(frozenset, pairs))] += 1
    assert len(seen) == 3
    assert all(abs(count - 200) < 46 for count in seen.values())


@pytest.mark.parametrize("bracket", [None, (0, 1, 2, 3, 4)])
def test_byes_are_drawn_uniformly_and_not_twice_while_others_had_none(bracket):
    first, twice = collections.Counter(), 0
    for at in range(500):
        judge = Simulated({str(at): [0, 1, 2, 3, 4]})
        run_tournaments([Item(str(at), 5)], Knockout(0, bracket), judge)
        played = [{c for pair in one for c in (pair.i, pair.j)} for one in judge.rounds]
        (bye,) = set(range(5)) - played[0]
        first[bye] += 1
        twice += bye not in played[1]
    assert twice == 0
    assert all(abs(first[c] - 100) < 36 for c in range(5))  # 4 standard deviations


@pytest.mark.parametrize(("strategy", "expected"), [(Elo(), 1000.0), (Elo(invalid="draw"), 1000.0), (Knockout(), 0.0)])
def test_one_candidate_is_not_judged(strategy, expected):
    (result,), judge = play({"only": [3]}, strategy)
    assert judge.rounds == []
    assert (result.best, result.ranking, result.ratings, result.comparisons) == (0, (0,), (expected,), 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_to_rank_is_nothing(strategy):
    assert run_tournaments([], strategy(), Simulated({})) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_wrong_items_are_errors(strategy):
    with pytest.raises(RrmError, match="'empty' has no candidates"):
        run_tournaments([Item("empty", 0)], strategy(), Simulated({}))
    with pytest.raises(RrmError, match="'a' appears twice"):
        run_tournaments([Item("a", 2), Item("a", 3)], strategy(), Simulated({}))


def test_a_compare_function_that_answers_too_little_or_nonsense_is_found_out():
    with pytest.raises(ValueError, match="shorter"):
        run_tournaments([Item("a", 4)], Elo(), lambda asked: [Outcome(1)])
    with pytest.raises(ValueError, match="winner must be"):
        Outcome(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", [Elo(), Knockout()])
def test_no_verdicts_at_all_favour_no_position(strategy):
    quality = {str(at): [0] * 4 for at in range(800)}
    results, _ = play(quality, strategy)
    best = collections.Counter(result.best for result in results)
    assert all(abs(best[c] - 200) < 49 for c in range(4))  # 4 standard deviations
    assert all(result.invalid == result.comparisons == result.invalid_votes for result in results)


def test_draws_leave_equal_ratings_in_an_order_that_favours_no_position():
    quality = {str(at): [0] * 4 for at in range(800)}
    results, _ = play(quality, Elo(invalid="draw"))
    assert all(set(result.ratings) == {1000.0} for result in results)
    for place in range(4):
        at = collections.Counter(result.ranking[place] for result in results)
        assert all(abs(at[c] - 200) < 49 for c in range(4))


def test_an_invalid_comparison_is_a_coin_or_a_draw():
    def ratings(id, **options):
        return run_tournaments([Item(id, 2)], Elo(**options), lambda asked: [Outcome(None)])[0].ratings

    assert ratings("x", invalid="draw") == (1000, 1000)
    coins = collections.Counter(ratings(str(at)) for at in range(400))
    assert set(coins) == {(1002, 998), (998, 1002)}
    assert abs(coins[1002, 998] - 200) < 40


def test_sums_of_votes_tokens_and_cuts():
    outcome = Outcome(1, tokens=11, votes=(1, None, 1, 2), cut_off=1, truncated_inputs=3, forced=2)
    (result,) = run_tournaments([Item("a", 3)], Knockout(), lambda asked: [outcome] * len(asked))
    assert (result.comparisons, result.votes, result.tokens) == (2, 8, 22)
    assert (result.invalid, result.invalid_votes, result.cut_off, result.truncated_inputs, result.forced) == (
        0,
        2,
        2,
        6,
        4,
    )


def test_majorities_help_a_noisy_judge():
    """A judge right 70 % of the time: the winner of 300 tournaments of 8 is best more often by Elo than by knockout,
    which asks four times less, and both beat chance (1/8)."""
    quality = distinct_quality([8] * 300, seed=5)
    right = {}
    for strategy in STRATEGIES:
        results, judge = play(quality, strategy(1), accuracy=0.7)
        right[strategy] = sum(
            result.best == champion(values) for result, values in zip(results, quality.values(), strict=True)
        )
        assert len(judge.asked) == 300 * (28 if strategy is Elo else 7)
    # 0.7³ = 0.34 of knockouts: 103 ± 33 (4 σ).
    assert 70 <= right[Knockout] <= 136
    assert right[Elo] > right[Knockout] + 15


def test_knockout_refuses_a_history_that_is_not_its_own():
    with pytest.raises(ValueError, match="round 1"):
        Knockout(bracket=(0, 1, 2, 3)).propose(Item("a", 4), [Match(0, 2, Outcome(1)), Match(1, 3, Outcome(1))])


def test_a_given_bracket_must_fit_the_item():
    knockout = Knockout(bracket=(2, 0, 1, 3))
    assert knockout.propose(Item("a", 4), []) == [(2, 0), (1, 3)]
    with pytest.raises(RrmError, match="'b' has 3"):
        knockout.propose(Item("b", 3), [])
    with pytest.raises(RrmError, match="each of 0 … 3 once"):
        Knockout(bracket=(2, 2, 1, 3)).propose(Item("c", 4), [])


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
