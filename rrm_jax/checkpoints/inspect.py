"""What a model directory holds, without reading its weights."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.checkpoints.assets import chat_template_source, has_tokenizer
from rrm_jax.checkpoints.sources import ConvertedSource, Kind, RunSource, open_source
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.params import named_specs


@dataclasses.dataclass(frozen=True)
class Tensor:
    """`shape` is the Hugging Face one."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Description:
    """`parameters` counts weights, `bytes` what they take; `chat_template` names the file that holds it, if any.

    `steps` are the complete checkpoints of a training run (None: not a run); `origin` is what a converted
    checkpoint was made from.
    """

    path: Path
    kind: Kind
    config: DecoderConfig
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    tokenizer: bool
    chat_template: str | None
    fingerprint: str
    facts: dict[str, Any]
    steps: tuple[int, ...] | None
    origin: dict[str, Any] | None
    notes: tuple[str, ...]


def describe(path: str | Path) -> Description:
    """Opens and checks a model directory of any kind; raises RrmError as `load_model` would."""
    source = open_source(path)
    specs = list(named_specs(source.config))
    tensors = tuple(Tensor(spec.hf, spec.hf_shape, source.dtype(names, spec).name) for names, spec in specs)
    counts = [int(np.prod(spec.shape)) for _, spec in specs]
    sizes = [count * source.dtype(*spec).itemsize for count, spec in zip(counts, specs, strict=True)]
    return Description(
        path=Path(path),
        kind=source.kind,
        config=source.config,
        parameters=sum(counts),
        bytes=sum(sizes),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors})),
        tensors=tensors,
        tokenizer=has_tokenizer(source.assets),
        chat_template=chat_template_source(source.assets),
        fingerprint=source.fingerprint(),
        facts=source.facts,
        steps=tuple(source.steps) if isinstance(source, RunSource) else None,
        origin=source.manifest.get("source") if isinstance(source, ConvertedSource) else None,
        notes=tuple(source.notes),
    )
