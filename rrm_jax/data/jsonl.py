"""JSON lines: validated reading that survives bad rows, and append-only logs that survive being killed."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

    def __iter__(self) -> Iterator[tuple[int, T]]:
        self.skipped, used = 0, 0
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        parsed = self.parse(_decode(line))
                    except RowError as error:
                        message = f"{self.path}:{number}: {error}"
                        if self.strict:
                            raise RrmError(message) from None
                        self.skipped += 1
                        self.report(message)
                        continue
                    used += 1
                    yield number, parsed
        except OSError as error:
            raise RrmError(f"cannot read {self.path}: {error.strerror or error}") from None
        if not used:
            raise RrmError(
                f"{self.path} holds no usable row ({self.skipped} skipped)" if self.skipped else f"{self.path} is empty"
            )


def _decode(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {type(row).__name__}")
    return row


def write_whole(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file that appears, or replaces the old one, only when complete."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class AppendLog:
    """An append-only JSONL file. A row counts once its newline is on disk: opening drops a torn last line.

    Not for two writers at once. Errors of the file system are RrmErrors that name the file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")  # noqa: SIM115
            self._drop_torn_line()
        except OSError as error:
            raise RrmError(f"cannot write {self.path}: {error.strerror or error}") from None

    def _drop_torn_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65_536)
            self._file.seek(start)
            newline = self._file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            self._file.truncate(keep)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows written so far, oldest first."""
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield _decode(line)
                except RowError as error:
                    raise RrmError(
                        f"{self.path}:{number}: {error}; the log is damaged, move it away to start afresh"
                    ) from None

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row and hands it to the operating system before returning (a killed process loses none)."""
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        at = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            self._undo(at)
            raise RrmError(
                f"cannot write {self.path}: {error.strerror or error}; every row before is kept, run again to go on"
            ) from None

    def _undo(self, at: int) -> None:
        with contextlib.suppress(OSError):  # else the torn line is dropped when the log is next opened
            os.truncate(self.path, at)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # append has reported what could not be written
            self._file.close()

    def __enter__(self) -> "AppendLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
