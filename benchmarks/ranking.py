"""Speed of Elo and Bradley–Terry over many tournaments, beside evalica and arena-rank, and how it grows.

    JAX_PLATFORMS=cpu python benchmarks/ranking.py --peer-python peers-ranking/bin/python

    python -m venv peers-ranking && peers-ranking/bin/pip install evalica==0.4.2 arena-rank==0.1.1

Without `--peer-python` only this project's lines are printed. Everything is timed in one run and in turns, from NumPy
arrays (the peers: from their own lists and frames) to ratings; medians of `--repeats`; compiling is reported apart.
Ratings are compared with the peers' before anything is timed. Peers that take long rate the first so many tournaments,
as the lines say, and are compared by games a second.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rrm_jax.ranking.bradley_terry import elo_scale, fit, intervals
from rrm_jax.ranking.elo import elo_ratings
from rrm_jax.ranking.games import Games, tally

_PART = 1000  # tournaments
Method = Callable[[], tuple[float, np.ndarray]]  # seconds and ratings [B, C]


def random_games(tournaments: int, candidates: int, games: int = 0, seed: int = 0) -> Games:
    """Random results of each pair once in a drawn order, or of the first `games` of such orders one after another."""
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(candidates), 2)), np.int32)
    games = games or len(pairs)
    rounds = -(-games // len(pairs))
    order = np.tile(np.arange(len(pairs)), (rounds, tournaments, 1))
    order = np.concatenate(list(rng.permuted(order, axis=2)), axis=1)[:, :games]
    score = rng.choice(np.array([0.0, 0.5, 1.0], np.float32), order.shape, p=[0.45, 0.1, 0.45])
    return Games(pairs[order, 0], pairs[order, 1], score, np.ones(order.shape, bool))


@jax.jit
def _strengths(games: Games, count_Q, place_C) -> jax.Array:
    return elo_scale(fit(tally(games, len(place_C)), count_Q, prior=np.inf).theta)


@jax.jit
def _strengths_by_parts(games: Games, count_Q, place_C) -> jax.Array:
    """A part at a time, so that its matrices stay in the cache; still one call."""
    part = math.gcd(len(count_Q), _PART)
    parts = jax.tree.map(lambda x: x.reshape(-1, part, *x.shape[1:]), (games, count_Q))
    return jax.lax.map(lambda x: _strengths(*x, place_C), parts).reshape(-1, len(place_C))


@jax.jit
def _with_intervals(games: Games, count_Q, place_C) -> tuple[jax.Array, jax.Array, jax.Array]:
    fitted = fit(tally(games, len(place_C)), count_Q, prior=np.inf, sandwich=True)
    return (elo_scale(fitted.theta), *map(elo_scale, intervals(fitted.theta, fitted.sandwich)))


def ours(kind: str, games: Games, candidates: int, dtype=np.float32) -> tuple[Method, float]:
    """From NumPy games to NumPy ratings, and the seconds that compiling took."""
    games = games._replace(score=games.score.astype(dtype))
    place = np.zeros(candidates, bool)
    count = np.full(len(games.score), candidates)
    with jax.enable_x64(dtype == np.float64):
        start = time.perf_counter()
        if kind == "elo":
            compiled = elo_ratings.lower(*games, candidates).compile()
            call = lambda: (compiled(*games),)  # noqa: E731
        elif kind.startswith("bradley-terry"):
            rate = _strengths if kind == "bradley-terry" else _strengths_by_parts
            compiled = rate.lower(games, count, place).compile()
            call = lambda: (compiled(games, count, place),)  # noqa: E731
        else:
            compiled = _with_intervals.lower(games, count, place).compile()
            call = lambda: compiled(games, count, place)  # noqa: E731
        compiling = time.perf_counter() - start

    def run() -> tuple[float, np.ndarray]:
        with jax.enable_x64(dtype == np.float64):
            start = time.perf_counter()
            ratings = [np.asarray(x) for x in call()]
            return time.perf_counter() - start, ratings[0]

    return run, compiling


class Peers:
    """evalica and arena-rank in their own interpreter, which waits while others run."""

    def __init__(self, python: str, directory: str):
        script = str(Path(__file__).with_name("ranking_peers.py"))
        self.process = subprocess.Popen(
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        self.directory, self.files = directory, itertools.count()
        self.names = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peers' process ended; what it said is above")
        return line

    def method(self, name: str, games: Games, candidates: int, count: int) -> Method:
        path = os.path.join(self.directory, f"{next(self.files)}.npz")
        np.savez(path, **dict(zip(("first", "second", "score"), (x[:count] for x in games[:3]), strict=True)))
        job = json.dumps({"games": path, "candidates": candidates, "method": name, "count": count})

        def run() -> tuple[float, np.ndarray]:
            assert self.process.stdin is not None
            print(job, file=self.process.stdin, flush=True)
            answer = json.loads(self._line())
            return answer["seconds"], np.array(answer["ratings"])

        return run


def in_turns(methods: dict[str, Method], repeats: int) -> dict[str, float]:
    """Median seconds; every method has run once before."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, run in methods.items():
            seconds[name].append(run()[0])
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def on_our_scale(name: str, ratings: np.ndarray) -> np.ndarray:
    """Peers' Bradley–Terry strengths on Elo's scale, about 1000."""
    if name == "evalica bradley-terry":
        ratings = 400 * np.log10(ratings)
    return ratings if "elo" in name else 1000 + ratings - ratings.mean(axis=1, keepdims=True)


