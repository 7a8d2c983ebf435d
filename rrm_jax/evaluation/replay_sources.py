"""Judges for `rrm replay` that cost nothing: simulated ones, and the recorded games of `rrm rank`."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.data.jsonl import Reader, RowError
from rrm_jax.data.records import Unique, parse_candidates
from rrm_jax.errors import RrmError
from rrm_jax.ranking.field import Pairs, field_of
from rrm_jax.ranking.games import Games
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.replay import Part
from rrm_jax.ranking.simulator import Simulator, World, ask_simulator, draw_world, world_of_labels
from rrm_jax.ranking.tournament import Answers, Ask

_CELLS = 4_000_000  # of [Q, C, C] arrays that are held at once

Parts = Callable[[], Iterator[Part]]


def simulated_parts(candidates: int, judge: Simulator, tournaments: int, seed: int) -> Parts:
    """Tournaments of as many random candidates; right is the strongest."""

    def parts() -> Iterator[Part]:
        for ids in _split(tournaments, candidates):
            field = field_of([Item(f"tournament {at}", candidates) for at in ids], seed)
            world = draw_world(field, candidates)
            strongest = np.argmax(np.asarray(world.strength), axis=1)
            yield Part(field, candidates, np.arange(candidates) == strongest[:, None], _asks(judge, world))

    return parts


def labelled_parts(path: Path, faults: Simulator, accuracy: float, tournaments: int, seed: int) -> Parts:
    """Rows with correct and wrong candidates, again and again until there are `tournaments`.

    The judge names the correct one of two with probability `accuracy`, and either of two that are alike.
    """
    if not 0.5 <= accuracy < 1:
        raise RrmError(f"the accuracy {accuracy:g} of a simulated judge must be from 0.5 to below 1")
    rows = [row for _, row in Reader(path, Unique(parse_candidates), strict=True)]
    mixed = [row.correct for row in rows if row.correct is not None and 0 < sum(row.correct) < len(row.correct)]
    if not mixed:
        raise RrmError(f"{path} has no row with both correct and wrong candidates: any pick is as good there")
    judge = dataclasses.replace(faults, spread=math.log(accuracy / (1 - accuracy)))
    most = max(len(correct) for correct in mixed)

    def parts() -> Iterator[Part]:
        for ids in _split(tournaments, most):
            labels = [mixed[at % len(mixed)] for at in ids]
            items = [Item(f"tournament {at}", len(label)) for at, label in zip(ids, labels, strict=True)]
            field = field_of(items, seed)
            correct = np.array([label + (False,) * (most - len(label)) for label in labels])
            yield Part(field, most, correct, _asks(judge, world_of_labels(field, correct)))

    return parts


def _split(tournaments: int, candidates: int) -> list[range]:
    """Parts of equal size, so that one compiled program serves all but the last."""
    at_once = max(min(tournaments, _CELLS // candidates**2), 1)
    return [range(start, min(start + at_once, tournaments)) for start in range(0, tournaments, at_once)]


def _asks(judge: Simulator, world: World) -> Callable[[int], Ask]:
    return lambda votes: ask_simulator(dataclasses.replace(judge, votes=votes), world)


@dataclasses.dataclass(frozen=True)
class Game:
    """A row of OUT.games.jsonl, as far as replaying needs it: who won, 1 (i), 2 (j) or None, when they met again, by
    how many votes. `spared`: both were known to say the same, and nobody was asked."""

    id: str
    i: int
    j: int
    winner: int | None
    meeting: int | None
    votes: int
    spared: bool


def _parse_game(row: dict[str, Any]) -> Game:
    id, i, j, winner = (row.get(key) for key in ("id", "i", "j", "winner"))
    if not isinstance(id, str) or not all(isinstance(x, int) and not isinstance(x, bool) for x in (i, j)):
        raise RowError("a game has id (a string), i and j (whole numbers), and winner")
    if min(i, j) < 0 or i == j or winner not in (1, 2, None) or isinstance(winner, bool):  # type: ignore[type-var]
        raise RowError("i and j must be two candidates, counted from 0, and winner 1, 2 or null")
    meeting = row.get("meeting")
    if meeting is not None and (not isinstance(meeting, int) or meeting < 0):
        raise RowError("meeting must be how often the two had met before")
    votes = row.get("votes")
    number = len(votes) if isinstance(votes, list) and votes else 1
    return Game(id, i, j, winner, meeting, number, row.get("spared") is True)  # type: ignore[arg-type]


class Recorded:
    """The games of a log by query and pair, in the order recorded."""

    def __init__(self, path: Path, sizes: dict[str, int] | None):
        """`sizes`: how many candidates each query has; a game of any other is an RrmError. None: as the log shows."""
        self.path, self.sizes = path, dict(sizes or {})
        self.scores: dict[str, dict[tuple[int, int], list[float]]] = collections.defaultdict(
            lambda: collections.defaultdict(list)
        )
        self.spared: dict[str, set[tuple[int, int]]] = collections.defaultdict(set)
        self._votes: list[int] = []
        seen: dict[tuple[str, int, int, int], tuple[float, int]] = {}
        for number, game in Reader(path, _parse_game, strict=True):
            if sizes is not None and game.id not in sizes:
                raise RrmError(f"{path}:{number}: query {game.id!r} is not among the candidates: another job's log?")
            if sizes is not None and max(game.i, game.j) >= sizes[game.id]:
                raise RrmError(
                    f"{path}:{number}: candidate {max(game.i, game.j)} of query {game.id!r}, which has {sizes[game.id]}"
                )
            self.sizes[game.id] = max(self.sizes.get(game.id, 0), game.i + 1, game.j + 1)
            score = {1: 1.0, 2: 0.0, None: 0.5}[game.winner]
            i, j = sorted((game.i, game.j))
            if game.spared:
                self.spared[game.id].add((i, j))
                continue
            score = score if game.i == i else 1 - score
            if game.meeting is not None:
                before, line = seen.setdefault((game.id, i, j, game.meeting), (score, number))
                if before != score:
                    raise RrmError(
                        f"{path}:{number}: contradicts line {line}: meeting {game.meeting} of {i} and {j} of "
                        f"query {game.id!r} has another winner there"
                    )
                if line != number:
                    continue
            self.scores[game.id][i, j].append(score)
            self._votes.append(game.votes)
        if not self.scores:
            raise RrmError(f"{path} holds no games")

    @property
    def votes(self) -> float:
        """Of a game, on average."""
        return float(np.mean(self._votes))

    def same(self, ids: Sequence[str], most: int) -> np.ndarray | None:
        """`Field.same` of these queries: the pairs that were spared."""
        if not self.spared:
            return None
        same = np.zeros((len(ids), most, most), bool)
        for at, id in enumerate(ids):
            for i, j in self.spared.get(id, ()):
                same[at, i, j] = same[at, j, i] = True
        return same

    def ask(self, ids: Sequence[str]) -> Ask:
        """A judge that gives the recorded verdicts of these queries' games, in the order recorded; `ids[q]` is
        tournament q's. It raises RrmError when it is asked for a pair that has no game."""
        met: collections.Counter[tuple[str, int, int]] = collections.Counter()

        def ask(pairs: Pairs, games: Games, number: int) -> Answers:
            score, cost = np.full(pairs.mask.shape, 0.5, np.float32), np.zeros(len(pairs.mask))
            for at, place in zip(*np.nonzero(pairs.mask), strict=True):
                first, second = int(pairs.first[at, place]), int(pairs.second[at, place])
                i, j = sorted((first, second))
                if (i, j) in self.spared.get(ids[at], ()):
                    continue
                known = self.scores[ids[at]].get((i, j))
                if not known:
                    raise RrmError(
                        f"{self.path} has no game of candidates {i} and {j} of query {ids[at]!r}, which this strategy "
                        "asks for; record a round robin to replay others from it"
                    )
                # Beyond what was recorded the same verdict comes again, as from a judge that never changes its mind.
                value = known[met[ids[at], i, j] % len(known)]
                met[ids[at], i, j] += 1
                score[at, place] = value if first == i else 1 - value
                cost[at] += 1
            return Answers(score, cost)

        return ask


