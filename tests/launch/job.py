"""One job of several processes on this machine, as `launch/local.py --processes` starts it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent.parent
RRM = Path(sys.executable).parent / "rrm"
CACHE = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
_LAUNCH = (
    "import sys; sys.path.insert(0, 'launch'); from processes import run; "
    "sys.exit(run(sys.argv[4:], *map(int, sys.argv[1:4])))"
)


def launch(
    processes: int, devices: int, restarts: int, *command: object, log: IO[str] | None = None, **environment: str
) -> subprocess.Popen[str]:
    """The launcher. What it and the processes say goes to `log`, or else to its pipes."""
    line = [sys.executable, "-c", _LAUNCH, str(processes), str(devices), str(restarts), *map(str, command)]
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS", "NPROC")}
    to = subprocess.PIPE if log is None else log
    return subprocess.Popen(line, cwd=ROOT, env=clean | CACHE | environment, stdout=to, stderr=to, text=True)


def process_of(launcher: int, rank: int) -> int:
    """The launcher's child with this number; Linux only."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(c) for c in children if f"RRM_PROCESS={rank}\0" in Path(f"/proc/{c}/environ").read_text())
