"""Adam whose two moments are kept in 16 or 8 bits between steps. The arithmetic of a step is optax's, in float32.

Rounding to nearest would stop the moments: with b2 = 0.999 the second one changes by a thousandth a step, less than
half of what bfloat16 or 8 bits can tell apart, so that it would never decay. Everything is therefore rounded
stochastically: up with a probability equal to the fraction that is cut off, which leaves the expectation as it was. The
random bits are addressed by (step, array, layer, element): the same on any mesh and after a restart.

8 bits hold, for every tile of 8 × 8 elements, which has a float32 scale of its own:

- the second moment as a logarithm, in eighths of an octave below the tile's largest (32 octaves in all). What is
  smaller takes the smallest code, which is not 0: a divisor is never rounded away, and errors are relative, so that an
  element of small gradients keeps its own step size beside one of large ones;
- the first moment as m / √v, v being the second one as stored. That is the direction Adam goes in, so its rounding
  changes a step by 1/127 of the tile's largest direction at most, whatever the sizes of the gradients.

A tile spans two axes, since mesh axes divide both: 8 divides what a device holds of the usual matrices on the usual
meshes, so that tiles do not straddle devices and no step communicates. (Blockwise 8-bit moments are from 2110.02861;
its blocks, codes and rounding are others.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

TILE = 8
_SMALLEST_AXIS = 64
_STEPS_PER_OCTAVE = 8
_TOP = 255  # the code of a tile's largest second moment


class Tiled(NamedTuple):
    """An array in 8 bits: `codes` of its shape, and a float32 `scale` for each tile (two axes are ⌈size / 8⌉ long)."""

    codes: jax.Array
    scale: jax.Array


def tiled_axes(path: Any, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The two longest axes of a matrix (or a stack of matrices) where both have 64 elements or more; otherwise None.

    `path` is the array's key path: below "layers" the first axis counts layers. Norms, biases and thin matrices, which
    have no such axes, stay float32: they are few.
    """
    longest = sorted(range(int(_stacked(path)), len(shape)), key=lambda axis: shape[axis])[-2:]
    if len(longest) < 2 or shape[longest[0]] < _SMALLEST_AXIS:
        return None
    return min(longest), max(longest)


def _stacked(path: Any) -> bool:
    return any(getattr(key, "key", None) == "layers" for key in path)


def scale_by_small_adam(b1: float, b2: float, eps: float, dtype: str) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with matrices' moments kept as "bfloat16" or "int8". Gradients are float32 and finite.

    The state is optax's; in `mu` and `nu` a matrix is a bfloat16 array or a `Tiled` (int8 and uint8 codes).
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params):
        def zeros(codes):
            return jax.tree.map_with_path(lambda path, p: _zeros(path, p, dtype, codes), params)

        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros(jnp.int8), zeros(jnp.uint8))

    def update(updates, state, params=None):
        def one(key, g, m, v):
            stepped: Any = adam.update(g, optax.ScaleByAdamState(state.count, *_load(m, v)))
            direction, new = stepped
            return direction, *_store(new.mu, new.nu, m, v, key)

        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), state.count)
        leaves, tree = jax.tree.flatten_with_path(updates)
        stored = zip(leaves, tree.flatten_up_to(state.mu), tree.flatten_up_to(state.nu), strict=True)
        new = []
        for index, ((path, g), m, v) in enumerate(stored):
            looped = _stacked(path) and tiled_axes(path, g.shape)
            step = functools.partial(_layer_by_layer, one) if looped else one
            new.append(step(jax.random.fold_in(key, index), g, m, v))
        directions, mu, nu = (tree.unflatten(part) for part in zip(*new, strict=True))
        return directions, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(init, update)


def _zeros(path: Any, param: Any, dtype: str, codes: Any) -> Any:
    axes = tiled_axes(path, param.shape)
    if axes is None or dtype == "bfloat16":
        return jnp.zeros(param.shape, jnp.float32 if axes is None else jnp.bfloat16)
    tiles = [math.ceil(size / TILE) if axis in axes else size for axis, size in enumerate(param.shape)]
    return Tiled(jnp.zeros(param.shape, codes), jnp.zeros(tiles, jnp.float32))


