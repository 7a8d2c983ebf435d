"""`rrm generate`: completions for a file of prompts."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.options import ModelOptions, Strict, with_options
from rrm_jax.cli.sampling_options import SamplingOptions, decoding_settings

if TYPE_CHECKING:
    from rrm_jax.cli.backend import Writer
    from rrm_jax.cli.loading import Progress
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.sampling.protocol import Completion, Decoding


@with_options
def command(
    models: ModelOptions,
    prompts: Annotated[Path, typer.Option(help="JSONL: id, and prompt (text) or prompt_ids (token ids).")],
    out: Annotated[Path, typer.Option(help="JSONL of completions. OUT.run.json stands beside it.")],
    sampling: SamplingOptions,
    strict: Strict = False,
) -> None:
    """Complete prompts with a model.

    A prompt's text goes to the model exactly as it is given, with no chat template; it is trusted: control tokens
    that it spells are control tokens. Where the tokenizer has a BOS and the text does not begin with it, one is put
    in front. prompt_ids are taken as they are, and need no tokenizer. With --backend-api chat a prompt's text is the
    user's turn of a conversation, for which the server has its own template; prompt_ids cannot be sent then.

    Each row of OUT is {id, sample, text, token_ids, logprobs, finish_reason, content}. text and token_ids hold the
    end token when there is one (finish_reason "stop", else "length"); text is null without a tokenizer; logprobs are
    of the tempered, truncated distribution that each token was drawn from, and model_logprobs, where the generator
    tells them, of the model's own; content is a digest of the prompt. Rows come as they are completed; what a (seed,
    id, sample) draws does not depend on the other rows. A server (--backend) gives no logprobs, and where it gives text
    without ids, token_ids are that text encoded again, without an end token.

    Killed and started again with the same settings it goes on where it was; --n may be raised. Rows that are
    malformed or leave no room for the completion are reported and passed over (exit code 1). A server that stays away
    ends the job with an error (exit code 2); no row is written for what it did not answer.

    \b
    Example:
      rrm generate --model runs/judge --prompts prompts.jsonl --out completions.jsonl --n 4 --max-new-tokens 512
      rrm generate --model runs/judge --backend http://localhost:8000 --backend-model rrm-7b \\
        --prompts prompts.jsonl --out there.jsonl
    """
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.cli.loading import Progress, check_rows, exit_if_skipped
    from rrm_jax.data.records import Unique
    from rrm_jax.sampling.sampler import room_for_prompt

    progress = Progress("generating")
    generator = open_generator(models, progress, needs_tokenizer=False)
    tokenizer = generator.tokenizer
    decoding = sampling.decoding(generator, tokenizer.stop_ids if tokenizer else _stop_ids(generator.assets))
    new = sampling.max_new_tokens
    room = room_for_prompt(generator.max_positions, new, f"--max-new-tokens {new}")
    parse = prompt_parser(tokenizer, generator.vocab_size, room, generator.takes_messages)
    contents: dict[str, str] = {}
    skipped = check_rows(prompts, Unique(parse), strict, lambda row: contents.update({row.id: row.content}))
    _complete(generator, decoding, sampling, prompts, parse, contents, out, progress)
    exit_if_skipped(skipped, f"row(s) of {prompts}")


def _complete(
    generator: "Writer", decoding: "Decoding", sampling: SamplingOptions, prompts: Path,
    parse: Callable[[dict[str, Any]], "EncodedPrompt"], contents: dict[str, str], out: Path, progress: "Progress",
) -> None:  # fmt: skip
    """Draws what is not in OUT yet, and appends it; `contents` has the prompts' digests by id."""
    from rrm_jax.cli.loading import warn
    from rrm_jax.data.jsonl import AppendLog, Reader
    from rrm_jax.data.records import Unique
    from rrm_jax.errors import RrmError
    from rrm_jax.provenance import earlier_results, pinned
    from rrm_jax.sampling.protocol import Request

    tokenizer, run = generator.tokenizer, out.with_name(out.name + ".run.json")
    settings = {
        "model": generator.identity, "tokenizer": tokenizer.fingerprint if tokenizer else None,
        "decoding": decoding_settings(decoding), "seed": sampling.seed,
    }  # fmt: skip
    earlier_results([out], run)
    wanted = {(row_id, sample) for row_id in contents for sample in range(sampling.n)}
    with AppendLog(out) as log:
        done: dict[Any, Any] = {(row.get("id"), row.get("sample")): row.get("content") for row in log.rows()}
        for (row_id, _), content in done.items():
            if contents.get(row_id, content) != content:
                raise RrmError(f"{out}: the row with id {row_id!r} completes another prompt; choose another --out")

        def requests() -> Iterator[Request]:
            for _, row in Reader(prompts, Unique(parse)):
                for sample in range(sampling.n):
                    if (row.id, sample) not in done:
                        yield Request(row.id, row.ids, decoding, sample, sampling.seed, row.messages)

        with pinned(run, config=settings, seed=sampling.seed, inputs={"prompts": prompts}, anew=not done), progress:
            progress.begin(len(done.keys() & wanted), len(wanted))
            for completion in generator.generate(requests()):
                log.append(_row(completion, tokenizer, contents[completion.request.id]))
                progress.advance()
        if foreign := len(done.keys() - wanted):
            warn(f"{out} also holds {foreign} row(s) that are not asked for now")
    print(f"completions: {len(wanted)} ({len(wanted - done.keys())} drawn now) of {len(contents)} prompts")


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """`content` is a digest of the ids; `messages` says the same, where that is what the model is given."""

    id: str
    ids: tuple[int, ...]
    content: str
    messages: tuple[tuple[str, str], ...] = ()


