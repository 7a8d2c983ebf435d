"""Log-probabilities and entropies of completion tokens, without ever holding a [B, T, V] array.

Axes: B rows, T time, C completion time, c a chunk of C, D model width, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params, forward
from rrm_jax.types import Array

_LOGITS_BYTES = 128 * 2**20  # float32 logits that one device holds at a time


class Sequences(NamedTuple):
    """Prompts and completions laid out for one forward pass. Every mask and length is an array of its own: no
    token id is ever read to learn what is padding.

    tokens, positions, segments: int32 [B, T]; segment 0 is padding. Several prompts and completions may share a row,
    in segments 1, 2, …. prefixes: int32 [B, T], the segment that a token's own continues, and sees as well: completions
    that share a prompt; None where each prompt and completion is one segment. sources: int32 [B, C], the index in T
    whose hidden state predicts completion token c (the one before it). targets: int32 [B, C], that token. mask:
    float32 [B, C], 1 on real completion tokens, the stop tokens among them.
    """

    tokens: Array
    positions: Array
    segments: Array
    prefixes: Any
    sources: Array
    targets: Array
    mask: Array


class Scores(NamedTuple):
    """float32 [B, C] each: the target's log-probability, and the distribution's entropy in nats."""

    logprob: jax.Array
    entropy: jax.Array


def completion_scores(
    config: DecoderConfig, params: Params, sequences: Sequences, temperature: float, options: Options = Options()
) -> Scores:
    """Scores completion tokens under `softmax(logits / temperature)`: the distribution that they were drawn from.

    Only the completions' hidden states are unembedded. Entries where the mask is 0 are finite and meaningless. Both
    results carry gradients.
    """
    laid_out = sequences.tokens, sequences.positions, sequences.segments
    hidden_BTD, _ = forward(config, params, *laid_out, options, prefixes_BT=sequences.prefixes)
    hidden_BCD = jnp.take_along_axis(hidden_BTD, sequences.sources[..., None], axis=1)
    table_VD = params["embedding"] if config.tied_embeddings else params["lm_head"]
    with jax.named_scope("completion_scores"):
        return token_scores(hidden_BCD, table_VD.astype(hidden_BCD.dtype), sequences.targets, temperature, options)


def token_scores(hidden_BCD, table_VD, targets_BC, temperature: float, options: Options = Options()) -> Scores:
    """Scores of `targets` under the softmax of hidden · tableᵀ / temperature.

    The logits of a chunk of C are made, used and dropped, in the forward pass and once more in the backward pass: one
    product with the table more than if they were kept. On a mesh each device works on its own rows and its own part
    of the vocabulary; the table's gradient is summed over devices once, not once a chunk.
    """
    return Scores(*_token_scores(hidden_BCD, table_VD, targets_BC, 1.0 / temperature, options.spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _token_scores(hidden_BCD, table_VD, targets_BC, inverse_temperature: float, spec):
    return _forward(hidden_BCD, table_VD, targets_BC, inverse_temperature, spec)[0]


def _forward(hidden_BCD, table_VD, targets_BC, inverse_temperature: float, spec):
    place = _Placement(spec)
    run = place.on_mesh(
        functools.partial(_chunked_scores, place, inverse_temperature),
        (place.rows(3), place.table(), place.rows(2)),
        (place.rows(2),) * 3,
    )
    logprob, normaliser, entropy = run(hidden_BCD, table_VD, targets_BC)
    return (logprob, entropy), (hidden_BCD, table_VD, targets_BC, normaliser, entropy)


def _backward(inverse_temperature: float, spec, kept, cotangents):
    place = _Placement(spec)
    run = place.on_mesh(
        functools.partial(_chunked_gradients, place, inverse_temperature),
        (place.rows(3), place.table(), *(place.rows(2),) * 5),
        (place.rows(3), place.table_gradient()),
    )
    hidden_gradient, table_gradient = run(*kept, *cotangents)
    return hidden_gradient, table_gradient, None


_token_scores.defvjp(_forward, _backward)


class _Placement:
    """Which mesh axes the rows, and the vocabulary, are split over; none without a mesh."""

    def __init__(self, spec):
        self._spec = spec
        (self.vocab_axis,) = spec(("vocab",)) if spec else (None,)
        axes = spec(("batch",))[0] if spec else ()
        self.row_axes: tuple[str, ...] = (axes,) if isinstance(axes, str) else tuple(axes)
        (self.width_axis,) = spec(("embed",)) if spec else (None,)

    def rows(self, ndim: int) -> Any:
        return self._spec and self._spec(("batch", *(None,) * (ndim - 1)))

    def table(self) -> Any:
        return self._spec and self._spec(("vocab", None))

    def table_gradient(self) -> Any:
        return self._spec and self._spec(("vocab", "embed"))

    def on_mesh(self, function, in_specs, out_specs):
        if self._spec is None:
            return function
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def sum_over_vocab(self, x):
        return x if self.vocab_axis is None else jax.lax.psum(x, self.vocab_axis)

    def max_over_vocab(self, x):
        return x if self.vocab_axis is None else jax.lax.pmax(x, self.vocab_axis)

    def sum_over_rows(self, gradient_VD):
        """The table's gradient, of which each device keeps its slice of D."""
        if self._spec is None:
            return gradient_VD
        others = tuple(axis for axis in self.row_axes if axis != self.width_axis)
        scattered = jax.lax.psum_scatter(gradient_VD, self.width_axis, scatter_dimension=1, tiled=True)
        return jax.lax.psum(scattered, others) if others else scattered

    def local(self, targets_Bc, size: int):
        """Which targets are in this device's part of the vocabulary, and where."""
        start = 0 if self.vocab_axis is None else jax.lax.axis_index(self.vocab_axis) * size
        at = targets_Bc - start
        return (at >= 0) & (at < size), jnp.clip(at, 0, size - 1)


