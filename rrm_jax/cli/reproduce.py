"""`rrm reproduce`: every study of the paper at a scale, and one report."""

from typing import Annotated

import typer


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    scale: Annotated[
        str, typer.Option(help="tiny, rrm-7b or rrm-32b, or a YAML file such as those in configs/reproduce/.")
    ] = "tiny",
) -> None:
    """Run all studies of the paper at a scale, and write one report of what they found.

    tiny trains its judges from nothing, three times, on this machine. rrm-7b and rrm-32b read judges, data and training
    runs that are yours to have; what is not there is told of, and left out of the report (exit code 1).

    Writes to the directory `output`: report.html (one file, with figures), report.md, a directory a study with its
    pooled table, figure and numbers, and a directory a seed with everything else, every vote included. Killed and
    started again it goes on where it was, and seeds or studies can be added: what is done is not done again.

    \b
    Example:
      rrm reproduce --scale tiny
      rrm reproduce --scale rrm-7b paths.checkpoints=/weights 'seeds=[0, 1]' output=runs/ours
    """
    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.cli.study import Models
    from rrm_jax.reproduce.config import load
    from rrm_jax.reproduce.report import claims, write
    from rrm_jax.reproduce.run import reproduce

    config = load(scale, overrides or [])
    progress = Progress("judged")
    with progress:
        done = reproduce(config, Models(progress).open_judge, warn, progress.advance)
    paths = write(config, done)
    for study, statement, outcome, evidence in claims(done)[1:]:
        print(f"{study}. {statement}: {outcome}. {evidence}")
    print(f"wrote {', '.join(map(str, paths))} after {sum(done.seconds.values()):.0f} s")
    if done.skipped:
        warn(f"{done.skipped} malformed row(s) were skipped")
    if done.skipped or not done.complete:
        raise typer.Exit(1)
