"""Prompt look-up: what followed, earlier in the row, the tokens that the row ends with now.

Axes: B rows, C columns of the history, J drafts.

A judge quotes what it judges. Its next tokens are guessed from the latest earlier place whose last tokens are the same,
and verified together in one forward pass; the draws themselves are those that would have been made without the guesses.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Guess `drafts` tokens at a time, from places where at least `least` and at most `most` last tokens agree."""

    drafts: int = 4
    least: int = 2
    most: int = 4

    def __post_init__(self):
        if self.drafts < 1 or not 1 <= self.least <= self.most:
            raise ValueError(f"prompt look-up needs drafts ≥ 1 and 1 ≤ least ≤ most, not {self}")


def guess(lookup: PromptLookup, history_BC, length_B) -> jax.Array:
    """Drafts int32 [B, J], −1 where there is none: of the longest agreement, and among equals of the latest place.

    `history_BC` holds each row's tokens, prompt and completion, `length_B` of them.
    """
    columns = jnp.arange(history_BC.shape[1], dtype=jnp.int32)
    agreed, unbroken = jnp.zeros_like(history_BC), jnp.ones(history_BC.shape, bool)
    for back in range(lookup.most):
        last = jnp.take_along_axis(history_BC, jnp.maximum(length_B - 1 - back, 0)[:, None], axis=1)
        earlier = jnp.pad(history_BC, ((0, 0), (back, 0)), constant_values=-1)[:, : history_BC.shape[1]]
        unbroken &= (earlier == last) & (length_B > back)[:, None]
        agreed += unbroken
    # Place c: the tokens up to c agree with the row's last ones, and something follows c.
    agreed = jnp.where(columns < length_B[:, None] - 1, agreed, 0)
    score = jnp.where(agreed >= lookup.least, agreed * history_BC.shape[1] + columns, -1)
    best = jnp.argmax(score, axis=1)
    at = best[:, None] + 1 + jnp.arange(lookup.drafts)
    drafts = jnp.take_along_axis(history_BC, jnp.minimum(at, history_BC.shape[1] - 1), axis=1)
    found = (jnp.max(score, axis=1) >= 0)[:, None] & (at < length_B[:, None])
    return jnp.where(found, drafts, -1)
