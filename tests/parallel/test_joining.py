"""Two processes join for real, and look at each other before they begin."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.parallel.preflight import preflight

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def own(rank: int, port: int) -> dict[str, str]:
    return {"RRM_COORDINATOR": f"127.0.0.1:{port}", "RRM_PROCESSES": "2", "RRM_PROCESS": str(rank)}


def slurm(rank: int, port: int) -> dict[str, str]:
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    return {"SLURM_JOB_ID": "7", "JAX_COORDINATOR_PORT": str(port), **step, **tasks}


def job(case: str, output: Path, told_by) -> list[tuple[int, str]]:
    """(exit code, what it said) of both processes."""
    port, command = free_port(), [sys.executable, "-m", "tests.parallel.joining", case, str(output)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "RRM"))}
    clean |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    both = [
        subprocess.Popen(
            command,
            env=clean | told_by(rank, port),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    return [(process.returncode, text) for process, text in zip(both, said, strict=True)]


def test_processes_of_slurm_that_are_alike_begin(tmp_path):
    (first, said), (second, _) = job("alike", tmp_path / "runs" / "new", slurm)
    assert (first, second) == (0, 0)
    host = socket.gethostname()
    assert f"2 processes with 4 cpu devices each: 0 on {host}, 1 on {host}" in said
    assert re.search(rf"warning: the clock of process [01] \({host}\) is off by (59|60|61) s", said)
    assert list(tmp_path.iterdir()) == []  # nothing is left of the look


def test_every_process_names_the_one_with_another_configuration(tmp_path):
    host = socket.gethostname()
    for code, said in job("config", tmp_path / "run", own):
        assert code == 2
        assert f"optimizer.learning_rate: 1e-06 in process 0 ({host}), 2e-06 in process 1 ({host})\n" in said
        assert "seed" not in said


def test_a_host_that_does_not_see_the_output_is_named(tmp_path):
    for code, said in job("unseen", tmp_path, own):
        assert code == 2
        assert f"process 1 ({socket.gethostname()}) does not see what process 0" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("gs://bucket/run", "mount the bucket"),
        ("{}/file/run", "{}/file is not a directory"),
        ("/proc/run", "cannot write /proc/run: /proc: "),
    ],
)
def test_an_output_that_cannot_be_written_is_found_first(tmp_path, output, message):
    (tmp_path / "file").touch()
    with pytest.raises(RrmError, match=message.format(tmp_path)):
        preflight({}, output.format(tmp_path), print)
