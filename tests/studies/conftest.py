"""Judgments made by hand, and judges that answer without a model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.judging.judge import Judge, Judgment, Vote
from rrm_jax.judging.template import Template
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.studies.config import JudgeConfig
from tests.judging.fake_generator import FakeGenerator

USER = "{query}\n### Assistant 1\n{response_1}\n### Assistant 2\n{response_2}\n## Analysis"


def judgment(verdicts: Sequence[int | None], label: int = 1, orders: str = "both", tokens: int = 10) -> Judgment:
    """Of votes with these verdicts in the pair's own order; `orders` "both" alternates them."""
    shown = ["12" if orders == "given" or at % 2 == 0 else "21" for at in range(len(verdicts))]
    votes = (Vote(o, v, "", tokens, "stop", False) for o, v in zip(shown, verdicts, strict=True))  # type: ignore
    return Judgment(Pair("p", "q", "a", "b", label), tuple(votes))  # type: ignore


class FakeJudges:
    """Opens judges whose answers are `answers[model](prompt, request)`; counts what they were asked."""

    def __init__(self, tokenizer: Tokenizer, answers: dict[str, Callable[[str, Request], str]]):
        self.tokenizer, self.answers = tokenizer, answers
        self.dies_after: int | None = None
        self.asked = 0

    def open(self, judge: JudgeConfig, *, seed, votes, order, thinking_budget) -> Judge:
        def answer(prompt: str, request: Request) -> str:
            self.asked += 1
            return self.answers[judge.model](prompt, request)

        return Judge(
            FakeGenerator(self.tokenizer, answer, dies_after=self.dies_after),
            self.tokenizer,
            Template("short", "Which is better?", USER),
            Decoding(judge.temperature, max_new_tokens=256),
            seed=seed,
            votes=votes,
            order=order,
            thinking_budget=thinking_budget,
            model=judge.model,
        )


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a character, with the control tokens of R1."""
    import string

    directory = tmp_path_factory.mktemp("letters")
    write_word_tokenizer(directory, string.printable)
    return Tokenizer.load(directory)


def good_pairs(count: int) -> list[dict]:
    return [
        {"id": str(at), "query": f"q{at}", "response_1": "good", "response_2": "bad", "label": 1} for at in range(count)
    ]


def write_rows(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
