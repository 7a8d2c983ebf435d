"""Two answers to one question, judged.

rrm quickstart                      # makes the judge that is the default here
python examples/judge.py
python examples/judge.py --model RRM-7B --query "Name a prime between 90 and 100." --responses 97 91
"""

import argparse

import rrm_jax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/grpo", help="a judge's directory")
    parser.add_argument("--query", default="Last digit of the sum of 80121")
    parser.add_argument("--responses", nargs=2, default=["0", "2"], metavar=("FIRST", "SECOND"))
    parser.add_argument("--votes", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, help="thinking and verdict; default: as trained here, else 8192")
    args = parser.parse_args()

    judge = rrm_jax.open_judge(args.model, votes=args.votes, max_new_tokens=args.max_new_tokens)
    [judgment] = judge.judge([rrm_jax.Pair("example", args.query, *args.responses)])
    for vote in judgment.votes:
        first, second = args.responses if vote.order == "12" else args.responses[::-1]
        print(f"shown {first!r}, then {second!r}; it wrote: {vote.text}")
    winner = "neither" if judgment.winner is None else repr(args.responses[judgment.winner - 1])
    print(f"the better answer by {args.votes} votes: {winner}")


if __name__ == "__main__":
    main()