def log_parts(path: Path, labelled: Path | None, seed: int) -> Parts:
    """The recorded tournaments; right is a correct pick (of rows that have both kinds), or the log's own best."""
    correct: dict[str, tuple[bool, ...]] | None = None
    sizes: dict[str, int] | None = None
    if labelled is not None:
        rows = [row for _, row in Reader(labelled, Unique(parse_candidates), strict=True)]
        sizes = {row.id: len(row.responses) for row in rows}
        correct = {row.id: row.correct for row in rows if row.correct is not None}
    recorded = Recorded(path, sizes)
    mixed = {id for id, flags in (correct or {}).items() if 0 < sum(flags) < len(flags)}
    ids = [id for id in recorded.scores if correct is None or id in mixed]
    if not ids:
        raise RrmError(f"{labelled} says of no query of {path} that it has both correct and wrong candidates")
    most = max(recorded.sizes[id] for id in ids)

    def right(id: str) -> list[bool]:
        if correct is not None:
            flags = list(correct[id])
        else:
            points = np.zeros(recorded.sizes[id])
            for (i, j), scores in recorded.scores[id].items():
                points[i] += np.mean(scores)
                points[j] += 1 - np.mean(scores)
            flags = (points == points.max()).tolist()
        return flags + [False] * (most - len(flags))

    def parts() -> Iterator[Part]:
        field = field_of([Item(id, recorded.sizes[id]) for id in ids], seed)._replace(same=recorded.same(ids, most))
        correct = np.array([right(id) for id in ids])
        yield Part(field, most, correct, lambda votes: recorded.ask(ids), recorded.votes)

    return parts
