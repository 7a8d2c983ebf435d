"""A cheap, stable name for a set of weights: SHA-256 over some rows of every tensor."""

import hashlib
from collections.abc import Iterable

import numpy as np

Sample = tuple[str, np.dtype, tuple[int, ...], bytes]  # name, dtype, Hugging Face shape, bytes of the sampled rows
_ROWS = 8


def sampled_rows(hf_shape: tuple[int, ...]) -> list[int]:
    """The rows of a matrix that are looked at: 8, evenly spread, the first and the last among them.

    A vector is one row. Every training step moves far more values than escape this sample.
    """
    count = 1 if len(hf_shape) < 2 else hf_shape[0]
    return sorted({at * (count - 1) // (_ROWS - 1) for at in range(_ROWS)})


def rows_of(tensor: np.ndarray, hf_shape: tuple[int, ...]) -> bytes:
    """The bytes of `sampled_rows` of a tensor in any shape that flattens as `hf_shape` does."""
    matrix = tensor.reshape((1, -1) if len(hf_shape) < 2 else (hf_shape[0], -1))
    return matrix[sampled_rows(hf_shape)].tobytes()


def combine(samples: Iterable[Sample]) -> str:
    """The fingerprint of one sample per tensor, in any order: the same in every file layout."""
    lines = sorted(
        f"{name} {dtype.name} {list(shape)} {hashlib.sha256(rows).hexdigest()}" for name, dtype, shape, rows in samples
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
