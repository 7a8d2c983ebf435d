"""Pairs without a label get one: the response that a judge names in both orders; and what is left out, and why."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.jsonl import Reader, encode_row
from rrm_jax.data.prepared import RecordReader
from rrm_jax.data.records import Pair, Unique, parse_candidates, parse_pair
from rrm_jax.data.tokenizer import END_THINK
from rrm_jax.data.whole_files import KEPT, replacing
from rrm_jax.errors import RrmError
from rrm_jax.judging.judge import Judgment, Vote
from rrm_jax.judging.store import digest
from rrm_jax.judging.verdict import Verdict
from rrm_jax.provenance import earlier_results

Disagreement = Literal["drop", "majority", "soft"]
REASONS = {
    "invalid": "no valid vote in one of the orders (of none, where not dropping disagreement)",
    "disagree": "the orders name different responses",
    "tie": "as many votes for each",
    "weak": "fewer of the votes than asked for name the response",
    "identical": "both responses are the same",
    "empty": "the query or a response is empty",
    "few": "fewer than two responses",
    "malformed": "not a row that can be read",
}
_REPLACED = (
    "responses", "correct", "answers", "outcomes", "finish_reasons", "tokens", "label", "labelling",
)  # fmt: skip
_OWN = ("label", "labelling")  # the fields that labelling sets


@dataclasses.dataclass(frozen=True)
class Task:
    """A row to label: as it will be written but for `label` and `labelling`, and the pair to judge.

    `reason`: why there is nothing to judge; `pair` is None where there are no two responses.
    """

    id: str
    row: dict[str, Any]
    pair: Pair | None
    reason: str = ""


def task_of_pair(row: dict[str, Any]) -> Task:
    """Of a pairs row. Raises RowError."""
    pair = parse_pair(row)
    return Task(pair.id, {name: value for name, value in row.items() if name not in _OWN}, pair, _unfit(pair))


def task_of_candidates(
    pick: Literal["first", "random"], seed: int, require_answer: bool, whole: bool = False
) -> Callable[[dict[str, Any]], Task]:
    """Of a candidates row: two of its responses, judged without their thinking. Its parser raises RowError.

    "first" takes the first two in their order, "random" two in an order that belong to (seed, id). With
    `require_answer` a response without `</think>` was cut off in its thinking, and is none. The row written has the two
    as they are judged, or, with `whole`, as they stand, and `picked`, their positions, instead of all responses.
    """

    def parse(row: dict[str, Any]) -> Task:
        record = parse_candidates(row)
        usable = [at for at, text in enumerate(record.responses) if not require_answer or END_THINK in text]
        if len(usable) < 2:
            return Task(record.id, row, None, "few")
        if pick == "random":
            usable.sort(key=lambda at: digest(["label", seed, record.id, at]))
        i, j = usable[:2]
        texts = [record.responses[at] for at in (i, j)]
        kept = {name: value for name, value in row.items() if name not in _REPLACED}
        judged = dict(zip(("response_1", "response_2"), map(strip_thinking, texts), strict=True))
        pair = parse_pair(kept | judged)
        kept |= dict(zip(judged, texts, strict=True)) if whole else judged
        return Task(pair.id, kept | {"picked": [i, j]}, pair, _unfit(pair))

    return parse


def _unfit(pair: Pair) -> str:
    one, two = (strip_thinking(response).strip() for response in (pair.response_1, pair.response_2))
    if not (pair.query.strip() and one and two):
        return "empty"
    return "identical" if one == two else ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """From votes in both orders to a label.

    "drop": the majority in each order, and both must name the same response. "majority": that of all votes, whatever
    their order. "soft": the response whose mean probability is above ½ (the votes must have probabilities).
    `min_agreement`: the share of the votes that must name it, invalid ones in the denominator; with "soft" its mean
    probability.
    """

    disagreement: Disagreement = "drop"
    min_agreement: float = 0.0

    def decide(self, judgment: Judgment) -> tuple[Verdict | None, str]:
        """The label, or None and the reason."""
        label, reason, agreement = self._label(judgment)
        if label is not None and agreement < self.min_agreement:
            return None, "weak"
        return label, reason

    def _label(self, judgment: Judgment) -> tuple[Verdict | None, str, float]:
        votes = judgment.votes
        if self.disagreement == "soft":
            soft = judgment.soft_vote
            if soft is None or soft == 0.5:
                return None, "invalid" if soft is None else "tie", 0.0
            return (1, "", soft) if soft > 0.5 else (2, "", 1 - soft)
        groups = [votes]
        if self.disagreement == "drop":
            groups = [tuple(vote for vote in votes if vote.order == order) for order in ("12", "21")]
        found = [_majority(group) for group in groups]
        for reason in ("invalid", "tie"):
            if reason in found:
                return None, reason, 0.0
        if len(set(found)) > 1:
            return None, "disagree", 0.0
        label: Verdict = 1 if found[0] == 1 else 2
        return label, "", sum(vote.verdict == label for vote in votes) / len(votes)


def _majority(votes: tuple[Vote, ...]) -> Verdict | Literal["invalid", "tie"]:
    ones, twos = (sum(vote.verdict == response for vote in votes) for response in (1, 2))
    if ones == twos:
        return "tie" if ones else "invalid"
    return 1 if ones > twos else 2


def write_labelled(
    path: Path,
    parse: Callable[[dict[str, Any]], Task],
    written: Callable[[Task], tuple[dict[str, Any], bool]],
    out: Path,
    dropped: Path,
) -> None:
    """Writes each row of `path` as `written` gives it, to `out` or, where its bool is False, to `dropped`, in order.

    Of a malformed row `dropped` has `{labelling: {reason, why}}`. Both files appear only when they are complete;
    RrmError when they cannot be written.
    """
    with replacing(out, dropped, advice=KEPT) as (yes, no):

        def malformed(why: str) -> None:
            no.write(encode_row({"labelling": {"reason": "malformed", "why": why}}))

        for _, task in RecordReader(path, Unique(parse), report=malformed):
            row, kept = written(task)
            (yes if kept else no).write(encode_row(row))


def refuse_to_overwrite(
    results: tuple[Path, Path], run: Path, path: Path, parse: Callable[[dict[str, Any]], Task]
) -> None:
    """Results are replaced as a whole, which must lose nothing but what the same rows gave before. Raises RrmError."""
    present = earlier_results(results, run)
    if not present:
        return
    rows = {_content(task.row) for _, task in RecordReader(path, Unique(parse))}
    for result in present:
        lost = sum(_content(row) not in rows for row in _rows(result) if row.keys() - {*_OWN})
        if lost:
            raise RrmError(f"{result} holds {lost} row(s) that are not in {path}; choose another --out")


def _content(row: Mapping[str, Any]) -> str:
    return digest(json.dumps({name: value for name, value in row.items() if name not in _OWN}, sort_keys=True))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(RrmError):  # a file without a usable row
        yield from (row for _, row in Reader(path, lambda row: row))
