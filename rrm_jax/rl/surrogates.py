"""The policy's term of the loss, before KL, entropy and weights: what becomes of the ratio π / π_old and the advantage.

A surrogate is a pure function of arrays [B, C]. A new one is a function in a module of its own, and a line of
`training/config.py`'s `SURROGATES`, under the name that `grpo.surrogate` has then.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Clip(NamedTuple):
    """The ratio's bounds: 1 − `low` … 1 + `high`."""

    low: float
    high: float


class Term(NamedTuple):
    """`loss`: float32 [B, C], to be descended. `low`, `high`: bool [B, C], where the clip's bounds were at work."""

    loss: jax.Array
    low: jax.Array
    high: jax.Array


class Surrogate(Protocol):
    """`ratio`: π / π_old of tokens, or of their responses; `advantage`; `logprob`: log π of tokens. All [B, C]."""

    def __call__(self, ratio: jax.Array, advantage: jax.Array, logprob: jax.Array, clip: Clip) -> Term:
        """The loss of every token, before it is weighted."""
        ...


def clipped_ratio(ratio: jax.Array, advantage: jax.Array, logprob: jax.Array, clip: Clip) -> Term:
    """−min(ρ A, clip(ρ) A) (1707.06347, eq. 7): a token that is past a bound in its advantage's direction has no
    gradient."""
    clipped = jnp.clip(ratio, 1 - clip.low, 1 + clip.high)
    past_low, past_high = (ratio < 1 - clip.low) & (advantage < 0), (ratio > 1 + clip.high) & (advantage > 0)
    return Term(-jnp.minimum(ratio * advantage, clipped * advantage), past_low, past_high)


def clipped_weight(ratio: jax.Array, advantage: jax.Array, logprob: jax.Array, clip: Clip) -> Term:
    """−sg(clip(ρ)) A log π (CISPO, 2506.13585, eq. 4): a bound limits a token's weight, and takes away no gradient."""
    clipped = jnp.clip(ratio, 1 - clip.low, 1 + clip.high)
    return Term(-jax.lax.stop_gradient(clipped) * advantage * logprob, ratio < 1 - clip.low, ratio > 1 + clip.high)
