"""Verifying many responses in processes of their own, in order, whatever one of them does to its process."""

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rrm_jax.data.answers import last_part, strip_thinking
from rrm_jax.data.verifiers import Outcome, resolve
from rrm_jax.errors import RrmError


@dataclasses.dataclass(frozen=True)
class Job:
    """Does `response` come to `answer`, by the rule `verifier` (see `verifiers.resolve`)?"""

    response: str
    answer: str
    verifier: str = "auto"


class VerifierPool:
    """`workers` processes, started when first needed. A context manager; `close` ends them.

    A job may use `seconds` of processor time and its process `memory` bytes; one that wants more is ended by the
    system, and its outcome is TIMED_OUT or CRASHED. The thinking before a response's answer and all but the last
    100,000 characters of it are not looked at, nor sent. At most `ahead` jobs are taken before the oldest is answered.
    """

    def __init__(self, workers: int = 2, seconds: float = 10.0, memory: int = 2 * 2**30, ahead: int = 1_000):
        if workers < 1 or ahead < workers or seconds <= 0:
            raise ValueError("a pool needs at least one worker, as many jobs ahead, and time")
        self.workers, self.seconds, self.memory, self.ahead = workers, seconds, memory, ahead
        self._processes: list[_Process] = []

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; later jobs would start new ones."""
        for process in self._processes:
            process.close()
        self._processes = []

    def verify_all(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """The outcomes, in the order of the jobs. Not for two callers at once.

        Raises RrmError for a verifier that does not exist, and where a process cannot be started.
        """
        waiting = enumerate(jobs)
        under_way: dict[_Process, tuple[int, Job]] = {}
        done: dict[int, Outcome] = {}
        again: list[tuple[int, Job]] = []
        tried: set[int] = set()
        following = 0
        try:
            with selectors.DefaultSelector() as selector:
                while True:
                    while len(under_way) < self.workers and len(under_way) + len(done) < self.ahead:
                        numbered = again.pop() if again else next(waiting, None)
                        if numbered is None:
                            break
                        resolve(numbered[1].verifier)
                        process = self._idle(under_way)
                        process.send(numbered[1])
                        under_way[process] = numbered
                        selector.register(process.fileno, selectors.EVENT_READ, process)
                    if not under_way:
                        return
                    for key, _ in selector.select():
                        process = key.data
                        selector.unregister(process.fileno)
                        number, job = under_way.pop(process)
                        answer = process.receive()
                        if (
                            answer is None and number not in tried
                        ):  # the process, not its child: perhaps no text's fault
                            tried.add(number)
                            again.append((number, job))
                        else:
                            done[number] = Outcome.CRASHED if answer is None else Outcome(answer)
                    while following in done:
                        yield done.pop(following)
                        following += 1
        finally:  # a caller that stops early leaves answers behind that are no one's
            for process in under_way:
                process.close()

    def _idle(self, under_way: "dict[_Process, tuple[int, Job]]") -> "_Process":
        self._processes = [process for process in self._processes if process in under_way or process.alive()]
        for process in self._processes:
            if process not in under_way:
                return process
        self._processes.append(_Process(self.seconds, self.memory))
        return self._processes[-1]


class _Process:
    """One `verifier_process`."""

    def __init__(self, seconds: float, memory: int):
        package = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        # -P: a file named like a module in the working directory is not that module.
        command = [sys.executable, "-P", "-m", "rrm_jax.data.verifier_process", str(seconds), str(memory)]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._jobs, self._answers, self.ready = self._popen.stdin, self._popen.stdout, False
        self.fileno = self._answers.fileno()

    def alive(self) -> bool:
        if self._popen.poll() is None:
            return True
        self.close()
        return False

    def send(self, job: Job) -> None:
        response = last_part(strip_thinking(job.response))
        with contextlib.suppress(BrokenPipeError):  # it died: so says the answer that does not come
            self._jobs.write(json.dumps([job.verifier, response, job.answer]).encode() + b"\n")
            self._jobs.flush()

    def receive(self) -> str | None:
        """The answer; None where the process is gone. The first one comes behind a line that says it has started."""
        if not self.ready:
            if self._answers.readline() != b"ready\n":
                raise RrmError(f"a verifier process cannot be started; it ended with {self._popen.wait()}, see above")
            self.ready = True
        return self._answers.readline().decode().strip() or None

    def close(self) -> None:
        self._popen.kill()
        for file in (self._jobs, self._answers):
            with contextlib.suppress(OSError):
                file.close()
        self._popen.wait()
