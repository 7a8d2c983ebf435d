"""Rows of a JSONL file or of a prepared data set alike: as they stand, by number, with the record that each one is."""

import array
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rrm_jax.data.jsonl import Reader, RowError, decode_row, encode_row
from rrm_jax.data.overview import PARSERS, kind_of
from rrm_jax.data.prepared import Kind, Record, open_prepared
from rrm_jax.errors import RrmError


@dataclasses.dataclass(frozen=True)
class RawRow:
    """`line` is the row's bytes, its end included. `record` is None where it is blank, or bad for the reason `why`."""

    number: int
    line: bytes
    record: Record | None
    why: str = ""


class JsonlFile:
    """Pairs, questions or candidates of a JSONL file, told by its first usable row. 8 bytes a row are held.

    Numbers are those of lines, from 1. Raises RrmError for a file of anything else, or without a usable row.
    """

    prepared = None

    def __init__(self, path: Path):
        self.path = path
        unknown: list[str] = []
        try:
            _, kind = next(iter(Reader(path, kind_of, report=unknown.append)))
        except RrmError as error:
            raise RrmError("\n  ".join([str(error), *unknown[:1]])) from None
        if kind not in PARSERS:
            raise RrmError(f"{path} holds {kind} rows; pairs, questions or candidates are needed")
        self.kind: Kind = kind  # type: ignore[assignment]
        self._parse = PARSERS[kind]
        self._starts = array.array("Q", [0])
        with open(path, "rb") as file:
            for line in file:
                self._starts.append(self._starts[-1] + len(line))
        self._file: Any = None

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[RawRow]:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    yield RawRow(number, line, None)
                    continue
                try:
                    yield RawRow(number, line, self._parse(decode_row(line)))
                except RowError as error:
                    yield RawRow(number, line, None, str(error))

    def record(self, number: int) -> Record:
        """The record of a good row."""
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115  read from for as long as this lives
        self._file.seek(self._starts[number - 1])
        return self._parse(decode_row(self._file.read(self._starts[number] - self._starts[number - 1])))

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class PreparedRows:
    """Records of a prepared data set; a row's line is the record's JSON. Numbers are from 1."""

    def __init__(self, path: Path):
        self.path = path
        self.prepared = open_prepared(path)
        self.kind: Kind = self.prepared.kind

    def __len__(self) -> int:
        return len(self.prepared)

    def __iter__(self) -> Iterator[RawRow]:
        for number, record in enumerate(self.prepared, start=1):
            yield RawRow(number, encode_row(dataclasses.asdict(record)), record)

    def record(self, number: int) -> Record:
        """By its number, from 1."""
        return self.prepared[number - 1]

    def fingerprint(self) -> str:
        """Of the whole data set, as its files record it."""
        return self.prepared.fingerprint


RowFile = JsonlFile | PreparedRows


def open_rows(path: Path) -> RowFile:
    """A JSONL file's, or a prepared data set's. Raises RrmError."""
    return PreparedRows(path) if path.is_dir() else JsonlFile(path)


def parse_line(line: bytes, kind: Kind) -> Record:
    """The record of a line of `PreparedRows`."""
    return PARSERS[kind](decode_row(line))
