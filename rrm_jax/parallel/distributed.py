"""Many processes that are one job: they join before anything else, decide together, and none outlives the others.

JAX's own runtime does the work. Process 0 is its coordinator; every process sends it heartbeats. When they stop, or
the coordinator does, the runtime ends all other processes, and says in their logs which one was lost. What it leaves
to us is here: when to join, and how a process that fails by itself ends without waiting for the others.
"""

import contextlib
import itertools
import json
import math
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn

import jax

from rrm_jax.errors import RrmError
from rrm_jax.parallel.cluster import COORDINATOR, OWN, Job, find_job

Mode = Literal["auto", "on", "off"]
Report = Callable[[str], None]

JOIN_SECONDS = 300
"""How long the first processes wait for the last."""
HEARTBEAT_SECONDS = 15
"""A process that was silent for so long is lost, and the job ends."""
_MEET_SECONDS = 3  # for processes that all refuse the same input, to say so themselves
_END_SECONDS = 600  # for the first process, which may still be sending metrics, to end
_FAILED = "rrm/failed/"
_calls = itertools.count()  # a key of the store is written once


@contextlib.contextmanager
def start(mode: Mode, report: Report) -> Iterator[None]:
    """Joins the job's processes, if there are others, and ends with them. Before anything looks at devices.

    `auto` takes what RRM_COORDINATOR, RRM_PROCESSES and RRM_PROCESS say, or Slurm, Open MPI, a TPU VM or Kubernetes;
    where nothing tells of other processes this is the only one. That is an RrmError with `on`. `off`: the only one.

    An exception that leaves the block ends this process at once (as `rrm` would: 2 for an RrmError, 130 for Ctrl-C,
    1 otherwise), and with it, within seconds, the others.
    """
    if mode != "off":
        _join(mode, report)
    if not several():
        yield
        return
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        _end(error)
    _client().wait_at_barrier("rrm_done", _END_SECONDS * 1000)


def _join(mode: Mode, report: Report) -> None:
    job = find_job(os.environ)
    if job is not None and job.processes == 1:
        if mode == "on":
            raise RrmError(f"--distributed on, but {job.told_by} tells of one process only")
        return
    # Ours notes SIGTERM and saves (training/stopping.py); this one would swallow it.
    jax.config.update("jax_enable_preemption_service", False)
    arguments = {} if job is None else job.arguments
    if job is not None and "coordinator_address" in arguments:
        _not_by_proxy(arguments["coordinator_address"])
        who, address = arguments["process_id"], arguments["coordinator_address"]
        report(f"process {who} of {job.processes} joins the others at {address}")
    late = threading.Timer(JOIN_SECONDS - 10, _say_late, (report, job))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
            **arguments,
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        # With nothing given JAX says so by this error alone.
        told = job is not None or "should be defined" not in str(error)
        if told or mode == "on":
            raise RrmError(_cannot_tell(job, error, told)) from None
    finally:
        late.cancel()


def _cannot_tell(job: Job | None, error: Exception, told: bool) -> str:
    ours = f"set {', '.join(OWN)} in every process"
    if not told:
        return (
            f"--distributed on, but nothing tells which processes there are: {ours}, or start them by Slurm or mpirun"
        )
    return (
        f"cannot join the job of {job.told_by if job else 'this machine'}: {error}; {ours}, or give --distributed off"
    )


def _say_late(report: Report, job: Job | None) -> None:
    where = f" to {job.arguments['coordinator_address']}" if job and "coordinator_address" in job.arguments else ""
    report(
        f"not all processes have come{where} in {JOIN_SECONDS - 10} s, and this one ends soon. Was each started, and "
        f"with a number of its own? Can each reach process 0? ({COORDINATOR} must be an address that all hosts know)"
    )


def _not_by_proxy(address: str) -> None:
    """JAX's connection to process 0 would go by http_proxy, which knows nothing of the cluster's hosts."""
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return
    host = address.rsplit(":", 1)[0]
    before = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")  # noqa: SIM112
    os.environ["no_grpc_proxy"] = f"{before},{host}" if before else host  # noqa: SIM112


