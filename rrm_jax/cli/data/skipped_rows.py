"""The rows that a job passed over, listed beside its output."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from rrm_jax.cli.loading import MalformedRows
from rrm_jax.data.jsonl import encode_row
from rrm_jax.data.sources.prepare import MALFORMED, Skipped


class SkippedRows:
    """OUT.skipped.jsonl, which is whole before OUT appears; malformed rows are reported, the first 20 on stderr too."""

    def __init__(self, path: Path, strict: bool):
        self.path = path
        self._malformed = MalformedRows(f"further malformed rows are listed in {path} only", strict)
        self._partial = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> "SkippedRows":
        self._file = open(self._partial, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, skipped: Skipped) -> None:
        """Of any reason; only malformed rows are told of on stderr."""
        if skipped.reason == MALFORMED:
            self._malformed(f"{skipped.file}:{skipped.row}: {skipped.why}")
        self._file.write(encode_row(dataclasses.asdict(skipped)))

    def complete_after[T](self, records: Iterable[T]) -> Iterator[T]:
        """The records; when there are no more, the file takes its place."""
        yield from records
        self._file.close()
        self._partial.replace(self.path)
