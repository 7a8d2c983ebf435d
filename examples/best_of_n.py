"""The best of N answers by a tournament, and a picture of their ratings.

rrm quickstart                      # makes the judge that is the default here
python examples/best_of_n.py --out best_of_n.png
"""

import argparse

import matplotlib.pyplot as plt

import rrm_jax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/grpo", help="a judge's directory")
    parser.add_argument("--query", default="Last digit of the sum of 80121")
    parser.add_argument("--candidates", nargs="+", default=[*"0123456789"])
    parser.add_argument("--strategy", default="round-robin", help="as rrm rank takes it")
    parser.add_argument("--votes", type=int, default=3, help="a comparison")
    parser.add_argument("--max-new-tokens", type=int, help="thinking and verdict; default: as trained here, else 8192")
    parser.add_argument("--out", default="best_of_n.png")
    args = parser.parse_args()

    judge = rrm_jax.open_judge(args.model, votes=args.votes, max_new_tokens=args.max_new_tokens)
    result = rrm_jax.rank(judge, args.query, args.candidates, args.strategy)
    print(f"the best of {len(args.candidates)} by {result.comparisons} comparisons: {args.candidates[result.best]!r}")

    figure, axes = plt.subplots(figsize=(6, 0.35 * len(args.candidates) + 1.2), layout="constrained")
    for place, at in enumerate(reversed(result.ranking)):
        axes.plot([result.low[at], result.high[at]], [place, place], color="#0072b2")
        axes.plot(result.strengths[at], place, "o", color="#0072b2")
    names = [args.candidates[at][:30] for at in reversed(result.ranking)]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("Bradley–Terry strength on the scale of Elo, with its 95 % interval")
    axes.set_title(args.query[:60], parse_math=False)
    figure.savefig(args.out, dpi=150)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
