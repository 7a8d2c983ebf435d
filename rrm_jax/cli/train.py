"""`rrm train`."""

from typing import Annotated

import typer


def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of one that comes with the package.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in output= after its last checkpoint.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="steps=FIRST:LAST",
            help="Trace these steps to RUN/profile, for XProf, TensorBoard or Perfetto (ui.perfetto.dev).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a judge: GRPO on right and wrong verdicts, or supervised on given completions.

    Writes the resolved configuration, provenance, metrics (terminal, JSONL, TensorBoard) and checkpoints to the
    directory `output`. A killed run is continued by the same command with --resume, bit for bit.

    \b
    Example:
      rrm train grpo_tiny.yaml model.path=MODEL data.train=pairs.jsonl output=runs/tiny steps=5
      rrm train grpo_tiny.yaml … output=runs/traced --profile steps=2:3
    """
    import sys

    from rrm_jax.config import load_config
    from rrm_jax.training.config import TrainConfig
    from rrm_jax.training.train import train

    def report(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    traced = [] if profile is None else [f"log.profile={_steps(profile)}"]
    resolved = load_config(TrainConfig, config, [*(overrides or []), *traced])
    directory = train(resolved, resume, report)
    print(directory)


def _steps(text: str) -> list[int]:
    from rrm_jax.errors import RrmError

    first, colon, last = text.removeprefix("steps=").partition(":")
    if not (first.isdigit() and (last.isdigit() if colon else True)):
        raise RrmError(f"--profile {text!r} is not of the form steps=10:12")
    return [int(first), int(last or first)]
