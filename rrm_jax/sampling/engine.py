"""The device programs of sampling: prefill prompts, place them in slots, decode a block of tokens, move the cache.

Axes: B slots (rows of a batch), U prompts prefilled together, T prompt columns, S cache columns, K key/value
heads, N head width, D model width, I steps of a block, M stop ids.

The token at position p of a row sits in column p of the row's slot, whatever the other slots hold and whenever
the row began: what a row computes depends on itself and on the shapes alone. A slot that finished is given to
the next request; columns are added or dropped for the whole batch as its longest row asks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrm_jax.models import decoder
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.models.params import is_spec, param_specs, unstack
from rrm_jax.parallel.mesh import RULES, param_sharding, partition_spec, replicated
from rrm_jax.sampling.distribution import base_keys, draw

CACHE_AXES = ("batch", "kv_heads", None, None)


class Rows(NamedTuple):
    """What the slots were asked for and how far they are, host arrays [B] (stop_ids [B, M], padded with −1).

    `length` is the prompt's, `drawn` counts new tokens; a slot that is `done`, or never used, draws nothing.
    """

    seed: Any
    id_hash: Any
    sample: Any
    temperature: Any
    top_k: Any
    top_p: Any
    max_new: Any
    stop_ids: Any
    length: Any
    drawn: Any
    done: Any


class Slots(NamedTuple):
    """What stays on the device: keys and values, L × [B, K, S, N], and the last hidden state of each row [B, D]."""

    k: list[jax.Array]
    v: list[jax.Array]
    hidden: jax.Array


class Drawn(NamedTuple):
    """A block's result: tokens and logprobs [I, B], of which row b has its first `drawn[b] − drawn before`."""

    token: jax.Array
    logprob: jax.Array
    drawn: jax.Array
    done: jax.Array
    failed: jax.Array


class Programs:
    """The jitted programs of one (config, options, mesh), shared by the samplers that have the same."""

    def __init__(self, config: DecoderConfig, options: Options, mesh: Mesh | None):
        self.compilations = 0
        self.config, self.options, self.mesh = config, options, mesh
        cache: Any = mesh and NamedSharding(mesh, partition_spec(CACHE_AXES))
        hidden: Any = mesh and NamedSharding(mesh, partition_spec(("batch", None)))
        slots = Slots([cache] * config.num_layers, [cache] * config.num_layers, hidden)
        self.prefill = self._jit(_prefill, slots)
        self.empty = self._jit(_empty, slots, static_argnames=("batch", "columns"))
        self.place_kv = self._jit(_place, cache, donate_argnums=0)
        self.place_hidden = self._jit(_place, hidden, donate_argnums=0)
        self.resize = self._jit(_resize, cache, static_argnames="columns")
        whole = mesh and replicated(mesh)  # every process of a multi-host run reads the tokens
        self.decode_block = self._jit(_decode_block, (slots, whole), donate_argnums=1, static_argnames="steps")
        self.adopt = self._jit(_adopt, mesh and weight_shardings(config, mesh))

    def _jit(self, function: Callable, shardings, **how) -> Callable:
        def traced(*args, **static):
            self.compilations += 1  # runs when JAX traces, that is once for each new set of shapes
            return function(self.config, self.options, *args, **static)

        traced.__name__ = function.__name__
        placed = {} if self.mesh is None else {"out_shardings": shardings}
        jitted = jax.jit(traced, **placed, **how)
        if self.mesh is None:
            return jitted

        def on_mesh(*args, **static):
            with jax.set_mesh(self.mesh):
                return jitted(*args, **static)

        return on_mesh


@functools.lru_cache(maxsize=16)
def programs(config: DecoderConfig, options: Options, mesh: Mesh | None) -> Programs:
    return Programs(config, options, mesh)


def weight_shardings(config: DecoderConfig, mesh: Mesh) -> Params:
    """Where sampling keeps each parameter: as in training, but whole over fsdp.

    Decoding reads every weight for every token; gathering them for each step would cost more than the step.
    """

    def place(spec):
        dropped = [None if entry in RULES["embed"] else entry for entry in param_sharding(mesh, spec).spec]
        return NamedSharding(mesh, PartitionSpec(*dropped))

    return jax.tree.map(place, param_specs(config, stacked=False), is_leaf=is_spec)


def _adopt(config, options: Options, params: Params) -> Params:
    if not isinstance(params["layers"], list):
        params = unstack(params)
    # A copy, even where nothing changes: the giver may donate its own buffers to the next training step.
    return jax.tree.map(lambda x: jnp.copy(x).astype(options.dtype), params)


def _empty(config: DecoderConfig, options: Options, *, batch: int, columns: int) -> Slots:
    shape = (batch, config.num_kv_heads, columns, config.head_dim)
    k, v = ([jnp.zeros(shape, options.dtype) for _ in range(config.num_layers)] for _ in range(2))
    return Slots(k, v, jnp.zeros((batch, config.hidden_size), options.dtype))


def _prefill(config, options: Options, params: Params, tokens_UT, lengths_U) -> Slots:
    """Right-padded prompts: their keys and values [U, K, T, N], and the last token's hidden state [U, D]."""
    hidden, cache = decoder.prefill(config, params, tokens_UT, lengths_U, tokens_UT.shape[1], options)
    return Slots(cache.k, cache.v, hidden)


