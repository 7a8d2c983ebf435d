"""A training run's directory: made, checked and resumed here, whatever the method.

RUN/config.yaml     the resolved configuration
RUN/run.json        versions, git revision, data fingerprints, seed
RUN/assets/         config.json and tokenizer of the model, and the judge's template
RUN/metrics.jsonl   one row a step; RUN/tensorboard/ the same
RUN/checkpoints/    parameters, optimiser state and position, every `checkpoint.every` steps
"""

import itertools
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import yaml

from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE, copy_assets
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.data.jsonl import Reader, write_whole
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import Template, load_template, to_toml
from rrm_jax.provenance import write_provenance
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner import Learner
from rrm_jax.training.metrics import Metrics

Report = Callable[[str], None]


class Run:
    """What every training method needs around its own loop. Use as a context manager."""

    def __init__(self, config: TrainConfig, resume: bool, report: Report):
        self.config, self.directory = config, Path(config.output)
        self._check_directory(resume)
        self.template: Template = load_template(config.judge.template)
        self.tokenizer = Tokenizer.load(open_source(config.model.path).assets)
        self.learner = Learner(config)
        report(str(self.learner.attention))
        if not resume:  # nothing is written before all that can be known to be wrong has been looked at
            self._write_directory()
        self.checkpoints = TrainingCheckpoints(self.directory / "checkpoints", keep=config.checkpoint.keep)
        latest = self.checkpoints.latest_step()
        self.first_step = 1
        if latest is not None:
            self.learner.restore(self.checkpoints, latest)
            self.first_step = latest + 1
            report(f"resuming {self.directory} after step {latest}")
        # Not even step 0 is kept where no step was: its evaluation is made again.
        self.metrics = Metrics(self.directory, -1 if latest is None else latest)
        self._seconds: dict[str, float] = {}

    def _check_directory(self, resume: bool) -> None:
        path = self.directory / "config.yaml"
        if path.exists() and not resume:
            raise RrmError(f"{self.directory} holds a run already; give --resume to go on, or another output=")
        if resume and not path.exists():
            raise RrmError(f"{self.directory} holds no run to resume (no config.yaml)")
        if resume:
            before = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
            now = _flat(self.config.model_dump(mode="json"))
            changed = sorted(key for key in {**before, **now} if now.get(key) != before.get(key))
            if changed:
                raise RrmError(
                    f"cannot resume {self.directory} with another configuration: {', '.join(changed)} changed"
                )

    def _write_directory(self) -> None:
        """config.yaml comes last: a directory that has it has the rest."""
        config = self.config
        resolved = config.model_dump(mode="json")
        inputs = {name: file for name, file in (("train", config.data.train), ("eval", config.data.eval)) if file}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            copy_assets(self.learner.assets, self.directory / "assets")
            write_whole(self.directory / "assets" / JUDGE_TEMPLATE, to_toml(self.template))
            write_provenance(self.directory / "run.json", config=resolved, seed=config.seed, inputs=inputs)
            write_whole(self.directory / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
        except OSError as error:
            raise RrmError(f"cannot write {error.filename or self.directory}: {error.strerror or error}") from None

    @contextmanager
    def phase(self, name: str):
        """Counts the wall-clock seconds spent inside towards `seconds_<name>` of the step's metrics."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """The phases since the last call."""
        taken, self._seconds = self._seconds, {}
        return {f"seconds_{name}": seconds for name, seconds in taken.items()}

    def finish_step(self, step: int) -> None:
        """Saves where the configuration says so; the last step always. Returns before the file is written."""
        if step % self.config.checkpoint.every == 0 or step == self.config.steps:
            facts = {
                "judge_template_sha256": self.template.sha256,
                "judge_thinking": self.config.judge.thinking,
            }
            self.learner.save(self.checkpoints, step, {"step": step, "facts": facts})

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.checkpoints.close()  # waits for what is being written
        finally:
            self.metrics.close()


def read_rows[T](path: str, parse: Callable[[dict], T], limit: int | None, report: Report) -> list[T]:
    """The first `limit` rows (None: all) of a data file. Bad rows are reported and left out, and no row is an error."""
    return [row for _, row in itertools.islice(Reader(Path(path), parse, report=report), limit)]


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
