"""The tournaments that are played side by side, and the random choices that belong to each.

Axes: Q tournaments, C candidates (the most that one has; what is beyond a tournament's own number is padding).

A choice is a hash of (seed, item id, what is drawn, for whom), never of a place in an array, so a tournament comes out
the same in any company and after any restart.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.ranking.protocol import Item


class Field(NamedTuple):
    """`count` int32 [Q] candidates; `key` uint32 [Q, 2], each tournament's random key; `same` bool [Q, C, C], who is
    known to say the same, or None: nobody. Such pairs cost no comparison."""

    count: Any
    key: Any
    same: Any = None

    def free(self, first, second) -> Any:
        """Which pairs of candidates int32 [Q, R] cost no comparison, bool [Q, R]."""
        if self.same is None:
            return np.zeros(first.shape, bool)
        return self.same[np.arange(len(self.same))[:, None], first, second]


class Pairs(NamedTuple):
    """Candidates to compare in a tournament's next round: int32 [Q, R]; `mask` bool [Q, R] says which places count."""

    first: Any
    second: Any
    mask: Any


def field_of(items: Sequence[Item], seed: int) -> Field:
    """Items in the order of the tournaments [Q]. Same id and seed, same random choices."""
    keys = [divmod(address(seed, item.id), 2**32) for item in items]
    return Field(np.array([item.candidates for item in items], np.int32), np.array(keys, np.uint32).reshape(-1, 2))


def address(seed: int, item_id: str, *what: str | int) -> int:
    """64 random bits that belong to (seed, item id, what is drawn), whatever else is drawn and on any machine."""
    key = json.dumps([seed, item_id, *what]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def real(field: Field, num_candidates: int) -> jax.Array:
    """Which candidates there are, bool [Q, C]."""
    return jnp.arange(num_candidates) < jnp.asarray(field.count)[:, None]


def keys(field: Field, what: str, number=0) -> jax.Array:
    """Keys [Q] for drawing `what` (a name) for the `number`-th time."""
    name = np.uint32(address(0, what) % 2**32)

    def one(data):
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(key, name), number)

    return jax.vmap(one)(jnp.asarray(field.key))


def bits_at(key, *places) -> jax.Array:
    """Random bits, uint32, of one key at integer places: arrays of one shape, whose values are what is addressed."""
    places = [jnp.asarray(place) for place in places]

    def one(*at):
        addressed = key
        for place in at:
            addressed = jax.random.fold_in(addressed, place)
        return jax.random.bits(addressed, (), jnp.uint32)

    flat = jax.vmap(one)(*(place.ravel() for place in places))
    return flat.reshape(places[0].shape)


def candidate_bits(field: Field, num_candidates: int, what: str, number=0) -> jax.Array:
    """Random bits [Q, C], uint32, those of padding the largest of all."""
    bits = jax.vmap(lambda key: bits_at(key, jnp.arange(num_candidates)))(keys(field, what, number))
    return jnp.where(real(field, num_candidates), bits >> 1, jnp.uint32(2**32 - 1))
