"""The `rrm` command. Verb modules import nothing heavy at their top, so that `rrm --help` is instant."""

import sys

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


@_app.callback(epilog="Compiled programs are kept in ~/.cache/rrm_jax; RRM_COMPILATION_CACHE=off keeps none.")
def _before_every_verb() -> None:
    keep_compilations()


_app.command("convert")(convert.command)
_app.command("export")(export.command)
_app.command("inspect")(inspect.command)
_app.command("train")(train.command)
_app.command("plan")(plan.command)
_app.command("report")(report.command)
_app.command("quickstart")(quickstart.command)
_app.command("generate")(generate.command)
_app.command("answer")(answer.command)
_app.command("judge")(judge.command)
_app.command("eval")(evaluate.command)
_app.command("compare")(compare.command)
_app.command("rank")(rank.command)
_app.command("serve")(serve.command)
_app.command("replay")(replay.command)
_app.command("study")(study.command)
_app.command("reproduce")(reproduce.command)
_app.add_typer(data.app, name="data")
_app.add_typer(verdicts.app, name="verdicts")
_app.command("template")(template.command)


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
