"""What a verdict is worth to the learner."""


def verdict_reward(verdict: int | None, label: int) -> float:
    """+1 if the verdict names the better response, −1 if it names the other or cannot be parsed (paper §3)."""
    return 1.0 if verdict == label else -1.0
