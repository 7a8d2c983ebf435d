"""`rrm train`."""

from typing import Annotated, Literal

import typer

from rrm_jax.cli.options import ConfigFile, Overrides

Mode = Literal["auto", "on", "off"]


def command(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in output= after its last checkpoint.")
    ] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="--resume where output= holds a run; begin one otherwise.")
    ] = False,
    distributed: Annotated[
        Mode, typer.Option(help="Join the job's other processes: where the environment tells of any, always, or never.")
    ] = "auto",
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="steps=FIRST:LAST",
            help="Trace these steps to RUN/profile, for XProf, TensorBoard or Perfetto (ui.perfetto.dev).",
            show_default=False,
        ),
    ] = None,
    stop_exit_code: Annotated[
        int,
        typer.Option(
            min=0,
            max=125,
            help="Exit code of a run that SIGTERM or Ctrl-C ended before its last step: not 0 where 0 is taken for "
            "complete, as by Kubernetes.",
        ),
    ] = 0,
) -> None:
    """Train a judge, or a policy that a judge rewards: by GRPO, by DPO, or supervised on given completions.

    Writes the resolved configuration, provenance, metrics (terminal, JSONL, TensorBoard) and checkpoints to the
    directory `output`. A killed run is continued by the same command with --resume, bit for bit.

    On several hosts the same command runs once on each. TPU VMs, Slurm, Open MPI and Kubernetes tell which processes
    belong together; elsewhere RRM_COORDINATOR=host:port of process 0, RRM_PROCESSES and RRM_PROCESS=0, 1, … do. When
    one of them is lost, all end within half a minute, with an exit code that is not 0: see docs/pods.md.

    \b
    Example:
      rrm train grpo_tiny.yaml model.path=MODEL data.train=pairs.jsonl output=runs/tiny steps=5
      rrm train grpo_tiny.yaml model.path=MODEL data.train=pairs.jsonl output=runs/traced --profile steps=2:3
    """
    from pathlib import Path

    from rrm_jax.checkpoints.run_files import CONFIG_YAML
    from rrm_jax.cli.loading import warn
    from rrm_jax.config import load_config
    from rrm_jax.parallel.distributed import is_first, start
    from rrm_jax.parallel.preflight import preflight
    from rrm_jax.training.config import TrainConfig
    from rrm_jax.training.resuming import flat
    from rrm_jax.training.train import reached, train

    def warn_once(message: str) -> None:
        if is_first():
            warn(message)

    traced = [] if profile is None else [f"log.profile={_steps(profile)}"]
    with start(distributed, warn):  # first, so that a process that cannot go on tells the others
        resolved = load_config(TrainConfig, config, [*(overrides or []), *traced])
        going_on = resume or (auto_resume and (Path(resolved.output) / CONFIG_YAML).exists())
        preflight({**flat(resolved.model_dump(mode="json")), "--resume": going_on}, resolved.output, warn)
        directory = train(resolved, going_on, warn_once)
        if is_first():
            print(directory)
    if reached(directory) < resolved.steps:
        raise typer.Exit(stop_exit_code)


def _steps(text: str) -> list[int]:
    from rrm_jax.errors import RrmError

    first, colon, last = text.removeprefix("steps=").partition(":")
    if not (first.isdigit() and (last.isdigit() if colon else True)):
        raise RrmError(f"--profile {text!r} is not of the form steps=10:12")
    return [int(first), int(last or first)]
