"""`rrm convert`."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; without it each tensor keeps its own.")]


def command(
    src: Annotated[Path, typer.Argument(help="A Hugging Face directory, or a training run.")],
    dst: Annotated[Path, typer.Argument(help="The checkpoint directory to make; it must not exist.")],
    dtype: Dtype = None,
) -> None:
    """Convert a Hugging Face model (or a training run's latest step) into a checkpoint that loads onto any mesh.

    Tensors are streamed one at a time; DST appears only when it is complete. The tokenizer and config.json go with it.

    \b
    Example:
      rrm convert DeepSeek-R1-Distill-Qwen-1.5B checkpoints/r1-1.5b
    """
    stay_off_accelerators()
    from rrm_jax.checkpoints.convert import convert

    with byte_progress("converting") as report:
        summary = convert(src, dst, dtype, report)
    print_summary(dst, summary)


def stay_off_accelerators() -> None:
    """Files to files is work for the host: it must not take a device from a job that runs on it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Threads of a failed save also log tracebacks, or complain when the loop that awaited them is gone. What went
    # wrong is raised as well, and told in one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None


def print_summary(dst: Path, summary) -> None:
    """What was written to `dst` on stdout, notes on stderr."""
    for note in summary.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{dst}: {summary.tensors} tensors, {summary.parameters:,} parameters, {summary.bytes / 1e9:.2f} GB of "
        f"{summary.dtype}, fingerprint {summary.fingerprint[:12]}"
    )


@contextlib.contextmanager
def byte_progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `report(done, total)`, shown on stderr: a bar on a terminal, else a line every 10 seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(doing, *columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(doing, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            print(f"{doing}: {done / 1e9:.2f} of {total / 1e9:.2f} GB", file=sys.stderr, flush=True)

    yield line
