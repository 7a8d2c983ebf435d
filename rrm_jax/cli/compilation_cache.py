"""Compiled programs are kept for the next run, unless the user says otherwise."""

import contextlib
import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

SWITCH = "RRM_COMPILATION_CACHE"
_DIRECTORY, _SHORTEST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compilations(environment: MutableMapping[str, str] = os.environ) -> None:
    """Points JAX, which must not be imported yet, to a directory in the user's cache, for programs that take half a
    second or more to compile.

    Not where RRM_COMPILATION_CACHE is "off" or the user has set JAX_COMPILATION_CACHE_DIR, nor where the directory
    could not be written. JAX's keys hold its version, the devices and the program. They do not hold what this CPU can
    do, and programs compiled for another may crash on it: machines that share a home directory get one each.
    """
    if environment.get(SWITCH, "").lower() == "off" or _DIRECTORY in environment:
        return
    try:
        cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return
    directory = cache / "rrm_jax" / f"xla-{_machine()}"
    if _writable(directory):
        environment[_DIRECTORY] = str(directory)
        environment.setdefault(_SHORTEST, "0.5")


def _machine() -> str:
    """A digest of the kind of CPU and what it can do."""
    says = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        says += [
            line for line in first.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))
        ]
    return hashlib.sha256("\n".join(says).encode()).hexdigest()[:16]


def _writable(directory: Path) -> bool:
    """Whether it could be made, or is there and can be written."""
    there = next((path for path in (directory, *directory.parents) if path.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)
