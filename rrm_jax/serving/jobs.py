"""What takes a judge: verdicts, rankings and rewards. Blocking functions, each run in a thread of its own.

A job asks the engine that all share, tells how it goes where somebody listens, and ends with Withdrawn when it is
cancelled.
"""

import collections
import dataclasses
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rrm_jax.data.records import Candidates, Pair
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.tournament import comparer, outcome_of
from rrm_jax.evaluation.tournament_rewards import GroupReward, tournament_rewards
from rrm_jax.judging.judge import Judge, Judgment, content_digest
from rrm_jax.judging.store import Asked, StoredVote, VoteLog, VoteRecord, digest
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.ranking.protocol import Item, Match, Outcome
from rrm_jax.ranking.tournament import Ranked, check_items, run_tournaments
from rrm_jax.sampling.protocol import Generator, Request
from rrm_jax.serving.engine import Engine, EngineGenerator, OnTokens, Withdrawn
from rrm_jax.serving.metrics import Metrics
from rrm_jax.serving.schemas import Group, JudgeRequest, Judging, RankRequest

Tell = Callable[[str, dict[str, Any]], None]
Hear = Callable[[dict[str, Any]], OnTokens]
"""From what a vote is of to who hears its tokens."""


class SharedLog(VoteLog):
    """A verdict store for the threads of one process."""

    def __init__(self, path, **how):
        self._threads = threading.RLock()
        super().__init__(path, **how)

    def get(self, key: str) -> VoteRecord | None:
        """As `VoteLog` has it."""
        with self._threads:
            return super().get(key)

    def put(self, asked: Asked, record: VoteRecord) -> VoteRecord:
        """As `VoteLog` has it."""
        with self._threads:
            return super().put(asked, record)

    def add(self, vote: StoredVote) -> tuple[StoredVote, bool]:
        """As `VoteLog` has it."""
        with self._threads:
            return super().add(vote)

    def declare(self, settings) -> str:
        """As `VoteLog` has it."""
        with self._threads:
            return super().declare(settings)


class _Watched(Judge):
    """A judge whose pairs and judgments a job sees go by."""

    def __init__(self, job: "Job", generator: Generator, **arguments: Any):
        super().__init__(generator, **arguments)
        self._job = job

    def judge(
        self, pairs: Iterable[Pair], log: VoteLog | None = None, *, meeting: Callable[[Pair], int] = lambda pair: 0
    ) -> Iterator[Judgment]:
        for judgment in super().judge(self._job.noting(pairs), log, meeting=meeting):
            self._job.judged(judgment)
            yield judgment


