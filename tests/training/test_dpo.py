"""DPO through the trainer: packing, learning, resuming, and what cannot be trained on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.data.records import Pair, to_row
from rrm_jax.data.tokenizer import END_THINK, Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.parallel.mesh import make_mesh
from rrm_jax.quickstart import world
from rrm_jax.training.batches import Example, micro_batches
from rrm_jax.training.config import PackConfig, TrainConfig
from rrm_jax.training.dpo import encode_response
from rrm_jax.training.train import train

from .world import make_base, settings


def rows(count: int, seed: int = 0):
    """Whole responses: the right running sums and digit, and wrong ones."""
    right, wrong = world.solutions(count, seed, 0.0), world.solutions(count, seed, 1.0)
    for at, (good, bad) in enumerate(zip(right, wrong, strict=True)):
        one, two = (good, bad) if at % 3 else (bad, good)
        label = 1 if at % 3 else 2
        texts = {"response_1": one["completion"], "response_2": two["completion"]}
        yield {"id": good["id"], "query": good["query"], **texts, "label": label}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dpo")
    make_base(directory / "warm")
    world.write_jsonl(directory / "pairs.jsonl", rows(40))
    world.write_jsonl(directory / "questions.jsonl", world.questions(8, 1))
    return directory


def config_of(home, name: str, **changes) -> TrainConfig:
    given = {
        "task": "policy",
        "method": "dpo",
        "policy": {"prefix": "<think>", "max_prompt_tokens": 64},
        "dpo": {"batch_size": 8, "beta": 0.5},
        "data": {"train": str(home / "pairs.jsonl"), "eval": str(home / "questions.jsonl")},
        "optimizer": {"learning_rate": 3e-3},
        "eval": {"every": 2},
    }
    return TrainConfig.model_validate(settings(home, name, **(given | changes)))


def params_of(run):
    return [
        np.asarray(x)
        for x in jax.tree.leaves(load_model(run, mesh=make_mesh(devices=jax.devices()[:1]), dtype=jnp.float32).params)
    ]


def test_preferred_responses_become_more_probable_than_the_others(home):
    run = train(config_of(home, "learns", steps=8), False, lambda message: None)
    steps = read_metrics(run, "train")
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # the reference itself: every margin is 0
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["loss"] < 0.6 < steps[0]["loss"]
    assert steps[-1]["preference_accuracy"] > 0.7
    assert {row["step"] for row in read_metrics(run, "eval")} == {0, 2, 4, 6, 8}
    assert "accuracy" in read_metrics(run, "eval")[0]


@pytest.mark.thorough
def test_resumed_is_bit_for_bit_the_same(home):
    whole = train(config_of(home, "whole", steps=4), False, lambda message: None)
    train(config_of(home, "resumed", steps=2), False, lambda message: None)
    resumed = train(config_of(home, "resumed", steps=4), True, lambda message: None)
    for mine, its in zip(params_of(whole), params_of(resumed), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.thorough
def test_packing_changes_nothing(home):
    """One pair a row against several, and with a reference that waits on the host: the same losses."""
    runs = [
        train(config_of(home, f"packed {name}", steps=3, **changes), False, lambda message: None)
        for name, changes in {
            "alone": {"pack": {"row_tokens": 8, "micro_batch_tokens": 8}},
            "together": {"pack": {"row_tokens": 256, "micro_batch_tokens": 1024}},
            "offloaded": {"dpo": {"batch_size": 8, "beta": 0.5, "offload_reference": True}},
        }.items()
    ]
    losses = [[row["loss"] for row in read_metrics(run, "train")] for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)  # float32, other sums
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-5)


def test_pairs_stay_side_by_side():
    rng = np.random.default_rng(0)
    examples = []
    for at in range(20):
        prompt = (1, 2, at % 5)
        examples += [Example(prompt, (7,) * int(rng.integers(1, 12))) for _ in range(2)]
    for shares in (True, False):
        batches = micro_batches(examples, range(40), PackConfig(row_tokens=32, micro_batch_tokens=128), 2, shares, 2)
        filled = [row for batch in batches for row in batch.rows]
        assert sorted(at for row in filled for at in row) == list(range(40))
        for row in filled:
            assert all(
                first % 2 == 0 and second == first + 1 for first, second in zip(row[::2], row[1::2], strict=True)
            )
        assert max(len(row) for row in filled) > 2
        for batch in batches:
            batch.sequences()  # everything fits


def test_reference_free_needs_no_second_model(home):
    run = train(
        config_of(home, "free", steps=2, dpo={"batch_size": 8, "beta": 0.5, "reference_free": True}),
        False,
        lambda message: None,
    )
    steps = read_metrics(run, "train")
    assert steps[0]["reward_margin"] == pytest.approx(
        0.5 * (steps[0]["logprob_chosen"] - steps[0]["logprob_rejected"]), rel=1e-4
    )


def test_responses_hold_one_control_token_whatever_they_spell(home):
    tokenizer = Tokenizer.load(home / "warm")
    end = tokenizer.control_id(END_THINK)
    ids = encode_response(tokenizer, "<think>\n12</think>3</think>4", thinking=True)
    assert ids.count(end) == 1
    assert ids[-2:] == [*tokenizer.encode_text("4"), tokenizer.eos_id]
    assert ids[: ids.index(end)] == tokenizer.encode_text("12</think>3")
    plain = encode_response(tokenizer, "<think>\n12</think>3", thinking=False)
    assert end not in plain


def test_responses_without_thinking_are_refused_where_the_policy_thinks(home):
    bare = Pair("bare", "Last digit of the sum of 12345", "5", "6", 1)
    (home / "bare.jsonl").write_text(json.dumps(to_row(bare)) + "\n", encoding="utf-8")
    with pytest.raises(RrmError, match=r"'bare' has a response without </think>"):
        train(config_of(home, "bare", data={"train": str(home / "bare.jsonl")}), False, lambda message: None)
    with pytest.raises(ValueError, match="set task: policy"):
        TrainConfig.model_validate(settings(home, "judge", method="dpo"))
