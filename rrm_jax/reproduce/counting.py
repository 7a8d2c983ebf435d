"""How many judgments a set of studies will ask for, before any is paid for.

The votes are counted by their addresses, as the verdict stores keep them: what two studies share is drawn once.
Tournaments are played with a made-up judge, since an adaptive one's comparisons depend on the verdicts. Texts are not
looked at: candidates that say the same share their votes, and fewer are drawn than are counted here.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rrm_jax.data.jsonl import Reader
from rrm_jax.evaluation.benchmarks import benchmark_of, load
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.ranking.protocol import Comparison, Item, Outcome
from rrm_jax.ranking.tournament import run_tournaments
from rrm_jax.reproduce.config import Assumed
from rrm_jax.studies.best_of import parse_correct
from rrm_jax.studies.config import (
    BenchmarkConfig,
    BenchmarksConfig,
    CalibrationConfig,
    CostConfig,
    JudgeConfig,
    JudgingConfig,
    PosttrainConfig,
    ReasoningConfig,
    ScalingConfig,
    StudyConfig,
    ThinkingBudgetConfig,
)

PUBLISHED_CANDIDATES = 32  # of PPE's queries
ACCURACY = 0.8  # of the made-up judge, between a correct candidate and one that is not

# A vote: which store keeps it, of which item, and which of the item's votes (with "both", in which order) it is.
type Address = tuple[str, str, int, int]


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
    apart: list[Asked] = []
    for name, study in studies.items():
        new[name] = 0
        if isinstance(study, PosttrainConfig):
            asked = list(_of_posttraining(study, assumed))
            apart += asked
            new[name] = sum(one.votes for one in asked)
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
    return [Asked(one.judge, one.budget, len(one.prompts), len(one.votes)) for one in judged.values()] + apart, new


def _of_posttraining(study: PosttrainConfig, assumed: Assumed) -> Iterator[Asked]:
    """Labels of pairs in both orders, and the comparisons of the tournaments of runs that the study trains: of every
    row, no responses equal."""
    if study.pairs is not None:
        rows = min(_rows(study.pairs.questions, assumed.queries), study.pairs.limit or 2**62)
        yield Asked(study.pairs.judge, None, 2 * rows, 2 * rows)
    for run in study.runs.values() if study.train else ():
        policy, rollout, judge = run.settings["policy"], run.settings["rollout"], run.settings["policy"]["judge"]
        if run.settings["method"] != "grpo" or judge is None or policy["reward"] not in ("tournament", "mixed"):
            continue
        games = parse_entry(policy["strategy"]).strategy.most_comparisons(rollout["group_size"])
        games *= run.settings["steps"] * rollout["prompts_per_step"]
        orders = 2 if judge["order"] == "both" else 1
        how = {key: judge[key] for key in ("model", "max_new_tokens", "max_prompt_tokens", "thinking")}
        yield Asked(JudgeConfig(**how), None, games * orders, games * orders * judge["votes"])


def _votes(study: JudgingConfig, assumed: Assumed) -> Iterator[tuple[int | None, str, int, int]]:
    """Thinking budget, item, order and number of every vote that a judge of the study is asked for."""
    if isinstance(study, BenchmarksConfig):
        for name, asked in study.benchmarks.items():
            yield from _of_benchmark(study, name, asked, assumed)
    elif isinstance(study, ReasoningConfig):
        yield from _of_pairs(study, study.pairs, assumed, None, study.votes, both=True)
    elif isinstance(study, ThinkingBudgetConfig):
        for budget in [*study.budgets, *([None] if study.unbounded else [])]:
            yield from _of_pairs(study, study.pairs, assumed, budget, study.votes, both=True)
    elif isinstance(study, CalibrationConfig):
        yield from _of_pairs(study, study.pairs, assumed, None, study.votes, both=False)
    elif isinstance(study, ScalingConfig):
        yield from _of_pairs(study, study.pairs, assumed, None, max(study.votes), both=False)
        for text in study.strategies:
            for vote in _tournaments(study, assumed, text):
                yield None, *vote
    elif isinstance(study, CostConfig):
        for budget in study.budgets:
            for text in study.strategies:
                for votes in study.votes:
                    entry = f"{text}:votes={votes}"
                    for vote in _tournaments(study, assumed, entry):
                        yield budget, *vote
    else:
        raise NotImplementedError(type(study))


def _of_benchmark(
    study: BenchmarksConfig, name: str, asked: BenchmarkConfig, assumed: Assumed
) -> Iterator[tuple[int | None, str, int, int]]:
    """Its games, or a tournament's comparisons at most; of a snapshot that is not there by its published rows."""
    benchmark = benchmark_of(asked.benchmark or name)
    if Path(asked.data).exists():
        items = load(benchmark.name, asked.data, split=asked.split, groups=asked.groups).items
        sizes = [len(item.games) or len(item.responses) for item in items]
    else:
        rows = sum(benchmark.rows.values()) or assumed.pairs
        sizes = [benchmark.games if benchmark.kind == "pairs" else PUBLISHED_CANDIDATES] * rows
    for at, size in enumerate(sizes[: study.limit]):
        games = size
        if benchmark.kind == "best-of-n":
            games = parse_entry(asked.strategy).strategy.most_comparisons(size)
        for game in range(games):
            for vote in range(asked.votes):
                orders = (0, 1) if (asked.order or benchmark.order) == "both" else (int(_coin(f"{at} {vote}") < 0.5),)
                for order in orders:
                    yield None, f"{name}:{at}:{game}", order, vote


