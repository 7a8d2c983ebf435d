"""`rrm reproduce`: every study of the paper at a scale, and one report."""

from typing import TYPE_CHECKING, Annotated

import typer

from rrm_jax.cli.options import Overrides

if TYPE_CHECKING:
    from rrm_jax.reproduce.config import ReproduceConfig


def command(
    overrides: Overrides = None,
    scale: Annotated[
        str, typer.Option(help="tiny, rrm-7b or rrm-32b, or a YAML file such as those in configs/reproduce/.")
    ] = "tiny",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="STUDY", help="This study alone, in the report too; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it will cost: judgments, tokens, device-hours. Runs nothing.")
    ] = False,
    accelerator: Annotated[
        str, typer.Option(help="Of a dry run: h100, h200, a100-80, v5e, v5p, v6e and others.")
    ] = "h100",
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
      rrm reproduce --scale tiny --only posttrain-rl --only posttrain-dpo
      rrm reproduce --scale rrm-7b --dry-run --accelerator v5p
      rrm reproduce --scale rrm-7b paths.checkpoints=/weights 'seeds=[0, 1]' output=runs/ours
    """
    from rrm_jax.cli.loading import Progress, warn
    from rrm_jax.cli.study import Models
    from rrm_jax.reproduce.config import load
    from rrm_jax.reproduce.report import claims, write
    from rrm_jax.reproduce.run import reproduce

    config = load(scale, overrides or [], only or [])
    if dry_run:
        _print_cost(config, accelerator)
        return
    progress = Progress("judged")
    with progress:
        done = reproduce(config, Models(progress).open_judge, warn, progress.advance)
    paths = write(config, done)
    for study, statement, outcome, evidence in claims(done)[1:]:
        print(f"{study}. {statement}: {outcome}. {evidence}")
    print(f"wrote {', '.join(map(str, paths))} after {sum(done.seconds.values()):.0f} s")
    if done.skipped:
        warn(f"{done.skipped} row(s) that are malformed, or that a judge could not judge, were skipped")
    if done.skipped or not done.complete:
        raise typer.Exit(1)


def _print_cost(config: "ReproduceConfig", accelerator: str) -> None:
    from rrm_jax.cli.loading import warn
    from rrm_jax.evaluation.eval_report import terminal
    from rrm_jax.parallel import accelerators
    from rrm_jax.reproduce import dry_run

    chosen = accelerators.accelerator(accelerator)
    warn("counting votes, with tournaments played by a made-up judge")
    plan = dry_run.dry_run(config, chosen)
    print("\n".join([*terminal(dry_run.study_rows(plan)), "", *terminal(dry_run.rows(plan)), ""]))
    print("\n".join(dry_run.remarks(plan, config.assumed)))
