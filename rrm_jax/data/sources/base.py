"""What a data set's adapter declares, and the helpers that adapters share.

An adapter is a module with one `SOURCE`. Its `parse` is a pure function of a row; ids, duplicates and empty texts are
looked after here and in `prepare.py`, for all of them alike.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Literal

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair, Question, parse_pair, parse_question
from rrm_jax.data.sources.parts import Parts
from rrm_jax.data.table_files import Row

Kind = Literal["pairs", "questions"]


class Unusable(RowError):
    """A well-formed row that gives no record; `reason` is what such rows are counted under."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Source:
    """One published data set.

    `hub` and `revision` name the snapshot that the adapter was written against, `columns` what a row must have,
    `optional` what is used where it is there. `split` is read where the user names none. `parse(row)` gives a record
    whose id may be empty (`complete` makes it from the content) or raises RowError, or Unusable with a reason.
    `parts` are splits that the data set has by rule only. `takes_prompts`: it can be restricted to the prompts of
    another file. `configure` makes the source from the columns that a user names.
    """

    name: str
    kind: Kind
    hub: str
    revision: str
    licence: str
    citation: str
    columns: tuple[str, ...]
    parse: Callable[[Row], Pair | Question]
    optional: tuple[str, ...] = ()
    split: str = "train"
    parts: Parts | None = None
    takes_prompts: bool = False
    configure: Callable[[dict[str, str]], "Source"] | None = None

    def describe(self) -> str:
        """With its place on the Hugging Face hub, where it has one."""
        return f"{self.name} ({self.hub})" if self.hub else self.name


def complete(record: Pair | Question, source: Source) -> Pair | Question:
    """The record, checked, with the data set's name before its own source, and with an id where it has none.

    The id is `NAME/` and 16 hexadecimal digits of the SHA-256 of the query, of pairs also of both responses: the same
    on any machine and in any order of rows. Raises RowError.
    """
    if source.hub:  # rows of a user's own say themselves where they are from
        place = f"{source.name}/{record.source}" if record.source else source.name
        record = dataclasses.replace(record, source=place)
    row = dataclasses.asdict(record)
    if isinstance(record, Question):
        checked = parse_question(row)
        if not checked.query.strip():
            raise Unusable("empty query")
    else:
        checked = parse_pair(row)
        if not checked.query.strip():
            raise Unusable("empty query")
        for number, response in enumerate((checked.response_1, checked.response_2), start=1):
            if not response.strip():
                raise Unusable("empty response", f"response_{number}")
        if checked.response_1 == checked.response_2:
            raise Unusable("identical responses")
    return checked if checked.id else dataclasses.replace(checked, id=f"{source.name}/{_digest(checked).hex()[:16]}")


def _digest(record: Pair | Question) -> bytes:
    pair = isinstance(record, Pair)
    return digest(record.query, *((record.response_1, record.response_2) if pair else ()))


def digest(*texts: str) -> bytes:
    """SHA-256 of texts and of where each ends."""
    total = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8")
        total.update(len(data).to_bytes(8, "big") + data)
    return total.digest()


def prompt_key(query: str) -> bytes:
    """What prompts of different files are matched by. Blanks count for nothing, as in the authors' code."""
    return digest(query.strip().replace(" ", ""))[:8]


def text_of(row: Row, key: str) -> str:
    """A column that must be text. Raises RowError; a null is Unusable as an empty one would be."""
    value = row.get(key)
    if value is None:
        raise Unusable(f"no {key}")
    if not isinstance(value, str):
        raise RowError(f"{key} must be text, not {type(value).__name__}")
    return value


def answer_of(value: Any) -> str:
    """A final answer, as text. Raises Unusable where there is none."""
    if isinstance(value, (dict, list)):
        raise RowError(f"the answer must be text or a number, not {type(value).__name__}")
    answer = "" if value is None else str(value).strip()
    if not answer:
        raise Unusable("no answer")
    return answer


def label_of(row: Row, key: str) -> str:
    """A column that says where a row is from, "" where it is missing or null."""
    value = row.get(key)
    return "" if value is None else str(value)


def first_user_turn(messages: Any, key: str = "prompt") -> str:
    """The content of the first message of role `user`; Unusable where there is none."""
    for role, content in _turns(messages, key):
        if role == "user":
            return content
    raise Unusable("no user turn", key)


def assistant_turns(messages: Any, key: str) -> str:
    """The contents of all messages of role `assistant`, joined by a blank, as the authors' code joins them."""
    return " ".join(content for role, content in _turns(messages, key) if role == "assistant")


def _turns(messages: Any, key: str) -> list[tuple[str, str]]:
    if not isinstance(messages, list):
        raise RowError(f"{key} must be a list of messages, not {type(messages).__name__}")
    turns = []
    for at, message in enumerate(messages):
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise RowError(f"{key}[{at}] must be a message with a role and a content, both text")
        turns.append((role, content))
    return turns
