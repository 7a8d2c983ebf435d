"""Sequential online Elo (docs/method.md: initial 1000, scale 400, K = 4, tie ½) over many tournaments at once.

Axes: B tournaments, M matches in the order they are played, C candidates.
"""

import functools
import math

import jax
import jax.numpy as jnp


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

    def one_tournament(first_M, second_M, score_M, mask_M):
        # Distances from `initial`, so that float32's digits go to what the matches change.
        def play(offset_C, match):
            first, second, score, counts = match
            gap = offset_C[first] - offset_C[second]
            expected = jax.nn.sigmoid(gap * (math.log(10) / scale))
            gain = jnp.where(counts, k * (score - expected), 0).astype(dtype)
            return offset_C.at[first].add(gain).at[second].add(-gain), None

        return jax.lax.scan(play, jnp.zeros(num_candidates, dtype), (first_M, second_M, score_M, mask_M))[0]

    with jax.named_scope("elo"):
        offset_BC = jax.vmap(one_tournament)(first_BM, second_BM, score_BM.astype(dtype), mask_BM)
        return offset_BC + jnp.asarray(initial, dtype)
