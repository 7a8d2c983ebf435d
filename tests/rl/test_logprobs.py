"""Completion scores against a full softmax, and what they must not read or hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.models.decoder import Options, forward, unembed
from rrm_jax.models.params import is_spec, param_specs
from rrm_jax.parallel.mesh import MeshShape, make_mesh, param_sharding, partition_spec
from rrm_jax.rl import logprobs
from rrm_jax.rl.logprobs import completion_scores, token_scores
from rrm_jax.testing import realistic_params, tiny_config
from rrm_jax.training.batches import Example, micro_batches
from rrm_jax.training.config import PackConfig

CONFIG = tiny_config()
PARAMS = jax.tree.map(jnp.asarray, realistic_params(CONFIG))


def _examples() -> list[Example]:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (7, 2), (1, 8), (4, 1), (2, 2)]
    made = [Example(*(tuple(map(int, rng.integers(0, 64, size))) for size in shape)) for shape in shapes]
    # More completions of the first prompt and of the last, as a group has them.
    return [*made, *(Example(made[at].prompt_ids, made[own].completion_ids) for at, own in ((0, 1), (0, 2), (4, 3)))]


def _pack(examples, row_tokens=8, micro_batch_tokens=10_000, ways=1, shares=True):
    how = PackConfig(row_tokens=row_tokens, micro_batch_tokens=micro_batch_tokens)
    return micro_batches(examples, range(len(examples)), how, ways, shares)


def _scored(batches, params=PARAMS, temperature=1.0, options=Options(), config=CONFIG):
    """(log-probabilities, entropies) of each example, by its place."""
    score = jax.jit(lambda p, s: completion_scores(config, p, s, temperature, options))
    found = {}
    for batch in batches:
        scores = score(params, batch.sequences())
        for (at, logprob), (_, entropy) in zip(
            batch.apart(np.asarray(scores.logprob)), batch.apart(np.asarray(scores.entropy)), strict=True
        ):
            found[at] = logprob, entropy
    return [found[at] for at in sorted(found)]


def _expected(example: Example, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and entropies of one example by itself, through the whole [T, V] softmax in float64."""
    tokens = jnp.asarray([example.prompt_ids + example.completion_ids])
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, _ = forward(CONFIG, PARAMS, tokens, positions, jnp.ones_like(tokens))
    logits = np.asarray(unembed(CONFIG, PARAMS, hidden)[0], np.float64) / temperature
    highest = logits.max(-1, keepdims=True)
    log_p = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    at = np.arange(len(example.prompt_ids) - 1, example.length - 1)
    return log_p[at, list(example.completion_ids)], -(np.exp(log_p) * log_p).sum(-1)[at]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("row_tokens", [8, 16, 64])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("budget", [None, 4 * 64 * 4 * 3])
def test_scores_equal_the_full_softmax(temperature, row_tokens, shares, budget, monkeypatch):
    """One example a row, several, and all in one, with prompts of their own and shared; float32, 2e-5."""
    if budget:  # a few completion positions at a time: the length is not a multiple
        monkeypatch.setattr(logprobs, "LOGITS_BYTES", budget)
    examples = _examples()
    batches = _pack(examples, row_tokens, shares=shares)
    for example, (logprob, entropy) in zip(examples, _scored(batches, temperature=temperature), strict=True):
        expected = _expected(example, temperature)
        np.testing.assert_allclose(logprob, expected[0], atol=2e-5)
        np.testing.assert_allclose(entropy, expected[1], atol=2e-5)
    assert sum(batch.sequences().mask.sum() for batch in batches) == sum(len(e.completion_ids) for e in examples)


def _head(seed=0, rows=3, length=7, width=5, vocabulary=11):
    rng = np.random.default_rng(seed)
    hidden, table = rng.normal(size=(rows, length, width)), rng.normal(size=(vocabulary, width))
    return hidden, table, rng.integers(0, vocabulary, (rows, length)), rng.normal(size=(2, rows, length))


def _weighed(hidden, table, targets, weights, temperature):
    """Σ weight × log-probability + Σ weight × entropy, by NumPy in float64."""
    logits = hidden @ table.T / temperature
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return (weights[0] * own).sum() - (weights[1] * (np.exp(log_p) * log_p).sum(-1)).sum()


