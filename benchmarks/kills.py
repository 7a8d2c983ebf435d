"""Kills processes of a two-process run, again and again, and compares its end with an undisturbed run's.

    python -m benchmarks.kills --each 5

A tiny GRPO run, on two processes of two CPU devices, under `launch/local.py`'s supervisor. The worker and the
coordinator are each killed (SIGKILL) in the midst of rollouts, of an update and of a save. Prints, for each kill, how
long the other process took to end, and at last the largest difference of final parameters and losses.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.store import COMMITTED
from rrm_jax.parallel.mesh import make_mesh
from tests.launch.job import RRM, launch, process_of
from tests.training.world import make_home, settings

MOMENTS = ("rollout", "update", "save")


def start(home: Path, output: str, steps: int, restarts: int) -> subprocess.Popen:
    config = home / f"{output}.yaml"
    config.write_text(json.dumps(settings(home, output, steps=steps, checkpoint__keep=2)))
    with open(home / f"{output}.log", "w") as log:
        return launch(2, 2, restarts, RRM, "train", config, "--distributed", "on", log=log)


def rows(run: Path) -> list[dict]:
    try:
        text = (run / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_moment(run: Path, moment: str, after: int, chance: random.Random, job: subprocess.Popen) -> None:
    """Returns in the midst of `moment`, once the step `after` has been finished."""
    while True:
        assert job.poll() is None, "the job has ended"
        done = rows(run)
        if done and done[-1]["step"] >= after:
            break
        time.sleep(0.002)
    if moment == "save":
        while job.poll() is None:
            saves = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
            if any(not (path / COMMITTED).exists() for path in saves):
                return
    last = done[-1]
    before = {"rollout": 0.0, "update": last["seconds_sample"] + last["seconds_score"]}[moment]
    time.sleep(
        before + chance.uniform(0.1, 0.9) * last[{"rollout": "seconds_sample", "update": "seconds_update"}[moment]]
    )


def ended_after(log: Path) -> list[float]:
    return [float(seconds) for seconds in re.findall(r"all have ended, ([\d.]+) s later", log.read_text())]


def parameters(run: Path) -> list[np.ndarray]:
    model = load_model(run, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=5, help="kills of each process in each moment")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kills = [(victim, moment) for _ in range(options.each) for moment in MOMENTS for victim in (1, 0)]
    steps = 3 * len(kills) + 3
    with tempfile.TemporaryDirectory() as folder:
        home = make_home(Path(folder))
        undisturbed = start(home, "undisturbed", steps, 0)
        assert undisturbed.wait() == 0, (home / "undisturbed.log").read_text()
        job, reached = start(home, "killed", steps, len(kills)), 0
        for count, (victim, moment) in enumerate(kills, start=1):
            wait_for_moment(home / "killed", moment, reached + 2, chance, job)
            os.kill(process_of(job.pid, victim), signal.SIGKILL)
            reached = rows(home / "killed")[-1]["step"]
            while len(ended_after(home / "killed.log")) < count:
                time.sleep(0.1)
            took = ended_after(home / "killed.log")[-1]
            who = "the coordinator" if victim == 0 else "the worker"
            print(
                f"{count}: {who} killed in mid-{moment} after step {reached}; the other ended {took} s later",
                flush=True,
            )
        assert job.wait() == 0, (home / "killed.log").read_text()
        losses = [[row["loss"] for row in rows(home / name)] for name in ("killed", "undisturbed")]
        assert len(losses[0]) == len(losses[1]) == steps
        pairs = zip(parameters(home / "killed"), parameters(home / "undisturbed"), strict=True)
        largest = max(float(np.abs(mine - its).max()) for mine, its in pairs)
        apart = np.abs(np.subtract(losses[0], losses[1])).max()
        print(f"final parameters differ by {largest:.3g} at most, losses by {apart:.3g}")
        forced = (home / "killed.log").read_text().count("and is killed")
        slowest = max(ended_after(home / "killed.log"))
        print(f"{len(kills)} kills; the slowest end took {slowest} s, and {forced} had to be forced")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
