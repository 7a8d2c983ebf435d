"""When tournaments end, what is spared, and who is picked of one that ended early."""

import itertools

import numpy as np
import pytest
from simulated_judges import Simulated, champion, distinct_quality, play, results_of

from rrm_jax.errors import RrmError
from rrm_jax.ranking.adaptive import Adaptive, tempered
from rrm_jax.ranking.bradley_terry import fit, probability_best
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.ranking.field import field_of
from rrm_jax.ranking.games import Games, tally
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.rating import Rating
from rrm_jax.ranking.simulator import Simulator, ask_simulator, draw_world
from rrm_jax.ranking.stopping import Stop
from rrm_jax.ranking.strategies import Knockout, RandomOpponents, RoundRobin, Swiss
from rrm_jax.ranking.tournament import ENDS
from rrm_jax.ranking.tournament import play as play_field

pytestmark = pytest.mark.usefixtures("quick_compiles")
STRATEGIES = (RoundRobin(), RoundRobin(in_rounds=True), RandomOpponents(2), Knockout(), Knockout(seeding=1), Swiss())
STRATEGIES = (*STRATEGIES, Adaptive(correlation=0.0))


def test_equal_answers_are_not_compared():
    quality = {"a": [3, 1, 1, 2, 3]}
    judge = Simulated(quality)
    item = Item("a", 5, ("x", None, "y", "y", "x"))
    (result,) = results_of([item], RoundRobin(rating="points"), judge, invalid="draw")
    asked = {frozenset((c.i, c.j)) for c in judge.asked}
    assert asked == {frozenset(p) for p in itertools.combinations(range(5), 2)} - {frozenset((0, 4)), frozenset((2, 3))}
    assert (result.comparisons, result.spared, set(result.ranking[:2])) == (8, 2, {0, 4})


@pytest.mark.thorough
def test_a_budget_is_never_exceeded_and_tokens_by_a_round_at_most():
    quality = distinct_quality([8] * 20)
    for strategy in STRATEGIES:
        results, _ = play(quality, strategy, how={"stop": Stop(budget=5)})
        assert all(result.comparisons == 5 and result.stopped == "budget" for result in results)
    results, _ = play(quality, Swiss(rounds=5), how={"stop": Stop(tokens=50)})  # 4 comparisons of 7 tokens a round
    assert {(result.comparisons, result.stopped) for result in results} == {(8, "tokens")}


@pytest.mark.thorough
@pytest.mark.parametrize("rating", [Rating("points"), Rating("elo"), Rating("elo", k=200.0)])
def test_the_exact_rule_never_changes_the_winner_and_saves_comparisons(rating):
    sizes = [2, 3, 5, 8, 9, 12] * 100
    quality = distinct_quality(sizes, seed=3)
    for accuracy in (0.55, 0.9):
        whole = RoundRobin(in_rounds=True)
        pruned = RoundRobin(in_rounds=True, prune=rating.name == "points")
        how = {"rating": rating}
        full, _ = play(quality, whole, 7, how, accuracy=accuracy)
        early, _ = play(quality, pruned, 7, how | {"stop": Stop(certain=True)}, accuracy=accuracy)
        assert [a.best for a in full] == [b.best for b in early]
        assert any(result.stopped == "certain" for result in early)
        assert sum(b.comparisons for b in early) < sum(a.comparisons for a in full)


def test_a_probability_ends_a_tournament_whose_leader_is_clear():
    quality = distinct_quality([6] * 50)
    how = {"stop": Stop(probability=0.8)}
    results, _ = play(quality, Adaptive(budget=60), how=how)
    assert {result.stopped for result in results} == {"probability"}
    assert max(result.comparisons for result in results) < 60
    assert [result.best for result in results] == [champion(values) for values in quality.values()]


def test_rules_that_cannot_act_are_refused():
    for strategy, rating, stop, problem in [
        (RoundRobin(), "points", Stop(certain=True), "in rounds"),
        (RoundRobin(in_rounds=True), "bradley-terry", Stop(certain=True), "points or elo"),
        (RoundRobin(in_rounds=True, prune=True), "points", Stop(), "left out"),
        (RoundRobin(), "elo", Stop(probability=0.9), "one round"),
    ]:
        with pytest.raises(RrmError, match=problem):
            results_of([Item("a", 4)], strategy, Simulated({}), rating=Rating(rating), stop=stop)
    with pytest.raises(RrmError, match="between 0 and 1"):
        Stop(probability=1.5)
    with pytest.raises(RrmError, match=r"49,995,000 comparisons; a knockout makes 9,999"):
        results_of([Item("a", 10_000)], RoundRobin(), Simulated({}))


