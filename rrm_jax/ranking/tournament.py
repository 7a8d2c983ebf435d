"""Playing tournaments: rounds of comparisons go to a judge, whoever that is, until the strategy or a stop rule ends.

Axes: Q tournaments, C candidates, M places for games, R of them in a round.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.ranking.adaptive import weighed
from rrm_jax.ranking.bradley_terry import elo_scale, fit, intervals
from rrm_jax.ranking.field import Field, Pairs, address, field_of
from rrm_jax.ranking.games import Games
from rrm_jax.ranking.protocol import Comparison, Item, Match, Outcome, Result
from rrm_jax.ranking.rating import Rating, rate, standings, with_strengths
from rrm_jax.ranking.stopping import Stop, leader_probability, winner_is_certain
from rrm_jax.ranking.strategies import Knockout, RoundRobin, Strategy

Invalid = Literal["random", "draw"]
ENDS = ("", "certain", "probability", "budget", "tokens")
MOST_GAMES = 100_000
MOST_PLACES = 4_000_000  # of games, whether they are played or not


class Answers(NamedTuple):
    """What a judge makes of Pairs [Q, R]: `score` float [Q, R] of the first one, in [0, 1]; `cost` float [Q] tokens."""

    score: np.ndarray
    cost: np.ndarray


class Played(NamedTuple):
    """`games` [Q, M] as NumPy arrays, `ended` int [Q] by index in ENDS, `compared` int [Q] comparisons."""

    games: Games
    ended: np.ndarray
    compared: np.ndarray


Ask = Callable[[Pairs, Games, int], Answers]


@functools.partial(jax.jit, static_argnames=("strategy", "num_candidates"))
def _propose(strategy: Strategy, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
    with jax.named_scope("propose"):
        return strategy.propose(field, games, round_number, num_candidates)


def play(
    field: Field, num_candidates: int, strategy: Strategy, ask: Ask, rating: Rating, stop: Stop = Stop(),
    after_round: Callable[[Games, np.ndarray, int], None] = lambda games, compared, number: None,
) -> Played:  # fmt: skip
    """Plays all tournaments of a field side by side, a round of all of them at a time.

    `ask` is given a round's pairs, the games before it and the round's number. `after_round` sees the games, the
    comparisons so far [Q], and the number of the round.
    """
    _check_places(strategy, num_candidates)
    rounds, width = strategy.shape(num_candidates)
    count = len(field.count)
    shape = (count, rounds * width)
    games = Games(
        np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    )
    ended, due = np.zeros(count, np.int32), np.zeros(count, np.int32)
    compared, cost = np.zeros(count, np.int64), np.zeros(count)
    most = np.array([strategy.most_comparisons(int(candidates)) for candidates in field.count])
    for number in range(rounds):
        pairs = Pairs(*(np.array(x) for x in _propose(strategy, field, games, np.int32(number), num_candidates)))
        # A rule ends what would have gone on; what is over by itself it does not.
        ended = np.where((ended == 0) & pairs.mask.any(axis=1), due, ended)
        pairs.mask[ended > 0] = False
        costs = pairs.mask & ~field.free(pairs.first, pairs.second)
        if stop.budget is not None:
            over = costs & (compared[:, None] + np.cumsum(costs, axis=1) > stop.budget)
            ended[(ended == 0) & np.any(over, axis=1)] = ENDS.index("budget")
            pairs.mask[over] = costs[over] = False
        if pairs.mask.any():
            answers = ask(pairs, games, number)
            here = slice(number * width, (number + 1) * width)
            for old, new in zip(games, (pairs.first, pairs.second, answers.score, pairs.mask), strict=True):
                old[:, here] = new
            compared += np.sum(costs, axis=1)
            cost += answers.cost
        after_round(games, compared, number)
        if number + 1 < rounds:
            _stop(stop, rating, strategy, field, games, num_candidates, cost, due)
        if np.all((ended > 0) | (compared >= most)):
            break
    return Played(games, ended, compared)


def final_ratings(rating: Rating, strategy: Strategy, field: Field, played: Played, num_candidates: int) -> jax.Array:
    """`rate`, float32 [Q, C], and of a knockout that a rule ended the strongest so far first. Raises as `rate` does."""
    ratings = rate(rating, strategy, field, played.games, num_candidates)
    if rating.name == "survived" and played.ended.any():
        return with_strengths(field, played.games, ratings, num_candidates)
    return ratings


def _stop(stop: Stop, rating, strategy, field, games: Games, num_candidates: int, cost, due) -> None:
    """Says in `due` which rule would end a tournament now."""

    def end(name: str, now) -> None:
        due[(due == 0) & np.asarray(now)] = ENDS.index(name)

    if stop.certain and isinstance(strategy, RoundRobin):
        end("certain", winner_is_certain(rating, strategy, field, games, num_candidates))
    if stop.probability is not None:
        end("probability", leader_probability(strategy, field, games, num_candidates) >= stop.probability)
    if stop.tokens is not None:
        end("tokens", cost >= stop.tokens)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """An item's row, and its matches round by round."""

    result: Result
    rounds: tuple[tuple[Match, ...], ...]


