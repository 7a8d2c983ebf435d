"""Padding, bucketing and the stream of pairs."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.data.records import Pair
from rrm_jax.data.stream import PairStream, Stream, coin, swap
from rrm_jax.training.batches import Example, bucket, micro_batches
from rrm_jax.training.config import PackConfig


def test_buckets_hold_their_length_and_are_few():
    sizes = {bucket(length, 64) for length in range(1, 12_289)}
    assert len(sizes) <= 16
    for length in range(1, 12_289, 7):
        size = bucket(length, 64)
        assert size >= length
        assert size <= 64 or length > size * 0.66 - 1 or size == 128


def _examples(lengths):
    return [Example(tuple(range(1, prompt + 1)), tuple(range(50, 50 + own))) for prompt, own in lengths]


def test_a_packed_row_by_hand():
    examples = _examples([(3, 2), (1, 1), (2, 3)])
    pack = PackConfig(row_tokens=8, micro_batch_tokens=100)
    (batch,) = micro_batches(examples, [0, 1, 2], pack, ways=2, shares_prompts=False)
    assert batch.rows == ((0, 1), (2,))  # longest first, each into the first row that has room
    found = batch.sequences()
    np.testing.assert_array_equal(found.tokens, [[1, 2, 3, 50, 51, 1, 50, 0], [1, 2, 50, 51, 52, 0, 0, 0]])
    np.testing.assert_array_equal(found.positions, [[0, 1, 2, 3, 4, 0, 1, 0], [0, 1, 2, 3, 4, 0, 0, 0]])
    np.testing.assert_array_equal(found.segments, [[1] * 5 + [2] * 2 + [0], [1] * 5 + [0] * 3])
    assert found.prefixes is None
    np.testing.assert_array_equal(found.sources, [[2, 3, 5], [1, 2, 3]])
    np.testing.assert_array_equal(found.targets, [[50, 51, 50], [50, 51, 52]])
    np.testing.assert_array_equal(found.mask, np.ones((2, 3)))
    np.testing.assert_array_equal(batch.responses(), [[0, 0, 1], [0, 0, 0]])
    along = batch.along([np.array([0.5, 0.25]), 3.0, [1, 2, 4]])
    np.testing.assert_array_equal(along, [[0.5, 0.25, 3], [1, 2, 4]])
    apart = {at: values.tolist() for at, values in batch.apart(along)}
    assert apart == {0: [0.5, 0.25], 1: [3.0], 2: [1.0, 2.0, 4.0]}


def test_a_prompt_is_there_once_for_its_completions_by_hand():
    """Two completions of one prompt and one of another; the third of the first finds no room and brings its own."""
    same = Example((1, 2), (50, 51))
    examples = [same, Example((1, 2), (60,)), Example((9,), (70, 71)), Example((1, 2), (80, 81))]
    (batch,) = micro_batches(examples, range(4), PackConfig(row_tokens=6, micro_batch_tokens=100), ways=1)
    assert batch.rows == ((0, 3), (1, 2))
    found = batch.sequences()
    np.testing.assert_array_equal(found.tokens, [[1, 2, 50, 51, 80, 81], [1, 2, 60, 9, 70, 71]])
    np.testing.assert_array_equal(found.positions, [[0, 1, 2, 3, 2, 3], [0, 1, 2, 0, 1, 2]])
    np.testing.assert_array_equal(found.segments, [[1, 1, 2, 2, 3, 3], [1, 1, 2, 3, 4, 4]])
    np.testing.assert_array_equal(found.prefixes, [[1, 1, 1, 1, 1, 1], [1, 1, 1, 3, 3, 3]])
    np.testing.assert_array_equal(found.sources[:, :4], [[1, 2, 1, 4], [1, 3, 4, 0]])
    np.testing.assert_array_equal(found.targets[:, :4], [[50, 51, 80, 81], [60, 70, 71, 0]])
    np.testing.assert_array_equal(batch.responses()[:, :4], [[0, 0, 1, 1], [0, 1, 1, 0]])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=40),
    st.integers(8, 64), st.integers(1, 400), st.sampled_from([1, 2, 8]), st.booleans(),
)  # fmt: skip
def test_every_example_is_in_one_row_and_fits(lengths, row_tokens, micro_batch_tokens, ways, shares):
    examples = _examples(lengths)
    chosen = list(range(0, len(examples), 2))
    pack = PackConfig(row_tokens=row_tokens, micro_batch_tokens=micro_batch_tokens)
    batches = micro_batches(examples, chosen, pack, ways, shares)
    assert sorted(at for batch in batches for at in batch.members) == chosen
    for batch in batches:
        assert len(batch.rows) % ways == 0
        assert batch.time * len(batch.rows) <= max(micro_batch_tokens, batch.time * ways)
        for row in batch.rows:
            prompts = [examples[at].prompt_ids for at in row]
            once = [p for at, p in enumerate(prompts) if not shares or at == 0 or p != prompts[at - 1]]
            assert len(once) == (len(set(once)) if shares else len(row))
            own = sum(len(examples[at].completion_ids) for at in row)
            assert sum(map(len, once)) + own <= batch.time
            assert sum(len(examples[at].completion_ids) for at in row) <= batch.width <= batch.time


def test_shapes_are_few_and_little_is_padding():
    """2,048 sequences as a step of RRM-7B has them: prompts up to 4,096, completions up to 8,192, mean 2,000."""
    rng = np.random.default_rng(0)
    lengths = [
        (int(p), int(c))
        for p, c in zip(rng.integers(500, 4096, 2048), np.minimum(rng.geometric(1 / 2000, 2048), 8192), strict=True)
    ]
    examples, pack = _examples(lengths), PackConfig(row_tokens=4096, micro_batch_tokens=65_536)
    batches = micro_batches(examples, range(len(examples)), pack, ways=8)
    assert len({(len(batch.rows), batch.time, batch.width) for batch in batches}) <= 16
    computed = sum(len(batch.rows) * batch.time for batch in batches)
    assert sum(example.length for example in examples) / computed > 0.85


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
