"""One step's experience: pairs shown to the policy, its verdicts, their rewards and advantages.

Axes: P prompts (groups), G samples of one prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.verdict import verdict_of_completion
from rrm_jax.rl.advantages import group_advantages
from rrm_jax.rl.rewards import consistency_reward, overlong_penalty, verdict_reward
from rrm_jax.sampling.protocol import Decoding, Generator, Request
from rrm_jax.training.batches import Example
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.feed import Shown


@dataclasses.dataclass
class Group:
    """G samples of one prompt. `shown` is the pair in the order in which the policy saw it; `verdicts` name a
    response of it, or are None. `finished[g]`: the completion ended before the limit of tokens."""

    shown: Pair
    prompt_ids: tuple[int, ...]
    truncated: bool
    completion_ids: list[tuple[int, ...]]
    sampler_logprobs: list[tuple[float, ...]]
    finished: list[bool]
    verdicts: list[int | None]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Group":
        return cls(
            Pair(**row["shown"]), tuple(row["prompt_ids"]), row["truncated"], [*map(tuple, row["completion_ids"])],
            [*map(tuple, row["sampler_logprobs"])], row["finished"], row["verdicts"],
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked of the sampler, and how its completions are read."""

    tokenizer: Tokenizer
    thinking: bool
    decoding: Decoding
    group_size: int
    seed: int


def collect(
    generator: Generator, ask: Ask, shown: Sequence[Shown], step: int, start: int = 0,
    finished: Callable[[], None] = lambda: None,
) -> list[Group]:  # fmt: skip
    """Samples a group of verdicts for each prompt.

    A request's id holds the step, and its number in it, from `start`: a pair seen again draws new noise. Verdicts are
    read as completions come, while others are still being drawn; `finished` is called for each.
    """
    groups = [
        Group(pair, tuple(prompt.ids), prompt.truncated, *([None] * ask.group_size for _ in range(4)))  # type: ignore[arg-type]
        for pair, prompt in shown
    ]
    requests = [
        Request(f"step {step}, {start + at}, {group.shown.id}", group.prompt_ids, ask.decoding, sample, ask.seed)
        for at, group in enumerate(groups)
        for sample in range(ask.group_size)
    ]
    place = {(request.id, request.sample): at for at, request in enumerate(requests)}
    for completion in generator.generate(requests):
        at = place.pop((completion.request.id, completion.request.sample))
        group, sample = groups[at // ask.group_size], at % ask.group_size
        group.completion_ids[sample], group.sampler_logprobs[sample] = completion.token_ids, completion.logprobs
        group.finished[sample] = completion.finish_reason == "stop"
        group.verdicts[sample] = verdict_of_completion(completion, ask.tokenizer, thinking=ask.thinking)
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
    right_PG: np.ndarray
    reward_PG: np.ndarray
    advantage_PG: np.ndarray
    version: int
    extra: dict[str, float]

    @property
    def sampler_logprobs(self) -> list[tuple[float, ...]]:
        return [logprobs for group in self.groups for logprobs in group.sampler_logprobs]

    def metrics(self) -> dict[str, float]:
        lengths = np.array([len(example.completion_ids) for example in self.examples])
        verdicts = [verdict for group in self.groups for verdict in group.verdicts]
        finished = [done for group in self.groups for done in group.finished]
        reward = self.reward_PG
        return {
            "reward_mean": float(reward.mean()),
            "reward_std": float(reward.std()),
            "accuracy": float(self.right_PG.mean()),
            "zero_variance_groups": float((reward.max(-1) == reward.min(-1)).mean()),
            "invalid_rate": float(np.mean([verdict is None for verdict in verdicts])),
            "truncation_rate": float(1 - np.mean(finished)),
            "response_length": float(lengths.mean()),
            "response_length_max": float(lengths.max()),
            "truncated_prompts": float(sum(group.truncated for group in self.groups)),
            **self.extra,
        }


def verdict_rewards(groups: Sequence[Group], config: TrainConfig) -> np.ndarray:
    """What the verdicts earn [P, G]: ±1, blended with consistency over both orders where that is asked for."""
    reward_PG = np.array([[verdict_reward(v, group.shown.label) for v in group.verdicts] for group in groups])
    weight = config.reward.consistency
    return consistency_reward(reward_PG, weight) if weight else reward_PG


def informative(groups: Sequence[Group], config: TrainConfig) -> np.ndarray:
    """Whose samples' verdicts did not all earn the same, bool [P]; with consistency, either order of the pair."""
    reward_PG = verdict_rewards(groups, config)
    differ_P = reward_PG.max(-1) > reward_PG.min(-1)
    return np.repeat(differ_P.reshape(-1, 2).any(-1), 2) if config.reward.consistency else differ_P


def assemble(groups: list[Group], config: TrainConfig, version: int, **extra: float) -> Rollouts:
    """Rewards by `config.reward`, and the advantages that follow from them."""
    limit, reward = config.rollout.max_new_tokens, config.reward
    examples = [Example(group.prompt_ids, ids) for group in groups for ids in group.completion_ids]
    earned_PG = verdict_rewards(groups, config)
    right_PG = np.array([[v == group.shown.label for v in group.verdicts] for group in groups])
    length_PG = np.array([[len(ids) for ids in group.completion_ids] for group in groups])
    invalid_PG = np.array([[v is None for v in group.verdicts] for group in groups])
    earned_PG = earned_PG - reward.invalid * invalid_PG - reward.length * length_PG / limit
    earned_PG = earned_PG + overlong_penalty(length_PG, limit, reward.overlong_tokens)
    if reward.consistency:
        extra["order_consistency"] = _order_consistency(groups)
    rollouts = Rollouts(groups, examples, right_PG, earned_PG, earned_PG, version, extra)
    rollouts.advantage_PG = np.asarray(group_advantages(earned_PG, config.grpo.normalise_std))
    return rollouts


def add_rewards(rollouts: Rollouts, more_PG: np.ndarray, config: TrainConfig) -> None:
    """Adds to the rewards, and takes the advantages anew."""
    rollouts.reward_PG = rollouts.reward_PG + more_PG
    rollouts.advantage_PG = np.asarray(group_advantages(rollouts.reward_PG, config.grpo.normalise_std))


def _order_consistency(groups: Sequence[Group]) -> float:
    """The share of samples whose two orders name the same response."""
    agree = [
        one is not None and two is not None and one == 3 - two
        for first, second in zip(groups[::2], groups[1::2], strict=True)
        for one, two in zip(first.verdicts, second.verdicts, strict=True)
    ]
    return float(np.mean(agree))
