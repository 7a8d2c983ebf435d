"""Which rows of a data set are left out, and why: each filter sees the rows in order and says so of one at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.contamination import Benchmarks
from rrm_jax.data.language import LanguageFilter
from rrm_jax.data.near_duplicates import NearDuplicates, row_shingles, texts_of
from rrm_jax.data.prepared import Record
from rrm_jax.data.records import Candidates, Pair
from rrm_jax.data.row_files import RawRow, RowFile
from rrm_jax.data.shingles import digest, jaccard, normalise

BLANK, MALFORMED, NEAR = "blank line", "malformed", "near duplicate"


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a row is left out: `name` is what it is counted under, `detail` says it of this row, `matched` names rows or
    prompts that it is like."""

    name: str
    detail: str = ""
    matched: Sequence[dict[str, Any]] = ()


class Filter(Protocol):
    """One rule by which rows are left out. It may keep what it saw: it is asked once a row at most, in order."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the reasons it may give."""
        ...

    def __call__(self, number: int, record: Record) -> Reason | None:
        """Why a row is left out, or None. It is asked only of rows that no filter before it leaves out."""
        ...


def responses_of(record: Record) -> list[str]:
    """Without their thinking, as a judge sees them."""
    if isinstance(record, Pair):
        return [strip_thinking(record.response_1), strip_thinking(record.response_2)]
    return [strip_thinking(text) for text in record.responses] if isinstance(record, Candidates) else []


class Problems:
    """Rows that nothing can be learnt from: an empty query or response, the same response twice in a pair."""

    names = ("empty query", "empty response", "identical responses")

    def __call__(self, number: int, record: Record) -> Reason | None:
        """As `Filter` has it."""
        responses = responses_of(record)
        if not record.query.strip():
            return Reason("empty query")
        for at, response in enumerate(responses, start=1):
            if not response.strip():
                return Reason("empty response", f"response {at} of {len(responses)}")
        return Reason("identical responses") if isinstance(record, Pair) and len(set(responses)) == 1 else None


class RepeatedIds:
    """Rows with the id of an earlier one but other texts: ids address randomness, and must be unique. 8 bytes an id."""

    names = ("repeated id",)

    def __init__(self):
        self._seen: set[int] = set()

    def __call__(self, number: int, record: Record) -> Reason | None:
        """As `Filter` has it."""
        key = int.from_bytes(digest([record.id])[:8])
        if key in self._seen:
            return Reason("repeated id", record.id)
        self._seen.add(key)
        return None


@dataclasses.dataclass(frozen=True)
class TokenLimits:
    """Rows whose query or one of whose responses has too many tokens, or one of whose responses too few."""

    count: Callable[[str], int]
    max_query: int | None = None
    max_response: int | None = None
    min_response: int | None = None

    names = ("long query", "long response", "short response")

    def __call__(self, number: int, record: Record) -> Reason | None:
        """As `Filter` has it."""
        if self.max_query is not None and (tokens := self.count(record.query)) > self.max_query:
            return Reason("long query", f"{tokens} tokens")
        if self.max_response is None and self.min_response is None:
            return None
        for at, tokens in enumerate(map(self.count, responses_of(record)), start=1):
            if self.max_response is not None and tokens > self.max_response:
                return Reason("long response", f"response {at}: {tokens} tokens")
            if self.min_response is not None and tokens < self.min_response:
                return Reason("short response", f"response {at}: {tokens} tokens")
        return None


@dataclasses.dataclass(frozen=True)
class Languages:
    """Rows whose query, or by choice one of whose responses, is in another language."""

    languages: LanguageFilter
    responses: bool = False

    names = ("language",)

    def __call__(self, number: int, record: Record) -> Reason | None:
        """As `Filter` has it."""
        for text in (record.query, *(responses_of(record) if self.responses else ())):
            found = self.languages.other(text)
            if found is not None:
                return Reason("language", f"{found[0]} {found[1]:.2f}")
        return None


@dataclasses.dataclass(frozen=True)
class Contamination:
    """Rows whose query overlaps with a benchmark's prompt."""

    benchmarks: Benchmarks

    names = ("contaminated",)

    def __call__(self, number: int, record: Record) -> Reason | None:
        """As `Filter` has it."""
        found = self.benchmarks.find(record.query)
        if not found:
            return None
        matched = [
            {"benchmark": one.benchmark, "id": one.id, "of_query": round(one.of_query, 4)}
            | {"of_prompt": round(one.of_prompt, 4)}
            for one in found
        ]
        return Reason("contaminated", matched=matched)


class Duplicates:
    """Rows whose normalised texts, in whatever order of the responses, are an earlier row's. About 200 bytes a row."""

    names = ("duplicate",)

    def __init__(self, by: str = "texts"):
        self._by, self._first = by, dict[bytes, int]()

    def __call__(self, number: int, record: Record) -> Reason | None:
        """As `Filter` has it."""
        query, *responses = map(normalise, texts_of(record, self._by))
        first = self._first.setdefault(digest([query, *sorted(responses)]), number)
        return None if first == number else Reason("duplicate", matched=[{"row": first}])


@dataclasses.dataclass
class Cleaning:
    """Decides over all rows of a file: `reasons` then has those that are left out, by number.

    Near duplicates are told last, among rows that no filter leaves out, and their texts are read again to tell them
    exactly. Of rows that stay 8 bytes and what the filters hold are kept.
    """

    rows: RowFile
    filters: Sequence[Filter]
    near: NearDuplicates | None = None
    by: str = "texts"
    report: Callable[[str], None] = lambda message: None
    reasons: dict[int, Reason] = dataclasses.field(default_factory=dict)

    def decide(self, progress: Callable[[], None] = lambda: None) -> None:
        """Fills `reasons`; once. `progress` is called for every row."""
        added: list[int] = []
        for row in self.rows:
            progress()
            reason = self._reason(row)
            if reason is not None:
                self.reasons[row.number] = reason
            elif self.near is not None and row.record is not None:
                self.near.add(texts_of(row.record, self.by))
                added.append(row.number)
        if self.near is None:
            return

        def exact(one: int, two: int) -> float:
            records = (self.rows.record(added[at]) for at in (one, two))
            return jaccard(*(row_shingles(texts_of(record, self.by)) for record in records))

        for at, match in self.near.matches(exact).items():
            found = {"row": added[match.row], "similarity": round(match.similarity, 4)}
            self.reasons[added[at]] = Reason(NEAR, matched=[found])

    def _reason(self, row: RawRow) -> Reason | None:
        if row.record is None:
            if row.why:
                self.report(f"{self.rows.path}:{row.number}: {row.why}")
            return Reason(MALFORMED, row.why) if row.why else Reason(BLANK)
        found = (check(row.number, row.record) for check in self.filters)
        return next((reason for reason in found if reason is not None), None)

    def outcomes(self) -> Iterator[tuple[RawRow, Reason | None]]:
        """Every row in order, with why it is left out; rows that others are like are named by their ids too."""
        for row in self.rows:
            reason = self.reasons.get(row.number)
            if reason is not None and reason.matched and "row" in reason.matched[0]:
                matched = [one | {"id": self.rows.record(one["row"]).id} for one in reason.matched]
                reason = dataclasses.replace(reason, matched=matched)
            yield row, reason
