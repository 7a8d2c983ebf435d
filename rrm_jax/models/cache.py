"""Key/value caches of decoding, and attention over them: a row's own columns, and a prefix that it shares.

Axes: B rows, T new tokens of a row, U prefixes, R rows that one prefix serves, X either of B and U, S columns of a
row's own segment, P columns of a prefix, K key/value heads, G query heads of one of them, N head width, W ways that the
batch is split over a mesh.

A row continues at most one prefix. Its new token t has position `prefix length + own length + t` and is written to
column `own length + t` of its own segment. Attention over the two parts is computed apart and joined by log-sum-exp, so
a prefix is read once for all its rows. What a column holds beyond the filled length never counts, as long as the
value (not the key) is finite.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.models.attention import NO_WINDOW, Backend, Spec

LOWEST = float(jnp.finfo(jnp.float32).min)


class Segment(NamedTuple):
    """Keys and values of X sequences, [X, K, S, N]; int8 and float8 ones have a scale a column, float32 [X, K, S]."""

    k: Any
    v: Any
    k_scale: Any = None
    v_scale: Any = None


class Prefix(NamedTuple):
    """Sequences that rows continue: one Segment [U, K, P, N] a layer, filled up to `length` int32 [U].

    `rows` int32 [W, U/W, R] lists the rows of each prefix (0 where there are fewer than R) and `place` int32 [W, B/W]
    says where row b stands in that list, as u × R + r. Both count within one of the W parts of the batch: a row and its
    prefix live on the same devices.
    """

    layers: list[Segment]
    length: Any
    rows: Any
    place: Any


class Cache(NamedTuple):
    """One Segment [B, K, S, N] a layer, filled up to `length` int32 [B], and what the rows continue, if anything."""

    layers: list[Segment]
    length: Any
    prefix: Prefix | None = None

    def start(self) -> jax.Array:
        """The position of each row's next token, int32 [B]."""
        if self.prefix is None:
            return self.length
        per_place = jnp.repeat(self.prefix.length, self.prefix.rows.shape[2])
        return take_rows(per_place, self.prefix.place) + self.length


class Seen(NamedTuple):
    """What every layer's attention over one Cache shares: query positions [B, T] and those of the first column [B]."""

    q_positions: jax.Array
    first: jax.Array
    length: jax.Array
    prefix: Prefix | None


class Partial(NamedTuple):
    """Softmax over one segment, not yet divided, float32: `out` Σ exp(s − top)·v [X, K, Q, N], `top` max s and `total`
    Σ exp(s − top), both [X, K, Q]. Q are query rows: tokens × query heads."""

    out: jax.Array
    top: jax.Array
    total: jax.Array


def narrow(dtype) -> bool:
    """Whether a cache of this dtype keeps scales: int8 and the float8 kinds."""
    return jnp.dtype(dtype).itemsize == 1


def empty_segment(shape: tuple[int, int, int, int], dtype) -> Segment:
    """Zeros of [X, K, S, N], stored as `dtype`."""
    scale = jnp.zeros(shape[:3], jnp.float32) if narrow(dtype) else None
    return Segment(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), scale, scale)


def store(k_XKTN, v_XKTN, dtype) -> Segment:
    """New keys and values as a cache of `dtype` keeps them."""
    if not narrow(dtype):
        return Segment(k_XKTN.astype(dtype), v_XKTN.astype(dtype))
    (k, k_scale), (v, v_scale) = _narrowed(k_XKTN, dtype), _narrowed(v_XKTN, dtype)
    return Segment(k, v, k_scale, v_scale)


def _narrowed(x, dtype) -> tuple[jax.Array, jax.Array]:
    whole = jnp.issubdtype(dtype, jnp.integer)
    most = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / most
    x = jnp.clip(x / scale[..., None], -most, most)
    return (jnp.round(x) if whole else x).astype(dtype), scale


