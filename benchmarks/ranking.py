"""Speed of sequential Elo over many round-robin tournaments: this project, plain Python, and evalica where installed.

    JAX_PLATFORMS=cpu python benchmarks/ranking.py --tournaments 10000 --candidates 32 --repeats 5

Every method gets the same games, is checked against plain Python first, and is timed in turns, so that a busy
machine slows all of them alike. Times are medians in seconds; compiling is reported apart.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from rrm_jax.ranking.elo import elo_ratings


def random_games(tournaments: int, candidates: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once per tournament, in a random order, with random results: first, second, score, all [B, M]."""
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(candidates), 2)), np.int32)
    games = np.stack([rng.permutation(pairs) for _ in range(tournaments)])
    score = rng.choice([0.0, 0.5, 1.0], games.shape[:2], p=[0.45, 0.1, 0.45])
    return games[..., 0].copy(), games[..., 1].copy(), score


def python_elo(first: list, second: list, score: list, candidates: int) -> list[list[float]]:
    ratings = []
    for tournament in zip(first, second, score, strict=True):
        rating = [1000.0] * candidates
        for x, y, s in zip(*tournament, strict=True):
            gain = 4.0 * (s - 1.0 / (1.0 + 10.0 ** ((rating[y] - rating[x]) / 400.0)))
            rating[x] += gain
            rating[y] -= gain
        ratings.append(rating)
    return ratings


def ours(first, second, score, candidates: int, dtype) -> tuple[Callable[[], np.ndarray], float]:
    """The call from NumPy arrays to NumPy ratings, and the seconds it takes to compile."""
    mask, score = np.ones(first.shape, bool), score.astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        start = time.perf_counter()
        compiled = elo_ratings.lower(first, second, score, mask, candidates).compile()
        seconds = time.perf_counter() - start

    def run() -> np.ndarray:
        with jax.enable_x64(dtype == np.float64):
            return np.asarray(compiled(first, second, score, mask))

    return run, seconds


def evalica_elo(first, second, score, candidates: int) -> Callable[[], np.ndarray] | None:
    """One call for all tournaments: their candidates become different players of a single long log."""
    try:
        import evalica
        import pandas
    except ImportError:
        return None
    offset = np.arange(first.shape[0])[:, None] * candidates
    xs, ys = pandas.Index((first + offset).ravel()), pandas.Index((second + offset).ravel())
    winner = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    winners = [winner[s] for s in score.ravel().tolist()]
    index = pandas.Index(np.arange(first.shape[0] * candidates))

    def run() -> np.ndarray:
        scores = evalica.elo(xs, ys, winners, index=index).scores
        return scores.sort_index().to_numpy().reshape(-1, candidates)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tournaments", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    first, second, score = random_games(options.tournaments, options.candidates, seed=0)
    lists = (first.tolist(), second.tolist(), score.tolist())

    methods: dict[str, Callable] = {"plain Python, float64": lambda: python_elo(*lists, options.candidates)}
    compiling = {}
    for dtype in (np.float32, np.float64):
        name = f"rrm_jax, {np.dtype(dtype).name}"
        methods[name], compiling[name] = ours(first, second, score, options.candidates, dtype)
    peer = evalica_elo(first, second, score, options.candidates)
    if peer:
        methods["evalica, float64"] = peer

    expected = np.array(methods["plain Python, float64"]())
    furthest = {name: float(np.abs(np.asarray(run()) - expected).max()) for name, run in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)

    device = jax.devices()[0]
    print(f"{options.tournaments} tournaments × {options.candidates} candidates × {first.shape[1]} games, on {device}")
    print(f"{'method':<24}{'median s':>10}{'min':>8}{'max':>8}{'M games/s':>11}{'compile s':>11}{'largest error':>15}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        compile_s = f"{compiling[name]:.2f}" if name in compiling else "–"
        rate = first.size / median / 1e6
        print(
            f"{name:<24}{median:>10.3f}{min(taken):>8.3f}{max(taken):>8.3f}{rate:>11.1f}{compile_s:>11}"
            f"{furthest[name]:>15.1e}"
        )
    if not peer:
        print("evalica is not installed here")


if __name__ == "__main__":
    main()
