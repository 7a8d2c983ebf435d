"""Picking the best of N given candidates: MATH, GSM8K, MMLU-Pro, GPQA, or anything with `correct`.

Rows are this package's candidates (`rrm data` makes them of samples and a verifier), or one of two published layouts:
the output of Qwen2.5-Math's evaluation (`question`, `response`, `score`, `pred`, `pred_score`), and GSM8K's example
solutions (`question`, and four models' {is_correct, solution}). Beside what a judge picks stand what needs none: the
mean candidate, the majority's answer (answers that mean the same count as one; of as many the first), a reward model's
best and its weighted majority where there are rewards, and the oracle.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rrm_jax.data.answers import canonical
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import checked_text, parse_candidates, text_field
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks.base import Benchmark, Item, Judged, Pick, Policy, Published, Verdicts
from rrm_jax.evaluation.benchmarks.scores import Node, Table, ratio
from rrm_jax.evaluation.published import MATH_BEST_OF_8

PICKED = "Picked"
_MEAN, _MAJORITY, _REWARD, _WEIGHTED, _ORACLE = range(2, 12, 2)
_GSM8K = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
_QWEN = ("idx", "question", "response", "score", "pred")


def _parse(row: Row, at: int) -> Item:
    record = parse_candidates({**row, "id": row.get("id", at)})
    if record.correct is None:
        raise RowError("field 'correct' is needed here: which responses are right")
    return Item(record.id, record.source or "all", record.query, record.responses, (), record.correct, record.answers)


def _parse_qwen(row: Row, at: int) -> Item:
    responses, correct, answers = row.get("response"), row.get("score"), row.get("pred")
    if not (isinstance(responses, list) and isinstance(correct, list) and isinstance(answers, list)):
        raise RowError("response, score and pred must be lists, an entry a candidate")
    made = {
        "id": str(row.get("idx", at)),
        "query": text_field(row, "question"),
        "responses": responses,
        "correct": correct,
    }
    record = parse_candidates(made | {"answers": [None if answer in (None, "") else str(answer) for answer in answers]})
    rewards = row.get("pred_score")
    if rewards is not None:
        try:
            rewards = tuple(float(one[0] if isinstance(one, list) else one) for one in rewards)
        except (TypeError, ValueError, IndexError):
            raise RowError("pred_score must be a list of numbers") from None
        if len(rewards) != len(record.responses):
            raise RowError(f"pred_score must be a list of {len(record.responses)} numbers")
    return Item(record.id, "all", record.query, record.responses, (), record.correct, record.answers, rewards)


def _parse_gsm8k(row: Row, at: int) -> Item:
    solutions: list[Any] = [row.get(name) for name in _GSM8K]
    if not all(isinstance(one, dict) and isinstance(one.get("is_correct"), bool) for one in solutions):
        raise RowError("each solution must be {is_correct, solution}")
    texts = tuple(checked_text(one["solution"], name) for name, one in zip(_GSM8K, solutions, strict=True))
    correct = tuple(one["is_correct"] for one in solutions)
    return Item(str(at), "all", text_field(row, "question"), texts, (), correct)


def _adapt(columns: Sequence[str]) -> Callable[[Row, int], Item] | None:
    if {*_QWEN} <= {*columns}:
        return _parse_qwen
    return _parse_gsm8k if {"question", *_GSM8K} <= {*columns} else None


def measure(item: Item, judged: Judged | None, policy: Policy) -> list[float]:
    """Pairs of (right, how many count): the pick, the mean candidate, majority, reward, weighted majority, oracle."""
    assert item.correct is not None
    correct = list(map(float, item.correct))
    row = [correct[judged.best], 1.0] if isinstance(judged, Pick) else [0.0, 0.0]
    row += [sum(correct) / len(correct), 1.0]
    rewards = item.rewards
    best_rewarded = None if rewards is None else max(range(len(rewards)), key=rewards.__getitem__)
    weighted = None if rewards is None else _majority(item, rewards)
    for best in (_majority(item, [1.0] * len(correct)), best_rewarded, weighted):
        row += [0.0, 0.0] if best is None else [correct[best], 1.0]
    return [*row, float(any(item.correct)), 1.0]


def _majority(item: Item, weights: Sequence[float]) -> int | None:
    """The first candidate with the answer that has most weight; None where no answer is known."""
    return None if item.answers is None else most_weighted(item.answers, weights)


def most_weighted(answers: Sequence[str | None], weights: Sequence[float]) -> int | None:
    """The first place of the answer that has most weight, of as heavy ones the first; None where there is none."""
    total: collections.defaultdict[str, float] = collections.defaultdict(float)
    first: dict[str, int] = {}
    for at, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is not None:
            total[canonical(answer)] += weight
            first.setdefault(canonical(answer), at)
    return first[max(total, key=total.__getitem__)] if total else None


def tree(table: Table) -> tuple[Node, ...]:
    """The share of right picks, and beside it every other way of picking that the rows have what it needs for."""
    names = {
        PICKED: 0, "Mean candidate": _MEAN, "Majority": _MAJORITY, "Reward model's best": _REWARD,
        "Majority weighted by reward": _WEIGHTED, "Oracle": _ORACLE,
    }  # fmt: skip
    groups = tuple(table.ids)
    there = {name: at for name, at in names.items() if any(table.values[group][:, at + 1].any() for group in groups)}
    parts = lambda at: tuple(ratio(group, [group], at, at + 1) for group in groups) if len(groups) > 1 else ()  # noqa: E731
    return tuple(ratio(name, groups, at, at + 1, parts(at)) for name, at in there.items())


def read_verdicts(content: Any, items: Sequence[Item]) -> Mapping[str, Verdicts] | None:
    """`{item id: position of the pick}`, as the released MATH study has it; or rows of `rrm rank`."""
    sizes = {item.id: len(item.responses) for item in items}
    if isinstance(content, dict) and content and all(type(pick) is int for pick in content.values()):
        return {"picks": {id: _checked(id, Pick(pick), sizes) for id, pick in content.items()}}
    if isinstance(content, list) and all(
        isinstance(row, dict) and {"id", "best", "comparisons"} <= {*row} for row in content
    ):
        return {"ranking": {str(row["id"]): _checked(str(row["id"]), pick_of(row), sizes) for row in content}}
    return None


def pick_of(row: Mapping[str, Any]) -> Pick:
    """What a row of `rrm rank`, or a Result as a dict, says of the pick."""
    try:
        return Pick(
            row["best"], row["comparisons"], row.get("votes", 0), row.get("invalid_votes", 0), row.get("invalid", 0),
            row.get("tokens", 0), row.get("cut_off", 0), row.get("truncated_inputs", 0),
        )  # fmt: skip
    except KeyError as missing:
        raise RowError(f"field {missing} is missing") from None


def _checked(id: str, pick: Pick, sizes: Mapping[str, int]) -> Pick:
    if type(pick.best) is not int or (id in sizes and not 0 <= pick.best < sizes[id]):
        raise RowError(f"item {id!r}: the pick {pick.best!r} is none of its {sizes.get(id)} candidates")
    return pick


_SMALL, _LARGE = MATH_BEST_OF_8

BENCHMARK = Benchmark(
    name="best-of-n",
    what="given candidates of which some are right: MATH, GSM8K, MMLU-Pro, GPQA, or your own",
    hub="",
    revision="",
    licence="of the rows given",
    citation="",
    columns=("query", "responses", "correct"),
    parse=_parse,
    measure=measure,  # type: ignore[arg-type]
    tree=tree,
    kind="best-of-n",
    adapt=_adapt,
    read_verdicts=read_verdicts,
    published=(
        Published(
            f"{_SMALL.judge}, MATH, 8 candidates of Qwen2.5-Math-7B-Instruct, knockout",
            "as remembered",
            {PICKED: _SMALL.knockout},
        ),
        Published(f"{_LARGE.judge}, the same", "as remembered", {PICKED: _LARGE.knockout}),
    ),
)
