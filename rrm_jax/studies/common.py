"""What studies share: judging through one store, and reading their data."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import Pair, Unique, parse_labelled_pair
from rrm_jax.judging.judge import Judge, Judgment, OrderPolicy, Vote
from rrm_jax.judging.store import VoteLog
from rrm_jax.studies.config import JudgeConfig
from rrm_jax.studies.pooling import Total


class OpenJudge(Protocol):
    """Opens a judge. The one that was opened before is done with: only one model need be loaded at a time."""

    def __call__(
        self, judge: JudgeConfig, *, seed: int, votes: int, order: OrderPolicy, thinking_budget: int | None
    ) -> Judge:
        """`thinking_budget` None: unbounded. Raises RrmError for a judge that cannot be asked so."""
        ...


@dataclasses.dataclass
class Session:
    """One run of a study: the store of all its votes (None: it only reads), and what happened on the way.

    `skipped` counts rows that are malformed or that a judge could not judge, which `report` is told of; `settings` are
    those of every judge that was asked. `logs` are further files to write, by name: their rows, as JSON lines.
    """

    seed: int
    log: VoteLog | None
    open_judge: OpenJudge
    report: Callable[[str], None] = lambda message: None
    advance: Callable[[], None] = lambda: None
    skipped: int = 0
    settings: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    logs: dict[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)

    def judge(
        self, name: str, judge: JudgeConfig, *, votes: int = 1, order: OrderPolicy = "random", budget: int | None = None
    ) -> Judge:
        """A judge of the configuration, asked in this way."""
        opened = self.open_judge(judge, seed=self.seed, votes=votes, order=order, thinking_budget=budget)
        self.settings.append({"judge": name, "path": judge.model, **opened.settings})
        return opened

    def judged(self, judge: Judge, pairs: Sequence[Pair]) -> list[Judgment]:
        """The judgments of `pairs`, in their order and without the votes' texts, which stay in the store."""
        found: dict[str, Judgment] = {}
        for judgment in judge.judge(pairs, self.log):
            votes = tuple(dataclasses.replace(vote, text="") for vote in judgment.votes)
            found[judgment.pair.id] = dataclasses.replace(judgment, votes=votes)
            self.advance()
        return [found[pair.id] for pair in pairs]

    def read[T](self, path: str, parse: Callable[[dict[str, Any]], T], limit: int | None) -> list[T]:
        """The first `limit` usable rows of a file. Malformed ones are reported, counted and passed over."""
        reader, rows = Reader(Path(path), Unique(parse), report=self.report), []
        for _, row in reader:
            rows.append(row)
            if len(rows) == limit:
                break
        self.skipped += reader.skipped
        return rows

    def pairs(self, path: str, limit: int | None) -> list[Pair]:
        """The first `limit` labelled pairs of a JSONL file (None: all). Malformed rows, unlabelled ones among them, are
        skipped."""
        return self.read(path, parse_labelled_pair, limit)


def credit(vote: Vote, pair: Pair) -> float:
    """1 for a right verdict, 0 for a wrong one, ½ for an invalid one (docs/method.md)."""
    return 0.5 if vote.verdict is None else float(vote.verdict == pair.label)


def mean_credit(judgment: Judgment) -> float:
    """Of a pair's single verdicts."""
    return sum(credit(vote, judgment.pair) for vote in judgment.votes) / len(judgment.votes)


def _each_vote(judgments: Iterable[Judgment]) -> Iterator[tuple[Vote, Pair]]:
    for judgment in judgments:
        for vote in judgment.votes:
            yield vote, judgment.pair


@dataclasses.dataclass(frozen=True)
class Counts:
    """What belongs beside a score: how many votes, how many of them had no verdict or were cut, and what they cost."""

    votes: Total
    invalid: Total
    cut_off: Total
    truncated_inputs: Total
    forced: Total
    tokens: Total

    @property
    def tokens_a_vote(self) -> float:
        """Mean tokens written; 0 without votes."""
        return self.tokens / self.votes if self.votes else 0.0


def counts_of(judgments: Iterable[Judgment]) -> Counts:
    """Sums over all votes of the judgments."""
    votes = [vote for vote, _ in _each_vote(judgments)]
    return Counts(
        votes=len(votes),
        invalid=sum(vote.verdict is None for vote in votes),
        cut_off=sum(vote.finish_reason == "length" for vote in votes),
        truncated_inputs=sum(vote.truncated_input for vote in votes),
        forced=sum(vote.forced for vote in votes),
        tokens=sum(vote.tokens for vote in votes),
    )
