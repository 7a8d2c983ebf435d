"""One process of a job that joins, looks whether all were started alike, and ends.

python -m tests.parallel.joining CASE OUTPUT
"""

import sys
import time

from rrm_jax.errors import RrmError
from rrm_jax.parallel import preflight as module
from rrm_jax.parallel.distributed import is_first, start


def run(case: str, output: str) -> None:
    settings = {"seed": 0, "optimizer.learning_rate": 1e-6}
    with start("auto", print):
        if not is_first():
            if case == "alike":
                clock = time.time
                module.time.time = lambda: clock() - 60
            elif case == "config":
                settings["optimizer.learning_rate"] = 2e-6
            elif case == "unseen":
                module._SEEN_SECONDS = 0.5
                elsewhere = module.Path  # as on a host with a disk of its own
                module.Path = lambda path: elsewhere(str(path).replace(".rrm_can_write", ".of_this_host"))
        module.preflight(settings, output, print)


if __name__ == "__main__":
    try:
        run(sys.argv[1], sys.argv[2])
    except RrmError as error:
        print(f"error: {error}")
        sys.exit(2)
