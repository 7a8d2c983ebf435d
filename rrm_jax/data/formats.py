"""The layouts in which others publish preferences, and what their rows are as records, both ways.

The columns are those of TRL's documentation of data set formats, of the cards of RewardBench and RewardBench 2, and of
the files of LLMBar and PandaLM. What a record holds and such a row does not, stands in columns of its own (`id`,
`source`; `chosen_was`: which response was the chosen one; `correct` and `answers` in the order of the responses), so
that writing a record and reading the row gives the record again. Rows without these columns are read as well.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rrm_jax.data.conversation import single_turns, texts_of, turns_of
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.overview import PARSERS, kind_of
from rrm_jax.data.prepared import Kind, Record
from rrm_jax.data.records import Candidates, Pair, checked_text, id_field, parse_candidates, text_field, to_row
from rrm_jax.data.sources.base import Unusable

Row = dict[str, Any]
Type = Literal["text", "int", "texts", "bools", "messages"]


def _columns(of: Type, *names: str) -> dict[str, Type]:
    return dict.fromkeys(names, of)


_OWN = _columns("text", "id", "source") | _columns("int", "chosen_was")
_TRL = ("prompt", "chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class Format:
    """One layout of rows of one kind of record.

    `needed` columns say that a file has it. `columns` are all that it is written with; `held` of a row's are in the
    record, and any others are passed on as the row's rest. `id_of(row)` is the id that a row has, if any. `read` gives
    a record without id, and what of the row must be remembered beside it. `write` makes a row of a record and of the
    rest of the row that it was read from; None where the format is read only. All may raise RowError.
    """

    name: str
    kind: Kind
    needed: tuple[str, ...]
    columns: dict[str, Type]
    held: tuple[str, ...]
    read: Callable[[Row], tuple[Record, Row]]
    write: Callable[[Any, Row], Row] | None
    id_of: Callable[[Row], str | None]


def _given_id(row: Row) -> str | None:
    return None if row.get("id") is None else id_field(row)


def _source(row: Row, key: str = "source") -> str:
    return "" if row.get(key) is None else checked_text(row[key], key)


def _three_texts(row: Row, first: str, second: str, third: str) -> tuple[str, str, str]:
    return text_field(row, first), text_field(row, second), text_field(row, third)


def _chosen_first(row: Row, texts: tuple[str, str, str], source: str) -> Pair:
    query, chosen, rejected = texts
    was = row.get("chosen_was")
    if was not in (1, 2, None) or isinstance(was, bool):
        raise RowError(f"chosen_was must be 1, 2 or null, not {was!r}")
    if was == 2:
        return Pair("", query, rejected, chosen, 2, source)
    return Pair("", query, chosen, rejected, 1, source)


def _chosen_and_rejected(pair: Pair) -> tuple[str, str]:
    if pair.label is None:
        raise Unusable("no label")
    both = pair.response_1, pair.response_2
    return both if pair.label == 1 else both[::-1]


def _read_trl(row: Row) -> tuple[Pair, Row]:
    return _chosen_first(row, _three_texts(row, *_TRL), _source(row)), {}


def _write_trl(pair: Pair, rest: Row) -> Row:
    chosen, rejected = _chosen_and_rejected(pair)
    own = {"id": pair.id, "source": pair.source, "chosen_was": pair.label}
    return {"prompt": pair.query, "chosen": chosen, "rejected": rejected} | own


def _read_messages(row: Row) -> tuple[Pair, Row]:
    turns = turns_of(row)
    texts = texts_of(turns)
    return _chosen_first(row, texts, _source(row)), {} if single_turns(*texts) == turns else {"turns": turns}


def _write_messages(pair: Pair, rest: Row) -> Row:
    texts = (pair.query, *_chosen_and_rejected(pair))
    turns = single_turns(*texts)
    try:
        given = turns_of(rest["turns"])
        turns = given if texts_of(given) == texts else turns
    except (RowError, KeyError, AttributeError):
        pass  # somebody else's field, or none
    return {**turns, "id": pair.id, "source": pair.source, "chosen_was": pair.label}


def _rewardbench_id(row: Row) -> str | None:
    given = _given_id(row)
    return f"{row['subset']}/{given}" if isinstance(row.get("id"), int) and row.get("subset") else given


def _read_rewardbench(row: Row) -> tuple[Pair, Row]:
    return _chosen_first(row, _three_texts(row, *_TRL), _source(row, "subset")), {}


def _write_rewardbench(pair: Pair, rest: Row) -> Row:
    chosen, rejected = _chosen_and_rejected(pair)
    chosen_model, rejected_model = (_text_or_none(rest.get(f"{key}_model")) for key in ("chosen", "rejected"))
    return {
        "prompt": pair.query, "chosen": chosen, "chosen_model": chosen_model, "rejected": rejected,
        "rejected_model": rejected_model, "subset": pair.source, "id": pair.id, "chosen_was": pair.label,
    }  # fmt: skip


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _read_rewardbench2(row: Row) -> tuple[Candidates, Row]:
    sides = {True: _texts(row, "chosen"), False: _texts(row, "rejected")}
    correct = row.get("correct")
    if correct is None:
        correct = [True] * len(sides[True]) + [False] * len(sides[False])
    counts = {side: len(texts) for side, texts in sides.items() if texts}
    if not isinstance(correct, list) or not all(isinstance(c, bool) for c in correct) or Counter(correct) != counts:
        raise RowError("correct must be a list of booleans, as many true ones as chosen and false ones as rejected")
    waiting = {side: iter(texts) for side, texts in sides.items()}
    responses = [next(waiting[side]) for side in correct]
    made = {"id": "", "query": text_field(row, "prompt"), "responses": responses, "correct": correct}
    made |= {"answers": row.get("answers"), "source": _source(row, "subset")}
    return parse_candidates(made), {}


def _write_rewardbench2(record: Candidates, rest: Row) -> Row:
    if record.correct is None:
        raise Unusable("not known which responses are correct")
    sides = [
        [response for response, right in zip(record.responses, record.correct, strict=True) if right == side]
        for side in (True, False)
    ]
    models = rest.get("models")
    known = isinstance(models, list) and all(isinstance(model, str) for model in models)
    return {
        "id": record.id, "prompt": record.query, "chosen": sides[0], "rejected": sides[1],
        "num_correct": len(sides[0]), "num_incorrect": len(sides[1]), "total_completions": len(record.responses),
        "models": models if known else None, "subset": record.source, "correct": list(record.correct),
        "answers": None if record.answers is None else list(record.answers),
    }  # fmt: skip


def _texts(row: Row, key: str) -> list[str]:
    if not isinstance(row.get(key), list):
        raise RowError(f"{key} must be a list of strings, not {type(row.get(key)).__name__}")
    return [checked_text(text, f"{key}[{at}]") for at, text in enumerate(row[key])]


def _read_llmbar(row: Row) -> tuple[Pair, Row]:
    if row.get("label") not in (1, 2) or isinstance(row["label"], bool):
        raise RowError(f"label must be 1 or 2, not {row.get('label')!r}")
    return Pair("", *_three_texts(row, "input", "output_1", "output_2"), label=row["label"], source=_source(row)), {}


def _write_llmbar(pair: Pair, rest: Row) -> Row:
    if pair.label is None:
        raise Unusable("no label")
    own = {"id": pair.id, "source": pair.source}
    return {"input": pair.query, "output_1": pair.response_1, "output_2": pair.response_2, "label": pair.label} | own


_ANNOTATORS = ("annotator1", "annotator2", "annotator3")


def _read_pandalm(row: Row) -> tuple[Pair, Row]:
    """The label is what most annotators say; None where that is a tie (0), or they all differ."""
    said = [row.get(key) for key in _ANNOTATORS]
    if any(vote not in (0, 1, 2) or isinstance(vote, bool) for vote in said):
        raise RowError(f"annotators must each say 0, 1 or 2, not {', '.join(map(repr, said))}")
    winner, votes = Counter(said).most_common(1)[0]
    label = (winner or None) if votes > 1 else None
    instruction, given = text_field(row, "instruction"), "" if row.get("input") is None else text_field(row, "input")
    query = f"{instruction}\n\n{given}" if given else instruction
    return Pair("", query, text_field(row, "response1"), text_field(row, "response2"), label), {}


def _pandalm_id(row: Row) -> str | None:
    return None if row.get("idx") is None else f"pandalm/{id_field({'id': row['idx']})}"


_REWARDBENCH2: dict[str, Type] = {
    "id": "text", "prompt": "text", "chosen": "texts", "rejected": "texts", "num_correct": "int",
    "num_incorrect": "int", "total_completions": "int", "models": "texts", "subset": "text", "correct": "bools",
    "answers": "texts",
}  # fmt: skip
_REWARDBENCH = _columns(
    "text", "prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset", "id"
) | _columns("int", "chosen_was")
_LLMBAR = _columns("text", "input", "output_1", "output_2", "id", "source") | _columns("int", "label")

FORMATS = {
    made.name: made
    for made in (
        Format("trl", "pairs", _TRL, _columns("text", *_TRL) | _OWN, (*_TRL, *_OWN),
               _read_trl, _write_trl, _given_id),
        Format("trl-messages", "pairs", _TRL[1:], _columns("messages", *_TRL) | _OWN, (*_TRL, *_OWN, "turns"),
               _read_messages, _write_messages, _given_id),
        Format("rewardbench", "pairs", (*_TRL, "subset"), _REWARDBENCH, (*_TRL, "subset", "id", "chosen_was"),
               _read_rewardbench, _write_rewardbench, _rewardbench_id),
        Format("rewardbench2", "candidates", _TRL, _REWARDBENCH2, tuple({*_REWARDBENCH2} - {"models"}),
               _read_rewardbench2, _write_rewardbench2, _given_id),
        Format("llmbar", "pairs", ("input", "output_1", "output_2", "label"), _LLMBAR, tuple(_LLMBAR),
               _read_llmbar, _write_llmbar, _given_id),
        Format("pandalm", "pairs", ("instruction", "input", "response1", "response2", *_ANNOTATORS), {},
               ("idx", "response1", "response2"), _read_pandalm, None, _pandalm_id),
    )
}  # fmt: skip


_RRM: dict[Kind, dict[str, Type]] = {
    "pairs": _columns("text", "id", "query", "response_1", "response_2", "source") | _columns("int", "label"),
    "questions": _columns("text", "id", "query", "answer", "source", "verifier"),
    "candidates": {
        "id": "text", "query": "text", "responses": "texts", "correct": "bools", "answers": "texts", "source": "text",
    },
}  # fmt: skip


OWN_COLUMNS = frozenset(name for columns in _RRM.values() for name in columns)
"""What a field of this package's rows is called, of whichever kind."""


