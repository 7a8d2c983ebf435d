"""`rrm eval`: benchmarks, judged by a model or scored from a file of verdicts."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.judge_options import JudgeOptions, open_judge
from rrm_jax.cli.loading import Progress, warn
from rrm_jax.cli.options import ModelOptions, Strict, Verdicts, with_options
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.evaluation.benchmarks import Benchmark, Loaded, Outcome, Policy, Score
    from rrm_jax.ranking.entry import Entry


@dataclasses.dataclass(frozen=True)
class EvalModelOptions(ModelOptions):
    """As for the other verbs, but that a file of verdicts needs no model."""

    model: Annotated[  # type: ignore[assignment]
        Path | None, typer.Option(help="The judge: as for rrm judge. None with --verdict-file.", show_default=False)
    ] = None


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How verdicts become numbers. They can be changed afterwards: what was judged is not judged again."""

    invalid: Annotated[
        Literal["0", "0.5", "random", "exclude", "tie"] | None,
        typer.Option(
            help="What a comparison without a valid verdict counts as; of best-of-N random (a coin decides) or 0.5 (a "
            "draw). [default: as published]",
            show_default=False,
        ),
    ] = None
    ties: Annotated[
        Literal["0", "0.5", "random", "exclude", "tie"] | None,
        typer.Option(help="The same for as many votes each way. [default: as published]", show_default=False),
    ] = None
    order: Annotated[
        Literal["random", "given", "both"] | None,
        typer.Option(
            help="Which response is shown first; random: drawn for each vote, both: two samples a vote. With "
            "--verdict-file: which of its votes count. [default: as published]",
            show_default=False,
        ),
    ] = None
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap samples behind an interval; 0: none.")] = 2000


@dataclasses.dataclass(frozen=True)
class PickOptions:
    """How the best of many is sought (best-of-N alone)."""

    strategy: Annotated[str, typer.Option(help="Best-of-N: as in rrm rank, such as round-robin or swiss.")] = "knockout"
    rating: Annotated[str | None, typer.Option(help="Best-of-N: as in rrm rank.", show_default=False)] = None
    budget: Annotated[int | None, typer.Option(min=1, help="Best-of-N: comparisons a query at most.")] = None
    stop: Annotated[str | None, typer.Option(help="Best-of-N: as in rrm rank.", show_default=False)] = None
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="K,K,…",
            help="Best-of-N: also the best of the first K candidates, for each K, by tournaments of their own.",
            show_default=False,
        ),
    ] = None


