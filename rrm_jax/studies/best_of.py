"""The best of many candidates by several strategies: what each finds, and what it costs."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rrm_jax.data.answers import canonical, final_answer, strip_thinking
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Candidates, parse_candidates
from rrm_jax.evaluation.statistics import RESAMPLES, Interval, Paired, paired_bootstrap, share_interval
from rrm_jax.evaluation.tournament import comparer
from rrm_jax.ranking.entry import Entry
from rrm_jax.ranking.protocol import Item, Result
from rrm_jax.ranking.tournament import Ranked, run_tournaments
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import JudgeConfig
from rrm_jax.studies.pooling import Total


@dataclasses.dataclass(frozen=True)
class Way:
    """A strategy of one judge. `accuracy` is the share of queries whose pick is correct; `comparisons`, `votes` and
    `tokens` are means a query, `invalid` and `cut_off` sums over all votes. `against` compares its picks with the
    reference's on the same queries, None for the reference itself."""

    judge: str
    strategy: str
    accuracy: Interval
    comparisons: float
    votes: float
    tokens: float
    invalid: Total
    cut_off: Total
    against: Paired | None

    @property
    def family(self) -> str:
        """The strategy without its settings: "knockout" of "knockout:votes=3"."""
        return self.strategy.split(":")[0]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Without a judge: a random candidate's, the most common answer's, and the oracle's share of correct picks."""

    candidate: Interval
    majority: Interval
    oracle: Interval


def parse_correct(row: dict[str, Any]) -> Candidates:
    """Candidates of which it is known which are right; RowError where it is not."""
    found = parse_candidates(row)
    if found.correct is None:
        raise RowError("field 'correct' is missing: which of the responses are right must be known here")
    return found


def play(
    session: Session, name: str, judge: JudgeConfig, rows: Sequence[Candidates], entry: Entry, budget: int | None = None
) -> list[Ranked]:
    """Every row's tournament, as `rrm rank` plays it. A comparison that several strategies ask for is judged once."""
    asked = session.judge(name, judge, votes=entry.votes, budget=budget)
    compare = comparer(asked, session.log, {row.id: row for row in rows}, session.advance)
    items = [Item(row.id, len(row.responses)) for row in rows]
    return run_tournaments(items, entry.strategy, compare, seed=session.seed, rating=entry.rating, stop=entry.stop)


def picks(results: Sequence[Result], rows: Sequence[Candidates]) -> np.ndarray:
    """[Q] 1 where the picked candidate is correct."""
    return np.array([float((row.correct or ())[result.best]) for result, row in zip(results, rows, strict=True)])


def ways(
    judge: str,
    results: Mapping[str, Sequence[Result]],
    rows: Sequence[Candidates],
    reference: str | None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Way]:
    """`results` holds each strategy's, of the same `rows` in the same order."""
    credits = {strategy: picks(found, rows) for strategy, found in results.items()}
    return [
        Way(
            judge,
            strategy,
            share_interval(credits[strategy], seed, resamples),
            float(np.mean([result.comparisons for result in found])),
            float(np.mean([result.votes for result in found])),
            float(np.mean([result.tokens for result in found])),
            sum(result.invalid_votes for result in found),
            sum(result.cut_off for result in found),
            None
            if reference is None or reference == strategy
            else paired_bootstrap(credits[strategy], credits[reference], seed, resamples),
        )
        for strategy, found in results.items()
    ]


def bounds(rows: Sequence[Candidates], seed: int = 0, resamples: int = RESAMPLES) -> Bounds:
    """With bootstrap intervals over the rows, whose `correct` must be known (`parse_correct`)."""
    right = [np.array(row.correct or (), float) for row in rows]
    return Bounds(
        share_interval([one.mean() for one in right], seed, resamples),
        share_interval([_majority(row) for row in rows], seed, resamples),
        share_interval([one.max() for one in right], seed, resamples),
    )


def _majority(row: Candidates) -> float:
    """The credit of the most common answer; answers that are equally common share it."""
    given = row.answers or tuple(map(_answer, row.responses))
    answers = tuple(None if answer is None else canonical(answer) for answer in given)
    counts = collections.Counter(answer for answer in answers if answer is not None)
    if not counts:
        return float(np.mean(row.correct or ()))
    right = {answer: correct for answer, correct in zip(answers, row.correct or (), strict=True)}
    most = max(counts.values())
    return float(np.mean([right[answer] for answer, count in counts.items() if count == most]))


def _answer(response: str) -> str:
    text = strip_thinking(response)
    return final_answer(text) or text.strip()


def game_rows(judge: str, strategy: str, ranked: Sequence[Ranked]) -> Iterator[dict[str, Any]]:
    """Rows of a games log, as `rrm rank` writes them, with the judge and the strategy before them."""
    for one in ranked:
        met: collections.Counter[frozenset[int]] = collections.Counter()
        for number, matches in enumerate(one.rounds, start=1):
            for match in matches:
                if match.outcome is not None:
                    pair = frozenset((match.i, match.j))
                    place = {"id": one.result.id, "round": number, "i": match.i, "j": match.j, "meeting": met[pair]}
                    met[pair] += 1
                    yield {"judge": judge, "strategy": strategy} | place | dataclasses.asdict(match.outcome)
