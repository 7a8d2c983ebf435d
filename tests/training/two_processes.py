"""One of two processes with two CPU devices each: a run that only the second one is told to stop, in step 4.

python -m tests.training.two_processes RANK PORT HOME OUTPUT
"""

import os
import signal
import sys
from pathlib import Path

import jax

from rrm_jax.training import run as run_module

from .stub_run import StubLearner, loop, settings

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank, port, home, output = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    run_module.Learner = StubLearner  # pyrefly: ignore
    said: list[str] = []

    def during(run, step):
        if step == 4 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        run.check_stop()

    run = loop(settings(home, output, checkpoint__every=2), during=during, said=said)
    print("\n" + said[-1], flush=True)
