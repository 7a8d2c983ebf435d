"""Which queries are, or largely hold, a benchmark's prompts: by the n words in a row that both have."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.prepared import is_prepared, open_prepared
from rrm_jax.data.shingles import shingles
from rrm_jax.data.snapshot import open_snapshot
from rrm_jax.data.sources.base import first_user_turn
from rrm_jax.data.table_files import Row
from rrm_jax.errors import RrmError

COLUMNS = ("query", "prompt", "question", "problem", "instruction", "input")
_SHOWN = 5  # matches of one query with one benchmark


class Found(NamedTuple):
    """A benchmark's prompt that a query overlaps with, and which share of the n-grams of each the other has."""

    benchmark: str
    id: str
    of_query: float
    of_prompt: float


class Benchmarks:
    """Prompts are added; `find` then gives those that a query overlaps with.

    It does where at least the share `overlap` of the query's different n-grams of `words` words is in one prompt, or of
    a prompt's in the query. Case, blanks and punctuation count for nothing. What has fewer words than n overlaps only
    with the same words and no others. About 12 bytes an n-gram are held.
    """

    def __init__(self, words: int = 8, overlap: float = 0.5):
        self._words, self._overlap = words, overlap
        self._parts: list[np.ndarray] = []
        self._ids: list[tuple[str, str]] = []
        self._index: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, benchmark: str, id: str, prompt: str) -> None:
        """A prompt of a benchmark; `id` is shown in what is found. More may be added after a `find`."""
        self._parts.append(shingles(prompt, self._words))
        self._ids.append((benchmark, id))
        self._index = None

    def find(self, query: str) -> list[Found]:
        """The largest overlaps first, at most five of each benchmark."""
        grams, prompts, sizes = self._index or self._make_index()
        own = shingles(query, self._words)
        if not len(own):
            return []
        starts, ends = (np.searchsorted(grams, own, side) for side in ("left", "right"))
        hit = np.flatnonzero(ends > starts)
        if not len(hit):
            return []
        found, shared = np.unique(np.concatenate([prompts[starts[at] : ends[at]] for at in hit]), return_counts=True)
        of_query, of_prompt = shared / len(own), shared / sizes[found]
        most = np.maximum(of_query, of_prompt)
        made: list[Found] = []
        counts: dict[str, int] = {}
        for at in np.argsort(-most, kind="stable").tolist():
            if most[at] < self._overlap:
                break
            benchmark, id = self._ids[found[at]]
            counts[benchmark] = counts.get(benchmark, 0) + 1
            if counts[benchmark] <= _SHOWN:
                made.append(Found(benchmark, id, float(of_query[at]), float(of_prompt[at])))
        return made

    def _make_index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sizes = np.array([len(part) for part in self._parts], np.int64)
        grams = np.concatenate([np.zeros(0, np.uint64), *self._parts])
        prompts = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        order = np.argsort(grams, kind="stable")
        self._index = grams[order], prompts[order], sizes
        return self._index


def read_prompts(path: Path, report: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """(Id, or else file and row; prompt) of a prepared data set, or of a snapshot's file or test split.

    A row's prompt is the first of `COLUMNS` that it has; `input` is added to an `instruction`, and of messages the
    first user turn is taken. Rows without one are given to `report`. Raises RrmError where there is no prompt at all.
    """
    count = 0
    if is_prepared(path):
        for record in open_prepared(path):
            count += 1
            yield record.id, record.query
    else:
        for file, number, row in open_snapshot(path, default="test").rows():
            try:
                text = _prompt(row)
            except RowError as error:
                report(f"{file}:{number}: {error}")
                continue
            count += 1
            id = row.get("id") if isinstance(row, dict) else None
            yield (str(id) if isinstance(id, (str, int)) else f"{file}:{number}"), text
    if not count:
        raise RrmError(f"{path} has no prompt: no row has text in one of {', '.join(COLUMNS)}")


def _prompt(row: Row | RowError) -> str:
    if isinstance(row, RowError):
        raise row
    name = next((name for name in COLUMNS if row.get(name)), None)
    if name is None:
        raise RowError(f"no prompt in one of {', '.join(COLUMNS)}; the row has {', '.join(map(repr, row))}")
    value, more = row[name], row.get("input")
    text = value if isinstance(value, str) else first_user_turn(value, name)
    text = f"{text}\n{more}" if name == "instruction" and isinstance(more, str) and more else text
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text
