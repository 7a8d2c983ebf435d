"""Log-probabilities and entropies of completion tokens, without ever holding a [B, T, V] array.

Axes: B rows, T time, C completion time, D model width, V vocabulary, b a block of V.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params, forward
from rrm_jax.types import Array

LOGITS_BYTES = 128 * 2**20  # float32 logits that one device holds at a time
_LANES = 128  # of a TPU's tiles


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

    The logits of a block of V are made, used and dropped, in the forward pass and once more in the backward pass: one
    product with the table more than if they were kept. A block of V for all tokens, not some tokens for all of V: so
    a block's part of the table's gradient is one product, and nothing as large as the table is added up. On a mesh each
    device works on its own rows and its own part of the vocabulary.
    """
    return Scores(*_token_scores(hidden_BCD, table_VD, targets_BC, 1.0 / temperature, options.spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _token_scores(hidden_BCD, table_VD, targets_BC, inverse_temperature: float, spec):
    return _forward(hidden_BCD, table_VD, targets_BC, inverse_temperature, spec)[0]


def _forward(hidden_BCD, table_VD, targets_BC, inverse_temperature: float, spec):
    place = _Placement(spec)
    run = place.on_mesh(
        functools.partial(_scores_by_blocks, place, inverse_temperature),
        (place.rows(3), place.table(), place.rows(2)),
        (place.rows(2),) * 3,
    )
    logprob, normaliser, entropy = run(hidden_BCD, table_VD, targets_BC)
    return (logprob, entropy), (hidden_BCD, table_VD, targets_BC, normaliser, entropy)


def _backward(inverse_temperature: float, spec, kept, cotangents):
    place = _Placement(spec)
    run = place.on_mesh(
        functools.partial(_gradients_by_blocks, place, inverse_temperature),
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

    def local(self, targets_BC, part: int, start, size: int):
        """Which targets are in a block of this device's part of the vocabulary, and where."""
        first = 0 if self.vocab_axis is None else jax.lax.axis_index(self.vocab_axis) * part
        at = targets_BC - first - start
        return (at >= 0) & (at < size), jnp.clip(at, 0, size - 1)


def _logits(hidden_BCD, table_bD, inverse_temperature: float):
    product = jnp.einsum("bcd,vd->bcv", hidden_BCD, table_bD, preferred_element_type=jnp.float32)
    return product * inverse_temperature


class _Sum(NamedTuple):
    """Of e^(z − highest) and e^(z − highest) (z − highest) over the logits z seen so far, float32 [B, C] each."""

    highest: jax.Array
    total: jax.Array
    weighted: jax.Array

    def relative_to(self, highest) -> "_Sum":
        """The same sums for a higher `highest`."""
        less = self.highest - highest
        return _Sum(highest, jnp.exp(less) * self.total, jnp.exp(less) * (self.weighted + less * self.total))


def _scores_by_blocks(place: _Placement, inverse_temperature: float, hidden_BCD, table_VD, targets_BC):
    """The log-probability, the logits' log-sum-exp, and the entropy, float32 [B, C] each."""

    def add(state, start, table_bD):
        own, before = state
        logits = _logits(hidden_BCD, table_bD, inverse_temperature)
        so_far = before.relative_to(jnp.maximum(before.highest, jnp.max(logits, axis=-1)))
        above = logits - so_far.highest[..., None]
        weights = jnp.exp(above)
        total, weighted = so_far.total + jnp.sum(weights, -1), so_far.weighted + jnp.sum(weights * above, -1)
        here, at = place.local(targets_BC, table_VD.shape[0], start, table_bD.shape[0])
        chosen = jnp.take_along_axis(logits, at[..., None], axis=-1)[..., 0]
        return own + jnp.where(here, chosen, 0), _Sum(so_far.highest, total, weighted)

    zeros = jnp.zeros(targets_BC.shape, jnp.float32)
    # Not −∞, of which a difference times a total of 0 is no number.
    nothing = zeros, _Sum(jnp.full_like(zeros, jnp.finfo(jnp.float32).min / 2), zeros, zeros)
    own, own_sum = _over_blocks(add, table_VD, targets_BC.size, nothing)
    part = own_sum.relative_to(place.max_over_vocab(own_sum.highest))
    total, weighted = place.sum_over_vocab(part.total), place.sum_over_vocab(part.weighted)
    normaliser = part.highest + jnp.log(total)
    # Σ p (logit − highest): the entropy is log total − that.
    return place.sum_over_vocab(own) - normaliser, normaliser, jnp.log(total) - weighted / total


def _gradients_by_blocks(
    place: _Placement, inverse_temperature: float, hidden_BCD, table_VD, targets_BC, normaliser_BC, entropy_BC,
    of_logprob_BC, of_entropy_BC,
):  # fmt: skip
    """∂ log p_y / ∂ z = 1_y − p and ∂ H / ∂ z = −p (log p + H), through logits made again."""
    normaliser, entropy, of_logprob, of_entropy = (
        x[..., None] for x in (normaliser_BC, entropy_BC, of_logprob_BC, of_entropy_BC)
    )

    def add(state, start, table_bD):
        hidden_gradient, table_gradient = state
        size = table_bD.shape[0]
        log_p = _logits(hidden_BCD, table_bD, inverse_temperature) - normaliser
        here, at = place.local(targets_BC, table_VD.shape[0], start, size)
        chosen = (jnp.arange(size) == at[..., None]) & here[..., None]
        p = jnp.exp(log_p)
        slope = jnp.where(chosen, 1 - p, -p) * of_logprob - p * (log_p + entropy) * of_entropy
        slope = (slope * inverse_temperature).astype(hidden_BCD.dtype)
        more = jnp.einsum("bcv,vd->bcd", slope, table_bD, preferred_element_type=jnp.float32)
        of_block = jnp.einsum("bcv,bcd->vd", slope, hidden_BCD, preferred_element_type=jnp.float32)
        of_block = place.sum_over_rows(of_block).astype(table_VD.dtype)
        return hidden_gradient + more, jax.lax.dynamic_update_slice_in_dim(table_gradient, of_block, start, 0)

    kept = jax.eval_shape(place.sum_over_rows, table_VD)
    zeros = jnp.zeros(hidden_BCD.shape, jnp.float32), jnp.zeros(kept.shape, kept.dtype)
    hidden_gradient, table_gradient = _over_blocks(add, table_VD, targets_BC.size, zeros)
    return place.sum_over_vocab(hidden_gradient).astype(hidden_BCD.dtype), table_gradient


def _over_blocks(function, table_VD, tokens: int, state: Any):
    """`function(state, start, rows of the table from there)` for one block after another, until all of V was seen."""
    vocabulary = table_VD.shape[0]
    size = max(1, LOGITS_BYTES // (4 * tokens))
    size = min(vocabulary, size - size % _LANES if size > _LANES else size)

    def step(at, state):
        return function(state, at * size, jax.lax.dynamic_slice_in_dim(table_VD, at * size, size))

    whole = vocabulary // size
    state = step(0, state) if whole == 1 else jax.lax.fori_loop(0, whole, step, state)
    start = whole * size
    return function(state, start, table_VD[start:]) if start < vocabulary else state
