"""Games as arrays and their sums, against plain sums in Python and published win rates of real battles."""

import csv

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.errors import RrmError
from rrm_jax.ranking.games import Games, average_win_rate, pad_games, points, tally, win_rate

COUNT = 5
match = st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
tournaments = st.lists(st.lists(match.filter(lambda m: m[0] != m[1]), max_size=20), min_size=3, max_size=3)


def with_garbage(games: Games) -> Games:
    """What a mask must hide: candidates that are not there, and a score that is no number."""
    first, second = (np.where(games.mask, x, bad) for x, bad in ((games.first, 10_000), (games.second, -3)))
    return Games(first, second, np.where(games.mask, games.score, np.nan), games.mask)


@settings(max_examples=50, deadline=None)
@given(tournaments)
def test_tallies_are_the_plain_sums(lists):
    tallies = jax.jit(tally, static_argnums=1)(with_garbage(pad_games(lists, length=20)), COUNT)
    for row, games in enumerate(lists):
        expected = np.zeros((3, COUNT, COUNT))
        for i, j, score in games:
            expected[:, i, j] += score, 1, score**2
        np.testing.assert_array_equal(np.stack([field[row] for field in tallies]), expected)  # sixteenths: exact


@settings(max_examples=50, deadline=None)
@given(tournaments)
def test_win_rates_are_shares_of_points(lists):
    count = np.array([COUNT, COUNT, COUNT])
    tallies = tally(pad_games(lists, length=20), COUNT)
    plain, average = np.asarray(win_rate(tallies, count)), np.asarray(average_win_rate(tallies, count))
    for row, games in enumerate(lists):
        for c in range(COUNT):
            mine = [(j, s) for i, j, s in games if i == c] + [(i, 1 - s) for i, j, s in games if j == c]
            against = [np.mean([s for j, s in mine if j == other]) for other in {j for j, _ in mine}]
            assert plain[row, c] == pytest.approx(np.mean([s for _, s in mine]) if mine else 0.5, abs=1e-6)
            assert average[row, c] == pytest.approx(np.mean(against) if mine else 0.5, abs=1e-6)


def test_padded_candidates_have_no_rate():
    tallies = tally(pad_games([[(0, 1, 1.0)], []]), 3)
    assert win_rate(tallies, np.array([2, 3])).tolist() == [[1, 0, 0], [0.5, 0.5, 0.5]]
    assert average_win_rate(tallies, np.array([2, 1])).tolist() == [[1, 0, 0], [0.5, 0, 0]]


def test_lists_of_unequal_lengths_are_padded():
    games = pad_games([[], [(0, 1, 1.0), (2, 1, 0.25)]])
    assert games.mask.tolist() == [[False, False], [True, True]]
    assert (games.first[1].tolist(), games.second[1].tolist(), games.score[1].tolist()) == ([0, 2], [1, 1], [1, 0.25])
    assert pad_games([[(0, 1, 1.0)]], length=7).mask.shape == (1, 7)
    assert pad_games([]).mask.shape == (0, 1)


@pytest.mark.parametrize("game", [(-1, 1, 1.0), (2, 2, 1.0), (0, 1, 1.5), (0, 1, float("nan"))])
def test_impossible_games_are_refused(game):
    with pytest.raises(RrmError, match="game 1 of tournament 1 is"):
        pad_games([[(0, 1, 1.0)], [(0, 1, 0.5), game]])


@pytest.mark.parametrize("name", ["llmfao", "food", "simple"])
def test_real_battles_give_the_published_win_rates(real_data, name):
    folder = real_data / "evalica_battles"
    with open(folder / f"{name}.csv", encoding="utf-8") as file:
        battles = list(csv.DictReader(file))
    with open(folder / f"{name}-golden.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    golden = {kind: {r["item"]: float(r["score"]) for r in rows if r["algorithm"] == kind} for kind in
              ("counting", "average_win_rate")}  # fmt: skip
    at = {player: index for index, player in enumerate(golden["counting"])}
    score = {"left": 1.0, "right": 0.0, "tie": 0.5}
    games = pad_games([[(at[row["left"]], at[row["right"]], score[row["winner"]]) for row in battles]])
    tallies, count = tally(games, len(at)), np.array([len(at)])
    assert dict(zip(at, points(tallies)[0].tolist(), strict=True)) == golden["counting"]
    average = average_win_rate(tallies, count)[0]
    np.testing.assert_allclose(average, [golden["average_win_rate"][player] for player in at], rtol=0, atol=1e-6)


@pytest.mark.parametrize("game", [(0, 1, 1.5), (0, 1, -0.5), (0, 1, np.nan), (1, 1, 1), (-1, 0, 1)])
def test_games_that_cannot_be_are_named(game):
    with pytest.raises(RrmError, match=r"game 1 of tournament 0 is .*: it must name two different candidates"):
        pad_games([[(0, 1, 1), game]])
