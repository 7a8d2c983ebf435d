"""Rollouts on the training mesh, on another layout of its devices, and on devices of their own: the same runs."""

import functools
import gc
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.errors import RrmError
from rrm_jax.models import lora
from rrm_jax.models.params import unstack
from rrm_jax.parallel.mesh import MeshError
from rrm_jax.sampling.engine import weight_shardings
from rrm_jax.training import grpo
from rrm_jax.training import learner as learner_module
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.experience import Experience
from rrm_jax.training.learner import Learner
from rrm_jax.training.rollout_mesh import check_parts_are_near, meshes
from rrm_jax.training.train import train

from .world import make_warm, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")

ANOTHER = {"rollout__mesh": {"data": 4, "fsdp": 1, "tensor": 2}}
APART = {"rollout__devices": 4, "rollout__mesh": {"data": 2, "fsdp": 1, "tensor": 2}, "mesh": {"fsdp": 2, "tensor": 2}}
AHEAD = {"rollout__asynchronous": True, "grpo__importance_cap": 2.0}
RUN = {"steps": 2, "eval": {"every": 2}, "grpo__mini_batch_prompts": 4, "rollout__temperature": 3.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_warm(tmp_path_factory.mktemp("rollout_mesh"))


def config_of(home: Path, output: str, **changes: Any) -> TrainConfig:
    changes = {"data__eval": str(home / "eval.jsonl"), "optimizer__learning_rate": 1e-3, **RUN, **changes}
    return TrainConfig.model_validate(settings(home, output, **changes))


class Found(NamedTuple):
    completions: list[list[tuple[int, ...]]]
    train: list[dict]
    eval: list[dict]


def run(home: Path, output: str, **changes: Any) -> Found:
    """All completions of all steps, group by group, and the rows of training and of held-out evaluation."""
    completions: list[list[tuple[int, ...]]] = []

    class Noting(Experience):
        def next(self, step: int):
            rollouts = super().next(step)
            completions.extend(group.completion_ids for group in rollouts.groups)
            return rollouts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "Experience", Noting)
        directory = train(config_of(home, output, **changes), False, lambda message: None)
    assert len(completions) == 2 * 4
    assert len({ids for group in completions for ids in group}) > 4, "nearly all are alike: the test is vacuous"
    return Found(completions, read_metrics(directory, "train"), read_metrics(directory, "eval"))


def assert_the_same(one: Found, two: Found) -> None:
    """float32: the same tokens; the sampler's log-probs, losses and norms to what the order of sums leaves."""
    assert one.completions == two.completions
    for mine, its in zip(one.train, two.train, strict=True):
        for name in ("reward_mean", "accuracy", "response_length", "tokens", "policy_lag"):
            assert mine[name] == its[name], name
        for name in ("loss", "grad_norm", "entropy", "kl"):
            assert mine[name] == pytest.approx(its[name], rel=1e-3, abs=2e-6), name
    assert len(one.eval) == len(two.eval) == 2
    for mine, its in zip(one.eval, two.eval, strict=True):
        assert {k: v for k, v in mine.items() if "seconds" not in k} == {
            k: v for k, v in its.items() if "seconds" not in k
        }


@pytest.fixture(scope="module")
def shared(home):
    return run(home, "shared")


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [ANOTHER, APART], ids=["another layout", "devices of their own"])
def test_rollouts_elsewhere_are_the_same_rollouts(home, shared, changes):
    found = run(home, f"run{len(changes)}", **changes)
    assert_the_same(found, shared)
    assert all(row["mismatch"] < 2e-4 for row in found.train)


@pytest.mark.thorough
def test_asynchronous_rollouts_elsewhere_are_those_of_one_device(home, monkeypatch):
    found = run(home, "ahead", **APART, **AHEAD)
    assert [row["policy_lag"] for row in found.train] == [0, 1]
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:1]))
    assert_the_same(found, run(home, "ahead1", **AHEAD))


class Case(NamedTuple):
    name: str
    mesh: dict[str, int]
    rollout: dict[str, int]
    devices: int


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case",
    [
        Case("fsdp to tensor", {"fsdp": 8}, {"data": 4, "fsdp": 1, "tensor": 2}, 0),
        Case("tensor to fsdp", {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4, "tensor": 1}, 0),
        Case("fsdp to tensor of others", {"fsdp": 4}, {"data": 2, "fsdp": 1, "tensor": 2}, 4),
        Case("six and two", {"data": 3, "fsdp": 2}, {"tensor": 2}, 2),
        Case("seven and one", {"data": 7, "fsdp": 1}, {}, 1),
    ],
    ids=lambda case: getattr(case, "name", case),
)
def test_weights_arrive_whole_and_not_by_the_host(home, case, dtype):
    changes = {"mesh": case.mesh, "rollout__mesh": case.rollout, "rollout__devices": case.devices}
    learner = Learner(config_of(home, "none", model__compute_dtype=dtype, **changes))
    for version in (0, 1):  # made, and handed over again
        learner.version = version
        with jax.transfer_guard_device_to_host("disallow"):
            params: Any = learner.sampler()._params
        at = weight_shardings(learner.decoder, learner.rollout_mesh, learner.options.dtype)
        expected = unstack(learner.working())
        for mine, its, sharding in zip(*map(jax.tree.leaves, (params, expected, at)), strict=True):
            assert mine.sharding.is_equivalent_to(sharding, mine.ndim)
            assert mine.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(its))
    there, here = set(learner.rollout_mesh.devices.flat), set(learner.mesh.devices.flat)
    assert there | here == set(jax.devices())
    assert len(there & here) == (0 if case.devices else 8)


