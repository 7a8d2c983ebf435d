"""`rrm eval` where a model answers: its options, its samples, and files of answers."""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.judge_options import JudgeOptions
from rrm_jax.cli.loading import Progress, warn
from rrm_jax.cli.options import ModelOptions
from rrm_jax.cli.sampling_options import PolicyAsking, PromptOptions, SamplingOptions, decoding_settings, open_policy
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.evaluation.benchmarks import Benchmark, Loaded
    from rrm_jax.evaluation.eval_job import Job
    from rrm_jax.evaluation.eval_results import Evaluated

_DRAWN = ("seed", "temperature", "top_p", "max_new_tokens", "max_prompt_tokens")
"""Of a judge's options, those that say how tokens are drawn: they hold for a model that answers, too."""


@dataclasses.dataclass(frozen=True)
class AnsweringOptions:
    """What is answered, and how often."""

    n: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, help="answer-…: samples a question. [default: 1; of --answers all]", show_default=False
        ),
    ] = None
    instruction: Annotated[
        str | None,
        typer.Option(
            help="answer-…: a line after the question; may be empty. [default: to reason, and to box the answer]",
            show_default=False,
        ),
    ] = None
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Responses that there are already: of rrm answer, or, of arena-hard, a published model_answer file.",
            show_default=False,
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="arena-hard: such a file of the baseline's answers.", show_default=False),
    ] = None


def check_options(
    benchmark: "Benchmark", judging: JudgeOptions, answering: AnsweringOptions, prompt: PromptOptions, picking: Any,
    judged: bool,
) -> None:  # fmt: skip
    """RrmError for an option that says nothing of this benchmark, or, where nothing is `judged`, of what is there."""
    answered = benchmark.kind == "answers"
    if answered:
        asked = ("of a model that judges", {**_changed(judging, _DRAWN), **_changed(picking)}, {"baseline"})
    else:
        asked = ("of a model that answers", _changed(prompt), {"n", "instruction"})
    if not answered and benchmark.kind != "best-of-n" and (chosen := _changed(picking)):
        raise RrmError(f"--{next(iter(chosen))} is of best-of-N alone, and {benchmark.name} has pairs; leave it out")
    if not answered and not judged and (unused := {**_changed(judging, ("seed",)), **_changed(picking)}):
        name = next(iter(unused)).replace("_", "-")
        raise RrmError(f"--{name} is of a model that judges, and none does here: give --model, or leave it out")
    what, wrong, more = asked
    given = _changed(answering)
    if not (answered or benchmark.takes_answers):
        more |= {"answers", "baseline"}
    names = [*wrong, *(name for name in given if name in more)]
    if names:
        raise RrmError(
            f"--{names[0].replace('_', '-')} is {what}, or of another benchmark; leave it out of {benchmark.name}"
        )
    if benchmark.takes_answers and not (answering.answers and answering.baseline):
        raise RrmError(f"{benchmark.name} compares a model's --answers with a --baseline's: name both files")


