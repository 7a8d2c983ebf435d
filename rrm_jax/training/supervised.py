"""Supervised training on given completions: the warm start that stands in for a distilled model's abilities."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair, Question
from rrm_jax.data.stream import Stream
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.rl.logprobs import Sequences, completion_scores
from rrm_jax.rl.losses import supervised_loss
from rrm_jax.training.batches import Example
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.evaluate import Evaluator
from rrm_jax.training.learner import Learner
from rrm_jax.training.learner_programs import Loss
from rrm_jax.training.run import Report, Run, read_rows
from rrm_jax.training.task import Task, open_task
from rrm_jax.training.throughput import throughput


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A row, a pair in a fixed order or a query, and what the model should write after the prompt's prefix."""

    id: str
    row: Pair | Question
    completion: str


def demonstration(task: Task, row: dict[str, Any]) -> Demonstration:
    """Raises RowError."""
    completion = row.get("completion")
    if not isinstance(completion, str) or not completion:
        raise RowError("field 'completion' must be a non-empty string")
    parsed = task.parse(row)
    return Demonstration(parsed.id, parsed, completion)


class Batch(NamedTuple):
    """What the loss of one forward pass takes."""

    sequences: Sequences


def _examples(run: Run, task: Task, demonstrations: list[Demonstration]) -> list[Example]:
    """Completions are trusted text: the control tokens that they spell are control tokens. The end token is added."""
    tokenizer, examples = run.tokenizer, []
    for item in demonstrations:
        completion = (*tokenizer.encode_control(item.completion), tokenizer.eos_id)
        examples.append(Example(tuple(task.encode(item.row)), completion))
    return examples


def train_supervised(config: TrainConfig, resume: bool, report: Report) -> Path:
    """Runs (or resumes) a supervised run; returns its directory."""
    if not isinstance(config.data.train, str):
        raise RrmError("a supervised run reads one JSONL file of completions: data.train cannot be a mix")
    task = open_task(config, report)
    parse = functools.partial(demonstration, task)
    demonstrations = read_rows(config.data.train, parse, config.data.limit, report)
    with Run(config, resume, report) as run, contextlib.closing(task):
        task.begin(run)
        learner, size = run.learner, config.supervised.batch_size
        stream, evaluator = Stream(_examples(run, task, demonstrations), config.seed), Evaluator(run, task.scores)
        learner.compile(loss_of(learner.decoder, learner.options))
        evaluator.catch_up(run.first_step - 1)
        for step in run.steps():
            with run.phase("update"):
                examples = stream.batch((step - 1) * size, size)
                tokens = sum(len(example.completion_ids) for example in examples)
                sums = learner.update(_batches(learner, examples), tokens)
            run.check_finite(step, sums["loss"], sums["grad_norm"])
            seconds = run.seconds()
            values = {"loss": sums["loss"], "grad_norm": sums["grad_norm"], "tokens": float(tokens)}
            work = learner.decoder, examples, seconds, learner.mesh.devices.size, 1
            how = {"shares_prompts": learner.shares_prompts, "adapters": learner.frozen is not None}
            values |= throughput(*work, **how)
            run.metrics.write("train", step, values | seconds, ("loss", "grad_norm"))
            run.finish_step(step)
            if evaluator.due(step):
                evaluator.evaluate(step)
    return run.directory


def loss_of(decoder: DecoderConfig, options: Options) -> Loss:
    """`loss(model, Batch) → (numerator, sums)`."""

    def loss(model: Params, batch: Batch):
        scores = completion_scores(decoder, model, batch.sequences, 1.0, options)
        return supervised_loss(scores.logprob, batch.sequences.mask)

    return loss


def _batches(learner: Learner, examples: list[Example]) -> Iterator[Batch]:
    for batch in learner.micro_batches(examples):
        yield Batch(batch.sequences())
