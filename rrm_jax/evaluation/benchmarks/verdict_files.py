"""Files of verdicts, scored without a model: those that `rrm eval` and `rrm judge` wrote, and published ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.data.jsonl import RowError, decode_row
from rrm_jax.data.verifiers import Outcome
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import rewardbench
from rrm_jax.evaluation.benchmarks.base import Ballot, Benchmark, Item, Judged, Tries, Try, Verdicts
from rrm_jax.evaluation.benchmarks.harness import pair_of
from rrm_jax.evaluation.benchmarks.scores import COUNTS, Score, Table, evaluate
from rrm_jax.judging.judge import content_digest
from rrm_jax.judging.store import digest
from rrm_jax.judging.summary import in_both_orders


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
        elif benchmark.kind == "answers" and isinstance(content, list) and content and "samples" in content[0]:
            found = {"answers": tries_of_rows(benchmark.name, items, content)}
        else:
            found = None if benchmark.read_verdicts is None else benchmark.read_verdicts(content, items)
    except (RowError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RrmError(f"{path}: {error if isinstance(error, RowError) else f'not as expected ({error!r})'}") from None
    if found is None:
        raise RrmError(
            f"{path} is no verdict file of {benchmark.name}: rows of rrm eval or rrm judge (id, votes or samples, "
            "content) are needed, or one of its published files (see rrm eval --list)"
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


def question_digest(item: Item) -> str:
    """Of a question and its right answer."""
    return digest([item.query, item.gold])


def tries_of_rows(benchmark: str, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]) -> dict[str, Judged]:
    """What became of responses to the items. Raises RowError for rows of other questions or another benchmark."""
    known = {item.id: item for item in items}
    found: dict[str, Judged] = {}
    for number, row in enumerate(rows, start=1):
        if row.get("benchmark", benchmark) != benchmark:
            raise RowError(f"row {number} is of {row['benchmark']}, not of {benchmark}")
        item = known.get(row["id"])
        if item is None:
            continue
        if row["content"] != question_digest(item):
            raise RowError(f"row {number}: {item.id!r} is another question than this data's")
        try:
            tries = tuple(Try(**one | {"outcome": Outcome(one["outcome"])}) for one in row["samples"])
        except (ValueError, TypeError) as error:
            raise RowError(f"row {number}: {error}") from None
        if not tries:
            raise RowError(f"row {number}: there are no responses")
        if item.id in found:
            raise RowError(f"row {number}: {item.id!r} appears twice")
        found[item.id] = Tries(tries)
    return found


def verdicts_of_rows(
    benchmark: Benchmark, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Judged]:
    """Items whose games are all among the judged rows. Raises RowError for rows of other texts or another benchmark."""
    by_name = {item.name_of(game): pair_of(item, game) for item in items for game in item.games}
    said: dict[str, tuple[Ballot, ...]] = {}
    # `rrm judge` does not write how it asked; a pair or two of random orders may look as if both had been asked.
    both = all(in_both_orders(row["votes"]) for row in rows if "order" not in row)
    for number, row in enumerate(rows, start=1):
        name = row.get("id")
        if row.get("benchmark", benchmark.name) != benchmark.name:
            raise RowError(f"row {number} is of {row['benchmark']}, not of {benchmark.name}")
        if name not in by_name:
            continue
        if row["content"] != content_digest(by_name[name]):
            raise RowError(f"row {number}: {name!r} was judged on other texts than this data's")
        if name in said:
            raise RowError(f"row {number}: {name!r} was judged in an earlier row as well; are these several runs?")
        said[name] = ballots_of(row["votes"], row["order"] == "both" if "order" in row else both)
        if any(ballot.verdict not in (0, 1, 2, None) or ballot.order not in ("12", "21") for ballot in said[name]):
            raise RowError(f"row {number}: a verdict must be 1, 2 or null, and an order 12 or 21")
    found: dict[str, Judged] = {}
    for item in items:
        games = [said.get(item.name_of(game)) for game in item.games]
        if games and None not in games:
            found[item.id] = tuple(game for game in games if game is not None)
    return found
