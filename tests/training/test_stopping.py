"""A GRPO run that signals stop twice, at moments within a step, ends as the undisturbed run does, bit for bit."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.checkpoints.store import complete_steps
from rrm_jax.cli.main import _app
from rrm_jax.models.params import named_specs
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.run import Run
from rrm_jax.training.train import train

from .world import make_base, make_data, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")


def config(home: Path, output: str) -> TrainConfig:
    paths = {"model__path": str(home / "base"), "data__eval": str(home / "eval.jsonl")}
    tree = settings(home, output, steps=4, optimizer__learning_rate=1e-3, **paths)
    return TrainConfig.model_validate(tree | {"checkpoint": {"every": 2, "keep": 5}, "eval": {"every": 2}})


def state(run: str) -> dict[str, np.ndarray]:
    source = open_source(run)
    return {".".join(names): source.read(names, spec) for names, spec in named_specs(source.config)}


def rows(run: str) -> list[dict]:
    kept = [*read_metrics(run, "eval"), *read_metrics(run, "train")]
    return [{k: v for k, v in row.items() if "second" not in k} for row in kept]


@pytest.mark.thorough
def test_a_run_that_was_stopped_twice_is_the_undisturbed_one(tmp_path, monkeypatch):
    make_base(tmp_path / "base")
    make_data(tmp_path)
    whole, stopped = config(tmp_path, "whole"), config(tmp_path, "stopped")
    train(whole, False, lambda message: None)
    check, calls = Run.check_stop, 0

    def counted(run):
        nonlocal calls
        calls += 1
        # A step has some 18 calls, most of them while its 16 completions come, and an evaluation 6.
        if calls in (36, 84):
            os.kill(os.getpid(), signal.SIGTERM)
        check(run)

    monkeypatch.setattr(Run, "check_stop", counted)
    found, said = [], []
    for resume in (False, True, True):
        train(stopped, resume, said.append)
        found.append(complete_steps(Path(stopped.output) / "checkpoints"))
    assert found == [[1], [1, 2, 3], [1, 2, 3, 4]]
    assert sum("stopped by SIGTERM" in line for line in said) == 2
    expected, ended = state(whole.output), state(stopped.output)
    for name, value in expected.items():
        np.testing.assert_array_equal(ended[name], value, err_msg=name)
    assert not np.array_equal(expected["final_norm"], state(whole.model.path)["final_norm"])
    assert rows(stopped.output) == rows(whole.output)
    traces = [(Path(run.output) / "traces.jsonl").read_bytes() for run in (whole, stopped)]
    assert traces[0] == traces[1]


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--stop-exit-code", "75"), 75)])
def test_a_stopped_runs_exit_code_is_what_was_asked_for(tmp_path, monkeypatch, options, code):
    make_base(tmp_path / "base")
    make_data(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config(tmp_path, "stopped").model_dump(mode="json")), encoding="utf-8")
    check = Run.check_stop

    def at_once(run):
        os.kill(os.getpid(), signal.SIGTERM)
        check(run)

    monkeypatch.setattr(Run, "check_stop", at_once)
    result = CliRunner().invoke(_app, ["train", str(file), "--distributed", "off", *options])
    assert result.exit_code == code, result.output
    assert "stopped by SIGTERM before a step was finished" in result.output
