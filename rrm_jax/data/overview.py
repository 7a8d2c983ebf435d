"""What a file of records holds: counts, labels, lengths and duplicates, in one pass that keeps no text but a sample."""

import collections
import dataclasses
import hashlib
import heapq
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.prepared import Record
from rrm_jax.data.records import Candidates, Pair, parse_candidates, parse_pair, parse_question
from rrm_jax.data.shingles import digest
from rrm_jax.data.stream import PairStream

Kind = Literal["pairs", "candidates", "questions", "judged"]
PARSERS: dict[Kind, Callable[[dict[str, Any]], Record]] = {
    "pairs": parse_pair,
    "candidates": parse_candidates,
    "questions": parse_question,
}


def kind_of(row: dict[str, Any]) -> Kind:
    """What a row is a record of, by its fields. Raises RowError."""
    fields: list[tuple[Kind, tuple[str, ...]]] = [
        ("judged", ("winner", "votes")),
        ("candidates", ("query", "responses")),
        ("pairs", ("query", "response_1", "response_2")),
        ("questions", ("query",)),
    ]
    for kind, needed in fields:
        if all(name in row for name in needed):
            return kind
    known = "; ".join(f"{kind}: {', '.join(needed)}" for kind, needed in fields)
    raise RowError(f"fields {', '.join(map(repr, row)) or '(none)'} are of no known kind of row ({known})")


class Lengths:
    """Lengths of texts, in whatever unit; 4 bytes each."""

    def __init__(self, values: Iterable[int] = ()):
        self._values = array("I", values)

    def add(self, length: int) -> None:
        """Below 2³²."""
        self._values.append(length)

    def __len__(self) -> int:
        return len(self._values)

    def percentiles(self, *percents: float) -> list[int]:
        """The least length that so many percent do not exceed (nearest rank)."""
        values = np.frombuffer(self._values, dtype=np.uint32)
        return [int(value) for value in np.percentile(values, percents, method="inverted_cdf")]

    def bins(self) -> list[tuple[int, int, int]]:
        """(least, most, count) of ranges between powers of two, 0 by itself, without empty ones at both ends."""
        values = np.frombuffer(self._values, dtype=np.uint32)
        counts = np.bincount(np.ceil(np.log2(values.astype(np.float64) + 1)).astype(int)) if len(values) else []
        made = [(2 ** (at - 1) if at else 0, 2**at - 1, int(count)) for at, count in enumerate(counts)]
        while made and not made[0][2]:
            made.pop(0)
        return made


class Sample[T]:
    """The `size` items whose addresses have the smallest hashes: the same ones in whatever order they come."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._heap: list[tuple[int, int, T]] = []

    def add(self, name: str, item: T) -> None:
        """`name` is the item's address, which alone decides whether it is drawn."""
        drawn = hashlib.blake2b(f"sample\x1f{self._seed}\x1f{name}".encode(), digest_size=8).digest()
        # The largest hash is at the top; a number of its own, since items need have no order.
        entry = (-int.from_bytes(drawn), -len(self._heap), item)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, (entry[0], self._heap[0][1], item))

    def items(self) -> list[T]:
        """The smallest hash first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: -entry[0])]


@dataclasses.dataclass
class Overview:
    """Counts over records of one kind. Responses are taken as a judge sees them, without their thinking.

    `duplicates` counts rows whose texts were all there before, in whatever order of the responses; `better` says, of
    labelled pairs, whether the better response has more characters. `correct` and `responses` are of candidates,
    `answers` and `verifiers` of questions. `characters` has the lengths by field.
    """

    kind: Kind
    rows: int = 0
    sources: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    empty: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    identical: int = 0
    duplicates: int = 0
    labels: collections.Counter[int | None] = dataclasses.field(default_factory=collections.Counter)
    better: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    responses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    correct: collections.Counter[bool | None] = dataclasses.field(default_factory=collections.Counter)
    answers: int = 0
    verifiers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    characters: dict[str, Lengths] = dataclasses.field(default_factory=lambda: collections.defaultdict(Lengths))

    def __post_init__(self):
        self._queries: set[bytes] = set()
        self._texts: set[bytes] = set()
        self.labelled: list[Pair] = []  # without their texts

    @property
    def queries(self) -> int:
        """How many different ones there are."""
        return len(self._queries)

    def shared(self, *others: "Overview") -> int:
        """How many different rows, by their texts, are in another one as well."""
        return len(self._texts.intersection(set().union(*(other._texts for other in others))))

    def add(self, record: Record) -> None:
        """Of the overview's kind."""
        self.rows += 1
        responses: list[str] = []
        if isinstance(record, Pair):
            responses = [strip_thinking(record.response_1), strip_thinking(record.response_2)]
            self._add_pair(record, *responses)
        elif isinstance(record, Candidates):
            responses = [strip_thinking(response) for response in record.responses]
            self.responses[len(responses)] += 1
            self.correct.update(record.correct or [None] * len(responses))
            self.identical += len(responses) - len(set(responses))
        else:
            self.answers += record.answer is not None
            self.verifiers[record.verifier] += 1
        self.sources[getattr(record, "source", "")] += 1
        self._add_text("query", record.query)
        for at, response in enumerate(responses, start=1):
            self._add_text(f"response_{at}" if isinstance(record, Pair) else "responses", response)
        self._queries.add(digest([record.query]))
        texts = digest([record.query, *sorted(responses)])
        self.duplicates += texts in self._texts
        self._texts.add(texts)

    def _add_pair(self, pair: Pair, one: str, two: str) -> None:
        self.labels[pair.label] += 1
        self.identical += one == two
        if pair.label is not None:
            self.labelled.append(Pair(pair.id, "", "", "", pair.label))
            longer = len(one) - len(two) if pair.label == 1 else len(two) - len(one)
            self.better["longer" if longer > 0 else "shorter" if longer < 0 else "as long"] += 1

    def _add_text(self, field: str, text: str) -> None:
        self.characters[field].add(len(text))
        self.empty[field] += not text.strip()

    def first_in_stream(self, seed: int) -> int:
        """Of the labelled pairs, how many a trainer shows in its first epoch with the better response first."""
        if not self.labelled:
            return 0
        stream = PairStream(self.labelled, seed)
        return sum(pair.label == 1 for pair in stream.batch(0, len(self.labelled)))
