"""What GRPO's variants learn: the quickstart's task, from the same warm start, over several seeds; one figure.

    JAX_PLATFORMS=cpu python benchmarks/learning.py --out runs/learning [--seeds 0,1,2] [--only grpo,dapo]

Each run is `configs/quickstart/grpo.yaml` with the overrides of `RUNS`, below; nothing is tuned for a variant. Held-out
pairs are judged in both orders at temperature 1. Writes learning.json, learning.md and learning.png to OUT. Killed and
started again it goes on where it was.

`--biased` has other runs, and writes biased.json, biased.md and biased.png: a DirectJudge, which cannot tell who is
right, and which its demonstrations have taught to name whoever is shown first, five times of six. That is right as
often as a fair coin is, so that GRPO's own reward sees nothing wrong in it; the reward for consistency does.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.config import load_config
from rrm_jax.quickstart.run import Sizes, prepare, train_run
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.train import train

RUNS: dict[str, dict[str, Any]] = {
    "GRPO": {"grpo.variant": "grpo"},
    "Dr. GRPO": {"grpo.variant": "dr_grpo"},
    "DAPO": {"grpo.variant": "dapo", "reward.overlong_tokens": 3},
    "GSPO": {"grpo.variant": "gspo"},
    "GRPO + consistency": {"grpo.variant": "grpo", "reward.consistency": 1.0},
}
BIASED: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "GRPO + consistency": {"reward.consistency": 1.0},
}
KEPT = 5  # one in so many demonstrations that name the second
_EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="the names of some of the runs, comma-separated")
    parser.add_argument("--biased", action="store_true", help="the runs of a judge that favours the first")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs, what = (BIASED, "biased") if options.biased else (RUNS, "learning")
    names = options.only.split(",") if options.only else list(runs)
    where = "biased-seed" if options.biased else "seed"
    prefix = "direct_" if options.biased else ""
    curves: dict[str, list[dict]] = {name: [] for name in names}
    for seed in seeds:
        home = options.out / f"{where}{seed}"
        prepare(home, seed, Sizes())
        if options.biased:
            _favour_the_first(home / "data" / "direct_demonstrations.jsonl")
        for name in names:
            curves[name].append(_curve(_run(home, prefix, name, seed, runs[name])))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{what}.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    text = _table(curves, seeds)
    (options.out / f"{what}.md").write_text(text, encoding="utf-8")
    _figure(curves, seeds, options.out / f"{what}.png")
    print(text)


def _favour_the_first(demonstrations: Path) -> None:
    """Leaves one in `KEPT` of those that name the second; of a file that has been through this already, all."""
    rows = demonstrations.read_text(encoding="utf-8").splitlines(keepends=True)
    first, second = ([row for row in rows if f"Assistant {named}" in row] for named in (1, 2))
    if len(second) > len(first) / 2:
        demonstrations.write_text("".join(first + second[::KEPT]), encoding="utf-8")


def _run(home: Path, prefix: str, name: str, seed: int, changes: dict[str, Any]) -> Path:
    """The finished run of this name; the warm start is made once for all of a seed's runs."""
    start = home / f"{prefix}warm_start"
    if not (start / "checkpoints" / "400").exists():
        train_run(home, start.name, seed, print)
    output = home / name.lower().replace(" ", "_").replace(".", "").replace("+_", "")
    overrides = {
        "output": str(output), "seed": seed, "model.path": str(start),
        "data.train": str(home / "data" / "pairs.jsonl"), "data.eval": str(home / "data" / "eval.jsonl"),
        "judge.template": str(home / "template.toml"), "eval.every": _EVERY, "checkpoint.every": 100,
        "log.traces": 0, **changes,
    }  # fmt: skip
    arguments = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    config = load_config(TrainConfig, f"quickstart/{prefix}grpo.yaml", arguments)
    if not (output / "checkpoints" / str(config.steps)).exists():
        print(f"── {name}, seed {seed}", flush=True)
        train(config, resume=(output / "config.yaml").exists())
    return output


def _curve(run: Path) -> dict[str, list[float]]:
    rows = read_metrics(run, "eval")
    return {key: [row[key] for row in rows] for key in ("step", "accuracy", "order_consistency", "response_length")}


def _table(curves: dict[str, list[dict]], seeds: list[int]) -> str:
    steps = next(iter(curves.values()))[0]["step"]
    heads = [f"step {step}" for step in steps] + [f"consistency, step {step}" for step in steps[1:]]
    rows = [
        f"Mean over the seeds {', '.join(map(str, seeds))}, and from the least to the most of them; held-out, T = 1.\n",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for name, runs in curves.items():
        accuracy = [_span([run["accuracy"][at] for run in runs]) for at in range(len(steps))]
        consistency = [_span([run["order_consistency"][at] for run in runs]) for at in range(1, len(steps))]
        rows.append(f"| {name} | {' | '.join(accuracy + consistency)} |")
    return "\n".join(rows) + "\n"


def _span(values: list[float]) -> str:
    low, mean, high = (100 * f(values) for f in (min, np.mean, max))
    return f"{mean:.1f} ({low:.1f} – {high:.1f})"


def _figure(curves: dict[str, list[dict]], seeds: list[int], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for at, (name, runs) in enumerate(curves.items()):
        for axes, key in ((left, "accuracy"), (right, "order_consistency")):
            values = 100 * np.array([run[key] for run in runs])
            steps = runs[0]["step"]
            axes.plot(steps, values.mean(0), color=f"C{at}", label=name)
            axes.fill_between(steps, values.min(0), values.max(0), color=f"C{at}", alpha=0.15, linewidth=0)
    for axes, title in ((left, "held-out accuracy"), (right, "both orders name the same response")):
        axes.set(title=title, xlabel="GRPO step", ylabel="%")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(f"T = 1, both orders; mean and range of {len(seeds)} seeds", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
