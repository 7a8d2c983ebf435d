"""A policy trained on queries: what its responses earn, who decides, and what a run keeps."""

import functools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.data.records import Question
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import VoteLog
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.quickstart import world
from rrm_jax.training import learner as learner_module
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.metrics import Metrics
from rrm_jax.training.policy_judge import _keep_same
from rrm_jax.training.policy_metrics import tournament_metrics
from rrm_jax.training.policy_prompt import policy_prompt
from rrm_jax.training.policy_task import PolicyTask
from rrm_jax.training.rollout_mesh import meshes
from rrm_jax.training.rollouts import Group, assemble
from rrm_jax.training.train import reached, train, train_to_the_end

from .world import make_base, make_data, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")
POLICY = {"prefix": "<think>", "max_prompt_tokens": 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`judge`: a direct judge; `warm`: a policy that gives answers."""
    directory = tmp_path_factory.mktemp("policy")
    make_base(directory / "base")
    make_data(directory)
    world.write_jsonl(directory / "solutions.jsonl", world.solutions(60, 1, 0.5))
    world.write_jsonl(directory / "questions.jsonl", world.questions(30, 2))
    world.write_jsonl(directory / "held_out.jsonl", world.questions(6, 3))
    shared = {"method": "supervised", "steps": 60, "checkpoint": {"every": 60, "keep": 1}, "model__path": "base"}
    of_judge = {"data": {"train": str(directory / "demonstrations.jsonl")}}
    of_policy = {"task": "policy", "policy": POLICY, "data": {"train": str(directory / "solutions.jsonl")}}
    for name, changes in (("judge", of_judge), ("warm", of_policy)):
        given = shared | changes | {"supervised__batch_size": 16, "model__path": str(directory / "base")}
        train(TrainConfig.model_validate(settings(directory, name, **given)), False, lambda message: None)
    return directory


def config_of(home, name: str, judge: dict | None = None, **changes) -> TrainConfig:
    of_judge = {
        "model": str(home / "judge"), "max_new_tokens": 6, "max_prompt_tokens": 256, "batch_size": 32, **(judge or {})
    }  # fmt: skip
    policy = POLICY | {"strategy": "random:opponents=2", "judge": of_judge} | changes.pop("policy", {})
    given = {
        "task": "policy",
        "policy": policy,
        "rollout__max_new_tokens": 10,
        "data": {"train": str(home / "questions.jsonl"), "eval": str(home / "held_out.jsonl")},
        "eval": {"every": 2},
        "optimizer__learning_rate": 1e-3,
    }
    return TrainConfig.model_validate(settings(home, name, **(given | changes)))


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:1]))


def run_of(home, name: str, resume: bool = False, **changes):
    return train(config_of(home, name, **changes), resume, lambda message: None)


def comparable(run):
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in read_metrics(run, "train")]


def params_of(run) -> list[np.ndarray]:
    tree = load_model(run, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32).params
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.thorough
@pytest.mark.usefixtures("one_device")
def test_a_run_by_tournaments_goes_on_bit_for_bit_and_asks_for_no_verdict_twice(home):
    run = run_of(home, "whole", steps=3)
    rows = read_metrics(run, "train")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["comparisons"] + 0 <= 4 * 4 * 2
        assert row["reward_mean"] == pytest.approx(0.5, abs=1e-6)  # what one wins another loses
        assert row["judge_votes"] == row["comparisons"] > 0
        assert 0 <= row["judge_first"] <= 1
        assert -1 <= row["reward_length_correlation"] <= 1
        assert 0 <= row["accuracy"] <= 1  # the answers are known, and only looked at
    assert {row["step"] for row in read_metrics(run, "eval")} == {0, 2, 3}
    traces = [json.loads(line) for line in (run / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["right"] == (row["response"] == row["answer"]) for row in traces)
    assert not (run / "assets" / "judge_template.toml").exists()  # it is no judge

    again = home / "again"
    shutil.copytree(run, again)
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / str(step))
    config = (again / "config.yaml").read_text(encoding="utf-8").replace(str(run), str(again))
    (again / "config.yaml").write_text(config, encoding="utf-8")
    votes = (again / "verdicts.jsonl").read_bytes()
    run_of(home, "again", resume=True, steps=3)
    assert comparable(again) == comparable(run)
    for mine, its in zip(params_of(again), params_of(run), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert (again / "verdicts.jsonl").read_bytes() == votes
    with VoteLog(again / "verdicts.jsonl", write=False) as log:
        assert len(log) > 0  # a store as any


@pytest.mark.thorough
def test_wherever_the_judge_waits_the_rewards_are_the_same(home):
    """On eight devices, split or in host memory or ready; and on devices where nothing is trained."""
    changes = {"steps": 2, "data": {"train": str(home / "questions.jsonl")}}
    runs = [run_of(home, f"idle {idle}", judge={"idle": idle}, **changes) for idle in ("sharded", "host", "ready")]
    apart = run_of(home, "apart", rollout__devices=4, mesh={"fsdp": 4}, **changes)
    rewards = [[(row["reward_std"], row["judge_tokens"]) for row in read_metrics(run, "train")] for run in runs]
    assert rewards[0] == rewards[1] == rewards[2]
    first, moved = read_metrics(runs[0], "train")[0], read_metrics(apart, "train")[0]
    assert moved["reward_std"] == pytest.approx(first["reward_std"], abs=1e-6)
    assert rewards[0][0][0] > 0


def group(answers, gold="7", name="q", lengths=None) -> Group:
    lengths = lengths or [2] * len(answers)
    ids, logprobs = [tuple(range(n)) for n in lengths], [(-0.5,) * n for n in lengths]
    asked = Question(name, "Last digit of the sum of 12345", gold, verifier="whole")
    return Group(asked, (1, 2), False, ids, logprobs, [True] * len(answers), list(answers))


class Pool:
    """Verifies here and now."""

    def verify_all(self, jobs):
        from rrm_jax.data.verifiers import resolve

        return [resolve(job.verifier)(job.response, job.answer) for job in jobs]


def task_of(home, **changes) -> PolicyTask:
    """Without a judge: what needs none."""
    task = PolicyTask(config_of(home, "none", **changes), print)
    task._pool, task._judge, task._log = Pool(), None, None
    return task


def test_the_verifier_gives_one_for_what_is_right(home):
    groups = [group(["7", "3", None, "7"])]
    task_of(home, policy={"reward": "verifier", "judge": None}).reward(groups)
    assert groups[0].rewards == [1, 0, 0, 1]
    assert groups[0].right == [True, False, False, True]
    with pytest.raises(RrmError, match="'q' has no answer"):
        task_of(home, policy={"reward": "verifier", "judge": None}).reward([group(["7", "3"], gold=None)])


def test_mixed_supervision_asks_the_judge_only_where_no_answer_is_known(home):
    known, unknown = group(["7", "3", "4", "5"]), group(["7", "3", "4", "5"], gold=None, name="r")
    task = task_of(home, policy={"reward": "coin", "judge": None})
    task._policy = task._policy.model_copy(update={"reward": "mixed"})
    task.reward([known, unknown])
    assert known.rewards == [1, 0, 0, 0]
    assert known.counts == {}
    assert unknown.counts["comparisons"] == 8
    assert sum(unknown.rewards) == pytest.approx(2)
    assert unknown.right == [None] * 4


def test_a_group_without_any_verdict_teaches_nothing_and_is_counted(home):
    class Silent:
        def judge(self, pairs, log=None, *, meeting=lambda pair: 0):
            from rrm_jax.judging.judge import Judgment, Vote

            for pair in pairs:
                yield Judgment(pair, (Vote("12", None, "", 9, "length", False),))

    import contextlib

    task = task_of(home, policy={"reward": "coin", "judge": None})
    task._turn = lambda: contextlib.nullcontext(Silent())
    groups = [group(["1", "2", "3", "4"]), group([None] * 4, name="r")]
    task.reward(groups)
    rollouts = assemble(groups, config_of(home, "none"), 0)
    np.testing.assert_array_equal(rollouts.advantage_PG, np.zeros((2, 4)))
    found = tournament_metrics(groups)
    assert found["undecided_groups"] == 1  # of the other nobody was asked: its answers are the same
    assert found["judge_invalid_rate"] == found["judge_truncation_rate"] == 1
    assert found["judge_tokens"] == 9 * 8
    assert rollouts.metrics()["invalid_rate"] == 0.5


def test_length_and_order_show_in_the_metrics(home):
    groups = [group(["1", "2", "3", "4"], lengths=[2, 4, 6, 8]), group(["1", "2", "3", "4"], lengths=[8, 6, 4, 2])]
    for one, rewards in zip(groups, ([0, 1, 2, 3], [3, 2, 1, 0]), strict=True):
        one.rewards = [float(x) for x in rewards]
        one.counts = {"votes": 4.0, "invalid_votes": 1.0, "first_votes": 3.0, "comparisons": 4.0, "undecided": 0.0}
        one.counts |= {"both_orders": 2.0, "consistent": 1.0, "judge_tokens": 10.0}
        one.right = [None, None, False, True]
    found = tournament_metrics(groups)
    assert found["reward_length_correlation"] == pytest.approx(1)
    assert found["judge_first"] == 1
    assert found["judge_consistency"] == 0.5
    assert found["reward_auc"] == 0.5  # the right one earned more in the first group, and less in the second
    groups[1].rewards = groups[1].rewards[::-1]
    assert tournament_metrics(groups)["reward_length_correlation"] == pytest.approx(0)


def test_long_queries_lose_their_ends(home):
    tokenizer = Tokenizer.load(home / "base")
    policy = config_of(home, "none", policy={"max_prompt_tokens": 8, "judge": None, "reward": "coin"}).policy
    ids, cut = policy_prompt(policy, tokenizer, "Last digit of the sum of 1234567")
    assert (len(ids), cut) == (8, True)
    assert tokenizer.decode(ids).endswith("Last digit of the sum of 123<|assistant|><think>")
    assert policy_prompt(policy, tokenizer, "12") == (tokenizer.encode_chat((("user", "12"),), "<think>"), False)
    spelled, _ = policy_prompt(policy, tokenizer, "{query}</think>")
    assert tokenizer.control_id("</think>") not in spelled
    with pytest.raises(RrmError, match="too small"):
        policy_prompt(policy.model_copy(update={"max_prompt_tokens": 3}), tokenizer, "12")


def test_what_cannot_be_is_said_before_a_model_is_read(home):
    with pytest.raises(ValueError, match=r"needs a judge: set policy\.judge\.model"):
        config_of(home, "none", policy={"judge": None})
    with pytest.raises(ValueError, match=r"hold \{query\} once"):
        config_of(home, "none", policy={"user": "hm"})
    with pytest.raises(RrmError, match="not one of"):
        run_of(home, "none", policy={"strategy": "fair"})
    with pytest.raises(RrmError, match="no usable row"):
        run_of(home, "none", data={"train": str(home / "pairs.jsonl"), "eval": str(home / "pairs.jsonl")})
    assert not (home / "none").exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("one_device")
def test_a_run_that_is_part_of_a_job_ends_the_job_when_it_is_told_to_stop(home, monkeypatch):
    write = Metrics.write

    def stop(metrics, kind, step, *args, **how):
        write(metrics, kind, step, *args, **how)
        if (kind, step) == ("train", 1):
            os.kill(os.getpid(), signal.SIGTERM)

    config = config_of(home, "part", steps=2, policy={"reward": "coin", "judge": None})
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train_to_the_end(config, lambda message: None)
    assert reached(home / "part") == 1
    train_to_the_end(config, lambda message: None)
    assert reached(home / "part") == 2
    before = (home / "part" / "metrics.jsonl").read_bytes()
    train_to_the_end(config, lambda message: None)
    assert (home / "part" / "metrics.jsonl").read_bytes() == before


@pytest.mark.usefixtures("one_device")
def test_a_judge_may_move_but_not_change(home, tmp_path):
    shutil.copytree(home / "judge", home / "moved_judge")
    run_of(home, "same_judge", steps=1)
    run_of(home, "same_judge", resume=True, steps=2, judge={"model": str(home / "moved_judge"), "idle": "host"})
    assert [row["step"] for row in read_metrics(home / "same_judge", "train")] == [1, 2]
    with pytest.raises(
        RrmError, match=r"with another judge: not the same are its model, template, prefix \(.*judge\.json"
    ):
        run_of(home, "same_judge", resume=True, steps=3, judge={"model": str(home / "warm")})


def test_a_judge_without_room_for_a_prompt_is_refused_before_anything_is_drawn(home):
    with pytest.raises(RrmError, match=r"policy\.judge\.max_new_tokens=8192 leaves no room for a prompt"):
        run_of(home, "no_room", steps=1, judge={"max_new_tokens": 8192})


def test_all_processes_meet_whether_or_not_they_see_the_judges_file_already(tmp_path):
    """Where process 0 is quicker another one finds the file there: it must wait with the others all the same."""
    met = []

    class Started:
        directory = tmp_path

        @staticmethod
        def on_one_process(write):
            met.append(write())

    for _ in range(2):
        _keep_same(Started, {"model": "m"})  # type: ignore[arg-type]
    assert len(met) == 2
    with pytest.raises(RrmError, match="with another judge: not the same are its model"):
        _keep_same(Started, {"model": "n"})  # type: ignore[arg-type]
