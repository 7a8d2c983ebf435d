"""Training a judge: pairs are shown, and a verdict earns +1 where it is right (paper §3)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rrm_jax.data.records import Pair, parse_labelled_pair, parse_pair
from rrm_jax.judging.verdict import verdict_of_completion
from rrm_jax.rl.rewards import consistency_reward, verdict_reward
from rrm_jax.sampling.protocol import Completion
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.evaluate import judge_held_out
from rrm_jax.training.feed import Asked, Feed
from rrm_jax.training.rollouts import Group
from rrm_jax.training.run import Run, read_rows
from rrm_jax.training.task import Scores
from rrm_jax.training.training_data import encode_of, open_feed, open_parts


class JudgeTask:
    """A `Task` whose rows are pairs, and whose answers are verdicts in the order shown."""

    def __init__(self, config: TrainConfig, report: Callable[[str], None]):
        self._config, data = config, config.data
        self._parts = open_parts(config, report) if config.method == "grpo" else None
        self._held_out = read_rows(data.eval, parse_labelled_pair, data.eval_limit, report) if data.eval else []
        self.prompts_per_row = 2 if config.reward.consistency else 1
        self._feed: Feed | None = None
        self.scores: Scores | None = None

    def begin(self, run: Run) -> None:
        """As `Task` has it."""
        assert run.template is not None
        self._tokenizer = run.tokenizer
        self._encode = encode_of(self._config, run.tokenizer, run.template, run.max_prompt_tokens)
        if self._parts is not None:
            self._feed = open_feed(self._config, self._parts, self._encode)
        if self._held_out:
            self.scores = functools.partial(judge_held_out, run, self._held_out)

    def parse(self, row: dict[str, Any]) -> Pair:
        """A pair; its label counts for nothing here. Raises RowError."""
        return parse_pair(row)

    def encode(self, row: Pair) -> Sequence[int]:
        """The prompt with the responses in the row's order."""
        return self._encode(row).prompt_ids(turned=False)

    def take(self, position: int, count: int) -> list[Asked]:
        """As `Task` has it."""
        assert self._feed is not None
        return self._feed.take(position, count)

    def read(self, completion: Completion) -> int | None:
        """The verdict, 1 or 2, on the pair in the order shown."""
        return verdict_of_completion(completion, self._tokenizer, thinking=self._config.judge.thinking)

    def reward(self, groups: Sequence[Group]) -> None:
        """±1, blended with consistency over both orders where that is asked for."""
        for group in groups:
            group.right = [verdict == group.asked.label for verdict in group.answers]
            group.rewards = [verdict_reward(verdict, group.asked.label) for verdict in group.answers]
        if weight := self._config.reward.consistency:
            blended_PG = consistency_reward(np.array([group.rewards for group in groups]), weight)
            for group, rewards in zip(groups, blended_PG.tolist(), strict=True):
                group.rewards = rewards

    def metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """With `reward.consistency`, how often both orders of a pair got the same verdict."""
        return {"order_consistency": _order_consistency(groups)} if self._config.reward.consistency else {}

    def trace(self, group: Group, sample: int) -> Mapping[str, Any]:
        """The label and the verdict, both in the order shown."""
        return {"label": group.asked.label, "verdict": group.answers[sample]}

    def close(self) -> None:
        """As `Task` has it."""
        if self._feed is not None:
            self._feed.close()


def _order_consistency(groups: Sequence[Group]) -> float:
    """The share of samples whose two orders name the same response."""
    agree = [
        one is not None and two is not None and one == 3 - two
        for first, second in zip(groups[::2], groups[1::2], strict=True)
        for one, two in zip(first.answers, second.answers, strict=True)
    ]
    return float(np.mean(agree))
