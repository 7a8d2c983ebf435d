"""Splits that a data set has by rule only: which of its parts a row belongs to."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

from rrm_jax.data.records import Pair, Question
from rrm_jax.errors import RrmError

Assign = Callable[[int, Pair | Question], str]
"""(Row's number from 0 in the snapshot, its record) → the part it belongs to."""


class Parts(Protocol):
    """A rule that splits a data set; `assign` makes a function from it that says of each row where it belongs."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, in the order that users see."""
        ...

    @property
    def seed(self) -> int:
        """Where the user names none."""
        ...

    def assign(self, count: Callable[[], int], records: Callable[[], Iterable[Pair | Question]], seed: int) -> Assign:
        """`count()` is the number of rows, `records()` all that can be used of them, each once."""
        ...


@dataclasses.dataclass(frozen=True)
class ShuffledRows:
    """What `datasets.Dataset.train_test_split(train_size=…, shuffle=True, seed=…)` makes of the rows, row for row.

    Its test rows are the first of NumPy's permutation by that seed, the train rows the others.
    """

    train: int
    seed: int
    names: tuple[str, ...] = ("train", "test")

    def assign(self, count: Callable[[], int], records: Callable[[], Iterable[Pair | Question]], seed: int) -> Assign:
        """As `Parts` has it. RrmError for a snapshot that leaves no test rows."""
        import numpy as np

        rows = count()
        if rows <= self.train:
            raise RrmError(
                f"the snapshot has {rows:,} rows; a train part of {self.train:,} leaves none for the test part. "
                "Leave --part out to take them all"
            )
        test = set(np.random.default_rng(seed).permutation(rows)[: rows - self.train].tolist())
        return lambda row, record: self.names[row in test]


@dataclasses.dataclass(frozen=True)
class HashedRecords:
    """Parts of given sizes and a last one with the rest, by the order of hashes of (seed, record's id).

    Where a record goes does not depend on the order of rows. Too few records fill the first parts only.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    seed: int = 0

    def assign(self, count: Callable[[], int], records: Callable[[], Iterable[Pair | Question]], seed: int) -> Assign:
        """As `Parts` has it; goes over all records once."""
        import numpy as np

        scores = np.sort(np.fromiter((_score(seed, record.id) for record in records()), np.uint64))
        ends = [int(scores[end]) if end < len(scores) else None for end in itertools.accumulate(self.sizes)]

        def part(row: int, record: Pair | Question) -> str:
            score = _score(seed, record.id)
            for name, end in zip(self.names, ends, strict=False):
                if end is None or score < end:
                    return name
            return self.names[-1]

        return part


def _score(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"part\x1f{seed}\x1f{key}".encode()).digest()[:8], "big")
