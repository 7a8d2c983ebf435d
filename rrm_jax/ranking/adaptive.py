"""Adaptive pairing: a knockout to find the strong ones, then comparisons where they tell most about who is the best.

Axes: Q tournaments, C candidates, R places of a round.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rrm_jax.errors import RrmError
from rrm_jax.ranking.bradley_terry import draws, fit
from rrm_jax.ranking.field import Field, Pairs, bits_at, candidate_bits, keys, real
from rrm_jax.ranking.games import Games, Tallies, tally
from rrm_jax.ranking.strategies import knockout_round, knockout_rounds, part


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """A drawn knockout, n − 1 comparisons, and then rounds of `parallel` comparisons each, up to `budget` in all.

    In these the leader of the Bradley–Terry fit meets challengers, each the best of the others in a draw from the
    posterior (Thompson sampling): those who might be the best after all are met most. The same pair may meet again, and
    a judge is then asked for new votes; k verdicts on one pair count as k / (1 + (k − 1) `correlation`), since a judge
    that errs about a pair tends to err again. `budget` 0: 4 n; `parallel` 0: n / 4 (more are quicker, fewer better).
    """

    budget: int = 0
    parallel: int = 0
    correlation: float = 0.1
    rating: str = "bradley-terry"

    def __post_init__(self):
        if self.budget < 0 or self.parallel < 0 or not 0 <= self.correlation <= 1:
            raise RrmError("budget and parallel must be 0 at least, and correlation from 0 to 1")

    def most_comparisons(self, candidates: int) -> int:
        """The budget; four a candidate where none is given."""
        return 0 if candidates < 2 else self.budget or 4 * candidates

    def at_once(self, candidates: int) -> int:
        """Comparisons of a round after the knockout: a quarter as many as candidates where `parallel` is 0."""
        return self.parallel or max(candidates // 4, 1)

    def shape(self, candidates: int) -> tuple[int, int]:
        """As `Strategy` has it."""
        rounds = [self._own_rounds(n) for n in range(1, candidates + 1)]
        return max(rounds), max(candidates // 2, self.at_once(candidates))

    def _own_rounds(self, candidates: int) -> int:
        """Where the knockout's games cost nothing, all comparisons are challenges."""
        return knockout_rounds(candidates) + -(-self.most_comparisons(candidates) // self.at_once(candidates))

    def propose(self, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
        """As `Strategy` has it: a knockout's round, or, where that is over, challenges to the leader."""
        table = range(num_candidates + 1)
        knockout_Q = jnp.asarray([knockout_rounds(n) for n in table])[field.count]
        width = self.shape(num_candidates)[1]
        order = candidate_bits(field, num_candidates, "bracket")
        opening = part(games, 0, knockout_rounds(num_candidates) * width)
        # A smaller tournament's knockout is over before others', and what it plays then is not of the bracket.
        place_M = jnp.arange(opening.mask.shape[1]) // width
        opening = opening._replace(mask=opening.mask & (place_M < knockout_Q[:, None]))
        pairs = knockout_round(field, opening, round_number, num_candidates, order)
        pairs = Pairs(*(jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in pairs))
        later_Q = round_number >= knockout_Q

        def informed() -> Pairs:
            chosen = self._challenges(field, games, round_number, num_candidates, width)
            return Pairs(*(jnp.where(later_Q[:, None], x, y) for x, y in zip(chosen, pairs, strict=True)))

        pairs = jax.lax.cond(jnp.any(later_Q), informed, lambda: pairs)
        most_Q = jnp.asarray([self.most_comparisons(n) for n in table])[field.count]
        played_Q = jnp.sum(games.mask & ~field.free(games.first, games.second), axis=-1)
        place_QR = played_Q[:, None] + jnp.cumsum(pairs.mask & ~field.free(pairs.first, pairs.second), axis=-1)
        return pairs._replace(mask=pairs.mask & (place_QR <= most_Q[:, None]))

    def _challenges(self, field: Field, games: Games, round_number, num_candidates: int, width: int) -> Pairs:
        tallies = weighed(self, games, num_candidates)
        theta_QC = fit(tallies, field.count).theta
        real_QC = real(field, num_candidates)
        leader_Q = jnp.argmax(jnp.where(real_QC, theta_QC, -jnp.inf), axis=-1).astype(jnp.int32)
        candidate, draw = (x.ravel() for x in jnp.mgrid[:num_candidates, :width])
        bits = jax.vmap(lambda key: bits_at(key, candidate, draw))(keys(field, "challenge", round_number))
        uniform = (bits.reshape(-1, num_candidates, width) >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25
        drawn_QCR = draws(tallies, theta_QC, jax.scipy.special.ndtri(uniform))
        # Who says the same as the leader cannot be told from it.
        others = real_QC & (jnp.arange(num_candidates) != leader_Q[:, None])
        if field.same is not None:
            others &= ~jnp.take_along_axis(jnp.asarray(field.same), leader_Q[:, None, None], axis=1)[:, 0]
        second = jnp.argmax(jnp.where(others[:, :, None], drawn_QCR, -jnp.inf), axis=1).astype(jnp.int32)
        at_once_Q = jnp.asarray([self.at_once(n) for n in range(num_candidates + 1)])[field.count]
        mask = (jnp.arange(width) < at_once_Q[:, None]) & jnp.any(others, axis=-1)[:, None]
        return Pairs(jnp.broadcast_to(leader_Q[:, None], second.shape), second, mask)


def weighed(strategy: Any, games: Games, num_candidates: int) -> Tallies:
    """The games' tallies, float [Q, C, C], `tempered` where the strategy has a `correlation`."""
    return tempered(tally(games, num_candidates), getattr(strategy, "correlation", 0.0))


def tempered(tallies: Tallies, correlation: float) -> Tallies:
    """k games of one pair, named in any order, weigh k / (1 + (k − 1) × correlation)."""
    met = tallies.count + jnp.swapaxes(tallies.count, -1, -2)
    weight = 1 / (1 + jnp.maximum(met - 1, 0) * correlation)
    return Tallies(*(x * weight for x in tallies))
