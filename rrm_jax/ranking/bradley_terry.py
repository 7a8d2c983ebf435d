"""Bradley–Terry strengths by maximum a posteriori, for many tournaments at once.

Axes: Q tournaments, C candidates.

P(the one named first wins) = sigmoid(θ_first − θ_second + bias). Ties and soft votes count as shares of a win. Each θ
has a normal prior about 0 with variance `prior`, so that there is one answer for any graph: one that is not connected,
one without games, one in which somebody never loses.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.ranking.games import Tallies
from rrm_jax.ranking.newton import assembled, curvature, diagonal, solved, times, whitening

PRIOR = 4.0  # two standard deviations are a gap of 4: the better one wins 98 of 100
_BIAS_PRIOR = 1.0
_MOST_STEPS = 100
_ROUGH = 1e-2  # of a step's equations, solved so far that the steps still converge as Newton's do


class Fit(NamedTuple):
    """`theta` [Q, C], natural logarithm of strength, its mean over a tournament's candidates 0 (by the prior), padding
    0; `bias` [Q], the log-odds of being named first (0 where not fitted), and `bias_variance` [Q]; `covariance`
    [Q, C, C] of theta, the inverse Hessian of the posterior at its top, without what all share: games tell differences
    alone, and the mean is 0 by definition; `sandwich` [Q, C, C], which holds where the model does not, or None."""

    theta: Any
    bias: Any
    covariance: Any
    bias_variance: Any
    sandwich: Any = None


@functools.partial(jax.jit, static_argnames=("position_bias", "sandwich"))
def fit(tallies: Tallies, count_Q, *, prior=PRIOR, position_bias: bool = False, sandwich: bool = False) -> Fit:
    """Newton's method: the posterior is strictly concave, and has one top.

    `prior` inf is plain maximum likelihood up to a floor on the precision, 1e-6 (in float32 1e-3: less is lost in
    rounding), which decides what the games leave open. `position_bias` fits `bias` too, with a prior of variance 1.
    """
    size, dtype = tallies.score.shape[-1], tallies.score.dtype
    precision = jnp.maximum(1 / jnp.asarray(prior, dtype), 1e-6 if dtype == jnp.float64 else 1e-3)
    real_QC = jnp.arange(size) < jnp.asarray(count_Q)[:, None]
    # The bias is one more unknown, after the candidates.
    own_W = jnp.full(size + position_bias, precision, dtype).at[size:].set(1 / _BIAS_PRIOR)
    with jax.named_scope("bradley_terry"):
        x_QW = _top(tallies, own_W)
        p_QCC = _expected(x_QW, size)
        bend_QWW = assembled(curvature(tallies.count * p_QCC * (1 - p_QCC)), own_W)
        half_QWW = whitening(bend_QWW)
        wrong_QWW = None
        if sandwich:
            covariance_QWW = jnp.swapaxes(half_QWW, 1, 2) @ half_QWW
            squares_QCC = tallies.square - 2 * p_QCC * tallies.score + tallies.count * p_QCC * p_QCC
            wrong_QWW = covariance_QWW @ assembled(curvature(squares_QCC), 0 * own_W) @ covariance_QWW
        zeros_Q = jnp.zeros(len(x_QW), dtype)
        # By the prior the mean is 0, which rounding hides where the prior is weak.
        mean_Q = jnp.sum(jnp.where(real_QC, x_QW[:, :size], 0), axis=1) / jnp.maximum(jnp.sum(real_QC, axis=1), 1)
        return Fit(
            theta=jnp.where(real_QC, x_QW[:, :size] - mean_Q[:, None], 0),
            bias=x_QW[:, size] if position_bias else zeros_Q,
            covariance=_centred(half_QWW, real_QC),
            bias_variance=jnp.sum(half_QWW[:, :, size] ** 2, axis=1) if position_bias else zeros_Q,
            sandwich=None if wrong_QWW is None else _of_real(wrong_QWW, real_QC),
        )


def _top(tallies: Tallies, own_W) -> jax.Array:
    """Where the posterior is highest [Q, W]; derivatives by the tallies are the implicit function's."""
    size, dtype, biased = tallies.score.shape[-1], tallies.score.dtype, len(own_W) > tallies.score.shape[-1]

    def slope(x_QW):
        pull_QCC = tallies.score - tallies.count * _expected(x_QW, size)
        slope_QW = jnp.sum(pull_QCC - jnp.swapaxes(pull_QCC, 1, 2), axis=2)
        if biased:
            slope_QW = jnp.concatenate([slope_QW, jnp.sum(pull_QCC, axis=(1, 2))[:, None]], axis=1)
        return slope_QW - own_W * x_QW

    def climbed(_, begin_QW):
        return _climbed(jax.lax.stop_gradient(tallies), own_W, begin_QW)

    def tangent(bend, right_QW):
        # The slope falls where the posterior bends: −bend is positive definite.
        return solved(lambda v_QW: -bend(v_QW), -right_QW, 1e-12 if dtype == jnp.float64 else 1e-6)

    return jax.lax.custom_root(slope, jnp.zeros((len(tallies.score), len(own_W)), dtype), climbed, tangent)


