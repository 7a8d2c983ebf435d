"""What a judge's verdicts are worth to a policy in training: true accuracy of held-out answers, and who rewarded it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.statistics import Interval
from rrm_jax.evaluation.training_log import read_training_log
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import PosttrainConfig, TrainingRunConfig
from rrm_jax.studies.dynamics import Curve, compute, draw, learned, rows_of
from rrm_jax.studies.posttrain_pairs import make_pairs
from rrm_jax.studies.report import Claim, Report, Table, brackets, claim, percent, points
from rrm_jax.training.policy_config import PolicyConfig

PANELS = (
    ("eval", "accuracy", "Held-out answers", "right, %", 100.0),
    ("train", "reward_auc", "Rewards of right and wrong responses", "right ones earned more, %", 100.0),
    ("train", "reward_mean", "Reward in training", "mean reward", 1.0),
    ("train", "preference_accuracy", "Pairs of the step, before it", "as labelled, %", 100.0),
    ("train", "reward_margin", "Margin of the step's pairs", "nats × β", 1.0),
    ("train", "reward_length_correlation", "Reward and length, in groups", "correlation", 1.0),
    ("train", "judge_first", "Verdicts for the response shown first", "%", 100.0),
    ("eval", "response_length", "Length of held-out responses", "tokens, mean", 1.0),
)


_NOTE: dict[bool, tuple[str, ...]] = {
    True: ("In tournaments what one response wins another loses: their mean reward is ½ whatever is learnt.",),
    False: (),
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run: its steps, held-out accuracy before and after, and the difference."""

    name: str
    steps: int
    before: Interval
    after: Interval
    gain: Interval


@dataclasses.dataclass(frozen=True)
class Found:
    """`runs` in the configuration's order; `curves` by run and metric."""

    runs: tuple[Trained, ...]
    curves: tuple[Curve, ...]
    pairs: dict[str, float]
    """How many were made, by who labelled them."""


def check(config: PosttrainConfig) -> None:
    """RrmError for runs without held-out questions."""
    for name, run in config.runs.items():
        if run.settings["data"]["eval"] is None:
            raise RrmError(f"the run {name} has no data.eval, whose answers are what is compared here")


def find(config: PosttrainConfig, session: Session) -> Found:
    """Trains what is not trained yet, in the order: runs that come before, pairs, runs. Goes on where a killed study
    stopped."""
    for name, run in config.before.items():
        _finish(name, run, config, session)
    counts: dict[str, float] = {}
    if config.pairs is not None:
        first = next(iter(config.runs.values()))
        policy = PolicyConfig.model_validate(first.settings["policy"])
        counts = make_pairs(Path(config.output), config.pairs, policy, session)
    for name, run in config.runs.items():
        _finish(name, run, config, session)
    logs = {name: read_training_log(Path(run.settings["output"])) for name, run in config.runs.items()}
    curves = compute(logs, PANELS)
    return Found(tuple(_trained(name, log.step, curves) for name, log in logs.items()), tuple(curves), counts)


def _finish(name: str, run: TrainingRunConfig, config: PosttrainConfig, session: Session) -> None:
    """Trains, or goes on with, a run of `rrm train` that has not come to its last step."""
    from rrm_jax.training.config import TrainConfig
    from rrm_jax.training.train import reached, train_to_the_end

    settings = TrainConfig.model_validate(run.settings | {"seed": config.seed})
    directory = Path(settings.output)
    step = reached(directory)
    if step < settings.steps and not config.train:
        raise RrmError(
            f"the run {name} in {directory} has come to step {step} of {settings.steps}: finish it with rrm train "
            f"{run.config} (its settings here: output={directory} data.train={run.settings['data']['train']})"
        )
    if step < settings.steps:
        session.report(f"── train {name}")
    train_to_the_end(settings, session.report)


def _trained(name: str, steps: int, curves: Sequence[Curve]) -> Trained:
    of_run = next(one for one in curves if (one.run, one.kind, one.metric) == (name, "eval", "accuracy"))
    gain = learned(name, curves)
    assert of_run.intervals is not None
    assert gain is not None
    return Trained(name, steps, of_run.intervals[0], of_run.intervals[-1], gain)


def report(config: PosttrainConfig, found: Found, seeds: Sequence[int]) -> Report:
    """Held-out accuracy before and after each run, and the curves. `seeds` are those that `found` was pooled over."""
    rows = [["run", "steps", "before", "after", "points"]]
    rows += [
        [one.name, str(one.steps), percent(one.before), percent(one.after), points(one.gain)] for one in found.runs
    ]
    of = {one.name: one for one in found.runs}
    return Report(
        config.title,
        "; ".join(f"{one.name}: {percent(one.after.estimate)}" for one in found.runs)
        + " of held-out answers are right.",
        found,
        [
            Table("Held-out answers that are right", rows),
            *_pairs_table(found.pairs),
            Table("First, most and last", rows_of(found.curves, PANELS), left=2),
        ],
        [
            *(
                claim(f"{name}: held-out answers get better", of[name].gain, _evidence(of[name]))
                for name in config.gains
            ),
            *(_no_gain(of[name]) for name in config.no_gains),
        ],
        [
            "Right is what a rule finds to be the known answer; it rewards only the run that says so.",
            *_NOTE[any(curve.metric == "reward_mean" for curve in found.curves)],
            "In brackets: Wilson's 95 % intervals over the held-out questions."
            if len(seeds) == 1
            else brackets(seeds, "held-out questions"),
        ],
        lambda figure: draw(figure, found.curves, PANELS),
        (12.0, 9.0),
    )


def _evidence(one: Trained) -> str:
    return f"{points(one.gain)} points in {one.steps} steps, to {percent(one.after)}."


def _pairs_table(pairs: dict[str, float]) -> list[Table]:
    if not pairs:
        return []
    rows = [["labelled by", "pairs"], *([name, f"{count:,.0f}"] for name, count in pairs.items())]
    return [Table("Pairs of the policy's own responses", rows)]


def _no_gain(one: Trained) -> Claim:
    lost = Interval(-one.gain.estimate, -one.gain.high, -one.gain.low, one.gain.n)
    return claim(f"{one.name}: held-out answers do not get better", lost, _evidence(one))
