"""From a snapshot's rows to records: what is kept, what is not and why, all counted."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair, Question
from rrm_jax.data.snapshot import Snapshot
from rrm_jax.data.sources.base import Source, Unusable, complete, digest, prompt_key
from rrm_jax.data.sources.parts import Assign
from rrm_jax.data.table_files import Row

MALFORMED = "malformed"
REPEATED = "repeated"
OTHER_PART = "of another part"
OTHER_PROMPT = "of another prompt"
NOT_LISTED = (REPEATED, OTHER_PART, OTHER_PROMPT)
"""Rows by whose loss nothing is lost: the same record is kept, or the user chose others."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that gives no record: `reason` is what it is counted under, `why` says it of this row."""

    file: str
    row: int
    reason: str
    why: str


@dataclasses.dataclass
class Tally:
    """Counts over a snapshot's rows. `skipped` is by reason."""

    read: int = 0
    kept: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    kept_by_source: Counter[str] = dataclasses.field(default_factory=Counter)

    def lines(self) -> list[str]:
        """All that was counted, for people."""
        lines = [f"rows read: {self.read:,}; kept: {self.kept:,}"]
        lines += [f"skipped, {reason}: {count:,}" for reason, count in self.skipped.most_common()]
        if len(self.kept_by_source) > 1:
            lines += [f"kept of {name or '(no source)'}: {n:,}" for name, n in sorted(self.kept_by_source.items())]
        return lines


@dataclasses.dataclass
class Preparation:
    """Iterates over the records of `snapshot`, in order, each id once; `tally` and `skip` are told of every row.

    `prompts`, keys of `prompt_key`, are those to keep (None: all). `part` is the name of the part to keep and how rows
    are assigned to parts. It ends after `limit` records. Of what it has seen it holds 16 bytes a record.
    """

    source: Source
    snapshot: Snapshot
    prompts: frozenset[bytes] | None = None
    part: tuple[str, Assign] | None = None
    limit: int | None = None
    skip: Callable[[Skipped], None] = lambda skipped: None
    progress: Callable[[], None] = lambda: None
    tally: Tally = dataclasses.field(default_factory=Tally)

    def __iter__(self) -> Iterator[Pair | Question]:
        self.tally = Tally()
        seen: dict[bytes, bytes] = {}
        rows = self.snapshot.rows((*self.source.columns, *self.source.optional))
        for at, (file, number, row) in enumerate(rows):
            if self.limit is not None and self.tally.kept >= self.limit:
                return
            self.tally.read += 1
            self.progress()
            try:
                record = self._record(row)
                self._choose(at, record, seen)
            except RowError as error:
                reason = error.reason if isinstance(error, Unusable) else MALFORMED
                self.tally.skipped[reason] += 1
                if reason not in NOT_LISTED:
                    self.skip(Skipped(file, number, reason, str(error)))
                continue
            self.tally.kept += 1
            self.tally.kept_by_source[record.source] += 1
            yield record

    def _record(self, row: Row | RowError) -> Pair | Question:
        if isinstance(row, RowError):
            raise row
        missing = [column for column in self.source.columns if column not in row]
        if missing:  # of JSON rows; a file's columns are checked before
            raise RowError(f"{', '.join(missing)} missing; the row has {', '.join(row) or 'no fields'}")
        return complete(self.source.parse(row), self.source)

    def _choose(self, at: int, record: Pair | Question, seen: dict[bytes, bytes]) -> None:
        if self.prompts is not None and prompt_key(record.query) not in self.prompts:
            raise Unusable(OTHER_PROMPT)
        key, content = digest(record.id)[:8], digest(*_content(record))[:8]
        if key in seen:
            if seen[key] == content:
                raise Unusable(REPEATED)
            raise Unusable("same id, other content", record.id)
        seen[key] = content
        if self.part is not None and self.part[1](at, record) != self.part[0]:
            raise Unusable(OTHER_PART)


def _content(record: Pair | Question) -> tuple[str, ...]:
    if isinstance(record, Question):
        return (record.query, record.answer or "")
    return (record.query, record.response_1, record.response_2, str(record.label))
