"""The device programs of sampling, jitted: take weights in, prefill prompts, decode a block, move rows and columns.

Axes: B rows, U prompts, A prompts prefilled together, C tokens of a chunk, P columns of a prompt, S columns of a row,
X either of B and U, K key/value heads, N head width, D model width, W ways that the batch is split over the mesh.

A prompt's keys and values are kept once, whatever the number of its samples; a row keeps those of its own new tokens.
Both kinds of columns are added or dropped for all as the longest asks, and rows and prompts as their number asks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrm_jax.models import decoder
from rrm_jax.models.cache import Cache, Segment, empty_segment, narrow, put_rows, store, take_rows
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.models.params import is_spec, param_specs, unstack
from rrm_jax.models.quantized import Quantized, inputs, is_product, quantize
from rrm_jax.parallel.mesh import RULES, param_sharding, partition_spec, replicated
from rrm_jax.sampling import control
from rrm_jax.sampling.block import Shared, Slots, decode_block


class Programs:
    """The jitted programs of one set of arguments, shared by the samplers that have the same."""

    def __init__(self, config: DecoderConfig, options: Options, mesh: Mesh | None, cache_dtype: Any, weight_dtype: Any):
        self.compilations = self._looked_at = 0
        self._jitted: list[Any] = []
        self.config, self.options, self.mesh = config, options, mesh
        self.ways = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        by_row: Any = mesh and NamedSharding(mesh, partition_spec(("batch",)))
        kv: Any = mesh and NamedSharding(mesh, partition_spec(("batch", "kv_heads")))
        layers = [Segment(kv, kv, kv, kv)] * config.num_layers
        whole = mesh and replicated(mesh)  # every process of a multi-host run reads the tokens
        self.shared_at: Any = mesh and Shared(layers, by_row)
        self.slots_at: Any = mesh and Slots(layers, by_row, by_row, by_row)
        self.weights_at: Any = mesh and weight_shardings(config, mesh, weight_dtype)
        empty_shared = functools.partial(_empty_shared, dtype=cache_dtype)
        empty_slots = functools.partial(_empty_slots, dtype=cache_dtype)
        self.make_shared = functools.partial(empty_shared, config, options)
        self.make_slots = functools.partial(empty_slots, config, options)
        self.empty_shared = self._jit(empty_shared, self.shared_at, static_argnames=("prompts", "columns"))
        self.empty_slots = self._jit(empty_slots, self.slots_at, static_argnames=("batch", "columns", "history"))
        self.prefill = self._jit(_prefill, self.shared_at, donate_argnums=1, static_argnames="limit")
        self.move = self._jit(_move, kv, static_argnames="columns")
        self.move_state = self._jit(_move_state, by_row, static_argnames="columns")
        self.decode_block = self._jit(
            decode_block, (self.slots_at, whole), donate_argnums=1, static_argnames=("steps", "lookup", "early")
        )
        adopt = functools.partial(_adopt, weight_dtype=weight_dtype)
        self.adopt = self._jit(adopt, self.weights_at)

    def _jit(self, function: Callable, shardings, **how) -> Any:
        def traced(*args, **static):
            self.compilations += 1  # runs when JAX traces, that is once for each new set of shapes
            return function(self.config, self.options, *args, **static)

        traced.__name__ = getattr(function, "func", function).__name__
        placed = {} if self.mesh is None else {"out_shardings": shardings}
        jitted = jax.jit(traced, **placed, **how)
        self._jitted.append(jitted)
        return jitted if self.mesh is None else OnMesh(jitted, self.mesh)

    def forget_old_programs(self) -> None:
        """Keeps a process on CPUs alive that meets many shapes: each program there holds hundreds of memory maps, and
        Linux ends a process, with a segmentation fault, that wants more than its limit."""
        if self.compilations == self._looked_at:
            return
        self._looked_at = self.compilations
        if memory_maps() > MOST_MEMORY_MAPS:
            for jitted in self._jitted:
                jitted.clear_cache()


class OnMesh:
    """A jitted function that is called, and lowered, with its mesh as the current one."""

    def __init__(self, jitted: Any, mesh: Mesh):
        self._jitted, self._mesh = jitted, mesh

    def __call__(self, *args, **static):
        """As the jitted function."""
        with jax.set_mesh(self._mesh):
            return self._jitted(*args, **static)

    def lower(self, *args, **static) -> jax.stages.Lowered:
        """As `jax.jit(…).lower` does: what is compiled, without running it."""
        with jax.set_mesh(self._mesh):
            return self._jitted.lower(*args, **static)


MOST_MEMORY_MAPS = 32_000  # half of Linux's usual limit


def memory_maps() -> int:
    """How many this process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


@functools.lru_cache(maxsize=16)
def programs(
    config: DecoderConfig, options: Options, mesh: Mesh | None, cache_dtype: Any, weight_dtype: Any
) -> Programs:
    """One for these settings in a process: samplers alike share what is compiled."""
    return Programs(config, options, mesh, cache_dtype, weight_dtype)


