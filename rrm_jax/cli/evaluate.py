"""`rrm eval`: benchmarks, judged or answered by a model, or scored from a file."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.evaluate_answers import AnsweringOptions, answer, check_options, with_answers
from rrm_jax.cli.judge_options import JudgeOptions, open_judge
from rrm_jax.cli.loading import Progress, warn
from rrm_jax.cli.options import ModelOptions, Strict, Verdicts, with_options
from rrm_jax.cli.sampling_options import PromptOptions
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.evaluation.eval_job import Job
    from rrm_jax.evaluation.eval_results import Evaluated


@dataclasses.dataclass(frozen=True)
class EvalModelOptions(ModelOptions):
    """As for the other verbs, but that a file of verdicts needs no model."""

    model: Annotated[  # type: ignore[assignment]
        Path | None,
        typer.Option(
            help="The judge, as for rrm judge, or, of answer-…, the model that answers. None with --verdict-file.",
            show_default=False,
        ),
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
            help="Writes OUT.json, OUT.md, OUT.run.json, OUT.judged.jsonl and, of a judge, OUT.votes.jsonl; of a model "
            "that answers, OUT.samples/.",
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
    answering: AnsweringOptions = AnsweringOptions(),
    prompt: PromptOptions = PromptOptions(),
    verdicts: Verdicts = None,
    strict: Strict = False,
) -> None:
    """Score a judge on a benchmark, or a model that answers questions.

    Reads a snapshot of the benchmark that lies on this machine, has the model judge it, and prints each score with its
    95 % interval, the items, invalid and cut-off votes, order consistency, comparisons and tokens; published numbers
    stand apart, marked as such. Orders, invalid verdicts and ties count as the benchmark's authors count them, unless
    told otherwise. --verdict-file scores a file instead: of an earlier run, or a published one.

    Every vote is kept as it comes: killed and started again it goes on where it was, and scored in another way nothing
    is judged twice. Items on which the backend failed are listed as not judged, and not scored (exit code 1), as are
    malformed rows.

    answer-gsm8k, answer-math-500, answer-gpqa and answer-mmlu-pro have the model answer --n times, verify its final
    answers (as rrm data verify does), and give accuracy, majority, and answers that are missing or cut off. It is asked
    as rrm answer asks, with a line after the question (--instruction); --answers scores responses that there are.
    arena-hard has a judge compare a model's --answers with a --baseline's, in both orders, and gives the win rate, and
    what it would be were both as long.

    \b
    Example:
      rrm eval --list
      rrm eval pandalm --data PandaLM/data/testset-v1.json --model runs/judge --out runs/pandalm
      rrm eval llmbar --data LLMBar/Dataset --verdict-file judge_winners_slim.json
      rrm eval answer-gsm8k --data gsm8k/test.jsonl --model runs/policy --out runs/policy.gsm8k --n 4
      rrm eval arena-hard --data question.jsonl --answers mine.jsonl --baseline gpt-4-0314.jsonl \\
        --model runs/judge --out runs/mine.arena
      rrm eval ppe-math-best-of-n --data PPE-MATH --model runs/judge --out runs/ppe --strategy knockout --votes 5
    """
    from rrm_jax.evaluation.benchmarks import BENCHMARKS, Loaded, benchmark_of, load
    from rrm_jax.evaluation.eval_job import Job, policy_of
    from rrm_jax.evaluation.evaluate import score_file

    if show_list:
        _list(BENCHMARKS.values())
        return
    if name is None or (data is None and verdict_file is None):
        raise RrmError("a benchmark and its --data are needed; rrm eval --list shows what there is")
    wanted = [group.strip() for group in groups.split(",")] if groups else []
    judged = models.model is not None
    if verdict_file is not None and judged:
        raise RrmError("--verdict-file needs no judge: leave --model out")
    check_options(benchmark_of(name), judging, answering, prompt, picking, judged)
    if verdicts is not None and not judged:
        raise RrmError("--verdicts is of a model that judges, and none does here: give --model, or leave it out")
    if judge is not None and verdict_file is None:
        raise RrmError("--judge names one of a --verdict-file's judges; the model to judge with is --model")
    if data is None:
        loaded = Loaded(benchmark_of(name), (), {}, 0, {})
    else:
        how: dict[str, Any] = {"strict": strict, "report": warn, "seed": judging.seed}
        loaded = with_answers(load(name, data, split=split, groups=wanted, **how), answering, warn)
    order = None if judged and loaded.benchmark.kind != "answers" else scoring.order
    policy = policy_of(loaded.benchmark, invalid=scoring.invalid, ties=scoring.ties, order=order, seed=judging.seed)
    for note in loaded.notes():
        warn(f"{name}: {note}")
    job = Job(loaded, policy, out, against, scoring.resamples)
    job.refuse_to_overwrite(verdict_file, verdicts)
    if loaded.benchmark.kind == "answers" and verdict_file is None:
        evaluated = answer(job, models, judging, answering, prompt)
    elif judged:
        evaluated = _judge(job, models, judging, picking, scoring, verdicts)
    elif verdict_file is None and loaded.benchmark.kind != "best-of-n":
        raise RrmError("--model is needed, or a --verdict-file to score")
    else:
        evaluated = score_file(job, verdict_file, judge)
    print(evaluated.text)
    for id, why in list(evaluated.not_judged.items())[:10]:
        warn(f"not judged: {id}: {why}")
    if not evaluated.complete:
        raise typer.Exit(1)


def _list(benchmarks: Any) -> None:
    for one in benchmarks:
        rows = f", {sum(one.rows.values())} rows" if one.rows else ""
        facts = [one.hub and f"{one.hub} ({one.revision})", one.licence and f"licence {one.licence}", one.citation]
        print(f"{one.name}\n  {one.what}{rows}\n  {'; '.join(filter(None, facts))}")
        print(f"  columns: {', '.join(one.columns[:8])}{', …' if len(one.columns) > 8 else ''}")
        if one.unverified:
            print(f"  not verified: {one.unverified}")


def _judge(
    job: "Job", models: EvalModelOptions, judging: JudgeOptions, best: PickOptions, scoring: ScoreOptions,
    store: Path | None,
) -> "Evaluated":  # fmt: skip
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.evaluation.eval_job import Picking, most_comparisons, order_of
    from rrm_jax.evaluation.evaluate import judge_benchmark

    if job.out is None:
        raise RrmError("--out is needed, where verdicts are kept")
    benchmark = job.loaded.benchmark
    order = order_of(benchmark, scoring.order, warn)
    invalid = "draw" if scoring.invalid == "0.5" else "random"
    picking = Picking(best.strategy, best.rating, best.budget, best.stop, invalid)
    sizes = _sizes(best.curve)
    progress = Progress("comparisons", most_comparisons(job.loaded, picking, sizes))
    judge = open_judge(open_generator(models, progress), judging, order=order)
    return judge_benchmark(
        job, judge, picking=picking, sizes=sizes, store=store, report=warn, advance=progress.advance,
        while_judging=progress,
    )  # fmt: skip


def _sizes(curve: str | None) -> list[int]:
    if curve is None:
        return []
    parts = curve.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise RrmError(f"--curve {curve!r} must be whole numbers from 1, separated by commas")
    return sorted({int(part) for part in parts})