@pytest.mark.parametrize(
    ("text", "candidates", "how"),
    [
        ("knockout:seeding=8", 4, {"stop": "0.8"}),
        ("knockout:seeding=2", 4, {"budget": 4}),
        ("knockout:seeding=2", 4, {"tokens": 20}),
        ("knockout", 8, {"budget": 5}),  # a semi-final's winner, and two who have played none
        ("knockout", 8, {"budget": 6}),  # two finalists
    ],
)
def test_who_is_picked_of_a_knockout_that_ended_early_is_the_strongest_so_far(text, candidates, how):
    entry = parse_entry(text, **how)
    quality = distinct_quality([candidates] * 60)
    results, _ = play(quality, entry.strategy, how={"rating": entry.rating, "stop": entry.stop})
    assert all(result.stopped for result in results)
    for result in results:
        assert result.strengths[result.best] == max(result.strengths)
        if "stop" in how:  # a judge who is never wrong, and as many rounds as make sure
            assert result.best == champion(quality[result.id])
    assert {rating for result in results for rating in result.ratings} != {0.0}


def test_a_whole_knockout_rates_by_whole_rounds():
    (result,), _ = play({"a": [4, 3, 2, 1]}, Knockout())
    assert sorted(result.ratings) == [0, 0, 1, 2]


@pytest.mark.parametrize("budget", [8, 12, 18])
def test_pairs_that_are_spared_are_no_part_of_a_budget(budget):
    """Five of eight say the same: 18 of 28 pairs can be judged."""
    item = Item("a", 8, ("x",) * 5 + ("y", "z", None))
    quality = {"a": [7, 7, 7, 7, 7, 5, 3, 1]}
    (result,) = results_of([item], RoundRobin(), Simulated(quality), stop=Stop(budget=budget))
    assert (result.comparisons, result.stopped) == (budget, "budget" if budget < 18 else "")
    judge = Simulated(quality, accuracy=0.7)
    (result,) = results_of([item], Adaptive(budget=budget), judge, stop=Stop(budget=budget))
    assert result.comparisons == budget
    assert all(not item.same(c.i, c.j) for c in judge.asked)
    assert result.spared <= 4, "the leader does not meet those that say the same again and again"
    alone = Item("b", 3, ("x", "x", "x"))
    (result,) = results_of([alone], Adaptive(), Simulated({}))
    assert (result.comparisons, result.spared) == (0, 2)


@pytest.mark.parametrize("company", [[], [16]])
def test_nothing_ends_early_that_is_over(company):
    """Whatever the company, in which more rounds are played."""
    quality = distinct_quality([5, *company])
    how = {"rating": Rating("points"), "stop": Stop(certain=True)}
    tied = {"q0": [1, 1, 1, 1, 1]} | {id: values for id, values in quality.items() if id != "q0"}
    (result, *_), _ = play(tied, RoundRobin(in_rounds=True), how=how | {"invalid": "draw"})
    assert (result.comparisons, result.stopped) == (10, "")
    quality = distinct_quality([4, *company])
    (result, *_), _ = play(quality, Knockout(), how={"stop": Stop(tokens=21)})  # 3 comparisons of 7 tokens
    assert (result.comparisons, result.stopped) == (3, "")
    (result, *_), _ = play(quality, Knockout(), how={"stop": Stop(tokens=14)})
    assert (result.comparisons, result.stopped) == (2, "tokens")
    (result, *_), _ = play(distinct_quality([1, *company]), Swiss(), how={"stop": Stop(probability=0.9)})
    assert (result.comparisons, result.stopped) == (0, "")


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_a_probability_is_of_verdicts_as_the_strategy_counts_them(correlation):
    """Verdicts of one pair that repeat each other make nobody surer."""
    entry = parse_entry(f"adaptive:budget=40:correlation={correlation}:stop=0.6")
    count = 6
    field = field_of([Item(str(at), count) for at in range(200)], 0)
    judge = ask_simulator(Simulator(4.0), draw_world(field, count))
    played = play_field(field, count, entry.strategy, judge, entry.rating, entry.stop)
    ended = played.ended == ENDS.index("probability")
    assert ended.any()
    tallies = tempered(tally(Games(*played.games), count), correlation)
    fitted = fit(tallies, field.count)
    bound = np.asarray(probability_best(fitted.theta, fitted.covariance, field.count))
    assert bound[ended].min() >= 0.6 - 1e-5  # float32


@pytest.mark.parametrize(
    "text", ["swiss:rounds=1000000000", "knockout:seeding=1000000000", "adaptive:budget=9" + "9" * 400]
)
def test_rounds_without_end_are_refused_whatever_the_budget(text):
    entry = parse_entry(text, stop="0.9") if "adaptive" in text else parse_entry(text, budget=5)
    with pytest.raises(RrmError, match=r"rounds for them, more than can be played|comparisons; a knockout makes 3"):
        results_of([Item("a", 4)], entry.strategy, Simulated({}), stop=entry.stop, rating=entry.rating)


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(RrmError, match="rounds must be 0 at least, not -1"):
        parse_entry("swiss:rounds=-1")
    for option in ("correlation=1.5", "correlation=-0.1", "parallel=-1", "budget=-1"):
        with pytest.raises(RrmError, match="correlation from 0 to 1"):
            parse_entry(f"adaptive:{option}")