def test_adapters_are_merged_before_they_go(home):
    learner = Learner(config_of(home, "none", model__lora={"rank": 2}, **APART))
    learner.params = jax.tree.map(lambda x: x + 0.1, learner.params)
    merged = lora.merge(learner.frozen or {}, learner.params, 32.0, 2)
    params: Any = learner.sampler()._params
    for mine, its in zip(*map(jax.tree.leaves, (params, unstack(merged))), strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(its), rtol=1e-6, atol=1e-7)


def test_training_devices_keep_nothing_of_the_sampler(home):
    """What is gathered for the hand-over is let go: on each side are its own arrays alone."""
    gc.collect()
    before = jax.live_arrays()  # of other tests
    learner = Learner(config_of(home, "none", **APART))
    sampler: Any = learner.sampler()
    own = {id(x) for x in jax.tree.leaves((before, learner.params, learner._opt_state, sampler._params))}
    here = set(learner.mesh.devices.flat)
    for x in jax.live_arrays():
        if id(x) not in own and set(x.sharding.device_set) <= here and x.size > 1000:
            raise AssertionError(f"{x.shape} is left over on {x.sharding}")


class Stand:
    """In place of a device of one of several processes."""

    platform = "cpu"

    def __init__(self, number: int, process: int):
        self.id, self.process_index, self.device_kind = number, process, "cpu"


@pytest.mark.parametrize(
    ("changes", "processes", "match"),
    [
        ({"rollout__devices": 8}, 1, r"the smallest has 8, so give a multiple of 1 up to 7, or 0"),
        (
            {"rollout__devices": 3},
            2,
            r"devices=3: each of 2 process\(es\) gives as many .* multiple of 2 up to 6",
        ),
        ({"rollout__devices": 8}, 2, r"the smallest has 4, so give a multiple of 2 up to 6, or 0"),
        ({"rollout__devices": 4, "mesh": {"fsdp": 8}}, 1, r"fsdp=8, tensor=1 does not fit 4 device"),
        ({"rollout__devices": 4, "rollout__mesh": {"data": 8}}, 1, r"data=8, fsdp=-1, tensor=1 does not fit 4 device"),
        ({"rollout__mesh": {"data": 3, "fsdp": 1}}, 1, r"data=3, fsdp=1, tensor=1 does not fit 8 device"),
    ],
)
def test_devices_that_cannot_be_shared_out_are_refused(home, changes, processes, match):
    devices = [Stand(at, at * processes // 8) for at in range(8)] if processes > 1 else None
    with pytest.raises(RrmError, match=match):
        meshes(config_of(home, "none", **changes), devices)


def test_each_process_gives_its_last_devices(home, monkeypatch):
    monkeypatch.setattr("rrm_jax.training.rollout_mesh.make_mesh", lambda shape, devices: [x.id for x in devices])
    devices = [Stand(at, at // 4) for at in range(8)]
    training, sampling = meshes(config_of(home, "none", rollout__devices=2), devices)
    assert (training, sampling) == ([0, 1, 2, 4, 5, 6], [3, 7])


def test_a_split_that_the_training_devices_cannot_make_is_refused(home, monkeypatch):
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:5]))
    changes = {"mesh": {"fsdp": 1, "data": 3}, "rollout__devices": 2, "rollout__mesh": {"tensor": 2}}
    with pytest.raises(MeshError, match=r"rollout\.mesh\.tensor=2 does not divide the 3 training devices"):
        Learner(config_of(home, "none", **changes))
    with pytest.raises(MeshError, match=r"tensor=2: process 0 samples with part 1 of the weights, which none of its"):
        check_parts_are_near(mesh_of(0, 1), mesh_of(0, 0))
    check_parts_are_near(mesh_of(0, 0), mesh_of(0, 0))


class Grid(NamedTuple):
    """In place of a mesh over devices of other processes."""

    devices: np.ndarray
    shape: dict[str, int]


def mesh_of(*processes: int) -> Any:
    """Along tensor, devices of these processes."""
    return Grid(np.array([[[Stand(0, process) for process in processes]]]), {"tensor": len(processes)})
