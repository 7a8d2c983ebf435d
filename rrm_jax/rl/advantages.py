"""Group-relative advantages.

Axes: P prompts, G samples of one prompt.
"""

import jax
import jax.numpy as jnp

from rrm_jax.types import Array


def group_advantages(reward_PG: Array, normalise_std: bool = True, eps: float = 1e-6) -> jax.Array:
    """GRPO's advantage (2402.03300, eq. 10): `(R − mean R) / (std R + eps)` within each group, float32 [P, G].

    The standard deviation is the population's; without `normalise_std` nothing is divided (Dr. GRPO, 2503.20783). A
    group whose rewards are all equal gets zeros: no gradient.
    """
    reward_PG = jnp.asarray(reward_PG, jnp.float32)
    centred = reward_PG - jnp.mean(reward_PG, axis=-1, keepdims=True)
    return centred / (jnp.std(reward_PG, axis=-1, keepdims=True) + eps) if normalise_std else centred
