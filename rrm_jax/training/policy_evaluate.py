"""How often a policy's answers are right."""

from collections.abc import Sequence

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.records import Question
from rrm_jax.data.tokenizer import END_THINK
from rrm_jax.data.verifier_pool import Job, VerifierPool
from rrm_jax.judging.verdict import written_text
from rrm_jax.parallel.distributed import from_first, several
from rrm_jax.sampling.protocol import Completion, Decoding, Request
from rrm_jax.training.policy_prompt import policy_prompt
from rrm_jax.training.run import Run


def response_of(completion: Completion, tokenizer, thinking: bool) -> str | None:
    """What a completion answers, without blanks around it; None where a policy that thinks has not come to that."""
    text = written_text(completion, tokenizer)
    if thinking and END_THINK not in text:
        return None
    return (strip_thinking(text) if thinking else text).strip()


def verified(jobs: Sequence[Job], pool: VerifierPool) -> list[bool | None]:
    """Whether each response is right, None where nobody knows. Of several processes the first verifies for all: a rule
    that runs out of time in one must not do so in it alone."""

    def verify() -> list[bool | None]:
        return [outcome.correct for outcome in pool.verify_all(jobs)]

    return from_first("verified", verify) if several() else verify()


def solve_held_out(run: Run, questions: Sequence[Question], pool: VerifierPool) -> dict[str, float]:
    """One response a question, verified: `accuracy` is the share of right ones among all whose answer is known."""
    config = run.config
    policy = config.policy.model_copy(update={"max_prompt_tokens": run.max_prompt_tokens})
    decoding = Decoding(
        config.eval.temperature, max_new_tokens=config.rollout.max_new_tokens, stop_ids=run.tokenizer.stop_ids
    )
    requests = [
        Request(question.id, tuple(policy_prompt(policy, run.tokenizer, question.query)[0]), decoding, seed=config.seed)
        for question in questions
    ]
    found: dict[str, Completion] = {}
    for completion in run.learner.sampler().generate(requests):
        found[completion.request.id] = completion
        run.check_stop()
    responses = [response_of(found[question.id], run.tokenizer, policy.thinking) for question in questions]
    jobs = [
        Job(response or "", question.answer or "", question.verifier or policy.verifier)
        for question, response in zip(questions, responses, strict=True)
    ]
    right = [answer for answer in verified(jobs, pool) if answer is not None]
    completions = [found[question.id] for question in questions]
    return {
        "questions": float(len(right)),
        "accuracy": sum(right) / max(len(right), 1),
        "invalid_rate": sum(response is None for response in responses) / len(responses),
        "truncation_rate": sum(one.finish_reason == "length" for one in completions) / len(completions),
        "response_length": sum(len(one.token_ids) for one in completions) / len(completions),
    }
