"""A benchmark from what a judge says, or from a file of verdicts, to its scores and files."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_jax.data.jsonl import encode_row
from rrm_jax.data.samples import Source
from rrm_jax.data.verifier_pool import VerifierPool
from rrm_jax.data.whole_files import KEPT, replacing, write_whole
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import (
    Difference,
    Outcome,
    Score,
    Verdicts,
    best_of_each,
    compare,
    judge_items,
    read_verdict_file,
    score,
    scores_of_subsets,
    solve_items,
)
from rrm_jax.evaluation.benchmarks.base import Tries
from rrm_jax.evaluation.benchmarks.verdict_files import read_content
from rrm_jax.evaluation.eval_job import Job, Picking
from rrm_jax.evaluation.eval_results import Evaluated
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import VoteLog
from rrm_jax.provenance import pinned


def judge_benchmark(
    job: Job, judge: Judge, *, picking: Picking = Picking(), sizes: Sequence[int] = (), store: Path | None = None,
    report: Callable[[str], None] = lambda message: None, advance: Callable[[], None] = lambda: None,
    while_judging: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(),
) -> Evaluated:  # fmt: skip
    """Has a judge, opened with the order of `order_of`, judge the benchmark, or goes on with a job that was killed.

    Writes OUT.run.json, OUT.judged.jsonl, OUT.json and OUT.md. Every vote is kept in `store` (OUT.votes.jsonl, unless
    given) as it comes. Of best-of-N `picking` says how the best is sought, and `sizes` for which K also the best of the
    first K. `advance` is called for each comparison; `while_judging` is entered while there are any. Raises RrmError
    where the job's files are another's, or of other settings, and where nothing could be judged.
    """
    benchmark, items = job.loaded.benchmark, job.loaded.items
    if benchmark.kind == "answers" or (benchmark.takes_answers and not all(item.games for item in items)):
        raise RrmError(f"{benchmark.name} needs a model's answers, and not a judge alone; see rrm eval --help")
    entry = picking.entry() if benchmark.kind == "best-of-n" else None
    if sizes and entry is None:
        raise RrmError("--curve is of best-of-N alone")
    job.refuse_to_overwrite(store)
    log_path = store or job.path(".votes.jsonl")
    if log_path.resolve() == job.path(".judged.jsonl").resolve():
        raise RrmError(f"--verdicts {store} is where results are written; name another file")
    settings = judge.settings | {"benchmark": benchmark.name} | ({} if entry is None else picking.settings())
    how = {"entry": entry, "invalid": picking.invalid, "seed": job.policy.seed, "advance": advance}
    with pinned(job.path(".run.json"), config=settings, seed=job.policy.seed, inputs={**job.loaded.files}):
        with VoteLog(log_path, report=report) as log, while_judging:
            with _rows(job.path(".judged.jsonl")) as keep:
                outcome = judge_items(judge, benchmark, items, log, keep=keep, **how)
                _check(outcome)
            curve = best_of_each(judge, benchmark, items, sizes, log, **how)
        return _told(
            job, {"judge": _scores(job, outcome.verdicts)}, outcome.verdicts, not_judged=outcome.not_judged,
            curve={size: _scores(job, of.verdicts, some) for size, (some, of) in curve.items() if of.verdicts},
            votes=(log.written, log.found),
        )  # fmt: skip


def solve_benchmark(
    job: Job, source: Source, samples: int | None, pool: VerifierPool, *,
    drawn: tuple[int, int] | None = None, advance: Callable[[], None] = lambda: None,
) -> Evaluated:  # fmt: skip
    """Verifies and scores a model's responses to the questions, the first `samples` of each (None: all that it has).

    Writes OUT.judged.jsonl, OUT.json and OUT.md; who draws the samples, or names their file, pins the job. `drawn`: how
    many were drawn now, and how many were there. Raises RrmError where there is no response at all.
    """
    with _rows(job.path(".judged.jsonl")) as keep:
        items, name = job.loaded.items, job.loaded.benchmark.name
        outcome = solve_items(name, items, source, samples, pool, keep=keep, advance=advance)
        _check(outcome)
    scores = {"answers": _scores(job, outcome.verdicts)}
    return _told(job, scores, outcome.verdicts, not_judged=outcome.not_judged, votes=drawn)


def score_file(job: Job, path: Path | None, judge: str | None = None) -> Evaluated:
    """Scores what the judges in a file said, or one of them: of an earlier job, or a published file. Without a file,
    what of best-of-N needs no judge.

    With `out` OUT.run.json, OUT.json and OUT.md are written. Raises RrmError for a file of something else, and where
    the job's files are another's, or of other verdicts.
    """
    benchmark, items = job.loaded.benchmark, job.loaded.items
    job.refuse_to_overwrite(path)
    scores = None if path is None else scores_of_subsets(benchmark, read_content(path))
    verdicts: Verdicts | None = None
    if scores is not None:
        scores = _only(judge, scores)
    elif not items:
        raise RrmError(f"{path} is scored against the benchmark's rows: give them as --data")
    else:
        found = {"no judge": {}} if path is None else _only(judge, read_verdict_file(benchmark, items, path))
        alone = len(found) == 1  # intervals of many judges would take long, and their table has no room for them
        scores = {name: _scores(job, said, samples=None if alone else 0) for name, said in found.items()}
        verdicts = next(iter(found.values())) if alone else None
    not_judged = {item.id: "not in the verdict file" for item in items if verdicts and item.id not in verdicts}
    inputs: dict[str, str | Path] = {**job.loaded.files, **({} if path is None else {"verdicts": path})}
    config = {"benchmark": benchmark.name, "verdicts": str(path)}
    pin = contextlib.nullcontext() if job.out is None else pinned(
        job.path(".run.json"), config=config, seed=job.policy.seed, inputs=inputs
    )  # fmt: skip
    with pin:
        return _told(job, scores, verdicts, not_judged=not_judged)


def _scores(job: Job, verdicts: Verdicts, items: Any = None, samples: int | None = None) -> tuple[Score, ...]:
    items, samples = job.loaded.items if items is None else items, job.resamples if samples is None else samples
    return score(job.loaded.benchmark, items, verdicts, job.policy, samples=samples, seed=job.policy.seed)


def _told(job: Job, scores: Mapping[str, Sequence[Score]], verdicts: Verdicts | None, **found: Any) -> Evaluated:
    """Compares, and writes OUT.json and OUT.md."""
    tries = [one for judged in (verdicts or {}).values() if isinstance(judged, Tries) for one in judged.tries]
    evaluated = Evaluated(
        job.loaded, job.policy, job.resamples, scores,
        undecided=sum(one.outcome.correct is None for one in tries),
        against=job.against, differences=_differences(job, verdicts), **found,
    )  # fmt: skip
    if job.out is not None:
        write_whole(job.path(".md"), evaluated.markdown)
        write_whole(job.path(".json"), json.dumps(evaluated.facts, indent=1, ensure_ascii=False) + "\n")
    return evaluated


def _differences(job: Job, verdicts: Verdicts | None) -> list[Difference]:
    if job.against is None:
        return []
    if verdicts is None:
        raise RrmError("--against compares one judge; choose it with --judge")
    rows = job.against.with_name(job.against.name + ".judged.jsonl")
    benchmark, items = job.loaded.benchmark, job.loaded.items
    others = read_verdict_file(benchmark, items, rows if rows.is_file() else job.against)
    if len(others) != 1:
        raise RrmError(f"{job.against} has {len(others)} judges; --against takes a file of one")
    (other,) = others.values()
    how = {"samples": max(job.resamples, 1), "seed": job.policy.seed}
    return compare(benchmark, items, verdicts, other, job.policy, **how)


def _only[T](judge: str | None, found: Mapping[str, T]) -> dict[str, T]:
    if judge is not None and judge not in found:
        raise RrmError(f"the file has no judge {judge!r}; it has {', '.join(list(found)[:10])}")
    return {**found} if judge is None else {judge: found[judge]}


def _check(outcome: Outcome) -> None:
    if not outcome.verdicts:
        why = next(iter(outcome.not_judged.values()), "there are no items")
        raise RrmError(f"nothing was judged: {why}")


@contextlib.contextmanager
def _rows(path: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Gives a function that writes a row; the file appears when all are there. What was judged is in the store."""
    with replacing(path, advice=KEPT) as (file,):
        yield lambda row: file.write(encode_row(row))
