"""How often verdicts go round in circles, and what that costs Elo and knockout."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rrm_jax.data.jsonl import Reader, RowError
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.statistics import RESAMPLES, Interval, bootstrap_of, share_interval
from rrm_jax.ranking.intransitivity import Intransitivity, champion_chances, of_tournament
from rrm_jax.studies.best_of import parse_correct
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import GamesConfig, IntransitivityConfig
from rrm_jax.studies.pooling import Total
from rrm_jax.studies.report import Claim, Report, Table, brackets, finish, percent, spread, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CANDIDATES = 1024  # a log that names more for one query is damaged; its matrix would fill the memory


@dataclasses.dataclass(frozen=True)
class Picks:
    """The share of right picks on some of the queries: of the most points (in effect Elo's with K = 4), and expected of
    a knockout over all brackets."""

    queries: Total
    points: Interval
    knockout: Interval


@dataclasses.dataclass(frozen=True)
class Cycles:
    """`cycles` is the share of decided triples that are cyclic (¼ if every verdict were a coin), `upsets` the least
    share of results that contradict an order, `condorcet` the share of queries with a candidate that beats all
    others, `top_cycle` the mean size of the smallest set that beats all others. The picks' `beaten` are the shares of
    those they met that beat them. `with_cycles` and `without` are None where it is not known what is correct."""

    name: str
    queries: Total
    games: Total
    triples: Total
    cycles: Interval
    upsets: Interval
    condorcet: Interval
    top_cycle: Interval
    points_beaten: Interval
    knockout_beaten: Interval
    exact: bool
    with_cycles: Picks | None
    without: Picks | None


@dataclasses.dataclass(frozen=True)
class Found:
    """One entry for each log of games."""

    games: tuple[Cycles, ...]


def compute(
    name: str,
    matrices: Mapping[str, np.ndarray],
    correct: Mapping[str, Sequence[bool]] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Cycles:
    """`matrices` holds each query's points [C, C]: row against column, 1 a game. With `correct` every query must be
    in it, with as many candidates at least. RrmError otherwise."""
    found = {query: of_tournament(points, seed=seed) for query, points in matrices.items()}
    every = list(found.values())

    def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
        top, bottom = np.array(above, float), np.array(below, float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return bootstrap_of(lambda draws: top[draws].sum(1) / bottom[draws].sum(1), len(top), seed, resamples)

    def mean(values: Sequence[float]) -> Interval:
        return share_interval(values, seed, resamples)

    return Cycles(
        name,
        len(every),
        round(float(sum(points.sum() for points in matrices.values()))),
        sum(one.triples for one in every),
        ratio([one.cycles for one in every], [one.triples for one in every]),
        ratio([one.upsets for one in every], [one.pairs for one in every]),
        mean([one.condorcet for one in every]),
        mean([one.top_cycle for one in every]),
        ratio([one.picked.beaten_by for one in every], [one.picked.met for one in every]),
        ratio([one.knockout.beaten_by for one in every], [one.knockout.met for one in every]),
        all(one.exact_upsets and one.exact_knockouts for one in every),
        *(_picks(matrices, found, correct, cyclic, seed, resamples) for cyclic in (True, False)),
    )


def _picks(
    matrices: Mapping[str, np.ndarray],
    found: Mapping[str, Intransitivity],
    correct: Mapping[str, Sequence[bool]] | None,
    cyclic: bool,
    seed: int,
    resamples: int,
) -> Picks | None:
    if correct is None:
        return None
    by_points, by_knockout = [], []
    for query, points in matrices.items():
        if query not in correct or len(correct[query]) < len(points):
            raise RrmError(f"the games of query {query!r} are not of the candidates given")
        if (found[query].cycles > 0) != cyclic:
            continue
        right = np.array(correct[query], float)[: len(points)]
        taken = points.sum(1)
        by_points.append(float(right[taken >= taken.max() - 1e-9].mean()))
        by_knockout.append(float(champion_chances(points, seed)[0] @ right))
    sure = (share_interval(values, seed, resamples) for values in (by_points, by_knockout))
    return Picks(len(by_points), *sure)


def read_games(source: GamesConfig, session: Session) -> dict[str, np.ndarray]:
    """Points [C, C] by query. Malformed rows are reported, counted and passed over; RrmError where no game is left."""
    reader = Reader(Path(source.path), _game, report=session.report)
    games: dict[str, list[tuple[int, int, float]]] = {}
    for _, game in reader:
        if game is None:
            continue
        judge, strategy, query, i, j, share = game
        if source.judge in (None, judge) and source.strategy in (None, strategy):
            games.setdefault(query, []).append((i, j, share))
    session.skipped += reader.skipped
    if not games:
        raise RrmError(f"{source.path} has no games of judge {source.judge!r} and strategy {source.strategy!r}")
    return {query: _points(played) for query, played in games.items()}


def _game(row: dict[str, Any]) -> tuple[Any, Any, str, int, int, float] | None:
    """None: a pair that nobody judged."""
    if row.get("spared"):
        return None
    i, j, winner = row.get("i"), row.get("j"), row.get("winner", 0)
    if type(i) is not int or type(j) is not int or i == j or not 0 <= min(i, j) <= max(i, j) < MOST_CANDIDATES:
        raise RowError(f"i and j must name two candidates, of {MOST_CANDIDATES} at most, not {i!r} and {j!r}")
    if "id" not in row or winner not in (1, 2, None):
        raise RowError(f"a game has an id, and a winner that is 1, 2 or null, not {winner!r}")
    return row.get("judge"), row.get("strategy"), str(row["id"]), i, j, {1: 1.0, 2: 0.0, None: 0.5}[winner]


def _points(games: Sequence[tuple[int, int, float]]) -> np.ndarray:
    size = 1 + max(max(i, j) for i, j, _ in games)
    points = np.zeros((size, size))
    for i, j, share in games:
        points[i, j] += share
        points[j, i] += 1 - share
    return points


def find(config: IntransitivityConfig, session: Session) -> Found:
    """Counts cycles in recorded games. RrmError for candidates that do not fit the games."""
    correct = None
    if config.candidates is not None:
        rows = session.read(config.candidates, parse_correct, None)
        correct = {row.id: row.correct or () for row in rows}
    return Found(
        tuple(
            compute(name, read_games(source, session), correct, config.seed, config.resamples)
            for name, source in config.games.items()
        )
    )


def report(config: IntransitivityConfig, of: Found, seeds: Sequence[int]) -> Report:
    """Cycles, and what they cost in right picks where that is known. `seeds` are those that `found` was pooled over."""
    found = of.games
    tables = [Table("Cycles", _cycles(found))]
    if config.candidates is not None:
        tables.append(Table("Right picks, on queries with a 3-cycle and without", _right(found)))
    return Report(
        "Do verdicts go round in circles?",
        f"The games of {', '.join(f'{one.queries} queries ({one.name})' for one in found)}.",
        of,
        tables,
        _says(found),
        [
            "A triple is cyclic when a beats b, b beats c and c beats a; of coin tosses a quarter would be. Candidates "
            "that say the same make cycles, too. " + brackets(seeds, "queries"),
            "Beaten: of the candidates that the pick has met, those that beat it. Points: the most points, in effect "
            "Elo's pick; knockout: expected over all brackets, replaying the recorded games.",
            *([] if all(one.exact for one in found) else [_LARGE]),
        ],
        lambda figure: _draw(figure, found),
        (9.5, 4.0),
    )  # fmt: skip


def _says(found: Sequence[Cycles]) -> list[Claim]:
    says = []
    for one in found:
        text = (
            f"{one.name}: {percent(one.cycles)} of the triples are cyclic, where coins make 25 %; "
            f"{percent(one.condorcet)} of the queries have a candidate that beats all others."
        )
        if one.with_cycles is not None and one.without is not None:
            for words, picks in (("with a cycle", one.with_cycles), ("without", one.without)):
                if picks.queries:
                    text += (
                        f" On the {picks.queries} queries {words} the most points (Elo) pick rightly "
                        f"{percent(picks.points)}, a knockout {percent(picks.knockout)}."
                    )
        says.append(told(text))
    return says


_LARGE = "Of the larger tournaments upsets are an upper bound, and brackets are sampled."


def _cycles(found: Sequence[Cycles]) -> list[list[str]]:
    rows = [["games", "queries", "games played", "cyclic triples", "upsets, least", "with a Condorcet winner",
             "top cycle, size", "points: beaten", "knockout: beaten"]]  # fmt: skip
    for one in found:
        top = f"{one.top_cycle.estimate:.2f} ({one.top_cycle.low:.2f} … {one.top_cycle.high:.2f})"
        shares = [percent(one.cycles), percent(one.upsets), percent(one.condorcet), top]
        shares += [percent(one.points_beaten), percent(one.knockout_beaten)]
        rows.append([one.name, str(one.queries), str(one.games), *shares])
    return rows


def _right(found: Sequence[Cycles]) -> list[list[str]]:
    rows = [["games", "queries", "number", "most points (Elo)", "knockout"]]
    for one in found:
        for words, picks in (("with a cycle", one.with_cycles), ("without", one.without)):
            if picks is not None:
                rows.append([one.name, words, str(picks.queries), percent(picks.points), percent(picks.knockout)])
    return rows


def _draw(figure: "Figure", found: Sequence[Cycles]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    names = [one.name for one in found]
    middle, ends = spread([one.cycles for one in found])
    bars = left.bar(range(len(found)), middle, 0.6, yerr=ends, capsize=3, color="#999999", ecolor="#333333")
    left.bar_label(bars, [f"{x:.1f}" for x in middle], padding=2, fontsize=8)
    left.axhline(25, color="black", linewidth=1, linestyle=":", label="coin tosses")
    left.set_xticks(range(len(found)), names)
    left.set_ylim(0, max(30.0, 1.2 * max(middle)))
    left.legend(frameon=False, fontsize=9)
    finish(left, "Cyclic triples", "", "of decided triples, %")
    judged = all(one.with_cycles is not None for one in found)
    groups: list[tuple[str, Interval, Interval]] = []
    for one in found:
        if one.with_cycles is None or one.without is None:
            groups.append((one.name, one.points_beaten, one.knockout_beaten))
            continue
        for words, picks in (("with cycles", one.with_cycles), ("without", one.without)):
            groups.append((f"{one.name},\n{words} ({picks.queries})", picks.points, picks.knockout))
    for at, words in enumerate(("most points (Elo)", "knockout")):
        middle, ends = spread([(points, knockout)[at] for _, points, knockout in groups])
        places = [place + (at - 0.5) * 0.4 for place in range(len(groups))]
        shown = np.nan_to_num(middle)
        bars = right.bar(places, shown, 0.37, yerr=np.nan_to_num(ends), capsize=3, color=COLOURS[at], ecolor="#333333")
        bars.set_label(words)
        right.bar_label(bars, [f"{x:.1f}" if np.isfinite(x) else "–" for x in middle], padding=2, fontsize=8)
    right.set_xticks(range(len(groups)), [name for name, *_ in groups], fontsize=8)
    right.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)
    if judged:
        right.set_ylim(0, 125)
        right.set_yticks(range(0, 101, 20))
        finish(right, "Right picks", "", "queries answered right, %")
    else:
        finish(right, "The pick's opponents that beat it", "", "of those it met, %")
    for axes in (left, right):
        axes.grid(False, axis="x")
