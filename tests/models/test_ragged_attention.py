"""The ragged decode kernels for TPUs and GPUs, in Pallas' interpreter, against a plain softmax in float64."""

import contextlib
import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from rrm_jax.errors import RrmError
from rrm_jax.models import attention, decoder, ragged_attention_gpu
from rrm_jax.models.cache import LOWEST, Partial, Segment, attend_segment, merge, narrow
from rrm_jax.models.ragged_attention import _work_list, ragged_partial, takes
from rrm_jax.models.ragged_attention_gpu import _splits
from rrm_jax.parallel.mesh import MeshShape, make_mesh, partition_spec
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params, tiny_config

K, G, N = 2, 7, 128
partial_softmax = jax.jit(ragged_partial, static_argnames="backend")
of_both = pytest.mark.parametrize("backend", ["splash", "cudnn"])  # the kernels for TPUs and for GPUs


def draw(seed, batch, columns, dtype=jnp.float32, rows=G, kv_heads=K, width=N):
    rng = np.random.default_rng(seed)
    shapes = (batch, kv_heads, rows, width), (batch, kv_heads, columns, width), (batch, kv_heads, columns, width)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def plain(q, k, v, lengths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """out, top and total in float64, from what the operands hold."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    lengths = np.asarray(lengths)
    lengths = np.broadcast_to(lengths if lengths.ndim == 2 else lengths[:, None], (q.shape[0], q.shape[2]))
    seen = (np.arange(k.shape[2]) < lengths[..., None])[:, None]
    scores = np.where(seen, np.einsum("bkgn,bksn->bkgs", q, k) / np.sqrt(q.shape[-1]), LOWEST)
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


@of_both
@pytest.mark.parametrize("columns", [64, 192, 1024])
def test_ragged_rows_equal_the_plain_softmax_in_float32(columns, backend):
    lengths = jnp.array([0, 1, columns, columns - 1, 63, min(513, columns // 2)], jnp.int32)
    q, k, v = draw(columns, len(lengths), columns)
    ours = partial_softmax(q, k, v, lengths, backend=backend)
    assert_close(ours, plain(q, k, v, lengths))
    np.testing.assert_array_equal(ours.out[0], 0)
    np.testing.assert_array_equal(ours.top[0], LOWEST)
    np.testing.assert_array_equal(ours.total[0], 0)


@pytest.mark.parametrize(("width", "rows"), [(64, 16), (128, 70)])
def test_the_gpu_kernel_takes_heads_of_64_and_more_query_rows_than_a_program_holds(width, rows):
    """Within 1e-5 of the plain softmax, and of XLA's `attend_segment` (float32)."""
    lengths = jnp.asarray(np.random.default_rng(9).integers(1, 257, (3, rows)), jnp.int32).at[0].set(0)
    q, k, v = draw(9, 3, 256, rows=rows, width=width)
    ours = partial_softmax(q, k, v, lengths, backend="cudnn")
    assert_close(ours, plain(q, k, v, lengths))
    of_xla = attend_segment(q[1:], Segment(k[1:], v[1:]), jnp.arange(256) < lengths[1:, :, None])
    assert_close(Partial(*(x[1:] for x in ours)), [np.asarray(x) for x in of_xla])


def test_the_tpu_kernel_takes_query_rows_by_blocks(monkeypatch):
    """A chunk of a prompt has thousands, whose scores VMEM does not hold."""
    monkeypatch.setattr("rrm_jax.models.ragged_attention._MOST_QUERIES", 16)
    q, k, v = draw(3, 3, 128, rows=40)
    lengths = np.stack([np.arange(40) + 1, np.full(40, 128), np.zeros(40, int)]).astype(np.int32)
    assert_close(ragged_partial(q, k, v, jnp.asarray(lengths)), plain(q, k, v, lengths))


@of_both
def test_bfloat16_is_off_by_the_rounding_of_the_weights_only(backend):
    """Products and sums are float32; each weight is rounded once, by at most 2⁻⁹ of itself."""
    lengths = jnp.array([1, 640, 77, 0], jnp.int32)
    q, k, v = draw(1, 4, 640, jnp.bfloat16)
    largest = float(jnp.max(jnp.abs(v.astype(jnp.float32))))
    ours = partial_softmax(q, k, v, lengths, backend=backend)
    assert_close(ours, plain(q, k, v, lengths), out=2**-9 * largest + 1e-5)


@of_both
def test_query_rows_may_see_different_numbers_of_columns(backend):
    """Three new tokens × 7 heads a row, causal among themselves, one row of which is empty."""
    tokens, lengths_B = 3, np.array([0, 5, 126, 190])
    lengths_BG = np.repeat(lengths_B[:, None] + np.arange(tokens), G, axis=1)
    lengths_BG[0] = 0
    q, k, v = draw(2, 4, 192, rows=tokens * G)
    ours = partial_softmax(q, k, v, jnp.asarray(lengths_BG, jnp.int32), backend=backend)
    assert_close(ours, plain(q, k, v, lengths_BG))


@of_both
def test_what_lies_beyond_the_filled_columns_never_leaks(backend):
    lengths = jnp.array([0, 1, 200, 512], jnp.int32)
    q, k, v = draw(3, 4, 1024)
    empty = (jnp.arange(1024) >= lengths[:, None])[:, None, :, None]
    run = functools.partial(partial_softmax, backend=backend)
    clean = run(q, jnp.where(empty, 0, k), jnp.where(empty, 0, v), lengths)
    for filling in (jnp.nan, jnp.inf, -3e38):
        dirty = run(q, jnp.where(empty, filling, k), jnp.where(empty, filling, v), lengths)
        for ours, theirs in zip(dirty, clean, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_grid_holds_the_filled_blocks_and_no_others():
    lengths = jnp.array([0, 1, 64, 65, 256], jnp.int32)
    steps, row, block, _ = _work_list(lengths, 64, 4)
    visited = list(zip(np.asarray(row)[: int(steps)], np.asarray(block)[: int(steps)], strict=True))
    assert visited == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)]
    assert np.asarray(row).max() < 5  # what follows is never out of bounds either
    assert np.asarray(block).max() < 4


