"""The draw itself, against exact softmax and a reference that sorts. float32 logits, float64 references."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rrm_jax.sampling import distribution, truncation
from rrm_jax.sampling.distribution import base_keys, draw, id_hash


def _keys(count: int, seed: int = 0):
    rows = np.arange(count, dtype=np.uint32)
    return base_keys(np.full(count, seed, np.uint32), rows, rows)


def _settings(batch: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return (
        np.full(batch, temperature, np.float32),
        np.full(batch, top_k, np.int32),
        np.full(batch, top_p, np.float32),
        np.full(batch, min_p, np.float32),
    )


def _reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> np.ndarray:
    """Probabilities of one row by sorting, float64: the textbook order temperature, top-k, top-p, min-p."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    scaled = logits.astype(np.float64)[order] / temperature
    weights = np.exp(scaled - scaled[0])
    if top_k:
        weights[top_k:] = 0
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    weights[(before >= top_p) & (top_p < 1)] = 0
    weights[weights < min_p * weights[0]] = 0
    probabilities = np.zeros(len(logits))
    probabilities[order] = weights / weights.sum()
    return probabilities


_draw = jax.jit(draw)


@jax.jit
def _many(logits_V, keys_IB, settings):
    """Draws I × B tokens of one distribution, B at a time."""

    def some(keys_B):
        return draw(jnp.broadcast_to(logits_V, (keys_B.shape[0], *logits_V.shape)), keys_B, *settings)

    return jax.lax.map(some, keys_IB)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.6, 0, 1.0, 0.0),
        (1.0, 40, 1.0, 0.0),
        (0.8, 0, 0.7, 0.0),
        (1.3, 300, 0.9, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.7, 200, 0.9, 0.02),
    ],
)
@pytest.mark.parametrize("vocab", [1000, 4096])  # with and without padding to blocks
def test_frequencies_are_those_of_the_exact_distribution(vocab, temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(1).normal(size=vocab).astype(np.float32) * 2
    expected = _reference(logits, temperature, top_k, top_p, min_p)
    settings = _settings(1024, temperature, top_k, top_p, min_p)
    drawn = _many(jnp.asarray(logits), _keys(20_480).reshape(20, 1024), settings)
    tokens = np.asarray(drawn.token).ravel()
    assert np.all(expected[tokens] > 0)
    counts = np.bincount(tokens, minlength=vocab)
    common = expected * tokens.size >= 5
    observed = np.append(counts[common], counts[~common & (expected > 0)].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * tokens.size
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
    assert stats.chisquare(observed, wanted).pvalue > 1e-3
    np.testing.assert_allclose(np.asarray(drawn.logprob).ravel(), np.log(expected[tokens]), atol=2e-5)


def test_frequencies_over_a_real_vocabulary():
    vocab = 151_936
    rng = np.random.default_rng(2)
    logits = rng.normal(size=vocab).astype(np.float32) * 2.5
    expected = _reference(logits, 1.0, 0, 1.0)
    drawn = _many(jnp.asarray(logits), _keys(2048).reshape(64, 32), _settings(32))
    tokens = np.asarray(drawn.token).ravel()
    groups = rng.integers(0, 40, vocab)  # scattered over the vocabulary, so that within-block errors show
    wanted = np.bincount(groups, expected, 40) * tokens.size
    assert stats.chisquare(np.bincount(groups[tokens], minlength=40), wanted).pvalue > 1e-3
    eighths = np.arange(vocab) * 8 // vocab  # and in order, so that errors between blocks show
    wanted = np.bincount(eighths, expected, 8) * tokens.size
    assert stats.chisquare(np.bincount(eighths[tokens], minlength=8), wanted).pvalue > 1e-3
    np.testing.assert_allclose(np.asarray(drawn.logprob).ravel(), np.log(expected[tokens]), atol=1e-4)


@jax.jit
def _weights(logits_BV, temperature_B):
    """What `lowest_kept` compares, [B, N, W]."""
    top_B = jnp.max(logits_BV, axis=-1, keepdims=True)
    return distribution._blocks(jnp.exp((logits_BV - top_B) / jnp.asarray(temperature_B)[:, None]), fill=0.0)


@jax.jit
def _kept_BV(logits_BV, temperature_B, top_k_B, top_p_B):
    weights = _weights(logits_BV, temperature_B)
    lowest_B = truncation.lowest_kept(weights, weights.max(-1), weights.sum((1, 2)), top_k_B, top_p_B)
    kept = weights >= lowest_B[:, None, None]
    return kept.reshape(kept.shape[0], -1)[:, : logits_BV.shape[1]]


@pytest.mark.parametrize("vocab", [50, 1000, 20_000])
def test_the_kept_set_is_that_of_sorting(vocab):
    rng = np.random.default_rng(3)
    batch = 64
    logits = (rng.normal(size=(batch, vocab)) * rng.uniform(0.1, 6, (batch, 1))).astype(np.float32)
    temperature = rng.uniform(0.3, 2, batch).astype(np.float32)
    top_k = rng.integers(0, vocab, batch, dtype=np.int32)
    top_p = rng.uniform(0.01, 1, batch).astype(np.float32)
    top_k[:8], top_p[8:16], top_p[16:20], top_k[20:24] = 0, 1, 1e-6, 1
    kept = np.asarray(_kept_BV(logits, temperature, top_k, top_p))
    for row in range(batch):
        expected = _reference(logits[row], float(temperature[row]), int(top_k[row]), float(top_p[row])) > 0
        # Over 20,000 tokens the rounding of float32 sums may decide about one.
        assert np.sum(kept[row] != expected) <= (vocab > 1000), f"row {row}"


@pytest.mark.parametrize("vocab", [50, 1000])
def test_the_draw_is_from_the_kept_set_renormalised(vocab):
    rng = np.random.default_rng(6)
    batch = 64
    logits = (rng.normal(size=(batch, vocab)) * rng.uniform(0.1, 6, (batch, 1))).astype(np.float32)
    settings = (
        rng.uniform(0.3, 2, batch).astype(np.float32),
        rng.integers(0, vocab + 10, batch, dtype=np.int32),
        rng.uniform(0.3, 1, batch).astype(np.float32),
        (rng.uniform(0, 1, batch) ** 4).astype(np.float32),
    )
    settings[1][::3], settings[2][1::3], settings[3][:8] = 0, 1, 0
    for seed in range(8):
        drawn = _draw(logits, _keys(batch, seed), *settings)
        for row in range(batch):
            expected = _reference(
                logits[row], *(float(x[row]) if x.dtype != np.int32 else int(x[row]) for x in settings)
            )
            token = int(drawn.token[row])
            np.testing.assert_allclose(drawn.logprob[row], np.log(expected[token]), atol=2e-5, err_msg=f"row {row}")


def _threshold_paths(weights, target, low, worth):
    """What each way to the threshold finds for one row: ((floor, found), (floor, passes))."""
    heaviest = truncation.among_heaviest(weights, weights.max(-1), target, worth)
    whole = truncation.at_least(weights, low, worth)
    bracket = truncation.narrow(weights, jnp.array([True]), target, low, whole, worth)
    return heaviest, (truncation.within(weights, bracket, target, worth), bracket.step)


_threshold_paths = jax.jit(_threshold_paths, static_argnames="worth")


@pytest.mark.parametrize(("scale", "top_p", "few"), [(12.0, 0.9, True), (1.0, 0.9, False), (0.05, 0.5, False)])
def test_both_ways_to_the_threshold_are_taken_and_agree_with_sorting(scale, top_p, few):
    vocab = 40_000
    logits = (np.random.default_rng(7).normal(size=(1, vocab)) * scale).astype(np.float32)
    weights = _weights(logits, np.ones(1, np.float32))
    flat = np.sort(np.asarray(weights, np.float64).ravel())[::-1]
    count = int(np.searchsorted(np.cumsum(flat), top_p * flat.sum())) + 1
    target = jnp.float32([top_p * flat.sum()])
    tiny = jnp.float32([np.finfo(np.float32).tiny])
    (floor, found), (floor_of_passes, passes) = _threshold_paths(weights, target, tiny, truncation.mass)
    assert bool(found[0]) == few
    assert 0 < int(passes) < 40
    kept = int(np.sum(np.asarray(weights) >= floor_of_passes[0]))
    assert abs(kept - count) <= (0 if few else 1)  # float32 sums
    if few:
        assert floor[0] == floor_of_passes[0]
    for top_k in (3, 1000):
        (floor, found), (floor_of_passes, _) = _threshold_paths(weights, jnp.float32([top_k]), tiny, jnp.ones_like)
        assert bool(found[0]) == (top_k == 3)
        assert flat[top_k - 1] == floor_of_passes[0]
        if top_k == 3:
            assert flat[2] == floor[0]


def test_ties_too_many_to_look_at_are_kept_together():
    vocab = 40_000
    logits = np.random.default_rng(8).integers(0, 3, vocab).astype(np.float32)
    twos, ones = int((logits == 2).sum()), int((logits == 1).sum())
    top_p = np.float32((twos + 0.5 * ones / np.e) / (twos + ones / np.e + (vocab - twos - ones) / np.e**2))
    for settings, expected in (({"top_k": 5}, 2), ({"top_k": twos + 1}, 1), ({"top_p": 0.1}, 2), ({"top_p": top_p}, 1)):
        assert _kept(logits, **settings) == np.flatnonzero(logits >= expected).tolist()


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    logits=st.lists(st.integers(-40, 40), min_size=200, max_size=200),
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    top_k=st.integers(0, 199),
    top_p=st.floats(2.0**-7, 1, width=32),
)
def test_the_kept_set_of_few_distinct_logits(logits, temperature, top_k, top_p):
    logits = np.float64(logits) / 8
    distinct, counts = np.unique(-logits, return_counts=True)
    left = np.ones_like(distinct, bool)
    if top_k:
        left = np.cumsum(counts) - counts < top_k
    shares = counts * np.exp((distinct[0] - distinct) / temperature) * left
    before = (np.cumsum(shares) - shares) / shares.sum()
    hypothesis.assume(np.all(np.abs(before - top_p) > 1e-5))  # not a matter of rounding
    if top_p < 1:
        left &= before < top_p
    expected = np.flatnonzero(logits >= -distinct[left][-1]).tolist()
    assert _kept(logits, temperature=temperature, top_k=top_k, top_p=top_p) == expected


def _kept(logits, **settings) -> list[int]:
    logits = np.asarray([logits], np.float32)
    return np.flatnonzero(_kept_BV(logits, *_settings(1, **settings)[:3])[0]).tolist()


def test_ties_with_the_last_one_kept_are_kept():
    logits = [3, 1, 2, 2, 2, 0, -np.inf, 3]
    assert _kept(logits, top_k=3) == [0, 2, 3, 4, 7]
    assert _kept(logits, top_k=2) == [0, 7]
    assert _kept(logits, top_p=0.1) == [0, 7]
    assert _kept([0.0, -0.0, -1.0], top_k=1) == [0, 1]


def test_top_p_is_taken_of_what_top_k_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    # Of the whole, 0.4 + 0.3 reach 0.55; of the first two, renormalised, 0.4 / 0.7 alone does.
    assert _kept(logits, top_p=0.55) == [0, 1]
    assert _kept(logits, top_k=2, top_p=0.55) == [0]
    # The temperature comes first: flattened, it takes three of them.
    assert _kept(logits, top_p=0.6) == [0, 1]
    assert _kept(logits, top_p=0.6, temperature=3.0) == [0, 1, 2]


def test_min_p_keeps_what_is_probable_enough_beside_the_most_probable():
    logits = np.log(np.float32([[0.1, 0.4, 0.2, 0.199, 0.4, 0.01]]))

    def possible(**settings):
        drawn = _many(jnp.asarray(logits[0]), _keys(512).reshape(2, 256), _settings(256, **settings))
        return sorted(set(np.asarray(drawn.token).ravel().tolist()))

    assert possible(min_p=1.0) == [1, 4]
    assert possible(min_p=0.499) == [1, 2, 4]
    assert possible(min_p=0.24) == [0, 1, 2, 3, 4]
    # The temperature comes first: at 1/2, 0.2 is a quarter as probable as 0.4.
    assert possible(min_p=0.3, temperature=0.5) == [1, 4]
    assert possible(min_p=0.1, top_k=2) == [1, 4]


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("settings", [{}, {"top_k": 7, "top_p": 0.9, "min_p": 0.01}])
def test_model_logprob_is_of_the_whole_distribution_at_temperature_1(temperature, settings):
    logits = (np.random.default_rng(9).normal(size=(8, 151_936)) * 4 + 30).astype(np.float32)
    drawn = _draw(logits, _keys(8), *_settings(8, temperature, **settings))
    exact = logits.astype(np.float64)
    exact -= np.log(np.sum(np.exp(exact), axis=-1, keepdims=True))
    np.testing.assert_allclose(drawn.model_logprob, exact[np.arange(8), np.asarray(drawn.token)], atol=1e-4)
    if temperature == 0:
        assert np.asarray(drawn.token).tolist() == logits.argmax(-1).tolist()


def test_greedy_takes_the_first_of_the_largest_with_logprob_0():
    logits = np.zeros((3, 300), np.float32)
    logits[0, [7, 200]] = 5
    logits[1, 299] = 1e-30
    drawn = _draw(logits, _keys(3), *_settings(3, temperature=0.0, top_k=5, top_p=0.5, min_p=0.5))
    assert np.asarray(drawn.token).tolist() == [7, 299, 0]
    assert np.asarray(drawn.logprob).tolist() == [0, 0, 0]


def test_rows_keep_their_own_settings():
    logits = np.broadcast_to(np.random.default_rng(4).normal(size=500).astype(np.float32), (5, 500))
    temperature, top_k, top_p = np.float32([1, 0, 0.5, 1, 2]), np.int32([0, 0, 0, 3, 0]), np.float32([1, 1, 1, 1, 0.2])
    settings = temperature, top_k, top_p, np.float32([0, 0.5, 0.1, 0, 0])
    together = _draw(logits, _keys(5), *settings)
    for row in range(5):
        alone = _draw(logits[row : row + 1], _keys(5)[row : row + 1], *(x[row : row + 1] for x in settings))
        assert alone.token[0] == together.token[row]
        np.testing.assert_allclose(alone.logprob[0], together.logprob[row], atol=1e-6)
        np.testing.assert_allclose(alone.model_logprob[0], together.model_logprob[row], atol=1e-6)


def test_extremes_draw_a_token_that_is_possible():
    vocab = 1000
    logits = np.full((5, vocab), -np.inf, np.float32)
    logits[0, 999] = -3e38
    logits[1] = 3e38
    logits[2, [3, 4]] = [80, -80]  # the second underflows to 0
    logits[3] = np.linspace(-1e-38, 1e-38, vocab)
    logits[4, :3] = [0, 1, 2]
    temperature = np.float32([1, 1, 1, 1e-45, 1e-30])
    for seed in range(20):
        cut = {"top_k": 999, "top_p": 0.999, "min_p": 1e-9} if seed % 2 else {}
        drawn = _draw(logits, _keys(5, seed), temperature, *_settings(5, **cut)[1:])
        tokens = np.asarray(drawn.token)
        assert np.all(drawn.finite)
        assert tokens[0] == 999
        assert tokens[2] == 3
        assert tokens[4] == 2
        assert np.all((tokens >= 0) & (tokens < vocab))
        assert np.all(np.isfinite(drawn.logprob) & (np.asarray(drawn.logprob) <= 1e-6))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_rows_without_a_distribution_are_told(poison):
    logits = np.random.default_rng(5).normal(size=(3, 130)).astype(np.float32)
    logits[1, 77] = poison
    if poison == -np.inf:
        logits[1] = poison
    drawn = _draw(logits, _keys(3), *_settings(3, top_k=4, top_p=0.9, min_p=0.01))
    assert np.asarray(drawn.finite).tolist() == [True, False, True]
    assert np.all((np.asarray(drawn.token) >= 0) & (np.asarray(drawn.token) < 130))


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    weights=st.lists(
        st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.floats(0, 2.0**-100, width=32)), min_size=97, max_size=97
    ),
    uniform=st.one_of(st.just(0.0), st.just(1 - 2.0**-24), st.floats(0, 1, exclude_max=True, width=32)),
)
def test_the_inverse_cdf_never_lands_on_weight_zero(weights, uniform):
    weights = np.where(np.float32(weights) < np.finfo(np.float32).tiny, 0, np.float32(weights))
    hypothesis.assume(weights.sum() > 0)
    picked = int(_pick(weights[None], np.float32([uniform]))[0])
    assert weights[picked] > 0


_pick = jax.jit(distribution._pick)


def test_keys_are_addressed():
    def bits(seed=0, request="a", sample=0, position=0):
        keys = base_keys(np.uint32([seed]), np.uint32([id_hash(request)]), np.uint32([sample]))
        return np.asarray(jax.random.bits(jax.random.fold_in(keys[0], position), (2,))).tolist()

    assert bits() == bits()
    others = [bits(seed=1), bits(request="b"), bits(sample=1), bits(position=1), bits(seed=1, sample=1)]
    assert len({tuple(b) for b in [bits(), *others]}) == 6
    # Written down, so that another process, version or machine agrees: logged samples can be made again.
    assert id_hash("a") == 0x128197CA  # SHA-256 of "a" begins ca 97 81 12
    assert bits(7, "a", 2, 3) == [539760133, 124013702]
