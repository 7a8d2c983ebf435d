"""What a run's model is to do: to judge pairs, or to answer queries. The methods of training are the same for both."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rrm_jax.data.records import Pair, Question
from rrm_jax.sampling.protocol import Completion
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.feed import Asked
from rrm_jax.training.rollouts import Group

if TYPE_CHECKING:
    from rrm_jax.training.run import Run

Scores = Callable[[], dict[str, float]]
"""Held-out metrics of the weights as they are, by name."""


class Task(Protocol):
    """Made before the model is loaded, so that data that cannot be used are found out first; then `begin`."""

    prompts_per_row: int
    """Of the training data, one after another: 2 where a pair is shown in both orders."""

    def begin(self, run: "Run") -> None:
        """Opens what needs the run's tokenizer, devices or directory. Once; before all that follows."""
        ...

    def parse(self, row: dict[str, Any]) -> Pair | Question:
        """A row of data for supervised training, without its completion. Raises RowError."""
        ...

    def encode(self, row: Any) -> Sequence[int]:
        """The prompt's token ids."""
        ...

    def take(self, position: int, count: int) -> list[Asked]:
        """What the policy is asked for `count` rows of the endless training data from this position on."""
        ...

    def read(self, completion: Completion) -> Any:
        """The answer of a completion, JSON; None where there is none."""
        ...

    def reward(self, groups: Sequence[Group]) -> None:
        """Sets the groups' `rewards`, `right` and `counts`. On every process alike, which all come here."""
        ...

    def metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Of a step, beside those that every task has (`Rollouts.metrics`)."""
        ...

    def trace(self, group: Group, sample: int) -> Mapping[str, Any]:
        """What a person who reads this completion wants to know of it, JSON."""
        ...

    @property
    def scores(self) -> Scores | None:
        """Scores the held-out data; None where there are none."""
        ...

    def close(self) -> None:
        """Ends what `begin` opened; also where that never came."""
        ...


def open_task(config: TrainConfig, report: Callable[[str], None]) -> Task:
    """Raises RrmError for data that cannot be used."""
    if config.task == "policy":
        from rrm_jax.training.policy_task import PolicyTask

        return PolicyTask(config, report)
    from rrm_jax.training.judge_task import JudgeTask

    return JudgeTask(config, report)
