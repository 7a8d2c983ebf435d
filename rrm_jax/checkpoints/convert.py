"""From Hugging Face to our checkpoints and back, one tensor at a time; and from memory to a checkpoint."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints import fingerprint
from rrm_jax.checkpoints.assets import (
    CONFIG,
    FACTS,
    GENERATION_CONFIG,
    barrier,
    copy_assets,
    has_tokenizer,
    minimal_generation_config,
    new_directory,
    read_config,
    read_json,
    with_dtype,
    write_json,
)
from rrm_jax.checkpoints.hf import cast, parse_dtype, write_safetensors
from rrm_jax.checkpoints.sources import Names, Source, open_source
from rrm_jax.checkpoints.store import PARAMS, write_manifest, write_params
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig, to_hf
from rrm_jax.models.decoder import Params
from rrm_jax.models.params import ParamSpec, named_specs

Report = Callable[[int, int], None]
_GROUP_BYTES = 256 * 2**20


def spec_bytes(spec: ParamSpec, dtype: np.dtype) -> int:
    return int(np.prod(spec.shape)) * dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was written. `dtype` names the stored dtypes; `bytes` counts the tensors'."""

    tensors: int
    parameters: int
    bytes: int
    dtype: str
    fingerprint: str
    notes: tuple[str, ...]


def _summarise(tensors: list[tuple[Names, ParamSpec, np.dtype]], samples: list[fingerprint.Sample], notes: list[str]):
    sizes = [spec_bytes(spec, dtype) for _, spec, dtype in tensors]
    parameters = sum(int(np.prod(spec.shape)) for _, spec, _ in tensors)
    dtype = "+".join(sorted({dtype.name for _, _, dtype in tensors}))
    return Summary(len(tensors), parameters, sum(sizes), dtype, fingerprint.combine(samples), tuple(notes))


class _Plan:
    """The tensors to write, in order, with the dtype each will have."""

    def __init__(self, source: Source, dtype: Any):
        self.source = source
        target = None if dtype is None else parse_dtype(dtype)
        self.tensors: list[tuple[Names, ParamSpec, np.dtype]] = [
            (names, spec, source.dtype(names, spec) if target is None else target)
            for names, spec in named_specs(source.config)
        ]
        self.sizes = [spec_bytes(spec, dtype) for _, spec, dtype in self.tensors]
        self._samples: list[fingerprint.Sample] = []
        self._done = 0

    def read(self, names: Names, spec: ParamSpec, dtype: np.dtype, report: Report) -> np.ndarray:
        tensor = cast(self.source.read(names, spec), dtype, spec.hf)
        self._samples.append((spec.hf, dtype, spec.hf_shape, fingerprint.rows_of(tensor, spec.hf_shape)))
        self._done += tensor.nbytes
        report(self._done, sum(self.sizes))
        return tensor

    def summary(self) -> Summary:
        return _summarise(self.tensors, self._samples, _notes(self.source))


def convert(src: str | Path, dst: str | Path, dtype: Any = None, report: Report = lambda done, total: None) -> Summary:
    """Writes any model directory as a converted checkpoint `dst`, each tensor in `dtype` (None: as it is).

    `dtype` is bfloat16, float16 or float32, by name or as NumPy or jax have it.
    `report(bytes done, bytes in all)` is called after each tensor. `dst` appears only when it is complete.
    Raises RrmError for a source that is not whole, a destination that exists or cannot be written.
    """
    source = open_source(src)
    plan = _Plan(source, dtype)
    with new_directory(Path(dst)) as building:
        _need(building, sum(plan.sizes))
        copy_assets(source.assets, building)
        tensors = ((names, plan.read(names, spec, dtype, report)) for names, spec, dtype in plan.tensors)
        write_params(building / PARAMS, tensors, max(_GROUP_BYTES, *plan.sizes))
        summary = plan.summary()
        origin = {"kind": source.kind, "path": str(Path(src))}
        _write_manifest(building, summary, source.facts, origin)
    return summary


def export(
    src: str | Path,
    dst: str | Path,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 10**9,
    report: Report = lambda done, total: None,
) -> Summary:
    """Writes any model directory as a Hugging Face directory `dst` that `transformers` loads.

    Of a training run the latest complete step is written: float32 masters, unless `dtype` says otherwise.
    config.json names the dtype written. The rest is as in `convert`.
    """
    if max_shard_bytes < 1:
        raise RrmError(f"a shard must have at least 1 byte, not {max_shard_bytes}")
    source = open_source(src)
    plan = _Plan(source, dtype)
    with new_directory(Path(dst)) as building:
        _need(building, sum(plan.sizes))
        copied = copy_assets(source.assets, building)
        _say_dtype(building, {dtype for _, _, dtype in plan.tensors})
        if GENERATION_CONFIG not in copied:
            write_json(building / GENERATION_CONFIG, minimal_generation_config(building))
        if source.facts:
            write_json(building / FACTS, source.facts)
        planned = {spec.hf: (names, dtype) for names, spec, dtype in plan.tensors}

        def read(spec: ParamSpec) -> np.ndarray:
            names, dtype = planned[spec.hf]
            return plan.read(names, spec, dtype, report)

        write_safetensors(building, [(spec, dtype) for _, spec, dtype in plan.tensors], read, max_shard_bytes)
    return plan.summary()


