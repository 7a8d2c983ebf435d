"""A tiny world in which thinking helps: is the last digit of a sum this one, or that one?

A query shows five digits; each response claims the last digit of their sum. Adding five digits in one forward
pass of a two-layer network is beyond it; writing down the running sums is not. Everything is made from seeds, so
every label is known to be right.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_jax.data.whole_files import write_whole

DIGITS = 5
_QUERY = "Last digit of the sum of "
TEMPLATE = """\
name = "quickstart"
system = "Choose the right answer."
user = "{query}\\nAssistant 1: {response_1}\\nAssistant 2: {response_2}"
thinking_prefix = "<think>"
direct_prefix = "<think></think>"
closing = "</think>"
verdict_prefix = ""
"""
WORDS = (
    *"0123456789",
    _QUERY,
    "Choose the right answer.",
    "\nAssistant 1: ",
    "\nAssistant 2: ",
    " is the first.",
    " is the second.",
    "\\boxed{Assistant 1}",
    "\\boxed{Assistant 2}",
)


def _problem(rng: np.random.Generator, count: int = DIGITS) -> tuple[str, list[int]]:
    """A query, and the running sums modulo 10 that lead to its answer (the last one)."""
    digits = rng.integers(0, 10, count)
    return _QUERY + "".join(map(str, digits)), [int(total) for total in np.cumsum(digits) % 10]


def pairs(count: int, seed: int, digits: int = DIGITS) -> Iterator[dict[str, Any]]:
    """Preference pairs: the right digit and a wrong one, in random order; `label` names the right one."""
    rng = np.random.default_rng(seed)
    for at in range(count):
        query, sums = _problem(rng, digits)
        wrong = (sums[-1] + int(rng.integers(1, 10))) % 10
        label = int(rng.integers(1, 3))
        first, second = (sums[-1], wrong) if label == 1 else (wrong, sums[-1])
        yield {
            "id": f"{seed}-{at}",
            "query": query,
            "response_1": str(first),
            "response_2": str(second),
            "label": label,
        }


def demonstrations(count: int, seed: int, derail: float, thinking: bool) -> Iterator[dict[str, Any]]:
    """Pairs with a completion to imitate: the output format, and a weak ability.

    With probability `derail` the running sums go wrong at a random step, by just so much that they end at the wrong
    response. The verdict always agrees with the sums: errors come from the thinking, never from the last step. A
    DirectJudge's demonstrations (`thinking` false) are right exactly as often.
    """
    rng = np.random.default_rng([seed, 1])
    for pair in pairs(count, seed):
        digits = [int(digit) for digit in pair["query"].removeprefix(_QUERY)]
        sums = np.cumsum(digits) % 10
        right = int(sums[-1])
        wrong = int(pair["response_2"] if pair["label"] == 1 else pair["response_1"])
        derailed = rng.random() < derail
        if derailed:
            sums[int(rng.integers(0, DIGITS)) :] += wrong - right
        verdict = 3 - pair["label"] if derailed else pair["label"]
        running = "".join(str(total % 10) for total in sums)
        named = "first" if verdict == 1 else "second"
        thoughts = f"{running} is the {named}.</think>" if thinking else ""
        yield pair | {"completion": f"{thoughts}\\boxed{{Assistant {verdict}}}"}


def questions(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Queries with their answers, which `verifier` "whole" finds in a response of one digit."""
    rng = np.random.default_rng([seed, 3])
    for at in range(count):
        query, sums = _problem(rng)
        yield {"id": f"{seed}-{at}", "query": query, "answer": str(sums[-1]), "verifier": "whole"}


def solutions(count: int, seed: int, derail: float) -> Iterator[dict[str, Any]]:
    """Questions with a completion to imitate: running sums, which with probability `derail` go wrong at a random step,
    and the digit that they end with."""
    rng = np.random.default_rng([seed, 4])
    for question in questions(count, seed):
        sums = np.cumsum([int(digit) for digit in question["query"].removeprefix(_QUERY)])
        if rng.random() < derail:
            sums[int(rng.integers(0, DIGITS)) :] += int(rng.integers(1, 10))
        running = "".join(str(total % 10) for total in sums)
        yield question | {"completion": f"{running}</think>{running[-1]}"}


def candidates(count: int, seed: int, responses: int, right: float, popular: float) -> Iterator[dict[str, Any]]:
    """Best-of-N problems: `responses` claimed digits each, and which of them are `correct`.

    Each is right with probability `right`; otherwise it is the question's popular mistake with probability
    `popular`, else any other digit: as with real models, the most common answer is often a wrong one.
    """
    rng = np.random.default_rng([seed, 2])
    for at in range(count):
        query, sums = _problem(rng)
        answer = sums[-1]
        mistake = (answer + int(rng.integers(1, 10))) % 10
        claims = []
        for _ in range(responses):
            other = (answer + int(rng.integers(1, 10))) % 10
            wrong = mistake if rng.random() < popular else other
            claims.append(answer if rng.random() < right else wrong)
        yield {
            "id": f"{seed}-{at}",
            "query": query,
            "responses": [str(claim) for claim in claims],
            "correct": [claim == answer for claim in claims],
        }


def write_jsonl(path: Path, rows: Iterator[dict[str, Any]] | Sequence[dict[str, Any]]) -> Path:
    """Writes rows to `path`, which appears only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
