"""Training state: restored onto another mesh, and whole or absent whatever kills the writer."""

import json
import logging
import resource
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rrm_jax.checkpoints import training_state
from rrm_jax.checkpoints.store import COMMITTED, complete_steps
from rrm_jax.checkpoints.training_state import TrainingCheckpoints, state_bytes
from rrm_jax.errors import RrmError
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import MeshShape, make_mesh, param_sharding, replicated
from rrm_jax.testing import realistic_params, tiny_config
from tests.checkpoints.killing import Victim

CONFIG = tiny_config()


def on_mesh(mesh):
    """Abstract parameters and Adam state on `mesh`."""
    params = abstract_params(CONFIG, jnp.float32, True, lambda spec: param_sharding(mesh, spec))
    tx = optax.adam(1e-3)
    shapes = jax.eval_shape(tx.init, params)
    moments = optax.tree.map_params(
        tx,
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
        shapes,
        params,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    )
    return params, moments


def state(mesh, seed: int):
    params, moments = on_mesh(mesh)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a, x: jax.device_put(x, a.sharding), params, realistic_params(CONFIG, seed))
    draw = lambda a: jax.device_put(rng.standard_normal(a.shape).astype(a.dtype), a.sharding)  # noqa: E731
    return params, jax.tree.map(draw, moments)


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_restores_onto_another_mesh_and_keeps_the_last_steps(tmp_path):
    eight, two = make_mesh(MeshShape(2, 2, 2)), make_mesh(MeshShape(1, 1, 2), jax.devices()[:2])
    saved = {step: state(eight, step) for step in (1, 2, 5)}
    meta = {"step": 5, "facts": {"é": [1, 2.5, None, True]}, "position": {"epoch": 0}}
    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_step() is None
    for step, (params, opt_state) in saved.items():
        checkpoints.save(step, params, opt_state, meta | {"step": step})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5"]

    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_step() == 5
    abstract = on_mesh(two)
    params, opt_state, restored = checkpoints.restore(5, *abstract)
    assert restored == meta
    assert_equal((params, opt_state), saved[5])
    placed = jax.tree.map(lambda x, a: x.sharding == a.sharding, (params, opt_state), abstract)
    assert all(jax.tree.leaves(placed))
    assert_equal(checkpoints.restore(2, *abstract)[:2], saved[2])
    for step in (1, 3):
        with pytest.raises(RrmError, match=f"no complete step {step}"):
            checkpoints.restore(step, *abstract)
    with pytest.raises(RrmError, match="holds step 5 already"):
        checkpoints.save(5, params, opt_state, meta)
    other = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype, sharding=replicated(two)), abstract[0])
    with pytest.raises(RrmError, match=r"final_norm in .*: shape \[32\], not \[2, 32\]"):
        checkpoints.restore(5, other, abstract[1])
    checkpoints.close()


def test_a_save_is_not_changed_by_steps_taken_while_it_is_written(tmp_path):
    mesh = make_mesh(MeshShape(2, 2, 2))
    params, opt_state = state(mesh, 0)
    before = jax.tree.map(lambda x: np.array(x), (params, opt_state))
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(1, params, opt_state, {})
    for _ in range(5):
        params, opt_state = advance((params, opt_state))
    assert_equal(checkpoints.restore(1, *on_mesh(mesh))[:2], before)
    checkpoints.close()


def test_half_removed_and_half_written_steps_are_not_listed_and_are_cleaned_up(tmp_path, monkeypatch):
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    saved = state(mesh, 0)
    (tmp_path / "not_a_step").mkdir()
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    monkeypatch.setattr(training_state, "_remove", lambda directories: None)  # as if killed before removing
    checkpoints.save(1, *saved, {})
    checkpoints.save(2, *saved, {})
    checkpoints.close()
    monkeypatch.undo()
    assert (tmp_path / "1" / "params").is_dir()
    assert complete_steps(tmp_path) == [2]
    shutil.copytree(tmp_path / "2", tmp_path / "3", ignore=shutil.ignore_patterns(COMMITTED))
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    assert checkpoints.latest_step() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "not_a_step"]
    checkpoints.save(3, *saved, {"again": True})
    checkpoints.wait()
    assert checkpoints.restore(3, *on_mesh(mesh))[2] == {"again": True}
    checkpoints.close()


