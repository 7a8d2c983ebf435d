"""What a verdict is worth to the learner."""

import numpy as np


def verdict_reward(verdict: int | None, label: int | None) -> float:
    """+1 if the verdict names the better response, −1 if it names the other or cannot be parsed (paper §3)."""
    return 1.0 if verdict is not None and verdict == label else -1.0


def consistency_reward(reward_PG: np.ndarray, weight: float) -> np.ndarray:
    """Verdict rewards ±1 [P, G], blended with whether both orders of a pair were judged rightly (J1, 2505.10320).

    Prompts 2p and 2p + 1 show one pair in its two orders, and sample g of one goes with sample g of the other: both get
    `(1 − weight) R + weight × (+1 if both are right, else −1)`.
    """
    pairs = reward_PG.reshape(-1, 2, reward_PG.shape[1])
    both = np.where((pairs > 0).all(axis=1, keepdims=True), 1.0, -1.0)
    return ((1 - weight) * pairs + weight * both).reshape(reward_PG.shape)


def overlong_penalty(length: np.ndarray, max_new_tokens: int, window: int) -> np.ndarray:
    """0 up to `max_new_tokens − window` tokens, then linearly down to −1 at the limit (DAPO, 2503.14476, eq. 13)."""
    if window == 0:
        return np.zeros(np.shape(length))
    return -np.clip((np.asarray(length) - (max_new_tokens - window)) / window, 0, 1)
