"""What labelling comes to: how many pairs got which label, what was left out why, what the orders say of the judge."""

import collections
import dataclasses
import math
from typing import Any

from rrm_jax.evaluation.labelling import REASONS, Rule, Task
from rrm_jax.evaluation.ranking_report import as_code, table
from rrm_jax.judging.judge import Judgment, Vote
from rrm_jax.judging.verdict import Verdict

_SOURCES_SHOWN = 20


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    label: Verdict | None
    reason: str
    votes: tuple[int, int, int] | None = None  # for response_1, for response_2, invalid; None: not judged
    probability: float | None = None


class Labels:
    """What became of each task, and the report of all of them."""

    def __init__(self, rule: Rule):
        self._rule = rule
        self._of: dict[str, _Outcome] = {}
        self._sources: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._chosen: collections.Counter[int] = collections.Counter()
        self._agreeing: dict[str, collections.Counter[bool]] = collections.defaultdict(collections.Counter)
        self._position = Position()

    def add(self, judgment: Judgment) -> None:
        """Of a task that was judged, in both orders."""
        pair, votes = judgment.pair, judgment.votes
        label, reason = self._rule.decide(judgment)
        ones, twos = (sum(vote.verdict == response for vote in votes) for response in (1, 2))
        counts = (ones, twos, len(votes) - ones - twos)
        self._put(pair.id, pair.source, _Outcome(label, reason, counts, judgment.soft_vote))
        self._position.add(votes)
        if label is not None:
            self._chosen[label] += 1
            if pair.label is not None:
                self._agreeing[pair.source][label == pair.label] += 1

    def leave_out(self, task: Task) -> None:
        """A task that has a reason not to be judged."""
        source = task.pair.source if task.pair else str(task.row.get("source", ""))
        self._put(task.id, source, _Outcome(None, task.reason))

    def _put(self, name: str, source: str, outcome: _Outcome) -> None:
        self._of[name] = outcome
        self._sources[source][outcome.reason or "labelled"] += 1

    def row(self, task: Task) -> tuple[dict[str, Any], bool]:
        """The task's row as it is written, and whether it has a label.

        `labelling` says how it came to be: `votes_1`, `votes_2` and `invalid` count votes, `probability` is the judge's
        mean one that response_1 is the better where it is known, `given` the label that the row had, `reason` why it
        has none now. A dropped row keeps the label that it had.
        """
        outcome = self._of[task.id]
        about: dict[str, Any] = {"reason": outcome.reason} if outcome.reason else {}
        if outcome.votes is not None:
            about |= dict(zip(("votes_1", "votes_2", "invalid"), outcome.votes, strict=True))
        if outcome.probability is not None:
            about["probability"] = outcome.probability
        given = task.pair.label if task.pair else None
        if given is not None:
            about["given"] = given
        label = given if outcome.label is None else outcome.label
        labelled = {} if label is None else {"label": label}
        return task.row | labelled | {"labelling": about}, outcome.label is not None

    def lines(self, malformed: int = 0) -> list[str]:
        """The report, one fact a line."""
        counts = sum(self._sources.values(), collections.Counter({"malformed": malformed}))
        counts += collections.Counter()  # without zeros
        rows, labelled = counts.total(), counts["labelled"]
        lines = [
            f"labelled: {share(labelled, rows)} of {rows} rows, response_1 the better in {self._chosen[1]}, "
            f"response_2 in {self._chosen[2]}"
        ]
        lines += [f"dropped, {reason}: {counts[reason]} ({why})" for reason, why in REASONS.items() if counts[reason]]
        lines += self._position.lines()
        if self._agreeing:
            lines += self._agreement_lines()
        if any(self._sources):
            lines += self._source_table([reason for reason in REASONS if counts[reason] and reason != "malformed"])
        return lines

    def _agreement_lines(self) -> list[str]:
        total = sum(self._agreeing.values(), collections.Counter())
        low, high = wilson(total[True], total.total())
        lines = [
            f"agreement with the labels given: {share(total[True], total.total())} of {total.total()} pairs that got "
            f"one (95 % interval {100 * low:.1f} … {100 * high:.1f} %)"
        ]
        if any(self._agreeing):
            by_size = sorted(self._agreeing.items(), key=lambda item: (-item[1].total(), item[0]))[:_SOURCES_SHOWN]
            lines += [
                f"agreement in {as_code(name or '(no source)', 40)}: {share(of[True], of.total())} of {of.total()}"
                for name, of in by_size
            ]
        return lines

    def _source_table(self, reasons: list[str]) -> list[str]:
        by_size = sorted(self._sources.items(), key=lambda item: (-item[1].total(), item[0]))
        rows = [("source", "rows", "labelled", "share", *reasons)]
        shown = [(as_code(name or "(no source)", 40), of) for name, of in by_size[:_SOURCES_SHOWN]]
        if more := by_size[_SOURCES_SHOWN:]:
            shown.append((f"{len(more)} smaller sources", sum((of for _, of in more), collections.Counter())))
        for name, of in shown:
            total, kept = of.total(), of["labelled"]
            cells = (str(of[reason]) for reason in reasons)
            rows.append((name, str(total), str(kept), f"{100 * kept / total:.1f} %", *cells))
        return table(rows)


