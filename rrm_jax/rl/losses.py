"""Losses as pure functions that return sums. Divide by the global count once, at the end.

Axes: B rows (responses), C completion time. A micro-batch, a padded row or a host more only adds to the sums,
so every split of a batch gives the same mean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.types import Array

Sums = dict[str, jax.Array]


class PolicyBatch(NamedTuple):
    """advantage: float32 [B]. The others are float32 [B, C]. old_logprob: under the policy that sampled, by the
    trainer's own forward pass; None where that policy is the one being differentiated (the ratio is then 1).
    reference_logprob: under the frozen reference; None without a KL term. sampler_logprob: as the sampler
    reported them. mask: 1 on completion tokens; a row of zeros is padding and counts for nothing.
    """

    advantage: Array
    old_logprob: Array | None
    reference_logprob: Array | None
    sampler_logprob: Array
    mask: Array


def k3(logprob: jax.Array, reference_logprob: Array) -> jax.Array:
    """The low-variance estimate of KL(π ‖ π_ref) on samples of π: `exp(d) − d − 1`, d = log π_ref − log π.

    Never negative; unlike k1 (−d), its gradient inside a loss is not zero in expectation.
    """
    difference = reference_logprob - logprob
    return jnp.exp(difference) - difference - 1


def grpo_loss(logprob_BC: jax.Array, batch: PolicyBatch, clip_eps: float, kl_coef: float) -> tuple[jax.Array, Sums]:
    """Sum over responses of the mean over each one's tokens of the clipped loss (2402.03300, eq. 3).

    `−min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + β k3`, ρ = π / π_old. Divide by the number of responses. The sums
    hold what metrics need, each summed over tokens: `kl`; `clip_low`, `clip_high` (1 where the clip stops the
    gradient); `mismatch` (|trainer's − sampler's| log-probability of the sampling policy); and `tokens`.
    """
    mask, advantage_B1 = batch.mask, batch.advantage[:, None]
    old = jax.lax.stop_gradient(logprob_BC) if batch.old_logprob is None else batch.old_logprob
    ratio = jnp.exp(logprob_BC - old)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    per_token = -jnp.minimum(ratio * advantage_B1, clipped * advantage_B1)
    sums = {
        "tokens": jnp.sum(mask),
        "clip_low": jnp.sum(mask * ((ratio < 1 - clip_eps) & (advantage_B1 < 0))),
        "clip_high": jnp.sum(mask * ((ratio > 1 + clip_eps) & (advantage_B1 > 0))),
        "mismatch": jnp.sum(mask * jnp.abs(old - batch.sampler_logprob)),
    }
    if batch.reference_logprob is not None:
        kl = k3(logprob_BC, batch.reference_logprob)
        per_token = per_token + kl_coef * kl
        sums["kl"] = jnp.sum(kl * mask)
    per_response = jnp.sum(per_token * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return jnp.sum(per_response), sums


def supervised_loss(logprob_BC: jax.Array, mask_BC: Array) -> tuple[jax.Array, Sums]:
    """Sum of the negative log-likelihoods of the completion tokens. Divide by their number (`tokens`)."""
    return -jnp.sum(logprob_BC * mask_BC), {"tokens": jnp.sum(mask_BC)}
