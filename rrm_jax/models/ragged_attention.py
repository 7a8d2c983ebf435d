"""Decode attention over the filled columns of a cache, as a Pallas kernel: the call, and the kernel for TPUs.

Axes: B rows, K key/value heads, G query rows of one key/value head (its query heads × the new tokens), S cache
columns, N head width.

XLA's einsum reads every allocated column of every row. On a TPU the work is a list of (row, block of columns) pairs
that holds filled blocks only: the grid is as long as the list, so that an empty block costs neither a copy from HBM nor
a step, and the pipeline fetches the next row's first block while the last row's is computed. `ragged_attention_gpu` is
for GPUs. The result is a partial softmax; `cache.merge` joins it with that of other columns, such as a shared prefix.

Elsewhere the kernels run in Pallas' interpreter, which is how the tests compare them with a plain softmax.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rrm_jax.errors import RrmError
from rrm_jax.models.attention import Backend, Spec, target_platform
from rrm_jax.models.cache import LOWEST, Partial, narrow

# A step should copy enough for its own cost to vanish, and end close to the row's length.
_MOST_COLUMNS = 512
_LEAST_COLUMNS = 64
_MOST_QUERIES = 512  # rows of queries a step; a prompt's chunk has thousands, and VMEM does not hold their scores
_MOST_BYTES = 1 << 20  # of keys a step: with values, both double-buffered, 4 MiB of a VMEM of which 16 are ours


def takes(k_BKSN, backend: Backend) -> bool:
    """Whether the kernel for "splash", TPUs, or "cudnn", GPUs, reads these keys as they lie, and on this device."""
    columns, width = k_BKSN.shape[2:]
    if backend == "splash":
        return columns % _LEAST_COLUMNS == 0 and width % 128 == 0
    # Where a program is compiled for a GPU that is not here, no device has this attribute.
    capability = [int(part) for part in getattr(jax.devices()[0], "compute_capability", "9.0").split(".")]
    converts = k_BKSN.dtype != jnp.float8_e4m3fn or capability >= [8, 9]
    return columns % _LEAST_COLUMNS == 0 and width in (64, 128) and converts


def ragged_partial(
    q_BKGN, k_BKSN, v_BKSN, lengths, *, k_scale_BKS=None, v_scale_BKS=None, backend: Backend = "splash",
    spec: Spec | None = None, interpret: bool | None = None,
) -> Partial:  # fmt: skip
    """Attention of each query row over the first `lengths` columns of its row of the cache, scores q·k / √N.

    Over no columns `out` and `total` are 0, and `top` is the most negative float32.

    `lengths` int32, between 0 and S, is [B], or [B, G] where the query rows see different numbers of columns, as
    several new tokens do. Columns from a row's largest length on may hold anything, NaN too. S is a multiple of 64.
    Products are taken in q's dtype (bfloat16 or float32) and summed in float32, whatever the cache's own dtype; an int8
    or float8 one needs its scales, one a column. `backend` is "splash" for the TPU's kernel, where an N that is no
    multiple of 128 costs a copy of the cache, or "cudnn" for the GPU's, where N is a power of two. `spec` places the
    work on the current mesh, rows and heads apart. `interpret` None: everywhere but on the kernel's own platform.
    Raises RrmError for what it cannot take.
    """
    columns = k_BKSN.shape[2]
    if columns % _LEAST_COLUMNS:
        raise RrmError(
            f"ragged attention: a cache of {columns} columns is not a multiple of {_LEAST_COLUMNS}; allocate it so"
        )
    scales = [x for x in (k_scale_BKS, v_scale_BKS) if x is not None]
    if len(scales) != (2 if narrow(k_BKSN.dtype) else 0):
        raise RrmError(
            "ragged attention: an int8 or float8 cache comes with scales for both keys and values, another with none"
        )
    batch, _, rows, _ = q_BKGN.shape
    limits_BG = jnp.broadcast_to(lengths if lengths.ndim == 2 else lengths[:, None], (batch, rows))
    if interpret is None:
        interpret = target_platform() != ("gpu" if backend == "cudnn" else "tpu")
    if backend == "cudnn":
        from rrm_jax.models.ragged_attention_gpu import on_device as run
    else:
        run = _on_device
    run = functools.partial(run, interpret=interpret)
    if spec is not None:
        cache, sums = spec(("batch", "kv_heads", None, None)), spec(("batch", "kv_heads", None))
        placed = (cache, cache, cache, spec(("batch", None)), *[sums] * len(scales))
        run = jax.shard_map(run, in_specs=placed, out_specs=(cache, sums, sums), check_vma=False)
    return Partial(*run(q_BKGN, k_BKSN, v_BKSN, limits_BG, *scales))


def _on_device(q_BKGN, k_BKSN, v_BKSN, limits_BG, *scales, interpret: bool) -> tuple[jax.Array, ...]:
    batch, kv_heads, rows, width = q_BKGN.shape
    columns = k_BKSN.shape[2]
    short = -rows % (8 if rows <= _MOST_QUERIES else _MOST_QUERIES)  # whole tiles of query rows, or whole blocks
    own = min(rows + short, _MOST_QUERIES)
    q = jnp.pad(q_BKGN, ((0, 0), (0, 0), (0, short), (0, 0)))
    limits = jnp.pad(limits_BG, ((0, 0), (0, short)))[:, :, None].astype(jnp.int32)

    block = _block(columns)
    steps, row_I, block_I, filled_B = _work_list(jnp.max(limits_BG, axis=1), block, columns // block)
    heads = _heads(kv_heads, block * width * k_BKSN.dtype.itemsize)
    query = pl.BlockSpec((1, heads, own, width), lambda h, q, i, row, at, filled: (row[i], h, q, 0))
    sums = pl.BlockSpec((1, heads, own, 1), lambda h, q, i, row, at, filled: (row[i], h, q, 0))
    cache = pl.BlockSpec((1, heads, block, width), lambda h, q, i, row, at, filled: (row[i], h, at[i], 0))
    scale = pl.BlockSpec((1, heads, 1, block), lambda h, q, i, row, at, filled: (row[i], h, 0, at[i]))
    limit = pl.BlockSpec((1, own, 1), lambda h, q, i, row, at, filled: (row[i], q, 0))
    shape = (batch, kv_heads, rows + short)
    if not interpret:
        # A cache that fits into VMEM would be brought there for its update, and be written back whole in every step.
        k_BKSN, v_BKSN = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (k_BKSN, v_BKSN))
    out, top, total = pl.pallas_call(
        functools.partial(_kernel, block=block, scaled=bool(scales)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(kv_heads // heads, (rows + short) // own, steps),
            in_specs=[query, limit, cache, cache, *[scale] * len(scales)],
            out_specs=[query, sums, sums],
        ),
        out_shape=[jax.ShapeDtypeStruct((*shape, n), jnp.float32) for n in (width, 1, 1)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="ragged_decode_attention",
    )(row_I, block_I, filled_B, q, limits, k_BKSN, v_BKSN, *(x[:, :, None] for x in scales))
    return out[:, :, :rows], top[:, :, :rows, 0], total[:, :, :rows, 0]


def _block(columns: int) -> int:
    """The widest block of columns, in powers of two, that divides them."""
    block = _LEAST_COLUMNS
    while block < _MOST_COLUMNS and columns % (2 * block) == 0:
        block *= 2
    return block


def _heads(kv_heads: int, bytes_a_head: int) -> int:
    """How many heads a step takes: at most half, since chips of two cores split the grid's parallel axis."""
    fitting = max(min(_MOST_BYTES // bytes_a_head, kv_heads // 2), 1)
    return next(heads for heads in range(fitting, 0, -1) if kv_heads % heads == 0)


def _work_list(filled_B, block: int, blocks: int):
    """Steps I: how many, each one's row and its block of columns, int32 [B × blocks], of which that many count.

    An empty row has one step, in which its results are set to those of no columns. Also the lengths themselves.
    """
    batch = filled_B.shape[0]
    count_B = jnp.clip(-(-filled_B // block), 1, blocks)
    end_B = jnp.cumsum(count_B)
    step_I = jnp.arange(batch * blocks, dtype=jnp.int32)
    row_I = jnp.minimum(jnp.sum(step_I[:, None] >= end_B, axis=1, dtype=jnp.int32), batch - 1)
    block_I = jnp.minimum(step_I - (end_B - count_B)[row_I], blocks - 1)
    return end_B[-1], row_I, block_I, filled_B.astype(jnp.int32)


def _kernel(row_I, block_I, filled_B, q_ref, limit_ref, k_ref, v_ref, *refs, block: int, scaled: bool):
    """One block of columns of one row, for a block of query rows of some heads. Axes h heads, g query rows, s columns.

    The results of a row stay in VMEM from its first block to its last, and are the running sums themselves.
    """
    k_scale_ref, v_scale_ref = refs[:2] if scaled else (None, None)
    out_ref, top_ref, total_ref = refs[-3:]
    step = pl.program_id(2)
    start = block_I[step] * block

    @pl.when(start == 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        top_ref[...] = jnp.full_like(top_ref, LOWEST)
        total_ref[...] = jnp.zeros_like(total_ref)

    q, k, v = q_ref[0], k_ref[0].astype(q_ref.dtype), v_ref[0].astype(q_ref.dtype)
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    scores = dot("hgn,hsn->hgs", q, k) * q.shape[-1] ** -0.5
    if k_scale_ref is not None:
        scores *= k_scale_ref[0]
    seen = start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2) < limit_ref[...]
    scores = jnp.where(seen, scores, LOWEST)
    top = jnp.maximum(top_ref[0], jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
    shrink = jnp.exp(top_ref[0] - top)
    top_ref[0] = top
    total_ref[0] = total_ref[0] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    if v_scale_ref is not None:
        weights = jnp.where(seen, weights * v_scale_ref[0], 0.0)
    # Weight 0 is not enough where nothing was ever written: 0 × NaN.
    written = start + jax.lax.broadcasted_iota(jnp.int32, v.shape, 1) < filled_B[row_I[step]]
    v = jnp.where(written, v, jnp.zeros_like(v))
    out_ref[0] = out_ref[0] * shrink + dot("hgs,hsn->hgn", weights.astype(q.dtype), v)
