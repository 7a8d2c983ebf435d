"""How hard labelled pairs are for a judge: how many of its votes on each are right."""

import collections

from rrm_jax.errors import RrmError
from rrm_jax.judging.judge import Judgment

_SOURCES_SHOWN = 20


class Difficulty:
    """Counts the right votes on each pair of `votes` votes; pairs with `at_least` … `at_most` of them are kept.

    An invalid vote is not right. Raises RrmError for limits that no pair, or every pair, could be within.
    """

    def __init__(self, votes: int, at_least: int, at_most: int):
        if not 0 <= at_least <= at_most <= votes:
            raise RrmError(
                f"pairs with {at_least} to {at_most} right votes of {votes} cannot be kept: the limits must be "
                f"between 0 and {votes}, and the least not above the most"
            )
        if (at_least, at_most) == (0, votes):
            raise RrmError(f"every pair has 0 to {votes} right votes of {votes}: nothing would be dropped")
        self.votes, self.at_least, self.at_most = votes, at_least, at_most
        self._right: dict[str, int] = {}
        self._sources: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)

    def add(self, judgment: Judgment) -> None:
        """Of a labelled pair."""
        pair = judgment.pair
        right = sum(vote.verdict == pair.label for vote in judgment.votes)
        self._right[pair.id] = right
        self._sources[pair.source][right] += 1

    def keeps(self, pair_id: str) -> bool:
        """Whether enough, and not too many, of the votes counted for this pair are right."""
        return self._kept(self._right[pair_id])

    def lines(self) -> list[str]:
        """The report: a histogram, what is kept, and what of each source where pairs have one; one fact a line."""
        counts = sum(self._sources.values(), collections.Counter())
        total = counts.total()
        lines = ["right votes     pairs     share"]
        for right in range(self.votes + 1):
            share = f"{100 * counts[right] / total:.1f} %"
            lines.append(f"{right:11d}{counts[right]:10d}{share:>10}  {'kept' if self._kept(right) else 'dropped'}")
        above = sum(count for right, count in counts.items() if right > self.at_most)
        below = sum(count for right, count in counts.items() if right < self.at_least)
        lines.append(
            f"kept: {self._share(counts)}; dropped for more than {self.at_most} right votes: {above}, "
            f"for fewer than {self.at_least}: {below}"
        )
        if any(self._sources):
            by_size = sorted(self._sources.items(), key=lambda item: (-item[1].total(), item[0]))
            lines += [f"kept of {name or '(no source)'}: {self._share(of)}" for name, of in by_size[:_SOURCES_SHOWN]]
            if more := by_size[_SOURCES_SHOWN:]:
                rest = sum((of for _, of in more), collections.Counter())
                lines.append(f"kept of {len(more)} smaller sources: {self._share(rest)}")
        return lines

    def _kept(self, right: int) -> bool:
        return self.at_least <= right <= self.at_most

    def _share(self, counts: collections.Counter[int]) -> str:
        kept, total = sum(count for right, count in counts.items() if self._kept(right)), counts.total()
        return f"{kept} of {total} pairs ({100 * kept / total:.1f} %)"
