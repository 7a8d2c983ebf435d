"""Adapters against the formula, merged weights and the chain rule. float32 on one device, unless said."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.models import lora
from rrm_jax.models.decoder import Options, forward, unembed
from rrm_jax.models.params import abstract_params, is_spec, param_specs, unstack
from rrm_jax.parallel.mesh import MeshShape, batch_sharding, make_mesh, param_sharding, partition_spec
from rrm_jax.testing import realistic_params, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = tiny_config(num_heads=8, num_kv_heads=4)
RANK, ALPHA = 4, 6.0
MATRICES = [("attention", f"{x}_kernel") for x in "qkvo"] + [("mlp", f"{x}_kernel") for x in ("gate", "up", "down")]


def random_adapters(config=CONFIG, rank=RANK, seed=0, size=0.3):
    """Adapters that matter: neither factor is 0."""
    rng = np.random.default_rng(seed)
    draw = lambda x: size * rng.standard_normal(x.shape).astype(x.dtype)  # noqa: E731
    return jax.tree.map(draw, lora.abstract_adapters(config, rank))


def by_hand(params, adapters, dtype=np.float64):
    """PEFT's formula, W + (alpha / r) · B · A, a layer and a matrix at a time, in float64."""
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), params["layers"])
    for room, name in MATRICES:
        b, a = (adapters["layers"][room][name][part] for part in ("up", "down"))
        for layer in range(CONFIG.num_layers):
            b64, a64 = b[layer].astype(np.float64).reshape(-1, RANK), a[layer].astype(np.float64).reshape(RANK, -1)
            layers[room][name][layer] += (ALPHA / RANK * b64 @ a64).reshape(layers[room][name][layer].shape)
    return params | {"layers": jax.tree.map(lambda x: x.astype(dtype), layers)}


@functools.cache
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments [8, 16] of two sequences a row, then padding."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, size=(8, 16), dtype=np.int32)
    positions, segments = np.zeros((8, 16), np.int32), np.zeros((8, 16), np.int32)
    for b in range(8):
        first, second = 5 + b % 4, 3 + b % 5
        positions[b, : first + second] = [*range(first), *range(second)]
        segments[b, : first + second] = [1] * first + [2] * second
    return tokens, positions, segments


def logits(params, *batch, options=Options()):
    return unembed(CONFIG, params, forward(CONFIG, params, *batch, options)[0])


def loss(params, tokens, positions, segments, options=Options(), config=CONFIG):
    """The next token's negative log-likelihood, summed over real tokens."""
    hidden, _ = forward(config, params, tokens, positions, segments, options)
    logprobs = jax.nn.log_softmax(unembed(config, params, hidden[:, :-1]))
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(chosen * ((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)))


def adapted_loss(adapters, params, *batch, options=Options()):
    return loss(lora.adapt(params, adapters, ALPHA, RANK), *batch, options=options)


def real(values):
    return np.asarray(values, np.float32)[batch()[2] > 0]


def assert_close(a, b, tolerance=1e-5):
    assert np.abs(np.asarray(a) - b).max() <= tolerance * np.std(b)


def assert_near(a, b, tolerance=1e-5):
    """Relative in the norm."""
    assert np.linalg.norm(np.asarray(a, np.float64) - b) <= tolerance * np.linalg.norm(b)


def test_names_and_shapes_are_those_of_peft():
    expected = {}
    for name, (out, into) in {
        "self_attn.q_proj": (64, 32), "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32),
        "self_attn.o_proj": (32, 64), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64),
    }.items():  # fmt: skip
        expected[f"model.layers.{{layer}}.{name}.lora_A.weight"] = (2, RANK, into)
        expected[f"model.layers.{{layer}}.{name}.lora_B.weight"] = (2, out, RANK)
    specs = jax.tree.leaves(lora.adapter_specs(CONFIG, RANK), is_leaf=is_spec)
    assert {spec.hf: spec.hf_shape for spec in specs} == expected
    assert lora.num_parameters(CONFIG, RANK) == sum(np.prod(shape) for shape in expected.values())


