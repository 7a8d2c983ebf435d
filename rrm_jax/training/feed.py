"""From the stream of pairs to prompts, tokenised ahead of their use or read from a cache.

Light to import: worker processes import this module, and take no device.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rrm_jax.data.records import Pair, Question
from rrm_jax.data.stream import PairStream, swap
from rrm_jax.data.workers import in_order
from rrm_jax.errors import RrmError
from rrm_jax.training.token_cache import Encode, TokenCache


class Asked(NamedTuple):
    """A row of the data as the policy sees it, a pair with its responses in the order shown, and its prompt."""

    row: Pair | Question
    prompt_ids: Sequence[int]
    truncated: bool


@dataclasses.dataclass(frozen=True)
class _Element:
    """Index of the stream → the pair as it is shown, or, with `both_orders`, followed by itself in the other order."""

    stream: PairStream
    encode: Encode
    both_orders: bool
    caches: Sequence[TokenCache] = ()

    def __call__(self, index: int) -> list[Asked]:
        place = self.stream.place(index)
        pair = self.stream.at(place)
        # Cut texts are the same in either order, so a pair that has changed places has the other order's prompt.
        encoded = (
            self.caches[place.part][place.row] if self.caches else self.encode(swap(pair) if place.turned else pair)
        )
        first = Asked(pair, encoded.prompt_ids(place.turned), encoded.truncated)
        if not self.both_orders:
            return [first]
        return [first, Asked(swap(pair), encoded.prompt_ids(not place.turned), encoded.truncated)]


@dataclasses.dataclass(frozen=True)
class _Share:
    """How many-th of a process's own → index of the stream."""

    compute: _Element
    start: int
    batch: int
    share: int
    offset: int

    def __call__(self, index: int) -> list[Asked]:
        batch, at = divmod(index, self.share)
        return self.compute(self.start + batch * self.batch + self.offset + at)


class Feed:
    """Prompts by position in the stream; what comes next is tokenised meanwhile by `workers` processes (0: when asked).

    The same prompts whatever the workers and with or without `caches`, one for each part of the stream. Close it.
    """

    def __init__(
        self, stream: PairStream, encode: Encode, *, both_orders: bool = False, workers: int = 0,
        caches: Sequence[TokenCache] = (),
    ):  # fmt: skip
        self._compute = _Element(stream, encode, both_orders, caches)
        # What is read from a cache needs no help.
        self._workers, self._opened, self._next = 0 if caches else workers, contextlib.ExitStack(), -1
        self._items: Iterator[list[Asked]] = iter(())

    def take(self, position: int, count: int) -> list[Asked]:
        """The prompts of `count` pairs from this position on; any position, but on from the last one is fastest."""
        if position != self._next:
            self.close()
            self._items = self._opened.enter_context(in_order(self._compute, self._workers, position))
        self._next = position + count
        return [asked for item in itertools.islice(self._items, count) for asked in item]

    def shard(self, start: int, batch_size: int, process: int, count: int) -> Iterator[list[Asked]]:
        """Process `process` of `count`'s share of each of the endless batches from position `start` on.

        It is the process-th stretch of equal length, so that all processes' shares, one after another, are the global
        batch, whatever their number. Raises RrmError where a batch cannot be split evenly.
        """
        if batch_size % count:
            raise RrmError(f"a batch of {batch_size} cannot be split evenly over {count} processes")
        share = batch_size // count
        self.close()
        compute = _Share(self._compute, start, batch_size, share, process * share)
        items = self._opened.enter_context(in_order(compute, self._workers))
        while True:
            yield [asked for item in itertools.islice(items, share) for asked in item]

    def close(self) -> None:
        """Ends the workers. It may be used again, with workers that are started anew."""
        self._opened.close()
        self._next = -1