class Position:
    """The position bias, from pairs judged in both orders.

    A vote in each order, both valid: the judge named one response twice, or what was shown first twice (a), or what was
    shown second twice (b). Half of (a − b) / n is how far the share won by the one shown first is from ½; its interval
    is that of a difference of matched proportions with ½ added to each cell (Agresti and Min, Statistics in Medicine
    24, 2005). With several votes an order, a pair counts as the mean of its own.
    """

    def __init__(self):
        self.pairs, self._sum, self._squares = 0, 0.0, 0.0
        self.first = self.second = 0  # pairs of votes

    def add(self, votes: tuple[Vote, ...]) -> None:
        """Votes in turn in the order given and in the other."""
        leaning = [
            int(given.verdict == 1) - int(turned.verdict == 1)
            for given, turned in zip(votes[::2], votes[1::2], strict=True)
            if given.verdict is not None and turned.verdict is not None
        ]
        self.first += leaning.count(1)
        self.second += leaning.count(-1)
        if leaning:
            mean = sum(leaning) / len(leaning)
            self.pairs, self._sum, self._squares = self.pairs + 1, self._sum + mean, self._squares + mean * mean

    def share(self) -> tuple[float, float, float]:
        """The share of valid votes that name the response shown first, and its 95 % interval's ends."""
        wide, squares = self.pairs + 2, self._squares + 1
        middle = self._sum / wide
        error = 1.96 * math.sqrt(max(0.0, squares - self._sum**2 / wide)) / wide
        low, high = (0.5 + (middle + sign * error) / 2 for sign in (-1, 1))
        return 0.5 + self._sum / self.pairs / 2, max(0.0, low), min(1.0, high)

    def lines(self) -> list[str]:
        """The share won by the one shown first, with its interval; or that no pair tells."""
        if not self.pairs:
            return ["position bias: no pair has a valid vote in both orders"]
        won, low, high = self.share()
        return [
            f"position bias: the one shown first won {100 * won:.1f} % in {self.pairs} pairs with valid votes in both "
            f"orders (95 % interval {100 * low:.1f} … {100 * high:.1f} %); where the orders disagree, the first won in "
            f"both {self.first} times, the second {self.second} times"
        ]


def share(part: int, whole: int) -> str:
    """A count, and of how much it is which part."""
    return f"{part} ({100 * part / whole:.1f} %)" if whole else f"{part}"


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    z, p = 1.96, right / of
    middle, error = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return (middle - error) / (1 + z * z / of), (middle + error) / (1 + z * z / of)