def _changed(options: Any, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields that are not their defaults."""
    fields = {field.name: (getattr(options, field.name), field.default) for field in dataclasses.fields(options)}
    return {name: value for name, (value, default) in fields.items() if value != default and name not in but}


def with_answers(loaded: "Loaded", answering: AnsweringOptions, report: Callable[[str], None]) -> "Loaded":
    """Of a benchmark that compares answers: its items with them; those that lack one are passed over."""
    if not loaded.benchmark.takes_answers:
        return loaded
    from rrm_jax.evaluation.benchmarks.arena_hard import fill

    assert answering.answers is not None
    assert answering.baseline is not None
    items = tuple(fill(loaded.items, answering.answers, answering.baseline, report))
    if not items:
        raise RrmError(f"{answering.answers} and {answering.baseline} have no answers to the same prompts of this data")
    files = {**loaded.files, "answers": answering.answers, "baseline": answering.baseline}
    skipped = loaded.skipped + len(loaded.items) - len(items)
    return dataclasses.replace(loaded, items=items, files=files, skipped=skipped)


def answer(
    job: "Job", models: Any, judging: JudgeOptions, answering: AnsweringOptions, prompt: PromptOptions
) -> "Evaluated":
    """Has the model answer, or takes the answers that there are, and scores them."""
    from rrm_jax.data.jsonl import Reader
    from rrm_jax.data.records import Unique, parse_candidates
    from rrm_jax.data.samples import CandidateFile
    from rrm_jax.data.verifier_pool import VerifierPool
    from rrm_jax.evaluation.evaluate import solve_benchmark
    from rrm_jax.provenance import pinned

    if job.out is None:
        raise RrmError("--out is needed, where responses are kept")
    if models.model is None and answering.answers is None:
        raise RrmError("--model is needed, or a file of --answers, or a --verdict-file to score")
    if models.model is not None and answering.answers is not None:
        raise RrmError("--answers are there already: leave --model out")
    progress = Progress("verifying", len(job.loaded.items))
    if answering.answers is None:
        return _draw(job, models, judging, answering, prompt)
    if names := [*_changed(prompt), *(["instruction"] if answering.instruction is not None else [])]:
        raise RrmError(f"--{names[0]} says how a model is asked; --answers are there already")
    inputs: dict[str, str | Path] = {**job.loaded.files, "answers": answering.answers}
    settings = {"benchmark": job.loaded.benchmark.name, "n": answering.n}
    # Rows that cannot be used are told of here, and passed over below.
    reader = Reader(answering.answers, Unique(parse_candidates), report=warn)
    collections.deque(reader, maxlen=0)
    loaded = dataclasses.replace(job.loaded, skipped=job.loaded.skipped + reader.skipped)
    job = dataclasses.replace(job, loaded=loaded)
    with pinned(job.path(".run.json"), config=settings, seed=job.policy.seed, inputs=inputs), VerifierPool() as pool:
        source = CandidateFile(answering.answers, accept=_accept(job))
        with progress:
            return solve_benchmark(job, source, answering.n, pool, advance=progress.advance)


def _accept(job: "Job") -> Callable[[dict[str, Any]], Any]:
    """Rows of candidates whose query begins with the question of that id; RrmError for another question."""
    from rrm_jax.data.records import parse_candidates

    queries = {item.id: item.query for item in job.loaded.items}

    def accept(row: dict[str, Any]) -> Any:
        candidates = parse_candidates(row)
        if not candidates.query.startswith(queries.get(candidates.id, "")):
            raise RrmError(f"the query of {candidates.id!r} is not this data's question of that id")
        return candidates

    return accept


def _draw(
    job: "Job", models: ModelOptions, judging: JudgeOptions, answering: AnsweringOptions, prompt: PromptOptions
) -> "Evaluated":
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.loading import fit_positions
    from rrm_jax.data.samples import LoggedSamples, SampleLog
    from rrm_jax.data.verifier_pool import VerifierPool
    from rrm_jax.evaluation.answering import Sampling
    from rrm_jax.evaluation.benchmarks.solving import questions_of
    from rrm_jax.evaluation.evaluate import solve_benchmark
    from rrm_jax.provenance import pinned

    benchmark, samples = job.loaded.benchmark, answering.n or 1
    progress = Progress("answering", samples * len(job.loaded.items))
    generator = open_generator(models, progress)
    tokenizer = generator.tokenizer
    assert tokenizer is not None
    drawn = SamplingOptions(n=samples, **{key: v for key, v in _drawn(judging).items() if v is not None})
    decoding = drawn.decoding(generator, tokenizer.stop_ids)
    room = fit_positions(judging.max_prompt_tokens, drawn.max_new_tokens, generator.max_positions)
    instruction = benchmark.instruction if answering.instruction is None else answering.instruction
    asking = PolicyAsking(open_policy(generator, prompt, room), tokenizer, instruction)
    settings = {
        "benchmark": benchmark.name, "model": generator.identity, "tokenizer": tokenizer.fingerprint,
        "decoding": decoding_settings(decoding), "prompt": asking.settings, "seed": judging.seed,
    }  # fmt: skip
    name = models.backend_model or models.model.name
    with pinned(job.path(".run.json"), config=settings, seed=judging.seed, inputs={**job.loaded.files}):
        with SampleLog(job.path(".samples"), generator.identity, name, asking.policy.thinking, settings) as log:
            sampling = Sampling(log, questions_of(job.loaded.items), asking, decoding, samples, judging.seed)
            with progress:
                progress.begin(sampling.done)
                count = sampling.run(generator, tokenizer, generator.takes_messages, progress.advance)
        if sampling.cut:
            warn(f"the end of {len(sampling.cut)} question(s) was cut off to fit, such as of {sampling.cut[0]!r}")
        verifying = Progress("verifying", len(job.loaded.items))
        with VerifierPool() as pool, verifying:
            source, before = LoggedSamples.open(log.path, samples), sampling.done
            return solve_benchmark(job, source, samples, pool, drawn=(count, before), advance=verifying.advance)


def _drawn(judging: JudgeOptions) -> dict[str, Any]:
    return {name: getattr(judging, name) for name in _DRAWN if name != "max_prompt_tokens"}
