"""What files of records hold, against counts by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.overview import Lengths, Overview, Sample, kind_of
from rrm_jax.data.records import Candidates, Pair, Question
from rrm_jax.data.stream import PairStream

PAIRS = [
    Pair("1", "q", "abc", "a", 1, "s"),
    Pair("2", "q", "a", "abc", 1, "s"),  # the same texts in the other order
    Pair("3", "r", "thought</think>a", "a", 2, "t"),  # the same once its thinking is removed
    Pair("4", " \n", "", "b", None, ""),
    Pair("5", "r", "ab", "abcd", 2, "s"),
    Pair("6", "q", "a", "abc", 1, "s"),
]


def test_pairs_by_hand():
    overview = Overview("pairs")
    for pair in PAIRS:
        overview.add(pair)
    assert (overview.rows, dict(overview.sources)) == (6, {"s": 4, "t": 1, "": 1})
    assert (overview.queries, overview.duplicates, overview.identical) == (3, 2, 1)
    assert +overview.empty == {"query": 1, "response_1": 1}
    assert dict(overview.labels) == {1: 3, 2: 2, None: 1}
    assert dict(overview.better) == {"longer": 2, "shorter": 2, "as long": 1}
    assert overview.characters["response_1"].percentiles(0, 50, 100) == [0, 1, 3]  # 3 1 1 0 2 1
    assert overview.characters["query"].bins() == [(1, 1, 5), (2, 3, 1)]


def test_the_position_balance_is_the_streams():
    pairs = [Pair(str(at), "q", "a", "b", 1 + (at % 7 == 0)) for at in range(300)]
    overview = Overview("pairs")
    for pair in [*pairs, Pair("x", "q", "a", "b", None)]:
        overview.add(pair)
    for seed in (0, 1):
        epoch = PairStream(pairs, seed).batch(0, 300)
        assert overview.first_in_stream(seed) == sum(pair.label == 1 for pair in epoch)
        assert abs(overview.first_in_stream(seed) - 150) < 3 * 8.7  # three standard deviations of 300 fair coins


def test_candidates_and_questions_by_hand():
    overview = Overview("candidates")
    overview.add(Candidates("1", "q", ("a", "x</think>a", "b"), (True, True, False)))
    overview.add(Candidates("2", "q", ("b", "a", "a")))
    overview.add(Candidates("3", "q", ("",)))
    assert (dict(overview.responses), dict(overview.correct)) == ({3: 2, 1: 1}, {True: 2, False: 1, None: 4})
    assert (overview.identical, overview.queries, overview.duplicates) == (2, 1, 1)
    assert +overview.empty == {"responses": 1}
    overview = Overview("questions")
    overview.add(Question("1", "q", "4", "s", "math"))
    overview.add(Question("2", "q", None, "s"))
    assert (overview.answers, dict(overview.verifiers), overview.duplicates) == (1, {"math": 1, "": 1}, 1)


def test_what_parts_share():
    parts = [Overview("pairs") for _ in range(3)]
    for part, pairs in zip(parts, (PAIRS[:2], PAIRS[2:5], PAIRS[3:]), strict=True):
        for pair in pairs:
            part.add(pair)
    assert (parts[0].shared(), parts[1].shared(parts[0]), parts[2].shared(*parts[:2])) == (0, 0, 3)
    assert parts[2].shared(parts[0]) == 1


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), st.integers(0, 100))
def test_lengths_are_counted_once_each(values, percent):
    """Property: bins hold each value once; so many percent of the values are not above a percentile, which is one."""
    lengths = Lengths(values)
    bins = lengths.bins()
    assert [count for _, _, count in bins] == [sum(least <= v <= most for v in values) for least, most, _ in bins]
    assert sum(count for _, _, count in bins) == len(values) == len(lengths)
    (found,) = lengths.percentiles(percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 <= percent * len(values)


@given(st.permutations(range(40)), st.integers(0, 40))
def test_a_sample_does_not_depend_on_the_order(order, size):
    """Property."""
    first, second = Sample(size, 3), Sample(size, 3)
    for at in range(40):
        first.add(str(at), {"no order": at})
        second.add(str(order[at]), {"no order": order[at]})
    assert first.items() == second.items()
    assert len({item["no order"] for item in first.items()}) == size


def test_a_sample_depends_on_the_seed_and_is_nested():
    drawn = []
    for size, seed in [(5, 0), (9, 0), (9, 1)]:
        sample = Sample(size, seed)
        for at in range(1000):
            sample.add(str(at), at)
        drawn.append(sample.items())
    assert drawn[0] == drawn[1][:5]
    assert set(drawn[1]) != set(drawn[2])


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ("id query response_1 response_2", "pairs"),
        ("id query responses correct", "candidates"),
        ("id query answer", "questions"),
        ("id winner probability votes content", "judged"),
    ],
)
def test_kinds_by_their_fields(fields, kind):
    assert kind_of(dict.fromkeys(fields.split())) == kind


def test_an_unknown_kind_of_row_says_what_it_has():
    with pytest.raises(RowError, match=r"'id', 'prompt' are of no known kind of row .*pairs: query, response_1"):
        kind_of({"id": 1, "prompt": "x"})
