"""What more judging buys: accuracy against votes a pair, and against comparisons a query."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.published import MATH_BEST_OF_8, REWARDBENCH, REWARDBENCH_VOTING, SOURCE, rewardbench_rows
from rrm_jax.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Paired,
    bootstrap_interval,
    paired_bootstrap,
    share_interval,
)
from rrm_jax.judging.judge import Judgment
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.studies.best_of import Bounds, Way, bounds, game_rows, parse_correct, play, ways
from rrm_jax.studies.common import Counts, Session, counts_of
from rrm_jax.studies.config import ScalingConfig
from rrm_jax.studies.pooling import Total
from rrm_jax.studies.report import (
    MARKERS,
    Claim,
    Report,
    Table,
    brackets,
    claim,
    finish,
    p_value,
    percent,
    points,
    spread,
    tested,
    told,
)
from rrm_jax.studies.voting import first, voting_credits

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Voting:
    """`accuracy` of the majority of `votes` votes, and `gain` over the fewest, both as means over all choices of the
    votes; `test` compares the first so many votes with the first few, as they were drawn, pair by pair. None for the
    fewest."""

    judge: str
    votes: int
    accuracy: Interval
    gain: Interval | None
    test: Paired | None


def compute_voting(
    judge: str, judgments: Sequence[Judgment], votes: Sequence[int], seed: int = 0, resamples: int = RESAMPLES
) -> list[Voting]:
    """`judgments` are of labelled pairs with as many votes at least as the largest of `votes`."""
    credits = {count: np.array(voting_credits(judgments, count)) for count in sorted(set(votes))}
    # The means would make a test of their own: they all move one way, however little more votes help.
    drawn = {count: voting_credits([first(one, count) for one in judgments], count) for count in credits}
    fewest = min(credits)
    return [
        Voting(
            judge,
            count,
            share_interval(values, seed, resamples),
            None if count == fewest else bootstrap_interval(values - credits[fewest], seed, resamples),
            None if count == fewest else paired_bootstrap(drawn[count], drawn[fewest], seed, resamples),
        )
        for count, values in credits.items()
    ]


@dataclasses.dataclass(frozen=True)
class Found:
    """`candidates` are the most that a query has."""

    pairs: Total
    queries: Total
    candidates: int
    reference: str
    voting: tuple[Voting, ...]
    counts: dict[str, Counts]
    strategies: tuple[Way, ...]
    bounds: Bounds


def find(config: ScalingConfig, session: Session) -> Found:
    """Votes on the pairs and plays the tournaments; leaves the games in `session.logs["games.jsonl"]`."""
    pairs = session.pairs(config.pairs, config.limit)
    rows = session.read(config.candidates, parse_correct, config.limit)
    entries = [parse_entry(text) for text in config.strategies]
    voting: list[Voting] = []
    found: list[Way] = []
    games: list[Mapping[str, Any]] = []
    counts: dict[str, Counts] = {}
    for name, judge in config.judges.items():
        judgments = session.judged(session.judge(name, judge, votes=max(config.votes)), pairs)
        counts[name] = counts_of(judgments)
        voting += compute_voting(name, judgments, config.votes, config.seed, config.resamples)
        ranked = {entry.text: play(session, name, judge, rows, entry) for entry in entries}
        results = {text: [one.result for one in many] for text, many in ranked.items()}
        found += ways(name, results, rows, config.reference, config.seed, config.resamples)
        for text, many in ranked.items():
            games += game_rows(name, text, many)
    session.logs["games.jsonl"] = games
    return Found(
        len(pairs), len(rows), max(len(row.responses) for row in rows), config.reference, tuple(voting), counts,
        tuple(found), bounds(rows, config.seed, config.resamples),
    )  # fmt: skip


def report(config: ScalingConfig, found: Found, seeds: Sequence[int]) -> Report:
    """Accuracy by votes and by strategy, tests and published numbers. `seeds` are those that `found` was pooled
    over."""
    return Report(
        "What does more judging buy?",
        f"Voting on {found.pairs} labelled pairs; the best of up to {found.candidates} candidates for {found.queries} "
        "queries.",
        found,
        [*_voting_tables(found), *_strategy_tables(found), *_published()],
        [*_voting_says(found), *_strategy_says(found)],
        [
            f"{brackets(seeds, 'pairs or queries')} {tested(seeds, 'pairs or queries')}",
            f"voting@k: the mean over all choices of k of the {max(config.votes)} votes drawn, each in a random order; "
            "a tie or no valid vote counts ½. Its p compares the first k votes with the first few, as they were drawn.",
            "round-robin is the paper's Elo: every pair of candidates once. random, swiss and adaptive are sparse "
            "alternatives. Strategies that ask for the same comparison get the same verdict.",
        ],
        lambda figure: _draw(figure, found),
        (5.0 * (1 + len(config.judges)), 4.6),
        {
            "source": SOURCE,
            "rewardbench": [*REWARDBENCH[:2], *REWARDBENCH_VOTING],
            "math_best_of_8": MATH_BEST_OF_8,
        },
    )


def _voting_says(found: Found) -> list[Claim]:
    claims = []
    for judge in found.counts:
        mine = [one for one in found.voting if one.judge == judge]
        few, many = mine[0], mine[-1]
        if many.gain is not None:
            curve = ", ".join(f"{100 * one.accuracy.estimate:.1f}" for one in mine)
            votes = ", ".join(str(one.votes) for one in mine)
            claims.append(
                claim(
                    f"{judge}: accuracy grows with votes",
                    many.gain,
                    f"With {votes} votes {curve} % of the pairs are judged right; {points(many.gain)} points from "
                    f"{few.votes} to {many.votes}.",
                )
            )
    return claims


def _strategy_says(found: Found) -> list[Claim]:
    """Of the reference (Elo) against a knockout of single votes, and of what lies between them in cost."""
    claims = []
    for judge in found.counts:
        mine = {way.strategy: way for way in found.strategies if way.judge == judge}
        knockout, elo = mine.get("knockout"), mine[found.reference]
        if knockout is None or knockout.against is None:
            continue
        less = knockout.against.difference
        more = Interval(-less.estimate, -less.high, -less.low, less.n)
        claims.append(
            claim(
                f"{judge}: Elo picks better candidates than a knockout, at more cost",
                more,
                f"{percent(elo.accuracy)} of the queries are answered right with {elo.comparisons:.1f} comparisons, "
                f"{percent(knockout.accuracy)} with {knockout.comparisons:.1f}: {points(more)} points (p = "
                f"{p_value(knockout.against.p)}).",
            )
        )
        sparse = [
            way for way in mine.values() if way.family not in ("knockout", "round-robin") and way.votes < elo.votes
        ]
        if sparse:
            claims.append(_between(judge, knockout, elo, sparse))
    return claims


def _between(judge: str, knockout: Way, elo: Way, sparse: Sequence[Way]) -> Claim:
    low, high = sorted((knockout.accuracy.estimate, elo.accuracy.estimate))
    within = [way for way in sparse if low <= way.accuracy.estimate <= high]
    best = max(sparse, key=lambda way: way.accuracy.estimate)
    shown = [best] if best in within or not within else [best, max(within, key=lambda way: way.accuracy.estimate)]
    evidence = "; ".join(
        f"{way.strategy} {percent(way.accuracy)} with {way.votes:.1f} verdicts"
        + ("" if way.against is None else f", {points(way.against.difference)} points from Elo's")
        for way in shown
    )
    return told(
        f"{judge}: of the {len(sparse)} sparse strategies that cost less than Elo, {len(within)} in accuracy between a "
        f"knockout and Elo, {sum(way.accuracy.estimate > high for way in sparse)} above, "
        f"{sum(way.accuracy.estimate < low for way in sparse)} below. The best: {evidence}.",
    )


def _voting_tables(found: Found) -> list[Table]:
    rows = [["judge", "votes", "accuracy", "more than with the fewest, points", "p"]]
    for one in found.voting:
        test = [points(one.gain), p_value(one.test.p)] if one.gain and one.test else ["–", "–"]
        rows.append([one.judge, str(one.votes), percent(one.accuracy), *test])
    cost = [["judge", "votes drawn", "invalid", "cut off", "inputs cut", "tokens a vote"]]
    for name, of in found.counts.items():
        cost.append(
            [name, str(of.votes), str(of.invalid), str(of.cut_off), str(of.truncated_inputs), f"{of.tokens_a_vote:.1f}"]
        )
    return [Table("Votes a pair", rows), Table("What the votes were", cost)]


def _strategy_tables(found: Found) -> list[Table]:
    limits = found.bounds
    heading = ["judge", "strategy", "right", "comparisons", "votes", "tokens", "invalid votes"]
    rows = [[*heading, f"against {found.reference}, points", "p"]]
    for way in found.strategies:
        test = ["–", "–"] if way.against is None else [points(way.against.difference), p_value(way.against.p)]
        costs = [f"{way.comparisons:.1f}", f"{way.votes:.1f}", f"{way.tokens:.0f}", str(way.invalid)]
        rows.append([way.judge, way.strategy, percent(way.accuracy), *costs, *test])
    for words, value in (
        ("a random candidate", limits.candidate), ("the most common answer", limits.majority), ("oracle", limits.oracle)
    ):  # fmt: skip
        rows.append(["–", words, percent(value), *["–"] * 6])
    return [Table("The best of all candidates; costs are means a query", rows, left=2)]


def _published() -> list[Table]:
    known = "another task and other models; not our result"
    rows = [["published", "knockout", "Elo", "known from"]]
    rows += [[row.judge, f"{row.knockout:.1f}", f"{row.elo:.1f}", row.source] for row in MATH_BEST_OF_8]
    sections = rewardbench_rows((*REWARDBENCH[:2], *REWARDBENCH_VOTING))
    return [
        Table(f"Published ({SOURCE}): RewardBench v1, %; {known}", sections),
        Table(f"Published ({SOURCE}): MATH, best of 8, %; {known}", rows),
    ]


def _draw(figure: "Figure", found: Found) -> None:
    voting, judges = found.voting, list(found.counts)
    left, *others = figure.subplots(1, 1 + len(judges))
    for at, judge in enumerate(judges):
        mine = [one for one in voting if one.judge == judge]
        middle, ends = spread([one.accuracy for one in mine])
        style = {"color": COLOURS[at % 8], "marker": MARKERS[at % 8], "markersize": 5, "capsize": 3, "linewidth": 1.3}
        left.errorbar([one.votes for one in mine], middle, ends, label=" " + judge, **style)
    counts = sorted({one.votes for one in voting})
    left.set_xscale("log", base=2)
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    finish(left, "Voting: the majority of k votes", "votes a pair", "pairs judged right, %")
    left.legend(frameon=False, fontsize=9)
    handles: dict[str, Any] = {}
    for axes, judge in zip(others, judges, strict=True):
        handles |= draw_ways(
            axes, [way for way in found.strategies if way.judge == judge], found.bounds, f"Best candidate: {judge}"
        )
    low = min(axes.get_ylim()[0] for axes in others)
    for axes in others:
        axes.set_ylim(low, 102)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def draw_ways(axes: Any, found: Sequence[Way], limits: Bounds, title: str) -> dict[str, Any]:
    """Accuracy against verdicts a query, strategies of one family joined; gives the legend's handles."""
    handles: dict[str, Any] = {}
    for at, family in enumerate(dict.fromkeys(way.family for way in found)):
        mine = sorted((way for way in found if way.family == family), key=lambda way: way.votes)
        middle, ends = spread([way.accuracy for way in mine])
        style = {"color": COLOURS[at % 7], "marker": MARKERS[at % 8], "markersize": 5, "capsize": 3, "linewidth": 1.3}
        handles[family] = axes.errorbar([way.votes for way in mine], middle, ends, **style)
    for words, value, dashes in (
        ("oracle", limits.oracle, ":"), ("most common answer", limits.majority, "-."),
        ("a random candidate", limits.candidate, "--"),
    ):  # fmt: skip
        handles[words] = axes.axhline(100 * value.estimate, color="#555555", linewidth=1, linestyle=dashes)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    finish(axes, title, "verdicts a query", "queries answered right, %")
    return handles
