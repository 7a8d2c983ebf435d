"""Attention backends: which one is chosen, and that each computes what `xla` does.

Splash runs here in Pallas' interpreter, on values and gradients. cuDNN's kernels need a GPU: what can be shown without
one is that they are called with arguments they accept, and that those arguments mean the same in JAX's reference.
"""

import functools

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.models.attention import NO_WINDOW, attend, choose_backend
from rrm_jax.models.decoder import Options, forward
from rrm_jax.models.params import is_spec, param_specs
from rrm_jax.parallel.mesh import MeshShape, batch_sharding, make_mesh, param_sharding, partition_spec
from rrm_jax.testing import realistic_params, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compiles")

HEAD_128 = tiny_config(head_dim=128)
HEAD_96 = tiny_config(head_dim=96)
HEAD_256 = tiny_config(head_dim=256)
HEAD_12 = tiny_config(head_dim=12)
WINDOWED = tiny_config(head_dim=128, sliding_window=4, window_layers=(False, True))


@pytest.mark.parametrize(
    ("config", "dtype", "platform", "requested", "backend", "reason"),
    [
        (HEAD_128, "float32", "cpu", "auto", "xla", "default on cpu"),
        (HEAD_128, "bfloat16", "rocm", "auto", "xla", "default on rocm"),
        (HEAD_128, "bfloat16", "gpu", "auto", "cudnn", "default on gpu"),
        (HEAD_128, "bfloat16", "cuda", "auto", "cudnn", "default on cuda"),
        (WINDOWED, "float16", "gpu", "auto", "cudnn", "default on gpu"),
        (HEAD_128, "float32", "gpu", "auto", "xla", "float32, not bfloat16"),
        (HEAD_256, "bfloat16", "gpu", "auto", "xla", "head_dim 256"),
        (HEAD_12, "bfloat16", "gpu", "auto", "xla", "head_dim 12"),
        (HEAD_128, "bfloat16", "tpu", "auto", "splash", "default on tpu"),
        (HEAD_128, "float32", "tpu", "auto", "splash", "default on tpu"),
        (HEAD_96, "bfloat16", "tpu", "auto", "xla", "head_dim 96"),
        (WINDOWED, "bfloat16", "tpu", "auto", "xla", "sliding-window"),
        (HEAD_128, "bfloat16", "tpu", "xla", "xla", "asked for"),
        (HEAD_128, "bfloat16", "gpu", "cudnn", "cudnn", "asked for"),
        (HEAD_128, "float32", None, "auto", "xla", "default on cpu"),
    ],
)
def test_the_backend_chosen_and_why(config, dtype, platform, requested, backend, reason):
    choice = choose_backend(config, dtype, platform, requested)
    assert choice.backend == backend
    assert reason in choice.reason
    assert str(choice) == f"attention: {backend} ({choice.reason})"


@pytest.mark.parametrize(
    ("config", "dtype", "platform", "requested", "message"),
    [
        (HEAD_128, "bfloat16", "cpu", "cudnn", "'cudnn' cannot be used: platform is cpu"),
        (HEAD_128, "float32", "gpu", "cudnn", "'cudnn' cannot be used: compute dtype is float32"),
        (HEAD_128, "bfloat16", "gpu", "splash", "'splash' cannot be used: platform is gpu"),
        (WINDOWED, "bfloat16", "tpu", "splash", "'splash' cannot be used: sliding-window"),
        (HEAD_128, "bfloat16", "tpu", "flash", "'flash' is not one of auto, xla, cudnn, splash"),
    ],
)
def test_a_backend_that_was_asked_for_and_cannot_run_is_refused(config, dtype, platform, requested, message):
    with pytest.raises(RrmError, match=message):
        choose_backend(config, dtype, platform, requested)


