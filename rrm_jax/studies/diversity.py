"""How different traces are: vectors of n-gram counts, their mean pairwise cosine distance, and clusters.

Axes: I traces, D hashed n-grams.
"""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rrm_jax.studies.pooling import Total

Unit = Literal["word", "character"]
WIDTH = 8192  # D; two n-grams rarely share a place
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Diversity:
    """`distance` is the mean cosine distance over all pairs of traces, `within` over pairs about the same question
    (of `questions` with two traces at least); NaN where there is no pair. `clusters` are by the rule of `cluster`, and
    `largest` is the size of the largest."""

    traces: Total
    distance: float
    within: float
    questions: Total
    clusters: float
    largest: float


def words(text: str) -> list[str]:
    """Words and single marks, in lower case."""
    return _WORD.findall(text.lower())


def vectors(texts: Sequence[str], ngram: int, unit: Unit = "word") -> np.ndarray:
    """float32 [I, D]: counts of every `ngram` words or characters in a row, as unit vectors; zero for no text.

    A shorter text is one n-gram. n-grams are hashed by CRC-32, so that vectors are the same on every machine.
    """
    counts = np.zeros((len(texts), WIDTH), np.float32)
    for at, text in enumerate(texts):
        found = words(text) if unit == "word" else list(text.lower())
        grams = [found[start : start + ngram] for start in range(max(len(found) - ngram + 1, 1))] if found else []
        places = [zlib.crc32("\x1f".join(gram).encode("utf-8", "surrogatepass")) % WIDTH for gram in grams]
        np.add.at(counts[at], places, 1.0)
    lengths = np.linalg.norm(counts, axis=1, keepdims=True)
    return counts / np.where(lengths > 0, lengths, 1)


def mean_distance(units: np.ndarray) -> float:
    """The mean of 1 − cosine over all pairs of unit vectors [I, D]: from the sum of them, in O(I D). NaN of fewer
    than two. A zero vector is at distance 1 from everything."""
    count = len(units)
    if count < 2:
        return float("nan")
    together = units.astype(np.float64)
    total = together.sum(axis=0)
    cosines = float(total @ total) - float(np.sum(together * together))
    return 1 - cosines / (count * (count - 1))


def cluster(units: np.ndarray, distance: float) -> list[int]:
    """The cluster of each unit vector [I, D]: in their order, each joins the first cluster whose first member is
    within `distance`, or begins a new one (leader clustering)."""
    leaders = np.zeros_like(units)
    of: list[int] = []
    count = 0
    for unit in units:
        near = np.flatnonzero(1 - leaders[:count] @ unit <= distance + 1e-6)
        if len(near):
            of.append(int(near[0]))
            continue
        leaders[count] = unit
        of.append(count)
        count += 1
    return of


def diversity(
    texts: Sequence[str], questions: Sequence[str], ngram: int, distance: float, unit: Unit = "word"
) -> Diversity:
    """Of `texts` in n-grams of `ngram` words or characters; `questions[i]` says what text i is about. Clusters are
    within the cosine distance `distance`."""
    units = vectors(texts, ngram, unit)
    members: dict[str, list[int]] = {}
    for at, question in enumerate(questions):
        members.setdefault(question, []).append(at)
    within = [mean_distance(units[same]) for same in members.values() if len(same) > 1]
    clusters = np.bincount(np.array(cluster(units, distance), np.int64))
    return Diversity(
        len(texts),
        mean_distance(units),
        float(np.mean(within)) if within else float("nan"),
        len(within),
        float(len(clusters)),
        float(clusters.max(initial=0)),
    )
