"""Padding, bucketing and the stream of pairs."""

import collections

import numpy as np
import pytest

from rrm_jax.data.records import Pair
from rrm_jax.data.stream import PairStream, Stream, coin, swap
from rrm_jax.training.batches import Row, bucket, build_sequences, micro_batches, pad_along_completion


def test_buckets_hold_their_length_and_are_few():
    sizes = {bucket(length, 64) for length in range(1, 12_289)}
    assert len(sizes) <= 16
    for length in range(1, 12_289, 7):
        size = bucket(length, 64)
        assert size >= length
        assert size <= 64 or length > size * 0.66 - 1 or size == 128


def test_micro_batches_cover_every_row_once():
    lengths = [5, 9, 1, 7, 7, 3, 2]
    groups = list(micro_batches(lengths, 3))
    assert sorted(at for group in groups for at in group) == list(range(7))
    assert [len(group) for group in groups] == [3, 3, 1]
    flat = [lengths[at] for group in groups for at in group]
    assert flat == sorted(lengths)


def test_sequences_by_hand():
    found = build_sequences([Row((7, 8, 9), (1, 2)), Row((5,), (3,))], 3, 4)
    np.testing.assert_array_equal(found.tokens[0], [7, 8, 9, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(found.segments, [[1] * 5 + [0] * 3, [1, 1] + [0] * 6, [0] * 8])
    np.testing.assert_array_equal(found.sources[0, :2], [2, 3])
    np.testing.assert_array_equal(found.targets[:2, :2], [[1, 2], [3, 0]])
    np.testing.assert_array_equal(found.mask, [[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4])
    padded = pad_along_completion([[0.5, 0.25], [1.0]], 3, 4)
    np.testing.assert_array_equal(padded, [[0.5, 0.25, 0, 0], [1, 0, 0, 0], [0] * 4])


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [Pair(str(at), f"q{at}", "good", "bad", 1) for at in range(100)]


def test_stream_is_a_new_permutation_each_epoch_and_addressed(pairs):
    stream = Stream(pairs, seed=3)
    epochs = [[pair.id for pair in stream.batch(epoch * 100, 100)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(pair.id for pair in pairs)
    assert epochs[0] != epochs[1]
    again = Stream(pairs, seed=3)
    assert [pair.id for pair in again.batch(137, 5)] == epochs[1][37:42]
    assert [pair.id for pair in Stream(pairs, seed=4).batch(0, 100)] != epochs[0]


def test_order_is_shuffled_with_its_label_anew_each_epoch(pairs):
    stream = PairStream(pairs, seed=0)
    shown = [stream.batch(epoch * 100, 100) for epoch in range(20)]
    for pair in (pair for epoch in shown for pair in epoch):
        assert (pair.response_1, pair.response_2)[pair.label - 1] == "good"
    share = np.mean([pair.label == 1 for epoch in shown for pair in epoch])
    assert abs(share - 0.5) < 0.05  # 2,000 fair coins: 4.5 standard deviations
    per_id = collections.defaultdict(set)
    for epoch in shown:
        for pair in epoch:
            per_id[pair.id].add(pair.label)
    assert all(labels == {1, 2} for labels in per_id.values())


def test_swap_and_coin():
    pair = Pair("a", "q", "x", "y", 2)
    assert swap(pair) == Pair("a", "q", "y", "x", 1)
    assert swap(swap(pair)) == pair
    # Known values: a change of the addressing would change every run made before it.
    assert [coin("order", 0, 0, str(at)) for at in range(8)] == [True, True, True, False, False, True, False, True]