def run_tournaments(
    items: Sequence[Item],
    strategy: Strategy,
    compare: Callable[[list[Comparison]], Sequence[Outcome]],
    *,
    seed: int = 0,
    rating: Rating | None = None,
    stop: Stop = Stop(),
    invalid: Invalid = "random",
) -> list[Ranked]:
    """Plays every item's tournament; one Ranked per item, in their order.

    `compare` judges one round of all items together and answers in the order it was asked. Who gave the same answer
    (`Item.answers`) is not compared: that is a draw. A comparison without a winner counts as a random one's win
    (`invalid` "random", as in the paper's MATH study) or as a draw. `rating` is the strategy's own unless given.

    An item with one candidate needs no comparison. Raises RrmError for an item without candidates, an id that comes
    twice, more comparisons than can be meant, and a stop rule that does not go with the strategy.
    """
    rating = rating or Rating(strategy.rating)
    stop.check(strategy, rating)
    check_items(items, strategy, stop)
    if not items:
        return []
    most = _bucket(max(item.candidates for item in items))
    field = _padded(field_of(items, seed)._replace(same=_same(items, most)))
    matches: list[list[tuple[Match, ...]]] = [[] for _ in items]

    def ask(pairs: Pairs, games: Games, number: int) -> Answers:
        return _ask(items, compare, seed, invalid, pairs, matches)

    played = play(field, most, strategy, ask, rating, stop)
    ratings = np.asarray(final_ratings(rating, strategy, field, played, most))
    order = np.asarray(standings(field, ratings, most))
    fitted = fit(weighed(strategy, Games(*played.games), most), field.count)
    low, high = intervals(fitted.theta, fitted.covariance)
    strengths = [np.asarray(elo_scale(x)) for x in (fitted.theta, low, high)]
    return [
        Ranked(_result(item, at, ratings, order, strengths, matches[at], ENDS[played.ended[at]]), tuple(matches[at]))
        for at, item in enumerate(items)
    ]


