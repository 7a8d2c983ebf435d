"""What k votes would decide, from the n that were drawn."""

import dataclasses
import functools
import math
from collections.abc import Sequence

from rrm_jax.judging.judge import Judgment


@functools.lru_cache(maxsize=65536)
def majority_credit(right: int, wrong: int, invalid: int, votes: int) -> float:
    """The expected credit of the majority of `votes` votes, drawn without replacement from this many that were right,
    wrong and invalid: 1 if more of the valid ones are right, ½ if as many.

    This is the mean over all choices of `votes` of them, so it is as unbiased as any one choice, with less noise.
    """
    total = 0
    for r in range(min(right, votes) + 1):
        for w in range(min(wrong, votes - r) + 1):
            ways = math.comb(right, r) * math.comb(wrong, w) * math.comb(invalid, votes - r - w)
            total += ways * (2 if r > w else 1 if r == w else 0)
    return total / (2 * math.comb(right + wrong + invalid, votes))


def first(judgment: Judgment, votes: int) -> Judgment:
    """With its first votes only."""
    return dataclasses.replace(judgment, votes=judgment.votes[:votes])


def voting_credits(judgments: Sequence[Judgment], votes: int) -> list[float]:
    """Each labelled pair's credit with voting@`votes`, which must be no more than its votes."""
    credits = []
    for judgment in judgments:
        verdicts = [vote.verdict for vote in judgment.votes]
        right = sum(verdict == judgment.pair.label for verdict in verdicts)
        invalid = verdicts.count(None)
        credits.append(majority_credit(right, len(verdicts) - right - invalid, invalid, votes))
    return credits
