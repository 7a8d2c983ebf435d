"""Rows whose texts nearly are those of an earlier row: MinHash signatures, compared where a band of them is the same.

The signatures and the bands' sizes are datasketch's. Its index is not used: that holds about 4 kB a row in Python
objects, where sorted arrays need 0.7 kB.
"""

import collections
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
_MOST_COMPARED = 4  # earlier rows, exactly
_MOST_IN_A_BUCKET = 256


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

    About 0.7 kB a row are held, and no text. The same rows and seed give the same matches. Raises RrmError for a
    threshold that is not within 0.3 … 0.98.
    """

    def __init__(self, threshold: float, seed: int = 0):
        if not 0.3 <= threshold <= 0.98:
            raise RrmError(f"near duplicates can be told at a similarity of 0.3 to 0.98, not {threshold}")
        self.threshold = threshold
        # A pair that shares no band is never found, one that does is still compared: finding counts for far more.
        index = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
        self._bands, self._width = index.b, index.r
        self._minhash = datasketch.MinHash(PERMUTATIONS, seed=seed + 1, hashfunc=int)
        self._signatures = np.zeros((1024, PERMUTATIONS), np.uint32)
        self._count = 0
        self._empty: list[int] = []

    def __len__(self) -> int:
        return self._count

    def add(self, texts: Sequence[str]) -> None:
        """The texts of the next row, which are taken together; rows are numbered from 0."""
        if self._count == len(self._signatures):  # in place where the system can, and never twice as much as is needed
            self._signatures.resize((self._count + self._count // 8, PERMUTATIONS), refcheck=False)
        made = row_shingles(texts)
        if len(made):
            self._minhash.clear()
            self._minhash.update_batch((made >> np.uint64(32)).tolist())
            self._signatures[self._count] = self._minhash.hashvalues
        else:
            self._empty.append(self._count)
        self._count += 1

    def matches(self, exact: Callable[[int, int], float] | None = None) -> dict[int, Match]:
        """For each row that repeats an earlier one, the most similar of those, which itself repeats none.

        The similarity is an estimate (standard deviation 0.035 at 0.8), or what `exact` says of two rows' numbers,
        which is asked of the likeliest pairs. Of pairs just at the threshold about 1 in 18 is not found; nor are all,
        where hundreds of rows that repeat none of each other are all alike.
        """
        buckets = self._buckets()
        kept: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        found: dict[int, Match] = {}
        for row in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
            own = [(band, bucket) for band, bucket in enumerate(buckets[row].tolist()) if bucket >= 0]
            match = self._best(row, sorted({other for bucket in own for other in kept[bucket]}), exact)
            if match is not None:
                found[row] = match
                continue
            for bucket in own:
                if len(kept[bucket]) < _MOST_IN_A_BUCKET:
                    kept[bucket].append(row)
        return found

    def _best(self, row: int, earlier: list[int], exact: Callable[[int, int], float] | None) -> Match | None:
        if not earlier:
            return None
        estimates = (self._signatures[earlier] == self._signatures[row]).mean(axis=1)
        likeliest = np.argsort(-estimates, kind="stable")[: _MOST_COMPARED if exact else 1].tolist()
        likely = [at for at in likeliest if estimates[at] >= self.threshold - (_MARGIN if exact else 0)]
        made = [Match(earlier[at], exact(earlier[at], row) if exact else float(estimates[at])) for at in likely]
        best = max(made, key=lambda match: match.similarity, default=None)
        return best if best is not None and best.similarity >= self.threshold else None

    def _buckets(self) -> np.ndarray:
        """[rows, bands] int32: rows with the same number in a band have the same values there; -1: no other row has."""
        made = np.full((self._count, self._bands), -1, np.int32)
        for band in range(self._bands):
            keys = _folded(self._signatures[: self._count, band * self._width : (band + 1) * self._width])
            _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
            made[:, band] = np.where(counts[numbers] > 1, numbers, -1)
        made[self._empty] = -1
        return made


def _folded(columns: np.ndarray) -> np.ndarray:
    """Each row's values as one number, uint64."""
    made = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        made = (made ^ column) * np.uint64(0x9E3779B97F4A7C15)
        made ^= made >> np.uint64(31)
    return made
