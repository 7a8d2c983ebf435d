"""Completions of a step, as rows that a person can read."""

from typing import Any

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.training.rollouts import Rollouts
from rrm_jax.training.task import Task


def traces_of(rollouts: Rollouts, task: Task, tokenizer: Tokenizer, count: int, step: int) -> list[dict[str, Any]]:
    """Up to `count` rows, of groups spread over the step: the first sample of each, with what it earned."""
    groups = rollouts.groups
    rows = []
    for at in range(0, len(groups), -(-len(groups) // count) if count else len(groups) + 1)[:count]:
        group, ids = groups[at], groups[at].completion_ids[0]
        rows.append(
            {
                "step": step,
                "id": group.asked.id,
                **task.trace(group, 0),
                "reward": float(rollouts.reward_PG[at, 0]),
                "advantage": float(rollouts.advantage_PG[at, 0]),
                "tokens": len(ids),
                "finished": group.finished[0],
                "prompt": tokenizer.decode(group.prompt_ids),
                "completion": tokenizer.decode(ids),
            }
        )
    return rows
