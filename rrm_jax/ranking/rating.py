"""What a tournament's games make of its candidates: one name for each way to rate them.

Axes: Q tournaments, C candidates.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.ranking.adaptive import weighed
from rrm_jax.ranking.bradley_terry import elo_scale, fit
from rrm_jax.ranking.elo import elo_over_orders, elo_ratings
from rrm_jax.ranking.field import Field, candidate_bits, real
from rrm_jax.ranking.games import Games, average_win_rate, points, tally
from rrm_jax.ranking.strategies import Knockout, Strategy, survived

RATINGS = ("elo", "elo-mean", "points", "win-rate", "bradley-terry", "survived")


@dataclasses.dataclass(frozen=True)
class Rating:
    """`name`: "elo", sequential in the order played (docs/method.md); "elo-mean", over `orders` drawn orders of the
    same games; "points", a win 1, a tie ½; "win-rate", the mean over the opponents met of the share of points against
    each; "bradley-terry", on Elo's scale (see `bradley_terry.fit`); or "survived", the rounds of a knockout, and, of
    one that ended before one candidate was left, a share of a round by Bradley–Terry's strength. `k`, `scale` and
    `initial` are Elo's."""

    name: str
    k: float = 4.0
    scale: float = 400.0
    initial: float = 1000.0
    orders: int = 100

    def __post_init__(self):
        if self.name not in RATINGS:
            raise RrmError(f"rating {self.name!r} is not one of {', '.join(RATINGS)}")


@functools.partial(jax.jit, static_argnames=("rating", "strategy", "num_candidates"))
def rate(rating: Rating, strategy: Strategy, field: Field, games: Games, num_candidates: int) -> jax.Array:
    """Ratings float32 [Q, C]; −inf for padding."""
    elo = {"k": rating.k, "scale": rating.scale, "initial": rating.initial}
    if rating.name == "elo":
        rated = elo_ratings(*games, num_candidates, **elo)
    elif rating.name == "elo-mean":
        rated = elo_over_orders(games, field.key, num_candidates, orders=rating.orders, **elo)[0]
    elif rating.name == "points":
        rated = points(tally(games, num_candidates))
    elif rating.name == "win-rate":
        rated = average_win_rate(tally(games, num_candidates), field.count)
    elif rating.name == "survived":
        if not isinstance(strategy, Knockout):
            raise RrmError('the rating "survived" is of a knockout')
        rated = survived(field, games, num_candidates, strategy.seeding)
    else:
        theta_QC = fit(weighed(strategy, games, num_candidates), field.count).theta
        rated = elo_scale(theta_QC, rating.initial, rating.scale)
    return jnp.where(real(field, num_candidates), rated, -jnp.inf)


@functools.partial(jax.jit, static_argnames="num_candidates")
def with_strengths(field: Field, games: Games, ratings_QC, num_candidates: int) -> jax.Array:
    """Ratings by "survived", float32 [Q, C], of knockouts that may have ended early: where not one alone is at the top,
    a share of a round is added by Bradley–Terry's strength."""
    best_QC = real(field, num_candidates) & (ratings_QC == jnp.max(ratings_QC, axis=-1, keepdims=True))
    theta_QC = fit(tally(games, num_candidates), field.count).theta
    return ratings_QC + (jnp.sum(best_QC, axis=-1) > 1)[:, None] * jax.nn.sigmoid(theta_QC)


@functools.partial(jax.jit, static_argnames="num_candidates")
def standings(field: Field, ratings_QC, num_candidates: int) -> jax.Array:
    """Candidates from best to worst, int32 [Q, C]: equal ratings in a drawn order, which favours no place in the list.

    Padding comes last.
    """
    drawn_QC = candidate_bits(field, num_candidates, "ties")
    return jax.vmap(lambda rating, drawn: jnp.lexsort((drawn, -rating)))(ratings_QC, drawn_QC).astype(np.int32)
