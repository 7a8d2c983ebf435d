"""Group-relative advantages.

Axes: P prompts, G samples of one prompt.
"""

import numpy as np

from rrm_jax.types import Array


def group_advantages(reward_PG: Array, normalise_std: bool = True, eps: float = 1e-6) -> np.ndarray:
    """GRPO's advantage (2402.03300, eq. 10): `(R − mean R) / (std R + eps)` within each group, float32 [P, G].

    The standard deviation is the population's; without `normalise_std` nothing is divided (Dr. GRPO, 2503.20783). A
    group whose rewards are all equal gets zeros: no gradient. NumPy: rewards are made on the host, and single JAX
    operations would be compiled one by one.
    """
    reward_PG = np.asarray(reward_PG, np.float32)
    centred = reward_PG - reward_PG.mean(axis=-1, keepdims=True)
    return centred / (reward_PG.std(axis=-1, keepdims=True) + np.float32(eps)) if normalise_std else centred
