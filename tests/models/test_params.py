"""What is derived from the declarations: names, layouts, random values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.models.params import init_params, is_spec, named_specs, param_specs, stack, unstack
from rrm_jax.parallel.mesh import MeshShape, make_mesh, param_sharding
from rrm_jax.testing import realistic_params, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = tiny_config()


def test_names_and_shapes_are_those_of_transformers_qwen2():
    attention = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    expected = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,), "lm_head.weight": (64, 32)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        expected |= {f"{prefix}self_attn.{name}.weight": shape for name, shape in attention.items()}
        expected |= {f"{prefix}self_attn.{x}_proj.bias": attention[f"{x}_proj"][:1] for x in "qkv"}
        expected |= {f"{prefix}mlp.{name}_proj.weight": (64, 32) for name in ("gate", "up")}
        expected |= {f"{prefix}mlp.down_proj.weight": (32, 64)}
        expected |= {f"{prefix}{name}_layernorm.weight": (32,) for name in ("input", "post_attention")}
    assert {spec.hf: spec.hf_shape for _, spec in named_specs(CONFIG)} == expected
    tied = {spec.hf for _, spec in named_specs(tiny_config(tied_embeddings=True))}
    assert tied == set(expected) - {"lm_head.weight"}
    assert ("layers", "1", "mlp", "up_kernel") in {path for path, _ in named_specs(CONFIG)}


def test_stacking_and_unstacking_are_inverse_and_match_the_specs():
    params = realistic_params(CONFIG, stacked=False)
    stacked = stack(params)
    for tree, is_stacked in ((params, False), (stacked, True)):
        shapes = jax.tree.map(lambda s: s.shape, param_specs(CONFIG, is_stacked), is_leaf=is_spec)
        assert jax.tree.map(lambda x: x.shape, tree) == shapes
    jax.tree.map(np.testing.assert_array_equal, stacked, realistic_params(CONFIG, stacked=True))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(unstack)(stacked), params)


def test_initial_values_are_those_declared_and_differ_between_layers_and_seeds():
    config = tiny_config(initializer_range=0.05, hidden_size=64, head_dim=16)
    params = init_params(config, seed=1)
    layers = params["layers"]
    for kernel in (params["embedding"], params["lm_head"], *layers["mlp"].values(), layers["attention"]["q_kernel"]):
        assert abs(float(kernel.std()) - 0.05) < 0.003
    assert (params["final_norm"] == 1).all()
    assert (layers["mlp_norm"] == 1).all()
    assert (layers["attention"]["k_bias"] == 0).all()
    up = layers["mlp"]["up_kernel"]
    assert not (up[0] == up[1]).any()
    assert not (params["embedding"] == init_params(config, seed=2)["embedding"]).any()
    assert init_params(tiny_config(num_layers=1), seed=1, dtype=jnp.bfloat16)["final_norm"].dtype == jnp.bfloat16


def test_initial_values_do_not_depend_on_the_mesh():
    mesh = make_mesh(MeshShape(2, 2, 2))
    alone = init_params(CONFIG, seed=3)
    sharded = init_params(CONFIG, seed=3, sharding=lambda spec: param_sharding(mesh, spec))
    assert len(sharded["embedding"].sharding.device_set) == 8
    assert sharded["embedding"].addressable_shards[0].data.shape == (32, 16)
    jax.tree.map(np.testing.assert_array_equal, sharded, alone)
