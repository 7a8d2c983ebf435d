"""The rows of data files, and what each holds. Each parser raises RowError.

A file is UTF-8 JSON lines, an object a line; ids are unique in it, and fields that are not named here are passed over.
The same records as ArrayRecord: `rrm_jax/data/prepared.py`. `to_row` of a record is a row that parses to it again.

pairs         id, query, response_1, response_2; label (1, 2 or null: which response is better), source
questions     id, query; answer (the right final answer, or null), source, verifier
candidates    id, query, responses (a list); correct (a list of booleans, or null), answers (a list of final answers or
              nulls, or null), source. `rrm answer` also writes finish_reasons ("stop" or "length") and tokens, lists
prompts       id, and exactly one of prompt (text) and prompt_ids (token ids): what `rrm generate` reads

Before the semicolon is what a row must have; an id may also be an integer. Verdicts are written, not given:

judgments     `rrm judge` writes one a pair: id, winner (1, 2 or null), probability (that response_1 is the better one,
              or null), label and correct where the pair has a label, content (a SHA-256 of what was judged), and votes,
              a list of {order ("12" or "21": how it was shown), verdict (1, 2 or null, of the pair in its own order),
              text, tokens, finish_reason ("stop" or "length"), truncated_input, forced, probability}.
              `judging/judge.py`: Judgment.to_row
votes         the log beside it, and any verdict store, one a completion: key, settings, texts, vote, query, shown
              (digests of what was shown, and the vote's number), then a vote's fields as above but for order, with
              the verdict of what was shown first or second. Before the first vote of a judge stands {digest, settings},
              what its votes depend on. `judging/store.py`; `rrm data convert` makes ArrayRecord files of a store, and
              a store of them
"""

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
    source: str = ""


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
class Vote:
    """A row of a verdict store: what a judge wrote, and of what. `judging/store.py` says what the fields are; rows of
    its earlier versions lack the last four."""

    key: str
    settings: str
    verdict: int | None
    text: str
    tokens: int
    finish_reason: str
    truncated_input: bool
    forced: bool = False
    probability: float | None = None
    texts: str | None = None
    vote: int | None = None
    query: str | None = None
    shown: tuple[str, str] | None = None


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
        """The record of a row, by the wrapped parser; raises RowError."""
        record = self._parse(row)
        if record.id in self._seen:
            raise RowError(f"id {record.id!r} appears twice; ids must be unique")
        self._seen.add(record.id)
        return record


def _field(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise RowError(f"field {key!r} is missing; the row has {', '.join(map(repr, row)) or 'no fields'}")
    return row[key]


def text_field(row: dict[str, Any], key: str) -> str:
    """A field that must be there and be text."""
    return checked_text(_field(row, key), key)


def checked_text(value: Any, key: str) -> str:
    """The value of field `key`, which must be text."""
    if not isinstance(value, str):
        raise RowError(f"field {key!r} must be a string, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"field {key!r} holds a lone surrogate, which is not text") from None
    return value


def id_field(row: dict[str, Any]) -> str:
    """The row's id, text or an integer, as text."""
    value = _field(row, "id")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"field 'id' must be a string or an integer, not {type(value).__name__}")
    return checked_text(str(value), "id")


def to_row(record: Pair | Question | Candidates) -> dict[str, Any]:
    """The record's row of a JSONL file, without fields that say nothing: parsing it gives the record again."""
    row = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            row[field.name] = list(value) if isinstance(value, tuple) else value
    return row


def parse_pair(row: dict[str, Any]) -> Pair:
    """A row of `pairs`, labelled or not."""
    label = row.get("label")
    if label is not None and (type(label) is not int or label not in (1, 2)):
        raise RowError(f"field 'label' must be 1, 2 or null, not {label!r}")
    source = checked_text(row.get("source", ""), "source")
    query, response_1, response_2 = (text_field(row, key) for key in ("query", "response_1", "response_2"))
    return Pair(id_field(row), query, response_1, response_2, label, source)


def parse_labelled_pair(row: dict[str, Any]) -> Pair:
    """A pair to train or to score on: the label is required."""
    _field(row, "label")
    pair = parse_pair(row)
    if pair.label is None:
        raise RowError("field 'label' must be 1 or 2 here, not null")
    return pair


def parse_question(row: dict[str, Any]) -> Question:
    """A row of `questions`."""
    answer = row.get("answer")
    answer = None if answer is None else checked_text(answer, "answer")
    source, verifier = (checked_text(row.get(key, ""), key) for key in ("source", "verifier"))
    return Question(id_field(row), text_field(row, "query"), answer, source, verifier)


def parse_candidates(row: dict[str, Any]) -> Candidates:
    """A row of `candidates`."""
    responses = _field(row, "responses")
    if not isinstance(responses, list) or not responses:
        raise RowError("field 'responses' must be a list of at least one string")
    checked = tuple(checked_text(response, f"responses[{at}]") for at, response in enumerate(responses))
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
        answers = tuple(None if x is None else checked_text(x, f"answers[{at}]") for at, x in enumerate(answers))
    source = checked_text(row.get("source", ""), "source")
    return Candidates(id_field(row), text_field(row, "query"), checked, correct, answers, source)


def parse_prompt(row: dict[str, Any]) -> Prompt:
    """A row of `prompts`, which has just one of text and ids."""
    if ("prompt" in row) == ("prompt_ids" in row):
        raise RowError("exactly one of 'prompt' and 'prompt_ids' is needed")
    if "prompt" in row:
        return Prompt(id_field(row), text_field(row, "prompt"), None)
    ids = row["prompt_ids"]
    if (
        not isinstance(ids, list)
        or not ids
        or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    ):
        raise RowError("field 'prompt_ids' must be a list of at least one non-negative integer")
    return Prompt(id_field(row), None, tuple(ids))
