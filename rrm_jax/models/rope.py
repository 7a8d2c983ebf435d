"""Rotary position embeddings: the four kinds that Qwen2 and Qwen2.5 checkpoints carry.

Axes: B batch, T time, H heads, N head width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.models.config import DecoderConfig


def _default_frequencies(theta, head_dim: int):
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return 1.0 / theta**exponents


def _yarn_frequencies(config: DecoderConfig) -> np.ndarray:
    """YaRN (2309.00071 §3.2): interpolate slow dimensions, keep fast ones, ramp between."""
    rope, width = config.rope, config.head_dim
    original = rope.original_max_positions or config.max_positions

    def dimension_of(rotations: float) -> float:
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # the ramp's slope stays finite
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    kept = _default_frequencies(np.float32(rope.theta), width)
    return kept / np.float32(rope.factor) * ramp + kept * (1 - ramp)


def attention_factor(config: DecoderConfig) -> float:
    """The factor on cos and sin: YaRN's temperature, 1 for every other kind."""
    rope = config.rope
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def rotations(
    config: DecoderConfig, positions_BT: jax.Array, seq_len_BT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, N/2], for integer positions.

    `seq_len_BT` is the length of each token's own sequence so far in this call. Only `dynamic` (NTK-aware
    scaling, whose base grows with the sequence) reads it; it is per sequence, so that a row's result does not
    depend on the batch it is in (transformers takes the batch's maximum: equal when lengths are). Cached keys
    keep the base of the length they were made at, as in transformers: beyond `max_positions`, decoding is not the
    same function as one pass over the whole sequence.
    """
    rope, width = config.rope, config.head_dim
    if rope.kind == "dynamic":
        if seq_len_BT is None:
            raise ValueError("rope kind 'dynamic' needs seq_len_BT")
        limit = config.max_positions
        stretch = rope.factor * jnp.maximum(seq_len_BT, limit).astype(jnp.float32) / limit - (rope.factor - 1)
        theta_BT1 = (rope.theta * stretch ** (width / (width - 2)))[..., None]
        frequencies = _default_frequencies(theta_BT1, width)
    elif rope.kind == "yarn":
        frequencies = jnp.asarray(_yarn_frequencies(config))
    else:
        factor = rope.factor if rope.kind == "linear" else 1.0
        frequencies = jnp.asarray(_default_frequencies(np.float32(rope.theta), width) / np.float32(factor))
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    scale = attention_factor(config)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x_BTHN: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (n, n + N/2) of every head, in float32; returns x's dtype."""
    first, second = jnp.split(x_BTHN.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHN.dtype)
