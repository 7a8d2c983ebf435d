"""Any other file or directory: pairs or questions, in the columns that the user names.

Without names the columns must be those of this package's own rows: `id`, `query`, `response_1`, `response_2`, `label`,
`source`. With them (`query=prompt,response_1=chosen,response_2=rejected`) a value may lie deeper
(`reward_model.ground_truth`, `prompt.0.content`), and where it is a list of messages the query is its first user turn
and a response its assistant turns. Without a `label` column `response_1` is the better one.
"""

import dataclasses
from typing import Any

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair, Question, parse_pair
from rrm_jax.data.sources.base import Source, answer_of, assistant_turns, first_user_turn
from rrm_jax.data.table_files import Row
from rrm_jax.errors import RrmError

_PAIR = ("query", "response_1", "response_2")
_FIELDS = {"pairs": ("id", *_PAIR, "label", "source"), "questions": ("id", "query", "answer", "source", "verifier")}


def configure(columns: dict[str, str]) -> Source:
    """The source that reads record fields from `columns`, field → path. Raises RrmError at fields that do not fit."""
    kind = "pairs" if "response_1" in columns or "response_2" in columns else "questions"
    unknown = ", ".join(name for name in columns if name not in _FIELDS[kind])
    if unknown:
        raise RrmError(f"--columns: {kind} have no {unknown}; choose among {', '.join(_FIELDS[kind])}")
    missing = [name for name in (_PAIR if kind == "pairs" else ("query",)) if name not in columns]
    if missing:
        raise RrmError(f"--columns: {kind} need {', '.join(missing)} too")
    needed = tuple(dict.fromkeys(path.split(".")[0] for path in columns.values()))

    def parse(row: Row) -> Pair | Question:
        def optional(name: str) -> str:
            value = _at(row, columns[name]) if name in columns else None
            return "" if value is None else str(value)

        query = _text(_at(row, columns["query"]), "query")
        if kind == "questions":
            answer = answer_of(_at(row, columns["answer"])) if "answer" in columns else None
            return Question(optional("id"), query, answer, optional("source"), optional("verifier"))
        first, second = (_text(_at(row, columns[name]), name) for name in _PAIR[1:])
        label: Any = _at(row, columns["label"]) if "label" in columns else 1
        if isinstance(label, str):  # of CSV, whose cells are text
            label = {"1": 1, "2": 2}.get(label, label)
        return Pair(optional("id"), query, first, second, label, optional("source"))

    return dataclasses.replace(SOURCE, kind=kind, columns=needed, optional=(), parse=parse, configure=None)


def _at(row: Row, path: str) -> Any:
    value: Any = row
    for key in path.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.lstrip("-").isdigit() and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            raise RowError(f"there is no {path}: {key!r} is missing")
    return value


def _text(value: Any, field: str) -> str:
    if isinstance(value, list):
        return first_user_turn(value, field) if field == "query" else assistant_turns(value, field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{field} must be text or a list of messages, not {type(value).__name__}")
    return value


SOURCE = Source(
    name="generic",
    kind="pairs",
    hub="",
    revision="",
    licence="",
    citation="",
    columns=_PAIR,
    optional=("id", "label", "source"),
    parse=lambda row: parse_pair({"id": ""} | {key: value for key, value in row.items() if value is not None}),
    takes_prompts=True,
    configure=configure,
)
