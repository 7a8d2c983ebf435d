"""Direct preference optimisation against its formula in float64, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.rl.losses import PreferenceBatch, preference_loss

LENGTHS = [[3, 1, 2, 2], [4, 2], []]  # responses of three rows; chosen and rejected in turn; the last row is padding
WIDTH = 9


def packed(seed: int = 0) -> tuple[np.ndarray, PreferenceBatch]:
    rng = np.random.default_rng(seed)
    logprob, reference = -rng.exponential(1.0, (2, 3, WIDTH)).astype(np.float32)
    response, mask = np.zeros((3, WIDTH), np.int32), np.zeros((3, WIDTH), np.float32)
    for b, lengths in enumerate(LENGTHS):
        end = sum(lengths)
        response[b, :end], mask[b, :end] = np.repeat(np.arange(len(lengths)), lengths), 1
    return logprob, PreferenceBatch(response, reference, mask)


def by_hand(logprob, batch: PreferenceBatch, beta: float, smoothing: float, mean: bool) -> tuple[float, list[float]]:
    """The sum of the losses, and the margins β h."""
    total, margins = 0.0, []
    reference = np.zeros_like(logprob) if batch.reference_logprob is None else batch.reference_logprob
    for b, lengths in enumerate(LENGTHS):
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
        gains = []
        for r in range(len(lengths)):
            own = slice(starts[r], starts[r + 1])
            gain = float(np.sum(logprob[b, own].astype(np.float64) - reference[b, own]))
            gains.append(gain / lengths[r] if mean else gain)
        for chosen, rejected in zip(gains[::2], gains[1::2], strict=True):
            margin = beta * (chosen - rejected)
            margins.append(margin)
            total += (1 - smoothing) * np.log1p(np.exp(-margin)) + smoothing * np.log1p(np.exp(margin))
    return total, margins


CASES = [(0.1, 0.0, False, True), (0.5, 0.1, False, True), (0.5, 0.0, True, True), (2.0, 0.2, True, False)]


@pytest.mark.parametrize(("beta", "smoothing", "mean", "with_reference"), CASES)
def test_the_loss_is_the_formula(beta, smoothing, mean, with_reference):
    logprob, batch = packed()
    batch = batch if with_reference else batch._replace(reference_logprob=None)
    loss, sums = preference_loss(jnp.asarray(logprob), batch, beta, smoothing, mean)
    expected, margins = by_hand(logprob, batch, beta, smoothing, mean)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)  # float32 against float64
    assert sums["pairs"] == 3
    assert sums["tokens"] == 14
    np.testing.assert_allclose(sums["reward_margin"], sum(margins), rtol=1e-4)
    np.testing.assert_allclose(sums["reward_chosen"] - sums["reward_rejected"], sums["reward_margin"], rtol=1e-4)
    assert sums["preference_accuracy"] == sum(margin > 0 for margin in margins)
    chosen = sum(logprob[0, [0, 1, 2, 4, 5]]) + sum(logprob[1, :4])
    np.testing.assert_allclose(sums["logprob_chosen"], chosen, rtol=1e-5)


@pytest.mark.parametrize(("beta", "smoothing", "mean", "with_reference"), CASES)
def test_the_gradient_is_that_of_finite_differences(beta, smoothing, mean, with_reference):
    logprob, batch = packed(1)
    batch = batch if with_reference else batch._replace(reference_logprob=None)
    gradient = jax.grad(lambda x: preference_loss(x, batch, beta, smoothing, mean)[0])(jnp.asarray(logprob))
    for b, c in np.ndindex(logprob.shape):
        apart = []
        for step in (1e-4, -1e-4):
            moved = logprob.astype(np.float64)
            moved[b, c] += step
            apart.append(by_hand(moved, batch, beta, smoothing, mean)[0])
        np.testing.assert_allclose(gradient[b, c], (apart[0] - apart[1]) / 2e-4, atol=1e-5)  # float32
    assert float(jnp.abs(gradient).max()) > 0.05
