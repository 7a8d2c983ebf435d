"""What the verbs that judge share: their options, and the judge that the options describe."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.backend import Writer
from rrm_jax.cli.loading import fit_positions, warn
from rrm_jax.cli.options import Temperature

if TYPE_CHECKING:
    from rrm_jax.data.tokenizer import Tokenizer
    from rrm_jax.judging.judge import Judge, OrderPolicy

_LOOKED_AT = 100  # texts


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked."""

    votes: Annotated[int, typer.Option(min=1, help="Samples a comparison; the majority decides it.")] = 1
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling, and of all that is shuffled.")] = 0
    temperature: Temperature = 0.6
    top_p: Annotated[float, typer.Option(max=1.0, help="In (0, 1].")] = 1.0
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest thinking and verdict, in tokens. [default: as trained here, else 8192; or what "
            "--thinking-budget, or a direct constrained verdict, needs]",
            show_default=False,
        ),
    ] = None
    max_prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Longest prompt, in tokens; over-long responses keep their ends.")
    ] = 4096
    thinking_budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="After so many tokens of thinking, close it and ask for the verdict, greedily and within 100 tokens.",
        ),
    ] = None
    constrain_verdict: Annotated[
        bool,
        typer.Option(
            "--constrain-verdict",
            help="Only the two boxed verdicts can follow the thinking, the more probable one is taken, and votes have "
            "its probability (not with --backend).",
        ),
    ] = False
    template: Annotated[
        str | None,
        typer.Option(
            help="The judge's prompt: a packaged name or a file (see rrm template). Without it, the one that the model "
            "was trained with here; for other models the packaged default.",
        ),
    ] = None
    direct: Annotated[
        bool | None,
        typer.Option(
            "--direct/--think",
            help="The verdict at once, or after thinking. Without either, as the model was trained here; else "
            "thinking.",
        ),
    ] = None


def open_judge(
    generator: Writer, options: JudgeOptions, *, order: "OrderPolicy" = "random", keep_thinking: bool = False
) -> "Judge":
    """The judge that the options describe. Raises RrmError for settings that cannot be, before anything is drawn."""
    from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.forcing import forcing, tokens_needed
    from rrm_jax.judging.judge import Judge
    from rrm_jax.judging.template import as_trained, check_chat, check_template, tokens_as_trained
    from rrm_jax.sampling.protocol import Decoding

    tokenizer = generator.tokenizer
    assert tokenizer is not None
    thinking = None if options.direct is None else not options.direct
    own = generator.assets / JUDGE_TEMPLATE
    template, thinking = as_trained(own, generator.facts, options.template, thinking)
    if warning := check_template(template, generator.facts, generator.names, thinking):
        warn(f"warning: {warning}")
    if generator.takes_messages and (warning := check_chat(tokenizer, template.prefix(thinking))):
        warn(f"warning: {warning} (--backend-api completions)")
    rules = forcing(
        template, tokenizer, thinking=thinking, budget=options.thinking_budget,
        constrain=options.constrain_verdict, stop_id=tokenizer.stop_ids[0],
    )  # fmt: skip
    most = options.max_new_tokens
    if most is None:
        bounded = rules is not None and (rules.budget is not None or rules.end_id is None)
        most = tokens_needed(rules) if rules is not None and bounded else tokens_as_trained(generator.facts)
    try:
        decoding = Decoding(options.temperature, top_p=options.top_p, max_new_tokens=most, thinking=rules)
        generator.check(decoding)
        return Judge(
            generator,
            tokenizer,
            template,
            decoding,
            seed=options.seed,
            votes=options.votes,
            order=order,
            thinking=thinking,
            max_prompt_tokens=fit_positions(options.max_prompt_tokens, most, generator.max_positions),
            keep_thinking=keep_thinking,
            thinking_budget=options.thinking_budget,
            constrain_verdict=options.constrain_verdict,
            model=generator.identity,
        )
    except ValueError as error:
        raise RrmError(str(error)) from None


def warn_of_unknown(tokenizer: "Tokenizer | None", rows: Iterable[Sequence[str]]) -> None:
    """Says on stderr how much of the first rows' texts is in no word of the vocabulary: a judge does not see it, and
    comes to a verdict all the same."""
    if tokenizer is None or tokenizer.unknown_id is None:
        return
    texts = itertools.islice(itertools.chain.from_iterable(rows), _LOOKED_AT)
    ids = [token for text in texts for token in tokenizer.encode_text(text)]
    if unknown := ids.count(tokenizer.unknown_id):
        warn(
            f"warning: of the first texts' {len(ids)} tokens {unknown} are {tokenizer.decode([tokenizer.unknown_id])}: "
            "words that this model does not know, so that verdicts may mean nothing (rrm data show has what it sees)"
        )


def votes_beside(out: Path, verdicts: Path | None, results: Sequence[Path]) -> Path:
    """The store of a job's votes: OUT.votes.jsonl, unless --verdicts names another. RrmError where that is one of the
    job's `results`."""
    from rrm_jax.errors import RrmError

    store = verdicts or out.with_name(out.name + ".votes.jsonl")
    if store.resolve() in [path.resolve() for path in results]:
        raise RrmError(f"--verdicts {store} is where results are written; name another file")
    return store
