"""Scores on held-out data, while training."""

from collections.abc import Sequence

from rrm_jax.data.records import Pair
from rrm_jax.judging.judge import Judge, Judgment
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.training.run import Run
from rrm_jax.training.task import Scores


class Evaluator:
    """Scores the held-out data, always with the same noise, and writes the run's "eval" metrics.

    Does nothing in a run without such data (`scores` None).
    """

    def __init__(self, run: Run, scores: Scores | None):
        self._run, self._scores = run, scores

    def due(self, step: int) -> bool:
        """Whether the configuration asks for it: every `eval.every` steps, and after the last."""
        wanted = step % self._run.config.eval.every == 0 or step == self._run.config.steps
        return self._scores is not None and wanted

    def catch_up(self, step: int) -> None:
        """Makes the evaluation after `step` that a run begins with, or that one that was killed had not made."""
        if (step == 0 or self.due(step)) and not self._run.metrics.has("eval", step):
            self.evaluate(step)

    def evaluate(self, step: int) -> None:
        """Asked to stop, the run ends in here, and makes the evaluation when it is resumed."""
        if self._scores is None:
            return
        with self._run.phase("eval"):
            values = self._scores()
        shown = ("accuracy", "order_consistency", "invalid_rate")
        self._run.metrics.write("eval", step, values | self._run.seconds(), shown)


def judge_held_out(run: Run, pairs: Sequence[Pair]) -> dict[str, float]:
    """`both_orders` of the model's verdicts on labelled pairs."""
    config, template = run.config, run.template
    assert template is not None
    judge = Judge(
        run.learner.sampler(),
        run.tokenizer,
        template,
        Decoding(config.eval.temperature, max_new_tokens=config.rollout.max_new_tokens),
        seed=config.seed,
        order="both",
        thinking=config.judge.thinking,
        max_prompt_tokens=run.max_prompt_tokens,
    )
    judgments = []
    for judgment in judge.judge(pairs):
        judgments.append(judgment)
        run.check_stop()
    return both_orders(judgments)


def both_orders(judgments: Sequence[Judgment]) -> dict[str, float]:
    """Scores of labelled pairs judged with order "both".

    `accuracy`: share of single verdicts that are right, an invalid one counting ½ (docs/method.md).
    `order_consistency`: share of votes whose two orders name the same response. Rates are over single verdicts.
    """
    votes = [(vote, judgment.pair.label) for judgment in judgments for vote in judgment.votes]
    credit = [0.5 if vote.verdict is None else float(vote.verdict == label) for vote, label in votes]
    agree = [
        one.verdict is not None and one.verdict == two.verdict
        for judgment in judgments
        for one, two in zip(judgment.votes[::2], judgment.votes[1::2], strict=True)
    ]
    return {
        "pairs": float(len(judgments)),
        "accuracy": sum(credit) / len(credit),
        "order_consistency": sum(agree) / len(agree),
        "invalid_rate": sum(vote.verdict is None for vote, _ in votes) / len(votes),
        "truncation_rate": sum(vote.finish_reason == "length" for vote, _ in votes) / len(votes),
        "response_length": sum(vote.tokens for vote, _ in votes) / len(votes),
    }