@with_options
def command(
    name: Annotated[str | None, typer.Argument(help="The benchmark; see --list.", show_default=False)] = None,
    show_list: Annotated[bool, typer.Option("--list", help="What benchmarks there are, and end.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Its snapshot: a directory or a file in the published layout.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Writes OUT.json, OUT.md, OUT.run.json and, of a judge, OUT.judged.jsonl and OUT.votes.jsonl.",
            show_default=False,
        ),
    ] = None,
    verdict_file: Annotated[
        Path | None,
        typer.Option(
            help="Score what this file says, without a model: OUT.judged.jsonl, or a published file.",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Of a file with several judges: this one.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another run's OUT (or a verdict file): differences and paired tests.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the snapshot. [default: the published one]", show_default=False)
    ] = None,
    groups: Annotated[str | None, typer.Option(help="Comma-separated: only these subsets.", show_default=False)] = None,
    scoring: ScoreOptions = ScoreOptions(),
    picking: PickOptions = PickOptions(),
    models: EvalModelOptions = EvalModelOptions(),
    judging: JudgeOptions = JudgeOptions(),
    verdicts: Verdicts = None,
    strict: Strict = False,
) -> None:
    """Score a judge on a benchmark.

    Reads a snapshot of the benchmark that lies on this machine, has the model judge it, and prints each score with its
    95 % interval, the items, invalid and cut-off votes, order consistency, comparisons and tokens; published numbers
    stand apart, marked as such. Orders, invalid verdicts and ties count as the benchmark's authors count them, unless
    told otherwise. --verdict-file scores a file instead: of an earlier run, or a published one.

    Every vote is kept as it comes: killed and started again it goes on where it was, and scored in another way nothing
    is judged twice. Items on which the backend failed are listed as not judged, and not scored (exit code 1), as are
    malformed rows.

    \b
    Example:
      rrm eval --list
      rrm eval pandalm --data PandaLM/data/testset-v1.json --model runs/judge --out runs/pandalm
      rrm eval llmbar --data LLMBar/Dataset --verdict-file judge_winners_slim.json
      rrm eval ppe-math-best-of-n --data PPE-MATH --model runs/judge --out runs/ppe --strategy knockout --votes 5
    """
    from rrm_jax.evaluation.benchmarks import BENCHMARKS, Loaded, benchmark_of, load

    if show_list:
        _list(BENCHMARKS.values())
        return
    if name is None or (data is None and verdict_file is None):
        raise RrmError("a benchmark and its --data are needed; rrm eval --list shows what there is")
    wanted = [group.strip() for group in groups.split(",")] if groups else []
    if verdict_file is not None and models.model is not None:
        raise RrmError("--verdict-file needs no judge: leave --model out")
    if data is None:
        loaded = Loaded(benchmark_of(name), (), {}, 0, {})
    else:
        loaded = load(name, data, split=split, groups=wanted, strict=strict, report=warn)
    policy = _policy(loaded.benchmark, scoring, judging.seed, judged=models.model is not None)
    for note in loaded.notes():
        warn(f"{name}: {note}")
    job = _Job(loaded, policy, scoring.resamples, judging.seed, out, against)
    job.refuse_to_overwrite([path for path in (verdict_file, verdicts, against) if path is not None])
    if models.model is None:
        _score_file(job, verdict_file, judge)
    else:
        if out is None:
            raise RrmError("--out is needed, where verdicts are kept")
        _judge(job, models, judging, picking, scoring, out, verdicts)
    if loaded.skipped or job.not_judged:
        raise typer.Exit(1)


def _list(benchmarks: Any) -> None:
    for one in benchmarks:
        rows = f", {sum(one.rows.values())} rows" if one.rows else ""
        facts = [one.hub and f"{one.hub} ({one.revision})", one.licence and f"licence {one.licence}", one.citation]
        print(f"{one.name}\n  {one.what}{rows}\n  {'; '.join(filter(None, facts))}")
        print(f"  columns: {', '.join(one.columns[:8])}{', …' if len(one.columns) > 8 else ''}")
        if one.unverified:
            print(f"  not verified: {one.unverified}")


def _policy(benchmark: "Benchmark", scoring: ScoreOptions, seed: int, judged: bool) -> "Policy":
    changed: dict[str, Any] = {
        key: value for key in ("invalid", "ties") if (value := getattr(scoring, key)) is not None
    }
    if benchmark.kind == "best-of-n" and (
        changed.get("invalid", "random") not in ("random", "0.5") or "ties" in changed
    ):
        raise RrmError("of best-of-N, --invalid is random or 0.5, and there is no --ties")
    return dataclasses.replace(benchmark.policy, **changed, order=None if judged else scoring.order, seed=seed)


class _Job:
    """What is scored, and where the results go."""

    def __init__(
        self, loaded: "Loaded", policy: "Policy", resamples: int, seed: int, out: Path | None, against: Path | None
    ):
        self.loaded, self.policy, self.resamples, self.seed = loaded, policy, resamples, seed
        self.out, self.against = out, against
        self.not_judged: Mapping[str, str] = {}
        self.curve: Mapping[int, Sequence[Score]] = {}

    def path(self, ending: str) -> Path:
        assert self.out is not None
        return self.out.with_name(self.out.name + ending)

    def refuse_to_overwrite(self, others: Sequence[Path]) -> None:
        """What is written must replace nothing but an older result of the same job."""
        if self.out is None:
            return
        run, used = self.path(".run.json"), {path.resolve() for path in (*self.loaded.files.values(), *others)}
        for path in map(self.path, (".json", ".md", ".judged.jsonl")):
            if path.is_file() and not run.is_file():
                raise RrmError(f"{path} exists, but not {run}, so it is not this job's; choose another --out")
        for path in map(self.path, (".json", ".md", ".run.json")):
            if path.resolve() in used:
                raise RrmError(f"{path} is read, and would be written over; choose another --out")
        if self.path(".judged.jsonl").resolve() in {path.resolve() for path in self.loaded.files.values()}:
            raise RrmError(f"{self.path('.judged.jsonl')} is read, and would be written over; choose another --out")

    @property
    def inputs(self) -> dict[str, str | Path]:
        return dict(self.loaded.files)

    def report(self, scores: Mapping[str, Sequence["Score"]], verdicts: Mapping[str, Any] | None) -> None:
        """Prints, and writes OUT.json and OUT.md."""
        from rrm_jax.data.jsonl import write_whole
        from rrm_jax.evaluation import eval_report as report

        benchmark = self.loaded.benchmark
        lines = [f"{benchmark.what}; {benchmark.hub or 'rows given'}", *self.loaded.notes()]
        lines += [f"{len(self.not_judged)} item(s) were not judged, and are not scored"] if self.not_judged else []
        rules = dataclasses.asdict(self.policy)
        lines.append("counted as: " + ", ".join(f"{key} {value}" for key, value in rules.items() if value is not None))
        (first, *_) = scores.values()
        tables = [report.score_rows(first) if len(scores) == 1 else report.judge_rows(scores)]
        if self.curve:
            tables.append(report.curve_rows(self.curve))
        compared = self._compare(verdicts)
        tables += [report.difference_rows(compared)] if compared else []
        tables.append(report.published_rows(benchmark))
        print("\n".join([benchmark.name, *lines]))
        for rows in filter(None, tables):
            print("\n".join(["", *report.terminal(rows)]))
        for id, why in list(self.not_judged.items())[:10]:
            warn(f"not judged: {id}: {why}")
        if self.out is None:
            return
        facts = {
            "benchmark": benchmark.name, "policy": rules, "resamples": self.resamples, "notes": self.loaded.notes(),
            "items": len(self.loaded.items), "not_judged": dict(self.not_judged),
            "scores": {judge: [score.to_row() for score in one] for judge, one in scores.items()},
            "curve": {size: [score.to_row() for score in one] for size, one in self.curve.items()},
            "against": None if self.against is None else str(self.against),
            "differences": [dataclasses.asdict(one) for one in compared],
            "published": [dataclasses.asdict(one) for one in benchmark.published],
        }  # fmt: skip
        write_whole(self.path(".md"), report.markdown(benchmark.name, lines, tables))
        write_whole(self.path(".json"), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def _compare(self, verdicts: Mapping[str, Any] | None) -> list[Any]:
        from rrm_jax.evaluation.benchmarks import compare, read_verdict_file

        if self.against is None:
            return []
        if verdicts is None:
            raise RrmError("--against compares one judge; choose it with --judge")
        rows = self.against.with_name(self.against.name + ".judged.jsonl")
        benchmark, items = self.loaded.benchmark, self.loaded.items
        others = read_verdict_file(benchmark, items, rows if rows.is_file() else self.against)
        if len(others) != 1:
            raise RrmError(f"{self.against} has {len(others)} judges; --against takes a file of one")
        (other,) = others.values()
        return compare(benchmark, items, verdicts, other, self.policy, samples=max(self.resamples, 1), seed=self.seed)


def _score_file(job: _Job, path: Path | None, judge: str | None) -> None:
    from rrm_jax.evaluation.benchmarks import read_verdict_file, score, scores_of_subsets
    from rrm_jax.evaluation.benchmarks.verdict_files import read_content
    from rrm_jax.provenance import pinned

    benchmark, items = job.loaded.benchmark, job.loaded.items
    inputs = job.inputs
    if path is None and benchmark.kind != "best-of-n":
        raise RrmError("--model is needed, or a --verdict-file to score")
    if path is not None:
        inputs["verdicts"] = path
    verdicts: Any = None
    scores: Any = None if path is None else scores_of_subsets(benchmark, read_content(path))
    if scores is None and not items:
        raise RrmError(f"{path} is scored against the benchmark's rows: give them as --data")
    if scores is not None:
        scores = _only(judge, scores)
    else:
        found = {"no judge": {}} if path is None else _only(judge, read_verdict_file(benchmark, items, path))
        how = {"samples": job.resamples if len(found) == 1 else 0, "seed": job.seed}
        scores = {name: score(benchmark, items, said, job.policy, **how) for name, said in found.items()}
        verdicts = next(iter(found.values())) if len(found) == 1 else None
        if verdicts:
            job.not_judged = {item.id: "not in the verdict file" for item in items if item.id not in verdicts}
    config = {"benchmark": benchmark.name, "verdicts": str(path)}
    run = contextlib.nullcontext() if job.out is None else pinned(
        job.path(".run.json"), config=config, seed=job.seed, inputs=inputs
    )  # fmt: skip
    with run:
        job.report(scores, verdicts)


def _only[T](judge: str | None, found: Mapping[str, T]) -> dict[str, T]:
    if judge is not None and judge not in found:
        raise RrmError(f"the file has no judge {judge!r}; it has {', '.join(list(found)[:10])}")
    return {**found} if judge is None else {judge: found[judge]}


def _judge(
    job: _Job, models: EvalModelOptions, judging: JudgeOptions, picking: PickOptions, scoring: ScoreOptions, out: Path,
    store: Path | None,
) -> None:  # fmt: skip
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.evaluation.benchmarks import best_of_each, judge_items, score
    from rrm_jax.judging.store import VoteLog
    from rrm_jax.provenance import pinned

    benchmark, items = job.loaded.benchmark, job.loaded.items
    order = scoring.order or benchmark.order
    if benchmark.right_first and order == "given":
        warn(f"{benchmark.name} has the better response first in every row: --order given always shows it there")
    entry = _entry(picking) if benchmark.kind == "best-of-n" else None
    sizes = _sizes(picking.curve, entry)
    total = sum(
        len(item.games)
        if entry is None
        else sum(entry.strategy.most_comparisons(n) for n in (len(item.responses), *sizes) if n <= len(item.responses))
        for item in items
    )
    progress = Progress("comparisons", total)
    judge = open_judge(open_generator(models, progress), judging, order=order)
    rule = {"0.5": "draw"}.get(scoring.invalid or "", "random")
    settings = judge.settings | {"benchmark": benchmark.name}
    ranking = {key: value for key, value in dataclasses.asdict(picking).items() if key != "curve"}
    settings |= {} if entry is None else {"ranking": ranking, "invalid": rule}
    log_path = store or job.path(".votes.jsonl")
    if log_path.resolve() == job.path(".judged.jsonl").resolve():
        raise RrmError(f"--verdicts {store} is where results are written; name another file")
    with pinned(job.path(".run.json"), config=settings, seed=judging.seed, inputs=job.inputs):
        playing = {"entry": entry, "invalid": rule, "seed": judging.seed, "advance": progress.advance}
        with VoteLog(log_path, report=warn) as log, progress:
            with _rows(job.path(".judged.jsonl")) as keep:
                outcome = judge_items(judge, benchmark, items, log, keep=keep, **playing)
                _check(outcome)
            curve = best_of_each(judge, benchmark, items, sizes, log, **playing)
        print(f"{log.written} votes drawn now, {log.found} found in the store")
        job.not_judged = outcome.not_judged
        how = {"samples": job.resamples, "seed": judging.seed}
        job.curve = {
            size: score(benchmark, some, picks.verdicts, job.policy, **how)
            for size, (some, picks) in curve.items()
            if picks.verdicts
        }
        job.report({"judge": score(benchmark, items, outcome.verdicts, job.policy, **how)}, outcome.verdicts)


def _check(outcome: "Outcome") -> None:
    if not outcome.verdicts:
        why = next(iter(outcome.not_judged.values()), "there are no items")
        raise RrmError(f"nothing was judged: {why}")


def _sizes(curve: str | None, entry: "Entry | None") -> list[int]:
    if curve is None:
        return []
    if entry is None:
        raise RrmError("--curve is of best-of-N alone")
    parts = curve.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise RrmError(f"--curve {curve!r} must be whole numbers from 1, separated by commas")
    return sorted({int(part) for part in parts})


def _entry(picking: PickOptions) -> "Entry":
    from rrm_jax.ranking.entry import parse_entry

    entry = parse_entry(picking.strategy, rating=picking.rating, stop=picking.stop, budget=picking.budget)
    if entry.votes != 1:
        raise RrmError(f"{picking.strategy!r}: the votes of a comparison are --votes here")
    return entry


@contextlib.contextmanager
def _rows(path: Path) -> Any:
    """Gives a function that writes a row; the file appears when all are there. What was judged is in the store."""
    from rrm_jax.data.jsonl import encode_row

    unfinished = path.with_name(path.name + ".part")
    try:
        with open(unfinished, "wb") as file:
            yield lambda row: file.write(encode_row(row))
        unfinished.replace(path)
    except OSError as error:
        raise RrmError(
            f"cannot write {path}: {error.strerror or error}; every vote is kept, run again to go on"
        ) from None
