"""Cycles among head-to-head results, the fewest upsets that explain them, and what they cost the ways to pick a winner.

The input is one tournament's matrix of points: `points[i, j]` is what candidate i took from j, where a game gives 1 in
total and a tie ½ to each. i beats j where points[i, j] > points[j, i]; a pair that never met, or is level, is
undecided. Host code on small matrices. Sums over tournaments travel as numerators and denominators.

Axes: C candidates, N states of a bracket, P players left in it, H = P / 2.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rrm_jax.errors import RrmError

EXACT_UPSETS = 16  # the largest strongly connected component whose upsets are found by dynamic programming
EXACT_BRACKETS = 12  # the most candidates whose brackets are all counted
WINDOW = 10  # neighbours whose best order is found at once where a component is too large


def checked_points(points) -> np.ndarray:
    """`points` as float64 [C, C] with a zero diagonal; RrmError where it is no matrix of points."""
    points = np.array(points, np.float64)
    if points.ndim != 2 or points.shape[0] != points.shape[1] or not len(points):
        raise RrmError(f"a matrix of points is square, one row and one column a candidate; this has {points.shape}")
    np.fill_diagonal(points, 0)
    if not np.isfinite(points).all() or (points < 0).any():
        raise RrmError("a matrix of points holds finite numbers that are not negative")
    return points


def majority(points) -> np.ndarray:
    """bool [C, C]: row beats column."""
    points = checked_points(points)
    return points > points.T


def three_cycles(beats: np.ndarray) -> tuple[int, int]:
    """The number of 3-cycles in bool [C, C], and of triples whose three pairs are all decided.

    Where each decided pair is a fair coin a quarter of the triples are cyclic, with variance 3/16 × triples: two
    triples share at most one pair, and given its result either is still cyclic with probability ¼.
    """
    wins = beats.astype(np.float32)  # counts up to C are exact
    decided = wins + wins.T
    return (
        round(float(np.sum((wins @ wins) * wins.T, dtype=np.float64)) / 3),
        round(float(np.sum((decided @ decided) * decided, dtype=np.float64)) / 6),
    )


def most_three_cycles(candidates: int) -> int:
    """The most that a graph without undecided pairs can have (Kendall and Babington Smith 1940)."""
    return candidates * (candidates**2 - (1 if candidates % 2 else 4)) // 24


def condorcet_winner(beats: np.ndarray) -> int | None:
    """The candidate that beats each of the others."""
    winners = np.flatnonzero(beats.sum(1) == len(beats) - 1)
    return int(winners[0]) if len(winners) else None


def top_cycle(beats: np.ndarray) -> np.ndarray:
    """The Smith set, sorted: the smallest set each of whose members beats everyone outside it.

    With few pairs decided it is large: it leaves out only who is known to be beaten by all of it.
    """
    # Everyone in such a set has more wins than anyone outside, so the sets are among the prefixes of this order.
    order = np.argsort(-beats.sum(1), kind="stable")
    sorted_beats = beats[np.ix_(order, order)]
    size = np.arange(1, len(beats) + 1)
    inside = np.cumsum(np.tril(sorted_beats | sorted_beats.T).sum(1))
    outward = np.cumsum(sorted_beats.sum(1)) - inside
    return np.sort(order[: size[outward == size * (len(beats) - size)][0]])


def _components(beats: np.ndarray) -> list[np.ndarray]:
    """The strongly connected components, each before those that it beats."""
    reach = beats | np.eye(len(beats), dtype=bool)
    for via in range(len(beats)):
        reach[reach[:, via]] |= reach[via]
    first_member = (reach & reach.T).argmax(1)
    firsts = np.unique(first_member)
    # Whoever reaches another component also reaches all that it reaches, and itself.
    firsts = firsts[np.argsort(-reach[firsts].sum(1), kind="stable")]
    return [np.flatnonzero(first_member == first) for first in firsts]


@dataclasses.dataclass(frozen=True)
class Upsets:
    """`order` is a ranking, best first, and `pairs` (winner, loser) are the results that contradict it.

    `weight` is what these cost (their number, or the sum of their margins) of `total` for all decided pairs. Where
    `exact`, no order costs less; where not, it is an upper bound on the least.
    """

    weight: float
    total: float
    order: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    exact: bool


def fewest_upsets(points, by: Literal["count", "margin"] = "count", most_exact: int = EXACT_UPSETS) -> Upsets:
    """The smallest set of results whose reversal leaves no cycle (a minimum feedback arc set).

    Cycles live inside strongly connected components, so each is solved for itself: exactly, by dynamic programming
    over subsets, up to `most_exact` candidates, and in a larger one by a local search from the order of wins, which
    may miss the least.
    """
    points = checked_points(points)
    if by not in ("count", "margin"):
        raise RrmError(f"upsets are weighed by count or by margin, not by {by!r}")
    beats = points > points.T
    weight = np.where(beats, points - points.T if by == "margin" else 1.0, 0.0)
    components = _components(beats)
    order: list[int] = []
    for members in components:
        inner = weight[np.ix_(members, members)]
        solve = _exact_order if len(members) <= most_exact else _local_order
        order.extend(int(members[at]) for at in solve(inner))
    ranked = np.array(order)
    later, earlier = np.nonzero(np.tril(beats[np.ix_(ranked, ranked)]))
    pairs = tuple((order[i], order[j]) for i, j in zip(later, earlier, strict=True))
    return Upsets(
        weight=float(sum(weight[pair] for pair in pairs)),
        total=float(weight.sum()),
        order=tuple(order),
        pairs=pairs,
        exact=max(map(len, components)) <= most_exact,
    )


@functools.lru_cache
def _subsets_by_size(n: int) -> list[np.ndarray]:
    masks = np.arange(1 << n)
    size = np.bitwise_count(masks)
    return [masks[size == k] for k in range(1, n + 1)]


def _exact_order(weight: np.ndarray) -> list[int]:
    """The order of least cost, where having j before i costs weight[i, j]: the best last element of each subset."""
    n = len(weight)
    if n == 1:
        return [0]
    after = np.zeros((n, 1 << n))  # what it costs to put v behind all of a subset
    for u in range(n):
        after[:, 1 << u : 2 << u] = after[:, : 1 << u] + weight[:, u, None]
    best = np.zeros(1 << n)
    last = np.zeros(1 << n, np.int8)
    candidate = np.arange(n)[:, None]
    for subsets in _subsets_by_size(n):
        rest = subsets & ~(1 << candidate)
        cost = np.where(rest == subsets, np.inf, best[rest] + np.take_along_axis(after, rest, 1))
        last[subsets] = cost.argmin(0)
        best[subsets] = cost.min(0)
    order, left = [], (1 << n) - 1
    while left:
        order.append(int(last[left]))
        left &= ~(1 << order[-1])
    return order[::-1]


def _local_order(weight: np.ndarray) -> list[int]:
    """An order that neither a move of one candidate nor another order of a few neighbours improves."""
    order = np.argsort(weight.sum(0) - weight.sum(1), kind="stable")
    slack = 1e-9 * weight.max()  # rounding must not look like an improvement
    improved = True
    while improved:
        order, improved = _move_singles(weight, order, slack)
        for start in range(0, len(order) - WINDOW // 2, WINDOW // 2):
            window = order[start : start + WINDOW]
            better = window[_exact_order(weight[np.ix_(window, window)])]
            if _cost(weight, better) < _cost(weight, window) - slack:
                order[start : start + WINDOW], improved = better, True
    return order.tolist()


def _cost(weight: np.ndarray, order: np.ndarray) -> float:
    return float(np.tril(weight[np.ix_(order, order)]).sum())


def _move_singles(weight: np.ndarray, order: np.ndarray, slack: float) -> tuple[np.ndarray, bool]:
    """Each candidate in turn goes where it costs least; and whether any did."""
    improved = False
    for mover in range(len(weight)):
        at = int(np.flatnonzero(order == mover)[0])
        others = np.delete(order, at)
        gain = weight[others, mover] - weight[mover, others]
        cost = np.concatenate([[0.0], np.cumsum(-gain)])  # of standing before others[place], up to a constant
        place = int(cost.argmin())
        if cost[place] < cost[at] - slack:
            order, improved = np.insert(others, place, mover), True
    return order, improved


def champion_chances(points, seed: int = 0, samples: int = 2000) -> tuple[np.ndarray, bool]:
    """float64 [C]: how likely each candidate is to win a single-elimination knockout; and whether that is exact.

    The bracket is uniformly random, and in a round with an odd count one of those that have had no bye, drawn
    uniformly, gets it. A match is one of the pair's recorded games, drawn again: i beats j with probability
    points[i, j] / (points[i, j] + points[j, i]), and with ½ if they never met. Exact up to 12 candidates; above that
    from `samples` brackets, which depend on the seed and on `points` alone (standard error ≤ ½ / √samples).
    """
    points = checked_points(points)
    games = points + points.T
    chance = np.where(games > 0, points / np.where(games > 0, games, 1), 0.5)
    if len(points) <= EXACT_BRACKETS:
        return _count_brackets(chance), True
    key = hashlib.blake2b(points.tobytes(), digest_size=8, key=str(seed).encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    rows = max(1, (1 << 22) // len(points))  # bounds the memory
    won = np.zeros(len(points))
    for start in range(0, samples, rows):
        won += np.bincount(_play_brackets(chance, min(rows, samples - start), rng), minlength=len(points))
    return won / samples, False


def _play_brackets(chance: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """int [samples]: the champions of random brackets."""
    alive = rng.permuted(np.broadcast_to(np.arange(len(chance), dtype=np.int32), (samples, len(chance))), axis=1)
    had_bye = np.zeros(alive.shape, bool)
    while (left := alive.shape[1]) > 1:
        if left % 2:
            # The order of those alive is random still, so the first without a bye is a random one.
            bye = np.where(had_bye.all(1), 0, (~had_bye).argmax(1))[:, None]
            place = np.argsort(np.arange(left) == bye, axis=1, kind="stable")  # it goes to the end
            alive, had_bye = np.take_along_axis(alive, place, 1), np.take_along_axis(had_bye, place, 1)
            had_bye[:, -1] = True
        first, second = alive[:, 0 : left - 1 : 2], alive[:, 1:left:2]
        first_wins = rng.random(first.shape) < chance[first, second]
        through = np.where(first_wins, first, second)
        through_bye = np.where(first_wins, had_bye[:, 0 : left - 1 : 2], had_bye[:, 1:left:2])
        if left % 2:
            through, through_bye = np.c_[alive[:, -1], through], np.c_[had_bye[:, -1], through_bye]
        # Who meets whom next is drawn anew: in a random bracket that makes no difference.
        place = np.argsort(rng.random(through.shape), axis=1)
        alive, had_bye = np.take_along_axis(through, place, 1), np.take_along_axis(through_bye, place, 1)
    return alive[:, 0]


def _count_brackets(chance: np.ndarray) -> np.ndarray:
    """float64 [C]: champions over all brackets, round by round over the sets of those still in (a state)."""
    alive = np.arange(len(chance))[None]  # [N, P], sorted
    had_bye = np.zeros(alive.shape, bool)
    probability = np.ones(1)
    while (left := alive.shape[1]) > 1:
        bye = alive[:, :0]
        if left % 2:
            may = ~had_bye | had_bye.all(1, keepdims=True)
            state, at = np.nonzero(may)
            probability = probability[state] / may.sum(1)[state]
            others = np.array([[p for p in range(left) if p != q] for q in range(left)])[at]
            bye = alive[state, at][:, None]
            alive, had_bye = (np.take_along_axis(a[state], others, 1) for a in (alive, had_bye))
        alive, had_bye, probability = _round(chance, alive, had_bye, probability)
        alive = np.c_[alive, bye[np.repeat(np.arange(len(bye)), len(alive) // len(bye))]]
        had_bye = np.c_[had_bye, np.ones((len(alive), bye.shape[1]), bool)]
        # One state for each set of those alive and of the byes they have had.
        bits = (1 << alive).sum(1) | ((1 << alive) * had_bye).sum(1) << len(chance)
        _, first, same = np.unique(bits, return_index=True, return_inverse=True)
        place = np.argsort(alive[first], axis=1)
        alive, had_bye = (np.take_along_axis(a[first], place, 1) for a in (alive, had_bye))
        probability = np.bincount(same, probability)
    return np.bincount(alive[:, 0], probability, len(chance))


def _round(chance, alive, had_bye, probability):
    """Every half of the P players as winners over the other half: [N, P] becomes [N × (P choose H), H]."""
    left = alive.shape[1]
    winners = np.array(list(itertools.combinations(range(left), left // 2)))
    losers = np.array([[p for p in range(left) if p not in half] for half in winners.tolist()])
    wins = chance[alive[:, winners][..., :, None], alive[:, losers][..., None, :]]
    pairings = math.prod(range(left - 1, 0, -2))  # each is equally likely
    through = probability[:, None] * _permanent(wins) / pairings
    shape = (-1, left // 2)
    return alive[:, winners].reshape(shape), had_bye[:, winners].reshape(shape), through.ravel()


def _permanent(matrix: np.ndarray) -> np.ndarray:
    """[..., H, H] to [...]: the sum over all ways to pair rows with columns of the products."""
    size = matrix.shape[-1]
    sums = {0: np.ones(matrix.shape[:-2])}  # by the set of columns used
    for row in range(size):
        grown: dict[int, np.ndarray] = {}
        for used, value in sums.items():
            for column in range(size):
                if not used >> column & 1:
                    key = used | 1 << column
                    grown[key] = grown.get(key, 0) + value * matrix[..., row, column]
        sums = grown
    return sums[(1 << size) - 1]


class _Sums:
    """Dataclasses of counts, which add field by field."""

    def __add__(self, other):
        values = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))  # type: ignore
        return type(self)(*(a + b for a, b in values))


@dataclasses.dataclass(frozen=True)
class Pick(_Sums):
    """How a way to pick one candidate fares head to head: expectations, summed over tournaments."""

    in_top_cycle: float  # probability that the pick is in the top cycle
    condorcet: float  # probability that it is the Condorcet winner, where there is one
    beaten_by: float  # candidates that beat the pick
    met: float  # candidates with a decided result against the pick
    rank: float  # 1 + the number of candidates with a higher share of their points


@dataclasses.dataclass(frozen=True)
class Intransitivity(_Sums):
    """What of_tournaments found, as sums over tournaments: divide by `tournaments` or by the field named.

    With one game a pair and no ties neither a knockout's champion nor the candidate with most points is ever outside
    the top cycle, and a Condorcet winner always wins both: what a cycle costs then shows in `beaten_by`.
    """

    tournaments: int
    candidates: int
    pairs: int  # decided ones
    cycles: int  # 3-cycles
    triples: int  # with three decided pairs
    complete_cycles: int  # 3-cycles of the tournaments without undecided pairs, of
    complete_most: int  # the most that these could have
    upsets: float  # the fewest results against an order, an upper bound where not exact, of `pairs`
    exact_upsets: int  # tournaments in which that number is exact
    condorcet: int  # tournaments with a Condorcet winner
    top_cycle: int  # candidates in top cycles
    picked: Pick  # the winner given, or the one with the highest share of its points
    knockout: Pick  # the champion of a random bracket (`champion_chances`)
    exact_knockouts: int  # tournaments whose brackets were all counted

    @property
    def chance_cycles(self) -> tuple[float, float]:
        """Mean and standard deviation of `cycles` if every decided pair were a fair coin."""
        return self.triples / 4, math.sqrt(3 * self.triples / 16)

    @property
    def consistence(self) -> float | None:
        """Kendall's coefficient ζ: 1 without cycles, 0 with the most; None if no complete tournament has 3."""
        return 1 - self.complete_cycles / self.complete_most if self.complete_most else None