def _bucket(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _padded(field: Field) -> Field:
    """More tournaments, of no candidates, up to a power of two, as the candidates are: few shapes are compiled."""
    count = len(field.count)
    more = _bucket(count) - count
    return Field(*(None if x is None else np.pad(x, ((0, more), *(((0, 0),) * (x.ndim - 1)))) for x in field))


def _same(items: Sequence[Item], most: int) -> np.ndarray | None:
    """`Field.same`; None where no item's answers are known."""
    if all(item.answers is None for item in items):
        return None
    same = np.zeros((len(items), most, most), bool)
    for at, item in enumerate(items):
        numbers: dict[str, int] = {}
        answers = item.answers or (None,) * item.candidates
        named = np.array([-1 if answer is None else numbers.setdefault(answer, len(numbers)) for answer in answers])
        same[at, : len(named), : len(named)] = (named[:, None] == named) & (named >= 0)
    return same


def check_items(items: Sequence[Item], strategy: Strategy, stop: Stop = Stop()) -> None:
    """Raises RrmError for items that cannot be played: no candidates, an id that comes twice, answers or a bracket of
    another length, more than MOST_GAMES comparisons, or rounds with places for more than MOST_PLACES."""
    seen = set()
    for item in items:
        if item.candidates < 1:
            raise RrmError(f"item {item.id!r} has no candidates to rank")
        if item.id in seen:
            raise RrmError(f"item id {item.id!r} appears twice; ids address the tournaments and must be unique")
        if item.answers is not None and len(item.answers) != item.candidates:
            raise RrmError(f"item {item.id!r} has {item.candidates} candidates and {len(item.answers)} answers")
        seen.add(item.id)
        bracket = strategy.bracket if isinstance(strategy, Knockout) else None
        if bracket is not None and len(bracket) != item.candidates:
            raise RrmError(
                f"the given bracket orders {len(bracket)} candidates, item {item.id!r} has {item.candidates}"
            )
        most = strategy.most_comparisons(item.candidates)
        if most > MOST_GAMES and (stop.budget or most) > MOST_GAMES:
            raise RrmError(
                f"item {item.id!r} has {item.candidates:,} candidates: this strategy would make {most:,} comparisons; "
                f"a knockout makes {item.candidates - 1:,}"
            )
        _check_places(strategy, _bucket(item.candidates))


def _check_places(strategy: Strategy, candidates: int) -> None:
    """Each round has its places, whether games are played in them or not."""
    rounds, width = strategy.shape(candidates)
    if rounds * width > MOST_PLACES:
        raise RrmError(
            f"{candidates:,} candidates: this strategy has {rounds:,} rounds for them, more than can be played"
        )


def _ask(items, compare, seed: int, invalid: Invalid, pairs: Pairs, matches) -> Answers:
    """One round of all tournaments, for a judge that takes comparisons by name."""
    asked: list[Comparison] = []
    for at, item in enumerate(items):
        met = collections.Counter(frozenset((match.i, match.j)) for one in matches[at] for match in one)
        for i, j, here in zip(
            pairs.first[at].tolist(), pairs.second[at].tolist(), pairs.mask[at].tolist(), strict=True
        ):
            if here and not item.same(i, j):
                asked.append(Comparison(item.id, i, j, met[frozenset((i, j))]))
                met[frozenset((i, j))] += 1
    outcomes = iter(zip(asked, compare(asked), strict=True)) if asked else iter(())
    score, cost = np.full(pairs.mask.shape, 0.5, np.float32), np.zeros(len(pairs.mask))
    for at, item in enumerate(items):
        round_of: list[Match] = []
        for place in np.flatnonzero(pairs.mask[at]):
            i, j = int(pairs.first[at, place]), int(pairs.second[at, place])
            if item.same(i, j):
                round_of.append(Match(i, j, None))
                continue
            comparison, outcome = next(outcomes)
            round_of.append(Match(i, j, outcome))
            cost[at] += outcome.tokens
            winner = outcome.winner
            if winner is None and invalid == "random":
                winner = 1 + address(seed, item.id, "coin", i, j, comparison.meeting) % 2
            if winner is not None:
                score[at, place] = float(winner == 1)
        if round_of:
            matches[at].append(tuple(round_of))
    return Answers(score, cost)


def _result(item: Item, at: int, ratings, order, strengths, rounds, ended: str) -> Result:
    count = item.candidates
    outcomes = [match.outcome for one in rounds for match in one if match.outcome is not None]
    ranking = tuple(order[at, :count].tolist())
    return Result(
        id=item.id,
        best=ranking[0],
        ranking=ranking,
        ratings=tuple(ratings[at, :count].tolist()),
        strengths=tuple(strengths[0][at, :count].tolist()),
        low=tuple(strengths[1][at, :count].tolist()),
        high=tuple(strengths[2][at, :count].tolist()),
        comparisons=len(outcomes),
        votes=sum(len(outcome.votes) for outcome in outcomes),
        tokens=sum(outcome.tokens for outcome in outcomes),
        invalid=sum(outcome.winner is None for outcome in outcomes),
        spared=sum(match.outcome is None for one in rounds for match in one),
        invalid_votes=sum(outcome.votes.count(None) for outcome in outcomes),
        cut_off=sum(outcome.cut_off for outcome in outcomes),
        truncated_inputs=sum(outcome.truncated_inputs for outcome in outcomes),
        forced=sum(outcome.forced for outcome in outcomes),
        stopped=ended,
    )
