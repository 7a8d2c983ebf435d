"""`rrm`, which also writes down every completion and every held-out vote of a training run, as each process has them.

python -m tests.training.recorded RECORD train CONFIG …

RECORD/<process>.jsonl; a step that is taken again after a kill stands there again.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from rrm_jax.cli.main import app
from rrm_jax.training import evaluate, grpo


def record(file: Path) -> None:
    """From here on this process's training runs are written down in `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    traces_of, both_orders, evaluation = grpo.traces_of, evaluate.both_orders, evaluate.Evaluator.evaluate
    evaluated = 0

    def write(kind: str, step: int, values: list[Any]) -> None:
        with open(file, "a", encoding="utf-8") as log:
            log.write(json.dumps({"kind": kind, "step": step, "values": values}) + "\n")

    def rollouts(given, *rest):
        earned = zip(given.examples, given.reward_PG.ravel().tolist(), strict=True)
        write("rollout", rest[-1], [[example.completion_ids, reward] for example, reward in earned])
        return traces_of(given, *rest)

    def evaluating(self, step):
        nonlocal evaluated
        evaluated = step
        evaluation(self, step)

    def votes(judgments):
        cast = [[one.pair.id, vote.order, vote.text, vote.verdict] for one in judgments for vote in one.votes]
        write("held out", evaluated, sorted(cast))
        return both_orders(judgments)

    grpo.traces_of, evaluate.both_orders, evaluate.Evaluator.evaluate = rollouts, votes, evaluating  # pyrefly: ignore


def read_record(directory: Path, kind: str) -> list[dict[tuple[int, int], list[Any]]]:
    """{(step, number in it): a completion's [token ids, reward] of "rollout"; a vote's [pair, order, text, verdict] of
    "held out"}, as each process has it."""
    found = []
    for file in sorted(directory.iterdir()):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        of_kind = [row for row in rows if row["kind"] == kind]
        found.append({(row["step"], at): value for row in of_kind for at, value in enumerate(row["values"])})
    return found


if __name__ == "__main__":
    record(Path(sys.argv.pop(1)) / f"{os.environ['RRM_PROCESS']}.jsonl")
    app()
