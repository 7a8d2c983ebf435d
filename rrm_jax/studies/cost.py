"""What accuracy costs: the best of many candidates by every strategy, number of votes and thinking budget, against the
tokens that it takes."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rrm_jax.ranking.entry import parse_entry
from rrm_jax.studies.best_of import Bounds, Way, bounds, parse_correct, play, ways
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import CostConfig
from rrm_jax.studies.report import COLOURS, MARKERS, Report, Table, finish, percent, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to spend tokens. `best`: no other setting of the same judge is as accurate for fewer tokens, or more
    accurate for as many (Pareto). A token of another judge may cost something else."""

    strategy: str
    votes: int
    budget: int | None
    way: Way
    best: bool


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none costs no more and is worth no less, and differs in one of them."""
    return [
        not any(
            other_cost <= cost and other_value >= value and (other_cost, other_value) != (cost, value)
            for other_cost, other_value in zip(costs, values, strict=True)
        )
        for cost, value in zip(costs, values, strict=True)
    ]


def run(config: CostConfig, session: Session) -> Report:
    rows = session.read(config.candidates, parse_correct, config.limit)
    found: list[tuple[str, int, int | None, Way]] = []
    for name, judge in config.judges.items():
        for budget in config.budgets:
            for text in config.strategies:
                for votes in config.votes:
                    ranked = play(session, name, judge, rows, parse_entry(f"{text}:votes={votes}"), budget)
                    results = {text: [one.result for one in ranked]}
                    (way,) = ways(name, results, rows, None, config.seed, config.resamples)
                    found.append((text, votes, budget, way))
    settings = []
    for name in config.judges:
        mine = [one for one in found if one[-1].judge == name]
        best = pareto([way.tokens for *_, way in mine], [way.accuracy.estimate for *_, way in mine])
        settings += [Setting(*one, front) for one, front in zip(mine, best, strict=True)]
    limits = bounds(rows, config.seed, config.resamples)
    return Report(
        "What does accuracy cost?",
        f"The best candidate for {len(rows)} queries: {len(config.strategies)} strategies × {len(config.votes)} "
        f"numbers of votes × {len(config.budgets)} thinking budgets, {len(config.judges)} judge(s).",
        {"queries": len(rows), "settings": settings, "bounds": limits},
        [Table("Cheapest first; costs are means a query", _rows(settings), left=2)],
        [
            "★: no other setting of this judge is as accurate for fewer tokens. This choice is as uncertain as the "
            "intervals are wide (95 %, bootstrap over queries).",
            f"Without a judge: a random candidate {percent(limits.candidate)}, the most common answer "
            f"{percent(limits.majority)}, oracle {percent(limits.oracle)}.",
        ],
        lambda figure: _draw(figure, settings, limits),
        (5.2 * len(config.judges) + 2.2, 4.6),
    )


def _name(budget: int | None) -> str:
    return "none" if budget is None else f"{budget:,}"


def _rows(settings: Sequence[Setting]) -> list[list[str]]:
    rows = [["judge", "strategy", "votes", "budget", "right", "comparisons", "verdicts", "tokens", "invalid", "best"]]
    for one in sorted(settings, key=lambda one: one.way.tokens):
        way = one.way
        costs = [f"{way.comparisons:.1f}", f"{way.votes:.1f}", f"{way.tokens:.0f}", str(way.invalid)]
        shown = [percent(way.accuracy), *costs, "★" if one.best else ""]
        rows.append([way.judge, one.strategy, str(one.votes), _name(one.budget), *shown])
    return rows


def _draw(figure: "Figure", settings: Sequence[Setting], limits: Bounds) -> None:
    judges = list(dict.fromkeys(one.way.judge for one in settings))
    strategies = list(dict.fromkeys(one.strategy for one in settings))
    budgets = list(dict.fromkeys(one.budget for one in settings))
    grid = figure.subplots(1, len(judges), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for axes, judge in zip(grid, judges, strict=True):
        mine = [one for one in settings if one.way.judge == judge]
        for one in mine:
            colour, marker = COLOURS[strategies.index(one.strategy) % 7], MARKERS[budgets.index(one.budget) % 8]
            middle, ends = spread([one.way.accuracy])
            size = 4 + 1.2 * sorted({other.votes for other in settings}).index(one.votes)
            axes.errorbar(
                [one.way.tokens], middle, ends, color=colour, marker=marker, markersize=size, elinewidth=0.6,
                markeredgecolor="black" if one.best else colour, markeredgewidth=1.3,
            )  # fmt: skip
            handles[one.strategy] = axes.plot([], [], "s", color=colour)[0]
        front = sorted((one.way.tokens, 100 * one.way.accuracy.estimate) for one in mine if one.best)
        (handles["best (★)"],) = axes.step(*zip(*front, strict=True), where="post", color="black", lw=0.8)
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
