"""When a tournament may end before its strategy does.

Axes: Q tournaments, C candidates.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from rrm_jax.errors import RrmError
from rrm_jax.ranking.adaptive import weighed
from rrm_jax.ranking.bradley_terry import fit, probability_best
from rrm_jax.ranking.field import Field, real
from rrm_jax.ranking.games import Games, tally
from rrm_jax.ranking.rating import Rating, rate
from rrm_jax.ranking.strategies import RoundRobin, Strategy, could_win


@dataclasses.dataclass(frozen=True)
class Stop:
    """`certain`: as soon as no outcome of the remaining games can change the winner (a round robin in rounds, rated by
    points or Elo: exact). `probability`: as soon as the leader of a Bradley–Terry fit is the best with so much
    probability, by `probability_best`'s bound. `budget` and `tokens`: comparisons and judge's tokens that a tournament
    may cost; the comparisons are never exceeded, the tokens by a round at most.
    """

    certain: bool = False
    probability: float | None = None
    budget: int | None = None
    tokens: int | None = None

    def __post_init__(self):
        if self.probability is not None and not 0 < self.probability < 1:
            raise RrmError(f"the probability to stop at must be between 0 and 1, not {self.probability}")
        if (self.budget is not None and self.budget < 1) or (self.tokens is not None and self.tokens < 1):
            raise RrmError("a budget must be 1 comparison, or 1 token, at least")

    def check(self, strategy: Strategy, rating: Rating) -> None:
        """Raises RrmError where the rule can never act, or would not be exact."""
        rounds = strategy.shape(16)[0]
        if self.certain and not (isinstance(strategy, RoundRobin) and strategy.in_rounds):
            raise RrmError("stopping when the winner is certain needs a round robin in rounds")
        if self.certain and rating.name not in ("points", "elo"):
            raise RrmError(
                f"what can still change a winner by {rating.name} is not known exactly: rate by points or elo"
            )
        if isinstance(strategy, RoundRobin) and strategy.prune and not (self.certain and rating.name == "points"):
            raise RrmError("games are left out only where the winner is by points, and the rest does not matter")
        if (self.probability or self.tokens) and rounds == 1:
            raise RrmError("a strategy that asks for everything in one round cannot stop early")


@functools.partial(jax.jit, static_argnames=("rating", "strategy", "num_candidates"))
def winner_is_certain(
    rating: Rating, strategy: RoundRobin, field: Field, games: Games, num_candidates: int
) -> jax.Array:
    """Whether the rest of a round robin can change the winner no more: bool [Q]."""
    if rating.name == "points":
        return jnp.sum(could_win(field, games, num_candidates), axis=-1) <= 1
    real_QC = real(field, num_candidates)
    tallies = tally(games, num_candidates)
    left_QC = jnp.asarray(field.count)[:, None] - 1 - jnp.sum(tallies.count, -1) - jnp.sum(tallies.count, -2)
    left_QC = jnp.where(real_QC, left_QC, 0)
    ratings_QC = rate(rating, strategy, field, games, num_candidates)
    leader_Q = jnp.argmax(ratings_QC, axis=-1)[:, None]
    at_leader = jnp.arange(num_candidates) == leader_Q
    # A game moves a rating by k × (score − expectation), and no gap ever gets wider than this.
    lowest_Q = jnp.min(jnp.where(real_QC, ratings_QC, jnp.inf), axis=-1)
    widest_Q = jnp.max(ratings_QC, axis=-1) - lowest_Q + 2 * rating.k * jnp.max(left_QC, axis=-1)
    step_Q = rating.k * jax.nn.sigmoid(widest_Q * (math.log(10) / rating.scale))
    falls_Q = jnp.take_along_axis(ratings_QC - step_Q[:, None] * left_QC, leader_Q, axis=-1)
    rises_QC = jnp.where(at_leader, -jnp.inf, ratings_QC + step_Q[:, None] * left_QC)
    return jnp.all(rises_QC < falls_Q - 1e-2, axis=-1)  # float32 near 1000 has steps of 6e-5


@functools.partial(jax.jit, static_argnames=("strategy", "num_candidates"))
def leader_probability(strategy: Strategy, field: Field, games: Games, num_candidates: int) -> jax.Array:
    """A lower bound of the probability that the leader is the best, float32 [Q]."""
    fitted = fit(weighed(strategy, games, num_candidates), field.count)
    return probability_best(fitted.theta, fitted.covariance, field.count)
