"""What thinking longer buys: accuracy when thinking is closed after so many tokens, and the verdict forced."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.published import SOURCE
from rrm_jax.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Paired,
    bootstrap_interval,
    paired_bootstrap,
    share_interval,
)
from rrm_jax.judging.judge import Judgment
from rrm_jax.studies.common import Counts, Session, counts_of, mean_credit
from rrm_jax.studies.config import ThinkingBudgetConfig
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
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Budget:
    """`budget` None: thinking ended by itself, or at the token limit. `forced` is the share of verdicts that were
    forced, `tokens` the mean a verdict; `against` compares with the next smaller budget, pair by pair, `gain` with the
    smallest."""

    judge: str
    budget: int | None
    accuracy: Interval
    forced: Interval
    tokens: Interval
    against: Paired | None
    gain: Paired | None
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Found:
    """`budgets` are judge by judge, the smallest first, without a budget last."""

    pairs: Total
    budgets: tuple[Budget, ...]


def compute(
    judge: str, judged: Mapping[int | None, Sequence[Judgment]], seed: int = 0, resamples: int = RESAMPLES
) -> list[Budget]:
    """`judged` holds, by budget from the smallest on, judgments of the same labelled pairs in the same order."""
    found: list[Budget] = []
    least: list[float] | None = None
    before: list[float] | None = None
    for budget, judgments in judged.items():
        credits = [mean_credit(judgment) for judgment in judgments]
        forced = [sum(vote.forced for vote in judgment.votes) / len(judgment.votes) for judgment in judgments]
        tokens = [judgment.tokens / len(judgment.votes) for judgment in judgments]
        found.append(
            Budget(
                judge,
                budget,
                share_interval(credits, seed, resamples),
                share_interval(forced, seed, resamples),
                bootstrap_interval(tokens, seed, resamples),
                None if before is None else paired_bootstrap(credits, before, seed, resamples),
                None if least is None else paired_bootstrap(credits, least, seed, resamples),
                counts_of(judgments),
            )
        )
        least, before = credits if least is None else least, credits
    return found


def find(config: ThinkingBudgetConfig, session: Session) -> Found:
    """Has every judge judge all pairs in both orders with every budget."""
    pairs = session.pairs(config.pairs, config.limit)
    budgets = [*sorted(config.budgets), *([None] if config.unbounded else [])]
    found: list[Budget] = []
    for name, judge in config.judges.items():
        judged = {
            budget: session.judged(session.judge(name, judge, votes=config.votes, order="both", budget=budget), pairs)
            for budget in budgets
        }
        found += compute(name, judged, config.seed, config.resamples)
    return Found(len(pairs), tuple(found))


def report(config: ThinkingBudgetConfig, found: Found, seeds: Sequence[int]) -> Report:
    """Accuracy by budget, tests and published numbers. `seeds` are those that `found` was pooled over."""
    return Report(
        "What does thinking longer buy?",
        f"{found.pairs} labelled pairs in both orders. After the budget thinking is closed and the verdict is written "
        "greedily.",
        found,
        [Table("By budget", _rows(found.budgets))],
        _says(found.budgets),
        [
            "Accuracy: of single verdicts; an invalid one counts ½. " + brackets(seeds, "pairs"),
            "Differences are from the next smaller budget. " + tested(seeds, "pairs"),
            f"Published ({SOURCE}), not our result: {_PUBLISHED}",
        ],
        lambda figure: _draw(figure, found.budgets),
        published={"source": SOURCE, "budgets": [2048, 4096, 8192], "says": _PUBLISHED},
    )


def _says(found: Sequence[Budget]) -> list[Claim]:
    claims = []
    for judge in dict.fromkeys(one.judge for one in found):
        mine = [one for one in found if one.judge == judge]
        last = mine[-1]
        if last.gain is not None:
            curve = ", ".join(f"{100 * one.accuracy.estimate:.1f}" for one in mine)
            names = ", ".join(_name(one.budget) for one in mine)
            claims.append(
                claim(
                    f"{judge}: accuracy grows with the thinking budget",
                    last.gain.difference,
                    f"With budgets of {names} it is {curve} %; {points(last.gain.difference)} points from the first to "
                    f"the last (p = {p_value(last.gain.p)}).",
                )
            )
    return claims


_PUBLISHED = "accuracy rises from 2 K over 4 K to 8 K tokens of thinking (curves without numbers)."


def _name(budget: int | None) -> str:
    return "none" if budget is None else f"{budget:,}"


def _rows(found: Sequence[Budget]) -> list[list[str]]:
    rows = [["judge", "budget, tokens", "accuracy", "against the smaller, points", "p", "forced", "invalid", "tokens"]]
    for one in found:
        test = ["–", "–"] if one.against is None else [points(one.against.difference), p_value(one.against.p)]
        counts = [f"{one.counts.invalid} / {one.counts.votes}", f"{one.tokens.estimate:.1f}"]
        rows.append([one.judge, _name(one.budget), percent(one.accuracy), *test, percent(one.forced.estimate), *counts])
    return rows


def _draw(figure: "Figure", found: Sequence[Budget]) -> None:
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(_name(one.budget) for one in found))
    for at, judge in enumerate(dict.fromkeys(one.judge for one in found)):
        mine = [one for one in found if one.judge == judge]
        places = [names.index(_name(one.budget)) for one in mine]
        style = {"color": COLOURS[at % 8], "marker": MARKERS[at % 8], "markersize": 5, "capsize": 3, "linewidth": 1.3}
        middle, ends = spread([one.accuracy for one in mine])
        left.errorbar(places, middle, ends, label=" " + judge, **style)
        middle, ends = spread([one.forced for one in mine])
        right.errorbar(places, middle, ends, label=" " + judge, **style)
    left.axhline(50, color="#555555", linewidth=1, linestyle=":", label="guessing")
    for axes in (left, right):
        axes.set_xticks(range(len(names)), names)
        axes.legend(frameon=False, fontsize=9)
    finish(left, "Accuracy, both orders", "thinking budget, tokens", "verdicts right, %")
    finish(right, "How often the budget was used up", "thinking budget, tokens", "verdicts forced, %")
    right.set_ylim(-3, 103)
