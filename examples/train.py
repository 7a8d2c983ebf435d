"""A judge trained from nothing: a random two-layer Qwen2, a supervised warm start, GRPO on right and wrong alone.

    python examples/train.py --out runs/example

What `rrm quickstart` does, step by step in Python. Started again, it goes on where it was.
"""

import argparse
from pathlib import Path

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.config import load_config
from rrm_jax.quickstart.run import Sizes, prepare
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.train import train_to_the_end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    parser.add_argument("--warm-up-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=50, help="of GRPO")
    args = parser.parse_args()

    # Pairs that are known to be right: the last digit of the sum of five digits, against another digit.
    prepare(args.out, seed=0, sizes=Sizes(eval=200, rank=1))

    def run(name: str, start: str, data: str, steps: int) -> Path:
        """One training run: a packaged configuration, and what is different here."""
        overrides = [
            f"output={args.out / name}",
            f"model.path={args.out / start}",
            f"data.train={args.out / 'data' / data}",
            f"data.eval={args.out / 'data/eval.jsonl'}",
            f"judge.template={args.out / 'template.toml'}",
            f"steps={steps}",
            f"eval.every={steps}",
            f"checkpoint.every={steps}",
        ]
        train_to_the_end(load_config(TrainConfig, f"quickstart/{name}.yaml", overrides), print)
        return args.out / name

    runs = [
        run("warm_start", "base", "demonstrations.jsonl", args.warm_up_steps),
        run("grpo", "warm_start", "pairs.jsonl", args.steps),
    ]
    for directory in runs:
        held_out = read_metrics(directory, "eval")[-1]
        print(f"{directory}: {100 * held_out['accuracy']:.1f} % of held-out pairs right, in both orders")


if __name__ == "__main__":
    main()
