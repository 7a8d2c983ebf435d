"""GRPO: sample, reward, update. Read top to bottom (docs/method.md; 2402.03300).

Axes: B rows, C completion time, P prompts, G samples of one prompt.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.registry import find
from rrm_jax.rl.logprobs import Sequences, completion_scores
from rrm_jax.rl.losses import PolicyBatch, PolicyLoss, kl_estimate, policy_loss, token_weights
from rrm_jax.training.batches import MicroBatch
from rrm_jax.training.config import SURROGATES, TrainConfig
from rrm_jax.training.evaluate import Evaluator
from rrm_jax.training.experience import Experience, ask_of, check_version, spread_over
from rrm_jax.training.learner_programs import Loss
from rrm_jax.training.rollouts import Rollouts, add_rewards
from rrm_jax.training.run import Report, Run
from rrm_jax.training.scoring import Reference, scorer
from rrm_jax.training.task import open_task
from rrm_jax.training.throughput import throughput
from rrm_jax.training.traces import traces_of

_SHOWN = ("accuracy", "reward_mean", "response_length", "invalid_rate", "kl", "entropy", "grad_norm")
_PROGRESS_SECONDS = 10.0


class Batch(NamedTuple):
    """What the loss of one forward pass takes."""

    sequences: Sequences
    policy: PolicyBatch


def train_grpo(config: TrainConfig, resume: bool, report: Report) -> Path:
    """Runs (or resumes) a GRPO run; returns its directory."""
    task = open_task(config, report)
    with Run(config, resume, report) as run, contextlib.closing(task):
        task.begin(run)
        learner, grpo = run.learner, config.grpo
        learner.compile(loss_of(config, learner.decoder, learner.options))
        score = scorer(learner, config.rollout.temperature)
        reference = Reference(learner, config.grpo.offload_reference) if grpo.kl_coef else None
        evaluator, progress = Evaluator(run, task.scores), _Progress(config)
        position = int(run.meta.get("position", 0))

        def finished() -> None:
            progress.advance()
            run.check_stop()

        ask = ask_of(config, task, run.tokenizer.stop_ids)
        source = Experience(config, learner, ask, task, run.directory, position, finished)
        with contextlib.closing(source):
            source.restore(run.first_step - 1, bool(run.meta.get("ended")))
            evaluator.catch_up(run.first_step - 1)
            for step in run.steps():
                progress.begin(step)
                with run.phase("sample"):
                    rollouts = source.next(step)
                late = check_version(rollouts, learner, config, step, source.drawn_ahead)
                run.check_stop()
                with run.phase("score"):
                    frozen = reference.scores(score, rollouts.examples) if reference is not None else None
                    # With one update a step the policy that began it is the one differentiated: nothing to store.
                    needed = config.updates_per_step > 1 or grpo.kl_in == "reward"
                    old = score(learner.model_of_step(), rollouts.examples) if needed else None
                if grpo.kl_in == "reward" and frozen is not None and old is not None:
                    add_rewards(rollouts, _kl_rewards(config, old, frozen), config)
                run.check_stop()
                with run.phase("update"):
                    values = _update(run, rollouts, old, frozen, step)
                values |= rollouts.metrics() | {"policy_lag": late}
                run.write_traces(step, traces_of(rollouts, task, run.tokenizer, config.log.traces, step))
                seconds = run.seconds()
                work = learner.decoder, rollouts.examples, seconds, learner.mesh.devices.size, grpo.epochs
                how = {"shares_prompts": learner.shares_prompts, "adapters": learner.frozen is not None}
                values |= throughput(*work, **how)
                run.metrics.write("train", step, values | seconds, _SHOWN)
                # What is sampled in advance is saved with a step; else nothing stands in the way of stopping early.
                pending = functools.partial(source.save, step) if config.rollout.asynchronous else None
                ended = {"ended": step == config.steps} if config.rollout.asynchronous else {}
                run.finish_step(step, before_saving=pending, position=source.position, **ended)
                if evaluator.due(step):
                    source.wait()
                    evaluator.evaluate(step)
    return run.directory


def loss_of(config: TrainConfig, decoder: DecoderConfig, options: Options) -> Loss:
    """`loss(model, Batch) → (numerator, sums)`, as configured."""
    grpo = config.grpo
    how = PolicyLoss(
        ratio=grpo.ratio,
        clip_low=grpo.clip_low,
        clip_high=grpo.clip_high,
        kl_coef=grpo.kl_coef if grpo.kl_in == "loss" else 0.0,
        # What is in the reward is not in the loss; there the estimate is a metric only.
        kl_estimator=grpo.kl_estimator if grpo.kl_in == "loss" else "k3",
        entropy_coef=grpo.entropy_coef,
        importance_cap=grpo.importance_cap,
        surrogate=find(SURROGATES, grpo.surrogate, "grpo.surrogate"),
    )

    def loss(model: Params, batch: Batch):
        scores = completion_scores(decoder, model, batch.sequences, config.rollout.temperature, options)
        return policy_loss(how, scores.logprob, scores.entropy, batch.policy)

    return loss


def _kl_rewards(config: TrainConfig, old: list[np.ndarray], frozen: list[np.ndarray]) -> np.ndarray:
    """−β Σ KL estimates over each completion's tokens [P, G]."""
    estimator = config.grpo.kl_estimator
    total = [float(np.sum(kl_estimate(estimator, mine, its))) for mine, its in zip(old, frozen, strict=True)]
    return -config.grpo.kl_coef * np.array(total).reshape(-1, config.rollout.group_size)


