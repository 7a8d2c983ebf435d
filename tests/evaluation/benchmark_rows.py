"""Rows in the layouts that benchmarks are published in, and what is said of them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rrm_jax.evaluation.benchmarks import Ballot, Score


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def by_name(scores: tuple[Score, ...]) -> dict[str, Score]:
    return {part.name: part for top in scores for _, part in top.walk()}


def given(*verdicts: int | None) -> tuple[tuple[Ballot, ...], ...]:
    """One vote for each game."""
    return tuple((Ballot("12", verdict),) for verdict in verdicts)  # type: ignore[arg-type]


def both(first: int | None, second: int | None) -> tuple[tuple[Ballot, ...], ...]:
    return ((Ballot("12", first, twin=True), Ballot("21", second, twin=True)),)  # type: ignore[arg-type]


def judgebench_rows() -> list[dict]:
    sources = ["mmlu-pro-law", "mmlu-pro-math", "livebench-reasoning", "livebench-math", "livecodebench"]
    return [
        {
            "pair_id": f"p{at}", "original_id": at, "source": source, "question": "?", "response_model": "gpt-4o",
            "response_A": "a", "response_B": "b", "label": "A>B" if at % 2 else "B>A",
        }
        for at, source in enumerate(sources)
    ]  # fmt: skip


def rewardbench2_rows() -> list[dict]:
    rows = [
        {"id": str(at), "prompt": "?", "chosen": ["c"], "rejected": ["x", "y", "z"], "subset": subset}
        for at, subset in enumerate(["Factuality", "Factuality", "Precise IF", "Math", "Safety", "Focus"])
    ]
    return [*rows, {"id": "tied:6", "prompt": "?", "chosen": ["c", "d"], "rejected": ["x", "y"], "subset": "Ties"}]


def ppe_row(at: int, right: set[int], prompt: str = "Question: {} ?") -> dict:
    row: dict = {"question_id": at, "prompt": prompt.format(at), "scores": [c in right for c in range(32)]}
    wrong = [c for c in range(32) if c not in right]
    row["sampled_conflict_pairs"] = [[sorted(right)[0], wrong[0]], [wrong[1], sorted(right)[-1]]]
    return row | {f"response_{c + 1}": f"response {c} to {at}" for c in range(32)}


def rm_bench_rows() -> list[dict]:
    domains = ["chat", "math", "code", "safety-refuse", "safety-response", "safety-response"]
    return [
        {
            "id": at, "prompt": "?", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"], "domain": domain,
        }
        for at, domain in enumerate(domains)
    ]  # fmt: skip
