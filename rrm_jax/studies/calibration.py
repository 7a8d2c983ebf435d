"""Can a judge's sureness be believed? The share of its votes, and the probability of its verdict, against how often it
is right."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.statistics import (
    RESAMPLES,
    Interval,
    bootstrap_interval,
    bootstrap_of,
    share_interval,
    wilson_interval,
)
from rrm_jax.judging.judge import Judgment
from rrm_jax.studies.common import Counts, Session, counts_of
from rrm_jax.studies.config import CalibrationConfig
from rrm_jax.studies.pooling import Total
from rrm_jax.studies.report import MARKERS, Claim, Report, Table, brackets, finish, percent, spread, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Literal["share of votes", "probability"]


@dataclasses.dataclass(frozen=True)
class Bin:
    """Pairs whose sureness is in [low, high), or up to 1 in the last: how sure the judge was on average, and how often
    it was right."""

    low: float
    high: float
    sure: float
    right: Interval

    @classmethod
    def pooled(cls, found: Sequence["Bin"], same_items: bool) -> "Bin":
        """Of all their pairs together: a bin may hold hardly any of one seed. With `same_items` every seed had the
        same pairs, and as many count as a bin has on average."""
        known = [one for one in found if one.right.n]
        if not known:
            return found[0]
        pairs = [one.right.n for one in known]
        right = float(np.average([one.right.estimate for one in known], weights=pairs))
        sure = float(np.average([one.sure for one in known], weights=pairs))
        counted = -(-sum(pairs) // len(found)) if same_items else sum(pairs)
        return cls(known[0].low, known[0].high, sure, wilson_interval(right, counted))


@dataclasses.dataclass(frozen=True)
class Reliability:
    """`sure` and `right` are means over all pairs; `error` is the expected calibration error over the bins, `brier` the
    mean square of sureness − right. `pairs` without a valid vote are left out."""

    judge: str
    measure: Measure
    pairs: Total
    left_out: Total
    sure: float
    right: Interval
    error: Interval
    brier: Interval
    bins: tuple[Bin, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """`reliability` has one or two measures of each judge (see `find`); `counts` are by judge."""

    pairs: Total
    reliability: tuple[Reliability, ...]
    counts: dict[str, Counts]


def for_first(judgment: Judgment, measure: Measure) -> float | None:
    """How sure the judge is of `response_1`: the share of its valid votes, or the mean probability; None: not known."""
    if measure == "probability":
        return judgment.soft_vote
    valid = [vote.verdict for vote in judgment.votes if vote.verdict is not None]
    return sum(verdict == 1 for verdict in valid) / len(valid) if valid else None


def compute(
    judge: str,
    judgments: Sequence[Judgment],
    measure: Measure,
    bins: int = 10,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Reliability:
    """Of labelled pairs. How sure a judge is of the response it prefers is from ½ to 1; a tie is right by half."""
    known = [(share, one.pair.label) for one in judgments if (share := for_first(one, measure)) is not None]
    share, label = np.array([s for s, _ in known], float), np.array([label for _, label in known])
    sure = np.maximum(share, 1 - share)
    right = np.where(share == 0.5, 0.5, (share > 0.5) == (label == 1)).astype(float)
    edges = np.linspace(0.5, 1, bins + 1)
    # A share such as 0.8 must not fall below its edge by rounding.
    place = np.clip(np.searchsorted(edges, sure + 1e-9, side="right") - 1, 0, bins - 1)

    def error(draws: np.ndarray) -> np.ndarray:
        gaps = np.zeros(len(draws))
        for at in range(bins):
            gaps += np.abs(np.sum((sure - right)[draws] * (place[draws] == at), axis=1))
        return gaps / draws.shape[1]

    return Reliability(
        judge,
        measure,
        len(known),
        len(judgments) - len(known),
        _mean(sure),
        share_interval(right, seed, resamples),
        bootstrap_of(error, len(known), seed, resamples),
        bootstrap_interval((sure - right) ** 2, seed, resamples),
        tuple(
            Bin(float(edges[at]), float(edges[at + 1]), _mean(sure[place == at]),
                wilson_interval(_mean(right[place == at]), int(np.sum(place == at))))
            for at in range(bins)
        ),
    )  # fmt: skip


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def find(config: CalibrationConfig, session: Session) -> Found:
    """The share of votes is measured of judges with several votes, the probability of those with constrain_verdict."""
    pairs = session.pairs(config.pairs, config.limit)
    found: list[Reliability] = []
    counts: dict[str, Counts] = {}
    for name, judge in config.judges.items():
        judgments = session.judged(session.judge(name, judge, votes=config.votes), pairs)
        counts[name] = counts_of(judgments)
        measures: list[Measure] = []
        if config.votes > 1:
            measures.append("share of votes")
        if judge.constrain_verdict:
            measures.append("probability")
        found += [compute(name, judgments, one, config.bins, config.seed, config.resamples) for one in measures]
    return Found(len(pairs), tuple(found), counts)


def report(config: CalibrationConfig, of: Found, seeds: Sequence[int]) -> Report:
    """Calibration errors and bins, and a reliability diagram. `seeds` are those that `found` was pooled over."""
    found = of.reliability
    return Report(
        "Can a judge's sureness be believed?",
        f"{of.pairs} labelled pairs, {config.votes} votes each, every vote in a random order.",
        of,
        [Table("Overall", _overall(found), left=2), Table("Bins", _bins(found), left=2)],
        _says(found),
        [
            "Sure: the share of valid votes for the preferred response, or the mean probability of its verdict (of "
            "judges with constrain_verdict). Right: a tie counts ½.",
            "Calibration error: the mean over pairs of |sure − right| of their bin; of small samples it is above 0 "
            f"even for a perfect judge. {brackets(seeds, 'pairs')} Of bins: Wilson's.",
        ],
        lambda figure: _draw(figure, found),
        (9.0, 4.4),
    )


def _says(found: Sequence[Reliability]) -> list[Claim]:
    return [
        told(
            f"{one.judge} by {one.measure}: {100 * one.sure:.1f} % sure and {100 * one.right.estimate:.1f} % right on "
            f"average{_surer(one)}; calibration error {percent(one.error)}.",
        )
        for one in found
    ]


def _surer(one: Reliability) -> str:
    if round(one.sure, 3) == round(one.right.estimate, 3):
        return ""
    return ", surer than it is right" if one.sure > one.right.estimate else ", less sure than it is right"


def _overall(found: Sequence[Reliability]) -> list[list[str]]:
    rows = [["judge", "sure by", "pairs", "left out", "sure", "right", "calibration error", "Brier score"]]
    for one in found:
        brier = f"{one.brier.estimate:.4f} ({one.brier.low:.4f} … {one.brier.high:.4f})"
        shares = [percent(one.sure), percent(one.right), percent(one.error), brier]
        rows.append([one.judge, one.measure, str(one.pairs), str(one.left_out), *shares])
    return rows


def filled(one: Reliability) -> list[Bin]:
    """The bins that hold a pair."""
    return [of for of in one.bins if of.right.n]


def _bins(found: Sequence[Reliability]) -> list[list[str]]:
    rows = [["judge", "sure by", "bin", "pairs", "sure", "right"]]
    for one in found:
        for of in filled(one):
            edges = f"{100 * of.low:.0f} … {100 * of.high:.0f} %"
            rows.append([one.judge, one.measure, edges, str(of.right.n), percent(of.sure), percent(of.right)])
    return rows


def _draw(figure: "Figure", found: Sequence[Reliability]) -> None:
    left, right = figure.subplots(1, 2)
    left.plot([50, 100], [50, 100], ":", color="#555555", linewidth=1, label="perfect")
    width = 0.8 / max(len(found), 1)
    for at, one in enumerate(found):
        colour, name = COLOURS[at % 8], f" {one.judge}, {one.measure}"
        bins = filled(one)
        middle, ends = spread([of.right for of in bins])
        left.errorbar(
            [100 * of.sure for of in bins], middle, ends, color=colour, marker=MARKERS[at % 8], markersize=5,
            capsize=2, linewidth=1.2, label=name,
        )  # fmt: skip
        step = 100 * (one.bins[0].high - one.bins[0].low)
        places = [100 * of.low + step * (0.1 + width * (at + 0.5)) for of in bins]
        pairs = sum(of.right.n for of in bins)  # `one.pairs` is of all seeds, which may have had the same ones
        shares = [100 * of.right.n / pairs for of in bins]
        right.bar(places, shares, step * width * 0.95, color=colour, label=name)
    finish(left, "Reliability", "how sure, %", "how often right, %")
    finish(right, "How often so sure", "how sure, %", "pairs, %")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
