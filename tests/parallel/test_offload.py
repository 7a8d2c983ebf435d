"""Trees go to host memory and come back: the same bits, the same placement, one copy at a time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rrm_jax.parallel.mesh import MeshShape, make_mesh, replicated
from rrm_jax.parallel.offload import HOST, to_device, to_host


def make_tree():
    """What an optimiser's state may hold: every width, NaNs with a payload, negative zero, denormals, a PRNG key."""
    mesh = make_mesh(MeshShape(2, 2, 2))
    bits = np.random.default_rng(0).integers(0, 2**32, (8, 16), dtype=np.uint32)
    bits[0, :4] = 0x80000000, 0x00000001, 0x7FC12345, 0xFF800000
    split = NamedSharding(mesh, PartitionSpec("fsdp", ("data", "tensor")))
    tree = {
        "float32": jax.device_put(bits.view(np.float32), split),
        "bfloat16": jax.device_put(bits.astype(np.uint16).view(jnp.bfloat16), split),
        "int8": jax.device_put(bits.astype(np.int8), split),
        "count": jax.device_put(np.int32(7), replicated(mesh)),
        "key": jax.device_put(jax.random.key(3), replicated(mesh)),
        "single": jax.device_put(np.float32([1, 2]), jax.devices()[1]),
    }
    return tree, jax.tree.map(lambda x: x.sharding, tree)


def contents(tree):
    plain = {name: jax.random.key_data(x) if name == "key" else x for name, x in tree.items()}
    return {name: (x.dtype, np.asarray(x).tobytes()) for name, x in plain.items()}


def flags(tree):
    return {x.is_deleted() for x in jax.tree.leaves(tree)}


def test_there_and_back_is_lossless_and_leaves_one_copy():
    tree, shardings = make_tree()
    before = contents(tree)
    host = to_host(tree)
    assert flags(tree) == {True}
    for there, sharding in zip(jax.tree.leaves(host), jax.tree.leaves(shardings), strict=True):
        assert there.sharding.memory_kind == HOST  # which CPU devices have as well
        assert there.sharding == sharding.with_memory_kind(HOST)
    assert contents(host) == before
    back = to_device(host, shardings)
    assert flags(host) == {True}
    assert jax.tree.map(lambda x: x.sharding, back) == shardings
    assert contents(back) == before


def test_what_is_in_place_already_stays():
    tree, shardings = make_tree()
    same = to_device(tree, shardings)
    assert all(a is b for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(same), strict=True))
    host = to_host(same)
    again = to_host(host)
    assert all(a is b for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(again), strict=True))
    assert flags(again) == {False}


def test_what_came_back_can_be_donated_and_sent_again():
    sharding = NamedSharding(make_mesh(MeshShape(2, 2, 2)), PartitionSpec("fsdp"))
    add = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=sharding)
    x = jax.device_put(np.zeros((8, 4), np.float32), sharding)
    for _ in range(3):
        x = to_host(add(to_device(x, sharding)))
    assert np.array_equal(x, np.full((8, 4), 3, np.float32))


@pytest.mark.thorough
def test_two_processes_keep_their_own_shards():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.parallel.offload_two_processes"]
    root = Path(__file__).parent.parent.parent
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    workers = [
        subprocess.Popen([*command, str(rank), str(port)], cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all(output.splitlines()[-1] == "same" for output in outputs)
