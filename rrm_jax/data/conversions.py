"""Preference data from one format to another: which rows become which, and what could not be carried over, counted."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rrm_jax.data.formats import FORMATS, OWN_COLUMNS, Format, Row, detect
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.prepared import Kind, Record, is_prepared, open_prepared
from rrm_jax.data.records import Candidates, Pair
from rrm_jax.data.snapshot import Snapshot, open_snapshot
from rrm_jax.data.sources.base import Unusable, digest
from rrm_jax.data.sources.prepare import MALFORMED, Skipped
from rrm_jax.data.table_files import TableFile
from rrm_jax.errors import RrmError

SOURCES = ("rrm", "prepared", *FORMATS)
TARGETS = ("rrm", "prepared", *(made.name for made in FORMATS.values() if made.write))


@dataclasses.dataclass(frozen=True)
class Input:
    """What is converted: rows of `files` in `format`, or records of a prepared data set (`format` is None)."""

    path: Path
    name: str
    kind: Kind
    files: dict[str, Path]
    format: Format | None
    snapshot: Snapshot | None

    def count(self) -> int:
        """Rows, before any is looked at."""
        return len(open_prepared(self.path)) if self.snapshot is None else self.snapshot.count()

    def rows(self) -> Iterator[tuple[str, int, Any]]:
        """(File, number, row, record or RowError)."""
        if self.snapshot is None:
            return ((self.path.name, at, record) for at, record in enumerate(open_prepared(self.path), start=1))
        return self.snapshot.rows()


def open_input(path: Path, name: str | None = None, split: str | None = None) -> Input:
    """`name` is the format (None: by the columns and the first row that can be read).

    Raises RrmError where the columns are of no format or not of the one named, with those expected and those found.
    """
    if is_prepared(path):
        if name not in (None, "prepared") or split is not None:
            raise RrmError(f"{path} is a prepared data set; leave {'--split' if split else f'--from {name}'} out")
        prepared = open_prepared(path)
        files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
        return Input(path, "prepared", prepared.kind, files, None, None)
    if name == "prepared":
        raise RrmError(f"{path} is no prepared data set; see rrm data prepare")
    snapshot = open_snapshot(path, split)
    made = _format_of(path, snapshot, name)
    files = {snapshot.name_of(file): file for file in snapshot.files}
    return Input(path, made.name, made.kind, files, made, snapshot)


def _format_of(path: Path, snapshot: Snapshot, name: str | None) -> Format:
    if name not in (None, "rrm"):
        snapshot.check_columns(FORMATS[name].needed, name)
        return FORMATS[name]
    columns, first = TableFile(snapshot.files[0]).columns, None
    for _, _, row in snapshot.rows():
        if isinstance(row, dict):
            first = row
            if row.get("chosen") or row.get("rejected") or "chosen" not in columns:
                break
    try:
        made = detect(columns, first or {})
    except RowError as error:
        raise RrmError(f"{path}: {error}") from None
    if name == "rrm" and made.name != name:
        raise RrmError(f"{path} has the columns of {made.name}, not of rrm; leave --from out")
    snapshot.check_columns(made.needed, made.name)
    return made


@dataclasses.dataclass
class Tally:
    """`left_out` counts, by field, the rows of whose rest that field could not be kept; `transcripts` those of which a
    text holds several turns."""

    read: int = 0
    written: int = 0
    repeated: int = 0
    transcripts: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)

    def lines(self) -> list[str]:
        """All that was counted, for people."""
        lines = [f"rows read: {self.read:,}; written: {self.written:,}"]
        lines += [f"skipped, {reason}: {count:,}" for reason, count in self.skipped.most_common()]
        if self.repeated:
            lines.append(f"of the same texts as a row before: {self.repeated:,}; their ids end in -2, -3, …")
        if self.transcripts:
            lines.append(f"of several turns, written out in one text: {self.transcripts:,}")
        if self.left_out:
            fields = ", ".join(f"{name} ({count:,})" for name, count in self.left_out.most_common())
            lines.append(f"fields without a place in the output: {fields}")
        return lines


@dataclasses.dataclass
class Conversion:
    """Goes through all rows of `source`, in order. Rows for a `target` (None: the records themselves) are made with
    what else was in a row, where `keep_rest`.

    `pairs`: candidates become all pairs of a right and a wrong response. `keep_ties`: pairs whose annotators disagree
    are kept, without a label. `new_ids`: ids are made from the content for all rows, not only for those without one.
    `origin` is the source of those records that name none. `skip` and `progress` are told of every row.
    """

    source: Input
    target: Format | None
    keep_rest: bool = True
    pairs: bool = False
    keep_ties: bool = False
    new_ids: bool = False
    origin: str = ""
    skip: Callable[[Skipped], None] = lambda skipped: None
    progress: Callable[[], None] = lambda: None
    tally: Tally = dataclasses.field(default_factory=Tally)

    def records(self) -> Iterator[Record]:
        """The rows as records, where no target format is asked for."""
        return self._converted(lambda record, rest: (record, {}))

    def rows(self) -> Iterator[Row]:
        """Raises ValueError where there is no target to be written."""
        target = self.target
        if target is None or target.write is None:
            raise ValueError("rows need a format that can be written")
        write = target.write
        # A field of the rest must not be taken for one of the record when the row is read again.
        taken = {*target.columns, *target.held} | (OWN_COLUMNS if target.name == "rrm" else set())

        def make(record: Record, rest: Row) -> tuple[Row, Row]:
            row = write(record, rest)
            others = {key: value for key, value in rest.items() if key not in taken} if self.keep_rest else {}
            kept = {key: value for key, value in others.items() if _is_json(value)}
            if target.name == "trl-messages":
                rest = {key: value for key, value in rest.items() if key != "turns"}
            return row | kept, rest

        return self._converted(make)

    def _converted[T](self, make: Callable[[Record, Row], tuple[T, Row]]) -> Iterator[T]:
        ids, seen = _ContentIds(self.source.name), set[bytes]()
        self.tally = tally = Tally()
        for file, number, row in self.source.rows():
            tally.read += 1
            self.progress()
            try:
                for record, rest in self._records_of(row, ids):
                    key = digest(record.id)[:8]
                    if key in seen:
                        raise RowError(f"id {record.id!r} appears twice; ids must be unique (--new-ids makes others)")
                    made, rest = make(record, rest)
                    seen.add(key)
                    tally.written += 1
                    tally.transcripts += "turns" in rest
                    tally.left_out.update(
                        key for key, value in rest.items() if not isinstance(made, dict) or made.get(key) != value
                    )
                    yield made
            except RowError as error:
                reason = error.reason if isinstance(error, Unusable) else MALFORMED
                tally.skipped[reason] += 1
                self.skip(Skipped(file, number, reason, str(error)))
            tally.repeated = ids.repeated

    def _records_of(self, row: Any, ids: "_ContentIds") -> Iterable[tuple[Record, Row]]:
        if isinstance(row, RowError):
            raise row
        if self.source.format is None:
            record, rest, given = row, {}, row.id
        else:
            record, kept = self.source.format.read(row)
            given = self.source.format.id_of(row)
            held = self.source.format.held
            rest = {key: value for key, value in row.items() if key not in held and value is not None} | kept
        if self.source.name == "pandalm" and isinstance(record, Pair) and not (record.label or self.keep_ties):
            raise Unusable("tie of the annotators")
        if given is None or self.new_ids:
            given = ids(record)
        record = dataclasses.replace(record, id=given, source=record.source or self.origin)
        return _right_and_wrong(record, rest) if self.pairs else [(record, rest)]


def _right_and_wrong(record: Record, rest: Row) -> Iterator[tuple[Pair, Row]]:
    if not isinstance(record, Candidates) or record.correct is None:
        raise Unusable("not known which responses are correct")
    sides = [[at for at, right in enumerate(record.correct) if right == side] for side in (True, False)]
    if not all(sides):
        raise Unusable("all responses correct" if sides[0] else "no response correct")
    for right in sides[0]:
        for wrong in sides[1]:
            texts = record.query, record.responses[right], record.responses[wrong]
            yield Pair(f"{record.id}/{right + 1}-{wrong + 1}", *texts, 1, record.source), rest


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # of Parquet: dates, bytes and the like
        return False
    return True


class _ContentIds:
    """`FORMAT/` and 16 hexadecimal digits of the SHA-256 of a record's texts, as of prepared data; of those that come
    again, `-2`, `-3` and so on."""

    def __init__(self, name: str):
        self._name, self._counts, self.repeated = name, Counter[bytes](), 0

    def __call__(self, record: Record) -> str:
        texts = [record.query]
        if isinstance(record, Pair):
            texts += [record.response_1, record.response_2]
        elif isinstance(record, Candidates):
            texts += record.responses
        key = digest(*texts)[:8]
        self._counts[key] += 1
        self.repeated += self._counts[key] > 1
        return f"{self._name}/{key.hex()}" + (f"-{self._counts[key]}" if self._counts[key] > 1 else "")
