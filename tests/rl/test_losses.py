"""GRPO's arithmetic against float64 calculations written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.rl.advantages import group_advantages
from rrm_jax.rl.losses import PolicyBatch, grpo_loss, k3, supervised_loss
from rrm_jax.rl.rewards import verdict_reward

EPS, BETA = 0.2, 0.05


def _batch(seed: int = 0, rows: int = 6, width: int = 5) -> tuple[np.ndarray, PolicyBatch]:
    """Log-probs with ratios on both sides of the clip, ragged rows, and one row that is padding."""
    rng = np.random.default_rng(seed)
    logprob = -rng.exponential(1.0, (rows, width))
    mask = (np.arange(width) < rng.integers(1, width + 1, rows)[:, None]).astype(np.float64)
    mask[-1] = 0
    old = logprob + rng.normal(0, 0.4, logprob.shape)
    reference = logprob + rng.normal(0, 0.5, logprob.shape)
    return logprob, PolicyBatch(rng.normal(0, 1, rows), old, reference, old + 0.01, mask)


def _by_hand(logprob: np.ndarray, batch: PolicyBatch, eps: float, beta: float) -> float:
    total = 0.0
    for row in range(len(logprob)):
        length, of_row = batch.mask[row].sum(), 0.0
        if length == 0:
            continue
        for token in range(int(length)):
            ratio = np.exp(logprob[row, token] - batch.old_logprob[row, token])
            clipped = min(max(ratio, 1 - eps), 1 + eps)
            d = batch.reference_logprob[row, token] - logprob[row, token]
            surrogate = min(ratio * batch.advantage[row], clipped * batch.advantage[row])
            of_row += -surrogate + beta * (np.exp(d) - d - 1)
        total += of_row / length
    return total


@pytest.mark.parametrize("seed", range(4))
def test_grpo_loss_equals_the_formula_in_float64(seed):
    logprob, batch = _batch(seed)
    expected = _by_hand(logprob, batch, EPS, BETA)
    with jax.enable_x64(True):
        found, _ = grpo_loss(jnp.asarray(logprob), batch, EPS, BETA)
    np.testing.assert_allclose(float(found), expected, rtol=1e-12)
    single, _ = grpo_loss(jnp.asarray(logprob, jnp.float32), batch, EPS, BETA)
    np.testing.assert_allclose(float(single), expected, rtol=1e-5)


def test_grpo_gradient_equals_finite_differences():
    logprob, batch = _batch(7)
    step, expected = 1e-6, np.zeros_like(logprob)
    for at in np.ndindex(logprob.shape):
        up, down = logprob.copy(), logprob.copy()
        up[at], down[at] = up[at] + step, down[at] - step
        expected[at] = (_by_hand(up, batch, EPS, BETA) - _by_hand(down, batch, EPS, BETA)) / (2 * step)
    with jax.enable_x64(True):
        found = jax.grad(lambda x: grpo_loss(x, batch, EPS, BETA)[0])(jnp.asarray(logprob))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert np.all(np.asarray(found)[batch.mask == 0] == 0)


def test_clip_stops_the_gradient_and_is_counted():
    # A stored old log-probability is what makes the clip act: with ratios of 1 it never would.
    old = np.zeros((2, 3), np.float32)
    logprob = np.array([[0.5, 0.0, -0.5], [0.5, 0.0, -0.5]], np.float32)
    batch = PolicyBatch(np.array([1.0, -1.0], np.float32), old, None, old, np.ones_like(old))
    gradient = jax.grad(lambda x: grpo_loss(x, batch, EPS, 0.0)[0])(logprob)
    assert gradient[0, 0] == 0
    assert gradient[1, 2] == 0
    assert np.all(np.asarray(gradient)[[0, 0, 1, 1], [1, 2, 0, 1]] != 0)
    _, sums = grpo_loss(jnp.asarray(logprob), batch, EPS, 0.0)
    assert (float(sums["clip_high"]), float(sums["clip_low"]), float(sums["tokens"])) == (1.0, 1.0, 6.0)


def test_without_old_logprobs_the_gradient_is_the_policy_gradient():
    logprob, batch = _batch(3)
    on_policy = batch._replace(old_logprob=None, reference_logprob=None)
    with jax.enable_x64(True):
        found = jax.grad(lambda x: grpo_loss(x, on_policy, EPS, 0.0)[0])(jnp.asarray(logprob))
    lengths = np.maximum(batch.mask.sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(found, -batch.advantage[:, None] * batch.mask / lengths, atol=1e-12)


def test_k3_is_non_negative_and_its_expected_gradient_pulls_to_the_reference():
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(size=(2, 7))
    log_q = reference - np.log(np.exp(reference).sum())
    with jax.enable_x64(True):
        p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
        log_p = np.log(p)
        assert np.all(np.asarray(k3(jnp.asarray(log_p), jnp.asarray(log_q))) >= 0)
        each = jax.jacobian(lambda z: k3(jax.nn.log_softmax(z), jnp.asarray(log_q)))(jnp.asarray(logits))
        expected_k3 = p @ np.asarray(each)
        each_k1 = jax.jacobian(lambda z: jax.nn.log_softmax(z) - log_q)(jnp.asarray(logits))
    # Σ p ∇k3 = ∇KL(q ‖ p) = p − q by enumeration; k1's expected gradient vanishes: it would regularise nothing.
    np.testing.assert_allclose(expected_k3, p - np.exp(log_q), atol=1e-12)
    np.testing.assert_allclose(p @ np.asarray(each_k1), 0, atol=1e-12)


def test_advantages_by_hand_and_zero_variance():
    rewards = np.array([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    # mean −0.5, population standard deviation sqrt(0.75)
    expected = np.array([1.5, -0.5, -0.5, -0.5]) / np.sqrt(0.75)
    found = np.asarray(group_advantages(rewards))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert np.all(found[1] == 0)


def test_rewards():
    assert [verdict_reward(v, 1) for v in (1, 2, None)] == [1.0, -1.0, -1.0]


def test_supervised_loss_sums_over_tokens():
    logprob, mask = -np.arange(6.0).reshape(2, 3), np.array([[1, 1, 0], [1, 0, 0]])
    total, sums = supervised_loss(jnp.asarray(logprob), jnp.asarray(mask))
    assert (float(total), float(sums["tokens"])) == (0 + 1 + 3, 3)
