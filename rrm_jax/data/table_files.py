"""Rows of one data file, as plain dicts: Parquet, Arrow, JSON lines (also gzipped), a JSON list or CSV.

Files are read a piece at a time, and nothing in them is ever run: no dataset script, no pickle. A file that is cut
short or damaged is an RrmError that names it. A row that cannot be used comes as a RowError in its place, so that rows
keep their numbers.
"""

import codecs
import contextlib
import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rrm_jax.data.jsonl import RowError, decode_row
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

JSON_ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
ENDINGS = (".parquet", ".arrow", ".csv", *JSON_ENDINGS)

_ROWS_AT_A_TIME = 256
_ROWS_THAT_SHOW_COLUMNS = 100
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_JSON_CHUNK = 1 << 20
_LONGEST_CELL = 1 << 30  # csv's own limit is 128 KiB, which a response can exceed


class TableFile:
    """One file: `columns` are its columns' names; of JSON, the fields of its first 100 rows."""

    def __init__(self, path: Path):
        self.path = path
        with _damage(path):
            _refuse_placeholder(path)
            if path.name.endswith(".parquet"):
                self._read: Any = _Parquet(path)
            elif path.name.endswith(".arrow"):
                self._read = _Arrow(path)
            elif path.name.endswith(".csv"):
                self._read = _Csv(path)
            else:
                self._read = _Json(path)
            self.columns: tuple[str, ...] = self._read.columns()

    def count(self) -> int:
        """How many rows it has; of JSON, which must be read for it, lines or elements."""
        with _damage(self.path):
            return self._read.count()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row | RowError]]:
        """(Number from 1, row), or a RowError in place of the row; of JSON lines the number is the line's.

        Of Parquet and Arrow only `columns` are read (None: all); JSON rows come with whatever they hold.
        """
        with _damage(self.path):
            yield from self._read.rows(columns)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, EOFError, zlib.error) as error:
        raise RrmError(f"{path} is damaged, or was not copied whole: {_first_line(error)}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise RrmError(f"{path} is no CSV in UTF-8: {_first_line(error)}") from None
    except OSError as error:  # Arrow says so too where a page does not match its checksum
        raise RrmError(f"cannot read {path}: {error.strerror or _first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _refuse_placeholder(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(48)
    if not head:
        raise RrmError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise RrmError(f"{path} is a Git LFS pointer, not the data; fetch the file itself (git lfs pull)")


class _Parquet:
    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path, page_checksum_verification=True)

    def columns(self) -> tuple[str, ...]:
        return tuple(self._file.schema_arrow.names)

    def count(self) -> int:
        return self._file.metadata.num_rows

    def rows(self, columns: Sequence[str] | None) -> Iterator[tuple[int, Row | RowError]]:
        chosen = None if columns is None else [name for name in self.columns() if name in columns]
        batches = self._file.iter_batches(_ROWS_AT_A_TIME, columns=chosen)
        return enumerate(itertools.chain.from_iterable(map(_rows_of, batches)), start=1)


class _Arrow:
    """An Arrow stream, as datasets' `save_to_disk` and its cache write them, or an Arrow (Feather) file."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self._is_file = file.read(6) == b"ARROW1"
            file.seek(-min(len(_ARROW_STREAM_END), path.stat().st_size), 2)
            ended = file.read() == _ARROW_STREAM_END
        if not self._is_file and not ended:
            raise RrmError(f"{path} is damaged, or was not copied whole: the mark at an Arrow stream's end is missing")
        self._path = path

    def _batches(self) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        with pa.memory_map(str(self._path)) as source:
            if self._is_file:
                reader = pa.ipc.open_file(source)
                yield from (reader.get_batch(at) for at in range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(source)

    def columns(self) -> tuple[str, ...]:
        import pyarrow as pa

        with pa.memory_map(str(self._path)) as source:
            return tuple((pa.ipc.open_file if self._is_file else pa.ipc.open_stream)(source).schema.names)

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._batches())

    def rows(self, columns: Sequence[str] | None) -> Iterator[tuple[int, Row | RowError]]:
        number = 0
        for batch in self._batches():
            if columns is not None:
                batch = batch.select([name for name in batch.schema.names if name in columns])
            for start in range(0, batch.num_rows, _ROWS_AT_A_TIME):
                for row in _rows_of(batch.slice(start, _ROWS_AT_A_TIME)):
                    number += 1
                    yield number, row


def _rows_of(batch: "pa.RecordBatch") -> list[Row] | list[Row | RowError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # of one of the rows; the others are good
        return [_row_of(batch, at) for at in range(batch.num_rows)]


def _row_of(batch: "pa.RecordBatch", at: int) -> Row | RowError:
    try:
        return batch.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8: {error}")


class _Csv:
    """The first row has the columns' names; every value is text, but for the numbers of a column `label`. A row of
    another length cannot be used."""

    def __init__(self, path: Path):
        self._path = path

    def _lines(self) -> Iterator[list[str]]:
        csv.field_size_limit(_LONGEST_CELL)
        with open(self._path, encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file, strict=True)

    def columns(self) -> tuple[str, ...]:
        return tuple(next(self._lines(), ()))

    def count(self) -> int:
        return sum(1 for _ in self.rows(None))

    def rows(self, columns: Sequence[str] | None) -> Iterator[tuple[int, Row | RowError]]:
        lines = self._lines()
        names = next(lines, [])
        for number, cells in enumerate(filter(None, lines), start=1):
            if len(cells) != len(names):
                yield number, RowError(f"{len(cells)} cells, not {len(names)} as in the first row")
                continue
            row: Row = dict(zip(names, cells, strict=True))
            if "label" in row:
                row["label"] = {"": None, "1": 1, "2": 2}.get(row["label"], row["label"])
            yield number, row if columns is None else {name: row[name] for name in names if name in columns}


class _Json:
    """A list of objects where the first character is `[`, else an object a line."""

    def __init__(self, path: Path):
        self._path = path

    def _open(self) -> BinaryIO | gzip.GzipFile:
        return gzip.open(self._path, "rb") if self._path.name.endswith(".gz") else open(self._path, "rb")

    def columns(self) -> tuple[str, ...]:
        first = itertools.islice(self.rows(None), _ROWS_THAT_SHOW_COLUMNS)
        return tuple(dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row))

    def count(self) -> int:
        return sum(1 for _ in self._values())

    def rows(self, columns: Sequence[str] | None) -> Iterator[tuple[int, Row | RowError]]:
        for number, value in self._values():
            if isinstance(value, bytes):
                try:
                    value = decode_row(value)
                except RowError as error:
                    value = error
            elif not isinstance(value, dict):
                value = RowError(f"expected a JSON object, found {type(value).__name__}")
            yield number, value

    def _values(self) -> Iterator[tuple[int, Any]]:
        """Lines that are not blank, as bytes, or the list's elements, parsed."""
        with self._open() as file:
            head = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8) or file.read(1)
            while head.isspace():
                head = file.read(1)
            file.seek(0)
            if head.lstrip().startswith(b"["):
                yield from enumerate(_elements(file, self._path), start=1)
            else:
                yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _elements(file: BinaryIO | gzip.GzipFile, path: Path) -> Iterator[Any]:
    """A JSON list's elements, without ever holding much more than one of them."""
    decode, scan = codecs.getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
    text, at, count, chunk = "", 0, 0, _JSON_CHUNK
    opened = False
    while True:
        data = file.read(chunk)
        try:
            text, at = text[at:] + decode(data, final=not data), 0
        except UnicodeDecodeError as error:
            raise RrmError(f"{path}: not UTF-8 after {count} elements: {error}") from None
        progress = False
        while True:
            at = _skip_blanks(text, at)
            if not opened and text[at : at + 1] == "[":
                opened, at = True, at + 1
                continue
            if text[at : at + 1] == "]":
                return
            start = _skip_blanks(text, at + 1) if count and text[at : at + 1] == "," else at
            if count and start == at and at < len(text):
                raise RrmError(f"{path} is damaged: expected a comma or ] after element {count}")
            try:
                value, end = scan(text, start)
            except (ValueError, RecursionError):
                break
            if _skip_blanks(text, end) == len(text):
                break  # a number may go on in what is not read yet
            count, at, progress = count + 1, end, True
            yield value
        if not data:
            raise RrmError(f"{path} is damaged, or was not copied whole: the list breaks off after {count} elements")
        chunk = _JSON_CHUNK if progress else 2 * chunk


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
