"""Rows of JSON lines, and a pool of verifiers for answers that are not hostile."""

import json
from pathlib import Path

from rrm_jax.data.verifiers import resolve


class InProcess:
    """A pool that verifies in this process: what tests ask of it is not hostile."""

    def __init__(self, *options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def verify_all(self, jobs):
        return (resolve(job.verifier)(job.response, job.answer) for job in jobs)


def write(path: Path, rows) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