def save_for_ever(connection, directory) -> None:
    checkpoints = TrainingCheckpoints(directory, keep=2)
    for step in range(1, 10_000):
        params = {f"p{at}": jnp.full((64, 1024), step, jnp.float32) for at in range(8)}
        checkpoints.save(step, params, {"count": jnp.int32(step)}, {"step": step})
        connection.send(step)


def test_a_writer_killed_at_any_time_leaves_whole_steps(tmp_path):
    on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {f"p{at}": jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=on_one) for at in range(8)}
    count = {"count": jax.ShapeDtypeStruct((), jnp.int32, sharding=on_one)}
    victims = [Victim(save_for_ever, tmp_path / str(at)) for at in range(3)]
    for at, victim in enumerate(victims):
        announced = [victim.hear() for _ in range(4 + at)][-1]
        victim.kill()
        listed = complete_steps(tmp_path / str(at))
        assert listed[-1] >= announced - 1  # the last one announced was still being written
        checkpoints = TrainingCheckpoints(tmp_path / str(at), keep=3)
        assert checkpoints.latest_step() == listed[-1]
        assert sorted(path.name for path in (tmp_path / str(at)).iterdir()) == sorted(map(str, listed))
        for step in listed:
            params, opt_state, meta = checkpoints.restore(step, abstract, count)
            assert meta == {"step": step}
            assert int(opt_state["count"]) == step
            for array in params.values():
                np.testing.assert_array_equal(array, step)
        checkpoints.save(listed[-1] + 1, params, opt_state, meta)  # the torn step's own number is free again
        checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of writers whose save has failed
def test_a_save_that_cannot_be_written_is_reported_once(tmp_path, caplog):
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    params, opt_state = state(mesh, 0)
    params = params | {"large": jnp.zeros(1_000_000)}
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        checkpoints.save(1, params, opt_state, {})
        with pytest.raises(RrmError, match=r"cannot write .*: File too large; .* --resume"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest_step() is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(RrmError, match="keep"):
        TrainingCheckpoints(tmp_path, keep=0)


def write_evaluations(run, values: dict[int, float]) -> None:
    rows = [{"kind": "eval", "step": step, "accuracy": value, "other": -value} for step, value in values.items()]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "eval", "step": 9, "accuracy": 1.0'
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "best", "left"),
    [
        ({1: 0.5, 2: 0.8, 4: 0.8}, "accuracy", ["2", "4", "5"]),  # the first of equals
        ({1: 0.9, 2: 0.8, 5: 0.95}, "accuracy", ["4", "5"]),
        ({1: 0.9, 2: float("nan")}, "accuracy", ["1", "4", "5"]),
        ({1: 0.9, 2: 0.1}, "other", ["2", "4", "5"]),
        ({7: 0.9}, "accuracy", ["4", "5"]),  # evaluated, but never saved
        ({1: 0.9}, None, ["4", "5"]),
    ],
)
def test_the_best_step_stays_as_the_metrics_have_it(tmp_path, values, best, left):
    one = {"x": jnp.ones(3)}
    write_evaluations(tmp_path, values)
    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints", keep=2, best=best)
    for step in range(1, 6):
        checkpoints.save(step, one, one, {})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == left


def test_there_must_be_room_for_one_and_should_be_for_all(tmp_path, monkeypatch):
    one, two = {"x": jnp.ones(250, jnp.bfloat16)}, {"y": np.ones((25, 10), np.int16)}
    size = state_bytes(one, two)
    assert size == 1000
    free = 0
    monkeypatch.setattr(training_state.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    checkpoints = TrainingCheckpoints(tmp_path, keep=3)
    with pytest.raises(RrmError, match=r"it takes 0.000954 MiB, and 0 MiB are free; make room"):
        checkpoints.save(1, one, two, {})
    free = 3999
    assert "up to 4 more checkpoints" in checkpoints.check_room(size)
    checkpoints.save(1, one, two, {})
    checkpoints.wait()
    assert checkpoints.check_room(size) is None  # three more beside the one that is there
    checkpoints.close()