def _place(config, options: Options, old, new, source_B) -> jax.Array:
    """Row b of `old` becomes row source_B[b] of `new`, padded with zeros, or stays where that is −1.

    The whole row is written, so that a NaN of the slot's last owner cannot leak through the mask (0 × NaN).
    """
    taken = jnp.take(new, jnp.maximum(source_B, 0), axis=0)
    taken = jnp.pad(taken, [(0, 0)] + [(0, a - b) for a, b in zip(old.shape[1:], new.shape[1:], strict=True)])
    return jnp.where(source_B.reshape(-1, *(1,) * (old.ndim - 1)) >= 0, taken, old)


def _resize(config, options: Options, x_BKSN, *, columns: int) -> jax.Array:
    more = max(columns - x_BKSN.shape[2], 0)
    return jnp.pad(x_BKSN[:, :, :columns], ((0, 0), (0, 0), (0, more), (0, 0)))


def _decode_block(
    config: DecoderConfig, options: Options, params: Params, slots: Slots, rows: Rows, limit, enough, *, steps: int
) -> tuple[Slots, Drawn]:
    """Draws up to `limit` ≤ `steps` tokens a row; stops early when `enough` or fewer rows are still at work.

    Needs length + drawn + limit ≤ S of every row at work.
    """
    batch, columns = rows.done.shape[0], slots.k[0].shape[2]
    rows = Rows(*(options.constrain(jnp.asarray(x), "batch", *(None,) * (x.ndim - 1)) for x in rows))
    keys_B = base_keys(rows.seed, rows.id_hash, rows.sample)
    column_S = jnp.arange(columns, dtype=jnp.int32)
    written_B = rows.length + rows.drawn
    positions_BS = jnp.where(column_S < written_B[:, None], column_S, -1)

    def working(state):
        step, _, _, drawn = state
        return (step < limit) & (jnp.sum(~drawn.done) > enough)

    def body(state):
        step, slots, positions_BS, past = state
        with jax.named_scope("draw"):
            # Two constraints: with the last alone, XLA gathers the output matrix rather than the logits.
            logits_BV = options.constrain(decoder.unembed(config, params, slots.hidden), "batch", "vocab")
            logits_BV = options.constrain(logits_BV, "batch", None)
            keys = jax.vmap(jax.random.fold_in)(keys_B, past.drawn)
            token, logprob, finite = draw(logits_BV, keys, rows.temperature, rows.top_k, rows.top_p)
        drawn = past.drawn + ~past.done
        failed = past.failed | (~past.done & ~finite)
        stopped = jnp.any(token[:, None] == rows.stop_ids, axis=-1)
        done = past.done | failed | stopped | (drawn >= rows.max_new)
        # A finished row goes on writing into its own slot, at a column that no longer matters.
        at_B = jnp.minimum(rows.length + past.drawn, columns - 1)
        slots, positions_BS = _decode_rows(config, options, params, slots, positions_BS, token, at_B)
        record = Drawn(past.token.at[step].set(token), past.logprob.at[step].set(logprob), drawn, done, failed)
        return step + 1, slots, positions_BS, record

    nothing = Drawn(
        jnp.zeros((steps, batch), jnp.int32),
        jnp.zeros((steps, batch), jnp.float32),
        rows.drawn,
        rows.done,
        jnp.zeros_like(rows.done),
    )
    _, slots, _, record = jax.lax.while_loop(working, body, (jnp.int32(0), slots, positions_BS, nothing))
    return slots, record


def _decode_rows(config, options: Options, params: Params, slots: Slots, positions_BS, token_B, at_B):
    """One token a row, written to column at_B[b] of row b, which is also its position."""
    inner, over = options, None
    if options.spec is not None:
        # Each row is decoded as a batch of one; the axis that vmap adds carries the batch's sharding.
        inner, over = dataclasses.replace(options, spec=_spec_of_one), RULES["batch"]

    def one(k, v, positions_S, token, at):
        cache = decoder.Cache([x[None] for x in k], [x[None] for x in v], positions_S[None])
        hidden, cache = decoder.decode(config, params, cache, token[None], at[None], at, inner)
        return [x[0] for x in cache.k], [x[0] for x in cache.v], cache.positions[0], hidden[0]

    k, v, positions_BS, hidden = jax.vmap(one, spmd_axis_name=over)(slots.k, slots.v, positions_BS, token_B, at_B)
    return Slots(k, v, hidden), positions_BS


def _spec_of_one(axes: tuple[str | None, ...]) -> PartitionSpec:
    return partition_spec(tuple(None if axis == "batch" else axis for axis in axes))


def free_rows(batch: int, stops: int) -> Rows:
    """Slots that nobody uses yet."""
    unsigned, whole = np.zeros(batch, np.uint32), np.zeros(batch, np.int32)
    return Rows(
        seed=unsigned.copy(), id_hash=unsigned.copy(), sample=unsigned.copy(),
        temperature=np.ones(batch, np.float32), top_k=whole.copy(), top_p=np.ones(batch, np.float32),
        max_new=whole.copy(), stop_ids=np.full((batch, stops), -1, np.int32),
        length=whole.copy(), drawn=whole.copy(), done=np.ones(batch, bool),
    )  # fmt: skip
