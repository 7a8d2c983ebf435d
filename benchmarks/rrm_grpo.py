"""This project's half of `training.py`: one GRPO run by the public trainer, in a process of its own.

    python benchmarks/rrm_grpo.py < job.json

Reads one job (see `training.py`) and answers as `tunix_grpo.py` does. The run is the one that `rrm train` would make
of the same configuration: pairs are shown, verdicts read, metrics written. A step ends when its row of metrics does;
what is saved after the last one does not count.
"""

import json
import os
import sys
import time
from pathlib import Path

import grain  # noqa: F401  imported here, so that no step and no setting up counts it
import jax
import tensorboardX  # noqa: F401
import tokenizers  # noqa: F401

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.training import grpo  # noqa: F401
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.metrics import Metrics
from rrm_jax.training.train import train


def config_of(job: dict) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "output": job["output"],
            "steps": job["steps"],
            "model": {"path": job["directory"], "compute_dtype": "float32", "remat": "none"},
            "data": {"train": job["pairs"]},
            "judge": {"template": job["template"], "thinking": False, "max_prompt_tokens": len(job["prompts"][0])},
            "rollout": {
                "prompts_per_step": len(job["prompts"]) // job["steps"],
                "group_size": job["samples"],
                "temperature": 1.0,
                "max_new_tokens": job["new"],
                "batch_size": job["samples"] * len(job["prompts"]) // job["steps"],
            },
            "grpo": {"mini_batch_prompts": len(job["prompts"]) // job["steps"], "kl_coef": job["beta"]},
            "optimizer": {"learning_rate": job["learning_rate"]},
            "pack": job["pack"],
            "checkpoint": {"every": job["steps"]},
        }
    )


class Marks:
    """The times at which the trainer has written a step's metrics."""

    def __init__(self):
        self.times = [(time.perf_counter(), time.process_time())]
        self._write = Metrics.write

    def __enter__(self):
        def write(metrics, kind: str, *args, **settings):
            self._write(metrics, kind, *args, **settings)
            if kind == "train":
                self.times.append((time.perf_counter(), time.process_time()))

        Metrics.write = write  # pyrefly: ignore[bad-assignment]
        return self

    def __exit__(self, *_: object):
        Metrics.write = self._write


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    with Marks() as marks:
        train(config_of(job), report=lambda line: print(line, file=sys.stderr))
    rows = read_metrics(Path(job["output"]), "train")
    if [row["step"] for row in rows] != list(range(1, job["steps"] + 1)):
        raise SystemExit("the run's log does not have every step once")
    steps = []
    for row, before, after in zip(rows, marks.times, marks.times[1:], strict=False):
        steps.append({name: row[f"seconds_{name}"] for name in ("sample", "score", "update")})
        steps[-1] |= {"seconds": after[0] - before[0], "cpu_seconds": after[1] - before[1]}
        steps[-1] |= {"length": row["response_length"], "reward_std": row["reward_std"]}
    # Setting up is what the first step's phases leave of the time until its end.
    first = sum(steps[0][name] for name in ("sample", "score", "update"))
    setup = steps[0]["seconds"] - first
    steps[0]["seconds"] = first
    name = f"rrm_jax, jax {jax.__version__}"
    print(json.dumps({"name": name, "setup": setup, "steps": steps}), file=answers, flush=True)


if __name__ == "__main__":
    main()
