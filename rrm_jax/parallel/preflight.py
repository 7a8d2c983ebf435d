"""Before the first step: that all processes were started alike, and can write and see the run's directory."""

import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rrm_jax.errors import RrmError
from rrm_jax.parallel.distributed import Report, decide, from_first, is_first, processes, several
from rrm_jax.provenance import code_facts

CLOCK_SECONDS = 5.0
"""Clocks further apart than this are warned of."""
_SEEN_SECONDS = 20.0  # caches of network file systems may hide a new file for a while
_ABSENT = "(not set)"


def preflight(settings: Mapping[str, Any], output: str | Path, report: Report) -> None:
    """Raises RrmError, naming processes and what differs, unless the job can begin. Every process calls this.

    `settings`: the resolved configuration, flat; `output`: the directory that the run will write to, which may not
    exist yet. Nothing is left behind. With one process this only looks whether `output` can be written.
    """
    directory = _directory(output)
    if not several():
        _write_probe(directory).unlink()
        return
    hosts = _check_start({**settings, "the output directory": str(directory)})
    _check_seen(directory, hosts)
    devices = _check_devices(hosts)
    _check_clocks(hosts, report)
    if is_first():
        shown = ", ".join(f"{rank} on {host}" for rank, host in enumerate(hosts))
        report(f"{len(hosts)} processes with {devices} each: {shown}")


def _check_start(settings: Mapping[str, Any]) -> list[str]:
    """The processes' hosts."""
    code = code_facts()
    versions = {f"version of {name}": version for name, version in code["versions"].items()}
    # The count comes from each process's own environment; the coordinator does not look at it.
    mine = {**settings, **versions, "number of processes": processes(), "rrm_jax's files": _digest_of_sources()}
    if code["git_revision"]:  # not every host of a shared checkout has git
        mine["git revision"] = code["git_revision"]
    verdict = decide("start", {"host": socket.gethostname(), "facts": mine}, _compare)
    if verdict["different"]:
        raise RrmError(
            "the processes were not started alike:"
            + "".join(f"\n  {line}" for line in verdict["different"])
            + "\nstart all of them with the same command and the same code"
        )
    return verdict["hosts"]


def _compare(all_facts: list[dict[str, Any]]) -> dict[str, Any]:
    hosts = [process["host"] for process in all_facts]
    facts = [process["facts"] for process in all_facts]
    names = dict.fromkeys(name for one in facts for name in one)
    known = [name for name in names if name != "git revision" or all(name in one for one in facts)]
    different = [(name, [one.get(name, _ABSENT) for one in facts]) for name in known]
    return {"hosts": hosts, "different": [f"{name}: {line}" for name, of in different if (line := _differ(of, hosts))]}


def _differ(values: Sequence[Any], hosts: Sequence[str]) -> str:
    """What each value is and whose; empty where all are the same."""
    having: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        having.setdefault(repr(value), []).append(rank)
    if len(having) == 1:
        return ""
    return "; ".join(f"{value} in {_named(ranks, hosts)}" for value, ranks in having.items())


def _named(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
    return "process " + ", ".join(f"{rank} ({hosts[rank]})" for rank in ranks[:3]) + more


def _digest_of_sources() -> str:
    digest, package = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _directory(output: str | Path) -> Path:
    if "://" in str(output):
        raise RrmError(
            f"output={output}: a run is written to a directory; mount the bucket (docs/pods.md) and give that"
        )
    directory = Path(os.path.abspath(output))
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise RrmError(f"output={output}: {there} is not a directory")
    return directory


def _write_probe(directory: Path) -> Path:
    """A small file in `directory`, or where that will be made."""
    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    probe = there / f".rrm_can_write_{secrets.token_hex(8)}"
    try:
        with open(probe, "x", encoding="utf-8") as file:
            file.write(probe.name)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise RrmError(f"cannot write {directory}: {there}: {error.strerror or error}") from None
    return probe


def _check_seen(directory: Path, hosts: Sequence[str]) -> None:
    """All write, as all will write their parts of checkpoints; all must see what the first one wrote."""
    mine = _write_probe(directory)
    try:
        probe = Path(from_first("probe", lambda: str(mine)))
        unseen = decide("seen", _is_seen(probe), lambda seen: [rank for rank, sees in enumerate(seen) if not sees])
    finally:
        mine.unlink(missing_ok=True)
    if unseen:
        raise RrmError(
            f"{_named(unseen, hosts)} does not see what process 0 ({hosts[0]}) writes to {probe.parent}: output= must "
            "be on a file system that all hosts share"
        )


def _is_seen(probe: Path) -> bool:
    deadline = time.monotonic() + _SEEN_SECONDS
    while True:
        try:
            os.listdir(probe.parent)  # makes network file systems look again
            if probe.read_text(encoding="utf-8") == probe.name:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _check_devices(hosts: Sequence[str]) -> str:
    """Here the devices are started, on all hosts."""
    try:
        local = jax.local_devices()
    except RuntimeError as error:
        # Where Gloo finds no address it says no more than a line of its source.
        unknown = f"is there an address for this host's own name, {socket.gethostname()}? (/etc/hosts)"
        raise RrmError(f"devices do not start: {unknown if 'gloo' in str(error) else error}") from None
    mine = f"{len(local)} {local[0].device_kind} device{'s' if len(local) > 1 else ''}"
    different = decide("devices", mine, lambda of: _differ(of, hosts))
    if different:
        raise RrmError(f"the processes have different devices: {different}")
    return mine


def _check_clocks(hosts: Sequence[str], report: Report) -> None:
    """Called when all have just heard of the same decision, so that clocks are read at nearly the same time."""
    warning = decide("clocks", time.time(), lambda read: _apart(read, hosts))
    if warning and is_first():
        report(f"warning: {warning}; times in logs and of files will be confusing")


def _apart(read: Sequence[float], hosts: Sequence[str]) -> str:
    middle = sorted(read)[len(read) // 2]
    far = [rank for rank, clock in enumerate(read) if abs(clock - middle) > CLOCK_SECONDS]
    if not far:
        return ""
    most = max((abs(read[rank] - middle), rank) for rank in far)
    return f"the clock of {_named(far, hosts)} is off by {most[0]:.0f} s at most, seen from the others"