def inputs(time: int, dtype=jnp.float32, heads=4, kv_heads=2, width=64):
    """Four rows: whole, two packed sequences, packed and padded, and one that is nearly all padding."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in ((4, time, heads, width), (4, kv_heads, time, width), (4, kv_heads, time, width))
    )
    segments, positions = np.zeros((4, time), np.int32), np.zeros((4, time), np.int32)
    for b, lengths in enumerate([(time,), (50, time - 50), (30, 40), (3,)]):
        start = 0
        for label, length in enumerate(lengths, start=1):
            segments[b, start : start + length] = label
            positions[b, start : start + length] = np.arange(length)
            start += length
    return q, k, v, positions, segments


def output_and_gradients(backend, q, k, v, positions, segments, window=NO_WINDOW):
    """Outputs at real tokens, and the gradients of a function of them alone."""

    def value(q, k, v):
        out = attend(q, k, v, positions, positions, segments, segments, window, backend=backend)
        real = jnp.where(segments[..., None, None] > 0, out, 0).astype(jnp.float32)
        return jnp.sum(jnp.sin(real)), real

    (_, real), gradients = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [real, *gradients]


def assert_all_close(got, expected, tolerance):
    """max |Δ| within `tolerance` of the standard deviation."""
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * b.std()


def test_splash_equals_xla_on_packed_ragged_rows():
    batch = inputs(200)  # padded to 256 inside
    assert_all_close(output_and_gradients("splash", *batch), output_and_gradients("xla", *batch), 2e-5)


def test_splash_on_a_mesh_within_the_decoder_equals_xla_on_one_device():
    config = tiny_config(head_dim=64)
    params = realistic_params(config)
    _, _, _, positions, segments = inputs(128)
    tokens = np.random.default_rng(1).integers(0, 64, size=(4, 128), dtype=np.int32)

    def loss(options, params, tokens, positions, segments):
        hidden, _ = forward(config, params, tokens, positions, segments, options)
        return jnp.sum(jnp.sin(jnp.where(segments[..., None] > 0, hidden, 0)))

    def gradients(options):
        return jax.jit(jax.value_and_grad(functools.partial(loss, options)))

    expected = gradients(Options())(params, tokens, positions, segments)
    mesh = make_mesh(MeshShape(2, 2, 2))
    placement = jax.tree.map(lambda s: param_sharding(mesh, s), param_specs(config, stacked=True), is_leaf=is_spec)
    placed = jax.device_put((params, tokens, positions, segments), (placement, *[batch_sharding(mesh)] * 3))
    with jax.set_mesh(mesh):
        got = gradients(Options(attention="splash", remat="full", spec=partition_spec))(*placed)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4)
    assert_all_close(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), 1e-4)


def test_prefixes_stay_with_rows_that_are_padded_for_a_backend(monkeypatch):
    """Segments 2 and 3 of an odd row go on from segment 1; float32, within 2e-5 of the standard deviation."""
    real = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *args, implementation, **how: real(*args, implementation="xla", **how)
    )
    q, k, v, _, _ = inputs(97)
    segments = np.tile(np.repeat([1, 2, 3], [30, 30, 37]).astype(np.int32), (4, 1))
    prefixes = np.ones_like(segments)
    positions = np.tile(
        np.concatenate([np.arange(30), 30 + np.arange(30), 30 + np.arange(37)]).astype(np.int32), (4, 1)
    )

    def out(backend, prefixes):
        row = q, k, v, positions, positions, segments, segments, NO_WINDOW
        return attend(*row, q_prefixes_BT=prefixes, backend=backend)

    assert_all_close([out("cudnn", prefixes)], [out("xla", prefixes)], 2e-5)
    assert np.abs(out("xla", prefixes) - out("xla", segments)).max() > 0.1


@pytest.mark.parametrize("window", [NO_WINDOW, 7])
def test_what_cudnn_is_given_means_the_same_to_jax_reference(monkeypatch, window):
    """The same call, answered by JAX's own XLA implementation: layouts, mask form, scale, heads per key/value head."""
    real = jax.nn.dot_product_attention
    asked = []

    def answer(*args, implementation, **kwargs):
        asked.append(implementation)
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    batch = inputs(97)
    got = output_and_gradients("cudnn", *batch, window=window)
    assert asked
    assert set(asked) == {"cudnn"}
    assert_all_close(got, output_and_gradients("xla", *batch, window=window), 2e-5)


def test_cudnn_accepts_its_arguments_forward_and_backward(monkeypatch):
    """Lowered for CUDA, not run. An odd length is padded: with a mask the backward kernel takes even ones only."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)  # there is no cuDNN library here to ask
    q, k, v, positions, segments = inputs(97, jnp.bfloat16)

    def value(q, k, v):
        out = attend(q, k, v, positions, positions, segments, segments, NO_WINDOW, backend="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(value, argnums=(0, 1, 2))).trace(q, k, v)
    calls = [line for line in traced.lower(lowering_platforms=("cuda",)).as_text().splitlines() if "__cudnn$" in line]
    forward_call, backward_call = calls
    arguments = "tensor<4x98x4x64xbf16>, tensor<4x98x2x64xbf16>, tensor<4x98x2x64xbf16>"
    assert "@__cudnn$fmhaScaleBiasSoftmax(" in forward_call
    assert f": ({arguments}, tensor<4x1x98x98xbf16>) -> (tensor<4x4x98x64xbf16>" in forward_call
    assert "@__cudnn$fmhaScaleBiasSoftmaxBackward(" in backward_call
    assert "-> (tensor<4x4x98x64xbf16>, tensor<4x2x98x64xbf16>, tensor<4x2x98x64xbf16>, " in backward_call
    assert "98x98" not in backward_call.split("->")[1]  # no gradient of the mask is computed
