"""How good is the judge? Published benchmarks, judged by every judge and scored as their authors score them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import (
    Benchmark,
    Loaded,
    Outcome,
    Policy,
    Score,
    Verdicts,
    benchmark_of,
    compare,
    judge_items,
    load,
    score,
)
from rrm_jax.evaluation.benchmarks.harness import table_of
from rrm_jax.evaluation.benchmarks.scores import COUNTS
from rrm_jax.evaluation.benchmarks.scores import Table as ScoreTable
from rrm_jax.evaluation.eval_job import Picking, order_of, policy_of
from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.ranking_report import shown
from rrm_jax.evaluation.statistics import Interval, Paired
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import BenchmarksConfig
from rrm_jax.studies.pooling import Total
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
    told,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTED = ("votes", "invalid", "cut_off", "comparisons", "tokens")
DEPTH = 2  # levels of scores: the overall one, and what it is made of


@dataclasses.dataclass(frozen=True)
class Result:
    """One score of one judge. `depth` 0 is a benchmark's own."""

    benchmark: str
    judge: str
    score: str
    depth: int
    value: Interval


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a judge's scores of a benchmark rest on, and its first score against the baseline's on the same items."""

    benchmark: str
    judge: str
    items: Total
    not_judged: Total
    votes: Total
    invalid: Total
    cut_off: Total
    comparisons: Total
    tokens: Total
    against: Paired | None


@dataclasses.dataclass(frozen=True)
class Found:
    """`results` has every score that is shown, `judged` what they rest on, both by benchmark and then by judge;
    `left_out` names the benchmarks whose data are not here, and `partial` says of which only some rows are."""

    results: tuple[Result, ...]
    judged: tuple[Judged, ...]
    left_out: tuple[str, ...]
    partial: tuple[str, ...]


def find(config: BenchmarksConfig, session: Session) -> Found:
    """Has every judge judge every benchmark whose data are here, and scores them as published. RrmError where none is
    here."""
    loaded, partial = _load(config, session)
    # A judge after another: only one is held in memory.
    said = {
        judge: {name: _ask(config, session, name, judge, of) for name, of in loaded.items()} for judge in config.judges
    }
    results: list[Result] = []
    judged: list[Judged] = []
    for name, of in loaded.items():
        for judge in config.judges:
            verdicts, policy = said[judge][name].verdicts, policy_of(of.benchmark, seed=config.seed)
            scores = score(of.benchmark, of.items, verdicts, policy, samples=config.resamples, seed=config.seed)
            results += _results(name, judge, scores)
            against = None
            if config.baseline is not None and config.baseline != judge:
                against = _compare(config, of, verdicts, said[config.baseline][name].verdicts, policy)
            counts = _counted(table_of(of.benchmark, of.items, verdicts, policy))
            judged.append(
                Judged(name, judge, len(of.items), len(said[judge][name].not_judged), against=against, **counts)
            )
    left_out = tuple(name for name in config.benchmarks if name not in loaded)
    return Found(tuple(results), tuple(judged), left_out, tuple(partial))


def check(config: BenchmarksConfig) -> None:
    """RrmError for what no judge can be asked about."""
    for name, asked in config.benchmarks.items():
        benchmark = benchmark_of(asked.benchmark or name)
        if benchmark.kind == "answers" or benchmark.takes_answers:
            raise RrmError(f"{name}: {benchmark.name} has no responses of its own to be judged; see rrm eval --help")
        Picking(asked.strategy).entry()


def _load(config: BenchmarksConfig, session: Session) -> tuple[dict[str, Loaded], list[str]]:
    """The benchmarks whose data are here, and what of their rows is not judged."""
    loaded: dict[str, Loaded] = {}
    partial: list[str] = []
    for name, asked in config.benchmarks.items():
        if not Path(asked.data).exists():
            session.report(f"{name} is left out: there is no {asked.data}")
            continue
        how = {"split": asked.split, "groups": asked.groups, "report": session.report}
        of = load(asked.benchmark or name, asked.data, **how)
        session.skipped += of.skipped
        missing = of.missing.items()
        partial += [f"{name}: {group}, {there} of the {all} published rows" for group, (there, all) in missing]
        if config.limit is not None and config.limit < len(of.items):
            partial.append(f"{name}: only its first {config.limit} items (limit)")
        loaded[name] = dataclasses.replace(of, items=of.items[: config.limit])
    if not loaded:
        raise RrmError(f"there are no data of any of the benchmarks {', '.join(config.benchmarks)}")
    return loaded, partial


def _counted(table: ScoreTable) -> dict[str, int]:
    """COUNTED of all that was asked, whatever a score is made of."""
    rows = np.concatenate(list(table.counts.values())).sum(axis=0)
    return {key: int(rows[COUNTS.index(key)]) for key in COUNTED}


def _ask(config: BenchmarksConfig, session: Session, name: str, judge: str, loaded: Loaded) -> Outcome:
    asked, best_of_n = config.benchmarks[name], loaded.benchmark.kind == "best-of-n"
    opened = session.judge(
        f"{judge}, {name}", config.judges[judge], votes=asked.votes, order=order_of(loaded.benchmark, asked.order)
    )
    entry = Picking(asked.strategy).entry() if best_of_n else None
    outcome = judge_items(
        opened, loaded.benchmark, loaded.items, session.log, entry=entry, seed=config.seed, advance=session.advance
    )
    why = next(iter(outcome.not_judged.values()), "")
    if outcome.given_up:
        raise RrmError(f"{judge}, {name}: {len(outcome.not_judged)} item(s) were not judged; the first: {why}")
    if outcome.not_judged:
        session.report(f"{judge}, {name}: {len(outcome.not_judged)} item(s) were not judged; the first: {why}")
        session.skipped += len(outcome.not_judged)
    return outcome


def _results(benchmark: str, judge: str, scores: Sequence[Score]) -> list[Result]:
    return [
        Result(benchmark, judge, one.name, depth, _interval(one))
        for top in scores
        for depth, one in top.walk()
        if depth < DEPTH
    ]


def _interval(one: Score) -> Interval:
    low, high = (float("nan") if end is None else end for end in (one.low, one.high))
    return Interval(one.value, low, high, one.items)


def _compare(config: BenchmarksConfig, of: Loaded, one: Verdicts, other: Verdicts, policy: Policy) -> Paired:
    """The first score's difference, over the items that both have judged. Where credits are not right and wrong alone,
    it is not counted who is better how often, and p is the paired bootstrap's."""
    gap = compare(of.benchmark, of.items, one, other, policy, samples=config.resamples, seed=config.seed)[0]
    low, high = (float("nan") if end is None else end for end in (gap.low, gap.high))
    p = gap.mcnemar if gap.mcnemar is not None else gap.p_value
    difference = Interval(gap.first - gap.second, low, high, gap.items)
    return Paired(difference, gap.only_first or 0, gap.only_second or 0, float("nan") if p is None else p)


