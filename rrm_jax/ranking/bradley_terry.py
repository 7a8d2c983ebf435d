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

PRIOR = 4.0  # two standard deviations are a gap of 4: the better one wins 98 of 100
_BIAS_PRIOR = 1.0
_ITERATIONS = 30


class Fit(NamedTuple):
    """`theta` [Q, C], natural logarithm of strength, its mean over a tournament's candidates 0 (by the prior), padding
    0; `bias` [Q], the log-odds of being named first (0 where not fitted); `covariance` [Q, C, C] of theta, the inverse
    Hessian of the posterior at its top; `sandwich` [Q, C, C], which holds where the model does not, or None."""

    theta: Any
    bias: Any
    covariance: Any
    sandwich: Any = None


@functools.partial(jax.jit, static_argnames=("position_bias", "sandwich"))
def fit(
    tallies: Tallies, count_Q, *, prior=PRIOR, position_bias: bool = False, sandwich: bool = False, start=None
) -> Fit:
    """Newton's method, damped: the posterior is strictly concave, so that every start leads to its only top.

    `prior` inf is plain maximum likelihood up to a floor of 1e-6 on the precision, which only decides what the games
    leave open. `position_bias` fits `bias` too, with a prior of variance 1. `start` [Q, C] shortens the way.
    """
    score_QCC, size = tallies.score, tallies.score.shape[-1]
    dtype = score_QCC.dtype
    precision = jnp.maximum(1 / jnp.asarray(prior, dtype), 1e-6)
    real_QC = jnp.arange(size) < jnp.asarray(count_Q)[:, None]
    # The bias is one more unknown, after the candidates.
    width = size + position_bias
    own = jnp.full(width, precision, dtype).at[size:].set(1 / _BIAS_PRIOR)

    def expected(x_QW):
        bias = x_QW[:, size:, None] if position_bias else 0.0
        return jax.nn.sigmoid(x_QW[:, :size, None] - x_QW[:, None, :size] + bias)

    def objective(x_QW):
        bias = x_QW[:, size:, None] if position_bias else 0.0
        gap = x_QW[:, :size, None] - x_QW[:, None, :size] + bias
        fits = score_QCC * jax.nn.log_sigmoid(gap) + (tallies.count - score_QCC) * jax.nn.log_sigmoid(-gap)
        return jnp.sum(fits, axis=(1, 2)) - jnp.sum(own * x_QW**2, axis=-1) / 2

    def scattered(x_QCC):
        """Sums over games of x × (what a game's gap adds to each unknown)."""
        by_candidate = jnp.sum(x_QCC, axis=2) - jnp.sum(x_QCC, axis=1)
        return _with_bias(by_candidate, jnp.sum(x_QCC, axis=(1, 2))[:, None]) if position_bias else by_candidate

    def hessian(weight_QCC):
        """Sums over games of weight × the outer square of that."""
        both = weight_QCC + jnp.swapaxes(weight_QCC, 1, 2)
        inner = jnp.sum(both, axis=2)[:, :, None] * jnp.eye(size, dtype=dtype) - both
        if not position_bias:
            return inner
        edge = jnp.sum(weight_QCC, axis=2) - jnp.sum(weight_QCC, axis=1)
        last = _with_bias(edge, jnp.sum(weight_QCC, axis=(1, 2))[:, None])
        return jnp.concatenate([jnp.concatenate([inner, edge[:, :, None]], 2), last[:, None, :]], 1)

    def curvature(x_QW):
        p = expected(x_QW)
        return hessian(tallies.count * p * (1 - p)) + own * jnp.eye(width, dtype=dtype)

    def improve(state):
        x_QW, height_Q, _, step = state
        slope = scattered(score_QCC - tallies.count * expected(x_QW)) - own * x_QW
        move = _solve(curvature(x_QW), slope[:, :, None])[:, :, 0]
        sizes = 0.5 ** jnp.arange(4.0, dtype=dtype)
        heights = jax.vmap(lambda part: objective(x_QW + part * move))(sizes)
        best = jnp.argmax(heights, axis=0)
        better = jnp.take_along_axis(heights, best[None], axis=0)[0]
        moves = (better > height_Q)[:, None]
        moved = jnp.where(moves, sizes[best][:, None] * move, 0)
        return x_QW + moved, jnp.maximum(better, height_Q), jnp.max(jnp.abs(moved)), step + 1

    tolerance = 1e-9 if dtype == jnp.float64 else 1e-4
    begin = jnp.zeros((score_QCC.shape[0], width), dtype)
    if start is not None:
        begin = begin.at[:, :size].set(jnp.where(real_QC, start, 0))
    state = begin, objective(begin), jnp.asarray(jnp.inf, dtype), 0
    with jax.named_scope("bradley_terry"):
        x_QW = jax.lax.while_loop(lambda s: (s[2] > tolerance) & (s[3] < _ITERATIONS), improve, state)[0]
        x_QW = jax.lax.stop_gradient(x_QW)
        # One more step, through which derivatives flow: at the top it is the implicit function's.
        slope = scattered(score_QCC - tallies.count * jax.lax.stop_gradient(expected(x_QW))) - own * x_QW
        bend = curvature(x_QW)
        x_QW = x_QW + _solve(jax.lax.stop_gradient(bend), slope[:, :, None])[:, :, 0]
        covariance = _solve(bend, jnp.broadcast_to(jnp.eye(width, dtype=dtype), bend.shape))
        wrong = None
        if sandwich:
            p = expected(x_QW)
            meat = hessian(tallies.square - 2 * p * score_QCC + tallies.count * p * p)
            wrong = _real(covariance @ meat @ covariance, real_QC)
        bias_Q = x_QW[:, size] if position_bias else jnp.zeros(len(score_QCC), dtype)
        return Fit(jnp.where(real_QC, x_QW[:, :size], 0), bias_Q, _real(covariance, real_QC), wrong)


def _with_bias(x_QC, last_Q1):
    return jnp.concatenate([x_QC, last_Q1], axis=1)


def _solve(matrix_QWW, right_QWR):
    factor = jnp.linalg.cholesky(matrix_QWW)
    half = jax.lax.linalg.triangular_solve(factor, right_QWR, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)


def _real(x_QWW, real_QC):
    size = real_QC.shape[1]
    return jnp.where(real_QC[:, :, None] & real_QC[:, None, :], x_QWW[:, :size, :size], 0)


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
