"""Rows to train on, by number, from a JSONL file or a prepared data set; texts stay on the disk."""

import array
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rrm_jax.data.jsonl import Reader, decode_row
from rrm_jax.data.prepared import FACTS, Prepared, is_prepared
from rrm_jax.data.records import Pair, Question, parse_labelled_pair, parse_question
from rrm_jax.errors import RrmError


def open_pairs(path: Path, report: Callable[[str], None], limit: int | None = None) -> Sequence[Pair]:
    """The first `limit` labelled pairs (None: all). Can be sent to other processes.

    A JSONL file is read once to check its rows: bad ones are reported and left out, and no usable one is an error; 8
    bytes a row are kept. Raises RrmError for what is neither kind of data, and for prepared data other than pairs, or
    without labels.
    """
    prepared = _prepared(Path(path), "pairs")
    if prepared is None:
        return JsonlRows(path, parse_labelled_pair, report, limit)
    if prepared.unlabelled:
        raise RrmError(f"{prepared.unlabelled} of {len(prepared)} pairs of {path} have no label; see rrm data label")
    return prepared if limit is None else First(prepared, limit)


def open_questions(path: Path, report: Callable[[str], None], limit: int | None = None) -> Sequence[Question]:
    """The first `limit` questions (None: all), as `open_pairs` opens pairs."""
    prepared = _prepared(Path(path), "questions")
    if prepared is None:
        return JsonlRows(path, parse_question, report, limit)
    return prepared if limit is None else First(prepared, limit)


def _prepared(path: Path, kind: str) -> Prepared | None:
    """None: a file. Raises RrmError for prepared data of another kind."""
    if not path.is_dir():
        return None
    if not is_prepared(path):
        raise RrmError(
            f"{path} is neither a JSONL file nor a prepared data set (it has no {FACTS}); see rrm data prepare"
        )
    prepared = Prepared(path)
    if prepared.kind != kind:
        how = _HOW.get(prepared.kind, "") if kind == "pairs" else ""
        raise RrmError(f"{path} holds {prepared.kind}, not {kind}{how}")
    return prepared


_HOW = {
    "questions": "; rrm data synthesize makes pairs of questions with answers",
    "candidates": "; rrm data label, or rrm data synthesize --candidates, makes pairs of them",
}


class JsonlRows(Sequence):
    """Rows of a JSONL file that is not to be changed meanwhile: its size and time are looked at when it is read."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[dict[str, Any]], Any],
        report: Callable[[str], None],
        limit: int | None = None,
    ):
        self.path, self._parse = Path(path), parse
        self._offsets = array.array("Q")
        self._file: int | None = None
        reader = Reader(self.path, parse, report=report)
        for _ in reader:
            self._offsets.append(reader.offset)
            if len(self._offsets) == limit:
                break
        self._state = self._look()

    def _look(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        offset = self._offsets[index]
        try:
            if self._file is None:
                if self._look() != self._state:
                    raise RrmError(f"{self.path} was changed while it is trained on; put it back and go on")
                self._file = os.open(self.path, os.O_RDONLY)
            return self._parse(decode_row(_line(self._file, offset)))
        except OSError as error:
            raise RrmError(f"cannot read {self.path}: {error.strerror or error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class First(Sequence):
    """The first so many of some records."""

    def __init__(self, rows: Sequence, count: int):
        self._rows, self._count = rows, min(count, len(rows))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return (
            self._rows[range(self._count)[index]] if not isinstance(index, slice) else self._rows[: self._count][index]
        )


def _line(file: int, offset: int, size: int = 16_384) -> bytes:
    """The line that begins at `offset`, its end not included."""
    while True:
        found = os.pread(file, size, offset)
        end = found.find(b"\n")
        if end >= 0 or len(found) < size:
            return found[:end] if end >= 0 else found
        size *= 4
