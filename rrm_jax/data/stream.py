"""Training rows in a shuffled, endless order that is a pure function of (seed, index): the position is one integer."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from rrm_jax.data.records import Pair
from rrm_jax.errors import RrmError


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
        self._rows = rows
        self._order = _endless(len(rows), seed)

    def __getitem__(self, index: int) -> T:
        return self._rows[self._order[index]]

    def epoch(self, index: int) -> int:
        """How often all rows have been given before that index."""
        return index // len(self._rows)

    def batch(self, start: int, count: int) -> list[T]:
        """The `count` rows from `start` on, across the ends of epochs."""
        return [self[index] for index in range(start, start + count)]


class Part(NamedTuple):
    """Rows of one source, and how often it is drawn from, relative to the others."""

    rows: Sequence[Any]
    weight: float = 1.0


class Place(NamedTuple):
    """Which row of which part, in which of that part's epochs, and whether a pair's responses change places."""

    part: int
    row: int
    epoch: int
    turned: bool


class RowStream:
    """Endless rows of one source, or of several by weight, in an order that is drawn anew in each epoch.

    In any stretch each part comes as often as its weight says, give or take one; each part's epochs are permutations of
    its own. `stream[i]` depends on (seed, i) and the parts alone. Raises RrmError for no parts, one without rows, and
    weights that are not above 0.
    """

    def __init__(self, parts: Sequence[Any] | Sequence[Part], seed: int):
        mixed = len(parts) > 0 and isinstance(parts[0], Part)
        sources: list[Part] = [*parts] if mixed else [Part(parts)]  # type: ignore[list-item, arg-type]
        for number, part in enumerate(sources):
            if not part.weight > 0 or part.weight == float("inf"):
                raise RrmError(f"part {number} of the mix has weight {part.weight}; weights are above 0")
            if not len(part.rows):
                raise RrmError(f"part {number} of the mix has no rows")
        self._parts, self._seed = sources, seed
        self._order = _mixed(sources, seed)

    def place(self, index: int) -> Place:
        """Which part, which row of it, in which epoch, and whether a pair's responses change places; nothing is read
        but the row's id."""
        if len(self._parts) == 1:
            part, at, row = 0, index, self._order[index]
        else:
            part, at, row = self._order[index]
        epoch = at // len(self._parts[part].rows)
        source = (part,) if len(self._parts) > 1 else ()
        return Place(part, row, epoch, coin("order", self._seed, epoch, *source, self._parts[part].rows[row].id))

    def at(self, place: Place) -> Any:
        """The row of this place."""
        return self._parts[place.part].rows[place.row]

    def __getitem__(self, index: int) -> Any:
        return self.at(self.place(index))

    def batch(self, start: int, count: int) -> list[Any]:
        """The `count` rows from `start` on, across the ends of epochs."""
        return [self[index] for index in range(start, start + count)]


class PairStream(RowStream):
    """A `RowStream` of pairs whose responses are put in a random order, the label with them, anew in each epoch
    (docs/method.md). A pair's order depends on (seed, epoch, id), and with several parts on which of them it is in."""

    def at(self, place: Place) -> Pair:
        """The pair of this place, in the order in which it is shown."""
        pair = super().at(place)
        return swap(pair) if place.turned else pair


def _endless(count: int, seed: int) -> Any:
    """A lazily computed sequence: element i is a row's number, every epoch a new permutation."""
    import grain

    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def _mixed(parts: Sequence[Part], seed: int) -> Any:
    """Of one part: a row's number. Of several: (part, index within the part's own endless order, row)."""
    import grain

    if len(parts) == 1:
        return _endless(len(parts[0].rows), seed)
    orders = []
    for number, part in enumerate(parts):
        own = int.from_bytes(hashlib.sha256(f"mix\x1f{seed}\x1f{number}".encode()).digest()[:4])
        order = _endless(len(part.rows), own)
        orders.append(order.map_with_index(lambda at, row, number=number: (number, at, row)))
    return grain.MapDataset.mix(orders, weights=[part.weight for part in parts])
