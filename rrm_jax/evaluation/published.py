"""Numbers that others have published, to stand beside ours. None of them is a result of this project.

Each with how sure it is: "code" stands in the authors' released code, "paper" in the paper, "recall" is remembered
and was not read again, "third" was measured by others.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RewardBench:
    """Percentages by section of RewardBench v1."""

    judge: str
    chat: float
    chat_hard: float
    safety: float
    reasoning: float
    overall: float
    source: str


SOURCE = "arXiv 2505.14674"
REWARDBENCH = (
    RewardBench("RRM-7B", 87.7, 70.4, 80.7, 90.0, 82.2, "code"),
    RewardBench("RRM-32B", 94.7, 81.1, 90.7, 98.3, 91.2, "code"),
    RewardBench("DirectJudge-7B", 86.0, 69.7, 85.5, 79.5, 80.2, "recall"),
    RewardBench("DirectJudge-32B", 96.1, 85.1, 89.5, 90.9, 90.4, "recall"),
)
REWARDBENCH_VOTING = (
    RewardBench("RRM-7B voting@16", 92.1, 71.5, 81.3, 93.8, 84.8, "recall, overall third"),
    RewardBench("RRM-32B voting@16", 96.1, 81.4, 91.6, 98.6, 91.9, "recall, Reasoning paper, overall third"),
)


@dataclasses.dataclass(frozen=True)
class BestOfEight:
    """Percentage right on MATH with 8 candidates of Qwen2.5-Math-7B-Instruct."""

    judge: str
    knockout: float
    elo: float
    source: str


MATH_BEST_OF_8 = (BestOfEight("RRM-7B", 88.2, 88.5, "recall"), BestOfEight("RRM-32B", 90.0, 90.5, "recall"))


def rewardbench_rows(rows: tuple[RewardBench, ...]) -> list[list[str]]:
    """A table's rows, its heading first."""
    body = [
        [
            row.judge,
            *(f"{x:.1f}" for x in (row.chat, row.chat_hard, row.safety, row.reasoning, row.overall)),
            row.source,
        ]
        for row in rows
    ]
    return [["published", "Chat", "Chat Hard", "Safety", "Reasoning", "Overall", "known from"], *body]
