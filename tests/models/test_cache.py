"""Attention over cached segments, against a plain softmax over what a row really sees. float32, or as named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.models.attention import NO_WINDOW
from rrm_jax.models.cache import (
    Cache,
    Prefix,
    Seen,
    Segment,
    attend_cached,
    empty_segment,
    put_rows,
    store,
    take_rows,
    write,
)

B, T, K, G, N, S, P = 6, 3, 2, 2, 8, 16, 12
PREFIX_LENGTH = np.array([12, 5, 0, 9], np.int32)  # the third is empty
OF_ROW = np.array([0, 1, 0, 3, 3, 1])
OWN_LENGTH = np.array([0, 4, 13, 7, 1, 2], np.int32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prefix_table(ways: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [W, U/W, R] and place [W, B/W] for OF_ROW, two rows a prefix at most."""
    rows = np.zeros((ways, 4 // ways, 2), np.int32)
    place = np.zeros((ways, B // ways), np.int32)
    taken = dict.fromkeys(range(4), 0)
    for b, u in enumerate(OF_ROW):
        w, at = divmod(b, B // ways)
        rows[w, u % (4 // ways), taken[u]] = at
        place[w, at] = (u % (4 // ways)) * 2 + taken[u]
        taken[u] += 1
    return rows, place


def expected_attention(q, own_k, own_v, prefix_k, prefix_v, window) -> np.ndarray:
    out = np.zeros((B, T, K * G, N))
    for b in range(B):
        u = OF_ROW[b]
        for t in range(T):
            for h in range(K * G):
                k = np.concatenate([prefix_k[u, h // G, : PREFIX_LENGTH[u]], own_k[b, h // G, : OWN_LENGTH[b] + t + 1]])
                v = np.concatenate([prefix_v[u, h // G, : PREFIX_LENGTH[u]], own_v[b, h // G, : OWN_LENGTH[b] + t + 1]])
                k, v = k[-window:].astype(np.float64), v[-window:]
                scores = k @ q[b, t, h] / np.sqrt(N)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights @ v / weights.sum()
    return out


@pytest.mark.parametrize("window", [NO_WINDOW, 5])
@pytest.mark.parametrize("poison", [False, True])
def test_own_and_shared_columns_together_are_one_softmax(window, poison):
    q = normal(0, B, T, K * G, N)
    own_k, own_v = normal(1, B, K, S, N), normal(2, B, K, S, N)
    prefix_k, prefix_v = normal(3, 4, K, P, N), normal(4, 4, K, P, N)
    expected = expected_attention(q, own_k, own_v, prefix_k, prefix_v, window)
    if poison:  # large finite values beyond what is filled must not count
        for b in range(B):
            own_k[b, :, OWN_LENGTH[b] + T :] = own_v[b, :, OWN_LENGTH[b] + T :] = 1e6
        for u in range(4):
            prefix_k[u, :, PREFIX_LENGTH[u] :] = prefix_v[u, :, PREFIX_LENGTH[u] :] = 1e6
    shared = Segment(jnp.asarray(prefix_k), jnp.asarray(prefix_v))
    prefix = Prefix([shared], jnp.asarray(PREFIX_LENGTH), *map(jnp.asarray, prefix_table(1)))
    cache = Cache([], jnp.asarray(OWN_LENGTH), prefix)
    start = cache.start()
    np.testing.assert_array_equal(start, PREFIX_LENGTH[OF_ROW] + OWN_LENGTH)
    seen = Seen(start[:, None] + jnp.arange(T), start - cache.length, cache.length, prefix)
    own = Segment(jnp.asarray(own_k), jnp.asarray(own_v))
    out = attend_cached(jnp.asarray(q), own, shared, seen, jnp.int32(window))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_new_columns_are_written_where_each_row_ends():
    segment, k, v = empty_segment((B, K, S, N), jnp.float32), normal(5, B, K, T, N), normal(6, B, K, T, N)
    at = jnp.asarray([0, 4, 13, 7, 1, 2], jnp.int32)
    written = write(segment, store(k, v, jnp.float32), at)
    for b in range(B):
        expected = np.zeros((K, S, N), np.float32)
        expected[:, at[b] : at[b] + T] = k[b]
        np.testing.assert_array_equal(written.k[b], expected)
        expected[:, at[b] : at[b] + T] = v[b]
        np.testing.assert_array_equal(written.v[b], expected)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("bfloat16", 0.004), ("int8", 0.005), ("float8_e4m3fn", 0.07)], ids=["bf16", "int8", "fp8"]
)
def test_narrow_caches_keep_values_within_their_rounding(dtype, bound):
    # Rows of very different sizes: a scale of its own for each column keeps small ones as exact as large ones.
    k = normal(7, 4, K, T, N) * np.float32(10.0) ** np.arange(-2, 2)[:, None, None, None]
    kept = store(jnp.asarray(k), jnp.asarray(k), jnp.dtype(dtype))
    back = np.asarray(kept.k, np.float32) * (1 if kept.k_scale is None else np.asarray(kept.k_scale)[..., None])
    largest = np.abs(k).max(-1, keepdims=True)
    assert (np.abs(back - k) / largest).max() < bound
    assert np.isfinite(np.asarray(store(1e6 * k, k, jnp.dtype(dtype)).k, np.float32)).all()


def test_scales_of_int8_caches_reach_scores_and_values():
    q = normal(8, B, T, K * G, N)
    k, v = 3 * normal(9, B, K, S, N), 0.2 * normal(10, B, K, S, N)
    start = jnp.asarray(OWN_LENGTH)
    seen = Seen(start[:, None] + jnp.arange(T), jnp.zeros(B, jnp.int32), start, None)
    exact = attend_cached(jnp.asarray(q), Segment(jnp.asarray(k), jnp.asarray(v)), None, seen, jnp.int32(NO_WINDOW))
    kept = store(jnp.asarray(k), jnp.asarray(v), jnp.int8)
    narrow = attend_cached(jnp.asarray(q), kept, None, seen, jnp.int32(NO_WINDOW))
    gap = np.abs(np.asarray(narrow - exact)).max()
    assert 0 < gap < 0.02


@pytest.mark.parametrize("ways", [1, 2])
def test_rows_are_taken_and_put_within_their_part(ways):
    x = jnp.arange(8 * 3).reshape(8, 3)
    index = np.array([[3, 0, 1, 1]] if ways == 1 else [[3, 0], [1, 1]], np.int32)
    offset = np.repeat(np.arange(ways) * (8 // ways), 4 // ways)
    np.testing.assert_array_equal(take_rows(x, index), x[index.reshape(-1) + offset])
    target = np.array([[7, 8, 2, 9]] if ways == 1 else [[3, 4], [2, 9]], np.int32)  # 8 and more: nowhere
    new = -jnp.ones((4, 3), x.dtype)
    put = np.asarray(put_rows(x, new, target))
    hit = {7, 2} if ways == 1 else {3, 6}
    assert {row for row in range(8) if (put[row] == -1).all()} == hit
    kept = [row for row in range(8) if row not in hit]
    np.testing.assert_array_equal(put[kept], np.asarray(x)[kept])


@pytest.mark.parametrize(("kernel", "width"), [("splash", 128), ("cudnn", 128), ("cudnn", 64)])
def test_the_kernel_is_used_where_it_applies_and_agrees(kernel, width):
    columns = 64
    q = normal(20, B, T, K * G, width)
    own, shared = (
        store(normal(seed, rows, K, columns, width), normal(seed + 1, rows, K, columns, width), jnp.int8)
        for seed, rows in ((21, B), (23, 4))
    )
    prefix = Prefix([shared], jnp.asarray(PREFIX_LENGTH), *map(jnp.asarray, prefix_table(1)))
    cache = Cache([], jnp.asarray(OWN_LENGTH), prefix)
    start = cache.start()
    seen = Seen(start[:, None] + jnp.arange(T), start - cache.length, cache.length, prefix)

    def attend(window, backend):
        return attend_cached(jnp.asarray(q), own, shared, seen, window, backend)

    np.testing.assert_allclose(attend(NO_WINDOW, kernel), attend(NO_WINDOW, "xla"), atol=1e-5)
    uses = [
        "pallas_call" in str(jax.make_jaxpr(lambda window=window: attend(window, kernel))())
        for window in (NO_WINDOW, 5)
    ]
    assert uses == [True, False]
