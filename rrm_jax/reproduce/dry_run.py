"""What `rrm reproduce` will cost: judgments, tokens, and hours of a named accelerator."""

import dataclasses
from pathlib import Path

from rrm_jax.checkpoints.sources import open_source
from rrm_jax.config import load_config
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.accelerators import Accelerator
from rrm_jax.parallel.serving_cost import ServingCost, serving_cost
from rrm_jax.reproduce.config import Assumed, ReproduceConfig, studies_of
from rrm_jax.reproduce.counting import Asked, count
from rrm_jax.studies.config import BenchmarksConfig, PosttrainConfig, StudyConfig
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.training_cost import training_cost


@dataclasses.dataclass(frozen=True)
class Line:
    """One judge with one thinking budget, for all seeds together."""

    judge: str
    budget: int | None
    prompts: int
    votes: int
    new_tokens: float
    cost: ServingCost


@dataclasses.dataclass(frozen=True)
class Plan:
    """`new` are the votes that each study draws; `training` the device-hours of runs that the studies read, and that
    `rrm reproduce` does not start; `read` names, by study, runs of policies that it does not start either. `missing`
    are files that were assumed."""

    seeds: int
    accelerator: Accelerator
    lines: tuple[Line, ...]
    new: dict[str, int]
    training: dict[str, float]
    read: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]

    @property
    def votes(self) -> int:
        """Of all studies and seeds, those that the studies share counted once."""
        return sum(line.votes for line in self.lines)

    @property
    def tokens(self) -> float:
        """Written, in expectation."""
        return sum(line.new_tokens for line in self.lines)

    @property
    def hours(self) -> float:
        """Device-hours of judging."""
        return sum(line.cost.device_seconds for line in self.lines) / 3600


def dry_run(config: ReproduceConfig, accelerator: Accelerator) -> Plan:
    """Counts one seed, and multiplies: another seed asks for as much. Raises RrmError for a wrong configuration."""
    assumed, seeds = config.assumed, len(config.seeds)
    studies = studies_of(config, config.seeds[0])
    asked, new = count(studies, assumed)
    lines = [_line(one, assumed, accelerator, seeds) for one in asked]
    training = {name: _training(path, assumed, accelerator) for name, path in assumed.training.items()}
    read = {
        name: tuple(study.runs)
        for name, study in studies.items()
        if isinstance(study, PosttrainConfig) and not study.train
    }
    files = {path for study in studies.values() for path in _files(study)}
    made = f"{config.output}/seed-"
    missing = sorted(path for path in files if not path.startswith(made) and not Path(path).exists())
    new = {name: seeds * votes for name, votes in new.items()}
    return Plan(seeds, accelerator, tuple(lines), new, training, read, tuple(missing))


def _files(study: StudyConfig) -> list[str]:
    """All that it reads, also what it would do without."""
    if isinstance(study, BenchmarksConfig):
        return [one.data for one in study.benchmarks.values()]
    return list(study.files().values())


def _line(asked: Asked, assumed: Assumed, accelerator: Accelerator, seeds: int) -> Line:
    tokens = assumed.thinking_tokens if asked.judge.thinking is not False else assumed.verdict_tokens
    if asked.budget is not None:
        tokens = min(tokens, asked.budget + assumed.verdict_tokens)
    cost = serving_cost(
        _decoder(asked.judge.model, assumed), accelerator, prompts=seeds * asked.prompts, votes=seeds * asked.votes,
        prompt_tokens=assumed.prompt_tokens, new_tokens=tokens,
    )  # fmt: skip
    name = asked.judge.model + (", verdict constrained" if asked.judge.constrain_verdict else "")
    return Line(name, asked.budget, seeds * asked.prompts, seeds * asked.votes, seeds * asked.votes * tokens, cost)


def _decoder(model: str, assumed: Assumed) -> DecoderConfig:
    return open_source(Path(model)).config if Path(model).is_dir() else PAPER_MODELS[assumed.model]


def _training(path: str, assumed: Assumed, accelerator: Accelerator) -> float:
    """Device-hours."""
    config = load_config(TrainConfig, path)
    tokens = assumed.thinking_tokens if config.judge.thinking else assumed.verdict_tokens
    cost = training_cost(
        config, PAPER_MODELS[assumed.model], accelerator, prompt_tokens=assumed.prompt_tokens, new_tokens=tokens
    )
    return cost.device_seconds / 3600


def rows(plan: Plan) -> list[list[str]]:
    """By judge, the heading first."""
    table = [["judge", "budget", "prompts", "votes", "new tokens", "devices", "tokens/s a device", "device-hours"]]
    for line in plan.lines:
        cost = line.cost
        budget = "none" if line.budget is None else f"{line.budget:,}"
        counts = [f"{line.prompts:,}", f"{line.votes:,}", f"{line.new_tokens:,.0f}"]
        speed = [str(cost.devices), f"{cost.tokens_per_second:,.0f}", _hours(cost.device_seconds / 3600)]
        table.append([line.judge, budget, *counts, *speed])
    table.append(["all", "", "", f"{plan.votes:,}", f"{plan.tokens:,.0f}", "", "", _hours(plan.hours)])
    return table


def study_rows(plan: Plan) -> list[list[str]]:
    """By study, the heading first."""
    return [["study", "votes it draws"], *([name, f"{votes:,}"] for name, votes in plan.new.items())]


def remarks(plan: Plan, assumed: Assumed) -> list[str]:
    """What the numbers rest on, and what is not in them."""
    lines = [
        f"{plan.seeds} seed(s), on {plan.accelerator.name}; an estimate by a roofline from data sheets, not a "
        "measurement.",
        f"Assumed: {assumed.prompt_tokens:,} tokens a prompt, {assumed.thinking_tokens:,} a completion with thinking, "
        f"{assumed.verdict_tokens:,} without (settings assumed.*).",
    ]
    if plan.missing:
        lines.append(
            f"Not there, and assumed to have as many rows as are published, else {assumed.pairs:,} pairs or "
            f"{assumed.queries:,} queries of {assumed.candidates} candidates: {', '.join(plan.missing)}"
        )
    for name, hours in plan.training.items():
        lines.append(
            f"Not included, as it is rrm train's: the training run of {name}, some {_hours(hours)} device-hours."
        )
    for name, runs in plan.read.items():
        lines.append(f"Not included, as they are rrm train's: the runs {', '.join(runs)} of {name}, and their judge.")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
