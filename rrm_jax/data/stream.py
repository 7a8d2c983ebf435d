"""Training rows in a shuffled, endless order that is a pure function of (seed, index): the position is one integer."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from rrm_jax.data.records import Pair


def coin(*address: object) -> bool:
    """A fair coin addressed by its arguments: the same on any machine, in any process."""
    text = "\x1f".join(map(str, address))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] & 1 == 1


def swap(pair: Pair) -> Pair:
    """The same pair with its responses, and its label, in the other order."""
    label = None if pair.label is None else 3 - pair.label
    return dataclasses.replace(pair, response_1=pair.response_2, response_2=pair.response_1, label=label)


class Stream[T]:
    """`stream[i]` for any i ≥ 0: every epoch is a new permutation of `rows` (grain's index shuffle)."""

    def __init__(self, rows: Sequence[T], seed: int):
        import grain

        self._rows = rows
        # An endless, lazily computed permutation: element i is a row's number.
        self._order: Any = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()

    def __getitem__(self, index: int) -> T:
        return self._rows[self._order[index]]

    def epoch(self, index: int) -> int:
        return index // len(self._rows)

    def batch(self, start: int, count: int) -> list[T]:
        return [self[index] for index in range(start, start + count)]


class PairStream(Stream[Pair]):
    """Pairs whose responses are put in a random order, the label with them, anew in each epoch (docs/method.md)."""

    def __init__(self, rows: Sequence[Pair], seed: int):
        super().__init__(rows, seed)
        self._seed = seed

    def __getitem__(self, index: int) -> Pair:
        pair = super().__getitem__(index)
        return swap(pair) if coin("order", self._seed, self.epoch(index), pair.id) else pair
