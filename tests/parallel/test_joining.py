"""Two processes join for real, and look at each other before they begin."""

import concurrent.futures
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.parallel import distributed
from rrm_jax.parallel.preflight import preflight

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def slurm(rank: int, port: int) -> dict[str, str]:
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    return {"SLURM_JOB_ID": "7", "JAX_COORDINATOR_PORT": str(port), **step, **tasks}


def test_processes_look_at_each_other_before_they_begin(tmp_path):
    port, host = free_port(), socket.gethostname()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "RRM"))}
    clean |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.parallel.joining", str(tmp_path / "runs" / "new")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, env=clean | slurm(rank, port), cwd=ROOT, text=True, **pipes) for rank in (0, 1)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    looks = [text.split("---\n") for text, _ in said]
    first = looks[0][0]
    assert f"2 processes with 4 cpu devices each: 0 on {host}, 1 on {host}" in first
    assert re.search(rf"warning: the clock of process [01] \({host}\) is off by (59|60|61) s", first)
    for _, config, unseen, _ in looks:  # both name the process that is different
        assert f"optimizer.learning_rate: 1e-06 in process 0 ({host}); 2e-06 in process 1 ({host})\n" in config
        assert "seed" not in config
        assert f"process 1 ({host}) does not see what process 0" in unseen
    full = f"cannot write {tmp_path}/runs/new: {tmp_path}: No space left on device"
    assert looks[0][3] == f"error: another process failed: process 1 ({host}): {full}\n"
    assert f"error: {full}" in looks[1][3] + said[1][1]
    assert list(tmp_path.iterdir()) == []  # nothing is left of the looks


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


def test_the_others_wait_for_the_first_process_as_long_as_it_works(monkeypatch):
    store: dict[str, str] = {}

    class Client:
        def key_value_set(self, key, value):
            store[key] = value

        def key_value_dir_get(self, key):
            return []

        def blocking_key_value_get(self, key, milliseconds):
            time.sleep(0.01)
            if key not in store:
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return store[key]

    rank = threading.local()
    monkeypatch.setattr(distributed, "_client", Client)
    monkeypatch.setattr(distributed, "_rank", lambda: rank.number)
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "_calls", itertools.repeat(0))
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 0.1)

    def play(number: int, seconds: float) -> str:
        rank.number = number
        return distributed.from_first("rewards", lambda: time.sleep(seconds) or "rewards")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(play, (0, 1), (0.6, 0.6))) == ["rewards", "rewards"]
    rank.number = 0
    store.clear()
    with pytest.raises(RrmError, match=r"waited 0 s for another process"):  # one that never came
        distributed.decide("facts", 1, list)
