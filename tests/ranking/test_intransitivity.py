"""Cycles, upsets, winners and brackets against definitions that are counted out, and against known examples."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rrm_jax.errors import RrmError
from rrm_jax.ranking import intransitivity as m

quick = settings(max_examples=60, deadline=None)

# What a dog preferred of meat, biscuit, chocolate, apple, pear, cheese (Kendall and Babington Smith 1940).
DOG = np.array(
    [
        [0, 1, 1, 0, 1, 1],
        [0, 0, 0, 1, 1, 0],
        [0, 1, 0, 1, 1, 1],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 1],
        [0, 1, 0, 1, 0, 0],
    ]
)
ROCK_PAPER_SCISSORS = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def one_game_a_pair(n, seed, share=1.0):
    """A random tournament; of its pairs about `share` are played."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < 0.5, 1)
    points = upper | (~upper.T & np.tril(np.ones((n, n), bool), -1))
    played = np.triu(rng.random((n, n)) < share, 1)
    return (points & (played | played.T)).astype(float)


def matrices(most, whole=False):
    """Several games a pair, ties and pairs without games included."""

    def build(n):
        halves = hnp.arrays(np.int64, (n, n), elements=st.integers(0, 3))
        return halves.map(lambda a: a / 2 * ~np.eye(n, dtype=bool))

    played = st.integers(1, most).flatmap(build)
    single = st.builds(one_game_a_pair, st.integers(1, most), st.integers(0, 10**6))
    return single if whole else st.one_of(played, single)


@quick
@given(matrices(7))
def test_cycles_and_triples_are_those_counted_one_by_one(points):
    beats = m.majority(points)
    cycles = triples = 0
    for a, b, c in itertools.combinations(range(len(points)), 3):
        triples += all(beats[x, y] or beats[y, x] for x, y in ((a, b), (b, c), (a, c)))
        cycles += bool((beats[a, b] and beats[b, c] and beats[c, a]) or (beats[a, c] and beats[c, b] and beats[b, a]))
    assert m.three_cycles(beats) == (cycles, triples)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 65, 300])
def test_cycles_of_whole_tournaments_follow_from_the_scores(n):
    points = one_game_a_pair(n, seed=n)
    from_scores = math.comb(n, 3) - sum(math.comb(int(score), 2) for score in points.sum(1))
    assert m.three_cycles(m.majority(points)) == (from_scores, math.comb(n, 3))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_all_tournaments_give_the_chance_figures_and_the_maximum(n):
    pairs = list(itertools.combinations(range(n), 2))
    counts = []
    for results in itertools.product((False, True), repeat=len(pairs)):
        beats = np.zeros((n, n), bool)
        for (i, j), i_wins in zip(pairs, results, strict=True):
            beats[(i, j) if i_wins else (j, i)] = True
        counts.append(m.three_cycles(beats)[0])
    found = m.of_tournament(np.triu(np.ones((n, n)), 1))
    assert found.chance_cycles == pytest.approx((np.mean(counts), np.std(counts)), abs=1e-12)
    assert max(counts) == m.most_three_cycles(n)


def test_chance_figures_hold_where_pairs_are_missing():
    played = [(0, 1), (1, 2), (0, 2), (0, 3), (1, 3), (3, 4), (0, 4)]
    counts = []
    for results in itertools.product((False, True), repeat=len(played)):
        points = np.zeros((5, 5))
        for (i, j), i_wins in zip(played, results, strict=True):
            points[(i, j) if i_wins else (j, i)] = 1
        found = m.of_tournament(points)
        assert found.triples == 3
        counts.append(found.cycles)
    assert found.chance_cycles == pytest.approx((np.mean(counts), np.std(counts)), abs=1e-12)


def cost(weight, order):
    """What the order costs: weight[i, j] for each i that stands behind a j."""
    return sum(weight[order[later], order[earlier]] for later in range(len(order)) for earlier in range(later))


@quick
@given(matrices(6), st.sampled_from(["count", "margin"]))
def test_no_order_contradicts_less_than_the_one_found(points, by):
    found = m.fewest_upsets(points, by)
    beats = m.majority(points)
    weight = np.where(beats, points - points.T if by == "margin" else 1, 0)
    least = min(cost(weight, order) for order in itertools.permutations(range(len(points))))
    assert found.exact
    assert found.weight == pytest.approx(least, abs=1e-12) == cost(weight, found.order)
    assert found.total == pytest.approx(weight.sum(), abs=1e-12)
    place = {candidate: at for at, candidate in enumerate(found.order)}
    assert sorted(place) == list(range(len(points)))
    assert set(found.pairs) == {(i, j) for i, j in np.argwhere(beats).tolist() if place[i] > place[j]}


