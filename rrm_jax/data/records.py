"""The rows that users give: preference pairs, candidate lists, prompts. Each parser raises RowError."""

import dataclasses
from typing import Any

from rrm_jax.data.jsonl import RowError


@dataclasses.dataclass(frozen=True)
class Pair:
    """`label` 1 or 2 says which response is better; None: unknown."""

    id: str
    query: str
    response_1: str
    response_2: str
    label: int | None = None
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Candidates:
    """`correct[c]` says whether response c is right, `answers[c]` what its final answer is; None: unknown."""

    id: str
    query: str
    responses: tuple[str, ...]
    correct: tuple[bool, ...] | None = None
    answers: tuple[str | None, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """A query without responses. `answer` is the final answer that is known to be right (None: unknown), `verifier`
    the rule that says whether a response comes to it ("": the caller's choice)."""

    id: str
    query: str
    answer: str | None = None
    source: str = ""
    verifier: str = ""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Exactly one of `prompt` (text) and `prompt_ids` (token ids, no tokenizer needed)."""

    id: str
    prompt: str | None
    prompt_ids: tuple[int, ...] | None


class Unique:
    """Wraps a parser so that an id seen before is a RowError: ids address randomness and resumption."""

    def __init__(self, parse):
        self._parse, self._seen = parse, set()

    def __call__(self, row: dict[str, Any]):
        record = self._parse(row)
        if record.id in self._seen:
            raise RowError(f"id {record.id!r} appears twice; ids must be unique")
        self._seen.add(record.id)
        return record


def _field(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise RowError(f"field {key!r} is missing; the row has {', '.join(map(repr, row)) or 'no fields'}")
    return row[key]


def _text(row: dict[str, Any], key: str) -> str:
    return _checked_text(_field(row, key), key)


def _checked_text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"field {key!r} must be a string, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"field {key!r} holds a lone surrogate, which is not text") from None
    return value


def _id(row: dict[str, Any]) -> str:
    value = _field(row, "id")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"field 'id' must be a string or an integer, not {type(value).__name__}")
    return _checked_text(str(value), "id")


def parse_pair(row: dict[str, Any]) -> Pair:
    label = row.get("label")
    if label is not None and (type(label) is not int or label not in (1, 2)):
        raise RowError(f"field 'label' must be 1, 2 or null, not {label!r}")
    source = _checked_text(row.get("source", ""), "source")
    return Pair(_id(row), _text(row, "query"), _text(row, "response_1"), _text(row, "response_2"), label, source)


def parse_labelled_pair(row: dict[str, Any]) -> Pair:
    """A pair to train or to score on: the label is required."""
    _field(row, "label")
    pair = parse_pair(row)
    if pair.label is None:
        raise RowError("field 'label' must be 1 or 2 here, not null")
    return pair


def parse_question(row: dict[str, Any]) -> Question:
    answer = row.get("answer")
    answer = None if answer is None else _checked_text(answer, "answer")
    source, verifier = (_checked_text(row.get(key, ""), key) for key in ("source", "verifier"))
    return Question(_id(row), _text(row, "query"), answer, source, verifier)


def parse_candidates(row: dict[str, Any]) -> Candidates:
    responses = _field(row, "responses")
    if not isinstance(responses, list) or not responses:
        raise RowError("field 'responses' must be a list of at least one string")
    checked = tuple(_checked_text(response, f"responses[{at}]") for at, response in enumerate(responses))
    correct = row.get("correct")
    if correct is not None:
        count = len(responses)
        if not isinstance(correct, list) or len(correct) != count or not all(isinstance(c, bool) for c in correct):
            raise RowError(f"field 'correct' must be a list of {count} booleans, one for each response, or null")
        correct = tuple(correct)
    answers = row.get("answers")
    if answers is not None:
        if not isinstance(answers, list) or len(answers) != len(responses):
            raise RowError(f"field 'answers' must be a list of {len(responses)}, one for each response, or null")
        answers = tuple(None if x is None else _checked_text(x, f"answers[{at}]") for at, x in enumerate(answers))
    return Candidates(_id(row), _text(row, "query"), checked, correct, answers)


def parse_prompt(row: dict[str, Any]) -> Prompt:
    if ("prompt" in row) == ("prompt_ids" in row):
        raise RowError("exactly one of 'prompt' and 'prompt_ids' is needed")
    if "prompt" in row:
        return Prompt(_id(row), _text(row, "prompt"), None)
    ids = row["prompt_ids"]
    if (
        not isinstance(ids, list)
        or not ids
        or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    ):
        raise RowError("field 'prompt_ids' must be a list of at least one non-negative integer")
    return Prompt(_id(row), None, tuple(ids))
