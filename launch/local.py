#!/usr/bin/env python3
"""Sets up `.venv` as the lock file says, then runs a command in it. Needs only Python 3.9 and git.

    python3 launch/local.py rrm quickstart
    python3 launch/local.py pytest
    python3 launch/local.py --extra cuda13 rrm train ...
    python3 launch/local.py --processes 2 --devices-per-process 4 --restarts 3 rrm train ...

The last starts two processes that are one job, as on two hosts, with four CPU devices each; when one dies the others
end, and the job goes on from its last checkpoint, three times at most.

Python 3.12 is found, or fetched, by uv; uv itself is put into `.uv` where it is not installed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = "Scripts" if os.name == "nt" else "bin"


def find_uv() -> str:
    """An installed uv, or one put into `.uv` by pip."""
    own = ROOT / ".uv" / BIN / "uv"
    found = shutil.which("uv") or (str(own) if own.exists() else None)
    if found:
        return found
    print("setting up: uv", file=sys.stderr, flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / ".uv")], check=True)
        subprocess.run([str(ROOT / ".uv" / BIN / "python"), "-m", "pip", "install", "-q", "uv"], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(ROOT / ".uv", ignore_errors=True)
        sys.exit("could not put uv into .uv: install uv yourself, or Python's venv module (Debian: python3-venv)")
    return str(own)


def set_up(extras: list) -> None:
    """Installs the project, editable, at the locked versions; does nothing when that has been done."""
    stamp, facts = VENV / "rrm_set_up", [",".join(sorted(extras))]
    for name in ("pyproject.toml", "requirements.lock", ".python-version"):
        facts.append(hashlib.sha256((ROOT / name).read_bytes()).hexdigest())
    wanted = "\n".join(facts)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    uv = find_uv()
    print(f"setting up: {VENV.name} with {', '.join(extras)}", file=sys.stderr, flush=True)
    if not VENV.exists():
        run_uv([uv, "venv", "-q", str(VENV)])
    target = f"{ROOT}[{','.join(extras)}]"
    run_uv([uv, "pip", "install", "-q", "--python", str(VENV), "-c", str(ROOT / "requirements.lock"), "-e", target])
    stamp.write_text(wanted)


def run_uv(command: list) -> None:
    # The system's certificates: behind a proxy of one's own, uv's built-in ones do not suffice.
    done = subprocess.run(command, cwd=ROOT, env={"UV_SYSTEM_CERTS": "true", **os.environ})
    if done.returncode:
        sys.exit(f"setting up failed: {' '.join(command[1:3])} exited with {done.returncode}")


def main() -> None:
    arguments, extras = sys.argv[1:], ["dev"]
    numbers = {"--processes": 0, "--devices-per-process": 1, "--restarts": 0}
    while len(arguments) > 1 and arguments[0] in ("--extra", *numbers):
        option, value, *arguments = arguments
        if option == "--extra":
            extras.append(value)
        elif value.isdigit():
            numbers[option] = int(value)
        else:
            sys.exit(f"{option} takes a number, not {value!r}")
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    set_up(extras)
    program = VENV / BIN / arguments[0]
    if not program.exists():
        sys.exit(f"no program {arguments[0]!r} in {VENV}")
    if numbers["--processes"]:
        from processes import run

        sys.exit(run([str(program), *arguments[1:]], *numbers.values()))
    os.execv(str(program), [str(program), *arguments[1:]])


if __name__ == "__main__":
    main()
