"""The linear equations of a Newton step for many small graphs of games at once.

Axes: Q tournaments, C candidates, W unknowns: the candidates and, where it is fitted, the bias for being named first.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_SMALL = 16


class Curvature(NamedTuple):
    """Sums over games of a weight × the outer square of what each unknown adds to the game's gap: `pair` [Q, C, C] the
    weights of both orders, symmetric, `bias` [Q, C] of being first less being second, and `all` [Q]."""

    pair: Any
    bias: Any
    all: Any


def curvature(weight_QCC, turned_QCC=None) -> Curvature:
    """Of weights of the games in which i was named first; `turned_QCC` those in which j was (made if not given)."""
    turned_QCC = jnp.swapaxes(weight_QCC, 1, 2) if turned_QCC is None else turned_QCC
    both_QCC, bias_QC = weight_QCC + turned_QCC, jnp.sum(weight_QCC - turned_QCC, axis=2)
    return Curvature(both_QCC, bias_QC, jnp.sum(weight_QCC, axis=(1, 2)))


def assembled(curve: Curvature, own_W) -> jax.Array:
    """As a matrix [Q, W, W], with `own_W` added on the diagonal."""
    size = curve.pair.shape[-1]
    eye = jnp.eye(size, dtype=curve.pair.dtype)
    inner = (jnp.sum(curve.pair, axis=2) + own_W[:size])[:, :, None] * eye - curve.pair
    if len(own_W) == size:
        return inner
    last_Q1W = jnp.concatenate([curve.bias, (curve.all + own_W[size])[:, None]], axis=1)[:, None]
    return jnp.concatenate([jnp.concatenate([inner, curve.bias[:, :, None]], axis=2), last_Q1W], axis=1)


def diagonal(curve: Curvature, own_W) -> jax.Array:
    """The matrix's diagonal [Q, W]."""
    diagonal_QW = jnp.sum(curve.pair, axis=2)
    if len(own_W) > curve.pair.shape[-1]:
        diagonal_QW = jnp.concatenate([diagonal_QW, curve.all[:, None]], axis=1)
    return diagonal_QW + own_W


def times(curve: Curvature, own_W, v_QW) -> jax.Array:
    """The matrix's product with a vector, without the matrix."""
    size = curve.pair.shape[-1]
    v_QC = v_QW[:, :size]
    out_QW = jnp.sum(curve.pair * (v_QC[:, :, None] - v_QC[:, None]), axis=2)
    if len(own_W) > size:
        of_bias_Q = jnp.sum(curve.bias * v_QC, axis=1) + curve.all * v_QW[:, size]
        out_QW = jnp.concatenate([out_QW + curve.bias * v_QW[:, size:], of_bias_Q[:, None]], axis=1)
    return out_QW + own_W * v_QW


def solved(product, right_QW, least, diagonal_QW=1.0, enough_Q=0.0) -> jax.Array:
    """The inverse of a positive definite matrix times `right_QW`, by conjugate gradients.

    `product` maps [Q, W] to [Q, W]; each reads the matrix once, where factors of small matrices are slow on every
    device. `diagonal_QW` prepares them. A tournament is left alone when the square of its residual (over the diagonal)
    is `enough_Q`, or its residual `least` of the first. What is found by then is what the inverse gives within the
    space that was searched, so that a Newton step cut short still goes up.
    """
    tiny = jnp.finfo(right_QW.dtype).tiny

    def solve(product, right_QW):
        def improve(state):
            x_QW, rest_QW, way_QW, size_Q, number = state
            steep_QW = product(way_QW)
            far_Q = jnp.where(size_Q > stop_Q, size_Q / jnp.maximum(jnp.sum(way_QW * steep_QW, axis=1), tiny), 0)
            x_QW, rest_QW = x_QW + far_Q[:, None] * way_QW, rest_QW - far_Q[:, None] * steep_QW
            eased_QW = rest_QW / diagonal_QW
            next_Q = jnp.sum(rest_QW * eased_QW, axis=1)
            way_QW = eased_QW + (next_Q / jnp.maximum(size_Q, tiny))[:, None] * way_QW
            return x_QW, rest_QW, way_QW, next_Q, number + 1

        eased_QW = right_QW / diagonal_QW
        size_Q = jnp.sum(right_QW * eased_QW, axis=1)
        stop_Q = jnp.maximum(least**2 * size_Q, enough_Q)
        going_on = lambda state: jnp.any(state[3] > stop_Q) & (state[4] < 2 * right_QW.shape[1])  # noqa: E731
        return jax.lax.while_loop(going_on, improve, (jnp.zeros_like(right_QW), right_QW, eased_QW, size_Q, 0))[0]

    return jax.lax.custom_linear_solve(product, right_QW, solve, symmetric=True)


def whitening(matrix_QWW) -> jax.Array:
    """The inverse L⁻¹ [Q, W, W] of the Cholesky factor of positive definite matrices: L⁻ᵀ L⁻¹ is their inverse, and
    L⁻ᵀ z with normal z is distributed as it says.

    In halves, by products of matrices. LAPACK, which JAX calls for this on CPUs, splits each small matrix over all
    cores, and on a busy machine spends its time waiting for them.
    """
    size = matrix_QWW.shape[-1]
    if size <= _SMALL:
        return _small_whitening(matrix_QWW)
    half = size // 2
    upper = whitening(matrix_QWW[:, :half, :half])
    side = upper @ matrix_QWW[:, :half, half:]
    side_T = jnp.swapaxes(side, 1, 2)
    lower = whitening(matrix_QWW[:, half:, half:] - side_T @ side)
    corner = -lower @ (side_T @ upper)
    top = jnp.pad(upper, ((0, 0), (0, 0), (0, size - half)))
    return jnp.concatenate([top, jnp.concatenate([corner, lower], axis=2)], axis=1)


def _small_whitening(matrix_QWW) -> jax.Array:
    """By elimination: what turns the matrix into an upper triangle, row by row, turns the identity into L⁻¹."""
    size = matrix_QWW.shape[-1]
    inverse_QWW = jnp.broadcast_to(jnp.eye(size, dtype=matrix_QWW.dtype), matrix_QWW.shape)
    rows = jnp.concatenate([matrix_QWW, inverse_QWW], axis=2)
    for at in range(size):
        row = rows[:, at] / jnp.sqrt(rows[:, at, at])[:, None]
        below = jnp.where(jnp.arange(size) > at, row[:, :size], 0)  # by symmetry the column of the factor
        rows = rows.at[:, at].set(row) - below[:, :, None] * row[:, None]
    return rows[:, :, size:]