def chained(*blocks):
    """Tournaments in which everyone in a block beats everyone in the blocks behind it."""
    n = sum(map(len, blocks))
    points, start = np.triu(np.ones((n, n)), 1), 0
    for block in blocks:
        points[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return points


def test_many_candidates_in_small_components_are_exact():
    points = chained(*[ROCK_PAPER_SCISSORS] * 10, *[one_game_a_pair(1, 0)] * 5, DOG)
    shuffle = np.random.default_rng(0).permutation(len(points))
    found = m.fewest_upsets(points[np.ix_(shuffle, shuffle)])
    assert (found.exact, found.weight, found.total) == (True, 10 + 2, math.comb(41, 2))


def test_a_large_component_is_labelled_as_a_bound_that_is_seldom_missed():
    missed = []
    for seed in range(20):
        points = one_game_a_pair(12, seed)
        exact, bound = m.fewest_upsets(points), m.fewest_upsets(points, most_exact=2)
        assert exact.exact
        assert bound.exact == (bound.weight == 0 == len(bound.pairs))
        missed.append(bound.weight - exact.weight)
    assert min(missed) == 0
    assert np.mean(missed) < 0.3  # of about 13 upsets
    large = m.fewest_upsets(one_game_a_pair(60, 1))
    assert not large.exact
    assert large.weight < 0.42 * large.total


@quick
@given(matrices(6))
def test_condorcet_winner_and_top_cycle_are_what_their_definitions_say(points):
    beats, everyone = m.majority(points), range(len(points))
    alone = [i for i in everyone if all(beats[i, j] for j in everyone if j != i)]
    assert m.condorcet_winner(beats) == (alone[0] if alone else None)
    dominant = [
        inside
        for size in range(1, len(points) + 1)
        for inside in itertools.combinations(everyone, size)
        if all(beats[i, j] for i in inside for j in everyone if j not in inside)
    ]
    assert tuple(m.top_cycle(beats)) == min(dominant, key=len)


def champions_by_listing(points):
    """Every order of the bracket, every bye and every result in turn: neighbours meet, and a bye goes to the end."""
    n = len(points)
    total = [Fraction(0)] * n

    def chance(i, j):
        games = points[i, j] + points[j, i]
        return Fraction(points[i, j] / games).limit_denominator(100) if games else Fraction(1, 2)

    def play(alive, had_bye, through, weight):
        """`alive` are still to meet in this round, `through` are in the next."""
        if weight == 0:
            return
        if len(alive) >= 2:
            i, j = alive[:2]
            play(alive[2:], had_bye, (*through, i), weight * chance(i, j))
            play(alive[2:], had_bye, (*through, j), weight * chance(j, i))
        elif through:
            start_round((*through, *alive), had_bye, weight)
        else:
            total[alive[0]] += weight

    def start_round(alive, had_bye, weight):
        if len(alive) % 2 == 0 or len(alive) == 1:
            play(alive, had_bye, (), weight)
            return
        fresh = [c for c in alive if c not in had_bye] or alive
        for bye in fresh:
            rest = tuple(c for c in alive if c != bye)
            play((*rest, bye), had_bye | {bye}, (), weight / len(fresh))

    for order in itertools.permutations(range(n)):
        start_round(order, frozenset(), Fraction(1, math.factorial(n)))
    return [float(value) for value in total]


@settings(max_examples=25, deadline=None)
@given(matrices(5))
def test_champions_of_all_brackets_are_those_listed(points):
    found, exact = m.champion_chances(points)
    assert exact
    np.testing.assert_allclose(found, champions_by_listing(points), atol=1e-12)  # float64


@pytest.mark.parametrize("n", [6, 7])
def test_champions_of_larger_brackets_are_those_listed(n):
    points = one_game_a_pair(n, seed=3)
    np.testing.assert_allclose(m.champion_chances(points)[0], champions_by_listing(points), atol=1e-12)


@pytest.mark.parametrize("n", [5, 7, 11, 12])
def test_drawn_brackets_agree_with_all_brackets(n, monkeypatch):
    rng = np.random.default_rng(n)
    points = rng.integers(0, 4, (n, n)).astype(float)
    exact, _ = m.champion_chances(points)
    monkeypatch.setattr(m, "EXACT_BRACKETS", 1)
    drawn, is_exact = m.champion_chances(points, samples=40_000)
    assert not is_exact
    assert np.abs(drawn - exact).max() < 4 * math.sqrt(0.25 / 40_000)
    again = [m.champion_chances(points, seed)[0].tolist() for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@quick
@given(matrices(7, whole=True))
def test_with_one_game_a_pair_both_ways_stay_in_the_top_cycle(points):
    found = m.of_tournament(points)
    for pick in (found.picked, found.knockout):
        assert pick.in_top_cycle == pytest.approx(1, abs=1e-12)
        assert pick.condorcet == pytest.approx(found.condorcet, abs=1e-12)


def test_rock_paper_scissors():
    found = m.of_tournament(ROCK_PAPER_SCISSORS)
    third = m.Pick(in_top_cycle=1, condorcet=0, beaten_by=1, met=2, rank=1)
    assert (found.cycles, found.triples, found.consistence, found.upsets) == (1, 1, 0, 1)
    assert (found.condorcet, found.top_cycle) == (0, 3)
    for pick in (found.picked, found.knockout):
        assert dataclasses.astuple(pick) == pytest.approx(dataclasses.astuple(third), abs=1e-12)
    assert m.champion_chances(ROCK_PAPER_SCISSORS)[0] == pytest.approx([1 / 3] * 3)


def test_the_dogs_preferences():
    # Scores 4, 2, 4, 1, 2, 2: 20 triples less 6 + 1 + 6 + 0 + 1 + 1 are cyclic, of at most 6 × 32 / 24 = 8.
    found = m.of_tournament(DOG)
    assert (found.cycles, found.complete_most) == (5, 8)
    assert found.consistence == pytest.approx(1 - 5 / 8)
    # Apple over meat closes meat > chocolate > …; biscuit > pear > cheese > biscuit is a cycle of its own.
    assert found.upsets == 2
    assert sorted(m.top_cycle(m.majority(DOG))) == [0, 1, 2, 3, 4, 5]
    assert found.picked.beaten_by == pytest.approx((1 + 1) / 2)  # meat or chocolate, four wins each
    assert m.of_tournament(DOG, winner=3).picked == m.Pick(1, 0, beaten_by=4, met=5, rank=6)


def test_a_transitive_order_costs_nothing():
    points = np.triu(np.ones((20, 20)), 1)
    found = m.of_tournament(points)
    best = m.Pick(in_top_cycle=1, condorcet=1, beaten_by=0, met=19, rank=1)
    assert (found.picked, found.knockout) == (best, best)
    assert (found.cycles, found.upsets, found.consistence, found.condorcet, found.top_cycle) == (0, 0, 1, 1, 1)
    assert m.fewest_upsets(points).order == tuple(range(20))


def test_most_points_can_miss_the_condorcet_winner_and_the_top_cycle():
    # 0 beats both by a little; 1 beats 2 by so much that it has most points.
    points = np.array([[0, 6, 6], [5, 0, 11], [5, 0, 0]])
    found = m.of_tournament(points)
    assert found.picked == m.Pick(in_top_cycle=0, condorcet=0, beaten_by=1, met=2, rank=1)
    # 0 must win the final, after a bye (1/3) or after beating either of the others.
    first = 6 / 11
    by_hand = 1 / 3 * first + 1 / 3 * first * first * 2
    assert found.knockout.condorcet == found.knockout.in_top_cycle == pytest.approx(by_hand)


def test_the_pick_has_the_highest_share_of_its_games_not_the_most_points():
    # 0 won its only game, against 1; 1 won four of five against 2.
    points = np.array([[0, 1, 0], [0, 0, 4], [0, 1, 0]])
    assert m.of_tournament(points).picked.beaten_by == 0
    assert m.of_tournament(points, winner=1).picked.beaten_by == 1


def test_sums_over_tournaments():
    parts = [ROCK_PAPER_SCISSORS, DOG, np.zeros((4, 4)), np.zeros((1, 1))]
    together = m.of_tournaments(parts, winners=[0, 0, 1, 0])
    alone = [m.of_tournament(points, winner) for points, winner in zip(parts, [0, 0, 1, 0], strict=True)]
    assert (together.tournaments, together.candidates, together.pairs) == (4, 14, 3 + 15)
    assert together.cycles == 6
    assert together.consistence == pytest.approx(1 - 6 / 9)
    assert together.picked.beaten_by == sum(one.picked.beaten_by for one in alone) == 2
    assert together.knockout.rank == pytest.approx(sum(one.knockout.rank for one in alone))
    assert together.top_cycle == 3 + 6 + 4 + 1  # nothing is known of the four
    assert together.exact_knockouts == together.exact_upsets == 4
    assert m.of_tournaments([]) is None


def test_relabelling_changes_nothing_but_drawn_brackets():
    points = one_game_a_pair(11, seed=5, share=0.8)
    shuffle = np.random.default_rng(1).permutation(11)
    first, second = (dataclasses.asdict(m.of_tournament(p)) for p in (points, points[np.ix_(shuffle, shuffle)]))
    for way in ("picked", "knockout"):
        assert first.pop(way) == pytest.approx(second.pop(way), abs=1e-12)
    assert first == second


@pytest.mark.parametrize(
    "points", [np.zeros((2, 3)), np.zeros((0, 0)), np.zeros(4), [[0, -1], [2, 0]], [[0, np.nan], [1, 0]]]
)
def test_what_is_no_matrix_of_points_is_refused(points):
    with pytest.raises(RrmError, match="matrix of points"):
        m.of_tournament(points)


def test_a_winner_who_did_not_play_is_refused():
    with pytest.raises(RrmError, match="winner 3 is not one of the candidates 0 … 2"):
        m.of_tournament(ROCK_PAPER_SCISSORS, winner=3)
    with pytest.raises(RrmError, match="count or by margin"):
        m.fewest_upsets(DOG, by="points")
