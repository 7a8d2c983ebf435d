"""From a snapshot to scores: `load`, then `judge_items` or `read_verdict_file`, then `score`.

Scoring is a pure function of items, verdicts and a policy. What was never judged is listed, and never scored.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair
from rrm_jax.data.snapshot import Snapshot, open_snapshot
from rrm_jax.data.table_files import ENDINGS, TableFile
from rrm_jax.data.verifiers import Outcome
from rrm_jax.errors import RrmError, did_you_mean
from rrm_jax.evaluation.benchmarks.base import (
    Ballot,
    Benchmark,
    Game,
    Item,
    Judged,
    Pick,
    Policy,
    Tries,
    Verdicts,
    asked_both,
    decide,
)  # fmt: skip
from rrm_jax.evaluation.benchmarks.scores import COUNTS, Difference, Score, Table, differences, evaluate

# A new benchmark is a module here with a `BENCHMARK` (or several, `BENCHMARKS`), and its name in this list.
MODULES = [
    "rewardbench",
    "rewardbench2",
    "pandalm",
    "llmbar",
    "judgebench",
    "rm_bench",
    "ppe",
    "best_of_n",
    "pairs",
    "arena_hard",
    "answers",
]


def declared(module: str) -> dict[str, Benchmark]:
    """A module's benchmarks by their names."""
    found = importlib.import_module(f"rrm_jax.evaluation.benchmarks.{module}")
    several = found.BENCHMARKS if hasattr(found, "BENCHMARKS") else (found.BENCHMARK,)
    return {benchmark.name: benchmark for benchmark in several}


BENCHMARKS = {name: benchmark for module in MODULES for name, benchmark in declared(module).items()}


def benchmark_of(name: str) -> Benchmark:
    """By the name that `rrm eval` takes; RrmError, with all names, for another."""
    if name not in BENCHMARKS:
        raise RrmError(
            f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}{did_you_mean(name, BENCHMARKS)}"
        )
    return BENCHMARKS[name]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A benchmark's items, in the order of their rows. `missing` says by group how many of the published rows are
    there where not all are: (there, published). `skipped` counts unusable rows; `files` are what was read, by name."""

    benchmark: Benchmark
    items: tuple[Item, ...]
    missing: Mapping[str, tuple[int, int]]
    skipped: int
    files: Mapping[str, Path]

    def notes(self) -> list[str]:
        """What a reader of the scores must know of the rows: lines for people."""
        lines = [f"{group}: {there} of the {all} published rows" for group, (there, all) in self.missing.items()]
        return lines + ([f"{self.skipped} unusable row(s) were passed over"] if self.skipped else [])


def load(
    name: str, path: str | Path, *, split: str | None = None, groups: Sequence[str] = (), strict: bool = False,
    report: Callable[[str], None] = lambda message: None, seed: int = 0,
) -> Loaded:  # fmt: skip
    """The items of a benchmark's snapshot at `path`; only those of `groups`, if any are named. `seed`: of the order of
    options, where a benchmark shuffles them.

    An unusable row is given to `report` as `file:row: why`, counted and passed over (`strict`: raised). Raises RrmError
    where the snapshot has other columns than the benchmark, no usable row, or no such group.
    """
    benchmark = benchmark_of(name)
    items: dict[str, Item] = {}
    skipped, first, files, before = 0, "", {}, 0
    for root, file, group in _files(benchmark, Path(path), split):
        files[file.name if root == file else str(file.relative_to(root))] = file
        parse = _parser(benchmark, file, seed)
        at = before - 1
        for at, (number, row) in enumerate(TableFile(file).rows(), start=before):
            try:
                if isinstance(row, RowError):
                    raise row
                item = parse(row, at)
                if group:
                    item = dataclasses.replace(item, id=f"{group}/{item.id}", group=group)
                if item.id in items:
                    raise RowError(f"id {item.id!r} appears twice; ids must be unique")
            except RowError as error:
                message = f"{file}:{number}: {error}"
                if strict:
                    raise RrmError(message) from None
                skipped, first = skipped + 1, first or message
                report(message)
                continue
            items[item.id] = item
        before = 0 if group else at + 1  # rows of one data set in several files are numbered on
    if not items:
        raise RrmError(
            f"{path} holds no usable row of {name}" + (f" ({skipped} skipped); the first: {first}" if first else "")
        )
    counts: dict[str, int] = {}
    for item in items.values():
        counts[item.group] = counts.get(item.group, 0) + 1
    if unknown := {*groups} - {*counts}:
        raise RrmError(
            f"{path} has no rows of {', '.join(sorted(unknown))}; its groups are {', '.join(sorted(counts))}"
        )
    wanted = {group: rows for group, rows in benchmark.rows.items() if not groups or group in groups}
    missing = {group: (counts.get(group, 0), rows) for group, rows in wanted.items() if counts.get(group, 0) != rows}
    kept = tuple(item for item in items.values() if not groups or item.group in groups)
    return Loaded(benchmark, kept, missing, skipped, files)


def _files(benchmark: Benchmark, path: Path, split: str | None) -> Iterator[tuple[Path, Path, str]]:
    """(Root, file, group that its name says)."""
    of = benchmark.group_of_file
    if of is None:
        snapshot = open_snapshot(path, split, benchmark.split)
        yield from ((snapshot.root, file, "") for file in snapshot.files)
        return
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.endswith(ENDINGS))
        named = [(path, file, of(file.relative_to(path).as_posix())) for file in found]
    else:
        open_snapshot(path)  # raises where there is no such file of data
        named = [(path, path, of(path.as_posix()))]
    named = [one for one in named if one[2]]
    if not named:
        names = ", ".join(f"{group}.json" for group in benchmark.rows)
        raise RrmError(f"{path} is not a snapshot of {benchmark.name}\n  expected: {names}\n  found: none of these")
    yield from named


def _parser(benchmark: Benchmark, file: Path, seed: int) -> Callable[[Any, int], Item]:
    columns = TableFile(file).columns
    if not {*benchmark.columns} <= {*columns} and benchmark.adapt is not None and (other := benchmark.adapt(columns)):
        return other
    Snapshot(file, "", (file,)).check_columns(benchmark.columns, f"a file of {benchmark.name}")
    return benchmark.parse if benchmark.shuffled is None else benchmark.shuffled(seed)


def table_of(benchmark: Benchmark, items: Sequence[Item], verdicts: Verdicts, policy: Policy | None = None) -> Table:
    """What is counted of the items that have verdicts; of best-of-N without any verdict, of all."""
    policy = policy or benchmark.policy
    bare = benchmark.kind == "best-of-n" and not verdicts
    by_group: dict[str, list[tuple[str, Sequence[float], list[float]]]] = {}
    for item in sorted(items, key=lambda item: item.id):
        judged: Any = verdicts.get(item.id)
        if judged is None and not bare:
            continue
        row = benchmark.measure(item, judged, policy)
        by_group.setdefault(item.group, []).append((item.id, row, _counts(item, judged, policy)))
    return Table(
        {group: tuple(id for id, _, _ in rows) for group, rows in by_group.items()},
        {group: np.array([row for _, row, _ in rows]) for group, rows in by_group.items()},
        {group: np.array([counts for _, _, counts in rows]) for group, rows in by_group.items()},
    )


def _counts(item: Item, judged: Judged | None, policy: Policy) -> list[float]:
    """The item's row of COUNTS."""
    if judged is None:
        return [0.0] * len(COUNTS)
    if isinstance(judged, Pick):
        votes = (judged.votes, judged.invalid, judged.no_winner, judged.cut_off, judged.truncated_inputs)
        return [*map(float, (*votes, judged.tokens, judged.comparisons, 0, 0))]
    if isinstance(judged, Tries):
        tries = judged.tries
        said = (len(tries), sum(one.outcome == Outcome.NO_ANSWER for one in tries), 0)
        cut = (sum(one.cut_off for one in tries), sum(one.truncated_input for one in tries))
        return [*map(float, (*said, *cut, sum(one.tokens for one in tries), 0, 0, 0))]
    row = np.zeros(len(COUNTS))
    for game, all_ballots in zip(item.games, judged, strict=True):
        ballots = policy.counted(item.name_of(game), all_ballots)
        pairs = (
            list(zip(*(_of_order(ballots, order) for order in ("12", "21")), strict=True))
            if asked_both(ballots)
            else []
        )
        row += [
            len(ballots), sum(ballot.verdict is None for ballot in ballots), decide(ballots) in (0, None),
            sum(ballot.cut_off for ballot in ballots), sum(ballot.truncated_input for ballot in ballots),
            sum(ballot.tokens for ballot in ballots), 1, len(pairs),
            sum(one.verdict == other.verdict != None for one, other in pairs),  # noqa: E711
        ]  # fmt: skip
    return row.tolist()


