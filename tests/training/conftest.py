"""What several files of tests around a run share."""

from pathlib import Path

import pytest

from rrm_jax.training import run as run_module

from .stub_run import StubLearner
from .world import make_base, make_data


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    make_base(directory / "base")
    make_data(directory)
    return directory


@pytest.fixture
def stub_learner(monkeypatch):
    monkeypatch.setattr(run_module, "Learner", StubLearner)
