"""The kernel of `ragged_attention` for NVIDIA GPUs (Pallas, through Triton).

Axes: B rows, K key/value heads, G query rows of one key/value head (its query heads × the new tokens), S cache
columns, N head width, C splits.

A program takes up to 64 query rows of one head and a share of the blocks of columns that are filled, so that a few rows
or prompts occupy the whole chip; the partial softmaxes of the C shares are joined afterwards. Where nothing is filled
nothing is read.

Why not cuDNN: it knows no scales of columns, and query rows of different lengths only through a bias over all
columns; and `jax.nn.dot_product_attention` takes [B, S, K, N], which here is a copy of the cache in every step.

Why Triton, which Pallas deprecates in favour of Mosaic GPU: a first form of this kernel with a Hopper's own matrix
instructions did compile there, but its interpreter runs neither those with an operand in registers nor the ones that
other GPUs have, so that its barriers would be tested nowhere; and its interface differs between the releases of JAX
that we allow. This kernel serves every GPU since Ampere and is tested as it stands. When Triton leaves Pallas,
`cache.attend_segment` is what remains.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rrm_jax.models.cache import LOWEST

_BLOCK = 64  # columns a turn; in bfloat16 and 128 wide a program has 70 to 112 KiB on its way: two or three share an SM
_FEWEST_ROWS, _MOST_ROWS = 16, 64  # of queries: what the tensor cores take at least, what registers hold
_PROGRAMS = 1024  # some eight for each SM of an H200: rows are uneven, and the longest must not be left alone
_LEAST_SHARE = 128  # columns: below that starting and joining cost more than another program brings


def on_device(q_BKGN, k_BKSN, v_BKSN, limits_BG, *scales, interpret: bool) -> tuple[jax.Array, ...]:
    """out, top and total of `Partial` over the first `limits_BG` columns; S is a multiple of 64, N a power of two."""
    batch, kv_heads, rows, width = q_BKGN.shape
    columns = k_BKSN.shape[2]
    # Products of float32 are made in registers, and its blocks are twice as large.
    most, stages = (_MOST_ROWS, 3) if q_BKGN.dtype.itemsize == 2 else (_FEWEST_ROWS, 2)
    tile = min(max(pl.next_power_of_2(rows), _FEWEST_ROWS), most)
    tiles = pl.cdiv(rows, tile)
    splits = _splits(batch * kv_heads * tiles, columns, tile)

    def one_head(*shape):
        return pl.BlockSpec((None, None, *shape), lambda t, c, h, b: (b, h, *(0,) * len(shape)))

    def one_split(*shape):
        return pl.BlockSpec((None, None, None, *shape), lambda t, c, h, b: (b, h, c, *(0,) * len(shape)))

    shape = (batch, kv_heads, splits, rows)
    out, top, total = pl.pallas_call(
        functools.partial(_kernel, tile=tile, splits=splits, scaled=bool(scales)),
        grid=(tiles, splits, kv_heads, batch),
        in_specs=[
            one_head(rows, width), pl.BlockSpec((None, rows), lambda t, c, h, b: (b, 0)),
            one_head(columns, width), one_head(columns, width), *[one_head(columns)] * len(scales),
        ],
        out_specs=[one_split(rows, width), one_split(rows), one_split(rows)],
        out_shape=[jax.ShapeDtypeStruct(at, jnp.float32) for at in ((*shape, width), shape, shape)],
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=stages),
        interpret=interpret,
        name="ragged_decode_attention",
    )(q_BKGN, limits_BG.astype(jnp.int32), k_BKSN, v_BKSN, *scales)  # fmt: skip
    if splits == 1:
        return out[:, :, 0], top[:, :, 0], total[:, :, 0]
    best = jnp.max(top, axis=2)
    weight = jnp.exp(top - best[:, :, None])
    return jnp.sum(out * weight[..., None], axis=2), best, jnp.sum(total * weight, axis=2)


def _splits(programs: int, columns: int, tile: int) -> int:
    """Into how many shares a row's columns are cut: powers of two, as many as it takes to make enough programs.

    A share's partial sums, `tile` float32 rows, stay well below the keys and values that it reads.
    """
    splits, least = 1, max(_LEAST_SHARE, 4 * tile)
    while splits * programs < _PROGRAMS and 2 * splits * least <= columns:
        splits *= 2
    return splits


def _kernel(q_ref, limit_ref, k_ref, v_ref, *refs, tile: int, splits: int, scaled: bool):
    """One share of the filled columns, for some query rows of a head. Axes g query rows, s columns."""
    k_scale_ref, v_scale_ref = refs[:2] if scaled else (None, None)
    out_ref, top_ref, total_ref = refs[-3:]
    rows, width = q_ref.shape
    here = pl.ds(pl.program_id(0) * tile, tile)
    real = pl.program_id(0) * tile + jnp.arange(tile) < rows
    q = plt.load(q_ref.at[here], mask=real[:, None], other=0)
    limit = plt.load(limit_ref.at[here], mask=real, other=0)
    filled = jnp.max(limit)
    blocks = pl.cdiv(filled, _BLOCK)
    share = pl.cdiv(blocks, splits)
    first = pl.program_id(1) * share
    dot = functools.partial(plt.dot, precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None)

    def join(block, sums):
        out, top, total = sums
        columns = pl.ds(block * _BLOCK, _BLOCK)
        at = block * _BLOCK + jnp.arange(_BLOCK)
        written = at < filled  # what was never written may be NaN, which a weight of 0 does not undo

        def load(ref, mask):
            return plt.load(ref.at[columns], mask=mask, other=jnp.zeros((), ref.dtype))

        k, v = (load(ref, written[:, None]).astype(q.dtype) for ref in (k_ref, v_ref))
        scores = dot(q, k.T) * width**-0.5
        if k_scale_ref is not None:
            scores *= load(k_scale_ref, written)[None, :]
        seen = at[None, :] < limit[:, None]
        scores = jnp.where(seen, scores, LOWEST)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - higher[:, None]), 0.0)
        shrink = jnp.exp(top - higher)
        total = total * shrink + jnp.sum(weights, axis=1)
        if v_scale_ref is not None:
            weights *= load(v_scale_ref, written)[None, :]
        return out * shrink[:, None] + dot(weights.astype(q.dtype), v), higher, total

    nothing = jnp.zeros((tile, width), jnp.float32), jnp.full((tile,), LOWEST), jnp.zeros((tile,), jnp.float32)
    out, top, total = jax.lax.fori_loop(first, jnp.minimum(first + share, blocks), join, nothing)
    plt.store(out_ref.at[here], out, mask=real[:, None])
    plt.store(top_ref.at[here], top, mask=real)
    plt.store(total_ref.at[here], total, mask=real)
