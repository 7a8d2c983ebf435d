"""`rrm report`."""

from pathlib import Path
from typing import Annotated

import typer

from rrm_jax.errors import RrmError


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of `rrm train`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A page (.html), or the curves alone (.png); RUN/report.html for one run.", show_default=False
        ),
    ] = None,
) -> None:
    """Show training runs on one page: what was reached, curves, last values, completions, settings.

    Everything comes from the runs' own files, also while a run goes on. Several runs are drawn over each other. The
    page is one file that loads nothing.

    \b
    Example:
      rrm report runs/grpo
      rrm report runs/grpo runs/dapo --out compare.html
      rrm report runs/grpo --out curves.png
    """
    if out is None and len(runs) > 1:
        raise RrmError("several runs: say where the page goes, for example --out compare.html")
    out = runs[0] / "report.html" if out is None else out

    from rrm_jax.evaluation.training_report import write_report

    write_report(runs, out)
    print(out)
