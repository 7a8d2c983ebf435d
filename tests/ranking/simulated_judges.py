"""Compare functions that stand in for a model: they know how good each candidate is."""

import random

from rrm_jax.ranking.protocol import Comparison, Item, Outcome, Result
from rrm_jax.ranking.tournament import run_tournaments


def results_of(items: list[Item], strategy, compare, **how) -> list[Result]:
    return [one.result for one in run_tournaments(items, strategy, compare, **how)]


class Simulated:
    """Judges by `quality[item id][candidate]`: the better one wins with probability `accuracy`, equal ones give no
    winner; with probability `invalid` there is no verdict. Keeps what it was asked, round by round."""

    def __init__(self, quality, accuracy: float = 1.0, invalid: float = 0.0, seed: int = 0):
        self.quality, self.accuracy, self.invalid, self.seed = quality, accuracy, invalid, seed
        self.rounds: list[list[Comparison]] = []

    def __call__(self, comparisons: list[Comparison]) -> list[Outcome]:
        self.rounds.append(list(comparisons))
        return [self._judge(comparison) for comparison in comparisons]

    def _judge(self, c: Comparison) -> Outcome:
        draw = random.Random(f"{self.seed} {c.item_id} {min(c.i, c.j)} {max(c.i, c.j)}")
        first, second = self.quality[c.item_id][c.i], self.quality[c.item_id][c.j]
        if draw.random() < self.invalid or first == second:
            return Outcome(None, tokens=7, votes=(None,))
        better = 1 if first > second else 2
        winner = better if draw.random() < self.accuracy else 3 - better
        return Outcome(winner, tokens=7, votes=(winner,))

    @property
    def asked(self) -> list[Comparison]:
        return [comparison for comparisons in self.rounds for comparison in comparisons]


def items_of(quality):
    return [Item(id, len(values)) for id, values in quality.items()]


def play(quality, strategy, seed=0, how=None, **judge):
    judge = Simulated(quality, **judge)
    return results_of(items_of(quality), strategy, judge, seed=seed, **(how or {})), judge


def distinct_quality(counts, seed=0):
    rng = random.Random(seed)
    return {f"q{at}": rng.sample(range(1000), count) for at, count in enumerate(counts)}


def champion(values):
    return max(range(len(values)), key=values.__getitem__)
