"""Queries as prompts of a policy.

Light to import: no device is touched.
"""

from collections.abc import Sequence
from typing import Any

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.training.policy_config import PolicyConfig

Messages = tuple[tuple[str, str], ...]

PROMPT = ("system", "user", "prefix", "thinking", "max_prompt_tokens")
"""The settings that say how a policy is asked; a run's checkpoints record them as the fact `policy`."""


def prompt_facts(policy: PolicyConfig) -> dict[str, Any]:
    """What a checkpoint keeps of how a policy is asked, JSON."""
    return {key: getattr(policy, key) for key in PROMPT}


def policy_messages(policy: PolicyConfig, query: str) -> Messages:
    """The conversation up to the model's turn. What looks like a placeholder in the query stays what it is."""
    system: Messages = (("system", policy.system),) if policy.system else ()
    before, after = policy.user.split("{query}")
    return *system, ("user", before + query + after)


def policy_prompt(policy: PolicyConfig, tokenizer: Tokenizer, query: str) -> tuple[Sequence[int], bool]:
    """Token ids, and whether the query's end was cut off to fit `policy.max_prompt_tokens`.

    A cut is never inside a character. Raises RrmError where there is no room for a query at all.
    """
    ids = tokenizer.encode_chat(policy_messages(policy, query), policy.prefix)
    excess = len(ids) - policy.max_prompt_tokens
    if excess <= 0:
        return ids, False
    spans = tokenizer.token_spans(query)
    while excess > 0:
        if excess > len(spans):
            raise RrmError(
                f"policy.max_prompt_tokens {policy.max_prompt_tokens} is too small: without a query the prompt has "
                f"{len(ids) - len(spans)} tokens"
            )
        spans = spans[: len(spans) - excess]
        ids = tokenizer.encode_chat(policy_messages(policy, query[: spans[-1][1] if spans else 0]), policy.prefix)
        excess = len(ids) - policy.max_prompt_tokens
    return ids, True
