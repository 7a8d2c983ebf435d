"""How good a strategy's pick is after how many comparisons, with a judge that costs nothing.

Axes: Q tournaments, C candidates.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rrm_jax.ranking.entry import Entry
from rrm_jax.ranking.field import Field
from rrm_jax.ranking.games import Games
from rrm_jax.ranking.rating import rate, standings
from rrm_jax.ranking.tournament import ENDS, Ask, Played, final_ratings, play


@dataclasses.dataclass(frozen=True)
class Point:
    """After `comparisons` (a mean over the tournaments) the pick was right in `right` of `tournaments`."""

    comparisons: float
    right: int
    tournaments: int

    @property
    def rate(self) -> float:
        """The share of right picks."""
        return self.right / self.tournaments

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of `rate` (Wilson's, about its own middle, so never 0)."""
        z, n = 1.96, self.tournaments
        return z / (1 + z * z / n) * math.sqrt(self.rate * (1 - self.rate) / n + z * z / (4 * n * n))


@dataclasses.dataclass(frozen=True)
class Curve:
    """`points` in the order of play, the last after the whole; a comparison has `votes` votes. `planned` is the mean of
    what would be compared without a stop rule, and `ended` counts the tournaments that a rule ended, by its name."""

    name: str
    votes: float
    points: tuple[Point, ...]
    planned: float
    ended: dict[str, int]

    @property
    def saved(self) -> float:
        """The share of comparisons that the stop rule saved."""
        return 1 - self.points[-1].comparisons / self.planned if self.planned else 0.0


@dataclasses.dataclass
class Part:
    """Some of the tournaments: `right` bool [Q, C] says which pick is right, `ask` judges for an entry's votes; `votes`
    are those of a comparison where it does not heed them."""

    field: Field
    candidates: int
    right: np.ndarray
    ask: Callable[[int], Ask]
    votes: float | None = None


def replay(entries: Sequence[Entry], parts: Callable[[], Iterator[Part]], *, curve: bool = True) -> list[Curve]:
    """Plays every entry on all parts; `parts` is called once for each entry, and gives them anew.

    With `curve` a strategy that can be asked for its pick at any time has a dozen points, else only the last.
    """
    return [_replay(entry, parts(), curve) for entry in entries]


def _replay(entry: Entry, parts: Iterator[Part], curve: bool) -> Curve:
    sums: dict[int, np.ndarray] = {}
    planned, ended = 0.0, dict.fromkeys(ENDS[1:], 0)
    votes: float = entry.votes
    for part in parts:
        votes = votes if part.votes is None else part.votes
        played = _play(entry, part, sums, curve)
        planned += sum(entry.strategy.most_comparisons(int(count)) for count in part.field.count)
        for code, name in enumerate(ENDS[1:], start=1):
            ended[name] += int(np.sum(played.ended == code))
    *looks, last = (sums[at] for at in sorted(sums))
    points = tuple(
        Point(compared / total, int(right), int(total))
        for compared, right, total in [*(look for look in looks if look[0] < last[0]), last]
    )
    return Curve(
        entry.text, votes, points, planned / points[-1].tournaments, {name: n for name, n in ended.items() if n}
    )


def _play(entry: Entry, part: Part, sums: dict[int, np.ndarray], curve: bool) -> Played:
    rounds = entry.strategy.shape(part.candidates)[0]
    last = rounds  # where the final pick is counted, whenever the tournaments end
    anytime = curve and entry.rating.name != "survived"
    looks = {round(x) for x in np.geomspace(1, rounds, 12)} - {last} if anytime else set()

    def count(at: int, ratings, compared: np.ndarray) -> None:
        picks = np.asarray(standings(part.field, ratings, part.candidates))[:, 0]
        right = part.right[np.arange(len(picks)), picks].sum()
        sums[at] = sums.get(at, np.zeros(3)) + np.array([compared.sum(), right, len(picks)], float)

    def look(games: Games, compared: np.ndarray, number: int) -> None:
        if number + 1 in looks:
            looks.remove(number + 1)
            count(number + 1, rate(entry.rating, entry.strategy, part.field, games, part.candidates), compared)

    played = play(
        part.field, part.candidates, entry.strategy, part.ask(entry.votes), entry.rating, entry.stop, look
    )  # fmt: skip
    final = final_ratings(entry.rating, entry.strategy, part.field, played, part.candidates)
    for at in (*looks, last):  # all of these tournaments may have been over before a look
        count(at, final, played.compared)
    return played
