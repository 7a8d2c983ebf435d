"""What is asked for when a benchmark is evaluated: the rules, the files, and how the best of many is sought."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import Benchmark, Loaded, Policy
from rrm_jax.evaluation.benchmarks.base import Credit
from rrm_jax.judging.judge import OrderPolicy
from rrm_jax.provenance import earlier_results, refuse_inputs_as_outputs

if TYPE_CHECKING:
    from rrm_jax.ranking.entry import Entry


@dataclasses.dataclass(frozen=True)
class Job:
    """What is scored, how it is counted, and the results' path: `out`, to which each file's ending is added; None
    (only of verdict files): nothing is written.

    The seed of `policy` is also that of tournaments, and of the `resamples` bootstrap samples behind an interval.
    `against`: another job's `out`, or a verdict file, over whose items the two are compared.
    """

    loaded: Loaded
    policy: Policy
    out: Path | None = None
    against: Path | None = None
    resamples: int = 2000

    def path(self, ending: str) -> Path:
        """The results' path with this ending. ValueError for a job without `out`."""
        if self.out is None:
            raise ValueError("a job without out has no files")
        return self.out.with_name(self.out.name + ending)

    def refuse_to_overwrite(self, *read: Path | None) -> None:
        """RrmError unless what is written replaces nothing but an older result of the same job. `read`: files that
        are, beside the benchmark's. Judging and scoring begin with this; before a model is opened it costs less."""
        if self.out is None:
            return
        run, judged, files = self.path(".run.json"), self.path(".judged.jsonl"), self.loaded.files.values()
        results = self.path(".json"), self.path(".md")
        earlier_results((*results, judged), run)
        refuse_inputs_as_outputs((*results, run), (*files, *read, self.against))
        refuse_inputs_as_outputs([judged], files)  # an earlier one may well be scored again


@dataclasses.dataclass(frozen=True)
class Picking:
    """How the best of many is sought: `strategy`, `rating`, `budget` and `stop` as `parse_entry` takes them, and
    `invalid` as `run_tournaments` does. Pinned as it stands."""

    strategy: str = "knockout"
    rating: str | None = None
    budget: int | None = None
    stop: str | None = None
    invalid: Literal["random", "draw"] = "random"

    def entry(self) -> "Entry":
        """What is to be played. RrmError for a strategy that asks for several votes a comparison."""
        from rrm_jax.ranking.entry import parse_entry  # brings JAX, which files of verdicts need not wait for

        entry = parse_entry(self.strategy, rating=self.rating, stop=self.stop, budget=self.budget)
        if entry.votes != 1:
            raise RrmError(f"{self.strategy!r}: the votes of a comparison are --votes here")
        return entry

    def settings(self) -> dict[str, Any]:
        """What is written down of it with the results, JSON."""
        ranking = dataclasses.asdict(self)
        invalid = ranking.pop("invalid")
        return {"ranking": ranking, "invalid": invalid}


def policy_of(
    benchmark: Benchmark, *, invalid: Credit | None = None, ties: Credit | None = None,
    order: OrderPolicy | None = None, seed: int = 0,
) -> Policy:  # fmt: skip
    """The published rules, but for what is given. Raises RrmError for rules that best-of-N does not have."""
    changed: dict[str, Any] = {}
    if invalid is not None:
        changed["invalid"] = invalid
    if ties is not None:
        changed["ties"] = ties
    if benchmark.kind == "answers" and (invalid, ties, order) != (None, None, None):
        raise RrmError(f"--invalid, --ties and --order are of judges; {benchmark.name} has none")
    if benchmark.kind == "best-of-n" and (invalid not in (None, "random", "0.5") or ties is not None):
        raise RrmError("of best-of-N, --invalid is random or 0.5, and there is no --ties")
    if benchmark.shares_votes and ties is not None:
        raise RrmError(f"{benchmark.name} has no --ties: a game counts the share of its votes, of which a tie is ½")
    return dataclasses.replace(benchmark.policy, **changed, order=order, seed=seed)


def order_of(
    benchmark: Benchmark, asked: OrderPolicy | None = None, report: Callable[[str], None] = lambda message: None
) -> OrderPolicy:
    """The order to open a judge with: as `asked`, or as published. `report` is told of one that gives answers away."""
    order = asked or benchmark.order
    if benchmark.right_first and order == "given":
        report(f"{benchmark.name} has the better response first in every row: --order given always shows it there")
    return order


def most_comparisons(loaded: Loaded, picking: Picking = Picking(), sizes: Sequence[int] = ()) -> int:
    """How often `judge_benchmark` calls `advance` at most."""
    if loaded.benchmark.kind != "best-of-n":
        return sum(len(item.games) for item in loaded.items)
    most, total = picking.entry().strategy.most_comparisons, 0
    for item in loaded.items:
        candidates = len(item.responses)
        total += most(candidates) + sum(most(size) for size in sizes if size <= candidates)
    return total
