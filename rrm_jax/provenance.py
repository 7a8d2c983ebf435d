"""What made a result: written beside every run's output, so that it can be made again."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def provenance(config: dict[str, Any], seed: int | None, inputs: dict[str, str | Path]) -> dict[str, Any]:
    """Resolved config, seed, command, versions, git revision, devices, and SHA-256 of each input file."""
    import jax

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": config,
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "git_revision": _git_revision(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "inputs": {name: {"path": str(path), "sha256": fingerprint(path)} for name, path in inputs.items()},
    }


def write_provenance(path: str | Path, **facts: Any) -> None:
    """Writes `provenance(**facts)` as JSON to `path`."""
    Path(path).write_text(json.dumps(provenance(**facts), indent=2, default=str) + "\n", encoding="utf-8")