def test_initial_adapters_change_nothing_and_are_drawn_as_peft_draws_them():
    config = tiny_config(hidden_size=64, intermediate_size=512)
    adapters = lora.init_adapters(config, 16, seed=1)["layers"]
    for room, name in MATRICES:
        down, up = adapters[room][name]["down"], adapters[room][name]["up"]
        assert down.dtype == up.dtype == jnp.float32
        assert not np.asarray(up).any()
        bound = np.prod(down.shape[2:]) ** -0.5  # kaiming_uniform_(a=√5): uniform within ± 1 / √inputs
        assert 0.98 * bound < np.abs(down).max() <= bound
        assert abs(np.std(down) / (bound / np.sqrt(3)) - 1) < 0.1
        assert not (down[0] == down[1]).any()
    again, other = (lora.init_adapters(config, 16, seed=seed)["layers"]["mlp"] for seed in (1, 2))
    assert (again["up_kernel"]["down"] == adapters["mlp"]["up_kernel"]["down"]).all()
    assert not (other["up_kernel"]["down"] == adapters["mlp"]["up_kernel"]["down"]).any()
    assert not (again["up_kernel"]["down"] == again["gate_kernel"]["down"]).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adapters_of_zero_give_the_base_bit_for_bit(dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), realistic_params(CONFIG))
    adapters, options = lora.init_adapters(CONFIG, RANK, seed=0), Options(dtype)
    run = jax.jit(functools.partial(logits, options=options))
    base = run(params, *batch())
    np.testing.assert_array_equal(run(lora.adapt(params, adapters, ALPHA, RANK), *batch()), base)
    merged = jax.jit(lora.merge, static_argnums=(2, 3))(params, adapters, ALPHA, RANK)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merging_is_pefts_formula():
    params, adapters = realistic_params(CONFIG), random_adapters()
    merged = jax.jit(lora.merge, static_argnums=(2, 3))(params, adapters, ALPHA, RANK)
    expected = by_hand(params, adapters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), merged, expected)  # values to 5
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), by_hand(narrow, adapters, np.float32))
    merged = jax.jit(lora.merge, static_argnums=(2, 3))(narrow, adapters, ALPHA, RANK)
    same = [np.mean(np.asarray(a == b)) for a, b in zip(*map(jax.tree.leaves, (merged, rounded)), strict=True)]
    assert min(same) > 0.999  # rounded once; float32 sums on the edge between two neighbours may fall either way


@pytest.mark.parametrize("layout", ["scan", "remat", "unstacked"])
def test_an_adapted_forward_pass_is_that_of_merged_weights(layout):
    params, adapters = realistic_params(CONFIG), random_adapters(size=0.1)
    adapted = lora.adapt(params, adapters, ALPHA, RANK)
    run = jax.jit(functools.partial(logits, options=Options(remat="full" if layout == "remat" else "none")))
    got = run(unstack(adapted) if layout == "unstacked" else adapted, *batch())
    expected = run(by_hand(params, adapters, np.float32), *batch())
    assert_close(real(got), real(expected))
    assert np.abs(real(expected) - real(run(params, *batch()))).max() > np.std(real(expected))  # the adapters matter


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gradients_follow_from_those_of_the_merged_weights(remat):
    """∂L/∂B = s · ∂L/∂W · Aᵀ and ∂L/∂A = s · Bᵀ · ∂L/∂W, in float64 from the full gradient at the merged weights."""
    params, adapters = realistic_params(CONFIG), random_adapters()
    of_weights = jax.jit(jax.grad(loss))(by_hand(params, adapters, np.float32), *batch())["layers"]
    got = jax.jit(jax.grad(functools.partial(adapted_loss, options=Options(remat=remat))))(adapters, params, *batch())
    scale = ALPHA / RANK
    for room, name in MATRICES:
        pair, gradient = adapters["layers"][room][name], got["layers"][room][name]
        assert gradient["down"].dtype == gradient["up"].dtype == jnp.float32
        for layer in range(CONFIG.num_layers):
            b, a = pair["up"][layer].reshape(-1, RANK), pair["down"][layer].reshape(RANK, -1)
            of_weight = np.asarray(of_weights[room][name][layer], np.float64).reshape(len(b), -1)
            assert_near(gradient["up"][layer].reshape(b.shape), scale * of_weight @ a.T)
            assert_near(gradient["down"][layer].reshape(a.shape), scale * b.T @ of_weight)


