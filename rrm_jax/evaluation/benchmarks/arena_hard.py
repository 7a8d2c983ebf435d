"""Arena-Hard: a model's answers to hard prompts against a baseline's, as a judge prefers them.

The rows are prompts: `uid`, `category`, `prompt`, or, in the first version, `question_id`, `category`, `turns`. The
answers come from two files, of `rrm answer` or in either published layout (`model_answer/*.jsonl`). Each pair is judged
in both orders. As the authors have it, the score is the mean over both orders of all prompts, a tie ½, and a prompt
without a valid verdict in one of the orders is left out. Their judge also has degrees, and a decisive verdict counts
three times; a judge here says 1 or 2, and every verdict counts once. Their second version has a baseline for each
category: `--groups` names the one that the baseline belongs to.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.jsonl import Reader, RowError
from rrm_jax.data.records import Unique, checked_text, id_field, parse_candidates, text_field
from rrm_jax.data.samples import UNFINISHED, response_of
from rrm_jax.data.table_files import Row
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks.base import Ballot, Benchmark, Game, Item, Judged, Policy, asked_both
from rrm_jax.evaluation.benchmarks.scores import Node, Score, Table, evaluate, interval, ratio, resamplings
from rrm_jax.evaluation.length_control import equal_length_rate

WIN_RATE, CONTROLLED = "Win rate", "Win rate at equal length"
_LENGTH = 2  # place in a row: characters of the model's answer minus those of the baseline's


def _parse(row: Row, at: int) -> Item:
    return Item(id_field({"id": row["uid"]}), text_field(row, "category"), text_field(row, "prompt"), ())


def _parse_first(row: Row, at: int) -> Item:
    turns = row.get("turns")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
        raise RowError("turns must be a list of one turn")
    query = text_field(turns[0], "content")
    return Item(id_field({"id": row["question_id"]}), text_field(row, "category"), query, ())


def _adapt(columns: Sequence[str]) -> Callable[[Row, int], Item] | None:
    return _parse_first if {"question_id", "category", "turns"} <= {*columns} else None


def fill(items: Sequence[Item], answers: Path, baseline: Path, report: Callable[[str], None]) -> Iterator[Item]:
    """The items with a pair to judge: the model's answer, and the baseline's. Those that lack one are reported.

    Raises RrmError for a file that cannot be read, or whose row answers another prompt.
    """
    queries = {item.id: item.query for item in items}
    both = [dict(_answers(path, queries, report)) for path in (answers, baseline)]
    for item in items:
        missing = [str(path) for path, found in zip((answers, baseline), both, strict=True) if item.id not in found]
        if missing:
            report(f"{' and '.join(missing)}: no answer to {item.id!r}")
        else:
            responses = both[0][item.id], both[1][item.id]
            yield dataclasses.replace(item, responses=responses, games=(Game(0, 1, 0),))


def _answers(path: Path, queries: dict[str, str], report: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    for _, found in Reader(path, Unique(_answer), report=report):
        if found.id in queries and found.query not in (None, queries[found.id]):
            raise RrmError(f"{path}: the query of {found.id!r} is not the benchmark's prompt of that id")
        yield found.id, found.text


@dataclasses.dataclass(frozen=True)
class _Answer:
    """`query` None: the file does not say."""

    id: str
    query: str | None
    text: str


def _answer(row: dict[str, Any]) -> _Answer:
    """Of a row of candidates the first response, without its thinking."""
    if "responses" in row:
        candidates = parse_candidates(row)
        answer, unusable = response_of(candidates.responses[0], None, False)
        if unusable == UNFINISHED:
            raise RowError(f"the answer to {candidates.id!r} was cut off in its thinking")
        return _Answer(candidates.id, candidates.query, answer)
    try:
        if "messages" in row:
            content = row["messages"][-1]["content"]
            content = content["answer"] if isinstance(content, dict) else content
        else:
            (turn,) = row["choices"][0]["turns"]
            content = turn["content"]
    except (KeyError, IndexError, TypeError, ValueError):
        raise RowError(
            "neither candidates (id, query, responses) nor a published answer (uid, messages; or question_id, choices)"
        ) from None
    id = id_field({"id": row.get("uid", row.get("question_id"))})
    return _Answer(id, None, strip_thinking(checked_text(content, "content")).strip())


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """[mean score of both orders, 1, difference in length]; [0, 0, …] where it does not count."""
    assert isinstance(judged, tuple)
    ballots = policy.counted(item.id, judged[0])
    orders = [[one for one in ballots if one.order == order] for order in ("12", "21")]
    parts = [_score(part, item.id, policy) for part in (orders if asked_both(ballots) else [ballots])]
    longer = float(len(item.responses[0]) - len(item.responses[1]))
    score = sum(parts) / len(parts)
    return [0.0, 0.0, longer] if math.isnan(score) else [score, 1.0, longer]


def _score(ballots: Sequence[Ballot], name: str, policy: Policy) -> float:
    """The share of valid votes for the model, a tie ½; what an invalid game counts as where none is valid."""
    valid = [{1: 1.0, 2: 0.0, 0: 0.5}[one.verdict] for one in ballots if one.verdict is not None]
    return sum(valid) / len(valid) if valid else policy.credit(name, None, 1)


def _tree(table: Table) -> tuple[Node, ...]:
    groups = tuple(sorted(table.ids))
    return (ratio(WIN_RATE, groups, parts=tuple(ratio(name, [name]) for name in groups) if len(groups) > 1 else ()),)


def _further(table: Table, samples: int, seed: int) -> tuple[Score, ...]:
    """The win rate at equal length; see `length_control`."""
    rows = np.concatenate([table.values[group] for group in table.ids])
    counted = rows[:, 1] > 0
    if not counted.any():
        return ()
    scores_I, lengths_I = rows[counted, 0], rows[counted, _LENGTH]
    low = high = None
    if samples:
        times_BI = np.concatenate([resamplings(group, len(v), samples, seed) for group, v in table.values.items()], 1)
        low, high = interval(equal_length_rate(scores_I, lengths_I, times_BI[:, counted]))
    (plain,) = evaluate(table, (ratio(CONTROLLED, tuple(table.ids)),), samples=0)
    value = float(equal_length_rate(scores_I, lengths_I)[0])
    return (dataclasses.replace(plain, value=value, low=low, high=high),)


BENCHMARK = Benchmark(
    name="arena-hard",
    what="a model's answers to hard prompts against a baseline's; every verdict counts once, however clear it is",
    hub="lmarena-ai/arena-hard-auto",
    revision="question.jsonl of v0.1 and of v2.0",
    licence="Apache-2.0",
    citation="arXiv 2406.11939; the win rate at equal length after AlpacaEval's, arXiv 2404.04475",
    columns=("uid", "category", "prompt"),
    parse=_parse,
    measure=_measure,
    tree=_tree,
    further=_further,
    takes_answers=True,
    split="question",
    order="both",
    policy=Policy(invalid="exclude", ties="0.5"),
    shares_votes=True,
    adapt=_adapt,
    unverified="The rows could not be had here; layouts and rules are those of the authors' code. Their judges have "
    "degrees, and a decisive verdict counts three times; that is not so here, where a judge says 1 or 2.",
)
