"""Benchmarks, without the command line: `load`, `judge_items` (or `solve_items`, or `read_verdict_file`), `score`,
`compare`."""

from rrm_jax.evaluation.benchmarks.base import Ballot, Benchmark, Game, Item, Pick, Policy, Verdicts
from rrm_jax.evaluation.benchmarks.harness import BENCHMARKS, Loaded, benchmark_of, compare, load, score
from rrm_jax.evaluation.benchmarks.judging import Outcome, best_of_each, judge_items
from rrm_jax.evaluation.benchmarks.scores import Difference, Score
from rrm_jax.evaluation.benchmarks.solving import solve_items
from rrm_jax.evaluation.benchmarks.verdict_files import read_verdict_file, scores_of_subsets

__all__ = [
    "BENCHMARKS", "Ballot", "Benchmark", "Difference", "Game", "Item", "Loaded", "Outcome", "Pick", "Policy", "Score",
    "Verdicts", "benchmark_of", "best_of_each", "compare",
    "judge_items", "load", "read_verdict_file", "score", "scores_of_subsets", "solve_items",
]  # fmt: skip
