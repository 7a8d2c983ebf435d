"""`launch/local.py --processes`: one job of several processes, ended together and started again."""

import json
import os
import shutil
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
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.parallel.mesh import make_mesh
from tests.launch.job import ROOT, launch, process_of
from tests.training.recorded import read_record
from tests.training.world import make_base, make_data, settings


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


def last_step(run: Path) -> int:
    return max((row["step"] for row in read_metrics(run, "train")), default=0)


def parameters(run: Path) -> list[np.ndarray]:
    model = load_model(run, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def train(home: Path, output: str, processes: int, devices: int) -> subprocess.Popen[str]:
    """Six steps of GRPO from a random model, by few programs; completions are written to `OUTPUT.record`.

    Hardly any has a verdict: what they earn differs by their lengths.
    """
    few = {"grpo__kl_coef": 0.0, "grpo__mini_batch_prompts": 4, "checkpoint__every": 2}
    long = {"rollout__max_new_tokens": 16, "reward": {"length": 1.0}, "optimizer__learning_rate": 1e-3}
    model = {"model__path": str(home / "base")}
    config = home / f"{output}.yaml"
    config.write_text(json.dumps(settings(home, output, steps=6, **few, **long, **model)))
    command = (sys.executable, "-m", "tests.training.recorded", home / f"{output}.record", "train", config)
    # JAX's cache of compiled programs serves the first process only.
    return launch(processes, devices, 1, *command, "--auto-resume", JAX_DISABLE_MOST_OPTIMIZATIONS="1")


def copy_until(run: Path, copy: Path, step: int) -> None:
    """A run as it was when it had saved `step`."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    config, metrics = copy / "config.yaml", copy / "metrics.jsonl"
    config.write_text(config.read_text().replace(str(run), str(copy)))
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the victim in /proc")
def test_a_run_that_is_moved_to_two_processes_of_which_one_is_killed_is_as_on_one_device(tmp_path):
    """GRPO: two steps on one device, then four on two processes of two devices, one killed in mid-run.

    float32. On both processes the same completions, token for token, and rewards as in six steps on one device;
    gradient norms and parameters to 1e-3 of the largest. `benchmarks/layouts.py` has more layouts, and verdicts.
    """
    make_base(tmp_path / "base")
    make_data(tmp_path)
    job = train(tmp_path, "whole", 1, 1)
    assert job.wait(300) == 0, job.communicate()[1]
    copy_until(tmp_path / "whole", tmp_path / "moved", 2)
    job = train(tmp_path, "moved", 2, 2)
    while last_step(tmp_path / "moved") < 3:
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.02)
    os.kill(process_of(job.pid, 1), signal.SIGKILL)
    _, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert "[launch] process 1 was ended by SIGKILL" in err
    assert "did not end in" not in err  # by itself
    assert err.count("[0] resuming") == 2

    (whole,), both = (read_record(tmp_path / f"{name}.record", "rollout") for name in ("whole", "moved"))
    assert both == [{key: value for key, value in whole.items() if key[0] > 2}] * 2
    assert len({str(value) for value in whole.values()}) > len(whole) / 2  # so that equality says something
    whole, moved = (read_metrics(tmp_path / name, "train") for name in ("whole", "moved"))
    assert any(row["zero_variance_groups"] < 1 for row in whole[2:]), "no group taught anything"
    norms = [[row["grad_norm"] for row in rows] for rows in (whole, moved)]
    np.testing.assert_allclose(*norms, rtol=0, atol=1e-3 * max(norms[0]))
    for mine, its in zip(parameters(tmp_path / "moved"), parameters(tmp_path / "whole"), strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-3 * np.abs(its).max())


def test_a_run_that_is_started_again_resumes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "launch")
    from processes import resuming  # pyrefly: ignore[missing-import]

    assert resuming(["rrm", "train", "a.yaml"]) == ["rrm", "train", "a.yaml", "--auto-resume"]
    for command in (["rrm", "train", "a.yaml", "--resume"], ["rrm", "judge", "a.jsonl"]):
        assert resuming(command) == command
