"""Traces of steps, and what compiling took."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.errors import RrmError
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.profiling import Compilations, Trace
from rrm_jax.training.train import train

from .world import make_base, make_data, settings


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of three steps whose second is traced, and what it reported."""
    home, told = tmp_path_factory.mktemp("traced"), []
    make_base(home / "base")
    make_data(home)
    train(TrainConfig.model_validate(supervised(home, [2, 2])), False, told.append)
    return home / "traced", told


def supervised(home, steps):
    paths = {"model__path": str(home / "base"), "data__train": str(home / "demonstrations.jsonl")}
    return settings(home, "traced", method="supervised", log={"profile": steps}, **paths)


def test_a_trace_reads_like_the_code(traced):
    run, told = traced
    (path,) = (run / "profile").rglob("perfetto_trace.json.gz")
    with gzip.open(path) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert {"train", "update"} <= names
    assert any(name.endswith("profile") for name in told)


def test_only_the_steps_asked_for_are_traced(traced):
    run, _ = traced
    assert len(list((run / "profile").rglob("*.xplane.pb"))) == 1


def test_what_compiling_took_is_said_after_the_first_step(traced):
    _, told = traced
    (line,) = [line for line in told if "programs compiled" in line]
    found = re.fullmatch(r"until the end of step 1: (\d+) programs compiled in ([\d.]+) s, (\d+) of them .*", line)
    assert found is not None
    assert int(found[1]) >= 1  # other tests may have compiled the rest
    assert float(found[2]) > 0


def test_compilations_are_counted_while_listening():
    seen = Compilations()
    seen.listen()
    try:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
        counted = seen.programs
    finally:
        seen.close()
    assert counted >= 1
    assert seen.compiling > 0
    jax.jit(lambda x: x * 5 + 2)(jnp.ones(7)).block_until_ready()
    assert seen.programs == counted


def test_a_run_that_ends_within_the_traced_steps_keeps_its_trace(tmp_path):
    trace = Trace(tmp_path, (2, 5))
    trace.begin(1)
    assert not trace.end(1)
    trace.begin(4)
    jnp.ones(3).block_until_ready()
    assert not trace.end(4)
    trace.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("text", ["", "steps=", "ten", "1:", ":3", "1-3"])
def test_steps_that_cannot_be_read(text):
    done = CliRunner().invoke(_app, ["train", "grpo_tiny.yaml", "--profile", text])
    assert isinstance(done.exception, RrmError)
    assert "steps=10:12" in str(done.exception)


def test_steps_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="a first step, 1 at least"):
        TrainConfig.model_validate(supervised(tmp_path, [3, 2]))