def _logits(hidden_BcD, table_VD, inverse_temperature: float):
    product = jnp.einsum("bcd,vd->bcv", hidden_BcD, table_VD, preferred_element_type=jnp.float32)
    return product * inverse_temperature


def _chunked_scores(place: _Placement, inverse_temperature: float, hidden_BCD, table_VD, targets_BC):
    """The log-probability, the logits' log-sum-exp, and the entropy, float32 [B, C] each."""
    size = table_VD.shape[0]

    def score(hidden_BcD, targets_Bc):
        logits = _logits(hidden_BcD, table_VD, inverse_temperature)
        highest = place.max_over_vocab(jnp.max(logits, axis=-1))
        weights = jnp.exp(logits - highest[..., None])
        total = place.sum_over_vocab(jnp.sum(weights, axis=-1))
        # Σ p (logit − highest): the entropy is log total − that.
        mean = place.sum_over_vocab(jnp.sum(weights * (logits - highest[..., None]), axis=-1)) / total
        here, at = place.local(targets_Bc, size)
        own = jnp.take_along_axis(logits, at[..., None], axis=-1)[..., 0]
        normaliser = highest + jnp.log(total)
        return place.sum_over_vocab(jnp.where(here, own, 0)) - normaliser, normaliser, jnp.log(total) - mean

    return _over_chunks(score, size, hidden_BCD, targets_BC)


def _chunked_gradients(
    place: _Placement, inverse_temperature: float, hidden_BCD, table_VD, targets_BC, normaliser_BC, entropy_BC,
    logprob_gradient_BC, entropy_gradient_BC,
):  # fmt: skip
    """∂ log p_y / ∂ z = 1_y − p and ∂ H / ∂ z = −p (log p + H), through logits made again."""
    size, dtype = table_VD.shape[0], hidden_BCD.dtype

    def gradients(table_gradient, hidden_BcD, targets_Bc, normaliser, entropy, of_logprob, of_entropy):
        log_p = _logits(hidden_BcD, table_VD, inverse_temperature) - normaliser[..., None]
        here, at = place.local(targets_Bc, size)
        chosen = (jnp.arange(size) == at[..., None]) & here[..., None]
        p = jnp.exp(log_p)
        through_entropy = p * (log_p + entropy[..., None]) * of_entropy[..., None]
        slope = (jnp.where(chosen, 1 - p, -p) * of_logprob[..., None] - through_entropy) * inverse_temperature
        slope = slope.astype(dtype)
        hidden_gradient = jnp.einsum("bcv,vd->bcd", slope, table_VD, preferred_element_type=jnp.float32)
        more = jnp.einsum("bcv,bcd->vd", slope, hidden_BcD, preferred_element_type=jnp.float32)
        return table_gradient + more, place.sum_over_vocab(hidden_gradient).astype(dtype)

    zeros = jnp.zeros(table_VD.shape, jnp.float32)
    arrays = hidden_BCD, targets_BC, normaliser_BC, entropy_BC, logprob_gradient_BC, entropy_gradient_BC
    table_gradient, hidden_gradient = _over_chunks(gradients, size, *arrays, carry=zeros)
    return hidden_gradient, place.sum_over_rows(table_gradient).astype(table_VD.dtype)


def _over_chunks(function, vocabulary: int, *arrays, carry: Any = None):
    """`function` on slices of the C axis, one at a time, results put together; with `carry` as `lax.scan` has it."""
    rows, length = arrays[0].shape[:2]
    chunk = max(1, min(length, _LOGITS_BYTES // (4 * rows * vocabulary)))
    chunks = -(-length // chunk)
    chunk = -(-length // chunks)  # equally long, so that little is padding
    if chunks == 1:
        return function(*arrays) if carry is None else function(carry, *arrays)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk - length), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(rows, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    def joined(x):
        return x.swapaxes(0, 1).reshape(rows, chunks * chunk, *x.shape[3:])[:, :length]

    def body(state, parts):
        return (state, function(*parts)) if carry is None else function(state, *parts)

    state, results = jax.lax.scan(body, carry, tuple(map(split, arrays)))
    results = jax.tree.map(joined, results)
    return results if carry is None else (state, results)
