"""Sequential online Elo (docs/method.md: initial 1000, scale 400, K = 4, tie ½) over many tournaments at once.

Axes: B tournaments, M matches in the order they are played, C candidates.
"""

import functools
import math

import jax
import jax.numpy as jnp

from rrm_jax.ranking.games import Games

_BLOCK = 16  # matches whose columns are read together: a cache line of float32


@functools.partial(jax.jit, static_argnames="num_candidates")
def elo_ratings(
    first_BM, second_BM, score_BM, mask_BM, num_candidates: int, *, k=4.0, scale=400.0, initial=1000.0
) -> jax.Array:
    """Ratings [B, C] after one pass over the matches.

    `first_BM` and `second_BM` (int) are the two candidates of a match, each in [0, C); `score_BM` is the first
    one's: 1 won, 0 lost, 0.5 tied. Matches where `mask_BM` is False change nothing, so tournaments may differ in
    their number of matches; a candidate without a match keeps `initial`. For each match
    E = 1 / (1 + 10^((R_second − R_first) / scale)), R_first += k (score − E), R_second −= k (score − E).

    The ratings have the dtype of `score_BM`, float32 at least (float64 needs JAX's x64 mode).
    """
    score_BM = jnp.asarray(score_BM)
    dtype = jnp.promote_types(score_BM.dtype, jnp.float32)
    matches = (first_BM, second_BM, score_BM.astype(dtype), mask_BM)
    matches = [jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK))) for x in map(jnp.asarray, matches)]

    # Distances from `initial`, so that float32's digits go to what the matches change.
    def play(offset_C, first, second, score, counts):
        gap = offset_C[first] - offset_C[second]
        expected = jax.nn.sigmoid(gap * (math.log(10) / scale))
        gain = jnp.where(counts, k * (score - expected), 0).astype(dtype)
        return offset_C.at[first].add(gain).at[second].add(-gain)

    def play_block(offset_BC, start):
        # All tournaments' next matches are turned to [match, tournament] while they are in the cache.
        block = tuple(jax.lax.dynamic_slice_in_dim(x, start, _BLOCK, axis=1).T for x in matches)
        return jax.lax.scan(lambda offset_BC, match_B: (jax.vmap(play)(offset_BC, *match_B), None), offset_BC, block)

    with jax.named_scope("elo"):
        starts = jnp.arange(0, matches[0].shape[1], _BLOCK)
        offset_BC = jnp.zeros((len(score_BM), num_candidates), dtype)
        offset_BC, _ = jax.lax.scan(play_block, offset_BC, starts)
        return offset_BC + jnp.asarray(initial, dtype)


@functools.partial(jax.jit, static_argnames=("num_candidates", "orders"))
def elo_over_orders(
    games: Games, key_Q2, num_candidates: int, *, orders: int = 100, k=4.0, scale=400.0, initial=1000.0
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [Q, C] of the ratings over random orders of the same games.

    `key_Q2` uint32 is each tournament's random key; an order is addressed by (key, its number, the game's place).
    """

    def one(number):
        def bits(data, mask_M):
            key = jax.random.fold_in(jax.random.wrap_key_data(data, impl="threefry2x32"), number)
            drawn = jax.vmap(lambda at: jax.random.bits(jax.random.fold_in(key, at)))(jnp.arange(len(mask_M)))
            return jnp.argsort(jnp.where(mask_M, drawn >> 1, jnp.uint32(2**32 - 1)))

        order_QM = jax.vmap(bits)(jnp.asarray(key_Q2), games.mask)
        moved = Games(*(jnp.take_along_axis(jnp.asarray(x), order_QM, axis=-1) for x in games))
        return elo_ratings(*moved, num_candidates, k=k, scale=scale, initial=0.0)

    offsets = jax.lax.map(one, jnp.arange(orders))
    return initial + jnp.mean(offsets, axis=0), jnp.std(offsets, axis=0)
