"""From a snapshot to scores: `load`, then `judge_items` or `read_verdict_file`, then `score`.

Scoring is a pure function of items, verdicts and a policy. What was never judged is listed, and never scored.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.data.jsonl import RowError, decode_row
from rrm_jax.data.records import Pair
from rrm_jax.data.snapshot import Snapshot, open_snapshot
from rrm_jax.data.table_files import ENDINGS, TableFile
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import (
    best_of_n,
    judgebench,
    llmbar,
    pairs,
    pandalm,
    ppe,
    rewardbench,
    rewardbench2,
    rm_bench,
)  # fmt: skip
from rrm_jax.evaluation.benchmarks.base import (
    Ballot,
    Benchmark,
    Game,
    Item,
    Judged,
    Pick,
    Policy,
    Verdicts,
    asked_both,
    decide,
)  # fmt: skip
from rrm_jax.evaluation.benchmarks.scores import COUNTS, Difference, Score, Table, differences, evaluate
from rrm_jax.judging.judge import content_digest

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        rewardbench.BENCHMARK, rewardbench2.BENCHMARK, pandalm.BENCHMARK, llmbar.BENCHMARK, judgebench.BENCHMARK,
        rm_bench.BENCHMARK, *ppe.BENCHMARKS, best_of_n.BENCHMARK, pairs.BENCHMARK,
    )
}  # fmt: skip


def benchmark_of(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise RrmError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
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
        lines = [f"{group}: {there} of the {all} published rows" for group, (there, all) in self.missing.items()]
        return lines + ([f"{self.skipped} unusable row(s) were passed over"] if self.skipped else [])


def load(
    name: str, path: str | Path, *, split: str | None = None, groups: Sequence[str] = (), strict: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Loaded:  # fmt: skip
    """The items of a benchmark's snapshot at `path`; only those of `groups`, if any are named.

    An unusable row is given to `report` as `file:row: why`, counted and passed over (`strict`: raised). Raises RrmError
    where the snapshot has other columns than the benchmark, no usable row, or no such group.
    """
    benchmark = benchmark_of(name)
    items: dict[str, Item] = {}
    skipped, first, files = 0, "", {}
    for root, file, group in _files(benchmark, Path(path), split):
        files[file.name if root == file else str(file.relative_to(root))] = file
        parse = _parser(benchmark, file)
        for at, (number, row) in enumerate(TableFile(file).rows()):
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


def _parser(benchmark: Benchmark, file: Path) -> Callable[[Any, int], Item]:
    columns = TableFile(file).columns
    if not {*benchmark.columns} <= {*columns} and benchmark.adapt is not None and (other := benchmark.adapt(columns)):
        return other
    Snapshot(file, "", (file,)).check_columns(benchmark.columns, f"a file of {benchmark.name}")
    return benchmark.parse


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
    return evaluate(table, benchmark.tree(table), samples, seed)


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


def scores_of_subsets(benchmark: Benchmark, content: Any) -> dict[str, tuple[Score, ...]] | None:
    """RewardBench's published accuracies by subset, as scores: `{model: scores}`. None for anything else."""
    models = rewardbench.read_subsets(content) if benchmark.name == "rewardbench" else None
    if models is None:
        return None
    found = {}
    for model, accuracies in models.items():
        sizes = {subset: benchmark.rows[subset] for subset in accuracies}
        table = Table(
            {subset: tuple(map(str, range(size))) for subset, size in sizes.items()},
            {subset: np.array([[accuracies[subset], 1.0]] * size) for subset, size in sizes.items()},
            {subset: np.zeros((size, len(COUNTS))) for subset, size in sizes.items()},
        )
        found[model] = evaluate(table, benchmark.tree(table), samples=0)
    return found


def read_content(path: str | Path) -> Any:
    """A file's JSON, or its rows. Raises RrmError."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        return (
            json.loads(text)
            if path.suffix == ".json"
            else [decode_row(line) for line in text.splitlines() if line.strip()]
        )
    except (ValueError, RecursionError, RowError) as error:
        raise RrmError(f"{path} is neither JSON nor JSON lines: {error}") from None


def read_verdict_file(benchmark: Benchmark, items: Sequence[Item], path: str | Path) -> dict[str, Verdicts]:
    """What each judge in a file said: rows that `rrm eval` or `rrm judge` wrote (one judge), or a published one.

    Raises RrmError for a file of another benchmark or of other texts, and for one that contradicts itself.
    """
    content = read_content(path)
    try:
        if (
            isinstance(content, list)
            and content
            and isinstance(content[0], dict)
            and "votes" in content[0]
            and "content" in content[0]
        ):
            found: Mapping[str, Verdicts] | None = {"judge": verdicts_of_rows(benchmark, items, content)}
        else:
            found = None if benchmark.read_verdicts is None else benchmark.read_verdicts(content, items)
    except (RowError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RrmError(f"{path}: {error if isinstance(error, RowError) else f'not as expected ({error!r})'}") from None
    if found is None:
        raise RrmError(
            f"{path} is no verdict file of {benchmark.name}: rows of rrm eval or rrm judge (id, votes, content) are "
            "needed, or one of its published files (see rrm eval --list)"
        )
    known = {item.id for item in items}
    if not any(known & verdicts.keys() for verdicts in found.values()):
        raise RrmError(f"{path} has no verdict of an item of this data; is it of another benchmark or version?")
    return {judge: {id: said for id, said in verdicts.items() if id in known} for judge, verdicts in found.items()}


def ballots_of(votes: Sequence[Mapping[str, Any]], both: bool) -> tuple[Ballot, ...]:
    """Of the votes of a judged row; `both`: each was asked in both orders."""
    return tuple(
        Ballot(
            vote["order"],
            vote["verdict"],
            vote["tokens"],
            vote["finish_reason"] == "length",
            vote["truncated_input"],
            both,
        )
        for vote in votes
    )


def verdicts_of_rows(
    benchmark: Benchmark, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Judged]:
    """Items whose games are all among the judged rows. Raises RowError for rows of other texts or another benchmark."""
    by_name = {item.name_of(game): pair_of(item, game) for item in items for game in item.games}
    said: dict[str, tuple[Ballot, ...]] = {}
    for number, row in enumerate(rows, start=1):
        name = row.get("id")
        if row.get("benchmark", benchmark.name) != benchmark.name:
            raise RowError(f"row {number} is of {row['benchmark']}, not of {benchmark.name}")
        if name not in by_name:
            continue
        if row["content"] != content_digest(by_name[name]):
            raise RowError(f"row {number}: {name!r} was judged on other texts than this data's")
        said[name] = ballots_of(row["votes"], row.get("order") == "both")
        if any(ballot.verdict not in (0, 1, 2, None) or ballot.order not in ("12", "21") for ballot in said[name]):
            raise RowError(f"row {number}: a verdict must be 1, 2 or null, and an order 12 or 21")
    found: dict[str, Judged] = {}
    for item in items:
        games = [said.get(item.name_of(game)) for game in item.games]
        if games and None not in games:
            found[item.id] = tuple(game for game in games if game is not None)
    return found
