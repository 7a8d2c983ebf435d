"""What a run can be told to do differently: where rollouts come from, what earns rewards, what is trained and kept."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.checkpoints.store import read_meta
from rrm_jax.data.records import Pair
from rrm_jax.errors import RrmError
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.training import learner as learner_module
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.experience import check_version
from rrm_jax.training.judge_task import JudgeTask
from rrm_jax.training.learner import Learner
from rrm_jax.training.rollout_mesh import meshes
from rrm_jax.training.rollouts import Group, add_rewards, assemble, informative
from rrm_jax.training.train import train

from .world import make_home, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("options"))


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:1]))


def _config(home: Path, output: str, **changes) -> TrainConfig:
    return TrainConfig.model_validate(settings(home, output, **changes))


def _train(home: Path, output: str, resume: bool = False, **changes) -> Path:
    return train(_config(home, output, **changes), resume, lambda message: None)


def _params(run: Path) -> dict[str, np.ndarray]:
    tree = load_model(run, mesh=make_mesh(devices=jax.devices()[:1]), dtype=np.float32, stacked=True).params
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def _equal(one: Path, two: Path) -> None:
    others = _params(two)
    for name, value in _params(one).items():
        np.testing.assert_array_equal(others[name], value, err_msg=name)


def _went_on_from(home: Path, run: Path, step: int, **changes) -> Path:
    """The run again from its checkpoint of `step`, as if it had been killed after it."""
    copy = home / f"{run.name}-again"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    config = (copy / "config.yaml").read_text(encoding="utf-8").replace(str(run), str(copy))
    (copy / "config.yaml").write_text(config, encoding="utf-8")
    return _train(home, copy.name, resume=True, **changes)


def _comparable(run: Path) -> list[dict]:
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in read_metrics(run, "train")]


@pytest.mark.thorough
def test_asynchronous_rollouts_are_one_step_old_and_a_resumed_run_has_the_same(home):
    changes = {"rollout__asynchronous": True, "grpo__importance_cap": 2.0, "optimizer__learning_rate": 1e-3}
    run = _train(home, "ahead", **changes)
    rows = _comparable(run)
    assert [row["policy_lag"] for row in rows] == [0, 1, 1]
    # The sampler's policy is the trainer's at the first step, and an older one after it.
    assert rows[0]["mismatch"] < 2e-4 < rows[1]["mismatch"]
    assert all("importance_capped" in row for row in rows)
    again = _went_on_from(home, run, 1, **changes)
    assert _comparable(again) == rows
    _equal(run, again)
    # A run that has ended has nothing drawn ahead: with more steps it goes on from its newest policy.
    _train(home, "ahead", resume=True, steps=4, **changes)
    assert [row["policy_lag"] for row in read_metrics(run, "train")] == [0, 1, 1, 0]


def test_two_threads_never_share_a_mesh(home, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(RrmError, match=r"both would use the 8 devices; give .* rollout\.devices"):
        _train(home, "ahead8", rollout__asynchronous=True, grpo__importance_cap=2.0)
    assert not (home / "ahead8").exists()


@pytest.mark.thorough
def test_a_run_goes_on_on_another_number_of_devices(home, monkeypatch):
    """From one device to 2 × 2 × 2. float32: the same samples, norms to 1e-2; AdamW divides small gradients by
    themselves, so that a few parameters (1 %) may differ by more than 1e-4."""
    monkeypatch.undo()
    run, mesh = home / "full", {"data": 2, "fsdp": 2, "tensor": 2}
    again = _went_on_from(home, run, 1, mesh=mesh)
    for one, two in zip(_comparable(run), _comparable(again), strict=True):
        assert two["accuracy"] == one["accuracy"]
        assert two["tokens"] == one["tokens"]
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2, abs=1e-5)
    others = _params(again)
    far = np.concatenate([(np.abs(value - others[name]) > 1e-4).ravel() for name, value in _params(run).items()])
    assert np.mean(far) < 0.01


def test_dynamic_sampling_draws_until_the_batch_is_full(home):
    changes = {"grpo__dynamic_sampling": True, "grpo__dynamic_draws": 6, "rollout__temperature": 1.0}
    run = _train(home, "dynamic", steps=2, **changes)
    rows = _comparable(run)
    assert any(row["draws"] > 1 for row in rows), "every group differed at once: the test is vacuous"
    for row in rows:
        missing = row["groups_missing"] / 4
        assert row["zero_variance_groups"] == missing
        assert row["groups_drawn"] >= 4
        assert missing == 0 or row["draws"] == 6
    assert read_meta(run / "checkpoints" / "2")["position"] == sum(row["groups_drawn"] for row in rows)
    again = _went_on_from(home, run, 1, steps=2, **changes)
    assert _comparable(again) == rows  # the second step goes on behind the first one's extra draws
    _equal(run, again)


def test_kl_in_the_reward_is_taken_off_it(home):
    changes = {"grpo__kl_in": "reward", "grpo__kl_estimator": "k1", "grpo__kl_coef": 0.5}
    rows = read_metrics(_train(home, "kl", **changes), "train")
    assert rows[0]["reward_mean"] == pytest.approx(2 * rows[0]["accuracy"] - 1, abs=1e-5)  # the reference itself
    assert all(abs(row["reward_mean"] - (2 * row["accuracy"] - 1)) > 1e-3 for row in rows[1:])


def test_what_waits_on_the_host_changes_nothing(home):
    changes = {"steps": 2, "optimizer__moments": "int8"}
    here = _train(home, "here", **changes)
    there = _train(home, "there", optimizer__offload=True, grpo__offload_reference=True, **changes)
    assert _comparable(here) == _comparable(there)
    _equal(here, there)


def test_adapters_are_trained_saved_apart_and_used_by_the_sampler(home):
    run = _train(home, "lora", model__lora={"rank": 2, "alpha": 4.0}, optimizer__learning_rate=1e-2)
    rows = read_metrics(run, "train")
    assert all(row["mismatch"] < 2e-4 for row in rows), "the sampler's weights are not the trainer's"
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert any(row["grad_norm"] > 0 for row in rows)
    before, after = _params(home / "warm"), _params(run)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if "layers" in name and "kernel" in name}
    sizes = [sum(f.stat().st_size for f in (each / "checkpoints" / "3").rglob("*")) for each in (run, home / "full")]
    assert sizes[0] < sizes[1] / 2
    again = _went_on_from(home, run, 2, model__lora={"rank": 2, "alpha": 4.0}, optimizer__learning_rate=1e-2)
    _equal(run, again)


def test_bfloat16_computes_from_a_copy_and_masters_stay_float32(home):
    """An update of 1e-6 is far below a bfloat16 weight's steps, and must not vanish."""
    run = _train(home, "narrow", model__compute_dtype="bfloat16", optimizer__learning_rate=1e-6)
    rows = read_metrics(run, "train")
    assert rows[0]["mismatch"] < 0.05  # bfloat16's rounding, in another order
    before, after = _params(home / "warm"), _params(run)
    changed = np.mean([np.mean(before[name] != after[name]) for name in before])
    assert changed > 0.5
    assert max(np.abs(before[name] - after[name]).max() for name in before) < 1e-5


