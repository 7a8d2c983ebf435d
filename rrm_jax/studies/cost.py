"""What accuracy costs: the best of many candidates by every strategy, number of votes and thinking budget, against the
tokens that it takes."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.studies.best_of import Bounds, Way, bounds, parse_correct, play, ways
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import CostConfig
from rrm_jax.studies.pooling import Total
from rrm_jax.studies.report import MARKERS, Claim, Report, Table, brackets, finish, percent, spread, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to spend tokens."""

    strategy: str
    votes: int
    budget: int | None
    way: Way


@dataclasses.dataclass(frozen=True)
class Found:
    """`settings` are judge by judge, in the configuration's order: budgets, strategies, votes."""

    queries: Total
    settings: tuple[Setting, ...]
    bounds: Bounds


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none costs no more and is worth no less, and differs in one of them."""
    return [
        not any(
            other_cost <= cost and other_value >= value and (other_cost, other_value) != (cost, value)
            for other_cost, other_value in zip(costs, values, strict=True)
        )
        for cost, value in zip(costs, values, strict=True)
    ]


def front(settings: Sequence[Setting]) -> list[bool]:
    """Of each setting: no other one of the same judge is as accurate for fewer tokens, or more accurate for as many
    (Pareto). A token of another judge may cost something else."""
    best: dict[int, bool] = {}
    for judge in {one.way.judge for one in settings}:
        places = [at for at, one in enumerate(settings) if one.way.judge == judge]
        ways = [settings[at].way for at in places]
        best |= zip(places, pareto([w.tokens for w in ways], [w.accuracy.estimate for w in ways]), strict=True)
    return [best[at] for at in range(len(settings))]


def find(config: CostConfig, session: Session) -> Found:
    """Plays every setting; a comparison that several of them ask for is judged once."""
    rows = session.read(config.candidates, parse_correct, config.limit)
    found: list[Setting] = []
    for name, judge in config.judges.items():
        for budget in config.budgets:
            for text in config.strategies:
                for votes in config.votes:
                    ranked = play(session, name, judge, rows, parse_entry(f"{text}:votes={votes}"), budget)
                    results = {text: [one.result for one in ranked]}
                    (way,) = ways(name, results, rows, None, config.seed, config.resamples)
                    found.append(Setting(text, votes, budget, way))
    return Found(len(rows), tuple(found), bounds(rows, config.seed, config.resamples))


def report(config: CostConfig, found: Found, seeds: Sequence[int]) -> Report:
    """Settings by cost, and the frontier of accuracy against tokens. `seeds` are those that `found` was pooled over."""
    limits = found.bounds
    return Report(
        "What does accuracy cost?",
        f"The best candidate for {found.queries} queries: {len(config.strategies)} strategies × {len(config.votes)} "
        f"numbers of votes × {len(config.budgets)} thinking budgets, {len(config.judges)} judge(s).",
        found,
        [Table("Cheapest first; costs are means a query", _rows(found.settings), left=2)],
        _says(found.settings),
        [
            "★: no other setting of this judge is as accurate for fewer tokens. This choice is as uncertain as the "
            f"intervals are wide. {brackets(seeds, 'queries')}",
            f"Without a judge: a random candidate {percent(limits.candidate)}, the most common answer "
            f"{percent(limits.majority)}, oracle {percent(limits.oracle)}.",
        ],
        lambda figure: _draw(figure, found.settings, limits),
        (5.2 * len(config.judges) + 2.2, 4.6),
    )


def _says(settings: Sequence[Setting]) -> list[Claim]:
    says, best = [], front(settings)
    for judge in dict.fromkeys(one.way.judge for one in settings):
        mine = sorted(
            (one for one, is_best in zip(settings, best, strict=True) if is_best and one.way.judge == judge),
            key=lambda one: one.way.tokens,
        )
        steps = "; ".join(
            f"{100 * one.way.accuracy.estimate:.1f} % for {one.way.tokens:.0f} tokens ({one.strategy}, {one.votes} "
            f"vote(s), budget {_name(one.budget)})"
            for one in mine
        )
        says.append(told(f"{judge}: the most accurate for what they cost: {steps}."))
    return says


def _name(budget: int | None) -> str:
    return "none" if budget is None else f"{budget:,}"


def _rows(settings: Sequence[Setting]) -> list[list[str]]:
    rows = [["judge", "strategy", "votes", "budget", "right", "comparisons", "verdicts", "tokens", "invalid", "best"]]
    for one, best in sorted(zip(settings, front(settings), strict=True), key=lambda one: one[0].way.tokens):
        way = one.way
        costs = [f"{way.comparisons:.1f}", f"{way.votes:.1f}", f"{way.tokens:.0f}", str(way.invalid)]
        shown = [percent(way.accuracy), *costs, "★" if best else ""]
        rows.append([way.judge, one.strategy, str(one.votes), _name(one.budget), *shown])
    return rows


def _draw(figure: "Figure", settings: Sequence[Setting], limits: Bounds) -> None:
    judges = list(dict.fromkeys(one.way.judge for one in settings))
    strategies = list(dict.fromkeys(one.strategy for one in settings))
    budgets = list(dict.fromkeys(one.budget for one in settings))
    grid = figure.subplots(1, len(judges), squeeze=False, sharey=True)[0]
    starred = {id(one): best for one, best in zip(settings, front(settings), strict=True)}
    handles: dict[str, Any] = {}
    for axes, judge in zip(grid, judges, strict=True):
        mine = [one for one in settings if one.way.judge == judge]
        for one in mine:
            colour, marker = COLOURS[strategies.index(one.strategy) % 7], MARKERS[budgets.index(one.budget) % 8]
            middle, ends = spread([one.way.accuracy])
            size = 4 + 1.2 * sorted({other.votes for other in settings}).index(one.votes)
            axes.errorbar(
                [one.way.tokens], middle, ends, color=colour, marker=marker, markersize=size, elinewidth=0.6,
                markeredgecolor="black" if starred[id(one)] else colour, markeredgewidth=1.3,
            )  # fmt: skip
            handles[one.strategy] = axes.plot([], [], "s", color=colour)[0]
        steps = sorted((one.way.tokens, 100 * one.way.accuracy.estimate) for one in mine if starred[id(one)])
        (handles["best (★)"],) = axes.step(*zip(*steps, strict=True), where="post", color="black", lw=0.8)
        handles["oracle"] = axes.axhline(100 * limits.oracle.estimate, color="#555555", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        finish(axes, judge, "judge's tokens a query", "queries answered right, %" if axes is grid[0] else "")
    for at, budget in enumerate(budgets if len(budgets) > 1 else ()):
        (handles[f"budget {_name(budget)}"],) = grid[0].plot([], [], MARKERS[at % 8], color="#777777")
    counts = sorted({one.votes for one in settings})
    for at, votes in enumerate(counts):
        (handles[f"{votes} vote(s)"],) = grid[0].plot([], [], "o", color="#bbbbbb", markersize=4 + 1.2 * at)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=9)
