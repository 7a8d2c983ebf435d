"""`rrm answer`: a model's responses to questions, as candidates."""

import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.options import ModelOptions, Strict, with_options
from rrm_jax.cli.sampling_options import (
    PolicyAsking,
    PromptOptions,
    SamplingOptions,
    decoding_settings,
    open_policy,
)

if TYPE_CHECKING:
    from rrm_jax.data.records import Question
    from rrm_jax.data.samples import LoggedSamples


@with_options
def command(
    models: ModelOptions,
    questions: Annotated[Path, typer.Option(help="JSONL: id, query; or what rrm data prepare made.")],
    out: Annotated[Path, typer.Option(help="JSONL of candidates. OUT.samples/ and OUT.run.json stand beside it.")],
    sampling: SamplingOptions,
    prompt: PromptOptions,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest prompt; the end of a longer question is cut off. [default: as trained here, else 2048]",
            show_default=False,
        ),
    ] = None,
    strict: Strict = False,
) -> None:
    """Answer questions with a model: --n responses to each.

    The model is asked after its own chat template. One that was trained here as a policy (task: policy) is asked as it
    was trained; --system, --user and --prefix say otherwise.

    Each row of OUT is {id, query, responses, finish_reasons, tokens}, with the answer, source and verifier that the
    question has. A response is a whole text, thinking included, with the <think> that the prompt opened: one without
    </think> was cut off in its thinking. rrm rank, rrm data verify, rrm data label and rrm data synthesize read such
    rows as --candidates; a judge is shown what follows the thinking.

    OUT.samples/ keeps every response as it comes. Killed and started again with the same settings it goes on where it
    was, and OUT is written at the end; --n may be raised. A server that stays away ends the job with an error (exit
    code 2). Malformed rows are reported and passed over (exit code 1).

    \b
    Example:
      rrm answer --model runs/policy --questions questions.jsonl --out candidates.jsonl --n 4
      rrm answer --model checkpoints/r1-1.5b --questions data/prompts --out candidates.jsonl --max-new-tokens 4096
      rrm rank --model runs/judge --candidates candidates.jsonl --out ranked.jsonl
    """
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.data.verify import read_questions
    from rrm_jax.cli.loading import Progress, exit_if_skipped, fit_positions, warn
    from rrm_jax.data.prepared import content_file
    from rrm_jax.data.samples import LoggedSamples, SampleLog
    from rrm_jax.data.whole_files import write_jsonl
    from rrm_jax.evaluation.answering import Sampling
    from rrm_jax.provenance import earlier_results, pinned, refuse_inputs_as_outputs

    run = out.with_name(out.name + ".run.json")
    refuse_inputs_as_outputs((out, run), [questions])
    earlier_results([out], run)
    asked, skipped = read_questions(questions, strict, verifiable=False)
    progress = Progress("answering", sampling.n * len(asked))
    generator = open_generator(models, progress)
    tokenizer = generator.tokenizer
    assert tokenizer is not None
    decoding = sampling.decoding(generator, tokenizer.stop_ids)
    policy = open_policy(generator, prompt, max_prompt_tokens)
    room = fit_positions(policy.max_prompt_tokens, sampling.max_new_tokens, generator.max_positions)
    asking = PolicyAsking(policy.model_copy(update={"max_prompt_tokens": room}), tokenizer)
    settings = {
        "model": generator.identity, "tokenizer": tokenizer.fingerprint, "decoding": decoding_settings(decoding),
        "prompt": asking.settings, "seed": sampling.seed,
    }  # fmt: skip
    name = models.backend_model or models.model.name
    directory = out.with_name(out.name + ".samples")
    with pinned(run, config=settings, seed=sampling.seed, inputs={"questions": content_file(questions)}):
        with SampleLog(directory, generator.identity, name, policy.thinking, settings) as log, progress:
            drawing = Sampling(log, asked, asking, decoding, sampling.n, sampling.seed)
            progress.begin(drawing.done)
            drawn = drawing.run(generator, tokenizer, generator.takes_messages, progress.advance)
        counts: collections.Counter[str] = collections.Counter()
        write_jsonl(out, _rows(asked, LoggedSamples.open(log.path, sampling.n), policy.prefix, counts))
    print(f"responses: {counts['responses']} ({drawn} drawn now) to {len(asked)} questions, {counts['tokens']} tokens")
    print(f"cut off at the token limit: {counts['cut off']}; in their thinking: {counts['unfinished thinking']}")
    if drawing.cut:
        warn(f"the end of {len(drawing.cut)} question(s) was cut off to fit, such as of id {drawing.cut[0]!r}")
    exit_if_skipped(skipped, f"malformed row(s) of {questions}")


def _rows(
    questions: "Mapping[str, Question]", samples: "LoggedSamples", prefix: str, counts: "collections.Counter[str]"
) -> Iterator[dict[str, Any]]:
    from rrm_jax.data.records import to_row
    from rrm_jax.data.samples import UNFINISHED, by_question
    from rrm_jax.data.tokenizer import END_THINK, THINK

    at = prefix.rfind(THINK)
    opened = prefix[at:] if at > prefix.rfind(END_THINK) else ""
    for question, found in by_question(questions, [samples]):
        for _, sample, text in found:
            counts["responses"] += 1
            counts["tokens"] += sample.tokens
            counts["cut off"] += sample.finish_reason == "length"
            counts["unfinished thinking"] += samples.response(text, sample.finish_reason)[1] == UNFINISHED
        if found:
            yield to_row(question) | {
                "responses": [opened + text for _, _, text in found],
                "finish_reasons": [sample.finish_reason for _, sample, _ in found],
                "tokens": [sample.tokens for _, sample, _ in found],
            }
