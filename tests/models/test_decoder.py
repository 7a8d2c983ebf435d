"""What the decoder's output depends on, and what it must not depend on. float32 on one device, unless said.

Tolerances are fractions of the standard deviation of what is compared.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.models.config import Rope
from rrm_jax.models.decoder import Options, decode, forward, prefill, unembed
from rrm_jax.models.params import stack
from rrm_jax.testing import realistic_params, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = tiny_config()
WINDOWED = tiny_config(sliding_window=4, window_layers=(False, True))
DYNAMIC = tiny_config(max_positions=8, rope=Rope(kind="dynamic", factor=3.0))
EOS = 3


@functools.cache
def params_of(config, stacked=False):
    return jax.tree.map(jnp.asarray, realistic_params(config, stacked=stacked))


run = jax.jit(forward, static_argnums=(0, 5))
start = jax.jit(prefill, static_argnums=(0, 4))


def batch_of(*rows: list[list[int]], time: int, pad: int = 0):
    """Tokens, positions and segments [B, time] of rows that each pack one or more sequences."""
    tokens = np.full((len(rows), time), pad, np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for b, sequences in enumerate(rows):
        start = 0
        for label, sequence in enumerate(sequences, start=1):
            here = slice(start, start := start + len(sequence))
            tokens[b, here], positions[b, here], segments[b, here] = sequence, np.arange(len(sequence)), label
    return tokens, positions, segments


def sequence(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, size=length).tolist()


def assert_close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.abs(a - b).max() <= tolerance * b.std()


def influence(config, positions, segments) -> np.ndarray:
    """|d (a projection of hidden[t]) / d embedding of token s|, [T, S], by the gradient; the tokens all differ."""
    time = len(positions)
    tokens = jnp.arange(time)[None]
    projection = np.random.default_rng(0).normal(size=config.hidden_size).astype(np.float32)
    params = params_of(config)

    def projected(table):
        hidden, _ = forward(config, params | {"embedding": table}, tokens, positions[None], segments[None])
        return hidden[0] @ projection

    return np.linalg.norm(jax.jit(jax.jacrev(projected))(params["embedding"])[:, :time], axis=-1)


def test_a_token_depends_on_itself_and_all_before_it_and_nothing_after():
    time = np.arange(12)
    depends = influence(CONFIG, time, np.ones_like(time))
    past = np.tril(np.ones((12, 12), bool))
    assert (depends[~past] == 0).all()
    assert depends[past].min() > 1e-4


def test_a_packed_sequence_depends_on_itself_only():
    positions = np.array([0, 1, 2, 3, 0, 1, 2, 0, 0, 0])
    segments = np.array([1, 1, 1, 1, 2, 2, 2, 0, 0, 0])
    depends = influence(CONFIG, positions, segments)
    real = segments > 0
    expected = np.tril(segments[:, None] == segments[None, :])
    assert ((depends > 0) == expected)[real].all()
    assert (depends[np.ix_(real, ~real)] == 0).all()


def test_a_windowed_layer_sees_its_window_and_no_further():
    one = tiny_config(num_layers=1, sliding_window=4, window_layers=(True,))
    distance = np.arange(12)[:, None] - np.arange(12)[None, :]
    depends = influence(one, np.arange(12), np.ones(12, int))
    assert ((depends > 0) == ((distance >= 0) & (distance < 4))).all()
    # A full layer below the windowed one brings the rest back.
    assert (influence(WINDOWED, np.arange(12), np.ones(12, int))[distance >= 0] > 0).all()


@pytest.mark.parametrize("config", [CONFIG, WINDOWED, DYNAMIC], ids=["default", "windowed", "dynamic"])
def test_packed_and_padded_rows_equal_each_sequence_by_itself(config):
    a, b, c, d = sequence(9, 1), sequence(5, 2), sequence(12, 3), sequence(10, 4)
    packed = batch_of([a, b], [c], [b, d], time=16, pad=EOS)
    hidden, _ = run(config, params_of(config), *packed, Options())
    for seq, got in ((a, hidden[0, :9]), (b, hidden[0, 9:14]), (c, hidden[1, :12]), (d, hidden[2, 5:15])):
        alone, _ = run(config, params_of(config), *batch_of([seq], time=len(seq)), Options())
        assert_close(got, alone[0])


def test_whatever_the_padding_holds_changes_nothing():
    seq = sequence(6)
    outputs = []
    for pad in (0, EOS, 61):
        tokens, positions, segments = batch_of([seq], time=10, pad=pad)
        positions[segments == 0] = pad  # nor do its positions matter
        outputs.append(np.asarray(run(CONFIG, params_of(CONFIG), tokens, positions, segments, Options())[0][0, :6]))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_a_token_that_equals_the_padding_is_seen():
    with_eos, without = sequence(8), sequence(8)
    with_eos[3], without[3] = EOS, EOS + 1
    a, b = (
        run(CONFIG, params_of(CONFIG), *batch_of([seq], time=10, pad=EOS), Options())[0][0, :8]
        for seq in (with_eos, without)
    )
    np.testing.assert_array_equal(a[:3], b[:3])
    assert (np.abs(a - b)[3:].max(axis=-1) > 0.1 * b.std()).all()


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["default", "windowed"])
def test_scanned_layers_equal_unrolled_ones(config):
    batch = batch_of([sequence(9, 1), sequence(5, 2)], [sequence(12, 3)], time=16)
    unrolled, kvs = run(config, params_of(config), *batch, Options())
    scanned, none = run(config, params_of(config, stacked=True), *batch, Options())
    assert_close(scanned, unrolled)
    assert none is None
    assert [(kv.k.shape, kv.v.shape) for kv in kvs] == [((2, 2, 16, 8), (2, 2, 16, 8))] * 2


def next_token_loss(config, options, params, tokens, positions, segments):
    hidden, _ = forward(config, params, tokens, positions, segments, options)
    logprobs = jax.nn.log_softmax(unembed(config, params, hidden[:, :-1]))
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    weight = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -jnp.sum(chosen * weight) / jnp.sum(weight)


def test_remat_gives_the_same_gradients_in_less_memory():
    config = tiny_config(num_layers=4)
    params = params_of(config, stacked=True)
    batch = batch_of(*([sequence(40, seed), sequence(20, seed + 9)] for seed in range(4)), time=64)
    results, temporary = {}, {}
    for remat in ("none", "dots", "full"):
        step = jax.jit(jax.value_and_grad(functools.partial(next_token_loss, config, Options(remat=remat))))
        compiled = step.lower(params, *batch).compile()
        results[remat] = compiled(params, *batch)
        temporary[remat] = compiled.memory_analysis().temp_size_in_bytes
    for remat in ("dots", "full"):
        jax.tree.map(functools.partial(assert_close, tolerance=1e-5), results[remat][1], results["none"][1])
        np.testing.assert_allclose(results[remat][0], results["none"][0], rtol=1e-6)
    assert temporary["full"] < temporary["dots"] < temporary["none"]


def test_bfloat16_is_close_to_float32_and_is_bfloat16():
    batch = batch_of([sequence(12, 1)], [sequence(16, 2)], time=16)
    exact, _ = run(CONFIG, params_of(CONFIG), *batch, Options())
    rough, kvs = run(CONFIG, params_of(CONFIG), *batch, Options(dtype=jnp.bfloat16))
    assert rough.dtype == kvs[0][0].dtype == jnp.bfloat16
    error = np.abs(np.asarray(rough, np.float32) - exact)[batch[2] > 0] / np.asarray(exact).std()
    assert 1e-4 < error.mean() < 0.02
    assert unembed(CONFIG, params_of(CONFIG), rough).dtype == jnp.float32


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """The shapes of everything that a jaxpr computes, in its inner jaxprs too."""
    shapes = {v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "shape")}
    for eqn in jaxpr.eqns:
        for parameter in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                shapes |= shapes_in(inner)
    return shapes


def test_logits_exist_only_where_they_are_asked_for():
    config = tiny_config(vocab_size=997)
    for stacked in (False, True):
        params = params_of(config, stacked)
        batch = batch_of([sequence(16)], time=16)

        def hidden(params, *batch):
            return forward(config, params, *batch)[0]

        of_forward = shapes_in(jax.make_jaxpr(hidden)(params, *batch).jaxpr)
        assert (1, 16, 32) in of_forward
        assert {shape for shape in of_forward if 997 in shape} <= {(997, 32)}
        at_one = jax.make_jaxpr(lambda p, *b: unembed(config, p, hidden(p, *b)[:, 5]))(params, *batch)
        assert {shape for shape in shapes_in(at_one.jaxpr) if 997 in shape} <= {(997, 32), (1, 997), (997, 1)}


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["default", "windowed"])
def test_prefill_and_decode_of_ragged_prompts_equal_teacher_forcing(config):
    rows = [sequence(14, 1), sequence(9, 2), sequence(11, 3)]
    prompt_lengths, time, steps = np.array([8, 3, 5], np.int32), 8, 6
    prompts = batch_of(*([row[:length]] for row, length in zip(rows, prompt_lengths, strict=True)), time=time, pad=EOS)
    hidden, cache = start(config, params_of(config), prompts[0], prompt_lengths, time + steps)
    one = jax.jit(decode, static_argnums=0)
    seen = [hidden]
    for i in range(steps):
        token = np.array([row[length + i] for row, length in zip(rows, prompt_lengths, strict=True)], np.int32)
        hidden, cache = one(config, params_of(config), cache, token)
        seen.append(hidden)
    forced, _ = run(config, params_of(config), *batch_of(*([row] for row in rows), time=14), Options())
    for b, length in enumerate(prompt_lengths):
        assert_close(np.stack(seen)[:, b], forced[b, length - 1 : length + steps])


def test_decoding_updates_the_donated_cache_in_place():
    config = tiny_config(num_layers=4)
    params = params_of(config)
    _, cache = start(config, params, np.ones((4, 8), np.int32), np.full(4, 8, np.int32), 512)
    step = jax.jit(decode, static_argnums=0, donate_argnums=2)
    ones = jnp.ones(4, jnp.int32)
    memory = step.lower(config, params, cache, ones).compile().memory_analysis()
    cache_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / 4  # no copy of a layer's cache either


def without(params, path, index=()):
    """The parameters with one part neutral: zero, or one for the scale of a norm."""
    changed = jax.tree.map(lambda x: x, params)
    *parents, name = path
    node = functools.reduce(lambda tree, key: tree[key], parents, changed)
    node[name] = node[name].at[index].set(1.0 if "norm" in name else 0.0)
    return changed


def test_with_realistic_weights_every_part_matters():
    """Else tests on random weights pass whatever the layers do: the usual 0.02 makes them nearly no-ops."""
    params = params_of(CONFIG)
    batch = batch_of([sequence(16, 1)], [sequence(16, 2)], time=16)

    @jax.jit
    def logits(params):
        return unembed(CONFIG, params, forward(CONFIG, params, *batch)[0])

    exact = np.asarray(logits(params))
    parts = [(("embedding",), ()), (("final_norm",), ()), (("lm_head",), ())]
    for layer in range(CONFIG.num_layers):
        block = ("layers", layer)
        names = [f"{letter}_kernel" for letter in "qkvo"] + [f"{letter}_bias" for letter in "qkv"]
        parts += [((*block, "attention", name), ()) for name in names]
        parts += [((*block, "attention", "q_kernel"), (head,)) for head in range(CONFIG.num_heads)]
        parts += [((*block, "attention", "o_kernel"), (slice(None), head)) for head in range(CONFIG.num_heads)]
        parts += [((*block, "attention", f"{x}_kernel"), (head,)) for x in "kv" for head in range(CONFIG.num_kv_heads)]
        parts += [((*block, "mlp", name), ()) for name in ("gate_kernel", "up_kernel", "down_kernel")]
        parts += [((*block, name), ()) for name in ("attention_norm", "mlp_norm")]
    change = {part: np.abs(np.asarray(logits(without(params, *part))) - exact).mean() / exact.std() for part in parts}
    weakest = min(change, key=change.__getitem__)
    assert change[weakest] > 1e-2, (weakest, change[weakest])


def test_unknown_choices_and_stacked_decoding_are_refused():
    with pytest.raises(RrmError, match=r"remat 'some'.*none, dots, full"):
        Options(remat="some")
    with pytest.raises(RrmError, match=r"attention 'flash'.*xla, cudnn, splash"):
        Options(attention="flash")
    params = params_of(CONFIG)
    one = jnp.ones(1, jnp.int32)
    _, cache = jax.eval_shape(functools.partial(prefill, CONFIG, capacity=8), params, one[None], one)
    with pytest.raises(ValueError, match="unstack"):
        jax.eval_shape(functools.partial(decode, CONFIG), stack(params), cache, one)


def test_options_are_hashable_and_compare_by_value():
    assert dataclasses.replace(Options(), remat="full") == Options(remat="full")
    assert hash(Options(remat="full")) == hash(Options(remat="full"))