@pytest.mark.parametrize("kind", ["adafactor"])
def test_other_optimisers_train(home, kind):
    rows = read_metrics(_train(home, kind, steps=2, optimizer__kind=kind), "train")
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_rollouts_of_another_version_are_refused(home):
    config = _config(home, "version")
    learner = Learner(config)
    groups = [_group(1, [1, 2]), _group(1, [1, 1])]
    JudgeTask(config, print).reward(groups)
    rollouts = assemble(groups, config, version=0)
    assert check_version(rollouts, learner, config, 1, drawn_ahead=False) == 0
    learner.version = 1
    with pytest.raises(RuntimeError, match="version 0, the policy is 1"):
        check_version(rollouts, learner, config, 2, drawn_ahead=False)
    learner.version = config.updates_per_step
    assert check_version(rollouts, learner, config, 2, drawn_ahead=True) == 1


def _group(label: int, verdicts: list[int | None], lengths=None) -> Group:
    lengths = lengths or [2] * len(verdicts)
    ids = [tuple(range(length)) for length in lengths]
    logprobs = [(-0.5,) * length for length in lengths]
    return Group(Pair("a", "q", "x", "y", label), (1, 2), False, ids, logprobs, [True] * len(verdicts), verdicts)


def test_rewards_are_what_the_configuration_says(home):
    """Rewards and advantages by hand; groups and their files are the same."""
    changes = {"rollout__max_new_tokens": 8, "reward": {"invalid": 0.5, "length": 0.4, "overlong_tokens": 4}}
    config = _config(home, "rewards", **changes)
    group = _group(2, [2, 1, None, 2], [2, 4, 6, 8])
    JudgeTask(config, print).reward([group])
    assert Group.from_json(json.loads(json.dumps(group.to_json()))) == group
    rollouts = assemble([group], config, 0)
    expected = [1 - 0.1, -1 - 0.2, -1 - 0.5 - 0.3 - 0.5, 1 - 0.4 - 1]
    np.testing.assert_allclose(rollouts.reward_PG, [expected])
    np.testing.assert_allclose(
        rollouts.advantage_PG[0], (np.array(expected) - np.mean(expected)) / np.std(expected), rtol=1e-5
    )
    assert rollouts.metrics()["invalid_rate"] == 0.25
    assert rollouts.metrics()["accuracy"] == 0.5
    add_rewards(rollouts, np.array([[0.0, 0.2, 1.3, 0.4]]), config)
    np.testing.assert_allclose(rollouts.reward_PG, [[0.9, -1, -1, 0]])


def test_consistency_pairs_the_two_orders(home):
    config = _config(home, "consistent", reward={"consistency": 1.0})
    groups = [_group(1, [1, 1]), _group(2, [2, 1]), _group(2, [1, 1]), _group(1, [1, 2])]
    task = JudgeTask(config, print)
    task.reward(groups)
    rollouts = assemble(groups, config, 0)
    # The first pair: sample 0 right in both orders, sample 1 in the first alone. The second: never in both.
    np.testing.assert_array_equal(rollouts.reward_PG, [[1, -1], [1, -1], [-1, -1], [-1, -1]])
    # Names the same response in both orders: yes, no; no, yes (wrong both times).
    assert task.metrics(groups) == {"order_consistency": 0.5}
    np.testing.assert_array_equal(informative(groups, task.prompts_per_row), [True, True, False, False])


def test_a_run_shows_both_orders(home):
    rows = read_metrics(_train(home, "both", steps=1, reward={"consistency": 0.5}), "train")
    assert 0 <= rows[0]["order_consistency"] <= 1
    traces = [json.loads(line) for line in (home / "both" / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in traces[::2]] == [row["id"] for row in traces[1::2]]
    assert [row["label"] for row in traces[::2]] == [3 - row["label"] for row in traces[1::2]]


def test_traces_say_what_was_shown_and_earned(home):
    rows = [json.loads(line) for line in (home / "full" / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    for row in rows:
        assert row["reward"] == (1 if row["verdict"] == row["label"] else -1)
        assert "Last digit of the sum of" in row["prompt"]
