"""Which candidates to compare, and what the outcomes make of them. Knows only "compare i with j".

A strategy plays the tournaments of many queries side by side: each round, the comparisons of all of them go to the
judge together. It keeps no state of its own. What it asks next is a function of what has been played, and its random
choices are hashes of (seed, item id, what is drawn), so a tournament comes out the same in any company and after
any restart.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from rrm_jax.errors import RrmError


@dataclasses.dataclass(frozen=True)
class Item:
    """A query by its id, and how many candidates it has: 0 … candidates − 1."""

    id: str
    candidates: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidate `i` against candidate `j` of an item. The order says nothing about how a judge is shown them."""

    item_id: str
    i: int
    j: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`winner` is 1 (candidate i), 2 (candidate j), or None: no valid vote, or as many for one as for the other.

    `votes` are the single votes behind it, in the same coding (None: invalid); `tokens` is what they cost. Of them
    `cut_off` reached the token limit before they ended, `truncated_inputs` saw texts that were cut to fit,
    and `forced` used up their thinking budget.
    """

    winner: Literal[1, 2] | None
    tokens: int = 0
    votes: tuple[Literal[1, 2] | None, ...] = ()
    cut_off: int = 0
    truncated_inputs: int = 0
    forced: int = 0

    def __post_init__(self):
        if self.winner not in (1, 2, None):
            raise ValueError(f"winner must be 1, 2 or None, not {self.winner!r}")


@dataclasses.dataclass(frozen=True)
class Match:
    """A comparison that has been judged."""

    i: int
    j: int
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Standing:
    """`ranking` lists the candidates from best to worst; `ratings[c]` is candidate c's."""

    ranking: tuple[int, ...]
    ratings: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """One item's row. `invalid` counts comparisons without a winner; the votes' counts are sums over comparisons."""

    id: str
    best: int
    ranking: tuple[int, ...]
    ratings: tuple[float, ...]
    comparisons: int
    votes: int
    tokens: int
    invalid: int
    invalid_votes: int
    cut_off: int
    truncated_inputs: int
    forced: int


class Strategy(Protocol):
    def propose(self, item: Item, played: Sequence[Match]) -> list[tuple[int, int]]:
        """The pairs (i, j) of the item's next round, given all it has played so far in that order; [] at the end."""
        ...

    def most_comparisons(self, candidates: int) -> int:
        """The most that an item can need."""
        ...

    def standings(self, items: Sequence[Item], played: Sequence[Sequence[Match]]) -> list[Standing]:
        """The final result of every item: all at once, so that ratings can be vectorised."""
        ...


