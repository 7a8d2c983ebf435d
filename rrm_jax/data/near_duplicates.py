"""Rows whose texts nearly are those of an earlier row: MinHash signatures, compared where a band of them is the same.

The signatures and the bands' sizes are datasketch's. Its index is not used: that holds about 4 kB a row in Python
objects, where sorted arrays need half a kilobyte.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import datasketch
import numpy as np

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.prepared import Record
from rrm_jax.data.records import Candidates, Pair
from rrm_jax.data.shingles import shingles
from rrm_jax.errors import RrmError

WORDS = 5
PERMUTATIONS = 128
_MARGIN = 0.12  # about three standard deviations of a similarity that 128 permutations estimate
_BLOCK = 4096


class Match(NamedTuple):
    """Which earlier row, by its number among those added, and the Jaccard similarity to it."""

    row: int
    similarity: float


def texts_of(record: Record, by: str = "texts") -> list[str]:
    """What rows are compared by: the query, and without `by` "query" the responses, without thinking, sorted."""
    responses: list[str] = []
    if by != "query" and isinstance(record, Pair):
        responses = [record.response_1, record.response_2]
    elif by != "query" and isinstance(record, Candidates):
        responses = [*record.responses]
    return [record.query, *sorted(map(strip_thinking, responses))]


def row_shingles(texts: Sequence[str]) -> np.ndarray:
    """The set of all the texts' shingles, of five words or marks each."""
    return np.unique(np.concatenate([shingles(text, WORDS, symbols=True) for text in texts]))


class NearDuplicates:
    """Rows are added; `matches` then finds those of which an earlier row has at least `threshold` Jaccard similarity.

    540 bytes a row are held, and no text. The same rows and seed give the same matches. Raises RrmError for a threshold
    that is not within 0.3 … 0.98.
    """

    def __init__(self, threshold: float, seed: int = 0):
        if not 0.3 <= threshold <= 0.98:
            raise RrmError(f"near duplicates can be told at a similarity of 0.3 to 0.98, not {threshold}")
        self.threshold = threshold
        # A pair that shares no band is never found, one that does is still compared: finding counts for far more.
        index = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
        self._bands, self._width = index.b, index.r
        self._minhash = datasketch.MinHash(PERMUTATIONS, seed=seed + 1, hashfunc=int)
        self._full: list[np.ndarray] = []
        self._block = np.zeros((_BLOCK, PERMUTATIONS), np.uint32)
        self._count = 0
        self._empty: list[int] = []

    def __len__(self) -> int:
        return self._count

    def add(self, texts: Sequence[str]) -> None:
        at = self._count % _BLOCK
        if at == 0 and self._count:
            self._full.append(self._block)
            self._block = np.zeros((_BLOCK, PERMUTATIONS), np.uint32)
        made = row_shingles(texts)
        if len(made):
            self._minhash.clear()
            self._minhash.update_batch((made >> np.uint64(32)).tolist())
            self._block[at] = self._minhash.hashvalues
        else:
            self._empty.append(self._count)
        self._count += 1

    def matches(self, exact: Callable[[int, int], float] | None = None) -> dict[int, Match]:
        """For each row that repeats an earlier one, the one it repeats, which itself repeats none.

        The similarity is an estimate (standard deviation 0.035 at 0.8), or what `exact` says of two rows' numbers,
        which is asked of pairs that are likely enough. Of pairs just at the threshold about 1 in 18 is not found.
        """
        signatures = np.concatenate([*self._full, self._block[: self._count - _BLOCK * len(self._full)]])
        buckets = self._buckets(signatures)
        kept: dict[tuple[int, int], list[int]] = {}
        found: dict[int, Match] = {}
        for row in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
            own = [(band, bucket) for band, bucket in enumerate(buckets[row].tolist()) if bucket >= 0]
            earlier = np.array(sorted({other for bucket in own for other in kept.get(bucket, ())}), np.int64)
            match = self._first(signatures, row, earlier, exact)
            if match is not None:
                found[row] = match
                continue
            for bucket in own:
                kept.setdefault(bucket, []).append(row)
        return found

    def _first(
        self, signatures: np.ndarray, row: int, earlier: np.ndarray, exact: Callable[[int, int], float] | None
    ) -> Match | None:
        if not len(earlier):
            return None
        estimates = (signatures[earlier] == signatures[row]).mean(axis=1)
        for at in np.flatnonzero(estimates >= self.threshold - (_MARGIN if exact else 0)).tolist():
            similarity = exact(int(earlier[at]), row) if exact else float(estimates[at])
            if similarity >= self.threshold:
                return Match(int(earlier[at]), similarity)
        return None

    def _buckets(self, signatures: np.ndarray) -> np.ndarray:
        """[rows, bands] int32: rows with the same number in a band have the same values there; -1: no other row has."""
        made = np.full((len(signatures), self._bands), -1, np.int32)
        empty = np.zeros(len(signatures), bool)
        empty[self._empty] = True
        for band in range(self._bands):
            columns = np.ascontiguousarray(signatures[:, band * self._width : (band + 1) * self._width])
            keys = columns.view(np.dtype((np.void, columns.shape[1] * columns.itemsize))).ravel()
            _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
            made[:, band] = np.where((counts[numbers] > 1) & ~empty, numbers, -1)
        return made
