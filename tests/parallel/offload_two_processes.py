"""One of two processes with two CPU devices each: sends an array that spans both to the host and back.

python -m tests.parallel.offload_two_processes RANK PORT
"""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rrm_jax.parallel.mesh import MeshShape, make_mesh
from rrm_jax.parallel.offload import HOST, to_device, to_host

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank, port = int(sys.argv[1]), sys.argv[2]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    mesh = make_mesh(MeshShape(1, 4, 1))
    everything = np.arange(32, dtype=np.float32).reshape(8, 4)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    array = jax.make_array_from_callback((8, 4), sharding, lambda index: everything[index])
    assert not array.is_fully_addressable
    host = to_host({"x": array})
    assert array.is_deleted()
    assert host["x"].sharding == sharding.with_memory_kind(HOST)
    back = to_device(host, {"x": sharding})["x"]
    assert host["x"].is_deleted()
    assert back.sharding == sharding
    for shard in back.addressable_shards:
        assert np.array_equal(shard.data, everything[shard.index])
    print("\nsame", flush=True)
