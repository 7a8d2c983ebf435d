"""The decoder computes the same on every mesh, without resharding that XLA can do only by replicating."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.models.decoder import Options, decode, forward, prefill, unembed
from rrm_jax.models.params import is_spec, param_specs
from rrm_jax.parallel.mesh import MeshShape, batch_sharding, make_mesh, param_sharding, partition_spec
from rrm_jax.testing import realistic_params, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = tiny_config(num_heads=8, num_kv_heads=4)


def loss(options, params, tokens_BT, positions_BT, segments_BT, config=CONFIG):
    """The next token's mean negative log-likelihood over real tokens."""
    hidden, _ = forward(config, params, tokens_BT, positions_BT, segments_BT, options)
    logprobs = jax.nn.log_softmax(unembed(config, params, hidden[:, :-1]))
    chosen = jnp.take_along_axis(logprobs, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    weight = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
    return -jnp.sum(chosen * weight) / jnp.sum(weight)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, size=(8, 16), dtype=np.int32)
    positions, segments = np.zeros((8, 16), np.int32), np.zeros((8, 16), np.int32)
    for b in range(8):
        first, second = 5 + b % 4, 3 + b % 5
        positions[b, : first + second] = [*range(first), *range(second)]
        segments[b, : first + second] = [1] * first + [2] * second
    return tokens, positions, segments


def on(mesh, stacked: bool):
    placement = jax.tree.map(lambda s: param_sharding(mesh, s), param_specs(CONFIG, stacked), is_leaf=is_spec)
    return jax.device_put(realistic_params(CONFIG, stacked=stacked), placement), placement


@functools.cache
def alone():
    with jax.default_device(jax.devices()[0]):
        return jax.jit(jax.value_and_grad(functools.partial(loss, Options())))(realistic_params(CONFIG), *batch())


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 2), (2, 2, 2), (1, 2, 4)], ids=str)
def test_losses_and_gradients_are_those_of_one_device(shape):
    mesh = make_mesh(MeshShape(*shape), devices=jax.devices()[: int(np.prod(shape))])
    params, placement = on(mesh, stacked=True)
    step = functools.partial(loss, Options(remat="full", spec=partition_spec))
    with jax.set_mesh(mesh):
        inputs = jax.device_put(batch(), batch_sharding(mesh))
        got, gradients = jax.jit(jax.value_and_grad(step), out_shardings=(None, placement))(params, *inputs)
    expected, expected_gradients = alone()
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # float32

    def close(a, b):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)

    jax.tree.map(close, jax.device_get(gradients), jax.device_get(expected_gradients))


def test_prefill_and_decode_are_those_of_one_device():
    lengths, tokens = np.arange(3, 11, dtype=np.int32), batch()[0]

    def both(options, params, tokens, lengths):
        hidden, cache = prefill(CONFIG, params, tokens[:, :10], lengths, 12, options)
        after, cache = decode(CONFIG, params, cache, tokens[:, 10], options)
        return hidden, after, cache.layers[1].k

    expected = jax.jit(functools.partial(both, Options()))(realistic_params(CONFIG, stacked=False), tokens, lengths)
    mesh = make_mesh(MeshShape(2, 2, 2))
    params, _ = on(mesh, stacked=False)
    with jax.set_mesh(mesh):
        inputs = jax.device_put((tokens, lengths), batch_sharding(mesh))
        got = jax.jit(functools.partial(both, Options(spec=partition_spec)))(params, *inputs)
    for a, b in zip(jax.device_get(got), jax.device_get(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * b.std()  # float32


COMPILE_ON_MESHES = """
import dataclasses, functools, jax, sys
jax.config.update("jax_num_cpu_devices", 8)
from rrm_jax.models.decoder import Options
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import MeshShape, batch_sharding, make_mesh, param_sharding, partition_spec
from tests.parallel.test_sharded_decoder import CONFIG, loss

config = dataclasses.replace(CONFIG, vocab_size=1024, hidden_size=64)  # a table larger than what is looked up
FAST = {"xla_backend_optimization_level": 0}  # placement comes first, machine code does not matter here

def compile_step(shape, spec):
    mesh = make_mesh(MeshShape(*shape))
    params = abstract_params(config, "float32", True, functools.partial(param_sharding, mesh))
    placement = jax.tree.map(lambda x: x.sharding, params)
    ids = jax.ShapeDtypeStruct((8, 16), "int32", sharding=batch_sharding(mesh))
    step = functools.partial(loss, Options(remat="full", spec=spec), config=config)
    with jax.set_mesh(mesh):
        jax.jit(jax.value_and_grad(step), out_shardings=(None, placement)).lower(params, ids, ids, ids).compile(FAST)

def without_lookup(axes):
    return partition_spec(("batch", None, None) if axes[0] == "lookup_batch" else axes)

for shape in ((2, 2, 2), (1, 4, 2)):
    compile_step(shape, partition_spec)
print("now one that must warn", file=sys.stderr, flush=True)
compile_step((1, 4, 2), without_lookup)
"""


def replications(log: str) -> list[str]:
    """XLA's warnings about the program; those on a "fake_parameter" are about plans that it tried and may not use."""
    return [line for line in log.splitlines() if "full rematerialization" in line and "fake_parameter" not in line]


def test_xla_reshards_nothing_by_replicating_it():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16", "TF_CPP_MIN_LOG_LEVEL": "0"}
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_ON_MESHES], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ours, control = done.stderr.split("now one that must warn")
    assert replications(ours) == []
    # The warning is still there to be seen: the same step, with the looked-up embeddings resharded in one go.
    assert replications(control)
