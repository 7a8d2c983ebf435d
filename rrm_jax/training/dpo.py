"""Direct preference optimisation (2305.18290) of a policy, on pairs that a judge, or anybody, has labelled."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrm_jax.data.records import Pair
from rrm_jax.data.stream import Part, RowStream
from rrm_jax.data.tokenizer import END_THINK, THINK, Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.rl.logprobs import Sequences, completion_scores
from rrm_jax.rl.losses import PreferenceBatch, preference_loss
from rrm_jax.training.batches import Example
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.evaluate import Evaluator
from rrm_jax.training.learner_programs import Loss
from rrm_jax.training.run import Report, Run
from rrm_jax.training.scoring import Reference, scorer
from rrm_jax.training.task import Task, open_task
from rrm_jax.training.throughput import throughput
from rrm_jax.training.training_data import open_parts

_SHOWN = ("loss", "preference_accuracy", "reward_margin", "grad_norm")


class Batch(NamedTuple):
    """What the loss of one forward pass takes."""

    sequences: Sequences
    preference: PreferenceBatch


def train_dpo(config: TrainConfig, resume: bool, report: Report) -> Path:
    """Runs (or resumes) a DPO run; returns its directory."""
    task, parts = open_task(config, report), open_parts(config, report)
    if config.policy.thinking:
        _check_thinking(parts)
    stream, size = RowStream(parts, config.seed), config.dpo.batch_size
    with Run(config, resume, report) as run, contextlib.closing(task):
        task.begin(run)
        learner = run.learner
        learner.compile(loss_of(config, learner.decoder, learner.options))
        reference = None if config.dpo.reference_free else Reference(learner, config.dpo.offload_reference)
        score, evaluator = scorer(learner, 1.0, together=2), Evaluator(run, task.scores)
        evaluator.catch_up(run.first_step - 1)
        for step in run.steps():
            examples, cut = _examples(run, task, stream.batch((step - 1) * size, size))
            run.check_stop()
            with run.phase("score"):
                frozen = None if reference is None else reference.scores(score, examples)
            run.check_stop()
            with run.phase("update"):
                sums = learner.update(_batches(run, examples, frozen), size)
            run.check_finite(step, sums["loss"], sums["grad_norm"])
            seconds, pairs = run.seconds(), sums.pop("pairs")
            kept = {name: sums.pop(name) for name in ("loss", "grad_norm", "tokens")}
            values = kept | {name: value / pairs for name, value in sums.items()} | {"truncated_responses": float(cut)}
            work = learner.decoder, examples, seconds, learner.mesh.devices.size, 1
            how = {"shares_prompts": learner.shares_prompts, "adapters": learner.frozen is not None}
            values |= throughput(*work, **how)
            run.metrics.write("train", step, values | seconds, _SHOWN)
            run.finish_step(step)
            if evaluator.due(step):
                evaluator.evaluate(step)
    return run.directory


def loss_of(config: TrainConfig, decoder: DecoderConfig, options: Options) -> Loss:
    """`loss(model, Batch) → (numerator, sums)`, as configured."""
    dpo = config.dpo

    def loss(model: Params, batch: Batch):
        scores = completion_scores(decoder, model, batch.sequences, 1.0, options)
        return preference_loss(scores.logprob, batch.preference, dpo.beta, dpo.label_smoothing, dpo.length_normalised)

    return loss


def encode_response(tokenizer: Tokenizer, text: str, thinking: bool) -> list[int]:
    """A response as the policy would have written it after its prompt, with the end token.

    With `thinking` its last `</think>` is the control token, and a `<think>` that it begins with, which the prompt has
    already, is left out. All else is text, whatever it spells.
    """
    if not thinking:
        return [*tokenizer.encode_text(text), tokenizer.eos_id]
    thoughts, _, answer = text.rpartition(END_THINK)
    end = tokenizer.control_id(END_THINK)
    if end is None:
        raise RrmError(f"the model's tokenizer has no {END_THINK}; set policy.thinking=false")
    opened = thoughts.removeprefix(THINK).removeprefix("\n") if thoughts.startswith(THINK) else thoughts
    return [*tokenizer.encode_text(opened), end, *tokenizer.encode_text(answer), tokenizer.eos_id]


def _check_thinking(parts: Sequence[Part]) -> None:
    for part in parts:
        for pair in part.rows:
            if END_THINK not in pair.response_1 or END_THINK not in pair.response_2:
                raise RrmError(
                    f"pair {pair.id!r} has a response without {END_THINK}, and policy.thinking is true: train on whole "
                    "responses, thinking included, or set policy.thinking=false and a policy.prefix without <think>"
                )


def _examples(run: Run, task: Task, pairs: Sequence[Pair]) -> tuple[list[Example], int]:
    """Two examples a pair, the preferred one first, and how many responses were cut at the limit of tokens."""
    config, examples, cut = run.config, [], 0
    for pair in pairs:
        prompt = tuple(task.encode(pair))
        chosen, rejected = pair.response_1, pair.response_2
        for text in (chosen, rejected) if pair.label == 1 else (rejected, chosen):
            ids = encode_response(run.tokenizer, text, config.policy.thinking)
            cut += len(ids) > config.rollout.max_new_tokens
            examples.append(Example(prompt, tuple(ids[: config.rollout.max_new_tokens])))
    return examples, cut


def _batches(run: Run, examples: list[Example], frozen: list[np.ndarray] | None) -> Iterator[Batch]:
    for batch in run.learner.micro_batches(examples, together=2):
        sequences = batch.sequences()
        reference = None if frozen is None else batch.along(frozen)
        yield Batch(sequences, PreferenceBatch(batch.responses(), reference, sequences.mask))
