"""A training run's directory: made, checked and resumed here, whatever the method.

RUN/config.yaml     the resolved configuration, as it was last resumed with
RUN/run.json        versions, git revision, data fingerprints, seed; each time it was resumed
RUN/assets/         config.json and tokenizer of the model, and the judge's template
RUN/judge.json      of a policy that a judge rewards: who judges, and how it is asked
RUN/metrics.jsonl   one row a step and an evaluation; RUN/tensorboard/ the same
RUN/traces.jsonl    some of each step's completions, to be read
RUN/profile/        traces of the steps log.profile
RUN/checkpoints/    parameters, optimiser state and position, every `checkpoint.every` steps
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import jax

from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE, barrier, copy_assets
from rrm_jax.checkpoints.run_files import CONFIG_YAML, TRACES
from rrm_jax.checkpoints.sources import Source, open_source
from rrm_jax.checkpoints.store import complete_steps
from rrm_jax.checkpoints.training_state import TrainingCheckpoints, state_bytes
from rrm_jax.data.jsonl import AppendLog
from rrm_jax.data.prepared import RecordReader
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import Template, check_template, load_template, to_toml
from rrm_jax.provenance import write_provenance
from rrm_jax.sampling.sampler import position_limit
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner import Learner
from rrm_jax.training.metrics import Metrics, import_wandb, keep_until
from rrm_jax.training.policy_prompt import prompt_facts
from rrm_jax.training.profiling import Compilations, Trace
from rrm_jax.training.resuming import (
    PROVENANCE,
    check_resumed,
    check_same_template,
    record_resumed,
    write_settings,
)
from rrm_jax.training.stopping import Stopped, StopSignals
from rrm_jax.training.training_data import data_files, prompt_room

Report = Callable[[str], None]


class Run:
    """What every training method needs around its own loop. Use as a context manager.

    `first_step` is the next one to take, `meta` what was saved with the one before ({} where there is none).

    Asked to stop by a signal, a run leaves its loop where its state is that of a finished step, which is then saved:
    in `finish_step`, and in `check_stop`, which the loop calls often while it samples and scores. So a scheduler's
    grace period must be long enough for an update and the writing of a checkpoint.
    """

    def __init__(self, config: TrainConfig, resume: bool, report: Report):
        self.config, self.directory, self._report = config, Path(config.output), report
        self._compilations = Compilations()
        if config.log.wandb and jax.process_index() == 0:
            import_wandb()
        changed = self._check_directory(resume)
        try:
            source = open_source(config.model.path)
        except RrmError as error:
            raise RrmError(f"model.path: {error}") from None
        self.template: Template | None = load_template(config.judge.template) if config.task == "judge" else None
        if self.template is not None:
            self._check_template(self.template, source)
            if resume:
                check_same_template(self.directory, self.template, config.judge)
        self.tokenizer = Tokenizer.load(source.assets)
        self.max_prompt_tokens = prompt_room(config, position_limit(source.config), report)
        self.learner = Learner(config)
        report(str(self.learner.attention))
        if not resume:  # nothing is written before all that can be known to be wrong has been looked at
            self.on_one_process(self._write_directory)
        checkpoint = config.checkpoint
        self.checkpoints = TrainingCheckpoints(self.directory / "checkpoints", checkpoint.keep, checkpoint.best)
        with ExitStack() as opened:
            opened.callback(self.checkpoints.close)
            self._open(resume, changed)
            opened.pop_all()

    def _check_template(self, template: Template, source: Source) -> None:
        """A judge that goes on from another is shown the prompt of the configuration, whatever that one learnt."""
        judge, own = self.config.judge, source.assets / JUDGE_TEMPLATE
        warning = check_template(template, source.facts, [Path(self.config.model.path).name], judge.thinking)
        if warning:
            other = own.is_file() and load_template(own).sha256 != template.sha256
            self._report(f"warning: {warning}" + (f": judge.template={own}" if other else ""))

    def _open(self, resume: bool, changed: dict[str, list[Any]]) -> None:
        latest, self.meta = self.checkpoints.latest_step(), {}
        if latest is None and "model.path" in changed:
            raise RrmError(f"{self.directory} has no checkpoint yet, so model.path cannot change; train anew")
        if latest is not None:
            self._check_reached(latest)
            self.meta: dict[str, Any] = self.learner.restore(self.checkpoints, latest)
            self._check_base()
            self._report(f"resuming {self.directory} after step {latest}")
        decays = self.config.optimizer.schedule != "constant"
        for key, (before, now) in changed.items():
            note = ", where the learning rate's decay now ends" if key == "steps" and decays else ""
            self._report(f"resuming with {key} {now!r}{note}; it was {before!r}")
        self._finished = latest or 0
        self._extra: dict[str, Any] = {}
        self._saved, self._version = True, self.learner.version  # nothing to save where nothing was finished
        self.first_step = self._finished + 1
        self._check_room()
        if resume:
            self.on_one_process(lambda: record_resumed(self.directory, self.config, self._finished, changed))
        # Not even step 0 is kept where no step was: its evaluation is made again.
        kept = -1 if latest is None else latest
        self.metrics = Metrics(self.directory, kept, self.config)
        self.on_one_process(lambda: keep_until(self.directory / TRACES, kept))
        self._traces: AppendLog | None = None
        self._seconds: dict[str, float] = {}
        self._trace = Trace(self.directory / "profile", self.config.log.profile)
        self._signals = StopSignals()

    def _check_directory(self, resume: bool) -> dict[str, list[Any]]:
        exists = (self.directory / CONFIG_YAML).exists()
        if exists and not resume:
            raise RrmError(f"{self.directory} holds a run already; give --resume to go on, or another output=")
        if resume and not exists:
            raise RrmError(f"{self.directory} holds no run to resume (no {CONFIG_YAML})")
        if not exists and complete_steps(self.directory / "checkpoints"):
            raise RrmError(
                f"{self.directory} holds checkpoints, but no {CONFIG_YAML} that says of what; give another output="
            )
        return check_resumed(self.directory, self.config) if resume else {}

    def _check_reached(self, latest: int) -> None:
        if latest > self.config.steps:
            raise RrmError(f"{self.directory} has reached step {latest}; steps={self.config.steps} is below that")

    def _check_base(self) -> None:
        began, now = self.meta["facts"]["base_fingerprint"], self.learner.base_fingerprint
        if began != now:
            raise RrmError(
                f"{self.config.model.path} is not the model that {self.directory} began with (fingerprint {now[:12]}, "
                f"not {began[:12]}); give model.path of that one, or train anew with another output="
            )

    @staticmethod
    def on_one_process(write: Callable[[], None]) -> None:
        """Calls `write` on process 0; the others go on when it is done."""
        if jax.process_index() == 0:
            write()
        barrier("run")

    def _write_directory(self) -> None:
        """config.yaml comes last: a directory that has it has the rest."""
        config = self.config
        resolved = config.model_dump(mode="json")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            copy_assets(self.learner.assets, self.directory / "assets")
            if self.template is not None:
                write_whole(self.directory / "assets" / JUDGE_TEMPLATE, to_toml(self.template))
            made = self.directory / PROVENANCE
            write_provenance(made, config=resolved, seed=config.seed, inputs=data_files(config))
            write_settings(self.directory, config)
        except OSError as error:
            raise RrmError(f"cannot write {error.filename or self.directory}: {error.strerror or error}") from None

    def _check_room(self) -> None:
        """Before the first step: whether checkpoints fit on the file system."""
        if self._finished >= self.config.steps:
            return
        measured = _Measured()
        self.learner.save(cast(TrainingCheckpoints, measured), self._finished, {})
        warning = self.checkpoints.check_room(measured.size)
        if warning:
            self._report(warning)

    def steps(self) -> Iterator[int]:
        """The steps to take. Those of `log.profile` are traced; after the first one it is said what compiling took."""
        for step in range(self.first_step, self.config.steps + 1):
            self._trace.begin(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
            if self._trace.end(step):
                self._report(f"traced steps are in {self.directory / 'profile'}")
            if step == self.first_step:
                self._report(f"until the end of step {step}: {self._compilations}")

    @contextmanager
    def phase(self, name: str):
        """Counts the wall-clock seconds spent inside towards `seconds_<name>` of the step's metrics."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """The phases since the last call."""
        taken, self._seconds = self._seconds, {}
        return {f"seconds_{name}": seconds for name, seconds in taken.items()}

    def write_traces(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends completions (JSON, whatever their texts hold) to `traces.jsonl`, before the step is finished."""
        if jax.process_index() != 0:
            return
        for row in rows:
            if self._traces is None:
                self._traces = AppendLog(self.directory / TRACES)
            self._traces.append({"step": step, **row})

    def check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises RrmError, which says what to go on from, for numbers that are not finite and for an exploded norm."""
        limit = self.config.optimizer.stop_norm
        if math.isfinite(loss) and math.isfinite(grad_norm) and grad_norm <= limit:
            return
        self.checkpoints.wait()
        steps = complete_steps(self.directory / "checkpoints")
        if steps:
            last = self.directory / "checkpoints" / str(steps[-1])
            there = f"the last good checkpoint is {last}: go on from it with --resume"
        else:
            there = "there is no checkpoint yet: begin again with --resume"
        raise RrmError(
            f"step {step}: the loss is {loss:.6g} and the gradient's norm {grad_norm:.6g} (optimizer.stop_norm is "
            f"{limit:g}); the update was not applied. {there[0].upper()}{there[1:]} and a lower "
            "optimizer.learning_rate or optimizer.clip_norm; the same settings would come to the same numbers"
        )

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop, as the last `check_stop` or `finish_step` found."""
        return self._signals.agreed

    def check_stop(self) -> None:
        """Leaves the loop, for the end of the `with`, if the run was asked to stop and nothing would be lost.

        That is until a step's first update; from then on this does nothing until the step is finished. Cheap: call it
        after every phase and every completion. With several processes, each calls it as often as the others, from the
        thread that runs the loop.
        """
        # Rollouts in advance are saved with a step, and gone once the next one has taken them.
        savable = self._saved or not self.config.rollout.asynchronous
        if self._signals.agree() and savable and self._version == self.learner.version:
            raise Stopped

    def finish_step(self, step: int, *, before_saving: Callable[[], None] | None = None, **extra: Any) -> None:
        """Saves where the configuration says so, and the last step; leaves the loop if the run was asked to stop.

        `extra` is JSON, saved with the step and in `meta` once the run is resumed after it; `before_saving` writes
        what else an asynchronous run needs. Returns before the checkpoint is written.
        """
        self._finished, self._extra, self._version = step, extra, self.learner.version
        self._saved, last = False, step == self.config.steps
        stopping = self._signals.agree()
        if stopping or last or step % self.config.checkpoint.every == 0:
            if before_saving is not None:
                before_saving()
            self._save()
        if stopping and not last:
            raise Stopped

    def _save(self) -> None:
        facts: dict[str, Any] = {"base_fingerprint": self.learner.base_fingerprint}
        if self.template is not None:
            facts |= {"judge_template_sha256": self.template.sha256, "judge_thinking": self.config.judge.thinking}
            if self.config.method == "grpo" or self.config.data.eval is not None:  # else nothing was sampled
                facts["judge_max_new_tokens"] = self.config.rollout.max_new_tokens
        if self.config.task == "policy":
            facts["policy"] = prompt_facts(self.config.policy)
        self.learner.save(self.checkpoints, self._finished, {"step": self._finished, "facts": facts, **self._extra})
        self._saved = True

    def __enter__(self) -> "Run":
        self._signals.__enter__()
        self._compilations.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> bool:
        with ExitStack() as closing:  # each is closed, whatever the others raise; the signals are let go last
            closing.callback(self._signals.__exit__)
            closing.callback(self.metrics.close)
            if self._traces is not None:
                closing.callback(self._traces.close)
            closing.callback(self.checkpoints.close)  # waits for what is being written
            closing.callback(self._trace.close)
            closing.callback(self._compilations.close)
            if kind is Stopped and not self._saved:
                self._save()
        if kind is Stopped:
            after = f"after step {self._finished}, which is saved" if self._finished else "before a step was finished"
            self._report(
                f"stopped by {self._signals.noted or 'a signal to another process'} {after}; go on with the same "
                "command and --resume"
            )
        return kind is Stopped


class _Measured:
    """In place of the checkpoints: what a learner would save, in bytes."""

    size = 0

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        self.size = state_bytes(params, opt_state)


def read_rows[T](path: str, parse: Callable[[dict], T], limit: int | None, report: Report) -> list[T]:
    """The first `limit` rows (None: all) of a data file or prepared data set. Bad rows are reported and left out, and
    no row is an error."""
    return [row for _, row in itertools.islice(RecordReader(Path(path), parse, report=report), limit)]
