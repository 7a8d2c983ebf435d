"""The process that verifies: `python -m rrm_jax.data.verifier_process SECONDS BYTES`, for `verifier_pool`.

It imports what is slow once and answers jobs, JSON lines `[verifier, response, answer]`, one by one with a line each.
A child, forked in milliseconds, does the work under limits that the system keeps, so that no text can evade them, and
is replaced when it is ended: of memory, and of processor time, so that a busy machine does not change what is found.
"""

import contextlib
import json
import os
import resource
import signal
import sys

from rrm_jax.data.verifiers import Outcome, resolve

_WALL = 20
"""So many times the limit of processor time may pass by the clock, for what waits instead of working."""


class Child:
    """A forked process that answers lines, with `seconds` of processor time a line and `memory` bytes in all."""

    def __init__(self, seconds: float, memory: int):
        jobs, self._jobs = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._jobs)
            os.close(self._answers)
            _work(jobs, answers, seconds, memory)
        os.close(jobs)
        os.close(answers)
        self._reader = os.fdopen(self._answers, "r", encoding="ascii")

    def ask(self, line: bytes) -> str | None:
        """The answer's line; None when the child died."""
        with contextlib.suppress(BrokenPipeError):
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._jobs, rest) :]
        return self._reader.readline() or None

    def end(self) -> Outcome:
        """Reaps a dead child: what ended it."""
        os.close(self._jobs)
        self._reader.close()
        _, status = os.waitpid(self._pid, 0)
        out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        return Outcome.TIMED_OUT if out_of_time else Outcome.CRASHED


def _work(jobs: int, answers: int, seconds: float, memory: int) -> None:
    """The child's whole life; it never returns."""
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        with contextlib.suppress(OSError, ValueError):  # not every system has every limit
            resource.setrlimit(what, (most, most))
    # The default action of both signals ends the process, even within one long call that no handler could interrupt.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        with os.fdopen(jobs, "rb") as lines:
            for line in lines:
                signal.setitimer(signal.ITIMER_PROF, seconds)
                signal.setitimer(signal.ITIMER_REAL, _WALL * seconds)
                outcome = _resolve_and_verify(line)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                os.write(answers, f"{outcome}\n".encode())
    except BaseException:  # MemoryError among them: a process that had no memory left is not to be gone on with
        os._exit(1)
    os._exit(0)


def _resolve_and_verify(line: bytes) -> Outcome:
    name, response, answer = json.loads(line)
    return resolve(name)(response, answer)


def _main() -> None:
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, whose end ends this
    import math_verify  # noqa: F401  # the slow part, once for all children

    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    print("ready", file=answers, flush=True)
    child: Child | None = None
    for line in sys.stdin.buffer:
        child = child or Child(seconds, memory)
        answer = child.ask(line)
        if answer is None:
            answer, child = f"{child.end()}\n", None
        answers.write(answer)
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