def main_table(peers: Peers | None, tournaments: int, candidates: int, repeats: int, few: dict[str, int]) -> None:
    games = random_games(tournaments, candidates)
    length = games.score.shape[1]
    methods, compiling, counts = {}, {}, {}
    kinds = ["elo", "bradley-terry", f"bradley-terry, by {_PART}", "and intervals"]
    for kind, dtype in [("elo", np.float64), *((kind, np.float32) for kind in kinds)]:
        name = f"rrm_jax {kind}, {np.dtype(dtype).name}"
        methods[name], compiling[name] = ours(kind, games, candidates, dtype)
        counts[name] = tournaments
    for name, count in few.items() if peers else ():
        counts[name] = min(count, tournaments)
        methods[name] = peers.method(name, games, candidates, counts[name])
    first = {name: run()[1] for name, run in methods.items()}
    for name in few if peers else ():
        mine = first["rrm_jax elo, float64" if "elo" in name else "rrm_jax bradley-terry, float32"]
        worst = np.abs(on_our_scale(name, first[name]) - mine[: counts[name]]).max()
        print(f"largest difference from {name}: {worst:.1e} points")
    seconds = in_turns(methods, repeats)
    rate = {name: counts[name] * length / seconds[name] / 1e6 for name in methods}
    print(f"\n{tournaments} tournaments × {candidates} candidates × {length} games\n")
    print("| method | tournaments | s | M games/s | compile s |\n|---|--:|--:|--:|--:|")
    for name in methods:
        compile_s = f"{compiling[name]:.2f}" if name in compiling else "–"
        print(f"| {name} | {counts[name]} | {seconds[name]:.3f} | {rate[name]:.4g} | {compile_s} |")
    print("\n| throughput | ratio | expected | |\n|---|--:|--:|---|")
    for mine, other, least in [
        ("rrm_jax elo, float32", "evalica elo", 10),
        ("rrm_jax elo, float64", "evalica elo", 10),
        ("rrm_jax elo, float32", "evalica elo, one log", 0),
        ("rrm_jax bradley-terry, float32", "evalica bradley-terry", 10),
        (f"rrm_jax bradley-terry, by {_PART}, float32", "evalica bradley-terry", 10),
        ("rrm_jax and intervals, float32", "arena-rank bradley-terry", 50),
    ]:
        if other in rate:
            ratio = rate[mine] / rate[other]
            said = ("yes" if ratio >= least else "no") if least else ""
            print(f"| {mine} / {other} | {ratio:.1f} | {f'≥ {least}' if least else ''} | {said} |")


def growth_table(repeats: int) -> None:
    print("\n| tournaments | candidates | games | Elo, ms | M games/s | Bradley–Terry, ms | M games/s |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    cases = [(100, 32, 0), (1000, 32, 0), (10_000, 32, 0), (1000, 8, 0), (1000, 64, 0), (1000, 128, 0)]
    for tournaments, candidates, length in [*cases, (1000, 32, 124), (1000, 32, 1984)]:
        games = random_games(tournaments, candidates, length)
        methods = {kind: ours(kind, games, candidates)[0] for kind in ("elo", "bradley-terry")}
        for run in methods.values():
            run()
        cells = []
        for taken in in_turns(methods, repeats).values():
            cells += [f"{1e3 * taken:.1f}", f"{games.score.size / taken / 1e6:.3g}"]
        print(f"| {tournaments} | {candidates} | {games.score.shape[1]} | {' | '.join(cells)} |")


def one_tournament(peers: Peers | None, candidates: int, repeats: int) -> None:
    games = random_games(1, candidates)
    methods = {f"rrm_jax {kind}": ours(kind, games, candidates)[0] for kind in ("elo", "bradley-terry")}
    for kind in ("elo", "bradley-terry") if peers else ():
        methods[f"evalica {kind}"] = peers.method(f"evalica {kind}", games, candidates, 1)
    for run in methods.values():
        run()
    seconds = in_turns(methods, 20 * repeats)
    print(f"\none tournament × {candidates} candidates × {games.score.shape[1]} games, ms: ")
    print(", ".join(f"{name} {1e3 * taken:.2f}" for name, taken in seconds.items()))
    for kind in ("elo", "bradley-terry") if peers else ():
        more = 1e3 * (seconds[f"rrm_jax {kind}"] - seconds[f"evalica {kind}"])
        print(f"{kind}: {more:+.2f} ms beside evalica, expected ≤ +1: {'yes' if more <= 1 else 'no'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tournaments", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-python", help="an interpreter that has evalica and arena-rank")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        peers = Peers(options.peer_python, directory) if options.peer_python else None
        print(f"on {jax.devices()[0]}, {os.cpu_count()} cores; {peers.names if peers else 'no peers'}")
        few = dict.fromkeys(("evalica elo", "evalica elo, one log", "evalica bradley-terry"), 2000)
        few["arena-rank bradley-terry"] = 5
        main_table(peers, options.tournaments, options.candidates, options.repeats, few)
        growth_table(options.repeats)
        one_tournament(peers, options.candidates, options.repeats)
        if peers:
            peers.process.communicate()


if __name__ == "__main__":
    main()
