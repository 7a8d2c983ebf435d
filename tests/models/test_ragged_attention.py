"""The ragged decode kernel, in Pallas' interpreter, against a plain softmax in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.models.cache import Partial, merge, narrow
from rrm_jax.models.ragged_attention import _work_list, ragged_partial
from rrm_jax.parallel.mesh import MeshShape, make_mesh, partition_spec

K, G, N = 2, 7, 128
NOTHING = float(np.finfo(np.float32).min)
partial_softmax = jax.jit(ragged_partial)


def draw(seed, batch, columns, dtype=jnp.float32, rows=G, kv_heads=K):
    rng = np.random.default_rng(seed)
    shapes = (batch, kv_heads, rows, N), (batch, kv_heads, columns, N), (batch, kv_heads, columns, N)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def plain(q, k, v, lengths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """out, top and total in float64, from what the operands hold."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    lengths = np.asarray(lengths)
    lengths = np.broadcast_to(lengths if lengths.ndim == 2 else lengths[:, None], (q.shape[0], q.shape[2]))
    seen = (np.arange(k.shape[2]) < lengths[..., None])[:, None]
    scores = np.where(seen, np.einsum("bkgn,bksn->bkgs", q, k) / np.sqrt(q.shape[-1]), NOTHING)
    top = scores.max(axis=-1)
    weights = np.where(seen, np.exp(scores - top[..., None]), 0)
    return np.einsum("bkgs,bksn->bkgn", weights, v), top, weights.sum(axis=-1)


def assert_close(ours: Partial, theirs, out=1e-5, top=1e-5, total=1e-5):
    """Absolute bounds on the softmax's output and largest score, a relative one on its sum."""
    assert all(x.dtype == jnp.float32 for x in ours)
    out_BKGN, top_BKG, total_BKG = theirs
    some = total_BKG > 0
    np.testing.assert_array_equal(np.asarray(ours.total) > 0, some)
    divisor = np.where(some, total_BKG, 1.0)[..., None]
    np.testing.assert_allclose(ours.out / divisor, out_BKGN / divisor, rtol=0, atol=out)
    np.testing.assert_allclose(ours.top, top_BKG, rtol=0, atol=top)
    np.testing.assert_allclose(ours.total, total_BKG, rtol=total)