def _end(error: BaseException) -> NoReturn:
    """Ends this process, by itself where the others go on: leaving by JAX's door would be to wait for them."""
    refused = isinstance(error, RrmError | KeyboardInterrupt | SystemExit) and not _of_peers(error)
    told = str(error) if isinstance(error, RrmError) else f"{type(error).__name__}: {error}"
    code = 130 if isinstance(error, KeyboardInterrupt) else 2 if refused and isinstance(error, RrmError) else 1
    if not refused:
        traceback.print_exception(error)
        with contextlib.suppress(Exception):
            for _, first in _client().key_value_dir_get(_FAILED)[:1]:
                _say(f"another process failed: {first}")
        # A collective fails when its peer is gone. The runtime then soon names it, and ends this process too.
        _say(f"{myself()} failed; waiting for word of a lost process, {HEARTBEAT_SECONDS + 2} s at most")
    met = False
    with contextlib.suppress(Exception):
        first = error.first if isinstance(error, _PeerFailed) else f"{myself()}: {told[:2000]}"
        _client().key_value_set(f"{_FAILED}{_rank()}", first)
        seconds = _MEET_SECONDS if refused else HEARTBEAT_SECONDS + 2
        _client().wait_at_barrier("rrm_refused" if refused else "rrm_failed", seconds * 1000)
        met = True
    if refused and met:
        raise error
    if refused:
        _say(f"error: {told}")
    _say(f"{myself()} ends, and the job with it")
    sys.stdout.flush()
    os._exit(code)


class _PeerFailed(RrmError):
    """`first` names the process that failed by itself, and says why: also where word of it came by others."""

    def __init__(self, first: str):
        super().__init__(f"another process failed: {first}")
        self.first = first


def _of_peers(error: BaseException) -> bool:
    """Whether it is for want of a peer that something failed: a checkpoint could not be written, for example."""
    cause: BaseException | None = error
    while cause is not None:
        if re.search(r"gloo|nccl|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|heartbeat|barrier", str(cause), re.I):
            return True
        cause = cause.__cause__
    return False


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def myself() -> str:
    """For messages: the process and its host."""
    return f"process {_rank()} ({socket.gethostname()})"


def is_first() -> bool:
    """Whether this process speaks for all. Does not touch devices."""
    return _rank() == 0


def several() -> bool:
    """Whether there are other processes. Does not touch devices."""
    return jax.distributed.is_initialized() and processes() > 1


def processes() -> int:
    """How many the job has. Does not touch devices."""
    return _state().num_processes


def decide(name: str, mine: Any, judge: Callable[[list[Any]], Any]) -> Any:
    """What `judge` makes, on process 0, of every process's `mine`, in order; JSON. All processes must come here.

    By the coordinator's store, not by devices. Raises RrmError, with its reason, where a process failed meanwhile.
    """
    key = f"rrm/{next(_calls)}/{name}"
    _client().key_value_set(f"{key}/{_rank()}", json.dumps(mine))

    def all_said() -> list[Any]:
        return [json.loads(_get(f"{key}/{rank}", JOIN_SECONDS)) for rank in range(processes())]

    return from_first(name, lambda: judge(all_said()))


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns on process 0, on every process; JSON. All processes must come here.

    `make` may take as long as it likes: where process 0 is lost or fails, the others hear of it.
    """
    key = f"rrm/{next(_calls)}/{name}/from_first"
    if is_first():
        _client().key_value_set(key, json.dumps(make()))
    return json.loads(_get(key, math.inf))


def _get(key: str, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _client().blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        failed = _client().key_value_dir_get(_FAILED)
        if failed:
            raise _PeerFailed(failed[0][1])
        if time.monotonic() > deadline:
            raise RrmError(f"waited {seconds:.0f} s for another process ({key}); its log says what it does")


# JAX's client of the coordinator's store has no public name yet; Orbax and JAX's own multihost_utils use this one.
def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    return _state().client


def _rank() -> int:
    return _state().process_id
