"""Pairs for DPO: a policy's own responses to questions, labelled by a judge, by the known answers, and by a coin."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import Candidates, Pair, Question, parse_candidates, parse_pair, parse_question, to_row
from rrm_jax.data.stream import coin
from rrm_jax.data.verifiers import Outcome, resolve
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.labelling import Rule
from rrm_jax.judging.verdict import written_text
from rrm_jax.sampling.opening import open_sampler
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import PosttrainPairsConfig
from rrm_jax.training.policy_config import PolicyConfig
from rrm_jax.training.policy_prompt import policy_prompt

LABELLERS = ("judge", "verifier", "coin")


def make_pairs(output: Path, config: PosttrainPairsConfig, policy: PolicyConfig, session: Session) -> dict[str, float]:
    """Writes OUTPUT/pairs.judge.jsonl, pairs.verifier.jsonl and pairs.coin.jsonl, which hold whole responses, thinking
    included; returns how many pairs each has. What is there already is not made again."""
    questions = {one.id: one for one in session.read(config.questions, parse_question, config.limit)}
    sampled = output / "samples.jsonl"
    if not sampled.is_file():
        session.report("── sample responses")
        rows = [json.dumps(to_row(row)) + "\n" for row in _sample(config, policy, [*questions.values()], session.seed)]
        write_whole(sampled, "".join(rows))
    pairs = [pair for _, row in Reader(sampled, parse_candidates) if (pair := _pair(row)) is not None]
    labels = {
        "judge": lambda: _by_judge(config, pairs, session),
        "verifier": lambda: _by_answer(pairs, questions),
        "coin": lambda: {pair.id: 1 if coin("label", session.seed, pair.id) else 2 for pair in pairs},
    }
    counts: dict[str, float] = {}
    for name in LABELLERS:
        path = output / f"pairs.{name}.jsonl"
        if not path.is_file():
            session.report(f"── label by {name}")
            found = labels[name]()
            labelled = [dataclasses.replace(pair, label=found[pair.id]) for pair in pairs if pair.id in found]
            if not labelled:
                raise RrmError(f"no pair got a label by {name}: the policy's responses are all alike, or all as good")
            write_whole(path, "".join(json.dumps(to_row(pair)) + "\n" for pair in labelled))
        counts[name] = float(sum(1 for _ in Reader(path, parse_pair)))
    return counts


def _sample(
    config: PosttrainPairsConfig, policy: PolicyConfig, questions: Sequence[Question], seed: int
) -> Iterator[Candidates]:
    """Two responses a question."""
    sampler, tokenizer = open_sampler(config.policy, jnp.float32, config.batch_size)
    decoding = Decoding(config.temperature, max_new_tokens=config.max_new_tokens, stop_ids=tokenizer.stop_ids)
    requests = [
        Request(one.id, tuple(policy_prompt(policy, tokenizer, one.query)[0]), decoding, sample, seed)
        for one in questions
        for sample in range(2)
    ]
    texts = {
        (done.request.id, done.request.sample): written_text(done, tokenizer) for done in sampler.generate(requests)
    }
    for one in questions:
        yield Candidates(one.id, one.query, (texts[one.id, 0], texts[one.id, 1]))


def _pair(row: Candidates) -> Pair | None:
    """None where both responses answer the same, or one never ends its thinking."""
    one, two = row.responses
    answers = [strip_thinking(text, require_answer=True) for text in (one, two)]
    unlike = answers[0] != answers[1] and "" not in answers
    finished = all("</think>" in text for text in (one, two))
    return Pair(row.id, row.query, one, two) if unlike and finished else None


def _by_judge(config: PosttrainPairsConfig, pairs: Sequence[Pair], session: Session) -> dict[str, int]:
    """Where both orders name the same response."""
    judge, found = session.judge("judge", config.judge, order="both"), {}
    for judgment in session.judged(judge, pairs):
        label, _ = Rule().decide(judgment)
        if label is not None:
            found[judgment.pair.id] = label
    return found


def _by_answer(pairs: Sequence[Pair], questions: dict[str, Question]) -> dict[str, int]:
    """Where one response is right, and the other is not."""
    found = {}
    for pair in pairs:
        question = questions[pair.id]
        if question.answer is None:
            raise RrmError(f"question {pair.id!r} has no answer, and labels by the verifier need one")
        verify = resolve(question.verifier or "auto")
        right = [verify(text, question.answer) is Outcome.RIGHT for text in (pair.response_1, pair.response_2)]
        if right[0] != right[1]:
            found[pair.id] = 1 if right[0] else 2
    return found
