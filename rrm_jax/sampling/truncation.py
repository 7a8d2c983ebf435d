"""Which tokens top-k and top-p keep, exactly, without sorting the vocabulary.

Axes: B batch, N blocks of the vocabulary, W tokens in a block, M blocks looked at closely.

Tokens are compared by their weights, exp((logit − largest logit) / temperature), float32 in [0, 1]: the bit patterns
of such numbers, read as int32 codes, are ordered as the numbers are, and are close to linear in their logarithms.
What is kept is measured by `worth(weight)`: a token's weight for top-p, 1 for top-k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_CLOSE = 64
_INTERPOLATIONS = 24


class Bracket(NamedTuple):
    """Each row's threshold is at the code `low` or above and below `high`, int32 [B]; what is kept at either is worth
    `low_sum`, `high_sum` [B].

    `streak` [B]: how often in succession `low` moved, or, negative, `high`; `step`: passes made.
    """

    low: jax.Array
    high: jax.Array
    low_sum: jax.Array
    high_sum: jax.Array
    streak: jax.Array
    step: jax.Array


def lowest_kept(weights_BNW, peaks_BN, whole_B, top_k_B, top_p_B) -> jax.Array:
    """A row keeps the tokens whose weights are at least this: float32 [B], 0 without truncation.

    `weights_BNW` float32, the largest of a row 1 (0: no token), `peaks_BN` the blocks' maxima, `whole_B` the sums;
    `top_k_B` int32 (0: off); `top_p_B` (1: off), of the mass that top-k left. Tokens of the same weight are kept or
    dropped together. The set is that of sorting; where one token's share is below the rounding of a float32 sum over
    the vocabulary (some 1e-7), that rounding decides whether the last token is kept.
    """
    tiny_B = jnp.full_like(top_p_B, jnp.finfo(jnp.float32).tiny)
    wants_k_B, wants_p_B = top_k_B > 0, top_p_B < 1

    def by_count():
        possible_B = at_least(weights_BNW, tiny_B, jnp.ones_like)
        target_B = top_k_B.astype(jnp.float32)
        return _threshold(weights_BNW, peaks_BN, wants_k_B, target_B, tiny_B, possible_B, jnp.ones_like)

    floor_B = jax.lax.cond(jnp.any(wants_k_B), by_count, lambda: jnp.zeros_like(tiny_B))

    def by_mass():
        left_B = jax.lax.cond(jnp.any(wants_k_B), lambda: at_least(weights_BNW, floor_B, mass), lambda: whole_B)
        # All tokens lighter than this are together lighter than what may be dropped (half: for the rounding).
        light_B = (1 - top_p_B) * left_B / (2 * weights_BNW.shape[1] * weights_BNW.shape[2])
        low_B = jnp.maximum(jnp.maximum(light_B, floor_B), tiny_B)
        return _threshold(weights_BNW, peaks_BN, wants_p_B, top_p_B * left_B, low_B, left_B, mass)

    return jnp.maximum(floor_B, jax.lax.cond(jnp.any(wants_p_B), by_mass, lambda: jnp.zeros_like(tiny_B)))


def _threshold(weights_BNW, peaks_BN, wants_B, target_B, low_B, whole_B, worth) -> jax.Array:
    """The largest weight [B], not below `low_B`, such that the tokens from it up are worth `target_B` of `whole_B`.

    0 for rows that want none.
    """
    # Mostly the few heaviest tokens are enough, and they are in the blocks with the largest peaks.
    floor_B, found_B = among_heaviest(weights_BNW, peaks_BN, target_B, worth)

    def by_passes():
        rest_B = wants_B & ~found_B
        bracket = narrow(weights_BNW, rest_B, target_B, low_B, whole_B, worth)
        return jnp.where(rest_B, within(weights_BNW, bracket, target_B, worth), floor_B)

    floor_B = jax.lax.cond(jnp.all(found_B | ~wants_B), lambda: floor_B, by_passes)
    return jnp.where(wants_B, jnp.maximum(floor_B, low_B), 0.0)


def among_heaviest(weights_BNW, score_BN, target_B, worth) -> tuple[jax.Array, jax.Array]:
    """The threshold [B], sought among the heaviest tokens of the blocks of largest score, and whether [B] it is there.

    It is, where the heaviest tokens are worth `target_B` before the largest score of the other blocks is reached.
    """
    close = min(_CLOSE, score_BN.shape[1])
    # Behind the barrier a slice cannot turn top_k into a sort, as XLA's CPU compiler has it otherwise.
    most = jax.lax.top_k(score_BN, min(close + 1, score_BN.shape[1]))
    score_BM, blocks_BM = map(jax.lax.optimization_barrier, most)  # one for both aborts XLA of jaxlib 0.11.2
    others_B = score_BM[:, close] if score_BM.shape[1] > close else jnp.zeros_like(target_B)
    close_BMW = jnp.take_along_axis(weights_BNW, blocks_BM[:, :close, None], axis=1)
    heaviest_BC = jax.lax.top_k(close_BMW.reshape(len(target_B), -1), _CLOSE)[0]
    reached_BC = jnp.cumsum(worth(heaviest_BC), axis=-1) >= target_B[:, None]
    floor_B = jnp.take_along_axis(heaviest_BC, jnp.argmax(reached_BC, axis=-1)[:, None], axis=1)[:, 0]
    return floor_B, reached_BC[:, -1] & (floor_B > others_B * (1 + 2.0**-20))  # peaks may be off by a rounding


def within(weights_BNW, bracket: Bracket, target_B, worth) -> jax.Array:
    """The threshold [B] inside a bracket that `narrow` found, whose few tokens are in few blocks.

    Where they are more, they are all of one weight, or `bracket.low` is as good as any.
    """
    low_B, high_B = _value(bracket.low), _value(bracket.high)
    inside = (weights_BNW >= low_B[:, None, None]) & (weights_BNW < high_B[:, None, None])
    inside_BNW = jnp.where(inside, weights_BNW, 0.0)
    floor_B, found_B = among_heaviest(inside_BNW, jnp.max(inside_BNW, axis=-1), target_B - bracket.high_sum, worth)
    return jnp.where(found_B, floor_B, low_B)


def narrow(weights_BNW, wants_B, target_B, low_B, whole_B, worth) -> Bracket:
    """Closes in on the threshold until few tokens are left, or one weight, or `low` is as good as the threshold.

    Interpolates in the log-odds of what is kept, which for most distributions are nearly straight in the logarithm
    of the threshold; the Illinois rule and, after a while, bisection bound the number of passes. `whole_B` is at
    least what is kept at `low_B`, and all that can be kept.
    """
    share_B = target_B / whole_B
    edge_B = 0.1 * jnp.minimum(share_B, 1 - share_B)

    def log_odds(sum_B):
        share = jnp.clip(sum_B / whole_B, edge_B, 1 - edge_B)
        return jnp.log(share) - jnp.log1p(-share)

    aim_B = log_odds(target_B)

    def unsettled(bracket):
        least_B = worth(_value(bracket.low))  # what a token that is kept at `low` is worth at least
        spare = bracket.low_sum - target_B >= least_B
        many = bracket.low_sum - bracket.high_sum >= (_CLOSE + 0.5) * least_B
        return wants_B & spare & many & (bracket.high - bracket.low > 1)

    def body(bracket):
        above = (log_odds(bracket.low_sum) - aim_B) * jnp.exp2(jnp.minimum(bracket.streak + 1, 0.0))
        below = (aim_B - log_odds(bracket.high_sum)) * jnp.exp2(jnp.minimum(1 - bracket.streak, 0.0))
        part = above / (above + below)
        part = jnp.where((bracket.step < _INTERPOLATIONS) & jnp.isfinite(part), part, 0.5)
        width = bracket.high - bracket.low
        move = jnp.clip((width.astype(jnp.float32) * part).astype(jnp.int32), 1, width - 1)
        moves = unsettled(bracket)
        middle = bracket.low + move
        middle_sum = at_least(weights_BNW, _value(middle), worth)
        up, down = moves & (middle_sum >= target_B), moves & ~(middle_sum >= target_B)
        return Bracket(
            jnp.where(up, middle, bracket.low),
            jnp.where(down, middle, bracket.high),
            jnp.where(up, middle_sum, bracket.low_sum),
            jnp.where(down, middle_sum, bracket.high_sum),
            jnp.where(up, jnp.maximum(bracket.streak, 0) + 1, jnp.minimum(bracket.streak, 0) - 1),
            bracket.step + 1,
        )

    nothing_B = jnp.zeros_like(target_B)
    above_all = jnp.full_like(wants_B, _code(jnp.float32(1)) + 1, jnp.int32)
    start = Bracket(_code(low_B), above_all, whole_B, nothing_B, nothing_B, jnp.int32(0))
    return jax.lax.while_loop(lambda bracket: jnp.any(unsettled(bracket)), body, start)


def at_least(weights_BNW, floor_B, worth) -> jax.Array:
    """What the tokens from the floor up are worth, [B]."""
    return jnp.sum(jnp.where(weights_BNW >= floor_B[:, None, None], worth(weights_BNW), 0.0), axis=(1, 2))


def mass(weight) -> jax.Array:
    """For top-p: a token counts by its weight."""
    return weight


def _code(weight) -> jax.Array:
    return jax.lax.bitcast_convert_type(weight, jnp.int32)


def _value(code) -> jax.Array:
    return jax.lax.bitcast_convert_type(code, jnp.float32)