@pytest.mark.parametrize(
    ("programs", "columns", "tile", "splits"),
    [(256, 2048, 16, 4), (32, 2048, 16, 16), (32, 2048, 64, 8), (32, 192, 16, 1), (2048, 4096, 16, 1)],
)
def test_rows_are_split_until_they_fill_a_gpu(programs, columns, tile, splits):
    """7B: 64 rows × 4 heads, 8 prompts × 4 heads; a share never falls below 128 columns, or 4 a query row."""
    assert _splits(programs, columns, tile) == splits


@of_both
def test_merged_parts_are_the_whole(backend):
    """A row's columns cut in two at 128, where either part may be empty: within 1e-5 of the whole (float32)."""
    lengths = jnp.array([300, 128, 90, 1], jnp.int32)
    q, k, v = draw(4, 4, 320)
    run = functools.partial(partial_softmax, backend=backend)
    head = run(q, k[:, :, :128], v[:, :, :128], jnp.minimum(lengths, 128))
    tail = run(q, k[:, :, 128:], v[:, :, 128:], jnp.maximum(lengths - 128, 0))
    whole = plain(q, k, v, lengths)
    assert_close(merge(head, tail), whole)
    assert_close(merge(tail, head), whole)


@of_both
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_narrow_columns_are_scaled_back(dtype, backend):
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
    scales = {"k_scale_BKS": dirty[0], "v_scale_BKS": dirty[1]}
    assert_close(partial_softmax(q, k, v, lengths, **scales, backend=backend), whole)


