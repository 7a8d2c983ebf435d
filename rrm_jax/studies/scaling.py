"""What more judging buys: accuracy against votes a pair, and against comparisons a query."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rrm_jax.evaluation.published import MATH_BEST_OF_8, REWARDBENCH, REWARDBENCH_VOTING, SOURCE, rewardbench_rows
from rrm_jax.evaluation.statistics import RESAMPLES, Interval, Paired, bootstrap_interval, paired_bootstrap
from rrm_jax.judging.judge import Judgment
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.studies.best_of import Bounds, Way, bounds, game_rows, parse_correct, play, ways
from rrm_jax.studies.common import Counts, Session, counts_of
from rrm_jax.studies.config import ScalingConfig
from rrm_jax.studies.report import COLOURS, MARKERS, Report, Table, finish, p_value, percent, points, spread
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
            bootstrap_interval(values, seed, resamples),
            None if count == fewest else bootstrap_interval(values - credits[fewest], seed, resamples),
            None if count == fewest else paired_bootstrap(drawn[count], drawn[fewest], seed, resamples),
        )
        for count, values in credits.items()
    ]


def run(config: ScalingConfig, session: Session) -> Report:
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
    limits = bounds(rows, config.seed, config.resamples)
    published = {
        "source": SOURCE,
        "rewardbench": [*REWARDBENCH[:2], *REWARDBENCH_VOTING],
        "math_best_of_8": MATH_BEST_OF_8,
    }
    return Report(
        "What does more judging buy?",
        f"Voting on {len(pairs)} labelled pairs; the best of up to {max(len(row.responses) for row in rows)} "
        f"candidates for {len(rows)} queries.",
        {"pairs": len(pairs), "queries": len(rows), "voting": voting, "counts": counts, "strategies": found,
         "bounds": limits, "published": published},
        [*_voting_tables(voting, counts), *_strategy_tables(found, limits, config.reference), *_published()],
        [
            "In brackets: 95 % bootstrap intervals, over pairs or over queries. p: exact two-sided sign test on the "
            "same pairs or queries (McNemar's).",
            f"voting@k: the mean over all choices of k of the {max(config.votes)} votes drawn, each in a random order; "
            "a tie or no valid vote counts ½. Its p compares the first k votes with the first few, as they were drawn.",
            "round-robin is the paper's Elo: every pair of candidates once. random, swiss and adaptive are sparse "
            "alternatives. Strategies that ask for the same comparison get the same verdict.",
        ],
        lambda figure: _draw(figure, voting, found, limits),
        (5.0 * (1 + len(config.judges)), 4.6),
        {"games.jsonl": games},
    )  # fmt: skip


def _voting_tables(voting: Sequence[Voting], counts: Mapping[str, Counts]) -> list[Table]:
    rows = [["judge", "votes", "accuracy", "more than with the fewest, points", "p"]]
    for one in voting:
        test = [points(one.gain), p_value(one.test.p)] if one.gain and one.test else ["–", "–"]
        rows.append([one.judge, str(one.votes), percent(one.accuracy), *test])
    cost = [["judge", "votes drawn", "invalid", "cut off", "inputs cut", "tokens a vote"]]
    for name, of in counts.items():
        cost.append(
            [name, str(of.votes), str(of.invalid), str(of.cut_off), str(of.truncated_inputs), f"{of.tokens_a_vote:.1f}"]
        )
    return [Table("Votes a pair", rows), Table("What the votes were", cost)]


def _strategy_tables(found: Sequence[Way], limits: Bounds, reference: str) -> list[Table]:
    heading = ["judge", "strategy", "right", "comparisons", "votes", "tokens", "invalid votes"]
    rows = [[*heading, f"against {reference}, points", "p"]]
    for way in found:
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


def _draw(figure: "Figure", voting: Sequence[Voting], found: Sequence[Way], limits: Bounds) -> None:
    judges = list(dict.fromkeys(one.judge for one in voting))
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
        handles |= draw_ways(axes, [way for way in found if way.judge == judge], limits, f"Best candidate: {judge}")
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
