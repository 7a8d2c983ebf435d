"""What `rrm reproduce` can be told; see `configs/reproduce/`."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from rrm_jax.config import Config, load_config
from rrm_jax.errors import RrmError, did_you_mean
from rrm_jax.quickstart.run import PACKAGED_DIRECTORY
from rrm_jax.studies.config import StudyConfig
from rrm_jax.studies.run import STUDIES, study_config


class Assumed(Config):
    """What a dry run takes for granted. None of it was measured; files and models that are there are looked at."""

    pairs: int = Field(500, ge=1)
    """Rows of a pair file."""
    queries: int = Field(500, ge=1)
    """Rows of a file of candidates."""
    candidates: int = Field(8, ge=2)
    """Of each query."""
    model: Literal["1.5b", "7b", "14b", "32b"] = "7b"
    """The shape of a judge."""
    prompt_tokens: int = Field(1000, ge=1)
    """Mean, of a query with two responses."""
    thinking_tokens: int = Field(1000, ge=1)
    """Mean that a judge writes, where no budget ends it before, with its verdict."""
    verdict_tokens: int = Field(10, ge=1)
    """Mean of a DirectJudge, and after a budget."""
    training: dict[str, str] = Field(default_factory=dict)
    """The configuration of each training run that the studies read, such as {RRM-7B: rrm_7b.yaml}."""


class ReproduceConfig(Config):
    """A scale: who is studied how, and where it goes."""

    output: str
    """Directory for the report, and of each seed for its studies."""
    title: str
    about: str
    """What was judged by whom, for the report's first paragraph."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Each is studied by itself, then all are pooled. With train, each also has its own data and judges; without it
    they share their items, so that more seeds say more of the judges' sampling, and nothing more of the items."""
    train: Literal["quickstart"] | None = None
    """Train the judges first; without it they are where the studies' configurations say."""
    studies: dict[str, str] = Field(min_length=1)
    """The configuration of each study, in the order of the report: one that reads another's results comes after it."""
    assumed: Assumed = Assumed()
    paths: dict[str, str] = Field(default_factory=dict)
    """Where directories and files are that the studies' configurations name, if elsewhere: {checkpoints: /weights}."""

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"seeds must be different numbers from 0 to 2³² − 1, not {seeds}")
        return seeds

    @field_validator("studies")
    @classmethod
    def _studies(cls, studies: dict[str, str]) -> dict[str, str]:
        if unknown := [name for name in studies if name not in STUDIES]:
            raise ValueError(f"there is no study {unknown[0]!r}; there are {', '.join(STUDIES)}")
        return studies


def load(scale: str, overrides: Sequence[str], only: Sequence[str] = ()) -> ReproduceConfig:
    """A file, or a scale that comes with the package; `only` these of its studies, where any is named. RrmError."""
    path = scale if scale.endswith((".yaml", ".yml")) else f"reproduce/{scale}.yaml"
    config = load_config(ReproduceConfig, path, overrides)
    for name in only:
        if name not in config.studies:
            near = did_you_mean(name, config.studies)
            raise RrmError(f"--only {name}: {scale} has {', '.join(config.studies)}{near}")
    chosen = {name: at for name, at in config.studies.items() if not only or name in only}
    return config.model_copy(update={"studies": chosen})


def studies_of(config: ReproduceConfig, seed: int) -> dict[str, StudyConfig]:
    """Every study's configuration for one seed: its results, and the judges that are trained for it, are moved to the
    seed's directory, wherever a configuration names them. RrmError for a configuration that is wrong."""
    packaged = {name: study_config(name, path) for name, path in config.studies.items()}
    moves = dict(config.paths)
    if config.train:
        moves[PACKAGED_DIRECTORY] = f"{config.output}/seed-{seed}/{config.train}"
    for name, study in packaged.items():
        if study.output in moves:
            raise RrmError(f"two studies write to {study.output}; give each its own output")
        moves[study.output] = f"{config.output}/seed-{seed}/{name}"
    return {
        name: type(study).model_validate(moved(study.model_dump(), moves) | {"seed": seed})
        for name, study in packaged.items()
    }


def moved(value: Any, moves: Mapping[str, str]) -> Any:
    """`value` with every path in it that is, or is below, a key of `moves` put below that key's value instead."""
    if isinstance(value, Mapping):
        return {key: moved(held, moves) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [moved(held, moves) for held in value]
    if isinstance(value, str):
        path = PurePosixPath(value)
        for parent in (path, *path.parents):
            if str(parent) in moves:
                return str(PurePosixPath(moves[str(parent)], path.relative_to(parent)))
    return value
