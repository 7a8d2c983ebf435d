"""One step's experience: pairs shown to the policy, its verdicts, their rewards and advantages."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.prompt import JudgePrompt, build_prompt, strip_thinking
from rrm_jax.judging.template import Template
from rrm_jax.judging.verdict import verdict_of_completion
from rrm_jax.rl.advantages import group_advantages
from rrm_jax.rl.rewards import verdict_reward
from rrm_jax.sampling.protocol import Completion, Decoding, Generator, Request
from rrm_jax.training.batches import Row
from rrm_jax.training.config import JudgeConfig


@dataclasses.dataclass
class Rollouts:
    """P prompts × G samples, prompt-major. `verdicts` are in the shown order; rewards are ±1."""

    rows: list[Row]
    sampler_logprobs: list[tuple[float, ...]]
    verdicts: Sequence[int | None]
    reward_PG: np.ndarray
    advantage: np.ndarray
    finished: np.ndarray
    truncated_prompts: int

    def metrics(self) -> dict[str, float]:
        lengths = np.array([len(row.completion_ids) for row in self.rows])
        flat = self.reward_PG
        return {
            "reward_mean": float(flat.mean()),
            "reward_std": float(flat.std()),
            "accuracy": float((flat > 0).mean()),
            "zero_variance_groups": float((flat.max(-1) == flat.min(-1)).mean()),
            "invalid_rate": float(np.mean([verdict is None for verdict in self.verdicts])),
            "truncation_rate": float(1 - self.finished.mean()),
            "response_length": float(lengths.mean()),
            "response_length_max": float(lengths.max()),
            "truncated_prompts": float(self.truncated_prompts),
        }


def show(pair: Pair, template: Template, tokenizer: Tokenizer, judge: JudgeConfig) -> JudgePrompt:
    """The judge's prompt for a pair as it stands; the responses' own thinking is not shown (docs/method.md)."""
    return build_prompt(
        template,
        tokenizer,
        pair.query,
        strip_thinking(pair.response_1),
        strip_thinking(pair.response_2),
        max_prompt_tokens=judge.max_prompt_tokens,
        thinking=judge.thinking,
    )


def collect(
    generator: Generator,
    tokenizer: Tokenizer,
    template: Template,
    judge: JudgeConfig,
    pairs: Sequence[Pair],
    decoding: Decoding,
    group_size: int,
    seed: int,
    step: int,
) -> Rollouts:
    """Samples `group_size` verdicts for each pair, in the order in which its responses stand.

    A request's id holds the step, so that a pair seen again draws new noise.
    """
    prompts = [show(pair, template, tokenizer, judge) for pair in pairs]
    requests = [
        Request(f"step {step}, {at}, {pair.id}", tuple(prompt.ids), decoding, sample, seed)
        for at, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True))
        for sample in range(group_size)
    ]
    place = {(request.id, request.sample): at for at, request in enumerate(requests)}
    completions: list[Completion | None] = [None] * len(requests)
    for completion in generator.generate(requests):
        completions[place[completion.request.id, completion.request.sample]] = completion
    done = [completion for completion in completions if completion is not None]
    if len(done) != len(requests):
        raise RuntimeError(f"the generator returned {len(done)} of {len(requests)} completions")
    verdicts = [verdict_of_completion(c, tokenizer, thinking=judge.thinking) for c in done]
    labels = [pair.label for pair in pairs for _ in range(group_size)]
    rewards = [verdict_reward(v, label) for v, label in zip(verdicts, labels, strict=True) if label is not None]
    reward_PG = np.array(rewards, np.float32).reshape(len(pairs), group_size)
    return Rollouts(
        rows=[Row(c.request.prompt_ids, c.token_ids) for c in done],
        sampler_logprobs=[c.logprobs for c in done],
        verdicts=verdicts,
        reward_PG=reward_PG,
        advantage=np.asarray(group_advantages(reward_PG)).reshape(-1),
        finished=np.array([c.finish_reason == "stop" for c in done]),
        truncated_prompts=sum(prompt.truncated for prompt in prompts),
    )
