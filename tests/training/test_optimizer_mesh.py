"""Where the optimiser's state lives on a mesh, and that a step there is the step of one device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import MeshShape, make_mesh, param_sharding
from rrm_jax.testing import realistic_params, tiny_config
from rrm_jax.training.moments import Tiled
from rrm_jax.training.optimizer import abstract_opt_state, opt_state_shardings
from tests.training.test_optimizer import KINDS, name, of_kind


def small_model() -> DecoderConfig:
    """Small, but large enough that matrices are kept in tiles and factored."""
    return tiny_config(vocab_size=256, hidden_size=128, num_heads=4, head_dim=128, intermediate_size=192)


def placed(mesh):
    return abstract_params(small_model(), jnp.float32, True, functools.partial(param_sharding, mesh))


def at(shardings: Any, transformation: type, field: str) -> Any:
    """The named field of the one state of this type."""
    states = jax.tree.leaves(shardings, is_leaf=lambda x: isinstance(x, transformation))
    (state,) = [x for x in states if isinstance(x, transformation)]
    return getattr(state, field)


def test_moments_live_where_their_parameters_live():
    mesh = make_mesh(MeshShape(2, 2, 2))
    wanted = jax.tree.map(lambda x: x.sharding.spec, placed(mesh))
    for moments in ("float32", "bfloat16", "int8"):
        found = opt_state_shardings(of_kind(moments=moments), placed(mesh), mesh)
        for field in ("mu", "nu"):
            trees = at(found, optax.ScaleByAdamState, field)
            if moments == "int8":
                for part in (0, 1):  # codes and scales of a matrix
                    mlp = trees["layers"]["mlp"]["up_kernel"]
                    assert isinstance(mlp, Tiled)
                    assert mlp[part].spec == wanted["layers"]["mlp"]["up_kernel"] == P(None, "tensor", "fsdp")
                trees = jax.tree.map(lambda x: getattr(x, "codes", x), trees, is_leaf=lambda x: isinstance(x, Tiled))
            assert jax.tree.map(lambda a, b: a.spec == b, trees, wanted) == jax.tree.map(lambda _: True, wanted)
        assert at(found, optax.ScaleByAdamState, "count").spec == P()


def test_factors_live_where_their_axis_of_the_parameter_lives():
    mesh = make_mesh(MeshShape(2, 2, 2))
    tx = of_kind(kind="adafactor")
    found, shapes = opt_state_shardings(tx, placed(mesh), mesh), jax.eval_shape(tx.init, placed(mesh))
    row, column = (at(found, optax.FactoredState, field)["layers"] for field in ("v_row", "v_col"))
    rows = at(shapes, optax.FactoredState, "v_row")["layers"]
    assert rows["mlp"]["up_kernel"].shape == (2, 128)  # [layers, mlp 192, embed 128]: the longest axis is gone
    assert row["mlp"]["up_kernel"].spec == P(None, "fsdp")
    assert column["mlp"]["up_kernel"].spec == P(None, "tensor")
    assert row["mlp"]["down_kernel"].spec == P(None, "fsdp")
    assert column["mlp"]["down_kernel"].spec == P(None, "tensor")
    # [layers, heads, head 128, embed 128]: of equal axes the last counts as the longer one
    assert row["attention"]["q_kernel"].spec == P(None, "tensor", None)
    assert column["attention"]["q_kernel"].spec == P(None, "tensor", "fsdp")
    whole = at(found, optax.FactoredState, "v")["layers"]["attention"]
    assert whole["q_bias"].spec == P(None, "tensor", None)
    assert all(s == P() or s == P(None) for s in (whole["q_kernel"].spec, found[-1].count.spec))


def after_steps(settings, mesh, steps=3):
    """Parameters and state after some steps, as a training step runs them on this mesh."""
    tx = of_kind(learning_rate=1e-2, weight_decay=0.1, **settings)
    abstract = placed(mesh)
    params_at = jax.tree.map(lambda x: x.sharding, abstract)
    state_at = opt_state_shardings(tx, abstract, mesh)
    weights = realistic_params(small_model())

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        params = jax.device_put(weights, params_at)
        state = jax.jit(tx.init, out_shardings=state_at)(params)
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(params_at, state_at))
        compiled = jitted.lower(params, state, params).compile()
        for t in range(steps):
            rng = np.random.default_rng(t)
            g = jax.tree.map(lambda x, rng=rng: np.float32(rng.standard_normal(x.shape) * np.abs(x)), weights)
            params, state = compiled(params, state, jax.device_put(g, params_at))
    return params, state, compiled.as_text()


@pytest.mark.thorough
@pytest.mark.parametrize("settings", KINDS, ids=name)
def test_a_mesh_of_eight_makes_the_same_steps(settings, tmp_path):
    alone, alone_state, _ = after_steps(settings, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))
    mesh = make_mesh(MeshShape(2, 2, 2))
    params, state, compiled = after_steps(settings, mesh)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(alone), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-6  # float32; a step is 0.01
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone_state), strict=True):
        if a.dtype == jnp.float32:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-12)
        else:  # another order of float sums may tip a rounding now and then
            assert np.mean(np.asarray(a) != np.asarray(b)) <= 1e-3
    # Tiles do not straddle devices: nothing but norms (and adafactor's means) is communicated.
    assert "all-reduce" in compiled
    assert not any(call in compiled for call in ("all-gather(", "all-to-all(", "collective-permute("))
    # What is saved there is restored here, bit for bit.
    tx, one = of_kind(**settings), make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        checkpoints = TrainingCheckpoints(tmp_path, keep=1)
        checkpoints.save(3, params, state, {})
        checkpoints.wait()
    again, state_again, _ = checkpoints.restore(3, placed(one), abstract_opt_state(tx, placed(one), one))
    checkpoints.close()
    for a, b in zip(jax.tree.leaves((again, state_again)), jax.tree.leaves((params, state)), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_scale_that_the_mesh_does_not_divide_is_whole_on_every_device():
    mesh = make_mesh(MeshShape(1, 8, 1))
    model = tiny_config(vocab_size=256, hidden_size=96, intermediate_size=128)  # 12 tiles on 8 devices
    abstract = abstract_params(model, jnp.float32, True, functools.partial(param_sharding, mesh))
    found = opt_state_shardings(of_kind(moments="int8"), abstract, mesh)
    codes, scale = at(found, optax.ScaleByAdamState, "nu")["layers"]["mlp"]["up_kernel"]
    assert (codes.spec, scale.spec) == (P(None, "tensor", "fsdp"), P(None, "tensor", None))
