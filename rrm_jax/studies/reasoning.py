"""Does thinking help? A judge that thinks against one that writes its verdict at once, on the same pairs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.published import REWARDBENCH, SOURCE, rewardbench_rows
from rrm_jax.evaluation.statistics import RESAMPLES, Interval, Paired, paired_bootstrap, share_interval
from rrm_jax.judging.judge import Judgment
from rrm_jax.studies.common import Counts, Session, counts_of, credit, mean_credit
from rrm_jax.studies.config import ReasoningConfig
from rrm_jax.studies.report import (
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
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Score:
    """`accuracy` is over single verdicts in both orders, `given` and `turned` in one of them; `both_right` is the
    share of votes that are right in both, `consistent` of those that name the same response in both."""

    judge: str
    accuracy: Interval
    given: Interval
    turned: Interval
    both_right: Interval
    consistent: Interval
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Found:
    """`tests` compare each judge but the baseline with it (`a` is the judge, `b` the baseline), pair by pair."""

    baseline: str
    scores: tuple[Score, ...]
    tests: dict[str, Paired]


def compute(
    judged: Mapping[str, Sequence[Judgment]], baseline: str, seed: int = 0, resamples: int = RESAMPLES
) -> Found:
    """`judged` holds each judge's judgments of the same labelled pairs, in the same order, with order "both"."""
    credits = {name: [mean_credit(judgment) for judgment in judgments] for name, judgments in judged.items()}
    return Found(
        baseline,
        tuple(_score(name, judgments, credits[name], seed, resamples) for name, judgments in judged.items()),
        {
            name: paired_bootstrap(credits[name], credits[baseline], seed, resamples)
            for name in judged
            if name != baseline
        },
    )


def _score(name: str, judgments: Sequence[Judgment], credits: list[float], seed: int, resamples: int) -> Score:
    given, turned, both_right, consistent = [], [], [], []
    for judgment in judgments:
        twice = list(zip(judgment.votes[::2], judgment.votes[1::2], strict=True))
        given.append(np.mean([credit(one, judgment.pair) for one, _ in twice]))
        turned.append(np.mean([credit(two, judgment.pair) for _, two in twice]))
        both_right.append(np.mean([one.verdict == two.verdict == judgment.pair.label for one, two in twice]))
        consistent.append(np.mean([one.verdict is not None and one.verdict == two.verdict for one, two in twice]))

    def sure(values: Sequence[float]) -> Interval:
        return share_interval(values, seed, resamples)

    return Score(
        name, sure(credits), sure(given), sure(turned), sure(both_right), sure(consistent), counts_of(judgments)
    )


def find(config: ReasoningConfig, session: Session) -> Found:
    """Has every judge judge all pairs in both orders, and tests each against the baseline."""
    pairs = session.pairs(config.pairs, config.limit)
    judged = {
        name: session.judged(session.judge(name, judge, votes=config.votes, order="both"), pairs)
        for name, judge in config.judges.items()
    }
    return compute(judged, config.baseline, config.seed, config.resamples)


def report(config: ReasoningConfig, found: Found, seeds: Sequence[int]) -> Report:
    """Scores, tests and published numbers. `seeds` are those that `found` was pooled over."""
    return Report(
        config.title,
        f"{found.scores[0].accuracy.n} labelled pairs, each judged in both orders ({config.votes} vote(s) an order) by "
        "every judge.",
        found,
        [
            Table("Ours", _rows(found)),
            Table(f"Against {found.baseline}, on the same pairs", _tests(found)),
            Table(
                f"Published ({SOURCE}): RewardBench v1, %. Another task and other models; not our result",
                rewardbench_rows(REWARDBENCH),
            ),
        ],
        _says(found),
        [
            "Accuracy: of single verdicts; an invalid one counts ½. " + brackets(seeds, "pairs"),
            "Right in both: the same vote is right whichever response is shown first. Guessing gives 50 % and 25 %.",
            tested(seeds, "pairs"),
        ],
        lambda figure: _draw(figure, found, config.title),
        published={"source": SOURCE, "rewardbench": REWARDBENCH},
    )


def _says(found: Found) -> list[Claim]:
    accuracy = {score.judge: percent(score.accuracy) for score in found.scores}
    return [
        claim(
            f"{name} judges better than {found.baseline}",
            test.difference,
            f"{accuracy[name]} of its verdicts are right against {accuracy[found.baseline]}, "
            f"{points(test.difference)} points (p = {p_value(test.p)}).",
        )
        for name, test in found.tests.items()
    ]


def _rows(found: Found) -> list[list[str]]:
    heading = ["judge", "accuracy", "shown as given", "shown turned", "right in both", "consistent"]
    rows = [[*heading, "invalid", "cut off", "tokens a verdict"]]
    for score in found.scores:
        shares = (score.accuracy, score.given, score.turned, score.both_right, score.consistent)
        counts = score.counts
        rows.append(
            [
                score.judge,
                *map(percent, shares),
                f"{counts.invalid} / {counts.votes}",
                str(counts.cut_off),
                f"{counts.tokens_a_vote:.1f}",
            ]
        )
    return rows


def _tests(found: Found) -> list[list[str]]:
    rows = [["judge", "difference, points", "pairs it judges better", f"pairs {found.baseline} judges better", "p"]]
    for name, test in found.tests.items():
        rows.append([name, points(test.difference), str(test.a_better), str(test.b_better), p_value(test.p)])
    return rows


def _draw(figure: "Figure", found: Found, title: str) -> None:
    axes = figure.subplots()
    measures = (("accuracy", 50), ("both_right", 25), ("consistent", 50))
    width = 0.8 / len(found.scores)
    for at, score in enumerate(found.scores):
        middle, ends = spread([getattr(score, name) for name, _ in measures])
        places = [place + (at - (len(found.scores) - 1) / 2) * width for place in range(len(measures))]
        bars = axes.bar(places, middle, width * 0.92, yerr=ends, capsize=3, color=COLOURS[at % 8], ecolor="#333333")
        bars.set_label(" " + score.judge)
        labels = axes.bar_label(bars, [f"{value:.1f}" for value in middle], padding=2, fontsize=8)
        for label in labels:
            label.set_parse_math(False)
    for place, (_, chance) in enumerate(measures):
        axes.hlines(chance, place - 0.45, place + 0.45, color="black", linewidth=1, linestyle=":")
    axes.plot([], [], ":", color="black", linewidth=1, label="guessing")
    axes.set_xticks(
        range(len(measures)), ["accuracy,\nboth orders", "right in\nboth orders", "same verdict in\nboth orders"]
    )
    axes.set_ylim(0, 112)
    finish(axes, f"{title} ({found.scores[0].accuracy.n} pairs)", "", "share, %")
    axes.grid(False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