def address(seed: int, item_id: str, *what: str | int) -> int:
    """64 random bits that belong to (seed, item id, what is drawn), whatever else is drawn and on any machine."""
    key = json.dumps([seed, item_id, *what]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def shuffled[T](values: Sequence[T], seed: int, item_id: str, what: str) -> list[T]:
    """A uniformly random order of `values`. Raw Philox words are what NumPy keeps the same in every version."""
    words = np.random.Philox(key=address(seed, item_id, what)).random_raw(len(values))
    return [values[at] for at in np.argsort(words, kind="stable")]


def _winner(match: Match, seed: int, item_id: str) -> int:
    """1 or 2; where the outcome has no winner, a coin that belongs to the pair."""
    return match.outcome.winner or 1 + address(seed, item_id, "coin", match.i, match.j) % 2


def _standing(ratings: Sequence[float], seed: int, item_id: str) -> Standing:
    """Sorted by rating; equal ratings in an order drawn for the item, which favours no position in the list."""
    drawn = shuffled(range(len(ratings)), seed, item_id, "ties")
    return Standing(tuple(sorted(drawn, key=lambda c: -ratings[c])), tuple(ratings))


@dataclasses.dataclass(frozen=True)
class Elo:
    """Round robin: each of the n (n − 1) / 2 pairs once, in one round, rated by sequential Elo in a drawn game order.

    A comparison without a winner counts as a random one's win (`invalid="random"`, as in the paper's MATH study) or
    as a draw.
    """

    seed: int = 0
    invalid: Literal["random", "draw"] = "random"
    k: float = 4.0
    scale: float = 400.0
    initial: float = 1000.0

    def propose(self, item: Item, played: Sequence[Match]) -> list[tuple[int, int]]:
        if played:
            return []
        return shuffled(list(itertools.combinations(range(item.candidates), 2)), self.seed, item.id, "games")

    def most_comparisons(self, candidates: int) -> int:
        return candidates * (candidates - 1) // 2

    def _score(self, match: Match, item_id: str) -> float:
        if match.outcome.winner is None and self.invalid == "draw":
            return 0.5
        return 1.0 if _winner(match, self.seed, item_id) == 1 else 0.0

    def standings(self, items: Sequence[Item], played: Sequence[Sequence[Match]]) -> list[Standing]:
        from rrm_jax.ranking.elo import elo_ratings

        shape = (len(items), max(len(matches) for matches in played))
        first, second = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        score, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for row, (item, matches) in enumerate(zip(items, played, strict=True)):
            for at, match in enumerate(matches):
                first[row, at], second[row, at], mask[row, at] = match.i, match.j, True
                score[row, at] = self._score(match, item.id)
        most = max(item.candidates for item in items)
        ratings = elo_ratings(first, second, score, mask, most, k=self.k, scale=self.scale, initial=self.initial)
        return [
            _standing(row[: item.candidates], self.seed, item.id)
            for item, row in zip(items, np.asarray(ratings).tolist(), strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Knockout:
    """Single elimination in a drawn bracket: n − 1 comparisons in ⌈log₂ n⌉ rounds.

    Neighbours in the bracket meet, and winners keep their order. In a round with an odd count one candidate, drawn
    from those that have had none, gets a bye. A comparison without a winner is decided by a coin. A candidate's
    rating is the number of rounds it survived, so those knocked out in the same round are equal.

    `bracket` fixes the first round's order for every item: the PPE study of the paper uses one for all its queries.
    """

    seed: int = 0
    bracket: tuple[int, ...] | None = None

    def propose(self, item: Item, played: Sequence[Match]) -> list[tuple[int, int]]:
        return self._replay(item, played)[0]

    def most_comparisons(self, candidates: int) -> int:
        return candidates - 1

    def standings(self, items: Sequence[Item], played: Sequence[Sequence[Match]]) -> list[Standing]:
        return [
            _standing([float(rounds) for rounds in self._replay(item, matches)[1]], self.seed, item.id)
            for item, matches in zip(items, played, strict=True)
        ]

    def _replay(self, item: Item, played: Sequence[Match]) -> tuple[list[tuple[int, int]], list[int]]:
        """The pairs of the first round that is not in `played`, and the rounds each candidate has survived."""
        alive = self._first_order(item)
        survived, had_bye = [0] * item.candidates, set()
        left, round_number = iter(played), 0
        while True:
            bye = []
            if len(alive) % 2 and len(alive) > 1:
                fresh = [c for c in alive if c not in had_bye] or alive
                bye = [fresh[address(self.seed, item.id, "bye", round_number) % len(fresh)]]
                had_bye.update(bye)
            playing = [c for c in alive if c not in bye]
            pairs = list(zip(playing[::2], playing[1::2], strict=False))
            matches = list(itertools.islice(left, len(pairs)))
            if not matches:
                return pairs, survived
            if [(match.i, match.j) for match in matches] != pairs:
                raise ValueError(f"item {item.id!r}: what was played is not this bracket's round {round_number + 1}")
            alive = [(m.i, m.j)[_winner(m, self.seed, item.id) - 1] for m in matches] + bye
            for candidate in alive:
                survived[candidate] += 1
            round_number += 1

    def _first_order(self, item: Item) -> list[int]:
        if self.bracket is None:
            return shuffled(range(item.candidates), self.seed, item.id, "bracket")
        if sorted(self.bracket) != list(range(item.candidates)):
            raise RrmError(
                f"the given bracket orders {len(self.bracket)} candidates, item {item.id!r} has {item.candidates}; "
                f"it must list each of 0 … {item.candidates - 1} once"
            )
        return list(self.bracket)


def run_tournaments(
    items: Sequence[Item],
    strategy: Strategy,
    compare: Callable[[list[Comparison]], Sequence[Outcome]],
) -> list[Result]:
    """Plays every item's tournament; one Result per item, in their order.

    `compare` judges one round of all items together and answers in the order it was asked. An item with one
    candidate needs no comparison. Raises RrmError for an item without candidates and for an id that comes twice.
    """
    _check(items)
    played: list[list[Match]] = [[] for _ in items]
    open_items = list(range(len(items)))
    while open_items:
        rounds = {at: strategy.propose(items[at], played[at]) for at in open_items}
        open_items = [at for at in open_items if rounds[at]]
        asked = [Comparison(items[at].id, i, j) for at in open_items for i, j in rounds[at]]
        if not asked:
            break
        answers = iter(zip(asked, compare(asked), strict=True))
        for at in open_items:
            for comparison, outcome in itertools.islice(answers, len(rounds[at])):
                played[at].append(Match(comparison.i, comparison.j, outcome))
    standings = strategy.standings(items, played) if items else []
    return [_result(*row) for row in zip(items, standings, played, strict=True)]


def _check(items: Sequence[Item]) -> None:
    seen = set()
    for item in items:
        if item.candidates < 1:
            raise RrmError(f"item {item.id!r} has no candidates to rank")
        if item.id in seen:
            raise RrmError(f"item id {item.id!r} appears twice; ids address the tournaments and must be unique")
        seen.add(item.id)


def _result(item: Item, standing: Standing, matches: Sequence[Match]) -> Result:
    outcomes = [match.outcome for match in matches]
    return Result(
        id=item.id,
        best=standing.ranking[0],
        ranking=standing.ranking,
        ratings=standing.ratings,
        comparisons=len(outcomes),
        votes=sum(len(outcome.votes) for outcome in outcomes),
        tokens=sum(outcome.tokens for outcome in outcomes),
        invalid=sum(outcome.winner is None for outcome in outcomes),
        invalid_votes=sum(outcome.votes.count(None) for outcome in outcomes),
        cut_off=sum(outcome.cut_off for outcome in outcomes),
        truncated_inputs=sum(outcome.truncated_inputs for outcome in outcomes),
        forced=sum(outcome.forced for outcome in outcomes),
    )