def write(segment: Segment, new: Segment, at_X, spec: Spec | None = None) -> Segment:
    """`new` [X, K, T, N] into columns at_X[x]… of each row; 0 ≤ at and at + T ≤ S must hold.

    `spec` places it on the current mesh, each device writing its own rows: XLA would gather all of them.
    """
    if spec is None:
        return _write(segment, new, at_X)
    kv, at = spec(("batch", "kv_heads")), spec(("batch",))
    placed = Segment(*(None if x is None else kv for x in segment))
    return jax.shard_map(_write, in_specs=(placed, placed, at), out_specs=placed)(segment, new, at_X)


def _write(segment: Segment, new: Segment, at_X) -> Segment:
    rows, kv_heads, time = new.k.shape[:3]
    row = jnp.arange(rows)[:, None, None]
    head = jnp.arange(kv_heads)[None, :, None]
    column = (at_X[:, None] + jnp.arange(time, dtype=at_X.dtype))[:, None, :]

    def put(old, more):
        if old is None:
            return None
        # Every index explicit, only N as a window: TPUs run this in place as one scatter, while a batched
        # dynamic_update_slice becomes a serial loop over the rows, which doubles a decode step.
        return old.at[row, head, column].set(
            more, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
        )

    return Segment(*(put(old, more) for old, more in zip(segment, new, strict=True)))


