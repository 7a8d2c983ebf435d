"""`rrm data synthesize`: pairs of a right and a wrong response, from questions whose answers are known."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rrm_jax.cli.data.verify import VerifyingOptions, open_pool, settings_of
from rrm_jax.cli.options import ModelOptions, Strict, Temperature, TopP, with_options

if TYPE_CHECKING:
    from rrm_jax.data.records import Question
    from rrm_jax.data.samples import Source
    from rrm_jax.data.synthesis import Synthesis

_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What pairs are made of."""

    questions: Annotated[
        Path | None,
        typer.Option(
            help="JSONL: id, query, answer, and optionally source, verifier; or what rrm data prepare made.",
            show_default=False,
        ),
    ] = None
    candidates: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSONL of responses that there are already: id, query, responses; answer too, without --questions. "
            "May be given several times.",
            show_default=False,
        ),
    ] = None
    unverified: Annotated[
        bool,
        typer.Option(
            "--unverified",
            help="Write candidates instead of pairs: each question with all of its finished responses, for rrm data "
            "label. Answers are neither needed nor looked at.",
        ),
    ] = False


@dataclasses.dataclass(frozen=True)
class _Generators(ModelOptions):
    """Who writes the samples."""

    model: Annotated[  # pyrefly: ignore[bad-override]
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Who writes the samples, as for rrm generate. May be given several times: one after the other.",
            show_default=False,
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class _Verifying(VerifyingOptions):
    verifier: Annotated[
        str,
        typer.Option(
            help="As for rrm data verify: auto, math, choice, exact, numeric, numeric:TOLERANCE; or given: believe the "
            "`correct` of candidates. A question's own `verifier` comes first, but for given."
        ),
    ] = "auto"


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """How samples are drawn."""

    samples: Annotated[int, typer.Option(min=1, help="Samples a question from each generator.")] = 4
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling, and of which two make a pair.")] = 0
    temperature: Temperature = 0.6
    top_p: TopP = 1.0
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest thinking and answer, in tokens.")] = 8192
    instruction: Annotated[
        str | None,
        typer.Option(
            help="A line after the question; may be empty.",
            show_default=f"{_INSTRUCTION} With --unverified none.",
        ),
    ] = None
    thinking: Annotated[
        Literal["auto", "required", "none"],
        typer.Option(
            help="required: a sample without </think> was cut off in its thinking, and is not used; none: it is an "
            "answer as it stands; auto: required of models whose tokenizer has the token </think>."
        ),
    ] = "auto"


@with_options
def command(
    given: _Inputs,
    models: _Generators,
    out: Annotated[Path, typer.Option(help="JSONL of pairs. OUT.samples/, .report.json and .run.json stand beside.")],
    drawing: _Drawing,
    verifying: _Verifying,
    strict: Strict = False,
) -> None:
    """Make pairs of a right and a wrong response to questions whose answers are known.

    Every generator answers every question --samples times, after its own chat template. What follows the thinking is
    verified (rrm data verify --help says how); of each question with both, one right and one wrong response, drawn by
    the seed, make a pair: response_1 is the right one, label is 1. Whether it is left out, and why (none right, none
    wrong, no answer, unfinished thinking, timed out, ...), is printed and written to OUT.report.json, of every source
    and generator.

    OUT.samples/ keeps what each generator wrote in a log of its own, as it comes. Killed and started again the same
    command goes on where it was; with another generator, or more --samples, it adds to them, and OUT is made anew of
    all that is there. A server that stays away ends the job with an error (exit code 2). With --candidates alone, no
    model runs. Malformed rows are reported and passed over (exit code 1).

    With --unverified OUT has candidates, for a judge to label, and there is no report.

    \b
    Example:
      rrm data synthesize --questions questions.jsonl --model checkpoints/r1-1.5b --model checkpoints/r1-7b \\
        --out pairs.jsonl --samples 4
      rrm data synthesize --candidates answers.jsonl --out pairs.jsonl
      rrm data synthesize --questions data/prompts --model checkpoints/r1-1.5b --unverified --samples 2 \\
        --out candidates.jsonl
    """
    from rrm_jax.cli.loading import Progress, exit_if_skipped
    from rrm_jax.data.prepared import content_file
    from rrm_jax.data.samples import CandidateFile, LoggedSamples
    from rrm_jax.data.synthesis import GIVEN, Synthesis, mark_samples
    from rrm_jax.provenance import earlier_results, pinned, refuse_inputs_as_outputs

    _check_options(given, models, verifying)
    if drawing.instruction is None:
        drawing = dataclasses.replace(drawing, instruction="" if given.unverified else _INSTRUCTION)
    pool = open_pool(verifying, checked=verifying.verifier != GIVEN)
    directory, run = out.with_name(out.name + ".samples"), out.with_name(out.name + ".run.json")
    refuse_inputs_as_outputs((out, run), (given.questions, *(given.candidates or ())))
    earlier_results([out], run)
    questions, skipped = _read(given, verifying.verifier, strict)
    settings = _settings(drawing, verifying) | ({"unverified": True} if given.unverified else {})
    inputs: dict[str, str | Path] = {f"candidates {at}": path for at, path in enumerate(given.candidates or ())}
    if given.questions is not None:
        inputs["questions"] = content_file(given.questions)
    with pinned(run, config=settings, seed=drawing.seed, inputs=inputs), pool:
        for options in _each_model(models):
            skipped += _draw(options, drawing, questions, directory)
        logs = [LoggedSamples.open(path, drawing.samples) for path in sorted(directory.glob("*.jsonl"))]
        accept = _question_of(questions, given, verifying.verifier)
        files = [CandidateFile(path, drawing.thinking == "required", accept) for path in given.candidates or ()]
        sources: Sequence[Source] = [*logs, *files]
        if given.unverified:
            lines = _write_candidates(out, questions, sources)
        else:
            synthesis = Synthesis(questions, sources, drawing.seed)
            with Progress("verifying") as progress:
                for one in mark_samples(questions, sources, verifying.verifier, pool):
                    synthesis.add(one)
                    progress.advance()
            _write(out, synthesis)
            lines = synthesis.lines()
    print("\n".join(lines))
    exit_if_skipped(skipped, "row(s)")


def _check_options(given: _Inputs, models: _Generators, verifying: VerifyingOptions) -> None:
    from rrm_jax.data.synthesis import GIVEN
    from rrm_jax.errors import RrmError

    if not models.model and not given.candidates:
        raise RrmError("nothing gives responses: name a --model, or a file of --candidates")
    if models.model and given.questions is None:
        raise RrmError("--model answers --questions; name them")
    if verifying.verifier == GIVEN and (models.model or not given.candidates):
        raise RrmError("--verifier given believes the `correct` of --candidates; a model's samples have none")
    if given.unverified and verifying.verifier != "auto":
        raise RrmError("--unverified looks at no answer; leave out --verifier")


def _settings(drawing: _Drawing, verifying: VerifyingOptions) -> dict[str, Any]:
    """What may not change while samples are added; their number may."""
    settings = dataclasses.asdict(drawing) | settings_of(verifying)
    del settings["samples"]
    return settings


def _each_model(models: _Generators) -> Iterator[ModelOptions]:
    from rrm_jax.errors import RrmError

    paths: list[Path] = models.model or []
    if models.backend is not None and len(paths) != 1:
        raise RrmError("--backend needs one --model, with the served model's tokenizer; run again for another server")
    if len({path.resolve() for path in paths}) < len(paths):
        raise RrmError("the same --model is named twice")
    for path in paths:
        yield ModelOptions(**{field.name: getattr(models, field.name) for field in dataclasses.fields(models)} | {
            "model": path
        })  # fmt: skip


def _read(given: _Inputs, rule: str, strict: bool) -> tuple[dict[str, "Question"], int]:
    """The questions by id, and how many rows of all files cannot be used."""
    from rrm_jax.cli.data.verify import read_questions
    from rrm_jax.cli.loading import check_rows
    from rrm_jax.data.records import Unique

    questions, skipped = read_questions(given.questions, strict) if given.questions else ({}, 0)
    for path in given.candidates or ():
        found: list[Question] = []
        skipped += check_rows(path, Unique(_question_of(questions, given, rule)), strict, found.append)
        if given.questions is None:
            questions = {question.id: question for question in found} | questions
    return questions, skipped


def _question_of(questions: Mapping[str, "Question"], given: _Inputs, rule: str):
    """A parser from rows of candidates to the questions they answer: those that are known, else their own."""
    from rrm_jax.cli.data.verify import parse_verifiable
    from rrm_jax.data.jsonl import RowError
    from rrm_jax.data.records import parse_candidates
    from rrm_jax.data.synthesis import GIVEN

    def parse(row: dict[str, Any]) -> "Question":
        candidates = parse_candidates(row)
        if rule == GIVEN and candidates.correct is None:
            raise RowError("the row has no 'correct', which --verifier given believes")
        question = questions.get(candidates.id)
        if question is None and given.questions is not None:
            raise RowError(f"no question has the id {candidates.id!r}")
        question = question or parse_verifiable(row)
        if question.query != candidates.query:
            raise RowError(f"the query is not that of question {candidates.id!r} elsewhere")
        return question

    return parse


def _draw(options: ModelOptions, drawing: _Drawing, questions: Mapping[str, "Question"], directory: Path) -> int:
    """Draws what is missing of one generator's samples; how many questions are too long for it."""
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.cli.sampling_options import PolicyAsking
    from rrm_jax.data.samples import SampleLog
    from rrm_jax.data.tokenizer import END_THINK, THINK
    from rrm_jax.errors import RrmError
    from rrm_jax.evaluation.answering import Sampling
    from rrm_jax.sampling.protocol import Decoding
    from rrm_jax.training.policy_config import PolicyConfig

    name = options.backend_model or options.model.name
    progress = Progress(f"sampling {name}", drawing.samples * len(questions))
    generator = open_generator(options, progress)
    tokenizer = generator.tokenizer
    assert tokenizer is not None
    try:
        stop_ids = tokenizer.stop_ids
        decoding = Decoding(drawing.temperature, 0, drawing.top_p, drawing.max_new_tokens, stop_ids)
    except ValueError as error:
        raise RrmError(str(error)) from None
    generator.check(decoding)
    thinking = drawing.thinking == "required" or (
        drawing.thinking == "auto" and tokenizer.control_id(END_THINK) is not None
    )
    room = generator.max_positions - drawing.max_new_tokens
    if room < 1:
        raise RrmError(
            f"--max-new-tokens {drawing.max_new_tokens} leaves no room for a question: the model has "
            f"{generator.max_positions} positions"
        )
    policy = PolicyConfig(prefix=f"{THINK}\n" if thinking else "", thinking=thinking, max_prompt_tokens=room)
    asking = PolicyAsking(policy, tokenizer, drawing.instruction or "", cut=False)
    settings = dataclasses.asdict(drawing) | {"tokenizer": tokenizer.fingerprint, "thinking": thinking}
    del settings["samples"]
    with SampleLog(directory, generator.identity, name, thinking, settings) as log, progress:
        sampling = Sampling(log, questions, asking, decoding, drawing.samples, drawing.seed)
        progress.begin(sampling.done)
        sampling.run(generator, tokenizer, generator.takes_messages, progress.advance)
    if sampling.too_long:
        warn(f"{len(sampling.too_long)} question(s) are too long for {name}, such as id {sampling.too_long[0]!r}")
    return len(sampling.too_long)


def _write(out: Path, synthesis: "Synthesis") -> None:
    from rrm_jax.data.whole_files import write_jsonl, write_whole

    rows = (dataclasses.asdict(pair) | origin for pair, origin in synthesis.pairs())
    write_jsonl(out, rows)
    report = json.dumps(synthesis.report(), ensure_ascii=False, indent=2)
    write_whole(out.with_name(out.name + ".report.json"), report + "\n")


def _write_candidates(out: Path, questions: "Mapping[str, Question]", sources: "Sequence[Source]") -> list[str]:
    """Returns what is to be told of them."""
    from collections import Counter

    from rrm_jax.data.samples import gather
    from rrm_jax.data.whole_files import write_jsonl

    counts: Counter[int] = Counter()
    left_out: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for question, responses in gather(questions, sources, left_out):
            counts[len(responses)] += 1
            if responses:
                source = {"source": question.source} if question.source else {}
                yield {"id": question.id, **source, "query": question.query, "responses": responses}

    write_jsonl(out, rows())
    lines = [f"questions with {size} responses: {count}" for size, count in sorted(counts.items())]
    return lines + [f"responses left out, {why}: {count}" for why, count in left_out.most_common()]
