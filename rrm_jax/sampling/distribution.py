"""Drawing one token a row from tempered, truncated softmax distributions, without sorting or noise over V.

Axes: B batch, V vocabulary, N blocks of the vocabulary, W tokens in a block.

Everything that a request chooses travels as a runtime array, so no choice recompiles. A row's randomness is
addressed by (seed, request id, sample, index of the new token): see `base_keys`.
"""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

_BLOCK = 512


class Draw(NamedTuple):
    """`token` int32 [B]; `logprob` float32 [B], natural log, of the distribution the token was drawn from (0 for
    greedy rows); `finite` bool [B]: False where the logits held NaN or +inf, and the token means nothing."""

    token: jax.Array
    logprob: jax.Array
    finite: jax.Array


def id_hash(request_id: str) -> int:
    """A request id as 32 bits that are the same in every process (Python's own hash is salted)."""
    digest = hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little")


def base_keys(seed_B, id_hash_B, sample_B) -> jax.Array:
    """Each row's key, from uint32 [B] arrays; the key of new token t is `fold_in(key, t)`."""

    def one(seed, item, sample):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), item), sample)

    return jax.vmap(one)(seed_B, id_hash_B, sample_B)


def draw(logits_BV, keys_B, temperature_B, top_k_B, top_p_B) -> Draw:
    """Draws with temperature, then top-k, then top-p over what top-k left, as transformers does.

    `logits_BV` float32; `keys_B` one key a row, already folded with the token's index; temperature 0 is greedy
    (the lowest id among equals); top_k 0 and top_p 1 keep everything. Top-k keeps the k most probable tokens,
    top-p the smallest set of most probable ones whose mass reaches top_p, at least one; tokens that tie with the
    least probable one kept are kept too. A kept token of non-zero probability is drawn, whatever the rounding.
    """
    greedy_B, top_B, scale_B = _scale(logits_BV, temperature_B)
    floor_B = lowest_kept(logits_BV, temperature_B, top_k_B, top_p_B)

    def weigh(logits):
        top, scale, floor = (x.reshape(-1, *(1,) * (logits.ndim - 1)) for x in (top_B, scale_B, floor_B))
        return jnp.where(logits >= floor, jnp.exp((logits - top) / scale), 0.0)

    # Two levels, a uniform for each: the block by its mass, then the token within it. Greedy rows keep only
    # their maximum and take the first token of positive weight.
    uniform_B2 = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys_B) >> 8
    uniform_B2 = jnp.where(greedy_B[:, None], 0.0, uniform_B2.astype(jnp.float32) * 2.0**-24)
    logits_BNW = _blocks(logits_BV)
    mass_BN = jnp.sum(weigh(logits_BNW), axis=-1)
    block_B = _pick(mass_BN, uniform_B2[:, 0])
    logits_BW = jnp.take_along_axis(logits_BNW, block_B[:, None, None], axis=1)[:, 0]
    within_B = _pick(weigh(logits_BW), uniform_B2[:, 1])
    token_B = jnp.minimum(block_B * logits_BNW.shape[2] + within_B, logits_BV.shape[1] - 1)
    chosen_B = jnp.take_along_axis(logits_BW, within_B[:, None], axis=1)[:, 0]
    logprob_B = (chosen_B - top_B) / scale_B - jnp.log(jnp.sum(mass_BN, axis=-1))
    return Draw(token_B, jnp.where(greedy_B, 0.0, logprob_B), jnp.isfinite(top_B))


def _blocks(logits_BV) -> jax.Array:
    """[B, V] → [B, N, W], padded with −inf when no power of two of useful size divides V."""
    batch, vocab = logits_BV.shape
    width = min(_BLOCK, vocab & -vocab)
    if width < 64:
        width = min(_BLOCK, 64 if vocab < 8192 else 256)
        logits_BV = jnp.pad(logits_BV, ((0, 0), (0, -vocab % width)), constant_values=-jnp.inf)
    return logits_BV.reshape(batch, -1, width)


