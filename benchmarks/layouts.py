"""One GRPO run on many layouts of processes, devices and meshes; then one whose checkpoints move between them.

    python -m benchmarks.layouts [--steps 10] [--learning-rate 1e-3]

A tiny judge that thinks (2 layers, D 32, float32) is warmed up, and trained on fake CPU devices, under
`launch/local.py`'s supervisor, each time from the same start: 8 prompts × 4 completions a step, and held-out pairs in
both orders every second step. Prints a table. On each layout: how many completions (their token ids and rewards) and
how many held-out votes are, on every process, those of one device; the largest differences of losses and of gradients'
norms, relative to the largest of the run; that of final parameters, by their norms, relative to the parameters and to
how far training moved them. Exits with 1 where a completion or a vote differs.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.quickstart import world
from tests.launch.job import launch
from tests.training.recorded import read_record
from tests.training.world import make_warm, settings


@dataclasses.dataclass(frozen=True)
class Layout:
    processes: int
    devices: int
    """Of each process."""
    data: int
    fsdp: int
    tensor: int

    def __str__(self) -> str:
        return f"{self.processes} × {self.devices}, mesh {self.data} × {self.fsdp} × {self.tensor}"


Stages = list[tuple[int, Layout]]
"""Layouts, each with the last step that is taken on it."""

ONE = Layout(1, 1, 1, 1, 1)
OTHERS = (
    Layout(1, 8, 1, 8, 1),
    Layout(1, 8, 8, 1, 1),
    Layout(1, 8, 2, 2, 2),
    Layout(2, 4, 1, 8, 1),
    Layout(2, 4, 2, 2, 2),
    Layout(2, 4, 4, 1, 2),
    Layout(4, 2, 1, 8, 1),
    Layout(4, 2, 2, 2, 2),
    Layout(4, 2, 8, 1, 1),
)
CHAIN = (ONE, OTHERS[0], OTHERS[4], OTHERS[6], ONE)
_COLUMNS = ("layout", "completions", "held-out votes", "loss", "gradient norm", "parameters", "their change", "seconds")


def prepare(home: Path) -> None:
    """A model that thinks and gives verdicts, and data."""
    world.write_jsonl(home / "thinking.jsonl", world.demonstrations(200, 4, 0.5, thinking=True))
    make_warm(home, steps=120, judge__thinking=True, data__train=str(home / "thinking.jsonl"))


def run(home: Path, output: str, stages: Stages, learning_rate: float) -> float:
    """The run `output`, stopped and resumed between stages; the seconds that it took."""
    started = time.monotonic()
    for until, layout in stages:
        config = home / f"{output}.yaml"
        config.write_text(json.dumps(settings_of(home, output, until, layout, learning_rate)))
        program = [sys.executable, "-m", "tests.training.recorded", home / f"{output}.record"]
        with open(home / f"{output}.log", "a") as log:
            command = [*program, "train", config, "--distributed", "auto", "--auto-resume"]
            code = launch(layout.processes, layout.devices, 0, *command, log=log).wait()
        if code:
            sys.exit(f"{layout} ended with {code}:\n{(home / f'{output}.log').read_text()[-4000:]}")
    return time.monotonic() - started


def settings_of(home: Path, output: str, steps: int, layout: Layout, learning_rate: float) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "data__eval": str(home / "eval.jsonl"), "eval": {"every": 2}, "judge__thinking": True, "pack__row_tokens": 64,
        "rollout__prompts_per_step": 8, "rollout__max_new_tokens": 16, "rollout__temperature": 1.0,
        "grpo__mini_batch_prompts": 4, "optimizer__learning_rate": learning_rate, "checkpoint__every": 2,
        "mesh": {"data": layout.data, "fsdp": layout.fsdp, "tensor": layout.tensor},
    }  # fmt: skip
    return settings(home, output, steps=steps, **changes)


def compare(home: Path, output: str, stages: Stages) -> tuple[list[str], bool]:
    """The columns between the layout and the seconds; whether every completion and vote, on every process that its step
    had, is that of one device."""
    cells, same = [], True
    for kind in ("rollout", "held out"):
        (expected,), found = read_record(home / "one.record", kind), read_record(home / f"{output}.record", kind)
        equal = sum(
            [of[key] for of in found if key in of] == [value] * processes_at(stages, key[0])
            for key, value in expected.items()
        )
        same &= equal == len(expected) == len(found[0])
        cells.append(f"{equal} of {len(expected)}")
    for name in ("loss", "grad_norm"):
        mine, its = (np.array([row[name] for row in read_metrics(home / of, "train")]) for of in (output, "one"))
        cells.append(f"{np.abs(mine - its).max() / np.abs(its).max():.1e}")
    mine, its, start = (parameters(home / name) for name in (output, "one", "warm"))
    cells += [f"{norm(mine, its) / norm(its):.1e}", f"{norm(mine, its) / norm(its, start):.1e}"]
    return cells, same


def processes_at(stages: Stages, step: int) -> int:
    return next(layout.processes for until, layout in stages if step <= until)


def parameters(path: Path) -> list[np.ndarray]:
    model = load_model(path, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32)
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(model.params)]


def norm(one: list[np.ndarray], less: list[np.ndarray] | None = None) -> float:
    parts = one if less is None else [mine - its for mine, its in zip(one, less, strict=True)]
    return float(np.sqrt(sum((part**2).sum() for part in parts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="a multiple of 10: the chain moves every fifth of them")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    steps, fifth = options.steps, options.steps // len(CHAIN)
    if steps % 10 or not fifth:
        parser.error("--steps must be a multiple of 10")
    chain = [((at + 1) * fifth, layout) for at, layout in enumerate(CHAIN)]
    all_same = True
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
        print(f"| {ONE} | | | | | | | {run(home, 'one', [(steps, ONE)], options.learning_rate):.0f} |", flush=True)
        for number, stages in enumerate([*([(steps, layout)] for layout in OTHERS), chain]):
            seconds = run(home, str(number), stages, options.learning_rate)
            cells, same = compare(home, str(number), stages)
            all_same &= same
            said = ", then ".join(str(layout) for _, layout in stages)
            print(f"| {said} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
        rows = read_metrics(home / "one", "train")
        shown = ("accuracy", "response_length", "zero_variance_groups", "entropy", "grad_norm", "loss")
        print(f"\nOn one device, mean over {len(rows)} steps: ", end="")
        print(", ".join(f"{name} {np.mean([row[name] for row in rows]):.3g}" for name in shown))
    sys.exit(0 if all_same else 1)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
