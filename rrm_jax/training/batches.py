"""Rows of uneven length → padded arrays of few shapes.

Axes: B rows, T time, C completion time.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from rrm_jax.rl.logprobs import Sequences
from rrm_jax.sampling.schedule import bucket as sampler_bucket


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt and completion, token ids. `values` are arrays along the completion (log-probabilities, …)."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def bucket(length: int, base: int) -> int:
    """The smallest of base × (1, 2, 3, 4, 6, 8, 12, 16, …) that holds `length`: at most a third is padding."""
    return base if length <= base else sampler_bucket(length, 2 * base)


def micro_batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Groups of `rows` indices of similar length; the last group may be smaller."""
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def pad_along_completion(values: Sequence[Sequence[float]], rows: int, width: int) -> np.ndarray:
    """Ragged per-token values → float32 [rows, width], zeros after each row's end and in rows beyond the last."""
    out = np.zeros((rows, width), np.float32)
    for at, row in enumerate(values):
        out[at, : len(row)] = row
    return out


def build_sequences(rows: Sequence[Row], batch_rows: int, length_bucket: int) -> Sequences:
    """Right-padded int32 arrays of `batch_rows` ≥ len(rows) rows; the extra rows are all padding."""
    time = bucket(max(row.length for row in rows), length_bucket)
    width = bucket(max(len(row.completion_ids) for row in rows), length_bucket)
    tokens, segments = np.zeros((2, batch_rows, time), np.int32)
    sources, targets = np.zeros((2, batch_rows, width), np.int32)
    mask = np.zeros((batch_rows, width), np.float32)
    for at, row in enumerate(rows):
        start, count = len(row.prompt_ids), len(row.completion_ids)
        tokens[at, : row.length] = row.prompt_ids + row.completion_ids
        segments[at, : row.length] = 1
        sources[at, :count] = np.arange(start - 1, start - 1 + count)
        targets[at, :count] = row.completion_ids
        mask[at, :count] = 1
    positions = np.broadcast_to(np.arange(time, dtype=np.int32), tokens.shape)
    return Sequences(tokens, positions, segments, sources, targets, mask)
