"""`rrm export`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from rrm_jax.cli.convert import Dtype, byte_progress, print_summary, stay_off_accelerators
from rrm_jax.errors import RrmError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def command(
    src: Annotated[Path, typer.Argument(help="A converted checkpoint, or a training run.")],
    dst: Annotated[Path, typer.Argument(help="The Hugging Face directory to make; it must not exist.")],
    dtype: Dtype = None,
    max_shard_size: Annotated[str, typer.Option(help="The most bytes of tensors in one file.")] = "5GB",
) -> None:
    """Write a checkpoint, or a training run's latest step, as a Hugging Face directory that transformers loads.

    A training run holds float32 weights: give --dtype bfloat16 for a model of the usual size.

    \b
    Example:
      rrm export runs/grpo exported/rrm --dtype bfloat16
    """
    stay_off_accelerators()
    from rrm_jax.checkpoints.convert import export

    max_shard_bytes = parse_size(max_shard_size)
    with byte_progress("exporting") as report:
        summary = export(src, dst, dtype, max_shard_bytes, report)
    print_summary(dst, summary)


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500 MiB" or a plain number. Raises RrmError for anything else, and for zero."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B?)\s*", text, re.IGNORECASE)
    unit = match.group(2).upper() if match else "?"
    size = int(float(match.group(1)) * _UNITS[unit]) if match and unit in _UNITS else 0
    if size < 1:
        raise RrmError(f"--max-shard-size {text!r} is not a size such as 5GB, 500MiB or 1000000")
    return size
