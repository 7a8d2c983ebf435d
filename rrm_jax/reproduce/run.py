"""Every study at a scale, seed by seed, pooled, and told in one report."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rrm_jax.errors import RrmError
from rrm_jax.provenance import pinned
from rrm_jax.quickstart.run import RUNS, Sizes, prepare, train_run
from rrm_jax.reproduce.config import ReproduceConfig, studies_of
from rrm_jax.studies.common import OpenJudge
from rrm_jax.studies.config import StudyConfig
from rrm_jax.studies.pooling import pool
from rrm_jax.studies.report import Report, write_report
from rrm_jax.studies.run import STUDIES, Ran, facts_of, run_study

# The base models' study has one more judge: trained to think from a model that never saw how.
TRAINED = (*RUNS, "plain_grpo")
SIZES = Sizes(rank=200)  # quickstart's, with more queries: strategies differ by a few of a hundred


@dataclasses.dataclass(frozen=True)
class Section:
    """A study's pooled report, and the seeds that are in it. `missing` says, of other seeds, why there is nothing."""

    name: str
    report: Report | None
    seeds: tuple[int, ...]
    missing: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """Every study, in the report's order; `seconds` by step, of this call; rows that were passed over."""

    sections: tuple[Section, ...]
    seconds: dict[str, float]
    skipped: int

    @property
    def complete(self) -> bool:
        """Whether no study lacks what it reads."""
        return not any(section.missing for section in self.sections)


def reproduce(
    config: ReproduceConfig,
    open_judge: OpenJudge,
    report: Callable[[str], None] = lambda message: None,
    advance: Callable[[], None] = lambda: None,
) -> Reproduced:
    """Runs everything below `config.output`; of what an earlier, interrupted call has done nothing is done again.

    A study that cannot be run, as its files are not there, is told of and left out; the others go on.
    """
    output, seconds = Path(config.output), dict[str, float]()
    steps = len(config.seeds) * (len(config.studies) + (len(TRAINED) if config.train else 0))
    done = 0

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        nonlocal done
        done += 1
        report(f"── {name} ({done} of {steps})")
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    ran: dict[str, dict[int, Ran]] = {name: {} for name in config.studies}
    missing: dict[str, dict[int, str]] = {name: {} for name in config.studies}
    studies: dict[str, StudyConfig] = {}
    # Every step is pinned by itself: seeds and studies can be added later.
    with pinned(output / "run.json", config=config.model_dump(), seed=None, inputs={}, anew=True):
        for seed in config.seeds:
            if config.train:
                judges = output / f"seed-{seed}" / config.train
                prepare(judges, seed, SIZES)
                for name in TRAINED:
                    with step(f"seed {seed}: train {name}"):
                        train_run(judges, name, seed, report)
            studies = studies_of(config, seed)
            for name, study in studies.items():
                with step(f"seed {seed}: {name}"):
                    try:
                        ran[name][seed] = run_study(name, study, open_judge, report, advance)
                    except RrmError as error:
                        missing[name][seed] = str(error)
                        report(f"{name} was not run: {error}")
        # The studies of any seed tell alike: seeds and directories are all that they differ by.
        sections = [_section(config, name, study, ran[name], missing[name]) for name, study in studies.items()]
    return Reproduced(tuple(sections), seconds, sum(one.skipped for of in ran.values() for one in of.values()))


def _section(
    config: ReproduceConfig, name: str, study: StudyConfig, ran: dict[int, Ran], missing: dict[int, str]
) -> Section:
    """Pools a study's seeds, and writes its table, figure and data."""
    seeds = tuple(ran)
    if not seeds:
        return Section(name, None, (), missing)
    found: Any = pool([one.found for one in ran.values()], same_items=config.train is None)
    report = STUDIES[name].report(study, found, seeds)
    output = Path(config.output) / name
    output.mkdir(parents=True, exist_ok=True)
    write_report(
        report, output, facts_of(name, seeds, study) | {"pooled_from": [f"seed-{seed}/{name}" for seed in seeds]}
    )
    return Section(name, report, seeds, missing)
