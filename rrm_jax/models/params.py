"""What is derived from the decoder's declarations: specs, initial values, and the two layouts of `layers`."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Block, Params, Tables


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter as declared: shape, logical axes (one per dimension), initialiser, Hugging Face name.

    A stacked layer parameter has a leading "layers" axis, and `{layer}` in its Hugging Face name.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable[..., jax.Array]
    hf: str

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The Hugging Face tensor's shape: heads × head width are one dimension there."""
        if "head" not in self.axes:
            return self.shape
        at = self.axes.index("head")
        return (*self.shape[: at - 1], self.shape[at - 1] * self.shape[at], *self.shape[at + 1 :])


def _declared(make: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))))):
        facts = variable.get_metadata()
        *parents, name = map(str, path)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = ParamSpec(tuple(variable.shape), facts["axes"], facts["init"], facts["hf"])
    return tree


@functools.lru_cache(maxsize=32)
def _specs(config: DecoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    return _declared(lambda rngs: Tables(config, rngs)), _declared(lambda rngs: Block(config, rngs))


def is_spec(x: Any) -> bool:
    """Tells `jax.tree` functions that the leaves of a tree of specs are the specs."""
    return isinstance(x, ParamSpec)


def param_specs(config: DecoderConfig, stacked: bool) -> Params:
    """The tree of `ParamSpec`s: `layers` stacked along a leading axis, or a list of L trees."""
    tables, block = _specs(config)

    def in_layer(spec: ParamSpec, layer: int | str) -> ParamSpec:
        return dataclasses.replace(spec, hf=f"model.layers.{layer}.{spec.hf}")

    if stacked:
        layers = jax.tree.map(
            lambda s: dataclasses.replace(
                in_layer(s, "{layer}"), shape=(config.num_layers, *s.shape), axes=("layers", *s.axes)
            ),
            block,
            is_leaf=is_spec,
        )
    else:
        layers = [jax.tree.map(lambda s, i=i: in_layer(s, i), block, is_leaf=is_spec) for i in range(config.num_layers)]
    return {**tables, "layers": layers}


def named_specs(config: DecoderConfig) -> Iterator[tuple[tuple[str, ...], ParamSpec]]:
    """Every parameter of the unstacked layout as (path, spec); a path is e.g. ("layers", "3", "mlp", "up_kernel")."""
    for path, spec in jax.tree.leaves_with_path(param_specs(config, stacked=False), is_leaf=is_spec):
        yield tuple(str(getattr(key, "key", getattr(key, "idx", None))) for key in path), spec


def abstract_params(
    config: DecoderConfig, dtype, stacked: bool, sharding: Callable[[ParamSpec], Any] | None = None
) -> Params:
    """`jax.ShapeDtypeStruct`s of the whole tree; `sharding(spec)` gives each its placement."""
    place = sharding or (lambda spec: None)
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, dtype, sharding=place(s)), param_specs(config, stacked), is_leaf=is_spec
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _draw(init, shape: tuple[int, ...], dtype, placement, keys) -> jax.Array:
    def one(key):
        return init(key, shape, dtype)

    value = jax.vmap(one)(keys) if keys.ndim else one(keys)
    return value if placement is None else jax.lax.with_sharding_constraint(value, placement)


def init_params(
    config: DecoderConfig, seed: int, dtype=jnp.float32, sharding: Callable[[ParamSpec], Any] | None = None
) -> Params:
    """Random stacked parameters, each addressed by (seed, its Hugging Face name): the same on any mesh."""
    root = jax.random.key(seed)

    def key(name: str) -> jax.Array:
        return jax.random.fold_in(root, zlib.crc32(name.encode()))

    def leaf(spec: ParamSpec):
        shape, keys = spec.shape, key(spec.hf)
        if "{layer}" in spec.hf:
            shape = shape[1:]
            keys = jnp.stack([key(spec.hf.format(layer=layer)) for layer in range(config.num_layers)])
        return _draw(spec.init, shape, jnp.dtype(dtype), sharding(spec) if sharding else None, keys)

    return jax.tree.map(leaf, param_specs(config, stacked=True), is_leaf=is_spec)


def stack(params: Params) -> Params:
    """List-of-layers parameters → stacked ones (training). Works on arrays and under jit."""
    return {**params, "layers": jax.tree.map(lambda *xs: jnp.stack(xs), *params["layers"])}


def unstack(params: Params) -> Params:
    """Stacked parameters → list-of-layers ones (sampling). Works on arrays and under jit."""
    layers: Mapping[str, Any] = params["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    return {**params, "layers": [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)]}
