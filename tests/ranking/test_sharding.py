"""Tournaments spread over the devices of a mesh: each device rates its own; nothing is exchanged but who goes on."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rrm_jax.parallel.mesh import MeshShape, make_mesh, partition_spec
from rrm_jax.ranking.bradley_terry import fit, intervals, probability_best
from rrm_jax.ranking.elo import elo_over_orders, elo_ratings
from rrm_jax.ranking.games import Games, average_win_rate, points, tally, win_rate

TOURNAMENTS, GAMES, CANDIDATES = 48, 37, 6


def random_games() -> tuple[Games, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    count = rng.integers(2, CANDIDATES + 1, TOURNAMENTS).astype(np.int32)
    first = rng.integers(0, count[:, None], (TOURNAMENTS, GAMES)).astype(np.int32)
    second = (first + rng.integers(1, count[:, None], first.shape)).astype(np.int32) % count[:, None]
    score = rng.choice(np.array([0.0, 0.5, 1.0], np.float32), first.shape)
    games = Games(first, second, score, rng.random(first.shape) < 0.8)
    return games, count, rng.integers(0, 2**32, (TOURNAMENTS, 2), np.uint32)


def bradley_terry(games, count_Q, key_Q2):
    fitted = fit(tally(games, CANDIDATES), count_Q, position_bias=True, sandwich=True)
    best_Q = probability_best(fitted.theta, fitted.covariance, count_Q)
    return fitted, best_Q, intervals(fitted.theta, fitted.sandwich)


AGGREGATORS = {
    "elo": lambda games, count_Q, key_Q2: elo_ratings(*games, CANDIDATES),
    "elo over orders": lambda games, count_Q, key_Q2: elo_over_orders(games, key_Q2, CANDIDATES, orders=3),
    "points": lambda games, count_Q, key_Q2: points(tally(games, CANDIDATES)),
    "win rate": lambda games, count_Q, key_Q2: win_rate(tally(games, CANDIDATES), count_Q),
    "average win rate": lambda games, count_Q, key_Q2: average_win_rate(tally(games, CANDIDATES), count_Q),
    "bradley-terry": bradley_terry,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", AGGREGATORS)
def test_tournaments_stay_on_their_devices(name):
    mesh = make_mesh(MeshShape(data=2, fsdp=4))
    along = NamedSharding(mesh, partition_spec(("batch",)))
    inputs = random_games()
    rate = jax.jit(AGGREGATORS[name])
    alone = rate(*inputs)
    spread = jax.device_put(inputs, along)
    compiled = rate.lower(*spread).compile()
    for ours, theirs in zip(jax.tree.leaves(compiled(*spread)), jax.tree.leaves(alone), strict=True):
        assert ours.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), ours.ndim)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 if "elo" in name else 1e-5)  # float32
    exchanged = re.findall(
        r"= (\S+) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute|collective-broadcast)",
        compiled.as_text(),
    )
    assert {kind for _, kind in exchanged} <= {"all-reduce"}
    assert {shape for shape, _ in exchanged} <= {"pred[]"}  # whether any tournament goes on
    assert bool(exchanged) == (name == "bradley-terry")
