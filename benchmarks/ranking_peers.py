"""The peers of `ranking.py`, evalica and arena-rank, in an interpreter of their own (arena-rank needs an older JAX).

    python benchmarks/ranking_peers.py

Says which versions they are; then, for each job on standard input (a JSON object on a line), rates and answers with a
JSON object on a line: seconds, and the ratings of every tournament. A job: `games`, an .npz file with `first`, `second`
and `score` [B, M]; `candidates`; `method`, a name in METHODS; and `count`, how many of the tournaments. What a method
takes, lists or frames with the names of candidates, is made before the clock starts.
"""

import json
import os
import sys
import time
from importlib import metadata

import evalica
import numpy as np
import pandas
from arena_rank.models.bradley_terry import BradleyTerry
from arena_rank.utils.data_utils import PairDataset

WINNERS = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
NAMES = {1.0: "model_a", 0.0: "model_b", 0.5: "tie"}


def loop(rate):
    """evalica, a call for each tournament."""

    def method(first, second, score, candidates):
        index = pandas.RangeIndex(candidates)
        winners = [[WINNERS[s] for s in row] for row in score.tolist()]
        logs = list(zip(first.tolist(), second.tolist(), winners, strict=True))
        start = time.perf_counter()
        rated = [rate(*log, index=index).scores for log in logs]
        seconds = time.perf_counter() - start
        return seconds, [scores.sort_index().tolist() for scores in rated]

    return method


def one_log(first, second, score, candidates):
    """evalica's Elo of all tournaments in one call: their candidates are different players of one long log."""
    offset = np.arange(len(first))[:, None] * candidates
    xs, ys = pandas.Index((first + offset).ravel()), pandas.Index((second + offset).ravel())
    index, winners = pandas.RangeIndex(len(first) * candidates), [WINNERS[s] for s in score.ravel().tolist()]
    start = time.perf_counter()
    scores = evalica.elo(xs, ys, winners, index=index).scores
    seconds = time.perf_counter() - start
    return seconds, scores.sort_index().to_numpy().reshape(-1, candidates).tolist()


def arena_rank(first, second, score, candidates):
    """arena-rank's Bradley–Terry with its sandwich intervals, a call for each tournament."""
    frames = [
        pandas.DataFrame({"model_a": a, "model_b": b, "winner": [NAMES[s] for s in c.tolist()]})
        for a, b, c in zip(first, second, score, strict=True)
    ]
    start = time.perf_counter()
    rated = []
    for frame in frames:
        dataset = PairDataset.from_pandas(frame)
        rated.append(BradleyTerry(candidates).compute_ratings_and_cis(dataset))
        rated[-1]["rating_upper"].block_until_ready()
    seconds = time.perf_counter() - start
    return seconds, [row["ratings"].tolist() for row in rated]


METHODS = {
    "evalica elo": loop(evalica.elo),
    "evalica elo, one log": one_log,
    "evalica bradley-terry": loop(evalica.bradley_terry),
    "arena-rank bradley-terry": arena_rank,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("evalica", "arena-rank"))
    print(versions, file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        with np.load(job["games"]) as games:
            first, second, score = (games[name][: job["count"]] for name in ("first", "second", "score"))
        seconds, ratings = METHODS[job["method"]](first, second, score, job["candidates"])
        print(json.dumps({"seconds": seconds, "ratings": ratings}), file=answers, flush=True)


if __name__ == "__main__":
    main()
