"""How many judgments a set of studies will ask for, before any is paid for.

The votes are counted by their addresses, as the verdict stores keep them: what two studies share is drawn once.
Tournaments are played with a made-up judge, since an adaptive one's comparisons depend on the verdicts.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from rrm_jax.config import Config
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import parse_candidates
from rrm_jax.ranking.entry import Entry, parse_entry
from rrm_jax.ranking.protocol import Comparison, Item, Outcome
from rrm_jax.ranking.tournament import run_tournaments
from rrm_jax.studies.config import (
    CalibrationConfig,
    CostConfig,
    JudgeConfig,
    JudgingConfig,
    ReasoningConfig,
    ScalingConfig,
    StudyConfig,
    ThinkingBudgetConfig,
)

ACCURACY = 0.8  # of the made-up judge, between a correct candidate and one that is not

# A vote: which store keeps it, of which item, and which of the item's votes (with "both", in which order) it is.
type Address = tuple[str, str, int, int]


class Assumed(Config):
    """What a dry run takes for granted of what is not there."""

    pairs: int = Field(500, ge=1)
    """Rows of a pair file."""
    queries: int = Field(500, ge=1)
    """Rows of a file of candidates."""
    candidates: int = Field(8, ge=2)
    """Of each query."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one judge is asked with one thinking budget (None: unbounded), in all studies together."""

    judge: JudgeConfig
    budget: int | None
    prompts: int
    votes: int


@dataclasses.dataclass
class _Judged:
    judge: JudgeConfig
    budget: int | None
    votes: set[Address] = dataclasses.field(default_factory=set)
    prompts: set[tuple[str, int]] = dataclasses.field(default_factory=set)


def count(studies: Mapping[str, StudyConfig], assumed: Assumed) -> tuple[list[Asked], dict[str, int]]:
    """By judge and budget; and each study's new votes, without those that one before it has drawn already."""
    judged: dict[tuple[str, int | None], _Judged] = {}
    new: dict[str, int] = {}
    for name, study in studies.items():
        new[name] = 0
        if not isinstance(study, JudgingConfig):
            continue
        store = study.verdicts or f"{study.output}/votes.jsonl"
        for judge in study.judges.values():
            for budget, item, order, vote in _votes(study, assumed):
                of = judged.setdefault((judge.model_dump_json(), budget), _Judged(judge, budget))
                address = store, item, order, vote
                new[name] += address not in of.votes
                of.votes.add(address)
                of.prompts.add((item, order))
    return [Asked(one.judge, one.budget, len(one.prompts), len(one.votes)) for one in judged.values()], new


def _votes(study: JudgingConfig, assumed: Assumed) -> Iterator[tuple[int | None, str, int, int]]:
    """Thinking budget, item, order and number of every vote that a judge of the study is asked for."""
    if isinstance(study, ReasoningConfig):
        yield from _of_pairs(study, study.pairs, assumed, None, study.votes, both=True)
    elif isinstance(study, ThinkingBudgetConfig):
        for budget in [*study.budgets, *([None] if study.unbounded else [])]:
            yield from _of_pairs(study, study.pairs, assumed, budget, study.votes, both=True)
    elif isinstance(study, CalibrationConfig):
        yield from _of_pairs(study, study.pairs, assumed, None, study.votes, both=False)
    elif isinstance(study, ScalingConfig):
        yield from _of_pairs(study, study.pairs, assumed, None, max(study.votes), both=False)
        for text in study.strategies:
            yield from _of_tournaments(study, study.candidates, assumed, None, parse_entry(text))
    elif isinstance(study, CostConfig):
        for budget in study.budgets:
            for text in study.strategies:
                for votes in study.votes:
                    yield from _of_tournaments(
                        study, study.candidates, assumed, budget, parse_entry(f"{text}:votes={votes}")
                    )
    else:
        raise NotImplementedError(type(study))


def _of_pairs(
    study: JudgingConfig, path: str, assumed: Assumed, budget: int | None, votes: int, both: bool
) -> Iterator[tuple[int | None, str, int, int]]:
    for row in range(_limited(study, _rows(path, assumed.pairs))):
        for vote in range(votes):
            for order in (0, 1) if both else (_coin(f"{row} {vote}") < 0.5,):
                yield budget, f"{path}:{row}", int(order), vote


def _of_tournaments(
    study: JudgingConfig, path: str, assumed: Assumed, budget: int | None, entry: Entry
) -> Iterator[tuple[int | None, str, int, int]]:
    correct = _candidates(path, assumed)[: study.limit]
    items = [Item(str(at), len(row)) for at, row in enumerate(correct)]
    asked: list[tuple[str, int]] = []

    def compare(comparisons: list[Comparison]) -> Sequence[Outcome]:
        outcomes = []
        for one in comparisons:
            i, j = sorted((one.i, one.j))
            votes = range(one.meeting * entry.votes, (one.meeting + 1) * entry.votes)
            asked.extend((f"{path}:{one.item_id}:{i}:{j}", vote) for vote in votes)
            row = correct[int(one.item_id)]
            first = 0.5 if row[i] == row[j] else ACCURACY if row[i] else 1 - ACCURACY
            first_wins = _coin(f"{one.item_id} {i} {j} {one.meeting}") < first
            winner = 1 if first_wins == (one.i == i) else 2
            outcomes.append(Outcome(winner, votes=(winner,) * entry.votes))
        return outcomes

    run_tournaments(items, entry.strategy, compare, seed=study.seed, rating=entry.rating, stop=entry.stop)
    for item, vote in asked:
        yield budget, item, int(_coin(f"{item} {vote}") < 0.5), vote


def _limited(study: JudgingConfig, rows: int) -> int:
    return rows if study.limit is None else min(rows, study.limit)


def _rows(path: str, assumed: int) -> int:
    """Rows of a file, or so many where there is none."""
    if not Path(path).is_file():
        return assumed
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _candidates(path: str, assumed: Assumed) -> list[tuple[bool, ...]]:
    """Which candidates of each query are correct; made up where there is no file, or it does not say."""
    if not Path(path).is_file():
        sizes = [assumed.candidates] * assumed.queries
    else:
        sizes, known = [], []
        for _, row in Reader(Path(path), parse_candidates, report=lambda message: None):
            sizes.append(len(row.responses))
            known.append(row.correct)
        if all(one is not None for one in known):
            return [tuple(one or ()) for one in known]
    return [tuple(_coin(f"{at} {one}") < 0.5 for one in range(size)) for at, size in enumerate(sizes)]


def _coin(name: str) -> float:
    """A number in [0, 1) that belongs to a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2**56
