"""From Hugging Face to our checkpoints and back, one tensor at a time; and from memory to a checkpoint."""

import dataclasses
import shutil
from collections.abc import Callable
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
Planned = dict[Names, tuple[ParamSpec, np.dtype]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was written. `dtype` names the stored dtypes; `bytes` counts the tensors'."""

    tensors: int
    parameters: int
    bytes: int
    dtype: str
    fingerprint: str
    notes: tuple[str, ...]


def _bytes(spec: ParamSpec, dtype: np.dtype) -> int:
    return int(np.prod(spec.shape)) * dtype.itemsize


def _sizes(planned: Planned) -> list[tuple[Names, int]]:
    return [(names, _bytes(spec, dtype)) for names, (spec, dtype) in planned.items()]


def _summarise(planned: Planned, samples: list[fingerprint.Sample], notes: list[str]) -> Summary:
    parameters = sum(int(np.prod(spec.shape)) for spec, _ in planned.values())
    size = sum(size for _, size in _sizes(planned))
    dtype = "+".join(sorted({dtype.name for _, dtype in planned.values()}))
    return Summary(len(planned), parameters, size, dtype, fingerprint.combine(samples), tuple(notes))


class _Reader:
    """Reads a source's tensors in the dtype each will be written in, and keeps count of them."""

    def __init__(self, source: Source, dtype: Any, report: Report):
        self._source, self._report = source, report
        target = None if dtype is None else parse_dtype(dtype)
        self.planned: Planned = {
            names: (spec, source.dtype(names, spec) if target is None else target)
            for names, spec in named_specs(source.config)
        }
        self.total, self._done = sum(size for _, size in _sizes(self.planned)), 0
        self._samples: list[fingerprint.Sample] = []

    def __call__(self, names: Names) -> np.ndarray:
        spec, dtype = self.planned[names]
        tensor = cast(self._source.read(names, spec), dtype, spec.hf)
        self._samples.append((spec.hf, dtype, spec.hf_shape, fingerprint.rows_of(tensor, spec.hf_shape)))
        self._done += tensor.nbytes
        self._report(self._done, self.total)
        return tensor

    def summary(self) -> Summary:
        notes = list(self._source.notes)
        if not has_tokenizer(self._source.assets):
            where = self._source.assets
            notes.append(f"{where} holds no tokenizer.json: the result has no tokenizer, so no text can be judged")
        return _summarise(self.planned, self._samples, notes)


def convert(src: str | Path, dst: str | Path, dtype: Any = None, report: Report = lambda done, total: None) -> Summary:
    """Writes any model directory as a converted checkpoint `dst`, each tensor in `dtype` (None: as it is).

    `dtype` is bfloat16, float16 or float32, by name or as NumPy or jax have it.
    `report(bytes done, bytes in all)` is called after each tensor. `dst` appears only when it is complete.
    Raises RrmError for a source that is not whole, a destination that exists or cannot be written.
    """
    source = open_source(src)
    read = _Reader(source, dtype, report)
    with new_directory(Path(dst)) as building:
        _need(building, read.total)
        copy_assets(source.assets, building)
        write_params(building / PARAMS, _sizes(read.planned), read)
        summary = read.summary()
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
    read = _Reader(source, dtype, report)
    with new_directory(Path(dst)) as building:
        _need(building, read.total)
        copied = copy_assets(source.assets, building)
        _say_dtype(building, {dtype for _, dtype in read.planned.values()})
        if GENERATION_CONFIG not in copied:
            write_json(building / GENERATION_CONFIG, minimal_generation_config(building))
        if source.facts:
            write_json(building / FACTS, source.facts)
        write_safetensors(building, read.planned, read, max_shard_bytes)
    return read.summary()


def _say_dtype(directory: Path, dtypes: set[np.dtype]) -> None:
    if len(dtypes) > 1:  # what config.json says of a mixture is left alone
        return
    hf = read_json(directory / CONFIG)
    told = with_dtype(hf, dtypes.pop().name)
    if told != hf:  # else the file stays as it is, byte for byte
        write_json(directory / CONFIG, told)


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
    planned: Planned = {}
    for names, spec in named_specs(config):
        whole = _leaf(params, names, whole=True)
        if whole.shape[-len(spec.shape) :] != spec.shape:
            raise ValueError(f"{'.'.join(names)} has shape {whole.shape}, not {spec.shape} (after any layer axis)")
        planned[names] = spec, np.dtype(whole.dtype)
    samples: list[fingerprint.Sample] = []

    def read(names: Names) -> Any:
        (spec, dtype), tensor = planned[names], _leaf(params, names)
        samples.append((spec.hf, dtype, spec.hf_shape, _sampled(tensor, spec.hf_shape)))
        return tensor

    with new_directory(Path(dst)) as building:
        if jax.process_index() == 0:
            copied = copy_assets(assets, building) if assets is not None else []
            if CONFIG not in copied:
                write_json(building / CONFIG, with_dtype(to_hf(config), planned[("embedding",)][1].name))
        write_params(building / PARAMS, _sizes(planned), read)
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
