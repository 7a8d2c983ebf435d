"""Processes to be killed: forked from one server that has the slow imports behind it."""

import multiprocessing
import signal
from multiprocessing.connection import Connection

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["rrm_jax.checkpoints.convert", "rrm_jax.checkpoints.training_state"])
_PATIENCE = 120  # seconds, on a machine busy with other things


class Victim:
    """Runs `target(connection, *args)` in a process of its own, whose JAX has one CPU device."""

    def __init__(self, target, *args):
        self._connection, theirs = _SERVER.Pipe()
        self._process = _SERVER.Process(target=target, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def hear(self):
        """The next thing it sends."""
        assert self._connection.poll(_PATIENCE), "the process says nothing"
        return self._connection.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        self._connection.close()


def wait_for_death(connection: Connection) -> None:
    connection.recv()  # nothing is ever sent
