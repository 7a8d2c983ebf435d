"""Drawing one token a row from tempered, truncated softmax distributions, without sorting or noise over V.

Axes: B batch, V vocabulary, N blocks of the vocabulary, W tokens in a block.

Everything that a request chooses travels as a runtime array, so no choice recompiles. A row's randomness is
addressed by (seed, request id, sample, index of the new token): see `base_keys`.
"""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.sampling.truncation import lowest_kept

_BLOCK = 128


class Draw(NamedTuple):
    """`token` int32 [B]; `logprob` float32 [B], natural log, of the distribution the token was drawn from (0 for
    greedy rows); `model_logprob` float32 [B], of the logits' own distribution: temperature 1, nothing cut off, for
    greedy rows as well; `finite` bool [B]: False where the logits held NaN or +inf, and the token means nothing."""

    token: jax.Array
    logprob: jax.Array
    model_logprob: jax.Array
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


def draw(logits_BV, keys_B, temperature_B, top_k_B, top_p_B, min_p_B) -> Draw:
    """Draws with temperature, then top-k, then top-p over what top-k left, then min-p, as transformers does.

    `logits_BV` float32; `keys_B` one key a row, already folded with the token's index; temperature 0 is greedy
    (the lowest id among equals); top_k 0, top_p 1 and min_p 0 keep everything. Top-k keeps the k most probable
    tokens; top-p the smallest set of most probable ones whose mass reaches top_p, at least one; min-p those at
    least min_p times as probable as the most probable one. Tokens that tie with the least probable one kept, that
    is have the same probability in float32, are kept too. A kept token of non-zero probability is drawn, whatever
    the rounding.
    """
    vocab = logits_BV.shape[1]
    greedy_B = temperature_B <= 0
    scale_B = jnp.where(greedy_B, 1.0, jnp.maximum(temperature_B, jnp.finfo(jnp.float32).tiny))
    logits_BNW = _blocks(logits_BV)
    peaks_BN = jax.lax.optimization_barrier(jnp.max(logits_BNW, axis=-1))
    top_B = jnp.max(peaks_BN, axis=-1)
    finite_B = jnp.isfinite(top_B)
    cuts_B = finite_B & ~greedy_B
    top_k_B = jnp.where(cuts_B & (top_k_B < vocab), top_k_B, 0)
    top_p_B, min_p_B = jnp.where(cuts_B, top_p_B, 1.0), jnp.where(cuts_B, min_p_B, 0.0)
    uniform_B2 = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys_B) >> 8
    uniform_B2 = jnp.where(greedy_B[:, None], 0.0, uniform_B2.astype(jnp.float32) * 2.0**-24)

    def weigh(logits):
        top, scale = (x.reshape(-1, *(1,) * (logits.ndim - 1)) for x in (top_B, scale_B))
        return jnp.exp((logits - top) / scale)

    def pick(mass_BN, weights_of):
        """Two levels, a uniform for each: the block by its mass, then the token within it."""
        block_B = _pick(jnp.where(greedy_B[:, None], peaks_BN == top_B[:, None], mass_BN), uniform_B2[:, 0])
        weights_BW = jnp.where(greedy_B[:, None], _block(logits_BNW, block_B) == top_B[:, None], weights_of(block_B))
        token_B = block_B * logits_BNW.shape[2] + _pick(weights_BW, uniform_B2[:, 1])
        return jnp.minimum(token_B, vocab - 1), jnp.sum(mass_BN, axis=-1)

    def whole():
        mass_BN = _block_sums(weigh(logits_BNW))
        token_B, mass_B = pick(mass_BN, lambda block_B: weigh(_block(logits_BNW, block_B)))
        return token_B, mass_B, mass_B

    def truncated():
        weights_BNW = jax.lax.optimization_barrier(weigh(logits_BNW))  # once, not again in each pass
        mass_B = jnp.sum(weights_BNW, axis=(1, 2))
        floor_B = jnp.maximum(lowest_kept(weights_BNW, weigh(peaks_BN), mass_B, top_k_B, top_p_B), min_p_B)

        def kept(weights):
            return jnp.where(weights >= floor_B.reshape(-1, *(1,) * (weights.ndim - 1)), weights, 0.0)

        kept_BN = _block_sums(kept(weights_BNW))
        token_B, kept_B = pick(kept_BN, lambda block_B: kept(_block(weights_BNW, block_B)))
        return token_B, kept_B, mass_B

    truncates = jnp.any((top_k_B > 0) | (top_p_B < 1) | (min_p_B > 0))
    token_B, kept_B, mass_B = jax.lax.cond(truncates, truncated, whole)
    # A second pass of exponentials only where a row is drawn at another temperature than the model's own.
    model_B = jax.lax.cond(
        jnp.all(scale_B == 1), lambda: mass_B, lambda: jnp.sum(jnp.exp(logits_BNW - top_B[:, None, None]), axis=(1, 2))
    )
    below_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0] - top_B
    logprob_B = jnp.where(greedy_B, 0.0, below_B / scale_B - jnp.log(kept_B))
    return Draw(token_B, logprob_B, below_B - jnp.log(model_B), finite_B)


def _blocks(x_BV, fill: float = -jnp.inf) -> jax.Array:
    """[B, V] → [B, N, W], padded with `fill`."""
    x_BV = jnp.pad(x_BV, ((0, 0), (0, -x_BV.shape[1] % _BLOCK)), constant_values=fill)
    return x_BV.reshape(x_BV.shape[0], -1, _BLOCK)


def _block_sums(x_BNW) -> jax.Array:
    """[B, N]; the barrier keeps XLA from computing a row's sum, which is wanted too, by another pass over V."""
    return jax.lax.optimization_barrier(jnp.sum(x_BNW, axis=-1))


def _block(x_BNW, block_B) -> jax.Array:
    return jnp.take_along_axis(x_BNW, block_B[:, None, None], axis=1)[:, 0]


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
