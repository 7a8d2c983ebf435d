"""A run that is asked to stop: by SIGTERM, as schedulers do before they kill, or by Ctrl-C."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Leaves a training loop where its state is that of the last finished step. `Run` catches it, and saves.

    Not an Exception, so that nothing that survives errors survives it.
    """


class StopSignals:
    """While entered, SIGTERM and the first SIGINT are only noted; a second SIGINT is a KeyboardInterrupt.

    Python gives signals to its main thread: entered in another one, this notes nothing.
    """

    def __init__(self) -> None:
        self.noted: str | None = None
        self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.noted = signal.Signals(number).name
        again = ""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            again = " (Ctrl-C once more: at once)"
        # Not by print, which the signal may have interrupted.
        os.write(2, f"{self.noted}: the run is saved at the next safe point and ends there{again}\n".encode())

    def agree(self) -> bool:
        """Whether any process has noted a signal. With several, all must call this, and all get the same answer."""
        if self.agreed or jax.process_count() == 1:
            self.agreed = self.agreed or self.noted is not None
        else:
            from jax.experimental import multihost_utils

            noted = np.asarray(self.noted is not None, np.int32)
            self.agreed = bool(np.max(multihost_utils.process_allgather(noted)))
        return self.agreed
