"""Games of many tournaments as arrays, and what they add up to.

Axes: Q tournaments (one for each query), M games of a tournament in the order they were played, C candidates.
`count_Q` (int) says how many of the C candidates a tournament has; the others are padding.

What is computed of them here and in elo.py and bradley_terry.py is computed of each tournament by itself: with arrays
sharded along Q every device rates its own tournaments, and the ratings stay where they are (Bradley–Terry exchanges one
flag a step: whether any tournament goes on). So millions of queries need a mesh, a Q that it divides, and

    games = jax.device_put(games, NamedSharding(mesh, partition_spec(("batch",))))  # parallel/mesh.py
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.errors import RrmError


class Games(NamedTuple):
    """Games [Q, M] in the order played; where `mask` is False there is none, whatever the other fields hold.

    `first` and `second` (int32) are the candidates in the order they were named; `score` (float) is the first one's:
    1 won, 0 lost, 0.5 a tie, anything between for a share of votes; `mask` is bool.
    """

    first: Any
    second: Any
    score: Any
    mask: Any


class Tallies(NamedTuple):
    """Sums [Q, C, C] over the games in which candidate i was named first and j second: float, index [q, i, j].

    `score` is Σ score of i, `count` the number of games, `square` Σ score². Tallies of separate games add up, and
    they are all that any aggregator needs which does not look at the order of games.
    """

    score: Any
    count: Any
    square: Any


def pad_games(tournaments: Sequence[Sequence[tuple[int, int, float]]], *, length: int = 1, dtype=np.float32) -> Games:
    """NumPy games [Q, M] of lists of (first, second, score); M is the longest list's length, `length` at least.

    Raises RrmError for a candidate below 0, one that meets itself, and a score outside [0, 1].
    """
    shape = (len(tournaments), max([length, *map(len, tournaments)]))
    names, score, mask = np.zeros((*shape, 2), np.int32), np.zeros(shape, dtype), np.zeros(shape, bool)
    for row, games in enumerate(tournaments):
        if games:
            table = np.asarray(games, np.float64)
            wrong = (
                (table[:, :2] < 0).any(1) | (table[:, 0] == table[:, 1]) | ~((table[:, 2] >= 0) & (table[:, 2] <= 1))
            )
            if wrong.any():
                at = int(wrong.argmax())
                raise RrmError(
                    f"game {at} of tournament {row} is {tuple(games[at])!r}: it must name two different candidates, "
                    "counted from 0, and the first one's score in [0, 1]"
                )
            names[row, : len(games)], score[row, : len(games)] = table[:, :2], table[:, 2]
            mask[row, : len(games)] = True
    return Games(names[..., 0].copy(), names[..., 1].copy(), score, mask)


def tally(games: Games, num_candidates: int) -> Tallies:
    """The games' sums; C is `num_candidates`, and the dtype that of the scores, float32 at least."""
    score_QM = jnp.asarray(games.score)
    score_QM = score_QM.astype(jnp.promote_types(score_QM.dtype, jnp.float32))
    mask_QM, cells = jnp.asarray(games.mask), num_candidates * num_candidates
    # One flat index for each game; what does not count goes to a cell that does not exist, and is dropped.
    cell_QM = jnp.where(mask_QM, jnp.asarray(games.first) * num_candidates + jnp.asarray(games.second), cells)

    def total(value_QM):
        add = jax.vmap(lambda cell_M, value_M: jnp.zeros(cells, score_QM.dtype).at[cell_M].add(value_M, mode="drop"))
        return add(cell_QM, value_QM).reshape(-1, num_candidates, num_candidates)

    with jax.named_scope("tally"):
        return Tallies(total(score_QM), total(jnp.ones_like(score_QM)), total(score_QM * score_QM))


def points(tallies: Tallies) -> jax.Array:
    """Points won [Q, C], named first or second: a win 1, a tie ½."""
    return jnp.sum(tallies.score + jnp.swapaxes(tallies.count - tallies.score, -1, -2), axis=-1)


def win_rate(tallies: Tallies, count_Q) -> jax.Array:
    """Points won / games played [Q, C]: 0.5 without games, 0 for padding."""
    games_QC = jnp.sum(tallies.count + jnp.swapaxes(tallies.count, -1, -2), axis=-1)
    rate_QC = jnp.where(games_QC > 0, points(tallies) / jnp.maximum(games_QC, 1), 0.5)
    return jnp.where(_real(count_Q, rate_QC.shape[-1]), rate_QC, 0)


def average_win_rate(tallies: Tallies, count_Q) -> jax.Array:
    """The mean over the opponents met of the win rate against each [Q, C]: 0.5 without games, 0 for padding.

    An opponent weighs the same however often it was met: the plain `win_rate` where all are met equally often.
    """
    games_QCC = tallies.count + jnp.swapaxes(tallies.count, -1, -2)
    points_QCC = tallies.score + jnp.swapaxes(tallies.count - tallies.score, -1, -2)
    met_QC = jnp.sum(games_QCC > 0, axis=-1)
    rate_QC = jnp.sum(points_QCC / jnp.maximum(games_QCC, 1), axis=-1) / jnp.maximum(met_QC, 1)
    return jnp.where(_real(count_Q, rate_QC.shape[-1]), jnp.where(met_QC > 0, rate_QC, 0.5), 0)


def _real(count_Q, num_candidates: int) -> jax.Array:
    return jnp.arange(num_candidates) < jnp.asarray(count_Q)[:, None]