def _of_pairs(
    study: JudgingConfig, path: str, assumed: Assumed, budget: int | None, votes: int, both: bool
) -> Iterator[tuple[int | None, str, int, int]]:
    for row in range(_limited(study, _rows(path, assumed.pairs))):
        for vote in range(votes):
            for order in (0, 1) if both else (_coin(f"{row} {vote}") < 0.5,):
                yield budget, f"{path}:{row}", int(order), vote


def _tournaments(study: ScalingConfig | CostConfig, assumed: Assumed, text: str) -> list[tuple[str, int, int]]:
    return _played(study.candidates, study.limit, study.seed, assumed.queries, assumed.candidates, text)


@functools.lru_cache(maxsize=256)
def _played(
    path: str, limit: int | None, seed: int, queries: int, candidates: int, text: str
) -> list[tuple[str, int, int]]:
    """Comparison, order and number of every vote that a strategy asks for."""
    entry = parse_entry(text)
    correct = dict(itertools.islice(_candidates(path, queries, candidates).items(), limit))
    items = [Item(id, len(row)) for id, row in correct.items()]
    asked: list[tuple[str, int]] = []

    def compare(comparisons: list[Comparison]) -> Sequence[Outcome]:
        outcomes = []
        for one in comparisons:
            i, j = sorted((one.i, one.j))
            votes = range(one.meeting * entry.votes, (one.meeting + 1) * entry.votes)
            asked.extend((f"{path}:{one.item_id}:{i}:{j}", vote) for vote in votes)
            row = correct[one.item_id]
            first = 0.5 if row[i] == row[j] else ACCURACY if row[i] else 1 - ACCURACY
            first_wins = _coin(f"{one.item_id} {i} {j} {one.meeting}") < first
            winner = 1 if first_wins == (one.i == i) else 2
            outcomes.append(Outcome(winner, votes=(winner,) * entry.votes))
        return outcomes

    run_tournaments(items, entry.strategy, compare, seed=seed, rating=entry.rating, stop=entry.stop)
    return [(item, int(_coin(f"{item} {vote}") < 0.5), vote) for item, vote in asked]


def _limited(study: JudgingConfig, rows: int) -> int:
    return rows if study.limit is None else min(rows, study.limit)


def _rows(path: str, assumed: int) -> int:
    """Rows of a file, or so many where there is none."""
    if not Path(path).is_file():
        return assumed
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _candidates(path: str, queries: int, candidates: int) -> dict[str, tuple[bool, ...]]:
    """Which candidates of each query are correct; made up where there is no file."""
    if not Path(path).is_file():
        return {str(at): tuple(_coin(f"{at} {one}") < 0.5 for one in range(candidates)) for at in range(queries)}
    rows = Reader(Path(path), parse_correct, report=lambda message: None)
    return {row.id: tuple(row.correct or ()) for _, row in rows}


def _coin(name: str) -> float:
    """A number in [0, 1) that belongs to a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2**56
