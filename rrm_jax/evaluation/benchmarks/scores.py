"""From counts of items to scores with intervals, and the comparison of two runs.

An item is a row of numbers, and a score a function of their sums over the items of some groups. So a bootstrap draws
items of each group with replacement, and sums again: intervals are right for means, ratios, F1 and weighted means of
groups alike. Draws belong to (seed, group, number of items): two runs over the same items are drawn alike.

Axes: B bootstrap samples, n items, d numbers an item.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rrm_jax.evaluation.statistics import mcnemar_exact, wilson_interval
from rrm_jax.judging.store import digest

COUNTS = (
    "votes", "invalid", "no_winner", "cut_off", "truncated_inputs", "tokens", "comparisons", "both_orders",
    "consistent",
)  # fmt: skip
"""Beside every score: votes, of them invalid, cut off at the token limit, and shown cut inputs; tokens; comparisons,
and those without a winner; votes asked in both orders, and those that name the same response in both. Of questions
that a model answers, votes are its responses, and those without an answer invalid."""

Sums = Mapping[str, np.ndarray]
_CHUNK = 2_000_000  # cells of draws held at once


@dataclasses.dataclass(frozen=True)
class Table:
    """By group: the items' ids, sorted, what is counted of each [n, d], and the COUNTS of each [n, COUNTS]."""

    ids: Mapping[str, tuple[str, ...]]
    values: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]

    def only(self, ids: frozenset[str]) -> "Table":
        """Without the items of other ids, and without groups that have none left."""
        keep = {group: [at for at, id in enumerate(names) if id in ids] for group, names in self.ids.items()}
        keep = {group: places for group, places in keep.items() if places}
        return Table(
            {group: tuple(self.ids[group][at] for at in places) for group, places in keep.items()},
            {group: self.values[group][places] for group, places in keep.items()},
            {group: self.counts[group][places] for group, places in keep.items()},
        )


@dataclasses.dataclass(frozen=True)
class Node:
    """A score to be made: `of` takes the sums of each group, [..., d], to the value, [...]. `parts` are shown below."""

    name: str
    groups: tuple[str, ...]
    of: Callable[[Sums], np.ndarray]
    parts: tuple["Node", ...] = ()
    by_item: bool = False
    """It is the mean of what the first two numbers of a row say: an item's credit, and 1 where it counts."""
    share: bool = False
    """It is a share of items, or of what is counted of them."""
    where: int | None = None
    """Which number of a row is above 0 where the item belongs to it; None: all of the groups' items do."""
    below: int | None = None
    """Which number of a row is above 0 where the item is counted; None: all that belong to it are."""
    mean_of: tuple[tuple["Node", float], ...] = ()
    """It is the weighted mean of these, shown or not, and counts what they count."""

    def members(self, table: "Table") -> dict[str, np.ndarray]:
        """By group: whether each item belongs to it, [n]."""
        values = {group: table.values[group] for group in self.groups}
        if self.where is None:
            return {group: np.ones(len(rows), bool) for group, rows in values.items()}
        return {group: rows[:, self.where] > 0 for group, rows in values.items()}

    def counted(self, table: "Table") -> dict[str, np.ndarray]:
        """By group: whether each item counts, [n]: those do of which the policy has made something."""
        if self.mean_of:
            found = {group: np.zeros(len(table.values[group]), bool) for group in self.groups}
            for part, _ in self.mean_of:
                for group, counts in part.counted(table).items():
                    found[group] |= counts
            return found
        if self.below is None:
            return self.members(table)
        return {group: table.values[group][:, self.below] > 0 for group in self.groups}


@dataclasses.dataclass(frozen=True)
class Score:
    """A value from 0 to 1 (nan: no item counts), its 95 % interval (None: of one published number), `items` that count,
    and the sums of the COUNTS of all, those among them that the policy leaves out."""

    name: str
    value: float
    low: float | None
    high: float | None
    items: int
    counts: Mapping[str, float]
    parts: tuple["Score", ...] = ()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "Score"]]:
        """This score and all that it is made of, each with its depth, in the order of reading."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)

    def to_row(self) -> dict[str, Any]:
        """For JSON, in which there is no nan."""
        row = dataclasses.asdict(self) | {"value": None if math.isnan(self.value) else self.value}
        return row | {"parts": [part.to_row() for part in self.parts]}


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """nan where `below` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def ratio(
    name: str, groups: Sequence[str], above: int = 0, below: int = 1, parts: tuple[Node, ...] = (), marked: bool = False
) -> Node:
    """The quotient of two sums over all items of the groups together; `marked`: of those alone of which the second of
    the two numbers is above 0."""

    def of(sums: Sums) -> np.ndarray:
        total = sum((sums[group] for group in groups), np.zeros(()))
        return divide(total[..., above], total[..., below])

    by_item, where = (above, below) == (0, 1), below if marked else None
    return Node(name, tuple(groups), of, parts, by_item, share=True, where=where, below=below)


def mean(name: str, parts: Sequence[Node], weights: Sequence[float] | None = None, show: bool = True) -> Node:
    """The parts' weighted mean; those without a counted item are left out."""
    given = np.array([1.0] * len(parts) if weights is None else weights)
    groups = tuple(dict.fromkeys(group for part in parts for group in part.groups))

    def of(sums: Sums) -> np.ndarray:
        values = np.stack([part.of(sums) for part in parts], axis=-1)
        there = ~np.isnan(values)
        return divide(np.sum(np.where(there, values, 0) * given, axis=-1), np.sum(there * given, axis=-1))

    weighed = tuple(zip(parts, given.tolist(), strict=True))
    return Node(name, groups, of, tuple(parts) if show else (), mean_of=weighed)


