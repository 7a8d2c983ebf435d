"""What came of a benchmark, and how it is told: as text and as Markdown to people, as JSON to programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_jax.evaluation import eval_report as report
from rrm_jax.evaluation.benchmarks import Difference, Loaded, Policy, Score
from rrm_jax.evaluation.benchmarks.base import Published


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The scores of each judge, by its name; what a model judged here is `scores["judge"]`.

    `curve` has the scores of best-of-K by K. `not_judged` says why items are not scored, by their ids. `differences`
    are those from `against`. `votes`: how many were drawn now, and how many were found in the store; None where no
    model judged.
    """

    loaded: Loaded
    policy: Policy
    resamples: int
    scores: Mapping[str, Sequence[Score]]
    curve: Mapping[int, Sequence[Score]] = dataclasses.field(default_factory=dict)
    not_judged: Mapping[str, str] = dataclasses.field(default_factory=dict)
    against: Path | None = None
    differences: Sequence[Difference] = ()
    votes: tuple[int, int] | None = None
    undecided: int = 0
    """Responses of which nobody knows whether they are right; they count as wrong."""

    @property
    def published(self) -> Sequence[Published]:
        """What others published of the benchmark, in percent. Never results of ours."""
        return self.loaded.benchmark.published

    @property
    def complete(self) -> bool:
        """No row was passed over, and no item is without a verdict."""
        return not (self.loaded.skipped or self.not_judged)

    @property
    def text(self) -> str:
        """For a terminal: the votes, how was counted, and the tables."""
        drawn = f"{{}} {self._unit} drawn now, {{}} found in the store"
        votes = [] if self.votes is None else [drawn.format(*self.votes)]
        tables = [line for rows in self._tables() for line in ("", *report.terminal(rows))]
        return "\n".join([*votes, self.loaded.benchmark.name, *self._lines(), *tables])

    @property
    def markdown(self) -> str:
        """All that is known of it, as one page."""
        return report.markdown(self.loaded.benchmark.name, self._lines(), self._tables())

    @property
    def facts(self) -> dict[str, Any]:
        """All numbers, as JSON has them; `rrm compare` reads them."""
        return {
            "benchmark": self.loaded.benchmark.name, "policy": dataclasses.asdict(self.policy),
            "resamples": self.resamples, "notes": self.loaded.notes(), "items": len(self.loaded.items),
            "not_judged": dict(self.not_judged),
            "scores": {judge: [score.to_row() for score in one] for judge, one in self.scores.items()},
            "curve": {size: [score.to_row() for score in one] for size, one in self.curve.items()},
            "against": None if self.against is None else str(self.against),
            "differences": [one.to_row() for one in self.differences],
            "published": [dataclasses.asdict(one) for one in self.published],
        }  # fmt: skip

    @property
    def _unit(self) -> str:
        return "responses" if self.loaded.benchmark.kind == "answers" else "votes"

    def _lines(self) -> list[str]:
        benchmark, rules = self.loaded.benchmark, dataclasses.asdict(self.policy)
        lines = [f"{benchmark.what}; {benchmark.hub or 'rows given'}", *self.loaded.notes()]
        if self.not_judged:
            lines.append(f"{len(self.not_judged)} item(s) were not judged, and are not scored")
        if self.undecided:
            lines.append(f"{self.undecided} response(s) could not be verified, and count as wrong")
        if benchmark.kind == "answers":
            rules = {"a response without a final answer": "wrong", "seed": self.policy.seed}
        return [*lines, "counted as: " + ", ".join(f"{key} {rule}" for key, rule in rules.items() if rule is not None)]

    def _tables(self) -> list[report.Rows]:
        (first, *others) = self.scores.values()
        tables = [report.judge_rows(self.scores) if others else report.score_rows(first, self._unit)]
        tables += [report.curve_rows(self.curve)] if self.curve else []
        tables += [report.difference_rows(self.differences)] if self.differences else []
        return [*tables, *filter(None, [report.published_rows(self.loaded.benchmark)])]
