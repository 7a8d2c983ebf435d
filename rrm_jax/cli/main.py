"""The `rrm` command. Verb modules import nothing heavy at their top, so that `rrm --help` is instant."""

import sys
from typing import Annotated

import typer

from rrm_jax.cli import (
    answer,
    compare,
    convert,
    data,
    evaluate,
    export,
    generate,
    inspect,
    judge,
    plan,
    quickstart,
    rank,
    replay,
    report,
    reproduce,
    serve,
    study,
    template,
    train,
    verdicts,
)
from rrm_jax.cli.compilation_cache import keep_compilations
from rrm_jax.errors import RrmError

_app = typer.Typer(
    name="rrm",
    help="Reward Reasoning Models in JAX: judge, rank and train on verdicts alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if not asked:
        return
    from rrm_jax.provenance import code_facts

    facts = code_facts()
    versions = facts["versions"]
    revision = f" at {facts['git_revision']}" if facts["git_revision"] else ""
    print(f"rrm_jax {versions['rrm-jax']}{revision}, jax {versions['jax']}, Python {versions['python']}")
    raise typer.Exit


@_app.callback(
    epilog="Each says more with --help. Compiled programs are kept in ~/.cache/rrm_jax; RRM_COMPILATION_CACHE=off "
    "keeps none."
)
def _before_every_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and end.")
    ] = False,
) -> None:
    keep_compilations()


# In the order in which one meets them; each line is as short as a terminal of 80 columns shows it whole.
_VERBS = (
    ("quickstart", quickstart.command, "Begin here: train a tiny judge from nothing, in minutes."),
    ("judge", judge.command, "Judge which of two responses is better."),
    ("rank", rank.command, "Pick the best of many responses, by comparing pairs."),
    ("serve", serve.command, "Serve a model over HTTP: chats, verdicts, rankings."),
    ("train", train.command, "Train a judge or a policy: GRPO, DPO, or supervised."),
    ("report", report.command, "Show training runs on one page, with curves."),
    ("eval", evaluate.command, "Score a judge, or a model's answers, on a benchmark."),
    ("compare", compare.command, "Put evaluations side by side."),
    ("convert", convert.command, "Make a checkpoint of a Hugging Face model."),
    ("export", export.command, "Make a Hugging Face directory of a checkpoint."),
    ("inspect", inspect.command, "Say what a model directory holds, and check it."),
    ("plan", plan.command, "Say what a training run will take on other devices."),
    ("generate", generate.command, "Complete prompts with a model."),
    ("answer", answer.command, "Answer questions with a model."),
    ("replay", replay.command, "Compare strategies: accuracy against comparisons."),
    ("study", study.command, "Run one of the paper's studies."),
    ("reproduce", reproduce.command, "Run the paper's studies at a scale, into one report."),
    ("template", template.command, "Show a judge's prompt, or write it to a file."),
)
for _name, _command, _line in _VERBS:
    _app.command(_name, short_help=_line)(_command)
_app.add_typer(data.app, name="data")
_app.add_typer(verdicts.app, name="verdicts")


def app() -> None:
    """Runs the command line. Exit codes: 0 done; 1 done but rows were skipped; 2 wrong input; 130 interrupted."""
    try:
        _app()
    except RrmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130:  # typer has turned Ctrl-C into this
            print("interrupted: what was finished is kept; run the same command again to go on", file=sys.stderr)
        raise


if __name__ == "__main__":
    app()
