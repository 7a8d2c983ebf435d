"""Prompts and completions of uneven length → packed arrays of few shapes.

Axes: B rows, T time, C completion time.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rrm_jax.rl.logprobs import Sequences
from rrm_jax.sampling.schedule import bucket as sampler_bucket
from rrm_jax.training.config import PackConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt and completion, token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """One forward pass over `examples`: `rows[b]` lists the places in `examples` of those that row b holds, in order.

    Rows have `time` tokens, of which `width` can be completion tokens; empty rows are padding.
    """

    examples: Sequence[Example]
    rows: tuple[tuple[int, ...], ...]
    time: int
    width: int

    @property
    def members(self) -> list[int]:
        return [at for row in self.rows for at in row]

    def sequences(self) -> Sequences:
        tokens, positions, segments = np.zeros((3, len(self.rows), self.time), np.int32)
        sources, targets = np.zeros((2, len(self.rows), self.width), np.int32)
        mask = np.zeros((len(self.rows), self.width), np.float32)
        for b, row in enumerate(self.rows):
            start = done = 0
            for segment, at in enumerate(row, start=1):
                example = self.examples[at]
                whole, own = slice(start, start + example.length), slice(done, done + len(example.completion_ids))
                tokens[b, whole] = example.prompt_ids + example.completion_ids
                positions[b, whole], segments[b, whole] = np.arange(example.length), segment
                sources[b, own] = np.arange(whole.stop - len(example.completion_ids), whole.stop) - 1
                targets[b, own], mask[b, own] = example.completion_ids, 1
                start, done = whole.stop, own.stop
        return Sequences(tokens, positions, segments, sources, targets, mask)

    def along(self, values: Sequence[Any], dtype: Any = np.float32) -> np.ndarray:
        """Values of every example in `examples`, one of each completion token or one for all → [B, C], else 0."""
        out = np.zeros((len(self.rows), self.width), dtype)
        for b, own, at in self._places():
            out[b, own] = values[at]
        return out

    def responses(self) -> np.ndarray:
        """The number in its row of the example that a completion token belongs to, int32 [B, C]."""
        out = np.zeros((len(self.rows), self.width), np.int32)
        for b, row in enumerate(self.rows):
            lengths = [len(self.examples[at].completion_ids) for at in row]
            out[b, : sum(lengths)] = np.repeat(np.arange(len(row)), lengths)
        return out

    def apart(self, value_BC: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The reverse of `along`: (place in `examples`, its values)."""
        for b, own, at in self._places():
            yield at, value_BC[b, own]

    def _places(self) -> Iterator[tuple[int, slice, int]]:
        for b, row in enumerate(self.rows):
            done = 0
            for at in row:
                own = slice(done, done + len(self.examples[at].completion_ids))
                yield b, own, at
                done = own.stop


def micro_batches(examples: Sequence[Example], chosen: Sequence[int], pack: PackConfig, ways: int) -> list[MicroBatch]:
    """Packs the chosen examples; each is in one row of one micro-batch.

    The longest come first, each into the first row that has room for it (first fit, decreasing). A row has
    `pack.row_tokens` tokens, or, for what is longer, the next of `bucket`'s lengths. A micro-batch has rows of one
    length, as many as `pack.micro_batch_tokens` hold, and a multiple of `ways` (data × fsdp devices); fewer, by halves,
    where there are no more. So shapes are few, and with them compilations.
    """
    order = sorted(chosen, key=lambda at: (-examples[at].length, at))
    rows: list[list[int]] = []
    room = np.zeros(len(order), np.int64)
    times: list[int] = []
    for at in order:
        length = examples[at].length
        fits = room[: len(rows)] >= length
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            times.append(bucket(length, pack.row_tokens))
            room[row] = times[row]
        rows[row].append(at)
        room[row] -= length
    batches = []
    for time in sorted(set(times), reverse=True):
        of_time = [row for row, own in zip(rows, times, strict=True) if own == time]
        most = max(pack.micro_batch_tokens // (time * ways), 1) * ways
        for start in range(0, len(of_time), most):
            batches.append(_micro_batch(examples, of_time[start : start + most], time, ways, most))
    return batches


def bucket(length: int, base: int) -> int:
    """The smallest of base × (1, 2, 3, 4, 6, 8, 12, 16, …) that holds `length`: at most a third is padding."""
    return base if length <= base else sampler_bucket(length, 2 * base)


def _micro_batch(examples: Sequence[Example], rows: list[list[int]], time: int, ways: int, most: int) -> MicroBatch:
    count = ways
    while count < len(rows):
        count = min(2 * count, most)
    widest = max(sum(len(examples[at].completion_ids) for at in row) for row in rows)
    quarter = -(-time // 4)
    width = min(-(-widest // quarter) * quarter, time)
    return MicroBatch(examples, tuple(map(tuple, rows + [[]] * (count - len(rows)))), time, width)
