"""Several processes of one command on this machine, as on several hosts. Plain Python 3.9."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

END_SECONDS = 30  # the bound within which a process ends by itself once another is lost
WRONG_INPUT = 2  # what `rrm` exits with when trying again would not help


class Told:
    """SIGTERM and Ctrl-C go on to the processes; a job that was told to end is not started again."""

    def __init__(self):
        self.signal, self.children = None, []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, _):
        self.signal = number
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)


def run(command: list, processes: int, devices: int, restarts: int) -> int:
    """Runs `command` so many times at once, each with so many CPU devices; the job's exit code.

    When a process fails, the others end within END_SECONDS or are killed, and the job is started again, `restarts`
    times at most, to go on where its last checkpoint is.
    """
    told = Told()
    for restart in range(restarts + 1):
        failed = _run_once(command if restart == 0 else resuming(command), processes, devices, told)
        if failed is None:
            return 0
        code = failed[1]
        if told.signal or code == WRONG_INPUT or restart == restarts:
            return 128 - code if code < 0 else code
        say(f"restart {restart + 1} of {restarts}")
    return 1


def resuming(command: list) -> list:
    """The command of a training run, such that it goes on; any other as it is."""
    known = command[1:2] == ["train"] and not {"--resume", "--auto-resume"} & set(command)
    return [*command, "--auto-resume"] if known else command


def _run_once(command, processes, devices, told):
    """(process, exit code) of the first that failed, or None."""
    children, readers = told.children, []
    children.clear()
    address = f"127.0.0.1:{free_port()}"
    for number in range(processes):
        child = subprocess.Popen(
            command,
            env=environment(os.environ, address, processes, number, devices),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C comes by us, once
            preexec_fn=_end_with_parent,
        )
        children.append(child)
        if told.signal:  # in the midst of starting them
            child.send_signal(told.signal)
        for source, target in ((child.stdout, sys.stdout.buffer), (child.stderr, sys.stderr.buffer)):
            readers.append(threading.Thread(target=_prefix, args=(number, source, target), daemon=True))
            readers[-1].start()
    failed = _wait(children)
    for reader in readers:
        reader.join(5)
    return failed


def _wait(children):
    failed, since = None, 0.0
    while any(child.poll() is None for child in children):
        if failed is None:
            failed = _first_failed(children)
            if failed is not None:
                since = time.monotonic()
                say(f"process {failed[0]} {how(failed[1])}; the others end")
        elif time.monotonic() - since > END_SECONDS:
            for number, child in enumerate(children):
                if child.poll() is None:
                    say(f"process {number} did not end in {END_SECONDS} s, and is killed")
                    child.kill()
        time.sleep(0.05)
    if failed is None:
        failed = _first_failed(children)
        if failed is not None:
            say(f"process {failed[0]} {how(failed[1])}")
    else:
        say(f"all have ended, {time.monotonic() - since:.1f} s later")
    return failed


def _first_failed(children):
    """Of several found at once the one that the others follow from: JAX aborts those that have lost a peer."""
    codes = [(number, child.returncode) for number, child in enumerate(children) if child.poll()]
    killed = [found for found in codes if found[1] < 0 and found[1] != -signal.SIGABRT]
    refused = [found for found in codes if found[1] == WRONG_INPUT]
    return next(iter(killed + refused + codes), None)


def how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def environment(base, address: str, processes: int, number: int, devices: int) -> dict:
    """What one process is told: its place in the job, and fake CPU devices unless JAX_PLATFORMS says otherwise."""
    made = dict(base, RRM_COORDINATOR=address, RRM_PROCESSES=str(processes), RRM_PROCESS=str(number))
    made.setdefault("JAX_PLATFORMS", "cpu")
    # Collectives of many devices on few cores need a thread each, or wait for each other for ever.
    made.setdefault("NPROC", str(max(2 * devices, os.cpu_count() or 1)))
    flags = [flag for flag in made.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    made["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(message: str) -> None:
    print(f"[launch] {message}", file=sys.stderr, flush=True)


def _prefix(number, source, target):
    for line in source:
        target.write(f"[{number}] ".encode() + (line if line.endswith(b"\n") else line + b"\n"))
        target.flush()


def _end_with_parent():
    """On Linux a process is killed when its launcher is, however that ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