def test_in_bfloat16_the_error_is_that_of_the_compute_dtype():
    params, adapters = realistic_params(CONFIG), random_adapters(size=0.1)
    frozen = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), frozen)
    adapted = functools.partial(adapted_loss, options=Options(jnp.bfloat16))
    expected, expected_gradients = jax.jit(jax.value_and_grad(adapted_loss))(adapters, exact, *batch())
    got, gradients = jax.jit(jax.value_and_grad(adapted))(adapters, frozen, *batch())
    merged = jax.jit(functools.partial(loss, options=Options(jnp.bfloat16)))(
        lora.merge(frozen, adapters, ALPHA, RANK), *batch()
    )
    assert abs(got - expected) <= max(2 * abs(merged - expected), 2e-3 * expected)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: assert_near(a, b, 0.05), gradients, expected_gradients)


def placement(mesh, specs):
    return jax.tree.map(lambda spec: param_sharding(mesh, spec), specs, is_leaf=is_spec)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (1, 2, 4)], ids=str)
def test_losses_gradients_and_merged_weights_are_those_of_one_device(shape):
    mesh = make_mesh(MeshShape(*shape))
    params, adapters = realistic_params(CONFIG), random_adapters()
    at, base_at = placement(mesh, lora.adapter_specs(CONFIG, RANK)), placement(mesh, param_specs(CONFIG, True))
    options = Options(remat="full", spec=partition_spec)
    step = jax.jit(jax.value_and_grad(functools.partial(adapted_loss, options=options)), out_shardings=(None, at))
    with jax.set_mesh(mesh):
        placed, base = jax.device_put(adapters, at), jax.device_put(params, base_at)
        got, gradients = step(placed, base, *jax.device_put(batch(), batch_sharding(mesh)))
        merged = jax.jit(lora.merge, static_argnums=(2, 3), out_shardings=base_at)(base, placed, ALPHA, RANK)
    with jax.default_device(jax.devices()[0]):
        expected, expected_gradients = jax.jit(jax.value_and_grad(adapted_loss))(adapters, params, *batch())
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    jax.tree.map(assert_near, jax.device_get(gradients), jax.device_get(expected_gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), merged, by_hand(params, adapters, np.float32)
    )


def test_initial_adapters_do_not_depend_on_the_mesh():
    mesh = make_mesh(MeshShape(2, 2, 2))
    place = functools.partial(param_sharding, mesh)
    sharded = lora.init_adapters(CONFIG, RANK, seed=3, sharding=place)
    jax.tree.map(np.testing.assert_array_equal, sharded, lora.init_adapters(CONFIG, RANK, seed=3))
    abstract = lora.abstract_adapters(CONFIG, RANK, sharding=place)
    assert all(
        jax.tree.leaves(jax.tree.map(lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim), sharded, abstract))
    )
    assert sharded["layers"]["attention"]["o_kernel"]["up"].addressable_shards[0].data.shape == (2, 16, RANK)


def test_no_gradient_of_a_whole_weight_is_made():
    """The memory of the compiled gradients, of a model whose weights outweigh its activations: 7.7 times less."""
    config = tiny_config(num_layers=16, hidden_size=256, head_dim=64, intermediate_size=1024)
    abstract, adapters = abstract_params(config, jnp.float32, stacked=True), lora.abstract_adapters(config, RANK)
    ids = [jax.ShapeDtypeStruct((2, 32), jnp.int32)] * 3
    options = Options(remat="full")

    def memory(function, *args) -> int:
        about = jax.jit(jax.grad(function)).lower(*args, *ids).compile().memory_analysis()
        return about.temp_size_in_bytes + about.output_size_in_bytes

    def of_adapters(adapters, params, *batch):
        return loss(lora.adapt(params, adapters, ALPHA, RANK), *batch, options, config)

    def of_all(params, *batch):
        return loss(params, *batch, options, config)

    layers = sum(4 * np.prod(x.shape) for x in jax.tree.leaves(abstract["layers"]))
    full, adapted = memory(of_all, abstract), memory(of_adapters, adapters, abstract)
    assert full > layers
    assert adapted < layers / 6  # the better part of it is a copy of one layer
