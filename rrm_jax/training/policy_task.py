"""Training a policy on queries: its responses meet in tournaments that a judge decides (paper §4)."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rrm_jax.data.answers import NO_ANSWER
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Candidates, Pair, Question, parse_question
from rrm_jax.data.stream import RowStream
from rrm_jax.data.verifier_pool import Job, VerifierPool
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.tournament_rewards import tournament_rewards
from rrm_jax.judging.judge import JudgesPairs
from rrm_jax.judging.store import VoteLog
from rrm_jax.parallel.distributed import from_first, several
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.sampling.protocol import Completion
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.feed import Asked
from rrm_jax.training.policy_evaluate import response_of, solve_held_out, verified
from rrm_jax.training.policy_judge import PolicyJudge
from rrm_jax.training.policy_metrics import CoinJudge, CountingJudge, counts_of, tournament_metrics
from rrm_jax.training.policy_prompt import policy_prompt
from rrm_jax.training.rollouts import Group
from rrm_jax.training.run import Run, read_rows
from rrm_jax.training.task import Scores
from rrm_jax.training.training_data import open_parts

VERDICTS = "verdicts.jsonl"


class PolicyTask:
    """A `Task` whose rows are questions, and whose answers are the texts of responses, without the thinking.

    With one process all verdicts are kept in RUN/verdicts.jsonl, so that a killed run does not ask for them again.
    """

    prompts_per_row = 1

    def __init__(self, config: TrainConfig, report: Callable[[str], None]):
        self._config, self._policy, self._report = config, config.policy, report
        self.scores: Scores | None = None
        self._opened = contextlib.ExitStack()
        self._stream: RowStream | None = None
        if config.method == "grpo":
            parse_entry(self._policy.strategy, rating=self._policy.rating)
            self._stream = RowStream(open_parts(config, report), config.seed)
        data = config.data
        self._held_out = read_rows(data.eval, parse_answered, data.eval_limit, report) if data.eval else []

    def begin(self, run: Run) -> None:
        """As `Task` has it; opens the judge where tournaments reward."""
        self._tokenizer = run.tokenizer
        if self._config.method == "grpo":
            self._policy = self._policy.model_copy(update={"max_prompt_tokens": run.max_prompt_tokens})
        self._pool = self._opened.enter_context(VerifierPool())
        if self._held_out:
            self.scores = functools.partial(solve_held_out, run, self._held_out, self._pool)
        self._judge: PolicyJudge | None = None
        self._log: VoteLog | None = None
        settings, kind = self._policy.judge, self._policy.reward
        if self._stream is None or settings is None or kind not in ("tournament", "mixed"):
            return
        self._judge = PolicyJudge(run, settings, self._report)
        if not several():  # what one process found in its log the others would have to find as well
            self._log = self._opened.enter_context(contextlib.closing(VoteLog(run.directory / VERDICTS)))

    def parse(self, row: dict[str, Any]) -> Question:
        """A question. Raises RowError."""
        return parse_question(row)

    def encode(self, row: Question | Pair) -> Sequence[int]:
        """As `Task` has it; the end of a query that is too long is cut off."""
        return policy_prompt(self._policy, self._tokenizer, row.query)[0]

    def take(self, position: int, count: int) -> list[Asked]:
        """As `Task` has it."""
        assert self._stream is not None
        rows = self._stream.batch(position, count)
        return [Asked(row, *policy_prompt(self._policy, self._tokenizer, row.query)) for row in rows]

    def read(self, completion: Completion) -> str | None:
        """The response without its thinking; None where that never ended."""
        return response_of(completion, self._tokenizer, self._policy.thinking)

    def reward(self, groups: Sequence[Group]) -> None:
        """By rule, in tournaments, or each where it can be, as `policy.reward` says. RrmError for a row without an
        answer where the rule alone rewards."""
        kind = self._policy.reward
        self._verify(groups)
        by_rule = [kind == "verifier" or (kind == "mixed" and group.asked.answer is not None) for group in groups]
        meeting = []
        for group, ruled in zip(groups, by_rule, strict=True):
            if not ruled:
                meeting.append(group)
                continue
            if kind == "verifier" and group.asked.answer is None:
                raise RrmError(f"row {group.asked.id!r} has no answer; policy.reward: verifier needs one in every row")
            group.rewards = [float(right is True) for right in group.right]
        if meeting:
            self._hold_tournaments(meeting)

    def _verify(self, groups: Sequence[Group]) -> None:
        known = [group for group in groups if group.asked.answer is not None]
        jobs = [
            Job(answer or "", group.asked.answer, group.asked.verifier or self._policy.verifier)
            for group in known
            for answer in group.answers
        ]
        right = iter(verified(jobs, self._pool) if jobs else ())
        for group in groups:
            group.right = [next(right) if group.asked.answer is not None else None for _ in group.answers]

    def _hold_tournaments(self, groups: Sequence[Group]) -> None:
        # A server need not answer two processes alike.
        asked_once = several() and self._judge is not None and self._judge.remote
        found = from_first("rewards", lambda: self._play(groups)) if asked_once else self._play(groups)
        for group, (rewards, counts) in zip(groups, found, strict=True):
            group.rewards, group.counts = rewards, counts

    def _play(self, groups: Sequence[Group]) -> list[tuple[list[float], dict[str, float]]]:
        """Each group's rewards and counts."""
        rows = [
            Candidates(f"{at} {group.asked.id}", group.asked.query, tuple(x or NO_ANSWER for x in group.answers))
            for at, group in enumerate(groups)
        ]
        with self._turn() as judge:
            counting = CountingJudge(judge)
            found = tournament_rewards(
                counting,
                rows,
                strategy=self._policy.strategy,
                rating=self._policy.rating,
                seed=self._config.seed,
                thinks=False,
                log=self._log,
            )
        return [([*one.rewards], counts_of(one) | counting.of(row.id)) for row, one in zip(rows, found, strict=True)]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[JudgesPairs]:
        if self._judge is None:
            yield CoinJudge(self._config.seed)
            return
        with self._judge.turn() as judge:
            yield judge

    def metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Of tournaments and of answers that are known."""
        return tournament_metrics(groups)

    def trace(self, group: Group, sample: int) -> Mapping[str, Any]:
        """The known answer, the response, and whether it is right (None: nobody knows)."""
        return {"answer": group.asked.answer, "response": group.answers[sample], "right": group.right[sample]}

    def close(self) -> None:
        """As `Task` has it."""
        self._opened.close()


def parse_answered(row: dict[str, Any]) -> Question:
    """A question to score on: the answer is required. Raises RowError."""
    question = parse_question(row)
    if question.answer is None:
        raise RowError("field 'answer' must be text here, not null")
    return question