def own_format(kind: Kind) -> Format:
    """This package's rows of a kind, in which nulls are what is not known."""
    columns = _RRM[kind]

    def read(row: Row) -> tuple[Record, Row]:
        return PARSERS[kind]({key: value for key, value in row.items() if value is not None} | {"id": ""}), {}

    return Format("rrm", kind, (), columns, tuple(columns), read, lambda record, rest: to_row(record), _given_id)


def detect(columns: Sequence[str], row: Row) -> Format:
    """The format of rows with these columns, of which `row` is one. Raises RowError, with what was expected."""
    if {"chosen", "rejected"} <= {*columns}:
        value = row.get("chosen") or row.get("rejected")
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, dict):
            return FORMATS["trl-messages"]
        if isinstance(value, list) and "prompt" in columns:
            return FORMATS["rewardbench2"]
        if isinstance(value, str) and "prompt" in columns:
            return FORMATS["rewardbench" if "subset" in columns else "trl"]
        if isinstance(value, str):
            raise RowError("chosen and rejected are texts that do not say where the prompt ends; a prompt is needed")
    for name in ("llmbar", "pandalm"):
        if {*FORMATS[name].needed} <= {*columns}:
            return FORMATS[name]
    if {"digest", "settings"} <= {*columns} or {"key", "verdict"} <= {*columns}:
        raise RowError("this is a verdict store; --from verdicts, to prepared data")
    try:
        kind = kind_of(dict.fromkeys(columns))
    except RowError:
        kind = None
    if kind == "judged":
        raise RowError("these are judgments, no preference data; rrm judge writes them, rrm data show shows them")
    if kind is not None:
        return own_format(kind)
    expected = "".join(f"\n    {made.name}: {', '.join(made.needed)}" for made in FORMATS.values())
    raise RowError(
        f"the columns are of no known format\n  found: {', '.join(columns) or 'none'}\n  expected:"
        f"\n    rrm: query with response_1 and response_2, with responses, or alone{expected}"
    )
