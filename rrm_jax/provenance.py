"""What made a result: written beside every run's output, so that it can be made again."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rrm_jax.errors import RrmError

_PACKAGES = (
    "rrm-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "grain",
    "tensorflow-datasets",
    "array-record",
    "datasketch",
    "py3langid",
    "numpy",
)


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_revision() -> str | None:
    source = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def code_facts() -> dict[str, Any]:
    """{"versions": of rrm-jax, of what it builds on and of Python, "git_revision": None where there is none}."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "git_revision": _git_revision(),
    }


def provenance(config: dict[str, Any], seed: int | None, inputs: dict[str, str | Path]) -> dict[str, Any]:
    """Resolved config, seed, command, versions, git revision, devices, and SHA-256 of each input file."""
    import jax

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": config,
        "seed": seed,
        **code_facts(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "inputs": {name: {"path": str(path), "sha256": fingerprint(path)} for name, path in inputs.items()},
    }


def write_provenance(path: str | Path, **facts: Any) -> None:
    """Writes `provenance(**facts)` as JSON to `path`."""
    Path(path).write_text(json.dumps(provenance(**facts), indent=2, default=str) + "\n", encoding="utf-8")


def refuse_inputs_as_outputs(written: Iterable[Path], read: Iterable[Path | None]) -> None:
    """RrmError where a file that a job reads (None: it reads none such) is one that it writes."""
    places = {path.resolve() for path in written}
    for path in read:
        if path is not None and path.resolve() in places:
            raise RrmError(f"{path} would be written to; choose another --out")


def earlier_results(results: Iterable[Path], run: Path) -> list[Path]:
    """Those of a job's results that are there and not empty. RrmError where its `run` is not: they are another's."""
    present = [path for path in results if path.is_file() and path.stat().st_size]
    if present and not run.is_file():
        raise RrmError(f"{present[0]} exists, but not {run}, so it is not this job's; choose another --out")
    return present


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config, default=str))


def check_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Raises RrmError, naming what differs, where the facts at `path` are of a run with another config."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        # Written in place: of longer facts before these an end may be left, if that was when the run was killed.
        before = json.JSONDecoder().raw_decode(text)[0]["config"] if text else None
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RrmError(f"{path} does not say how a run was configured ({error}); choose another output") from None
    now = _plain(config)
    if before is None:
        return
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: was {before.get(key)!r}, is now {now.get(key)!r}" for key in changed)
        raise RrmError(f"{path} is of a run with other settings; choose another output, or give the same:{lines}")


@contextlib.contextmanager
def pinned(
    path: str | Path, *, config: dict[str, Any], seed: int | None, inputs: dict[str, str | Path], anew: bool = False
) -> Iterator[None]:
    """Pins an output to its config: `provenance` is written to `path`, which stands beside it, and locked meanwhile.

    Raises RrmError where `path` is of a run with another config (naming what differs), or of one that is under way.
    `anew`: of a job that keeps nothing of a run that was broken off, so that another config is no matter.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")
    except OSError as error:
        raise RrmError(f"cannot write {path}: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RrmError(f"{path} is being written by another run; wait for it, or choose another output") from None
        except OSError:
            pass  # not every file system has locks
        if not anew:
            check_config(path, config)
        facts = provenance(config, seed, inputs)
        try:
            file.write(json.dumps(facts, indent=2, default=str) + "\n")
            file.truncate()
        except OSError as error:
            raise RrmError(f"cannot write {path}: {error.strerror or error}") from None
        yield
