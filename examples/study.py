"""A small study: how accuracy grows with the votes a pair, with 95 % intervals, as a figure.

    rrm quickstart                      # makes the judge and the pairs that are the default here
    python examples/study.py --out votes.png

The warm start is asked, which is often wrong: votes have something to mend. `rrm study test-time-compute` is the whole.
"""

import argparse
import itertools
from pathlib import Path

import matplotlib.pyplot as plt

import rrm_jax
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import parse_labelled_pair
from rrm_jax.evaluation.statistics import bootstrap_interval
from rrm_jax.studies.voting import voting_credits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/warm_start", help="a judge's directory")
    parser.add_argument("--pairs", type=Path, default="runs/quickstart/data/eval.jsonl", help="labelled pairs")
    parser.add_argument("--count", type=int, default=200, help="of the pairs")
    parser.add_argument("--most-votes", type=int, default=16)
    parser.add_argument("--out", default="votes.png")
    args = parser.parse_args()

    rows = Reader(args.pairs, parse_labelled_pair)
    pairs = [pair for _, pair in itertools.islice(rows, args.count)]
    judge = rrm_jax.open_judge(args.model, votes=args.most_votes, temperature=1.0, batch_size=256)
    judgments = list(judge.judge(pairs))

    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= args.most_votes]
    means = [bootstrap_interval(voting_credits(judgments, count)) for count in counts]
    for count, mean in zip(counts, means, strict=True):
        print(f"{count:3d} votes: {100 * mean.estimate:.1f} % right ({100 * mean.low:.1f} to {100 * mean.high:.1f})")

    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    axes.plot(counts, [100 * mean.estimate for mean in means], "o-", color="#0072b2")
    axes.fill_between(counts, [100 * x.low for x in means], [100 * x.high for x in means], color="#0072b2", alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="votes a pair", ylabel="right, %", title=f"{len(pairs)} held-out pairs")
    figure.savefig(args.out, dpi=150)
    print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