def _layer_by_layer(step: Callable[..., Any], key: jax.Array, *arrays: Any) -> Any:
    """`step(key, *arrays)` on each layer in turn, in place: the moments are never in float32 all at once."""

    def body(layer, arrays):
        one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), arrays)
        new = step(jax.random.fold_in(key, layer), *one)
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, layer, 0), arrays, new)

    return jax.lax.fori_loop(0, arrays[0].shape[0], body, arrays)


def _load(m: Any, v: Any) -> tuple[jax.Array, jax.Array]:
    """Both moments as stored → in float32."""
    if not isinstance(v, Tiled):
        return m.astype(jnp.float32), v.astype(jnp.float32)
    nu = _second(v.codes.astype(jnp.float32), _spread(v.scale, v.codes.shape))
    return m.codes.astype(jnp.float32) * _spread(m.scale, m.codes.shape) * jnp.sqrt(nu), nu


def _store(mu: jax.Array, nu: jax.Array, m: Any, v: Any, key: jax.Array) -> tuple[Any, Any]:
    """Both moments in float32 → as `m` and `v` are stored."""
    if not isinstance(v, Tiled):
        if v.dtype == jnp.float32:
            return mu, nu
        low, high = _noise(key, nu.shape)
        return _round_to_bfloat16(mu, low), _round_to_bfloat16(nu, high)
    low, high = (bits.astype(jnp.float32) / 2**16 for bits in _noise(key, nu.shape))
    second = _log_codes(nu, v.scale.shape, high)
    root = jnp.sqrt(_second(second.codes.astype(jnp.float32), _spread(second.scale, nu.shape)))
    direction = jnp.where(root > 0, mu / root, 0)
    scale = _tile_max(jnp.abs(direction), m.scale.shape) / 127
    in_steps = jnp.where(root > 0, direction / _spread(scale, nu.shape), 0)
    return Tiled(jnp.clip(jnp.floor(in_steps + low), -127, 127).astype(jnp.int8), scale), second


def _noise(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two random integers below 2¹⁶ for every element.

    A hash of the element's index (MurmurHash3's finaliser, twice): good enough to round by, and, unlike
    `jax.random.bits`, made where it is used, without arrays in between that are larger than the moments themselves.
    """
    first, second = jax.random.key_data(key)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    bits = _mix(_mix(index ^ first) ^ second)
    return bits & 0xFFFF, bits >> 16


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _round_to_bfloat16(x: jax.Array, noise: jax.Array) -> jax.Array:
    """float32 → bfloat16, away from 0 with a probability of the bits that are cut off."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _second(codes: jax.Array, largest: jax.Array) -> jax.Array:
    return largest * jnp.exp2((codes - _TOP) / _STEPS_PER_OCTAVE)


def _log_codes(v: jax.Array, tiles: tuple[int, ...], noise: jax.Array) -> Tiled:
    scale = _tile_max(v, tiles)
    relative = v / jnp.maximum(_spread(scale, v.shape), jnp.finfo(jnp.float32).tiny)
    below = jnp.clip(jnp.floor(_TOP + _STEPS_PER_OCTAVE * jnp.log2(relative)), 0, _TOP - 1)
    # The fraction is one of values, not of their logarithms: the expected second moment is what stays.
    low, high = _second(below, jnp.float32(1)), _second(below + 1, jnp.float32(1))
    codes = below + (noise < (relative - low) / (high - low))
    return Tiled(codes.astype(jnp.uint8), scale)


def _tile_max(x: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
    """The largest of every tile, of an array without negative elements."""
    for axis, (size, count) in enumerate(zip(x.shape, tiles, strict=True)):
        if size != count:
            x = jnp.pad(x, [(0, count * TILE - size if i == axis else 0) for i in range(x.ndim)])
            x = x.reshape(*x.shape[:axis], count, TILE, *x.shape[axis + 1 :]).max(axis + 1)
    return x


def _spread(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A tile's number at each of its elements."""
    for axis in reversed(range(len(shape))):  # the innermost axis, whose reshape may be a copy, while it is small
        if shape[axis] != scale.shape[axis]:
            scale = jax.lax.slice_in_dim(jnp.repeat(scale, TILE, axis), 0, shape[axis], axis=axis)
    return scale
