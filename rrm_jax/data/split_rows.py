"""A file's rows split into those that are kept and those that are dropped, so that nothing is ever lost."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import Unique, parse_labelled_pair
from rrm_jax.data.whole_files import KEPT, replacing
from rrm_jax.errors import RrmError
from rrm_jax.provenance import earlier_results


def split_pairs(pairs: Path, keeps: Callable[[str], bool], kept: Path, dropped: Path) -> None:
    """Writes each usable row of `pairs` to `kept` or, where `keeps(id)` is False, to `dropped`.

    Rows go over byte for byte and in their order; a last line without an end gets one, so that both files can be
    joined again. Both appear only when they are complete; RrmError when they cannot be written.
    """
    with replacing(kept, dropped, advice=KEPT) as (yes, no):
        for line, pair_id in _usable_lines(pairs):
            (yes if keeps(pair_id) else no).write(line)


def _usable_lines(pairs: Path) -> Iterator[tuple[bytes, str]]:
    with open(pairs, "rb") as file:
        lines = enumerate(file, start=1)
        for number, pair in Reader(pairs, Unique(parse_labelled_pair)):
            line = next(line for at, line in lines if at == number)
            yield line if line.endswith(b"\n") else line + b"\n", pair.id


def refuse_to_overwrite(
    results: dict[Path, Callable[[bytes], bytes]], run: Path, source: Path, rows: Callable[[], Iterable[bytes]]
) -> None:
    """Results are replaced as a whole, which must lose nothing but what the same rows gave before.

    `results` says of each file how a row of the source is got of its line; `rows` are the source's. Raises RrmError
    where a file is there without the job's `run`, or holds a row that is not the source's.
    """
    present = earlier_results(results, run)
    if not present:
        return
    known = {_digest(row) for row in rows()}
    for path in present:
        lost = sum(_digest(results[path](line)) not in known for line in lines_of(path))
        if lost:
            raise RrmError(f"{path} holds {lost} row(s) that are not in {source}; choose another --out")


def lines_of(path: Path) -> Iterator[bytes]:
    """With their newlines, byte for byte."""
    with open(path, "rb") as file:
        yield from file


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line.rstrip(b"\r\n")).digest()