def prompt_parser(
    tokenizer: "Tokenizer | None", vocab_size: int, longest: int, as_messages: bool = False
) -> Callable[[dict[str, Any]], EncodedPrompt]:
    """Rows → prompts that a model can complete; RowError for the others."""
    import hashlib

    from rrm_jax.data.jsonl import RowError
    from rrm_jax.data.records import parse_prompt

    def parse(row: dict[str, Any]) -> EncodedPrompt:
        record = parse_prompt(row)
        if as_messages and record.prompt is None:
            raise RowError("the server's chat API takes no 'prompt_ids'; give 'prompt', or use its completions API")
        if record.prompt_ids is not None:
            ids = list(record.prompt_ids)
        elif tokenizer is None:
            raise RowError("the model's directory has no tokenizer, so the prompt must be given as 'prompt_ids'")
        else:
            ids = tokenizer.encode_control(record.prompt or "")
            if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
                ids.insert(0, tokenizer.bos_id)
        if not ids:
            raise RowError("the prompt is empty, and the model has no BOS to begin with")
        if len(ids) > longest:
            raise RowError(
                f"the prompt has {len(ids)} tokens, and at most {longest} leave room for --max-new-tokens; "
                "shorten it or lower that"
            )
        if max(ids) >= vocab_size:
            raise RowError(f"token id {max(ids)} is outside the model's vocabulary of {vocab_size}")
        digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
        messages = (("user", record.prompt or ""),) if as_messages else ()
        return EncodedPrompt(record.id, tuple(ids), digest[:32], messages)

    return parse


def _stop_ids(assets: Path) -> tuple[int, ...]:
    """A model's end tokens where there is no tokenizer to say them."""
    import json

    stops: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (assets / name).is_file():
            eos = json.loads((assets / name).read_text(encoding="utf-8")).get("eos_token_id")
            stops.update(eos if isinstance(eos, list) else [] if eos is None else [eos])
    return tuple(sorted(stops))


def _row(completion: "Completion", tokenizer: "Tokenizer | None", content: str) -> dict[str, Any]:
    text = completion.text
    if text is None and tokenizer is not None:
        text = tokenizer.decode(completion.token_ids)
    row: dict[str, Any] = {
        "id": completion.request.id,
        "sample": completion.request.sample,
        "text": text,
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
    }
    if completion.model_logprobs:
        row["model_logprobs"] = list(completion.model_logprobs)
    return row | {"finish_reason": completion.finish_reason, "content": content}