def weight_shardings(config: DecoderConfig, mesh: Mesh, weight_dtype: Any) -> Params:
    """Where sampling keeps each parameter: as in training, but whole over fsdp.

    Decoding reads every weight for every token; gathering them for each step would cost more than the step.
    """

    def place(spec):
        axes = [None if entry in RULES["embed"] else entry for entry in param_sharding(mesh, spec).spec]
        whole = NamedSharding(mesh, PartitionSpec(*axes))
        if not (narrow(weight_dtype) and is_product(spec)):
            return whole
        kept = [axis for at, axis in enumerate(axes) if at not in inputs(spec)]
        return Quantized(whole, NamedSharding(mesh, PartitionSpec(*kept)))

    return jax.tree.map(place, param_specs(config, stacked=False), is_leaf=is_spec)


def _adopt(config, options: Options, params: Params, *, weight_dtype: Any) -> Params:
    if not isinstance(params["layers"], list):
        params = unstack(params)

    def take(spec, x):
        if narrow(weight_dtype) and is_product(spec):
            return quantize(spec, x, weight_dtype)
        # A copy, even where nothing changes: the giver may donate its own buffers to the next training step.
        return jnp.copy(x).astype(options.dtype)

    return jax.tree.map(take, param_specs(config, stacked=False), params, is_leaf=is_spec)


def _empty_layers(config: DecoderConfig, rows: int, columns: int, dtype) -> list[Segment]:
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    return [empty_segment(shape, dtype) for _ in range(config.num_layers)]


def _empty_shared(config: DecoderConfig, options: Options, *, prompts: int, columns: int, dtype) -> Shared:
    hidden = jnp.zeros((prompts, config.hidden_size), options.dtype)
    return Shared(_empty_layers(config, prompts, columns, dtype), hidden)


def _empty_slots(config: DecoderConfig, options: Options, *, batch: int, columns: int, history: int, dtype) -> Slots:
    hidden = jnp.zeros((batch, config.hidden_size), options.dtype)
    tokens = jnp.zeros((batch, history), jnp.int32) if history else None
    return Slots(_empty_layers(config, batch, columns, dtype), hidden, control.idle(batch), tokens)


def _prefill(
    config, options: Options, params: Params, shared: Shared, tokens_AC, source, target, start_A, count_A, total_A,
    *, limit: int,
) -> Shared:  # fmt: skip
    """Runs a chunk of A prompts: tokens `start` … `start + count` of prompts that are `total` long.

    Each goes on from the first `start` columns of prompt `source` and is written to `target`, int32 [W, A/W] within its
    part of the batch; a target beyond the part is dropped. All `start` are 0 (`limit` 0), or `start` + C ≤ `limit`.
    What a target holds beyond its tokens is left over from others, and never seen.
    """
    columns = shared.layers[0].k.shape[2]
    time = tokens_AC.shape[1]
    filled_AC = jnp.arange(time) < count_A[:, None]
    totals_AC = jnp.broadcast_to(total_A[:, None], tokens_AC.shape)

    if limit == 0:
        positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), tokens_AC.shape)
        hidden, new = decoder.forward(
            config, params, tokens_AC, positions, filled_AC.astype(jnp.int32), options, totals_AC
        )
        layers = [store(kv.k, kv.v, old.k.dtype) for kv, old in zip(new or [], shared.layers, strict=True)]
    else:
        own = [
            Segment(*(x if x is None else _columns(take_rows(x, source), limit) for x in kv)) for kv in shared.layers
        ]
        hidden, layers = decoder.extend(config, params, Cache(own, start_A), tokens_AC, options, totals_AC)

    written = [
        Segment(*(x if x is None else put_rows(x, _columns(y, columns), target) for x, y in zip(old, new, strict=True)))
        for old, new in zip(shared.layers, layers, strict=True)
    ]
    last = jnp.take_along_axis(hidden, (count_A - 1)[:, None, None], axis=1)[:, 0]
    return Shared(written, put_rows(shared.hidden, last, target))


def _move(config, options: Options, x_XKSN, source, *, columns: int) -> jax.Array:
    """Row x of the result is the old row source[x] (int32 [W, X'/W], within its part), with more or fewer columns."""
    return take_rows(_columns(x_XKSN, columns), source)


def _columns(x_XKSN, columns: int) -> jax.Array:
    """The first so many columns, zeros where there are fewer."""
    more = max(columns - x_XKSN.shape[2], 0)
    return jnp.pad(x_XKSN[:, :, :columns], [(0, 0), (0, 0), (0, more), (0, 0)][: x_XKSN.ndim])


def _move_state(config, options: Options, state, source, *, columns: int):
    """The same for what is kept by row [B, …] beside keys and values; `columns` are those of the history, [B, C]."""

    def one(x):
        x = take_rows(x, source)
        if x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer):
            x = jnp.pad(x[:, :columns], ((0, 0), (0, columns - min(columns, x.shape[1]))))
        return x

    return jax.tree.map(one, state)
