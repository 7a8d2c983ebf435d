"""Which candidates to compare next: round robin, random opponents, knockout, Swiss.

Axes: Q tournaments, C candidates, M places for games, R of them in a round.

A strategy is a pure function of what has been played, for any number of tournaments at once, so that a live judge, a
recorded log and a simulator play the same tournaments. The places of the games array belong to rounds: round r's are
r × R … (r + 1) × R − 1, whether each is played or not.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.ranking.field import Field, Pairs, bits_at, candidate_bits, keys, real
from rrm_jax.ranking.games import Games, points, tally


class Strategy(Protocol):
    """Frozen and hashable: jitted programs are kept by strategy. `rating` names the aggregator that goes with it."""

    @property
    def rating(self) -> str:
        """By its name, as `rating.py` has them."""
        ...

    def shape(self, candidates: int) -> tuple[int, int]:
        """The most rounds that tournaments of up to so many candidates take, and the most games of a round."""
        ...

    def most_comparisons(self, candidates: int) -> int:
        """The most that one tournament can need."""
        ...

    def propose(self, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
        """The pairs of round `round_number` (from 0; traced), given the games before it; none once it is over."""
        ...


@dataclasses.dataclass(frozen=True)
class RoundRobin:
    """Each of the n (n − 1) / 2 pairs once, in a drawn order; the paper's Elo study (docs/method.md).

    In one round, or, with `in_rounds`, in n − 1 (n odd: n) rounds in which everybody plays once, so that a tournament
    can end when its winner is certain. `prune` leaves out games between two that can't win any more by points.
    """

    in_rounds: bool = False
    prune: bool = False
    rating: str = "elo"

    def shape(self, candidates: int) -> tuple[int, int]:
        """As `Strategy` has it."""
        if not self.in_rounds:
            return 1, max(self.most_comparisons(candidates), 1)
        return max(candidates - 1 + candidates % 2, 1), max(candidates // 2, 1)

    def most_comparisons(self, candidates: int) -> int:
        """n (n − 1) / 2."""
        return candidates * (candidates - 1) // 2

    def propose(self, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
        """As `Strategy` has it."""
        if not self.in_rounds:
            return _all_pairs(field, num_candidates)
        pairs = _circle(field, round_number, num_candidates)
        if not self.prune:
            return pairs
        out_QC = ~could_win(field, games, num_candidates)
        both = _take(out_QC, pairs.first) & _take(out_QC, pairs.second)
        return pairs._replace(mask=pairs.mask & ~both)


def could_win(field: Field, games: Games, num_candidates: int) -> jax.Array:
    """Who may still have the most points at the end of a round robin, alone or with others: bool [Q, C]."""
    tallies = tally(games, num_candidates)
    played_QC = jnp.sum(tallies.count, -1) + jnp.sum(tallies.count, -2)
    points_QC = jnp.where(real(field, num_candidates), points(tallies), -1)
    left_QC = jnp.asarray(field.count)[:, None] - 1 - played_QC
    return real(field, num_candidates) & (points_QC + left_QC >= jnp.max(points_QC, axis=-1, keepdims=True))


def _all_pairs(field: Field, num_candidates: int) -> Pairs:
    first, second = (np.asarray(x, np.int32) for x in np.triu_indices(num_candidates, 1))
    if not len(first):
        first = second = np.zeros(1, np.int32)
    bits_QR = jax.vmap(lambda key: bits_at(key, first * 65536 + second))(keys(field, "games"))
    here_QR = (second < jnp.asarray(field.count)[:, None]) & (first < second)
    order_QR = jnp.argsort(jnp.where(here_QR, bits_QR >> 1, jnp.uint32(2**32 - 1)), axis=-1)
    return Pairs(jnp.asarray(first)[order_QR], jnp.asarray(second)[order_QR], _take(here_QR, order_QR))


def _circle(field: Field, round_number, num_candidates: int) -> Pairs:
    """The circle method: one stays, the others move on by one place each round."""
    order_QC = jnp.argsort(candidate_bits(field, num_candidates, "circle"), axis=-1).astype(jnp.int32)
    place_R = jnp.arange(max(num_candidates // 2, 1), dtype=jnp.int32)

    def one(count, order_C):
        moving = jnp.maximum(count + count % 2 - 1, 1)
        first_R, second_R = (round_number + place_R) % moving, (round_number - place_R) % moving
        second_R = jnp.where(place_R == 0, moving, second_R)
        here_R = (round_number < moving) & (2 * place_R < moving) & (first_R < count) & (second_R < count)
        most = num_candidates - 1
        return Pairs(order_C[first_R], order_C[jnp.minimum(second_R, most)], here_R)

    return jax.vmap(one)(jnp.asarray(field.count), order_QC)


@dataclasses.dataclass(frozen=True)
class RandomOpponents:
    """Every candidate meets `opponents` distinct random others, all in one round: n × opponents games in a drawn order.

    The paper's reward for RL has 4 (docs/method.md). Two that have drawn each other meet twice.
    """

    opponents: int = 4
    rating: str = "elo"

    def __post_init__(self):
        if self.opponents < 1:
            raise RrmError(f"opponents must be 1 at least, not {self.opponents}")

    def shape(self, candidates: int) -> tuple[int, int]:
        """As `Strategy` has it."""
        return 1, max(self.most_comparisons(candidates), 1)

    def most_comparisons(self, candidates: int) -> int:
        """n × opponents; fewer candidates than that have n − 1 opponents each."""
        return candidates * min(self.opponents, candidates - 1)

    def propose(self, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
        """As `Strategy` has it."""
        each = max(min(self.opponents, num_candidates - 1), 1)
        mine, theirs = (x.astype(np.int32) for x in np.divmod(np.arange(num_candidates**2), num_candidates))

        def one(count, drawing, ordering):
            bits = bits_at(drawing, mine, theirs) >> 1
            bits = jnp.where((mine < count) & (theirs < count) & (mine != theirs), bits, jnp.uint32(2**32 - 1))
            drawn = jnp.argsort(bits.reshape(num_candidates, num_candidates), axis=-1)[:, :each].astype(jnp.int32)
            first, place = (x.astype(np.int32) for x in np.divmod(np.arange(num_candidates * each), each))
            here = (first < count) & (place < count - 1)
            order = jnp.argsort(jnp.where(here, bits_at(ordering, first, place) >> 1, jnp.uint32(2**32 - 1)))
            return Pairs(jnp.asarray(first)[order], drawn.ravel()[order], here[order])

        return jax.vmap(one)(jnp.asarray(field.count), keys(field, "opponents"), keys(field, "games"))


@dataclasses.dataclass(frozen=True)
class Knockout:
    """Single elimination: n − 1 comparisons in ⌈log₂ n⌉ rounds.

    The order of the bracket is drawn; neighbours meet, and winners keep their order. In a round with an odd number one
    candidate, drawn from those that have had none, gets a bye. A comparison without a winner is decided by a coin. The
    rating "survived" is the number of rounds that a candidate survived; those knocked out together are equal.

    `bracket` gives the order for every tournament instead: the paper's PPE study uses one for all its queries.
    `seeding` plays so many Swiss rounds first, and has the bracket follow their Bradley–Terry ratings: the best meets
    the worst, and has the bye.
    """

    bracket: tuple[int, ...] | None = None
    seeding: int = 0
    rating: str = "survived"

    def __post_init__(self):
        if self.bracket is not None and sorted(self.bracket) != list(range(len(self.bracket))):
            raise RrmError(f"a bracket of {len(self.bracket)} candidates must list each of 0 … once")
        if self.seeding < 0 or (self.seeding and self.bracket is not None):
            raise RrmError("seeding is a number of rounds, and a given bracket has none")

    def shape(self, candidates: int) -> tuple[int, int]:
        """As `Strategy` has it; rounds of seeding come first."""
        return self.seeding + knockout_rounds(candidates), max(candidates // 2, 1)

    def most_comparisons(self, candidates: int) -> int:
        """n − 1, and ⌊n / 2⌋ for each round of seeding."""
        return candidates - 1 + self.seeding * (candidates // 2)

    def propose(self, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
        """As `Strategy` has it."""
        if not self.seeding:
            order = candidate_bits(field, num_candidates, "bracket")
            if self.bracket is not None:
                places = np.pad(np.argsort(self.bracket), (0, num_candidates - len(self.bracket)))
                order = jnp.broadcast_to(places, order.shape).astype(jnp.uint32)
            return knockout_round(field, games, round_number, num_candidates, order)

        def bracket() -> Pairs:
            from rrm_jax.ranking.bradley_terry import fit

            places = self.seeding * max(num_candidates // 2, 1)
            theta_QC = fit(tally(part(games, 0, places), num_candidates), field.count).theta
            drawn = jnp.argsort(candidate_bits(field, num_candidates, "bracket"), axis=-1)
            best_first = jnp.argsort(-_take(jnp.where(real(field, num_candidates), theta_QC, -jnp.inf), drawn), axis=-1)
            seeds = jnp.argsort(_take(drawn, best_first), axis=-1).astype(jnp.uint32)
            later = part(games, places, games.mask.shape[1])
            return knockout_round(field, later, round_number - self.seeding, num_candidates, seeds, seeded=True)

        swiss = lambda: _swiss_round(field, games, round_number, num_candidates)  # noqa: E731
        return jax.lax.cond(round_number < self.seeding, swiss, bracket)


def knockout_rounds(candidates: int) -> int:
    """⌈log₂ n⌉, 1 at least."""
    return max(math.ceil(math.log2(max(candidates, 1))), 1)


def first_wins(field: Field, games: Games) -> jax.Array:
    """Whether a game goes to the one named first, bool [Q, M]: a tie by a coin that belongs to the pair."""
    tie_QM = jnp.asarray(games.score) == 0.5
    coin_QM = jax.lax.cond(
        jnp.any(tie_QM & games.mask),
        lambda: jax.vmap(bits_at)(keys(field, "coin"), games.first, games.second) >> 31 == 1,
        lambda: jnp.zeros(tie_QM.shape, bool),
    )
    return jnp.where(tie_QM, coin_QM, jnp.asarray(games.score) > 0.5)


def losses(field: Field, games: Games, num_candidates: int) -> tuple[jax.Array, jax.Array]:
    """How often each candidate played and lost, int32 [Q, C] each."""
    loser_QM = jnp.where(first_wins(field, games), games.second, games.first)
    zeros = jnp.zeros((num_candidates,), jnp.int32)

    def one(first, second, loser, mask):
        times = mask.astype(jnp.int32)
        return zeros.at[first].add(times).at[second].add(times), zeros.at[loser].add(times)

    return jax.vmap(one)(games.first, games.second, loser_QM, games.mask)


def knockout_round(field, games: Games, round_number, num_candidates: int, order_QC, *, seeded: bool = False) -> Pairs:
    """The pairs of a bracket's round, whose games so far are `games`; the bracket has its candidates by `order_QC`."""
    played_QC, lost_QC = losses(field, games, num_candidates)
    alive_QC = real(field, num_candidates) & (lost_QC == 0)
    left_Q = jnp.sum(alive_QC, axis=-1)
    fresh_QC = alive_QC & (played_QC == round_number)  # who has played in every round has had no bye
    pool_QC = jnp.where(jnp.any(fresh_QC, axis=-1, keepdims=True), fresh_QC, alive_QC)
    chance_QC = order_QC if seeded else candidate_bits(field, num_candidates, "bye", round_number)
    chance_QC = jnp.where(pool_QC, chance_QC, jnp.uint32(2**32 - 1))
    bye_QC = (jnp.arange(num_candidates) == jnp.argmin(chance_QC, axis=-1)[:, None]) & (left_Q % 2 == 1)[:, None]
    playing_QC = alive_QC & ~bye_QC
    in_order_QC = jnp.argsort(jnp.where(playing_QC, order_QC, jnp.uint32(2**32 - 1)), axis=-1).astype(jnp.int32)
    number_Q = jnp.sum(playing_QC, axis=-1)[:, None]
    place_R = jnp.arange(max(num_candidates // 2, 1))
    if num_candidates == 1:
        in_order_QC = jnp.pad(in_order_QC, ((0, 0), (0, 1)))
    if seeded:
        first = in_order_QC[:, : len(place_R)]
        second = _take(in_order_QC, jnp.clip(number_Q - 1 - place_R, 0, num_candidates - 1))
    else:
        first, second = in_order_QC[:, 0 : 2 * len(place_R) : 2], in_order_QC[:, 1 : 2 * len(place_R) : 2]
    return Pairs(first, second, 2 * place_R + 1 < number_Q)


def survived(field: Field, games: Games, num_candidates: int, seeding: int = 0) -> jax.Array:
    """The rounds that each candidate survived in a knockout, float32 [Q, C], the Swiss rounds before it not counted."""
    per_round = max(num_candidates // 2, 1)
    games = part(games, seeding * per_round, games.mask.shape[1])
    loser_QM = jnp.where(first_wins(field, games), games.second, games.first)
    round_M = jnp.arange(games.mask.shape[1]) // per_round
    rounds_Q = jnp.max(jnp.where(games.mask, round_M + 1, 0), axis=-1)

    def one(loser, mask, rounds):
        return jnp.full((num_candidates,), rounds).at[loser].min(jnp.where(mask, round_M, rounds))

    return jax.vmap(one)(loser_QM, games.mask, rounds_Q).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Swiss:
    """`rounds` rounds in which those meet who have about as many points, from the top down.

    Nobody meets an old opponent while a new one is left: towards the end of a round that may no longer be so.
    With an odd number the one who sits out is the last of those that have played most. 0 rounds: ⌈log₂ n⌉ + 2.
    """

    rounds: int = 0
    rating: str = "bradley-terry"

    def __post_init__(self):
        if self.rounds < 0:
            raise RrmError(f"rounds must be 0 at least, not {self.rounds}")

    def shape(self, candidates: int) -> tuple[int, int]:
        """As `Strategy` has it."""
        return self.rounds or knockout_rounds(candidates) + 2, max(candidates // 2, 1)

    def most_comparisons(self, candidates: int) -> int:
        """⌊n / 2⌋ a round."""
        return self.shape(candidates)[0] * (candidates // 2)

    def propose(self, field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
        """As `Strategy` has it."""
        pairs = _swiss_round(field, games, round_number, num_candidates)
        own_Q = jnp.asarray([self.shape(n)[0] for n in range(num_candidates + 1)])[field.count]
        return pairs._replace(mask=pairs.mask & (round_number < own_Q)[:, None])


def _swiss_round(field: Field, games: Games, round_number, num_candidates: int) -> Pairs:
    tallies = tally(games, num_candidates)
    met_QCC = tallies.count + jnp.swapaxes(tallies.count, -1, -2)
    played_QC = jnp.sum(met_QCC, axis=-1)
    points_QC = points(tallies)
    bits_QC = candidate_bits(field, num_candidates, "swiss", round_number)
    real_QC = real(field, num_candidates)

    def one(count, points_C, played_C, met_CC, bits_C, real_C):
        # Best first, equals in a drawn order; who sits out is left out beforehand.
        by_rank_C = jnp.lexsort((bits_C, -points_C, ~real_C))
        last = jnp.lexsort((bits_C, points_C, -played_C, ~real_C))[0]
        free_C = real_C & ~((jnp.arange(num_candidates) == last) & (count % 2 == 1))
        rank_C = jnp.argsort(by_rank_C)

        def pick(free_C, _):
            # Who has one new opponent left comes first, lest another takes it.
            new_C = jnp.sum(free_C & (met_CC == 0) & ~jnp.eye(num_candidates, dtype=bool), axis=1)
            one = jnp.argmin(jnp.where(free_C, rank_C - num_candidates * (new_C <= 1), num_candidates))
            others_C = free_C & (jnp.arange(num_candidates) != one)
            distance_C = jnp.abs(points_C - points_C[one]) + 1e4 * met_CC[one] + rank_C / (2.0 * num_candidates)
            two = jnp.argmin(jnp.where(others_C, distance_C, jnp.inf))
            here = jnp.any(others_C)
            free_C = free_C & (jnp.arange(num_candidates) != one) & (jnp.arange(num_candidates) != two)
            return free_C, Pairs(one.astype(jnp.int32), two.astype(jnp.int32), here)

        return jax.lax.scan(pick, free_C, None, length=max(num_candidates // 2, 1))[1]

    return jax.vmap(one)(jnp.asarray(field.count), points_QC, played_QC, met_QCC, bits_QC, real_QC)


def _take(x_QC, index_QR) -> jax.Array:
    return jnp.take_along_axis(x_QC, index_QR, axis=-1)


def part(games: Games, start: int, end: int) -> Games:
    """The places from `start` to `end`; at least one, so that no array is empty."""
    if start >= end:
        return Games(*(jnp.zeros_like(x[:, :1]) for x in games))
    return Games(*(x[:, start:end] for x in games))
