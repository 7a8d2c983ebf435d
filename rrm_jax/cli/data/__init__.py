"""`rrm data`: what is done with data before training; one thin module a verb, nothing heavy imported at its top."""

import typer

from rrm_jax.cli.data import clean, convert, label, prepare, show, synthesize, tokenize, verify
from rrm_jax.cli.data import filter as filter_

app = typer.Typer(help="Prepare pairs to train on.", no_args_is_help=True, rich_markup_mode=None)

app.command("clean")(clean.command)
app.command("convert")(convert.command)
app.command("filter")(filter_.command)
app.command("label")(label.command)
app.command("prepare")(prepare.command)
app.command("show")(show.command)
app.command("synthesize")(synthesize.command)
app.command("tokenize")(tokenize.command)
app.command("verify")(verify.command)