def evaluate(table: Table, nodes: Sequence[Node], samples: int = 2000, seed: int = 0) -> tuple[Score, ...]:
    """Scores with percentile intervals from `samples` bootstrap samples (0: none); where all items, or none, are right,
    so that every sample says the same, the interval of a share, and of a mean of shares, is made of Wilson's."""
    drawn = (
        {group: resampled(group, values, samples, seed) for group, values in table.values.items()} if samples else {}
    )
    sums = {group: values.sum(axis=0) for group, values in table.values.items()}

    def score(node: Node) -> Score:
        members = node.members(table)
        counted = (table.counts[group][there].sum(axis=0) for group, there in members.items())
        named = dict(zip(COUNTS, sum(counted, np.zeros(len(COUNTS))).tolist(), strict=True))
        items = sum(int(counts.sum()) for counts in node.counted(table).values())
        value, low, high = float(node.of(sums)), None, None
        if samples:
            low, high = interval(node.of(drawn))
            if value in (0, 1) and low == high and (width := _width(node, table, value)) is not None:
                low, high = (value, width) if value == 0 else (1 - width, value)
        return Score(node.name, value, low, high, items, named, tuple(map(score, node.parts)))

    return tuple(map(score, nodes))


def _width(node: Node, table: Table, value: float) -> float | None:
    """Of the interval of a share whose items are all right or all wrong: Wilson's. A mean's is put together from its
    parts' as their variances would be (MOVER, Zou and Donner 2008) where these are of different items, and added up
    where they are of the same ones. None: it is neither."""
    if node.share:
        counted = sum(int(counts.sum()) for counts in node.counted(table).values())
        wilson = wilson_interval(value, counted)
        return wilson.high - wilson.low if counted else None
    found = [(width, weight) for part, weight in node.mean_of if (width := _width(part, table, value)) is not None]
    total = sum(weight for _, weight in found)
    if not total:
        return None
    widths = [width * weight / total for width, weight in found]
    apart = len({group for part, _ in node.mean_of for group in part.groups}) == sum(
        len(part.groups) for part, _ in node.mean_of
    )
    return math.hypot(*widths) if apart else sum(widths)


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """The middle 95 % of [B]."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def resampled(group: str, values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums [B, d] over items of `values` [n, d] drawn with replacement."""
    return np.concatenate([times @ values for times in _times(group, len(values), samples, seed)])


def resamplings(group: str, count: int, samples: int, seed: int) -> np.ndarray:
    """How often each of `count` items is in each of the same samples, [B, n]."""
    return np.concatenate(list(_times(group, count, samples, seed)))


def _times(group: str, count: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """`resamplings`, some samples at a time."""
    drawing = np.random.default_rng(int(digest([seed, "bootstrap", group, count])[:16], 16))
    step = max(_CHUNK // count, 1)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        places = drawing.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(places.ravel(), minlength=size * count).reshape(size, count)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A score of one run minus that of another over the same items: its interval, and the two-sided p-value of the
    paired bootstrap that there is none. `mcnemar`: the exact test's p-value where every item is right or wrong, after
    `only_first` and `only_second`, how many items are right in one run alone."""

    name: str
    first: float
    second: float
    low: float | None
    high: float | None
    p_value: float | None
    items: int
    only_first: int | None = None
    only_second: int | None = None
    mcnemar: float | None = None

    def to_row(self) -> dict[str, Any]:
        """For JSON, in which there is no nan."""
        row = dataclasses.asdict(self)
        return row | {name: None for name in ("first", "second") if math.isnan(row[name])}


def differences(
    first: Table, second: Table, tree: Callable[[Table], tuple[Node, ...]], samples: int = 2000, seed: int = 0
) -> list[Difference]:
    """Every score's difference, over the items that both runs have. ValueError where they have none together."""
    ids = [frozenset(id for names in table.ids.values() for id in names) for table in (first, second)]
    pair = [table.only(ids[0] & ids[1]) for table in (first, second)]
    if not pair[0].ids:
        raise ValueError("the two runs have no item in common")
    if pair[0].ids != pair[1].ids:
        raise ValueError("the two runs have the same items in different groups")
    drawn = [{group: resampled(group, table.values[group], samples, seed) for group in table.ids} for table in pair]
    sums = [{group: table.values[group].sum(axis=0) for group in table.ids} for table in pair]
    found = []

    def add(node: Node, path: str) -> None:
        name = f"{path}{node.name}"
        gap = node.of(drawn[0]) - node.of(drawn[1])
        low, high = interval(gap)
        known = gap[~np.isnan(gap)]
        tail = min(np.sum(known <= 0), np.sum(known >= 0))
        p_value = float(min(2 * (tail + 1) / (len(known) + 1), 1)) if len(known) else None
        one, other = (float(node.of(sum_)) for sum_ in sums)
        counts = [node.counted(table) for table in pair]
        items = sum(int(np.sum(there & counts[1][group])) for group, there in counts[0].items())
        found.append(Difference(name, one, other, low, high, p_value, items, *_mcnemar(pair, node)))
        for part in node.parts:
            add(part, f"{name} / ")

    for node in tree(pair[0]):
        add(node, "")
    return found


def _mcnemar(pair: Sequence[Table], node: Node) -> tuple[int | None, int | None, float | None]:
    """Only where every item's credit is 0 or 1."""
    rows = [np.concatenate([table.values[group][:, :2] for group in node.groups]) for table in pair]
    if not node.by_item or any(not np.isin(row[:, 0], (0, 1)).all() for row in rows):
        return None, None, None
    counted = (rows[0][:, 1] == 1) & (rows[1][:, 1] == 1)
    right = [row[counted, 0] == 1 for row in rows]
    only = [int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))]
    return only[0], only[1], mcnemar_exact(*only)
