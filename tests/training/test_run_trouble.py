"""Runs around a learner that costs nothing: losses that explode, and disks that are full or fail."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rrm_jax.checkpoints import training_state
from rrm_jax.checkpoints.sources import open_source
from rrm_jax.errors import RrmError
from rrm_jax.testing import realistic_params, tiny_config

from .stub_run import embedding, loop, settings, steps_of

pytestmark = pytest.mark.usefixtures("stub_learner")
ROOT = Path(__file__).parent.parent.parent
MODEL = tiny_config(vocab_size=46)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (1.0, 101.0)])
def test_an_explosion_names_the_last_good_checkpoint_and_a_lower_rate_goes_on(home, tmp_path, loss, norm):
    config = settings(home, tmp_path / "run", checkpoint__every=2, optimizer__stop_norm=100.0)

    def during(run, step):
        run.check_finite(step, 0.5, 99.0)
        if step == 4:
            run.check_finite(step, loss, norm)

    with pytest.raises(RrmError, match=rf"step 4: the loss is {loss:g}.* norm {norm:g}.*checkpoints/2: .*--resume"):
        loop(config, during=during)
    config = settings(
        home, tmp_path / "run", checkpoint__every=2, optimizer__stop_norm=100.0, optimizer__learning_rate=1e-7
    )
    said = []
    assert loop(config, resume=True, said=said).first_step == 3
    assert any("optimizer.learning_rate 1e-07; it was 1e-06" in line for line in said)


def test_an_explosion_before_a_checkpoint(home, tmp_path):
    with pytest.raises(RrmError, match=r"There is no checkpoint yet: begin again with --resume"):
        loop(settings(home, tmp_path / "run", checkpoint__every=5), during=lambda run, _: run.check_finite(1, 0, 1e9))


@contextlib.contextmanager
def free_bytes(monkeypatch, count):
    with monkeypatch.context() as patched:
        patched.setattr(training_state.shutil, "disk_usage", lambda path: SimpleNamespace(free=count))
        yield


def state_size(home) -> int:
    return 4 * open_source(home / "base").config.num_parameters + 4


def test_room_is_looked_for_before_the_first_step(home, tmp_path, monkeypatch):
    size, said = state_size(home), []
    assert training_state.state_bytes(realistic_params(MODEL)) == 4 * MODEL.num_parameters
    stepped = lambda run, step: pytest.fail("it began")  # noqa: E731
    with free_bytes(monkeypatch, size - 1), pytest.raises(RrmError, match=r"no room for a checkpoint .* make room"):
        loop(settings(home, tmp_path / "none"), during=stepped)
    with free_bytes(monkeypatch, 4 * size - 1):  # 2 kept, the best, and one being written
        loop(settings(home, tmp_path / "few"), said=said)
    assert any("up to 4 more checkpoints" in line for line in said)
    said.clear()
    with free_bytes(monkeypatch, 4 * size):
        loop(settings(home, tmp_path / "enough"), said=said)
    assert not any("more checkpoints" in line for line in said)


def test_a_disk_that_fills_up_stops_the_run_which_goes_on_once_there_is_room(home, tmp_path, monkeypatch):
    config = settings(home, tmp_path / "run")
    patched = monkeypatch.context()

    def during(run, step):
        if step == 4:
            inner = patched.__enter__()
            inner.setattr(training_state.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))

    with pytest.raises(RrmError, match="no room for a checkpoint"):
        loop(config, during=during)
    patched.__exit__(None, None, None)
    assert steps_of(config) == [2, 3]
    assert loop(config, resume=True).first_step == 4
    assert embedding(config.output) == 6


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from rrm_jax.training import run as run_module
from tests.training.stub_run import StubLearner, loop, settings
from rrm_jax.errors import RrmError
run_module.Learner = StubLearner
def limit(run, step):
    if step == 3:
        run.checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, -1))
try:
    loop(settings(Path(sys.argv[2]), Path(sys.argv[3])), during=limit)
except RrmError as error:
    print("error:", error, file=sys.stderr)
"""


def test_a_failing_disk_says_one_thing(home, tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails while the checkpoint is under way."""
    command = [sys.executable, "-c", FULL_DISK, str(ROOT), str(home), str(tmp_path / "run")]
    # Coverage would say that it cannot write either.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    (line,) = done.stderr.splitlines()
    assert "error: cannot write" in line
    assert "File too large; the checkpoints before are whole, and --resume goes on" in line
    config = settings(home, tmp_path / "run")
    assert steps_of(config) == [1, 2]
    assert loop(config, resume=True).first_step == 3
    assert embedding(config.output) == 6
