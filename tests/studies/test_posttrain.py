"""The studies of post-training, on a world of a few rows: pairs are made once, runs trained once, and told of."""

import json

import pytest
import yaml

from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import parse_labelled_pair
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.statistics import Interval
from rrm_jax.judging.judge import Judgment, Vote
from rrm_jax.quickstart import world
from rrm_jax.studies.posttrain import Trained, _no_gain
from rrm_jax.studies.run import run_study, study_config
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.train import train
from tests.training.world import make_base, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")
POLICY = {"prefix": "<think>", "max_prompt_tokens": 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("posttrain")
    make_base(directory / "base")
    world.write_jsonl(directory / "solutions.jsonl", world.solutions(60, 1, 0.0))
    world.write_jsonl(directory / "questions.jsonl", world.questions(120, 2))
    world.write_jsonl(directory / "held_out.jsonl", world.questions(6, 3))
    changes = {"method": "supervised", "steps": 60, "task": "policy", "policy": POLICY, "supervised__batch_size": 16}
    changes |= {"data": {"train": str(directory / "solutions.jsonl")}, "checkpoint": {"every": 60}}
    warm = settings(directory, "warm", **changes, model__path=str(directory / "base"))
    train(TrainConfig.model_validate(warm), False, lambda message: None)
    return directory


def study(home, name: str, runs: dict[str, dict], **more) -> str:
    """A study's file; `runs` are what each run has of its own."""
    given = {}
    for run, changes in runs.items():
        base = {"task": "policy", "policy": POLICY, "rollout__max_new_tokens": 10, "steps": 2, "eval": {"every": 2}}
        base |= {"optimizer__learning_rate": 1e-4, "grpo__kl_coef": 0.0}
        base |= {"data": {"train": str(home / "questions.jsonl"), "eval": str(home / "held_out.jsonl")}}
        tree = settings(home, f"{name}-{run}", **(base | changes))
        (home / f"{name}-{run}.yaml").write_text(yaml.safe_dump(tree))
        given[run] = {"config": str(home / f"{name}-{run}.yaml")}
    config = {"output": str(home / name), "title": "Does it?", "runs": given, **more}
    (home / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(home / f"{name}.yaml")


class StubJudge:
    """The larger last digit is the better one."""

    def __init__(self):
        self.settings = {"model": "stub"}

    def judge(self, pairs, log=None, *, meeting=lambda pair: 0):
        for pair in pairs:
            better = 1 if pair.response_1[-1:] > pair.response_2[-1:] else 2
            votes = tuple(Vote(order, better, "", 3, "stop", False) for order in ("12", "21"))
            yield Judgment(pair, votes)


def no_judge(*_, **__):
    raise AssertionError("nobody is to be asked")


@pytest.mark.thorough
def test_runs_are_trained_once_and_compared(home):
    path = study(
        home,
        "rl",
        {"verifier": {"policy": POLICY | {"reward": "verifier"}}, "coin": {"policy": POLICY | {"reward": "coin"}}},
        gains=["verifier"],
        no_gains=["coin"],
    )
    text, found, _ = run_study("posttrain-rl", study_config("posttrain-rl", path), no_judge)
    assert [(one.name, one.steps) for one in found.runs] == [("verifier", 2), ("coin", 2)]
    assert all(one.before.n == one.after.n == 6 for one in found.runs)
    assert "coin: held-out answers do not get better" in text
    assert {curve.metric for curve in found.curves} >= {"accuracy", "reward_mean", "judge_first"}
    data = json.loads((home / "rl" / "data.json").read_text())
    assert data["found"]["runs"][0]["gain"]["estimate"] == found.runs[0].gain.estimate
    times = [(home / f"rl-{name}" / "metrics.jsonl").stat().st_mtime_ns for name in ("verifier", "coin")]
    again, *_ = run_study("posttrain-rl", study_config("posttrain-rl", path), no_judge)
    assert again == text
    assert times == [(home / f"rl-{name}" / "metrics.jsonl").stat().st_mtime_ns for name in ("verifier", "coin")]


@pytest.mark.thorough
def test_pairs_are_the_policys_own_and_labelled_three_ways(home):
    pairs = {
        "questions": str(home / "questions.jsonl"),
        "policy": str(home / "warm"),
        "max_new_tokens": 10,
        "judge": {"model": "stub"},
    }
    of = {
        name: {"method": "dpo", "data": {"train": str(home / "dpo" / f"pairs.{name}.jsonl")}}
        | {"data__eval": str(home / "held_out.jsonl"), "dpo": {"batch_size": 4}}
        for name in ("judge", "coin")
    }
    path = study(home, "dpo", of, pairs=pairs, gains=["judge"])
    text, found, _ = run_study("posttrain-dpo", study_config("posttrain-dpo", path), lambda *a, **k: StubJudge())
    labelled = {
        name: [row for _, row in Reader(home / "dpo" / f"pairs.{name}.jsonl", parse_labelled_pair)]
        for name in ("judge", "verifier", "coin")
    }
    assert {name: len(rows) for name, rows in labelled.items()} == found.pairs
    for pair in labelled["judge"]:
        assert (pair.label == 1) == (pair.response_1[-1] > pair.response_2[-1])
    answers = {row["id"]: row["answer"] for row in world.questions(120, 2)}
    for pair in labelled["verifier"]:
        texts = [text.rpartition("</think>")[2] for text in (pair.response_1, pair.response_2)]
        assert texts[pair.label - 1] == answers[pair.id] != texts[2 - pair.label]
    assert len(labelled["coin"]) >= len(labelled["verifier"])
    assert {pair.label for pair in labelled["coin"]} == {1, 2}
    assert "Pairs of the policy's own responses" in text
    assert found.runs[0].steps == 2


def test_where_nothing_is_to_be_trained_an_unfinished_run_is_an_error(home):
    path = study(home, "late", {"coin": {"policy": POLICY | {"reward": "coin"}}}, train=False)
    with pytest.raises(RrmError, match=r"has come to step 0 of 2: finish it with rrm train"):
        run_study("posttrain-rl", study_config("posttrain-rl", path), no_judge)
    with pytest.raises(RrmError, match="not one of the runs"):
        study_config(
            "posttrain-rl", study(home, "wrong", {"coin": {"policy": POLICY | {"reward": "coin"}}}, gains=["dice"])
        )


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [((0.25, -0.04, 0.49), "not shown"), ((-0.3, -0.5, -0.1), "shown"), ((0.3, 0.1, 0.5), "contradicted")],
)
def test_that_a_gain_is_not_seen_is_no_proof_that_there_is_none(gain, outcome):
    """As the report's legend has it: shown is what the whole interval says."""
    share = Interval(0.2, 0.1, 0.3, 20)
    assert _no_gain(Trained("coin", 2, share, share, Interval(*gain, 20))).outcome == outcome


def test_runs_without_held_out_questions_are_refused(home):
    data = {"train": str(home / "questions.jsonl")}
    path = study(home, "blind", {"coin": {"policy": POLICY | {"reward": "coin"}, "data": data}})
    with pytest.raises(RrmError, match=r"the run coin has no data.eval"):
        run_study("posttrain-rl", study_config("posttrain-rl", path), no_judge)
