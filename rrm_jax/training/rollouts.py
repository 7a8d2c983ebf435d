"""One step's experience: what the policy was asked, its answers, their rewards and advantages.

Axes: P prompts (groups), G samples of one prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rrm_jax.data.records import Pair, Question
from rrm_jax.rl.advantages import group_advantages
from rrm_jax.rl.rewards import overlong_penalty
from rrm_jax.sampling.protocol import Completion, Decoding, Generator, Request
from rrm_jax.training.batches import Example
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.feed import Asked


@dataclasses.dataclass
class Group:
    """G samples of one prompt. `asked` is the row, a pair in the order in which it was shown.

    `answers` are what the task reads in the completions: a verdict, which names a response of that pair, or a
    response's text; None: there is none. `finished[g]`: the completion ended before the limit of tokens. The task's
    `reward` sets `rewards`; `right`, None where nobody knows; and `counts`, numbers that its metrics are made of.
    """

    asked: Any
    prompt_ids: tuple[int, ...]
    truncated: bool
    completion_ids: list[tuple[int, ...]]
    sampler_logprobs: list[tuple[float, ...]]
    finished: list[bool]
    answers: list[Any]
    rewards: list[float] = dataclasses.field(default_factory=list)
    right: list[bool | None] = dataclasses.field(default_factory=list)
    counts: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For RUN/pending; `from_json` gives an equal group."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Group":
        """Of `to_json`; lists of JSON become tuples again."""
        asked = (Pair if "response_1" in row["asked"] else Question)(**row["asked"])
        ids: dict[str, Any] = {name: [*map(tuple, row[name])] for name in ("completion_ids", "sampler_logprobs")}
        fields: dict[str, Any] = {**row, **ids, "asked": asked, "prompt_ids": tuple(row["prompt_ids"])}
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked of the sampler; `read` makes an answer of a completion."""

    read: Callable[[Completion], Any]
    decoding: Decoding
    group_size: int
    seed: int


def collect(
    generator: Generator, ask: Ask, asked: Sequence[Asked], step: int, start: int = 0,
    finished: Callable[[], None] = lambda: None,
) -> list[Group]:  # fmt: skip
    """Samples a group of completions for each prompt.

    A request's id holds the step, and its number in it, from `start`: a row seen again draws new noise. Answers are
    read as completions come, while others are still being drawn; `finished` is called for each.
    """
    groups = [
        Group(one.row, tuple(one.prompt_ids), one.truncated, *([None] * ask.group_size for _ in range(4)))  # type: ignore[arg-type]
        for one in asked
    ]
    requests = [
        Request(f"step {step}, {start + at}, {group.asked.id}", group.prompt_ids, ask.decoding, sample, ask.seed)
        for at, group in enumerate(groups)
        for sample in range(ask.group_size)
    ]
    place = {(request.id, request.sample): at for at, request in enumerate(requests)}
    for completion in generator.generate(requests):
        at = place.pop((completion.request.id, completion.request.sample))
        group, sample = groups[at // ask.group_size], at % ask.group_size
        group.completion_ids[sample], group.sampler_logprobs[sample] = completion.token_ids, completion.logprobs
        group.finished[sample] = completion.finish_reason == "stop"
        group.answers[sample] = ask.read(completion)
        finished()
    if place:
        raise RuntimeError(f"the generator left out {len(place)} of {len(requests)} completions")
    return groups


@dataclasses.dataclass
class Rollouts:
    """P groups of G samples, group-major in `examples`. `reward_PG` is all that a sample earned, `advantage_PG` what is
    made of it. `version` counts the optimiser steps of the policy that sampled; `extra` goes to the metrics."""

    groups: list[Group]
    examples: list[Example]
    reward_PG: np.ndarray
    advantage_PG: np.ndarray
    version: int
    extra: dict[str, float]

    @property
    def sampler_logprobs(self) -> list[tuple[float, ...]]:
        """Of each example, in their order, a log-probability for each completion token: what the sampler drew it
        with."""
        return [logprobs for group in self.groups for logprobs in group.sampler_logprobs]

    def metrics(self) -> dict[str, float]:
        """`accuracy` is there where it is known of some sample."""
        lengths = np.array([len(example.completion_ids) for example in self.examples])
        answers = [answer for group in self.groups for answer in group.answers]
        finished = [done for group in self.groups for done in group.finished]
        known = [right for group in self.groups for right in group.right if right is not None]
        reward = self.reward_PG
        return {
            "reward_mean": float(reward.mean()),
            "reward_std": float(reward.std()),
            **({"accuracy": float(np.mean(known))} if known else {}),
            "zero_variance_groups": float((reward.max(-1) == reward.min(-1)).mean()),
            "invalid_rate": float(np.mean([answer is None for answer in answers])),
            "truncation_rate": float(1 - np.mean(finished)),
            "response_length": float(lengths.mean()),
            "response_length_max": float(lengths.max()),
            "truncated_prompts": float(sum(group.truncated for group in self.groups)),
            **self.extra,
        }


def informative(groups: Sequence[Group], orders: int = 1) -> np.ndarray:
    """Whose samples did not all earn the same from the task, bool [P]; of `orders` prompts of one row after another,
    any of them. Penalties do not make a group informative: with one for the length every group would be (DAPO,
    2503.14476, asks whether some are right and some are not)."""
    reward_PG = np.array([group.rewards for group in groups])
    differ_P = reward_PG.max(-1) > reward_PG.min(-1)
    return np.repeat(differ_P.reshape(-1, orders).any(-1), orders)


def assemble(groups: list[Group], config: TrainConfig, version: int, **extra: float) -> Rollouts:
    """What the task's rewards come to with what `config.reward` takes off, and the advantages that follow."""
    limit, reward = config.rollout.max_new_tokens, config.reward
    examples = [Example(group.prompt_ids, ids) for group in groups for ids in group.completion_ids]
    earned_PG = np.array([group.rewards for group in groups])
    length_PG = np.array([[len(ids) for ids in group.completion_ids] for group in groups])
    invalid_PG = np.array([[answer is None for answer in group.answers] for group in groups])
    earned_PG = earned_PG - reward.invalid * invalid_PG - reward.length * length_PG / limit
    earned_PG = earned_PG + overlong_penalty(length_PG, limit, reward.overlong_tokens)
    rollouts = Rollouts(groups, examples, earned_PG, earned_PG, version, extra)
    rollouts.advantage_PG = group_advantages(earned_PG, config.grpo.normalise_std)
    return rollouts


def add_rewards(rollouts: Rollouts, more_PG: np.ndarray, config: TrainConfig) -> None:
    """Adds to the rewards, and takes the advantages anew."""
    rollouts.reward_PG = rollouts.reward_PG + more_PG
    rollouts.advantage_PG = group_advantages(rollouts.reward_PG, config.grpo.normalise_std)