@pytest.mark.parametrize("budget", [None, 4 * 3 * 11 * 3])
def test_gradients_equal_finite_differences(budget, monkeypatch):
    """Of the log-probability and of the entropy, by both arguments; finite differences of NumPy's float64, 1e-5."""
    if budget:
        monkeypatch.setattr(logprobs, "LOGITS_BYTES", budget)
    hidden, table, targets, weights = _head()

    def loss(hidden, table):
        scores = token_scores(hidden, table, jnp.asarray(targets), 0.7)
        return jnp.sum(weights[0] * scores.logprob) + jnp.sum(weights[1] * scores.entropy)

    of_hidden, of_table = jax.grad(loss, (0, 1))(*(jnp.asarray(x, jnp.float32) for x in (hidden, table)))
    np.testing.assert_allclose(
        loss(jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32)),
        _weighed(hidden, table, targets, weights, 0.7),
        rtol=1e-5,
    )
    for which, found in ((0, of_hidden), (1, of_table)):
        for at in np.ndindex(found.shape):
            ends = []
            for sign in (1, -1):
                moved = [hidden.copy(), table.copy()]
                moved[which][at] += sign * 1e-5
                ends.append(_weighed(*moved, targets, weights, 0.7))
            np.testing.assert_allclose(found[at], (ends[0] - ends[1]) / 2e-5, atol=1e-5, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_mesh_gives_the_same_scores_and_gradients(shape, tied, monkeypatch):
    """float32: sums are taken in another order, 1e-4 of the largest gradient of a parameter."""
    monkeypatch.setattr(logprobs, "LOGITS_BYTES", 4 * 32 * 3)
    config = tiny_config(tied_embeddings=tied)
    host = realistic_params(config)
    examples = _examples() * 3
    (batch,) = _pack(examples, 16, ways=8)
    weights = np.random.default_rng(1).normal(size=(2, *batch.sequences().mask.shape)).astype(np.float32)

    def loss(params, sequences, options):
        scores = completion_scores(config, params, sequences, 0.7, options)
        return jnp.sum((weights[0] * scores.logprob + weights[1] * scores.entropy) * sequences.mask)

    expected = jax.jit(jax.value_and_grad(lambda p, s: loss(p, s, Options())))(host, batch.sequences())
    mesh = make_mesh(MeshShape(*shape))
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, param_sharding(mesh, spec)), host, param_specs(config, True), is_leaf=is_spec
    )
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(lambda p, s: loss(p, s, Options(spec=partition_spec))))
        found = run(placed, batch.sequences())
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b)))), found[1], expected[1]
    )


@pytest.mark.thorough
@pytest.mark.parametrize("window", [None, 4])
def test_shared_prompts_give_the_same_gradient(window):
    """float32, 1e-4 of the largest gradient of a parameter; with a window that ends inside prompts, too."""
    config = CONFIG if window is None else tiny_config(sliding_window=window, window_layers=(False, True))
    examples = _examples()
    value = np.random.default_rng(2).normal(size=(2, sum(len(e.completion_ids) for e in examples)))
    ends = np.cumsum([len(e.completion_ids) for e in examples])
    weights = [np.split(one, ends[:-1]) for one in value]

    def gradient(shares):
        (batch,) = _pack(examples, 64, shares=shares)
        sequences = batch.sequences()
        of_logprob, of_entropy = (batch.along(one) for one in weights)

        def loss(params):
            scores = completion_scores(config, params, sequences, 0.7)
            return jnp.sum(of_logprob * scores.logprob + of_entropy * scores.entropy)

        return jax.jit(jax.grad(loss))(PARAMS)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b)))),
        gradient(True),
        gradient(False),
    )


def test_padding_ids_are_never_read():
    """Whatever stands in the padding, and whatever id the completion holds (an end or pad id in its middle)."""
    (batch,) = _pack(_examples(), 16)
    clean = batch.sequences()
    dirty_tokens = np.where(clean.segments == 0, 63, clean.tokens)
    dirty = clean._replace(tokens=dirty_tokens, targets=np.where(clean.mask == 0, 63, clean.targets))
    score = jax.jit(lambda s: completion_scores(CONFIG, PARAMS, s, 1.0).logprob * s.mask)
    np.testing.assert_array_equal(score(clean), score(dirty))
    pad = 0  # an id that is also what the arrays are filled with
    example = Example((5, 6), (7, pad, 8, pad))
    (batch,) = _pack([example])
    assert batch.sequences().mask.sum() == 4
    np.testing.assert_allclose(_scored([batch])[0][0], _expected(example, 1.0)[0], atol=2e-5)


def test_bfloat16_stays_near():
    """Compute in bfloat16: log-probabilities of order 5 within 0.3, which is bfloat16's own error in these logits."""
    examples = _examples()
    batches = _pack(examples, 16)
    narrow = _scored(batches, options=Options(dtype=jnp.bfloat16))
    for (logprob, _), (expected, _) in zip(narrow, _scored(batches), strict=True):
        np.testing.assert_allclose(logprob, expected, atol=0.5)


def test_no_full_logits_are_materialised(monkeypatch):
    """The gradient needs less than half of one [B, C, V] float32 array (here 410 MB); the naive one several."""
    monkeypatch.setattr(logprobs, "LOGITS_BYTES", 16 * 2**20)
    config = tiny_config(vocab_size=50_000, num_layers=1)
    (batch,) = _pack([Example((1,), (2,) * 511)] * 4, 512)
    sequences = batch.sequences()
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), realistic_params(config))

    def loss(params, sequences):
        scores = completion_scores(config, params, sequences, 1.0, Options(remat="full"))
        return jnp.sum(scores.logprob) + jnp.sum(scores.entropy)

    compiled = jax.jit(jax.grad(loss)).lower(params, sequences).compile()
    rows, width = sequences.mask.shape
    assert (rows, width) == (4, 512)
    assert compiled.memory_analysis().temp_size_in_bytes < rows * width * config.vocab_size * 4 / 2