def report(config: BenchmarksConfig, found: Found, seeds: Sequence[int]) -> Report:
    """The scores of each benchmark, what they rest on, and others' published ones. `seeds` are those that `found` was
    pooled over."""
    names = list(dict.fromkeys(one.benchmark for one in found.results))
    known = {name: benchmark_of(config.benchmarks[name].benchmark or name) for name in names}
    tables = [*(_scores(found, name) for name in names), _counts(found)]
    published = {name: [dataclasses.asdict(one) for one in benchmark.published] for name, benchmark in known.items()}
    return Report(
        config.title,
        "; ".join(f"{name}: {benchmark.what}" for name, benchmark in known.items()) + ".",
        found,
        [*tables, *filter(None, (_published(name, known[name]) for name in names))],
        _says(config, found),
        [
            f"Scores, invalid verdicts and ties as the benchmarks' authors have them. {brackets(seeds, 'items')}",
            "p: McNemar's exact test where every item is right or wrong, else the paired bootstrap's"
            + ("." if len(seeds) == 1 else "; over seeds no smaller than a t-test's over their differences."),
            *(f"{name} was not judged: its data are not there." for name in found.left_out),
            *(f"Not the whole benchmark: {what}." for what in found.partial),
            *(f"{name}: {why}" for name in names if (why := known[name].unverified)),
        ],
        lambda figure: _draw(figure, found, config.title),
        (max(6.0, 2.2 + 1.3 * len(names) * len(config.judges) ** 0.5), 4.2),
        published=published,
    )


