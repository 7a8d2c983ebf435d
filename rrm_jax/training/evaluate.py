"""Held-out accuracy in both orders, while training."""

from collections.abc import Sequence

from rrm_jax.data.records import Pair, parse_labelled_pair
from rrm_jax.judging.judge import Judge, Judgment
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.run import Report, Run, read_rows


def read_held_out(config: TrainConfig, report: Report) -> list[Pair]:
    """The pairs of `data.eval`; none without it."""
    data = config.data
    return read_rows(data.eval, parse_labelled_pair, data.eval_limit, report) if data.eval else []


class Evaluator:
    """Judges the held-out pairs in both orders, always with the same noise, and writes the run's "eval" metrics.

    Does nothing in a run without `data.eval`.
    """

    def __init__(self, run: Run, pairs: Sequence[Pair]):
        self._run, self._pairs = run, pairs

    def due(self, step: int) -> bool:
        """Whether the configuration asks for it: every `eval.every` steps, and after the last."""
        return bool(self._pairs) and (step % self._run.config.eval.every == 0 or step == self._run.config.steps)

    def catch_up(self, step: int) -> None:
        """Makes the evaluation after `step` that a run begins with, or that one that was killed had not made."""
        if (step == 0 or self.due(step)) and not self._run.metrics.has("eval", step):
            self.evaluate(step)

    def evaluate(self, step: int) -> None:
        """Asked to stop, the run ends in here, and makes the evaluation when it is resumed."""
        if not self._pairs:
            return
        run, config = self._run, self._run.config
        with run.phase("eval"):
            judge = Judge(
                run.learner.sampler(),
                run.tokenizer,
                run.template,
                Decoding(config.eval.temperature, max_new_tokens=config.rollout.max_new_tokens),
                seed=config.seed,
                order="both",
                thinking=config.judge.thinking,
                max_prompt_tokens=config.judge.max_prompt_tokens,
            )
            judgments = []
            for judgment in judge.judge(self._pairs):
                judgments.append(judgment)
                run.check_stop()
            values = both_orders(judgments)
        run.metrics.write("eval", step, values | run.seconds(), ("accuracy", "order_consistency", "invalid_rate"))


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