def _update(run: Run, rollouts: Rollouts, old, frozen, step: int) -> dict[str, float]:
    """μ epochs of mini-batches over one step's rollouts; metrics averaged over all their tokens."""
    config, totals, updates = run.config, {}, 0
    size, groups = config.rollout.group_size, len(rollouts.groups)
    for epoch in range(config.grpo.epochs):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(groups)
        for start in range(0, groups, config.grpo.mini_batch_prompts):
            chosen = order[start : start + config.grpo.mini_batch_prompts]
            members = [int(prompt) * size + sample for prompt in chosen for sample in range(size)]
            batches, denominator = _batches(run, rollouts, members, old, frozen)
            sums = run.learner.update(batches, denominator)
            run.check_finite(step, sums["loss"], sums["grad_norm"])
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
            updates += 1
    tokens = totals.pop("tokens")
    means = {name: totals.pop(name) / updates for name in ("loss", "grad_norm")}
    return means | {name: value / tokens for name, value in totals.items()} | {"tokens": tokens}


def _batches(run: Run, rollouts: Rollouts, members: list[int], old, frozen) -> tuple[Iterator[Batch], float]:
    """A mini-batch in parts that fit, and what the sum of their losses is divided by."""
    config, size = run.config, run.config.rollout.group_size
    lengths = [len(rollouts.examples[at].completion_ids) for at in members]
    weights, denominator = token_weights(np.array(lengths), config.grpo.aggregation, config.rollout.max_new_tokens)
    weight = dict(zip(members, weights.tolist(), strict=True))
    weight_of = [weight.get(at, 0.0) for at in range(len(rollouts.examples))]
    advantage = spread_over(rollouts.advantage_PG, size)

    def policy(batch: MicroBatch, sequences: Sequences) -> PolicyBatch:
        return PolicyBatch(
            advantage=batch.along(advantage),
            weight=batch.along(weight_of),
            response=batch.responses(),
            old_logprob=None if old is None else batch.along(old),
            reference_logprob=None if frozen is None else batch.along(frozen),
            sampler_logprob=batch.along(rollouts.sampler_logprobs),
            mask=sequences.mask,
        )

    def parts() -> Iterator[Batch]:
        for batch in run.learner.micro_batches(rollouts.examples, members):
            sequences = batch.sequences()
            yield Batch(sequences, policy(batch, sequences))

    return parts(), denominator


class _Progress:
    """A line on the terminal now and then while a step's completions are drawn."""

    def __init__(self, config: TrainConfig):
        self._total = config.rollout.prompts_per_step * config.rollout.group_size

    def begin(self, step: int) -> None:
        self._step, self._done, self._printed = step, 0, time.monotonic()

    def advance(self) -> None:
        self._done += 1
        if time.monotonic() - self._printed > _PROGRESS_SECONDS:
            self._printed = time.monotonic()
            print(f"step {self._step}: {self._done} of {self._total} completions", file=sys.stderr, flush=True)
