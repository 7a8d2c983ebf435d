"""The rows that a job passed over, listed beside its output."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from rrm_jax.cli.loading import warn
from rrm_jax.data.jsonl import encode_row
from rrm_jax.data.sources.prepare import MALFORMED, Skipped
from rrm_jax.errors import RrmError

_MOST_REPORTED = 20


class SkippedRows:
    """OUT.skipped.jsonl, which is whole before OUT appears; malformed rows are reported, the first 20 on stderr too."""

    def __init__(self, path: Path, strict: bool):
        self.path, self._strict, self._reported = path, strict, 0
        self._partial = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> "SkippedRows":
        self._file = open(self._partial, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, skipped: Skipped) -> None:
        if skipped.reason == MALFORMED:
            message = f"{skipped.file}:{skipped.row}: {skipped.why}"
            if self._strict:
                raise RrmError(message)
            self._reported += 1
            if self._reported <= _MOST_REPORTED:
                warn(message)
            elif self._reported == _MOST_REPORTED + 1:
                warn(f"further malformed rows are listed in {self.path} only")
        self._file.write(encode_row(dataclasses.asdict(skipped)))

    def complete_after[T](self, records: Iterable[T]) -> Iterator[T]:
        """The records; when there are no more, the file takes its place."""
        yield from records
        self._file.close()
        self._partial.replace(self.path)
