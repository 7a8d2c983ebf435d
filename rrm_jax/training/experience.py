"""Where a GRPO run's rollouts come from: prompts from the stream, until a step has what it needs, now or in advance."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner import Learner
from rrm_jax.training.rollouts import Ask, Group, Rollouts, assemble, collect, informative
from rrm_jax.training.task import Task


class Experience:
    """`next(step)` gives the step's rollouts, by the policy as it is, or, asynchronously, as it was a step ago.

    `position` is the number of rows that the stream has given, which a step's checkpoint keeps. `finished` is called
    for every completion, and may raise; an asynchronous run's thread does not call it.
    """

    def __init__(
        self, config: TrainConfig, learner: Learner, ask: Ask, task: Task, directory: Path,
        position: int, finished: Callable[[], None],
    ):  # fmt: skip
        self._config, self._learner, self._ask, self._task = config, learner, ask, task
        self.position, self._finished = position, finished
        self._ahead: Future[tuple[list[Group], dict[str, float], int, int]] | None = None
        self._thread = ThreadPoolExecutor(1, "sample") if config.rollout.asynchronous else None
        self._directory = directory / "pending"
        self.drawn_ahead = False  # whether the rollouts that `next` gave last were

    def next(self, step: int) -> Rollouts:
        """This step's rollouts; with `asynchronous`, the next step's are then begun. Raises what sampling raised."""
        if self._thread is None:
            sampler, version = self._learner.sampler(), self._learner.version
            groups, extra, self.position, version = self._draw(step, self.position, sampler, version, self._finished)
        else:
            self.drawn_ahead = self._ahead is not None
            groups, extra, self.position, version = (self._ahead or self._begin(step)).result()
            self._ahead = self._begin(step + 1) if step < self._config.steps else None
        return assemble(groups, self._config, version, **extra, **self._task.metrics(groups))

    def _begin(self, step: int) -> Future:
        assert self._thread is not None
        # The weights are handed over here and now: what the learner does later is not seen.
        sampler, version = self._learner.sampler(), self._learner.version
        return self._thread.submit(self._draw, step, self.position, sampler, version, lambda: None)

    def _draw(
        self, step: int, position: int, sampler: Any, version: int, finished: Callable[[], None]
    ) -> tuple[list[Group], dict[str, float], int, int]:
        config, orders = self._config, self._task.prompts_per_row
        wanted, drawn = config.rollout.prompts_per_step, 0
        kept: list[Group] = []
        spare: list[Group] = []
        extra: dict[str, float] = {}
        for draws in range(1, config.grpo.dynamic_draws + 1):
            missing = wanted - len(kept)
            asked = self._task.take(position, missing // orders)
            position += missing // orders
            groups = collect(sampler, self._ask, asked, step, drawn, finished)
            self._task.reward(groups)
            drawn += len(groups)
            if not config.grpo.dynamic_sampling:
                return groups, extra, position, version
            useful = informative(groups, orders)
            kept += [group for group, use in zip(groups, useful, strict=True) if use]
            spare += [group for group, use in zip(groups, useful, strict=True) if not use]
            extra = {"draws": float(draws), "groups_drawn": float(drawn), "groups_missing": float(wanted - len(kept))}
            if len(kept) == wanted:
                break
        return (kept + spare)[:wanted], extra, position, version

    def save(self, step: int) -> None:
        """Waits for the rollouts that are under way, and writes them for a resumed run, whose weights are newer."""
        if self._ahead is None:
            return
        groups, extra, position, version = self._ahead.result()
        rows = {
            "groups": [group.to_json() for group in groups],
            "extra": extra,
            "position": position,
            "version": version,
        }
        if jax.process_index() == 0:
            self._directory.mkdir(exist_ok=True)
            write_whole(self._directory / f"{step}.json", json.dumps(rows))
            for old in self._directory.glob("*.json"):
                if int(old.stem) < step - self._config.checkpoint.every * (self._config.checkpoint.keep + 1):
                    old.unlink()

    def restore(self, step: int, ended: bool) -> None:
        """Takes up the rollouts that `save` wrote after `step`, but for before a run's first and after its last; the
        run `ended` with that step, if it has more steps now."""
        if self._thread is None or ended or not 0 < step < self._config.steps:
            return
        path = self._directory / f"{step}.json"
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RrmError(f"cannot go on after step {step}: its rollouts in {path} cannot be read ({error})") from None
        self._ahead = Future()
        groups = [Group.from_json(row) for row in rows["groups"]]
        self._ahead.set_result((groups, rows["extra"], rows["position"], rows["version"]))

    def wait(self) -> None:
        """Returns when nothing is being sampled."""
        if self._ahead is not None:
            self._ahead.exception()

    def close(self) -> None:
        """Waits for the step that is drawn ahead, if one is."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


def ask_of(config: TrainConfig, task: Task, stop_ids: tuple[int, ...]) -> Ask:
    """As the run draws its experience, with `stop_ids` beside the configuration's settings."""
    rollout = config.rollout
    decoding = Decoding(rollout.temperature, max_new_tokens=rollout.max_new_tokens, stop_ids=stop_ids)
    return Ask(task.read, decoding, rollout.group_size, config.seed)


def check_version(rollouts: Rollouts, learner: Learner, config: TrainConfig, step: int, drawn_ahead: bool) -> float:
    """How many training steps older the policy that sampled is: 0, or 1 where it was `drawn_ahead`.

    Raises RuntimeError for any other: rollouts of a policy that the trainer does not know of are a bug, never data.
    """
    late = learner.version - rollouts.version
    allowed = config.updates_per_step if drawn_ahead else 0
    if late != allowed:
        raise RuntimeError(f"step {step} got rollouts of version {rollouts.version}, the policy is {learner.version}")
    return late / config.updates_per_step


def spread_over(values_P: np.ndarray, size: int) -> list[float]:
    """One value for each sample of a group, or one for each group → a value for each example, group-major."""
    return np.broadcast_to(values_P.reshape(len(values_P), -1), (len(values_P), size)).ravel().tolist()
