"""What ranking and a judge say to each other: "compare i with j", and what came of it."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Item:
    """A query by its id, and how many candidates it has: 0 … candidates − 1.

    `answers`, one for each candidate (None: not known), marks candidates that say the same: they are never compared.
    """

    id: str
    candidates: int
    answers: tuple[str | None, ...] | None = None

    def same(self, i: int, j: int) -> bool:
        """Whether i and j are known to say the same."""
        return self.answers is not None and self.answers[i] is not None and self.answers[i] == self.answers[j]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidate `i` against candidate `j` of an item, which have met `meeting` times before in this tournament.

    The order of i and j says nothing about how a judge is shown them.
    """

    item_id: str
    i: int
    j: int
    meeting: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`winner` is 1 (candidate i), 2 (candidate j), or None: no valid vote, or as many for one as for the other.

    `votes` are the single votes behind it, in the same coding (None: invalid), and `orders` says of each whether i was
    shown first; `probability` is the judge's own that i is the better one, where it is known. `tokens` is what the
    votes cost. Of them `cut_off` reached the token limit before they ended, `truncated_inputs` saw texts that were cut
    to fit, and `forced` used up their thinking budget.
    """

    winner: Literal[1, 2] | None
    tokens: int = 0
    votes: tuple[Literal[1, 2] | None, ...] = ()
    cut_off: int = 0
    truncated_inputs: int = 0
    forced: int = 0
    orders: tuple[bool, ...] = ()
    probability: float | None = None

    def __post_init__(self):
        if self.winner not in (1, 2, None):
            raise ValueError(f"winner must be 1, 2 or None, not {self.winner!r}")


@dataclasses.dataclass(frozen=True)
class Match:
    """A comparison that has been made. `outcome` is None where both gave the same answer and no judge was asked."""

    i: int
    j: int
    outcome: Outcome | None


@dataclasses.dataclass(frozen=True)
class Result:
    """One item's row. `ranking` lists the candidates from best to worst, `ratings[c]` is candidate c's.

    `strengths` are Bradley–Terry's, on Elo's scale, with 95 % intervals from `low` to `high`, whatever the rating.
    `invalid` counts comparisons without a winner and `spared` those of equal answers, which are not among
    `comparisons`; the votes' counts are sums over comparisons. `stopped` says what ended the tournament early:
    "certain", "probability", "budget", "tokens", or "" if nothing did.
    """

    id: str
    best: int
    ranking: tuple[int, ...]
    ratings: tuple[float, ...]
    strengths: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    comparisons: int
    votes: int
    tokens: int
    invalid: int
    spared: int
    invalid_votes: int
    cut_off: int
    truncated_inputs: int
    forced: int
    stopped: str