def of_tournament(points, winner: int | None = None, seed: int = 0) -> Intransitivity:
    """One tournament's measures; `winner` is who was picked (default: the highest share of its points, ties shared)."""
    points = checked_points(points)
    count = len(points)
    beats = points > points.T
    games = (points + points.T).sum(1)
    share = np.where(games > 0, points.sum(1) / np.where(games > 0, games, 1), 0.5)
    picked = share >= share.max() - 1e-12 if winner is None else np.arange(count) == winner
    if not picked.any():
        raise RrmError(f"the winner {winner} is not one of the candidates 0 … {count - 1}")
    cycles, triples = three_cycles(beats)
    pairs = int(beats.sum())
    complete = pairs == count * (count - 1) // 2
    upsets = fewest_upsets(points)
    best, top = condorcet_winner(beats), top_cycle(beats)
    champions, exact = champion_chances(points, seed)

    def fares(chance: np.ndarray) -> Pick:
        rank = 1 + (share[:, None] < share - 1e-12).sum(1)
        met = (beats | beats.T).sum(1)
        expected = (float(chance @ value) for value in (beats.sum(0), met, rank))
        return Pick(float(chance[top].sum()), 0.0 if best is None else float(chance[best]), *expected)

    return Intransitivity(
        tournaments=1,
        candidates=count,
        pairs=pairs,
        cycles=cycles,
        triples=triples,
        complete_cycles=cycles if complete else 0,
        complete_most=most_three_cycles(count) if complete else 0,
        upsets=upsets.weight,
        exact_upsets=int(upsets.exact),
        condorcet=int(best is not None),
        top_cycle=len(top),
        picked=fares(picked / picked.sum()),
        knockout=fares(champions),
        exact_knockouts=int(exact),
    )


def of_tournaments(matrices: Sequence, winners: Sequence[int] | None = None, seed: int = 0) -> Intransitivity | None:
    """The sum over many tournaments' matrices of points; None of none."""
    picks = winners if winners is not None else [None] * len(matrices)
    found = [of_tournament(points, pick, seed) for points, pick in zip(matrices, picks, strict=True)]
    return functools.reduce(lambda a, b: a + b, found) if found else None