class Job:
    """One request's work with the judge. `tell(event, data)` and `hear` are for those who listen, else None."""

    def __init__(
        self, engine: Engine, judge: Judge, log: VoteLog | None, metrics: Metrics,
        tell: Tell | None = None, hear: Hear | None = None,
    ):  # fmt: skip
        self._engine, self._judge, self.log, self._metrics = engine, judge, log, metrics
        self._tell, self._hear = tell, hear
        self._generators: list[EngineGenerator] = []
        self._wanted = True
        self._about: dict[str, Any] = {}

    def cancel(self) -> None:
        """From any thread."""
        self._wanted = False
        for generator in list(self._generators):
            generator.cancel()

    def judge(self, how: Judging, **changes: Any) -> Judge:
        """The server's judge with what a request asks for. Raises RrmError where that cannot be."""
        for name in ("votes", "seed", "thinking_budget"):
            if (value := getattr(how, name)) is not None:
                changes[name] = value
        generator = self._engine.generator(self._listen if self._hear else None)
        self._generators.append(generator)
        if not self._wanted:
            raise Withdrawn("cancelled")
        try:
            return _Watched(self, generator, **(self._judge.arguments | changes))
        except ValueError as error:
            raise RrmError(str(error)) from None

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """An event for whoever listens; `data` is JSON."""
        if self._tell is not None:
            self._tell(event, data)

    def noting(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The judge asks for a pair, then submits what that needs, before it asks for the next one."""
        for pair in pairs:
            self._about = _about(pair)
            yield pair

    def judged(self, judgment: Judgment) -> None:
        """Counts a pair's votes, and tells of it where it is a match of a tournament."""
        self._metrics.verdicts(vote.verdict for vote in judgment.votes)
        if about := _about(judgment.pair):
            self.tell("match", about | _outcome(outcome_of(judgment, turned=False)))

    def _listen(self, request: Request) -> OnTokens | None:
        assert self._hear is not None
        return self._hear(self._about | {"vote": request.sample})


def _about(pair: Pair) -> dict[str, Any]:
    """A tournament's pairs are named by their candidates."""
    if not pair.source:
        return {}
    _, i, j = json.loads(pair.id)
    return {"i": i, "j": j}


def judge_pair(job: Job, body: JudgeRequest) -> dict[str, Any]:
    """A row as `rrm judge` writes it. Raises RrmError, and Withdrawn when the job is cancelled."""
    pair = Pair("", body.query, body.response_1, body.response_2)
    pair = dataclasses.replace(pair, id=content_digest(pair) if body.id is None else body.id)
    judge = job.judge(body) if body.order is None else job.judge(body, order=body.order)
    (judgment,) = judge.judge([pair], job.log)
    return judgment.to_row()


def rank_responses(job: Job, body: RankRequest) -> dict[str, Any]:
    """A row as `rrm rank` writes it. Raises RrmError, and Withdrawn when the job is cancelled."""
    stop = None if body.stop is None else str(body.stop)
    entry = parse_entry(body.strategy, rating=body.rating, stop=stop, budget=body.budget)
    if entry.votes != 1:
        raise RrmError(f"{body.strategy!r}: the votes of a comparison are `votes` here")
    name = digest([body.query, *body.responses]) if body.id is None else body.id
    row = Candidates(name, body.query, tuple(body.responses))
    item = Item(name, len(row.responses), None if body.answers is None else tuple(body.answers))
    check_items([item], entry.strategy, entry.stop)
    judge = job.judge(body)
    job.tell("started", {"id": name, "candidates": item.candidates, "strategy": body.strategy})
    seed = judge.arguments["seed"]
    compare = comparer(judge, job.log, {name: row})
    how = {"seed": seed, "rating": entry.rating, "stop": entry.stop, "invalid": body.invalid}
    return _ranking(run_tournaments([item], entry.strategy, compare, **how)[0])


def _ranking(ranked: Ranked) -> dict[str, Any]:
    result: dict[str, Any] = {**dataclasses.asdict(ranked.result)}
    for name in ("ratings", "strengths", "low", "high"):
        result[name] = [value if math.isfinite(value) else None for value in result[name]]
    rounds = enumerate(ranked.rounds, start=1)
    return result | {"matches": [_match(match, number) for number, matches in rounds for match in matches]}


def _match(match: Match, number: int) -> dict[str, Any]:
    judged = match.outcome is not None
    return {"round": number, "i": match.i, "j": match.j, "judged": judged} | _outcome(match.outcome or Outcome(None))


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "winner": outcome.winner,
        "votes": list(outcome.votes),
        "probability": outcome.probability,
        "tokens": outcome.tokens,
    }


def reward_groups(job: Job, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Groups that are asked about in the same way are played side by side; equal ones are played once. A tournament
    belongs to its group's set of responses, in whatever order these stand."""
    kinds: dict[tuple, dict[str, Group]] = collections.defaultdict(dict)
    places: list[tuple[tuple, str]] = []
    for group in groups:
        name = digest([group.query, *sorted(group.responses)])
        how = group.votes, group.seed, group.thinking_budget, group.opponents, group.thinks
        # The same responses in another order go into another run: names are unique in each.
        kind = next(
            (*how, run) for run in range(len(groups)) if kinds[*how, run].get(name, group).responses == group.responses
        )
        kinds[kind][name] = group
        places.append((kind, name))
    found: dict[tuple[tuple, str], dict[str, Any]] = {}
    for kind, named in kinds.items():
        judge = job.judge(next(iter(named.values())))
        rewards = tournament_rewards(
            judge,
            [Candidates(name, group.query, tuple(group.responses)) for name, group in named.items()],
            strategy=f"random:opponents={kind[3]}",
            seed=judge.arguments["seed"],
            thinks=kind[4],
            log=job.log,
        )
        found |= {(kind, name): _reward(reward) for name, reward in zip(named, rewards, strict=True)}
    return [found[place] for place in places]


def _reward(reward: GroupReward) -> dict[str, Any]:
    return {
        "rewards": list(reward.rewards),
        "ratings": list(reward.ratings),
        "matches": [_match(match, 1) for match in reward.matches],
        "comparisons": reward.comparisons,
        "invalid": reward.invalid,
        "tokens": reward.tokens,
    }
