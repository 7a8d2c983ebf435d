"""Completion scores against a full softmax, and what they must not read or hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.models.decoder import Options, forward, unembed
from rrm_jax.rl import logprobs
from rrm_jax.rl.logprobs import completion_scores
from rrm_jax.testing import realistic_params, tiny_config
from rrm_jax.training.batches import Row, build_sequences

CONFIG = tiny_config()
PARAMS = jax.tree.map(jnp.asarray, realistic_params(CONFIG))


def _rows() -> list[Row]:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (7, 2), (1, 8), (4, 1)]
    return [Row(*(tuple(map(int, rng.integers(0, 64, size))) for size in shape)) for shape in shapes]


def _expected(row: Row, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and entropies of one row by itself, through the whole [T, V] softmax in float64."""
    tokens = jnp.asarray([row.prompt_ids + row.completion_ids])
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, _ = forward(CONFIG, PARAMS, tokens, positions, jnp.ones_like(tokens))
    logits = np.asarray(unembed(CONFIG, PARAMS, hidden)[0], np.float64) / temperature
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    at = np.arange(len(row.prompt_ids) - 1, row.length - 1)
    return log_p[at, list(row.completion_ids)], -(np.exp(log_p) * log_p).sum(-1)[at]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [None, 4 * 64 * 4 * 3])
def test_scores_equal_the_full_softmax(temperature, budget, monkeypatch):
    if budget:  # three completion positions at a time: the length is not a multiple
        monkeypatch.setattr(logprobs, "_LOGITS_BYTES", budget)
    rows = _rows()
    sequences = build_sequences(rows, 4, 8)
    scores = jax.jit(lambda p, s: completion_scores(CONFIG, p, s, temperature))(PARAMS, sequences)
    for at, row in enumerate(rows):
        logprob, entropy = _expected(row, temperature)
        count = len(row.completion_ids)
        np.testing.assert_allclose(scores.logprob[at, :count], logprob, atol=2e-5)
        np.testing.assert_allclose(scores.entropy[at, :count], entropy, atol=2e-5)
    assert float(sequences.mask.sum()) == sum(len(row.completion_ids) for row in rows)


def test_chunks_give_the_same_gradient(monkeypatch):
    sequences = build_sequences(_rows(), 4, 8)

    def loss(params):
        return jnp.sum(completion_scores(CONFIG, params, sequences, 0.7).logprob * sequences.mask)

    whole = jax.grad(loss)(PARAMS)
    monkeypatch.setattr(logprobs, "_LOGITS_BYTES", 4 * 64 * 4 * 3)
    chunked = jax.grad(loss)(PARAMS)
    # float32; sums over chunks are taken in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), whole, chunked)


def test_padding_ids_are_never_read():
    """Whatever stands in the padding, and whatever id the completion holds (an end or pad id in its middle)."""
    rows = _rows()
    clean = build_sequences(rows, 4, 8)
    dirty_tokens = np.where(clean.segments == 0, 63, clean.tokens)
    dirty = clean._replace(tokens=dirty_tokens, targets=np.where(clean.mask == 0, 63, clean.targets))
    score = jax.jit(lambda s: completion_scores(CONFIG, PARAMS, s, 1.0).logprob * s.mask)
    np.testing.assert_array_equal(score(clean), score(dirty))
    pad = 0  # an id that is also what build_sequences fills with
    row = Row((5, 6), (7, pad, 8, pad))
    sequences = build_sequences([row], 1, 8)
    assert sequences.mask.sum() == 4
    logprob, _ = _expected(row, 1.0)
    np.testing.assert_allclose(score(sequences)[0, :4], logprob, atol=2e-5)


def test_no_full_logits_are_materialised():
    """The gradient needs less than half of one [B, C, V] float32 array (here 410 MB); the naive one several."""
    config = tiny_config(vocab_size=50_000, num_layers=1)
    rows, width = 4, 512
    sequences = build_sequences([Row((1,), (2,) * width)] * rows, rows, 64)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), realistic_params(config))

    def loss(params, sequences):
        return jnp.sum(completion_scores(config, params, sequences, 1.0, Options(remat="full")).logprob)

    monkey = logprobs._LOGITS_BYTES
    logprobs._LOGITS_BYTES = 16 * 2**20
    try:
        compiled = jax.jit(jax.grad(loss)).lower(params, sequences).compile()
    finally:
        logprobs._LOGITS_BYTES = monkey
    assert compiled.memory_analysis().temp_size_in_bytes < rows * width * config.vocab_size * 4 / 2
