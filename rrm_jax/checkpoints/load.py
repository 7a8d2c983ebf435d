"""Loading a model, of whatever kind, straight onto a mesh."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rrm_jax.checkpoints.sources import Source, open_source, resolve_kind
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Params
from rrm_jax.models.params import is_spec, param_specs
from rrm_jax.parallel.mesh import param_sharding

__all__ = ["LoadedModel", "load_model", "resolve_kind"]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """`params` are jax arrays, placed by `parallel.mesh.param_sharding`: a list of layers, or stacked ones.

    `assets` holds config.json and the tokenizer's files. `fingerprint` (hex) names the weights as stored, whatever
    dtype they were loaded in. `facts` is what was recorded with them, such as the judge template trained with.
    """

    config: DecoderConfig
    params: Params
    assets: Path
    fingerprint: str
    facts: dict[str, Any]


def load_model(path: str | Path, *, mesh: Mesh, dtype: Any, stacked: bool = False) -> LoadedModel:
    """Loads a Hugging Face directory, a converted checkpoint, or a training run's latest step.

    Every weight is cast to `dtype`. One tensor at a time is in host memory for a Hugging Face directory, and no
    whole second copy is on the devices. Raises RrmError for a path that is no model, is incomplete or does not
    match its config.json, and MeshError for a mesh that does not divide it.
    """
    source = open_source(path)
    params = _load_params(source, mesh, jnp.dtype(dtype), stacked)
    return LoadedModel(source.config, params, source.assets, source.fingerprint(), source.facts)


def _load_params(source: Source, mesh: Mesh, dtype: Any, stacked: bool) -> Params:
    place = functools.partial(param_sharding, mesh)

    def abstract(specs: Any) -> Any:
        return jax.tree.map(
            lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=place(spec)), specs, is_leaf=is_spec
        )

    wanted = abstract(param_specs(source.config, stacked))
    stored = abstract(param_specs(source.config, source.stacked))
    layers = range(source.config.num_layers)
    if not source.stacked:
        stored["layers"] = {str(layer): stored["layers"][layer] for layer in layers}
    if stacked == source.stacked:
        params = source.load(stored)
        return params if stacked else {**params, "layers": [params["layers"][str(layer)] for layer in layers]}
    params = source.load({name: leaf for name, leaf in stored.items() if name != "layers"})
    # The other layout: one parameter of the block at a time, so that only one is ever on the devices twice.
    convert = _load_stacking if stacked else _load_splitting
    return {**params, "layers": convert(source, stored["layers"], wanted["layers"])}


def _load_stacking(source: Source, stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    def one(keys: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        part = {layer: _pick(block, keys) for layer, block in stored.items()}
        arrays = jax.tree.leaves_with_path(source.load({"layers": part}))
        in_order = [array for _, array in sorted(arrays, key=lambda item: int(item[0][1].key))]
        result = _stacker(leaf.sharding)(*in_order)
        result.block_until_ready()
        for array in in_order:
            array.delete()
        return result

    return jax.tree.map_with_path(one, wanted)


@functools.cache
def _stacker(placement: Any) -> Any:
    """Kept, so that a trainer's second model, its reference, compiles nothing."""
    return jax.jit(lambda *xs: jnp.stack(xs), out_shardings=placement)


def _load_splitting(source: Source, stored: dict[str, Any], wanted: list[Any]) -> list[Any]:
    def one(keys: Any, leaf: jax.ShapeDtypeStruct, *layers: jax.ShapeDtypeStruct) -> list[jax.Array]:
        (array,) = jax.tree.leaves(source.load({"layers": _pick(stored, keys)}))
        split = jax.jit(lambda x: [x[at] for at in range(len(layers))], out_shardings=[s.sharding for s in layers])
        result = jax.block_until_ready(split(array))
        array.delete()
        return result

    columns = jax.tree.map_with_path(one, stored, *wanted)
    treedef = jax.tree.structure(stored)
    flat = treedef.flatten_up_to(columns)
    return [treedef.unflatten([column[at] for column in flat]) for at in range(len(wanted))]


def _pick(block: dict[str, Any], keys: Any) -> dict[str, Any]:
    """The tree that holds only the leaf at `keys`."""
    key, *rest = keys
    return {key.key: _pick(block[key.key], rest) if rest else block[key.key]}