def _scores(found: Found, name: str) -> Table:
    mine = [one for one in found.results if one.benchmark == name]
    judges = list(dict.fromkeys(one.judge for one in mine))
    by = {(one.score, one.depth, one.judge): percent(one.value) for one in mine}
    scores = dict.fromkeys((one.score, one.depth) for one in mine)
    rows = [["score", *judges]]
    for text, depth in scores:
        values = (by.get((text, depth, judge), "–") for judge in judges)
        rows.append(["– " * depth + shown(text, 100), *values])
    return Table(name, rows)


def _counts(found: Found) -> Table:
    rows = [["benchmark", "judge", "items", "not judged", "votes", "invalid", "cut off", "comparisons", "tokens a vote",
             "against the baseline, points", "p"]]  # fmt: skip
    for one in found.judged:
        counts = (one.items, one.not_judged, one.votes, one.invalid, one.cut_off, one.comparisons)
        tokens = f"{one.tokens / one.votes:.1f}" if one.votes else "–"
        test = ["–", "–"] if one.against is None else [points(one.against.difference), p_value(one.against.p)]
        rows.append([one.benchmark, one.judge, *map(str, counts), tokens, *test])
    return Table("What the scores rest on", rows, left=2)


def _published(name: str, benchmark: Benchmark) -> Table | None:
    published = benchmark.published
    if not published:
        return None
    scores = list(dict.fromkeys(score for one in published for score in one.scores))
    rows = [["published", *scores, "known from"]]
    for one in published:
        cells = (f"{one.scores[score]:.1f}" if score in one.scores else "–" for score in scores)
        rows.append([one.who, *cells, one.where])
    return Table(f"Published: {name}, %; not our result", rows)


def _says(config: BenchmarksConfig, found: Found) -> list[Claim]:
    firsts: dict[tuple[str, str], Interval] = {}
    for one in found.results:
        firsts.setdefault((one.benchmark, one.judge), one.value)
    says = []
    for one in found.judged:
        mine = percent(firsts[one.benchmark, one.judge])
        if one.judge == config.baseline:
            continue
        if one.against is None or config.baseline is None:
            says.append(told(f"{one.benchmark}: {one.judge} reaches {mine}."))
            continue
        theirs = percent(firsts[one.benchmark, config.baseline])
        says.append(
            claim(
                f"{one.benchmark}: {one.judge} is better than {config.baseline}",
                one.against.difference,
                f"{mine} against {theirs}, {points(one.against.difference)} points (p = {p_value(one.against.p)}).",
            )
        )
    return says


def _draw(figure: "Figure", found: Found, title: str) -> None:
    axes = figure.subplots()
    names = list(dict.fromkeys(one.benchmark for one in found.results))
    judges = list(dict.fromkeys(one.judge for one in found.results))
    width = 0.8 / len(judges)
    for at, judge in enumerate(judges):
        firsts: dict[str, Interval] = {}
        for one in found.results:
            if one.judge == judge:
                firsts.setdefault(one.benchmark, one.value)
        middle, ends = spread(list(firsts.values()))
        places = [names.index(name) + (at - (len(judges) - 1) / 2) * width for name in firsts]
        bars = axes.bar(places, middle, width * 0.92, yerr=ends, capsize=3, color=COLOURS[at % 8], ecolor="#333333")
        bars.set_label(" " + judge)
        axes.bar_label(bars, [f"{value:.1f}" for value in middle], padding=2, fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 112)
    finish(axes, f"{title} (the first score of each)", "", "%")
    axes.grid(False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
