"""Log-probabilities of completion tokens, without ever holding a [B, T, V] array.

Axes: B rows, T time, C completion time, D model width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params, forward, unembed
from rrm_jax.types import Array

_LOGITS_BYTES = 256 * 2**20


class Sequences(NamedTuple):
    """Prompts and completions laid out for one forward pass. Every mask and length is an array of its own: no
    token id is ever read to learn what is padding.

    tokens, positions, segments: int32 [B, T], segment 0 on padding. sources: int32 [B, C], the index in T whose
    hidden state predicts completion token c (the one before it). targets: int32 [B, C], that token. mask:
    float32 [B, C], 1 on real completion tokens, the stop token among them.
    """

    tokens: Array
    positions: Array
    segments: Array
    sources: Array
    targets: Array
    mask: Array


class Scores(NamedTuple):
    """float32 [B, C] each: the target's log-probability, and the entropy (nats; carries no gradient)."""

    logprob: jax.Array
    entropy: jax.Array


def completion_scores(
    config: DecoderConfig, params: Params, sequences: Sequences, temperature: float, options: Options = Options()
) -> Scores:
    """Scores completion tokens under `softmax(logits / temperature)`: the distribution that they were drawn from.

    Only the completion's hidden states are unembedded, a chunk of C at a time; the backward pass computes each
    chunk's logits again. Entries where the mask is 0 are finite and meaningless.
    """
    hidden_BTD, _ = forward(config, params, sequences.tokens, sequences.positions, sequences.segments, options)
    hidden_BCD = jnp.take_along_axis(hidden_BTD, sequences.sources[..., None], axis=1)
    rows, length = sequences.targets.shape

    @jax.checkpoint
    def score(hidden_BcD, targets_Bc):
        logits_BcV = unembed(config, params, hidden_BcD) / temperature
        logits_BcV = options.constrain(logits_BcV, "batch", None, "vocab")
        normaliser = jax.nn.logsumexp(logits_BcV, axis=-1)
        logprob = jnp.take_along_axis(logits_BcV, targets_Bc[..., None], axis=-1)[..., 0] - normaliser
        fixed = jax.lax.stop_gradient(logits_BcV - normaliser[..., None])
        return Scores(logprob, -jnp.sum(jnp.exp(fixed) * fixed, axis=-1))

    chunk = max(1, min(length, _LOGITS_BYTES // (4 * rows * config.vocab_size)))
    with jax.named_scope("completion_scores"):
        if chunk == length:
            return score(hidden_BCD, sequences.targets)
        pad = -length % chunk
        hidden_BCD = jnp.pad(hidden_BCD, ((0, 0), (0, pad), (0, 0)))
        targets_BC = jnp.pad(sequences.targets, ((0, 0), (0, pad)))
        chunks = (length + pad) // chunk
        xs = (
            hidden_BCD.reshape(rows, chunks, chunk, -1).swapaxes(0, 1),
            targets_BC.reshape(rows, chunks, chunk).swapaxes(0, 1),
        )
        _, scores = jax.lax.scan(lambda carry, x: (carry, score(*x)), None, xs)
        return Scores(*(s.swapaxes(0, 1).reshape(rows, length + pad)[:, :length] for s in scores))
