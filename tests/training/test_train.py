"""Whole training runs on a tiny world: what is learnt from, what is stored, and what a killed run becomes."""

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.errors import RrmError
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.training import learner as learner_module
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.rollout_mesh import meshes
from rrm_jax.training.train import train

from .world import make_home, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    jax.clear_caches()  # programs that another module has had optimised round otherwise than those of a new process
    return make_home(tmp_path_factory.mktemp("training"))


def _quiet(message: str) -> None:
    pass


def _train(home: Path, output: str, resume: bool = False, **changes) -> Path:
    return train(TrainConfig.model_validate(settings(home, output, **changes)), resume, _quiet)


def _params(run: Path) -> dict[str, np.ndarray]:
    one = make_mesh(devices=jax.devices()[:1])
    tree = load_model(run, mesh=one, dtype=np.float32, stacked=True).params
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.fixture(scope="module")
def run(home) -> Path:
    return home / "full"


def test_metrics_say_what_happened(run):
    rows = read_metrics(run, "train")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert any(row["zero_variance_groups"] < 1 for row in rows), "no group taught anything: the tests here are vacuous"
    for row in rows:
        assert row["accuracy"] == pytest.approx((row["reward_mean"] + 1) / 2)
        assert 0 <= row["zero_variance_groups"] <= 1
        assert row["response_length"] <= 6
        assert row["kl"] >= 0
        assert 0 < row["entropy"] < math.log(64)
        assert row["grad_norm"] >= 0
        assert {"seconds_sample", "seconds_score", "seconds_update"} <= set(row)


def test_sampler_and_trainer_agree_on_the_tempered_distribution(run):
    """Temperature 0.7; weights handed over before the first step, and after every update (float32)."""
    for row in read_metrics(run, "train"):
        assert row["mismatch"] < 2e-4


def test_stored_old_logprobs_make_the_clip_act(home):
    # The second mini-batch of a step is one update away from the policy that sampled it.
    # No KL: so far from the reference k3 explodes, and the run would end there.
    changes = {"optimizer__learning_rate": 0.1, "grpo__epochs": 2, "grpo__kl_coef": 0.0}
    rows = read_metrics(_train(home, "clip", **changes), "train")
    assert any(row["clip_low"] + row["clip_high"] > 0 for row in rows)


@pytest.mark.parametrize("shape", [(2, 2, 2)])
def test_one_and_eight_devices_take_the_same_step(home, shape, monkeypatch):
    """Supervised steps: the same losses on one device and on a data × fsdp × tensor mesh (float32, rel 1e-4)."""
    changes = {"method": "supervised", "data__train": str(home / "demonstrations.jsonl"), "steps": 3}
    changes["model__path"] = str(home / "base")
    name = "x".join(map(str, shape))
    mesh = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    many = read_metrics(_train(home, f"mesh{name}", mesh=mesh, **changes), "train")
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:1]))
    one = read_metrics(_train(home, f"one{name}", **changes), "train")
    np.testing.assert_allclose([row["loss"] for row in many], [row["loss"] for row in one], rtol=1e-4)
    assert many[-1]["loss"] < many[0]["loss"]


def test_evaluation_is_written_before_and_after(home):
    run = _train(home, "eval", steps=1, data__eval=str(home / "eval.jsonl"))
    rows = read_metrics(run, "eval")
    assert [row["step"] for row in rows] == [0, 1]
    assert all(0 <= row["accuracy"] <= 1 and row["pairs"] == 6 for row in rows)


def test_a_run_killed_before_its_first_checkpoint_begins_again(home):
    changes = {"steps": 1, "data__eval": str(home / "eval.jsonl")}
    run = _train(home, "early", **changes)
    before = [[_strip(row) for row in read_metrics(run, kind)] for kind in ("eval", "train")]
    shutil.rmtree(run / "checkpoints")
    _train(home, "early", resume=True, **changes)
    assert [[_strip(row) for row in read_metrics(run, kind)] for kind in ("eval", "train")] == before


def test_without_kl_there_is_no_reference_and_one_update_stores_no_old_logprobs(home):
    """Then the loss's own log-probabilities are compared with the sampler's, at temperature 0.7 (float32)."""
    changes = {"steps": 1, "grpo__kl_coef": 0.0, "grpo__mini_batch_prompts": 4}
    (row,) = read_metrics(_train(home, "nokl", **changes), "train")
    assert "kl" not in row
    assert row["mismatch"] < 2e-4


def _strip(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith(("seconds", "tokens_per_second"))}


def test_a_killed_run_resumes_bit_for_bit(home, run):
    """kill −9 in the middle, then --resume: parameters and metrics equal those of the undisturbed run.

    Its prompts are tokenised by another process, and, once resumed, read from a cache.
    """
    config = settings(home, "killed", data__workers=1)
    path = home / "killed.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    code = (
        "import json, sys, jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        "jax.config.update('jax_disable_most_optimizations', True)  # the same programs as this process\n"
        "from rrm_jax.training.config import TrainConfig\n"
        "from rrm_jax.training.train import train\n"
        "train(TrainConfig.model_validate(json.load(open(sys.argv[1]))), False, print)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], env=os.environ, stderr=subprocess.DEVNULL)
    metrics = home / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    cached = settings(home, "killed", data__token_cache=str(home / "tokens"))
    train(TrainConfig.model_validate(cached), True, _quiet)
    assert len([*(home / "tokens").iterdir()]) == 1
    expected, found = _params(run), _params(home / "killed")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    rows = [[_strip(row) for row in read_metrics(each, "train")] for each in (run, home / "killed")]
    assert rows[0] == rows[1]


def test_a_run_is_neither_overwritten_nor_resumed_under_another_configuration(home, run):
    with pytest.raises(RrmError, match="holds a run already"):
        _train(home, "full")
    with pytest.raises(RrmError, match=r"rollout\.temperature changed"):
        _train(home, "full", resume=True, rollout__temperature=0.9)
    with pytest.raises(RrmError, match="no run to resume"):
        _train(home, "nothing", resume=True)


def test_the_run_says_what_made_it(run):
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["seed"] == 0
    assert len(facts["inputs"]["train"]["sha256"]) == 64
    assert facts["versions"]["jax"]
    assert facts["config"]["rollout"]["group_size"] == 4


def test_only_the_last_checkpoints_are_kept(home):
    run = _train(home, "keep", checkpoint={"every": 1, "keep": 1})
    with contextlib.closing(TrainingCheckpoints(run / "checkpoints", keep=5)) as checkpoints:
        assert checkpoints.latest_step() == 3
    steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 1


def test_bad_data_is_refused_before_the_first_step(home, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(RrmError, match="is empty"):
        _train(home, "empty", data__train=str(empty))
    with pytest.raises(RrmError, match=r"data\.train: cannot read"):
        _train(home, "missing", data__train=str(tmp_path / "missing.jsonl"))
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text('{"id": "a", "query": "q", "response_1": "1", "response_2": "2"}\n', encoding="utf-8")
    with pytest.raises(RrmError, match="no usable row"):
        _train(home, "unlabelled", data__train=str(unlabelled))
    with pytest.raises(RrmError, match=r"model\.path: .* does not exist"):
        _train(home, "modelless", model__path=str(tmp_path / "no model"))
    # Nothing stands in the way of the corrected command.
    assert not any((home / name).exists() for name in ("empty", "missing", "unlabelled", "modelless"))
