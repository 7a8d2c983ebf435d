"""JSON lines: validated reading that survives bad rows, and append-only logs that survive being killed."""

import codecs
import contextlib
import dataclasses
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rrm_jax.errors import RrmError


class RowError(RrmError):
    """One row that cannot be used; says what is wrong with it, not where it stands (the reader adds that)."""


@dataclasses.dataclass
class Reader[T]:
    """Iterates over `(line number, parse(row))` of a JSONL file.

    A row that is not JSON, or that `parse` refuses with a RowError, is given to `report` as `path:line: why`,
    counted in `skipped`, and passed over; with `strict` it is raised. A file without a usable row is an error.
    """

    path: Path
    parse: Callable[[dict[str, Any]], T]
    strict: bool = False
    report: Callable[[str], None] = lambda message: None
    skipped: int = 0
    offset: int = 0
    """Where the line of the row given last begins, in bytes."""

    def __iter__(self) -> Iterator[tuple[int, T]]:
        self.skipped, used = 0, 0
        for number, row in self._rows():
            try:
                parsed = self.parse(row())
            except RowError as error:
                message = f"{self.path}:{number}: {error}"
                if self.strict:
                    raise RrmError(message) from None
                self.skipped += 1
                self.report(message)
                continue
            used += 1
            yield number, parsed
        if not used:
            raise RrmError(
                f"{self.path} holds no usable row ({self.skipped} skipped)" if self.skipped else f"{self.path} is empty"
            )

    def _rows(self) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
        """(Line number, what gives its row or raises RowError)."""
        end = 0
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    self.offset, end = end, end + len(line)
                    if line.strip():
                        yield number, functools.partial(decode_row, line)
        except IsADirectoryError:
            raise RrmError(
                f"{self.path} is a directory, and a JSONL file is read here; of a prepared data set `rrm data convert "
                f"{self.path} --to rrm --out FILE` makes one"
            ) from None
        except OSError as error:
            raise RrmError(f"cannot read {self.path}: {error.strerror or error}") from None


def decode_row(line: bytes) -> dict[str, Any]:
    """A line's JSON object. Raises RowError."""
    try:
        row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: {error}") from None
    except json.JSONDecodeError as error:  # of one line: the place in it suffices
        raise RowError(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {type(row).__name__}")
    return row


def encode_row(row: dict[str, Any]) -> bytes:
    """A row's line, its end included: UTF-8 as it is, but escapes where there is no UTF-8 for it."""
    try:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8, but an escape
        text = json.dumps(row, separators=(",", ":")).encode("ascii")
    return text + b"\n"


def end_of_rows(file: IO[bytes]) -> int:
    """Where the last newline of a file ends, in bytes; what follows is torn. Leaves the file's position anywhere."""
    keep = file.seek(0, os.SEEK_END)
    while keep > 0:
        start = max(0, keep - 65_536)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        keep = start
    return 0


def _drop_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        keep = end_of_rows(file)
        if keep < file.seek(0, os.SEEK_END):
            file.truncate(keep)


class AppendLog:
    """An append-only JSONL file. A row counts once its newline is in the file: opening drops a torn last line.

    Not for two writers at once. Errors of the file system are RrmErrors that name the file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what could not be written must not be tried again, half a row later, when the file is closed.
            self._file = io.FileIO(self.path, "a")
            _drop_torn_line(self.path)
        except OSError as error:
            raise RrmError(f"cannot write {self.path}: {error.strerror or error}") from None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows written so far, oldest first. Raises RrmError at one that is not a JSON object."""
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        yield decode_row(line)
                    except RowError as error:
                        raise RrmError(
                            f"{self.path}:{number}: {error}; the log is damaged, move it away to start afresh"
                        ) from None
        except OSError as error:
            raise RrmError(f"cannot read {self.path}: {error.strerror or error}") from None

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row and hands it to the operating system before returning (a killed process loses none)."""
        line = memoryview(encode_row(row))
        before = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # else the torn line is dropped when the log is next opened
                self._file.truncate(before)
            raise RrmError(
                f"cannot write {self.path}: {error.strerror or error}; every row before is kept, run again to go on"
            ) from None

    def close(self) -> None:
        """Once nothing is to be appended any more."""
        try:
            self._file.close()
        except OSError as error:  # some network file systems report here that rows were not kept
            raise RrmError(f"cannot write {self.path}: {error.strerror or error}") from None

    def __enter__(self) -> "AppendLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