@of_both
@pytest.mark.parametrize("scaled", [False, True])
def test_each_device_runs_its_own_rows_and_heads(scaled, backend):
    """Rows over data × fsdp, heads over tensor: bitwise what one device computes."""
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    lengths = jnp.array([0, 1, 64, 65, 128, 7, 100, 33], jnp.int32)
    q, k, v = draw(6, 8, 128, kv_heads=4)
    scales = {}
    if scaled:
        k, v = (jnp.round(20 * x).astype(jnp.int8) for x in (k, v))
        scales = {f"{name}_scale_BKS": jnp.full((8, 4, 128), 0.05) for name in "kv"}
    alone = partial_softmax(q, k, v, lengths, **scales, backend=backend)
    with jax.set_mesh(mesh):
        run = jax.jit(functools.partial(ragged_partial, backend=backend, spec=partition_spec))
        placed = run(q, k, v, lengths, **scales)
    assert tuple(placed.out.sharding.spec)[:2] == tuple(partition_spec(("batch", "kv_heads")))
    for ours, theirs in zip(placed, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(7, jnp.bfloat16), (28, jnp.bfloat16), (7, jnp.int8), (7, jnp.float8_e4m3fn)]
)
@pytest.mark.parametrize(
    ("backend", "platform", "call"),
    [
        ("splash", "tpu", "tpu_custom_call"),
        ("cudnn", "cuda", "__gpu$xla.gpu.triton"),
    ],
)
def test_the_kernels_lower_for_their_platforms(rows, dtype, backend, platform, call):
    """Block shapes and operations that a platform lacks are refused here; its compiler needs its own toolchain."""
    shape, scaled = (64, 4, 2048, N), narrow(dtype)
    cache = jax.ShapeDtypeStruct(shape, dtype)
    scale = jax.ShapeDtypeStruct(shape[:3], jnp.float32)
    q = jax.ShapeDtypeStruct((64, 4, rows, N), jnp.bfloat16)

    def run(q, k, v, lengths, *scales):
        named = dict(zip(("k_scale_BKS", "v_scale_BKS"), scales, strict=False))
        return ragged_partial(q, k, v, lengths, interpret=False, backend=backend, **named)

    lengths = jax.ShapeDtypeStruct((64, rows), jnp.int32)
    h200 = AbstractMesh((1,), ("one",), abstract_device=AbstractDevice("NVIDIA H200", None, platform="gpu"))
    with jax.sharding.use_abstract_mesh(h200) if platform == "cuda" else contextlib.nullcontext():
        traced = jax.jit(run).trace(q, cache, cache, lengths, *[scale, scale] if scaled else [])
        assert call in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("backend", "capability", "shape", "dtype", "taken"),
    [
        ("splash", None, (2, 2, 64, 128), jnp.bfloat16, True),
        ("splash", None, (2, 2, 64, 64), jnp.bfloat16, False),
        ("splash", None, (2, 2, 96, 128), jnp.bfloat16, False),
        ("cudnn", "9.0", (2, 2, 64, 64), jnp.bfloat16, True),
        ("cudnn", "9.0", (2, 2, 64, 96), jnp.bfloat16, False),
        ("cudnn", "9.0", (2, 2, 32, 64), jnp.bfloat16, False),
        ("cudnn", "10.0", (2, 2, 64, 128), jnp.float8_e4m3fn, True),
        ("cudnn", "8.0", (2, 2, 64, 128), jnp.float8_e4m3fn, False),
        ("cudnn", "8.0", (2, 2, 64, 128), jnp.int8, True),
    ],
)
def test_which_caches_the_kernels_are_used_for(backend, capability, shape, dtype, taken, monkeypatch):
    device = types.SimpleNamespace() if capability is None else types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert takes(jax.ShapeDtypeStruct(shape, dtype), backend) is taken


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compiles")
def test_the_sampler_writes_the_same_text_with_the_gpu_kernel(monkeypatch):
    """Two rows on each of two prompts, greedy, float32. Full attention stays XLA's: cuDNN has no interpreter."""
    monkeypatch.setattr(decoder, "attend", lambda *x, backend, **how: attention.attend(*x, backend="xla", **how))
    kernel = mock.Mock(wraps=ragged_attention_gpu.on_device)
    monkeypatch.setattr(ragged_attention_gpu, "on_device", kernel)
    config = tiny_config(head_dim=64, num_layers=1)
    params = realistic_params(config)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, config.vocab_size, n).tolist()) for n in (5, 30)]
    requests = [
        Request(f"{at}", ids, Decoding(0.0, max_new_tokens=24), sample=sample)
        for at, ids in enumerate(prompts)
        for sample in range(2)
    ]

    def texts(backend):
        sampler = Sampler(config, params, batch_size=4, block=8, options=decoder.Options(attention=backend))
        return {(c.request.id, c.request.sample): c.token_ids for c in sampler.generate(requests)}

    assert texts("cudnn") == texts("xla")
    assert {(4, 2, 2, 64), (2, 2, 4, 64)} <= {call.args[0].shape for call in kernel.call_args_list}  # rows, prompts


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
