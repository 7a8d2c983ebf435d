"""`rrm inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rrm_jax.cli.convert import stay_off_accelerators

_KINDS = {"hf": "Hugging Face directory", "converted": "converted checkpoint", "run": "training run"}


def command(
    path: Annotated[Path, typer.Argument(help="A model directory of any kind.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Say what a model directory holds, and check it against its config.json, without reading the weights.

    \b
    Example:
      rrm inspect checkpoints/r1-1.5b
    """
    stay_off_accelerators()
    from rrm_jax.checkpoints.inspect import describe
    from rrm_jax.models.config import to_hf

    about = describe(path)
    rows = {
        "path": str(about.path),
        "kind": _KINDS[about.kind],
        "parameters": f"{about.parameters:,}",
        "bytes": f"{about.bytes:,}",
        "dtype": ", ".join(about.dtypes),
        "tokenizer": "yes" if about.tokenizer else "none",
        "chat template": about.chat_template or "none",
        "fingerprint": about.fingerprint,
    }
    if about.steps is not None:
        rows["complete steps"] = ", ".join(map(str, about.steps))
    if about.origin is not None:
        rows["made from"] = " ".join(str(value) for value in about.origin.values())
    rows |= {f"fact: {key}": json.dumps(value, ensure_ascii=False) for key, value in about.facts.items()}
    rows |= {f"config: {key}": json.dumps(value) for key, value in to_hf(about.config).items()}
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:{width}}  {value}")
    for note in about.notes:
        print(f"note: {note}")
    if tensors:
        for tensor in about.tensors:
            print(f"{tensor.name}  {tensor.dtype}  {list(tensor.shape)}")
