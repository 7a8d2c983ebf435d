"""The policy loss as a pure function that returns sums. Divide by the global denominator once, at the end.

Axes: B rows, C completion time, R responses of a row. A row may hold several responses, packed one after the other; a
micro-batch, a padded row or a host more only adds to the sums, so that every split of a batch gives the same mean.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.rl.surrogates import Clip, Surrogate, clipped_ratio
from rrm_jax.types import Array

Sums = dict[str, jax.Array]
Aggregation = Literal["sequence", "token", "constant"]
Estimator = Literal["k1", "k2", "k3"]


class PolicyBatch(NamedTuple):
    """float32 [B, C] each, 0 where `mask` is, but for `response`.

    `advantage`: of the token's response. `weight`: what the token's loss counts, see `token_weights`. `response`: int32
    [B, C], the number in its row, from 0, of the response that the token belongs to. `old_logprob`: under the
    policy that the step began with, by the trainer's own forward pass; None where that policy is the one being
    differentiated (the ratio is then 1). `reference_logprob`: under the frozen reference; None without one.
    `sampler_logprob`: as the sampler reported it. `mask`: 1 on completion tokens.
    """

    advantage: Any
    weight: Any
    response: Any
    old_logprob: Any
    reference_logprob: Any
    sampler_logprob: Any
    mask: Any


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """What the loss is made of; GRPO's (2402.03300, eq. 3) unless told otherwise.

    `ratio`: of single tokens, or the geometric mean over a response (GSPO, 2507.18071, eq. 7), which every token of
    it then has. It is clipped to 1 − `clip_low` … 1 + `clip_high`. `kl_coef` × the `kl_estimator` of KL(π ‖ π_ref) is
    added, `entropy_coef` × entropy taken off. `importance_cap`: the policy term is weighed by π_old / π_sampler,
    this at most, without a gradient (truncated importance sampling); None: it is not. `surrogate`: see `surrogates.py`.
    """

    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    kl_estimator: Estimator = "k3"
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    surrogate: Surrogate = clipped_ratio


def token_weights(lengths: Array, aggregation: Aggregation, max_new_tokens: int) -> tuple[np.ndarray, float]:
    """What one token of each response counts, float64, and what the batch's sum is divided by.

    "sequence": the mean over a response's tokens, then over responses (GRPO). "token": the mean over all tokens (DAPO,
    2503.14476, eq. 8). "constant": a response's sum over `max_new_tokens`, then the mean over responses (Dr. GRPO,
    2503.20783: no length of a response in it). `lengths` are of all the responses that the mean is over.
    """
    lengths = np.asarray(lengths, np.float64)
    if aggregation == "token":
        return np.ones(len(lengths)), float(lengths.sum())
    each = 1 / lengths if aggregation == "sequence" else np.full(len(lengths), 1 / max_new_tokens)
    return each, float(len(lengths))


def kl_estimate(estimator: Estimator, logprob: Array, reference_logprob: Array) -> Any:
    """An estimate of KL(π ‖ π_ref) on a token drawn from π, d = log π_ref − log π.

    k1 −d, k2 d²/2, k3 `exp(d) − d − 1`, never negative. Inside a loss the expected gradient of k1 is zero, that of k2
    is KL(π ‖ π_ref)'s, and that of k3 is KL(π_ref ‖ π)'s. Arrays of NumPy or JAX.
    """
    difference = reference_logprob - logprob
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference * difference / 2
    return jnp.exp(difference) - difference - 1


@jax.named_scope("policy_loss")
def policy_loss(
    how: PolicyLoss, logprob_BC: jax.Array, entropy_BC: jax.Array, batch: PolicyBatch
) -> tuple[jax.Array, Sums]:
    """Σ weight × (surrogate × importance + β KL − entropy bonus), to be divided by `token_weights`'s number.

    The sums hold what metrics need, each summed over tokens: `entropy`; `kl` with a reference; `clip_low`,
    `clip_high` (1 where the surrogate's clip is at work); `mismatch` (|trainer's − sampler's| log-probability of the
    policy that sampled) and `mismatch_kl` (KL(sampler ‖ trainer) by k3); with a cap `importance` and
    `importance_capped`; and `tokens`.
    """
    mask, advantage = batch.mask, batch.advantage
    old = jax.lax.stop_gradient(logprob_BC) if batch.old_logprob is None else batch.old_logprob
    gap = logprob_BC - old
    ratio = jnp.exp(gap if how.ratio == "token" else response_mean(gap, batch.response, mask))
    per_token, low, high = how.surrogate(ratio, advantage, logprob_BC, Clip(how.clip_low, how.clip_high))
    drift = jnp.where(mask > 0, old - batch.sampler_logprob, 0)
    drawn = {
        "tokens": mask,
        "entropy": entropy_BC,
        "clip_low": low,
        "clip_high": high,
        "mismatch": jnp.abs(drift),
        "mismatch_kl": jnp.exp(drift) - drift - 1,
    }
    if how.importance_cap is not None:
        importance = jnp.exp(drift)
        drawn |= {"importance": importance, "importance_capped": importance > how.importance_cap}
        per_token = per_token * jnp.minimum(importance, how.importance_cap)
    if batch.reference_logprob is not None:
        drawn["kl"] = kl_estimate(how.kl_estimator, logprob_BC, batch.reference_logprob)
        per_token = per_token + how.kl_coef * drawn["kl"]
    per_token = per_token - how.entropy_coef * entropy_BC
    sums = {name: jnp.sum(jnp.where(mask > 0, value, 0)) for name, value in drawn.items()}
    return jnp.sum(jnp.where(mask > 0, per_token, 0) * batch.weight), sums


class PreferenceBatch(NamedTuple):
    """Rows that hold pairs, packed one after the other: first the response preferred, then the other. [B, C] each.

    `response`: int32, the number in its row, from 0, of the response that the token belongs to, so that the preferred
    ones are even. `reference_logprob`: float32, under the frozen reference; None without one. `mask`: 1 on completion
    tokens.
    """

    response: Any
    reference_logprob: Any
    mask: Any


@jax.named_scope("preference_loss")
def preference_loss(
    logprob_BC: jax.Array, batch: PreferenceBatch, beta: float, label_smoothing: float, mean: bool
) -> tuple[jax.Array, Sums]:
    """Direct preference optimisation (2305.18290, eq. 7): Σ over pairs of −log σ(β h), to be divided by their number.

    h is log π − log π_ref of the preferred response less that of the other, summed over a response's tokens, or, with
    `mean`, averaged. With `label_smoothing` ε the loss is −(1 − ε) log σ(β h) − ε log σ(−β h) (conservative DPO). The
    sums hold `pairs`, and summed over pairs: `preference_accuracy` (h > 0), `reward_margin` (β h), `reward_chosen` and
    `reward_rejected` (β (log π − log π_ref)), `logprob_chosen` and `logprob_rejected`; and `tokens`.
    """
    against = 0.0 if batch.reference_logprob is None else batch.reference_logprob

    def responses(value_C, response_C, mask_C):
        total = jnp.zeros((2 * -(-len(value_C) // 2),), jnp.float32).at[response_C].add(value_C * mask_C)
        return total.reshape(-1, 2)

    of_rows = jax.vmap(responses)
    count_BP2 = of_rows(jnp.ones_like(logprob_BC), batch.response, batch.mask)
    here_BP = jnp.all(count_BP2 > 0, axis=-1)
    logprob_BP2 = of_rows(logprob_BC, batch.response, batch.mask)
    gain_BP2 = of_rows(logprob_BC - against, batch.response, batch.mask)
    if mean:
        gain_BP2 = gain_BP2 / jnp.maximum(count_BP2, 1)
    margin_BP = beta * (gain_BP2[..., 0] - gain_BP2[..., 1])
    loss_BP = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin_BP) - label_smoothing * jax.nn.log_sigmoid(-margin_BP)
    drawn = {
        "pairs": jnp.ones_like(margin_BP),
        "preference_accuracy": (margin_BP > 0).astype(jnp.float32),
        "reward_margin": margin_BP,
        "reward_chosen": beta * gain_BP2[..., 0],
        "reward_rejected": beta * gain_BP2[..., 1],
        "logprob_chosen": logprob_BP2[..., 0],
        "logprob_rejected": logprob_BP2[..., 1],
    }
    sums = {name: jnp.sum(jnp.where(here_BP, value, 0)) for name, value in drawn.items()}
    return jnp.sum(jnp.where(here_BP, loss_BP, 0)), sums | {"tokens": jnp.sum(batch.mask)}


def response_mean(value_BC: jax.Array, response_BC: Array, mask_BC: Array) -> jax.Array:
    """Each token gets the mean of `value` over its response's tokens [B, C]."""

    def one(value_C, response_C, mask_C):
        total = jnp.zeros_like(value_C).at[response_C].add(value_C * mask_C)
        count = jnp.zeros_like(value_C).at[response_C].add(mask_C)
        return (total / jnp.maximum(count, 1))[response_C]

    return jax.vmap(one)(value_BC, response_BC, mask_BC)


def supervised_loss(logprob_BC: jax.Array, mask_BC: Array) -> tuple[jax.Array, Sums]:
    """Sum of the negative log-likelihoods of the completion tokens. Divide by their number (`tokens`)."""
    return -jnp.sum(logprob_BC * mask_BC), {"tokens": jnp.sum(mask_BC)}