def attend_cached(
    q_BTHN, own: Segment, prefix: Segment | None, seen: Seen, window, backend: Backend = "xla", spec: Spec | None = None
) -> jax.Array:
    """Attention of new tokens over their own segment (they are in it already) and their prefix: [B, T, H, N].

    With the backends "splash", on TPUs, and "cudnn", on GPUs, a kernel reads filled columns alone, where it can (see
    `_ragged`); elsewhere every column is read.
    """
    batch, time, heads, width = q_BTHN.shape
    kv_heads = own.k.shape[1]
    q = q_BTHN.reshape(batch, time, kv_heads, heads // kv_heads, width)
    kernel = functools.partial(_ragged, backend, spec, window)
    seen_BQ = jnp.repeat(seen.length[:, None] + jnp.arange(time) + 1, heads // kv_heads, axis=1)
    part = kernel(_fold(q), own, seen_BQ)
    if part is None:
        column_S = jnp.arange(own.k.shape[2], dtype=jnp.int32)
        # Columns beyond the new tokens have later positions than any query, so that one comparison masks them too.
        part = attend_segment(_fold(q), own, _near(seen.q_positions, seen.first[:, None] + column_S, window))
    if prefix is not None and seen.prefix is not None:
        part = merge(part, _attend_prefix(q, prefix, seen, window, kernel))
    out = (part.out / part.total[..., None]).astype(q_BTHN.dtype)
    return out.reshape(batch, kv_heads, time, heads // kv_heads, width).swapaxes(1, 2).reshape(q_BTHN.shape)


def _near(q_position_XT, kv_position_XS, window) -> jax.Array:
    distance = q_position_XT[:, :, None] - kv_position_XS[:, None, :]
    return (distance >= 0) & (distance < window)


def _fold(x_XTKGN) -> jax.Array:
    """[X, T, K, G, N] → [X, K, T × G, N]."""
    rows, time, kv_heads, group, width = x_XTKGN.shape
    return x_XTKGN.swapaxes(1, 2).reshape(rows, kv_heads, time * group, width)


def _ragged(backend: Backend, spec: Spec | None, window, q_XKQN, segment: Segment, lengths) -> Partial | None:
    """The result of the kernel for TPUs or GPUs, where it applies: no window, and a cache that it takes."""
    if backend == "xla" or not (isinstance(window, int) and window == NO_WINDOW):
        return None
    from rrm_jax.models.ragged_attention import ragged_partial, takes

    if not takes(segment.k, backend):
        return None
    scales = {"k_scale_BKS": segment.k_scale, "v_scale_BKS": segment.v_scale}
    return ragged_partial(q_XKQN, segment.k, segment.v, lengths, **scales, backend=backend, spec=spec)


def _attend_prefix(q_BTKGN, prefix: Segment, seen: Seen, window, kernel) -> Partial:
    shared = seen.prefix
    assert shared is not None
    _, time, kv_heads, group, _ = q_BTKGN.shape
    prefixes, rows = shared.length.shape[0], shared.rows.shape[2]

    def gathered(x_BT):
        """[B, T, …] → [U, R × T, …]: the queries of each prefix's rows side by side."""
        return take_rows(x_BT, shared.rows).reshape(prefixes, rows * time, *x_BT.shape[2:])

    def returned(x_UKQ):
        """[U, K, R × T × G, …] → [B, K, T × G, …]"""
        x = x_UKQ.reshape(prefixes, kv_heads, rows, time * group, *x_UKQ.shape[3:]).swapaxes(1, 2)
        return take_rows(x.reshape(prefixes * rows, *x.shape[2:]), shared.place)

    part = kernel(_fold(gathered(q_BTKGN)), prefix, shared.length)
    if part is None:
        column_P = jnp.arange(prefix.k.shape[2], dtype=jnp.int32)
        filled_UP = column_P < shared.length[:, None]
        near = _near(gathered(seen.q_positions), jnp.broadcast_to(column_P, filled_UP.shape), window)
        part = attend_segment(_fold(gathered(q_BTKGN)), prefix, near & filled_UP[:, None, :])
    return Partial(*(returned(x) for x in part))


def attend_segment(q_XKQN, segment: Segment, seen_XTS) -> Partial:
    """One segment's part of the softmax; where nothing is seen its `top` is so low that `merge` drops it.

    Q holds T tokens × G query heads, and `seen_XTS` says what each token sees.
    """
    k, v = segment.k.astype(q_XKQN.dtype), segment.v.astype(q_XKQN.dtype)
    rows, kv_heads, queries, width = q_XKQN.shape
    time, columns = seen_XTS.shape[1:]
    scores = jnp.einsum("xkqn,xksn->xkqs", q_XKQN, k, preferred_element_type=jnp.float32) * width**-0.5
    if segment.k_scale is not None:
        scores = scores * segment.k_scale[:, :, None, :]
    scores = scores.reshape(rows, kv_heads, time, queries // time, columns)
    scores = jnp.where(seen_XTS[:, None, :, None], scores, LOWEST).reshape(rows, kv_heads, queries, columns)
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top[..., None])
    total = jnp.sum(weights, axis=-1)
    if segment.v_scale is not None:
        weights = weights * segment.v_scale[:, :, None, :]
    out = jnp.einsum("xkqs,xksn->xkqn", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return Partial(out, top, total)


def merge(one: Partial, two: Partial) -> Partial:
    """The softmax over the columns of both."""
    top = jnp.maximum(one.top, two.top)
    of_one, of_two = jnp.exp(one.top - top), jnp.exp(two.top - top)
    out = one.out * of_one[..., None] + two.out * of_two[..., None]
    return Partial(out, top, one.total * of_one + two.total * of_two)


def take_rows(x, index_W) -> jax.Array:
    """Rows of x [W × n, …] by index [W, …], each of the W parts from its own rows: no data crosses between them."""
    ways = index_W.shape[0]
    taken = jax.vmap(lambda part, at: jnp.take(part, at, axis=0, mode="clip"))(
        x.reshape(ways, -1, *x.shape[1:]), index_W.reshape(ways, -1)
    )
    return taken.reshape(-1, *x.shape[1:])


def put_rows(x, rows, index_W) -> jax.Array:
    """The reverse of `take_rows`: writes rows [W × m, …] to x at index [W, m]; an index beyond the part is dropped."""
    ways = index_W.shape[0]
    put = jax.vmap(lambda part, new, at: part.at[at].set(new, mode="drop"))(
        x.reshape(ways, -1, *x.shape[1:]), rows.reshape(ways, -1, *rows.shape[1:]), index_W
    )
    return put.reshape(x.shape)