def _say_dtype(directory: Path, dtypes: set[np.dtype]) -> None:
    if len(dtypes) > 1:  # what config.json says of a mixture is left alone
        return
    hf = read_json(directory / CONFIG)
    told = with_dtype(hf, dtypes.pop().name)
    if told != hf:  # else the file stays as it is, byte for byte
        write_json(directory / CONFIG, told)


def _notes(source: Source) -> list[str]:
    notes = list(source.notes)
    if not has_tokenizer(source.assets):
        notes.append(f"{source.assets} holds no tokenizer.json: the result has no tokenizer, so no text can be judged")
    return notes


def _need(building: Path, size: int) -> None:
    free = shutil.disk_usage(building).free
    if free < size:
        raise RrmError(f"{building.parent} has {free:,} bytes free, the weights take {size:,}")


def _write_manifest(directory: Path, summary: Summary, facts: dict[str, Any], origin: dict[str, Any]) -> None:
    about = {
        "dtype": summary.dtype,
        "parameters": summary.parameters,
        "bytes": summary.bytes,
        "fingerprint": summary.fingerprint,
        "facts": facts,
        "source": origin,
    }
    write_manifest(directory, about)


def save_model(
    dst: str | Path, config: DecoderConfig, params: Params, assets: str | Path | None, facts: dict[str, Any]
) -> Summary:
    """Writes parameters in memory, stacked or not, possibly sharded over a mesh, as a converted checkpoint `dst`.

    `assets` is the directory whose tokenizer and config.json go with it (None: only a config.json made from
    `config`); its config.json must describe `config`. With several processes, all call this.
    """
    if assets is not None and (Path(assets) / CONFIG).is_file() and read_config(Path(assets)) != config:
        raise RrmError(f"{Path(assets) / CONFIG} describes another model than the one to be saved")
    planned = [(names, spec, np.dtype(_leaf(params, names, whole=True).dtype)) for names, spec in named_specs(config)]
    samples: list[fingerprint.Sample] = []

    def tensors() -> Iterator[tuple[Names, Any]]:
        for names, spec, dtype in planned:
            tensor = _leaf(params, names)
            if tensor.shape != spec.shape:
                raise ValueError(f"{'.'.join(names)} has shape {tensor.shape}, its declaration {spec.shape}")
            samples.append((spec.hf, dtype, spec.hf_shape, _sampled(tensor, spec.hf_shape)))
            yield names, tensor

    with new_directory(Path(dst)) as building:
        if jax.process_index() == 0:
            copied = copy_assets(assets, building) if assets is not None else []
            if CONFIG not in copied:
                write_json(building / CONFIG, with_dtype(to_hf(config), planned[0][2].name))
        write_params(building / PARAMS, tensors(), max(_GROUP_BYTES, *(spec_bytes(s, d) for _, s, d in planned)))
        summary = _summarise(planned, samples, [])
        barrier("written")
        if jax.process_index() == 0:
            _write_manifest(building, summary, facts, {"kind": "memory"})
    return summary


def _leaf(params: Params, names: Names, whole: bool = False) -> Any:
    """One unstacked parameter of either layout; `whole`: the stacked one that holds it, if it is stacked."""
    node: Any = params
    stacked = names[0] == "layers" and not isinstance(params["layers"], list)
    for key in (names[0], *names[2:]) if stacked else names:
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node[int(names[1])] if stacked and not whole else node


def _sampled(tensor: Any, hf_shape: tuple[int, ...]) -> bytes:
    if not isinstance(tensor, jax.Array):
        return fingerprint.rows_of(np.asarray(tensor), hf_shape)
    rows = jnp.asarray(fingerprint.sampled_rows(hf_shape))
    matrix = tensor.reshape((1, -1) if len(hf_shape) < 2 else (hf_shape[0], -1))
    sampled = jnp.take(matrix, rows, axis=0)
    if not sampled.is_fully_addressable:
        from jax.experimental import multihost_utils

        sampled = multihost_utils.process_allgather(sampled, tiled=True)
    return np.asarray(sampled).tobytes()
