"""How sure a score is: bootstrap intervals over items, and tests of two judges on the same items.

Axes: I items, R resamples. The item is what is drawn again: a pair, or a query with all its candidates.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from rrm_jax.errors import RrmError

RESAMPLES = 2000
_AT_ONCE = 1 << 22  # draws held in memory
_NORMAL = 1.959964  # of a normal distribution 95 % are within so many standard deviations


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate over `n` items, with the ends of its bootstrap interval; all NaN of no items."""

    estimate: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two judges on the same items: the mean of a − b, how often either has the higher credit, and the two-sided `p`
    of that by the exact sign test, which is McNemar's where credits are right and wrong."""

    difference: Interval
    a_better: int
    b_better: int
    p: float


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """The mean of `values` [I] with its percentile interval.

    The items drawn depend on (seed, I) alone: scores of the same items are resampled alike.
    """
    values = _numbers(values)
    return bootstrap_of(lambda draws: values[draws].mean(axis=1), len(values), seed, resamples, level)


def share_interval(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """`bootstrap_interval`, of 95 %, of credits from 0 to 1: where all are 0, or all 1, and every draw says the same,
    Wilson's."""
    values = _numbers(values)
    if len(values) and values[0] in (0, 1) and np.all(values == values[0]):
        return wilson_interval(float(values[0]), len(values))
    return bootstrap_interval(values, seed, resamples)


def bootstrap_of(
    statistic: Callable[[np.ndarray], np.ndarray],
    items: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of any statistic: of positions of items [R, I] it gives [R] values.

    Its estimate is that of every item once. Resamples in which it is not finite (a ratio over nothing) are left out.
    """
    if resamples < 1 or not 0 < level < 1:
        raise RrmError(f"a bootstrap needs 1 resample at least and a level in (0, 1), not {resamples} and {level}")
    if items == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    estimate = float(statistic(np.arange(items)[None])[0])
    rng = _generator(seed, items)
    rows = max(1, _AT_ONCE // items)
    found = [
        statistic(rng.integers(0, items, (min(rows, resamples - start), items))) for start in range(0, resamples, rows)
    ]
    drawn = np.concatenate(found)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(estimate, math.nan, math.nan, items)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), items)


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Paired:
    """Credits `a` and `b` [I] of the same items, in the same order. RrmError where their numbers differ."""
    a, b = _numbers(a), _numbers(b)
    if len(a) != len(b):
        raise RrmError(f"a paired test needs the same items twice, not {len(a)} and {len(b)}")
    better, worse = int(np.sum(a > b)), int(np.sum(a < b))
    return Paired(bootstrap_interval(a - b, seed, resamples, level), better, worse, mcnemar_exact(better, worse))


def wilson_interval(share: float, n: int, z: float = _NORMAL) -> Interval:
    """Wilson's interval of a share of `n`, of 95 % unless `z` says otherwise: for small n, and for shares of 0 or 1, of
    which a bootstrap can draw nothing else."""
    if n < 1:
        return Interval(math.nan, math.nan, math.nan, 0)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Of all or none, one end is the share itself, which rounding would miss.
    return Interval(share, middle - half if share > 0 else 0.0, middle + half if share < 1 else 1.0, n)


def newcombe_interval(a: Interval, b: Interval) -> Interval:
    """The difference a − b of two shares from their Wilson intervals, as if of different items (Newcombe's hybrid
    score interval): too wide where both are of the same."""
    difference = a.estimate - b.estimate
    below = math.hypot(a.estimate - a.low, b.high - b.estimate)
    above = math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(difference, difference - below, difference + above, min(a.n, b.n))


def over_seeds(found: Sequence[Interval], same_items: bool = False) -> Interval:
    """The mean of several seeds' estimates, and the wider one of two 95 % intervals: Student's over the seeds, which
    knows how training and sampling differ, and the normal one of the items, which few seeds that agree by chance
    cannot make too narrow. Seeds without an estimate are left out.

    Items of several seeds are taken together, and `n` is of all; with `same_items` every seed had the same ones, of
    which more seeds say no more: their mean width counts, and one seed's `n`."""
    known = [one for one in found if math.isfinite(one.estimate)]
    if len(known) < 2:
        return known[0] if known else found[0]
    values = np.array([one.estimate for one in known])
    half = max(_student(len(known) - 1) * _standard_error(values), _half_over_items(known, same_items))
    middle, counted = float(values.mean()), [one.n for one in known]
    return Interval(middle, middle - half, middle + half, max(counted) if same_items else sum(counted))


def paired_over_seeds(found: Sequence[Paired], same_items: bool = False) -> Paired:
    """The same for differences. `p` is the larger one of a t-test's over the seeds' differences, and of the sign test's
    over all items (with `same_items`: over as many as are better or worse on average). Where it was not counted who is
    better how often the normal interval of the items stands for the sign test. One seed keeps its own."""
    known = [one for one in found if math.isfinite(one.difference.estimate)]
    if len(known) < 2:
        return known[0] if known else found[0]
    shared = len(known) if same_items else 1
    better, worse = round(sum(x.a_better for x in known) / shared), round(sum(x.b_better for x in known) / shared)
    differences = [one.difference for one in known]
    values = np.array([one.estimate for one in differences])
    if better + worse:
        p = mcnemar_exact(better, worse)
    else:
        p = _normal_test(float(values.mean()), _half_over_items(differences, same_items))
    return Paired(over_seeds(differences, same_items), better, worse, max(p, _t_test(values)))


def _half_over_items(known: Sequence[Interval], same_items: bool) -> float:
    """Half the width of the mean's interval, as far as items are concerned."""
    widths = np.nan_to_num([one.high - one.low for one in known])
    return float(widths.mean() if same_items else np.sqrt(np.sum(widths**2)) / len(known)) / 2


def _normal_test(mean: float, half: float) -> float:
    """Two-sided p of 0 where the 95 % interval is mean ± half."""
    if half == 0:
        return 1.0 if mean == 0 else 0.0
    return math.erfc(abs(mean) * _NORMAL / half / math.sqrt(2))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _t_test(values: np.ndarray) -> float:
    """Two-sided p of the mean being 0."""
    from scipy.special import stdtr

    mean, error = float(values.mean()), _standard_error(values)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(len(values) - 1, -abs(mean) / error))


def mcnemar_exact(b: int, c: int) -> float:
    """McNemar's exact two-sided p: of `b` items that only the one has right and `c` that only the other has right,
    each is a fair coin if both are equally good."""
    if b < 0 or c < 0:
        raise RrmError(f"McNemar's test counts items, not {b} and {c}")
    total, term, tail = b + c, 1, 1
    for k in range(min(b, c)):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)  # whole numbers to the end: exact for any counts


def _numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise RrmError("a bootstrap needs a list of finite numbers, one an item")
    return array


def _generator(seed: int, items: int) -> np.random.Generator:
    key = hashlib.blake2b(f"bootstrap {seed} {items}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
