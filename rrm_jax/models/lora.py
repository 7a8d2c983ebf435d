"""Low-rank adapters (LoRA, 2106.09685): a frozen matrix W becomes W + (alpha / rank) · up · down.

Every matrix of every layer has a pair: `down` [L, R, *inputs] and `up` [L, *outputs, R], float32, in the tree
{"layers": {"attention": {"q_kernel": {"down", "up"}, …}, "mlp": {…}}}. Embedding, output matrix, norms and biases have
none. The pairs are what is trained and what a checkpoint holds; the base stays as it is, in whatever dtype.

Axes: L layers, R rank.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Params
from rrm_jax.models.params import ParamSpec, is_spec, param_specs
from rrm_jax.models.quantized import Adapted, inputs, is_product


def adapter_specs(config: DecoderConfig, rank: int) -> Params:
    """The tree of the adapters' `ParamSpec`s, stacked; the names are those that PEFT gives them."""

    def pairs(specs: dict[str, Any]) -> dict[str, Any]:
        found = {name: pairs(node) for name, node in specs.items() if isinstance(node, dict)}
        matrices = {name: spec for name, spec in specs.items() if is_spec(spec) and is_product(spec)}
        return found | {name: _pair(spec, rank) for name, spec in matrices.items()}

    return {"layers": pairs(param_specs(config, stacked=True)["layers"])}


def _pair(spec: ParamSpec, rank: int) -> dict[str, ParamSpec]:
    (layers, *shape), (_, *axes) = spec.shape, spec.axes
    cut = inputs(dataclasses.replace(spec, shape=tuple(shape), axes=tuple(axes)))[0]  # outputs come first
    down = (layers, rank, *shape[cut:]), ("layers", "rank", *axes[cut:])
    up = (layers, *shape[:cut], rank), ("layers", *axes[:cut], "rank")
    name = spec.hf.removesuffix("weight")
    return {
        "down": ParamSpec(*down, _kaiming(len(shape) - cut), f"{name}lora_A.weight"),
        "up": ParamSpec(*up, nnx.initializers.zeros, f"{name}lora_B.weight"),
    }


@functools.cache
def _kaiming(input_axes: int) -> Callable[..., jax.Array]:
    """Uniform within ± 1 / √inputs, as PEFT draws it, for [R, *inputs]."""
    into = range(1, 1 + input_axes)
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=tuple(into), out_axis=0)


def num_parameters(config: DecoderConfig, rank: int) -> int:
    """Of the adapters alone."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(adapter_specs(config, rank), is_leaf=is_spec))


def abstract_adapters(config: DecoderConfig, rank: int, sharding: Callable[[ParamSpec], Any] | None = None) -> Params:
    """`jax.ShapeDtypeStruct`s of the tree, float32; `sharding(spec)` gives each its placement."""
    place = sharding or (lambda spec: None)
    return jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=place(spec)),
        adapter_specs(config, rank),
        is_leaf=is_spec,
    )


def init_adapters(
    config: DecoderConfig, rank: int, seed: int, sharding: Callable[[ParamSpec], Any] | None = None
) -> Params:
    """Adapters that change nothing yet: `up` is 0, `down` random, addressed by (seed, name): the same on any mesh."""
    root = jax.random.key(seed)

    def leaf(spec: ParamSpec) -> jax.Array:
        names = [zlib.crc32(spec.hf.format(layer=layer).encode()) for layer in range(config.num_layers)]
        keys = jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.asarray(names, jnp.uint32))
        return _draw(spec.init, spec.shape[1:], sharding(spec) if sharding else None, keys)

    return jax.tree.map(leaf, adapter_specs(config, rank), is_leaf=is_spec)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(init, shape: tuple[int, ...], placement, keys_L) -> jax.Array:
    value = jax.vmap(lambda key: init(key, shape, jnp.float32))(keys_L)
    return value if placement is None else jax.lax.with_sharding_constraint(value, placement)


def adapt(params: Params, adapters: Params, alpha: float, rank: int) -> Params:
    """Stacked parameters whose matrices are `Adapted`, for `decoder.forward`; nothing is computed or copied.

    To train, take the gradient by `adapters`: the base's own is then never made.
    """

    def wrap(weights: dict[str, Any], pairs: dict[str, Any]) -> dict[str, Any]:
        return weights | {
            name: wrap(weights[name], pair)
            if isinstance(weights[name], dict)
            else Adapted(weights[name], **pair, scale=alpha / rank)
            for name, pair in pairs.items()
        }

    return {**params, "layers": wrap(params["layers"], adapters["layers"])}


def merge(params: Params, adapters: Params, alpha: float, rank: int) -> Params:
    """Stacked parameters as plain arrays again, W + (alpha / rank) · up · down, in W's dtypes. Meant for jit.

    Each is summed in float32 and rounded once. In bfloat16 that loses what changes a weight by less than half the
    step between its neighbours, 1/512 to 1/256 of it.
    """

    def one_layer(layer: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda x: x.merged() if _is_adapted(x) else x, layer, is_leaf=_is_adapted)

    # One layer after another: the float32 sums of all together would take twice the memory of a bfloat16 model.
    return {**params, "layers": jax.lax.map(one_layer, adapt(params, adapters, alpha, rank)["layers"])}


def _is_adapted(x: Any) -> bool:
    return isinstance(x, Adapted)
