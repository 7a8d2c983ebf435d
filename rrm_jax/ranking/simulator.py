"""A judge whose candidates' strengths are known: Bradley–Terry, with the faults of real judges.

Axes: Q tournaments, C candidates, R comparisons of a round.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.ranking.field import Field, Pairs, bits_at, keys, real
from rrm_jax.ranking.games import Games, tally
from rrm_jax.ranking.tournament import Answers


@dataclasses.dataclass(frozen=True)
class Simulator:
    """The log-odds that a vote names i rather than j are `spread` × (strength_i − strength_j) and more.

    Strengths are standard normal, so a small `spread` is a noisy judge: with 1 it names the better of two drawn at
    random with probability 0.73, with 2 0.83, with 4 0.91. `position_bias` is added for whichever is shown first, by
    a coin for each vote. `pair_error` is the standard deviation of an error that belongs to the pair and is the
    same in all its votes: it makes votes correlated, and cycles. `intransitivity` weighs a term
    x_i y_j − x_j y_i of two more normal traits, with which the strong can lose to the weak of one kind.
    A comparison is the majority of `votes` votes, or, where as many say the contrary, a coin.
    """

    spread: float = 2.0
    position_bias: float = 0.0
    pair_error: float = 0.0
    intransitivity: float = 0.0
    votes: int = 1

    def __post_init__(self):
        if self.votes < 1:
            raise RrmError(f"votes must be 1 at least, not {self.votes}")
        if self.pair_error < 0:
            raise RrmError("pair_error is a standard deviation, and so not negative")


class World(NamedTuple):
    """What the judge can see, in part: `strength` and the two `traits`, float32 [Q, C] and [Q, C, 2], and `key` [Q]."""

    strength: jax.Array
    traits: jax.Array
    key: jax.Array


def draw_world(field: Field, num_candidates: int) -> World:
    """Strengths of random candidates; those of padding are −inf."""
    place = jnp.arange(num_candidates)
    drawn = jnp.stack([jax.vmap(lambda key: _normal(key, place))(keys(field, "world", at)) for at in range(3)], axis=-1)
    strength = jnp.where(real(field, num_candidates), drawn[..., 0], -jnp.inf)
    return World(strength, drawn[..., 1:], keys(field, "votes"))


def world_of_labels(field: Field, correct: np.ndarray) -> World:
    """Strengths ½ for correct candidates and −½ for others (bool [Q, C]): equal ones are told apart by a coin."""
    strength = jnp.where(real(field, correct.shape[1]), jnp.asarray(correct) - 0.5, -jnp.inf)
    return World(strength, jnp.zeros((*correct.shape, 2)), keys(field, "votes"))


def verdicts(judge: Simulator, world: World, pairs: Pairs, games: Games) -> jax.Array:
    """Scores of the first ones, float32 [Q, R]: 1 or 0. Votes are addressed by the pair and by how often it has met
    before, in `games` and in this round: every strategy hears the same."""
    faults = judge.spread, judge.position_bias, judge.pair_error, judge.intransitivity
    return _verdicts(judge.votes, np.array(faults, np.float32), world, pairs, games)


@functools.partial(jax.jit, static_argnames="votes")
def _verdicts(votes: int, faults, world: World, pairs: Pairs, games: Games) -> jax.Array:
    spread, position_bias, pair_error, intransitivity = faults
    size = world.strength.shape[1]
    count_QCC = tally(games, size).count
    met_QCC = (count_QCC + jnp.swapaxes(count_QCC, 1, 2)).astype(jnp.int32)

    def one(key, strength_C, traits_C2, met_CC, first_R, second_R, mask_R):
        of = strength_C[first_R] - strength_C[second_R]
        x, y = traits_C2[first_R], traits_C2[second_R]
        low_R, high_R = jnp.minimum(first_R, second_R), jnp.maximum(first_R, second_R)
        error_R = _normal(jax.random.fold_in(key, 0), low_R, high_R) * jnp.where(first_R < second_R, 1, -1)
        odds_R = spread * of + pair_error * error_R
        odds_R += intransitivity * (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0])
        meeting_R = met_CC[first_R, second_R] + _earlier(jnp.where(mask_R, low_R * size + high_R, size * size))
        wins_R = jnp.zeros(len(first_R))
        for vote in range(votes):
            at = low_R, high_R, meeting_R * votes + vote
            shown = jnp.where(bits_at(jax.random.fold_in(key, 1), *at) >> 31 == 1, 1, -1)
            uniform = _uniform(jax.random.fold_in(key, 2), *at)
            # Of the lower number winning, so that it does not matter who is named first.
            named = jnp.where(first_R < second_R, 1, -1)
            low_wins = uniform < jax.nn.sigmoid(named * odds_R + shown * position_bias)
            wins_R += low_wins == (first_R < second_R)
        coin_R = (bits_at(jax.random.fold_in(key, 3), low_R, high_R, meeting_R) >> 31 == 1) == (first_R < second_R)
        return jnp.where(2 * wins_R == votes, coin_R, 2 * wins_R > votes).astype(jnp.float32)

    return jax.vmap(one)(world.key, world.strength, world.traits, met_QCC, *pairs)


def _earlier(code_R) -> jax.Array:
    """How many of the places before have the same code, int32 [R]."""
    order_R = jnp.argsort(code_R, stable=True)
    place_R = jnp.arange(len(code_R))
    begins_R = jnp.concatenate([jnp.ones(1, bool), code_R[order_R][1:] != code_R[order_R][:-1]])
    first_R = jax.lax.cummax(jnp.where(begins_R, place_R, 0))
    return jnp.zeros(len(code_R), jnp.int32).at[order_R].set(place_R - first_R)


def ask_simulator(judge: Simulator, world: World):
    """The simulator as `tournament.play`'s judge; a vote costs one token."""

    def ask(pairs: Pairs, games: Games, number: int) -> Answers:
        score = np.asarray(verdicts(judge, world, pairs, games))
        return Answers(score, judge.votes * pairs.mask.sum(axis=1))

    return ask


def _uniform(key, *places) -> jax.Array:
    return (bits_at(key, *places) >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25


def _normal(key, *places) -> jax.Array:
    return jax.scipy.special.ndtri(_uniform(key, *places))
