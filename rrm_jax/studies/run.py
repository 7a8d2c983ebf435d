"""A study from its configuration to its files."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from rrm_jax.config import load_config
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import VoteLog
from rrm_jax.provenance import pinned
from rrm_jax.studies import calibration, cost, dynamics, intransitivity, patterns, reasoning, scaling, thinking_budget
from rrm_jax.studies import config as configs
from rrm_jax.studies.common import OpenJudge, Session
from rrm_jax.studies.report import Report, command_line, write_report


@dataclasses.dataclass(frozen=True)
class Study:
    """`run(config, session)` gives the report."""

    config: type[configs.StudyConfig]
    run: Callable[..., Report]


STUDIES: dict[str, Study] = {
    "reasoning": Study(configs.ReasoningConfig, reasoning.run),
    "test-time-compute": Study(configs.ScalingConfig, scaling.run),
    "thinking-budget": Study(configs.ThinkingBudgetConfig, thinking_budget.run),
    "patterns": Study(configs.PatternsConfig, patterns.run),
    "intransitivity": Study(configs.IntransitivityConfig, intransitivity.run),
    "dynamics": Study(configs.DynamicsConfig, dynamics.run),
    "cost": Study(configs.CostConfig, cost.run),
    "calibration": Study(configs.CalibrationConfig, calibration.run),
}


def study_config(name: str, config: str, overrides: Sequence[str] = ()) -> configs.StudyConfig:
    """The configuration of a study: a file, or a scale that comes with the package ("tiny"). Raises RrmError."""
    if name not in STUDIES:
        raise RrmError(f"there is no study {name!r}; there are {', '.join(STUDIES)}")
    path = config if config.endswith((".yaml", ".yml")) else f"studies/{config}/{name}.yaml"
    return load_config(STUDIES[name].config, path, overrides)


def run_study(
    name: str,
    config: configs.StudyConfig,
    open_judge: OpenJudge,
    report: Callable[[str], None] = lambda message: None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[str, int]:
    """Runs a study, or goes on with one that was killed, and writes its files to `config.output`.

    Returns the Markdown, and how many malformed rows were passed over. Every vote is kept as it comes, so that what
    was judged is never judged again; the files appear when all is judged.
    """
    study, output = STUDIES[name], Path(config.output)
    inputs = config.files()
    missing = [path for path in inputs.values() if not Path(path).is_file()]
    if missing:
        raise RrmError(f"there is no file {missing[0]}, which the study {name} reads")
    with pinned(output / "run.json", config=config.model_dump(), seed=config.seed, inputs={**inputs}):
        facts = {"study": name, "command": command_line(), "seed": config.seed, "resamples": config.resamples}
        judging = isinstance(config, configs.JudgingConfig)
        store = Path(getattr(config, "verdicts", None) or output / "votes.jsonl")
        with VoteLog(store, report=report) if judging else contextlib.nullcontext() as log:
            session = Session(config.seed, log, open_judge, report, advance)
            found = study.run(config, session)
            if log is not None:
                report(f"{log.written} votes drawn now, {log.found} found in the store")
        facts |= {"judges": session.settings, "skipped_rows": session.skipped}
        return write_report(found, output, facts), session.skipped