@pytest.mark.parametrize("columns", [64, 192, 1024])
def test_ragged_rows_equal_the_plain_softmax_in_float32(columns):
    lengths = jnp.array([0, 1, columns, columns - 1, 63, min(513, columns // 2)], jnp.int32)
    q, k, v = draw(columns, len(lengths), columns)
    ours = partial_softmax(q, k, v, lengths)
    assert_close(ours, plain(q, k, v, lengths))
    np.testing.assert_array_equal(ours.out[0], 0)
    np.testing.assert_array_equal(ours.top[0], NOTHING)
    np.testing.assert_array_equal(ours.total[0], 0)


def test_bfloat16_is_off_by_the_rounding_of_the_weights_only():
    """Products and sums are float32; each weight is rounded once, by at most 2⁻⁹ of itself."""
    lengths = jnp.array([1, 640, 77, 0], jnp.int32)
    q, k, v = draw(1, 4, 640, jnp.bfloat16)
    largest = float(jnp.max(jnp.abs(v.astype(jnp.float32))))
    assert_close(partial_softmax(q, k, v, lengths), plain(q, k, v, lengths), out=2**-9 * largest + 1e-5)


def test_query_rows_may_see_different_numbers_of_columns():
    """Three new tokens × 7 heads a row, causal among themselves, one row of which is empty."""
    tokens, lengths_B = 3, np.array([0, 5, 126, 190])
    lengths_BG = np.repeat(lengths_B[:, None] + np.arange(tokens), G, axis=1)
    lengths_BG[0] = 0
    q, k, v = draw(2, 4, 192, rows=tokens * G)
    assert_close(partial_softmax(q, k, v, jnp.asarray(lengths_BG, jnp.int32)), plain(q, k, v, lengths_BG))


def test_what_lies_beyond_the_filled_columns_never_leaks():
    lengths = jnp.array([0, 1, 200, 512], jnp.int32)
    q, k, v = draw(3, 4, 1024)
    empty = (jnp.arange(1024) >= lengths[:, None])[:, None, :, None]
    clean = partial_softmax(q, jnp.where(empty, 0, k), jnp.where(empty, 0, v), lengths)
    for filling in (jnp.nan, jnp.inf, -3e38):
        dirty = partial_softmax(q, jnp.where(empty, filling, k), jnp.where(empty, filling, v), lengths)
        for ours, theirs in zip(dirty, clean, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_grid_holds_the_filled_blocks_and_no_others():
    lengths = jnp.array([0, 1, 64, 65, 256], jnp.int32)
    steps, row, block, _ = _work_list(lengths, 64, 4)
    visited = list(zip(np.asarray(row)[: int(steps)], np.asarray(block)[: int(steps)], strict=True))
    assert visited == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)]
    assert np.asarray(row).max() < 5  # what follows is never out of bounds either
    assert np.asarray(block).max() < 4


def test_merged_parts_are_the_whole():
    """A row's columns cut in two at 128, where either part may be empty: within 1e-5 of the whole (float32)."""
    lengths = jnp.array([300, 128, 90, 1], jnp.int32)
    q, k, v = draw(4, 4, 320)
    head = partial_softmax(q, k[:, :, :128], v[:, :, :128], jnp.minimum(lengths, 128))
    tail = partial_softmax(q, k[:, :, 128:], v[:, :, 128:], jnp.maximum(lengths - 128, 0))
    whole = plain(q, k, v, lengths)
    assert_close(merge(head, tail), whole)
    assert_close(merge(tail, head), whole)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_narrow_columns_are_scaled_back(dtype):
    """Against the plain softmax over the dequantised cache: the same numbers in another order (float32)."""
    lengths = jnp.array([0, 130, 192], jnp.int32)
    q, *_ = draw(5, 3, 192)
    rng = np.random.default_rng(5)
    k, v = (jnp.asarray(rng.integers(-127, 128, (3, K, 192, N)), jnp.float32).astype(dtype) for _ in range(2))
    scales = [jnp.asarray(rng.uniform(0.005, 0.02, (3, K, 192)), jnp.float32) for _ in range(2)]
    k64, v64 = (np.asarray(x, np.float64) * np.asarray(s)[..., None] for x, s in zip((k, v), scales, strict=True))
    whole = plain(q, k64, v64, lengths)
    empty = (jnp.arange(192) >= lengths[:, None])[:, None]
    dirty = [jnp.where(empty, jnp.nan, scale) for scale in scales]
    assert_close(partial_softmax(q, k, v, lengths, k_scale_BKS=dirty[0], v_scale_BKS=dirty[1]), whole)


@pytest.mark.parametrize("scaled", [False, True])
def test_each_device_runs_its_own_rows_and_heads(scaled):
    """Rows over data × fsdp, heads over tensor: bitwise what one device computes."""
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    lengths = jnp.array([0, 1, 64, 65, 128, 7, 100, 33], jnp.int32)
    q, k, v = draw(6, 8, 128, kv_heads=4)
    scales = {}
    if scaled:
        k, v = (jnp.round(20 * x).astype(jnp.int8) for x in (k, v))
        scales = {f"{name}_scale_BKS": jnp.full((8, 4, 128), 0.05) for name in "kv"}
    alone = partial_softmax(q, k, v, lengths, **scales)
    with jax.set_mesh(mesh):
        placed = jax.jit(functools.partial(ragged_partial, spec=partition_spec))(q, k, v, lengths, **scales)
    assert tuple(placed.out.sharding.spec)[:2] == tuple(partition_spec(("batch", "kv_heads")))
    for ours, theirs in zip(placed, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(7, jnp.bfloat16), (28, jnp.bfloat16), (7, jnp.int8), (7, jnp.float8_e4m3fn)]
)
def test_the_kernel_lowers_for_a_tpu(rows, dtype):
    """Block shapes and operations that a TPU lacks are refused here; its compiler proper needs its own toolchain."""
    shape, scaled = (64, 4, 2048, N), narrow(dtype)
    cache = jax.ShapeDtypeStruct(shape, dtype)
    scale = jax.ShapeDtypeStruct(shape[:3], jnp.float32)
    q = jax.ShapeDtypeStruct((64, 4, rows, N), jnp.bfloat16)

    def run(q, k, v, lengths, *scales):
        named = dict(zip(("k_scale_BKS", "v_scale_BKS"), scales, strict=False))
        return ragged_partial(q, k, v, lengths, interpret=False, **named)

    lengths = jax.ShapeDtypeStruct((64, rows), jnp.int32)
    traced = jax.jit(run).trace(q, cache, cache, lengths, *[scale, scale] if scaled else [])
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_what_it_cannot_take_is_refused():
    q, k, v = draw(7, 2, 96)
    lengths = jnp.array([3, 4], jnp.int32)
    with pytest.raises(RrmError, match="96 columns is not a multiple of 64"):
        ragged_partial(q, k, v, lengths)
    for dtype in (jnp.int8, jnp.float8_e4m3fn):
        k8, v8 = (jnp.zeros((2, K, 128, N), dtype) for _ in range(2))
        with pytest.raises(RrmError, match="scales for both"):
            ragged_partial(q, k8, v8, lengths)
        with pytest.raises(RrmError, match="scales for both"):
            ragged_partial(q, k8, v8, lengths, k_scale_BKS=jnp.ones((2, K, 128)))