def _pick(weights, uniform_B) -> jax.Array:
    """The inverse CDF of weights [B, M] at uniform in [0, 1): int32 [B], always at a positive weight.

    A parallel cumulative sum need not be monotone to the last bit, so the sum alone is not trusted to
    choose: a token of weight zero never counts as a hit, and beyond the end the last positive one is taken.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    hit = positive & (cumulative > (uniform_B * cumulative[:, -1])[:, None])
    last = weights.shape[1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    return jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1), last).astype(jnp.int32)


def _scale(logits_BV, temperature_B) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which rows are greedy, each row's largest logit, and what to divide by (1 where greedy), all [B]."""
    greedy_B = temperature_B <= 0
    scale_B = jnp.where(greedy_B, 1.0, jnp.maximum(temperature_B, jnp.finfo(jnp.float32).tiny))
    return greedy_B, jnp.max(logits_BV, axis=-1), scale_B


def lowest_kept(logits_BV, temperature_B, top_k_B, top_p_B) -> jax.Array:
    """A row may draw the tokens whose logits are at least this, float32 [B]: −inf without truncation.

    Each of top-k and top-p is a bisection over the bit patterns of float32, so at most 32 passes find a
    threshold with exactly the right set above it. Without a row that truncates, the passes are skipped.
    """
    greedy_B, top_B, scale_B = _scale(logits_BV, temperature_B)
    everything_B = jnp.full_like(top_B, -jnp.inf)
    wants_k_B = (top_k_B > 0) & (top_k_B < logits_BV.shape[1]) & ~greedy_B & jnp.isfinite(top_B)
    wants_p_B = (top_p_B < 1) & ~greedy_B & jnp.isfinite(top_B)

    def by_count():
        def compare(floor_B):
            count_B = jnp.sum(logits_BV >= floor_B[:, None], axis=-1, dtype=jnp.int32)
            return count_B >= top_k_B, count_B == top_k_B

        return _bisect(compare, jnp.where(wants_k_B, everything_B, top_B), top_B)

    floor_B = jax.lax.cond(jnp.any(wants_k_B), by_count, lambda: everything_B)
    floor_B = jnp.where(wants_k_B, floor_B, everything_B)

    def by_mass():
        weights_BV = jnp.exp((logits_BV - top_B[:, None]) / scale_B[:, None])

        def mass(lowest_B):
            return jnp.sum(jnp.where(logits_BV >= lowest_B[:, None], weights_BV, 0.0), axis=-1)

        target_B = top_p_B * mass(floor_B)
        return _bisect(
            lambda lowest_B: (mass(lowest_B) >= target_B, jnp.zeros_like(wants_p_B)),
            jnp.where(wants_p_B, floor_B, top_B),
            top_B,
        )

    nucleus_B = jax.lax.cond(jnp.any(wants_p_B), by_mass, lambda: everything_B)
    return jnp.where(greedy_B, top_B, jnp.where(wants_p_B, nucleus_B, floor_B))


def _bisect(compare, low_B, high_B) -> jax.Array:
    """The largest float32 in [low, high] for which `compare` is true; it is true at low and turns false once.

    `compare(x) -> (true, enough)`: where `enough`, x itself is as good an answer, and the row stops.
    """

    def body(bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        true, enough = compare(_from_ordered(middle))
        return jnp.where(true, middle, low), jnp.where(enough, middle, jnp.where(true, high, middle - 1))

    bounds = (_to_ordered(low_B), _to_ordered(high_B))
    return _from_ordered(jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), body, bounds)[0])


_SIGN = 1 << 31


def _to_ordered(x) -> jax.Array:
    """float32 → uint32 that sort alike: positive patterns rise with the value, negative ones fall."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >= jnp.uint32(_SIGN), ~bits, bits | jnp.uint32(_SIGN))


def _from_ordered(code) -> jax.Array:
    bits = jnp.where(code >= jnp.uint32(_SIGN), code ^ jnp.uint32(_SIGN), ~code)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
