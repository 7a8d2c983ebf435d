"""A study from its configuration to its files."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rrm_jax.config import load_config
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import VoteLog
from rrm_jax.provenance import pinned
from rrm_jax.studies import (
    benchmarks,
    calibration,
    cost,
    dynamics,
    intransitivity,
    patterns,
    posttrain,
    reasoning,
    scaling,
    thinking_budget,
)
from rrm_jax.studies import config as configs
from rrm_jax.studies.common import OpenJudge, Session
from rrm_jax.studies.report import Report, command_line, write_report


@dataclasses.dataclass(frozen=True)
class Study:
    """`find(config, session)` does the work, and gives a dataclass of all numbers; `report(config, found, seeds)` says
    them. `found` may be of several seeds, see pooling.py. `check(config)` raises RrmError for what cannot be studied,
    before anything is written."""

    config: type[configs.StudyConfig]
    find: Callable[..., Any]
    report: Callable[..., Report]
    check: Callable[[Any], None] = lambda config: None


STUDIES: dict[str, Study] = {
    "benchmarks": Study(configs.BenchmarksConfig, benchmarks.find, benchmarks.report, benchmarks.check),
    "reasoning": Study(configs.ReasoningConfig, reasoning.find, reasoning.report),
    "base-models": Study(configs.ReasoningConfig, reasoning.find, reasoning.report),
    "transfer": Study(configs.BenchmarksConfig, benchmarks.find, benchmarks.report, benchmarks.check),
    "test-time-compute": Study(configs.ScalingConfig, scaling.find, scaling.report),
    "thinking-budget": Study(configs.ThinkingBudgetConfig, thinking_budget.find, thinking_budget.report),
    "patterns": Study(configs.PatternsConfig, patterns.find, patterns.report),
    "intransitivity": Study(configs.IntransitivityConfig, intransitivity.find, intransitivity.report),
    "dynamics": Study(configs.DynamicsConfig, dynamics.find, dynamics.report),
    "posttrain-rl": Study(configs.PosttrainConfig, posttrain.find, posttrain.report, posttrain.check),
    "posttrain-dpo": Study(configs.PosttrainConfig, posttrain.find, posttrain.report, posttrain.check),
    "cost": Study(configs.CostConfig, cost.find, cost.report),
    "calibration": Study(configs.CalibrationConfig, calibration.find, calibration.report),
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
) -> "Ran":
    """Runs a study, or goes on with one that was killed, and writes its files to `config.output`.

    Every vote is kept as it comes, so that what was judged is never judged again; the files appear when all is judged.
    """
    study, output = STUDIES[name], Path(config.output)
    study.check(config)
    inputs = config.files()
    missing = [path for path in inputs.values() if not Path(path).is_file()]
    if missing:
        raise RrmError(f"there is no file {missing[0]}, which the study {name} reads")
    with pinned(output / "run.json", config=config.model_dump(), seed=config.seed, inputs={**inputs}):
        judging = isinstance(config, configs.JudgingConfig) or getattr(config, "pairs", None) is not None
        store = Path(getattr(config, "verdicts", None) or output / "votes.jsonl")
        with VoteLog(store, report=report) if judging else contextlib.nullcontext() as log:
            session = Session(config.seed, log, open_judge, report, advance)
            found = study.find(config, session)
            if log is not None:
                report(f"{log.written} votes drawn now, {log.found} found in the store")
        for file, rows in session.logs.items():
            write_whole(output / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        facts = facts_of(name, (config.seed,), config) | {"judges": session.settings, "skipped_rows": session.skipped}
        return Ran(write_report(study.report(config, found, (config.seed,)), output, facts), found, session.skipped)


class Ran(NamedTuple):
    """The Markdown, the numbers, and how many rows were passed over: malformed ones, and of benchmarks
    those that a judge could not judge."""

    text: str
    found: Any
    skipped: int


def facts_of(name: str, seeds: Sequence[int], config: configs.StudyConfig) -> dict[str, Any]:
    """What comes first in data.json."""
    return {"study": name, "command": command_line(), "seeds": list(seeds), "resamples": config.resamples}
