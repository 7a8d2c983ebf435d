"""One optimiser step: what a bad gradient must not do, and that splits and meshes do not change a good one."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.rl.logprobs import completion_scores
from rrm_jax.rl.losses import PolicyBatch, PolicyLoss, policy_loss, token_weights
from rrm_jax.training import learner as learner_module
from rrm_jax.training.batches import Example, micro_batches
from rrm_jax.training.config import PackConfig, TrainConfig
from rrm_jax.training.learner import Learner
from rrm_jax.training.rollout_mesh import meshes

from .world import make_base, settings

pytestmark = pytest.mark.usefixtures("quick_compiles")


class Batch(NamedTuple):
    sequences: object
    policy: PolicyBatch


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("learner")
    make_base(directory / "base")
    return directory


def learner_of(home: Path, how: PolicyLoss, **changes) -> Learner:
    paths = {"model__path": str(home / "base"), "optimizer__learning_rate": 1e-2}
    made = Learner(TrainConfig.model_validate(settings(home, "none", **paths, **changes)))

    def loss(model, batch):
        scores = completion_scores(made.decoder, model, batch.sequences, 0.7, made.options)
        return policy_loss(how, scores.logprob, scores.entropy, batch.policy)

    made.compile(loss)
    return made


def batches_of(learner: Learner, aggregation: str, pack: PackConfig):
    """Twelve responses with made-up advantages and log-probabilities, the same however they are packed."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 12)
    examples = [
        Example(tuple(rng.integers(0, 26, rng.integers(1, 6)).tolist()), tuple(rng.integers(0, 26, n).tolist()))
        for n in lengths
    ]
    values = [[rng.normal(-2, 0.5, n) for n in lengths] for _ in range(3)]
    advantage = rng.normal(size=12)
    weights, denominator = token_weights(lengths, aggregation, 8)
    made = []
    for batch in micro_batches(examples, range(12), pack, learner.ways):
        sequences = batch.sequences()
        old, reference, sampler = (batch.along(value) for value in values)
        fields = batch.along(advantage), batch.along(weights), batch.responses(), old, reference, sampler
        made.append(Batch(sequences, PolicyBatch(*fields, sequences.mask)))
    return made, denominator


def params_after(learner: Learner, aggregation: str, pack: PackConfig):
    batches, denominator = batches_of(learner, aggregation, pack)
    values = learner.update(iter(batches), denominator)
    return values, [np.asarray(leaf) for leaf in jax.tree.leaves(learner.params)], len(batches)


HOW = {
    "grpo": (PolicyLoss(kl_coef=0.05), "sequence"),
    "all options": (PolicyLoss("sequence", 0.2, 0.28, 0.05, "k2", 0.01, 1.5), "token"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("variant", HOW)
def test_splits_and_meshes_take_the_same_step(home, variant, monkeypatch):
    """One device with 1, 2 and 5 or more micro-batches, and eight: fsdp, and data × fsdp × tensor.

    float32: norms and losses to 1e-5, parameters to 1e-5 of the step's length 1e-2.
    """
    how, aggregation = HOW[variant]
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:1]))
    alone = [
        params_after(learner_of(home, how), aggregation, PackConfig(row_tokens=row, micro_batch_tokens=tokens))
        for row, tokens in ((16, 1024), (16, 64), (16, 16), (64, 64))
    ]
    assert [count for *_, count in alone[:3]] == sorted({count for *_, count in alone[:3]})
    assert alone[0][2] == 1
    assert alone[2][2] >= 5
    monkeypatch.undo()
    many = []
    for shape in ((1, 8, 1), (2, 2, 2)):
        mesh = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
        many.append(
            params_after(
                learner_of(home, how, mesh=mesh), aggregation, PackConfig(row_tokens=16, micro_batch_tokens=128)
            )
        )
    assert alone[0][0]["grad_norm"] > 0.1
    for values, params, _ in [*alone[1:], *many]:
        assert values["grad_norm"] == pytest.approx(alone[0][0]["grad_norm"], rel=1e-5)
        assert values["loss"] == pytest.approx(alone[0][0]["loss"], rel=1e-5, abs=1e-6)
        # AdamW's first step divides a gradient by itself: where it is nearly 0, rounding decides.
        near = [np.mean(np.abs(a - b) > 1e-4) for a, b in zip(params, alone[0][1], strict=True)]
        assert max(near) < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_a_gradient_that_is_no_good_changes_nothing(home, bad, monkeypatch):
    """NaN, infinity, and a norm above `optimizer.stop_norm`: parameters and optimiser state stay bit for bit."""
    monkeypatch.setattr(learner_module, "meshes", functools.partial(meshes, devices=jax.devices()[:1]))
    learner = learner_of(home, PolicyLoss())
    before = jax.tree.map(np.array, (learner.params, learner._opt_state))
    pack = PackConfig(row_tokens=16, micro_batch_tokens=1024)
    (batch,), denominator = batches_of(learner, "sequence", pack)
    spoilt = batch._replace(policy=batch.policy._replace(advantage=batch.policy.advantage * np.float32(bad)))
    values = learner.update(iter([spoilt]), denominator)
    assert not values["grad_norm"] <= learner.config.optimizer.stop_norm
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, (learner.params, learner._opt_state)))
    values = learner.update(iter([batch]), denominator)
    assert values["grad_norm"] > 0
    assert not all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before[0]), jax.tree.leaves(learner.params), strict=True)
    )
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(learner.params))
