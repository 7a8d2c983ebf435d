"""One process of a job that joins, and looks several times whether all were started alike; the last time one fails.

python -m tests.parallel.joining OUTPUT
"""

import errno
import sys
import time

from rrm_jax.errors import RrmError
from rrm_jax.parallel import preflight as module
from rrm_jax.parallel.distributed import is_first, start


def look(settings: dict, output: str) -> None:
    try:
        module.preflight(settings, output, print)
    except RrmError as error:
        print(f"error: {error}")


def run(output: str) -> None:
    with start("auto", print):
        other, clock, path = not is_first(), time.time, module.Path
        if other:
            module.time.time = lambda: clock() - 60
        look({"seed": 0}, output)
        print("---")
        look({"seed": 0, "optimizer.learning_rate": 2e-6 if other else 1e-6}, output)
        print("---")
        if other:  # as on a host with a disk of its own
            module._SEEN_SECONDS = 0.5
            module.Path = lambda given: path(str(given).replace(".rrm_can_write", ".of_this_host"))
        look({}, output)
        print("---", flush=True)
        if other:
            module.os.fsync = full
        module.preflight({}, output, print)


def full(fd: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


if __name__ == "__main__":
    try:
        run(sys.argv[1])
    except RrmError as error:
        print(f"error: {error}")
        sys.exit(2)