def _of_order(ballots: Sequence[Ballot], order: str) -> list[Ballot]:
    return [ballot for ballot in ballots if ballot.order == order]


def score(
    benchmark: Benchmark, items: Sequence[Item], verdicts: Verdicts, policy: Policy | None = None, *,
    samples: int = 2000, seed: int = 0,
) -> tuple[Score, ...]:  # fmt: skip
    """The benchmark's scores over the items that have verdicts, with 95 % intervals of `samples` bootstrap samples.
    Raises RrmError where none has."""
    table = table_of(benchmark, items, verdicts, policy)
    if not table.ids:
        raise RrmError(f"none of the {len(items)} items of {benchmark.name} has a verdict: there is nothing to score")
    further = () if benchmark.further is None else benchmark.further(table, samples, seed)
    return evaluate(table, benchmark.tree(table), samples, seed) + further


def compare(
    benchmark: Benchmark, items: Sequence[Item], first: Verdicts, second: Verdicts, policy: Policy | None = None, *,
    samples: int = 2000, seed: int = 0,
) -> list[Difference]:  # fmt: skip
    """Every score of `first` minus that of `second`, over the items that both judged, with paired tests."""
    this, other = (table_of(benchmark, items, verdicts, policy) for verdicts in (first, second))
    try:
        return differences(this, other, benchmark.tree, samples, seed)
    except ValueError as error:
        raise RrmError(f"{benchmark.name}: {error}") from None


def pair_of(item: Item, game: Game) -> Pair:
    """A game as a pair to be judged; its id addresses the order of showing it."""
    label = game.label or None
    return Pair(item.name_of(game), item.query, item.responses[game.i], item.responses[game.j], label, item.group)
