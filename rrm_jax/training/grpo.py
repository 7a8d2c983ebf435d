"""GRPO on verdicts: sample, reward right and wrong, update. Read top to bottom (docs/method.md; 2402.03300).

Axes: B rows, C completion time, P prompts, G samples of one prompt.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.load import load_model
from rrm_jax.data.records import parse_labelled_pair
from rrm_jax.data.stream import PairStream
from rrm_jax.models.decoder import Params
from rrm_jax.rl.logprobs import Sequences, completion_scores
from rrm_jax.rl.losses import PolicyBatch, grpo_loss
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.training.batches import build_sequences, micro_batches, pad_along_completion
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.evaluate import Evaluator, read_held_out
from rrm_jax.training.rollouts import Rollouts, collect
from rrm_jax.training.run import Report, Run, read_rows


class _Batch(NamedTuple):
    sequences: Sequences
    policy: PolicyBatch


def train_grpo(config: TrainConfig, resume: bool, report: Report) -> Path:
    """Runs (or resumes) a GRPO run; returns its directory."""
    labelled = read_rows(config.data.train, parse_labelled_pair, config.data.limit, report)
    held_out = read_held_out(config, report)
    with Run(config, resume, report) as run:
        learner, grpo, rollout = run.learner, config.grpo, config.rollout
        stream, evaluator = PairStream(labelled, config.seed), Evaluator(run, held_out)
        reference = _reference(run) if grpo.kl_coef else None
        score = _scorer(run)
        decoding = Decoding(rollout.temperature, max_new_tokens=rollout.max_new_tokens, stop_ids=run.tokenizer.stop_ids)

        def loss(params, batch: _Batch):
            scores = completion_scores(learner.decoder, params, batch.sequences, rollout.temperature, learner.options)
            numerator, sums = grpo_loss(scores.logprob, batch.policy, grpo.clip_eps, grpo.kl_coef)
            return numerator, sums | {"entropy": jnp.sum(scores.entropy * batch.policy.mask)}

        learner.compile(loss)
        if run.first_step == 1:
            evaluator.evaluate(0)
        for step in range(run.first_step, config.steps + 1):
            pairs = stream.batch((step - 1) * rollout.prompts_per_step, rollout.prompts_per_step)
            with run.phase("sample"):
                rollouts = collect(
                    learner.sampler(), run.tokenizer, run.template, config.judge, pairs, decoding,
                    rollout.group_size, config.seed, step,
                )  # fmt: skip
            with run.phase("score"):
                # With one update a step the policy that sampled is the one differentiated: nothing to store.
                old = score(learner.params, rollouts) if config.updates_per_step > 1 else None
                frozen = score(reference, rollouts) if reference is not None else None
            with run.phase("update"):
                sums = _update(run, rollouts, old, frozen, step)
            run.metrics.write(
                "train",
                step,
                rollouts.metrics() | sums | run.seconds(),
                ("accuracy", "reward_mean", "response_length", "invalid_rate", "kl", "entropy", "grad_norm"),
            )
            evaluator.after(step)
            run.finish_step(step)
    return run.directory


def _reference(run: Run) -> Params:
    """The frozen model that the KL term holds the policy near: the one the run started from."""
    learner = run.learner
    dtype = jnp.dtype(run.config.model.compute_dtype)
    return load_model(run.config.model.path, mesh=learner.mesh, dtype=dtype, stacked=True).params


def _scorer(run: Run):
    """Returns `score(params, rollouts)`: each row's completion log-probabilities, by the trainer's forward pass."""
    learner, config = run.learner, run.config

    @jax.jit
    def scored(params, sequences: Sequences):
        return completion_scores(
            learner.decoder, params, sequences, config.rollout.temperature, learner.options
        ).logprob

    def score(params: Params, rollouts: Rollouts) -> list[np.ndarray]:
        pending = []
        with jax.set_mesh(learner.mesh):
            for group in micro_batches([row.length for row in rollouts.rows], learner.rows):
                rows = [rollouts.rows[at] for at in group]
                sequences = build_sequences(rows, learner.rows, config.length_bucket)
                pending.append((group, scored(params, learner.place(sequences))))
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rollouts.rows)
        for group, logprob_BC in pending:
            for at, row in zip(group, np.asarray(logprob_BC), strict=False):
                found[at] = row[: len(rollouts.rows[at].completion_ids)]
        return found

    return score


def _update(run: Run, rollouts: Rollouts, old, frozen, step: int) -> dict[str, float]:
    """μ epochs of mini-batches over one step's rollouts; metrics averaged over all their tokens."""
    config, totals, updates = run.config, {}, 0
    size, groups = config.rollout.group_size, config.rollout.prompts_per_step
    for epoch in range(config.grpo.epochs):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(groups)
        for start in range(0, groups, config.grpo.mini_batch_prompts):
            chosen = order[start : start + config.grpo.mini_batch_prompts]
            rows = [int(prompt) * size + sample for prompt in chosen for sample in range(size)]
            sums = run.learner.update(_batches(run, rollouts, rows, old, frozen), count=len(rows))
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
            updates += 1
    tokens = totals.pop("tokens")
    means = {name: totals.pop(name) / updates for name in ("loss", "grad_norm")}
    return means | {name: value / tokens for name, value in totals.items()} | {"tokens": tokens}


def _batches(run: Run, rollouts: Rollouts, indices: list[int], old, frozen) -> Iterator[_Batch]:
    size = run.learner.rows
    for group in micro_batches([rollouts.rows[at].length for at in indices], size):
        rows = [indices[at] for at in group]
        sequences = build_sequences([rollouts.rows[at] for at in rows], size, run.config.length_bucket)
        width = sequences.targets.shape[1]

        def padded(values, rows=rows, width=width):
            return pad_along_completion([values[at] for at in rows], size, width)

        advantage = np.zeros(size, np.float32)
        advantage[: len(rows)] = rollouts.advantage[rows]
        yield _Batch(
            sequences,
            PolicyBatch(
                advantage,
                None if old is None else padded(old),
                None if frozen is None else padded(frozen),
                padded(rollouts.sampler_logprobs),
                sequences.mask,
            ),
        )
