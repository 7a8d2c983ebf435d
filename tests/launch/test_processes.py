"""`launch/local.py --processes`: one job of several processes, ended together and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.checkpoints.load import load_model
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.train import train
from tests.training.world import make_base, make_data, settings

ROOT = Path(__file__).parent.parent.parent
RRM = Path(sys.executable).parent / "rrm"
LAUNCH = (
    "import sys; sys.path.insert(0, 'launch'); from processes import run; "
    "sys.exit(run(sys.argv[4:], *map(int, sys.argv[1:4])))"
)


def launch(processes: int, devices: int, restarts: int, *command, **environment: str) -> subprocess.Popen:
    line = [sys.executable, "-c", LAUNCH, str(processes), str(devices), str(restarts), *map(str, command)]
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env=clean | environment, stdout=pipe, stderr=pipe, text=True)


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, signal, sys, time; me = os.environ['RRM_PROCESS']; {text}")


def test_each_is_told_its_place_and_its_lines_are_marked():
    shown = "print(me, os.environ['RRM_PROCESSES'], os.environ['XLA_FLAGS']); print('to err', file=sys.stderr)"
    out, err = (job := launch(2, 4, 0, *python(shown), XLA_FLAGS="--a=b")).communicate(timeout=60)
    assert job.returncode == 0
    flags = "--a=b --xla_force_host_platform_device_count=4"
    assert sorted(out.splitlines()) == [f"[0] 0 2 {flags}", f"[1] 1 2 {flags}"]
    assert sorted(err.splitlines()) == ["[0] to err", "[1] to err"]


@pytest.mark.parametrize(
    ("text", "restarts", "code", "starts"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL) if me == '1' else time.sleep(1)", 2, 137, 3),
        ("sys.exit(2)", 2, 2, 1),  # wrong input is wrong again
        ("sys.exit(0 if os.path.exists(MARK) else (open(MARK, 'w').close(), 7)[1] if me == '0' else 0)", 1, 0, 2),
    ],
)
def test_a_job_is_started_again_when_a_process_dies(tmp_path, text, restarts, code, starts):
    text = f"print('began'); sys.stdout.flush(); {text.replace('MARK', repr(str(tmp_path / 'mark')))}"
    out, err = (job := launch(2, 1, restarts, *python(text))).communicate(timeout=60)
    assert job.returncode == code, err
    assert out.count("[0] began") == starts
    assert err.count("[launch] restart ") == starts - 1


def test_a_job_that_is_told_to_end_passes_it_on_and_is_not_started_again():
    text = "signal.signal(15, lambda *_: (print('told'), sys.exit(143))); print('ready', flush=True); time.sleep(60)"
    job = launch(2, 1, 5, *python(text))
    assert job.stdout is not None
    ready = [job.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 143
    assert sorted(out.splitlines()) == ["[0] told", "[1] told"]
    assert "restart" not in err


def rows(run: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    except OSError:
        return []


def process_of(launcher: int, rank: int) -> int:
    """The launcher's child with this number."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(c) for c in children if f"RRM_PROCESS={rank}\0" in Path(f"/proc/{c}/environ").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the victim in /proc")
def test_a_run_whose_process_is_killed_goes_on_to_the_parameters_of_an_undisturbed_one(tmp_path):
    """Two processes of four devices, one killed in mid-run; the other run is this process, of eight."""
    make_base(tmp_path / "base")
    make_data(tmp_path)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}

    def config(output: str) -> dict:
        changes = {"model__path": str(tmp_path / "base"), "data__train": str(tmp_path / "demonstrations.jsonl")}
        return settings(tmp_path, output, method="supervised", steps=6, checkpoint__every=2, **changes)

    (tmp_path / "killed.yaml").write_text(json.dumps(config("killed")))
    job = launch(2, 4, 1, RRM, "train", tmp_path / "killed.yaml", "--distributed", "on", **cache)
    while not any(row["step"] >= 3 for row in rows(tmp_path / "killed")):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.02)
    os.kill(process_of(job.pid, 1), signal.SIGKILL)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "[launch] process 1 was ended by SIGKILL" in err
    assert "did not end in" not in err  # by itself
    assert "[0] resuming" in err
    train(TrainConfig.model_validate(config("whole")), False, lambda _: None)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("killed", "whole")]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-4)
    mesh = make_mesh(devices=jax.devices()[:1])
    ends = [load_model(tmp_path / name, mesh=mesh, dtype=jnp.float32).params for name in ("killed", "whole")]
    for mine, its in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-4)