def _climbed(tallies: Tallies, own_W, begin_QW) -> jax.Array:
    """Newton's steps from `begin_QW`, where all are equal, to the top."""
    size, dtype, biased = tallies.score.shape[-1], tallies.score.dtype, len(own_W) > tallies.score.shape[-1]
    turned_QCC = jnp.swapaxes(tallies.count, 1, 2)
    points_QCC = tallies.score + turned_QCC - jnp.swapaxes(tallies.score, 1, 2)
    met_QCC = tallies.count + turned_QCC
    # What rounding leaves of the slope: a weak prior would make long steps of it.
    noise_QW = 2 * jnp.finfo(dtype).eps * jnp.sum(met_QCC, axis=2)
    noise_QW = jnp.pad(noise_QW, ((0, 0), (0, int(biased))))

    def newton(x_QW, least):
        there_QCC = _expected(x_QW, size)  # i's chances where i is named first, and where j is
        if biased:
            back_QCC = _expected(x_QW, size, turned=True)
            slope_QC = jnp.sum(points_QCC - tallies.count * there_QCC - turned_QCC * back_QCC, axis=2)
            of_bias_Q = jnp.sum(tallies.score - tallies.count * there_QCC, axis=(1, 2))
            slope_QW = jnp.concatenate([slope_QC, of_bias_Q[:, None]], axis=1)
            curve = curvature(tallies.count * there_QCC * (1 - there_QCC), turned_QCC * back_QCC * (1 - back_QCC))
        else:
            slope_QW = jnp.sum(points_QCC - met_QCC * there_QCC, axis=2)
            curve = curvature(met_QCC * there_QCC * (1 - there_QCC), jnp.zeros_like(met_QCC))
        diagonal_QW = diagonal(curve, own_W)
        enough_Q = jnp.sum(noise_QW**2 / diagonal_QW, axis=1)
        return solved(lambda v_QW: times(curve, own_W, v_QW), slope_QW - own_W * x_QW, least, diagonal_QW, enough_Q)

    def shorter(move_QW):
        """Where no game's gap changes by more than D, its curvature changes by no more than e^D times, and the
        posterior rises for log(1 + D) / D of Newton's step at least: its height needs no look."""
        theta_QC, bias_QX = move_QW[:, :size], move_QW[:, size:]
        widest_Q = jnp.max(theta_QC, axis=1) - jnp.min(theta_QC, axis=1) + jnp.sum(jnp.abs(bias_QX), axis=1)
        widest_Q = jnp.maximum(widest_Q, jnp.finfo(dtype).eps)
        return (jnp.log1p(widest_Q) / widest_Q)[:, None] * move_QW

    def improve(state):
        x_QW, size_Q, number = state
        # Who is there stays, so that nobody's result depends on who else is still on the way.
        move_QW = jnp.where((size_Q > tolerance)[:, None], shorter(newton(x_QW, _ROUGH)), 0)
        return x_QW + move_QW, jnp.max(jnp.abs(move_QW), axis=1), number + 1

    # Of a step: what is left is about its square, and after one more step that one's square.
    tolerance = 1e-4 if dtype == jnp.float64 else 1e-2
    # Where all are equal the curvature is largest, and the whole step goes up.
    state = begin_QW + newton(begin_QW, _ROUGH), jnp.full(len(begin_QW), jnp.inf, dtype), 0
    going_on = lambda state: jnp.any(state[1] > tolerance) & (state[2] < _MOST_STEPS)  # noqa: E731
    x_QW = jax.lax.while_loop(going_on, improve, state)[0]
    return x_QW + shorter(newton(x_QW, 1e-12 if dtype == jnp.float64 else 1e-6))


