"""What the verbs that judge share: their options, and the judge that the options describe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.loading import LazyModel, fit_positions, warn

if TYPE_CHECKING:
    from rrm_jax.judging.judge import Judge, OrderPolicy
    from rrm_jax.judging.template import Template

Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(max=1.0, help="In (0, 1].")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest thinking and verdict, in tokens.")]
MaxPromptTokens = Annotated[
    int, typer.Option(min=1, help="Longest prompt, in tokens; over-long responses keep their ends.")
]
TemplateName = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="The judge's prompt: a packaged name or a file (see rrm template). Without it, the one that the model was "
        "trained with here; for other models the packaged default.",
    ),
]
Direct = Annotated[
    bool | None,
    typer.Option(
        "--direct/--think",
        help="The verdict at once, or after thinking. Without either, as the model was trained here; else thinking.",
    ),
]


def open_judge(
    generator: LazyModel,
    *,
    template: str | None,
    direct: bool | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    max_prompt_tokens: int,
    seed: int,
    votes: int,
    order: "OrderPolicy" = "random",
    keep_thinking: bool = False,
) -> "Judge":
    """The judge that the options describe, on a model not loaded yet. Raises RrmError for settings that cannot be."""
    from rrm_jax.errors import RrmError
    from rrm_jax.judging.judge import Judge
    from rrm_jax.judging.template import check_template
    from rrm_jax.sampling.protocol import Decoding

    thinking = bool(generator.facts.get("judge_thinking", True)) if direct is None else not direct
    prompt = _open_template(generator.assets, template)
    if warning := check_template(prompt, generator.facts, generator.names, thinking):
        warn(f"warning: {warning}")
    try:
        return Judge(
            generator,
            generator.tokenizer,
            prompt,
            Decoding(temperature, top_p=top_p, max_new_tokens=max_new_tokens),
            seed=seed,
            votes=votes,
            order=order,
            thinking=thinking,
            max_prompt_tokens=fit_positions(max_prompt_tokens, max_new_tokens, generator.max_positions),
            keep_thinking=keep_thinking,
            model=f"{generator.fingerprint} in {generator.dtype}",
        )
    except ValueError as error:
        raise RrmError(str(error)) from None


def _open_template(assets: Path, name: str | None) -> "Template":
    from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE
    from rrm_jax.judging.template import load_template

    own = assets / JUDGE_TEMPLATE
    return load_template(name if name is not None else own if own.is_file() else "default")
