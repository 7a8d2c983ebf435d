"""One of two processes with four CPU devices each: samples on a mesh over both, prints what it got as JSON.

python -m tests.sampling.two_processes RANK PORT
"""

import json
import sys

import jax

from rrm_jax.models.decoder import Options
from rrm_jax.parallel.mesh import MeshShape, make_mesh, partition_spec
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params, tiny_config

CONFIG = tiny_config(max_positions=512)


def make_requests() -> list[Request]:
    how = Decoding(0.8, max_new_tokens=20)
    return [Request(f"r{i}", tuple(range(1 + i, 6 + 2 * i)), how) for i in range(12)]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank, port = int(sys.argv[1]), sys.argv[2]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    mesh = make_mesh(MeshShape(2, 2, 2))
    sampler = Sampler(CONFIG, realistic_params(CONFIG), Options(spec=partition_spec), mesh, batch_size=8, block=32)
    found = {c.request.id: c.token_ids for c in sampler.generate(make_requests())}
    print("\n" + json.dumps(found), flush=True)