def _expected(x_QW, size: int, turned: bool = False) -> jax.Array:
    """How probably i beats j, [Q, C, C], where i is named first, or, with `turned`, j."""
    gap_QCC = x_QW[:, :size, None] - x_QW[:, None, :size]
    if x_QW.shape[1] > size:
        gap_QCC = gap_QCC + (-x_QW[:, size:, None] if turned else x_QW[:, size:, None])
    return jax.nn.sigmoid(gap_QCC)


def draws(tallies: Tallies, theta_QC, normal_QCR, prior=PRIOR) -> jax.Array:
    """Strengths drawn from the posterior about its top `theta_QC` [Q, C, R], of standard normal numbers."""
    p_QCC = _expected(theta_QC, theta_QC.shape[1])
    own_W = jnp.full(theta_QC.shape[1], 1 / prior, theta_QC.dtype)
    half_QCC = whitening(assembled(curvature(tallies.count * p_QCC * (1 - p_QCC)), own_W))
    return theta_QC[:, :, None] + jnp.swapaxes(half_QCC, 1, 2) @ normal_QCR


def _of_real(x_QWW, real_QC):
    size = real_QC.shape[1]
    return jnp.where(real_QC[:, :, None] & real_QC[:, None, :], x_QWW[:, :size, :size], 0)


def _centred(half_QWW, real_QC):
    """Covariance [Q, C, C] of each θ less the mean of a tournament's own. `half_QWW` is `whitening`'s: of it the mean
    is taken off, lest a weak prior's large variances of the mean hide the others in rounding."""
    half_QWC = half_QWW[:, :, : real_QC.shape[1]]
    share_QC = (real_QC / jnp.maximum(jnp.sum(real_QC, axis=1, keepdims=True), 1)).astype(half_QWC.dtype)
    half_QWC = half_QWC - jnp.einsum("qwc,qc->qw", half_QWC, share_QC)[:, :, None]
    return _of_real(jnp.swapaxes(half_QWC, 1, 2) @ half_QWC, real_QC)


def elo_scale(theta, initial=1000.0, scale=400.0) -> jax.Array:
    """θ on Elo's scale: a gap of `scale` is odds of 10 to 1."""
    return initial + scale / math.log(10) * theta


def intervals(theta_QC, covariance_QCC, level: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """The ends of each θ's normal interval, [Q, C] each."""
    half = jax.scipy.special.ndtri(0.5 + level / 2) * jnp.sqrt(jnp.diagonal(covariance_QCC, axis1=-2, axis2=-1))
    return theta_QC - half, theta_QC + half


def probability_best(theta_QC, covariance_QCC, count_Q) -> jax.Array:
    """At least so probable is it that the leader is the best, [Q]: 1 − Σ P(another is better), 0 at least."""
    place = jnp.arange(theta_QC.shape[1])
    theta_QC = jnp.where(place < jnp.asarray(count_Q)[:, None], theta_QC, -jnp.inf)
    leader_Q = jnp.argmax(theta_QC, axis=-1)
    variance_QC = jnp.diagonal(covariance_QCC, axis1=-2, axis2=-1)
    at = lambda x: jnp.take_along_axis(x, leader_Q[:, None], axis=-1)  # noqa: E731
    row_QC = jnp.take_along_axis(covariance_QCC, leader_Q[:, None, None], axis=1)[:, 0]
    spread_QC = jnp.sqrt(jnp.maximum(at(variance_QC) + variance_QC - 2 * row_QC, 1e-12))
    above_QC = jax.scipy.special.ndtr((theta_QC - at(theta_QC)) / spread_QC)
    return jnp.maximum(1 - jnp.sum(jnp.where(place == leader_Q[:, None], 0, above_QC), axis=-1), 0)
